"""Settings described by their annotations: ranges, effects, and where they count."""

import importlib
import math
from dataclasses import dataclass, fields
from typing import Annotated, Literal

import pytest

from entropyfloor.runs import Run
from entropyfloor.runs.settings import (
    COUNT,
    NATURAL,
    SEED_RANGE,
    CountsIf,
    Effect,
    Range,
    changeable,
    check,
    check_counted,
    describe,
    not_results,
)

TINY = CountsIf("model='tiny'", lambda config: config.model == "tiny")


@dataclass(frozen=True)
class Config:
    model: str = "tiny"
    seed: Annotated[int, SEED_RANGE, Effect.IDENTITY] = 0
    steps: Annotated[int, COUNT] = 10
    layers: Annotated[int, COUNT, TINY] = 4
    rate: float = 0.1
    end: Annotated[float, Range(0, math.inf, "at least 0, or inf", finite=False)] = math.inf
    decay: Annotated[float | Literal["auto"] | None, NATURAL] = None
    data: Annotated[str | None, Effect.PLACE] = None
    questions: Annotated[str | None, Effect.FILE] = None
    device: Annotated[str, Effect.SPEED] = "auto"


@dataclass(frozen=True)
class Wider(Config):
    steps: Annotated[int, NATURAL] = 0
    threads: Annotated[int, NATURAL, Effect.SPEED] = 1


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"seed": 2**32 - 1},
        {"decay": 0},
        {"decay": "auto"},
        {"decay": None},
        {"rate": 1},
        {"rate": -3.5},
        {"data": "ω/…"},
    ],
)
def test_values_of_their_type_and_range_pass(settings):
    check(Config(**settings))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("seed", value) for value in (-1, 2**32, 0.5, True, "0")),
        *(("steps", value) for value in (0, -1, 10**12, 10**20, 10**400, None)),
        *(("rate", value) for value in (float("inf"), float("nan"), "much", False, 10**400)),
        *(("end", value) for value in (float("nan"), -1.0)),
        *(("decay", value) for value in (-0.1, float("inf"), "none")),
        *(("data", value) for value in ("", "a\0b", "a\x1bb", "\udcff", 3, False)),
    ],
)
def test_a_value_of_another_type_or_out_of_range_is_named(name, value):
    with pytest.raises(ValueError, match=f"{name}="):
        check(Config(**{name: value}))


def test_a_class_below_has_the_descriptions_of_its_own_annotations():
    check(Wider(steps=0))
    assert describe(Wider)["layers"].counts_if is TINY
    assert describe(Wider)["steps"].range is NATURAL


def test_effects_say_what_a_resume_may_change_and_what_changes_no_result():
    assert changeable(Config) == ["data", "questions", "device"]
    assert not_results(Config) == ["seed", "data", "device"]
    assert changeable(Wider) == ["data", "questions", "device", "threads"]


def test_a_setting_that_has_no_effect_is_refused_with_its_condition():
    check_counted(Config(layers=8))
    check_counted(Config(model="other"))
    with pytest.raises(ValueError, match=r"layers=8 would be ignored without model='tiny'"):
        check_counted(Config(model="other", layers=8))


@pytest.mark.parametrize("domain", ["control", "vision", "language"])
def test_every_trainer_refuses_to_resume_with_settings_that_change_results(domain, tmp_path):
    trainer = importlib.import_module(f"entropyfloor.{domain}.train")
    run = Run.create(tmp_path / "run", {"domain": domain, "agent": "sac"})
    with pytest.raises(ValueError, match="keeps its learning_rate, nothing"):
        trainer.resume(run.path, learning_rate=0.5, threads=1, nothing=0)


@pytest.mark.parametrize(
    ("module", "name", "some"),
    [
        ("control.config", "SACConfig", {"threads", "checkpoint_every"}),
        ("control.config", "PPOConfig", {"threads", "checkpoint_every"}),
        ("vision.config", "VisionConfig", {"threads", "workers", "data_dir", "ood_dir", "checkpoint_every"}),
        (
            "language.config",
            "LanguageConfig",
            {"threads", "device", "sample_batch", "micro_batch", "gradient_checkpointing", "data", "test_data"},
        ),
    ],
)
def test_every_trainer_says_which_settings_do_not_change_results(module, name, some):
    kind = getattr(__import__(f"entropyfloor.{module}", fromlist=[name]), name)
    assert some <= set(changeable(kind))
    assert {"seed", "out", "recipe"} <= set(not_results(kind)) - set(changeable(kind))
    assert set(not_results(kind)) <= {field.name for field in fields(kind)}
