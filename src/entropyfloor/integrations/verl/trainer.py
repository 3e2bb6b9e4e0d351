"""The synchronous trainer of verl with ERA: `trainer.v1.trainer_mode=era`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transfer_queue
from tensordict import TensorDict
from torch import Tensor
from verl.trainer.ppo.v1.trainer_base import register_trainer
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
from verl.workers.engine import EngineRegistry
from verl.workers.utils.padding import response_from_nested, response_to_nested

from entropyfloor.integrations.floor import controller_of, hyperparameters_of, load_state, save_state
from entropyfloor.integrations.verl.config import read
from entropyfloor.integrations.verl.engine import SCALE, TOP_K, ERAEngine
from entropyfloor.language import update
from entropyfloor.language.metrics import rollout_metrics
from entropyfloor.torch import tokens

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from transfer_queue import KVBatchMeta

STATE = "era.json"
"""File in a checkpoint of verl."""
HINT = (
    "install entropyfloor on every node, or set VERL_USE_EXTERNAL_MODULES=entropyfloor.integrations.verl there "
    "(+ray_kwargs.ray_init.runtime_env.env_vars.VERL_USE_EXTERNAL_MODULES=entropyfloor.integrations.verl)"
)


@register_trainer("era")
class ERATrainer(PPOTrainerSync):
    """verl's synchronous trainer, whose update compares log-probs at the scale of each response (Eq. 16).

    The scale follows from the unscaled policy that sampled, and is decided once for a rollout: old log-probs are
    computed again at that scale, and the update uses it too. Everything else is that of the unscaled policy.
    """

    def __init__(self, config: DictConfig) -> None:
        self.era = read(config)
        strategy = config.actor_rollout_ref.actor.strategy
        engine = EngineRegistry.get_engine_cls("language_model", strategy)
        if not issubclass(engine, ERAEngine):
            raise ValueError(
                f"verl chooses the engine {engine.__name__} for {strategy} on this hardware, which does not scale "
                "logits: ERA's is registered for CUDA on NVIDIA"
            )
        self.initial_entropy: float | None = None
        self.controller = controller_of(self.era, top_k="top_k")
        """What decides the scale of era-floor."""
        super().__init__(config)

    def _build_replay_buffer(self) -> Any:
        """The replay buffer, chosen by the mode: from here on it is `sync`, for all that verl asks it about."""
        self.trainer_mode = "sync"
        return super()._build_replay_buffer()

    def _init_tokenizer(self) -> None:
        super()._init_tokenizer()
        self.controller.check_reachable(len(self.tokenizer))

    def _setup(self) -> None:
        super()._setup()
        self.actor_rollout_wg.execute_with_func_generator(check_engine)

    # --- a step -------------------------------------------------------------------------------------------

    def _compute_advantage(self, batch: KVBatchMeta, metrics: dict[str, Any]) -> KVBatchMeta:
        """Advantages, then the scale of each response, and old log-probs at that scale."""
        rollout = self._fields(batch, "entropy", "response_mask")  # before verl takes rejected tokens out of it
        batch = super()._compute_advantage(batch, metrics)
        judged = self._fields(batch, "advantages", "response_mask")
        entropies, mask = (rollout[name].to_padded_tensor(0) for name in ("entropy", "response_mask"))
        advantages, used = (judged[name].to_padded_tensor(0) for name in ("advantages", "response_mask"))

        real = torch.tensor([not tag.get("is_padding", False) for tag in batch.tags])
        of_responses = tokens.response_entropy(entropies, mask, self.era.top_fraction)
        thresholds = self._thresholds(float(of_responses[real].mean()))
        of_advantages = per_response(advantages, used)
        hp, scale = hyperparameters_of(self.era, self.controller, *thresholds), torch.ones_like(of_responses)
        if hp.era:
            scale = update.scales_of(entropies, mask, of_advantages, None, hp)[:, 0].contiguous()
        top_k = 0 if self.era.is_second_stage(self.global_steps) else self.era.top_k or 0
        kept = torch.where(of_advantages > 0, top_k, 0)
        written = {SCALE: scale, TOP_K: kept}
        if self.era.scale_advantages:
            divided = tokens.scale_advantages(advantages, scale)
            written["advantages"] = response_to_nested(divided, judged["response_mask"])
        batch = self._write(batch, written)
        if bool(((scale != 1) | (kept > 0)).any()):
            batch = self._recompute_old_log_probs(batch)
        logged = rollout_metrics(entropies[real], mask[real] != 0, of_responses[real], scale[real], *thresholds)
        metrics.update(logged)
        if self.controller.smoothed is not None:  # what it decides now is for the next rollout
            metrics.update(self.controller.observe(logged, thresholds[0]))
        return batch

    def _thresholds(self, entropy: float) -> tuple[float, float]:
        """ω_low and ω_high of this step, or the floor and inf; automatic ones follow from the first H_resp."""
        if self.initial_entropy is None:
            self.initial_entropy = entropy
        if self.era.head == "era-floor":
            if self.controller.smoothed is None:
                self.controller.begin({"response_entropy": entropy})
            return self.controller.floor((self.global_steps - 1) / self.total_training_steps), math.inf
        return self.era.thresholds(self.initial_entropy, self.global_steps)

    def _recompute_old_log_probs(self, batch: KVBatchMeta) -> KVBatchMeta:
        """Old log-probs at the scale of each response; entropy and its metric stay those of the policy."""
        temperature = self.config.actor_rollout_ref.rollout.temperature
        batch.extra_info.update(calculate_entropy=False, compute_loss=False, temperature=temperature)
        self.actor_rollout_wg.compute_log_prob(batch)
        data = self._fields(batch, "log_probs", "response_mask")
        return self._write(
            batch, {"old_log_probs": response_from_nested(data["log_probs"], data["response_mask"])}
        )

    @staticmethod
    def _fields(batch: KVBatchMeta, *names: str) -> TensorDict:
        return transfer_queue.kv_batch_get(batch.keys, batch.partition_id, list(names))

    @staticmethod
    def _write(batch: KVBatchMeta, fields: dict[str, Tensor]) -> KVBatchMeta:
        data = TensorDict(fields, batch_size=len(batch))
        return transfer_queue.kv_batch_put(batch.keys, batch.partition_id, fields=data)

    # --- checkpoints --------------------------------------------------------------------------------------

    def _save_checkpoint(self) -> None:
        """verl's checkpoint, the entropy that automatic thresholds follow from, and the controller's memory."""
        folder = Path(self.config.trainer.default_local_dir, f"global_step_{self.global_steps}")
        folder.mkdir(parents=True, exist_ok=True)
        save_state(folder / STATE, self.controller, self.initial_entropy)
        super()._save_checkpoint()

    def _load_checkpoint(self) -> None:
        super()._load_checkpoint()
        if self.global_steps == 0:
            return
        settings = self.config.trainer
        resumed = Path(settings.default_local_dir, f"global_step_{self.global_steps}")
        if settings.resume_mode == "resume_path":
            resumed = Path(settings.resume_from_path)
        if (resumed / STATE).exists():  # not where the run began without ERA
            self.initial_entropy = load_state(resumed / STATE, self.controller)


def check_engine(worker: Any) -> TensorDict:
    """Raise a RuntimeError in a worker whose engine would ignore the scale."""
    engine = worker.actor.engine
    if not isinstance(engine, ERAEngine):
        raise RuntimeError(f"a worker has verl's own engine {type(engine).__name__}, which does not scale: {HINT}")
    return TensorDict({}, batch_size=0)


def per_response(advantages: Tensor, mask: Tensor) -> Tensor:
    """The advantage of each response, [B], from those of its tokens, [B, T].

    Raises:
        ValueError: Tokens of a response have different advantages.
    """
    mask = mask != 0
    highest = advantages.masked_fill(~mask, -torch.inf).amax(-1)
    lowest = advantages.masked_fill(~mask, torch.inf).amin(-1)
    if bool((highest > lowest).any()):
        raise ValueError(
            "tokens of a response have different advantages, and ERA's scale belongs to a response: set "
            "algorithm.adv_estimator=grpo, or another that gives each response one"
        )
    return torch.where(mask.any(-1), highest, 0.0)
