"""verl with ERA, on a CPU: its engine, worker, loss and trainer against ours and against the reference.

Needs an environment of its own: `make test-all` has one.
"""

import importlib.util
import json
import os
import subprocess
import sys
import tomllib
import types
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

if importlib.util.find_spec("verl") is None:
    pytest.skip("verl is not installed", allow_module_level=True)

import reference
import tiny_language
import verl_worker
from entropyfloor.integrations.verl import ERAConfig, ERATrainer
from entropyfloor.integrations.verl import trainer as era_trainer
from entropyfloor.integrations.verl.config import read
from entropyfloor.language.config import LanguageConfig
from entropyfloor.language.controllers import Controller
from verl_worker import ADVANTAGES, RESPONSES, TEMPERATURE, batch_of, era_fields, hyperparameters, infer, worker_of

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model whose entropies differ from response to response; the worker group of one process has begun."""
    verl_worker.start()
    yield tiny_language.save(tmp_path_factory.mktemp("model"), scale=15.0)
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def responses():
    return verl_worker.responses_of()


def padded(values):
    return values.to_padded_tensor(0.0)


# --- loading ---------------------------------------------------------------------------------------------


FIND = """
import warnings; warnings.simplefilter("ignore")
import verl
from verl.trainer.ppo.v1 import get_trainer_cls
from verl.workers.engine import EngineRegistry
print(*(EngineRegistry.get_engine_cls("language_model", name).__name__ for name in ("fsdp", "fsdp2")))
print(get_trainer_cls("era").__name__)
"""


def process(*command, cwd=None, **variables):
    """A process that knows nothing of what this one has set for its own worker."""
    ours = {*verl_worker.VARIABLES, "RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT"}
    kept = {name: value for name, value in os.environ.items() if name not in ours}
    return subprocess.run(command, cwd=cwd, env=kept | variables, capture_output=True, text=True)


def loaded(**variables):
    """What a new process finds that imports verl, as on a machine with a GPU of NVIDIA."""
    return process(sys.executable, "-c", FIND, **variables)


@pytest.mark.parametrize(
    "variables",
    [
        {"VERL_USE_EXTERNAL_PLUGINS": "auto"},
        {"VERL_USE_EXTERNAL_PLUGINS": "none", "VERL_USE_EXTERNAL_MODULES": "entropyfloor.integrations.verl"},
        {"VERL_USE_EXTERNAL_PLUGINS": "auto", "VERL_USE_EXTERNAL_MODULES": "entropyfloor.integrations.verl"},
    ],
)
def test_verl_finds_the_trainer_and_the_engine(variables):
    done = loaded(**variables)
    assert done.stdout.split() == ["ERAEngine", "ERAEngine", "ERATrainer"], done.stderr


def test_without_loading_verl_has_neither():
    done = loaded(VERL_USE_EXTERNAL_PLUGINS="none")
    assert done.stdout.split() == ["FSDPEngineWithLMHead", "FSDPEngineWithLMHead"]
    assert "Unknown trainer 'era'" in done.stderr


def test_a_worker_without_the_engine_is_named():
    worker = types.SimpleNamespace(actor=types.SimpleNamespace(engine=object()))
    with pytest.raises(
        RuntimeError, match="does not scale: install entropyfloor on every node, or set VERL_USE_EX"
    ):
        era_trainer.check_engine(worker)


# --- settings --------------------------------------------------------------------------------------------


CHUNKING = "actor_rollout_ref.actor.entropy_from_logits_with_chunking"


def config_of(*overrides):
    """verl's own config with ERA."""
    from hydra import compose, initialize_config_module

    needed = [
        "algorithm.adv_estimator=grpo",
        "actor_rollout_ref.rollout.name=vllm",
        f"{CHUNKING}=True",
        "trainer.v1.trainer_mode=era",
    ]
    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose("ppo_trainer", overrides=[*needed, *overrides])


