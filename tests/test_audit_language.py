"""Audits of language models: of runs, and of any other, in its own responses or in given ones."""

import json

import numpy as np
import pytest
import torch

import reference
import tiny_language
from entropyfloor import audit
from entropyfloor.audit import language
from entropyfloor.cli import main
from entropyfloor.extras import shortened
from entropyfloor.language.config import LanguageConfig
from entropyfloor.language.model import files
from entropyfloor.language.sampling.decoding import decode
from entropyfloor.language.train import train
from entropyfloor.torch.seeding import derived
from tiny_families import MAMBA, build

PROMPTS = ["What is 2+2?", "Say hello."]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Directory of a model that is fairly sure of itself."""
    path = tmp_path_factory.mktemp("model") / "tiny"
    tiny_language.save(path, scale=60.0, chat=tiny_language.CHAT)
    return path


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(PROMPTS) + "\n\n")
    return path


def test_each_line_of_a_text_is_a_prompt(tmp_path):
    """A byte order mark is no part of the first, and no other separator ends one."""
    (tmp_path / "p.txt").write_bytes("\ufeffone\r\ntwo\u2028parts\n \nthree\x0c".encode())
    assert [row["prompt"] for row in language._rows(tmp_path / "p.txt")] == ["one", "two\u2028parts", "three\x0c"]


def rollouts(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def token_entropies(model, prompt, response):
    """Entropies of the tokens of a response by a plain forward pass, in float64."""
    net, tokenizer = files.load(str(model))
    ids = [tokenizer(text, add_special_tokens=False).input_ids for text in (prompt, response)]
    with torch.no_grad():
        logits = net(torch.tensor([[*ids[0], *ids[1]]])).logits[0, len(ids[0]) - 1 : -1].double().numpy()
    return reference.categorical_entropy(logits)


def test_given_responses_are_measured_as_the_model_reads_them(model, tmp_path):
    rows = [
        {"prompt": "What is 2+2?", "response": "four, I would say"},
        {"prompt": "Hi", "response": "hello there, how are you? fine."},
    ]
    file = rollouts(tmp_path / "rollouts.jsonl", rows)
    samples = language.language_model(str(model), rollouts=file, batch_size=2)
    entropies = [token_entropies(model, row["prompt"], row["response"]) for row in rows]
    expected = [reference.response_entropy(e[None], np.ones_like(e)[None])[0] for e in entropies]
    assert samples.entropy == pytest.approx(np.array(expected), abs=1e-4)
    assert samples.further[0].values == pytest.approx(np.concatenate(entropies), abs=1e-4)
    assert samples.numbers["token_entropy"] == pytest.approx(np.concatenate(entropies).mean(), abs=1e-4)
    assert samples.numbers["response_length/eval"] == np.mean([len(each) for each in entropies])
    tokenizer = files.load(str(model))[1]
    tokens = tokenizer(rows[0]["response"], add_special_tokens=False).input_ids
    word = tokenizer.decode(tokens[int(entropies[0].argmax())])
    assert samples.labels[0] == f"What is 2+2? ⟶ four, I would say [most uncertain token: {word!r}]"


def family_of(path, family, **options):
    """Directory of a model of a family that is fairly sure of itself."""
    words = tiny_language.tokenizer()
    net = build(family, vocab_size=len(words), **options)
    with torch.no_grad():
        net.get_output_embeddings().weight.mul_(50)
    net.save_pretrained(path)
    words.save_pretrained(path)
    return str(path)


SCALED = [
    ("granite", {"logits_scaling": 8.0}),
    ("cohere", {"logit_scale": 0.25}),
    ("falcon_h1", {**MAMBA, "lm_head_multiplier": 0.5}),
]


@pytest.mark.parametrize(("family", "options"), SCALED, ids=[family for family, _ in SCALED])
def test_a_model_that_scales_its_logits_is_sampled_and_measured_with_the_scale(family, options, prompts, tmp_path):
    model = family_of(tmp_path / family, family, **options)
    rows = [{"prompt": "Hi", "response": "hello there"}]
    samples = language.language_model(model, rollouts=rollouts(tmp_path / "r.jsonl", rows), top_fraction=1.0)
    assert samples.entropy == pytest.approx(token_entropies(model, *rows[0].values()).mean(), abs=1e-4)
    net, tokenizer = files.load(model)
    tokens, length = tokenizer(PROMPTS, add_special_tokens=False).input_ids, 12
    seeds = [derived(0, i) for i in range(2)]
    written = decode(net.eval(), tokens, limits=[length] * 2, seeds=seeds, ends=[net.config.eos_token_id])
    sampled = language.language_model(model, prompts=prompts, max_new_tokens=length)
    assert len(sampled.further[0].values) == sum(len(row.tokens) for row in written)
    for label, row in zip(sampled.labels, written, strict=True):
        text = tokenizer.decode(row.tokens, skip_special_tokens=True)
        assert label.partition(" ⟶ ")[2].startswith(shortened(text))


def test_a_model_whose_logits_would_be_others_is_refused(tmp_path):
    model = family_of(tmp_path / "bert", "bert")
    file = rollouts(tmp_path / "r.jsonl", [{"prompt": "Hi", "response": "hello"}])
    with pytest.raises(ValueError, match=r"BertLMHeadModel cannot be measured here: .* Give a model of another"):
        language.language_model(model, rollouts=file)


def test_entropies_are_at_the_temperature(model, tmp_path):
    file = rollouts(tmp_path / "r.jsonl", [{"prompt": "Hi", "response": "hello"}])
    cold, warm = (language.language_model(str(model), rollouts=file, temperature=t).entropy[0] for t in (0.5, 2.0))
    assert cold < warm


def test_sampled_responses_are_those_of_the_seed(model, prompts):
    options = {"prompts": prompts, "samples": 2, "max_new_tokens": 8}
    samples, again, other = (language.language_model(str(model), seed=seed, **options) for seed in (0, 0, 1))
    assert len(samples.entropy) == 4
    assert samples.labels == again.labels != other.labels
    assert [label.partition(" ⟶ ")[0] for label in samples.labels] == [p for p in PROMPTS for _ in range(2)]
    # Its own responses, read as somebody else's, have the same entropies: the end of sequence is not among them.
    assert samples.numbers["ended"] == 0.0


def test_a_sampled_response_has_the_entropy_of_the_same_text_that_is_read(model, prompts, tmp_path):
    samples = language.language_model(str(model), prompts=prompts, max_new_tokens=8)
    texts = [label.partition(" ⟶ ")[2].partition(" [most")[0] for label in samples.labels]
    usable = [i for i, text in enumerate(texts) if len(text) == 8]  # spaces may be folded in a label
    assert usable
    rows = [{"prompt": PROMPTS[i], "completion": texts[i]} for i in usable]
    read = language.language_model(str(model), rollouts=rollouts(tmp_path / "r.jsonl", rows))
    assert read.entropy == pytest.approx(samples.entropy[usable], abs=1e-4)


def test_chats_are_rendered_by_the_template(model, tmp_path):
    turns = [{"role": "user", "content": "Hi"}]
    chat = rollouts(tmp_path / "chat.jsonl", [{"prompt": turns, "response": "hello"}])
    plain = rollouts(tmp_path / "plain.jsonl", [{"prompt": "[Hi]>", "response": "hello"}])
    rendered = language.language_model(str(model), rollouts=chat, template="chat")
    assert rendered.entropy == pytest.approx(language.language_model(str(model), rollouts=plain).entropy, abs=1e-6)


def test_a_response_may_be_a_message(model, tmp_path):
    reply = [{"role": "assistant", "content": " hello"}]
    chat = rollouts(tmp_path / "chat.jsonl", [{"prompt": "Hi", "completion": reply}])
    plain = rollouts(tmp_path / "plain.jsonl", [{"prompt": "Hi", "completion": " hello"}])
    found, expected = (language.language_model(str(model), rollouts=file) for file in (chat, plain))
    assert found.labels == expected.labels
    assert found.entropy.tolist() == expected.entropy.tolist()
    two = rollouts(tmp_path / "two.jsonl", [{"prompt": "Hi", "completion": [{"role": "user", "content": "a"}]}])
    with pytest.raises(ValueError, match="a response has messages of user: one of the assistant is read"):
        language.language_model(str(model), rollouts=two)


def test_numbers_that_cannot_be_written_are_printed(model, prompts, tmp_path, capsys):
    (tmp_path / "out" / "audit.json").mkdir(parents=True)
    words = ["audit", "language", str(model), "--prompts", str(prompts), "--max-new-tokens", "8", "--limit", "1"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 3
    out, err = capsys.readouterr()
    assert "Realised entropy of responses" in out
    assert "audit.json" in err


def test_the_command_compares_with_a_floor(model, prompts, tmp_path, capsys):
    words = ["audit", "language", str(model), "--prompts", str(prompts), "--max-new-tokens", "8"]
    assert main([*words, "--floor", "4.5", "--out", str(tmp_path / "out")]) == 1
    out, err = capsys.readouterr()
    assert "H_resp" in out
    assert "the floor of 4.5 nats is broken" in err
    content = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert content["token_entropy"]["samples"] == 16
    assert content["places"] == "responses"
    assert main([*words, "--limit", "1", "--floor", "0", "--out", str(tmp_path / "out")]) == 0
    assert "holds in all of 1 responses" in capsys.readouterr().out


def test_a_run_answers_held_out_problems(tmp_path):
    small = {"layers": 1, "hidden": 16, "heads": 2, "warm_start_steps": 2, "steps": 1, "prompts": 2, "samples": 2}
    run = train(LanguageConfig(head="era", eval_problems=2, eval_samples=2, out=str(tmp_path / "run"), **small))
    samples = language.run(run, problems=3, samples=2)
    assert len(samples.entropy) == 6
    assert samples.floor is None
    assert audit.summarise(samples).holds is None
    refused = {
        "problems": (0, "problems=0 must be at least 1"),
        "samples": (0, "samples=0 must be at least 1"),
        "temperature": (-1.0, "eval_temperature=-1"),
    }
    for name, (value, message) in refused.items():
        with pytest.raises(ValueError, match=message):
            language.run(run, **{name: value})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("r.jsonl", '{"prompt": "a"}\n', "no column for the responses"),
        ("r.jsonl", '{"prompt": "a", "response": null}\n', "no text in its column response for the responses"),
        (
            "r.jsonl",
            '{"prompt": "a", "response": "b"}\n{"prompt": "a", "response": ""}\n',
            "1 of the rollouts have an empty prompt or response, the first in row 2",
        ),
        ("r.jsonl", "not json\n", "line 1 is damaged"),
        ("r.txt", "\n", "has no prompts"),
        (
            "r.jsonl",
            json.dumps({"prompt": "a" * 200, "response": "b" * 100}),
            "in row 1 of the rollouts have 300 tokens, and the context 256",
        ),
    ],
)
def test_rollouts_that_cannot_be_used_are_refused(name, content, message, model, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        language.language_model(str(model), rollouts=tmp_path / name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 0}, "samples=0 must be at least 1"),
        ({"limit": 0}, "limit=0 must be at least 1"),
        ({"temperature": 0.0}, "temperature=0.0 must be above 0"),
        ({"max_new_tokens": 300}, "do not fit into the context of 256"),
        ({"template": "nonsense"}, "template 'nonsense' must be one of"),
    ],
)
def test_options_that_cannot_be_used_are_refused(options, message, model, prompts):
    with pytest.raises(ValueError, match=message):
        language.language_model(str(model), prompts=prompts, **options)


def test_what_only_samples_is_refused_beside_rollouts(model, tmp_path):
    (tmp_path / "r.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
    with pytest.raises(ValueError, match="samples=3, seed=1 would be ignored: with --rollouts"):
        language.language_model(str(model), rollouts=tmp_path / "r.jsonl", samples=3, seed=1)


def test_a_response_of_one_token_has_no_others(model, tmp_path):
    (tmp_path / "r.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
    numbers = language.language_model(str(model), rollouts=tmp_path / "r.jsonl").numbers
    assert numbers["token_entropy/top"] == numbers["token_entropy"]
    assert "token_entropy/bottom" not in numbers
