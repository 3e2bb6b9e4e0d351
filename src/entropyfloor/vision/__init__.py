"""Minimum entropy for any classifier, and the trainer of the paper's image classification.

Importing this package makes `timm.create_model("resnet50_era", min_entropy=0.6)` work: see `registry`.
"""

from entropyfloor.extras import require

require("vision", "torch")

from entropyfloor import torchvision_shim  # noqa: E402

torchvision_shim.ensure()
require("vision", "timm")  # imports torchvision

from entropyfloor.vision import registry  # noqa: E402
from entropyfloor.vision.attach import attach_era, detach_era  # noqa: E402
from entropyfloor.vision.classifier import Classifier  # noqa: E402
from entropyfloor.vision.load import load_classifier  # noqa: E402

__all__ = ["Classifier", "attach_era", "detach_era", "load_classifier"]

registry.register()
