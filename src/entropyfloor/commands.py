"""The commands of `entropyfloor`, each a function from its arguments to the function that tyro parses and calls.

A command imports its package only when it is chosen. The package defines its options: they are the fields of a
config, or the arguments of the function that does the work.
"""

import importlib
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import fields
from functools import partial, wraps
from json import dumps
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import tyro

Command = Callable[[Sequence[str]], Callable[..., None]]
"""A function from the arguments of a command to what the parser calls."""

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
    """The class of the agent's settings."""
    from entropyfloor.control.config import config_class

    return config_class(_value_of("--agent", args))


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
    path = _first_path(args)
    if path is None:
        return _without_run("evaluate", evaluate_run.__doc__, args)
    function = importlib.import_module(f"entropyfloor.{_domain(path)}.evaluate").evaluate

    @wraps(function)
    def command(*values: Any, **options: Any) -> None:
        with _naming(path):
            print(function(*values, **options))

    return tyro.conf.configure(tyro.conf.PositionalRequiredArgs)(command)


def _first_path(args: Sequence[str]) -> Path | None:
    """The first word that is no option and, since every option takes a value, does not follow one."""
    words = (word for before, word in zip(["", *args], args, strict=False) if before[:2] != "--" or "=" in before)
    return next((Path(word) for word in words if not word.startswith("-")), None)


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


# --- audit -----------------------------------------------------------------------------------------------


def audit_run(args: Sequence[str]) -> Callable[..., None]:
    """Measure the entropy of what a run has trained, in visited states, on test images or in responses."""
    path = _first_path(args)
    if path is None:
        return _without_run("audit", audit_run.__doc__, args)
    return _audit(audit_run, importlib.import_module(f"entropyfloor.audit.{_domain(path)}").run, path)


def audit_policy(args: Sequence[str]) -> Callable[..., None]:  # noqa: ARG001
    """Measure the entropy of a policy in a file: Stable-Baselines3, SBX, ONNX or TorchScript."""
    from entropyfloor.audit.policies import policy

    return _audit(audit_policy, policy)


def audit_classifier(args: Sequence[str]) -> Callable[..., None]:  # noqa: ARG001
    """Measure the entropy of any classifier of timm on images."""
    from entropyfloor.audit.vision import classifier

    return _audit(audit_classifier, classifier)


def audit_language(args: Sequence[str]) -> Callable[..., None]:  # noqa: ARG001
    """Measure the entropy of any language model in its responses, or in given ones."""
    from entropyfloor.audit.language import language_model

    return _audit(audit_language, language_model)


def _audit(kind: Command, measure: Callable[..., Any], run: Path | None = None) -> Callable[..., None]:
    """The command that measures a model; `kind` has its summary, and refusals name the run, if there is one."""
    from entropyfloor.audit.command import command_of

    return command_of(measure, str(kind.__doc__), nullcontext if run is None else partial(_naming, run))


