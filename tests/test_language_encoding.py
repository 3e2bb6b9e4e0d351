"""Prompts as tokens: what a tokenizer adds where it belongs, chats, and tokens that a model has."""

import pytest
from tokenizers.processors import TemplateProcessing

import tiny_language
from entropyfloor.language import encoding
from entropyfloor.language.encoding import encode, render, turn_end
from entropyfloor.language.model.files import load
from entropyfloor.language.sampling.rollout import sample
from entropyfloor.language.warm_start import imitation_loss

BEGIN, END = "<|im_start|>", "<|endoftext|>"
STRICT = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"


def greedy_tokenizer(single):
    """One that puts special tokens around a text, as `single` says."""
    tokenizer = tiny_language.tokenizer()
    tokenizer.add_special_tokens({"bos_token": BEGIN})
    tokens = [(BEGIN, 1), (END, 0)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=single, special_tokens=tokens)
    return tokenizer


@pytest.mark.parametrize(
    ("single", "prompt", "around"),
    [
        ("$A", "12", ([], [])),
        ("$A", f"{BEGIN}12{END}", ([1], [0])),  # of its own
        ("$A", f"{BEGIN}{BEGIN}12", ([1, 1], [])),
        (f"{BEGIN} $A", "12", ([1], [])),
        (f"{BEGIN} $A", f"{BEGIN}12", ([1], [])),
        (f"{BEGIN} $A {END}", "12", ([1], [])),
        (f"{BEGIN} $A {END}", f"{BEGIN}12", ([1], [])),
        (f"{BEGIN} $A {END}", f"12{END}", ([1], [0])),
        (f"$A {END}", "12", ([], [])),
    ],
)
def test_one_beginning_and_no_end(single, prompt, around):
    tokenizer = greedy_tokenizer(single)
    inside = tokenizer("12", add_special_tokens=False).input_ids
    before, behind = around
    assert encode(tokenizer, [prompt, "7"])[0] == [*before, *inside, *behind]
    assert encode(tokenizer, [prompt], special=False) == [tokenizer(prompt, add_special_tokens=False).input_ids]


def test_what_is_dropped_is_said_once(caplog):
    encoding._warn_once.cache_clear()
    tokenizer = greedy_tokenizer(f"{BEGIN} $A {END}")
    for _ in range(3):
        encode(tokenizer, ["12"])
    (line,) = caplog.messages
    assert BEGIN in line
    assert END in line
    caplog.clear()
    encode(greedy_tokenizer(f"{BEGIN} $A"), ["12"])
    assert not caplog.messages


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model whose tokenizer puts a beginning before, and an end behind a text."""
    path = tiny_language.save(tmp_path_factory.mktemp("model"))
    greedy_tokenizer(f"{BEGIN} $A {END}").save_pretrained(path)
    return load(str(path))


def test_rollouts_and_warm_starts_read_the_same(model):
    language_model, tokenizer = model
    drawn = sample(language_model, tokenizer, ["12", f"{BEGIN}12"], seed=0, max_new_tokens=3, temperature=0.0)
    width = drawn.tokens.shape[1] - drawn.response_mask.shape[1]
    inside = tokenizer("12", add_special_tokens=False).input_ids
    assert drawn.tokens[:, :width].tolist() == [[1, *inside]] * 2
    assert drawn.texts[0] == drawn.texts[1]
    losses = [imitation_loss(*model, [prompt], ["34"]) for prompt in ("12", f"{BEGIN}12")]
    assert losses[0] == losses[1]


def test_tokens_outside_of_the_embedding_are_refused(model):
    language_model, tokenizer = model
    tokenizer.add_tokens("<more>")
    with pytest.raises(ValueError, match=r"token 99 \('<more>'\) of the prompt '1<more>' is outside .* has 99"):
        sample(language_model, tokenizer, ["1<more>"], seed=0, max_new_tokens=3)
    with pytest.raises(ValueError, match="token 99"):
        imitation_loss(language_model, tokenizer, ["1"], ["<more>"])


def test_chats_are_rendered_or_refused():
    tokenizer = tiny_language.tokenizer(STRICT + tiny_language.CHAT)
    turns = [{"role": role, "content": text} for role, text in (("user", "a"), ("assistant", "b"), ("user", "c"))]
    assert render(tokenizer, turns) == "[a][b][c]>"
    assert turn_end(tokenizer) == set()
    with pytest.raises(ValueError, match=r"refuses the turns system, user \(no system\)"):
        render(tokenizer, [{"role": "system", "content": "x"}, turns[0]])
    with pytest.raises(ValueError, match="has no chat template"):
        render(tiny_language.tokenizer(), turns)
