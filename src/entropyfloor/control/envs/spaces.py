"""Gymnasium's spaces as agents have them: observations flattened, actions of a Box or a Discrete space."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces

EXACT = 2**53
"""Whole numbers up to here are exact in float64, in which actions are computed."""


def name(space: spaces.Space[Any]) -> str:
    """A space in one line."""
    words = " ".join(str(space).split())
    return words if len(words) <= 200 else f"{words[:197]}..."


# --- observations ----------------------------------------------------------------------------------------


def width(space: spaces.Space[Any]) -> int:
    """Length of a flattened observation.

    Raises:
        ValueError: Observations of this space have no length, or none that is fixed.
    """
    try:
        size = spaces.flatdim(space)
    except (ValueError, NotImplementedError):
        size = 0
    if size < 1:
        raise ValueError(
            f"observation space {name(space)} has no flat form of a fixed length above 0: wrap the environment so "
            "that it observes a Box, such as with gymnasium.wrappers.TransformObservation"
        )
    return int(size)


def fits(space: spaces.Space[Any], observation: Any) -> bool:
    """Whether an observation flattens as one of `space`; bounds and precision of a Box are not looked at."""
    try:
        return _fits(space, observation)
    except (TypeError, ValueError):  # of NumPy, for what has no shape at all
        return False


def _fits(space: spaces.Space[Any], observation: Any) -> bool:
    match space:
        case spaces.Box() | spaces.MultiBinary():
            array = np.asarray(observation)
            return array.dtype.kind in "biuf" and array.size == math.prod(space.shape)
        case spaces.Dict():
            return isinstance(observation, Mapping) and all(
                key in observation and _fits(part, observation[key]) for key, part in space.items()
            )
        case spaces.Tuple():
            return len(observation) == len(space.spaces) and all(map(_fits, space.spaces, observation))
        case spaces.OneOf():
            index, chosen = observation
            return 0 <= index < len(space.spaces) and _fits(space.spaces[index], chosen)
        case spaces.Discrete() | spaces.MultiDiscrete():
            array, count = np.asarray(observation), space.n if isinstance(space, spaces.Discrete) else space.nvec
            if array.dtype.kind not in "biu" or array.size != np.size(count):
                return False
            number = array.reshape(np.shape(count)).astype(np.int64) - space.start
            return bool(np.all((number >= 0) & (number < count)))
        case _:
            return observation in space


# --- actions ---------------------------------------------------------------------------------------------


class BoxActions:
    """Map from [-1, 1] to the actions of a bounded Box.

    Real numbers are scaled. Whole numbers have equal shares of [-1, 1], so that each of them is reached.

    Raises:
        ValueError: The Box is empty, unbounded, or too wide to be computed in float64.
    """

    def __init__(self, box: spaces.Box) -> None:
        self._low, self._high = (np.asarray(b, np.float64) for b in (box.low, box.high))
        self._whole, self._dtype = box.dtype.kind != "f", box.dtype
        with np.errstate(over="ignore"):
            self._width = self._high - self._low
        if not box.low.size:
            raise ValueError(f"action space {name(box)} is empty: there is nothing to learn")
        if not (box.is_bounded("both") and np.isfinite(self._width).all()):
            raise ValueError(f"action space {name(box)} has no finite bounds to rescale to: give its Box bounds")
        if self._whole and max(-self._low.min(), self._high.max()) > EXACT:
            raise ValueError(f"action space {name(box)} has whole numbers beyond 2**53, where float64 skips some")
        self.space = spaces.Box(-1.0, 1.0, (box.low.size,), np.float32)

    def __call__(self, action: Any) -> np.ndarray:
        """The action that the simulator takes."""
        unit = np.clip(np.asarray(action, np.float64), -1.0, 1.0).reshape(self._low.shape)
        if self._whole:
            scaled = np.floor(self._low + 0.5 * (unit + 1.0) * (self._width + 1.0))
        else:
            scaled = self._low + 0.5 * (unit + 1.0) * self._width
        return np.asarray(np.clip(scaled, self._low, self._high)).astype(self._dtype)


class DiscreteActions:
    """Map from 0, 1, … n - 1 to the actions of a Discrete space, which may start elsewhere.

    Raises:
        ValueError: There is one action only.
    """

    def __init__(self, discrete: spaces.Discrete[Any]) -> None:
        if discrete.n < 2:
            raise ValueError(f"action space {name(discrete)} leaves no choice: there is nothing to learn")
        self._start, self._type = int(discrete.start), np.dtype(discrete.dtype).type
        # The simulator's own space if it starts at 0: some simulators sample from it.
        self.space = discrete if self._start == 0 else spaces.Discrete(int(discrete.n))

    def __call__(self, action: Any) -> Any:
        """The action that the simulator takes."""
        return self._type(self._start + int(action))


def actions(space: spaces.Space[Any]) -> BoxActions | DiscreteActions:
    """The map from an agent's actions to those of `space`.

    Raises:
        ValueError: No agent acts in such a space.
    """
    match space:
        case spaces.Box():
            return BoxActions(space)
        case spaces.Discrete():
            return DiscreteActions(space)
        case _:
            raise ValueError(
                f"action space {name(space)}: agents act in a Box with finite bounds or in a Discrete space; wrap "
                "the environment so that it has one, such as with gymnasium.wrappers.TransformAction"
            )
