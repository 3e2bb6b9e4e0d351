"""Every kind of space of Gymnasium, as observations and as actions: played rightly, or refused by its name."""

from collections.abc import Iterable

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from entropyfloor.control.config import configure
from entropyfloor.control.envs import make
from entropyfloor.control.train import train

LOW, HIGH = np.array([-1.0, 0.0], np.float32), np.array([0.5, 2.0], np.float32)
FLOATS, INTEGERS = (
    ("float16", "float32", "float64"),
    ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32"),
)

ACTIONS = {
    **{f"Box {dtype}": spaces.Box(-2, 3, (2,), dtype) for dtype in FLOATS},
    **{f"Box {dtype}": spaces.Box(0, 3, (2,), dtype) for dtype in (*INTEGERS, "uint64")},
    "Box of signed integers": spaces.Box(-2, 1, (1,), np.int64),
    "Box of all bytes": spaces.Box(0, 255, (1,), np.uint8),
    "Box of bools": spaces.Box(0, 1, (3,), np.bool_),
    "Box of different bounds": spaces.Box(LOW, HIGH),
    "Box whose upper bound is a sum that rounds": spaces.Box(-0.1, 0.3, (1,), np.float64),
    "Box of one value": spaces.Box(1, 1, (2,)),
    "Box of rank 0": spaces.Box(-3, 3, ()),
    "Box of rank 0, integers": spaces.Box(0, 3, (), np.int32),
    "Box of rank 2": spaces.Box(-1, 4, (2, 3)),
    "Box of rank 3": spaces.Box(0, 2, (2, 1, 2), np.int8),
    "Discrete": spaces.Discrete(3),
    "Discrete that starts below 0": spaces.Discrete(3, start=-1),
    "Discrete that starts above 0": spaces.Discrete(4, start=7),
    "Discrete of bytes": spaces.Discrete(3, start=2, dtype=np.uint8),
}
NO_ACTIONS = {
    "Discrete of one": spaces.Discrete(1),
    "Box without bounds": spaces.Box(-np.inf, np.inf, (2,)),
    "Box with a lower bound": spaces.Box(0, np.inf, (2,)),
    "Box with one upper bound": spaces.Box(np.array([-1, -np.inf], np.float32), np.ones(2, np.float32)),
    "Box without bounds, integers": spaces.Box(-np.inf, np.inf, (2,), np.int32),
    "Box wider than float64": spaces.Box(-1e308, 1e308, (2,), np.float64),
    "Box of integers beyond float64": spaces.Box(0, 2**62, (1,), np.int64),
    "Box of nothing": spaces.Box(-1, 1, (0,)),
    "MultiDiscrete": spaces.MultiDiscrete([2, 3]),
    "MultiBinary": spaces.MultiBinary(4),
    "Tuple": spaces.Tuple([spaces.Discrete(2), spaces.Box(-1, 1, (1,))]),
    "Dict": spaces.Dict(move=spaces.Discrete(2)),
    "Text": spaces.Text(4),
    "Sequence": spaces.Sequence(spaces.Discrete(2)),
    "Graph": spaces.Graph(spaces.Box(0, 1, (2,)), spaces.Discrete(3)),
    "OneOf": spaces.OneOf([spaces.Discrete(2), spaces.Box(-1, 1, (1,))]),
}
OBSERVATIONS = {
    **{f"Box {dtype}": spaces.Box(0, 100, (3,), dtype) for dtype in (*FLOATS, *INTEGERS, "uint64")},
    "Box of bools": spaces.Box(0, 1, (3,), np.bool_),
    "Box without bounds": spaces.Box(-np.inf, np.inf, (3,), np.float64),
    "Box with a lower bound": spaces.Box(0, np.inf, (3,)),
    "Box of one value": spaces.Box(1, 1, (2,)),
    "Box of rank 0": spaces.Box(-3, 3, ()),
    "Box of rank 2": spaces.Box(-1, 4, (2, 3)),
    "Box of rank 3": spaces.Box(0, 255, (4, 5, 3), np.uint8),
    "Discrete": spaces.Discrete(3),
    "Discrete that starts below 0": spaces.Discrete(3, start=-1),
    "MultiDiscrete": spaces.MultiDiscrete([2, 3]),
    "MultiDiscrete that starts elsewhere": spaces.MultiDiscrete([2, 3], start=[5, -3]),
    "MultiDiscrete of rank 2": spaces.MultiDiscrete([[2, 3], [4, 1]]),
    "MultiBinary": spaces.MultiBinary(4),
    "MultiBinary of rank 2": spaces.MultiBinary((2, 2)),
    "Tuple": spaces.Tuple([spaces.Discrete(2, start=1), spaces.Box(-1, 1, (2, 2))]),
    "Dict": spaces.Dict(
        at=spaces.Box(-1, 1, (2,)), has=spaces.MultiBinary(2), deep=spaces.Dict(n=spaces.Discrete(4))
    ),
    "Text": spaces.Text(4),
    "OneOf": spaces.OneOf([spaces.Discrete(2), spaces.Box(-1, 1, (3,))]),
}
NO_OBSERVATIONS = {
    "Box of nothing": spaces.Box(-1, 1, (0,)),
    "Sequence": spaces.Sequence(spaces.Discrete(2)),
    "Graph": spaces.Graph(spaces.Box(0, 1, (2,)), spaces.Discrete(3)),
    "Tuple of a sequence": spaces.Tuple([spaces.Discrete(2), spaces.Sequence(spaces.Discrete(2))]),
    "Dict of a graph": spaces.Dict(g=spaces.Graph(spaces.Box(0, 1, (2,)), None)),
    "a space of one's own": spaces.Space((2,), np.float32),
}
"""The table of every space that Gymnasium has."""

