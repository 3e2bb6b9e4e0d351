"""Language models in RL: losses, rewards, tasks, a small trainer, and evaluation."""

from entropyfloor.extras import require

require("language", "torch")

from entropyfloor import torchvision_shim  # noqa: E402

torchvision_shim.ensure()  # transformers imports it where it is installed
require("language", "transformers")
