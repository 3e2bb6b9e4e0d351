"""Runs of ERA in TRL: what stays unscaled, what is logged, thresholds, checkpoints, refusals, processes."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("trl")

from entropyfloor.integrations.trl import ERAGRPOConfig, ERAGRPOTrainer
from entropyfloor.integrations.trl.head import HeadOptions
from entropyfloor.integrations.trl.loss import ScaledPolicy, loss_mask
from entropyfloor.integrations.trl.trainer import check_version
from entropyfloor.language import losses
from entropyfloor.torch import functional as F
from tiny_families import build
from tiny_trl import (
    DATA,
    IGNORED,
    MIDDLE,
    WORDS,
    arguments,
    completions,
    largest_difference,
    logged,
    our_model,
    saved,
    trained,
)

from trl import GRPOConfig, GRPOTrainer, TrlParser  # isort: skip
from trl_processes import SETTINGS, SHARDED  # isort: skip

pytestmark = IGNORED
EVERYTHING = {"omega_low": 1e6, "omega_high": math.inf}
"""Thresholds with which every response with a positive advantage is scaled."""
TWICE = {"num_iterations": 2, "max_steps": 2}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Path of a saved random model."""
    return saved(tmp_path_factory.mktemp("models"))


# --- what stays unscaled ----------------------------------------------------------------------------------


def compared(model, tmp_path, rollout_func=completions, **settings):
    """What TRL's loss gets in the last iteration of a run: its inputs, scaled and unscaled scores."""
    seen = []

    class Spied(ERAGRPOTrainer):
        def _compute_loss(self, model, inputs):
            loss = super()._compute_loss(model, inputs)
            policy = ScaledPolicy(self, model, inputs)
            with torch.no_grad():
                output = policy(**arguments_of(inputs))
                unscaled = self.scoring(model)(**arguments_of(inputs))
            seen.append((policy.inputs, inputs, output, unscaled))
            return loss

    trained(Spied, model, arguments(tmp_path, **EVERYTHING | TWICE | settings), rollout_func=rollout_func)
    return seen[-1]


def arguments_of(inputs):
    """As TRL calls a model."""
    tokens = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
    labels = tokens.masked_fill(mask == 0, -100)
    labels[:, : inputs["prompt_ids"].shape[1]] = -100
    return {"input_ids": tokens, "attention_mask": mask, "labels": labels, "fused_lm_head": True}


def test_only_the_ratio_is_scaled(model, tmp_path):
    """The KL divergence, the off-policy mask and the entropy see the differences of the unscaled policy."""
    given, inputs, output, unscaled = compared(model, tmp_path, beta=0.5, off_policy_mask_threshold=0.1)
    length, scaled = inputs["completion_ids"].shape[1], inputs["era_scale"] != 1
    assert scaled.any()
    assert not scaled.all()
    new, plain = output.log_probs, unscaled.log_probs[:, -length:, 0]
    assert ((new - plain).abs().amax(1) > 0.1).equal(scaled)
    for name, other in (
        ("ref_per_token_logps", "ref_per_token_logps"),
        ("sampling_per_token_logps", "old_per_token_logps"),
    ):
        torch.testing.assert_close(given[name] - new, inputs[other] - plain, atol=2e-6, rtol=0)
    assert given["old_per_token_logps"].equal(inputs["era_old_per_token_logps"])
    assert output.entropy.equal(unscaled.entropy)


