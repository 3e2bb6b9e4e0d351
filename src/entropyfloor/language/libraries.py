"""Import this before transformers: it names the extra that brings it, and replaces a broken torchvision."""

from entropyfloor import torchvision_shim
from entropyfloor.extras import require

require("language", "torch")
torchvision_shim.ensure()
require("language", "transformers")
