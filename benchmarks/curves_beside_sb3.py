"""Learning curves of our SAC and PPO beside those of Stable-Baselines3, at the same settings, in the same format.

    python benchmarks/curves_beside_sb3.py --algorithm ppo --seeds 0 1 2
    python benchmarks/curves_beside_sb3.py --algorithm sac --libraries sb3 sbx --seeds 0 1 2 3 4 5 6 7
    python benchmarks/curves_beside_sb3.py --algorithm sac --env gym/Pendulum-v1 --steps 10000 --eval-every 1000 \
        --out runs/beside-sb3/pendulum
    entropyfloor report runs/beside-sb3

Stable-Baselines3 trains on our environments and writes our run directories, so that the report draws both alike;
so does SBX, by its authors in JAX. The settings are their defaults, but for the size that makes SAC quick. What
cannot be made the same: each initialises the layers of its SAC in its own way (ours are orthogonal).
Finished runs are left alone. Needs `pip install 'entropyfloor[control,hosts]'`.
"""

import os

os.environ.update(NPROC="1", XLA_FLAGS="--xla_cpu_multi_thread_eigen=false", OMP_NUM_THREADS="1")

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import sbx
import stable_baselines3 as sb3
import torch
import tyro
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from entropyfloor.control import seeding
from entropyfloor.control.config import configure
from entropyfloor.control.envs import make
from entropyfloor.control.train import train
from entropyfloor.runs import Run, read_run
from entropyfloor.torch import functional as F

SHARED: dict[str, dict[str, Any]] = {
    "sac": {"steps": 30_000, "hidden": 64, "learning_rate": 1e-3, "batch_size": 128, "eval_every": 5_000},
    "ppo": {"steps": 200_000, "hidden": 64, "learning_rate": 3e-4, "minibatch_size": 64, "eval_every": 20_480},
}
"""Settings of both sides."""
OURS: dict[str, dict[str, Any]] = {
    "sac": {
        "head": "clip",
        "alpha_weight": "log-alpha",
        "target_entropy": "-A",
        "activation": "relu",
        "actor_layer_norm": False,
        "critic_layer_norm": False,
        "weight_decay": 0.0,
        "updates_per_step": 1,
        "random_steps": 100,
    },
    "ppo": {"entropy_coef": 0.0, "decay_learning_rate": False},
}
"""Settings with which ours do what Stable-Baselines3 does by default."""
LIBRARIES: dict[str, Any] = {"sb3": sb3, "sbx": sbx}
EPISODES = 5


@dataclass
class Args:
    """Train ours and theirs, one after the other."""

    algorithm: Literal["sac", "ppo"]
    """The algorithm."""
    libraries: tuple[Literal["sb3", "sbx"], ...] = ("sb3",)
    """Libraries that are trained beside ours."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Runs of each side."""
    env: str = "gym/HalfCheetah-v4"
    """Environment of both sides."""
    steps: int | None = None
    """Number of environment steps, by default those of HalfCheetah."""
    eval_every: int | None = None
    """Steps between evaluations."""
    out: Path = Path("runs/beside-sb3")
    """Directory of the runs."""


def train_theirs(library: str, algorithm: str, task: str, shared: dict[str, Any], seed: int, out: Path) -> None:
    """Stable-Baselines3 or SBX on our environment, into our run directory."""
    theirs = LIBRARIES[library]
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    env: Any = DummyVecEnv([lambda: make(task, seed=seeding.episode(seed, seeding.TRAIN_EPISODES, 0))])
    nets = [shared["hidden"]] * 2
    model: Any
    if algorithm == "sac":
        model = theirs.SAC(
            "MlpPolicy",
            env,
            learning_rate=shared["learning_rate"],
            batch_size=shared["batch_size"],
            policy_kwargs={"net_arch": nets},
            seed=seed,
            device="cpu",
        )
    else:
        env = VecNormalize(env)
        model = theirs.PPO(
            "MlpPolicy",
            env,
            learning_rate=shared["learning_rate"],
            batch_size=shared["minibatch_size"],
            policy_kwargs={"net_arch": nets},
            seed=seed,
            device="cpu",
        )
    config = {"domain": "control", "agent": f"{library}-{algorithm}", "env": task, "seed": seed, **shared}
    run = Run.create(out, {**config, "host": f"{theirs.__name__} {theirs.__version__}"})
    with run.recording():
        model.learn(shared["steps"], callback=Evaluate(run, task, seed, shared["eval_every"]))


