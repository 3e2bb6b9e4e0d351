"""Updates of SAC per CPU-second: ours beside Stable-Baselines3 and SBX, and ERA beside the plain head.

Everything an update needs is included: sampling the replay buffer, both critics, the actor, α, the target critics.
Same sizes, same networks (two hidden layers, ReLU, no LayerNorm), one thread. All of it runs in one process, one
after the other in random order, and CPU time is what counts, so that a busy machine hurts everybody equally.
A ratio is that of paired rounds: median with a 95 % bootstrap interval. Run: `python benchmarks/sac_update.py`
(needs `pip install 'entropyfloor[control,hosts]'`).
"""

import os

os.environ.update(NPROC="1", XLA_FLAGS="--xla_cpu_multi_thread_eigen=false", OMP_NUM_THREADS="1")

import argparse
import time
from collections.abc import Callable
from dataclasses import replace

import gymnasium
import jax
import numpy as np
import sbx
import stable_baselines3 as sb3
import torch
from gymnasium import spaces

from entropyfloor.control import networks
from entropyfloor.control.config import AgentName, ControlConfig
from entropyfloor.control.replay import Replay, Transition
from entropyfloor.control.train import build_agent
from entropyfloor.runs import machine

BATCH, STORED = 256, 20_000
HUMANOID, WALKER = (67, 21), (24, 6)
"""Widths of an observation and an action in DeepMind Control."""
UPDATES = 8
"""Updates in one call."""

Trainer = Callable[[], None]
Sizes = tuple[int, int]


