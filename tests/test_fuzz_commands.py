"""Commands, recipes and checkpoints that are wrong in ways that nobody has thought of: a line each, no traceback.

In `make test` a few examples of each are tried, always the same ones; `make test-all` tries many.
"""

import contextlib
import copy
import io
import json
import shlex
import shutil
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import tomli_w
from hypothesis import example, given
from hypothesis import strategies as st

import tiny_language
from commands import NAMES
from entropyfloor.cli import main
from entropyfloor.control.config import OBACConfig, PPOConfig, configure
from entropyfloor.control.episodes import SimulatorError
from entropyfloor.control.train import build
from entropyfloor.language.benchmarks.evaluate import EvaluationConfig
from entropyfloor.language.config import LanguageConfig
from entropyfloor.runs import Run
from entropyfloor.runs.settings import LARGEST
from entropyfloor.vision.config import VisionConfig
from fuzz import FEW_AND_MANY, WORDS, damaged, hostile, json_values, repeated
from run_files import with_header


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A working directory of its own, so deep that what goes astray is seen."""
    (tmp_path / "above" / "here").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "above" / "here")
    return tmp_path


def said(args):
    """Exit status of a command, and what it wrote; anything else than an exit is a fault."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            status, parsed = main(args), True
        except SystemExit as stop:  # of the parser, which draws a box
            status, parsed = stop.code, False
    if status and parsed:
        first = err.getvalue().split("\n")[0]
        assert first.startswith(("error: ", "failed: ")), err.getvalue()
        assert err.getvalue().count("\n") == 1
        assert "maximum recursion depth" not in first
    assert "Traceback" not in err.getvalue()
    return status, out.getvalue(), err.getvalue()


def files_in(home):
    """Everything that is there."""
    return sorted(str(path.relative_to(home)) for path in home.rglob("*"))


# --- the command line ------------------------------------------------------------------------------------


def options_of(kind):
    return [f"--{field.name.replace('_', '-')}" for field in fields(kind)]


REFUSED = {
    # Each ends in something that is not there, behind all settings: no training begins.
    "train control": (["--env", "gym/Absent-v0"], [*options_of(OBACConfig), "--seeds"]),
    "train control ppo": (["--agent", "ppo", "--env", "gym/Absent-v0"], [*options_of(PPOConfig), "--seeds"]),
    "train vision": (["--dataset", "folder", "--data-dir", "absent"], [*options_of(VisionConfig), "--seeds"]),
    "train language": (
        ["--task", "file", "--data", "absent.jsonl", "--model", "./absent", "--warm-start-steps", "0"],
        [*options_of(LanguageConfig), "--seeds"],
    ),
    "evaluate language": (["--model", "./absent", "--data-dir", "absent"], options_of(EvaluationConfig)),
    "evaluate": (
        ["absent"],
        [
            *("--episodes", "--seed", "--video", "--data", "--test-data", "--data-dir", "--ood", "--ood-dir"),
            *("--problems", "--samples", "--temperature"),
        ],
    ),
    "audit": (
        ["absent"],
        [
            *("--floor", "--out", "--episodes", "--seed", "--max-episode-steps", "--data-dir", "--problems"),
            *("--samples", "--temperature", "--data", "--test-data"),
        ],
    ),
    "audit policy": (
        ["absent.zip"],
        [
            *("--observations", "--env", "--episodes", "--seed", "--distribution", "--outputs", "--std"),
            *("--std-from", "--bounds", "--floor", "--out"),
        ],
    ),
    "audit classifier": (
        ["resnet18", "absent", "--checkpoint", "absent"],
        [
            "--min-entropy",
            "--input-size",
            "--crop",
            "--mean",
            "--std",
            "--batch-size",
            "--limit",
            "--floor",
            "--out",
        ],
    ),
    "audit language": (
        ["absent"],
        [
            *("--samples", "--max-new-tokens", "--temperature", "--template", "--limit", "--seed", "--batch-size"),
            *("--precision", "--top-fraction", "--floor", "--out"),
        ],
    ),
    "export": (["absent", "--out", "x"], ["--out"]),
    "reproduce": (["absent.toml"], ["--scale", "--arms", "--seeds", "--out", "--set", "--workers"]),
    "report": (["absent"], ["--out"]),
}
KEPT = {"--env", "--dataset", "--data-dir", "--task", "--data", "--model", "--warm-start-steps", "--agent"}


