"""Speed of the control agents beside Stable-Baselines3 and SBX, and ERA's share of the time.

    python benchmarks/control.py
    python benchmarks/control.py --parts share --rounds 200

updates: SAC, OBAC and PPO without an environment: sampling what was stored, gradients, optimisers, target critics.
heads: the same SAC with a plain head and with the exact one; and Stable-Baselines3's SAC beside itself with the
    exact head's work on top, in eager PyTorch: once for the next actions, once with gradients.
loops: acting, simulating, storing and updating on HalfCheetah, and PPO's collection alone.
share: whole loops of ERA's agents beside the same agents with a plain head, at a learning rate next to 0, so that
    both go on acting alike: what another policy costs the simulator is no cost of ERA's.

Same sizes, same networks (two hidden layers, no LayerNorm), one thread, one process. The sides of a comparison
take turns, in a new random order in each round, and what counts is CPU time: a busy machine hurts all alike, and
with one thread it is the wall time of an idle one. Rates are medians over the rounds; a ratio is the median of the
paired rounds with a 95 % bootstrap interval. Needs `pip install 'entropyfloor[control,hosts]'`.
"""

import os

os.environ.update(NPROC="1", XLA_FLAGS="--xla_cpu_multi_thread_eigen=false", OMP_NUM_THREADS="1")

import argparse
import math
import time
from collections.abc import Callable
from typing import Any

import gymnasium
import jax
import numpy as np
import sbx
import stable_baselines3 as sb3
import torch
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from entropyfloor.control.agents.build import build_agent
from entropyfloor.control.agents.ppo import Rollout
from entropyfloor.control.config import configure
from entropyfloor.control.envs import make
from entropyfloor.control.replay import Replay, Transition
from entropyfloor.control.train import build
from entropyfloor.torch.nn import ERATruncatedNormal
from pairs import Side, compare, header

TASK = "gym/HalfCheetah-v4"
HUMANOID, WALKER, CHEETAH = (67, 21), (24, 6), (17, 6)
"""Widths of an observation and an action: two tasks of DeepMind Control, and `TASK`."""
BATCH, STORED, UPDATES = 256, 10_000, 2
"""Of SAC: transitions in an update, transitions in the replay, updates in a turn (ours compiles them as one)."""
EPOCHS, MINIBATCH = 10, 64
"""Of PPO."""
PLAIN_NETS = {"activation": "relu", "actor_layer_norm": False, "critic_layer_norm": False, "weight_decay": 0.0}
"""SAC's networks and optimisers as the hosts have them."""
HOSTS = {"SBX": sbx, "SB3": sb3}
MORE = 4
"""How many times more rounds there are where a turn is short, or a difference smaller than its noise."""

Sizes = tuple[int, int]


