"""Training of FastTD3, FastSAC and FastSAC-ERA with simulators on the device: one compiled loop for everything.

Episodes, moments of observations, exploration noise, replay and updates are pure functions, and nothing returns
to Python before the next line of metrics, evaluation or checkpoint. All random numbers follow from the seed and
the step, so it does not matter when that is. Several devices have equal shares of the environments, of their
replay and of each batch, and each has all parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from entropyfloor.control import ring, seeding
from entropyfloor.control.agents.build import build_agent
from entropyfloor.control.agents.fast import View
from entropyfloor.control.config import FastConfig, required
from entropyfloor.control.envs import make
from entropyfloor.control.evaluator import Episode, Evaluator, Params, Stopped
from entropyfloor.control.normalise import VARIANCE_FLOOR, ObservationNormaliser
from entropyfloor.control.parallel import learner, memory_of, normalised, replay_rows
from entropyfloor.control.ring import Ring
from entropyfloor.control.simulators import Players, Simulators
from entropyfloor.control.trainer import SEEDS, Metrics, Trainer
from entropyfloor.runs import Checkpoint
from entropyfloor.runs.machine import check_memory

if TYPE_CHECKING:
    from jaxtyping import Float


class Moments(NamedTuple):
    """Running mean and variance of observations, over batches of equal size."""

    batches: Any  # [], uint32
    mean: Any  # [obs_dim]
    variance: Any  # [obs_dim]


class Memory(NamedTuple):
    """What is on the device beside the agent."""

    players: Players
    moments: Moments
    ring: Ring


class Tally(NamedTuple):
    """Episodes that ended since the loop was entered."""

    returns: Any  # [], sum of their returns
    count: Any  # [], int32


def merge(moments: Moments, batch: Float[Array, "N o"]) -> Moments:
    """The moments with one more batch, as `RunningMoments.update` in float32."""
    batches = moments.batches + jnp.uint32(1)
    share = 1.0 / batches.astype(jnp.float32)
    delta = batch.mean(axis=0) - moments.mean
    spread = batch.var(axis=0) - moments.variance + (1.0 - share) * delta**2
    return Moments(batches, moments.mean + share * delta, moments.variance + share * spread)


class DeviceCollector:
    """What the host knows of one seed: moments of its observations, and returns of its episodes."""

    def __init__(self, config: FastConfig, obs_dim: int) -> None:
        self._num_envs = config.num_envs
        self.normalise = ObservationNormaliser(obs_dim, config.normalise_observations)
        self.returns: list[float] = []

    def update(self, moments: Moments, tally: Tally) -> None:
        """Take what the device has now."""
        if self.normalise.moments is not None:
            count = np.asarray(int(moments.batches) * self._num_envs)
            self.normalise.moments.load({"count": count, "mean": moments.mean, "variance": moments.variance})
        if tally.count:
            self.returns += [float(tally.returns / tally.count)] * int(tally.count)

    def arrays(self) -> dict[str, np.ndarray]:
        """The moments, for those who load the policy; a resume has all it needs in the trainer's `memory`."""
        return self.normalise.arrays()

    def state(self) -> dict[str, Any]:
        """The rest of a checkpoint."""
        return {"returns": self.returns}

    def restore(self, arrays: dict[str, np.ndarray], state: dict[str, Any]) -> None:
        """Continue from the arrays and the state of another collector."""
        self.normalise.load(arrays)
        self.returns[:] = state["returns"]


class DeviceEvaluator(Evaluator):
    """As `Evaluator`, with all episodes at once on the device.

    Args:
        episodes: `(actor, mean and deviation of observations, keys) → ` what `Simulators.episodes` returns.
        collector: Has the moments.
        args: As of `Evaluator`.
        options: As of `Evaluator`.
    """

    def __init__(
        self, episodes: Callable[..., Any], collector: DeviceCollector, *args: Any, **options: Any
    ) -> None:
        super().__init__(*args, **options)
        self._episodes, self._collector = episodes, collector

    def play_all(self, actor: Params, seeds: Sequence[int]) -> list[Episode]:
        """Play an episode from each seed."""
        if self._stopped():
            raise Stopped
        keys = np.stack([seeding.raw(jax.random.key(seed)) for seed in seeds])
        scaling = self._collector.normalise.scaling()
        total, observations, going = jax.device_get(self._episodes(actor, scaling, keys))
        observations = self._normalise(observations)
        return [Episode(float(total[i]), observations[going[:, i], i]) for i in range(len(seeds))]


