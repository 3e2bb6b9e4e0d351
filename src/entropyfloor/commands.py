"""The commands of `entropyfloor`, each a function from its arguments to the function that tyro parses and calls.

A command imports its package only when it is chosen. The package defines its options: they are the fields of a
config, or the arguments of the function that does the work.
"""

import importlib
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields
from functools import wraps
from json import dumps
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import tyro

# --- train -----------------------------------------------------------------------------------------------


def train_control(args: Sequence[str]) -> Callable[..., None]:
    """Train an agent on a simulator."""
    from entropyfloor.control import train
    from entropyfloor.control.config import CONFIGS

    summary = f"""Train an agent on a simulator.

        Agents: {", ".join(CONFIGS)}. `--agent ppo --help` shows the settings of PPO, and likewise for
        the others. On an accelerator, several seeds train at once."""
    return _trainer(summary, train, _control_config(args), args)


def _control_config(args: Sequence[str]) -> Any:
    """The class of the agent's settings; the parser refuses the name of an agent that does not exist."""
    from entropyfloor.control.config import CONFIGS

    return CONFIGS.get(_value_of("--agent", args) or "", CONFIGS["sac-era-exact"])


def train_vision(args: Sequence[str]) -> Callable[..., None]:
    """Train an image classifier."""
    from entropyfloor.vision import train
    from entropyfloor.vision.config import VisionConfig

    summary = """Train an image classifier.

        Any classifier of timm, with a floor under the entropy of its predictions, with a baseline, or plain."""
    return _trainer(summary, train, VisionConfig, args)


def train_language(args: Sequence[str]) -> Callable[..., None]:
    """Train a language model by RL on problems whose answers can be checked."""
    from entropyfloor.language import train
    from entropyfloor.language.config import LanguageConfig

    summary = """Train a language model by RL on problems whose answers can be checked.

        GRPO, Dr. GRPO or GSPO, with ERA or a baseline: an entropy bonus, clip-higher, KL-Cov, Clip-Cov, forking
        tokens, a KL divergence to the initial model."""
    return _trainer(summary, train, LanguageConfig, args)


def _trainer(summary: str, module: Any, kind: Any, args: Sequence[str]) -> Callable[..., None]:
    """The command that begins a run, or several, or resumes one.

    Args:
        summary: Help of the command.
        module: Module with `train`, `train_seeds` and `resume`.
        kind: Class of the settings.
        args: Arguments of the command.
    """
    from entropyfloor.runs.settings import changeable

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
                f"--resume can be combined only with {options}: a resumed run keeps its other settings"
            )
        with _naming(resume):
            _print_runs([module.resume(resume, **{name: getattr(config, name) for name in given})])

    command.__doc__ = f"""{summary}

        Args:
            config: Settings.
            resume: Continue the run in this directory with its own settings. Only these may be changed:
                {options}.
            seeds: Train these seeds instead of `seed`, on CPUs in one process per core. The same command continues
                seeds that have not finished.
        """
    return command


def _given(args: Sequence[str], kind: Any) -> set[str]:
    """Names of the settings that stand in the arguments."""
    words = (word[2:].partition("=")[0].replace("-", "_") for word in args if word.startswith("--"))
    names = {field.name for field in fields(kind)}
    return {name for word in words for name in (word, word.removeprefix("no_")) if name in names}


def _value_of(option: str, args: Sequence[str]) -> str | None:
    """The value of an option, before the parser knows which options there are."""
    for i, word in enumerate(args):
        name, equals, value = word.partition("=")
        if name.replace("_", "-") == option:
            return value if equals else next(iter(args[i + 1 :]), None)
    return None


def _print_runs(paths: Sequence[Path]) -> None:
    for path in paths:
        print(f"run: {path}")
    print(f"report: entropyfloor report {shlex.quote(str(paths[0] if len(paths) == 1 else paths[0].parent))}")


# --- use what was trained --------------------------------------------------------------------------------


def evaluate_run(args: Sequence[str]) -> Callable[..., None]:
    """Evaluate what a run has trained: a policy, a classifier or a language model, with intervals."""
    # The run is the first word that is no option and, since every option takes a value, does not follow one.
    words = (word for before, word in zip(["", *args], args, strict=False) if before[:2] != "--" or "=" in before)
    path = next((Path(word) for word in words if not word.startswith("-")), None)
    if path is None:

        def command_without_run() -> None:
            """Evaluate what a run has trained: a policy, a classifier or a language model, with intervals.

            Give the run directory first. The options follow from the run: `entropyfloor evaluate RUN --help`.
            """
            raise ValueError("no run directory is given: write `entropyfloor evaluate RUN`")

        if args:  # options of a run, which nothing knows yet
            command_without_run()
        return command_without_run
    function = importlib.import_module(f"entropyfloor.{_domain(path)}.evaluate").evaluate

    @wraps(function)
    def command(*values: Any, **options: Any) -> None:
        with _naming(path):
            print(function(*values, **options))

    return tyro.conf.configure(tyro.conf.PositionalRequiredArgs)(command)


