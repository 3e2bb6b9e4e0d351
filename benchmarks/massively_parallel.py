"""Speed of FastTD3, FastSAC and FastSAC-ERA, and the shares of simulation, replay and update in it.

    python benchmarks/massively_parallel.py

updates: critics and actor without an environment, ERA beside a plain head and beside FastTD3, with and without the
    delay of its actor.
loops: environment steps and updates per CPU-second against the number of environments.
device: the same of loops whose simulators are on the device, against the numbers of environments and of seeds. The
    task, `playground/Point`, costs next to nothing, unless `--task` names one of MuJoCo Playground.

One thread, CPU time, sides in turns of random order: see `pairs.py`.
"""

import argparse
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import point
from entropyfloor.control import ring
from entropyfloor.control.agents.build import build_agent
from entropyfloor.control.agents.fast import Batch, View
from entropyfloor.control.config import configure
from entropyfloor.control.envs import make
from entropyfloor.control.simulators import Simulators
from entropyfloor.control.threads import limit_threads
from entropyfloor.control.train import build
from pairs import Side, compare, header, measure

UPDATES = 2  # in a turn
LOOP: dict[str, Any] = {
    "hidden": 256,
    "critic_hidden": 512,
    "batch_size": 256,
    "updates_per_step": 4,
    "n_steps": 3,
    "precision": "bf16",
}
"""Networks and updates of whole loops."""
SIZES = {
    "walker-walk, 32 environments": (24, 6, {"hidden": 256, "critic_hidden": 512, "batch_size": 256}),
    "h1hand-walk, the authors' networks": (151, 61, {"hidden": 512, "critic_hidden": 1024, "batch_size": 1024}),
}
"""Widths of observation and action, networks and batch."""
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "fasttd3": ("fasttd3", {}),
    "fasttd3, no delay": ("fasttd3", {"policy_delay": 1}),
    "plain head": ("fastsac-era", {"head": "tanh"}),
    "fastsac-era": ("fastsac-era", {}),
    "fastsac-era-exact": ("fastsac-era-exact", {}),
    "fastsac": ("fastsac", {"updates_per_step": UPDATES, "policy_delay": 2}),
}
PAIRS = [
    ("fastsac-era", "plain head"),
    ("fastsac-era-exact", "plain head"),
    ("fastsac-era", "fasttd3, no delay"),
    ("fastsac-era", "fasttd3"),
    ("fastsac", "fasttd3"),
]


def update(agent_name: str, obs_dim: int, action_dim: int, **settings: Any) -> Side:
    """Updates from batches of random numbers."""
    config: Any = configure(agent_name, precision="bf16", learning_rate=1e-9, **settings).resolved()
    agent: Any = build_agent(config, action_dim)
    state = agent.init(jax.random.key(0), obs_dim, action_dim)
    rng, shape = np.random.default_rng(0), (config.updates_per_step, config.batch_size)
    observation, following = rng.normal(size=(2, *shape, obs_dim)).astype(np.float32)
    action, reward = rng.uniform(-1, 1, (*shape, action_dim)), rng.random(shape)
    batches = Batch(observation, *map(np.float32, (action, reward, np.full(shape, 0.99))), following)
    step, key = jax.jit(agent.update_many, donate_argnums=0), jax.random.key(1)
    batches = jax.device_put(batches)

    def turn() -> None:
        nonlocal state
        state, _ = step(state, batches, key)
        jax.block_until_ready(state)

    return Side(turn, config.updates_per_step)


def updates(rounds: int) -> None:
    """ERA's share of an update."""
    for title, (obs_dim, action_dim, sizes) in SIZES.items():
        sides = {
            name: update(agent, obs_dim, action_dim, **sizes, **settings)
            for name, (agent, settings) in ARMS.items()
        }
        compare(f"{title}: batch {sizes['batch_size']}, bf16", "updates", sides, PAIRS, rounds)


def loops(rounds: int, num_envs: list[int]) -> None:
    """Loops of growing pools, and their parts."""
    print(
        f"\nfastsac-era, dmc/walker-walk, hidden 256 and 512, batch 256, 4 updates a step, bf16; {rounds} rounds"
    )
    names = ("environments", "steps/s", "updates/s", "simulation", "acting", "replay", "update")
    print("".join(f"{name:>14}" for name in names))
    for number in num_envs:
        config: Any = configure(
            "fastsac-era", env="dmc/walker-walk", num_envs=number, **LOOP, random_steps=1
        ).resolved()
        trainer: Any = build([config])
        (collector,) = trainer.collectors
        trainer.advance()
        actions = collector.random_actions()
        steps = collector.play(actions)

        def blocked(function: Callable[[], Any]) -> Callable[[], Any]:
            return lambda: jax.block_until_ready(function())

        def store(trainer: Any = trainer, steps: Any = steps) -> Any:
            trainer.memory = trainer._add(trainer.memory, steps, None)
            return trainer.memory

        def learn(trainer: Any = trainer, collector: Any = collector) -> Any:
            return trainer.learn((trainer.memory, collector.normalise.scaling()))

        sides = {
            "loop": Side(trainer.advance, 1),
            "simulation": Side(lambda collector=collector, actions=actions: collector.play(actions), 1),
            "acting": Side(trainer._actions, 1),
            "replay": Side(blocked(store), 1),
            "update": Side(blocked(learn), 1),
        }
        seconds = {name: float(np.median(values)) for name, values in measure(sides, rounds).items()}
        loop = seconds.pop("loop")
        rates = f"{number:>14}{number / loop:>14,.0f}{config.updates_per_step / loop:>14,.0f}"
        print(rates + "".join(f"{value / sum(seconds.values()):>14.0%}" for value in seconds.values()), flush=True)


