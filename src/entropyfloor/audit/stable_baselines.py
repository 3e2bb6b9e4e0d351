"""Policies in the model files of Stable-Baselines3 and SBX, read without either library.

Such a .zip holds weights (`policy.pth`, or a pickle with SBX), and `data`, JSON in which some values are pickles.
Weights are read as tensors, and pickles by `inert`: nothing that the file holds is executed. The actor is rebuilt
from the shapes of its weights.
"""

from __future__ import annotations

import ast
import base64
import io
import json
import re
import zipfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from entropyfloor.audit import inert
from entropyfloor.audit.file_policy import FilePolicy
from entropyfloor.extras import brief
from entropyfloor.integrations.heads import CategoricalPolicy, GaussianPolicy

LOG_STD_MIN, LOG_STD_MAX = -20.0, 2.0
"""Bounds of log σ in SAC and TQC of both libraries."""
OURS = "entropyfloor.integrations.sb3"
"""Module of this package's policies for Stable-Baselines3."""
OURS_IN_SBX = "entropyfloor.integrations.sbx"
"""Module of this package's actors for SBX."""
SETTINGS = ("target_entropy", "distribution", "head", "log_std_min", "log_std_max")
"""Settings of their heads."""
MOST = 2**31
"""Largest number of bytes of a part of the file that is read."""
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "elu": torch.nn.functional.elu,
    "gelu": torch.nn.functional.gelu,
    "leakyrelu": torch.nn.functional.leaky_relu,
    "mish": torch.nn.functional.mish,
    "relu": torch.relu,
    "silu": torch.nn.functional.silu,
    "softplus": torch.nn.functional.softplus,
    "swish": torch.nn.functional.silu,
    "tanh": torch.tanh,
}
Layer = tuple[Tensor, Tensor]
Head = Callable[[Tensor], tuple[Tensor, ...]]
"""From the outputs of a network to the parameters of a distribution."""


def read(file: Path) -> FilePolicy:
    """Read the actor of a model file.

    Raises:
        ValueError: It is no such file, or its policy has no entropy, or is of a kind that is not read; the message
            says which.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            parts = {name: _part(archive, name) for name in ("data", "policy.pth") if name in archive.namelist()}
        data = json.loads(parts["data"])
        if not isinstance(data, dict):
            raise ValueError("its `data` is no object")
        _check_observations(data)
        low, high, actions = _actions(data)
        if "sbx" in str(_entry(data, "policy").get(":type:", "")):
            actor = _of_sbx(data, actions)
        elif "policy.pth" in parts:
            actor = _of_sb3(data, _weights(parts["policy.pth"]), actions)
        else:
            raise ValueError("it has no policy.pth")
    except Exception as error:  # its type depends on what is damaged
        reason = f"it has no {error}" if isinstance(error, KeyError) else brief(error)
        raise ValueError(f"{file} is no policy that can be measured: {reason}") from None
    distribution, parameters, width, aim = actor
    return FilePolicy(str(file), distribution, parameters, width, low, high, aim.pop("floor", None), aim)


def _part(archive: zipfile.ZipFile, name: str) -> bytes:
    size = archive.getinfo(name).file_size
    if size > MOST:
        raise ValueError(f"its {name} has {size:,} bytes, more than {MOST:,}")
    return archive.read(name)


def _weights(content: bytes) -> dict[str, Tensor]:
    try:
        weights = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # its type depends on what is damaged
        raise ValueError(f"its policy.pth holds more than weights, or is damaged ({brief(error, 120)})") from None
    if not (isinstance(weights, Mapping) and all(isinstance(value, Tensor) for value in weights.values())):
        raise ValueError("its policy.pth holds more than weights")
    return {str(name): value.float() for name, value in weights.items()}


def _entry(data: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """An object of `data` that was pickled, as its JSON describes it; empty where it was not."""
    value = data.get(name)
    return value if isinstance(value, dict) else {}


def _unpickled(data: Mapping[str, Any], name: str) -> Any:
    return inert.unpickle(base64.b64decode(_entry(data, name)[":serialized:"]))


def _check_observations(data: Mapping[str, Any]) -> None:
    """Refuse images, whatever the policy: Stable-Baselines3 transposes and scales them, SBX transposes them."""
    if _kind(data, "observation_space") == "Box":
        low = inert.array(_unpickled(data, "observation_space").state["low"])
        if low.ndim == 3 and low.dtype == np.uint8:
            raise ValueError("its observations are images, which the library prepares: only vectors are read")


def _kind(data: Mapping[str, Any], space: str) -> str:
    """The kind of a space, such as Box or Discrete."""
    return str(_entry(data, space).get(":type:", "")).rstrip("'>").rpartition(".")[2]


def _actions(data: Mapping[str, Any]) -> tuple[np.ndarray | None, np.ndarray | None, str]:
    """Bounds of the actions, where they are continuous, and the kind of their space: Box or Discrete."""
    kind = _kind(data, "action_space")
    if kind == "Discrete":
        return None, None, kind
    if kind != "Box":
        raise ValueError(f"its actions are of type {kind or 'unknown'}: Box and Discrete are read")
    state = _unpickled(data, "action_space").state
    low, high = (inert.array(state[name]).astype(np.float64).ravel() for name in ("low", "high"))
    return low, high, kind


Actor = tuple[Any, Callable[[np.ndarray], tuple[np.ndarray, ...]], int, dict[str, float]]
"""Name of the distribution, the function from observations to parameters, width of an observation, and what the
entropy is steered to: the `floor` of a head of ours, or a `target_entropy`."""


def _target(data: Mapping[str, Any]) -> dict[str, float]:
    """The target of SAC's temperature."""
    target = data.get("target_entropy")
    return {"target_entropy": float(target)} if isinstance(target, int | float) else {}