@pytest.fixture(autouse=True)
def no_warning():
    """verl warns that there is no critic."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Disabled critic", UserWarning)
        yield


def test_settings_are_read():
    settings = ["omega_low=0.45", "omega_high=3", "top_k=20", "second_stage_steps=10", "omega_low_2=0.2"]
    era = read(config_of(*(f"+trainer.v1.era.{setting}" for setting in settings)))
    assert era == ERAConfig(omega_low=0.45, omega_high=3, top_k=20, second_stage_steps=10, omega_low_2=0.2)
    assert [era.thresholds(9.0, step) for step in (1, 10, 11)] == [(0.45, 3), (0.45, 3), (0.2, float("inf"))]
    assert [era.is_second_stage(step) for step in (10, 11)] == [False, True]


def test_automatic_thresholds_are_those_of_our_trainer():
    era = read(config_of("+trainer.v1.era.second_stage_steps=1"))
    assert era.thresholds(0.8, 1) == pytest.approx((0.6, 4.0))
    assert era.thresholds(0.8, 2) == pytest.approx((0.6 * 0.2 / 0.45, float("inf")))


def test_automatic_thresholds_that_cross_are_refused_in_the_first_step():
    era = read(config_of("+trainer.v1.era.second_stage_steps=9", "+trainer.v1.era.omega_high_2=0.1"))
    with pytest.raises(ValueError, match=r"ω_low=0\.266667, and ω_high=0\.1 is not above it: give both"):
        era.thresholds(0.8, 1)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("+trainer.v1.era.omega=1", "trainer.v1.era.omega does not exist: ERA's settings are entropy_ema, era"),
        ("+trainer.v1.era.k=1", "k=1 must be above 1"),
        ("+trainer.v1.era.omega_low=low", "omega_low='low' must be one of auto"),
        ("+trainer.v1.era.top_fraction=0", "top_fraction=0 must be above 0"),
        ("+trainer.v1.era.top_k=0", "top_k=0 must be at least 1"),
        ("+trainer.v1.era.min_advantage=-1", "min_advantage=-1 must be finite and at least 0"),
        ("+trainer.v1.era.omega_low_2=0.2", "omega_low_2 would be ignored without second_stage_steps"),
        ("+trainer.v1.era.second_stage_steps=0", "second_stage_steps=0 must be at least 1, or null for never"),
        ("+trainer.v1.era.head=none", "head='none' must be era or era-floor"),
        ("+trainer.v1.era.margin=0.1", "margin=0.1 would be ignored without head='era-floor'"),
        ("+trainer.v1.era.era_tokens=forking", "era_tokens does not exist"),
        ("model_engine=megatron", "strategy=megatron has no engine that scales logits: choose"),
        ("actor_rollout_ref.model.use_fused_kernels=True", "use_fused_kernels takes one temperature for all"),
        (
            "algorithm.rollout_correction.bypass_mode=True",
            "bypass_mode takes the sampler's log-probs for old ones",
        ),
        ("actor_rollout_ref.actor.use_kl_loss=True", "use_kl_loss would compare scaled log-probs with the ref"),
        ("actor_rollout_ref.actor.entropy_coeff=0.001", "would use the entropy of scaled logits: set them to 0"),
        (
            "actor_rollout_ref.actor.calculate_entropy=True",
            "would use the entropy of scaled logits: set them to 0",
        ),
        ("actor_rollout_ref.actor.policy_loss.loss_mode=kl_cov", "loss_mode=kl_cov was not tried with scaled log"),
        (f"{CHUNKING}=False", "entropies would be rounded to bfloat16, by up to 0.15 nats a token: set actor"),
        ("actor_rollout_ref.model.use_remove_padding=False", "entropies would be rounded to bfloat16, by up to 0"),
        ("algorithm.adv_estimator=gae", "a critic gives each token an advantage, and ERA's scale belongs to a"),
        ("distillation.enabled=True", "distillation would use scaled log-probs of the student"),
    ],
)
def test_what_cannot_be_right_is_refused_in_one_line(override, message):
    with pytest.raises(ValueError, match=message) as error:
        read(config_of(override))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"omega_low": 0.4}, "holds the entropy at min_entropy: leave out omega_low"),
        ({"second_stage_steps": 3, "top_k": 20}, "leave out second_stage_steps, top_k"),
        ({"k": 3.0}, "k=3.0 would be ignored without head='era'"),
        ({"min_entropy": "some"}, "min_entropy='some' must be one of auto"),
        ({"max_scale": 1}, "max_scale=1 must be above 1"),
    ],
)
def test_settings_that_era_floor_would_ignore_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ERAConfig(head="era-floor", **settings)


def test_verl_rounds_entropies_in_half_precision_unless_it_computes_them_in_chunks():
    from verl.utils import torch_functional

    torch.manual_seed(0)
    logits = 2 * torch.randn(64, 20_000) + 5
    logits[:, 0] += torch.linspace(5, 25, 64)
    logits = logits.bfloat16()
    exact = torch.distributions.Categorical(logits=logits.double()).entropy()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = torch_functional.entropy_from_logits(logits)
        in_chunks = torch_functional.entropy_from_logits_with_chunking(logits)
    assert (rounded - exact).abs().max() > 0.05
    assert (in_chunks - exact).abs().max() < 0.003


def test_float32_needs_no_chunks():
    read(config_of(f"{CHUNKING}=False", "+actor_rollout_ref.actor.fsdp_config.mixed_precision.param_dtype=fp32"))


def test_other_versions_are_refused(monkeypatch):
    monkeypatch.setattr("entropyfloor.integrations.verl.config.version", lambda name: "0.10.0")
    with pytest.raises(ValueError, match=r"verl 0.10.0 was not tried with ERA: install verl==0.9.1"):
        read(config_of())


@pytest.mark.parametrize(
    "setting",
    ["ulysses_sequence_parallel_size=2", "fsdp_config.ulysses_sequence_parallel_size=2", "pad_to_length=True"],
)
def test_top_k_needs_whole_sequences(setting):
    read(config_of(f"actor_rollout_ref.actor.{setting}"))
    with pytest.raises(ValueError, match="top_k needs whole sequences without padding"):
        read(config_of("+trainer.v1.era.top_k=20", f"actor_rollout_ref.actor.{setting}"))


def test_hardware_without_the_engine_is_refused(monkeypatch):
    from verl.workers.engine import EngineRegistry, FSDPEngineWithLMHead

    monkeypatch.setattr(EngineRegistry, "get_engine_cls", lambda *args: FSDPEngineWithLMHead)
    with pytest.raises(ValueError, match="verl chooses the engine FSDPEngineWithLMHead for fsdp on this hardware"):
        ERATrainer(config_of())


# --- engine and worker -----------------------------------------------------------------------------------


def expected(model, responses, scale, top_k=None):
    """Log-probs and entropies of the reference, [B, T], from hidden states in float64."""
    from transformers import AutoModelForCausalLM

    policy = AutoModelForCausalLM.from_pretrained(model, attn_implementation="eager").double().eval()
    targets = responses.targets.masked_fill(~responses.response_mask, -100).numpy()
    weight, rows = policy.lm_head.weight.detach().numpy(), []
    for i, (tokens, keep) in enumerate(zip(responses.tokens, responses.mask, strict=True)):
        with torch.no_grad():
            hidden = policy.model(tokens[keep][None]).last_hidden_state[0]
        states = np.zeros((targets.shape[1], hidden.shape[1]))
        states[: RESPONSES[i]] = hidden[-RESPONSES[i] - 1 : -1]
        options = {"scale": float(scale[i]), "top_k": top_k, "top_k_rows": bool(ADVANTAGES[i] > 0)}
        rows.append(reference.token_log_probs(states, weight, targets[i], temperature=TEMPERATURE, **options))
    return tuple(np.stack(values) for values in zip(*rows, strict=True))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("top_k", [None, 5])
def test_log_probs_are_those_of_the_reference(model, responses, packed, top_k):
    hp, mask = hyperparameters(top_k=top_k), responses.response_mask
    _, ours, _ = verl_worker.our_rollout(model, responses, hp)
    fields, advantages = era_fields(ours, hp)
    assert set(fields["era_scale"].tolist()) == {0.5, 1.0, 2.0}
    worker = worker_of(model, packed=packed)

    unscaled, entropies = infer(worker, batch_of(responses), entropy=True)
    log_probs, reference_entropies = expected(model, responses, torch.ones(8))
    np.testing.assert_allclose(padded(unscaled)[mask], log_probs[mask], rtol=0, atol=1e-5)
    np.testing.assert_allclose(padded(entropies)[mask], reference_entropies[mask], rtol=0, atol=1e-5)

    scaled = padded(infer(worker, batch_of(responses, advantages, **fields)))
    log_probs, _ = expected(model, responses, fields["era_scale"], top_k)
    np.testing.assert_allclose(scaled[mask], log_probs[mask], rtol=0, atol=1e-5)
    assert (scaled - padded(unscaled))[mask].abs().max() > 0.5


@pytest.mark.parametrize("packed", [False, True])
def test_scale_1_is_verl_itself(model, responses, packed):
    one = {"era_scale": torch.ones(8), "era_top_k": torch.zeros(8, dtype=torch.long)}
    trained = []
    for fields in ({}, one):
        worker = worker_of(model, packed=packed)
        old = infer(worker, batch_of(responses, **fields))
        for _ in range(2):
            verl_worker.train(worker, batch_of(responses, old_log_probs=old, **fields), mini_batch=4)
        trained.append(verl_worker.parameters(worker))
    before = verl_worker.parameters(worker_of(model))
    for name, value in trained[0].items():
        assert torch.equal(value, trained[1][name]), name
    assert any((value - before[name]).abs().max() > 0.1 for name, value in trained[0].items())


GSPO = {"policy_loss": {"loss_mode": "gspo"}, "loss_agg_mode": "seq-mean-token-mean"}


@pytest.mark.parametrize(
    ("settings", "actor", "minibatches", "packed"),
    [
        ({}, {}, 1, False),
        ({}, {}, 1, True),
        ({}, {}, 2, False),
        ({"top_k": 5}, {}, 2, True),
        ({"scale_advantages": True}, {}, 1, False),
        ({"min_advantage": 1.0}, {}, 1, False),
        ({"ratio": "sequence", "mean": "sequence"}, GSPO, 2, False),
    ],
    ids=["plain", "packed", "two minibatches", "top-k", "scaled advantages", "advantages above 1", "gspo"],
)
def test_an_update_is_that_of_our_trainer(model, responses, settings, actor, minibatches, packed):
    clip = {"clip_ratio_low": 0.2, "clip_ratio_high": 0.3}
    hp = hyperparameters(clip_low=0.2, clip_high=0.3, **settings)
    policy, ours, _ = verl_worker.our_rollout(model, responses, hp)
    fields, advantages = era_fields(ours, hp)
    worker = worker_of(model, packed=packed, **actor | clip)
    before = verl_worker.parameters(worker)
    old = infer(worker, batch_of(responses, advantages, **fields))
    verl_worker.train(
        worker, batch_of(responses, advantages, old_log_probs=old, **fields), mini_batch=8 // minibatches
    )
    after = verl_worker.parameters(worker)
    for name, value in verl_worker.our_update(policy, ours, hp, minibatches=minibatches).items():
        torch.testing.assert_close(after[name], value, rtol=0, atol=1e-5)
    assert max(float((after[name] - before[name]).abs().max()) for name in after) > 0.1


def test_old_log_probs_at_the_scale_make_the_first_ratio_1(model, responses):
    hp = hyperparameters()
    _, ours, _ = verl_worker.our_rollout(model, responses, hp)
    fields, _ = era_fields(ours, hp)
    divergences = []
    for old_fields in (fields, {}):
        worker = worker_of(model)
        old = infer(worker, batch_of(responses, **old_fields))
        metrics = verl_worker.train(worker, batch_of(responses, old_log_probs=old, **fields))
        divergences.append(np.mean(metrics["actor/ppo_kl"]))
    assert divergences[0] == 0.0
    assert abs(divergences[1]) > 0.1


def test_with_lora_only_the_adapter_is_trained_by_the_scaled_policy(model, responses):
    hp, mask = hyperparameters(top_k=5), responses.response_mask
    _, ours, _ = verl_worker.our_rollout(model, responses, hp)
    fields, advantages = era_fields(ours, hp)
    worker = worker_of(model, packed=True, lora_rank=4)
    old = infer(worker, batch_of(responses, advantages, **fields))
    torch.testing.assert_close(padded(old)[mask], ours.old[mask], rtol=0, atol=1e-5)  # the adapter begins at 0
    before = verl_worker.parameters(worker)
    metrics = verl_worker.train(worker, batch_of(responses, advantages, old_log_probs=old, **fields))
    assert np.mean(metrics["actor/ppo_kl"]) == 0.0
    after = verl_worker.parameters(worker)
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert moved == {name for name in after if "lora_B" in name}


def test_in_bfloat16_the_update_is_as_near_to_ours_as_it_is_without_era(model, responses):
    errors = []
    for thresholds in ({"omega_low": 0.0, "omega_high": float("inf")}, {"top_k": 5}):
        hp = hyperparameters(**thresholds)
        policy, ours, _ = verl_worker.our_rollout(model, responses, hp)
        fields, advantages = era_fields(ours, hp)
        worker = worker_of(model, packed=True, precision="bf16")
        before = verl_worker.parameters(worker)
        _, entropies = infer(worker, batch_of(responses), entropy=True)
        mask = responses.response_mask
        assert (padded(entropies) - ours.entropies)[mask].abs().max() < 0.05
        old = infer(worker, batch_of(responses, advantages, **fields))
        metrics = verl_worker.train(worker, batch_of(responses, advantages, old_log_probs=old, **fields))
        assert np.mean(metrics["actor/ppo_kl"]) == 0.0
        after, expected = verl_worker.parameters(worker), verl_worker.our_update(policy, ours, hp)
        moved, should = (
            torch.cat([(values[name] - before[name]).flatten() for name in before]) for values in (after, expected)
        )
        errors.append(float((moved - should).norm() / should.norm()))
    assert errors[0] < 0.05
    assert errors[1] < 2 * errors[0]


def ranks(rank, port, model, path):
    """One of two processes: each has half of the batch."""
    verl_worker.start(rank, 2, port)
    responses, hp = verl_worker.responses_of(), hyperparameters(top_k=5)
    _, ours, _ = verl_worker.our_rollout(model, responses, hp)
    fields, advantages = era_fields(ours, hp)
    half, worker = slice(4 * rank, 4 * rank + 4), worker_of(model)
    own, fields = responses.rows(half), {name: value[half] for name, value in fields.items()}
    old = infer(worker, batch_of(own, advantages[half], **fields))
    metrics = verl_worker.train(worker, batch_of(own, advantages[half], old_log_probs=old, **fields))
    parameters = verl_worker.parameters(worker)
    if rank == 0:
        torch.save({"parameters": parameters, "ppo_kl": np.mean(metrics["actor/ppo_kl"])}, path)
    torch.distributed.destroy_process_group()


def test_two_processes_give_the_update_of_one(model, responses, tmp_path):
    torch.multiprocessing.spawn(ranks, (verl_worker.free_port(), model, tmp_path / "done.pt"), nprocs=2)
    done = torch.load(tmp_path / "done.pt", weights_only=False)
    hp = hyperparameters(top_k=5)
    policy, ours, _ = verl_worker.our_rollout(model, responses, hp)
    for name, value in verl_worker.our_update(policy, ours, hp).items():
        torch.testing.assert_close(done["parameters"][name], value, rtol=0, atol=1e-5)
    assert done["ppo_kl"] == 0.0


# --- trainer, with Ray and TransferQueue -----------------------------------------------------------------


KEYS = [f"{i // 4}_{i % 4}_0" for i in range(8)]
"""verl's keys: prompt, response, part."""


