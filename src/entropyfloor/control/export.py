"""Export of a trained policy as one ONNX file, which runs without this package and without JAX."""

from __future__ import annotations

import logging
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from entropyfloor.control.agents.build import build_agent, player
from entropyfloor.control.load import Policy, load_policy
from entropyfloor.control.normalise import CLIP
from entropyfloor.extras import require
from entropyfloor.jax.distributions import Categorical
from entropyfloor.runs import files

OUTPUTS = {True: ("action", "logits", "entropy"), False: ("action", "loc", "scale", "entropy")}
"""Names of the outputs, for discrete actions and for continuous ones."""
PRIOR = "the policy prior, without the planner that acts in training and in evaluations"


def export(run: Path, out: Path) -> str:
    """Write the policy of a run as an ONNX file, with the normalisation of observations inside.

    The input is `observation` `[B, obs]` for any B. The outputs are the mode `action`, which evaluations take; the
    `loc` and `scale` of the distribution before it is bounded (of `mnse` before its mapping of actions), or the
    `logits` of discrete actions; and the `entropy` of the acting policy, in nats. The metadata name the
    distribution, the floor and the run's settings. The file computes in float32, whatever the `precision` of the
    run. If the agent plans, the file is its policy prior; the metadata and the lines returned say so.

    Args:
        run: A run directory, or a directory in its `checkpoints`.
        out: A file that ends in .onnx.

    Returns:
        Lines of Python that run the policy.

    Raises:
        ValueError: No run of a control agent, no checkpoint, or a file that ends otherwise.
        ImportError: jax2onnx is not installed.
    """
    out = Path(out)
    if out.suffix != ".onnx":
        raise ValueError(f"out={out} must end in .onnx")
    policy = load_policy(run)
    config = replace(policy.config, precision="fp32")
    agent = build_agent(config, policy.action_dim, discrete=policy.discrete)
    content = _onnx(replace(policy, agent=agent))
    out.parent.mkdir(parents=True, exist_ok=True)
    files.replace(out, content)
    note = "" if player(agent) is None else f"# {PRIOR}\n"
    return note + (
        f"session = onnxruntime.InferenceSession({str(out)!r})\n"
        f"action, *_ = session.run(None, {{'observation': observations}})  # float32 [B, {policy.observation_dim}]"
    )


def _onnx(policy: Policy) -> bytes:
    """The policy as a serialised ONNX model."""
    discrete = policy.discrete

    def forward(observation: Array) -> tuple[Array, ...]:
        distribution = policy.distribution(policy.actor, _normalised(policy, observation))
        mode, entropy = distribution.mode(), distribution.entropy()
        if isinstance(distribution, Categorical):
            return mode, distribution.logits, entropy
        return mode.clip(-1.0, 1.0), distribution.loc, distribution.scale, entropy

    config, aims = policy.config, {"floor": policy.floor, "target_entropy": policy.target_entropy}
    acting: Any = policy.agent.policy
    kinds = {"head": acting.head, "distribution": "categorical" if discrete else config.distribution}
    names: dict[str, Any] = {"env": config.env, "agent": config.agent, "seed": config.seed, "step": policy.step}
    if player(policy.agent) is not None:
        names["acts"] = PRIOR
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a library that works around versions of other libraries
        for name in ("jax2onnx", "onnx_ir"):
            logging.getLogger(name).setLevel(logging.ERROR)
        logging.getLogger("jax2onnx.plugins").setLevel(logging.CRITICAL)
        require("onnx", "jax2onnx")
        import onnx_ir
        from jax2onnx import to_onnx  # type: ignore[import-untyped]

        model: Any = to_onnx(
            forward,
            [("B", policy.observation_dim)],
            model_name="policy",
            return_mode="ir",
            input_names=["observation"],
            output_names=OUTPUTS[discrete],
        )
        model.metadata_props.update({k: str(v) for k, v in (names | kinds | aims).items() if v is not None})
        content: bytes = onnx_ir.to_proto(model).SerializeToString()
    return content


def _normalised(policy: Policy, observation: Array) -> Array:
    """As `RunningMoments.normalise` in float64, in float32: what a float32 mean rounds off is subtracted next."""
    moments = policy.normalise.moments
    if moments is None:
        return observation
    mean, deviation = moments.scaling()
    rest = (moments.mean - mean).astype(np.float32)
    return jnp.clip(((observation - mean) - rest) / deviation, -CLIP, CLIP)