@pytest.mark.slow_but_first
@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("tried", FEW_AND_MANY)
def test_no_value_of_an_option_ends_in_a_traceback(name, tried, home):
    base, options = REFUSED[name]
    words = name.removesuffix(" ppo").split()
    free = [option for option in options if option not in KEPT & set(base)]

    @tried
    @given(st.lists(st.tuples(st.sampled_from(free), hostile), min_size=1, max_size=3), st.booleans())
    @example([("--out", "")] if "--out" in free else [(free[0], "")], False)
    @example([("--threads", str(10**20))] if "--threads" in free else [(free[0], "nan")], True)
    def check(given_, joined):
        args = [f"{o}={v}" if joined else [o, v] for o, v in given_]
        flat = [word for arg in args for word in ([arg] if isinstance(arg, str) else arg)]
        status, _, err = said([*words, *base, *flat])
        assert status in (2, 3) or (status == 0 and {"-h", "--help"} & set(flat))
        assert err or status == 0
        assert files_in(home) == ["above", "above/here"]

    check()


@pytest.mark.parametrize("tried", FEW_AND_MANY)
def test_no_words_at_all_end_in_a_traceback(tried, home):
    commands = [words for words in NAMES if words != ["doctor"]]

    @tried
    @given(st.sampled_from([[], ["train"], *commands]), st.lists(hostile, min_size=1, max_size=3))
    def check(command, words):
        if command[:1] == ["train"] and len(command) == 2:
            words = [*words, "--resume", "absent"]  # what nobody names would train a model of the default sizes
        if command != ["judge"]:  # of which anything is an answer
            status, _, _ = said([*command, *words])
            assert status in (2, 3) or command == ["reproduce"] or {"-h", "--help"} & set(words)
        assert files_in(home) == ["above", "above/here"]

    check()


SMALL_RUN = [
    *("--env", "gym/Pendulum-v1", "--agent", "sac", "--hidden", "4", "--batch-size", "4", "--steps", "4"),
    *("--random-steps", "2", "--updates-per-step", "1", "--eval-every", "4", "--eval-episodes", "1"),
    *("--replay-capacity", "100", "--log-every", "2", "--out", "run"),
]


@pytest.mark.slow
def test_what_can_be_trained_is_and_what_cannot_is_a_line(home):
    """Settings that pass every check of a number reach simulators, memory and compilers."""
    free = [option for option in options_of(OBACConfig) if option not in {"--env", "--out", "--eval-episodes"}]

    @repeated(60)
    @given(st.sampled_from(free), st.sampled_from([*WORDS, "1", "2", "3", "1e30", "-3", "-A/2", "99999999"]))
    def check(option, word):
        if option == "--steps" and word == "99999999":
            return
        status, _, _ = said(["train", "control", *SMALL_RUN, f"{option}={word}"])
        assert status in (0, 1, 2)
        shutil.rmtree("run", ignore_errors=True)
        assert files_in(home) == ["above", "above/here"]

    check()


# --- recipes ---------------------------------------------------------------------------------------------


RECIPE = {
    "title": "Two agents on Pendulum",
    "source": "a test",
    "domain": "control",
    "settings": {"env": ["gym/Pendulum-v1", "gym/Pendulum-v0"], "steps": 60, "learning_rate": 0.1},
    "scales": {"cpu": {"seeds": [0, 1], "hidden": 8, "arms": ["plain", "era"]}},
    "arms": {"plain": {"agent": "sac"}, "era": {"like": "plain", "head": "era-floor", "clamp_target": True}},
    "published": {"era": {"return": "a lot"}},
}
names = st.sampled_from(
    [
        *("out", "resume", "seed", "seeds", "recipe", "env", "steps", "hidden", "agent", "head", "like", "arms"),
        *("devices", "download", "warm_starts", "../../x", "/x", "..", "", "a/b", "help", "threads", "tau"),
    ]
)
text = st.sampled_from([word for word in WORDS if word.isprintable() and len(word) < 400]) | names
values = st.recursive(
    text | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(width=32) | st.dates() | st.times(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=2),
    max_leaves=4,
)


