"""The types and shapes in the signatures hold: jaxtyping and beartype check every call in this file.

The other tests run without the checker, as users do: a wrong shape raises our own `ValueError`, and compilers
trace no checks.
"""

import builtins
import importlib
import sys
from functools import partial

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
import torch
from beartype import beartype
from jaxtyping import Float, TypeCheckError, jaxtyped

import entropyfloor.jax
import entropyfloor.torch

BACKENDS = {"torch": entropyfloor.torch, "jax": entropyfloor.jax}
backends = pytest.mark.parametrize("backend", BACKENDS)
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def checked():
    """Both backends, imported a second time with all functions checked; the kernels are operators and stay."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("Bool", "Float", "Int", "PRNGKeyArray", "Shaped"):
            # The sources import them for static type checkers only.
            patch.setattr(builtins, name, getattr(jaxtyping, name), raising=False)
        for name in list(sys.modules):
            if name.startswith(("entropyfloor.torch", "entropyfloor.jax")) and "kernels" not in name:
                patch.delitem(sys.modules, name)
        for name, backend in BACKENDS.items():
            patch.setattr(entropyfloor, name, backend)  # restored at the end, as the imports below replace it
        with jaxtyping.install_import_hook(["entropyfloor.torch", "entropyfloor.jax"], "beartype.beartype"):
            modules = {name: importlib.import_module(f"entropyfloor.{name}") for name in BACKENDS}
        yield modules


def public(part):
    """Every public name of both backends."""
    names = [(backend, name) for backend in BACKENDS for name in getattr(BACKENDS[backend], part).__all__]
    return pytest.mark.parametrize(("backend", "name"), names)


def array(backend, *shape, dtype="float32"):
    x = np.random.default_rng(len(shape)).uniform(-1, 1, shape).astype(np.float32)
    return torch.tensor(x).to(getattr(torch, dtype)) if backend == "torch" else jnp.asarray(x, dtype)


def run(backend, test):
    """Run it: for JAX under a trace, which has shapes and types and compiles nothing."""
    if backend == "torch":
        test()
    else:
        jax.eval_shape(test)


# Each function's calls, given a maker of arrays. A scalar target and one per state are both allowed.
FUNCTIONS = {
    "clamped_share": lambda f, x: f(x(4), 6, log_std_max=0.5),
    "entropy_from_logits": lambda f, x: (f(x(6)), f(x(2, 4, 6), dim=1)),
    "era_gaussian": lambda f, x: (f(x(6), -3.0), f(x(4, 6), x(4), mode="floor"), f(x(6, 4), -3.0, dim=0)),
    "era_gaussian_batch": lambda f, x: (f(x(4, 6), -3.0), f(x(2, 4, 6), x(), log_mean_exp_sum=x())),
    "era_softmax": lambda f, x: (f(x(6), 0.6), f(x(2, 6, 4), 0.6, floor="paper", inverse="paper", dim=1)),
    "era_token_scale": lambda f, x: (f(x(4), x(4)), f(x(4), x(4, 6), k=3.0)),
    "era_truncated_normal": lambda f, x: (f(x(6), x(6), -3.0), f(x(4, 6), x(4, 6), x(4), mode="floor")),
    "gaussian_entropy": lambda f, x: (f(x(6)), f(x(2, 4, 6), dim=1)),
    "log_probs_at": lambda f, x: (f(x(3, 6), x(6)), f(x(3, 4, 6), x(4, 1))),
    "project_gaussian": lambda f, x: (f(x(6), 3.0), f(x(4, 6), x(4))),
    "response_entropy": lambda f, x: (f(x(4, 6), x(4, 6)), f(x(4, 6), x(4, 6) > 0, 0.5)),
    "scale_advantages": lambda f, x: (f(x(4, 6), x(4)), f(x(4), x(4, 6))),
    "tanh_normal_entropy": lambda f, x: (f(x(6), x(6)), f(x(4, 6), x(6))),
    "token_log_probs": lambda f, x: (
        f(x(4, 6), x(5, 6), x(4).long(), bias=x(5), scale=x(4) + 2),
        f(x(2, 4, 6), x(5, 6), x(2, 4).long(), scale=2.0, top_k=2, top_k_rows=x(2, 4) > 0),
    ),
    "token_log_probs_all_scales": lambda f, x: f(x(2, 4, 6), x(5, 6), x(2, 4).long(), k=3.0, softcap=2.0),
    "top_tokens": lambda f, x: (f(x(4, 6), x(4, 6)), f(x(4, 6), x(4, 6) > 0, 0.5)),
    "top_k_logits": lambda f, x: (f(x(6), 2), f(x(4, 6), 2, rows=x(4) > 0, targets=x(4).long())),
    "truncated_normal_entropy": lambda f, x: (f(x(6), x(6)), f(x(4, 6), x(), low=-2.0)),
}
# Each module's arguments, and the shapes of what it is called on.
MODULES = {
    "ERAGaussian": ((6, -3.0), {"batch_level": True}, [(4, 6)]),
    "ERALinear": ((3, 6, 0.6), {"bias": False, "tau": 5.0}, [(2, 4, 3)]),
    "ERASoftmax": ((6, 0.6), {"floor": "paper", "inverse": "paper"}, [(2, 4, 6)]),
    "ERATruncatedNormal": ((6, -3.0), {"mode": "floor"}, [(4, 6), (4, 6)]),
    "ResidualEntropy": ((-3.0,), {"initial": 0.5}, []),
}


@public("functional")
def test_functions(checked, backend, name):
    function = getattr(checked[backend].functional, name)
    run(backend, lambda: FUNCTIONS[name](function, lambda *shape: array(backend, *shape)))


@public("nn")
def test_modules(checked, backend, name):
    args, options, shapes = MODULES[name]

    def use(module, *inputs):
        module(*inputs)
        if name == "ResidualEntropy":
            assert module.value.shape == ()
            for shape in ((), (4,), (2, 4)):
                module.loss(array(backend, *shape))

    def test():
        module = getattr(checked[backend].nn, name)(*args, **options)
        inputs = [array(backend, *s) for s in shapes]
        if backend == "torch":
            use(module, *inputs)
        else:
            module.init(KEY, *inputs, method=use)

    run(backend, test)


@public("distributions")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shapes", [((6,), (6,)), ((4, 6), ()), ((6,), (2, 4, 6))], ids=str)
def test_distributions(checked, backend, name, dtype, shapes):
    kind, shape = getattr(checked[backend].distributions, name), np.broadcast_shapes(*shapes)
    categorical = name == "Categorical"

    def test():
        loc, scale = (array(backend, *s, dtype=dtype) for s in shapes)
        policy = kind(loc + scale) if categorical else kind(loc, abs(scale) + 0.1)
        if backend == "torch":
            drawn = policy.rsample((3,)), *policy.rsample_and_log_prob((3,))
            mode = policy.mode
        else:
            draws = {"seed": KEY, "sample_shape": (3,)}
            drawn = policy.sample(**draws), *policy.sample_and_log_prob(**draws)
            mode = policy.mode()
        results = *drawn, policy.log_prob(drawn[0]), mode, policy.entropy()
        batch = shape[:-1]
        event = batch if categorical else shape
        assert [x.shape for x in results] == [(3, *event), (3, *event), (3, *batch), (3, *batch), event, batch]
        dtypes = [str(x.dtype).removeprefix("torch.") for x in results]
        value = "int32" if categorical else "float32"
        assert dtypes == [value, value, "float32", "float32", value, "float32"]

    run(backend, test)


@jaxtyped(typechecker=beartype)
def lost_axis(x: Float[torch.Tensor, "*batch D"]) -> Float[torch.Tensor, "*batch D"]:
    return x.sum(-1)


@jaxtyped(typechecker=beartype)
def lost_type(x: Float[torch.Tensor, "*batch D"]) -> Float[torch.Tensor, "*batch"]:
    return x.argmax(-1)


@jaxtyped(typechecker=beartype)
def both_lost(x: Float[torch.Tensor, "*batch D"]) -> tuple[Float[torch.Tensor, "*batch"], Float[torch.Tensor, ""]]:
    return x.mean(-1), x.mean(-1)


@pytest.mark.parametrize("function", [lost_axis, lost_type, both_lost])
def test_a_false_annotation_is_found(function):
    with pytest.raises(TypeCheckError, match="return value"):
        function(array("torch", 4, 6))


@backends
def test_a_wrong_argument_is_found(checked, backend):
    functional, nn, policies = (getattr(checked[backend], part) for part in ("functional", "nn", "distributions"))
    x, per_state = array(backend, 4, 6), array(backend, 4)
    policy, module = policies.TanhNormal(x, abs(x) + 0.1), nn.ERATruncatedNormal(6, -3.0)
    for function, args in (
        (functional.era_gaussian_batch, (x, per_state)),  # Eq. 36 has one target for the batch
        (functional.era_truncated_normal, (x, x[:1], -3.0)),
        (functional.era_softmax, (x > 0, 0.6)),
        (functional.era_softmax, (x, per_state)),
        (nn.ERAGaussian, (6, "-A/2")),
        (module.forward if backend == "torch" else partial(module.apply, {}), (x, x[:1])),
        (policies.TruncatedNormal, (x, abs(x[:, :3]) + 0.1)),
        (policies.TanhNormal, (x, (0.1,))),
        (policy.log_prob, (array(backend),)),
    ):
        with pytest.raises(TypeCheckError):
            function(*args)
