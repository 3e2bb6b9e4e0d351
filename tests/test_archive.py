"""Archives of runs: packed, read in place, and damaged."""

import shutil
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from entropyfloor.cli import main
from entropyfloor.report import write_report
from entropyfloor.runs import find_runs, read_run
from entropyfloor.runs.directory import Run
from entropyfloor.runs.pack import pack


def make(path: Path, seed: int = 0, returns: float = 100.0) -> Path:
    run = Run.create(path, {"env": "dmc/walker-walk", "agent": "sac", "seed": seed, "domain": "control"})
    with run.recording():
        for step in (100, 200):
            run.log(
                step,
                {"return": returns + step, "realised_entropy": -2.0, "realised_entropy/min": -2.5, "floor": -3.0},
            )
    return path


@pytest.fixture
def runs(tmp_path):
    for seed in range(3):
        make(tmp_path / "runs" / "sac" / f"seed-{seed}", seed, returns=10.0 * seed)
    return tmp_path / "runs"


def same(one, two):
    assert (one.config, one.machine, one.status) == (two.config, two.machine, two.status)
    assert one.lines == two.lines


def test_an_archive_is_read_like_a_directory(runs, tmp_path):
    file = tmp_path / "results" / "sac.runs.zip"
    assert pack([runs], file) == 3
    found = find_runs(tmp_path / "results")
    assert found == [file / "sac" / f"seed-{seed}" for seed in range(3)]
    assert find_runs(file) == found
    assert find_runs(file / "sac" / "seed-1") == [found[1]]
    for run in found:
        same(read_run(run), read_run(runs / run.relative_to(file)))
    for path in (runs, tmp_path / "results"):
        write_report([path], tmp_path / "report" / path.name)
    pages = [
        (tmp_path / "report" / name / "dmc-walker-walk-return.svg").read_bytes() for name in ("runs", "results")
    ]
    assert pages[0] == pages[1]


def test_the_same_runs_give_the_same_bytes_and_more_can_be_added(runs, tmp_path):
    one, two = tmp_path / "one.runs.zip", tmp_path / "two.runs.zip"
    pack([runs], one)
    pack([one], two)
    assert one.read_bytes() == two.read_bytes()
    make(tmp_path / "more" / "sac" / "seed-3", 3)
    assert pack([one, tmp_path / "more"], one) == 4
    assert [read_run(run).config["seed"] for run in find_runs(one)] == [0, 1, 2, 3]
    same(read_run(one / "sac/seed-2"), read_run(runs / "sac/seed-2"))


def test_a_run_keeps_its_files_beside_runs_that_are_in_it(runs, tmp_path):
    make(runs / "sac", 9)
    one, two = tmp_path / "one.runs.zip", tmp_path / "two.runs.zip"
    assert pack([runs], one) == pack([one], two) == 4
    assert one.read_bytes() == two.read_bytes()
    same(read_run(two / "sac"), read_run(runs / "sac"))