@pytest.fixture(scope="module")
def queue(tmp_path_factory):
    import ray
    import transfer_queue

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    settings = config_of("transfer_queue.backend.SimpleStorage.num_data_storage_units=1").transfer_queue
    transfer_queue.init(settings)
    yield transfer_queue
    transfer_queue.close()
    ray.shutdown()


@pytest.fixture
def step(model, responses, queue, tmp_path):
    """A trainer before its first step, its worker and a rollout in the queue whose rewards are the advantages."""
    from tensordict import NonTensorStack

    trainers = []

    def start(*settings, verl=(), sampler=0.0):
        """`sampler` is what the sampler's log-prob of one token has more than the policy's."""
        trainer = ERATrainer(
            config_of(
                f"actor_rollout_ref.model.path={model}",
                "actor_rollout_ref.actor.strategy=fsdp2",
                "actor_rollout_ref.actor.ppo_mini_batch_size=8",
                "actor_rollout_ref.rollout.n=1",
                f"actor_rollout_ref.rollout.temperature={TEMPERATURE}",
                "data.train_batch_size=8",
                f"trainer.default_local_dir={tmp_path}",
                *(f"+trainer.v1.era.{setting}" for setting in settings),
                *verl,
            )
        )
        worker = worker_of(model)
        trainer.actor_rollout_wg = types.SimpleNamespace(
            compute_log_prob=worker.infer_batch, update_actor=worker.train_mini_batch
        )
        trainer.global_steps = 1
        names = ("input_ids", "position_ids", "prompts", "responses", "response_mask", "loss_mask")
        rollout = batch_of(responses)
        fields = rollout.select(*names)
        rewards = [torch.zeros(n) for n in RESPONSES]
        for reward, advantage in zip(rewards, ADVANTAGES, strict=True):
            reward[-1] = advantage
        fields["rm_scores"] = verl_worker.nested(rewards)
        fields["rollout_log_probs"] = infer(worker, rollout)
        fields["rollout_log_probs"].values()[0] += sampler
        fields["uid"] = NonTensorStack(*(key[0] for key in KEYS))
        batch = queue.kv_batch_put(KEYS, "train", fields=fields, tags=[{"seq_len": 1} for _ in KEYS])
        trainers.append((trainer, worker))
        return trainer, worker, trainer._compute_old_log_prob(batch, {})

    yield start
    queue.kv_clear(keys=KEYS, partition_id="train")