class Noise(gymnasium.Env):
    """Random observations without a simulator: what is learned makes no difference to the time."""

    def __init__(self, sizes: Sizes) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, sizes[:1], np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, sizes[1:], np.float32)
        self._rng = np.random.default_rng(0)

    def reset(self, **_: Any) -> tuple[np.ndarray, dict[str, Any]]:
        """An episode that never ends."""
        return self._rng.standard_normal(self.observation_space.shape, np.float32), {}

    def step(self, _: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """The next one."""
        return self.reset()[0], self._rng.standard_normal(), False, False, {}


def our_updates(agent: Any, update: Callable, draw: Callable[[], Any], sizes: tuple[int, ...], count: int) -> Side:
    """`count` updates of our agent from what `draw` gives."""
    key = jax.random.key(0)
    state, update = agent.init(key, *sizes), jax.jit(update, donate_argnums=0)

    def train() -> None:
        nonlocal state
        state, metrics = update(state, draw(), key)
        jax.block_until_ready((state, metrics))

    return Side(train, count)


def our_sac_updates(name: str, sizes: Sizes, hidden: int, **settings: Any) -> Side:
    """SAC or OBAC on a full replay."""
    obs, act = sizes
    agent = build_agent(configure(name, hidden=hidden, **settings).resolved(), act)
    rng = np.random.default_rng(0)
    replay = Replay(STORED, obs, act, rng)
    shapes = Transition((STORED, obs), (STORED, act), (STORED,), (STORED,), (STORED, obs))
    stored = Transition(*(rng.uniform(-1, 1, shape) for shape in shapes))._replace(terminated=np.zeros(STORED))
    replay.load(stored._asdict(), STORED)
    return our_updates(agent, agent.update_many, lambda: replay.sample(UPDATES, BATCH), sizes, UPDATES)


def our_ppo_updates(name: str, sizes: Sizes, steps: int, **settings: Any) -> Side:
    """PPO on one rollout."""
    obs, act = sizes
    config = configure(name, rollout_steps=steps, minibatch_size=MINIBATCH, epochs=EPOCHS, **settings).resolved()
    agent = build_agent(config, act)
    shapes = (obs,), (act,), (), (), (), (), (obs,)
    rng = np.random.default_rng(0)
    noise = Rollout(*(rng.standard_normal((steps, 1, *shape), np.float32) for shape in shapes))
    never = np.zeros((steps, 1), bool)
    rollout = noise._replace(terminated=never, truncated=never)
    return our_updates(agent, agent.update, lambda: rollout, sizes[:1], EPOCHS * steps // MINIBATCH)


def host(library: Any, algorithm: str, env: Any, hidden: int, **settings: Any) -> Any:
    """A model of Stable-Baselines3 or SBX."""
    nets = {"net_arch": [hidden, hidden]}
    return getattr(library, algorithm)("MlpPolicy", env, policy_kwargs=nets, seed=0, device="cpu", **settings)


def host_sac_updates(library: Any, sizes: Sizes, hidden: int) -> Side:
    """SAC on a full replay, through its own `train`."""
    model = host(library, "SAC", Noise(sizes), hidden, buffer_size=STORED, learning_starts=STORED)
    model.learn(STORED)
    return Side(lambda: model.train(gradient_steps=UPDATES, batch_size=BATCH), UPDATES)


def sb3_with_the_exact_head(sizes: Sizes, hidden: int) -> Side:
    """SAC of Stable-Baselines3, and the exact head on a batch as many times as an update needs it."""
    plain = host_sac_updates(sb3, sizes, hidden)
    loc, raw = (torch.randn(BATCH, sizes[1]) for _ in range(2))
    loc, raw = loc.tanh().requires_grad_(), raw.requires_grad_()
    head = ERATruncatedNormal(sizes[1], -0.5 * sizes[1])

    def train() -> None:
        plain.turn()
        for _ in range(plain.count):
            with torch.no_grad():
                head(loc, raw)
            log_std = head(loc, raw)
            torch.autograd.grad(log_std, (loc, raw), torch.ones_like(log_std))

    return Side(train, plain.count)


def host_ppo_updates(library: Any, sizes: Sizes, steps: int) -> Side:
    """PPO on one rollout, through its own `train`, which can be called again on what was collected."""
    model = host(library, "PPO", Noise(sizes), 64, n_steps=steps, batch_size=MINIBATCH, n_epochs=EPOCHS)
    model.learn(steps)
    return Side(model.train, EPOCHS * steps // MINIBATCH)


def our_loop(name: str, steps: int, **settings: Any) -> Side:
    """Our trainer on `TASK`, without evaluations, log and checks of the losses."""
    trainer = build([configure(name, env=TASK, **settings).resolved()])

    def play() -> None:
        end = trainer.step + steps
        while trainer.step < end:
            trainer.advance()
        jax.block_until_ready(trainer.state)

    return Side(play, steps)


def host_loop(model: Any, steps: int) -> Side:
    """Its `learn`, continued."""
    return Side(lambda: model.learn(steps, reset_num_timesteps=False), steps)


def host_env(*, normalise: bool) -> Any:
    """`TASK` as it costs a host least: without our wrapper around it and without Gymnasium's checker."""
    env = DummyVecEnv([lambda: make(TASK).env])
    return VecNormalize(env) if normalise else env


def simulator(steps: int) -> Side:
    """`TASK` alone, under random actions."""
    env = make(TASK).env
    env.reset(seed=0)
    actions = np.random.default_rng(0).uniform(-1, 1, (steps, *env.action_space.shape)).astype(np.float32)

    def play() -> None:
        for action in actions:
            _, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                env.reset()

    return Side(play, steps)


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


def matmul_limit(hidden: int, dtype: torch.dtype) -> float:
    """Best operations per CPU-second of a product of the hidden layers' shape, by PyTorch's library."""
    a, b = torch.randn(BATCH, hidden, dtype=dtype), torch.randn(hidden, hidden, dtype=dtype)
    out, best = torch.empty(BATCH, hidden, dtype=dtype), 0.0
    for _ in range(20):
        start = time.process_time()
        for _ in range(100):
            torch.mm(a, b, out=out)
        best = max(best, 100 * 2.0 * BATCH * hidden * hidden / (time.process_time() - start))
    return best


def updates(rounds: int, steps: int) -> None:
    """Agents without an environment."""
    hosts = [("SBX", "sac"), ("SB3", "sac")]
    heads = [("sac-era", "plain head"), ("sac-era-exact", "plain head")]
    halves = [("sac", "sac bf16"), ("SBX", "sac bf16"), ("sac-era-exact", "exact bf16")]
    for sizes, hidden in ((HUMANOID, 256), (HUMANOID, 512), (WALKER, 256)):
        sides = {
            "sac": our_sac_updates("sac", sizes, hidden, **PLAIN_NETS),
            **{name: host_sac_updates(library, sizes, hidden) for name, library in HOSTS.items()},
            "plain head": our_sac_updates("sac-era", sizes, hidden, head="tanh", **PLAIN_NETS),
            "sac-era": our_sac_updates("sac-era", sizes, hidden, **PLAIN_NETS),
            "sac-era-exact": our_sac_updates("sac-era-exact", sizes, hidden, **PLAIN_NETS),
            "sac bf16": our_sac_updates("sac", sizes, hidden, precision="bf16", **PLAIN_NETS),
            "exact bf16": our_sac_updates("sac-era-exact", sizes, hidden, precision="bf16", **PLAIN_NETS),
        }
        least = flops(sizes, hidden)
        single, half = (matmul_limit(hidden, dtype) for dtype in (torch.float32, torch.bfloat16))
        title = f"SAC: observation {sizes[0]}, action {sizes[1]}, hidden {hidden}, batch {BATCH}; matrix products"
        title += f" alone: {least / 1e6:.0f} MFLOP at {single / 1e9:.0f} GFLOP/s, in bfloat16 {half / 1e9:.0f}"
        limits = {name: (half if name.endswith("bf16") else single) / least for name in sides}
        compare(title, "updates", sides, hosts + heads + halves, MORE * rounds, limits)

    sides = {name: our_sac_updates(name, HUMANOID, 256) for name in ("sac", "obac", "obac-era", "obac-era-exact")}
    for name in ("sac", "obac"):
        sides[f"{name} bf16"] = our_sac_updates(name, HUMANOID, 256, precision="bf16")
    title = "OBAC and SAC with their own networks: observation 67, action 21, hidden 256"
    pairs = [("obac", "sac"), ("obac-era", "obac"), ("obac-era-exact", "obac")]
    pairs += [("sac", "sac bf16"), ("obac", "obac bf16")]
    compare(title, "updates", sides, pairs, MORE * rounds)

    sides = {
        "ppo": our_ppo_updates("ppo", CHEETAH, steps),
        **{name: host_ppo_updates(library, CHEETAH, steps) for name, library in HOSTS.items()},
        "plain head": our_ppo_updates("ppo-era", CHEETAH, steps, head="tanh"),
        "ppo-era": our_ppo_updates("ppo-era", CHEETAH, steps),
        "ppo bf16": our_ppo_updates("ppo", CHEETAH, steps, precision="bf16"),
    }
    title = f"PPO: observation 17, action 6, hidden 64, rollout {steps}, minibatch {MINIBATCH}"
    pairs = [("SBX", "ppo"), ("SB3", "ppo"), ("ppo-era", "plain head"), ("ppo", "ppo bf16")]
    compare(title, "gradient steps", sides, pairs, rounds)


def heads(rounds: int, _: int) -> None:
    """The share of the exact head in an update."""
    for sizes, hidden in ((HUMANOID, 256), (HUMANOID, 512), (WALKER, 256)):
        sides = {
            "plain head": our_sac_updates("sac-era", sizes, hidden, head="tanh", **PLAIN_NETS),
            "sac-era-exact": our_sac_updates("sac-era-exact", sizes, hidden, **PLAIN_NETS),
            "SB3": host_sac_updates(sb3, sizes, hidden),
            "SB3 exact": sb3_with_the_exact_head(sizes, hidden),
        }
        title = (
            f"SAC with the exact head: observation {sizes[0]}, action {sizes[1]}, hidden {hidden}, batch {BATCH}"
        )
        compare(title, "updates", sides, [("sac-era-exact", "plain head"), ("SB3 exact", "SB3")], MORE * rounds)


def loops(rounds: int, steps: int) -> None:
    """Whole loops beside the hosts'."""
    turn = steps // 16
    settings = {"hidden": 256, "batch_size": BATCH, "updates_per_step": 1, "random_steps": 1}
    off = {"buffer_size": 100_000, "learning_starts": 1, "batch_size": BATCH}
    sides = {"sac": our_loop("sac", turn, **settings, **PLAIN_NETS, replay_capacity=off["buffer_size"])}
    for name, library in HOSTS.items():
        sides[name] = host_loop(host(library, "SAC", host_env(normalise=False), 256, **off), turn)
    title = f"loop of SAC: {TASK}, hidden 256, batch {BATCH}, an update after each step"
    compare(title, "environment steps", sides, [("SBX", "sac"), ("SB3", "sac")], rounds)

    for title, minibatch, epochs in (("loop of PPO", MINIBATCH, EPOCHS), ("collection of PPO", steps, 1)):
        ours = {"rollout_steps": steps, "minibatch_size": minibatch, "epochs": epochs}
        theirs = {"n_steps": steps, "batch_size": minibatch, "n_epochs": epochs}
        sides = {"ppo": our_loop("ppo", steps, **ours)}
        for name, library in HOSTS.items():
            sides[name] = host_loop(host(library, "PPO", host_env(normalise=True), 64, **theirs), steps)
        sides["simulator alone"] = simulator(steps)
        title += f": {TASK}, hidden 64, rollout {steps}, minibatch {minibatch}, epochs {epochs}"
        compare(title, "environment steps", sides, [("SBX", "ppo"), ("SB3", "ppo")], rounds)


def share(rounds: int, steps: int) -> None:
    """ERA's agents beside the same ones with a plain head."""
    frozen = {"learning_rate": 1e-9}
    sac = {**frozen, **PLAIN_NETS, "hidden": 256, "updates_per_step": 1, "random_steps": 1}
    ppo = {**frozen, "rollout_steps": steps}
    for names, turn, settings, per_dim in (
        (("sac-era", "sac-era-exact"), steps // 32, sac, -0.5),
        (("ppo-era",), steps, ppo, -0.3),
    ):
        # The raw log σ is near 0 at first: these bounds give the plain head the entropy that is the others' floor.
        low = -8.0
        high = 2 * (per_dim - 0.5 * math.log(2 * math.pi * math.e)) - low
        plain = our_loop(names[0], turn, head="tanh", log_std_min=low, log_std_max=high, **settings)
        sides = {"plain head": plain, **{name: our_loop(name, turn, **settings) for name in names}}
        pairs = [(name, "plain head") for name in names]
        compare(f"ERA's share of the loop: {TASK}", "environment steps", sides, pairs, MORE * rounds)


PARTS = {"updates": updates, "heads": heads, "loops": loops, "share": share}


def main() -> None:
    """Print a table for each comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60, help="turns of each side")
    parser.add_argument("--steps", type=int, default=2048, help="of a PPO rollout; SAC's turns are shorter")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(header("jax", "flax", "torch", "mujoco"))
    print(f"stable-baselines3 {sb3.__version__}, sbx {sbx.__version__}")
    for part in args.parts:
        PARTS[part](args.rounds, args.steps)


if __name__ == "__main__":
    main()
