"""The command line: `entropyfloor train control`, `entropyfloor evaluate run`, `entropyfloor report`, ….

Commands are subcommands of tyro. A command imports its room only when its words are typed, so that a report needs
no simulator and help appears at once. Options belong to the rooms: they are the fields of a config, or the
arguments of the function that does the work.
"""

import importlib
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields
from functools import partial, wraps
from json import dumps
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Union

from entropyfloor import __version__
from entropyfloor.extras import FAILED, REFUSED, one_line, require

CLOSED_PIPE = 141
"""Exit status, as shells have it for SIGPIPE."""


# --- train -----------------------------------------------------------------------------------------------


def train_control(args: Sequence[str]) -> Callable[..., None]:
    """Train an agent on a simulator."""
    from entropyfloor.control import train
    from entropyfloor.control.config import CONFIGS

    summary = f"""Train an agent on a simulator.

        Agents: {", ".join(CONFIGS)}. `--agent ppo --help` shows the settings of PPO, and so on.
        On an accelerator several seeds train all at once."""
    return _trainer("control", summary, train, _control_config(args), args)


def _control_config(args: Sequence[str]) -> Any:
    """The class of the agent's settings; the parser refuses the name of an agent that does not exist."""
    from entropyfloor.control.config import CONFIGS

    return CONFIGS.get(_value_of("--agent", args) or "", CONFIGS["sac-era-exact"])


def train_vision(args: Sequence[str]) -> Callable[..., None]:
    """Train an image classifier."""
    from entropyfloor.vision import train
    from entropyfloor.vision.config import VisionConfig

    summary = """Train an image classifier.

        Any model of timm, with a floor under the entropy of its predictions, with its rivals, or plain."""
    return _trainer("vision", summary, train, VisionConfig, args)


def train_language(args: Sequence[str]) -> Callable[..., None]:
    """Train a language model by RL on problems whose answers can be checked."""
    from entropyfloor.language import train
    from entropyfloor.language.config import LanguageConfig

    summary = """Train a language model by RL on problems whose answers can be checked.

        GRPO, Dr. GRPO or GSPO, with ERA or with its rivals: an entropy bonus, clip-higher, KL-Cov, Clip-Cov,
        forking tokens, a KL divergence to the initial model."""
    return _trainer("language", summary, train, LanguageConfig, args)


def _trainer(domain: str, summary: str, module: Any, kind: Any, args: Sequence[str]) -> Callable[..., None]:
    """The command that begins a run, or several, or resumes one.

    Args:
        domain: Name of the room, which is that of its extra.
        summary: Help of the command.
        module: Module with `train`, `train_seeds` and `resume`.
        kind: Class of the settings.
        args: Arguments of the command.
    """
    from entropyfloor.runs.settings import changeable

    require(domain, "tyro")
    import tyro

    options = ", ".join(f"--{name.replace('_', '-')}" for name in changeable(kind))

    def command(
        config: tyro.conf.OmitArgPrefixes[kind], resume: Path | None = None, seeds: tuple[int, ...] = ()
    ) -> None:
        if resume is None:
            _print_runs(module.train_seeds(config, seeds) if seeds else [module.train(config)])
            return
        given = _given(args, kind)
        if seeds or not given <= set(changeable(kind)):
            raise ValueError(
                f"--resume goes alone (but for {options}): a resumed run keeps the settings that it began with"
            )
        with _naming(resume):
            _print_runs([module.resume(resume, **{name: getattr(config, name) for name in given})])

    command.__doc__ = f"""{summary}

        Args:
            config: Settings.
            resume: Continue the run in this directory, with the settings that it began with, but for those of
                {options} that are given.
            seeds: Train these seeds instead of `seed`: on CPUs one process a core. The same command goes on with
                seeds that have not finished.
        """
    return command


def _given(args: Sequence[str], kind: Any) -> set[str]:
    """Names of the settings that stand in the arguments."""
    words = (word[2:].partition("=")[0].replace("-", "_") for word in args if word.startswith("--"))
    names = {field.name for field in fields(kind)}
    return {name for word in words for name in (word, word.removeprefix("no_")) if name in names}


def _print_runs(paths: Sequence[Path]) -> None:
    for path in paths:
        print(f"run: {path}")
    print(f"report: entropyfloor report {paths[0] if len(paths) == 1 else paths[0].parent}")


# --- use what was trained --------------------------------------------------------------------------------


