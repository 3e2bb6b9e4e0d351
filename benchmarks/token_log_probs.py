"""Log-probs and entropies of tokens, forward and backward: time, and peak memory, beside what others do.

    python benchmarks/token_log_probs.py --rounds 1
    python benchmarks/token_log_probs.py --tokens 256 --hidden 256 --vocabulary 20000 --dtype bfloat16 --frozen

ERA with and without its scales stands beside the naive head, TRL's two paths, Liger's kernel (on CUDA) and the
paper's release, as we read it: all logits are held, those outside the top 20 replaced in a copy, and the entropy
is taken in the dtype of the input.

Each side is a process of its own. The peak is the high-water mark of the first call above what was held just
before it: of the process on a CPU, of PyTorch's allocator on CUDA. Beside it stands what of it is not the
gradients themselves: that of the weight is as large as the weight, unless `--frozen`. Time is CPU time on one
thread, and on CUDA wall time; processes take turns, in a new random order each round, and a ratio of times is the
median over rounds, with a 95 % bootstrap interval.
"""

import os

os.environ.update(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="passive")

import argparse
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import linear, log_softmax

from entropyfloor import torchvision_shim
from entropyfloor.runs import machine
from entropyfloor.torch import tokens
from pairs import median

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
Head = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""From hidden states, weight, targets, scale, and where to filter, to log-probs and entropies."""


def plain(h: Tensor, w: Tensor, y: Tensor, scale: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG001
    """Ours without ERA."""
    return tokens.token_log_probs(h, w, y)


def era(h: Tensor, w: Tensor, y: Tensor, scale: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG001
    """Ours, the scale known before."""
    return tokens.token_log_probs(h, w, y, scale=scale)


def era_filtered(h: Tensor, w: Tensor, y: Tensor, scale: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Ours, with the filter of the first stage: what the release does."""
    return tokens.token_log_probs(h, w, y, scale=scale, top_k=20, top_k_rows=rows)


