"""The table of fronts and the changes of avg@k: what is paired with what, and what is refused."""

import csv
import json

import numpy as np
import pytest

from entropyfloor.cli import main
from entropyfloor.report import verdicts, write_report
from entropyfloor.report.comparison import read_comparisons
from entropyfloor.report.figures.language import changes_figure, changes_of
from entropyfloor.report.figures.style import looks
from entropyfloor.report.fronts import LEVEL, compare
from entropyfloor.runs import Run

SAMPLES, PROBLEMS = 8, 24
TEMPERATURES = (0.5, 1.0)
KEYS = [f"problem {i}" for i in range(PROBLEMS)]
NARROW = np.where(np.arange(PROBLEMS) < 8, 6, 0)
BROAD = np.where(np.arange(PROBLEMS) < 20, 4, 0)


def evaluated(root, agent, counts, seed=0, *, temperatures=TEMPERATURES, keys=KEYS, steps=4, loss=0.5, **changed):
    """A run whose model has these counts at all temperatures; `keys` None is a version that wrote none."""
    config = {"domain": "language", "agent": agent, "steps": steps, "seed": seed}
    config["env"] = changed.pop("env", "countdown-3 tiny")
    config["model"] = changed.pop("model", "tiny")
    run = Run.create(root / f"{agent}-{steps}" / str(seed), config)
    with run.recording():
        run.log(0, {"loss/warm_start": loss})
        for step in {0, steps}:
            run.log(step, {"avg_at_k": 0.5, "realised_entropy": 0.5, "realised_entropy/min": 0.0})
    counts = [int(count) for count in counts]
    run.keep_evaluation(
        {
            "step": steps,
            "samples": SAMPLES,
            "temperature": 1.0,
            "asked": 7,
            "correct": counts,
            "values": {},
            "front": [{"temperature": each, "correct": counts} for each in temperatures],
            **({} if keys is None else {"problem_keys": keys}),
            **changed,
        }
    )
    return run.path


def table(root, baseline=None):
    """The rows of the only comparison."""
    [comparison] = read_comparisons([root], baseline).comparisons
    return verdicts.rows(comparison)


def test_the_report_shows_which_agent_wins_both(tmp_path, capsys):
    evaluated(tmp_path / "runs", "grpo", NARROW)
    evaluated(tmp_path / "runs", "grpo-era", BROAD)
    evaluated(tmp_path / "runs", "grpo-bonus", NARROW)
    assert main(["report", str(tmp_path / "runs"), "--out", str(tmp_path / "report")]) == 0
    head, names, bonus, era, page = capsys.readouterr().out.splitlines()
    assert head == "fronts on countdown-3 tiny against grpo, differences in points"
    assert names.split()[:3] == ["agent", "n", "T"]
    assert page.startswith("page: ")
    assert bonus.split() == ["grpo-bonus", "1", "0.5", "0.5", *["0.0", "[0.0,", "0.0]"] * 3, "no"]
    assert era.split()[:4] == ["grpo-era", "1", "0.5", "0.5"]
    assert era.split()[-1] == "yes"
    html = (tmp_path / "report" / "index.html").read_text()
    assert "Fronts: each agent minus grpo" in html
    assert '<td class="number">yes</td>' in html
    lines = [*csv.DictReader((tmp_path / "report" / "fronts.csv").read_text().splitlines())]
    assert [(line["label"], line["wins_both"]) for line in lines] == [
        ("grpo-bonus", "False"),
        ("grpo-era", "True"),
    ]
    counts = np.array([[[NARROW] * 2], [[BROAD] * 2]])
    expected = compare(counts[1], counts[0], np.array(TEMPERATURES), SAMPLES)
    assert float(lines[1]["avg"]) == expected.avg.value > LEVEL
    assert float(lines[1]["solved_low"]) == expected.solved.low > 0
    assert (lines[1]["seeds"], lines[1]["problems"], lines[1]["samples"]) == ("1", "24", "8")


def test_without_fronts_there_is_no_table(tmp_path, capsys):
    for agent in ("grpo", "grpo-era"):
        evaluated(tmp_path / "runs", agent, NARROW, front=[])
    main(["report", str(tmp_path / "runs"), "--out", str(tmp_path / "report")])
    assert capsys.readouterr().out.startswith("page: ")
    assert not (tmp_path / "report" / "fronts.csv").exists()


def test_any_agent_can_be_the_baseline(tmp_path, capsys):
    evaluated(tmp_path, "grpo", NARROW)
    evaluated(tmp_path, "grpo-era", BROAD)
    [row] = table(tmp_path, "grpo-era")
    assert (row.label, row.baseline, row.verdict.wins_both) == ("grpo", "grpo-era", False)
    assert row.verdict.avg.value == pytest.approx(-table(tmp_path)[0].verdict.avg.value)
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "report"), "--baseline", "gspo"]) == 2
    assert "baseline='gspo' must be one of grpo, grpo-era" in capsys.readouterr().err


