"""Floors on an accelerator: how far the entropy of what a function returned falls below its target.

Inputs are the adversarial ones of the tests. The tests' reference recomputes entropies on the CPU in float64.
"""

import math
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from gpu_parts.rows import VIOLATED, Plan, Row, failure

sys.path.append(str(Path(__file__).parents[2] / "tests"))
import reference
from adversarial import locations, structured

DTYPES = ("float32", "bfloat16", "float16")
GAUSSIAN_SLACK, SOFTMAX_SLACK = 1e-5, 1e-4
"""What the tests allow: nats per dimension, nats."""
SOFTMAX_OPTIONS = ({}, {"inverse": "paper"}, {"floor": "paper"}, {"tau": 2.72}, {"tau": 30.0})


class Backend(NamedTuple):
    """Parts of a library that the measurement uses, and how much of it there is time for."""

    name: str
    functional: ModuleType
    evaluate: Callable[[Callable, list[np.ndarray], str], tuple[list[np.ndarray], np.ndarray, bool]]
    """From a function, inputs and a dtype to the rounded inputs, the output, and whether gradients are finite."""
    sizes: tuple[int, ...]
    shares: tuple[float, ...]
    classes: tuple[int, ...]
    options: tuple[dict[str, Any], ...]


def rows(plan: Plan, library: str) -> Iterator[Row]:
    """The worst case of each function, mode and dtype."""
    for backend in torch_backends(plan) if library == "torch" else jax_backends(plan):
        if isinstance(backend, Row):
            yield backend
            continue
        for dtype in DTYPES if "compiled" not in backend.name else DTYPES[:1]:
            case = f"floors, {backend.name}, {dtype} input"
            checks = {
                f"{head}, {mode}": partial(gaussians, backend, dtype, head, mode)
                for head in ("era_gaussian", "era_truncated_normal")
                for mode in ("pin", "floor")
            }
            for options in backend.options:
                name = ", ".join(["era_softmax", *(f"{key} {value}" for key, value in options.items())])
                checks[name] = partial(softmaxes, backend, dtype, options)
            for name, check in checks.items():
                yield from plan.late(case, name) or [worst(case, name, check)]


def worst(case: str, name: str, check: Callable[[], Iterator[tuple[float, float, bool]]]) -> Row:
    """The largest violation that `check` finds; with each it says what is allowed, and if gradients are finite."""
    cases: list[tuple[float, float, bool]] = []
    if reason := failure(lambda: cases.extend(check())):
        return Row(case, name, skipped=reason)
    violations, allowed, finite = zip(*cases, strict=True)
    violation = max(violations) if np.isfinite(violations).all() else math.inf
    held = "holds" if violation <= allowed[0] and all(finite) else VIOLATED
    infinite = "" if all(finite) else ", gradients that are not finite"
    remark = f"{held}: allowed {allowed[0]:g}, cases: {len(cases)}{infinite}"
    return Row(case, name, "below the floor", violation, "nats", remark=remark)


def gaussians(backend: Backend, dtype: str, head: str, mode: str) -> Iterator[tuple[float, float, bool]]:
    """Violations per dimension."""
    highest = reference.LOG_SQRT_2PIE if head == "era_gaussian" else 0.566
    for size in backend.sizes:
        rng = np.random.default_rng(size)
        raw = structured(size, rng)
        loc = locations(len(raw), size, rng)
        for share in backend.shares:
            target = size * (highest - 4 * share)
            function = partial(getattr(backend.functional, head), target_entropy=target, mode=mode)
            inputs = [raw] if head == "era_gaussian" else [loc, raw]
            rounded, log_std, finite = backend.evaluate(function, inputs, dtype)
            if head == "era_gaussian":
                entropy = reference.gaussian_entropy(log_std)
            else:
                entropy = reference.truncated_normal_entropy(rounded[0], log_std).sum(-1)
            yield float((target - entropy).max()) / size, GAUSSIAN_SLACK, finite


def softmaxes(backend: Backend, dtype: str, options: dict[str, Any]) -> Iterator[tuple[float, float, bool]]:
    """Violations in nats."""
    tau = options.get("tau", 4.0)
    for n in backend.classes:
        most = 1 + math.log(n * math.log(tau) / tau) if "floor" in options else math.log(n)
        for share in (0.05, 0.5, 0.95)[-len(backend.shares) :]:
            target = share * most
            function = partial(backend.functional.era_softmax, min_entropy=target, **options)
            _, out, finite = backend.evaluate(function, [structured(n, np.random.default_rng(n))], dtype)
            yield float((target - reference.categorical_entropy(out)).max()), SOFTMAX_SLACK, finite


def torch_backends(plan: Plan) -> Iterator[Backend | Row]:
    """Eager PyTorch in full; compiled, a few."""
    import torch

    from entropyfloor.torch import functional
    from gpu_parts.torch_device import DEVICE, require_device

    yield require_device(plan)
    compiler = partial(torch.compile, backend="aot_eager" if plan.tiny else "inductor", fullgraph=True)

    def evaluate(
        function: Callable, inputs: list[np.ndarray], dtype: str, compiled: bool = False
    ) -> tuple[list[np.ndarray], np.ndarray, bool]:
        leaves = [torch.tensor(x).to(DEVICE, getattr(torch, dtype)).requires_grad_() for x in inputs]
        if compiled:
            torch.compiler.reset()  # else every target would count towards the limit of compilations
            function = compiler(function)
        out = function(*leaves)
        weights = torch.linspace(-1, 1, out.numel(), device=DEVICE).view_as(out)
        grads = torch.autograd.grad((out * weights).sum(), leaves)
        finite = all(bool(grad.isfinite().all()) for grad in grads)
        return [x.detach().double().cpu().numpy() for x in leaves], out.detach().double().cpu().numpy(), finite

    sizes, classes = ((1, 6), (2, 10)) if plan.tiny else ((1, 6, 61, 256), (2, 3, 10, 1000, 10_000))
    yield Backend("PyTorch", functional, evaluate, sizes, (0.0, 0.3, 1.0), classes, SOFTMAX_OPTIONS)
    compiled = partial(evaluate, compiled=True)
    yield Backend(
        "PyTorch compiled", functional, compiled, sizes[1:2], (0.3,), classes[-2:-1], SOFTMAX_OPTIONS[:2]
    )


def jax_backends(plan: Plan) -> Iterator[Backend | Row]:
    """Jitted JAX, fewer cases: each is compiled."""
    import jax
    import jax.numpy as jnp

    from entropyfloor.jax import functional
    from gpu_parts.jax_device import require_device

    yield require_device(plan)

    def evaluate(
        function: Callable, inputs: list[np.ndarray], dtype: str
    ) -> tuple[list[np.ndarray], np.ndarray, bool]:
        leaves = [jnp.asarray(x, jnp.float32).astype(dtype) for x in inputs]

        @jax.jit
        def both(*leaves: jax.Array) -> Any:
            out, pull = jax.vjp(function, *leaves)
            return out, pull(jnp.linspace(-1, 1, out.size).reshape(out.shape).astype(out.dtype))

        out, grads = both(*leaves)
        finite = all(bool(jnp.isfinite(grad).all()) for grad in grads)
        return [np.asarray(x, np.float64) for x in leaves], np.asarray(out, np.float64), finite

    sizes, classes = ((6,), (10,)) if plan.tiny else ((6, 61), (10, 1000))
    options = SOFTMAX_OPTIONS[:1] if plan.tiny else SOFTMAX_OPTIONS[:3]
    yield Backend("JAX", functional, evaluate, sizes, (0.3,), classes, options)