def era_afterwards(h: Tensor, w: Tensor, y: Tensor, scale: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG001
    """Ours, the scale chosen after the entropy."""
    log_probs, entropy = tokens.token_log_probs_all_scales(h, w, y)
    return tokens.log_probs_at(log_probs, scale), entropy


def naive(h: Tensor, w: Tensor, y: Tensor, scale: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG001
    """Our reference, in float32."""
    return tokens.token_log_probs(h, w, y, scale=scale, impl="naive")


def release(h: Tensor, w: Tensor, y: Tensor, scale: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """As the paper's own code goes about it, in the dtype of the input."""
    logits = linear(h, w)
    entropy = logits.logsumexp(-1) - (logits.softmax(-1) * logits).sum(-1)
    smallest = logits.topk(20).values[:, -1:]
    kept = torch.where(rows[:, None] & (logits < smallest), -1e4, logits)
    log_probs = log_softmax(kept * scale[:, None].to(kept.dtype), -1)
    return log_probs.gather(1, y[:, None])[:, 0], entropy


def trl_logits(h: Tensor, w: Tensor, y: Tensor, scale: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG001
    """TRL from logits, without ERA: one row after the other on a CPU."""
    from trl.trainer.utils import selective_log_softmax_and_entropy

    return selective_log_softmax_and_entropy(linear(h, w), y, entropy_requires_grad=False)


def trl_chunked(h: Tensor, w: Tensor, y: Tensor, scale: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG001
    """TRL without logits, without ERA."""
    from trl.kernels import ChunkedLogProbFunction

    return ChunkedLogProbFunction.apply(h, w, None, y, 1.0, 8192, None, 1.0, ("entropy",))[:2]


def liger(h: Tensor, w: Tensor, y: Tensor, scale: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG001
    """Liger without ERA and entropies; its loss is a sum, since it computes its gradients on the way there."""
    from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction

    loss = LigerFusedLinearCrossEntropyFunction.apply(h, w, y, None, None, -100, 0.0, 0.0, "sum")
    return -(loss[0] if isinstance(loss, tuple) else loss)[None], torch.zeros_like(y, dtype=torch.float32)


HEADS: dict[str, Head] = {
    "plain": plain,
    "era": era,
    "era-filtered": era_filtered,
    "era-afterwards": era_afterwards,
    "naive": naive,
    "release": release,
    "trl-logits": trl_logits,
    "trl-chunked": trl_chunked,
    "liger": liger,
}
PAIRS = [
    ("era", "plain"),
    ("era-afterwards", "plain"),
    ("era-filtered", "release"),
    ("era", "release"),
    ("trl-logits", "plain"),
    ("trl-chunked", "plain"),
    ("liger", "plain"),
]


class Memory:
    """Bytes in use above those at the start, at most."""

    def __init__(self) -> None:
        if DEVICE == "cuda":
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
        else:
            Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
            self.before = self._status("VmRSS")

    @staticmethod
    def _status(name: str) -> int:
        return 1024 * int(re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())[1])  # type: ignore[index]

    def peak(self) -> int:
        """Since the start."""
        return (torch.cuda.max_memory_allocated() if DEVICE == "cuda" else self._status("VmHWM")) - self.before


def inputs(
    count: int, hidden: int, vocabulary: int, *, dtype: torch.dtype = torch.bfloat16, frozen: bool = False
) -> Inputs:
    """Hidden states, weight, targets, scales, and rows to filter."""
    h = torch.randn(count, hidden, device=DEVICE).to(dtype).requires_grad_()
    # Written in place: what a conversion frees would be held by nobody, and hide what a call needs.
    w = torch.empty(vocabulary, hidden, device=DEVICE, dtype=dtype).normal_(std=3 / hidden**0.5)
    y = torch.randint(vocabulary, (count,), device=DEVICE)
    scale = torch.tensor([1.0, 2.0, 1.0, 0.5], device=DEVICE).repeat(count // 4 + 1)[:count]
    return h, w.requires_grad_(not frozen), y, scale, scale != 1


def problem(*, name: str) -> str | None:
    """Why a side cannot run here."""
    try:
        if name == "liger":
            import liger_kernel  # noqa: F401

            return None if DEVICE == "cuda" else "its kernels run on a GPU only"
        if name.startswith("trl"):
            import trl  # noqa: F401
    except ImportError as error:
        return str(error)
    return None


def serve(args: argparse.Namespace) -> None:
    """One side: a first call for its memory, then one for each line of input."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    torch.set_float32_matmul_precision(args.precision)
    if args.serve.startswith("trl"):
        torchvision_shim.ensure()  # transformers imports it where it is installed
    head, options = HEADS[args.serve], {"dtype": getattr(torch, args.dtype[0]), "frozen": args.frozen}

    def call(some: Inputs) -> None:
        log_probs, _ = head(*some)
        advantages = torch.linspace(-1, 1, len(log_probs), device=DEVICE)
        torch.autograd.grad((log_probs * advantages).sum(), [x for x in some[:2] if x.requires_grad])
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    call(inputs(8, 16, 64, **options))  # loads code
    real = inputs(args.tokens, args.hidden, args.vocabulary, **options)
    memory = Memory()
    call(real)
    print(json.dumps(memory.peak()), flush=True)
    clock = time.perf_counter if DEVICE == "cuda" else time.process_time
    for _ in sys.stdin:
        start = clock()
        call(real)
        print(json.dumps(clock() - start), flush=True)


def measure(args: argparse.Namespace, dtype: str, names: list[str]) -> None:
    """Print a table for one dtype."""
    settings = [f"--{name}={getattr(args, name)}" for name in ("tokens", "hidden", "vocabulary", "precision")]
    frozen = ["--frozen"] if args.frozen else []
    command = [sys.executable, __file__, *settings, f"--dtype={dtype}", *frozen]
    servers, peaks = {}, {}
    for name in names:
        servers[name] = subprocess.Popen(
            [*command, f"--serve={name}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        peaks[name] = json.loads(servers[name].stdout.readline())
    rng, seconds = np.random.default_rng(0), {name: [] for name in names}
    for _ in range(args.rounds):
        for name in rng.permutation(names):
            print(file=servers[name].stdin, flush=True)
            seconds[name].append(json.loads(servers[name].stdout.readline()))
    for server in servers.values():
        server.stdin.close()
        server.wait()
    middle = {name: float(np.median(values)) for name, values in seconds.items()}
    what = "frozen head" if args.frozen else "trained head"
    sizes = f"{args.tokens} tokens, {args.hidden} × {args.vocabulary:,}"
    print(f"\n{dtype}, precision {args.precision}, {sizes}, {what}, {args.rounds} rounds")
    rows = args.tokens + (0 if args.frozen else args.vocabulary)
    gradients = rows * args.hidden * getattr(torch, dtype).itemsize
    beyond = {name: peak - gradients for name, peak in peaks.items()}
    print(f"{'':<16}{'seconds':>10}{'peak MB':>10}{'without gradients':>20}")
    for name in names:
        print(f"{name:<16}{middle[name]:>10.3f}{peaks[name] / 1e6:>10.1f}{beyond[name] / 1e6:>20.1f}")
    for one, other in PAIRS:
        if one in names and other in names:
            ratio, low, high = median(np.divide(seconds[one], seconds[other]))
            memory = f"peak {peaks[one] / peaks[other]:.4f}, without gradients {beyond[one] / beyond[other]:.4f}"
            print(f"{one} / {other}: time {ratio:.3f} [{low:.3f}, {high:.3f}], {memory}", flush=True)


def main() -> None:
    """Print a table per dtype."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--hidden", type=int, default=896, help="896 and 151,936 are Qwen2.5-0.5B's")
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--dtype", nargs="+", choices=["float32", "bfloat16", "float16"], default=["float32"])
    parser.add_argument(
        "--precision", choices=["highest", "high", "medium"], default="highest", help="of float32 products"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--frozen", action="store_true", help="the head is not trained, as under LoRA")
    parser.add_argument("--heads", nargs="+", choices=HEADS, default=list(HEADS))
    parser.add_argument("--serve", choices=HEADS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return serve(args)
    found = machine.describe()
    where = found["hardware"]["cpu"] + ", one thread" if DEVICE == "cpu" else torch.cuda.get_device_name()
    versions = ", ".join(f"{name} {found['versions'].get(name, 'missing')}" for name in ("torch", "trl"))
    print(f"{where}, {found['started']}, {versions}")
    reasons = {name: problem(name=name) for name in args.heads}
    for name, reason in reasons.items():
        if reason:
            print(f"{name} is left out: {reason}")
    for dtype in args.dtype:
        measure(args, dtype, [name for name in args.heads if not reasons[name]])
    return None


if __name__ == "__main__":
    main()
