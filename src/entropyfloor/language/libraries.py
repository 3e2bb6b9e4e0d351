"""To be imported before transformers: says how to get it, and sees to torchvision, which it imports."""

from entropyfloor import torchvision_shim
from entropyfloor.extras import require

require("language", "torch")
torchvision_shim.ensure()
require("language", "transformers")