def test_a_step_of_the_trainer_is_one_of_ours(model, responses, queue, step):
    settings = {"omega_low": verl_worker.OMEGA_LOW, "omega_high": verl_worker.OMEGA_HIGH, "top_k": 5}
    trainer, worker, batch = step(*(f"{name}={value}" for name, value in settings.items()))
    before, metrics = queue.kv_batch_get(KEYS, "train"), {}
    batch = trainer._compute_advantage(batch, metrics)
    after = queue.kv_batch_get(KEYS, "train")

    mask = responses.response_mask
    centred = ADVANTAGES.view(2, 4) - ADVANTAGES.view(2, 4).mean(1, keepdim=True)
    advantages = (centred / (ADVANTAGES.view(2, 4).std(1, keepdim=True) + 1e-6)).flatten()
    torch.testing.assert_close(padded(after["advantages"]), advantages[:, None] * mask)
    hp = hyperparameters(top_k=5)
    policy, ours, logged = verl_worker.our_rollout(model, responses, hp, advantages)
    assert set(after["era_scale"].tolist()) == {0.5, 1.0, 2.0}
    assert torch.equal(after["era_scale"], ours.scale[:, 0])
    assert torch.equal(after["era_top_k"], torch.where(advantages > 0, 5, 0))
    torch.testing.assert_close(padded(after["old_log_probs"])[mask], ours.old[mask], rtol=0, atol=1e-5)
    assert (padded(after["old_log_probs"]) - padded(before["old_log_probs"])).abs().max() > 0.5
    for name in ("entropy", "rm_scores", "rollout_log_probs", "response_mask"):
        assert torch.equal(padded(after[name]), padded(before[name])), name
    names = {name for name in logged if "entropy" in name} | {"omega_low", "omega_high", "scaled_share"}
    assert {name: metrics[name] for name in names} == pytest.approx(
        {name: logged[name] for name in names}, abs=1e-5
    )
    assert metrics["rollout_corr/kl"] == pytest.approx(0.0, abs=1e-6), "sampler and policy, both unscaled"

    trainer._update_actor(batch, metrics)
    assert metrics["actor/ppo_kl"] == 0.0
    found = verl_worker.parameters(worker)
    for name, value in verl_worker.our_update(policy, ours, hp).items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-5)


