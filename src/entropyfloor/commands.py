"""The commands of `entropyfloor`, each a function from its arguments to the function that tyro parses and calls.

A command imports its package only when it is chosen. The package defines its options: they are the fields of a
config, or the arguments of the function that does the work.
"""

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import tyro

from entropyfloor.model_commands import (
    Command,
    audit_classifier,
    audit_language,
    audit_policy,
    audit_run,
    evaluate_benchmark,
    evaluate_run,
    export,
    judge,
    naming,
)

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
    """The class of the settings of the agent that is named, or of the run that is resumed."""
    from entropyfloor.control.config import CONFIGS, config_class
    from entropyfloor.runs.run_reader import read_config

    agent, run = _value_of("--agent", args), _value_of("--resume", args)
    if agent is None and run is not None:
        with suppress(ValueError):  # the command says what is wrong with the run
            agent = str(read_config(Path(run)).get("agent"))
        return CONFIGS.get(str(agent), config_class())
    # Where the next option follows, the parser asks for a name.
    return config_class() if agent is None or agent.startswith("-") else config_class(agent)


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

        GRPO, Dr. GRPO, GSPO or CISPO, with ERA, with a controller of the entropy, or with a baseline: other
        advantages, an entropy bonus, clip-higher, KL-Cov, Clip-Cov, forking tokens, a KL divergence."""
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
    # The same settings, unchecked: tyro names an error of the constructor by an internal path.
    unchecked: Any = type(kind.__name__, (kind,), {"__post_init__": lambda _: None, "__doc__": kind.__doc__})

    def command(
        config: tyro.conf.OmitArgPrefixes[unchecked], resume: Path | None = None, seeds: tuple[int, ...] = ()
    ) -> None:
        config = kind(**{field.name: getattr(config, field.name) for field in fields(kind)})
        if resume is None:
            _print_runs(module.train_seeds(config, seeds) if seeds else [module.train(config)])
            return
        given = _given(args, kind)
        if seeds or not given <= set(changeable(kind)):
            raise ValueError(
                f"--resume can be combined only with {options}: a resumed run keeps its other settings"
            )
        with naming(resume):
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


# --- experiments and reports -----------------------------------------------------------------------------


def reproduce(_: Sequence[str]) -> Callable[..., None]:
    """Run a figure, a table or an experiment of the paper, at its scale or a smaller one."""
    from entropyfloor import reproduction
    from entropyfloor.experiments import paper, start
    from entropyfloor.experiments import recipe as recipes
    from entropyfloor.experiments.plan import Plan

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
        draw: bool = False,
    ) -> None:
        """Run a figure, a table or an experiment of the paper, at its scale or a smaller one.

        Without a name, all of them are listed. The same command continues unfinished runs. Figures that are
        statistics over tasks (1b and 2) are drawn in the end. With `all`, recipes that do not fit on this machine,
        or lack a package or a model, are left out with the reason, and one that fails does not stop the others.

        Args:
            recipe: A figure or table such as fig-3a, a recipe such as vision/cifar10, your own file that ends in
                .toml, or all: every recipe that has the scale.
            scale: The paper's own size, one accelerator's, or a CPU's.
            arms: Run only these arms of the comparison.
            seeds: Seeds that replace the recipe's.
            out: Directory of the runs, or of those of each recipe of several; by default runs/<recipe>/<scale>.
            set_: Settings that replace the recipe's, such as data_dir=/where/cifar10/is. Each applies to the runs
                that have it; one that no run has is refused.
            workers: Number of runs at a time; by default one for each core at the scale of a CPU, else one; on a
                cluster as many as there is room for.
            engine: Where runs are executed: on this machine, on a Ray cluster, or by Slurm.
            dry_run: Print the commands, and what they need of memory and disk, and run nothing.
            measure: With --dry-run, train for up to a minute to say how long the runs take.
            draw: Draw the figure from those of its runs that have finished, and start none. The report is in
                report/<figure>, or in <out>/<figure>.
        """
        if not recipe:
            print(f"{paper.listing()}\n\n{recipes.listing()}")
            return
        start.check_options(workers, dry_run=dry_run, measure=measure, draw=draw)
        places = paper.find(recipe)
        for place in places:
            print(place.headline, file=sys.stderr)
        if places and not any(place.scales for place in places):
            print("\n\n".join(map(reproduction.shown, places)))
            return
        settings = recipes.read_settings(set_)
        if draw and not places:
            raise ValueError(
                f"--draw belongs to a figure or a table: `entropyfloor report` draws runs of {recipe}"
            )
        studies = start.studies(recipe, places, scale, out, arms=arms, seeds=seeds, settings=settings)
        studies = start.without_foreign(studies, settings, reproduction.settings_of)
        parsed = [study.parsed(reproduction.settings_of) for study in studies]
        parsed, states, damaged = start.readable(parsed)
        for path, reason in damaged.items():
            print(f"{path} is left out: {reason}", file=sys.stderr)
        home, over_tasks = (out or Path("report")) / recipe, any(place.over_tasks for place in places)
        if draw:
            _draw_finished(parsed, home, over_tasks)
        elif parsed:
            plan, every = start.plan_of(parsed, workers, reproduction.needs_of, states), recipe == start.ALL
            check = Plan.check_disk if every else Plan.check  # recipes follow each other, and each fits
            if every:
                parsed, plan, reasons = start.that_fit(parsed, plan, here=engine == "local")
                for reason in reasons:
                    print(reason, file=sys.stderr)
                if not parsed:
                    raise ValueError(f"every recipe at scale {scale} is left out; the reasons are above")
            if dry_run:
                for line in start.commands(plan):
                    print(line)
                if measure:
                    check(plan)  # first: a trial of what does not fit would take the memory of everything else
                    plan = plan.timed()
                print("\n".join(plan.lines()), file=sys.stderr)
            if engine == "local":  # the machines of a cluster are others
                check(plan)
            if not dry_run:
                for line in start.run(parsed, workers, engine, go_on=every):
                    print(line)
                if over_tasks and start.finished(parsed):  # jobs of Slurm may still wait
                    _draw_finished(parsed, home, over_tasks)
        start.check_undamaged(damaged)

    return command


def _draw_finished(studies: Sequence[Any], out: Path, over_tasks: bool) -> None:
    """Draw the finished runs of a figure, and say which are missing."""
    from entropyfloor.experiments import start

    for line in start.missing(studies, over_tasks=over_tasks):
        print(line, file=sys.stderr)
    if not (runs := start.finished(studies)):
        raise ValueError("no run of it has finished: leave --draw out to run it")
    _write_report(runs, out)


def report(_: Sequence[str]) -> Callable[..., None]:
    """Draw learning curves of runs, and their realised entropy with its floor."""

    def command(
        paths: Annotated[tuple[Path, ...], tyro.conf.Positional] = (Path("runs"),),
        out: Path = Path("report"),
        baseline: str | None = None,
    ) -> None:
        """Draw learning curves of runs, and their realised entropy with its floor.

        Args:
            paths: Run directories, or directories that contain them.
            out: Directory for the page and the figures.
            baseline: Agent that the others are compared with, or its label where settings differ. It is used in
                statistics over tasks, and for language models that were evaluated at several temperatures. Those
                are compared with grpo where no baseline is given or none has its name.
        """
        _write_report(paths, out, baseline)

    return command


def watch(_: Sequence[str]) -> Callable[..., None]:
    """Show runs live: state, speed, time left, score, and entropy with its floor."""
    from entropyfloor import watch as module

    def command(
        paths: Annotated[tuple[Path, ...], tyro.conf.Positional] = (Path("runs"),), once: bool = False
    ) -> None:
        """Show runs live: state, speed, time left, score, and entropy with its floor.

        It reads only their files. Ctrl-C ends it.

        Args:
            paths: Run directories, directories that contain them, or archives.
            once: Print the table one time, as it is also done into a pipe or a file.
        """
        if once or not sys.stdout.isatty():
            print(module.snapshot(paths))
        else:
            module.watch(paths)

    return command


def _write_report(paths: Sequence[Path], out: Path, baseline: str | None = None) -> None:
    from entropyfloor.experiments import paper
    from entropyfloor.report import Published, write_report
    from entropyfloor.runs import Record

    def published(run: Record) -> list[Published]:
        places = paper.reproduced_by(str(run.config.get("recipe", "")), run.path)
        return [Published(place.name, place.title, place.published, place.quantity) for place in places]

    page = write_report(
        paths,
        out,
        baseline=baseline,
        warn=lambda line: print(line, file=sys.stderr),
        tell=print,
        published=published,
    )
    print(f"page: {page.resolve().as_uri()}")


def archive(_: Sequence[str]) -> Callable[..., None]:
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


def doctor(_: Sequence[str]) -> Callable[..., None]:
    """Show what works here: versions, devices, extras, known-bad pairs of versions, and measured floors."""
    from entropyfloor.doctor import doctor

    return doctor


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
    "watch": watch,
    "archive": archive,
    "doctor": doctor,
}
