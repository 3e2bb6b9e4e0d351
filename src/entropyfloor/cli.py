"""The command line: `entropyfloor train control`, `entropyfloor train vision`, `entropyfloor report`, ….

Each command imports what it needs when it is called, so that a report needs no simulator and help appears at once.
"""

import importlib
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields
from json import dumps
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from entropyfloor import __version__
from entropyfloor.extras import FAILED, REFUSED, one_line, require

T = TypeVar("T")
CLOSED_PIPE = 141
"""Exit status, as shells have it for SIGPIPE."""


def train_control(args: Sequence[str]) -> None:
    """Train an agent on a simulator."""
    from entropyfloor.control import train as room
    from entropyfloor.control.config import CONFIGS

    about = f"""Train an agent on a simulator.

        Agents: {", ".join(CONFIGS)}. `--agent ppo --help` shows the settings of PPO, and so on.
        On an accelerator several seeds train all at once."""
    _train("control", about, room, _control_settings(args), args, settled=bool(_value_of("--agent", args)))


def _control_settings(args: Sequence[str]) -> Any:
    """The class of the agent's settings; a name that does not exist is left to the parser to refuse."""
    from entropyfloor.control.config import CONFIGS

    return CONFIGS.get(_value_of("--agent", args) or "", CONFIGS["sac-era-exact"])


def train_vision(args: Sequence[str]) -> None:
    """Train an image classifier."""
    from entropyfloor.vision import train as room
    from entropyfloor.vision.config import VisionConfig

    about = """Train an image classifier.

        Any of timm, with a floor under the entropy of its predictions, with its rivals, or plain."""
    _train("vision", about, room, VisionConfig, args)


def train_language(args: Sequence[str]) -> None:
    """Train a language model by RL on problems whose answers can be checked."""
    from entropyfloor.language import train as room
    from entropyfloor.language.config import LanguageConfig

    about = """Train a language model by RL on problems whose answers can be checked.

        GRPO, Dr. GRPO or GSPO, with ERA or what is compared with it: an entropy bonus, clip-higher, KL-Cov,
        Clip-Cov, forking tokens, a KL divergence to where it began."""
    _train("language", about, room, LanguageConfig, args)


def _train(domain: str, about: str, room: Any, kind: Any, args: Sequence[str], *, settled: bool = False) -> None:
    """Begin a run, or several, or resume one.

    Args:
        domain: Name of the room.
        about: What the command does, for its help.
        room: The module that trains.
        kind: Class of its settings.
        args: Of the command line.
        settled: Whether a setting was given that `config` may not show, as it is the default.
    """
    from entropyfloor.runs.resume import PLACES

    require(domain, "tyro")
    import tyro

    def parse(
        config: tyro.conf.OmitArgPrefixes[kind], resume: Path | None = None, seeds: tuple[int, ...] = ()
    ) -> tuple[Any, Path | None, tuple[int, ...]]:
        return config, resume, seeds

    known = {field.name for field in fields(kind)}
    options = {f"--{name.replace('_', '-')}": name for name in PLACES if name in known}
    places_too = f" (but for {' and '.join(options)}: where its files are now)" if options else ""
    parse.__doc__ = f"""{about}

        Args:
            config: Settings.
            resume: Continue the run in this directory, with the settings that it began with{places_too}.
            seeds: Train these instead of `seed`: on CPUs one process a core. The same command goes on with what it
                began.
        """
    config, path, seeds = _parse(parse, f"train {domain}", args)
    if path is None:
        _say_where(room.train_seeds(config, seeds) if seeds else [room.train(config)])
        return
    given = {name for option, name in options.items() if _value_of(option, args) is not None}
    where = {name: getattr(config, name) for name in given}
    if seeds or settled or config != kind(**where):
        raise ValueError(f"--resume goes alone{places_too}: a resumed run keeps the settings that it began with")
    with _naming(path):
        _say_where([room.resume(path, **where)])


