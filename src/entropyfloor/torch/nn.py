"""The activations as modules, for PyTorch. `entropyfloor.jax.nn` is the same page for JAX.

A module checks its target when it is built. Only `ResidualEntropy` and `ERALinear` have parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.fx
from torch import Tensor, nn
from torch.jit import is_scripting  # type: ignore[attr-defined]  # hints lack it

from entropyfloor import targets
from entropyfloor.backends import Mode, check_last_axis, check_mode
from entropyfloor.checks import check_number
from entropyfloor.torch import functional as F
from entropyfloor.torch.numerics import as_float

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["ERAGaussian", "ERALinear", "ERASoftmax", "ERATruncatedNormal", "ResidualEntropy"]


class ERAGaussian(nn.Module):
    """`era_gaussian` (Eq. 11), or with `batch_level=True` `era_gaussian_batch` (Eq. 36).

    At batch level the module has a running mean of `M`, stored as its log, like the statistics of `BatchNorm`:
    updated in training, used in evaluation. It stays in float32 when the module is cast to half precision.

    Args:
        action_dim: D.
        target_entropy: H0 in nats for the whole action.
        log_std_min: Lower bound of log σ.
        log_std_max: Upper bound of log σ.
        mode: `"pin"` or `"floor"`.
        batch_level: Meet the target on average over the batch instead of in every state.
        momentum: Weight of a new batch in the running mean, from 0 to 1.

    Examples:
        >>> import torch
        >>> from entropyfloor.torch import functional as F, nn
        >>> head = nn.ERAGaussian(action_dim=6, target_entropy=-3.0)
        >>> entropy = F.gaussian_entropy(head(torch.randn(256, 6)))
        >>> bool((entropy > -3.0 - 1e-4).all())
        True
    """

    log_mean_exp_sum: Tensor

    def __init__(
        self,
        action_dim: int,
        target_entropy: float,
        *,
        log_std_min: float = -8.0,
        log_std_max: float = 0.0,
        mode: Mode = "pin",
        batch_level: bool = False,
        momentum: float = 0.1,
    ) -> None:
        super().__init__()
        check_number("target_entropy", target_entropy)
        targets.check_gaussian(target_entropy, action_dim, log_std_min, log_std_max)
        check_mode(mode, action_dim, batch_level, momentum)
        self.action_dim, self.target_entropy = action_dim, target_entropy
        self.log_std_min, self.log_std_max = log_std_min, log_std_max
        self.mode, self.batch_level, self.momentum = mode, batch_level, momentum
        if batch_level:  # log of Σ_j e^0, the statistic of a network that starts at zero
            self.register_buffer("log_mean_exp_sum", torch.tensor(math.log(action_dim), dtype=torch.float32))

    def forward(self, raw_log_std: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
        """log σ from the raw network output."""
        check_last_axis(raw_log_std.shape, self.action_dim, "action_dim")
        bounds: dict[str, Any] = {"log_std_min": self.log_std_min, "log_std_max": self.log_std_max}
        if not self.batch_level:
            return F.era_gaussian(raw_log_std, self.target_entropy, **bounds, mode=self.mode)
        used = None if self.training else self.log_mean_exp_sum
        log_std, batch = F.era_gaussian_batch(raw_log_std, self.target_entropy, **bounds, log_mean_exp_sum=used)
        if self.training:
            old = self.log_mean_exp_sum + torch.log1p(self.log_mean_exp_sum.new_tensor(-self.momentum))
            new = batch.detach().to(old.dtype) + old.new_tensor(self.momentum).log()
            self.log_mean_exp_sum.copy_(torch.logaddexp(old, new))
        return log_std

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ERAGaussian:
        """Called by `to`, `half`, …. In bfloat16 each small update of the running mean would be rounded away."""
        running = self._buffers.get("log_mean_exp_sum")
        super()._apply(fn, recurse)
        if running is not None and self.log_mean_exp_sum.dtype.itemsize < 4:
            self.log_mean_exp_sum = running.to(self.log_mean_exp_sum.device)
        return self

    def _load_from_state_dict(self, *args: Any) -> None:
        """Called by `load_state_dict`, which with `assign=True` keeps the precision of the file."""
        super()._load_from_state_dict(*args)
        if self.batch_level:
            self.log_mean_exp_sum = as_float(self.log_mean_exp_sum, "log_mean_exp_sum")

    def extra_repr(self) -> str:
        """The fields that decide the output."""
        return (
            f"action_dim={self.action_dim}, target_entropy={self.target_entropy}, "
            f"log_std=[{self.log_std_min}, {self.log_std_max}], mode={self.mode!r}, batch_level={self.batch_level}"
        )


class ERATruncatedNormal(nn.Module):
    """`era_truncated_normal`: the floor holds for the truncated policy (*ours*).

    Args:
        action_dim: D.
        target_entropy: H0 in nats for the whole action.
        log_std_min: Lower bound of log σ.
        log_std_max: Upper bound of log σ.
        low: Lower bound of the action.
        high: Upper bound of the action.
        mode: `"pin"` or `"floor"`.

    Examples:
        >>> import torch
        >>> from entropyfloor.torch import distributions, nn
        >>> head, loc = nn.ERATruncatedNormal(action_dim=6, target_entropy=-3.0), torch.rand(256, 6)
        >>> policy = distributions.TruncatedNormal(loc, head(loc, torch.randn(256, 6)).exp())
        >>> bool((policy.entropy() > -3.0 - 1e-4).all())
        True
    """

    def __init__(
        self,
        action_dim: int,
        target_entropy: float,
        *,
        log_std_min: float = -8.0,
        log_std_max: float = 0.0,
        low: float = -1.0,
        high: float = 1.0,
        mode: Mode = "pin",
    ) -> None:
        super().__init__()
        check_number("target_entropy", target_entropy)
        targets.check_truncated_normal(target_entropy, action_dim, log_std_min, log_std_max, low, high)
        check_mode(mode, action_dim)
        self.action_dim, self.target_entropy, self.mode = action_dim, target_entropy, mode
        self.log_std_min, self.log_std_max, self.low, self.high = log_std_min, log_std_max, low, high

    def forward(
        self, loc: Float[Tensor, "*batch D"], raw_log_std: Float[Tensor, "*batch D"]
    ) -> Float[Tensor, "*batch D"]:
        """log σ before truncation, from the mean before truncation and the raw network output."""
        check_last_axis(loc.shape, self.action_dim, "action_dim")
        return F.era_truncated_normal(
            loc,
            raw_log_std,
            self.target_entropy,
            log_std_min=self.log_std_min,
            log_std_max=self.log_std_max,
            low=self.low,
            high=self.high,
            mode=self.mode,
        )

    def extra_repr(self) -> str:
        """The fields that decide the output."""
        return (
            f"action_dim={self.action_dim}, target_entropy={self.target_entropy}, "
            f"log_std=[{self.log_std_min}, {self.log_std_max}], bounds=[{self.low}, {self.high}], "
            f"mode={self.mode!r}"
        )


class ERASoftmax(nn.Module):
    """`era_softmax` on the last axis.

    Args:
        num_classes: n.
        min_entropy: Floor in nats.
        tau: τ > e.
        floor: `"calibrated"` or `"paper"`.
        inverse: `"exact"` or `"paper"`.

    Examples:
        >>> import torch
        >>> from entropyfloor.torch import functional as F, nn
        >>> head = nn.ERASoftmax(num_classes=10, min_entropy=0.6)
        >>> bool((F.entropy_from_logits(head(100 * torch.randn(256, 10))) > 0.6 - 1e-4).all())
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
    ) -> None:
        super().__init__()
        targets.softmax_kappa_range(num_classes, min_entropy, tau, floor, inverse)
        self.num_classes, self.min_entropy = num_classes, float(min_entropy)
        self.tau, self.floor, self.inverse = tau, floor, inverse

    def forward(self, logits: Tensor) -> Tensor:  # `torch.jit.script` does not accept jaxtyping
        """Logits `[*batch, n]` whose softmax keeps the floor, from logits of the same shape."""
        if is_scripting():
            if logits.size(-1) != self.num_classes:
                raise ValueError(f"input ends in {logits.size(-1)}, not in num_classes={self.num_classes}")
            least, top = self._kappa_range
            return F.era_softmax_in_script(logits, least, top, self.inverse)
        else:  # noqa: RET505  # `torch.jit.script` skips whole branches only
            return _floored(logits, self.num_classes, self.min_entropy, self.tau, self.floor, self.inverse)

    def __prepare_scriptable__(self) -> ERASoftmax:
        """Called by `torch.jit.script`: solve for the constants, which a script cannot do."""
        fields = self.num_classes, self.min_entropy, self.tau, self.floor, self.inverse
        self._kappa_range = targets.softmax_kappa_range(*fields)
        return self

    def extra_repr(self) -> str:
        """The fields that decide the output."""
        return (
            f"num_classes={self.num_classes}, min_entropy={self.min_entropy}, tau={self.tau}, "
            f"floor={self.floor!r}, inverse={self.inverse!r}"
        )