def test_weights_and_rejections_against_the_sampler_are_those_of_the_unscaled_policy(responses, queue, step):
    correction = "algorithm.rollout_correction"
    verl = (f"{correction}.rollout_is=token", f"{correction}.rollout_rs=token_k1")
    verl = (*verl, f'{correction}.rollout_rs_threshold="2.0"')
    trainer, _, batch = step("omega_low=3.0", "omega_high=3.15", verl=verl, sampler=2.0)
    before, metrics = queue.kv_batch_get(KEYS, "train"), {}
    trainer._compute_advantage(batch, metrics)
    after = queue.kv_batch_get(KEYS, "train")
    assert set(after["era_scale"].tolist()) == {0.5, 1.0, 2.0}
    difference = padded(before["response_mask"]) - padded(after["response_mask"])
    assert difference.nonzero().tolist() == [[0, 0]], "one token is rejected"
    weights = (padded(before["old_log_probs"]) - padded(before["rollout_log_probs"])).exp()
    kept = padded(after["response_mask"]).bool()
    torch.testing.assert_close(padded(after["rollout_is_weights"])[kept], weights[kept])
    of_responses = reference.response_entropy(padded(before["entropy"]), responses.response_mask)
    assert metrics["response_entropy"] == pytest.approx(of_responses.mean(), abs=1e-5), "of all tokens"


def test_thresholds_that_are_never_met_give_verls_own_step(model, queue, step):
    from verl.trainer.ppo.v1 import PPOTrainerSync

    trained = []
    for compute in (ERATrainer._compute_advantage, PPOTrainerSync._compute_advantage):
        trainer, worker, batch = step("omega_low=0", "omega_high=inf")
        trainer._update_actor(compute(trainer, batch, {}), {})
        trained.append(verl_worker.parameters(worker))
        queue.kv_clear(keys=KEYS, partition_id="train")
    for name, value in trained[0].items():
        assert torch.equal(value, trained[1][name]), name


def test_the_second_stage_has_its_thresholds_and_no_filter(queue, step):
    trainer, _, batch = step("omega_low=3.0", "top_k=5", "second_stage_steps=1", "omega_low_2=0.1")
    trainer.global_steps, metrics = 2, {}
    trainer._compute_advantage(batch, metrics)
    data = queue.kv_batch_get(KEYS, "train", ["era_scale", "era_top_k"])
    assert data["era_scale"].tolist() == [1.0] * 8
    assert data["era_top_k"].tolist() == [0] * 8
    assert metrics["omega_low"] == 0.1
    assert "omega_high" not in metrics