def evaluate_run(args: Sequence[str]) -> Callable[..., None]:
    """Evaluate what a run has trained: a policy, a classifier or a language model, with intervals."""
    path = next((Path(word) for word in args if Path(word, "config.toml").exists()), None)
    if path is None:

        def unknown(run: Path) -> None:
            """Evaluate what a run has trained: a policy, a classifier or a language model, with intervals.

            The options follow from the run: `entropyfloor evaluate run RUN --help` shows them.

            Args:
                run: Run directory with a checkpoint.
            """
            _domain(run)

        return unknown
    function = importlib.import_module(f"entropyfloor.{_domain(path)}.evaluate").evaluate

    require("report", "tyro")
    import tyro

    @wraps(function)
    def command(*values: Any, **options: Any) -> None:
        with _naming(path):
            print(function(*values, **options))

    return tyro.conf.configure(tyro.conf.PositionalRequiredArgs)(command)


def evaluate_benchmark(args: Sequence[str]) -> Callable[..., None]:  # noqa: ARG001
    """Evaluate any language model on benchmarks of mathematics and knowledge."""
    from entropyfloor.language.benchmarks.evaluate import EvaluationConfig, evaluate
    from entropyfloor.runs.processes import terminated_as_interrupted

    require("language", "tyro")
    import tyro

    def command(config: tyro.conf.OmitArgPrefixes[EvaluationConfig]) -> None:
        """Evaluate any language model on benchmarks of mathematics and knowledge.

        Greedy accuracy, avg@k, pass@k and majority votes, with intervals. The same command goes on with what is
        missing.

        Args:
            config: Settings.
        """
        resolved = config.resolved()
        with terminated_as_interrupted():
            print(evaluate(resolved))
        with suppress(ImportError):  # the numbers are there without the extra that draws
            from entropyfloor.report import draw_benchmarks

            if picture := draw_benchmarks(Path(str(resolved.out))):
                print(f"pass@k        {picture}")

    return command


def judge(args: Sequence[str]) -> Callable[..., None]:  # noqa: ARG001
    """Say whether an answer is right, and why, as training and evaluation judge it."""
    from entropyfloor.language.rewards import judge as module

    require("language", "tyro")
    import tyro

    def command(
        answers: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="ANSWER GOLD")] = (),
        pairs: Path | None = None,
        choices: int | None = None,
        json: bool = False,
    ) -> None:
        """Say whether an answer is right, and why, as training and evaluation judge it.

        Args:
            answers: An answer and the right answer. Of a text with boxes the last box counts, else all of it.
            pairs: Instead, a file with an object on each line that has `said` and `gold`.
            choices: Read letters of a multiple choice with so many choices: A and so on.
            json: Print an object on each line, with `correct` and `reason`.
        """
        if len(answers) != (0 if pairs else 2):
            raise ValueError("give two texts in quotes, ANSWER and GOLD, or else --pairs FILE.jsonl")
        todo = module.read_pairs(pairs, choices) if pairs else [module.Pair(*map(str.strip, answers))]
        correct = 0
        for number, verdict in enumerate(module.judge(todo, choices), start=1):
            correct += verdict.correct
            if json:
                print(dumps({"correct": verdict.correct, "reason": verdict.reason}), flush=True)
            else:
                line = module.summary(verdict)
                print(f"{number}: {line}" if pairs else line, flush=True)
        if pairs and not json:
            print(f"{correct} of {len(todo)} are correct")

    return command


def export(args: Sequence[str]) -> Callable[..., None]:  # noqa: ARG001
    """Write a policy as ONNX, a classifier for plain timm, or a language model for transformers."""
    require("report", "tyro")
    import tyro

    def command(run: Annotated[Path, tyro.conf.Positional], out: Path) -> None:
        """Write a policy as ONNX, a classifier for plain timm, or a language model for transformers.

        Args:
            run: Run directory with a checkpoint.
            out: A file that ends in .onnx for a policy or in .safetensors for a classifier; a directory for a
                language model.
        """
        with _naming(run):
            print(importlib.import_module(f"entropyfloor.{_domain(run)}.export").export(run, out))

    return command


@contextmanager
def _naming(run: Path) -> Iterator[None]:
    """Name the run in a refusal that does not: a wrong setting of it, for example."""
    try:
        yield
    except ValueError as error:
        raise error if str(run) in str(error) else ValueError(f"{run}: {error}") from error


def _domain(run: Path) -> str:
    """The room that a run belongs to."""
    from entropyfloor.runs.run_reader import read_config

    domain = str(read_config(run).get("domain"))
    if domain not in ("control", "vision", "language"):
        raise ValueError(f"{run} is a run of domain={domain!r}: it must be control, vision or language")
    return domain


# --- experiments and reports -----------------------------------------------------------------------------


