"""HumanoidBench behind the constructor, as its own files are."""

import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest

from entropyfloor.control.envs import make, names

needs_it = pytest.mark.skipif(
    importlib.util.find_spec("humanoid_bench") is None,
    reason="HumanoidBench is not installed: make('humanoid_bench/h1-walk-v0') says how to install it",
)


def without(*modules):
    """A program's beginning under which these modules are not installed."""
    return (
        "import importlib.util as u, sys\n"
        f"hidden = {modules!r}\n"
        "real = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name in hidden else real(name, *rest)\n"
        "sys.modules.update(dict.fromkeys(hidden))\n"
    )


def run(program, **environment):
    return subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **environment},
    )


@pytest.mark.slow
def test_where_it_is_absent_it_is_not_listed_and_the_way_to_install_it_is_said():
    program = without("humanoid_bench") + (
        "from entropyfloor.control.envs import make, names\n"
        "assert not [name for name in names() if name.startswith('humanoid_bench')]\n"
        "try:\n    make('humanoid_bench/h1-walk-v0')\n"
        "except ImportError as error:\n    print(error)\n"
    )
    done = run(program)
    assert "pip install --no-deps --editable humanoid-bench" in done.stdout, done.stderr
    assert done.stdout.count("\n") == 1


@needs_it
def test_listing_does_not_import_it():
    program = (
        "import sys\nfrom entropyfloor.control.envs import names\n"
        "assert 'humanoid_bench/h1-walk-v0' in names()\nassert 'humanoid_bench' not in sys.modules\n"
    )
    done = run(program)
    assert done.returncode == 0, done.stderr


@needs_it
def test_it_does_without_torch():
    program = without("torch") + (
        "from entropyfloor.control.envs import make\n"
        "env = make('humanoid_bench/h1-walk-v0')\nenv.reset()\nenv.step(env.action_space.sample())\n"
        "assert 'humanoid_bench.mjx.flax_to_torch' not in sys.modules\n"
    )
    done = run(program)
    assert done.returncode == 0, done.stderr


@needs_it
@pytest.mark.parametrize(
    ("task", "obs_dim", "action_dim"),
    [
        *[(f"h1-{task}-v0", 51, 19) for task in ("walk", "run", "crawl", "stand", "hurdle", "stair")],
        *[(f"h1hand-{task}-v0", 151, 61) for task in ("walk", "run", "hurdle", "stair", "slide", "pole")],
        ("h1hand-balance_simple-v0", 164, 61),
        ("h1hand-push-v0", 163, 61),
    ],
)
def test_tasks_of_the_paper_and_their_seeds(task, obs_dim, action_dim):
    name = f"humanoid_bench/{task}"
    assert name in names()
    env = make(name, seed=3, action_repeat=2, ignore_termination=True)
    assert env.action_space.shape == (action_dim,)
    assert (env.action_space.low == -1).all()
    assert (env.action_space.high == 1).all()
    actions = [env.action_space.sample() for _ in range(10)]

    def episode(env, seed=None):
        observations = [env.reset(seed=seed)[0]]
        for action in actions:
            observation, reward, terminated, truncated, _ = env.step(action)
            assert np.isfinite(reward)
            assert not terminated
            assert not truncated
            observations.append(observation)
        return np.array(observations)

    first = episode(env)
    assert first.shape == (11, obs_dim)
    assert first.dtype == np.float32
    assert np.isfinite(first).all()
    other = episode(env)
    np.testing.assert_array_equal(episode(env, seed=3), first)
    np.random.seed(8)  # noqa: NPY002  what others draw changes nothing
    again = make(name, seed=3, action_repeat=2, ignore_termination=True)
    np.testing.assert_array_equal(episode(again), first)
    assert (other[0] != first[0]).any()


@needs_it
@pytest.mark.parametrize(("task", "limit"), [("h1-walk-v0", 1000), ("h1-push-v0", 500)])
def test_the_time_limit_truncates(task, limit):
    """A walker that has fallen lies there to the end; the simulator stays sound."""
    env = make(f"humanoid_bench/{task}", seed=0, action_repeat=2, ignore_termination=True)
    env.reset()
    for step in range(limit // 2):
        observation, reward, terminated, truncated, _ = env.step(env.action_space.sample())
        assert not terminated
        assert truncated == (step == limit // 2 - 1)
    assert np.isfinite(observation).all()
    assert np.isfinite(reward)


@needs_it
def test_a_fall_terminates_unless_it_is_ignored():
    env = make("humanoid_bench/h1-walk-v0", seed=0)
    env.reset()
    for _ in range(300):
        *_, terminated, truncated, _ = env.step(np.zeros(19, np.float32))
        if terminated:
            break
    assert terminated
    assert not truncated


@needs_it
def test_nothing_outside_is_changed():
    """NumPy's generator, and the constants that G1 would overwrite for every robot."""

    def rewards(env):
        env.reset(seed=0)
        return [env.step(np.zeros(env.action_space.shape))[1] for _ in range(5)]

    h1 = make("humanoid_bench/h1-stand-v0")
    before, state = rewards(h1), np.random.get_state()[1].copy()  # noqa: NPY002
    g1 = make("humanoid_bench/g1-stand-v0")
    small = rewards(g1)
    assert rewards(h1) == before
    assert rewards(g1) == small
    make("humanoid_bench/h1-push-v0").reset()
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002
    locomotion = sys.modules["humanoid_bench.envs.basic_locomotion_envs"]
    assert locomotion._STAND_HEIGHT == 1.65


@needs_it
@pytest.mark.slow
@pytest.mark.parametrize("task", ["h1-walk-v0", "h1-push-v0"])
def test_pictures(task):
    program = (
        "from entropyfloor.control.envs import make\n"
        f"env = make('humanoid_bench/{task}')\nenv.reset()\n"
        "picture = env.render()\nprint(picture.shape, picture.dtype, picture.std() > 1)\nenv.close()\n"
    )
    for backend in ("egl", "osmesa"):
        done = run(program, MUJOCO_GL=backend)
        if done.returncode == 0:
            assert done.stdout.split("\n")[0] == "(256, 256, 3) uint8 True"
            return
    pytest.skip(f"no off-screen OpenGL here: {done.stderr.strip().splitlines()[-1]}")
