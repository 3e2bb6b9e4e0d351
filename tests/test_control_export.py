"""A policy as one ONNX file is the policy."""

import numpy as np
import pytest

from control import save_untrained
from entropyfloor.cli import main
from entropyfloor.control import load_policy
from entropyfloor.control.export import export

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("jax2onnx")

PARALLEL = {"num_envs": 1, "critic_hidden": 8, "replay_capacity": 100}
RUNS = {
    "exact": {"agent": "sac-era-exact", "env": "gym/Reacher-v4"},
    "floor, 6 dimensions": {"agent": "sac-era", "head": "era-floor", "env": "gym/HalfCheetah-v4"},
    "sac": {"agent": "sac", "env": "gym/Reacher-v4"},
    "era-batch": {
        "agent": "sac-era",
        "head": "era-batch",
        "residual_entropy": "learned",
        "env": "gym/Reacher-v4",
    },
    "projection": {"agent": "sac", "head": "projection", "env": "gym/Reacher-v4"},
    "mnse": {"agent": "mnse", "env": "gym/Reacher-v4"},
    "simba": {"agent": "sac-era-exact", "env": "gym/Reacher-v4", "networks": "simba", "critic_hidden": 8},
    "fastsac-era-exact": {"agent": "fastsac-era-exact", "env": "gym/Reacher-v4", **PARALLEL},
    "fasttd3": {"agent": "fasttd3", "env": "gym/Reacher-v4", **PARALLEL},
    "shares": {"agent": "fastsac", "head": "shares", "env": "gym/Reacher-v4", **PARALLEL},
    "tdmpc2-era-exact": {
        "agent": "tdmpc2-era-exact",
        "env": "gym/Reacher-v4",
        "encoder_hidden": 8,
        "latent": 8,
        "critics": 2,
        "simplex": 4,
    },
    "ppo": {"agent": "ppo", "env": "gym/Pendulum-v1"},
    "ppo-era": {"agent": "ppo-era", "env": "gym/Reacher-v4"},
    "discrete": {"agent": "ppo", "env": "gym/CartPole-v1"},
    "discrete, era": {"agent": "ppo-era-exact", "env": "gym/CartPole-v1"},
}


@pytest.mark.slow  # to import the exporter takes some seconds
@pytest.mark.parametrize("name", RUNS)
def test_the_file_is_the_policy_for_any_batch(name, tmp_path, capsys):
    save_untrained(tmp_path / "run", **RUNS[name])
    out = tmp_path / "files" / "policy.onnx"
    assert main(["export", str(tmp_path / "run"), "--out", str(out)]) == 0
    told = capsys.readouterr().out
    assert f"InferenceSession({str(out)!r})" in told
    assert ("the policy prior, without the planner" in told) == name.startswith("tdmpc2")
    session, policy = onnxruntime.InferenceSession(str(out)), load_policy(tmp_path / "run")
    names = [output.name for output in session.get_outputs()]
    assert names == ["action", *(["logits"] if policy.discrete else ["loc", "scale"]), "entropy"]
    metadata = session.get_modelmeta().custom_metadata_map
    assert metadata.get("floor") == (None if policy.floor is None else str(policy.floor))
    assert metadata["head"] == policy.agent.policy.head
    assert ("acts" in metadata) == name.startswith("tdmpc2")
    for batch in (1, 7):
        observation = np.random.default_rng(batch).normal(size=(batch, policy.observation_dim))
        observation = observation.astype(np.float32)
        values = dict(zip(names, session.run(None, {"observation": observation}), strict=True))
        np.testing.assert_allclose(values["action"], policy(observation), rtol=0, atol=5e-6)
        assert values["action"].dtype == policy(observation).dtype
        acting = policy.distribution(policy.actor, policy.normalise(observation))
        # One float32 step of the mean is eps / σ deviations: 1e-4 of them for the σ of 0.001 of `fasttd3`.
        step = np.finfo(np.float32).eps / np.min(acting.scale) if name == "fasttd3" else 0.0
        np.testing.assert_allclose(values["entropy"], policy.entropy(observation), rtol=1e-6, atol=2e-5 + step)
        for parameter in names[1:-1]:
            np.testing.assert_allclose(values[parameter], getattr(acting, parameter), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["exact", "simba", "ppo-era", "discrete, era"])
def test_the_file_of_a_run_in_bfloat16_computes_in_float32(name, tmp_path):
    for precision in ("fp32", "bf16"):
        save_untrained(tmp_path / precision, **RUNS[name], precision=precision)
        export(tmp_path / precision, tmp_path / f"{precision}.onnx")
    sessions = [onnxruntime.InferenceSession(str(tmp_path / f"{name}.onnx")) for name in ("fp32", "bf16")]
    policy = load_policy(tmp_path / "bf16")
    observation = np.random.default_rng(0).normal(size=(7, policy.observation_dim)).astype(np.float32)
    exact, found = (session.run(None, {"observation": observation}) for session in sessions)
    for one, other in zip(exact, found, strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_allclose(found[-1], policy.entropy(observation), rtol=0.05, atol=0.05)


@pytest.mark.slow
def test_observations_far_from_zero_are_normalised_as_in_float64(tmp_path):
    trainer = save_untrained(tmp_path / "run", "ppo", env="gym/Pendulum-v1", step=1)
    moments = trainer.collectors[0].normalise.moments
    moments.mean, moments.variance = np.array([1e4 + 1 / 3, -77.7, 0.1]), np.array([1e-4, 3.0, 1e-8])
    trainer.step = 2
    from entropyfloor.runs import Run

    trainer.save([Run.open(tmp_path / "run")])
    export(tmp_path / "run", tmp_path / "policy.onnx")
    observation = (moments.mean + np.random.default_rng(0).normal(size=(50, 3)) * 0.01).astype(np.float32)
    session = onnxruntime.InferenceSession(str(tmp_path / "policy.onnx"))
    action, *_ = session.run(None, {"observation": observation})
    np.testing.assert_allclose(action, load_policy(tmp_path / "run")(observation), rtol=0, atol=2e-6)


def test_a_file_of_another_kind_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"policy\.pt must end in \.onnx"):
        export(tmp_path, tmp_path / "policy.pt")
