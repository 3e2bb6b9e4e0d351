"""The wheel and the sdist: their contents, their metadata, and their types as a type checker sees them.

`tests/release.sh` installs them into empty environments.
"""

import subprocess
import sys
import tarfile
import venv
import zipfile
from email import message_from_string
from pathlib import Path

import pytest

import entropyfloor

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "entropyfloor"
MOST = 2**20
"""Bytes of each file; the repository's results and figures are 14 times as large."""


def run(*command):
    return subprocess.run([*map(str, command)], cwd=ROOT, capture_output=True, text=True)


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """The sdist, and the wheel that is built from it."""
    for needed in ("build", "hatchling", "twine"):
        pytest.importorskip(needed, reason=f"{needed} is in the extra `release`")
    out = tmp_path_factory.mktemp("dist")
    done = run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out)
    assert done.returncode == 0, done.stdout + done.stderr
    name = f"entropyfloor-{entropyfloor.__version__}"
    files = [out / f"{name}.tar.gz", out / f"{name}-py3-none-any.whl"]
    assert sorted(out.iterdir()) == sorted(files)
    return files


def tracked(*below):
    """Files of the repository, relative to it."""
    return set(run("git", "ls-files", "--", *below).stdout.splitlines())


def test_the_wheel_is_the_package(dist):
    with zipfile.ZipFile(dist[1]) as wheel:
        names = set(wheel.namelist())
        [licence] = [name for name in names if name.endswith("licenses/LICENSE")]
        assert wheel.read(licence) == (ROOT / "LICENSE").read_bytes()
    package = {
        name for name in names if not name.startswith(f"entropyfloor-{entropyfloor.__version__}.dist-info/")
    }
    assert package == {name.removeprefix("src/") for name in tracked("src")}
    assert {"entropyfloor/py.typed", "entropyfloor/recipes/control/sac-gym.toml"} <= package
    assert dist[1].stat().st_size < MOST


def test_the_sdist_has_what_a_wheel_is_built_from(dist):
    with tarfile.open(dist[0]) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    beside = {"README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "constraints.txt", "pyproject.toml"}
    assert names == tracked("src") | beside | {"PKG-INFO", ".gitignore"}
    assert dist[0].stat().st_size < MOST


def test_the_metadata(dist):
    done = run(sys.executable, "-m", "twine", "check", "--strict", *dist)
    assert done.returncode == 0, done.stdout
    with zipfile.ZipFile(dist[1]) as wheel:
        name = f"entropyfloor-{entropyfloor.__version__}.dist-info"
        metadata = message_from_string(wheel.read(f"{name}/METADATA").decode())
        assert b"entropyfloor = entropyfloor.cli:main" in wheel.read(f"{name}/entry_points.txt")
    assert metadata["Version"] == entropyfloor.__version__
    assert metadata["License-Expression"] == "MIT"
    assert metadata["Requires-Python"] == ">=3.11"
    needed = [text for text in metadata.get_all("Requires-Dist") if "extra ==" not in text]
    assert needed == ["numpy>=1.26", "packaging>=23"]


RIGHT = "from entropyfloor import targets\n\nlimit: float = targets.resolve('-A/2', 6)\n"
WRONG = "from entropyfloor import targets\n\nlimit: str = targets.resolve('-A/2', action_dim='6')\n"


def test_types_are_seen_from_outside(dist, tmp_path):
    venv.create(tmp_path / "env", with_pip=False)
    python = tmp_path / "env" / "bin" / "python"
    with zipfile.ZipFile(dist[1]) as wheel:
        wheel.extractall(next((tmp_path / "env" / "lib").glob("python*/site-packages")))
    config = tmp_path / "mypy.ini"
    config.write_text("[mypy]\n")
    (tmp_path / "right.py").write_text(RIGHT)
    (tmp_path / "wrong.py").write_text(WRONG)
    check = "-m", "mypy", "--strict", "--config-file", config, "--python-executable", python
    right = run(sys.executable, *check, tmp_path / "right.py")
    assert right.returncode == 0, right.stdout
    wrong = run(sys.executable, *check, tmp_path / "wrong.py")
    assert "[arg-type]" in wrong.stdout
    assert "[assignment]" in wrong.stdout


def test_the_citation_has_the_version():
    assert f"\nversion: {entropyfloor.__version__}\n" in (ROOT / "CITATION.cff").read_text()
