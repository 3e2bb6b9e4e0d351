"""ERA for verl: a trainer named `era`, and the FSDP engine that scales logits.

verl imports this package by itself where both are installed (entry point `verl.plugins`), or because
`VERL_USE_EXTERNAL_MODULES=entropyfloor.integrations.verl` is set. verl hides the errors of the first way: import
this package yourself to see them.
"""

from entropyfloor.integrations.verl.config import ERAConfig
from entropyfloor.integrations.verl.engine import ERAEngine
from entropyfloor.integrations.verl.trainer import ERATrainer

__all__ = ["ERAConfig", "ERAEngine", "ERATrainer"]
