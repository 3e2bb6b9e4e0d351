"""What `entropyfloor doctor` finds: known-bad pairs, what extras lack, hints, floors that do not hold."""

import json
import subprocess
import sys
from importlib.metadata import requires

import pytest

from entropyfloor import doctor
from entropyfloor.cli import main
from entropyfloor.doctor import broken_floors, hints, measure
from entropyfloor.extras import Status
from entropyfloor.versions import KNOWN_LIMITS, by_hand, known_bad, matching, missing, untried

WORKS = {
    "numpy": "2.4.6",
    "scipy": "1.17.1",
    "pandas": "3.1.1",
    "scikit-learn": "1.9.1",
    "matplotlib": "3.11.2",
    "torch": "2.13.0+cpu",
    "torchvision": "0.28.0",
    "jaxlib": "0.10.2",
    "mujoco": "3.17.0",
    "dm-control": "1.0.50",
    "transformers": "5.23.0",
    "antlr4-python3-runtime": "4.13.2",
}


def test_versions_that_work_together_are_no_problem():
    assert known_bad(WORKS) == known_bad({}) == []
    assert known_bad({"mujoco": "4.0.0"}) == []  # without dm_control


@pytest.mark.parametrize(
    ("versions", "named"),
    [
        ({"mujoco": "4.0.0"}, ["mujoco 4.0.0 with dm_control 1.0.50", "flex_vertedge", "'mujoco>=3.17,<4'"]),
        ({"mujoco": "4.1.0rc1"}, ["mujoco 4.1.0rc1"]),
        ({"torchvision": "0.27.1"}, ["torchvision 0.27.1 with torch 2.13.0+cpu", "'torchvision==0.28.*'"]),
        ({"torch": "2.6.0", "torchvision": "0.22.0"}, ["pip install 'torchvision==0.21.*'"]),
        ({"verl": "0.9.1"}, ["verl 0.9.1 with transformers 5.23.0", "constraints-verl.txt"]),
        ({"omegaconf": "2.3.1"}, ["antlr4-python3-runtime 4.13.2", "'antlr4-python3-runtime==4.9.3'"]),
        ({"pandas": "2.2.1"}, ["pandas 2.2.1 with numpy 2.4.6", "compiled for NumPy 1", "'pandas>=2.2.2'"]),
        ({"scipy": "1.12.0"}, ["'scipy>=1.13'"]),
        ({"scikit-learn": "1.4.1.post1"}, ["'scikit-learn>=1.4.2'"]),
        ({"matplotlib": "3.8.3"}, ["'matplotlib>=3.8.4'"]),
        (
            {"jax-cuda13-plugin": "0.10.1"},
            ["jax-cuda13-plugin 0.10.1 with jaxlib 0.10.2", "pip install 'jax-cuda13-plugin==0.10.2'"],
        ),
    ],
)
def test_a_known_bad_pair_is_named_with_its_remedy(versions, named):
    [problem] = known_bad({**WORKS, **versions})
    assert all(text in problem for text in named)


@pytest.mark.parametrize(
    "versions",
    [
        {"jax-cuda13-plugin": "0.10.2"},
        {"verl": "0.9.1", "transformers": "5.10.4"},
        {"omegaconf": "2.3.1", "antlr4-python3-runtime": "4.9.3"},
        {"torch": "2.6.0", "torchvision": "0.21.0"},
        {"numpy": "1.26.4", "scipy": "1.12.0", "pandas": "2.2.1"},
    ],
)
def test_what_is_mended_is_no_problem(versions):
    assert known_bad({**WORKS, **versions}) == []


REQUIREMENTS = [
    "numpy>=1.26",
    'jax<0.12,>=0.10; extra == "jax"',
    'entropyfloor[jax]; extra == "control"',
    'mujoco<4,>=3.3; extra == "control"',
    'triton>=3; sys_platform == "nowhere" and extra == "control"',
]


@pytest.mark.parametrize(
    ("versions", "lacking"),
    [
        ({"numpy": "2.0", "jax": "0.10.2", "mujoco": "3.17.0"}, []),
        ({"numpy": "2.0", "jax": "0.12.0"}, ["mujoco<4,>=3.3"]),  # `untried` names jax
        ({"jax": "0.10.2", "mujoco": "3.17.0"}, ["numpy>=1.26"]),
    ],
)
def test_an_extra_lacks_what_is_absent(versions, lacking):
    assert missing("control", REQUIREMENTS, versions) == lacking
    assert missing("jax", REQUIREMENTS, {"numpy": "2.0", "jax": "0.11"}) == []


@pytest.mark.parametrize(
    ("versions", "named"),
    [
        ({"jax": "0.12.0"}, "jax 0.12.0 was not tried with this package: pip install 'jax<0.12,>=0.10'"),
        ({"jax": "0.9.2"}, "jax 0.9.2 was not tried with this package: pip install 'jax<0.12,>=0.10'"),
        ({"torch": "2.5.1+cpu"}, "torch 2.5.1+cpu was not tried with this package: pip install 'torch>=2.6'"),
        ({"trl": "1.17.0"}, "trl 1.17.0 was not tried with this package: pip install 'trl<1.17,>=1.15'"),
        ({"mujoco": "4.0.0"}, "mujoco 4.0.0 was not tried with this package: pip install 'mujoco<4,>=3.3'"),
        ({"rsl-rl-lib": "6"}, "rsl-rl-lib 6 was not tried with this package: pip install 'rsl-rl-lib<6,>=5.5'"),
    ],
)
def test_a_version_outside_of_the_declared_range_is_named(versions, named):
    assert untried(requires("entropyfloor"), {**WORKS, **versions}) == [named]


