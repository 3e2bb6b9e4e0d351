"""Loading a trained classifier from a run, without its images, its trainer and its optimiser."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from entropyfloor.runs.checkpoint import Checkpoint, run_directory
from entropyfloor.runs.directory import Run, open_checkpoint
from entropyfloor.torch.checkpoint import tensors_below
from entropyfloor.vision.classifier import Classifier
from entropyfloor.vision.config import VisionConfig, read_config
from entropyfloor.vision.model import build_model, load_weights


def load_classifier(run: Path | str) -> Classifier:
    """Load the classifier of a run as training evaluates it, in evaluation mode on the CPU.

    It has the minimum entropy of the run, and the averaged weights if the run averages them. `detach_era` makes
    its `model` a plain timm model.

    Args:
        run: Run directory, whose last checkpoint is loaded, or a directory in its `checkpoints`.

    Raises:
        ValueError: There is no run of a classifier, or no checkpoint, or the checkpoint is damaged.

    Examples:
        >>> from PIL import Image
        >>> classifier = load_classifier("runs/vision/digits-resnet18/plain/seed-0")  # doctest: +SKIP
        >>> logits = classifier(classifier.preprocess([Image.open("digit.png")]))  # doctest: +SKIP
        >>> probabilities = logits.softmax(-1)  # doctest: +SKIP
        >>> name = classifier.label_names[logits.argmax(-1)[0]]  # doctest: +SKIP
    """
    return read_trained(run).build()


@dataclass(frozen=True)
class Trained:
    """The part of a checkpoint that predicts."""

    run: Run
    config: VisionConfig
    """Settings of the run, resolved and without initial weights."""
    step: int
    weights: dict[str, Tensor]
    label_names: tuple[str, ...] | None
    """Names of the classes in the order of the outputs; None if the checkpoint has none."""

    def build(self) -> Classifier:
        """The classifier, in evaluation mode on the CPU."""
        model, output = build_model(self.config)
        load_weights(model, self.weights, str(self.run.path))
        return Classifier(model, output, self.config, self.label_names).eval()


def read_trained(path: Path | str) -> Trained:
    """Read the weights that are evaluated, and nothing else of a checkpoint; arguments as of `load_classifier`."""
    path = Path(path)
    config = read_config(Run.open(run_directory(path)).config)
    # Without what only training needs: initial weights, and separate batch norms for copies of images.
    config = replace(config.filled().restarted(), split_bn=False)
    prefix = "average/" if config.ema else "model/"
    run, checkpoint = open_checkpoint(path, (prefix,))
    weights = tensors_below(prefix, checkpoint.arrays)
    weights = {name: tensor for name, tensor in weights.items() if ".aux_bn." not in name}
    return Trained(run, config, checkpoint.step, weights, label_names(checkpoint))


def label_names(checkpoint: Checkpoint) -> tuple[str, ...] | None:
    """Names of the classes in the order of the outputs; None if an early version wrote the checkpoint."""
    names = checkpoint.state.get("classes")
    return names and tuple(names)
