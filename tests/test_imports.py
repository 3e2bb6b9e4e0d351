"""The import graph keeps the directions of the house, and importing stays cheap."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import entropyfloor

ROOT = Path(entropyfloor.__file__).parent

# A room may import the rooms named here, and itself. Every room may import `extras` and the package's version.
ALLOWED = {
    "targets": set(),
    "extras": set(),
    "torchvision_shim": set(),
    "torch": {"targets"},
    "jax": {"targets"},
    "runs": set(),
    "control": {"targets", "jax", "runs"},
    "vision": {"targets", "torch", "runs", "torchvision_shim"},
    "language": {"targets", "torch", "runs", "torchvision_shim"},
    "report": {"runs"},
    "experiments": {"runs", "recipes"},
    "recipes": set(),
    "commands": {"runs", "control", "vision", "language", "experiments", "report"},
    "cli": {"commands"},
}


def imports(path):
    """Rooms of ours that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: import absolutely"
            base = node.module or ""
            names = [f"{base}.{alias.name}" for alias in node.names] if base == "entropyfloor" else [base]
        else:
            continue
        yield from (name.split(".")[1] for name in names if name.startswith("entropyfloor."))


def test_data_flows_one_way():
    for path in ROOT.rglob("*.py"):
        room = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        allowed = ALLOWED[room] | {room, "extras", "__version__"}
        assert set(imports(path)) <= allowed, f"{path.relative_to(ROOT)} imports {set(imports(path)) - allowed}"


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
