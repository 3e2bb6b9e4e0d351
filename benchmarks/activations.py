"""Forward and backward of each activation beside the plain alternative and the released approximation.

Every pair is timed interleaved, one after the other in random order, and reported as the ratio of medians with a
95 % bootstrap interval. One thread. Run: `python benchmarks/activations.py`.
"""

import math
import platform
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from entropyfloor.torch import functional as F

ROUNDS = 400


def plain_log_std(raw: Tensor) -> Tensor:
    """The tanh-bounded log σ of plain SAC."""
    return -8 + 4 * (torch.tanh(raw) + 1)


def plain_logits(logits: Tensor) -> Tensor:
    """What a softmax costs that hands logits on."""
    return logits.log_softmax(-1)


def approximate_era(logits: Tensor, min_entropy: float = 0.6, tau: float = 4.0) -> Tensor:
    """Eq. 15 as printed, with the paper's approximate inverse, differentiated by autograd."""
    n, top = logits.shape[-1], math.log(tau) / tau
    share = 1 - logits.softmax(-1)
    kappa = (top + (math.exp(min_entropy - 1) - n * top) / (n - 1) * share).clamp(min=0)
    log_kappa = kappa.log()
    return -0.25 - torch.sqrt(2 * (-1 - log_kappa)) + 0.75 * log_kappa


def step(function: Callable[..., Tensor], *inputs: Tensor) -> float:
    """Seconds of one forward and backward."""
    start = time.perf_counter()
    out = function(*inputs)
    torch.autograd.grad(out, inputs, torch.ones_like(out))
    return time.perf_counter() - start


def ratio(ours: Callable[[], float], other: Callable[[], float], rounds: int) -> tuple[float, float, float, float]:
    """Median seconds of ours, and its ratio to the other's with a 95 % interval."""
    rng = np.random.default_rng(0)
    seconds = np.empty((rounds, 2))
    for row in seconds:
        for which in rng.permutation(2):
            row[which] = (ours, other)[which]()
    seconds = seconds[rounds // 10 :]
    draws = np.median(seconds[rng.integers(len(seconds), size=(1000, len(seconds)))], axis=1)
    low, high = np.quantile(draws[:, 0] / draws[:, 1], [0.025, 0.975])
    medians = np.median(seconds, axis=0)
    return medians[0], medians[0] / medians[1], low, high


def main() -> None:
    """Print one row per pair."""
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, {platform.processor() or platform.machine()}, one thread, float32")
    print(f"{'ours':<28}{'shape':<14}{'beside':<18}{'µs':>9}{'ratio':>8}   95 % interval")
    generator = torch.Generator().manual_seed(0)

    def row(name: str, ours: Callable, beside: str, other: Callable, shape: tuple[int, ...], pair: bool) -> None:
        raw = torch.randn(shape, generator=generator).requires_grad_()
        loc = torch.tanh(torch.randn(shape, generator=generator)).requires_grad_()
        inputs = (loc, raw) if pair else (raw,)
        rounds = ROUNDS if raw.numel() < 100_000 else ROUNDS // 4
        seconds, middle, low, high = ratio(lambda: step(ours, *inputs), lambda: step(other, raw), rounds)
        print(f"{name:<28}{shape!s:<14}{beside:<18}{1e6 * seconds:>9.0f}{middle:>8.2f}   [{low:.2f}, {high:.2f}]")

    for shape in ((256, 6), (256, 61)):
        target = -0.5 * shape[1]
        gaussian = lambda raw, h=target: F.era_gaussian(raw, h)  # noqa: E731
        exact = lambda loc, raw, h=target: F.era_truncated_normal(loc, raw, h)  # noqa: E731
        row("era_gaussian", gaussian, "tanh-bounded", plain_log_std, shape, False)
        row("era_truncated_normal", exact, "tanh-bounded", plain_log_std, shape, True)
    for shape in ((128, 10), (1024, 1000)):
        softmax = lambda z: F.era_softmax(z, 0.6)  # noqa: E731
        row("era_softmax", softmax, "log-softmax", plain_logits, shape, False)
        row("era_softmax", softmax, "approximate", approximate_era, shape, False)


if __name__ == "__main__":
    main()
