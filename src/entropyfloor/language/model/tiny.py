"""Small language models from nothing: the Qwen2 architecture with random weights, reading single characters."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from entropyfloor.language.model.files import generation_config

PAD, END = "<pad>", "<end>"


def tiny(
    alphabet: Sequence[str], *, layers: int, hidden: int, heads: int, length: int
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A small model of the Qwen2 architecture with random weights, and its tokenizer of single characters.

    Args:
        alphabet: Characters that the tokenizer knows.
        layers: Number of transformer layers.
        hidden: Width of the model; the inner width of a layer is three times that.
        heads: Number of attention heads; must divide `hidden` into even parts.
        length: Length of the longest sequence, in tokens.

    Raises:
        ValueError: `heads` does not divide `hidden` into even parts.
    """
    if hidden % (2 * heads):
        raise ValueError(f"hidden={hidden} must be a multiple of twice the number of heads, {2 * heads}")
    tokenizer = characters(alphabet)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=length,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen2ForCausalLM(config)
    model.generation_config = generation_config(tokenizer, {int(tokenizer.eos_token_id)})
    return model, tokenizer


def characters(alphabet: Sequence[str]) -> PreTrainedTokenizerBase:
    """A tokenizer with one token for each character, one for padding and one for the end.

    It is a byte-level tokenizer without merges: `AutoTokenizer` reads the files of any tokenizer beside a model of
    this architecture as one of Qwen2, which is byte-level with merges.

    Args:
        alphabet: Different single ASCII characters.

    Raises:
        ValueError: `alphabet` has something else, or a character twice.
    """
    if len(set(alphabet)) < len(alphabet) or any(len(c) != 1 or not c.isascii() for c in alphabet):
        raise ValueError(f"alphabet={list(alphabet)} must be different single ASCII characters")
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    letters = [bytes_.pre_tokenize_str(character)[0][0] for character in alphabet]  # a space is written Ġ
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate((PAD, END, *letters))}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = bytes_, decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=PAD,
        eos_token=END,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
