"""Building an agent from its settings. Sizes are arguments: neither a simulator nor a trainer is needed."""

from __future__ import annotations

import math
from typing import Any

import optax

from entropyfloor import targets
from entropyfloor.control import heads
from entropyfloor.control.agents.fast import Fast
from entropyfloor.control.agents.mnse import MNSE
from entropyfloor.control.agents.obac import OBAC
from entropyfloor.control.agents.ppo import PPO, adam
from entropyfloor.control.agents.sac import SAC
from entropyfloor.control.agents.tdmpc2.agent import TDMPC2, Player
from entropyfloor.control.agents.tdmpc2.model import NormedMLP, WorldModel
from entropyfloor.control.agents.tdmpc2.planner import MPPI
from entropyfloor.control.agents.tdmpc2.values import Bins
from entropyfloor.control.config import (
    ControlConfig,
    FastConfig,
    MNSEConfig,
    OBACConfig,
    PPOConfig,
    SACConfig,
    TDMPC2Config,
    required,
)
from entropyfloor.control.networks import (
    MLP,
    Body,
    CategoricalActor,
    Critics,
    DistributionalCritics,
    GaussianActor,
    SimBa,
    Value,
)


def build_agent(config: ControlConfig, action_dim: int, *, discrete: bool = False) -> SAC | TDMPC2 | PPO:
    """The agent of a resolved config.

    Args:
        config: Resolved settings.
        action_dim: D, or the number of discrete actions.
        discrete: Whether actions are discrete, as PPO's may be.

    Raises:
        ValueError: Settings that do not go together, or not with such actions.
    """
    if isinstance(config, PPOConfig):
        return _ppo(config, action_dim, discrete)
    assert not discrete
    if isinstance(config, TDMPC2Config):
        return _tdmpc2(config, action_dim)
    assert isinstance(config, SACConfig)
    return _sac(config, action_dim)


def aim(agent: SAC | TDMPC2 | PPO) -> dict[str, float]:
    """The `floor` of the head, or else the `target_entropy` of the average over states, in nats.

    The floor of `era` holds before actions are bounded. Empty where nothing steers the entropy.
    """
    if isinstance(agent, MNSE):
        return {}  # α steers the inner policy, and the mapping changes the entropy of the one that acts
    policy: Any = agent.policy
    target: float = policy.min_entropy if isinstance(policy, heads.CategoricalPolicy) else policy.target_entropy
    if isinstance(agent, SAC):
        target = agent.target_entropy  # a constant δ̂ is in the policy's, and not promised
    if heads.promises_floor(policy.head):
        return {"floor": target}
    if isinstance(agent, SAC) and (agent.entropy == "auto" or policy.head == "era-batch"):
        return {"target_entropy": target}
    return {}


def player(agent: SAC | TDMPC2 | PPO) -> Player | None:
    """What acts in evaluations, for each episode anew: an agent with a model plans; None stands for the mode."""
    return Player(agent) if isinstance(agent, TDMPC2) else None