def test_the_sampler_is_compared_with_the_unscaled_policy(model, tmp_path):
    """Where the sampler gives its log-probs, as vLLM does, the off-policy mask compares with them."""

    def with_log_probs(prompts, trainer):
        rollout = completions(prompts, trainer)
        return rollout | {"logprobs": [[-0.5 * i for i in range(len(ids))] for ids in rollout["completion_ids"]]}

    options = {"off_policy_mask_threshold": 0.1, "rollout_func": with_log_probs}
    given, inputs, output, unscaled = compared(model, tmp_path, **options)
    plain = unscaled.log_probs[:, -inputs["completion_ids"].shape[1] :, 0]
    difference = given["sampling_per_token_logps"] - output.log_probs
    torch.testing.assert_close(difference, inputs["sampling_per_token_logps"] - plain, atol=2e-6, rtol=0)


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("loss", ["grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo"])
def test_weights_of_tokens_are_those_of_trl(model, tmp_path, loss, level):
    """Of terms that TRL's loss lacks. TRL's own KL divergence shows them: its loss with it, minus that without."""
    differences = []

    class Spied(ERAGRPOTrainer):
        def _compute_loss(self, model, inputs):
            with torch.no_grad():
                output = model(**arguments_of(inputs), era=HeadOptions(2.0, 1.0, None, False))
                log_probs = output.log_probs[:, -inputs["completion_ids"].shape[1] :, 0]
                reference = log_probs - torch.linspace(0, 2, log_probs.shape[1])
                found = []
                for self.beta in (0.5, 0.0):
                    found.append(
                        GRPOTrainer._compute_loss(self, model, inputs | {"ref_per_token_logps": reference})
                    )
                policy, mask = ScaledPolicy(self, model, inputs), loss_mask(inputs)
                ratios = policy._ratios(log_probs, inputs["old_per_token_logps"], mask)
                terms = 0.5 * ratios * losses.kl_terms(log_probs, reference, mask)
                expected = losses.weighted_sum(terms, policy._weights(mask))
            differences.append((float(found[0] - found[1]), float(expected)))
            return super()._compute_loss(model, inputs)

    options = {"loss_type": loss, "importance_sampling_level": level, "num_iterations": 2}
    options |= {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    trained(Spied, model, arguments(tmp_path, **options), rollout_func=completions)
    for found, expected in differences:
        assert found > 1e-3
        assert found == pytest.approx(expected, rel=1e-4)


def test_evaluation_has_no_era(model, tmp_path):
    found = []
    for trainer_class, config, more in (
        (GRPOTrainer, GRPOConfig, {}),
        (ERAGRPOTrainer, ERAGRPOConfig, EVERYTHING),
    ):
        args = arguments(tmp_path, config, per_device_eval_batch_size=8, beta=0.5, **more)
        trainer, _, _ = trained(trainer_class, model, args, run=False, eval_dataset=DATA, rollout_func=completions)
        found.append(trainer.evaluate())
    assert set(found[0]) == set(found[1])
    for name in ("eval_loss", "eval_entropy", "eval_kl", "eval_reward"):
        assert found[0][name] == found[1][name]


def test_tokens_of_tools_count_neither_in_the_entropy_nor_in_the_loss(model, tmp_path):
    args = arguments(tmp_path, **TWICE)

    def with_tools(prompts, trainer):
        rollout = completions(prompts, trainer)
        rollout["env_mask"] = [[1 + i // 2 & 1 for i in range(len(ids))] for ids in rollout["completion_ids"]]
        return rollout

    trainer, rollouts, start = trained(ERAGRPOTrainer, model, args, rollout_func=with_tools)
    assert "tool_mask" in rollouts[0]
    expected, scaled = our_model(start, rollouts, args)
    assert scaled[0] > 0
    assert largest_difference(trainer.model, start) > 1e-3
    assert largest_difference(trainer.model, expected) < 1e-5


def test_scales_and_old_log_probs_stay_with_their_responses(model, tmp_path):
    """TRL shuffles a rollout, and splits it into the micro-batches of two optimiser steps."""
    batches = []

    class Spied(ERAGRPOTrainer):
        def _compute_loss(self, model, inputs):
            batches.append(inputs)
            return super()._compute_loss(model, inputs)

    settings = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "steps_per_generation": 4}
    args = arguments(tmp_path, max_steps=4, **settings)
    _, (rollout,), _ = trained(Spied, model, args, rollout_func=completions)
    assert [len(batch["era_scale"]) for batch in batches] == [4] * 4
    names = "prompt_ids", "completion_ids", "era_scale", "era_old_per_token_logps", "advantages"
    together = [torch.cat([batch[name].reshape(len(batch[name]), -1) for batch in batches]) for name in names]
    before, after = (
        {tuple(map(tuple, (row.tolist() for row in rows))) for rows in zip(*columns, strict=True)}
        for columns in ([rollout[name].reshape(16, -1) for name in names], together)
    )
    assert before == after
    assert not rollout["era_scale"].equal(together[2][:, 0])
    assert len(rollout["era_scale"].unique()) > 1


# --- what is logged ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("iterations", [1, 2])
@pytest.mark.parametrize("thresholds", [MIDDLE, {"omega_low": 0.0, "omega_high": math.inf}], ids=["met", "never"])
def test_metrics(model, tmp_path, iterations, thresholds):
    """In the first step, with a rollout in two micro-batches."""
    settings = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "num_iterations": iterations}
    args = arguments(tmp_path, **settings, **thresholds)
    trainer, (rollout,), start = trained(ERAGRPOTrainer, model, args, rollout_func=completions)
    mask, advantages = loss_mask(rollout), rollout["advantages"]
    tokens = torch.cat([rollout["prompt_ids"], rollout["completion_ids"]], 1)
    attention = torch.cat([rollout["prompt_mask"], rollout["completion_mask"]], 1)
    with torch.no_grad():
        logits = start(tokens, attention_mask=attention).logits[:, -mask.shape[1] - 1 : -1]
    entropies = F.entropy_from_logits(logits)
    of_responses = F.response_entropy(entropies, mask)
    low, high = args.omega_low, args.omega_high
    expected = {
        "response_entropy": of_responses.mean(),
        "response_entropy/below": (of_responses < low).float().mean(),
        "response_entropy/between": ((of_responses >= low) & (of_responses <= high)).float().mean(),
        "response_entropy/above": (of_responses > high).float().mean(),
        "scaled_share": (((of_responses < low) | (of_responses > high)) & (advantages > 0)).float().mean(),
        "omega_low": low,
        "omega_high": high,
    }
    for name, value in expected.items():
        found = logged(trainer, f"era/{name}")
        assert found == ([pytest.approx(float(value), abs=1e-5)] if math.isfinite(value) else []), name
    (of_tokens,) = logged(trainer, "era/token_entropy")
    if iterations == 2:  # else a mean over the means of micro-batches
        assert of_tokens == pytest.approx(float(entropies[mask].mean()), abs=1e-5)
    else:
        assert logged(trainer, "entropy") == [pytest.approx(of_tokens, abs=1e-6)]


# --- what it is for ---------------------------------------------------------------------------------------


def test_the_entropy_follows_the_thresholds(model, tmp_path):
    """Below ω_low the policy stays more random than without ERA, above ω_high it becomes less random."""

    def even(completions, **_):
        return [float(text[:1] in tuple("02468")) for text in completions]

    settings = {"per_device_train_batch_size": 32, "num_generations": 16, "shuffle_dataset": False}
    settings |= {"max_steps": 60, "max_completion_length": 2}
    arms = {"below": EVERYTHING, "between": {"omega_low": 0.0}, "above": {"omega_low": 0.0, "omega_high": 1e-6}}
    found = {}
    for arm, thresholds in arms.items():
        args = arguments(tmp_path, **settings, **{"omega_high": math.inf} | thresholds)
        trainer, _, _ = trained(ERAGRPOTrainer, model, args, reward_funcs=even)
        assert sum(logged(trainer, "reward")[-10:]) / 10 > 0.9
        found[arm] = sum(logged(trainer, "entropy")[-10:]) / 10
    assert found["below"] > 1.3 * found["between"] > 4 * found["above"]


def test_the_example_of_the_docs(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    example = (Path(__file__).parents[1] / "docs" / "trl.md").read_text().split("```py\n")[1].split("```")[0]
    short = "max_completion_length=4, max_steps=1, use_cpu=True, bf16=False, report_to='none', save_strategy='no'"
    for written, replaced in {
        "max_completion_length=64": short,
        "HuggingFaceTB/SmolLM2-135M-Instruct": model,
    }.items():
        assert written in example
        example = example.replace(written, str(replaced))
    exec(compile(example, "example", "exec"), {})


# --- thresholds and checkpoints ---------------------------------------------------------------------------


@pytest.mark.parametrize("iterations", [1, 2])
def test_automatic_thresholds_follow_from_the_first_entropy(model, tmp_path, iterations):
    args = arguments(tmp_path, omega_low="auto", omega_high="auto", max_steps=3, num_iterations=iterations)
    trainer, _, _ = trained(ERAGRPOTrainer, model, args)
    lows, highs = logged(trainer, "era/omega_low"), logged(trainer, "era/omega_high")
    first = logged(trainer, "era/response_entropy")[0]
    assert lows == [pytest.approx(0.75 * first, rel=1e-5)] * len(lows)
    assert highs == [pytest.approx(5 * first, rel=1e-5)] * len(highs)


def test_a_first_rollout_without_responses_decides_no_threshold(model, tmp_path):
    """As where all responses are truncated and masked."""
    settings = {"mask_truncated_completions": True, "max_completion_length": 1}
    args = arguments(tmp_path, omega_low="auto", omega_high="auto", **settings)
    trainer, (rollout,), _ = trained(ERAGRPOTrainer, model, args)
    assert not rollout["completion_mask"].any()
    assert trainer.stage == (0.0, math.inf, None)


def test_a_resumed_run_has_the_thresholds_of_its_beginning(model, tmp_path):
    settings = {"omega_low": "auto", "omega_high": "auto", "save_strategy": "steps", "save_steps": 2}
    settings |= {"learning_rate": 1.0, "num_iterations": 2}  # it changes the entropy
    whole = trained(ERAGRPOTrainer, model, arguments(tmp_path, max_steps=4, **settings))[0]
    rest, _, _ = trained(ERAGRPOTrainer, model, arguments(tmp_path, max_steps=4, **settings), run=False)
    rest.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert len(logged(whole, "era/omega_low")) == 2
    assert rest.stage == whole.stage
    assert rest.stage.omega_low != pytest.approx(0.75 * logged(rest, "era/response_entropy")[-1], rel=1e-3)


@pytest.mark.parametrize("begin", [2, 0.5])
def test_second_stage(model, tmp_path, begin):
    args = arguments(
        tmp_path, max_steps=4, omega_low=0.9, omega_high=4.5, second_stage_steps=begin, era_top_k=5, k=3.0
    )
    trainer, _, _ = trained(ERAGRPOTrainer, model, args)
    assert logged(trainer, "era/omega_low") == pytest.approx([0.9, 0.9, 0.4, 0.4])
    assert logged(trainer, "era/omega_high") == [4.5, 4.5]
    assert trainer.stage.top_k is None


@pytest.mark.parametrize("settings", [{}, {"second_stage_steps": 9, "omega_high": math.inf, "omega_high_2": 0.1}])
def test_automatic_thresholds_that_cross_are_refused(model, tmp_path, settings):
    """In the first step, also those of the second stage."""
    args = arguments(tmp_path, **{"omega_low": "auto", "omega_high": 0.1} | settings)
    with pytest.raises(ValueError, match=r"ω_low=.*, and ω_high=0\.1 is not above it: give both"):
        trained(ERAGRPOTrainer, model, args)


def test_thresholds_that_cross_name_no_entropy_where_none_is_known(model, tmp_path):
    settings = {"omega_low": 0.45, "omega_high": 3.0, "second_stage_steps": 9, "omega_high_2": 0.1}
    with pytest.raises(
        ValueError, match=r"^ω_low is 0\.45, so auto gives ω_low=0\.2, and ω_high=0\.1 is not above"
    ):
        trained(ERAGRPOTrainer, model, arguments(tmp_path, **settings))


# --- refusals ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"omega_low": "some"}, "omega_low='some' must be a number of nats, or 'auto'"),
        ({"omega_low": 3.0, "omega_high": 1.0}, "omega_low=3.0 must be below omega_high=1.0"),
        ({"second_stage_steps": 3, "omega_low_2": 3.0, "omega_high_2": 1.0}, "omega_low_2=3.0 must be below"),
        ({"omega_low_2": 0.2}, "omega_low_2 would be ignored without second_stage_steps"),
        ({"omega_low": -1.0}, "omega_low=-1.0 must be finite and at least 0"),
        ({"second_stage_steps": -1}, "second_stage_steps=-1 must be above 0"),
        ({"second_stage_steps": 0, "era_top_k": 20}, "second_stage_steps=0 must be above 0: None is one stage"),
        ({"freeze_scale": False}, "freeze_scale=False does nothing without an optimiser step"),
        ({"k": 1.0}, "k=1.0 must be above 1"),
        ({"top_fraction": 0.0}, "top_fraction=0.0 must be above 0"),
        ({"min_advantage": -1.0}, "min_advantage=-1.0 must be finite and at least 0"),
        ({"era_signs": "negative"}, "era_signs='negative' must be one of positive, both"),
        ({"era_top_k": 0}, "era_top_k=0 must be at least 1"),
        ({"kl_cov": 2.0}, "kl_cov=2.0 must be between 0 and 1"),
        ({"kl_cov": 0.1, "clip_cov": 0.1}, "kl_cov and clip_cov exclude each other"),
        ({"kl_cov": 0.1}, "do nothing where every ratio is 1: give num_iterations of at least 2"),
        ({"kl_cov": 0.1, "num_iterations": 2, "loss_type": "cispo"}, "loss_type='cispo' must be one of grpo"),
        (
            {"clip_cov": 0.1, "num_iterations": 2, "importance_sampling_level": "sequence"},
            "clip_cov chooses tokens",
        ),
    ],
)
def test_settings_are_refused(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        arguments(tmp_path, **settings)


def test_the_command_line(tmp_path):
    (args,) = TrlParser(ERAGRPOConfig).parse_args_and_config(
        ["--output_dir", str(tmp_path), "--omega_low", "0.3", "--era_top_k", "20", "--use_cpu", "True"]
    )
    assert (args.omega_low, args.omega_high, args.era_top_k, args.k) == (0.3, "auto", 20, 2.0)


def test_versions():
    check_version("1.16.3")
    with pytest.raises(
        ImportError, match=r"TRL 1\.14\.0 is installed, and ERAGRPOTrainer works with 1\.15 and 1\.16"
    ):
        check_version("1.14.0")


def test_other_arguments_are_refused(model, tmp_path):
    with pytest.raises(TypeError, match="args is a GRPOConfig: it must be an ERAGRPOConfig"):
        trained(ERAGRPOTrainer, model, arguments(tmp_path, GRPOConfig), run=False)


def test_a_factor_of_logits_that_is_not_positive_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"=-1\.0 of the model's config, a factor of logits, must be positive"):
        trained(
            ERAGRPOTrainer,
            saved(tmp_path, "cohere"),
            arguments(tmp_path),
            run=False,
            model=build("cohere", vocab_size=len(WORDS), logit_scale=-1.0),
        )


