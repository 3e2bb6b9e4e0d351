"""ERA in Keras 3: layers for its backends PyTorch and JAX, which it trains, saves and loads as its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from entropyfloor import targets
from entropyfloor.backends import Mode, check_last_axis, check_mode
from entropyfloor.checks import check_number
from entropyfloor.extras import require

require("keras", "keras")

import keras  # noqa: E402

if keras.backend.backend() == "torch":
    from entropyfloor.torch import functional as F
elif keras.backend.backend() == "jax":
    from entropyfloor.jax import functional as F  # type: ignore[no-redef]
else:
    raise ImportError(
        f"Keras runs on {keras.backend.backend()}, for which there is no ERA: set the environment variable "
        "KERAS_BACKEND to torch or jax before Keras is imported"
    )

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["ERAGaussian", "ERASoftmax"]


@keras.saving.register_keras_serializable("entropyfloor")
class ERASoftmax(keras.layers.Layer):
    """`era_softmax` on the last axis: logits whose softmax keeps the floor, for losses with `from_logits=True`.

    Args:
        num_classes: n.
        min_entropy: Floor in nats.
        tau: τ > e.
        floor: `"calibrated"` or `"paper"`.
        inverse: `"exact"` or `"paper"`.
        **kwargs: `name` and others of `Layer`.

    Raises:
        ValueError: A floor that is out of reach, an unknown option, or input of another width.

    Examples:
        >>> import keras, numpy
        >>> from entropyfloor.integrations.keras import ERASoftmax
        >>> logits = ERASoftmax(10, min_entropy=0.6)(100 * numpy.eye(10, dtype="float32"))
        >>> p = keras.ops.softmax(logits)
        >>> bool(keras.ops.min(-keras.ops.sum(p * keras.ops.log(p), -1)) > 0.6 - 1e-4)
        True
    """

    def __init__(
        self,
        num_classes: int,
        min_entropy: float,
        *,
        tau: float = 4.0,
        floor: Literal["calibrated", "paper"] = "calibrated",
        inverse: Literal["exact", "paper"] = "exact",
        **kwargs: Any,
    ) -> None:
        targets.softmax_kappa_range(num_classes, min_entropy, tau, floor, inverse)
        super().__init__(autocast=False, **kwargs)  # float16 has no logits above 65,504
        self.supports_masking = True
        self.num_classes = num_classes
        self.options: dict[str, Any] = {"min_entropy": min_entropy, "tau": tau, "floor": floor, "inverse": inverse}

    def call(self, logits: Float[Any, "*batch n"]) -> Float[Any, "*batch n"]:
        """Floored logits, in float32 under half precision too."""
        check_last_axis(logits.shape, self.num_classes, "num_classes")
        return F.era_softmax(logits, **self.options)

    def get_config(self) -> dict[str, Any]:
        """What Keras builds the layer from again."""
        return super().get_config() | {"num_classes": self.num_classes} | self.options


@keras.saving.register_keras_serializable("entropyfloor")
class ERAGaussian(keras.layers.Layer):
    """`era_gaussian` (Eq. 11): log σ of a diagonal Gaussian with the target entropy, from raw log σ.

    Args:
        action_dim: D.
        target_entropy: H0 in nats for the whole action.
        log_std_min: Lower bound of log σ.
        log_std_max: Upper bound of log σ.
        mode: `"pin"` or `"floor"`.
        **kwargs: `name` and others of `Layer`.

    Raises:
        ValueError: A target that is out of reach, an unknown mode, or input of another width.

    Examples:
        >>> import keras, numpy
        >>> from entropyfloor.integrations.keras import ERAGaussian
        >>> log_std = ERAGaussian(6, target_entropy=-3.0)(numpy.random.randn(8, 6).astype("float32"))
        >>> entropy = keras.ops.sum(log_std, -1) + 6 * 1.4189385
        >>> bool(keras.ops.min(entropy) > -3.0 - 1e-4)
        True
    """

    def __init__(
        self,
        action_dim: int,
        target_entropy: float,
        *,
        log_std_min: float = -8.0,
        log_std_max: float = 0.0,
        mode: Mode = "pin",
        **kwargs: Any,
    ) -> None:
        check_number("target_entropy", target_entropy)
        targets.check_gaussian(target_entropy, action_dim, log_std_min, log_std_max)
        check_mode(mode, action_dim)
        super().__init__(autocast=False, **kwargs)  # half precision would round raw log σ
        self.supports_masking = True
        self.action_dim = action_dim
        self.options: dict[str, Any] = {
            "target_entropy": target_entropy,
            "log_std_min": log_std_min,
            "log_std_max": log_std_max,
            "mode": mode,
        }

    def call(self, raw_log_std: Float[Any, "*batch D"]) -> Float[Any, "*batch D"]:
        """log σ, in float32 under half precision too."""
        check_last_axis(raw_log_std.shape, self.action_dim, "action_dim")
        return F.era_gaussian(raw_log_std, **self.options)

    def get_config(self) -> dict[str, Any]:
        """What Keras builds the layer from again."""
        return super().get_config() | {"action_dim": self.action_dim} | self.options