def _sac(config: SACConfig, action_dim: int) -> SAC:
    target_entropy = targets.resolve(required(config.target_entropy), action_dim)
    learned = config.residual_entropy == "learned"
    if learned and config.head not in ("era", "era-batch"):
        raise ValueError(f"residual_entropy=learned is for head='era' or 'era-batch': {config.head!r} needs none")
    if config.residual_entropy and not heads.has_target(required(config.head)):
        raise ValueError(f"residual_entropy={config.residual_entropy} has no use under head={config.head!r}")
    residual = 0.0 if isinstance(config.residual_entropy, str) else config.residual_entropy
    obac, fast, simba = isinstance(config, OBACConfig), isinstance(config, FastConfig), config.networks == "simba"
    if isinstance(config, MNSEConfig) and config.distribution != "tanh":
        raise ValueError(f"distribution={config.distribution!r}: MNSE maps the actions of distribution='tanh'")

    def body(width: int, layer_norm: bool | None, blocks: int | None) -> Body:
        activation = required(config.activation)
        if simba:
            return SimBa(width, required(blocks), activation, config.precision)
        sizes = (width, -(-width // 2), -(-width // 4)) if fast else (width, width)
        return MLP(sizes, activation, required(layer_norm), obac, config.precision)

    width, rate = required(config.hidden), required(config.learning_rate)
    actor_body = body(width, config.actor_layer_norm, config.actor_blocks)
    critic_body = body(config.critic_hidden or width, config.critic_layer_norm, config.critic_blocks)
    gain = 1.0 if simba else 0.01  # of an actor's output layer: that of SimBa's authors, and ours
    critic_optimiser = optax.adamw(rate, weight_decay=required(config.weight_decay))
    parts: dict[str, Any] = {
        "actor": GaussianActor(
            action_dim, actor_body, raw_outputs=heads.raw_outputs(required(config.head)), gain=gain
        ),
        "critics": Critics(critic_body, config.critics),
        "policy": _gaussian(config, action_dim, target_entropy + residual, clamp=config.clamp_target),
        "actor_optimiser": critic_optimiser if simba else optax.adam(rate),
        "critic_optimiser": critic_optimiser,
        "alpha_optimiser": optax.adam(rate),
        "entropy": required(config.entropy),
        "target_entropy": target_entropy,
        "initial_alpha": required(config.alpha),
        "alpha_weight": config.alpha_weight,
        "learn_residual": learned,
        "discount": config.discount,
        "tau": config.tau,
    }
    if isinstance(config, MNSEConfig):
        inverse = GaussianActor(action_dim, actor_body, gain=gain)
        return MNSE(
            **parts, inverse=inverse, intervals=config.mapping_intervals, evidence_rate=config.mapping_rate
        )
    if isinstance(config, FastConfig):
        adam: dict[str, Any] = {"learning_rate": rate, "b2": required(config.adam_b2)}
        adamw = optax.adamw(**adam, weight_decay=config.weight_decay)
        parts |= {"actor_optimiser": adamw, "critic_optimiser": adamw, "alpha_optimiser": optax.adam(**adam)}
        parts["critics"] = DistributionalCritics(critic_body, config.atoms, config.critics)
        own = ("atoms", "v_min", "v_max", "clipped_double_q", "target_noise", "target_noise_clip", "policy_delay")
        return Fast(**parts, **{name: required(getattr(config, name)) for name in own})
    if not isinstance(config, OBACConfig):
        return SAC(**parts)
    value = Value(critic_body)
    return OBAC(**parts, value=value, expectile=config.expectile, cloning_weight=config.cloning_weight)


def _tdmpc2(config: TDMPC2Config, action_dim: int) -> TDMPC2:
    if config.head == "era-batch":
        raise ValueError("head='era-batch' is for SAC and OBAC: a plan has the prior's σ in a single state")
    hidden, latent = required(config.hidden), required(config.latent)
    if latent % config.simplex:
        raise ValueError(f"latent={latent} must be a multiple of simplex={config.simplex}")

    def network(out: int, **options: Any) -> NormedMLP:
        return NormedMLP((hidden, hidden), out, precision=config.precision, **options)

    encoder = (required(config.encoder_hidden),) * required(config.encoder_layers)
    bins = Bins()
    world = WorldModel(
        encoder=NormedMLP(encoder, latent, config.simplex, precision=config.precision),
        dynamics=network(latent, simplex=config.simplex),
        reward=network(bins.count, zero=True),
        critic=network(bins.count, zero=True, dropout=config.dropout),
        termination=network(1) if config.episodic else None,
        prior=network((1 + heads.raw_outputs(required(config.head))) * action_dim),
        critics=required(config.critics),
        bins=bins,
    )
    return TDMPC2(
        world,
        _gaussian(config, action_dim, targets.resolve(required(config.target_entropy), action_dim)),
        MPPI(
            config.horizon,
            config.samples,
            config.proposals,
            config.elites,
            # "6 iterations (+2 if act ≥ 20)": the authors' code.
            config.iterations or (8 if action_dim >= 20 else 6),
            config.temperature,
            config.min_std,
            config.max_std,
        ),
        model_optimiser=optax.chain(
            optax.clip_by_global_norm(config.max_grad_norm),
            optax.adam(config.learning_rate),
            optax.masked(optax.scale(config.encoder_rate), lambda model: {k: k == "encoder" for k in model}),
        ),
        prior_optimiser=optax.chain(
            optax.clip_by_global_norm(config.max_grad_norm), optax.adam(config.learning_rate, eps=1e-5)
        ),
        entropy_coef=required(config.entropy_coef),
        discount=config.discount,
        tau=config.tau,
        rho=config.rho,
        consistency_coef=config.consistency_coef,
        reward_coef=config.reward_coef,
        value_coef=config.value_coef,
        termination_coef=config.termination_coef,
    )


def _ppo(config: PPOConfig, action_dim: int, discrete: bool) -> PPO:
    sizes = config.hidden, config.hidden
    body = MLP(sizes, config.activation, layer_norm=False, precision=config.precision)
    actor: CategoricalActor | GaussianActor
    policy: heads.CategoricalPolicy | heads.GaussianPolicy
    if discrete:
        if config.target_entropy != config.defaults()["target_entropy"]:
            raise ValueError(
                f"target_entropy={config.target_entropy} is for continuous actions: {config.env} needs min_entropy"
            )
        floor = 0.1 * math.log(action_dim) if config.min_entropy is None else config.min_entropy
        # Discrete actions have no log σ to bound: without a floor, the head is the softmax.
        head: Any = config.head if heads.has_target(required(config.head)) else "softmax"
        actor, policy = CategoricalActor(action_dim, body), heads.CategoricalPolicy(head, action_dim, floor)
    else:
        if config.head == "era-batch":
            raise ValueError(
                "head='era-batch' is for SAC and OBAC: PPO's old and new policies need the same σ in a state"
            )
        if config.min_entropy is not None:
            raise ValueError(
                f"min_entropy={config.min_entropy} is for discrete actions: {config.env} needs target_entropy"
            )
        raw_outputs = heads.raw_outputs(required(config.head))
        actor = GaussianActor(action_dim, body, required(config.global_log_std), raw_outputs)
        policy = _gaussian(config, action_dim, targets.resolve(required(config.target_entropy), action_dim))
    rollout = config.num_envs * config.rollout_steps
    if rollout % config.minibatch_size:
        raise ValueError(
            f"minibatch_size={config.minibatch_size} must divide a rollout of num_envs * rollout_steps = {rollout}"
        )
    gradient_steps = math.ceil(config.steps / (rollout * config.action_repeat)) * config.epochs
    gradient_steps *= rollout // config.minibatch_size
    decay = gradient_steps if config.decay_learning_rate else None
    return PPO(
        actor,
        Value(body),
        policy,
        adam(config.learning_rate, decay_updates=decay, max_grad_norm=config.max_grad_norm),
        epochs=config.epochs,
        minibatch_size=config.minibatch_size,
        discount=config.discount,
        gae_lambda=config.gae_lambda,
        clip_low=config.clip_low,
        clip_high=required(config.clip_high),
        value_coef=config.value_coef,
        entropy_coef=required(config.entropy_coef),
        entropy_share=required(config.entropy_share),
        entropy_body=body if config.entropy_critic else None,
        entropy_weight=config.entropy_weight,
        entropy_discount=config.entropy_discount,
        entropy_lambda=config.entropy_lambda,
    )


def _gaussian(
    config: ControlConfig, action_dim: int, target_entropy: float, *, clamp: bool = True
) -> heads.GaussianPolicy:
    return heads.GaussianPolicy(
        required(config.head),
        required(config.distribution),
        action_dim,
        target_entropy,
        required(config.log_std_min),
        required(config.log_std_max),
        clamp,
    )