ITERATIONS = 8  # in a turn


def on_device(rounds: int, num_envs: list[int], seeds: list[int], task: str) -> None:
    """Loops with simulators on the device, and the parts of one seed's."""
    if task == "Point":
        point.install()
    print(f"\nfastsac-era, playground/{task}, networks and updates as above, on the device; {rounds} rounds")
    names = ("seeds", "environments", "steps/s", "updates/s", "simulation", "acting", "replay", "update")
    print("".join(f"{name:>14}" for name in names))
    for count in seeds:
        for number in num_envs:
            loop = {"num_envs": number, "random_steps": 1, "steps": 2**31, "replay_capacity": 2**19}
            every = dict.fromkeys(("log_every", "eval_every", "checkpoint_every"), ITERATIONS * number)
            settings: dict[str, Any] = {**LOOP, **loop, **every, "env": f"playground/{task}"}
            configs: Any = [configure("fastsac-era", **settings, seed=seed).resolved() for seed in range(count)]
            sides = device_sides(build(configs), parts=count == 1)
            seconds = {name: float(np.median(values)) for name, values in measure(sides, rounds).items()}
            whole, updates = seconds.pop("loop"), count * configs[0].updates_per_step
            rates = f"{count:>14}{number:>14}{count * number / whole:>14,.0f}{updates / whole:>14,.0f}"
            shares = [f"{value / sum(seconds.values()):>14.0%}" for value in seconds.values()]
            print(rates + "".join(shares), flush=True)


def device_sides(trainer: Any, *, parts: bool) -> dict[str, Side]:
    """The loop on the device and, of one seed, its parts; each counts iterations."""
    sides = {"loop": Side(trainer.advance, ITERATIONS)}
    if not parts:
        return sides
    trainer.advance()
    config, agent = trainer.config, trainer.agent
    state, (players, _, memory) = jax.tree.map(jnp.copy, (trainer.state, trainer.memory))
    env: Any = make(config.env).unwrapped
    simulators = Simulators(env.simulator, env.step_limit, (0.0, 0.1))
    view = View(players.simulator.obs, players.noise)
    actions = agent.act(state.actor, view, jax.random.key(0))
    _, steps = simulators.step(players, actions)
    shape = config.updates_per_step, config.batch_size
    batches = ring.sample(memory, jax.random.key(0), shape, config.n_steps, config.discount)

    def side(part: Callable[[Any, jax.Array], Any], carry: Any) -> Side:
        """Turns of a part that changes `carry`."""

        def turn(carry: Any, key: jax.Array) -> Any:
            keys = jax.random.split(key, ITERATIONS)
            return jax.lax.scan(lambda carry, key: (part(carry, key), None), carry, keys)[0]

        compiled, holder = jax.jit(turn, donate_argnums=0), [carry]

        def run() -> None:
            holder[0] = jax.block_until_ready(compiled(holder[0], jax.random.key(0)))

        return Side(run, ITERATIONS)

    def simulate(players: Any, key: jax.Array) -> Any:
        return simulators.step(simulators.begin(players, key), actions)[0]

    def act(carry: Any, key: jax.Array) -> Any:
        observations, _ = carry
        return observations, agent.act(state.actor, View(observations, players.noise), key)

    def replay(carry: Any, key: jax.Array) -> Any:
        memory, _ = carry
        memory = ring.add(memory, steps)
        return memory, ring.sample(memory, key, shape, config.n_steps, config.discount)

    def learn(learner: Any, key: jax.Array) -> Any:
        return agent.update_many(learner, batches, key)[0]

    copied = jax.tree.map(jnp.copy, (players, (view.observation, actions), (memory, batches), state))
    named = zip(("simulation", "acting", "replay", "update"), (simulate, act, replay, learn), copied, strict=True)
    return sides | {name: side(part, carry) for name, part, carry in named}


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60, help="turns of each side")
    parser.add_argument("--envs", type=int, nargs="+", default=[16, 64, 256], help="of `loops`")
    parser.add_argument("--device-envs", type=int, nargs="+", default=[64, 512, 2048, 8192], help="of `device`")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 4], help="numbers of seeds of `device`")
    parser.add_argument("--task", default="Point", help="task of `device`, such as WalkerWalk")
    parts = "updates", "loops", "device"
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    args = parser.parse_args()
    limit_threads(1)
    print(header("jax", "flax", "mujoco"))
    if "updates" in args.parts:
        updates(args.rounds)
    if "loops" in args.parts:
        loops(max(5, args.rounds // 4), args.envs)
    if "device" in args.parts:
        on_device(max(5, args.rounds // 4), args.device_envs, args.seeds, args.task)


if __name__ == "__main__":
    main()