UNLIKE = {
    "Box": (spaces.Box(-1, 1, (3,)), [np.zeros(4), None, {"at": 1.0}, "left", [[1, 2], [3]]]),
    "Discrete": (spaces.Discrete(3, start=1), [0, 4, 1.5, np.zeros(2, int)]),
    "MultiDiscrete": (spaces.MultiDiscrete([2, 3]), [np.array([0, 3]), np.array([-1, 0]), np.zeros(3, int)]),
    "MultiBinary": (spaces.MultiBinary(2), [np.zeros(3, np.int8)]),
    "Tuple": (spaces.Tuple([spaces.Discrete(2)]), [(0, 1), 3, (2,)]),
    "Dict": (spaces.Dict(at=spaces.Discrete(2)), [{"to": 1}, {"at": 2}, np.zeros(1)]),
    "Text": (spaces.Text(2), ["long", "+", 1]),
    "OneOf": (spaces.OneOf([spaces.Discrete(2)]), [(1, 0), 0, (0, 2)]),
}


class Echo(gymnasium.Env):
    """Keeps the actions that it is sent; gives the observations that it is told."""

    def __init__(self, observation_space=None, action_space=None, observations=None):
        self.observation_space = (
            spaces.Box(-1, 1, (2,), np.float32) if observation_space is None else observation_space
        )
        self.action_space = spaces.Discrete(2) if action_space is None else action_space
        self.given, self.received = observations, []

    def observe(self):
        return self.observation_space.sample() if self.given is None else next(self.given)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        return self.observe(), {}

    def step(self, action):
        self.received.append(action)
        return self.observe(), 1.0, False, len(self.received) % 8 == 0, {}


@pytest.fixture
def echo():
    """Registers an `Echo`, and gives the name of it."""

    def register(**kwargs):
        gymnasium.register("Echo-v0", lambda: Echo(**kwargs), max_episode_steps=50)
        return "gym/Echo-v0"

    yield register
    gymnasium.registry.pop("Echo-v0", None)


def cases(table):
    return pytest.mark.parametrize("space", table.values(), ids=table)


def refused(error, space):
    """One line that names the space."""
    message = str(error.value)
    assert "\n" not in message
    assert " ".join(str(space).split()) in message
    return message