def evaluate(args: Sequence[str]) -> None:
    """Judge what a run has trained: a policy, a classifier or a language model, with intervals."""
    require("report", "tyro")
    import tyro

    def parse(
        run: Annotated[Path, tyro.conf.Positional],
        episodes: int | None = None,
        seed: int | None = None,
        video: Path | None = None,
        data: Path | None = None,
        test_data: Path | None = None,
        data_dir: Path | None = None,
        ood: Literal["cifar10", "cifar100", "digits", "folder"] | None = None,
        ood_dir: Path | None = None,
        max_episode_steps: int | None = None,
        problems: int | None = None,
        samples: int | None = None,
        temperature: float | None = None,
    ) -> tuple[Path, dict[str, dict[str, Any]]]:
        """Judge what a run has trained: a policy, a classifier or a language model, with intervals.

        Args:
            run: A run directory with a checkpoint.
            episodes: Policies: how many to play, 100 by default.
            seed: Policies: of the episodes, which training and its evaluations never use; 0 by default.
            video: Policies: film the first episode into this file, .mp4 (also where it has no ending) or .gif.
            max_episode_steps: Policies: steps after which an episode is cut off, instead of the run's own limit.
            data_dir: Classifiers: where the dataset is now, if it was moved.
            ood: Classifiers: a dataset of other things, whose test images the model should be unsure of.
            ood_dir: Classifiers: where it is.
            problems: Language models: how many held-out problems at most, 256 by default.
            samples: Language models: responses to each, 64 by default.
            temperature: Language models: of sampling, if not that of the run's evaluations.
            data: Language models: where the task's file is now, if it was moved.
            test_data: Language models: where the file to be judged on is now.
        """
        return run, {
            "control": {
                "episodes": episodes,
                "seed": seed,
                "video": video,
                "max_episode_steps": max_episode_steps,
            },
            "vision": {"data_dir": data_dir, "ood": ood, "ood_dir": ood_dir},
            "language": {
                "problems": problems,
                "samples": samples,
                "temperature": temperature,
                "data": data,
                "test_data": test_data,
            },
        }

    run, options = _parse(parse, "evaluate", args)
    domain = _domain(run)
    given = {
        (of, name): value for of, each in options.items() for name, value in each.items() if value is not None
    }
    if wrong := [name for of, name in given if of != domain]:
        raise ValueError(f"--{wrong[0].replace('_', '-')} is nothing that a run of domain={domain!r} knows")
    room = {"vision": "vision.evaluate", "language": "language.evaluate"}.get(domain, "control.evaluate")
    judge = importlib.import_module(f"entropyfloor.{room}").evaluate
    with _naming(run):
        print(judge(run, **{name: value for (_, name), value in given.items()}))


def evaluate_language(args: Sequence[str]) -> None:
    """Judge any language model on benchmarks of mathematics and knowledge."""
    from entropyfloor.language.benchmarks.evaluate import EvaluationConfig
    from entropyfloor.language.benchmarks.evaluate import evaluate as judge
    from entropyfloor.runs.processes import terminated_as_interrupted

    require("language", "tyro")
    import tyro

    def parse(config: tyro.conf.OmitArgPrefixes[EvaluationConfig]) -> EvaluationConfig:
        """Judge any language model on benchmarks of mathematics and knowledge.

        Greedy accuracy, avg@k, pass@k, majority votes, with intervals. The same command goes on with the rest.

        Args:
            config: Settings.
        """
        return config

    config = _parse(parse, "evaluate language", args).resolved()
    with terminated_as_interrupted():
        print(judge(config))
    with suppress(ImportError):  # the numbers are there without the extra that draws
        from entropyfloor.report import draw_benchmarks

        if picture := draw_benchmarks(Path(str(config.out))):
            print(f"pass@k        {picture}")


def judge(args: Sequence[str]) -> None:
    """Say whether an answer is right, and why, as training and evaluation judge it."""
    from entropyfloor.language.rewards import judge as room

    require("language", "tyro")
    import tyro

    def parse(
        answers: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="SAID GOLD")] = (),
        pairs: Path | None = None,
        choices: int | None = None,
        json: bool = False,
    ) -> tuple[tuple[str, ...], Path | None, int | None, bool]:
        """Say whether an answer is right, and why, as training and evaluation judge it.

        Args:
            answers: What is said, and the right answer. Of a text with a box the last box counts, else all of it.
            pairs: Instead, a file with an object a line that has `said` and `gold`.
            choices: Read letters, of so many choices: A and so on.
            json: Print an object a line, with `correct` and `reason`.
        """
        return answers, pairs, choices, json

    # A text such as -x is no option; what has a space in it is none to the parser.
    words = [f" {word}" if word[:1] == "-" != word[1:2] and word != "-h" else word for word in args]
    answers, path, choices, as_json = _parse(parse, "judge", words)
    if len(answers) != (0 if path else 2):
        raise ValueError("give two texts in quotes, SAID and GOLD, or else --pairs FILE.jsonl")
    pairs = room.read_pairs(path, choices) if path else [room.Pair(*map(str.strip, answers))]
    found = []
    for number, verdict in enumerate(room.judge(pairs, choices), start=1):
        found.append(verdict)
        if as_json:
            print(dumps({"correct": verdict.correct, "reason": verdict.reason}), flush=True)
        else:
            line = room.summary(verdict)
            print(f"{number}: {line}" if path else line, flush=True)
    if path and not as_json:
        print(f"{sum(verdict.correct for verdict in found)} of {len(found)} are correct")


