"""What a floor and bfloat16 change in the time of a training step of a classifier.

    python benchmarks/vision.py
    python benchmarks/vision.py --parts head --rounds 200

step: a whole step of ResNet-18 on CIFAR-sized images, forward, backward and SGD, eager and compiled.
head: the last layer alone, with its loss, forward and backward, and what the floor adds to it as a share of a
    whole step of ResNet-18 on as many images of 32×32 with as many classes. The difference of whole steps would
    drown in their noise.
precision: a whole step of ResNet-18, on small and on large images, and of timm's test_resnet, in float32 and in
    bfloat16 (mixed precision), in both memory layouts.

Sides take turns, in a new random order in each round; what counts is CPU time, on
one thread. Needs `pip install 'entropyfloor[vision]'`.
"""

import os

os.environ.update(OMP_NUM_THREADS="1")

import argparse
from collections.abc import Callable, Collection
from copy import deepcopy
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

import entropyfloor.vision
from entropyfloor.runs.settings import Precision
from entropyfloor.torch.nn import ERALinear

# isort: split
import timm  # after our package, which makes torchvision importable

from pairs import Side, compare, header, measure, median

BATCH = 128
HEADS = ((BATCH, 512, 10), (1024, 512, 1000), (256, 512, 21_843))
"""Images, features, classes: CIFAR-10, ImageNet-1k, ImageNet-21k."""
STEPS = (("resnet18", BATCH, 32), ("test_resnet", BATCH, 32), ("resnet18", 16, 224))
"""Model, images in a batch, and their height and width."""
LAYOUTS = {"": torch.contiguous_format, ", last": torch.channels_last}
"""Names and memory layouts of images: channels first, and last."""
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")
PARTS = "step", "head", "precision"
MORE = 8
"""How many times more rounds a head has than a model: a turn of it is short, and its difference is small."""


def turn(
    model: Callable[[Tensor], Tensor],
    parameters: nn.Module,
    inputs: Tensor,
    classes: int,
    precision: Precision = "fp32",
) -> Side:
    """A step of SGD on the same batch again and again, at a learning rate that changes nothing."""
    target = torch.randint(classes, inputs.shape[:1])
    optimiser = torch.optim.SGD(parameters.parameters(), lr=1e-12)

    def step() -> None:
        optimiser.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            logits = model(inputs)
        nn.functional.cross_entropy(logits.float(), target).backward()
        optimiser.step()

    return Side(step, 1)


def step(rounds: int) -> None:
    """ResNet-18 with and without a floor."""
    images = torch.randn(BATCH, 3, 32, 32)
    plain = timm.create_model("resnet18", num_classes=10)
    models = {
        "plain": plain,
        "calibrated": entropyfloor.vision.attach_era(deepcopy(plain), 0.6),
        "paper": entropyfloor.vision.attach_era(deepcopy(plain), 0.6, floor="paper", inverse="paper"),
    }
    for mode in ("eager", "compiled"):
        sides = {
            name: turn(torch.compile(model) if mode == "compiled" else model, model, images, 10)
            for name, model in models.items()
        }
        pairs = [("calibrated", "plain"), ("paper", "plain")]
        compare(f"ResNet-18, {BATCH} images of 32×32, 10 classes, {mode}", "steps", sides, pairs, rounds)


def head(rounds: int) -> None:
    """The last layer with and without a floor, and what that is of a step."""
    for batch, features, classes in HEADS:
        inputs = torch.randn(batch, features)
        layers = {"plain": nn.Linear(features, classes), "calibrated": ERALinear(features, classes, 0.6)}
        model = timm.create_model("resnet18", num_classes=classes)
        whole = {"step": turn(model, model, torch.randn(batch, 3, 32, 32), classes)}
        step_seconds = np.median(measure(whole, -(-rounds // MORE))["step"])
        for mode in ("eager", "compiled"):
            sides = {
                name: turn(
                    torch.compile(layer, dynamic=False) if mode == "compiled" else layer, layer, inputs, classes
                )
                for name, layer in layers.items()
            }
            title = f"head: {batch} × {features} features to {classes:,} classes, {mode}"
            seconds = compare(title, "steps", sides, [("calibrated", "plain")], MORE * rounds)
            added = median((seconds["calibrated"] - seconds["plain"]) / step_seconds)
            share = "{:.2%} [{:.2%}, {:.2%}]".format(*added)
            print(f"added to a step of {step_seconds:.2f} s (ResNet-18, eager, 32×32): {share}", flush=True)


def precision(rounds: int, models: Collection[str]) -> None:
    """A step in float32 and in bfloat16."""
    for name, batch, size in (row for row in STEPS if row[0] in models):
        sides = {}
        for layout, memory_format in LAYOUTS.items():
            images = torch.randn(batch, 3, size, size).contiguous(memory_format=memory_format)
            for number_format in PRECISIONS:
                model = timm.create_model(name, num_classes=10)
                sides[f"{number_format}{layout}"] = turn(model, model, images, 10, number_format)
        pairs = [("fp32", "bf16"), ("fp32, last", "bf16, last"), ("fp32", "bf16, last")]
        compare(f"{name}, {batch} images of {size}×{size}, eager", "steps", sides, pairs, rounds)


def main() -> None:
    """Print a table for each comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40, help="turns of each side")
    models = {name for name, *_ in STEPS}
    parser.add_argument("--models", nargs="+", choices=models, default=models, help="models of the part precision")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(header("torch", "timm"))
    parts = dict(zip(PARTS, (step, head, partial(precision, models=args.models)), strict=True))
    for part in args.parts:
        parts[part](args.rounds)


if __name__ == "__main__":
    main()
