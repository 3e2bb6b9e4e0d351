"""Use an installation as its user would: what each of its extras brings, on the smallest of its tasks.

    python tests/smoke.py control report

No argument stands for the package without extras. It needs neither pytest nor the sources, and runs in a directory
of its own. `tests/release.sh` calls it in empty environments.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

CONTROL = "--hidden 8 --batch-size 8 --steps 60 --random-steps 20 --updates-per-step 1"
CONTROL += " --eval-every 60 --eval-episodes 1 --log-every 20 --checkpoint-every 60"
PENDULUM = f"--env gym/Pendulum-v1 {CONTROL}"
LANGUAGE = "--layers 1 --hidden 16 --heads 2 --warm-start-steps 2 --steps 1 --prompts 2 --samples 2"
LANGUAGE += " --eval-problems 2 --eval-samples 2"
COMMANDS = {
    "control": [
        f"train control --agent sac-era-exact {PENDULUM} --out runs/control",
        "evaluate runs/control --episodes 1",
        "reproduce control/sac-gym --dry-run",
    ],
    "envpool": [
        f"train control --agent sac-era-exact --env gym/Hopper-v4 --backend envpool {CONTROL} --out runs/envpool"
    ],
    "playground": [
        f"train control --agent sac-era-exact --env playground/CartpoleBalance {CONTROL} --out runs/playground"
    ],
    "vision": [
        "train vision --model test_resnet --dataset digits --min-entropy 0.6 --epochs 1 --out runs/vision",
        "evaluate runs/vision",
        "export runs/vision --out vision.safetensors",
    ],
    "language": [
        f"train language --head era {LANGUAGE} --out runs/language",
        "evaluate runs/language --problems 2 --samples 2",
        "judge 1/2 0.5",
    ],
    "onnx": [f"train control --agent sac-era {PENDULUM} --out runs/onnx", "export runs/onnx --out policy.onnx"],
    "control,report": ["audit runs/control --episodes 1"],
    "vision,report": ["audit runs/vision"],
    "language,report": ["audit runs/language --problems 2 --samples 2"],
    "report": ["reproduce", "report runs"],
    "runs": ["archive runs --out all.runs.zip", "watch all.runs.zip --once"],
}
"""Commands of `entropyfloor` by the extras that they need; the later ones read what the others wrote."""

RUN = """
from pathlib import Path
from entropyfloor.runs import Run
config = {"domain": "control", "env": "gym/Pendulum-v1", "agent": "sac-era", "seed": 0}
run = Run.create(Path("runs/EXTRA"), config)
with run.recording(TRACK):
    for step in range(0, 30, 10):
        run.log(step, {"return": float(step), "realised_entropy": -0.5, "floor": -0.5})
"""
PROGRAMS = {
    "torch": """
import torch
from entropyfloor.torch.nn import ERALinear
layer = ERALinear(4, 10, min_entropy=0.6)
torch.nn.functional.cross_entropy(layer(torch.randn(8, 4)), torch.arange(8)).backward()
assert layer.weight.grad.isfinite().all()
""",
    "jax": """
import jax
from entropyfloor.jax.nn import ERAGaussian
head, raw = ERAGaussian(3, target_entropy=-1.5), jax.numpy.zeros((8, 3))
assert jax.grad(lambda raw: head.apply({}, raw)[:, 0].sum())(raw).any()
from flax.nnx import Rngs, jit
from entropyfloor.jax.nnx import ERALinear
layer = ERALinear(4, 10, min_entropy=0.6, rngs=Rngs(0))
assert jit(lambda layer, x: layer(x))(layer, jax.numpy.zeros((2, 4))).shape == (2, 10)
""",
    "keras": """
import importlib.util, os
os.environ["KERAS_BACKEND"] = "torch" if importlib.util.find_spec("torch") else "jax"
import keras, numpy
from entropyfloor.integrations.keras import ERASoftmax
assert ERASoftmax(5, min_entropy=0.6)(numpy.zeros((2, 5), "float32")).shape == (2, 5)
""",
    "runs": RUN,
    "report": RUN,
    "tensorboard": RUN + 'assert list(run.path.glob("events*"))',
    "trackio": RUN + 'assert list(Path("tracked-by-trackio").glob("*.db"))',
    "wandb": RUN + 'assert list(run.path.glob("wandb/*"))',
    "ray": """
from pathlib import Path
from entropyfloor.experiments.engines import ray
ray.run([], Path.cwd(), 1, lambda *_: True)
""",
    "slurm": "import entropyfloor.experiments.engines.slurm, submitit",
    "server": "import entropyfloor.language.sampling.engines.server, openai",
    "reasoning": """
from entropyfloor.language.tasks import ReasoningGym
from entropyfloor.language.tasks.reasoning_gym import dataset_of
row = dataset_of("chain_sum", "{}")[0]
assert dataset_of("chain_sum", "{}").score_answer(row["answer"], row) == 1.0
assert ReasoningGym("chain_sum", '{"size": 300}')
""",
    "smollm2": "import entropyfloor.language.model, gguf",
    "sb3": """
from stable_baselines3 import SAC
from entropyfloor.integrations.sb3 import ERASACPolicy
policy = {"target_entropy": "-A/2"}
SAC(ERASACPolicy, "Pendulum-v1", ent_coef=0.0, learning_starts=10, policy_kwargs=policy).learn(12)
""",
    "sbx": """