def export(args: Sequence[str]) -> None:
    """Write a trained classifier for plain timm, or a language model for transformers."""
    require("report", "tyro")
    import tyro

    def parse(run: Annotated[Path, tyro.conf.Positional], out: Path) -> tuple[Path, Path]:
        """Write a trained classifier for plain timm, or a language model for transformers.

        Args:
            run: A run directory with a checkpoint.
            out: Classifiers: a file that ends in .safetensors. Language models: a directory.
        """
        return run, out

    run, out = _parse(parse, "export", args)
    room = {"language": "language.evaluate"}.get(_domain(run), "vision.export")
    with _naming(run):
        print(importlib.import_module(f"entropyfloor.{room}").export(run, out))


@contextmanager
def _naming(run: Path) -> Iterator[None]:
    """Name the run in a refusal that does not: a wrong setting of it, for example."""
    try:
        yield
    except ValueError as error:
        raise error if str(run) in str(error) else ValueError(f"{run}: {error}") from error


def _domain(run: Path) -> str:
    """What kind of run it is."""
    from entropyfloor.runs.run_reader import read_config

    return str(read_config(run).get("domain"))


def reproduce(args: Sequence[str]) -> None:
    """Run an experiment of the paper, at its scale or a smaller one."""
    from entropyfloor.experiments import recipe as recipes
    from entropyfloor.experiments.reproduce import log_file
    from entropyfloor.experiments.reproduce import reproduce as carry_out
    from entropyfloor.experiments.settings import parse_settings
    from entropyfloor.runs.processes import cores

    require("report", "tyro")
    import tyro

    def parse(
        recipe: Annotated[str, tyro.conf.Positional] = "",
        scale: Literal["paper", "gpu", "cpu"] = "cpu",
        arms: tuple[str, ...] = (),
        seeds: tuple[int, ...] = (),
        out: Path | None = None,
        set_: Annotated[tuple[str, ...], tyro.conf.arg(name="set")] = (),
        workers: int | None = None,
        dry_run: bool = False,
    ) -> tuple[str, Any, tuple[str, ...], tuple[int, ...], Path | None, tuple[str, ...], int | None, bool]:
        """Run an experiment of the paper, at its scale or a smaller one.

        Without a recipe, the recipes are listed. The same command goes on with what is not finished.

        Args:
            recipe: Such as vision/cifar10, or a file of one's own that ends in .toml.
            scale: The paper's own size, one accelerator's, or a CPU's.
            arms: Only these of what is compared.
            seeds: Instead of the recipe's.
            out: Where the runs go; by default runs/<recipe>/<scale>.
            set_: Settings instead of the recipe's, such as data_dir=/where/cifar10/is.
            workers: Runs at a time; by default one for each core at the scale of a CPU, else one.
            dry_run: Print the commands, run nothing.
        """
        return recipe, scale, arms, seeds, out, set_, workers, dry_run

    name, scale, arms, seeds, out, changes, workers, dry = _parse(parse, "reproduce", args)
    if not name:
        for known in recipes.names():
            found = recipes.load(known)
            print(f"{known:<32}{found.title}; {', '.join(found.scales)} ({found.source})")
        return
    if workers is not None and workers < 1:
        raise ValueError(f"--workers {workers} must be at least 1")
    # A file may be anywhere; its runs are in runs/ all the same.
    places = [part for part in Path(name.removesuffix(".toml")).parts if part not in (os.sep, os.pardir)]
    home = out or Path("runs", *places, scale)
    settings = dict(recipes.setting(change) for change in changes)
    found = recipes.load(name)
    plan = parse_settings(
        found.runs(scale, home, arms=arms, seeds=seeds, settings=settings), name, _planned_settings
    )
    if dry:
        for run in plan:
            start = ["entropyfloor"] if run.devices == 1 else ["python", "-m", *run.launcher]
            print(shlex.join([*start, *run.command]))
        return
    carry_out(plan, workers or (cores() if scale == "cpu" else 1))
    for arm, reported in found.published.items():
        told = ", ".join(f"{quantity} {value}" for quantity, value in reported.items())
        print(f"{found.source}, {arm}: {told}")
    if found.mode == "train":
        print(f"report: entropyfloor report {home}")
    else:
        print("\n".join(f"scores: {run.out}, in words {log_file(run)}" for run in plan))


