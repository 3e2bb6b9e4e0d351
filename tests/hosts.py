"""What tests of control hosts share: an environment of no size, adversarial outputs, and examples of pages."""

import re
from pathlib import Path

import gymnasium as gym
import numpy as np

import adversarial
import reference

DOCS = Path(__file__).parents[1] / "docs"
PAGE = DOCS / "control-hosts.md"
D = 3


class Reach(gym.Env):
    """A point that is moved: five steps, a reward for being near 0, observations of any space."""

    def __init__(self, observation_space=None, action_space=None):
        self.observation_space = observation_space or gym.spaces.Box(-np.inf, np.inf, (4,), np.float32)
        self.action_space = action_space or gym.spaces.Box(-2.0, 2.0, (D,), np.float32)
        self.observation_space.seed(0)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        self.steps += 1
        reward = -float(np.square(action).mean())
        return self.observation_space.sample(), reward, False, self.steps == 5, {}


def observations(rows, rng):
    """Observations from usual to absurd sizes."""
    return (rng.normal(size=(rows, 4)) * 10.0 ** rng.uniform(-2, 6, (rows, 1))).astype(np.float32)


def outputs(rng, size=D):
    """Means and raw log σ that are adversarial to the floor."""
    raw = np.repeat(adversarial.structured(size, rng), 12, axis=0)
    mean = np.tile(adversarial.structured(size, rng), (12, 1))
    return mean.astype(np.float32), raw.astype(np.float32)


def log_prob(value, loc, log_std, *, truncated):
    """Log-density of a diagonal Gaussian in float64, truncated to [-1, 1] or not."""
    value, loc, log_std = (np.asarray(x, np.float64) for x in (value, loc, log_std))
    density = -0.5 * ((value - loc) / np.exp(log_std)) ** 2 - log_std - 0.5 * np.log(2 * np.pi)
    if truncated:
        below, above = ((bound - loc) / np.exp(log_std) / np.sqrt(2) for bound in (-1.0, 1.0))
        density = density - np.log((reference.erf(above) - reference.erf(below)) / 2)
    return density.sum(-1)


def entropy(loc, log_std, *, truncated):
    """Entropy of such a Gaussian in float64."""
    if truncated:
        return reference.truncated_normal_entropy(loc, log_std).sum(-1)
    return reference.gaussian_entropy(log_std)


def sources(heading, page=PAGE):
    """The examples below a heading of a page."""
    section = re.split(rf"^#+ {re.escape(heading)}$", page.read_text(), flags=re.MULTILINE)[1]
    return re.findall(r"```py\n(.*?)```", re.split(r"^## ", section, flags=re.MULTILINE)[0], re.DOTALL)


def example(heading, number=0, *, page=PAGE, **names):
    """Run an example below a heading, with names defined, and return all names."""
    names["__name__"] = heading  # classes look it up
    exec(compile(sources(heading, page)[number], heading, "exec"), names)
    return names
