"""Forward and backward of each activation beside the plain alternative and the released approximation.

PyTorch eager and compiled, and JAX jitted. Every pair is timed interleaved, one after the other in random order,
and reported as the ratio of medians of CPU time with a 95 % bootstrap interval. One thread.
Run: `python benchmarks/activations.py`.
"""

import os

os.environ.update(NPROC="1", XLA_FLAGS="--xla_cpu_multi_thread_eigen=false", OMP_NUM_THREADS="1")

import argparse
import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

import entropyfloor.jax.functional
import entropyfloor.torch.functional
from entropyfloor.runs.statistics import bootstrap_interval
from pairs import header

MIN_ENTROPY, TAU = 0.6, 4.0
Step = Callable[[], None]


class Torch:
    """Eager PyTorch."""

    functional, xp = entropyfloor.torch.functional, torch
    softmax, log_softmax = torch.softmax, torch.log_softmax

    @staticmethod
    def step(function: Callable, arrays: Sequence[np.ndarray]) -> Step:
        """One forward and backward."""
        inputs = [torch.tensor(array, requires_grad=True) for array in arrays]

        def run() -> None:
            out = function(*inputs)
            torch.autograd.grad(out, inputs, torch.ones_like(out))

        return run


class Compiled(Torch):
    """PyTorch compiled by Inductor."""

    @staticmethod
    def step(function: Callable, arrays: Sequence[np.ndarray]) -> Step:
        """One forward and backward."""
        return Torch.step(torch.compile(function, dynamic=False), arrays)


class Jax:
    """Jitted JAX."""

    functional, xp = entropyfloor.jax.functional, jnp
    softmax, log_softmax = jax.nn.softmax, jax.nn.log_softmax

    @staticmethod
    def step(function: Callable, arrays: Sequence[np.ndarray]) -> Step:
        """One forward and backward."""
        inputs = [jnp.asarray(array) for array in arrays]

        @jax.jit
        def both(*inputs: jax.Array) -> Any:
            out, pull = jax.vjp(function, *inputs)
            return out, pull(jnp.ones_like(out))

        return lambda: jax.block_until_ready(both(*inputs))


def plain_log_std(xp: ModuleType) -> Callable:
    """The tanh-bounded log σ of plain SAC."""
    return lambda raw: -8 + 4 * (xp.tanh(raw) + 1)


def approximate_era(xp: ModuleType, softmax: Callable) -> Callable:
    """Eq. 15 as printed, with the paper's approximate inverse, differentiated automatically."""

    def activation(logits: Any) -> Any:
        n, top = logits.shape[-1], math.log(TAU) / TAU
        kappa = top + (math.exp(MIN_ENTROPY - 1) - n * top) / (n - 1) * (1 - softmax(logits, -1))
        log_kappa = xp.log(xp.clip(kappa, 0, None))
        return -0.25 - xp.sqrt(2 * (-1 - log_kappa)) + 0.75 * log_kappa

    return activation


def timed(step: Step) -> float:
    """Seconds of CPU time."""
    start = time.process_time()
    step()
    return time.process_time() - start


def ratio(ours: Step, other: Step, rounds: int) -> tuple[float, float, float, float]:
    """Median seconds of ours, and its ratio to the other's with a 95 % interval."""
    rng = np.random.default_rng(0)
    seconds = np.empty((rounds, 2))
    for row in seconds:
        for which in rng.permutation(2):
            row[which] = timed((ours, other)[which])
    seconds = seconds[rounds // 10 :]
    medians = np.median(seconds, axis=0)
    low, high = bootstrap_interval(seconds, ratio_of_medians, resamples=1000)
    return medians[0], medians[0] / medians[1], low, high


def ratio_of_medians(seconds: np.ndarray, axis: int) -> np.ndarray:
    """Median of the first column over that of the second, both along `axis`."""
    medians = np.median(seconds, axis=axis)
    return medians[..., 0] / medians[..., 1]


def rows(library: type[Torch] | type[Jax]) -> Iterator[tuple[str, Callable, str, Callable, tuple[int, ...]]]:
    """Our function, what it stands beside, and the shape."""
    functions, log_softmax = library.functional, library.log_softmax
    for shape in ((256, 6), (256, 61)):
        target, plain = -0.5 * shape[1], plain_log_std(library.xp)
        gaussian = partial(functions.era_gaussian, target_entropy=target)
        exact = partial(functions.era_truncated_normal, target_entropy=target)
        yield "era_gaussian", gaussian, "tanh-bounded", plain, shape
        yield "era_truncated_normal", exact, "tanh-bounded", plain, shape
    for shape in ((128, 10), (1024, 1000)):
        softmax = partial(functions.era_softmax, min_entropy=MIN_ENTROPY, tau=TAU)
        yield "era_softmax", softmax, "log-softmax", lambda logits: log_softmax(logits, -1), shape
        yield "era_softmax", softmax, "approximate", approximate_era(library.xp, library.softmax), shape


def main() -> None:
    """Print one line per pair."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=400, help="a quarter of them for the largest shape")
    total = parser.parse_args().rounds
    torch.set_num_threads(1)
    print(f"{header('torch', 'jax')}, float32")
    print(f"{'':<9}{'ours':<22}{'shape':<14}{'beside':<15}{'µs':>9}{'ratio':>8}   95 % interval")
    rng = np.random.default_rng(0)
    for library in (Torch, Compiled, Jax):
        for name, ours, beside, other, shape in rows(library):
            raw = rng.standard_normal(shape, np.float32)
            loc = np.tanh(rng.standard_normal(shape, np.float32))
            inputs = (loc, raw) if name == "era_truncated_normal" else (raw,)
            rounds = total if raw.size < 100_000 else total // 4
            seconds, middle, low, high = ratio(library.step(ours, inputs), library.step(other, (raw,)), rounds)
            figures = f"{1e6 * seconds:>9.0f}{middle:>8.2f}   [{low:.2f}, {high:.2f}]"
            print(f"{library.__name__:<9}{name:<22}{shape!s:<14}{beside:<15}{figures}")


if __name__ == "__main__":
    main()
