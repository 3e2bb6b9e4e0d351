"""The import graph is that of CONTRIBUTING's tables, files stay short, and importing stays cheap."""

import ast
import graphlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import entropyfloor
from entropyfloor.extras import require

ROOT = Path(entropyfloor.__file__).parent
CONTRIBUTING = ROOT.parents[1] / "CONTRIBUTING.md"
LONGEST = 500
"""Lines of a file of the package."""


def tables():
    """What each package may import, as CONTRIBUTING's tables say: of the package, and of `language/`."""
    found = []
    for line in CONTRIBUTING.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|---"):
            found.append({})
        elif line.startswith("| `") and found:
            found[-1][cells[0].strip("`").rstrip("/")] = set(re.findall(r"`([a-z_]+)`", cells[2]))
    return found


PACKAGES, LANGUAGE_PACKAGES = tables()
OPEN = {"extras", "__version__"}
"""Names that every package may import."""
OPEN_IN_LANGUAGE = {"config", "encoding"}


def imports(path, package):
    """Names directly below `package` that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: import absolutely"
            base = node.module or ""
            names = [f"{base}.{alias.name}" for alias in node.names] if base == package else [base]
        else:
            continue
        yield from (
            name.removeprefix(f"{package}.").split(".")[0] for name in names if name.startswith(f"{package}.")
        )


def test_the_table_is_that_of_the_packages():
    modules = {path.stem for path in ROOT.glob("*.py")} | {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert set(PACKAGES) == modules - {"__init__"}
    assert set(LANGUAGE_PACKAGES) == {path.parent.name for path in (ROOT / "language").glob("*/__init__.py")}


@pytest.mark.parametrize("package", PACKAGES)
def test_data_flows_one_way(package):
    for path in [*(ROOT / package).rglob("*.py"), *ROOT.glob(f"{package}.py")]:
        used = set(imports(path, "entropyfloor"))
        assert used <= PACKAGES[package] | OPEN | {package}, (
            f"{path.relative_to(ROOT)} imports {used - PACKAGES[package]}"
        )


@pytest.mark.parametrize("package", LANGUAGE_PACKAGES)
def test_data_flows_one_way_in_language(package):
    for path in (ROOT / "language" / package).rglob("*.py"):
        used = set(imports(path, "entropyfloor.language"))
        allowed = LANGUAGE_PACKAGES[package] | OPEN_IN_LANGUAGE | {package}
        assert used <= allowed, f"{path.relative_to(ROOT)} imports {used - allowed}"


def test_no_package_imports_another_in_a_circle():
    done: set[str] = set()
    while rest := set(PACKAGES) - done:
        free = {package for package in rest if PACKAGES[package] <= done}
        assert free, f"a circle among {rest}"
        done |= free


def test_no_file_imports_another_in_a_circle():
    """Imports inside functions and those for type checkers count too."""
    names = {".".join(path.relative_to(ROOT.parent).with_suffix("").parts): path for path in ROOT.rglob("*.py")}
    names = {name.removesuffix(".__init__"): path for name, path in names.items()}
    graph = {}
    for name, path in names.items():
        nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
        used = [(node.module, f"{node.module}.{alias.name}") for node in nodes for alias in node.names]
        graph[name] = {full if full in names else module for module, full in used} & set(names) - {name}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError


def test_a_file_is_a_page_and_no_book():
    lengths = {path.relative_to(ROOT): len(path.read_text().splitlines()) for path in ROOT.rglob("*.py")}
    assert {path: length for path, length in lengths.items() if length > LONGEST} == {}


def loaded_after(statement):
    """Top-level modules that a fresh interpreter has after a statement."""
    code = f"{statement}; import sys; print(*{{m.split('.')[0] for m in sys.modules}})"
    return set(
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    )


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import entropyfloor", {"torch", "jax", "numpy"}),
        ("import entropyfloor; entropyfloor.targets", {"torch", "jax", "numpy"}),
        ("import entropyfloor.torch", {"jax", "flax"}),
        ("import entropyfloor.jax", {"torch"}),
        ("import entropyfloor.audit.control", {"torch"}),
    ],
)
def test_a_framework_is_imported_only_where_it_is_used(statement, absent):
    assert not loaded_after(statement) & absent


@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_a_missing_extra_is_named_in_one_line(framework):
    code = f"import sys; sys.modules['{framework}'] = None; import entropyfloor.{framework}"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    last = result.stderr.strip().splitlines()[-1]
    assert f"pip install 'entropyfloor[{framework}]'" in last
    assert result.stderr.count("Traceback") == 1


ABSENT = "gymnasium", "mujoco", "dm_control", "tyro", "tomli_w", "torchmetrics", "accelerate", "jaxtyping"
"""What a machine for benchmarks may lack."""


def test_extras_that_messages_name_exist():
    """pip only warns of an unknown extra, and installs nothing for it."""
    extras = tomllib.loads((ROOT.parents[1] / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    files = [*ROOT.rglob("*.py"), *(ROOT.parents[1] / "examples").glob("*.py")]
    named = {extra for file in files for extra in re.findall(r'\brequire\("(\w+)"', file.read_text())}
    assert {"trl", "reasoning", "smollm2"} <= named <= set(extras)


@pytest.mark.slow_but_first
@pytest.mark.parametrize("module", ["control.agents.build", "vision", "torch.tokens", "runs.machine"])
def test_agents_and_heads_need_neither_simulators_nor_the_command_line(module):
    code = f"import sys; sys.modules.update(dict.fromkeys({ABSENT!r})); import entropyfloor.{module}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_dm_control_is_installed_without_labmaze_where_that_has_no_wheel(monkeypatch):
    monkeypatch.setitem(sys.modules, "dm_control", None)
    for version, command in (((3, 12), "'entropyfloor[control]'"), ((3, 13), "--no-deps dm_control")):
        monkeypatch.setattr(sys, "version_info", version)
        with pytest.raises(ImportError, match=re.escape(f"'dm_control' is not installed: pip install {command} ")):
            require("control", "dm_control")


@pytest.mark.slow_but_first
@pytest.mark.parametrize(
    ("absent", "statement", "extra"),
    [
        ("gymnasium", "import entropyfloor.control.train", "control"),
        ("mujoco", "import entropyfloor.control.evaluate", "control"),
        ("tomli_w", "from entropyfloor.runs import Run; Run.create(None, {})", "runs"),
        ("matplotlib", "import entropyfloor.audit.control", "report"),
    ],
)
def test_what_training_needs_is_named_when_it_is_missing(absent, statement, extra):
    code = f"import sys; sys.modules[{absent!r}] = None; {statement}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    message = f"{absent!r} is not installed: pip install 'entropyfloor[{extra}]' brings it"
    assert done.stderr.strip().endswith(message)