def test_advantages_are_divided_only_if_asked(queue, step):
    found = {}
    for divided in ("False", "True"):
        trainer, _, batch = step("omega_low=3.0", "omega_high=3.15", f"scale_advantages={divided}")
        trainer._compute_advantage(batch, {})
        found[divided] = queue.kv_batch_get(KEYS, "train", ["advantages", "era_scale"])
        queue.kv_clear(keys=KEYS, partition_id="train")
    scale = found["True"]["era_scale"][:, None]
    torch.testing.assert_close(padded(found["True"]["advantages"]) * scale, padded(found["False"]["advantages"]))


def test_both_signs_of_advantages_are_scaled_if_asked(queue, step):
    trainer, _, batch = step("omega_low=3.0", "omega_high=3.15", "era_signs=both")
    trainer._compute_advantage(batch, {})
    data = queue.kv_batch_get(KEYS, "train", ["era_scale", "advantages", "response_mask", "entropy"])
    entropy, mask, advantages = (padded(data[name]).numpy() for name in ("entropy", "response_mask", "advantages"))
    of_responses = reference.response_entropy(entropy, mask)
    expected = reference.era_token_scale(of_responses, advantages[:, :1], 3.0, 3.15, signs="both")[:, 0]
    assert data["era_scale"].tolist() == expected.tolist()
    assert (expected[advantages[:, 0] < 0] != 1).any()


FLOOR = {"min_entropy": 3.3, "gain": 1.0, "integral_gain": 0.4, "min_entropy_decay": 0.1}
"""Above the entropies of the responses."""


def era_floor(step, **settings):
    """The beginning of a run of four steps, and our controller of the same settings."""
    trainer, worker, batch = step("head=era-floor", *(f"{name}={value}" for name, value in settings.items()))
    trainer.total_training_steps = 4
    return trainer, worker, batch, Controller(LanguageConfig(head="era-floor", **settings))


@pytest.mark.parametrize("scale", [1.0, 1.7])
def test_a_step_of_era_floor_is_one_of_ours(model, responses, queue, step, scale):
    trainer, worker, batch, controller = era_floor(step, **FLOOR)
    trainer.controller.decision = controller.decision = scale
    metrics = {}
    batch = trainer._compute_advantage(batch, metrics)
    data, mask = queue.kv_batch_get(KEYS, "train"), responses.response_mask
    advantages = padded(data["advantages"])[:, 0]
    hp = hyperparameters(**controller.changes(3.3))
    policy, ours, _ = verl_worker.our_rollout(model, responses, hp, advantages)
    torch.testing.assert_close(data["era_scale"], torch.where(advantages > 0, scale, 1.0))
    torch.testing.assert_close(padded(data["old_log_probs"])[mask], ours.old[mask], rtol=0, atol=1e-5)
    assert metrics["scaled_share"] == (0 if scale == 1 else float((advantages > 0).double().mean()))
    before = verl_worker.parameters(worker)
    trainer._update_actor(batch, metrics)
    assert metrics["actor/ppo_kl"] == 0.0
    found = verl_worker.parameters(worker)
    for name, value in verl_worker.our_update(policy, ours, hp).items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-5)
    assert max(float((found[name] - before[name]).abs().max()) for name in found) > 0.1


@pytest.mark.parametrize("min_entropy", [3.3, "auto"])
def test_the_controller_of_several_steps_is_that_of_our_trainer_and_is_resumed(
    queue, step, tmp_path, monkeypatch, min_entropy
):
    settings = FLOOR | {"min_entropy": min_entropy} | ({"margin": 1.0} if min_entropy == "auto" else {})
    trainer, _, batch, controller = era_floor(step, **settings)
    base = era_trainer.PPOTrainerSync
    monkeypatch.setattr(base, "_save_checkpoint", lambda self: None)
    monkeypatch.setattr(base, "_load_checkpoint", lambda self: setattr(self, "global_steps", 2))
    for i in range(4):
        if i == 2:
            trainer._save_checkpoint()
            resumed = ERATrainer(trainer.config)
            resumed._load_checkpoint()
            assert resumed.controller.state == trainer.controller.state
            resumed.actor_rollout_wg, resumed.total_training_steps = trainer.actor_rollout_wg, 4
            trainer = resumed
        trainer.global_steps, metrics = i + 1, {}
        trainer._compute_advantage(batch, metrics)
        if i == 0:
            controller.begin(metrics)
        used, floor = controller.decision, controller.floor(i / 4)
        expected = controller.observe(metrics, floor)
        assert {name: metrics[name] for name in expected} == expected
        assert queue.kv_batch_get(KEYS, "train", ["era_scale"])["era_scale"].max() == pytest.approx(used)
        assert (used > 1) == (i > 0)


