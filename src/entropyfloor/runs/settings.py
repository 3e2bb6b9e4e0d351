"""Settings of a run, each described once: by the annotation of its field and the docstring below it.

    @dataclass(frozen=True)
    class Config:
        steps: Annotated[int, COUNT] = 100
        # docstring: Number of updates.
        layers: Annotated[int, COUNT, CountsIf("model='tiny'", lambda config: config.model == "tiny")] = 4
        # docstring: Number of transformer layers.
        device: Annotated[str, Effect.SPEED] = "auto"
        # docstring: Device, such as cuda or cpu.

From this follow `--help` (type, default and docstring), the refusal of wrong values (`check`) and of ignored ones
(`check_counted`), what `--resume` may change (`changeable`), and which runs a report takes for seeds of each other
(`not_results`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from enum import Enum
from functools import cache
from types import NoneType
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from entropyfloor.runs.schema import UNPRINTABLE


class Range(NamedTuple):
    """The range of a number."""

    low: float
    high: float
    words: str
    open: bool = False
    """Whether the ends themselves are out of range."""
    finite: bool = True
    """Whether infinity is out of range."""

    def __contains__(self, value: object) -> bool:
        assert isinstance(value, int | float)
        if self.finite and abs(value) == math.inf:
            return False
        return self.low < value < self.high if self.open else self.low <= value <= self.high


COUNT = Range(1, math.inf, "at least 1")
NATURAL = Range(0, math.inf, "finite and at least 0")
SHARE = Range(0, 1, "between 0 and 1")
POSITIVE = Range(0, math.inf, "positive and finite", open=True)
FINITE = Range(-math.inf, math.inf, "finite", open=True)
SEED_RANGE = Range(0, 2**32 - 1, "between 0 and 2**32 - 1")
"""JAX's keys and NumPy's generators take no others."""
THREADS = Range(0, 1024, "between 0 and 1024")
"""Libraries crash where the system cannot give as many threads as are asked for."""
WORKERS = Range(0, 256, "between 0 and 256")
"""A process costs more than a thread: thousands bring a machine to a halt."""
Precision = Literal["fp32", "bf16"]
"""Number format of matrix products. With bf16, parameters, losses and entropies are still float32."""
LARGEST = 10**12 - 1
"""Limit of every whole number: the names of checkpoints have 12 digits, and counters 64 bits."""


class Effect(Enum):
    """What a setting changes. A setting without one of these changes results."""

    SPEED = "speed"
    """Speed, memory and what is saved on the way; results stay the same up to rounding."""
    PLACE = "place"
    """Where files are now; their content is that of another setting, such as the dataset."""
    FILE = "file"
    """A file whose content changes results. A resume may say where it is now."""
    IDENTITY = "identity"
    """Which run it is: its seed, its directory, a remark."""


@dataclass(frozen=True)
class CountsIf:
    """A setting that has no effect unless another one has some value."""

    words: str
    """The condition in words, such as `model='tiny'`."""
    holds: Callable[[Any], bool]
    """The condition: from the config to whether the setting counts."""


class Setting(NamedTuple):
    """The description of a setting."""

    names: list[str]
    """Strings that a `Literal` in its type lists."""
    types: tuple[type, ...]
    """Plain types in its type."""
    range: Range
    """Range of its numbers; the finite ones, unless its annotation says otherwise."""
    effect: Effect | None
    counts_if: CountsIf | None
    default: Any


@cache
def describe(kind: Any) -> dict[str, Setting]:
    """The settings of a dataclass by their names."""
    plain, annotated = get_type_hints(kind), get_type_hints(kind, include_extras=True)
    settings = {}
    for field in fields(kind):
        hint, marks = plain[field.name], getattr(annotated[field.name], "__metadata__", ())

        def mark(sort: type, default: Any = None, marks: tuple[Any, ...] = marks) -> Any:
            return next((each for each in marks if isinstance(each, sort)), default)

        settings[field.name] = Setting(
            _names(hint),
            _types(hint),
            mark(Range, FINITE),
            mark(Effect),
            mark(CountsIf),
            field.default,
        )
    return settings


def not_results(kind: Any) -> list[str]:
    """Names of the settings that do not change results, apart from the seed."""
    return [name for name, setting in describe(kind).items() if setting.effect not in (None, Effect.FILE)]


def changeable(kind: Any) -> list[str]:
    """Names of the settings that a run may have others of when it is resumed."""
    allowed = (Effect.SPEED, Effect.PLACE, Effect.FILE)
    return [name for name, setting in describe(kind).items() if setting.effect in allowed]


def check(config: Any) -> None:
    """Hold every field of a dataclass to its type and its range; an int for a float becomes one.

    A number without a range must be finite. Text must be what `config.toml` and a path can hold.

    Raises:
        ValueError: A value has another type, is none of the names that a `Literal` lists, or is out of range.
    """
    for name, setting in describe(type(config)).items():  # type: ignore[arg-type]
        value, names, types = getattr(config, name), setting.names, setting.types
        if value not in names and (not isinstance(value, types) or isinstance(value, bool) > (bool in types)):
            known = [*names, *(kind.__name__ for kind in types if kind is not NoneType)]
            raise ValueError(f"{name}={value!r} must be {'one of' if names else 'of type'} {', '.join(known)}")
        if isinstance(value, int | float) and not isinstance(value, bool):
            _check_number(name, value, setting.range)
            if float in types:  # 1 and 1.0 are one setting, also in labels and paths
                object.__setattr__(config, name, float(value))
        elif isinstance(value, str) and value not in names:
            _check_text(name, value, may_be_empty=setting.default == "")


def check_counted(config: Any) -> None:
    """Refuse settings that were given and have no effect.

    Raises:
        ValueError: A setting differs from its default while the condition of its `CountsIf` does not hold.
    """
    ignored: dict[str, list[str]] = {}
    for name, setting in describe(type(config)).items():  # type: ignore[arg-type]
        value, condition = getattr(config, name), setting.counts_if
        if condition is not None and value != setting.default and not condition.holds(config):
            ignored.setdefault(condition.words, []).append(f"{name}={value!r}")
    for words, given in ignored.items():
        raise ValueError(f"{', '.join(given)} would be ignored without {words}")


def _check_number(name: str, value: float, limits: Range) -> None:
    if value not in limits:
        raise ValueError(f"{name}={value} must be {limits.words}")
    if abs(value) > LARGEST and isinstance(value, int):
        raise ValueError(f"{name}={value} must be at most 10**12 - 1")


def _check_text(name: str, value: str, *, may_be_empty: bool) -> None:
    if not (value or may_be_empty):
        raise ValueError(f"{name}='' is empty: leave it out, or give a value")
    if UNPRINTABLE.search(value):
        raise ValueError(f"{name}={value!r} must be UTF-8 text without null bytes or other control characters")


def _names(hint: Any) -> list[str]:
    """The strings that a type lists, alone or in a union."""
    if get_origin(hint) is Literal:
        return list(get_args(hint))
    return [name for part in get_args(hint) for name in _names(part)]


def _types(hint: Any) -> tuple[type, ...]:
    """The plain types in a type, alone or in a union; an int is accepted for a float."""
    if isinstance(hint, type):
        return (int, float) if hint is float else (hint,)
    return tuple(kind for part in get_args(hint) if get_origin(hint) is not Literal for kind in _types(part))
