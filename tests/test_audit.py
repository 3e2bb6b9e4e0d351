"""Audits: statistics, verdict, page and command, the same for every kind of model."""

import json
import math

import numpy as np
import pytest
import torch
from scipy import stats

import reference
from entropyfloor import audit
from entropyfloor.audit import gaussian
from entropyfloor.audit.logits import gap_of, saturation
from entropyfloor.audit.samples import Further, Samples, Saturation, Spread
from entropyfloor.cli import main
from entropyfloor.torch import distributions


def samples(entropy, **more):
    entropy = np.asarray(entropy, float)
    return Samples("model", "states", "a policy", entropy, [f"state {i}" for i in range(len(entropy))], **more)


# --- verdict ---------------------------------------------------------------------------------------------


def test_a_broken_floor_says_by_how_much_and_in_what_share():
    result = audit.summarise(samples([0.0, 1.0, 2.0, 3.0]), floor=1.5)
    assert result.verdict == (
        "the floor of 1.5 nats is broken by 1.500 nats at most, in 50 % of 4 states: 0.000 nats at the least"
    )
    with pytest.raises(audit.BrokenFloorError, match=r"^model: the floor of 1\.5 nats is broken by 1\.500 nats"):
        result.check()
    content = result.as_json()
    assert (content["holds"], content["broken_share"], content["broken_by"]) == (False, 0.5, 1.5)


@pytest.mark.parametrize(
    ("floor", "own", "holds"),
    [
        (None, None, None),
        (None, 1.0, True),
        (None, 1.1, False),
        (1.0005, None, True),
        (1.002, None, False),
        (0.5, 9.0, True),
    ],
)
def test_the_floor_is_the_one_given_or_the_models_own(floor, own, holds):
    result = audit.summarise(samples([1.0, 2.0], floor=own), floor)
    assert result.holds is holds
    assert result.floor == (own if floor is None else floor)


def test_statistics_are_those_of_numpy():
    values = np.random.default_rng(0).normal(size=1000)
    content = audit.summarise(samples(values)).as_json()
    described = content["realised_entropy"]
    assert described["mean"] == pytest.approx(values.mean())
    assert described["q05"] == pytest.approx(np.quantile(values, 0.05))
    assert (described["min"], described["max"]) == (values.min(), values.max())
    assert sum(content["histogram"]["counts"]) == 1000
    assert [row["label"] for row in content["worst"]] == [f"state {i}" for i in np.argsort(values)[:10]]
    assert content["floor"] is None
    assert "broken_share" not in content


@pytest.mark.parametrize(("entropy", "message"), [([], "no states"), ([1.0, math.nan], "not finite in 1 of 2")])
def test_what_cannot_be_measured_is_refused(entropy, message):
    with pytest.raises(ValueError, match=message):
        samples(entropy)


def test_a_floor_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="floor=nan must be a number"):
        audit.summarise(samples([1.0]), math.nan)
    with pytest.raises(ValueError, match="floor=nan must be a number"):  # which nothing would be below
        audit.summarise(samples([1.0], floor=math.nan))


# --- Gaussians -------------------------------------------------------------------------------------------

LOC = np.array([[0.0, 0.4, -0.95], [0.9999, -0.2, 0.3]])
SCALE = np.array([[0.3, 1.7, 0.02], [0.01, 4e-4, 7.4]])


@pytest.mark.parametrize("name", ["normal", "tanh", "truncated"])
def test_entropies_are_those_of_the_reference(name):
    found = gaussian.entropy(name, LOC, SCALE)
    if name == "normal":
        expected = [
            sum(stats.norm.entropy(m, s) for m, s in zip(*row, strict=True))
            for row in zip(LOC, SCALE, strict=True)
        ]
    elif name == "truncated":
        expected = reference.truncated_normal_entropy(LOC, np.log(SCALE)).sum(-1)
    else:
        expected = reference.tanh_normal_entropy(LOC, np.log(SCALE)).sum(-1)
    assert found == pytest.approx(np.asarray(expected), abs=1e-6)


@pytest.mark.parametrize("name", ["tanh", "truncated"])
def test_spread_and_saturation_are_those_of_samples(name):
    kind = distributions.TanhNormal if name == "tanh" else distributions.TruncatedNormal
    torch.manual_seed(0)
    drawn = kind(torch.tensor(LOC), torch.tensor(SCALE)).sample((400_000,)).numpy()
    assert gaussian.spread(name, LOC, SCALE) == pytest.approx(drawn.std(0), rel=6e-3)
    edge = (np.abs(drawn) >= gaussian.EDGE).mean((0, -1))
    assert gaussian.saturated(name, LOC, SCALE) == pytest.approx(edge, abs=2e-3)


