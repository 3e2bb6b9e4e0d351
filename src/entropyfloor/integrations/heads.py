"""What control hosts in PyTorch share: the map from outputs of a network to the policy that acts.

`entropyfloor.control.heads` is the same for JAX, with the same names and more heads.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, Normal

from entropyfloor import targets
from entropyfloor.torch import functional as F
from entropyfloor.torch.distributions import TruncatedNormal
from entropyfloor.torch.numerics import as_float

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

HeadName = Literal["era", "era-exact", "era-floor"]
DistributionName = Literal["truncated", "normal"]


@dataclass(frozen=True)
class GaussianPolicy:
    """The map from mean and raw log σ to the distribution over continuous actions.

    Args:
        action_dim: D.
        target_entropy: H0 for the whole action: nats, or a rule in D such as `"-A/2"`.
        head: `era`: Eq. 11 of the paper, a floor under the Gaussian *before* it is truncated. `era-exact`
            (*ours*): the floor is under the truncated policy itself. `era-floor` (*ours*): the entropy may rise
            above the floor; exact where the distribution is truncated.
        distribution: `truncated`: loc = tanh(mean), bounded to [-1, 1] by truncation. `normal`: loc = mean,
            unbounded; the environment clips.
        log_std_min: Lower bound of log σ.
        log_std_max: Upper bound of log σ.

    Raises:
        ValueError: Unknown names, a pair that does not exist, or a target that is out of reach.

    Examples:
        >>> import torch
        >>> from entropyfloor.integrations.heads import GaussianPolicy
        >>> policy = GaussianPolicy(action_dim=6, target_entropy="-A/2")(*torch.randn(2, 256, 6))
        >>> bool((policy.entropy() > -3.0 - 1e-4).all())
        True
    """

    action_dim: int
    target_entropy: float | str
    head: HeadName = "era-exact"
    distribution: DistributionName = "truncated"
    log_std_min: float = -8.0
    log_std_max: float = 0.0

    def __post_init__(self) -> None:
        for setting, names in (("head", HeadName), ("distribution", DistributionName)):
            if getattr(self, setting) not in get_args(names):
                raise ValueError(
                    f"{setting}={getattr(self, setting)!r} must be one of {', '.join(get_args(names))}"
                )
        if self.head == "era-exact" and not self.truncated:
            raise ValueError("head='era-exact' is solved for distribution='truncated': choose that, or head='era'")
        check = self.floor, self.action_dim, self.log_std_min, self.log_std_max
        if self.exact:
            targets.check_truncated_normal(*check, -1.0, 1.0)
        else:
            targets.check_gaussian(*check)
        if self.action_dim == 1 and self.head != "era-floor":
            warnings.warn(
                f"head={self.head!r} fixes σ where there is one action dimension: use 'era-floor'", stacklevel=3
            )

    @property
    def floor(self) -> float:
        """H0 in nats."""
        return targets.resolve(self.target_entropy, self.action_dim)

    @property
    def truncated(self) -> bool:
        """Whether actions are bounded to [-1, 1] by truncation."""
        return self.distribution == "truncated"

    @property
    def exact(self) -> bool:
        """Whether the floor is solved for the truncated policy."""
        return self.head != "era" and self.truncated

    def loc(self, mean: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
        """The mode of the policy, from the mean that the network puts out; half precision becomes float32."""
        mean = as_float(mean, "mean")  # tanh in bfloat16 is ±1, without a gradient, from a mean of 3.5
        return torch.tanh(mean) if self.truncated else mean

    def parameters(
        self, mean: Float[Tensor, "*batch D"], raw_log_std: Float[Tensor, "*batch D"]
    ) -> tuple[Float[Tensor, "*batch D"], Float[Tensor, "*batch D"]]:
        """Loc and log σ, before truncation, from the outputs of the network.

        Raises:
            ValueError: The outputs are of another number of action dimensions, for which the target is not.
        """
        if not mean.shape[-1] == raw_log_std.shape[-1] == self.action_dim:
            raise ValueError(
                f"mean {tuple(mean.shape)} and raw_log_std {tuple(raw_log_std.shape)} must end in "
                f"action_dim={self.action_dim}: let the network put out {2 * self.action_dim} numbers"
            )
        loc = self.loc(mean)
        options: dict[str, Any] = {
            "log_std_min": self.log_std_min,
            "log_std_max": self.log_std_max,
            "mode": "floor" if self.head == "era-floor" else "pin",
        }
        if self.exact:
            return loc, F.era_truncated_normal(loc, raw_log_std, self.floor, **options)
        return loc, F.era_gaussian(raw_log_std, self.floor, **options)

    def distribution_of(
        self, loc: Float[Tensor, "*batch D"], log_std: Float[Tensor, "*batch D"]
    ) -> TruncatedNormal | Independent:
        """The distribution of these parameters; `log_prob` and `entropy` sum over the action."""
        scale = log_std.exp()
        return TruncatedNormal(loc, scale) if self.truncated else Independent(Normal(loc, scale), 1)

    def __call__(
        self, mean: Float[Tensor, "*batch D"], raw_log_std: Float[Tensor, "*batch D"]
    ) -> TruncatedNormal | Independent:
        """π(·|s) from the outputs of the network."""
        return self.distribution_of(*self.parameters(mean, raw_log_std))


@dataclass(frozen=True)
class CategoricalPolicy:
    """The map from logits to the distribution over discrete actions.

    Args:
        num_actions: n.
        min_entropy: The floor in nats, below log n; with `era` below what `targets.softmax_kappa_range` names.
        head: `era`: Eq. 15 as printed, whose floor is far above `min_entropy`. `era-exact` (*ours*): calibrated,
            the floor is `min_entropy`.

    Raises:
        ValueError: An unknown head, or a floor that is out of reach.

    Examples:
        >>> import torch
        >>> from entropyfloor.integrations.heads import CategoricalPolicy
        >>> policy = CategoricalPolicy(num_actions=4, min_entropy=0.5)(100 * torch.randn(256, 4))
        >>> bool((policy.entropy() > 0.5 - 1e-4).all())
        True
    """

    num_actions: int
    min_entropy: float
    head: Literal["era", "era-exact"] = "era-exact"

    def __post_init__(self) -> None:
        if self.head not in ("era", "era-exact"):
            raise ValueError(f"head={self.head!r} must be one of era, era-exact for discrete actions")
        targets.softmax_kappa_range(self.num_actions, self.min_entropy, 4.0, self._floor)

    @property
    def _floor(self) -> Literal["calibrated", "paper"]:
        return "calibrated" if self.head == "era-exact" else "paper"

    def __call__(
        self, logits: Float[Tensor, "*batch n"], mask: Bool[Tensor, "*batch n"] | None = None
    ) -> Categorical:
        """π(·|s) from the outputs of the network; `mask` is True for actions that are allowed."""
        return Categorical(logits=F.era_softmax(logits, self.min_entropy, floor=self._floor, mask=mask))
