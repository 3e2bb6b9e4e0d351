"""The device of the PyTorch parts, and the clock that waits for it."""

import time

import torch

from gpu_parts.rows import Plan, Row, UnavailableError

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def require_device(plan: Plan) -> Row:
    """The settings of this machine's device, as a row.

    Raises:
        UnavailableError: PyTorch finds no GPU, and the sizes are not tiny.
    """
    if DEVICE == "cpu" and not plan.tiny:
        raise UnavailableError("PyTorch finds no GPU")
    name = torch.cuda.get_device_name() if DEVICE == "cuda" else "CPU"
    products = torch.get_float32_matmul_precision()
    # "highest" is float32 throughout; cuDNN has a setting of its own for convolutions
    remark = f"PyTorch {torch.__version__}, precision of float32 products {products!r} ('highest' is without TF32)"
    return Row("settings", name, remark=f"{remark}, of convolutions: TF32 {torch.backends.cudnn.allow_tf32}")


def clock() -> float:
    """Wall time in seconds, when the device has finished its work."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()