class DeviceTrainer(Trainer[FastConfig, DeviceCollector]):
    """Trainer of FastTD3, FastSAC and FastSAC-ERA on simulators in JAX."""

    def __init__(self, configs: Sequence[FastConfig]) -> None:
        super().__init__(configs)
        config, devices = self.config, jax.local_devices()
        _check(config, len(devices))
        env: Any = make(config.env, **config.env_options()).unwrapped
        sizes = *env.observation_space.shape, *env.action_space.shape
        rows = replay_rows(config, sizes, len(configs), devices)
        noise = required(config.noise_min), required(config.noise_max)
        simulators = Simulators(env.simulator, env.step_limit, noise, config.ignore_termination)
        players = jax.eval_shape(lambda: simulators.empty(config.num_envs))
        each = len(configs) * sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(players))
        check_memory(config.num_envs, each // config.num_envs, "simulators", "--num-envs", memory_of(devices))
        agent: Any = build_agent(config, sizes[1])
        mesh = Mesh(np.array(devices), ("devices",))

        def shares(*axes: str | None, seeds: bool = len(configs) > 1) -> NamedSharding:
            """How the devices divide an array, of all seeds or of each."""
            return NamedSharding(mesh, PartitionSpec(*(None,) * seeds, *axes))

        place = partial(jax.lax.with_sharding_constraint, shardings=shares(None, "devices", seeds=False))
        update = learner(config, agent, place)
        self._episodes = jax.jit(evaluation(config, simulators, agent))
        self.begin(agent, [DeviceCollector(config, sizes[0]) for config in configs], sizes, update)

        def empty(*_: Any) -> Memory:
            moments = Moments(jnp.uint32(0), *jnp.zeros((2, sizes[0]), jnp.float32))
            return Memory(simulators.empty(config.num_envs), moments, ring.empty(rows, config.num_envs, *sizes))

        whole, columns = shares(seeds=False), shares(None, "devices")
        layout = Memory._make((shares("devices"), whole, Ring._make((columns, whole))))
        self._keys = self.keys(seeding.HOST), self._act_keys, self._update_keys
        self.memory = self.across_seeds(empty, out_shardings=layout)(self._keys, None)
        self._run = self.across_seeds(
            loop(config, simulators, agent, update, seeds=len(configs)),
            donate_argnums=(0, 1),
            out_shardings=(whole, layout, whole, whole),
        )
        self._layout = whole, layout, whole
        self._place()

    def advance(self) -> tuple[Metrics | None, Any]:
        """Everything up to the next line of metrics, evaluation, checkpoint or end."""
        config = self.config
        intervals = config.log_every, config.eval_every, config.checkpoint_every, config.steps
        end = min((self.step // interval + 1) * interval for interval in intervals)
        stride = config.num_envs * config.actions_per_update
        end = -(-end // stride) * stride
        with self.compiling("compiling simulators and updates, for some minutes"):
            bounds = np.uint32(self.step), np.uint32(end)
            self.state, self.memory, tally, metrics = self._run(self.state, self.memory, self._keys, bounds)
            moments, tally = jax.device_get((self.memory.moments, tally))
        self.step = end
        for i, collector in enumerate(self.collectors):
            collector.update(self.pick(moments, i), self.pick(tally, i))
        return (metrics if end >= config.random_steps else None), moments

    def restore(self, checkpoints: Sequence[Checkpoint]) -> None:
        """As of every trainer, with each array on its devices."""
        super().restore(checkpoints)
        self._place()

    def _place(self) -> None:
        """Put the arrays where the loop leaves them; it would be compiled again for others."""
        self.state, self.memory, self._keys = (
            jax.device_put(tree, layout)
            for tree, layout in zip((self.state, self.memory, self._keys), self._layout, strict=True)
        )

    def _evaluator(
        self, config: FastConfig, collector: DeviceCollector, kind: Callable[..., Evaluator] = DeviceEvaluator
    ) -> Evaluator:
        return super()._evaluator(config, collector, partial(kind, self._episodes, collector))


def loop(
    config: FastConfig, simulators: Simulators, agent: Any, update: Callable[[Any, Any, Any], Any], seeds: int
) -> Callable[[Any, Memory, Any, Any], Any]:
    """Training of one seed from one step to another.

    Args:
        config: Resolved settings.
        simulators: The environments.
        agent: The agent.
        update: `(state, (replay, mean and deviation of observations), key) → (state, metrics)`.
        seeds: Number of seeds that the result is mapped over.

    Returns:
        `(state, memory, keys, (first step, last step)) → (state, memory, tally, metrics of the last update)`.
    """

    def some(ended: Array) -> Array:
        """Whether an episode is over, in any of the seeds: simulators are reset only then."""
        number = ended.sum()
        return (number if seeds == 1 else jax.lax.psum(number, SEEDS)) > 0

    def run(state: Any, memory: Memory, keys: Any, bounds: tuple[Array, Array]) -> Any:
        host_key, act_key, update_key = keys
        step, end = bounds

        def iterate(carry: Any) -> Any:
            """One action in each environment and, where they are due, the updates."""
            step, state, memory, tally, metrics = carry
            begin_key, random_key = jax.random.split(jax.random.fold_in(host_key, step))
            players = simulators.begin(memory.players, begin_key, some)
            observations = players.simulator.obs
            moments = merge(memory.moments, observations)
            view = View(normalised(config, observations, scaling(moments)), players.noise)
            actions = agent.act(state.actor, view, jax.random.fold_in(act_key, step))
            random = jax.random.uniform(random_key, actions.shape, actions.dtype, -1.0, 1.0)
            players, steps = simulators.step(players, jnp.where(step < config.random_steps, random, actions))
            memory = Memory(players, moments, ring.add(memory.ring, steps))
            returns = jnp.where(players.ended, players.total, 0.0).sum()
            tally = Tally(tally.returns + returns, tally.count + players.ended.sum(dtype=jnp.int32))
            step += jnp.uint32(config.num_envs)
            state, metrics = jax.lax.cond(
                (step >= config.random_steps) & (step % (config.num_envs * config.actions_per_update) == 0),
                lambda: update(state, (memory.ring, scaling(moments)), jax.random.fold_in(update_key, step)),
                lambda: (state, metrics),
            )
            return step, state, memory, tally, metrics

        _, shapes = jax.eval_shape(update, state, (memory.ring, scaling(memory.moments)), update_key)
        metrics = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        carry = step, state, memory, Tally(jnp.float32(0), jnp.int32(0)), metrics
        return jax.lax.while_loop(lambda carry: carry[0] < end, iterate, carry)[1:]

    return run


def evaluation(config: FastConfig, simulators: Simulators, agent: Any) -> Callable[[Any, Any, Array], Any]:
    """Episodes without exploration: `(actor, mean and deviation of observations, keys) →` as of `episodes`."""

    def episodes(actor: Any, scaling: tuple[Array, Array], keys: Array) -> Any:
        def act(observations: Array) -> Array:
            mode: Array = agent.distribution(actor, normalised(config, observations, scaling)).mode()
            return mode

        return simulators.episodes(act, keys)

    return episodes


def scaling(moments: Moments) -> tuple[Array, Array]:
    """Mean and deviation of observations."""
    return moments.mean, jnp.sqrt(moments.variance + VARIANCE_FLOOR)


def _check(config: FastConfig, devices: int) -> None:
    """Refuse what the loop does not do."""
    if config.action_repeat > 1:
        raise ValueError(
            f"action_repeat={config.action_repeat}: {config.agent} applies each action once in {config.env}; "
            "--env-args '{\"ctrl_dt\": ...}' makes its steps longer"
        )
    for name in ("num_envs", "batch_size"):
        if getattr(config, name) % devices:
            raise ValueError(f"{name}={getattr(config, name)} must be a multiple of the {devices} devices")
