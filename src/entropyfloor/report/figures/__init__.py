"""The figures of a page: what draws each, its caption, and its text for those who cannot see it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from matplotlib.figure import Figure

from entropyfloor.report.comparison import Comparison
from entropyfloor.report.figures import language, scores
from entropyfloor.report.figures.curves import CROWD
from entropyfloor.report.figures.style import Look
from entropyfloor.report.formats import bracketed, nats, plain, significant
from entropyfloor.report.fronts import front
from entropyfloor.report.groups import OUTSIDE, POINTS, RESPONSES, THRESHOLDS, Group
from entropyfloor.report.statistics import mean_interval
from entropyfloor.report.summary import sentence
from entropyfloor.report.verdicts import PARTS, in_parts


@dataclass(frozen=True)
class Kind:
    """A kind of figure."""

    name: str
    """Part of the file's name; the name of the score if empty."""
    draw: Callable[[Comparison, dict[str, Look]], Figure | None]
    """Draws the figure; returns None where there is nothing to draw."""
    caption: str
    """Text below the figure; `{domain}` stands for the words of the domain, as in `title`."""
    title: str
    """What the figure shows, for `alt`."""
    describe: Callable[[Group, Comparison], str]
    """What it shows of a group, for `alt`."""
    solved: bool = False
    """Whether it is about the share of problems that are solved; a page has these figures below the others."""

    def alt(self, comparison: Comparison) -> str:
        """Text instead of the figure, for those who cannot see it."""
        descriptions = [text for group in comparison.groups if (text := self.describe(group, comparison))]
        return f"{self.title.format(domain=comparison.domain)} on {comparison.env}. {'; '.join(descriptions)}."


def _score(group: Group, comparison: Comparison) -> str:
    domain = comparison.domain
    ends = mean_interval(group.values(domain.score)[:, -1])
    return f"{group.label} ended at {bracketed(ends, domain.decimals)}"


def _entropy(group: Group, comparison: Comparison) -> str:
    return sentence(group, comparison.domain).rstrip(".")


def _responses(group: Group, _: Comparison) -> str:
    entropy, low = group.end(RESPONSES), group.end(THRESHOLDS[0])
    if entropy is None:
        return ""
    return f"{group.label} ended at {nats(entropy)} nats" + ("" if low is None else f", its ω_low at {nats(low)}")


def _shares(group: Group, _: Comparison) -> str:
    below, above = (group.end(name) for name in OUTSIDE)
    if below is None or above is None:
        return ""
    return f"{group.label} ended with {plain(100 * below, 0)} % below and {plain(100 * above, 0)} % above"


def _tokens(group: Group, _: Comparison) -> str:
    top, bottom = (group.end(column.name) for column in language.TOKENS)
    if top is None or bottom is None:
        return ""
    return f"{group.label} ended at {significant(top)} nats, and at {significant(bottom)} in the others"


def _pass(group: Group, _: Comparison) -> str:
    if not (curve := group.pass_at):
        return ""
    shares = zip(curve.steps, curve.values.mean(axis=0), strict=True)
    return f"{group.label} has {', '.join(f'{plain(share, 1)} % for k = {k}' for k, share in shares)}"


def _front(group: Group, _: Comparison) -> str:
    if not group.front:
        return ""
    temperatures, counts, samples = group.front[:3]
    points = zip(temperatures, *(100 * values.mean(0) for values in front(counts, samples)), strict=True)
    return f"{group.label} has " + ", ".join(
        f"{plain(avg, 1)} % and {plain(solved, 1)} % at {each:g}" for each, avg, solved in points
    )


def _changes(group: Group, comparison: Comparison) -> str:
    if not (found := language.changes_of(comparison).get(group.label)):
        return ""
    first, mean = in_parts(found)
    points = zip(100 * first, 100 * mean.value, strict=True)
    return f"{group.label} has " + ", ".join(
        f"{plain(change, 1)} at {plain(rate, 1)} %" for rate, change in points
    )