class ERALinear(nn.Linear):
    """A `Linear` classifier followed by `era_softmax`, with the state-dict keys of `Linear`.

    Args:
        in_features: Width of the features.
        out_features: Number of classes.
        min_entropy: Floor in nats.
        bias: Whether the linear layer has a bias.
        **options: `tau`, `floor`, `inverse` of `ERASoftmax`; `device`, `dtype` of `Linear`.

    Examples:
        >>> import torch
        >>> from entropyfloor.torch import nn
        >>> layer = nn.ERALinear(64, 10, min_entropy=0.6)
        >>> layer.load_state_dict(torch.nn.Linear(64, 10).state_dict())
        <All keys matched successfully>
    """

    def __init__(
        self, in_features: int, out_features: int, min_entropy: float, *, bias: bool = True, **options: Any
    ) -> None:
        placement = {name: options.pop(name) for name in ("device", "dtype") if name in options}
        activation = ERASoftmax(out_features, min_entropy, **options)
        super().__init__(in_features, out_features, bias=bias, **placement)
        self.activation = activation

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """Logits `[*batch, n]` whose softmax keeps the floor, from features `[*batch, i]`."""
        return self.activation(nn.functional.linear(input, self.weight, self.bias))


class ResidualEntropy(nn.Module):
    """The learned residual entropy δ̂ ≥ 0 of Eq. 12, one number for all states.

    Pass `target_entropy + residual.value.detach()` to `era_gaussian` and minimise `residual.loss(entropy)`: δ̂
    grows while the entropy of the bounded policy is below its target.

    Args:
        target_entropy: H0 in nats for the whole action.
        initial: The parameter before softplus; 0 starts δ̂ at log 2.

    Examples:
        >>> import torch
        >>> from entropyfloor.torch import functional as F, nn
        >>> residual = nn.ResidualEntropy(target_entropy=-3.0)
        >>> log_std = F.era_gaussian(torch.randn(256, 6), -3.0 + residual.value.detach())
        >>> residual.loss(policy_entropy=torch.full((256,), -4.0)).backward()  # makes δ̂ larger
    """

    def __init__(self, target_entropy: float, initial: float = 0.0) -> None:
        super().__init__()
        check_number("target_entropy", target_entropy)
        targets.check_finite(target_entropy)
        self.target_entropy = float(target_entropy)
        self.raw = nn.Parameter(torch.tensor(float(initial)))

    @property
    def value(self) -> Float[Tensor, ""]:
        """δ̂ = softplus(raw), in nats."""
        return nn.functional.softplus(as_float(self.raw, "raw"))

    def forward(self) -> Float[Tensor, ""]:
        """δ̂, in nats."""
        return self.value

    def loss(self, policy_entropy: Float[Tensor, "*batch"]) -> Float[Tensor, ""]:
        """`E[δ̂ (H[π] - H0)]` with the entropy of the bounded policy detached (Eq. 12)."""
        entropy = as_float(policy_entropy, "policy_entropy").detach()
        return (self.value * (entropy - self.target_entropy)).mean()


@torch.fx.wrap
def _floored(
    logits: Tensor,
    num_classes: int,
    min_entropy: float,
    tau: float,
    floor: Literal["calibrated", "paper"],
    inverse: Literal["exact", "paper"],
) -> Tensor:
    """One node in a graph of `torch.fx`, which cannot trace code that depends on a shape."""
    check_last_axis(logits.shape, num_classes, "num_classes")
    return F.era_softmax(logits, min_entropy, tau=tau, floor=floor, inverse=inverse)