def test_the_spread_of_a_truncated_normal_is_that_of_scipy():
    low, high = (-1 - LOC) / SCALE, (1 - LOC) / SCALE
    expected = stats.truncnorm.std(low, high, LOC, SCALE)
    assert gaussian.spread("truncated", LOC, SCALE) == pytest.approx(expected, rel=1e-6)


def test_a_normal_action_is_saturated_where_the_environment_clips_it():
    share = gaussian.saturated("normal", np.array([[2.0, 0.0]]), np.array([[1.0, 1.0]]), -2.0, 2.0)
    edges = stats.norm.sf(-0.02) + stats.norm.cdf(-3.98), 2 * stats.norm.sf(1.98)
    assert share == pytest.approx([sum(edges) / 2])


def test_logits_are_saturated_where_the_largest_are_far_apart():
    gap = gap_of(np.array([[0.0, 12.0, 1.0], [3.0, 2.0, -9.0]]))
    assert gap.tolist() == [11.0, 1.0]
    assert saturation(gap)["saturation"].shares.tolist() == [1.0, 0.0]


# --- the page --------------------------------------------------------------------------------------------


def test_the_page_has_the_numbers_and_loads_nothing(tmp_path):
    spread = Spread(np.array([[0.1, 0.2], [0.3, 0.4]]), "actions in [-1, 1]")
    saturated = Saturation(np.array([0.0, 0.5]), "at a bound")
    measured = samples([-4.0, -2.0], spread=spread, saturation=saturated, numbers={"return": 12.5})
    page = audit.write_page(audit.summarise(measured, floor=-3.0), tmp_path / "out").read_text()
    for text in ("The floor is broken", "\N{MINUS SIGN}4.000", "50 %", "component 1", "Return", "12.5", "state 0"):
        assert text in page
    assert "http" not in page.replace("http-equiv", "")
    content = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert content["action_std"]["mean"] == pytest.approx([0.2, 0.3])
    assert content["saturated"] == {"meaning": "at a bound", "mean": 0.25, "max": 0.5}
    assert content["worst"][0] == {
        "label": "state 0",
        "realised_entropy": -4.0,
        "least_action_std": 0.1,
        "saturated": 0.0,
    }


def test_labels_are_text_and_no_markup(tmp_path):
    entropy = np.array([1.0])
    measured = Samples(
        "<b>", "responses", "responses", entropy, ["<script>[red]"], further=[Further("t", "T", entropy)]
    )
    result = audit.summarise(measured)
    assert "<script>" not in audit.write_page(result, tmp_path).read_text()
    from rich.console import Console

    console = Console(width=200)
    with console.capture() as shown:
        console.print(audit.table(result))
    assert "<script>[red]" in shown.get()


def test_no_label_is_a_command_of_the_terminal():
    from rich.console import Console

    result = audit.summarise(Samples("m", "responses", "responses", np.array([1.0]), ["\x1b]0;title\x07\x1b[2J"]))
    console = Console(width=200)
    with console.capture() as shown:
        console.print(audit.table(result))
    assert r"\x1b]0;title\x07\x1b[2J" in shown.get()
    assert "\x1b" not in shown.get()


# --- the command -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["absent"], "no run in absent"),
        (["--floor", "1"], "no run directory is given"),
        (["policy", "absent.zip", "--observations", "o.npy"], "absent.zip is no file"),
        (["language", "absent", "--prompts", "absent.txt"], "absent.txt is no file"),
        (["language", "absent"], "give either --prompts"),
        (["language", "absent", "--floor", "nan"], "floor=nan must be a number"),  # before anything is measured
        (["language", "absent", "--out", "/dev/null"], "out=/dev/null must be a directory"),
        (["language", "absent", "--out", "/dev/null/a"], "out=/dev/null/a must be a directory"),
        (["classifier", "resnet18", "absent"], "resnet18 needs weights"),
        (["classifier", "resnet19", ".", "--pretrained"], "timm has no model 'resnet19'"),
    ],
)
def test_a_refusal_is_one_line(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["audit", *words]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err
    assert not list(tmp_path.iterdir())
