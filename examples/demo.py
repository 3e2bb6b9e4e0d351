"""Train three agents on two seeds each, and report the target entropy and that of the policy that acts.

    make demo

All three have a target of −3 nats: `sac` on average over states, through its temperature; `sac-era` for the
Gaussian before truncation; `sac-era-exact` for the policy that acts. One process per core trains. Ctrl-C saves,
and the same command continues.
"""

import asyncio
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from entropyfloor.report import write_report
from entropyfloor.runs import read_run
from entropyfloor.runs.processes import terminated_as_interrupted

AGENTS = ("sac", "sac-era", "sac-era-exact")


@dataclass
class Demo:
    """Train `sac`, `sac-era` and `sac-era-exact`, then report on them."""

    env: str = "dmc/walker-walk"
    """Environment, `suite/task`."""
    steps: int = 36_000
    """Environment steps of each run; each action is applied twice."""
    seeds: int = 2
    """Number of seeds of each agent."""
    processes: int = min(os.cpu_count() or 1, len(AGENTS) * 2)
    """Number of runs at a time, each on one core."""
    out: Path = Path("runs/demo")
    """Directory of the runs and the report."""

    def command(self, agent: str, seed: int) -> list[str]:
        """Command that starts or resumes a run."""
        run = self.path(agent, seed)
        train = [sys.executable, "-m", "entropyfloor.cli", "train", "control"]
        if (run / "config.toml").exists():
            return [*train, "--resume", str(run)]
        settings = {  # small and quick; the defaults are the paper's
            "agent": agent,
            "env": self.env,
            "seed": seed,
            "steps": self.steps,
            "out": run,
            "networks": "release",
            "target-entropy": "-A/2",
            "learning-rate": 1e-3,
            "action-repeat": 2,
            "hidden": 128,
            "batch-size": 128,
            "updates-per-step": 1,
            "random-steps": min(2_000, self.steps // 2),
            "eval-every": max(self.steps // 9, 2),
            "eval-episodes": 3,
            "checkpoint-every": max(self.steps // 4, 2),
        }
        return [*train, *(f"--{name}={value}" for name, value in settings.items())]

    async def train(self, agent: str, seed: int, core: asyncio.Semaphore) -> None:
        """Train one agent in a process of its own, and show its output."""
        async with core:
            process = await asyncio.create_subprocess_exec(
                *self.command(agent, seed),
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,  # so that a Ctrl-C reaches it once, through this program
            )
            assert process.stdout is not None
            try:
                async for line in process.stdout:
                    print(f"{agent:<13} seed {seed}  {line.decode()}", end="", flush=True)
                code = await process.wait()
            except asyncio.CancelledError:
                process.terminate()  # not SIGINT, which processes that a script starts in the background ignore
                await process.communicate()
                raise
            if code:
                raise RuntimeError(f"{agent}, seed {seed}, ended with status {code}; its last lines are above")

    async def train_all(self) -> None:
        """Train the runs that are not finished."""
        core = asyncio.Semaphore(self.processes)
        async with asyncio.TaskGroup() as group:
            for seed in range(self.seeds):
                for agent in AGENTS:
                    if not self.finished(agent, seed):
                        group.create_task(self.train(agent, seed, core))

    def finished(self, agent: str, seed: int) -> bool:
        """Whether an earlier call has finished this run.

        Exits if the directory has a run with other settings.
        """
        if not (self.path(agent, seed) / "config.toml").exists():
            return False
        run = read_run(self.path(agent, seed))
        if (run.config["env"], run.config["steps"]) != (self.env, self.steps):
            settings = f"{run.config['env']} over {run.config['steps']} steps"
            sys.exit(f"{run.path} has a run of {settings}: choose another --out")
        return run.status["state"] == "finished"

    def path(self, agent: str, seed: int) -> Path:
        """Directory of a run."""
        return self.out / agent / f"seed-{seed}"


def main(demo: Demo) -> None:
    """Train, then report."""
    try:
        with terminated_as_interrupted():
            asyncio.run(demo.train_all())
    except KeyboardInterrupt:
        sys.exit("stopped; the same command continues")
    page = write_report([demo.out], demo.out / "report")
    print(f"\nReport, to be opened in a browser: {page.resolve().as_uri()}")


if __name__ == "__main__":
    main(tyro.cli(Demo))
