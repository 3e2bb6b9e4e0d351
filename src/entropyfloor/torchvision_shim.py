"""torchvision, also where its compiled operators are missing.

`import torchvision` gives up where it was built for another torch than the one that is installed, as some CPU
builds are: it describes the operator `nms`, which then does not exist. timm and transformers, which import
torchvision, then fail too; neither classifier nor language model needs `nms`. Where the import fails for exactly
that, the operators are declared, without an implementation, and it is tried again.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec

MISSING = "operator torchvision::nms does not exist"
SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_declared: list[object] = []  # a library takes its operators with it when it is collected


def ensure() -> bool:
    """Import torchvision.

    Returns:
        Whether its operators had to be declared; False where torchvision is healthy, or absent.
    """
    if find_spec("torchvision") is None:
        return False
    try:
        import torchvision
    except RuntimeError as error:
        if MISSING not in str(error):
            raise
        _declare()
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]  # what the failed import left half done
        import torchvision  # noqa: F401
    return bool(_declared)


def _declare() -> None:
    from torch.library import Library

    library = Library("torchvision", "FRAGMENT")
    for schema in SCHEMAS:
        library.define(schema)
    _declared.append(library)
