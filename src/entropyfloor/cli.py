"""The command line: `entropyfloor train control`, `entropyfloor evaluate run`, `entropyfloor report`, ….

The commands are in `entropyfloor.commands`. This module finds the command, parses its arguments with tyro, and
turns its errors into one line and an exit status.
"""

import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial, wraps
from pathlib import Path
from typing import Annotated, Any, Union

from entropyfloor import __version__
from entropyfloor.extras import FAILED, REFUSED, BrokenFloorError, Status, has_begun, one_line, require

SEVERAL = ("--arms", "--outputs", "--seeds", "--set", "--std", "--temperatures")
"""Options that take any number of values."""


def main(args: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit status, a `Status`.
    """
    args = list(sys.argv[1:] if args is None else args)
    if args == ["--version"]:
        print(f"entropyfloor {__version__}")
        return Status.DONE
    if args[:1] == ["doctor"] and set(args[1:]) <= {"--json"}:  # it examines installations without the parser too
        from entropyfloor.doctor import doctor

        return guarded(lambda: doctor(json="--json" in args))
    return guarded(lambda: _parse(_long_form(args))())


def guarded(work: Callable[[], None]) -> int:
    """Call a function; print one line instead of a traceback for errors that already say enough.

    Returns:
        The exit status, as `main` has it.
    """
    try:
        work()
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Status.CLOSED_PIPE
    except (*REFUSED, *FAILED) as error:
        if isinstance(error, REFUSED) and not has_begun(error):
            print(f"error: {one_line(error)}", file=sys.stderr)
            return Status.REFUSED
        print(f"failed: {one_line(error)}", file=sys.stderr)
        return Status.BROKEN_FLOOR if isinstance(error, BrokenFloorError) else Status.FAILED
    except KeyboardInterrupt as error:
        print(f"stopped{': ' if error.args else ''}{error}", file=sys.stderr)
        return Status.INTERRUPTED
    return Status.DONE


def _is_run(word: str) -> bool:
    """Whether a word names a run directory."""
    return Path(word, "config.toml").exists()


def _long_form(args: Sequence[str]) -> list[str]:
    """The arguments with short and earlier forms of commands written out."""
    match args:
        case []:
            return ["--help"]
        case ["evaluate", "language", *rest]:  # its name in earlier versions
            return ["evaluate", "benchmark", *rest]
        case ["evaluate", "run", *rest] if _is_run("run") and not any(map(_is_run, rest)):  # a run of this name
            return ["evaluate", "run", *args[1:]]
        case ["evaluate", word, *rest] if word not in ("run", "benchmark", "-h", "--help"):
            return ["evaluate", "run", word, *rest]
        case ["audit", word, *rest] if word not in ("run", "policy", "classifier", "language", "-h", "--help"):
            return ["audit", "run", word, *rest]
        case ["judge", *rest]:
            # A text such as -x is no option. To the parser no word with a space is one.
            return [
                "judge",
                *(f" {word}" if word[:1] == "-" != word[1:2] and word != "-h" else word for word in rest),
            ]
    return _with_rules(args)


def _with_rules(args: Sequence[str]) -> list[str]:
    """The arguments with `--target-entropy -A/2` as one word with `=`: alone, `-A/2` is an option.

    So is `-a/2`, which the command refuses as a rule.
    """
    joined: list[str] = []
    for word in args:
        last = joined[-1] if joined else ""
        is_rule = re.fullmatch(r"--[\w-]+", last) and re.fullmatch(r"-[\d.*]*A(/[\d.]+)?", word)
        if is_rule or (last == "--target-entropy" and word[:1] == "-" != word[1:2]):
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def _parse(args: Sequence[str]) -> Callable[[], None]:
    """The command that the arguments ask for, ready to be called."""
    _refuse_empty(args)
    _refuse_twice(args)
    require(_extra(args), "tyro")
    import tyro

    from entropyfloor.commands import COMMANDS

    words = [word for word in args if word not in ("-h", "--help")]
    found: Any = COMMANDS
    prog, rest = "entropyfloor", words
    while isinstance(found, Mapping) and rest and rest[0] in found:
        found, prog, rest = found[rest[0]], f"{prog} {rest[0]}", rest[1:]
        found = getattr(found, "commands", found)  # those of a group
    # The parser's help leaves out positional arguments that stand before it.
    options = rest if len(words) == len(args) else ["--help"]
    chosen: Any = _choice(found) if isinstance(found, Mapping) else _deferred(found(rest))
    command: Callable[[], None] = tyro.cli(chosen, prog=prog, args=options)
    return command


def _choice(commands: Mapping[str, Any]) -> Any:
    """What the parser lists, and refuses other words for, where no command is named."""
    import tyro

    def entry(name: str, command: Any) -> Any:
        summary = getattr(command, "summary", command.__doc__)
        return Annotated[Any, tyro.conf.subcommand(name, constructor=_nothing, description=summary)]

    names: Any = Union
    return names[tuple(entry(name, command) for name, command in commands.items())]


def _extra(args: Sequence[str]) -> str:
    """The extra of `pyproject.toml` that brings what a command needs."""
    match args:
        case ["train", "control" | "vision" | "language" as domain, *_]:
            return domain
        case ["evaluate", "benchmark", *_] | ["judge", *_]:
            return "language"
        case ["watch" | "archive" | "doctor", *_]:
            return "runs"
    return "report"


def _deferred(command: Callable[..., None]) -> Callable[..., Callable[[], None]]:
    """The command for the parser, which is to read its arguments and not yet to run it."""

    @wraps(command)
    def bind(*values: Any, **options: Any) -> Callable[[], None]:
        return partial(command, *values, **options)

    return bind


def _nothing() -> Callable[[], None]:
    raise AssertionError("only the chosen command is called")


def _refuse_empty(args: Sequence[str]) -> None:
    """Refuse an option or an argument that is empty, as an unset variable of a shell leaves it."""
    for before, word in zip(["", *args], args, strict=False):
        name, equals, value = word.partition("=")
        if not (word == "" or (name.startswith("--") and equals and not value)):
            continue
        option = name or (before if before.startswith("--") and before != "--json" else "")
        if option or args[0] != "judge":  # an answer may be empty
            raise ValueError(f"{option or 'an argument'} is empty: give a value, or leave it out")


def _refuse_twice(args: Sequence[str]) -> None:
    """Refuse `--set a=1 --set b=2`, of which the parser would drop the first values without a word."""
    options = Counter(word.partition("=")[0] for word in args if args[0] != "judge")  # whose words are answers
    if twice := [option for option in SEVERAL if options[option] > 1]:
        raise ValueError(f"{twice[0]} is given twice: give it once, with all of its values behind it")


if __name__ == "__main__":
    sys.exit(main())