def evaluate_benchmark(args: Sequence[str]) -> Callable[..., None]:  # noqa: ARG001
    """Evaluate any language model on benchmarks of mathematics and knowledge."""
    from entropyfloor.language.benchmarks.evaluate import EvaluationConfig, evaluate
    from entropyfloor.runs.processes import terminated_as_interrupted

    def command(config: tyro.conf.OmitArgPrefixes[EvaluationConfig]) -> None:
        """Evaluate any language model on benchmarks of mathematics and knowledge.

        Greedy accuracy, avg@k, pass@k and majority votes, with intervals. The same command continues with
        the missing problems.

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
    """Say whether an answer is right, and why, by the rules of training and evaluation."""
    from entropyfloor.language import judge as module

    def command(
        answers: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="ANSWER GOLD")] = (),
        pairs: Path | None = None,
        choices: int | None = None,
        json: bool = False,
    ) -> None:
        """Say whether an answer is right, and why, by the rules of training and evaluation.

        Args:
            answers: An answer and the right answer. If a text has boxes, its last box is compared, else the whole
                text.
            pairs: File to read instead, with a JSON object on each line that has `said` and `gold`.
            choices: Number of choices, if the question is multiple choice: answers are then letters, from A.
            json: Print a JSON object on each line, with `correct` and `reason`.
        """
        if len(answers) != (0 if pairs else 2):
            raise ValueError("give two texts in quotes, ANSWER and GOLD, or --pairs FILE.jsonl")
        todo = module.read_pairs(pairs) if pairs else [module.Pair(*map(str.strip, answers))]
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

    def command(run: Annotated[Path, tyro.conf.Positional], out: Path) -> None:
        """Write a policy as ONNX, a classifier for plain timm, or a language model for transformers.

        Args:
            run: Run directory with a checkpoint, or one of its checkpoints.
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
    """The package that a run belongs to: control, vision or language."""
    from entropyfloor.runs.directory import run_directory
    from entropyfloor.runs.run_reader import read_config

    domain = str(read_config(run_directory(run)).get("domain"))
    if domain not in ("control", "vision", "language"):
        raise ValueError(f"{run} is a run of domain={domain!r}: it must be control, vision or language")
    return domain


# --- experiments and reports -----------------------------------------------------------------------------


def reproduce(args: Sequence[str]) -> Callable[..., None]:  # noqa: ARG001
    """Run an experiment of the paper, at its scale or a smaller one."""
    from entropyfloor.experiments import recipe as recipes
    from entropyfloor.experiments import reproduce as experiments
    from entropyfloor.experiments.settings import parse_settings
    from entropyfloor.runs.processes import cores

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

        Without a recipe, the recipes are listed. The same command continues unfinished runs.

        Args:
            recipe: A recipe such as vision/cifar10, or your own file that ends in .toml.
            scale: The paper's own size, one accelerator's, or a CPU's.
            arms: Run only these arms of the comparison.
            seeds: Seeds that replace the recipe's.
            out: Directory of the runs; by default runs/<recipe>/<scale>.
            set_: Settings that replace the recipe's, such as data_dir=/where/cifar10/is.
            workers: Number of runs at a time; by default one for each core at the scale of a CPU, else one.
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
        runs = chosen.runs(scale, home, arms=arms, seeds=seeds, settings=settings)
        plan = parse_settings(runs, recipe, _planned_config)
        if dry_run:
            for run in plan:
                start = ["entropyfloor"] if run.devices == 1 else ["python", "-m", *run.launcher]
                print(shlex.join([*start, *run.command]))
            return
        experiments.reproduce(plan, workers or (cores() if scale == "cpu" else 1))
        for arm, reported in chosen.published.items():
            values = ", ".join(f"{quantity} {value}" for quantity, value in reported.items())
            print(f"{chosen.source}, {arm}: {values}")
        if chosen.mode == "train":
            print(f"report: entropyfloor report {shlex.quote(str(home))}")
        else:
            print("\n".join(f"scores: {run.out}, log: {experiments.log_file(run)}" for run in plan))

    return command


def _planned_config(run: Any) -> Any:
    """The class of the settings of a planned run."""
    if run.domain == "control":
        return _control_config(run.command)
    module, name = {
        ("train", "vision"): ("vision.config", "VisionConfig"),
        ("train", "language"): ("language.config", "LanguageConfig"),
        ("evaluate", "language"): ("language.benchmarks.evaluate", "EvaluationConfig"),
    }[run.mode, run.domain]
    return getattr(importlib.import_module(f"entropyfloor.{module}"), name)


def report(args: Sequence[str]) -> Callable[..., None]:  # noqa: ARG001
    """Draw learning curves of runs, and their realised entropy with its floor."""
    from entropyfloor.report import write_report

    def command(
        paths: Annotated[tuple[Path, ...], tyro.conf.Positional] = (Path("runs"),), out: Path = Path("report")
    ) -> None:
        """Draw learning curves of runs, and their realised entropy with its floor.

        Args:
            paths: Run directories, or directories that contain them.
            out: Directory for the page and the figures.
        """
        page = write_report(paths, out, warn=lambda line: print(line, file=sys.stderr))
        print(f"page: {page.resolve().as_uri()}")

    return command


def doctor(args: Sequence[str]) -> Callable[..., None]:  # noqa: ARG001
    """Show hardware, versions, and which parts of this installation work."""
    from entropyfloor.runs import machine

    def command() -> None:
        """Show hardware, versions, and which parts of this installation work."""
        description = machine.describe()
        lines = {name.replace("_", " "): value for name, value in description["hardware"].items()}
        free = f"{shutil.disk_usage(Path.cwd()).free / 2**30:.1f} GB"
        lines |= {"system": description["system"], "free disk here": free, **description["versions"]}
        for package in ("torch", "jax", "control", "control.envs", "vision", "language", "report"):
            try:
                importlib.import_module(f"entropyfloor.{package}")
                lines[f"entropyfloor.{package}"] = "ready"
            except ImportError as error:
                lines[f"entropyfloor.{package}"] = str(error)
        print("\n".join(f"{name:<24}{value or 'none found'}" for name, value in lines.items()))

    return command


# --- the tree of commands --------------------------------------------------------------------------------


Command = Callable[[Sequence[str]], Callable[..., None]]


class Group(NamedTuple):
    """A command with subcommands."""

    summary: str
    commands: Mapping[str, Command]


COMMANDS: Mapping[str, Group | Command] = {
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
