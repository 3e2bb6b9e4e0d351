"""Normalised returns: constants of each suite, and the environments of the paper."""

from pathlib import Path

import numpy as np
import pytest

from entropyfloor.experiments import paper
from entropyfloor.report.normalised import normalised, scale_of


@pytest.mark.parametrize(
    ("env", "zero", "one"),
    [
        ("dmc/dog-run", 0, 1000),
        ("humanoid_bench/h1-walk-v0", 0, 700),
        ("humanoid_bench/h1-stand-v0", 0, 800),
        ("humanoid_bench/h1hand-balance_simple-v0", 0, 800),
        ("humanoid_bench/h1hand-push-v0", 0, 700),
        ("gym/HalfCheetah-v4", -280.178953, 12135.0),
        ("gym/Ant-v4", -325.6, 3879.7),
    ],
)
def test_what_counts_as_0_and_as_1(env, zero, one):
    np.testing.assert_allclose(normalised([zero, one, (zero + one) / 2], env), [0, 1, 0.5], rtol=1e-12)


def test_shapes_stay_and_returns_may_exceed_1():
    values = normalised(np.full((2, 3), 1400.0, np.float32), "humanoid_bench/h1-run-v0")
    assert values.shape == (2, 3)
    assert values.dtype == np.float64
    assert (values == 2).all()


def test_every_task_that_figure_2_averages_has_a_scale():
    parts = paper.find("fig-2")[0].parts("paper")
    envs = {run.settings["env"] for part in parts for run in part.runs("paper", Path("x"))}
    assert len(envs) == 6 + 6 + 8 + 4
    assert all(map(scale_of, envs))


@pytest.mark.parametrize("env", ["gym/Swimmer-v4", "gym/Ant-v5", "humanoid_bench/h1-kitchen-v0", "mine/x"])
def test_an_environment_without_a_source_is_named(env):
    assert scale_of(env) is None
    with pytest.raises(ValueError, match=f"returns of {env} have no scale"):
        normalised(1.0, env)