def reproduce(args: Sequence[str]) -> Callable[..., None]:  # noqa: ARG001
    """Run an experiment of the paper, at its scale or a smaller one."""
    from entropyfloor.experiments import recipe as recipes
    from entropyfloor.experiments import reproduce as experiments
    from entropyfloor.experiments.settle import settle
    from entropyfloor.runs.processes import cores

    require("report", "tyro")
    import tyro

    def command(
        recipe: Annotated[str, tyro.conf.Positional] = "",
        scale: Literal["paper", "gpu", "cpu"] = "cpu",
        arms: tuple[str, ...] = (),
        seeds: tuple[int, ...] = (),
        out: Path | None = None,
        set_: Annotated[tuple[str, ...], tyro.conf.arg(name="set")] = (),
        workers: int | None = None,
        dry_run: bool = False,
    ) -> None:
        """Run an experiment of the paper, at its scale or a smaller one.

        Without a recipe, the recipes are listed. The same command goes on with what is not finished.

        Args:
            recipe: A recipe such as vision/cifar10, or a file of one's own that ends in .toml.
            scale: The paper's own size, one accelerator's, or a CPU's.
            arms: Run only these arms of the comparison.
            seeds: Seeds instead of the recipe's.
            out: Directory of the runs; by default runs/<recipe>/<scale>.
            set_: Settings instead of the recipe's, such as data_dir=/where/cifar10/is.
            workers: Runs at a time; by default one for each core at the scale of a CPU, else one.
            dry_run: Print the commands and run nothing.
        """
        if not recipe:
            for name in recipes.names():
                listed = recipes.load(name)
                print(f"{name:<32}{listed.title}; {', '.join(listed.scales)} ({listed.source})")
            return
        if workers is not None and workers < 1:
            raise ValueError(f"--workers {workers} must be at least 1")
        # A file may be anywhere; its runs are in runs/ all the same.
        parts = [part for part in Path(recipe.removesuffix(".toml")).parts if part not in (os.sep, os.pardir)]
        home = out or Path("runs", *parts, scale)
        settings = dict(recipes.setting(change) for change in set_)
        chosen = recipes.load(recipe)
        plan = settle(chosen.runs(scale, home, arms=arms, seeds=seeds, settings=settings), recipe, _planned_config)
        if dry_run:
            for run in plan:
                start = ["entropyfloor"] if run.devices == 1 else ["python", "-m", *run.launcher]
                print(shlex.join([*start, *run.command]))
            return
        experiments.reproduce(plan, workers or (cores() if scale == "cpu" else 1))
        for arm, reported in chosen.published.items():
            values = ", ".join(f"{quantity} {value}" for quantity, value in reported.items())
            print(f"{chosen.source}, {arm}: {values}")
        if chosen.does == "train":
            print(f"report: entropyfloor report {home}")
        else:
            print("\n".join(f"scores: {run.out}, log: {experiments.log(run)}" for run in plan))

    return command


def _planned_config(run: Any) -> Any:
    """The class of the settings of a planned run."""
    if run.domain == "control":
        return _control_config(run.command)
    module, name = {
        ("train", "vision"): ("vision.config", "VisionConfig"),
        ("train", "language"): ("language.config", "LanguageConfig"),
        ("evaluate", "language"): ("language.benchmarks.evaluate", "EvaluationConfig"),
    }[run.does, run.domain]
    return getattr(importlib.import_module(f"entropyfloor.{module}"), name)


def report(args: Sequence[str]) -> Callable[..., None]:  # noqa: ARG001
    """Draw runs: learning curves, and realised entropy beside its floor."""
    from entropyfloor.report import write_report

    require("report", "tyro")
    import tyro

    def command(
        paths: Annotated[tuple[Path, ...], tyro.conf.Positional] = (Path("runs"),), out: Path = Path("report")
    ) -> None:
        """Draw runs: learning curves, and realised entropy beside its floor.

        Args:
            paths: Run directories, or directories that hold some.
            out: Directory of the page and the figures.
        """
        page = write_report(paths, out, tell=lambda line: print(line, file=sys.stderr))
        print(f"page: {page.resolve().as_uri()}")

    return command


def doctor(args: Sequence[str]) -> Callable[..., None]:  # noqa: ARG001
    """Say what this machine and this installation can do."""
    from entropyfloor.runs import machine

    def command() -> None:
        """Say what this machine and this installation can do."""
        description = machine.describe()
        lines = {name.replace("_", " "): value for name, value in description["hardware"].items()}
        free = f"{shutil.disk_usage(Path.cwd()).free / 2**30:.1f} GB"
        lines |= {"system": description["system"], "free disk here": free, **description["versions"]}
        for room in ("torch", "jax", "control", "vision", "language", "report"):
            try:
                importlib.import_module(f"entropyfloor.{room}")
                lines[f"entropyfloor.{room}"] = "ready"
            except ImportError as error:
                lines[f"entropyfloor.{room}"] = str(error)
        print("\n".join(f"{name:<24}{value or 'none found'}" for name, value in lines.items()))

    return command