def _planned_settings(run: Any) -> Any:
    """The class of the settings of a run that is planned."""
    if run.domain == "control":
        return _control_settings(run.command)
    room, name = {
        ("train", "vision"): ("vision.config", "VisionConfig"),
        ("train", "language"): ("language.config", "LanguageConfig"),
        ("evaluate", "language"): ("language.benchmarks.evaluate", "EvaluationConfig"),
    }[run.mode, run.domain]
    return getattr(importlib.import_module(f"entropyfloor.{room}"), name)


def report(args: Sequence[str]) -> None:
    """Draw runs: learning curves, and realised entropy beside its floor."""
    from entropyfloor.report import write_report

    require("report", "tyro")
    import tyro

    def parse(
        paths: Annotated[tuple[Path, ...], tyro.conf.Positional] = (Path("runs"),), out: Path = Path("report")
    ) -> tuple[tuple[Path, ...], Path]:
        """Draw runs: learning curves, and realised entropy beside its floor.

        Args:
            paths: Run directories, or directories that hold some.
            out: Where the page and the figures go.
        """
        return paths, out

    paths, out = _parse(parse, "report", args)
    page = write_report(paths, out, warn=lambda line: print(line, file=sys.stderr))
    print(f"page: {page.resolve().as_uri()}")


def doctor(args: Sequence[str]) -> None:
    """Say what this machine and this installation can do."""
    from entropyfloor.runs import machine

    require("report", "tyro")

    def parse() -> None:
        """Say what this machine and this installation can do."""

    _parse(parse, "doctor", args)
    found = machine.describe()
    lines = {name.replace("_", " "): value for name, value in found["hardware"].items()}
    lines |= {"system": found["system"], "free disk here": f"{shutil.disk_usage(Path.cwd()).free / 2**30:.1f} GB"}
    lines |= found["versions"]
    for room in ("torch", "jax", "control", "vision", "language", "report"):
        try:
            importlib.import_module(f"entropyfloor.{room}")
            lines[f"entropyfloor.{room}"] = "ready"
        except ImportError as error:
            lines[f"entropyfloor.{room}"] = str(error)
    print("\n".join(f"{name:<24}{value or 'none found'}" for name, value in lines.items()))


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "train control": train_control,
    "train vision": train_vision,
    "train language": train_language,
    "evaluate language": evaluate_language,
    "evaluate": evaluate,
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
        141 where nobody reads what it says any more.
    """
    args = sys.argv[1:] if args is None else list(args)
    if args == ["--version"]:
        print(f"entropyfloor {__version__}")
        return 0
    for name, command in COMMANDS.items():
        words = name.split()
        if args[: len(words)] == words:
            return _guarded(command, args[len(words) :])
    wanted = args in ([], ["-h"], ["--help"])
    lines = [f"  entropyfloor {name:<16}{command.__doc__}" for name, command in COMMANDS.items()]
    head = "" if wanted else f"error: there is no command {' '.join(args)!r}\n\n"
    usage = f"{head}Commands (each explains itself with --help):\n" + "\n".join(
        [*lines, "  entropyfloor --version"]
    )
    print(usage, file=sys.stdout if wanted else sys.stderr)
    return 0 if wanted else 2


def _guarded(command: Callable[[Sequence[str]], None], args: Sequence[str]) -> int:
    """One line instead of a traceback where the message already says what is wrong and the way out."""
    try:
        command(args)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads, such as `head`, has seen enough
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


def _say_where(paths: Sequence[Path]) -> None:
    for path in paths:
        print(f"run: {path}")
    print(f"report: entropyfloor report {paths[0] if len(paths) == 1 else paths[0].parent}")


def _value_of(option: str, args: Sequence[str]) -> str | None:
    """What stands behind an option, before the parser knows which options there are."""
    for i, word in enumerate(args):
        name, equals, value = word.partition("=")
        if name.replace("_", "-") == option:
            return value if equals else next(iter(args[i + 1 :]), None)
    return None


def _parse(function: Callable[..., T], name: str, args: Sequence[str]) -> T:
    import tyro

    for before, word in zip(["", *args], args, strict=False):
        option, equals, value = word.partition("=") if word.startswith("--") else (before, "=", word)
        if equals and not value and (option.startswith("--") or name != "judge"):  # who may have said nothing
            raise ValueError(f"{option or 'an argument'} is empty: give a value, or leave it out")
    return tyro.cli(function, prog=f"entropyfloor {name}", args=args)


if __name__ == "__main__":
    sys.exit(main())