def test_an_archive_below_the_packed_directory_keeps_its_runs(runs, tmp_path, monkeypatch):
    """The same command again gives the same archive, and packs a run that has gone on once more."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.runs.zip", "z.runs.zip"):  # before and after the runs, in order
        out = Path("runs") / name
        assert pack([Path("runs")], out) == 3
        first = out.read_bytes()
        assert pack([Path("runs")], out.absolute()) == 3
        assert out.read_bytes() == first
        shutil.rmtree("runs/sac/seed-2")
        make(Path("runs/sac/seed-3"), 3)
        assert pack([Path("runs")], out) == 4
        (moved,) = (run for run in find_runs(out) if run.name == "seed-1")
        shutil.rmtree("runs/sac/seed-1")
        make(Path("runs/sac/seed-1"), 1, returns=5.0)
        assert pack([Path("runs")], out) == 4
        same(read_run(moved), read_run(Path("runs/sac/seed-1")))
        out.unlink()
        shutil.rmtree("runs/sac/seed-3")
        make(Path("runs/sac/seed-2"), 2, returns=20.0)


def test_runs_of_the_same_name_are_not_lost(runs, tmp_path):
    make(tmp_path / "more" / "sac" / "seed-2", 2, returns=20.0)
    with pytest.raises(ValueError, match=r"runs/sac/seed-2 and .*more/sac/seed-2 would both be sac/seed-2: give"):
        pack([runs, tmp_path / "more"], tmp_path / "sac.runs.zip")
    assert pack([runs, runs], tmp_path / "sac.runs.zip") == 3
    assert pack([tmp_path / "sac.runs.zip", tmp_path / "more"], tmp_path / "new.runs.zip") == 3
    same(read_run(tmp_path / "new.runs.zip" / "sac/seed-2"), read_run(tmp_path / "more/sac/seed-2"))


def test_checkpoints_and_models_stay_outside(runs, tmp_path):
    (runs / "sac/seed-0/checkpoints/200").mkdir(parents=True)
    (runs / "sac/seed-0/checkpoints/200/state.json").write_text("{}")
    (runs / "sac/seed-0/policy.safetensors").write_bytes(b"")
    pack([runs], tmp_path / "sac.runs.zip")
    names = zipfile.ZipFile(tmp_path / "sac.runs.zip").namelist()
    assert {Path(name).name for name in names} == {"config.toml", "machine.json", "metrics.jsonl", "status.json"}


def test_the_command_line_packs(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["archive", "runs", "--out", "sac.runs.zip"]) == 0
    assert capsys.readouterr().out == "3 runs: sac.runs.zip\n"
    assert main(["archive", "runs", "--out", "sac.zip"]) == 2
    assert "must end in .runs.zip" in capsys.readouterr().err
    assert main(["archive", "runs/sac/seed-0", "--out", "sac.runs.zip"]) == 2
    assert "so that it has a name" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command", ["evaluate {}", "export {} --out x.onnx", "train control --resume {}", "audit {}"]
)
def test_what_needs_checkpoints_refuses_an_archive(command, runs, tmp_path, capsys):
    pack([runs], tmp_path / "sac.runs.zip")
    assert main(command.format(tmp_path / "sac.runs.zip" / "sac" / "seed-0").split()) == 2
    assert "is in an archive, without its checkpoints" in capsys.readouterr().err


def test_a_run_that_is_still_written_is_refused(tmp_path):
    run = Run.create(tmp_path / "runs" / "one", {"env": "e", "agent": "sac", "seed": 0})
    with run.recording(), pytest.raises(ValueError, match="still written"):
        pack([tmp_path / "runs"], tmp_path / "out.runs.zip")


@pytest.mark.slow_but_first
@pytest.mark.parametrize("damage", ["cut", "text", "flipped", "empty"])
def test_a_damaged_archive_is_named(runs, tmp_path, damage):
    file = tmp_path / "results" / "sac.runs.zip"
    pack([runs], file)
    content = bytearray(file.read_bytes())
    if damage == "flipped":
        content[200:260] = bytes(60)
    damaged = {"cut": content[:-30], "text": b"no archive", "flipped": content, "empty": b""}[damage]
    file.write_bytes(damaged)
    shutil.copytree(runs, tmp_path / "results" / "plain")
    left_out = []
    write_report([tmp_path / "results"], tmp_path / "report", warn=left_out.append)
    assert left_out
    assert all("sac.runs.zip" in line for line in left_out)


@pytest.mark.parametrize("name", ["{home}/other", "../other"])
def test_an_archive_leads_nowhere_else(runs, tmp_path, name):
    """Its names may be those of files of the reader."""
    make(tmp_path / "other")
    file = tmp_path / "archives" / "one.runs.zip"
    file.parent.mkdir()
    with zipfile.ZipFile(file, "w") as archive:
        for each in ("config.toml", "metrics.jsonl"):
            archive.writestr(f"{name.format(home=tmp_path)}/{each}", "")
    assert find_runs(file) == [file]
    with pytest.raises(ValueError, match="leads out of it"):
        read_run(file)


def test_a_size_that_is_not_true_takes_no_memory(tmp_path):
    file = tmp_path / "bomb.runs.zip"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("one/config.toml", bytes(2**27))
        archive.writestr("one/metrics.jsonl", b"")
    content = bytearray(file.read_bytes())
    size = content.find(b"PK\x01\x02") + 24  # in the directory of the archive
    content[size : size + 4] = (100).to_bytes(4, "little")
    file.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="Bad CRC"):
            read_run(find_runs(file)[0])
        assert tracemalloc.get_traced_memory()[1] < 100 * 2**20
    finally:
        tracemalloc.stop()


def test_damage_of_other_compressions_is_named(tmp_path):
    file = tmp_path / "one.runs.zip"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("one/config.toml", "x = 1\n" * 100)
        archive.writestr("one/metrics.jsonl", "")
    content = bytearray(file.read_bytes())
    content[50:60] = bytes(10)
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"one\.runs\.zip cannot be read: Invalid data stream"):
        read_run(find_runs(file)[0])


def test_a_file_larger_than_a_run_writes_is_refused(tmp_path):
    file = tmp_path / "bomb.runs.zip"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("one/config.toml", b" " * (2**20 + 1))
        archive.writestr("one/metrics.jsonl", b"")
    with pytest.raises(ValueError, match="more than 1,048,576"):
        read_run(find_runs(file)[0])
