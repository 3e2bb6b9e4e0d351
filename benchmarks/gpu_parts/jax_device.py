"""The device of JAX that is measured."""

import jax

from gpu_parts.rows import Plan, Row, UnavailableError


def require_device(plan: Plan) -> Row:
    """The settings of this machine's device, as a row.

    Raises:
        UnavailableError: JAX finds no accelerator, and the sizes are not tiny.
    """
    if jax.default_backend() == "cpu" and not plan.tiny:
        raise UnavailableError(
            "JAX finds no accelerator: pip install 'jax[cuda13]' or 'jax[cuda12]' brings its plugin"
        )
    products = jax.config.jax_default_matmul_precision or "default: TF32 on NVIDIA GPUs that have it"
    remark = f"JAX {jax.__version__}, float32 products {products}"
    return Row("settings", jax.devices()[0].device_kind, remark=remark)