@cases(ACTIONS)
def test_an_environment_receives_the_actions_of_its_space_and_all_of_them(space, echo):
    env = make(echo(action_space=space))
    env.reset(seed=0)
    if isinstance(space, spaces.Discrete):
        sent = range(int(env.action_space.n))
        expected = [int(space.start) + i for i in sent]
    else:
        assert env.action_space == spaces.Box(-1, 1, (space.low.size,), np.float32)
        sent = [np.full(env.action_space.shape, x, np.float32) for x in np.linspace(-1, 1, 1001)]
        expected = None
    for action in sent:
        *_, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            env.reset()
    received = env.unwrapped.received
    assert all(space.contains(action) for action in received)
    assert {np.asarray(action).dtype for action in received} == {np.dtype(space.dtype)}
    if expected is not None:
        assert [int(action) for action in received] == expected
        return
    np.testing.assert_array_equal(received[0], space.low)
    np.testing.assert_array_equal(received[-1], space.high)
    if space.dtype.kind == "f":
        np.testing.assert_allclose(received[500], (space.low.astype(float) + space.high) / 2, atol=1e-3)
    else:
        values, counts = np.unique([np.asarray(action).flat[0] for action in received], return_counts=True)
        first, last = int(space.low.flat[0]), int(space.high.flat[0])
        assert values.tolist() == list(range(first, last + 1))
        assert counts.max() - counts.min() <= 1 + len(received) // 1000  # equal shares


@cases(NO_ACTIONS)
def test_actions_that_no_agent_has_are_refused(space, echo):
    with pytest.raises(ValueError, match="action space") as error:
        make(echo(action_space=space))
    assert "Echo-v0" in refused(error, space)


@cases(OBSERVATIONS)
def test_an_observation_says_all_that_the_environment_said(space, echo):
    """What Gymnasium makes of the flat observation is the sample again."""
    env = make(echo(observation_space=space))
    space.seed(0)
    for _ in range(20):
        expected = space.sample()
        env.unwrapped.given = iter([expected])
        observation, _ = env.reset()
        assert (observation.dtype, observation.shape) == (np.float32, env.observation_space.shape)
        if isinstance(space, spaces.Box):
            np.testing.assert_array_equal(observation, np.asarray(expected, np.float32).reshape(-1))
        else:
            flat = spaces.flatten_space(space)
            assert same(spaces.unflatten(space, observation.astype(flat.dtype)), expected)


def same(one, other):
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, Iterable) and not isinstance(one, np.ndarray | str):
        return all(same(a, b) for a, b in zip(one, other, strict=True))
    return np.array_equal(one, other)


@cases(NO_OBSERVATIONS)
def test_observations_without_a_flat_form_are_refused(space, echo):
    with pytest.raises(ValueError, match="observation space") as error:
        make(echo(observation_space=space))
    assert "Echo-v0" in refused(error, space)


@cases(UNLIKE)
def test_an_observation_unlike_its_space_is_told_with_the_space(space, echo):
    space, wrong = space
    for observation in wrong:
        env = make(echo(observation_space=space, observations=iter([space.sample(), observation])))
        env.reset(seed=0)
        with pytest.raises(ValueError, match="unlike its space") as error:
            env.step(0)
        refused(error, space)
        gymnasium.registry.pop("Echo-v0")


def test_shapes_and_precisions_that_hold_the_same_numbers_are_taken(echo):
    """Environments are often careless here, and nothing is lost by it."""
    given = [np.zeros((2, 1)), [0, 1], (0.5, 1e40), np.ones((1, 2), np.uint8)]
    env = make(echo(observations=iter(given)))
    rows = [env.reset()[0], *(env.step(0)[0] for _ in given[1:])]
    np.testing.assert_array_equal(rows, [[0, 0], [0, 1], [0.5, np.inf], [1, 1]])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["Discrete that starts below 0", "Box of rank 3"])
def test_agents_learn_in_them(kind, echo, tmp_path):
    sizes = {"hidden": 8, "rollout_steps": 16, "minibatch_size": 8, "epochs": 1, "steps": 16, "eval_episodes": 1}
    env = echo(action_space=ACTIONS[kind])
    assert train(configure("ppo-era-exact", env=env, **sizes, out=str(tmp_path / "run")))
