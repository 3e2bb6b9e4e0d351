"""Causal language models of transformers: files, forward passes, caches, a tiny model, preparation of updates.

Import this before transformers: it names the extra that brings transformers, and repairs a broken torchvision.
"""

from entropyfloor import torchvision_shim
from entropyfloor.extras import require

require("language", "torch")
torchvision_shim.ensure()
require("language", "transformers")
