"""What control hosts in JAX share: the policy behind a mean and a raw log σ for each action dimension."""

from __future__ import annotations

from entropyfloor import targets
from entropyfloor.control.heads import DistributionName, GaussianHeadName, GaussianPolicy

_REFUSED = {
    "shares": "takes two raw outputs for each action dimension, and the network has one",
    "era-batch": "acts by a running mean of its training batches, which the library does not keep",
}


def gaussian_policy(
    head: GaussianHeadName,
    distribution: DistributionName,
    action_dim: int,
    target_entropy: float | str,
    log_std_min: float,
    log_std_max: float,
) -> GaussianPolicy:
    """The policy with these arguments of `control.heads.GaussianPolicy`; the target may be a rule in D.

    Raises:
        ValueError: A target that is out of reach, an unknown head, or one that needs more than these outputs.
    """
    if head in _REFUSED:
        heads = "era-exact, era or era-floor" if distribution == "truncated" else "era or era-floor"
        raise ValueError(f"head={head!r} {_REFUSED[head]}: choose {heads}")
    target = targets.resolve(target_entropy, action_dim)
    return GaussianPolicy(head, distribution, action_dim, target, log_std_min, log_std_max)