def _without_run(name: str, summary: str | None, args: Sequence[str]) -> Callable[[], None]:
    """The command where no run is given: it has no options but --help, because they follow from the run."""

    def command() -> None:
        raise ValueError(f"no run directory is given: write `entropyfloor {name} RUN`")

    how = f"Give the run directory first. The options follow from the run: `entropyfloor {name} RUN --help`."
    command.__doc__ = f"{summary}\n\n{how}"
    if args:  # options of a run, which nothing knows yet
        command()
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
    """Run a figure, a table or an experiment of the paper, at its scale or a smaller one."""
    from entropyfloor import reproduction
    from entropyfloor.experiments import paper, start
    from entropyfloor.experiments import recipe as recipes

    def command(
        recipe: Annotated[str, tyro.conf.Positional] = "",
        scale: Literal["paper", "gpu", "cpu"] = "cpu",
        arms: tuple[str, ...] = (),
        seeds: tuple[int, ...] = (),
        out: Path | None = None,
        set_: Annotated[tuple[str, ...], tyro.conf.arg(name="set")] = (),
        workers: int | None = None,
        engine: Literal["local", "ray", "slurm"] = "local",
        dry_run: bool = False,
        measure: bool = False,
    ) -> None:
        """Run a figure, a table or an experiment of the paper, at its scale or a smaller one.

        Without a name, all of them are listed. The same command continues unfinished runs.

        Args:
            recipe: A figure or table such as fig-3a, a recipe such as vision/cifar10, or your own file that ends
                in .toml.
            scale: The paper's own size, one accelerator's, or a CPU's.
            arms: Run only these arms of the comparison.
            seeds: Seeds that replace the recipe's.
            out: Directory of the runs, or of those of each recipe of a figure; by default runs/<recipe>/<scale>.
            set_: Settings that replace the recipe's, such as data_dir=/where/cifar10/is.
            workers: Number of runs at a time; by default one for each core at the scale of a CPU, else one; on a
                cluster as many as there is room for.
            engine: Where runs are executed: on this machine, on a Ray cluster, or by Slurm.
            dry_run: Print the commands, and what they need of memory and disk, and run nothing.
            measure: With --dry-run, train for up to a minute to say how long the runs take.
        """
        if not recipe:
            print(f"{paper.listing()}\n\n{recipes.listing()}")
            return
        start.check_options(workers, dry_run=dry_run, measure=measure)
        places = paper.find(recipe)
        for place in places:
            print(place.headline, file=sys.stderr)
        if places and not any(place.scales for place in places):
            print("\n\n".join(map(reproduction.shown, places)))
            return
        settings = dict(recipes.setting(change) for change in set_)
        studies = start.studies(recipe, places, scale, out, arms=arms, seeds=seeds, settings=settings)
        parsed = [study.parsed(reproduction.settings_of) for study in studies]
        plan = start.plan_of(parsed, workers, reproduction.needs_of)
        if dry_run:
            print("\n".join(start.commands(plan)))
            if measure:
                plan.check()  # first: a trial of what does not fit would take the memory of everything else
                plan = plan.timed()
            print("\n".join(plan.lines()), file=sys.stderr)
        if engine == "local":  # the machines of a cluster are others
            plan.check()
        if not dry_run:
            for line in start.run(parsed, workers, engine):
                print(line)

    return command


def report(args: Sequence[str]) -> Callable[..., None]:  # noqa: ARG001
    """Draw learning curves of runs, and their realised entropy with its floor."""
    from entropyfloor.report import write_report

    def command(
        paths: Annotated[tuple[Path, ...], tyro.conf.Positional] = (Path("runs"),),
        out: Path = Path("report"),
        baseline: str | None = None,
    ) -> None:
        """Draw learning curves of runs, and their realised entropy with its floor.

        Args:
            paths: Run directories, or directories that contain them.
            out: Directory for the page and the figures.
            baseline: What language models are compared with that were evaluated at several temperatures: an agent
                of the report, or its label where settings differ; by default grpo.
        """
        page = write_report(
            paths, out, baseline=baseline, warn=lambda line: print(line, file=sys.stderr), tell=print
        )
        print(f"page: {page.resolve().as_uri()}")

    return command


def archive(args: Sequence[str]) -> Callable[..., None]:  # noqa: ARG001
    """Put runs into one file, which reports read."""
    from entropyfloor.runs.pack import pack

    def command(paths: Annotated[tuple[Path, ...], tyro.conf.Positional] = (Path("runs"),), *, out: Path) -> None:
        """Put runs into one file, which reports read.

        It is some seven times smaller, and has no checkpoints and models.

        Args:
            paths: Directories that contain runs, or archives whose runs are added.
            out: The archive, such as results/sac.runs.zip.
        """
        print(f"{pack(paths, out)} runs: {out}")

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
    "audit": Group(
        "Measure the entropy of a model against a floor: of a run (`audit RUN` for short), or of any other model.",
        {"run": audit_run, "policy": audit_policy, "classifier": audit_classifier, "language": audit_language},
    ),
    "export": export,
    "reproduce": reproduce,
    "report": report,
    "archive": archive,
    "doctor": doctor,
}
