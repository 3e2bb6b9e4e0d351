"""Rows of question files: columns, chats, choices and cells, whatever wrote them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from entropyfloor.extras import require
from entropyfloor.language.rewards.answers import LETTERS
from entropyfloor.language.sampling.encoding import Turn

Row = Mapping[str, Any]

QUESTION_COLUMNS = ("problem", "question", "prompt", "input")
ANSWER_COLUMNS = ("answer", "final_answer", "reward_model.ground_truth", "ground_truth", "solution", "answerKey")
"""Looked for in this order; a dot goes into a column of columns."""
BOM = b"\xef\xbb\xbf"


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a jsonl, json or parquet file as they are.

    A `.json` file may hold a list of objects, or an object a line as `.jsonl` does.

    Raises:
        ValueError: The file is missing, of another kind, damaged (by its line), or has no rows.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} is no file: give a jsonl, json or parquet file")
    if path.suffix == ".parquet":
        rows = _parquet(path)
    elif path.suffix in (".jsonl", ".json"):
        data = path.read_bytes().removeprefix(BOM)
        rows = _json(path, data) if data.lstrip().startswith(b"[") else [row for _, row in lines_of(path, data)]
    else:
        raise ValueError(f"{path} must end in .jsonl, .json or .parquet")
    if not rows:
        raise ValueError(f"{path} has no rows")
    return rows


def at_level(rows: Sequence[Row], least: int, source: str = "the data") -> list[dict[str, Any]]:
    """Rows whose `level`, `4` or `Level 4`, is at least so much; those without a number are left out.

    Raises:
        ValueError: There is no such column, or no row is left.
    """
    column_of(rows, "level", (), "level", source)
    levels = [re.search(r"[0-9]+", str(row.get("level"))) for row in rows]
    found = [dict(row) for row, level in zip(rows, levels, strict=True) if level and int(level[0]) >= least]
    if not found:
        highest = max((int(level[0]) for level in levels if level), default=None)
        raise ValueError(f"{source} has no row of level {least} or above: its highest is {highest}")
    return found


def value_of(row: Row, column: str) -> Any:
    """What a column holds; a dot goes into a column of columns. None where there is nothing."""
    if column in row:
        return row[column]
    first, dot, rest = column.partition(".")
    inside = row.get(first)
    return value_of(inside, rest) if dot and isinstance(inside, Mapping) else None


def column_of(rows: Sequence[Row], wanted: str | None, usual: Sequence[str], what: str, source: str) -> str:
    """The column that is asked for, or the first of the usual ones that some row has."""
    for name in (wanted,) if wanted else usual:
        if any(text_of(value_of(row, name)) for row in rows):
            return name
    there = sorted({name for row in rows for name in row})
    asked = repr(wanted) if wanted else f"for the {what}, which would be one of {', '.join(usual)}"
    raise ValueError(f"{source} has no column {asked}; it has {', '.join(there)}")


def turns_of(value: Any, *, chat: bool) -> list[Turn]:
    """The turns of a question, of which the last one is the user's.

    Raises:
        ValueError: There are several and no template, the last one is not the user's, or one is not text alone.
    """
    if not (isinstance(value, list) and value and all(isinstance(message, Mapping) for message in value)):
        return [{"role": "user", "content": text_of(value)}]
    turns = [{"role": str(m.get("role", "user")), "content": _content(m.get("content"))} for m in value]
    if turns[-1]["role"] != "user":
        raise ValueError(f"the last turn is of role {turns[-1]['role']!r}: it must be the user's, to be answered")
    if chat:
        return turns
    if [turn["role"] for turn in turns] not in (["user"], ["system", "user"]):
        roles = ", ".join(turn["role"] for turn in turns)
        raise ValueError(f"a chat of several turns ({roles}) needs a template around them: give --template chat")
    return turns


def _content(value: Any) -> str:
    """The text of a message, which may be in parts."""
    if not isinstance(value, list):
        return text_of(value)
    for part in value:
        if not isinstance(part, Mapping) or part.get("type", "text") != "text":
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise ValueError(f"a message has a part of type {kind!r}: a language model reads text")
    return "\n".join(text_of(part.get("text")) for part in value)


def choices_of(row: Row) -> tuple[list[str], list[str]]:
    """The choices of a question, in `options` or `choices`, and their marks; none where there are none."""
    found = row.get("options") or row.get("choices")
    marks: Any = None
    if isinstance(found, Mapping):  # as ARC has them
        marks, found = found.get("label"), found.get("text")
    if not isinstance(found, list | tuple):
        return [], []
    texts = [str(choice) for choice in found]
    named = isinstance(marks, list) and len(marks) == len(texts)
    return texts, [text_of(mark) for mark in marks] if named else list(LETTERS[: len(texts)])


def listed_of(row: Row) -> str:
    """The choices of a question, as they stand behind it."""
    return "".join(f"\n{mark}. {text}" for mark, text in zip(LETTERS, choices_of(row)[0], strict=False))


def letters_of(rows: Sequence[Row], column: str, source: str) -> Callable[[Row], str | None]:
    """From a row to the letter of its answer, where that is said by an index or by another mark of the choice.

    Raises:
        ValueError: Whole numbers that may be indexes, and may be the choices themselves; or indexes from 1.
    """
    numbers: list[tuple[int, list[str]]] = []
    for row in rows:
        value, (texts, marks) = value_of(row, column), choices_of(row)
        if texts and _is_whole(value) and str(int(value)) not in marks:
            numbers.append((int(value), texts))
    inside = all(0 <= value < len(texts) for value, texts in numbers)
    beside = all(0 <= value <= len(texts) for value, texts in numbers)
    named = all(str(value) in map(str.strip, texts) for value, texts in numbers)
    if numbers and beside and inside == named:
        doubt = "choices as well as their indexes" if inside else "indexes that begin at 1"
        raise ValueError(
            f"{source}: the answers in {column!r} may be {doubt}: write the letter of the right choice, or its "
            f"index from 0"
        )

    def letter(row: Row) -> str | None:
        value, (texts, marks) = value_of(row, column), choices_of(row)
        if not texts:
            return None
        if text_of(value) in marks:
            return LETTERS[marks.index(text_of(value))]
        return LETTERS[int(value)] if inside and _is_whole(value) else None

    return letter


def _is_whole(value: Any) -> bool:
    """Whether it is a whole number; beside NaN a table has floats of them."""
    return (isinstance(value, int) and not isinstance(value, bool)) or (
        isinstance(value, float) and value.is_integer()
    )


def text_of(value: Any) -> str:
    """A cell as text, which is empty where there is nothing in it."""
    if value is None or value != value:  # NaN, which is how a table says that there is nothing
        return ""
    if isinstance(value, list):
        return ", ".join(text_of(part) for part in value)
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


# --- files -----------------------------------------------------------------------------------------------


def lines_of(path: Path, data: bytes, has: str = "columns") -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a file with one a line, each with its place for messages.

    Args:
        path: The file, for messages.
        data: Its content.
        has: What the objects have, for messages.

    Raises:
        ValueError: A line is damaged, or holds something else.
    """
    for number, line in enumerate(data.removeprefix(BOM).split(b"\n"), start=1):
        if line.strip():
            place = f"{path}, line {number}"
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:  # of JSON, or of UTF-8
                raise ValueError(f"{place} is damaged ({error}): repair or remove it") from None
            yield place, _object(row, place, has)


def _json(path: Path, data: bytes) -> list[dict[str, Any]]:
    try:
        rows = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error})") from None
    return [_object(row, f"{path}, row {number}") for number, row in enumerate(rows)]


def _object(row: Any, place: str, has: str = "columns") -> dict[str, Any]:
    if not isinstance(row, dict):
        raise ValueError(f"{place} holds a {type(row).__name__}: it must be an object with {has}")
    return row


def _parquet(path: Path) -> list[dict[str, Any]]:
    require("language", "pyarrow")
    import pyarrow  # type: ignore[import-untyped]
    from pyarrow import parquet

    try:
        table = parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path} cannot be read as parquet: {error}") from None
    found: list[dict[str, Any]] = table.to_pylist()
    return found
