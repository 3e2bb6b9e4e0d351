"""What ours measured beside each figure and table of the paper, from `results/`, and the page of the docs.

    python examples/paper.py

writes `src/entropyfloor/recipes/measured.toml`, which `entropyfloor reproduce` shows, and `docs/paper.md`.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import tomli_w

from entropyfloor.experiments import paper
from entropyfloor.experiments.paper import Place
from entropyfloor.report.comparison import Comparison, read_comparisons
from entropyfloor.report.domains import Column, pass_at
from entropyfloor.report.formats import bracketed
from entropyfloor.report.groups import Group
from entropyfloor.report.statistics import mean_interval
from entropyfloor.report.tasks import aggregates
from entropyfloor.runs.archive import SUFFIX
from entropyfloor.runs.vocabulary import PASS_AT

ROOT = Path(__file__).parents[1]
MEASURED, PAGE = ROOT / "src/entropyfloor/recipes/measured.toml", ROOT / "docs/paper.md"
LABELS = {
    "response_entropy": Column("response_entropy", "Response entropy (nats)", decimals=2),
    "token_entropy/bottom": Column("token_entropy/bottom", "Entropy of the bottom 80 % of tokens (nats)"),
}
HEAD = """\
# The paper's figures and tables

Each figure and table of [arXiv 2510.08549](https://arxiv.org/abs/2510.08549): the recipes that draw it, what the
paper reports, and those of our runs that are most similar. Our tasks and models are smaller and our runs
shorter, so they neither confirm nor refute the paper. In names of arms `minus-0.5` is a target of −0.5 A nats.

    entropyfloor reproduce
    entropyfloor reproduce fig-3a --dry-run
    entropyfloor reproduce fig-3a --scale gpu

The first command prints this list, with the arms of each recipe; the second prints what would run. `--scale` is
`paper`, `gpu` or `cpu`. Figures share the runs of their recipes. [Recipes](run-directory.md#recipes) has more.

Our runs are from two CPU cores, except for plain TD-MPC2's; raw data is in `results/`. Brackets are 95 % intervals
over seeds (Student's t); hours are the sum over all runs, each on one core (those of plain TD-MPC2 shared a GPU).
Quantities that are logged in training (figures 18 to 20) are averaged from the last but one evaluation to the end.
The times of figures 15, 17 and 21 are from [benchmarks](benchmarks.md), with intervals over paired rounds.
Where "Published" has no number, the text of the paper that we have has none. That text lacks the captions of
figures 6 to 26: we placed a figure by what the text says of it, or else by the order of the text. Figures 6 and 7
are pictures of environments.
`make figures` writes this page from `recipes/paper.toml` and `results/`.
"""


def measured(place: Place) -> dict[str, str | float]:
    """Means of our runs over seeds, and the hours that they took; nothing where there are none."""
    if not place.ours:
        return {}
    comparisons = read_comparisons([ROOT / "results" / name for name in place.ours]).comparisons
    groups = [group for comparison in comparisons for group in comparison.groups]
    seconds = sum(float(seed.record.clock[1].max()) for group in groups for seed in group.seeds)
    return {
        "measured": "; ".join(
            [*(each for one in comparisons for each in _sentences(one, place)), *_over_tasks(comparisons, place)]
        ),
        "hours": round(seconds / 3600, 1),
    }


def _sentences(comparison: Comparison, place: Place) -> Iterator[str]:
    """The groups of an environment, in the order of the place, those with most seeds first."""
    domain, groups, column = comparison.domain, comparison.groups, _column(comparison, place)
    by_path = {group.seeds[0].record.path.parent.relative_to(ROOT / "results"): group for group in groups}
    paths = [path for path in map(Path, place.ours) if path in by_path]
    names = [path.name for path in paths]
    if len(set(names)) < len(names):
        names = ["/".join(path.parts[-2:]).replace(SUFFIX, "") for path in paths]
    where = f"{comparison.env}, {max(group.steps[-1] for group in groups):,} {domain.step_label.lower()}"
    for seeds in sorted({len(group.seeds) for group in groups}, reverse=True):
        listed = ", ".join(
            f"`{name}` {_value(by_path[path], column)}"
            for name, path in zip(names, paths, strict=True)
            if len(by_path[path].seeds) == seeds
        )
        yield f"{column.label} on {where}, {seeds} {'seed' if seeds == 1 else 'seeds'}: {listed}"


def _over_tasks(comparisons: Sequence[Comparison], place: Place) -> list[str]:
    """Interquartile means over the tasks of each suite, where the place is about them."""
    if not place.over_tasks:
        return []
    return [
        f"IQM of normalised return on {each.name}: "
        + ", ".join(f"`{row.arm.label}` {bracketed(row.statistics['iqm'], 2)}" for row in each.rows)
        for each in aggregates(comparisons)
    ]


def _column(comparison: Comparison, place: Place) -> Column:
    """What is compared: the score of the domain, or the quantity of the place."""
    if place.quantity is None:
        domain, samples = comparison.domain, comparison.groups[0].seeds[0].record.evaluation.get("samples", "k")
        label = domain.score_label.replace("@k", f"@{samples}")
        return Column(domain.score, label, domain.factor, 0 if domain.decimals is None else domain.decimals)
    if place.quantity.startswith(PASS_AT):
        return pass_at(place.quantity.removeprefix(PASS_AT))
    return LABELS[place.quantity]


def _value(group: Group, column: Column) -> str:
    """Mean at the end, by `entropyfloor evaluate` where that has measured it."""
    values = group.evaluated(column.name)
    if values is None and column.name in group.seeds[0].values:  # which are scaled already
        return bracketed(mean_interval(group.values(column.name)[:, -1]), column.decimals)
    values = group.last(column.name) if values is None else values
    if values is None:
        raise ValueError(f"{group.label}: no {column.name} at the end of {group.seeds[0].record.path}")
    return bracketed(mean_interval(column.factor * values), column.decimals)


def page() -> str:
    """The page of the docs."""
    return "\n".join([HEAD, *(_section(place) for place in paper.places().values() if place.recipes)])


def _section(place: Place) -> str:
    kind, number = place.name.split("-")
    title = f"{kind.replace('fig', 'figure').capitalize()} {number}"
    hours = f" ({place.hours:.1f} hours)" if place.hours else ""
    rows = {
        "Recipes": ", ".join(f"`{name}`" for name in place.recipes),
        "Runs": "; ".join(f"{scale}: {place.size(scale)}" for scale in place.scales),
        "Published": place.published,
        "Ours": f"{place.measured}{hours}" if place.scales else "",
        "Note": place.note,
    }
    lines = [f"- {name}: {text}" for name, text in rows.items() if text]
    return "\n".join([f"## {title}: {place.title}", "", *lines, ""])


def main() -> None:
    """Write both files."""
    table = {name: found for name, place in paper.places().items() if (found := measured(place))}
    MEASURED.write_text(table_text(table))
    paper.places.cache_clear()
    PAGE.write_text(page())
    print(f"{MEASURED}\n{PAGE}")


def table_text(table: dict[str, dict[str, str | float]]) -> str:
    """Content of `measured.toml`."""
    return "# Written by examples/paper.py from results/.\n\n" + tomli_w.dumps(table)


if __name__ == "__main__":
    main()
