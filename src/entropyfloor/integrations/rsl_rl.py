"""ERA in rsl_rl: distributions for its PPO, named by `distribution_cfg={"class_name": …}`.

Actions are those of an unbounded Gaussian, as rsl_rl's are, in the units in which its policy acts. Only log σ
comes from a head, so that σ is positive and finite wherever the network's outputs are. Samples, log-probabilities,
the KL divergence of the adaptive learning rate and export are those of the host's classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from entropyfloor.extras import require

require("rsl", "rsl_rl")

import torch  # noqa: E402
from rsl_rl.modules.distribution import (  # noqa: E402
    GaussianDistribution,
    HeteroscedasticGaussianDistribution,
)
from torch import Tensor, nn  # noqa: E402
from torch.distributions import Normal  # noqa: E402

from entropyfloor.integrations.heads import GaussianPolicy  # noqa: E402

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["ERAGaussianDistribution", "ERAGlobalGaussianDistribution"]


class ERAGaussianDistribution(HeteroscedasticGaussianDistribution):
    """Gaussian whose σ depends on the state and whose entropy is at least the target in every state.

    Args:
        output_dim: D.
        target_entropy: H0 for the whole action: nats, or a rule in D such as `"-0.3*A"`.
        head: `era`, the entropy is the target, or `era-floor`, it may rise above.
        log_std_min: Lower bound of log σ.
        log_std_max: Upper bound of log σ.

    Raises:
        ValueError: A target that is out of reach, an unknown head, or an option of rsl_rl's such as `init_std`.

    Examples:
        >>> import torch
        >>> from entropyfloor.integrations.rsl_rl import ERAGaussianDistribution
        >>> distribution = ERAGaussianDistribution(12, target_entropy="-0.3*A")
        >>> distribution.update(torch.zeros(1, 2, 12))
        >>> round(distribution.entropy.item(), 4)
        -3.6
    """

    def __init__(self, output_dim: int, target_entropy: float | str, **options: Any) -> None:
        super().__init__(output_dim)
        self.policy = _policy(output_dim, target_entropy, **options)

    def update(self, mlp_output: Float[Tensor, "*batch 2 D"]) -> None:
        """Set π(·|s) from the outputs of the network: mean and raw log σ."""
        mean, log_std = self.policy.parameters(*mlp_output.unbind(-2))
        self._distribution = Normal(mean, log_std.exp())

    def init_mlp_weights(self, mlp: nn.Module) -> None:
        """Start with the same σ in every dimension and state, as rsl_rl does."""
        layer: Any = mlp[-2]  # type: ignore[index]
        nn.init.zeros_(layer.weight[self.output_dim :])
        nn.init.zeros_(layer.bias[self.output_dim :])


class ERAGlobalGaussianDistribution(GaussianDistribution):
    """Gaussian with one σ for all states, as rsl_rl's default, and an entropy of at least the target.

    A checkpoint has the learned `raw_log_std`, and beside it the `std` that acts, for whoever reads the file.

    Args:
        output_dim: D.
        target_entropy: H0 for the whole action: nats, or a rule in D such as `"-0.3*A"`.
        head: By default `era-floor`, with which the entropy may rise above the target; `era` leaves only D - 1
            numbers to learn.
        log_std_min: Lower bound of log σ.
        log_std_max: Upper bound of log σ.

    Raises:
        ValueError: A target that is out of reach, an unknown head, or an option of rsl_rl's such as `init_std`.

    Examples:
        >>> import torch
        >>> from entropyfloor.integrations.rsl_rl import ERAGlobalGaussianDistribution
        >>> distribution = ERAGlobalGaussianDistribution(12, target_entropy="-0.3*A")
        >>> distribution.update(torch.zeros(1, 12))
        >>> distribution.entropy.item() > -3.6
        True
    """

    def __init__(self, output_dim: int, target_entropy: float | str, **options: Any) -> None:
        super().__init__(output_dim, std_type="log")
        del self.log_std_param  # by that name a checkpoint would say that it is log σ
        self.raw_log_std = nn.Parameter(torch.zeros(output_dim))
        self.policy = _policy(output_dim, target_entropy, **{"head": "era-floor", **options})

    def update(self, mlp_output: Float[Tensor, "*batch D"]) -> None:
        """Set π(·|s) from the outputs of the network, the mean, and the raw log σ of all states."""
        mean, log_std = self.policy.parameters(mlp_output, self.raw_log_std)
        self._distribution = Normal(mean, log_std.exp().expand_as(mean))

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        raw = self.raw_log_std.detach()
        destination[f"{prefix}std"] = self.policy.parameters(torch.zeros_like(raw), raw)[1].exp()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        state_dict.pop(f"{prefix}std", None)
        super()._load_from_state_dict(state_dict, prefix, *args)


def _policy(
    output_dim: int,
    target_entropy: float | str,
    head: Any = "era",
    log_std_min: float = -8.0,
    log_std_max: float = 0.0,
    **others: Any,
) -> GaussianPolicy:
    if others:
        raise ValueError(
            f"leave out {', '.join(others)}: σ follows from target_entropy, head, log_std_min and log_std_max"
        )
    if head == "era-exact":
        raise ValueError(
            "head='era-exact' is solved for truncated actions, and rsl_rl's are not: choose era or era-floor"
        )
    return GaussianPolicy(output_dim, target_entropy, head, "normal", log_std_min, log_std_max)
