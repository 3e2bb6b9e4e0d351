"""Pickles read without executing anything: every object in them becomes an inert one.

A pickle names functions and classes, and calls them as it is read. Here each name becomes a class that does
nothing, so that what is left is what was written: numbers, texts, containers, and arguments and states of objects.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

DEPTH = 200
"""Largest depth of what a pickle nests. Python hashes nested tuples recursively, without a limit of its own."""
_INTO = {"APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD"}
"""Instructions that put something into an object that is there already."""


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
        ValueError: It is no pickle, or damaged, or nested more deeply than `DEPTH`.
    """
    try:
        if all(depth <= DEPTH for depth in _depths(data)):
            return _Reader(io.BytesIO(data)).load()
    except Exception as error:  # a damaged pickle fails in any way
        raise ValueError(f"its pickle is damaged ({type(error).__name__}: {error})") from None
    raise ValueError(f"its pickle is nested more than {DEPTH} deep: no policy is")


def _depths(data: bytes) -> Iterator[int]:
    """Depth of each object that a pickle makes, found without making it: each is one deeper than its parts."""
    stack: list[int] = []
    marks: list[int] = []
    memo: dict[Any, int] = {}
    for instruction, argument, _ in pickletools.genops(data):
        name, before = instruction.name, instruction.stack_before
        if name == "MARK":
            marks.append(len(stack))
        elif name == "POP" and marks and marks[-1] == len(stack):
            marks.pop()
        elif name.endswith("PUT"):
            memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name.endswith("GET"):
            stack.append(memo.get(argument, 0))
        elif name == "DUP":
            stack.append(stack[-1])
        else:
            marked = pickletools.markobject in before
            taken = before.index(pickletools.markobject) if marked else len(before)
            start = (marks.pop() if marked else len(stack)) - taken
            parts = stack[start:]
            del stack[start:]
            if instruction.stack_after:
                whole = parts.pop(0) if name in _INTO else 0
                stack.append(max([whole, *(depth + 1 for depth in parts)]))
                yield stack[-1]


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