def test_without_trl_the_extra_is_named():
    code = "import sys; sys.modules['trl'] = None; import entropyfloor.integrations.trl"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip().endswith("'trl' is not installed: pip install 'entropyfloor[trl]' brings it")


# --- several processes ------------------------------------------------------------------------------------

PROGRAM = Path(__file__).parent / "trl_processes.py"
LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--nproc-per-node=2", "--standalone"],
    "accelerate": [
        *("accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--num_machines=1"),
        *("--main_process_port=0", "--mixed_precision=no", "--dynamo_backend=no"),
    ],
}


def launch(launcher, model, folder, *names):
    """Run the program, and read what it wrote."""
    folder.mkdir()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    start = [sys.executable, *(["-m", *launcher] if launcher else [])]
    done = subprocess.run(
        [*start, PROGRAM, model, folder, *names], env=environment, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr
    return {path.stem: torch.load(path) for path in folder.glob("*.pt")}


@pytest.mark.slow
@pytest.mark.parametrize(("launcher", "names"), [("torchrun", ()), ("accelerate", ("iterations", "on-policy"))])
def test_two_processes_make_the_update_of_one(model, tmp_path, launcher, names):
    """Each has one of two groups, of which only one may have scaled responses, or tokens."""
    one = launch(None, model, tmp_path / "one", *names)
    two = launch(LAUNCHERS[launcher], model, tmp_path / "two", *names)
    assert set(one) == set(two) == set(names or (*SETTINGS, *SHARDED))
    for name, found in one.items():
        for weight, value in found["weights"].items():
            torch.testing.assert_close(two[name]["weights"][weight], value, atol=2e-6, rtol=1e-5)
        for quantity, value in found.get("metrics", {}).items():
            if quantity.startswith("era/"):
                assert two[name]["metrics"][quantity] == pytest.approx(value, rel=1e-5), f"{name}: {quantity}"
        if name == "iterations":
            assert len(two[name]["scales"][0]) == 4 == len(found["scales"][0]) / 2
            assert (found["scales"][0][:4] != 1).sum() != (found["scales"][0][4:] != 1).sum()


@pytest.mark.slow
def test_the_benchmark_runs():
    benchmark = Path(__file__).parents[1] / "benchmarks" / "trl_overhead.py"
    small = ["--rounds", "1", "--length", "4", "--responses", "4"]
    done = subprocess.run([sys.executable, benchmark, *small], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("time of era / time of grpo") == 2
