"""Bounded Gaussian policies for PyTorch. `entropyfloor.jax.distributions` is the same page for JAX.

The last axis is the event: `log_prob` and `entropy` sum over it. `entropy` is that of the *bounded* policy, in
nats. Half-precision parameters are computed in float32.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints
from torch.distributions.utils import broadcast_all
from torch.types import _size

from entropyfloor.checks import check_number, is_finite
from entropyfloor.torch import functional as F
from entropyfloor.torch.numerics import as_float, log_sech_squared

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["TanhNormal", "TruncatedNormal"]

LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)


class _Bounded(Distribution):
    """A Gaussian per coordinate, bounded by a subclass; independent over the last axis."""

    has_rsample = True
    arg_constraints = {  # noqa: RUF012
        "loc": constraints.independent(constraints.real, 1),
        "scale": constraints.independent(constraints.positive, 1),
    }

    def __init__(
        self,
        loc: Float[Tensor, "*#batch #D"],
        scale: Float[Tensor, "*#batch #D"] | Float[Tensor, ""] | float,
        *,
        validate_args: bool | None = None,
    ) -> None:
        parameters = {"loc": loc, "scale": scale}
        floats = (x if isinstance(x, float | int) else as_float(x, name) for name, x in parameters.items())
        self.loc, self.scale = broadcast_all(*floats)
        if self.loc.ndim == 0:
            raise ValueError("loc and scale are scalars: the last axis is the action, pass [..., action_dim]")
        super().__init__(self.loc.shape[:-1], self.loc.shape[-1:], validate_args=validate_args)


class TanhNormal(_Bounded):
    """tanh(u) with u ~ N(loc, scale²), per coordinate (Eq. 4).

    Args:
        loc: Mean of u, `[..., D]`.
        scale: Standard deviation of u, broadcastable with `loc`, positive.

    Examples:
        >>> import torch
        >>> from entropyfloor.torch.distributions import TanhNormal
        >>> policy = TanhNormal(torch.zeros(256, 6), torch.tensor(0.5))
        >>> action, log_prob = policy.rsample_and_log_prob()
        >>> action.shape, log_prob.shape, policy.entropy().shape
        (torch.Size([256, 6]), torch.Size([256]), torch.Size([256]))
    """

    support = constraints.independent(constraints.interval(-1.0, 1.0), 1)

    def rsample(self, sample_shape: _size = torch.Size()) -> Float[Tensor, "*sample D"]:  # noqa: B008
        """Reparametrised sample, with gradients to `loc` and `scale`."""
        return torch.tanh(self._base_sample(sample_shape))

    def rsample_and_log_prob(
        self,
        sample_shape: _size = torch.Size(),  # noqa: B008
    ) -> tuple[Float[Tensor, "*sample D"], Float[Tensor, "*sample"]]:
        """Sample and its log-density, exact where tanh has saturated."""
        base = self._base_sample(sample_shape)
        return torch.tanh(base), self._log_prob_of_base(base)

    def log_prob(self, value: Float[Tensor, "*sample D"]) -> Float[Tensor, "*sample"]:
        """Log-density. A value beyond ±(1 - ε) is moved there, so that the result is finite."""
        if self._validate_args:
            self._validate_sample(value)
        value = as_float(value, "value")
        limit = 1 - torch.finfo(value.dtype).eps
        return self._log_prob_of_base(torch.atanh(value.clamp(-limit, limit)))

    def entropy(self) -> Float[Tensor, "*batch"]:
        """Entropy of the squashed policy, by quadrature."""
        return F.tanh_normal_entropy(self.loc, self.scale.log()).sum(-1)

    @property
    def mode(self) -> Float[Tensor, "*batch D"]:
        """tanh(loc): the median, with which agents act in evaluation; not the peak of the density."""
        return torch.tanh(self.loc)

    def _base_sample(self, sample_shape: _size) -> Tensor:
        shape = self._extended_shape(sample_shape)
        return self.loc + self.scale * torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)

    def _log_prob_of_base(self, base: Tensor) -> Tensor:
        standard = (base - self.loc) / self.scale
        density = -0.5 * standard**2 - self.scale.log() - LOG_SQRT_2PI
        return (density - log_sech_squared(base)).sum(-1)


class TruncatedNormal(_Bounded):
    """N(loc, scale²) restricted to [low, high], per coordinate (Eq. 5).

    Args:
        loc: Mean before truncation, `[..., D]`, clamped into [low, high] as in `era_truncated_normal`.
        scale: Standard deviation before truncation, broadcastable with `loc`, positive.
        low: Lower bound, finite.
        high: Upper bound, finite.

    Examples:
        >>> import torch
        >>> from entropyfloor.torch.distributions import TruncatedNormal
        >>> policy = TruncatedNormal(torch.zeros(256, 6), torch.tensor(0.5))
        >>> action, log_prob = policy.rsample_and_log_prob()
        >>> action.shape, log_prob.shape, policy.entropy().shape
        (torch.Size([256, 6]), torch.Size([256]), torch.Size([256]))
    """

    def __init__(
        self,
        loc: Float[Tensor, "*#batch #D"],
        scale: Float[Tensor, "*#batch #D"] | Float[Tensor, ""] | float,
        low: float = -1.0,
        high: float = 1.0,
        *,
        validate_args: bool | None = None,
    ) -> None:
        check_number("low", low)
        check_number("high", high)
        if not low < high:
            raise ValueError(f"low={low} must be below high={high}: swap the bounds")
        if not (is_finite(low) and is_finite(high)):
            raise ValueError(f"low={low} and high={high} must be finite: one 10 scale from loc changes nothing")
        self.low, self.high = low, high
        self._refuses_outside = bool(validate_args)  # the default validates parameters only
        super().__init__(loc, scale, validate_args=validate_args)
        self.loc = self.loc.clamp(low, high)

    @property
    def support(self) -> constraints.Constraint:
        """[low, high] per coordinate."""
        return constraints.independent(constraints.interval(self.low, self.high), 1)

    def rsample(self, sample_shape: _size = torch.Size()) -> Float[Tensor, "*sample D"]:  # noqa: B008
        """Reparametrised sample by the inverse of the distribution function, with gradients to both parameters."""
        # Probabilities are measured from loc, so that both tails have the same precision.
        below, above = self._mass_beside_loc()
        shape = self._extended_shape(sample_shape)
        uniform = torch.rand(shape, dtype=self.loc.dtype, device=self.loc.device)
        signed = uniform * (below + above) - below
        limit = 1 - torch.finfo(signed.dtype).eps
        base = math.sqrt(2) * torch.erfinv((2 * signed).clamp(-limit, limit))
        return (self.loc + self.scale * base).clamp(self.low, self.high)

    def rsample_and_log_prob(
        self,
        sample_shape: _size = torch.Size(),  # noqa: B008
    ) -> tuple[Float[Tensor, "*sample D"], Float[Tensor, "*sample"]]:
        """Sample and its log-density."""
        value = self.rsample(sample_shape)
        return value, self._log_density(value).sum(-1)

    def log_prob(self, value: Float[Tensor, "*sample D"]) -> Float[Tensor, "*sample"]:
        """Log-density: finite on [low, high], with the bounds as either precision rounds them; -inf outside.

        The density at NaN is NaN.

        Raises:
            ValueError: A value lies outside, with `validate_args=True`.
        """
        if self._refuses_outside:
            self._validate_sample(value)
        density = self._log_density(as_float(value, "value"))
        low, high = (self.loc.new_full((), bound) for bound in (self.low, self.high))
        outside = ((value < self.low) & (value < low)) | ((value > self.high) & (value > high))
        return torch.where(outside, -torch.inf, density).sum(-1)

    def entropy(self) -> Float[Tensor, "*batch"]:
        """Entropy of the truncated policy, in closed form."""
        return F.truncated_normal_entropy(self.loc, self.scale.log(), low=self.low, high=self.high).sum(-1)

    @property
    def mode(self) -> Float[Tensor, "*batch D"]:
        """The peak of the density: loc."""
        return self.loc

    @property
    def mean(self) -> Float[Tensor, "*batch D"]:
        """The mean, nearer to the middle of [low, high] than loc. In evaluation agents act by `mode`."""
        # With a and b the standardised bounds: loc + scale (φ(a) - φ(b)) / mass. The difference is φ(nearer bound)
        # times expm1, which does not cancel where scale is large.
        below, above = self._mass_beside_loc()
        a, b = (self.low - self.loc) / self.scale, (self.high - self.loc) / self.scale
        exponent = 0.5 * (a - b) * (a + b)  # log φ(b) - log φ(a)
        nearer = torch.exp(-0.5 * torch.minimum(a.abs(), b.abs()) ** 2 - LOG_SQRT_2PI)
        sign = torch.where(exponent < 0, -1.0, 1.0)  # not `exponent.sign()`: at 0 its gradient would be lost
        difference = nearer * sign * torch.expm1(-sign * exponent)
        return (self.loc + self.scale * difference / (below + above)).clamp(self.low, self.high)

    def _mass_beside_loc(self) -> tuple[Tensor, Tensor]:
        below = 0.5 * torch.erf((self.loc - self.low) / (math.sqrt(2) * self.scale))
        above = 0.5 * torch.erf((self.high - self.loc) / (math.sqrt(2) * self.scale))
        return below, above

    def _log_density(self, value: Tensor) -> Tensor:
        below, above = self._mass_beside_loc()
        standard = (value - self.loc) / self.scale
        return -0.5 * standard**2 - self.scale.log() - LOG_SQRT_2PI - torch.log(below + above)