# --- Stable-Baselines3 -----------------------------------------------------------------------------------


def _of_sb3(data: Mapping[str, Any], weights: dict[str, Tensor], actions: str) -> Actor:
    """The actor of SAC and TQC, whose weights begin with `actor.`, or of PPO and A2C."""
    entry = _entry(data, "policy_class")
    name = re.findall(r"<function (\w+)\.", str(entry.get("__init__", "")))
    module = str(entry.get("__module__", "unknown"))
    if not module.startswith(("stable_baselines3.", "sb3_contrib.")) and module != OURS:
        raise ValueError(f"its policy is of the module {module}, whose network only that module knows")
    if module.startswith("sb3_contrib.common.maskable"):
        raise ValueError("its actions are masked, and the masks of each state are not in the file")
    if data.get("use_sde"):
        raise ValueError("its exploration is state-dependent (use_sde), which is not read")
    extractor = str(_entry(data, "policy_kwargs").get("features_extractor_class", "FlattenExtractor"))
    if "FlattenExtractor" not in extractor:
        raise ValueError(f"its features_extractor_class is {extractor}, which only its own module knows")
    is_sac = any(key.startswith("actor.") for key in weights)
    heads: tuple[str, ...]
    if is_sac:
        own = {key.removeprefix("actor."): value for key, value in weights.items() if key.startswith("actor.")}
        hidden, heads, default = "latent_pi", ("mu", "log_std"), "relu"
    else:
        own = {
            key: value for key, value in weights.items() if not key.startswith(("value_net.", "mlp_extractor.v"))
        }
        hidden, heads, default = "mlp_extractor.policy_net", ("action_net",), "tanh"
    if any(f"{head}.weight" not in own for head in heads):
        raise ValueError(f"{name[0] if name else 'its policy'} is deterministic, or has a network of another kind")
    layers = _stack(own, hidden)
    known = {f"{head}.{part}" for head in heads for part in ("weight", "bias")} | {"log_std"}
    known |= {key for key in own if key.startswith(f"{hidden}.")}
    if rest := sorted(set(own) - known):
        raise ValueError(f"its network has {rest[0]}: only plain layers behind a vector of observations are read")
    activation = _activation(str(_entry(data, "policy_kwargs").get("activation_fn", default)))
    ends = [(own[f"{head}.weight"], own[f"{head}.bias"]) for head in heads]
    if module == OURS:
        settings = {"distribution": "truncated" if is_sac else "normal", **_entry(data, "policy_kwargs")}
        return _with_floor(settings, layers, ends, activation, actions)
    kind, head = ("tanh", _squashed) if is_sac else _of_ppo(actions, own)
    return kind, *_network(layers, ends, activation, head), _target(data)