from functools import partial
from sbx import SAC
from entropyfloor.integrations.sbx import ERAActor
policy = {"actor_class": partial(ERAActor, target_entropy="-A/2"), "net_arch": [8]}
SAC("MlpPolicy", "Pendulum-v1", ent_coef=0.0, learning_starts=10, policy_kwargs=policy).learn(12)
""",
    "rsl": """
import torch
from rsl_rl.models import MLPModel
from rsl_rl.runners import OnPolicyRunner
from tensordict import TensorDict
floor = {"class_name": "entropyfloor.integrations.rsl_rl:ERAGaussianDistribution", "target_entropy": "-A/2"}
seen = TensorDict({"policy": torch.randn(8, 4)}, batch_size=[8])
actor = MLPModel(seen, {"actor": ["policy"]}, "actor", 3, [16], distribution_cfg=floor)
actor.get_output_log_prob(actor(seen, stochastic_output=True)).sum().backward()
assert actor.output_entropy.min() > -1.5 - 1e-4
""",
    "skrl": """
import gymnasium, torch
from skrl.agents.torch.ppo import PPO
from skrl.models.torch import Model
from entropyfloor.integrations.skrl import ERAGaussianMixin
class Policy(ERAGaussianMixin, Model):
    def __init__(self, space):
        Model.__init__(self, observation_space=space, action_space=space, device="cpu")
        ERAGaussianMixin.__init__(self, target_entropy="-A/2")
        self.net = torch.nn.Linear(3, 6)
    def compute(self, inputs, role):
        mean, raw = self.net(inputs["observations"]).chunk(2, -1)
        return mean, {"log_std": raw}
policy = Policy(gymnasium.spaces.Box(-1.0, 1.0, (3,)))
policy.act({"observations": torch.randn(8, 3)}, role="policy")
assert policy.get_entropy().min() > -1.5 - 1e-4
""",
    "torchrl": """
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torchrl.modules import ProbabilisticActor
from torchrl.objectives import SACLoss
from entropyfloor.integrations.torchrl import ERAParamExtractor
extractor = ERAParamExtractor(action_dim=3, target_entropy="-A/2")
network = torch.nn.Sequential(torch.nn.Linear(4, 6), extractor)
module = TensorDictModule(network, ["observation"], ["loc", "scale"])
actor = ProbabilisticActor(module, ["loc", "scale"], distribution_class=extractor.distribution_class)
assert actor(TensorDict({"observation": torch.randn(8, 4)}, batch_size=[8]))["action"].abs().max() <= 1
""",
    "trl": """
from tokenizers import Tokenizer, models, pre_tokenizers
from entropyfloor.integrations.trl import ERAGRPOConfig, ERAGRPOTrainer
from datasets import Dataset
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM
inner = Tokenizer(models.WordLevel({"<end>": 0, **{chr(i): i for i in range(1, 60)}}, unk_token="!"))
inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
words = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>", pad_token="<end>")
model = Qwen2ForCausalLM(Qwen2Config(vocab_size=60, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
    num_attention_heads=2, num_key_value_heads=1, bos_token_id=None, eos_token_id=0, pad_token_id=0))
model.save_pretrained("tiny")
words.save_pretrained("tiny")
args = ERAGRPOConfig(output_dir="trl", use_cpu=True, bf16=False, max_steps=1, num_generations=4, report_to="none",
    per_device_train_batch_size=4, max_completion_length=4, save_strategy="no", omega_low=0.45, omega_high=3.0)
data = Dataset.from_dict({"prompt": ["1+1=", "2+3="]})
score = lambda completions, **_: [float(len(set(text))) for text in completions]
ERAGRPOTrainer("tiny", score, args, train_dataset=data, processing_class=words).train()
""",
}
"""Programs by extra; `EXTRA` is its name, `TRACK` the tracker of that name."""
TRACKERS = ("trackio", "wandb")
OFFLINE = {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline", "TRACKIO_DIR": "tracked-by-trackio"}


def call(*command: str) -> str:
    """Output of a command, which must succeed."""
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **OFFLINE})
    if done.returncode:
        sys.exit(f"exit status {done.returncode}: {done.stderr or done.stdout}")
    return done.stdout


def entropyfloor(command: str) -> str:
    """Output of a command of `entropyfloor`."""
    print(f"entropyfloor {command}", flush=True)
    return call(str(Path(sys.executable).with_name("entropyfloor")), *command.split())


def main(extras: list[str]) -> None:
    """Examine the installation, and use what its extras bring."""
    findings = json.loads(entropyfloor("doctor --json"))
    for extra in extras:
        if lacking := findings["extras"][extra]:
            sys.exit(f"the extra {extra} lacks {', '.join(lacking)}")
        if findings["parts"].get(f"entropyfloor.{extra}", "ready") != "ready":
            sys.exit(f"{extra}: {findings['parts'][f'entropyfloor.{extra}']}")
    versions, measured = findings["versions"], findings["backends"]
    for extra in PROGRAMS:
        if extra in extras:
            print(f"python: {extra}", flush=True)
            track = repr(extra) if extra in TRACKERS else ""
            call(sys.executable, "-P", "-c", PROGRAMS[extra].replace("EXTRA", extra).replace("TRACK", track))
    for needed, commands in COMMANDS.items():
        for command in commands if {*needed.split(",")} <= {*extras} else ():
            entropyfloor(command)
    shown = {name: versions[name] for name in ("python", "numpy", "torch", "jax", "flax") if name in versions}
    print(f"passed: {extras or 'no extra'} with {shown}; floors measured in {list(measured) or 'no backend'}")


if __name__ == "__main__":
    os.chdir(tempfile.mkdtemp())
    main(sys.argv[1:])
