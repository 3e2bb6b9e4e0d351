"""The commands that use a model: `evaluate`, `judge`, `export` and `audit`, each as `commands` describes it."""

import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import partial, wraps
from json import dumps
from pathlib import Path
from typing import Annotated, Any

import tyro

Command = Callable[[Sequence[str]], Callable[..., None]]
"""A function from the arguments of a command to what the parser calls."""


def evaluate_run(args: Sequence[str]) -> Callable[..., None]:
    """Evaluate what a run has trained: a policy, a classifier or a language model, with intervals."""
    path = _first_path(args)
    if path is None:
        return _without_run("evaluate", evaluate_run.__doc__, args)
    function = importlib.import_module(f"entropyfloor.{_domain(path)}.evaluate").evaluate

    @wraps(function)
    def command(*values: Any, **options: Any) -> None:
        with naming(path):
            print(function(*values, **options))

    return tyro.conf.configure(tyro.conf.PositionalRequiredArgs)(command)


def _first_path(args: Sequence[str]) -> Path | None:
    """The first word that is no option and, since every option takes a value, does not follow one."""
    words = (word for before, word in zip(["", *args], args, strict=False) if before[:2] != "--" or "=" in before)
    return next((Path(word) for word in words if not word.startswith("-")), None)


def evaluate_benchmark(_: Sequence[str]) -> Callable[..., None]:
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


def judge(_: Sequence[str]) -> Callable[..., None]:
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


def export(_: Sequence[str]) -> Callable[..., None]:
    """Write a policy as ONNX, a classifier for plain timm, or a language model for transformers."""

    def command(run: Annotated[Path, tyro.conf.Positional], out: Path) -> None:
        """Write a policy as ONNX, a classifier for plain timm, or a language model for transformers.

        Args:
            run: Run directory with a checkpoint, or one of its checkpoints.
            out: A file that ends in .onnx for a policy or in .safetensors for a classifier; a directory for a
                language model.
        """
        with naming(run):
            print(importlib.import_module(f"entropyfloor.{_domain(run)}.export").export(run, out))

    return command


# --- audit -----------------------------------------------------------------------------------------------


def audit_run(args: Sequence[str]) -> Callable[..., None]:
    """Measure the entropy of what a run has trained, in visited states, on test images or in responses."""
    path = _first_path(args)
    if path is None:
        return _without_run("audit", audit_run.__doc__, args)
    return _audit(audit_run, importlib.import_module(f"entropyfloor.audit.{_domain(path)}").run, path)


def audit_policy(_: Sequence[str]) -> Callable[..., None]:
    """Measure the entropy of a policy in a file: Stable-Baselines3, SBX, ONNX or TorchScript."""
    from entropyfloor.audit.policies import policy

    return _audit(audit_policy, policy)


def audit_classifier(_: Sequence[str]) -> Callable[..., None]:
    """Measure the entropy of any classifier of timm on images."""
    from entropyfloor.audit.vision import classifier

    return _audit(audit_classifier, classifier)


def audit_language(_: Sequence[str]) -> Callable[..., None]:
    """Measure the entropy of any language model in its responses, or in given ones."""
    from entropyfloor.audit.language import language_model

    return _audit(audit_language, language_model)


def _audit(kind: Command, measure: Callable[..., Any], run: Path | None = None) -> Callable[..., None]:
    """The command that measures a model; `kind` has its summary, and refusals name the run, if there is one."""
    from entropyfloor.audit.command import command_of

    return command_of(measure, str(kind.__doc__), nullcontext if run is None else partial(naming, run))


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
def naming(run: Path) -> Iterator[None]:
    """Name the run in a refusal that does not: a wrong setting of it, for example."""
    try:
        yield
    except ValueError as error:
        raise error if str(run) in str(error) else ValueError(f"{run}: {error}") from error


def _domain(run: Path) -> str:
    """The package that a run belongs to: control, vision or language."""
    from entropyfloor.runs.checkpoint import run_directory
    from entropyfloor.runs.run_reader import read_config

    domain = str(read_config(run_directory(run)).get("domain"))
    if domain not in ("control", "vision", "language"):
        raise ValueError(f"{run} is a run of domain={domain!r}: it must be control, vision or language")
    return domain
