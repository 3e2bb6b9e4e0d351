"""Export of a run's classifier as weights that plain timm reads."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import save

from entropyfloor.runs import files
from entropyfloor.vision.data import STATISTICS
from entropyfloor.vision.load import read_trained
from entropyfloor.vision.model import LABEL_NAMES, load_weights, plain_model


def export(run: Path | str, out: Path | str) -> str:
    """Write the weights of a run's classifier as a file that plain timm reads.

    A floor has no parameters, so the weights are those of the plain model. The metadata of the file have the
    settings of the floor, how images are prepared (`input_size`, `crop`, and as JSON `mean` and `std`, in [0, 1]),
    and under `label_names` the names of the classes as JSON, in the order of the outputs.
    timm reads no metadata and sorts class directories in another order: its datasets need the `class_map`.

    Args:
        run: Run directory, whose last checkpoint is exported, or a directory in its `checkpoints`.
        out: A file that ends in .safetensors.

    Returns:
        Lines of Python that load the weights, add the floor, and number the classes for timm.

    Raises:
        ValueError: There is no run of a classifier or no checkpoint, or the file ends otherwise.
    """
    out = Path(out)
    if out.suffix != ".safetensors":
        raise ValueError(f"out={out} must end in .safetensors: timm recognises the format by it")
    trained = read_trained(run)
    config, classes = trained.config, trained.label_names
    model, options = plain_model(config)
    load_weights(model, trained.weights, str(run))  # weights that do not fit are refused here
    floor = ("min_entropy", "floor", "tau", "inverse", "temperature_floor")
    names = ("model", "num_classes", "input_size", "crop", "dataset", *floor)
    metadata = {name: str(getattr(config, name)) for name in names}
    metadata |= zip(("mean", "std"), map(json.dumps, STATISTICS[config.dataset]), strict=True)
    if classes is not None:
        metadata[LABEL_NAMES] = json.dumps(classes)
    out.parent.mkdir(parents=True, exist_ok=True)
    files.replace(out, save(trained.weights, {"format": "pt", **metadata}))
    arguments = ", ".join(f"{name}={value}" for name, value in options.items())
    lines = [f"model = timm.create_model({config.model!r}, {arguments}, checkpoint_path={str(out)!r})"]
    if config.min_entropy is not None:
        how = f"floor={config.floor!r}, tau={config.tau}, inverse={config.inverse!r}"
        lines.append(f"model = entropyfloor.vision.attach_era(model, {config.min_entropy}, {how})")
    if config.temperature_floor is not None:
        last = f"TemperatureFloor({config.num_classes}, {config.temperature_floor})"
        lines.append(f"model = torch.nn.Sequential(model, entropyfloor.vision.regularisers.{last})")
    if classes is not None:
        lines.append(f"names = json.loads(safetensors.safe_open({str(out)!r}, 'pt').metadata()[{LABEL_NAMES!r}])")
        lines.append("class_map = {name: i for i, name in enumerate(names)}  # for timm.data.create_dataset")
    return "\n".join(lines)