def test_automatic_thresholds_follow_from_the_first_rollout_and_are_resumed(step, tmp_path, monkeypatch):
    trainer, _, batch = step()
    assert (trainer.trainer_mode, type(trainer.replay_buffer).__name__) == ("sync", "ReplayBuffer")
    metrics = {}
    trainer._compute_advantage(batch, metrics)
    assert metrics["omega_low"] == pytest.approx(0.75 * metrics["response_entropy"])

    base = era_trainer.PPOTrainerSync
    monkeypatch.setattr(base, "_save_checkpoint", lambda self: None)
    monkeypatch.setattr(base, "_load_checkpoint", lambda self: setattr(self, "global_steps", 1))
    trainer._save_checkpoint()
    resumed = ERATrainer(trainer.config)
    resumed._load_checkpoint()
    assert resumed.initial_entropy == trainer.initial_entropy
    assert json.loads((tmp_path / "global_step_1" / "era.json").read_text()) == {
        "initial_entropy": trainer.initial_entropy,
        "controller": None,
    }


def test_a_floor_above_that_of_a_uniform_choice_is_refused(monkeypatch):
    """As soon as the tokenizer is known, before any worker starts."""
    known = lambda self: setattr(self, "tokenizer", range(50))  # noqa: E731
    monkeypatch.setattr(era_trainer.PPOTrainerSync, "_init_tokenizer", known)
    trainer = object.__new__(ERATrainer)
    trainer.controller = Controller(LanguageConfig(head="era-floor", min_entropy=9.0))
    with pytest.raises(ValueError, match=r"min_entropy=9 nats must be below ln 50 = 3\.912"):
        trainer._init_tokenizer()


def test_padding_has_no_part_in_the_metrics(queue, step):
    trainer, _, batch = step("omega_low=3.0", "omega_high=3.15")
    batch.tags[-1]["is_padding"] = True
    queue.kv_batch_put(KEYS, "train", tags=batch.tags)
    metrics = {}
    trainer._compute_advantage(batch, metrics)
    entropies = queue.kv_batch_get(KEYS, "train", ["entropy", "response_mask"])
    mask = padded(entropies["response_mask"])[:-1].bool()
    of_responses = reference.response_entropy(padded(entropies["entropy"])[:-1].numpy(), mask.numpy())
    assert metrics["response_entropy"] == pytest.approx(of_responses.mean(), abs=1e-5)


def test_advantages_of_tokens_are_refused():
    mask = torch.tensor([[1, 1, 0], [0, 0, 0]])
    same = era_trainer.per_response(torch.tensor([[0.5, 0.5, 9.0], [1.0, 2.0, 3.0]]), mask)
    assert same.tolist() == [0.5, 0.0]
    with pytest.raises(
        ValueError, match="tokens of a response have different advantages, and ERA's scale belongs"
    ):
        era_trainer.per_response(torch.tensor([[0.5, 0.4, 0.0], [0.0, 0.0, 0.0]]), mask)


# --- a whole run, with a plain rollout -------------------------------------------------------------------


RUN = """
algorithm.adv_estimator=grpo data.train_batch_size=4 data.max_prompt_length=32 data.max_response_length=8
data.dataloader_num_workers=0 +actor_rollout_ref.model.override_config.attn_implementation=eager
actor_rollout_ref.model.use_remove_padding=False actor_rollout_ref.model.enable_gradient_checkpointing=False
actor_rollout_ref.actor.strategy=fsdp2 actor_rollout_ref.actor.ppo_mini_batch_size=4
actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=4 actor_rollout_ref.actor.use_torch_compile=False
actor_rollout_ref.actor.fsdp_config.use_torch_compile=False actor_rollout_ref.actor.fsdp_config.model_dtype=fp32
+actor_rollout_ref.actor.fsdp_config.mixed_precision.param_dtype=fp32
+actor_rollout_ref.actor.fsdp_config.mixed_precision.reduce_dtype=fp32
+actor_rollout_ref.actor.fsdp_config.mixed_precision.buffer_dtype=fp32 actor_rollout_ref.actor.optim.lr=0.01
actor_rollout_ref.rollout.name=plain actor_rollout_ref.rollout.n=4 actor_rollout_ref.rollout.agent.num_workers=1
actor_rollout_ref.rollout.tensor_model_parallel_size=1 actor_rollout_ref.rollout.n_gpus_per_node=1
actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=4 actor_rollout_ref.rollout.calculate_log_probs=True
reward.num_workers=1 trainer.v1.trainer_mode=era
trainer.device=cpu trainer.n_gpus_per_node=1 trainer.logger=[file] trainer.val_before_train=False
trainer.save_freq=1 transfer_queue.backend.SimpleStorage.num_data_storage_units=1
ray_kwargs.ray_init.num_cpus=12 +ray_kwargs.ray_init.num_gpus=1 +ray_kwargs.ray_init.include_dashboard=False
"""


