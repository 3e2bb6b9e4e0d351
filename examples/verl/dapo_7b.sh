#!/usr/bin/env bash
# GRPO with ERA on DAPO-Math-17k with Qwen2.5-Math-7B, in both stages, by verl 0.9.1: arXiv 2510.08549, Sec. 5.3, A.3.
# NOT RUN. A test composes this command with verl's own config, so every setting exists; sizes of batches are a guess.
#
#   MODEL=… TRAIN=dapo-math-17k.parquet TEST=aime-2024.parquet bash examples/verl/dapo_7b.sh
#
# MODEL is a copy of Qwen/Qwen2.5-Math-7B whose config.json allows 9216 positions; the paper does not say how a model
# of 4096 writes 8192 tokens. TRAIN and TEST are in verl's format, with the data source `math_dapo`, which verl judges.
# On several nodes start Ray first (`ray start --head`, `ray start --address=…`) and set NODES.
set -euo pipefail

settings=(
    # "Batch = minibatch = 256 prompts", of 768 generated at a time; 8 responses each; "dynamic sampling"
    data.train_batch_size=256
    actor_rollout_ref.actor.ppo_mini_batch_size=256
    actor_rollout_ref.rollout.n=8
    algorithm.filter_groups.enable=True
    algorithm.filter_groups.metric=acc
    algorithm.filter_groups.max_inflight_gen_batches=3
    # Responses of at most 8192 tokens; the limit of prompts is not in the text.
    data.max_prompt_length=1024
    data.max_response_length=8192
    data.filter_overlong_prompts=True
    # "lr 1e-6 constant, no KL", mean over tokens; clip ratios of 1.0 are idle where a rollout is one update.
    algorithm.adv_estimator=grpo
    actor_rollout_ref.actor.optim.lr=1e-6
    actor_rollout_ref.actor.clip_ratio_low=1.0
    actor_rollout_ref.actor.clip_ratio_high=1.0
    actor_rollout_ref.actor.loss_agg_mode=token-mean

    # ERA. Stage 1: ω_low 0.45, ω_high 3.0, logits outside of the 20 largest dropped. Stage 2: ω_low 0.2, no ω_high.
    trainer.v1.trainer_mode=era
    actor_rollout_ref.actor.entropy_from_logits_with_chunking=True  # in float32
    +trainer.v1.era.omega_low=0.45
    +trainer.v1.era.omega_high=3.0
    +trainer.v1.era.k=2.0
    +trainer.v1.era.top_k=20
    +trainer.v1.era.second_stage_steps=420  # neither this number nor the next is in the text
    +trainer.v1.era.omega_low_2=0.2
    +trainer.v1.era.omega_high_2=inf
    trainer.total_training_steps=600

    # The machine.
    trainer.n_gpus_per_node="${GPUS:-8}"
    trainer.nnodes="${NODES:-1}"
    actor_rollout_ref.actor.strategy=fsdp2
    actor_rollout_ref.actor.use_dynamic_bsz=True
    actor_rollout_ref.actor.ppo_max_token_len_per_gpu=9216
    actor_rollout_ref.rollout.name=vllm
    actor_rollout_ref.rollout.tensor_model_parallel_size=2
    actor_rollout_ref.rollout.gpu_memory_utilization=0.7

    # "AIME24 … sampled at 0.7, avg@16 or more", by the model itself
    actor_rollout_ref.rollout.val_kwargs.n=16
    actor_rollout_ref.rollout.val_kwargs.do_sample=True
    actor_rollout_ref.rollout.val_kwargs.temperature=0.7
    trainer.test_freq=20
    trainer.save_freq=20
    trainer.project_name=era
    trainer.experiment_name=dapo-7b
    trainer.logger='["console","tensorboard"]'

    actor_rollout_ref.model.path="${MODEL:-Qwen2.5-Math-7B}"
    data.train_files="${TRAIN:-dapo-math-17k.parquet}"
    data.val_files="${TEST:-aime-2024.parquet}"
)
exec "${PYTHON:-python3}" -m verl.trainer.main_ppo "${settings[@]}" "$@"