def places(tree, path=()):
    """Paths of everything in nested tables."""
    for key, value in tree.items():
        yield (*path, key)
        if isinstance(value, dict):
            yield from places(value, (*path, key))


@st.composite
def recipes(draw):
    """A recipe with one to three values, or names, that are others."""
    tree = copy.deepcopy(RECIPE)
    for _ in range(draw(st.integers(1, 3))):
        *above, last = draw(st.sampled_from(sorted(places(tree))))
        table = tree
        for key in above:
            table = table[key]
        match draw(st.sampled_from(["value", "name", "new", "gone"])):
            case "value":
                table[last] = draw(values)
            case "name":
                table[draw(text)] = table.pop(last)
            case "new":
                table[draw(text)] = draw(values)
            case "gone":
                del table[last]
        if not tree:
            break
    return tomli_w.dumps(tree)


@st.composite
def leading_out(draw):
    """A recipe with an arm, an environment or a setting that would write elsewhere."""
    tree, place = copy.deepcopy(RECIPE), draw(st.sampled_from(["..", "../../x", "/x", "a/../../../x"]))
    match draw(st.sampled_from(["arm", "env", "out", "resume"])):
        case "arm":
            tree["arms"] = {place: {"agent": "sac"}}
            tree["scales"]["cpu"]["arms"] = [place]
        case "env":
            tree["settings"]["env"] = [place, "gym/Pendulum-v1"]
        case name:
            draw(st.sampled_from([tree["settings"], tree["scales"]["cpu"], tree["arms"]["era"]]))[name] = place
    return tomli_w.dumps(tree)


@pytest.mark.slow
@pytest.mark.parametrize("tried", FEW_AND_MANY)
def test_no_recipe_ends_in_a_traceback_or_leads_out(tried, home):
    @tried
    @given((recipes() | leading_out()).map(str.encode) | damaged(tomli_w.dumps(RECIPE).encode()))
    def check(content):
        Path("fuzz.toml").write_bytes(content)
        status, out, err = said(["reproduce", "fuzz.toml", "--dry-run", "--out", "out"])
        assert status in (0, 2)
        if status:
            assert "fuzz.toml" in err
        for line in out.splitlines() if status == 0 else ():
            words = shlex.split(line)
            assert [word.partition("=")[0] for word in words].count("--out") == 1
            assert not any(word.startswith("--resume") for word in words)
            place = Path(words[words.index("--out") + 1]).resolve()
            assert place.is_relative_to(Path("out").resolve())
        assert files_in(home) == ["above", "above/here", "above/here/fuzz.toml"]

    check()


@pytest.mark.parametrize("tried", FEW_AND_MANY)
def test_no_setting_of_a_recipe_ends_in_a_traceback(tried, home):
    Path("fuzz.toml").write_text(tomli_w.dumps(RECIPE))

    @tried
    @given(names | hostile, hostile)
    def check(name, value):
        status, _, _ = said(["reproduce", "fuzz.toml", "--dry-run", "--out", "out", "--set", f"{name}={value}"])
        assert status in (0, 2)
        assert files_in(home) == ["above", "above/here", "above/here/fuzz.toml"]

    check()


# --- checkpoints -----------------------------------------------------------------------------------------