class Evaluate(BaseCallback):
    """Return and realised entropy of the mode action, on the seeds that ours are evaluated on."""

    def __init__(self, run: Run, task: str, seed: int, every: int) -> None:
        super().__init__()
        self.run, self.every, self.env = run, every, make(task)
        self.seeds = [seeding.episode(seed, seeding.EVAL_EPISODES, i) for i in range(EPISODES)]

    def _on_training_start(self) -> None:
        self.evaluate()

    def _on_step(self) -> bool:
        if self.num_timesteps % self.every == 0:
            self.evaluate()
        return True

    def _on_training_end(self) -> None:
        if self.num_timesteps % self.every:
            self.evaluate()

    def evaluate(self) -> None:
        """Log a line of metrics."""
        normalise = getattr(self.model.get_env(), "normalize_obs", lambda observation: observation)
        total, visited = 0.0, []
        for seed in self.seeds:
            observation, _ = self.env.reset(seed=seed)
            running = True
            while running:
                visited.append(normalise(observation))
                action, _ = self.model.predict(visited[-1], deterministic=True)
                observation, reward, terminated, truncated, _ = self.env.step(action)
                total, running = total + float(reward), not (terminated or truncated)
        entropy = self.entropy(torch.as_tensor(np.stack(visited), dtype=torch.float32))
        lines = {"realised_entropy": entropy.mean(), "realised_entropy/min": entropy.min()}
        lines["realised_entropy/q05"] = np.quantile(entropy, 0.05)
        self.run.log(self.num_timesteps, {"return": total / EPISODES, **lines})

    @torch.no_grad()
    def entropy(self, observations: torch.Tensor) -> np.ndarray:
        """Entropy of the acting policy in each state: squashed for SAC, the Gaussian for PPO."""
        policy: Any = self.model.policy
        if isinstance(self.model, sbx.SAC):
            state = policy.actor_state
            normal = state.apply_fn(state.params, observations.numpy()).distribution
            loc, std = (torch.as_tensor(np.array(each)) for each in (normal.mean(), normal.stddev()))
            return F.tanh_normal_entropy(loc, std.log()).sum(-1).numpy()
        if isinstance(self.model, sb3.SAC):
            loc, log_std, _ = policy.actor.get_action_dist_params(observations)
            return F.tanh_normal_entropy(loc, log_std).sum(-1).numpy()
        return policy.get_distribution(observations).entropy().numpy()


def main(args: Args) -> None:
    """Train what is not finished."""
    if args.algorithm == "ppo" and "sbx" in args.libraries:
        raise SystemExit("SBX's PPO is not compared here: its policy tells no entropy")
    asked = {"steps": args.steps, "eval_every": args.eval_every}
    shared = SHARED[args.algorithm] | {name: value for name, value in asked.items() if value is not None}
    for seed in args.seeds:
        ours, *others = (args.out / args.algorithm / side / f"seed-{seed}" for side in ("ours", *args.libraries))
        settings = {**shared, **OURS[args.algorithm], "eval_episodes": EPISODES}
        if not finished(ours):
            train(configure(args.algorithm, env=args.env, seed=seed, out=str(ours), **settings))
        for library, theirs in zip(args.libraries, others, strict=True):
            if not finished(theirs):
                train_theirs(library, args.algorithm, args.env, shared, seed, theirs)


def finished(path: Path) -> bool:
    """Whether there is nothing left to do; a run that was cut short has to be deleted by hand."""
    return (path / "config.toml").exists() and read_run(path).status.get("state") == "finished"


if __name__ == "__main__":
    main(tyro.cli(Args))