# --- the tree of commands --------------------------------------------------------------------------------


class Group(NamedTuple):
    """A word that other words follow."""

    summary: str
    commands: Mapping[str, Callable[[Sequence[str]], Callable[..., None]]]


COMMANDS: Mapping[str, Any] = {
    "train": Group(
        "Train an agent, an image classifier or a language model.",
        {"control": train_control, "vision": train_vision, "language": train_language},
    ),
    "evaluate": Group(
        "Evaluate a run (`evaluate RUN` for short), or a language model on benchmarks.",
        {"run": evaluate_run, "benchmark": evaluate_benchmark},
    ),
    "judge": judge,
    "export": export,
    "reproduce": reproduce,
    "report": report,
    "doctor": doctor,
}


def main(args: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit status: 0, 1 for a run that failed, 2 for a command that cannot be carried out, 130 for Ctrl-C,
        141 where the reader of its output has gone.
    """
    args = list(sys.argv[1:] if args is None else args)
    if args == ["--version"]:
        print(f"entropyfloor {__version__}")
        return 0
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
        return CLOSED_PIPE
    except REFUSED as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    except FAILED as error:
        print(f"failed: {one_line(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:
        print(f"stopped{': ' if error.args else ''}{error}", file=sys.stderr)
        return 130
    return 0


def _long_form(args: Sequence[str]) -> list[str]:
    """The arguments with short and earlier forms of commands written out."""
    match args:
        case []:
            return ["--help"]
        case ["evaluate", "language", *rest]:  # its name before 0.2
            return ["evaluate", "benchmark", *rest]
        case ["evaluate", word, *rest] if word not in (*COMMANDS["evaluate"].commands, "-h", "--help"):
            return ["evaluate", "run", word, *rest]
        case ["judge", *rest]:
            # A text such as -x is no option; a word with a space in it is none to the parser.
            return [
                "judge",
                *(f" {word}" if word[:1] == "-" != word[1:2] and word != "-h" else word for word in rest),
            ]
    return list(args)


def _parse(args: Sequence[str]) -> Callable[[], None]:
    """The command that the arguments ask for, ready to be called."""
    _refuse_empty(args)
    require("runs", "tyro")
    import tyro

    def subcommand(name: str, load: Any, words: Sequence[str]) -> Any:
        """A subcommand; all but the one that is asked for are names without options."""
        asked, behind = words[:1] == [name], list(words[1:])
        if isinstance(load, Group):
            inner = tree(load.commands, behind if asked else [])
            marker = tyro.conf.subcommand(name, constructor_factory=lambda: inner, description=load.summary)
        else:
            command = _deferred(load(behind)) if asked else _nothing
            marker = tyro.conf.subcommand(name, constructor=command, description=None if asked else load.__doc__)
        return Annotated[Any, marker]

    def tree(commands: Mapping[str, Any], words: Sequence[str]) -> Any:
        union: Any = Union
        return union[tuple(subcommand(name, load, words) for name, load in commands.items())]

    command: Callable[[], None] = tyro.cli(tree(COMMANDS, args), prog="entropyfloor", args=args)
    return command


def _deferred(command: Callable[..., None]) -> Callable[..., Callable[[], None]]:
    """The command for the parser, which is to read its arguments and not yet to run it."""

    @wraps(command)
    def bind(*values: Any, **options: Any) -> Callable[[], None]:
        return partial(command, *values, **options)

    return bind


def _nothing() -> Callable[[], None]:
    raise AssertionError("only the command that is asked for is called")


def _refuse_empty(args: Sequence[str]) -> None:
    """Refuse an option or an argument that is empty, as an unset variable of a shell leaves it."""
    for before, word in zip(["", *args], args, strict=False):
        option, equals, value = word.partition("=") if word.startswith("--") else (before, "=", word)
        if equals and not value and (option.startswith("--") or args[0] != "judge"):  # an answer may be empty
            raise ValueError(f"{option or 'an argument'} is empty: give a value, or leave it out")


def _value_of(option: str, args: Sequence[str]) -> str | None:
    """The value of an option, before the parser knows which options there are."""
    for i, word in enumerate(args):
        name, equals, value = word.partition("=")
        if name.replace("_", "-") == option:
            return value if equals else next(iter(args[i + 1 :]), None)
    return None


if __name__ == "__main__":
    sys.exit(main())
