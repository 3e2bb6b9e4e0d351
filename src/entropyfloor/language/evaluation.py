"""What a model in training makes of held-out problems: numbers, their intervals, and responses to be read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from entropyfloor.language.benchmarks import scores
from entropyfloor.language.tasks import Problem


class Judgement(NamedTuple):
    """Responses to held-out problems, and what they are worth."""

    problems: Sequence[Problem]
    texts: Sequence[str]
    """Responses, those to the same problem one after the other."""
    rewards: np.ndarray
    """`[problems, samples]`."""
    greedy: np.ndarray
    """`[problems]`, of the likeliest response."""
    entropies: np.ndarray
    """`[problems * samples]`, of the responses, in nats: the mean of their tokens of highest entropy."""
    lengths: np.ndarray
    """`[problems * samples]`, in tokens."""

    @property
    def correct(self) -> np.ndarray:
        """`[problems, samples]`, whether a response is right."""
        found: np.ndarray = self.rewards >= 1.0
        return found

    def values(self) -> dict[str, float]:
        """Each quantity as a run records it."""
        return {name: score.value for name, score in self.scores().items()} | {
            "realised_entropy": float(self.entropies.mean()),
            "realised_entropy/min": float(self.entropies.min()),
            "realised_entropy/q05": float(np.quantile(self.entropies, 0.05)),
            "response_length/eval": float(self.lengths.mean()),
        }

    def scores(self) -> dict[str, scores.Score]:
        """avg@k, greedy accuracy and pass@k, with intervals over problems, which say nothing of other seeds."""
        correct = self.correct
        samples = correct.shape[1]
        curve = scores.pass_curve(samples, correct.sum(1))
        return {
            "avg_at_k": scores.accuracy(correct.mean(1)),
            "greedy": scores.accuracy(self.greedy >= 1.0),
            **{f"pass_at_{k}": score for k, score in curve.items()},
        }

    def told(self, count: int) -> str:
        """The responses to the first problems, with what each earned, to be read."""
        lines, samples = [], self.rewards.shape[1]
        for i, problem in enumerate(self.problems[:count]):
            lines.append(problem.prompt)
            said = self.texts[i * samples : (i + 1) * samples]
            lines += [f"  {earned:g}  {text}" for text, earned in zip(said, self.rewards[i], strict=True)]
        return "\n".join(lines) + "\n"
