"""Building an agent from its settings. Sizes are arguments: neither a simulator nor a trainer is needed."""

from __future__ import annotations

import math
from typing import Any

import optax

from entropyfloor import targets
from entropyfloor.control import heads
from entropyfloor.control.agents.obac import OBAC
from entropyfloor.control.agents.ppo import PPO, adam
from entropyfloor.control.agents.sac import SAC
from entropyfloor.control.config import ControlConfig, OBACConfig, PPOConfig, SACConfig, required
from entropyfloor.control.networks import MLP, CategoricalActor, Critics, GaussianActor, Value


def build_agent(config: ControlConfig, action_dim: int, *, discrete: bool = False) -> SAC | PPO:
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
    assert isinstance(config, SACConfig)
    assert not discrete
    return _sac(config, action_dim)


def aim(agent: SAC | PPO) -> dict[str, float]:
    """The `floor` under the entropy of the acting policy, or else the `target_entropy` of its average, in nats.

    Empty where nothing steers the entropy.
    """
    policy: Any = agent.policy
    target: float = policy.min_entropy if isinstance(policy, heads.CategoricalPolicy) else policy.target_entropy
    if isinstance(agent, SAC):
        target = agent.target_entropy  # a constant δ̂ is in the policy's, and not promised
    if heads.promises_floor(policy.head):
        return {"floor": target}
    if isinstance(agent, SAC) and (agent.entropy == "auto" or policy.head == "era-batch"):
        return {"target_entropy": target}
    return {}


def _sac(config: SACConfig, action_dim: int) -> SAC:
    target_entropy = targets.resolve(required(config.target_entropy), action_dim)
    learned = config.residual_entropy == "learned"
    if learned and config.head not in ("era", "era-batch"):
        raise ValueError(f"residual_entropy=learned is for head='era' or 'era-batch': {config.head!r} needs none")
    if config.residual_entropy and not heads.has_target(required(config.head)):
        raise ValueError(f"residual_entropy={config.residual_entropy} has no use under head={config.head!r}")
    residual = 0.0 if isinstance(config.residual_entropy, str) else config.residual_entropy
    obac = isinstance(config, OBACConfig)

    def body(layer_norm: bool | None) -> MLP:
        sizes, activation = (config.hidden, config.hidden), required(config.activation)
        return MLP(sizes, activation, required(layer_norm), obac, config.precision)

    parts: dict[str, Any] = {
        "actor": GaussianActor(action_dim, body(config.actor_layer_norm)),
        "critics": Critics(body(config.critic_layer_norm)),
        "policy": _gaussian(config, action_dim, target_entropy + residual, clamp=config.clamp_target),
        "actor_optimiser": optax.adam(config.learning_rate),
        "critic_optimiser": optax.adamw(config.learning_rate, weight_decay=config.weight_decay),
        "alpha_optimiser": optax.adam(config.learning_rate),
        "entropy": required(config.entropy),
        "target_entropy": target_entropy,
        "initial_alpha": config.alpha,
        "alpha_weight": config.alpha_weight,
        "learn_residual": learned,
        "discount": config.discount,
        "tau": config.tau,
    }
    if not isinstance(config, OBACConfig):
        return SAC(**parts)
    value = Value(body(config.critic_layer_norm))
    return OBAC(**parts, value=value, expectile=config.expectile, cloning_weight=config.cloning_weight)


def _ppo(config: PPOConfig, action_dim: int, discrete: bool) -> PPO:
    sizes = config.hidden, config.hidden
    body = MLP(sizes, config.activation, layer_norm=False, precision=config.precision)
    actor: CategoricalActor | GaussianActor
    policy: heads.CategoricalPolicy | heads.GaussianPolicy
    if discrete:
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
        actor = GaussianActor(action_dim, body, required(config.global_log_std))
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
