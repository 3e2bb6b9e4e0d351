#!/usr/bin/env bash
# GSPO with ERA on DAPO-Math-17k with Qwen2.5-Math-7B, by verl 0.9.1: arXiv 2510.08549, Table 3 (GSPO + ERA).
# NOT RUN. A test composes this command with verl's own config, so every setting exists.
#
#   MODEL=… TRAIN=dapo-math-17k.parquet TEST=aime-2024.parquet bash examples/verl/gspo_7b.sh
#
# It is dapo_7b.sh with the loss of GSPO and without a second stage. Clip ratios are those of GSPO's own paper
# (arXiv 2507.18071); they and the 32 prompts of a minibatch are not in ERA's text.
set -euo pipefail

exec bash "$(dirname "${BASH_SOURCE[0]}")/dapo_7b.sh" \
    actor_rollout_ref.actor.policy_loss.loss_mode=gspo \
    actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-mean \
    actor_rollout_ref.actor.clip_ratio_low=3e-4 \
    actor_rollout_ref.actor.clip_ratio_high=4e-4 \
    actor_rollout_ref.actor.ppo_mini_batch_size=32 \
    trainer.v1.era.second_stage_steps=null \
    trainer.v1.era.omega_low_2=auto \
    trainer.experiment_name=gspo-7b \
    "$@"
