"""ERA in TRL: `ERAGRPOTrainer` and `ERAGRPOConfig`, subclasses of `GRPOTrainer` and `GRPOConfig`."""

from entropyfloor.extras import require

require("trl", "trl")

import entropyfloor.language.model  # noqa: E402, F401  before transformers: it repairs a broken torchvision
from entropyfloor.integrations.trl.config import ERAGRPOConfig  # noqa: E402
from entropyfloor.integrations.trl.trainer import ERAGRPOTrainer  # noqa: E402

__all__ = ["ERAGRPOConfig", "ERAGRPOTrainer"]