def _stack(weights: Mapping[str, Tensor], name: str) -> list[Layer]:
    """The layers of a `Sequential`, each followed by an activation."""
    places = sorted({int(key.split(".")[-2]) for key in weights if re.fullmatch(rf"{name}\.\d+\.weight", key)})
    layers = [(weights[f"{name}.{i}.weight"], weights[f"{name}.{i}.bias"]) for i in places]
    if places != [2 * i for i in range(len(places))] or any(weight.ndim != 2 for weight, _ in layers):
        raise ValueError(f"the layers of {name} are not linear ones with an activation behind each")
    return layers


# --- SBX -------------------------------------------------------------------------------------------------


def _of_sbx(data: Mapping[str, Any], actions: str) -> Actor:
    """SBX keeps the weights in the pickle of its policy, and says in JSON what the actor is."""
    actor = str(_entry(data, "policy").get("actor", ""))
    kind = actor.partition("(")[0]
    attributes = dict(re.findall(r"^\s*(\w+) = (.*)$", actor, re.MULTILINE))
    if (
        kind not in ("SquashedGaussianActor", "Actor", "ERAActor", "ERAPPOActor")
        or attributes.get("features_extractor", "None") != "None"
    ):
        raise ValueError(
            f"its actor is {kind or 'unknown'}: SquashedGaussianActor and Actor, and ours, without images are read"
        )
    policy = _unpickled(data, "policy").state
    origin, is_ours = policy["actor"].origin, kind.startswith("ERA")
    known = origin == f"{OURS_IN_SBX}.{kind}" if is_ours else origin.startswith("sbx.")
    if not known:
        raise ValueError(f"its actor is {origin}, whose network only that module knows")
    if data.get("use_sde"):
        raise ValueError("its exploration is state-dependent (use_sde), which is not read")
    activation = _activation(attributes.get("activation_fn", "unknown"))
    if activation is torch.nn.functional.gelu:
        activation = partial(torch.nn.functional.gelu, approximate="tanh")  # as JAX has it
    parameters = policy["actor_state"].state["params"]
    parameters = parameters.get("params", parameters)  # CrossQ keeps them without the name of their collection
    names = [f"Dense_{i}" for i in range(sum(name.startswith("Dense_") for name in parameters))]
    if rest := sorted(set(parameters) - {*names, "log_std"}):
        raise ValueError(f"its network has {rest[0]}: only plain layers behind a vector of observations are read")
    dense = [parameters[name] for name in names]
    layers = [(_tensor(layer["kernel"]).T, _tensor(layer["bias"])) for layer in dense]
    if is_ours:
        distribution, ends = ("truncated", 2) if kind == "ERAActor" else ("normal", 1)
        settings = {name: ast.literal_eval(attributes[name]) for name in SETTINGS if name in attributes}
        settings["distribution"] = distribution
        return _with_floor(settings, layers[:-ends], layers[-ends:], activation, actions)
    if kind == "SquashedGaussianActor":
        return "tanh", *_network(layers[:-2], layers[-2:], activation, _squashed), _target(data)
    if actions != "Discrete" and "log_std" not in parameters:
        raise ValueError("its actor is deterministic, or of another kind than that of PPO")
    log_std = {name: _tensor(value) for name, value in parameters.items() if name == "log_std"}
    distribution, head = _of_ppo(actions, log_std)
    return distribution, *_network(layers[:-1], layers[-1:], activation, head), _target(data)


