"""Keys and values that grow in place are those of transformers' own cache."""

import pytest
import torch

from entropyfloor.language.model import cache
from entropyfloor.language.model.cache import BufferedLayer, grow_in_place
from entropyfloor.language.sampling.decoding import Batch
from test_language_decoding import PROMPTS, model_of

from transformers.cache_utils import DynamicLayer  # isort: skip  behind entropyfloor.language.model


def layers_of(model):
    return Batch(model, PROMPTS)._cache.layers


@pytest.mark.parametrize("kind", ["rotary", "learned positions", "sliding window", "convolution"])
def test_logits_are_those_of_the_cache_of_transformers(kind, monkeypatch):
    monkeypatch.setattr(cache, "SPARE", 2)
    model = model_of(kind)
    ours = Batch(model, PROMPTS)
    with monkeypatch.context() as without:
        without.setattr("entropyfloor.language.sampling.decoding.grow_in_place", lambda cache: None)
        theirs = Batch(model, PROMPTS)
    for step in range(8):
        if step == 5:  # rows that end leave, and one is repeated
            ours.take([3, 0, 0])
            theirs.take([3, 0, 0])
        rows = len(ours.logits)
        for batch in (ours, theirs):
            batch.append([4 + step] * rows, [True] * rows)
        assert torch.equal(ours.logits, theirs.logits)
    for layer, expected in zip(ours._cache.layers, theirs._cache.layers, strict=True):
        if isinstance(layer, BufferedLayer):
            assert layer.get_seq_length() == expected.get_seq_length() == 15
            assert torch.equal(layer.keys, expected.keys)
            assert torch.equal(layer.values, expected.values)


def test_new_tokens_are_written_into_the_same_memory(monkeypatch):
    monkeypatch.setattr(cache, "SPARE", 3)
    batch = Batch(model_of("rotary"), PROMPTS)
    places = []
    for _ in range(9):
        batch.append([4] * 5, [True] * 5)
        layer = batch._cache.layers[0]
        places.append((layer.keys.untyped_storage().data_ptr(), layer.values.untyped_storage().data_ptr()))
    assert len(set(places[:4])) == len(set(places[4:8])) == 1  # a buffer has room for the token and three more
    assert len(set(places)) == 3
    assert layer.keys.shape == (5, 2, max(map(len, PROMPTS)) + 9, 8)


CHANGES = {
    "selected rows": ("batch_select_indices", torch.tensor([2])),
    "repeated rows": ("batch_repeat_interleave", 2),
    "fewer tokens": ("crop", -1),
    "reset": ("reset",),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_transformers_does_with_a_layer_is_respected(name):
    method, *arguments = CHANGES[name]
    filled = DynamicLayer()
    filled.update(*torch.randn(2, 4, 2, 3, 8))
    ours, theirs = BufferedLayer(filled), filled
    tokens = torch.randn(2, 4, 2, 1, 8)
    for layer in (ours, theirs):
        layer.update(*tokens)
        getattr(layer, method)(*arguments)
    rows = len(theirs.keys) if theirs.is_initialized else 5
    for _ in range(3):
        tokens = torch.randn(2, rows, 2, 1, 8)
        results = [layer.update(*tokens) for layer in (ours, theirs)]
        for one, other in zip(*results, strict=True):
            assert torch.equal(one, other)


def test_only_layers_with_full_attention_change():
    kinds = {kind: [type(layer) for layer in layers_of(model_of(kind))] for kind in ("rotary", "sliding window")}
    assert kinds["rotary"] == [BufferedLayer] * 2
    assert not {BufferedLayer, DynamicLayer} & set(kinds["sliding window"])
    assert sum(kind is BufferedLayer for kind in map(type, layers_of(model_of("convolution")))) == 1
    grow_in_place(object())  # a cache of another kind has no layers
