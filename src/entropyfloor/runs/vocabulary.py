"""Names of all logged quantities: one flat vocabulary, so that a plot never asks which trainer wrote a run."""

import re
from typing import NamedTuple


class Quantity(NamedTuple):
    """Meaning and unit of a name."""

    label: str
    unit: str = ""

    @property
    def title(self) -> str:
        """Label, and the unit in brackets."""
        return f"{self.label} ({self.unit})" if self.unit else self.label


QUANTITIES: dict[str, Quantity] = {
    # evaluation
    "return": Quantity("Return"),
    "episode_length": Quantity("Episode length", "agent steps"),
    "train/return": Quantity("Return of the episodes that training played, with their exploration"),
    # entropy, always beside its floor
    "realised_entropy": Quantity("Realised entropy, mean over states or images", "nats"),
    "realised_entropy/min": Quantity("Realised entropy, least over states or images", "nats"),
    "realised_entropy/q05": Quantity("Realised entropy, 5 % quantile over states or images", "nats"),
    "floor": Quantity("Floor of the head", "nats"),
    "target_entropy": Quantity("Entropy that the loss steers to, on average", "nats"),
    "residual_entropy": Quantity("Residual entropy δ̂", "nats"),
    "clamped_share": Quantity("Share of the targets that are infeasible"),
    "clipped_share": Quantity("Share of log σ on its lower bound"),
    "alpha": Quantity("Temperature α"),
    # learning
    "loss/actor": Quantity("Loss of the actor"),
    "loss/critic": Quantity("Loss of the critics"),
    "loss/entropy_critic": Quantity("Loss of the critic of the trajectory's entropy"),
    "loss/inverse": Quantity("Negative log-likelihood of the inverse dynamics model", "nats"),
    "loss/consistency": Quantity("Error of predicted latent states"),
    "loss/reward": Quantity("Loss of predicted rewards"),
    "loss/termination": Quantity("Loss of predicted terminations"),
    "loss/behaviour_critic": Quantity("Loss of the critics of the behaviour policy"),
    "loss/behaviour_value": Quantity("Loss of the value of the behaviour policy"),
    "q/mean": Quantity("Mean Q of the batch"),
    "q/std": Quantity("Standard deviation of Q over the batch"),
    "q/scale": Quantity("Running scale of Q: the distance of its 5 % and 95 % quantile"),
    "q/behaviour_mean": Quantity("Mean Q of the behaviour policy over the batch"),
    "q/edge_share": Quantity("Share of the critics' targets on the edges of their support"),
    "cloning": Quantity("Whether the last update cloned the replay's actions: 1 or 0"),
    "policy_entropy": Quantity("Entropy of the policy that learns, mean over the batch", "nats"),
    "approx_kl": Quantity("KL divergence of an update, estimated", "nats"),
    "clip_fraction": Quantity("Share of samples whose ratio was clipped"),
    "explained_variance": Quantity("Share of the variance of returns that the value explains"),
    "learning_rate": Quantity("Learning rate"),
    "grad_norm/actor": Quantity("Gradient norm of the actor"),
    "grad_norm/model": Quantity("Gradient norm of the world model"),
    "grad_norm/critic": Quantity("Gradient norm of the critics"),
    # classification
    "top1": Quantity("Top-1 accuracy"),
    "top5": Quantity("Top-5 accuracy"),
    "nll": Quantity("Negative log-likelihood", "nats"),
    "brier": Quantity("Brier score"),
    "ece": Quantity("Expected calibration error"),
    "saturation": Quantity("Share of inputs whose two largest raw logits are more than 10 apart"),
    "auroc": Quantity("AUROC of confidence against out-of-distribution inputs"),
    "loss": Quantity("Training loss"),
    "train/top1": Quantity("Top-1 accuracy on the training images of an epoch, augmented, as it learns them"),
    # language
    "avg_at_k": Quantity("Share of correct responses to held-out problems"),
    "greedy": Quantity("Share of held-out problems whose likeliest response is correct"),
    "reward": Quantity("Mean reward of a rollout"),
    "usable_groups": Quantity("Share of prompts whose responses earned different rewards"),
    "response_length": Quantity("Length of responses in training", "tokens"),
    "response_length/eval": Quantity("Length of responses in an evaluation or audit", "tokens"),
    "ended": Quantity("Share of responses that ended before the limit"),
    "response_entropy": Quantity(
        "Mean entropy of a response's top tokens, by default 20 %: H_resp of Eq. 16", "nats"
    ),
    "response_entropy/smoothed": Quantity(
        "Moving average of the entropy of responses, which a controller holds", "nats"
    ),
    "response_entropy/below": Quantity("Share of responses below ω_low"),
    "response_entropy/above": Quantity("Share of responses above ω_high"),
    "token_entropy": Quantity("Mean entropy of a token", "nats"),
    "token_entropy/top": Quantity("Mean entropy of the top tokens, by default 20 % of all", "nats"),
    "token_entropy/bottom": Quantity("Mean entropy of the other tokens", "nats"),
    "omega_low": Quantity("Threshold ω_low", "nats"),
    "omega_high": Quantity("Threshold ω_high", "nats"),
    "min_entropy": Quantity("Entropy that a controller holds", "nats"),
    "scale": Quantity("Scale of the logits of responses with positive advantage, by a controller"),
    "entropy_coef": Quantity("Weight of the entropy bonus, by a controller"),
    "advantage_weight": Quantity("Weight of positive advantages, by a controller"),
    "scaled_share": Quantity("Share of responses whose logits are scaled in the update"),
    "clip_fraction/low": Quantity("Share of tokens clipped from below"),
    "clip_fraction/high": Quantity("Share of tokens clipped from above"),
    "ratio": Quantity("Mean ratio of the new policy to the old"),
    "grad_norm": Quantity("Gradient norm"),
    "loss/warm_start": Quantity("Negative log-likelihood at the end of the warm start", "nats"),
    "tokens_per_second": Quantity("Training tokens per second", "1/s"),
    # the machine
    "images_per_second": Quantity("Training images per second", "1/s"),
    "steps_per_second": Quantity("Environment steps per second", "1/s"),
    "peak_memory": Quantity("Largest memory of the process that trained", "GiB"),
    "peak_memory/device": Quantity("Largest memory of a device that the process used", "GiB"),
}
SCORES = {"control": "return", "vision": "top1", "language": "avg_at_k"}
"""Quantity of each domain that says how good a run is. An evaluation logs it with the realised entropy."""
PEAKS = ("peak_memory", "peak_memory/device")
"""What the status of a run says about its memory."""
TOLERANCE = 1e-3
"""Nats. A floor is broken where the realised entropy is below it by more than this."""
PASS_AT = "pass_at_"
PASS_AT_K = re.compile(f"{PASS_AT}([1-9][0-9]{{,8}})")
"""pass@k: the share of held-out problems that k responses solve, unbiased; one name for each k."""


def is_known(name: str) -> bool:
    """Whether a name is in the vocabulary."""
    return name in QUANTITIES or PASS_AT_K.fullmatch(name) is not None
