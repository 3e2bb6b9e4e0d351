"""The shapes in the signatures are true: every public name is called, arguments and results held to them.

`jaxtyping.jaxtyped(typechecker=typeguard.typechecked)` does not work with typeguard 4, which checks a function by
rewriting its source, and jaxtyping's wrapper has none. So the annotations are read here and checked one by one.
"""

import inspect
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jaxtyping import Bool, Float, Int, PRNGKeyArray, Shaped, jaxtyped
from typeguard import TypeCheckError, check_type

import entropyfloor.jax
import entropyfloor.torch

ROOMS = {"torch": entropyfloor.torch, "jax": entropyfloor.jax}
rooms = pytest.mark.parametrize("room", ROOMS)
KEY = jax.random.key(0)


def public(part):
    """Every public name of both rooms."""
    names = [(room, name) for room in ROOMS for name in getattr(ROOMS[room], part).__all__]
    return pytest.mark.parametrize(("room", "name"), names)


def array(room, *shape, dtype="float32"):
    x = np.random.default_rng(len(shape)).uniform(-1, 1, shape).astype(np.float32)
    return torch.tensor(x).to(getattr(torch, dtype)) if room == "torch" else jnp.asarray(x, dtype)


def call(function, *args, **kwargs):
    """The result, after both sides were held to the annotations. Sizes must agree within the context around."""
    annotated = function.__init__ if isinstance(function, type) else function
    kinds = {"Bool": Bool, "Float": Float, "Int": Int, "PRNGKeyArray": PRNGKeyArray, "Shaped": Shaped}
    hints = typing.get_type_hints(annotated, localns=kinds)
    for name, value in inspect.signature(function).bind(*args, **kwargs).arguments.items():
        if name != "self":
            check_type(value, hints[name])
    result = function(*args, **kwargs)
    if annotated is function:
        check_type(result, hints["return"])
    return result


def run(room, test):
    """Run it: for JAX under a trace, which has shapes and types and compiles nothing."""
    if room == "torch":
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
def test_functions(room, name):
    def checked(*args, **kwargs):
        with jaxtyped("context"):
            return call(getattr(ROOMS[room].functional, name), *args, **kwargs)

    run(room, lambda: FUNCTIONS[name](checked, lambda *shape: array(room, *shape)))


@public("nn")
def test_modules(room, name):
    args, options, shapes = MODULES[name]

    def use(module, *inputs):
        with jaxtyped("context"):
            call(module.forward if room == "torch" else module.__call__, *inputs)
        if name == "ResidualEntropy":
            call(type(module).value.fget, module)
            for shape in ((), (4,), (2, 4)):
                call(module.loss, array(room, *shape))

    def test():
        module, inputs = call(getattr(ROOMS[room].nn, name), *args, **options), [array(room, *s) for s in shapes]
        if room == "torch":
            use(module, *inputs)
        else:
            module.init(KEY, *inputs, method=use)

    run(room, test)


@public("distributions")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shapes", [((6,), (6,)), ((4, 6), ()), ((6,), (2, 4, 6))], ids=str)
def test_distributions(room, name, dtype, shapes):
    """All methods in one context: the batch of `mode` is that of `entropy`, that of a sample its density's."""
    kind, shape = getattr(ROOMS[room].distributions, name), np.broadcast_shapes(*shapes)

    def test():
        loc, scale = (array(room, *s, dtype=dtype) for s in shapes)
        with jaxtyped("context"):
            policy = call(kind, loc, abs(scale) + 0.1)
            if room == "torch":
                drawn = call(policy.rsample, (3,)), *call(policy.rsample_and_log_prob, (3,))
                mode = call(kind.mode.fget, policy)
            else:
                draws = {"seed": KEY, "sample_shape": (3,)}
                drawn = call(policy.sample, **draws), *call(policy.sample_and_log_prob, **draws)
                mode = call(policy.mode)
            results = *drawn, call(policy.log_prob, drawn[0]), mode, call(policy.entropy)
        sample, density = (3, *shape), (3, *shape[:-1])
        assert [x.shape for x in results] == [sample, sample, density, density, shape, shape[:-1]]
        assert {str(x.dtype).removeprefix("torch.") for x in results} == {"float32"}

    run(room, test)


def lost_axis(x: Float[torch.Tensor, "*batch D"]) -> Float[torch.Tensor, "*batch D"]:
    return x.sum(-1)


def lost_type(x: Float[torch.Tensor, "*batch D"]) -> Float[torch.Tensor, "*batch"]:
    return x.argmax(-1)


def both_lost(x: Float[torch.Tensor, "*batch D"]) -> tuple[Float[torch.Tensor, "*batch"], Float[torch.Tensor, ""]]:
    return x.mean(-1), x.mean(-1)


@pytest.mark.parametrize("function", [lost_axis, lost_type, both_lost])
def test_a_false_annotation_is_found(function):
    with jaxtyped("context"), pytest.raises(TypeCheckError, match=r"jaxtyping\.Float"):
        call(function, array("torch", 4, 6))


@rooms
def test_a_wrong_argument_is_found(room):
    functional, policies = ROOMS[room].functional, ROOMS[room].distributions
    x, per_state = array(room, 4, 6), array(room, 4)
    policy = policies.TanhNormal(x, abs(x) + 0.1)
    for function, args in (
        (functional.era_gaussian_batch, (x, per_state)),  # Eq. 36 has one target for the batch
        (functional.era_truncated_normal, (x, x[:1], -3.0)),
        (functional.era_softmax, (x > 0, 0.6)),
        (functional.era_softmax, (x, per_state)),
        (policies.TruncatedNormal, (x, abs(x[:, :3]) + 0.1)),
        (policies.TanhNormal, (x, 0.1)),
    ):
        with jaxtyped("context"), pytest.raises(TypeCheckError):
            call(function, *args)
    with jaxtyped("context"), pytest.raises(TypeCheckError):
        call(policy.log_prob, array(room))