def save_llama(path):
    """A Llama of no size that chats by single characters."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    words = tiny_language.tokenizer(tiny_language.CHAT)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    ends = {"bos_token_id": None, "eos_token_id": words.eos_token_id, "pad_token_id": words.pad_token_id}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(words), max_position_embeddings=256, **sizes, **ends))
    with torch.no_grad():
        model.lm_head.weight.mul_(15.0)
    model.save_pretrained(path)
    words.save_pretrained(path)


def run(path, steps, *era):
    """Metrics of the last step of `verl.trainer.main_ppo`, which goes on where there is a checkpoint."""
    tests = Path(__file__).parent
    settings = [
        *RUN.split(),
        *(f"+trainer.v1.era.{setting}" for setting in era),
        f"actor_rollout_ref.model.path={path}/model",
        f"data.train_files={path}/problems.jsonl",
        f"data.val_files={path}/problems.jsonl",
        f"reward.custom_reward_function.path={tests}/verl_rollout.py",
        f"trainer.default_local_dir={path}/checkpoints",
        f"trainer.total_training_steps={steps}",
    ]
    variables = {
        "PYTHONPATH": str(tests),
        "VERL_PLATFORM": "cpu",
        "CUDA_VISIBLE_DEVICES": "0",  # Ray is to count one, which need not be there
        "VERL_USE_EXTERNAL_MODULES": "verl_cpu,verl_rollout",
        "VERL_FILE_LOGGER_PATH": f"{path}/metrics.jsonl",
    }
    done = process(sys.executable, "-m", "verl.trainer.main_ppo", *settings, cwd=path, **variables)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    last = json.loads((path / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["step"] == steps
    return last["data"]


def save_sums(path):
    """A model and problems for it."""
    save_llama(path / "model")
    rows = [
        {
            "data_source": "sums",
            "prompt": [{"role": "user", "content": f"{i}+{i}="}],
            "reward_model": {"style": "rule", "ground_truth": str(2 * i)},
            "extra_info": {"index": i},
        }
        for i in range(8)
    ]
    tiny_language.write_rows(path / "problems.jsonl", rows)


@pytest.mark.timeout(1200)
def test_a_run_of_verl_with_a_plain_rollout(tmp_path):
    save_sums(tmp_path)
    first, second = (run(tmp_path, steps, "omega_high=3.5") for steps in (1, 2))
    for metrics in (first, second):
        assert metrics["actor/ppo_kl"] == 0.0
        assert metrics["rollout_corr/kl"] == pytest.approx(0.0, abs=1e-6)
        assert metrics["token_entropy"] == pytest.approx(metrics["actor/entropy"], abs=1e-5)
        assert metrics["omega_high"] == 3.5
    assert first["omega_low"] == pytest.approx(0.75 * first["response_entropy"])
    assert second["omega_low"] == first["omega_low"], "the threshold is that of the first rollout"
    assert second["response_entropy"] != first["response_entropy"]
    assert max(first["scaled_share"], second["scaled_share"]) > 0


@pytest.mark.timeout(1200)
def test_a_run_of_verl_with_era_floor(tmp_path):
    """The second step is made by a resumed run; it has the scale that our controller decides after the first."""
    save_sums(tmp_path)
    settings = {"margin": 2.0, "gain": 0.3, "min_entropy_decay": 0.5}
    era = ["head=era-floor", *(f"{name}={value}" for name, value in settings.items())]
    first, second = (run(tmp_path, steps, *era) for steps in (1, 2))
    controller = Controller(LanguageConfig(head="era-floor", **settings))
    controller.begin(first)
    for metrics, progress in ((first, 0.0), (second, 0.5)):
        expected = controller.observe(metrics, controller.floor(progress))
        assert {name: metrics[name] for name in expected} == pytest.approx(expected)
    assert first["scale"] == 1.0 < second["scale"]
    assert second["scaled_share"] > 0
    assert second["actor/ppo_kl"] == 0.0


# --- scripts ---------------------------------------------------------------------------------------------


ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("script", "recipe", "arm"),
    [("dapo_7b", "dapo-7b", "era"), ("math_1.5b", "math-1.5b", "era"), ("gspo_7b", "dapo-7b", "gspo-era")],
)
def test_scripts_are_the_recipes_in_verls_words(script, recipe, arm):
    from omegaconf import OmegaConf
    from verl.utils.config import validate_config

    path = ROOT / "examples" / "verl" / f"{script}.sh"
    assert "# NOT RUN." in path.read_text()
    # Hydra composes the config, prints it and stops.
    done = process("bash", str(path), "--cfg", "job", PYTHON=sys.executable)
    assert done.returncode == 0, done.stderr
    config = OmegaConf.create(done.stdout[done.stdout.index("actor_rollout_ref:") :])
    OmegaConf.resolve(config)
    era = read(config)
    validate_config(config, use_reference_policy=False, use_critic=False)

    toml = tomllib.loads((ROOT / f"src/entropyfloor/recipes/language/{recipe}.toml").read_text())
    arms = toml["arms"]
    expected = toml["settings"] | arms.get(arms[arm].get("like"), {}) | arms[arm] | toml["scales"]["paper"]
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    assert actor.policy_loss.loss_mode == {"grpo": "vanilla", "gspo": "gspo"}[expected.get("loss", "grpo")]
    found = {
        "prompts": config.data.train_batch_size,
        "samples": rollout.n,
        "max_prompt": config.data.max_prompt_length,
        "max_new_tokens": config.data.max_response_length,
        "clip_low": actor.clip_ratio_low,
        "clip_high": actor.clip_ratio_high,
        "learning_rate": actor.optim.lr,
        "dynamic_sampling": config.algorithm.filter_groups.enable,
        "steps": config.trainer.total_training_steps,
        "omega_low": era.omega_low,
        "omega_high": era.omega_high,
        "top_k": era.top_k,
    }
    assert found == {name: expected[name] for name in found}
    assert actor.ppo_mini_batch_size * expected.get("minibatches", 1) == expected["prompts"]
    if "second_stage" in expected:
        assert era.second_stage_steps == expected["second_stage"] * expected["steps"]
        assert (era.omega_low_2, era.omega_high_2) == (expected["omega_low_2"], expected["omega_high_2"])
    else:
        assert era.second_stage_steps is None
