"""Pickles read without executing anything: every object in them becomes an inert one.

A pickle names functions and classes, and calls them as it is read. Here each name becomes a class that does
nothing, so that what is left is what was written: numbers, texts, containers, and arguments and states of objects.
"""

from __future__ import annotations

import io
import pickle
import re
from typing import Any

import numpy as np


class Inert:
    """An object of a pickle, of whatever class: what it was made of, and its state."""

    origin = ""
    """Module and name of the class or function that would have made it."""
    args: tuple[Any, ...]
    state: Any = None

    def __new__(cls, *args: Any, **options: Any) -> Inert:
        """Keep the arguments, whatever they are."""
        made = object.__new__(cls)
        made.args = (*args, *options.values())
        return made

    def __call__(self, *args: Any, **options: Any) -> Inert:
        """What an inert function would have returned."""
        return Inert(self, *args, *options.values())

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def append(self, value: Any) -> None:
        """Drop what a container of another kind would hold."""

    extend = add = append

    def __setitem__(self, key: Any, value: Any) -> None:
        """Drop what a mapping of another kind would hold."""


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> type[Inert]:
        return type(name.rpartition(".")[2], (Inert,), {"origin": f"{module}.{name}"})


def unpickle(data: bytes) -> Any:
    """What a pickle holds, with `Inert` objects in the place of all others.

    Raises:
        ValueError: It is no pickle, or damaged.
    """
    try:
        return _Reader(io.BytesIO(data)).load()
    except Exception as error:  # a damaged pickle fails in any way
        raise ValueError(f"its pickle is damaged ({type(error).__name__}: {error})") from None


def array(value: Any) -> np.ndarray:
    """The numbers of an inert array of NumPy or JAX.

    Raises:
        ValueError: It is no array of numbers.
    """
    try:
        match value.origin.rpartition(".")[2]:
            case "_reconstruct_array":  # JAX's: (function, arguments, state, …)
                _, shape, dtype, by_columns, raw = value.args[2]
            case "_reconstruct":
                _, shape, dtype, by_columns, raw = value.state
            case "_frombuffer":
                raw, dtype, shape, order = value.args
                by_columns = order == "F"
            case other:
                raise ValueError(f"it is made by {other}")
        kind, order = dtype.args[0], "<" if dtype.state is None else dtype.state[1]
        if not re.fullmatch("[fiu][1248]|b1", kind):
            raise ValueError(f"its numbers are of type {kind}")
        flat = np.frombuffer(bytes(raw), np.dtype(kind).newbyteorder(order))
        numbers: np.ndarray = flat.reshape(shape, order="F" if by_columns else "C")
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise ValueError(f"an array in its pickle cannot be read ({error})") from None
    return numbers
