"""ERA in TorchRL: a module in the place of `NormalParamExtractor`, for actors of its losses for SAC and PPO."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from entropyfloor.extras import require

require("torchrl", "torchrl")

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.distributions import Distribution  # noqa: E402
from torchrl.modules import IndependentNormal  # noqa: E402

from entropyfloor.integrations.heads import DistributionName, GaussianPolicy, HeadName  # noqa: E402
from entropyfloor.torch.distributions import TruncatedNormal  # noqa: E402

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["ERAParamExtractor"]


class TruncatedAction(TruncatedNormal):
    """`TruncatedNormal` on [-1, 1] with TorchRL's names for actions without noise."""

    @property
    def deterministic_sample(self) -> Float[Tensor, "*batch D"]:
        """The mode."""
        return self.mode

    @property
    def median(self) -> Float[Tensor, "*batch D"]:
        """The action with half of the mass on either side, for each dimension."""
        below, above = self._mass_beside_loc()  # Φ((median - loc) / scale) = 1/2 + (above - below) / 2
        return (self.loc + self.scale * math.sqrt(2) * torch.erfinv(above - below)).clamp(self.low, self.high)


class ERAParamExtractor(nn.Module):
    """Loc and scale of a policy with a floor under its entropy, from the outputs of a network.

    Args:
        action_dim: D; the network puts out 2 D numbers, mean and raw log σ.
        target_entropy: H0 for the whole action: nats, or a rule in D such as `"-A/2"`.
        head: `era-exact`, `era` (the paper's) or `era-floor`, as in `GaussianPolicy`.
        distribution: `truncated`, for actions in [-1, 1], or `normal`. It decides `distribution_class`.
        log_std_min: Lower bound of log σ.
        log_std_max: Upper bound of log σ.

    Raises:
        ValueError: A target that is out of reach, an unknown name, or a pair that does not exist.

    Examples:
        >>> import torch
        >>> from entropyfloor.integrations.torchrl import ERAParamExtractor
        >>> extractor = ERAParamExtractor(action_dim=3, target_entropy="-A/2")
        >>> loc, scale = extractor(torch.randn(256, 6))
    """

    def __init__(
        self,
        action_dim: int,
        target_entropy: float | str,
        *,
        head: HeadName = "era-exact",
        distribution: DistributionName = "truncated",
        log_std_min: float = -8.0,
        log_std_max: float = 0.0,
    ) -> None:
        super().__init__()
        self.policy = GaussianPolicy(action_dim, target_entropy, head, distribution, log_std_min, log_std_max)

    @property
    def distribution_class(self) -> type[Distribution]:
        """The `distribution_class` for the actor that gets loc and scale."""
        return TruncatedAction if self.policy.truncated else IndependentNormal

    def forward(self, outputs: Float[Tensor, "*batch o"], *others: Tensor) -> tuple[Tensor, ...]:
        """Loc and scale before truncation, `[..., D]` each, and what else came with the outputs."""
        loc, log_std = self.policy.parameters(*outputs.chunk(2, -1))
        return loc, log_std.exp(), *others
