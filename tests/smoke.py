"""Use an installation as its user would: every command that its extras bring, on the smallest of its tasks.

    python tests/smoke.py control report

No argument stands for the package without extras. It needs neither pytest nor the sources, and runs in a directory
of its own. `tests/release.sh` calls it in empty environments.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

CONTROL = "--env gym/Pendulum-v1 --hidden 8 --batch-size 8 --steps 60 --random-steps 20 --updates-per-step 1"
CONTROL += " --eval-every 60 --eval-episodes 1 --log-every 20 --checkpoint-every 60"
LANGUAGE = "--layers 1 --hidden 16 --heads 2 --warm-start-steps 2 --steps 1 --prompts 2 --samples 2"
LANGUAGE += " --eval-problems 2 --eval-samples 2"
COMMANDS = {
    "control": [
        f"train control --agent sac-era-exact {CONTROL} --out control",
        "evaluate control --episodes 1",
        "audit control --episodes 1",
        "reproduce control/sac-gym --dry-run",
    ],
    "vision": [
        "train vision --model test_resnet --dataset digits --min-entropy 0.6 --epochs 1 --out vision",
        "evaluate vision",
    ],
    "language": [
        f"train language --head era {LANGUAGE} --out language",
        "evaluate language --problems 2 --samples 2",
        "judge 1/2 0.5",
    ],
    "onnx": [f"train control --agent sac-era {CONTROL} --out exported", "export exported --out policy.onnx"],
    "report": ["report . --out report"],
}
"""Commands of `entropyfloor` by extra; those of `report` come last."""


def entropyfloor(command: str) -> str:
    """Output of a command, which must succeed."""
    print(f"entropyfloor {command}", flush=True)
    args = [str(Path(sys.executable).with_name("entropyfloor")), *command.split()]
    done = subprocess.run(args, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    if done.returncode:
        sys.exit(f"exit status {done.returncode}: {done.stderr or done.stdout}")
    return done.stdout


def main(extras: list[str]) -> None:
    """Examine the installation, and run the commands of its extras."""
    findings = json.loads(entropyfloor("doctor --json"))
    for extra in extras:
        if lacking := findings["extras"][extra]:
            sys.exit(f"the extra {extra} lacks {', '.join(lacking)}")
        if findings["parts"].get(f"entropyfloor.{extra}", "ready") != "ready":
            sys.exit(f"{extra}: {findings['parts'][f'entropyfloor.{extra}']}")
    versions, measured = findings["versions"], findings["backends"]
    for extra in COMMANDS:
        for command in COMMANDS[extra] if extra in extras else ():
            entropyfloor(command)
    shown = {name: versions[name] for name in ("python", "numpy", "torch", "jax", "flax") if name in versions}
    print(f"passed: {extras or 'no extra'} with {shown}; floors measured in {list(measured) or 'no backend'}")


if __name__ == "__main__":
    os.chdir(tempfile.mkdtemp())
    main(sys.argv[1:])