def _tensor(value: Any) -> Tensor:
    return torch.from_numpy(inert.array(value).astype(np.float32))


# --- policies of this package, in both ------------------------------------------------------------------


def _with_floor(
    settings: Mapping[str, Any],
    layers: list[Layer],
    ends: list[Layer],
    activation: Callable[[Tensor], Tensor],
    actions: str,
) -> Actor:
    """The actor whose outputs go through a head of `integrations.heads`, as `policy_kwargs` describe it."""
    given = {name: settings[name] for name in SETTINGS if settings.get(name) is not None}
    if (head := given.get("head")) in ("tanh", "clip", "fixed", "projection", "softmax"):
        raise ValueError(f"its head {head} is one for comparisons: audit an ONNX file of it")
    target, size = given.pop("target_entropy"), sum(len(bias) for _, bias in ends)
    policy: GaussianPolicy | CategoricalPolicy
    if actions == "Discrete":
        policy = CategoricalPolicy(size, float(target), given.get("head", "era-exact"))
        kind, aim = "categorical", {"floor": policy.min_entropy}
    else:
        head = "era-exact" if given["distribution"] == "truncated" else "era"
        policy = GaussianPolicy(size // 2, target, **{"head": head, **given})
        kind, aim = policy.distribution, {"floor": policy.floor}
    return kind, *_network(layers, ends, activation, partial(_headed, policy)), aim


def _headed(policy: GaussianPolicy | CategoricalPolicy, out: Tensor) -> tuple[Tensor, ...]:
    """Logits, or location and scale before truncation, behind the head of a policy of this package."""
    if isinstance(policy, CategoricalPolicy):
        return (policy(out).logits,)
    loc, log_std = policy.parameters(*out.chunk(2, -1))
    return loc, log_std.exp()


# --- the networks ----------------------------------------------------------------------------------------


def _activation(name: str) -> Callable[[Tensor], Tensor]:
    """An activation by its name, or by the class of PyTorch as `data` prints it."""
    word = name.rstrip("'>").rpartition(".")[2].lower().replace("_", "")
    if word not in ACTIVATIONS:
        raise ValueError(f"its activation is {name}: {', '.join(ACTIVATIONS)} are read")
    return ACTIVATIONS[word]


def _network(
    layers: list[Layer], ends: list[Layer], activation: Callable[[Tensor], Tensor], head: Head
) -> tuple[Callable[[np.ndarray], tuple[np.ndarray, ...]], int]:
    """The function from observations to parameters, and the width of an observation."""

    @torch.no_grad()
    def parameters(observations: np.ndarray) -> tuple[np.ndarray, ...]:
        x = torch.from_numpy(np.asarray(observations, np.float32))
        for layer in layers:
            x = activation(torch.nn.functional.linear(x, *layer))
        out = torch.cat([torch.nn.functional.linear(x, *layer) for layer in ends], -1)
        return tuple(value.numpy() for value in head(out))

    return parameters, int([*layers, *ends][0][0].shape[1])


def _squashed(out: Tensor) -> tuple[Tensor, ...]:
    """Location and scale of the squashed Gaussian of SAC and TQC."""
    loc, log_std = out.chunk(2, -1)
    return loc, log_std.clamp(LOG_STD_MIN, LOG_STD_MAX).exp()


def _of_ppo(actions: str, weights: Mapping[str, Tensor]) -> tuple[str, Head]:
    """Logits, or location and scale of the Gaussian of PPO and A2C, whose scale is one for all states."""
    if actions == "Discrete":
        return "categorical", lambda out: (out,)
    scale = weights["log_std"].exp()
    return "normal", lambda out: (out, scale.expand_as(out))