def _histogram(group: Group, _: Comparison) -> str:
    if not (histogram := group.histogram(scores.ENTROPY_HISTOGRAM)):
        return ""
    peak = histogram["counts"].argmax()
    low, high = histogram["edges"][peak : peak + 2]
    return f"{group.label} has most from {nats(low)} to {nats(high)} nats"


_SEEDS = (
    "Thin lines: single seeds, if there are two, or if one went further than the rest. Bands are cut where they "
    f"leave the panel. With more than {CROWD} agents, intervals of the last values stand beside the panel instead."
)
_BLOCKS = f"Each point is the mean over a block of rollouts, where there are more than {POINTS}."

FIGURES = (
    Kind(
        "",
        scores.score_figure,
        "Learning curves: mean over n seeds with the 95\N{NO-BREAK SPACE}% interval of Student's t; where n = 2, "
        f"both seeds instead. {_SEEDS}",
        "Learning curves of {domain.score_label}",
        _score,
    ),
    Kind(
        "entropy",
        scores.entropy_figure,
        "Realised entropy: mean over {domain.places} (solid, with interval over seeds, or both), least over "
        f"{{domain.places}} and seeds (dashed). Shaded: below the floor. {_SEEDS}",
        "Realised entropy of the {domain.actor}",
        _entropy,
    ),
    Kind(
        "entropy",
        language.responses_figure,
        "Entropy of responses in training, of their top tokens. Black: the thresholds ω_low and, if it is "
        f"within the panel, ω_high of each agent that has them. {_BLOCKS} {_SEEDS}",
        "Entropy of responses in training",
        _responses,
    ),
    Kind(
        "pass",
        language.pass_figure,
        "Share of held-out problems that one of k responses solves, at the last step that all n seeds have: mean "
        "with interval over seeds. From entropyfloor evaluate, where it evaluated every run under the same "
        "conditions.",
        "Share of held-out problems that one of k responses solves",
        _pass,
        solved=True,
    ),
    Kind(
        "front",
        language.front_figure,
        "Share of held-out problems that one of k responses solves, against the share of right responses: a point "
        "for each temperature of entropyfloor evaluate --temperatures; the lowest and the highest are named.",
        "pass@k against avg@k at several temperatures",
        _front,
        solved=True,
    ),
    Kind(
        "changes",
        language.changes_figure,
        "Difference of avg@k to the baseline against avg@k before training, problem by problem, means over seeds: "
        f"means over {PARTS} equal parts of the held-out problems, the hardest first, and intervals over problems "
        f"(of more than {CROWD} agents none). Dots, where one agent is compared: single problems.",
        "avg@k minus that of the baseline against avg@k before training",
        _changes,
        solved=True,
    ),
    Kind(
        "thresholds",
        language.thresholds_figure,
        "Entropy of responses, with a panel for each agent, its thresholds and intervals over seeds. Shaded: "
        "below ω_low.",
        "Entropy of responses in training, each agent with its thresholds,",
        _responses,
    ),
    Kind(
        "shares",
        language.shares_figure,
        "Share of responses in training whose entropy is below ω_low, between, and above ω_high: mean over seeds. "
        f"Agents that do not use the thresholds are measured by them too. {_BLOCKS}",
        "Shares of responses in training outside of ω_low and ω_high",
        _shares,
    ),
    Kind(
        "tokens",
        language.tokens_figure,
        f"Entropy in training of the 20 % of all tokens with the highest, and of the others. {_BLOCKS} {_SEEDS}",
        "Entropy in training of the 20 % of all tokens with the highest, and of the others,",
        _tokens,
    ),
    Kind(
        "evaluation",
        scores.evaluation_figure,
        "The last checkpoints, evaluated by entropyfloor evaluate, all seeds together. Left: entropies; a marker "
        "is at each peak. Right: accuracy against confidence, in bins of at least 20 samples.",
        "Histogram of entropies of {domain.places}, and reliability diagram",
        _histogram,
    ),
)
