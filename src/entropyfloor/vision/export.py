"""Out of a run and into other people's code: the trained classifier, or its weights as plain timm reads them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from safetensors.torch import save
from torch import Tensor, nn

from entropyfloor.runs import Checkpoint, Run, files
from entropyfloor.torch.checkpoint import tensors_below
from entropyfloor.vision.model import LABEL_NAMES, build_model, load_weights, plain_model
from entropyfloor.vision.train import read_config
from entropyfloor.vision.trainer import recorded_classes


def trained(path: Path | str) -> nn.Module:
    """The classifier of a run, as its last checkpoint is judged: with its floor, and in evaluation mode.

    Args:
        path: A run directory.

    Returns:
        From normalised images `[B, 3, H, W]` to logits `[B, n]`. `detach_era` makes it a plain timm model.

    Raises:
        ValueError: No run of a classifier, or no checkpoint.

    Example:
        >>> model = trained("runs/vision/digits-resnet18/plain/seed-0")  # doctest: +SKIP
    """
    path = Path(path)
    run = Run.open(path)
    # Without what only training has: the weights it began with, and batch norms of its own for copies of images.
    config = replace(read_config(run.config).restarted(), split_bn=False)
    model, output = build_model(config)
    load_weights(model, _weights(run.trained(), average=bool(config.ema)), str(path))
    return (model if isinstance(output, nn.Identity) else nn.Sequential(model, output)).eval()


def export(path: Path | str, out: Path | str) -> str:
    """Write the weights of a run's classifier where plain timm can read them.

    A floor has no parameters, so the weights are those of the plain model; the metadata of the file say how the
    floor was, and as JSON under `label_names` what the classes are called, in the order of the outputs. timm reads
    no metadata, and sorts class directories in an order of its own: its datasets need the `class_map`.

    Args:
        path: A run directory.
        out: A file that ends in .safetensors.

    Returns:
        Lines of Python: what loads it, what gives it its floor, and what numbers the classes for timm.

    Raises:
        ValueError: No run of a classifier, no checkpoint, or a file that ends otherwise.
    """
    path, out = Path(path), Path(out)
    if out.suffix != ".safetensors":
        raise ValueError(f"out={out} must end in .safetensors: by this timm knows how to read it")
    run = Run.open(path)
    config = read_config(run.config)
    checkpoint = run.trained()
    weights = _weights(checkpoint, average=bool(config.ema))
    model, options = plain_model(config)
    load_weights(model, weights, str(path))  # if they fit here, they fit elsewhere
    names = ("model", "num_classes", "input_size", "dataset", "min_entropy", "floor", "tau", "inverse")
    settings = {name: str(getattr(config, name)) for name in names}
    classes = recorded_classes(checkpoint)
    if classes is not None:
        settings[LABEL_NAMES] = json.dumps(classes)
    out.parent.mkdir(parents=True, exist_ok=True)
    files.replace(out, save(weights, {"format": "pt", **settings}))
    told = ", ".join(f"{name}={value}" for name, value in options.items())
    lines = [f"model = timm.create_model({config.model!r}, {told}, checkpoint_path={str(out)!r})"]
    if config.min_entropy is not None:
        floor = f"floor={config.floor!r}, tau={config.tau}, inverse={config.inverse!r}"
        lines.append(f"model = entropyfloor.vision.attach_era(model, {config.min_entropy}, {floor})")
    if classes is not None:
        lines.append(f"names = json.loads(safetensors.safe_open({str(out)!r}, 'pt').metadata()[{LABEL_NAMES!r}])")
        lines.append("class_map = {name: i for i, name in enumerate(names)}  # for timm.data.create_dataset")
    return "\n".join(lines)


def _weights(checkpoint: Checkpoint, average: bool) -> dict[str, Tensor]:
    """What a checkpoint is judged with, without batch norms for copies of images (`split_bn`)."""
    found = tensors_below("average/" if average else "model/", checkpoint.arrays)
    return {name: tensor for name, tensor in found.items() if ".aux_bn." not in name}
