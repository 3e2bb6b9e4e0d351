"""The command line: what it prints, and how it exits."""

import contextlib
import io
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import PIL.Image
import pytest
import torch

import entropyfloor
from commands import NAMES
from entropyfloor.cli import SEVERAL, guarded, main
from entropyfloor.commands import COMMANDS
from entropyfloor.extras import SAVED, BrokenFloorError, Status
from entropyfloor.runs import Run, read_run

SIZES = [
    *("--env", "gym/Pendulum-v1", "--agent", "sac", "--hidden", "8", "--batch-size", "8", "--steps", "60"),
    *("--random-steps", "20", "--updates-per-step", "1", "--eval-every", "60", "--eval-episodes", "1"),
    *("--log-every", "20", "--checkpoint-every", "60"),
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Directory of a small run, and the lines that the command printed."""
    path = tmp_path_factory.mktemp("cli") / "run[bold]"  # brackets are markup to some consoles
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main(["train", "control", *SIZES, "--out", str(path)]) == 0
    return path, out.getvalue().splitlines()


@pytest.fixture
def trained(finished):
    return finished[0]


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"entropyfloor {entropyfloor.__version__}\n"


def test_a_misspelt_agent_is_told_all_agents(home, capsys):
    assert main(["train", "control", "--agent", "tdmpc", "--env", "gym/Pendulum-v1"]) == Status.REFUSED
    error = capsys.readouterr().err
    assert "agent='tdmpc' must be one of" in error
    assert {"sac-era", "ppo", "tdmpc2", "fastsac"} <= set(re.split(r",? ", error.strip()))


@pytest.mark.parametrize(
    ("args", "named"), [(["trian", "control"], "trian"), (["train"], "vision"), (["--verbose"], "--verbose")]
)
def test_an_unknown_command_is_named(args, named, capsys):
    with pytest.raises(SystemExit) as stop:
        main(args)
    out, err = capsys.readouterr()
    assert (stop.value.code, out) == (2, "")
    assert named in err


@pytest.mark.parametrize("words", NAMES, ids=" ".join)
def test_each_command_explains_itself(words, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*words, "--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert f"usage: entropyfloor {' '.join(words)}" in out
    command = COMMANDS[words[0]]
    summary = (command.commands[words[1]] if len(words) > 1 else command).__doc__
    assert summary in " ".join(out.split())
    if words == ["train", "control"]:
        for word in ("--agent", "sac-era-exact", "--resume", "--log-std-min", "--no-ignore-termination"):
            assert word in out


def test_the_options_of_several_values_are_known(tmp_path, capsys):
    """All of them, those that a command has only for a run of one domain too."""
    runs = [tmp_path / domain for domain in ("control", "vision", "language")]
    for run in runs:
        run.mkdir()
        (run / "config.toml").write_text(f'domain = "{run.name}"\n')
    found = set()
    for words in [*NAMES, *([command, "run", str(run)] for command in ("evaluate", "audit") for run in runs)]:
        with pytest.raises(SystemExit):
            main([*words, "--help"])
        found |= set(re.findall(r"(--\S+) \[\w+ \[", capsys.readouterr().out))
    assert found == set(SEVERAL)


@pytest.mark.parametrize("args", [[], ["-h"], ["--help"]])
def test_the_first_page_names_every_command(args, capsys):
    with pytest.raises(SystemExit) as stop:
        main(args)
    out = capsys.readouterr().out
    assert stop.value.code == 0
    assert all(words[0] in out for words in NAMES)


def test_a_short_form_is_that_of_its_command(home, capsys):
    for args in (["evaluate", "absent"], ["evaluate", "run", "absent"]):
        assert main(args) == 2
        assert "no run in absent" in capsys.readouterr().err
    for args in (["evaluate", "language", "--help"], ["evaluate", "benchmark", "--help"]):
        with pytest.raises(SystemExit):
            main(args)
        assert "usage: entropyfloor evaluate benchmark" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (["--video", "film.gif", "absent"], "no run in absent"),
        (["--seed=3", "absent"], "no run in absent"),
        (["--seed", "-1", "absent"], "no run in absent"),
        (["--episodes", "3"], "no run directory"),
    ],
)
def test_the_value_of_an_option_is_not_taken_for_the_run(args, named, home, capsys):
    status = 0
    try:
        status = main(["evaluate", *args])
    except SystemExit as stop:
        status = stop.code
    assert status == 2
    assert named in capsys.readouterr().err


@pytest.mark.slow
def test_the_help_of_a_command_has_the_arguments_before_it(trained, capsys):
    for args in (["evaluate", str(trained), "--help"], ["export", str(trained), "-h"], ["report", "--help", "x"]):
        with pytest.raises(SystemExit) as stop:
            main(args)
        assert stop.value.code == 0
        assert "positional arguments" in capsys.readouterr().out


@pytest.mark.slow
def test_one_of_several_checkpoints_is_evaluated_and_exported_by_its_directory(trained, home, capsys):
    path = trained / "checkpoints" / "000000000060"
    assert main(["evaluate", str(path), "--episodes", "1", "--max-episode-steps", "3"]) == 0
    assert "step 60, 1 episodes" in capsys.readouterr().out
    assert (trained / "evaluation.json").exists()
    assert main(["export", str(path), "--out", "policy.txt"]) == 2
    assert "policy.txt must end in .onnx" in capsys.readouterr().err


@pytest.mark.parametrize("args", [["--steps", "many"], ["--stepz", "5"]])
def test_settings_that_cannot_be_read_exit_with_2(args, home, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train", "control", *args])
    assert stop.value.code == 2
    assert args[0].strip("-") in capsys.readouterr().err
    assert not list(home.iterdir())


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--steps", "0"], "error: steps=0 must be between 1 and"),
        (["--env", "dmc/walker-rum"], "did you mean dmc/walker-run"),
        (["--env", "gym/CartPole-v1"], "gym/CartPole-v1 has discrete actions: sac-era-exact needs"),
        (["--target-entropy", "99"], "target_entropy=99.0 nats is above"),
        (["--target-entropy", "a lot"], "rule 'a lot' cannot be read"),
        (["--target-entropy", "-A/0"], "rule '-A/0' cannot be read"),  # it begins like an option
        (["--target-entropy", "-a / 2"], "rule '-a / 2' cannot be read"),
        (["--distribution", "tanh"], "head='era-exact' is solved for distribution='truncated'"),
    ],
)
def test_what_cannot_be_built_leaves_nothing_behind(args, message, home, capsys):
    assert main(["train", "control", *args]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1
    assert not list(home.iterdir())


@pytest.mark.parametrize(
    ("args", "option"),
    [
        (["train", "control", "--out", ""], "--out"),
        (["train", "control", "--out="], "--out"),
        (["train", "control", "--resume", ""], "--resume"),
        (["train", "vision", "--data-dir", ""], "--data-dir"),
        (["train", "language", "--model="], "--model"),
        (["evaluate", ""], "argument"),
        (["evaluate", "run", "--video", ""], "--video"),
        (["evaluate", "language", "--model", "x", "--out", ""], "--out"),
        (["export", "run", "--out", ""], "--out"),
        (["export", "", "--out", "x"], "argument"),
        (["report", ""], "argument"),
        (["report", "runs", "--out="], "--out"),
    ],
)
def test_an_empty_place_is_not_taken_for_the_one_where_one_is(args, option, home, capsys):
    assert main(args) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert f"{option} is empty" in err
    assert not list(home.iterdir())


def test_an_answer_may_be_empty_behind_a_switch(capsys):
    assert main(["judge", "--json", "", "42"]) == 0
    assert json.loads(capsys.readouterr().out)["correct"] is False
    assert main(["judge", "--pairs", ""]) == 2
    assert "--pairs is empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "option"),
    [
        (["reproduce", "control/sac-gym", "--dry-run", "--set", "steps=60", "--set=tau=0.1"], "--set"),
        (["train", "control", "--seeds", "0", "--seeds=1"], "--seeds"),
        (["audit", "policy", "x.onnx", "--std", "0.1", "--std", "0.2"], "--std"),
        (["evaluate", "run", "--temperatures", "0.3", "--temperatures", "0.6"], "--temperatures"),
    ],
)
def test_an_option_of_several_values_that_is_given_twice_is_refused(args, option, home, capsys):
    """The parser would take the last one, and leave out the values of the first without a word."""
    assert main(args) == 2
    assert f"{option} is given twice" in capsys.readouterr().err
    assert not list(home.iterdir())


@pytest.mark.parametrize("room", ["control", "vision", "language"])
@pytest.mark.parametrize(
    "given", [["--threads", str(10**20)], ["--threads", "-1"], ["--out", "a\0b"], ["--out", "\udcff"]]
)
def test_a_setting_that_no_room_can_have_is_named(room, given, home, capsys):
    assert main(["train", room, *given]) == 2
    assert capsys.readouterr().err.startswith(f"error: {given[0].strip('-')}=")
    assert not list(home.iterdir())


@pytest.mark.parametrize("make", [lambda path: path.write_text(""), lambda path: path.symlink_to(path)])
def test_a_run_in_a_place_that_can_hold_none_is_refused(make, home, capsys):
    make(home / "place")
    assert main(["train", "control", *SIZES, "--out", "place"]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "error: place cannot hold a run" in err


@pytest.mark.parametrize("path", ["file", "loop", "empty", "absent", "file/below", "a" * 300])
@pytest.mark.parametrize(
    "words", [("train", "control", "--resume"), ("train", "vision", "--resume"), ("train", "language", "--resume")]
)
def test_what_is_no_run_is_not_resumed(words, path, home, capsys):
    (home / "file").write_text("")
    (home / "loop").symlink_to(home / "loop")
    (home / "empty").mkdir()
    assert main([*words, path]) in (Status.REFUSED, Status.FAILED)
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert path in err


@pytest.mark.parametrize(
    "allocate",
    [
        lambda: np.empty(10**15),
        lambda: torch.empty(10**15),
        lambda: jax.numpy.zeros(10**14).block_until_ready(),
        lambda: bytearray(10**16),
    ],
)
def test_a_batch_that_no_memory_holds_is_one_line(allocate, capsys):
    assert guarded(allocate) == Status.FAILED
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("failed: memory is too small")
    assert "batch" in err


def noted(error, note):
    error.add_note(note)
    return error


@pytest.mark.parametrize(
    ("error", "status", "told"),
    [
        (None, 0, ""),
        (noted(ValueError("bad"), f"{SAVED} runs/a"), 3, "failed: bad; what was saved is in runs/a\n"),
        (noted(ValueError("bad"), "a hint"), 2, "error: bad; a hint\n"),
        (BrokenFloorError("the floor is broken"), 1, "failed: the floor is broken\n"),
        (ValueError("no such thing"), 2, "error: no such thing\n"),
        (ImportError("not installed"), 2, "error: not installed\n"),
        (RuntimeError("it failed"), 3, "failed: it failed\n"),
        (OSError("no space"), 3, "failed: no space\n"),
        (KeyboardInterrupt("saved"), 130, "stopped: saved\n"),
    ],
)
def test_each_end_has_its_status(error, status, told, capsys):
    def end():
        if error is not None:
            raise error

    assert guarded(end) == status
    assert capsys.readouterr().err == told


def test_the_documentation_has_all_statuses():
    page = (Path(__file__).parents[1] / "docs" / "run-directory.md").read_text()
    assert [int(number) for number in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)] == [*Status]


def test_an_error_without_a_word_is_named(capsys):
    def fail():
        raise MemoryError

    assert guarded(fail) == Status.FAILED
    assert "memory is too small for this (MemoryError)" in capsys.readouterr().err


def test_an_error_of_several_lines_is_told_in_one(capsys):
    def fail():
        error = RuntimeError("one\n  two\n")
        error.add_note("what was saved is in here")
        error.add_note("----\nframes were removed")
        raise error

    assert guarded(fail) == Status.FAILED
    assert capsys.readouterr().err == "failed: one two; what was saved is in here\n"


def test_train_then_report(trained, tmp_path, capsys):
    record = read_run(trained)
    assert record.status["state"] == "finished"
    assert (record.config["agent"], record.config["steps"], record.config["out"]) == ("sac", 60, str(trained))
    assert record.series("return")[0].tolist() == [0, 60]
    assert record.series("loss/critic")[0].tolist() == [20, 40, 60]
    out = tmp_path / "a report"
    assert main(["report", str(trained), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"page: {(out / 'index.html').as_uri()}\n"
    page = (out / "index.html").read_text()
    assert "gym/Pendulum-v1" in page


def test_a_run_says_where_it_is_and_what_comes_next(finished, home):
    path, (*steps, run, report) = finished
    assert [line.split(" · ")[0] for line in steps] == ["0/60 steps", "20/60 steps", "60/60 steps"]
    assert ["(target -0.50)" in line for line in steps] == [True, False, True]
    assert " · compiling" in steps[1]
    assert (run, shlex.split(report)) == (f"run: {path}", ["report:", "entropyfloor", "report", str(path)])
    assert main(shlex.split(report)[2:]) == 0
    assert (home / "report" / "index.html").exists()


def test_a_second_run_in_the_same_place_is_refused(trained, capsys):
    before = (trained / "metrics.jsonl").read_bytes()
    assert main(["train", "control", *SIZES, "--out", str(trained)]) == 2
    assert capsys.readouterr().err == (
        f"error: {trained} holds a run already: choose another directory, resume it, or delete it\n"
    )
    assert (trained / "metrics.jsonl").read_bytes() == before


def test_resume_goes_alone(trained, capsys):
    before = (trained / "metrics.jsonl").read_bytes()
    assert main(["train", "control", "--resume", str(trained), "--seed", "1"]) == 2
    assert "--resume can be combined only with" in capsys.readouterr().err
    assert (trained / "metrics.jsonl").read_bytes() == before


def test_resume_has_the_options_of_the_agent_of_the_run(home, monkeypatch):
    run, seen = Run.create(home / "fast", {"domain": "control", "agent": "fastsac", "seed": 0}), []
    monkeypatch.setattr("entropyfloor.control.train.resume", lambda path, **changes: seen.append(changes) or path)
    assert main(["train", "control", "--resume", str(run.path), "--env-processes", "8"]) == 0
    assert seen == [{"env_processes": 8}]


def test_resume_where_there_is_no_run(home, capsys):
    assert main(["train", "control", "--resume", str(home)]) == 2
    assert "no run in" in capsys.readouterr().err
    assert not list(home.iterdir())


@pytest.mark.parametrize(("path", "message"), [(".", "no run in"), ("absent", "absent is not a directory")])
def test_a_report_of_nothing_is_refused(path, message, home, capsys):
    assert main(["report", path]) == 2
    assert message in capsys.readouterr().err
    assert not list(home.iterdir())


@pytest.mark.slow
def test_a_run_that_fails_exits_with_3(home, capsys):
    assert main(["train", "control", *SIZES, "--learning-rate", "1e30", "--out", "here"]) == 3
    err = capsys.readouterr().err
    assert err.startswith("failed: loss/")
    assert err.count("\n") == 1
    assert read_run(home / "here").status["state"] == "failed"


def test_the_doctor_knows_this_machine(capsys):
    assert main(["doctor"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["jax", jax.__version__] in lines
    assert ["numpy", np.__version__] in lines
    assert ["entropyfloor", entropyfloor.__version__] in lines
    for room in ("torch", "jax", "control", "report"):
        assert [f"entropyfloor.{room}", "ready"] in lines


@pytest.mark.slow
def test_the_doctor_says_how_to_get_what_is_missing():
    code = "import sys; sys.modules['gymnasium'] = None; from entropyfloor.cli import main; main(['doctor'])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "pip install 'entropyfloor[control]'" in done.stdout


@pytest.mark.parametrize(("command", "extra"), [("train control", "control"), ("report", "report")])
def test_a_missing_extra_is_one_line(command, extra):
    code = "import sys; sys.modules['tyro'] = None; from entropyfloor.cli import main; "
    args = [sys.executable, "-c", f"{code} sys.exit(main({command.split()}))"]
    done = subprocess.run(args, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert f"pip install 'entropyfloor[{extra}]'" in done.stderr
    assert done.stderr.count("\n") == 1


def test_help_needs_nothing():
    code = "import atexit, sys; atexit.register(lambda: print(*sys.modules)); "
    code += "from entropyfloor.cli import main; main([])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert not {"jax", "torch", "numpy", "gymnasium", "mujoco", "matplotlib"} & set(done.stdout.split())


def test_the_process_exits_with_the_status():
    done = subprocess.run([sys.executable, "-m", "entropyfloor.cli", "nonsense"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "nonsense" in done.stderr


@pytest.mark.slow
def test_a_classifier_is_trained_judged_and_goes_on(home, capsys, monkeypatch):
    from entropyfloor import vision

    small = ["--model", "test_resnet", "--batch-size", "64", "--threads", "1", "--min-entropy", "0.3"]
    assert main(["train", "vision", *small, "--epochs", "1", "--out", "seen", "--dataset", "digits"]) == 0
    assert "run: seen" in capsys.readouterr().out
    assert main(["evaluate", "seen"]) == 0
    out = capsys.readouterr().out
    assert "epoch 1, 359 test images" in out
    assert "(floor 0.3)" in out
    assert "auroc" not in json.loads((home / "seen" / "evaluation.json").read_text())["values"]
    assert main(["report", "seen"]) == 0
    page = (home / "report" / "index.html").read_text()
    assert "era-calibrated-0.3 has a floor of 0.30 nats: the entropy of its classifier is" in page
    assert "Top-1 accuracy" in page
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", "seen", "--episodes", "3"])
    assert stop.value.code == 2
    assert "--episodes" in capsys.readouterr().err
    (home / "other" / "test" / "red").mkdir(parents=True)
    PIL.Image.new("RGB", (32, 32), "red").save(home / "other" / "test" / "red" / "0.png")
    assert main(["evaluate", "seen", "--ood", "folder", "--ood-dir", "other"]) == 0
    assert "AUROC, other dataset" in capsys.readouterr().out
    judged = json.loads((home / "seen" / "evaluation.json").read_text())
    assert 0 <= judged["values"]["auroc"] <= 1
    assert judged["ood"] == "other"
    assert main(["export", "seen", "--out", "weights.safetensors"]) == 0
    assert "model = timm.create_model('test_resnet', num_classes=10, checkpoint_path='weights.safetensors')" in (
        capsys.readouterr().out
    )
    [checkpoint] = (home / "seen" / "checkpoints").iterdir()
    assert main(["evaluate", str(checkpoint)]) == 0
    assert main(["export", str(checkpoint), "--out", "checkpoint.safetensors"]) == 0
    assert (home / "checkpoint.safetensors").stat().st_size == (home / "weights.safetensors").stat().st_size
    assert main(["train", "vision", "--resume", "seen", "--epochs", "2"]) == 2
    refusal = capsys.readouterr().err
    assert "--resume can be combined only with" in refusal
    assert all(option in refusal for option in ("--data-dir", "--ood-dir", "--workers"))
    assert "--epochs" not in refusal
    assert main(["train", "vision", "--resume", "seen"]) == 0
    resumed = []
    monkeypatch.setattr(vision.train, "resume", lambda path, **places: resumed.append(places) or path)
    for given in (["--data-dir", "data"], ["--data_dir=here"], ["--data-dir=a", "--data-dir=b", "--ood-dir=c"]):
        assert main(["train", "vision", "--resume", "seen", *given]) == 0
    assert resumed == [{"data_dir": "data"}, {"data_dir": "here"}, {"data_dir": "b", "ood_dir": "c"}]


def test_whoever_has_seen_enough_is_told_no_more():
    command = f"{sys.executable} -m entropyfloor.cli reproduce | true"  # which is gone before there is a word
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (141, "", "")