FILES = ("arrays.safetensors", "state.json", "SHA256SUMS")
ARRAYS = {"weight": np.arange(6.0).reshape(2, 3), "count": np.int64(3)}
STATE = {"rng": np.random.default_rng(1).bit_generator.state, "episode": [1, None, "2", 0.5]}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("tried", FEW_AND_MANY)
def test_a_checkpoint_is_what_was_saved_or_is_refused(name, tried, tmp_path):
    run = Run.create(tmp_path / "run", {"seed": 0})
    file = run.save(5, ARRAYS, STATE) / name
    whole = file.read_bytes()

    @tried
    @given(damaged(whole))
    def check(content):
        file.write_bytes(content)
        if content == whole:
            assert run.latest().state == STATE
            return
        with pytest.raises(ValueError, match="cannot be used") as refusal:
            run.latest()
        assert str(file.parent) in str(refusal.value)

    check()


def used(load, path):
    """What is loaded from a checkpoint; None where it is refused, by its path."""
    try:
        return load()
    except SimulatorError:  # other actions, which lead elsewhere
        return None
    except ValueError as error:
        refusal = str(error)
    assert str(path) in refusal
    return None


@pytest.mark.parametrize("tried", FEW_AND_MANY)
def test_a_state_has_the_right_types_or_is_refused(tried, tmp_path):
    """The checksum is right, so that nothing else refuses it."""
    run = Run.create(tmp_path / "run", {"seed": 0})
    path = run.save(5, {}, STATE)
    header = json.loads((path / "state.json").read_text())

    @tried
    @given(st.sampled_from([*header]), json_values)
    def check(name, value):
        with_header(path, **{**header, name: value})
        if (found := used(run.latest, path)) is not None:
            assert type(found.step) is int
            assert isinstance(found.state, dict)

    check()


def control(tmp_path):
    config = configure("sac", env="gym/Pendulum-v1", hidden=4, batch_size=4, replay_capacity=20).resolved()
    trainer = build([config])
    return trainer, lambda run: trainer.save([run]), lambda checkpoint: trainer.restore([checkpoint])


def ppo(tmp_path):
    config = configure("ppo", env="gym/Pendulum-v1", hidden=4, rollout_steps=8, minibatch_size=4).resolved()
    trainer = build([config])
    return trainer, lambda run: trainer.save([run]), lambda checkpoint: trainer.restore([checkpoint])


def vision(tmp_path):
    from entropyfloor.vision.train import complete
    from entropyfloor.vision.trainer import Trainer

    trainer = Trainer(*complete(VisionConfig(model="test_resnet", batch_size=8, ema=0.5)))
    return trainer, trainer.save, trainer.restore


def language(tmp_path):
    trainer = tiny_language.trainer(tmp_path)
    return trainer, trainer.save, trainer.restore


ROOMS = [control, ppo, *(pytest.param(room, marks=pytest.mark.slow) for room in (vision, language))]


@pytest.mark.slow
@pytest.mark.parametrize("room", ROOMS)
def test_a_checkpoint_that_a_trainer_cannot_use_is_named(room, tmp_path):
    """Whole, and of other content than this version writes."""
    _, save, restore = room(tmp_path)
    run = Run.create(tmp_path / "a-run", {"seed": 0})
    save(run)
    checkpoint = run.latest()
    state, arrays = sorted(places(checkpoint.state)), sorted(checkpoint.arrays)

    @repeated(60)
    @given(st.sampled_from(state) | st.sampled_from(arrays), json_values, st.booleans())
    def check(place, value, gone):
        other = replace(checkpoint, state=copy.deepcopy(checkpoint.state), arrays=dict(checkpoint.arrays))
        *above, last = place if isinstance(place, tuple) else (place,)
        table = other.state if isinstance(place, tuple) else other.arrays
        for key in above:
            table = table[key]
        if gone:
            del table[last]
        else:
            table[last] = value if isinstance(place, tuple) else np.zeros(7, np.int8)
        used(lambda: restore(other), checkpoint.path)

    check()
    restore(checkpoint)


def test_the_largest_number_is_the_last_that_the_name_of_a_checkpoint_has_digits_for(tmp_path):
    run = Run.create(tmp_path / "run", {"seed": 0})
    for step in (LARGEST - 1, LARGEST):
        run.save(step, {}, {})
    assert run.latest().step == LARGEST
