"""A language model as small as they come, a few problems to ask it, and settings of a run that takes no time."""

import json
from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

import entropyfloor.language.model  # noqa: F401  before transformers, so that a broken torchvision does no harm
from entropyfloor.language.config import LanguageConfig
from entropyfloor.language.prepare import complete
from entropyfloor.language.tasks import Problem
from entropyfloor.language.tasks.base import Generated
from entropyfloor.language.trainer import Trainer

from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM  # isort: skip

CHARACTERS = [chr(i) for i in range(32, 127)] + ["\n"]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHAT = "{% for turn in messages %}[{{ turn.content }}]{% endfor %}{% if add_generation_prompt %}>{% endif %}"


def tokenizer(chat=None):
    """One token for each character."""
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *CHARACTERS])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token=" "))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    inner.decoder = decoders.Fuse()
    inner.add_special_tokens(SPECIAL)
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        eos_token=SPECIAL[0],
        pad_token=SPECIAL[0],
        chat_template=chat,
        clean_up_tokenization_spaces=False,
    )


def save(path, *, seed=0, context=256, chat=None, scale=1.0):
    """A Qwen2 with random weights in `path`; a larger scale makes it surer of itself."""
    torch.manual_seed(seed)
    words = tokenizer(chat)
    config = Qwen2Config(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        bos_token_id=None,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    model = Qwen2ForCausalLM(config)
    with torch.no_grad():
        model.lm_head.weight.mul_(scale)
    model.save_pretrained(path)
    words.save_pretrained(path)
    return path


def write_rows(path, rows):
    """A jsonl file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


PROBLEMS = [(f"{a}+{b}", str(a + b)) for a, b in ((1, 1), (2, 3), (4, 4), (5, 1), (3, 6), (2, 5))]


def taught(path, *, steps=150, context=64):
    r"""A model that has learned to answer `PROBLEMS`, asked as `1+1=`, with `\boxed{2}`; all but the last."""
    save(path, context=context)
    torch.manual_seed(0)
    words = tokenizer()
    model = Qwen2ForCausalLM.from_pretrained(path)
    texts = [f"{question}=\\boxed{{{answer}}}" for question, answer in PROBLEMS[:-1]]
    tokens = torch.tensor([[*words(text)["input_ids"], words.eos_token_id] for text in texts])
    labels = tokens.clone()
    labels[:, :4] = -100  # the questions
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(steps):
        optimiser.zero_grad()
        model(input_ids=tokens, labels=labels).loss.backward()
        optimiser.step()
    model.save_pretrained(path)
    return path


# --- runs ------------------------------------------------------------------------------------------------


TINY = {
    "layers": 1,
    "hidden": 16,
    "heads": 2,
    "warm_start_steps": 3,
    "warm_start_batch": 8,
    "steps": 2,
    "prompts": 4,
    "samples": 4,
    "eval_problems": 4,
    "eval_samples": 4,
    "eval_every": 2,
    "checkpoint_every": 2,
    "threads": 1,
}


@dataclass(frozen=True)
class Evens(Generated):
    """Say an even digit first: a task that a model of no size learns in no time."""

    name: str = "evens"
    alphabet: str = "0123456789?"
    max_prompt: int = 2
    max_new_tokens: int = 2

    def problems(self, split, count, seed, *, or_fewer=False):
        digits = np.random.default_rng(seed).integers(0, 10, count)
        return [Problem(f"{digit}?", "", {}) for digit in digits]

    def solution(self, problem, rng, *, wander=False):
        return str(rng.integers(0, 10))

    def reward(self, problem, response):
        return float(response[:1] in tuple("02468"))


def config(tmp_path, **settings):
    """Settings of a run in `tmp_path`."""
    found = {**TINY, "out": str(tmp_path / "run"), **settings}
    unused = set() if found["warm_start_steps"] else {"warm_start_batch"}
    if found.get("model", "tiny") != "tiny":
        unused |= {"layers", "hidden", "heads"}
    return LanguageConfig(**{name: value for name, value in found.items() if name not in unused})


def trainer(tmp_path, **settings):
    """The trainer of a run in `tmp_path`."""
    return Trainer(*complete(config(tmp_path, **settings)))