def test_where_the_baseline_is_not_the_usual_one_counts(tmp_path):
    evaluated(tmp_path / "small", "grpo", NARROW)
    evaluated(tmp_path / "small", "grpo-era", BROAD)
    evaluated(tmp_path / "large", "grpo", NARROW, env="countdown-4 tiny")
    evaluated(tmp_path / "large", "gspo", BROAD, env="countdown-4 tiny")
    found = read_comparisons([tmp_path], "gspo").comparisons
    assert [comparison.baseline.label for comparison in found] == ["grpo", "gspo"]
    evaluated(tmp_path / "large", "gspo", BROAD, env="countdown-4 tiny", steps=5)  # which of the two is not said
    with pytest.raises(ValueError, match="baseline='gspo' must be one of"):
        read_comparisons([tmp_path], "gspo")
    evaluated(tmp_path / "other", "gspo", BROAD, env="countdown-5 tiny")
    assert [
        comparison.baseline and comparison.baseline.label
        for comparison in read_comparisons([tmp_path], "gspo").comparisons
    ] == ["grpo", None, "gspo"]


def test_a_baseline_with_several_settings_is_named_by_its_label(tmp_path):
    evaluated(tmp_path, "grpo", NARROW)
    evaluated(tmp_path, "grpo", NARROW, steps=5)
    evaluated(tmp_path, "grpo-era", BROAD)
    assert table(tmp_path) == []
    assert [row.label for row in table(tmp_path, "grpo, steps=4")] == ["grpo, steps=5", "grpo-era"]
    with pytest.raises(ValueError, match=r"baseline='grpo' must be one of grpo, steps=4, grpo, steps=5, grpo-era"):
        table(tmp_path, "grpo")


def test_problems_are_paired_by_their_keys(tmp_path):
    order = np.random.default_rng(0).permutation(PROBLEMS)
    evaluated(tmp_path, "grpo", NARROW)
    evaluated(tmp_path, "grpo-era", NARROW[order], keys=[KEYS[i] for i in order])
    [row] = table(tmp_path)
    assert row.verdict.avg == row.verdict.solved == row.verdict.area == (0.0, 0.0, 0.0)
    assert row.remarks == ""


def test_of_other_problems_those_that_both_were_asked_count(tmp_path):
    evaluated(tmp_path, "grpo", NARROW)
    evaluated(tmp_path, "grpo-era", BROAD[4:], keys=KEYS[4:], asked=8)
    [comparison] = read_comparisons([tmp_path]).comparisons
    grpo, era = comparison.groups
    paired = verdicts.pair(era, grpo)
    assert paired.counts[:, 0, 0].tolist() == [BROAD[4:].tolist(), NARROW[4:].tolist()]
    assert paired.remarks == ("on the 20 problems that all were asked",)


def test_seeds_and_temperatures_that_both_have_count(tmp_path):
    for seed in range(3):
        evaluated(tmp_path, "grpo", NARROW + (NARROW > 0) * (seed == 1), seed, temperatures=(0.3, 0.5, 1.0))
    evaluated(tmp_path, "grpo-era", BROAD, 1)
    evaluated(tmp_path, "grpo-era", BROAD, 2, front=[])
    [comparison] = read_comparisons([tmp_path]).comparisons
    grpo, era = comparison.groups
    paired = verdicts.pair(era, grpo)
    assert (paired.seeds, paired.temperatures.tolist()) == ([1], [0.5, 1.0])
    assert paired.counts[1, 0, 0].max() == 7
    assert paired.remarks == (
        "without seeds 0, 2, for which not both have a front",
        "without T = 0.3, which not all have",
    )


@pytest.mark.slow_but_first
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"seed": 1},
            "it has fronts for seeds 1, the baseline for 0: evaluate the same seeds with --temperatures",
        ),
        ({"temperatures": (0.25, 1.0)}, "both have T = 1 only, and a front needs 2 temperatures: evaluate both"),
        ({"step": 2}, "the runs were evaluated at steps 2 and 4: evaluate them alike"),
        ({"step": None}, "the runs were evaluated at steps 4 and None: evaluate them alike"),
        ({"samples": 16}, "the runs have --samples 16 and 8: evaluate them alike"),
        (
            {"keys": [f"other {key}" for key in KEYS]},
            "no problem was asked of all runs: evaluate them on the same",
        ),
        (
            {"keys": [KEYS[0], *(f"other {key}" for key in KEYS[1:])]},
            "the runs have 1 problem in common, and three are needed, one to choose the temperatures and two",
        ),
        (
            {"keys": [*KEYS[:2], *(f"other {key}" for key in KEYS[2:])]},
            "the runs have 2 problems in common, and three are needed",
        ),
        ({"keys": None, "asked": 8}, "the runs were asked different problems, and not all name them"),
        ({"keys": None, "asked": None}, "the runs were asked different problems, and not all name them"),
    ],
)
def test_what_cannot_be_compared_says_why(changed, message, tmp_path):
    evaluated(tmp_path, "grpo", NARROW)
    evaluated(tmp_path, "grpo-era", BROAD, **changed)
    [row] = table(tmp_path)
    assert row.verdict is None
    assert row.cells()[-1].startswith(f"not compared: {message}")
    write_report([tmp_path], tmp_path / "report")
    assert f"not compared: {message}" in (tmp_path / "report" / "index.html").read_text()


