#!/usr/bin/env bash
# GRPO with ERA on levels 3 to 5 of MATH with Qwen2.5-Math-1.5B, by verl 0.9.1: arXiv 2510.08549, Sec. 5.3, A.3, Table 3.
# NOT RUN. A test composes this command with verl's own config, so every setting exists; sizes of batches are a guess.
#
#   MODEL=Qwen/Qwen2.5-Math-1.5B TRAIN=math-3-to-5.parquet TEST=math-500.parquet bash examples/verl/math_1.5b.sh
#
# TRAIN and TEST are in verl's format, with the data source `DigitalLearningGmbH/MATH-lighteval`, which verl judges by
# the content of \boxed{}. What the paper does not say of this run is taken from the one with 7B.
set -euo pipefail

settings=(
    data.train_batch_size=256
    actor_rollout_ref.actor.ppo_mini_batch_size=256
    actor_rollout_ref.rollout.n=8
    algorithm.filter_groups.enable=True
    algorithm.filter_groups.metric=reward
    algorithm.filter_groups.max_inflight_gen_batches=3
    # Prompt and response fill the 4096 positions of the model.
    data.max_prompt_length=1024
    data.max_response_length=3072
    data.filter_overlong_prompts=True
    algorithm.adv_estimator=grpo
    actor_rollout_ref.actor.optim.lr=1e-6
    actor_rollout_ref.actor.clip_ratio_low=1.0
    actor_rollout_ref.actor.clip_ratio_high=1.0
    actor_rollout_ref.actor.loss_agg_mode=token-mean

    # ERA in one stage: only the run with 7B has a second one (A.3.2).
    trainer.v1.trainer_mode=era
    actor_rollout_ref.actor.entropy_from_logits_with_chunking=True  # in float32
    +trainer.v1.era.omega_low=0.45
    +trainer.v1.era.omega_high=3.0
    +trainer.v1.era.k=2.0
    +trainer.v1.era.top_k=20
    trainer.total_training_steps=600  # not in the text

    # The machine.
    trainer.n_gpus_per_node="${GPUS:-8}"
    trainer.nnodes="${NODES:-1}"
    actor_rollout_ref.actor.strategy=fsdp2
    actor_rollout_ref.actor.use_dynamic_bsz=True
    actor_rollout_ref.actor.ppo_max_token_len_per_gpu=16384
    actor_rollout_ref.rollout.name=vllm
    actor_rollout_ref.rollout.tensor_model_parallel_size=1
    actor_rollout_ref.rollout.gpu_memory_utilization=0.7

    trainer.test_freq=20
    trainer.save_freq=20
    trainer.project_name=era
    trainer.experiment_name=math-1.5b
    trainer.logger='["console","tensorboard"]'

    actor_rollout_ref.model.path="${MODEL:-Qwen2.5-Math-1.5B}"
    data.train_files="${TRAIN:-math-3-to-5.parquet}"
    data.val_files="${TEST:-math-500.parquet}"
)
exec "${PYTHON:-python3}" -m verl.trainer.main_ppo "${settings[@]}" "$@"
