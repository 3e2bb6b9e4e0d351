"""Speed of the two halves of a training step of a language model, in float32 and in bfloat16 (mixed precision).

    python benchmarks/language.py
    python benchmarks/language.py --parts decoding --models tiny --rounds 50

decoding: tokens that the loop of training and evaluation samples, beside the same loop with the cache of
    transformers, which copies keys and values at each token, and beside `generate` of transformers, where
    responses have no seeds of their own: as it is, with a static cache, and with `torch.compile` on top, which
    needs a C++ compiler. All sample from the whole distribution, and no token ends a response.
update: forward and backward pass of the log-probabilities of responses, and a step of AdamW.

tiny: the model of `train language --model tiny`; 256 responses to 16 problems are a rollout with default settings.
tiny-long: the same model with prompts of 400 tokens.
llama: a Llama of 135 million parameters with random weights (the shape of SmolLM2-135M).

Sides take turns, in a new random order in each round; what counts is CPU time, on one thread. Needs
`pip install 'entropyfloor[language]'`.
"""

import os

os.environ.update(OMP_NUM_THREADS="1")

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple
from unittest.mock import patch

import torch

from entropyfloor.language.config import LanguageConfig
from entropyfloor.language.model.forward import Policy, autocast
from entropyfloor.language.prepare import build_model, complete
from entropyfloor.language.sampling.decoding import decode
from entropyfloor.language.sampling.rollout import Responses
from entropyfloor.language.update import Hyperparameters, head_arguments
from entropyfloor.runs.settings import Precision
from entropyfloor.torch import functional as F

# isort: split
from transformers import (  # after our package, see torchvision_shim
    CompileConfig,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
)

from pairs import Side, compare, header

PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")


class Setup(NamedTuple):
    """A model, and the sizes of its work."""

    model: Any
    prompts: int
    samples: int
    """Responses to each prompt."""
    lengths: tuple[int, int]
    """Tokens of the shortest and of the longest prompt."""
    new: int
    """Tokens of each response."""
    learned: int
    """Responses in an update."""


def tiny() -> Setup:
    """The trainer's own model."""
    config, task = complete(LanguageConfig())
    model, _ = build_model(config, task)
    rows = config.prompts * config.samples
    return Setup(
        model, config.prompts, config.samples, (8, task.max_prompt), int(config.max_new_tokens or 0), rows
    )


def tiny_long() -> Setup:
    """The trainer's own model with long prompts."""
    return tiny()._replace(prompts=2, lengths=(400, 400), new=48, learned=32)


def llama() -> Setup:
    """The shape of SmolLM2-135M."""
    config = LlamaConfig(
        vocab_size=49_152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    )
    return Setup(LlamaForCausalLM(config), 16, 1, (20, 60), 32, 4)


MODELS: dict[str, Callable[[], Setup]] = {"tiny": tiny, "tiny-long": tiny_long, "llama": llama}


def decoding(name: str, setup: Setup, rounds: int) -> None:
    """Tokens per second of both loops."""
    model, rows, longest = setup.model, setup.prompts * setup.samples, setup.lengths[1]
    lengths = torch.linspace(*setup.lengths, setup.prompts).int().repeat_interleave(setup.samples)
    mask = (torch.arange(longest) >= longest - lengths[:, None]).long()
    vocabulary = model.get_input_embeddings().weight.shape[0]
    tokens = torch.randint(3, vocabulary, (setup.prompts, longest)).repeat_interleave(setup.samples, 0) * mask
    prompts = [row[-length:] for row, length in zip(tokens.tolist(), lengths.tolist(), strict=True)]
    limits, seeds = [setup.new] * rows, range(rows)

    def ours(precision: Precision) -> None:
        with autocast(model.device, precision):
            decode(Policy(model), prompts, limits=limits, seeds=seeds, ends=())

    def copying(precision: Precision) -> None:
        with patch("entropyfloor.language.sampling.decoding.grow_in_place"):
            ours(precision)

    def generate(precision: Precision, **options: Any) -> None:
        with autocast(model.device, precision):
            model.generate(
                tokens,
                attention_mask=mask,
                max_new_tokens=setup.new,
                do_sample=True,
                top_k=0,
                pad_token_id=0,
                **options,
            )

    loops: dict[str, Callable[[Precision], None]] = {"ours": ours, "copying": copying, "generate": generate}
    sides = {f"{name} {p}": partial(loop, p) for name, loop in loops.items() for p in PRECISIONS}
    pairs = [(f"{other} {p}", f"ours {p}") for p in PRECISIONS for other in ("copying", "generate")]
    # Under autocast a static cache is refused: its buffers are float32, and new keys bfloat16.
    compilation = CompileConfig(mode="default")
    compilation._compile_all_devices = True  # by default `generate` compiles on accelerators only
    for loop, options in {"static": {}, "compiled": {"compile_config": compilation}}.items():
        sides[loop] = partial(generate, "fp32", cache_implementation="static", **options)
        pairs += [(loop, "ours fp32")]
    pairs += [("ours fp32", "ours bf16")]
    title = f"decoding, {name}, {setup.prompts} prompts × {setup.samples} responses of {setup.new} tokens"
    turns = {name: Side(loop, rows * setup.new) for name, loop in sides.items()}
    compare(title, "tokens", turns, pairs, rounds)


def update(name: str, setup: Setup, rounds: int) -> None:
    """Responses per second of an update, at a learning rate that changes nothing."""
    model, length = setup.model, setup.lengths[1] + setup.new
    vocabulary = model.get_input_embeddings().weight.shape[0]
    tokens = torch.randint(3, vocabulary, (setup.learned, length))
    mask = torch.ones_like(tokens, dtype=torch.bool)
    ended = mask[:, 0]
    responses = Responses(tokens, mask, mask[:, -setup.new :], [""] * setup.learned, ended)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-12, weight_decay=0.0)

    def step(precision: Precision) -> None:
        log_probs, _ = F.token_log_probs(**head_arguments(model, responses, Hyperparameters(precision=precision)))
        log_probs.mean().backward()
        optimiser.step()
        optimiser.zero_grad()

    sides = {precision: Side(partial(step, precision), setup.learned) for precision in PRECISIONS}
    title = f"update, {name}, {setup.learned} responses of {setup.new} tokens, {length} with their prompts"
    compare(title, "responses", sides, [("fp32", "bf16")], rounds)


PARTS = {"decoding": decoding, "update": update}


def main() -> None:
    """Print a table for each part and model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10, help="turns of each side")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(header("torch", "transformers"), flush=True)
    for name in args.models:
        torch.manual_seed(0)
        setup = MODELS[name]()
        setup.model.eval().generation_config = GenerationConfig()
        for part in args.parts:
            PARTS[part](name, setup, args.rounds)


if __name__ == "__main__":
    main()
