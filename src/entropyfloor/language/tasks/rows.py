"""Rows of question files: reading them, and finding columns, chats and choices in them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from entropyfloor.extras import require
from entropyfloor.language.encoding import Turn
from entropyfloor.language.rewards import LETTERS, Row, choices_of, text_of

QUESTION_COLUMNS = ("problem", "question", "prompt", "input")
ANSWER_COLUMNS = ("answer", "final_answer", "reward_model.ground_truth", "ground_truth", "solution", "answerKey")
"""Usual names of columns, tried in this order; `a.b` is the value at `b` in column `a`."""
BOM = b"\xef\xbb\xbf"


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """Read the rows of a jsonl, json or parquet file.

    A `.json` file may hold a list of objects, or one object per line as `.jsonl` does.

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
    """Rows whose `level`, such as `4` or `Level 4`, is at least `least`; a level without a number is left out.

    Raises:
        ValueError: There is no such column, or no row is left.
    """
    column_of(rows, "level", (), "level", source)
    levels = [re.search(r"[0-9]{1,18}", str(row.get("level"))) for row in rows]
    chosen = [dict(row) for row, level in zip(rows, levels, strict=True) if level and int(level[0]) >= least]
    if not chosen:
        highest = max((int(level[0]) for level in levels if level), default=None)
        raise ValueError(f"{source} has no row of level {least} or above: its highest is {highest}")
    return chosen


def value_of(row: Row, column: str) -> Any:
    """Value of a column, or None; `a.b` is the value at `b` in column `a`."""
    if column in row:
        return row[column]
    first, dot, rest = column.partition(".")
    inside = row.get(first)
    return value_of(inside, rest) if dot and isinstance(inside, Mapping) else None


def column_of(rows: Sequence[Row], wanted: str | None, usual: Sequence[str], what: str, source: str) -> str:
    """The wanted column, or the first of the usual ones with a value in some row.

    `what` the column holds, and the `source` of the rows, are for messages.

    Raises:
        ValueError: There is no such column.
    """
    for name in (wanted,) if wanted else usual:
        if any(text_of(value_of(row, name)) for row in rows):
            return name
    existing = sorted({name for row in rows for name in row})
    if empty := [name for name in ((wanted,) if wanted else usual) if name in existing]:
        raise ValueError(f"{source} has no text in its column {empty[0]} for the {what}")
    missing = repr(wanted) if wanted else f"for the {what}, which would be one of {', '.join(usual)}"
    raise ValueError(f"{source} has no column {missing}; it has {', '.join(existing)}")


def turns_of(value: Any, *, chat: bool) -> list[Turn]:
    """The turns of a question, which is a text or a list of messages with roles; the last one is the user's.

    Raises:
        ValueError: Several turns have no template (`chat` is False), the last turn is not the user's, or a turn is
            not text alone.
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


def reply_of(value: Any) -> str:
    """A response, which is a text or a list with the model's message; a text keeps the spaces around it.

    Raises:
        ValueError: The list has several messages or one of another role, or the message is not text alone.
    """
    if isinstance(value, list) and value and all(isinstance(message, Mapping) for message in value):
        roles = [str(message.get("role", "assistant")) for message in value]
        if roles != ["assistant"]:
            raise ValueError(f"a response has messages of {', '.join(roles)}: one of the assistant is read")
        value = value[0].get("content")
        value = _content(value) if isinstance(value, list) else value
    return value if isinstance(value, str) else text_of(value)


def _content(value: Any) -> str:
    """The text of a message, which may be in parts."""
    if not isinstance(value, list):
        return text_of(value)
    for part in value:
        if not isinstance(part, Mapping) or part.get("type", "text") != "text":
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise ValueError(f"a message has a part of type {kind!r}: a language model reads text")
    return "\n".join(text_of(part.get("text")) for part in value)


def choice_lines(row: Row) -> str:
    """Lines with the choices of a question, to write behind it; empty where there are none."""
    return "".join(f"\n{mark}. {text}" for mark, text in zip(LETTERS, choices_of(row)[0], strict=False))


def letters_of(rows: Sequence[Row], column: str, source: str) -> Callable[[Row], str | None]:
    """A function from a row to the letter of its answer, or None where the answer is no index and no label.

    Raises:
        ValueError: Whole numbers may be indexes as well as the choices themselves, or indexes from 1. A question
            has more choices than there are letters.
    """
    numbers: list[tuple[int, list[str]]] = []
    for row in rows:
        value, (texts, labels) = value_of(row, column), choices_of(row)
        if len(texts) > len(LETTERS):
            raise ValueError(f"{source}: a question has {len(texts)} choices: at most {len(LETTERS)} have letters")
        if texts and _is_whole(value) and str(int(value)) not in labels:
            numbers.append((int(value), texts))
    from_zero = all(0 <= value < len(texts) for value, texts in numbers)
    in_range = all(0 <= value <= len(texts) for value, texts in numbers)
    are_choices = all(str(value) in map(str.strip, texts) for value, texts in numbers)
    if numbers and in_range and from_zero == are_choices:
        doubt = "choices as well as their indexes" if from_zero else "indexes that begin at 1"
        raise ValueError(
            f"{source}: the answers in {column!r} may be {doubt}: write the letter of the right choice, or its "
            f"index from 0"
        )

    def letter(row: Row) -> str | None:
        value, (texts, labels) = value_of(row, column), choices_of(row)
        if not texts:
            return None
        if text_of(value) in labels:
            return LETTERS[labels.index(text_of(value))]
        return LETTERS[int(value)] if from_zero and _is_whole(value) else None

    return letter


def _is_whole(value: Any) -> bool:
    """Whether a value is a whole number; a column with NaN in it has them as floats."""
    return (isinstance(value, int) and not isinstance(value, bool)) or (
        isinstance(value, float) and value.is_integer()
    )


# --- files -----------------------------------------------------------------------------------------------


def lines_of(path: Path, data: bytes, contents: str = "columns") -> Iterator[tuple[str, dict[str, Any]]]:
    """Objects of the content of a file with one per line, each with its place for messages.

    Raises:
        ValueError: A line is damaged, or holds something else than an object with `contents`.
    """
    for number, line in enumerate(data.removeprefix(BOM).split(b"\n"), start=1):
        if line.strip():
            place = f"{path}, line {number}"
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:  # from JSON or UTF-8
                raise ValueError(f"{place} is damaged ({error}): repair or remove it") from None
            yield place, _object(row, place, contents)


def _json(path: Path, data: bytes) -> list[dict[str, Any]]:
    try:
        rows = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error})") from None
    return [_object(row, f"{path}, row {number}") for number, row in enumerate(rows)]


def _object(row: Any, place: str, contents: str = "columns") -> dict[str, Any]:
    if not isinstance(row, dict):
        raise ValueError(f"{place} holds a {type(row).__name__}: it must be an object with {contents}")
    return row


def _parquet(path: Path) -> list[dict[str, Any]]:
    require("language", "pyarrow")
    import pyarrow  # type: ignore[import-untyped]
    from pyarrow import parquet

    try:
        rows: list[dict[str, Any]] = parquet.read_table(path).to_pylist()  # which decodes the texts
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as parquet: {error}") from None
    return rows
