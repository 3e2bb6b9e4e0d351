"""Import of torchvision without its compiled operators.

A torchvision that was built for another torch than the one installed, as some CPU builds are, fails on import: it
refers to its operator `nms`, which then does not exist. timm and transformers import torchvision and fail too,
though neither classifiers nor language models need `nms`. If the import fails for exactly this reason, the
operators are declared without an implementation, and the import is repeated.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec

MISSING = "operator torchvision::nms does not exist"
SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_declared: list[object] = []  # the operators exist only as long as their library object


def ensure() -> bool:
    """Import torchvision.

    Returns:
        Whether its operators had to be declared; False where torchvision works or is not installed.
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
            del sys.modules[name]  # left half initialised by the failed import
        import torchvision  # noqa: F401
    return bool(_declared)


def _declare() -> None:
    from torch.library import Library

    library = Library("torchvision", "FRAGMENT")
    for schema in SCHEMAS:
        library.define(schema)
    _declared.append(library)