def test_evaluations_without_keys_are_paired_in_their_order(tmp_path):
    evaluated(tmp_path, "grpo", NARROW, keys=None)
    evaluated(tmp_path, "grpo-era", BROAD, keys=None)
    evaluated(tmp_path / "keys", "grpo", NARROW)
    evaluated(tmp_path / "keys", "grpo-era", BROAD)
    for path in (tmp_path / "grpo-4", tmp_path / "keys" / "grpo-4"):
        assert ("problem_keys" in json.loads((path / "0" / "evaluation.json").read_text())) == (
            "keys" in path.parts
        )
    [unnamed] = verdicts.rows(read_comparisons([tmp_path / "grpo-4", tmp_path / "grpo-era-4"]).comparisons[0])
    assert unnamed == table(tmp_path / "keys")[0]


@pytest.mark.slow
def test_changes_are_those_of_each_problem_since_training_began(tmp_path):
    first = np.arange(PROBLEMS) // 3
    for seed, more in ((0, 0), (1, 2)):
        evaluated(tmp_path, "grpo", NARROW, seed)
        evaluated(tmp_path, "grpo-era", BROAD + more * (BROAD > 0), seed)
        evaluated(tmp_path, "grpo", first[::-1], seed, steps=0, keys=KEYS[::-1], front=[])
    [comparison] = read_comparisons([tmp_path]).comparisons
    grpo, era = comparison.groups
    assert [run.number for run in comparison.untrained] == [0, 1]
    changes = verdicts.changes(era, grpo, comparison.untrained)
    np.testing.assert_allclose(changes.first, first / SAMPLES)
    np.testing.assert_allclose(changes.difference, (BROAD + (BROAD > 0) - NARROW) / SAMPLES)
    assert changes.seeds == 2
    rates, mean = verdicts.in_parts(changes)
    np.testing.assert_allclose(rates, (first / SAMPLES).reshape(verdicts.PARTS, -1).mean(1))
    np.testing.assert_allclose(mean.value, changes.difference.reshape(verdicts.PARTS, -1).mean(1))
    [axes] = changes_figure(comparison, looks([comparison])).axes
    assert axes.get_title("left") == "avg@k minus that of grpo (points)"
    _, drawn = axes.lines
    np.testing.assert_allclose(drawn.get_xydata(), 100 * np.stack([rates, mean.value], 1))
    page = write_report([tmp_path], tmp_path / "report").read_text()
    assert "avg@k minus that of the baseline against avg@k before training" in page
    assert "before training" in (tmp_path / "report" / "table.csv").read_text()


def test_an_agent_that_was_asked_other_problems_costs_the_others_no_figure(tmp_path):
    evaluated(tmp_path, "grpo", NARROW)
    evaluated(tmp_path, "grpo-era", BROAD)
    evaluated(tmp_path, "gspo", BROAD, keys=[f"other {key}" for key in KEYS], asked=9)
    evaluated(tmp_path, "grpo", NARROW, steps=0)
    [comparison] = read_comparisons([tmp_path]).comparisons
    assert [*changes_of(comparison)] == ["grpo-era"]


@pytest.mark.parametrize("other", [{"loss": 0.25}, {"model": "large"}, {"seed": 1}, {"temperature": 0.5}])
def test_an_evaluation_of_another_beginning_says_nothing(other, tmp_path):
    evaluated(tmp_path, "grpo", NARROW)
    evaluated(tmp_path, "grpo-era", BROAD)
    evaluated(tmp_path, "grpo", BROAD, steps=0, **other)
    [comparison] = read_comparisons([tmp_path]).comparisons
    assert changes_figure(comparison, looks([comparison])) is None


def test_runs_before_training_of_other_settings_are_no_duplicates(tmp_path):
    evaluated(tmp_path, "grpo", NARROW)
    evaluated(tmp_path, "grpo-era", BROAD)
    evaluated(tmp_path / "large", "grpo", NARROW, steps=0, model="large")
    evaluated(tmp_path / "tiny", "grpo", BROAD, steps=0)
    [comparison], left_out = read_comparisons([tmp_path])
    assert left_out == []
    grpo, era = comparison.groups
    np.testing.assert_allclose(verdicts.changes(era, grpo, comparison.untrained).first, BROAD / SAMPLES)
    evaluated(tmp_path / "again", "grpo", BROAD, steps=0)
    [comparison], [left_out] = read_comparisons([tmp_path])
    assert "are grpo, model=tiny before training on countdown-3 tiny with seed 0: keep one" in left_out
    assert [run.record.config["model"] for run in comparison.untrained] == ["large"]


def test_a_run_of_no_step_alone_is_drawn(tmp_path):
    evaluated(tmp_path, "grpo", NARROW, steps=0)
    [comparison] = read_comparisons([tmp_path]).comparisons
    assert [group.label for group in comparison.groups] == ["grpo"]
    assert comparison.untrained == ()
