"""ERA in skrl: a mixin in the place of `GaussianMixin`, for PyTorch models of its PPO, SAC and others."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from entropyfloor.extras import require

require("skrl", "skrl")

import torch  # noqa: E402
from gymnasium.spaces import Box  # noqa: E402
from skrl.models.torch import GaussianMixin  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.distributions import Normal  # noqa: E402

from entropyfloor.integrations.heads import DistributionName, GaussianPolicy, HeadName  # noqa: E402

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["ERAGaussianMixin"]


class ERAGaussianMixin(GaussianMixin):
    """Stochastic model with a floor under its entropy; `compute` puts out the mean and raw log σ.

    Log σ is neither clipped nor a parameter for all states: `compute` returns `mean, {"log_std": raw_log_std}`,
    both outputs of its network.

    Args:
        target_entropy: H0 for the whole action: nats, or a rule in the action dimension such as `"-A/2"`.
        head: `era-exact`, `era` (the paper's) or `era-floor`, as in `GaussianPolicy`.
        distribution: `truncated`, for actions in [-1, 1], or `normal`. skrl does not scale actions: a warning says
            so where the bounds of the action space are others.
        log_std_min: Lower bound of log σ.
        log_std_max: Upper bound of log σ.
        role: Role played by the model.

    Raises:
        TypeError: The action space is not a Box.
        ValueError: A target that is out of reach, an unknown name, or a pair that does not exist.

    Examples:
        >>> import gymnasium, skrl.models.torch as skrl, torch
        >>> from entropyfloor.integrations.skrl import ERAGaussianMixin
        >>> class Policy(ERAGaussianMixin, skrl.Model):
        ...     def __init__(self, space):
        ...         skrl.Model.__init__(self, observation_space=space, action_space=space, device="cpu")
        ...         ERAGaussianMixin.__init__(self, target_entropy="-A/2")
        ...         self.network = torch.nn.Linear(3, 6)
        ...     def compute(self, inputs, role):
        ...         mean, raw_log_std = self.network(inputs["observations"]).chunk(2, -1)
        ...         return mean, {"log_std": raw_log_std}
        >>> policy = Policy(gymnasium.spaces.Box(-1.0, 1.0, (3,)))
        >>> policy.act({"observations": torch.randn(8, 3)}, role="policy")[1]["log_prob"].shape
        torch.Size([8, 1])
    """

    def __init__(
        self,
        *,
        target_entropy: float | str,
        head: HeadName = "era-exact",
        distribution: DistributionName = "truncated",
        log_std_min: float = -8.0,
        log_std_max: float = 0.0,
        role: str = "",
    ) -> None:
        if not isinstance(self.action_space, Box):
            raise TypeError(
                f"actions must be a Box, not {self.action_space}: of discrete ones, pass skrl's CategoricalMixin "
                "the logits of entropyfloor.torch.functional.era_softmax"
            )
        super().__init__(clip_log_std=False, role=role)
        bounds = log_std_min, log_std_max
        self._era_policy = GaussianPolicy(self.num_actions, target_entropy, head, distribution, *bounds)
        self._entropy = torch.zeros((), device=self.device)  # as skrl's before the first act
        low, high = self._g_min_actions, self._g_max_actions  # None where unbounded
        if self._era_policy.truncated and low is not None and not (low == -1).logical_and(high == 1).all():
            warnings.warn(
                f"actions are truncated to [-1, 1], and the space is {self.action_space}: scale the environment's "
                "actions, as by gymnasium.wrappers.RescaleAction, or choose distribution='normal' and head='era'",
                stacklevel=2,
            )

    def act(self, inputs: dict[str, Any], *, role: str = "") -> tuple[Float[Tensor, "*batch D"], dict[str, Any]]:
        """A sample, and in the dictionary its `log_prob` `[B, 1]`, `mean_actions` without noise, and `log_std`.

        Raises:
            ValueError: `compute` does not return a raw log σ for each state.
        """
        mean, outputs = self.compute(inputs, role)
        if "log_std" not in outputs or outputs["log_std"].shape != mean.shape:
            raise ValueError('compute must return mean, {"log_std": raw_log_std}, both outputs of its network')
        loc, log_std = self._era_policy.parameters(mean, outputs["log_std"])
        acting = self._era_policy.distribution_of(loc, log_std)
        actions = acting.rsample()
        log_prob = acting.log_prob(inputs.get("taken_actions", actions))
        self._entropy = acting.entropy().unsqueeze(-1)
        self._g_distribution = Normal(loc, log_std.exp())  # before truncation: skrl logs its deviation
        return actions, outputs | {"log_prob": log_prob.unsqueeze(-1), "mean_actions": loc, "log_std": log_std}

    def get_entropy(self, *, role: str = "") -> Float[Tensor, "*batch 1"]:  # noqa: ARG002
        """Entropy of the policy that acts."""
        return self._entropy