class Shapes(gymnasium.Env):
    """Spaces alone: the hosts ask for an environment, no step of it is taken."""

    def __init__(self, sizes: Sizes) -> None:
        obs, act = sizes
        self.observation_space = spaces.Box(-np.inf, np.inf, (obs,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (act,), np.float32)


def ours(agent_name: AgentName, sizes: Sizes, hidden: int, **options: object) -> Trainer:
    """Our update under a preset."""
    obs, act = sizes
    config = ControlConfig(agent=agent_name, hidden=hidden, **options).resolved()
    nets = (hidden, hidden)
    agent = replace(
        build_agent(config, act),
        actor=networks.GaussianActor(act, nets, layer_norm=False),
        critics=networks.Critics(nets, layer_norm=False),
    )
    rng = np.random.default_rng(0)
    replay = Replay(STORED, obs, act, rng)
    for _ in range(STORED):
        replay.add(transition(rng, sizes))
    key = jax.random.key(0)
    state = agent.init(key, obs, act)
    update = jax.jit(agent.update_many, donate_argnums=0)

    def train() -> None:
        nonlocal state
        state, metrics = update(state, replay.sample(UPDATES, BATCH), key)
        jax.block_until_ready((state, metrics))

    return train


def host(library: object, sizes: Sizes, hidden: int) -> Trainer:
    """The update of Stable-Baselines3 or SBX, through its own `train`."""
    net_arch = [hidden, hidden]
    model = library.SAC(
        "MlpPolicy",
        Shapes(sizes),
        buffer_size=STORED,
        batch_size=BATCH,
        policy_kwargs={"net_arch": net_arch},
        seed=0,
    )
    model.set_logger(sb3.common.logger.Logger(None, []))
    rng = np.random.default_rng(0)
    for _ in range(STORED):
        row = transition(rng, sizes)
        model.replay_buffer.add(
            row.observation[None], row.next_observation[None], row.action[None], row.reward, row.terminated, [{}]
        )
    return lambda: model.train(gradient_steps=UPDATES, batch_size=BATCH)


def transition(rng: np.random.Generator, sizes: Sizes) -> Transition:
    """Noise: what is learned makes no difference to the time."""
    obs, act = sizes
    return Transition(
        rng.standard_normal(obs, np.float32),
        rng.uniform(-1, 1, act).astype(np.float32),
        rng.standard_normal(1, np.float32)[0],
        np.float32(0.0),
        rng.standard_normal(obs, np.float32),
    )


def flops(sizes: Sizes, hidden: int) -> float:
    """Floating-point operations of the matrix products in one update, the least that SAC can do."""
    obs, act = sizes
    actor = obs * hidden + hidden * hidden + hidden * 2 * act
    critic = (obs + act) * hidden + hidden * hidden + hidden
    target = actor + 2 * critic
    # Backward through a layer costs two products; nobody asks for the gradient of the first layer's input.
    critics = 2 * (3 * critic - (obs + act) * hidden)
    # The actor's loss needs no gradient of the critics' weights, and of their input only that of the action.
    policy = (3 * actor - obs * hidden) + 2 * (2 * critic - obs * hidden)
    return 2.0 * BATCH * (target + critics + policy)


def matmul_limit(hidden: int) -> float:
    """Best operations per CPU-second of a product of the hidden layers' shape, by PyTorch's library."""
    a, b = torch.randn(BATCH, hidden), torch.randn(hidden, hidden)
    out, best = torch.empty(BATCH, hidden), 0.0
    for _ in range(20):
        start = time.process_time()
        for _ in range(100):
            torch.mm(a, b, out=out)
        best = max(best, 100 * 2.0 * BATCH * hidden * hidden / (time.process_time() - start))
    return best


def measure(trainers: dict[str, Trainer], rounds: int) -> dict[str, np.ndarray]:
    """CPU-seconds per update, one value a round, all trainers in each round in random order."""
    for train in trainers.values():
        train(), train()
    rng, names = np.random.default_rng(0), list(trainers)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in rng.permutation(names):
            start = time.process_time()
            trainers[name]()
            seconds[name].append((time.process_time() - start) / UPDATES)
    return {name: np.array(values) for name, values in seconds.items()}


def ratio(ours: np.ndarray, other: np.ndarray) -> str:
    """Median of the paired ratios ours / other, with a 95 % bootstrap interval."""
    pairs = ours / other
    draws = np.median(pairs[np.random.default_rng(0).integers(len(pairs), size=(2000, len(pairs)))], axis=1)
    low, high = np.quantile(draws, [0.025, 0.975])
    return f"{np.median(pairs):.3f} [{low:.3f}, {high:.3f}]"


def main() -> None:
    """Print one table per width."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=60)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    found = machine.describe()
    versions = ", ".join(f"{name} {found['versions'][name]}" for name in ("jax", "flax", "torch"))
    print(f"{found['hardware']['cpu']}, one thread, {found['started']}, {versions},")
    print(f"stable-baselines3 {sb3.__version__}, sbx {sbx.__version__}; {rounds} rounds of {UPDATES} updates")
    for name, sizes, hidden in (
        ("humanoid", HUMANOID, 256),
        ("humanoid", HUMANOID, 512),
        ("walker", WALKER, 256),
    ):
        limit, least = matmul_limit(hidden), flops(sizes, hidden)
        trainers = {
            "sac": ours("sac", sizes, hidden),
            "SBX": host(sbx, sizes, hidden),
            "SB3": host(sb3, sizes, hidden),
            "plain head": ours("sac", sizes, hidden, distribution="truncated", entropy="none"),
            "sac-era": ours("sac-era", sizes, hidden),
            "sac-era-exact": ours("sac-era-exact", sizes, hidden),
        }
        seconds = measure(trainers, rounds)
        print(f"\n{name}: observation {sizes[0]}, action {sizes[1]}, batch {BATCH}, hidden {hidden}")
        print(f"matrix products alone: {least / 1e6:.0f} MFLOP at {limit / 1e9:.0f} GFLOP/s")
        print(f"{'':<15}{'updates per CPU-second':>24}{'share of limit':>16}")
        for trainer, values in seconds.items():
            rate = 1 / np.median(values)
            print(f"{trainer:<15}{rate:>24.1f}{rate * least / limit:>15.0%}")
        pairs = (
            *(("SBX", "sac"), ("SB3", "sac")),
            *(("sac-era", "plain head"), ("sac-era-exact", "plain head")),
        )
        for one, other in pairs:
            print(f"time of {one} / time of {other}: {ratio(seconds[one], seconds[other])}")


if __name__ == "__main__":
    main()
