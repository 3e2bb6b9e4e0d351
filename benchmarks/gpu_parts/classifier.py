"""Training steps of ResNets with and without a floor, and `era_softmax` beside log-softmax, on a GPU."""

from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial

import torch
from torch import Tensor, nn

from entropyfloor.torch import functional as F
from entropyfloor.vision import attach_era
from gpu_parts.rows import Plan, Row, compare, rates
from gpu_parts.torch_device import DEVICE, clock, require_device

# isort: split
import timm  # after our package, which makes torchvision importable

from pairs import Side

MIN_ENTROPY = 0.6
SECONDS = 8.0
"""Time of a comparison of steps."""
CALLS = 20
"""Calls of an activation in a turn, so that waiting for the device is a small part of it."""


def rows(plan: Plan) -> Iterator[Row]:
    """Eager before compiled, since compilers take most of the time; a large model last."""
    yield require_device(plan)
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    models, batch, size = (["test_resnet"], 4, 32) if plan.tiny else (["resnet18", "resnet50"], 256, 224)
    shapes = [(8, 10)] if plan.tiny else [(1024, 1000), (256, 21_843)]
    compiler = partial(torch.compile, dynamic=False, backend="aot_eager" if plan.tiny else "inductor")
    for mode, compiled in (("eager", None), ("compiled", compiler)):
        measured = [partial(steps, plan, mode, name, batch, size, compiled) for name in models]
        measured[1:1] = [partial(activations, plan, mode, shape, compiled) for shape in shapes]
        for some in measured:
            yield from plan.late(mode) or some()


def steps(plan: Plan, mode: str, name: str, batch: int, size: int, compiled: Callable | None) -> Iterator[Row]:
    """Whole steps: forward, backward and SGD, at a learning rate that changes nothing."""
    case = f"{name}, {batch} images of {size}×{size}, 1,000 classes, channels last, bfloat16 autocast, {mode}"
    images = torch.randn(batch, 3, size, size, device=DEVICE).to(memory_format=torch.channels_last)
    labels = torch.randint(1000, (batch,), device=DEVICE)
    plain = timm.create_model(name, num_classes=1000).to(DEVICE, memory_format=torch.channels_last)
    models = {"plain": plain, "floor": attach_era(deepcopy(plain), MIN_ENTROPY)}
    sides = {}
    for side, model in models.items():
        forward = compiled(model) if compiled else model
        optimiser = torch.optim.SGD(model.parameters(), lr=1e-12, momentum=0.9)
        sides[side] = Side(partial(step, forward, optimiser, images, labels), 1)
    times = yield from compare(plan, case, sides, [("floor", "plain")], SECONDS, clock)
    yield from rates(case, times, "images per second", "", batch)


def step(
    forward: Callable[[Tensor], Tensor], optimiser: torch.optim.Optimizer, images: Tensor, labels: Tensor
) -> None:
    """One training step."""
    optimiser.zero_grad()
    with torch.autocast(DEVICE, torch.bfloat16):
        loss = nn.functional.cross_entropy(forward(images), labels)
    loss.backward()
    optimiser.step()


def activations(plan: Plan, mode: str, shape: tuple[int, int], compiled: Callable | None) -> Iterator[Row]:
    """`era_softmax` by both floors and inverses, and log-softmax."""
    case = f"activation of {shape[0]:,} × {shape[1]:,}, float32, forward and backward, {mode}"
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "log-softmax": partial(torch.log_softmax, dim=-1),
        "era_softmax": lambda z: F.era_softmax(z, MIN_ENTROPY),
        "era_softmax, paper": lambda z: F.era_softmax(z, MIN_ENTROPY, floor="paper", inverse="paper"),
    }
    logits = torch.randn(shape, device=DEVICE, requires_grad=True)
    ones = torch.ones_like(logits)

    def turn(function: Callable[[Tensor], Tensor]) -> None:
        for _ in range(CALLS):
            torch.autograd.grad(function(logits), logits, ones)

    sides = {
        name: Side(partial(turn, compiled(function) if compiled else function), CALLS)
        for name, function in functions.items()
    }
    pairs = [("era_softmax", "log-softmax"), ("era_softmax", "era_softmax, paper")]
    yield from compare(plan, case, sides, pairs, SECONDS / 4, clock)