def test_only_versions_outside_of_the_declared_ranges_were_not_tried():
    assert untried(requires("entropyfloor"), {**WORKS, "jax": "0.11.2", "trl": "1.16.0", "pytest": "6.0"}) == []


def test_what_pip_leaves_out_on_python_3_13_is_named():
    without = {name: version for name, version in WORKS.items() if name != "dm-control"}
    [line] = by_hand(without, (3, 13))
    assert line.endswith("pip install --no-deps dm_control")
    assert by_hand(without, (3, 12)) == by_hand(WORKS, (3, 13)) == by_hand({}, (3, 13)) == []


def test_a_pair_of_which_a_part_does_not_work_is_no_problem():
    versions = {**WORKS, "brax": "0.14.2", "jax": "0.10.2"}
    [hint] = matching(KNOWN_LIMITS, versions)
    assert hint.startswith("brax 0.14.2 with jax 0.10.2: brax's own trainers call jax.device_put_replicated")
    assert known_bad(versions) == matching(KNOWN_LIMITS, {**versions, "jax": "0.9.2"}) == []


def test_the_measured_floors_hold(backend):
    found = measure(backend.name)
    assert found["devices"] == ["cpu"]
    assert found["least_policy_entropy"] == pytest.approx(-3, abs=1e-4)
    assert found["least_class_entropy"] == pytest.approx(0.6, abs=1e-4)
    assert broken_floors({backend.name: found}) == []


@pytest.mark.parametrize("wrong", [-3.01, float("nan")])
def test_a_floor_that_does_not_hold_is_a_problem(wrong):
    [problem] = broken_floors({"jax": {"least_policy_entropy": wrong, "least_class_entropy": 0.6}})
    assert problem.startswith(f"jax: an entropy of {wrong:.4f} nats is below its floor of -3.0")


def test_hints(monkeypatch):
    monkeypatch.setattr(doctor, "_without_operators", lambda: False)
    on_cpu, quiet = {"torch": {"devices": ["cpu"]}}, {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    assert hints(None, on_cpu, quiet, "fpu amx_bf16") == hints(None, on_cpu, quiet, "") == []
    assert "amx" in hints(None, on_cpu, quiet, "fpu avx2")[0].lower()
    assert "OMP_NUM_THREADS=1" in hints(None, on_cpu, {}, "")[0]
    assert hints(None, {"jax": {"devices": ["cpu"]}}, {}, "") == []
    assert "there is a GPU (H200)" in hints("H200", on_cpu, quiet, "")[0]
    hiding = {**quiet, "CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu"}
    assert hints("H200", on_cpu, quiet, "")[0].endswith(": install its build for CUDA")
    assert hints("H200", on_cpu, hiding, "")[0].endswith("for CUDA, or unset CUDA_VISIBLE_DEVICES")
    assert hints("H200", {"jax": {"devices": ["cpu"]}}, hiding, "")[0].endswith(", or unset JAX_PLATFORMS")
    assert hints("H200", {"torch": {"devices": ["H200"]}}, quiet, "") == []


def test_a_backend_that_cannot_compute_does_not_hide_the_rest(monkeypatch, capsys):
    def measured(name):
        if name == "torch":
            raise RuntimeError(
                "CUDA error: no kernel image is available for execution on the device\nCompile with …"
            )
        return {"devices": ["cpu"], "least_policy_entropy": -3.0, "least_class_entropy": 0.6}

    monkeypatch.setattr(doctor, "PARTS", ("torch", "jax"))
    monkeypatch.setattr(doctor, "measure", measured)
    assert main(["doctor"]) == Status.FAILED
    out, err = capsys.readouterr()
    assert "jax on cpu " in out
    assert "problem                 torch is installed and cannot compute here: CUDA error: no kernel image" in out
    assert err.startswith("failed: torch is installed and cannot compute here: CUDA error")
    assert err.count("\n") == 1


@pytest.mark.slow
def test_a_problem_is_an_exit_status(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "PARTS", BACKENDS := ("torch", "jax"))
    assert main(["doctor", "--json"]) == 0
    findings = json.loads(capsys.readouterr().out)
    assert set(findings["backends"]) == set(BACKENDS)
    assert findings["problems"] == []
    versions = {**doctor.installed_versions([]), **WORKS, "mujoco": "4.0.0"}
    monkeypatch.setattr(doctor, "installed_versions", lambda _: versions)
    assert main(["doctor"]) == Status.FAILED
    out, err = capsys.readouterr()
    assert out.count("mujoco 4.0.0 was not tried") == 1
    assert err.startswith("failed: mujoco 4.0.0 with dm_control 1.0.50: ")
    assert err.count("\n") == 1


def test_an_installation_without_any_extra_is_examined():
    absent = "torch", "jax", "tyro", "psutil", "safetensors", "torchvision"
    code = f"import sys; sys.modules.update(dict.fromkeys({absent!r})); from entropyfloor.cli import main; "
    done = subprocess.run(
        [sys.executable, "-c", f"{code}sys.exit(main(['doctor']))"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "pip install 'entropyfloor[torch]'" in done.stdout
    assert " on cpu" not in done.stdout
