"""Engines: a real, tiny model through transformers; a real server that speaks OpenAI's protocol."""

import json
import sys
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import GenerationConfig

import tiny_language
from entropyfloor.language.model.files import load
from entropyfloor.language.sampling.decoding import Written
from entropyfloor.language.sampling.engines import make_engine
from entropyfloor.language.sampling.engines.base import Request, Sampling, Template, template
from entropyfloor.language.sampling.engines.server import NEUTRAL, Server
from entropyfloor.language.sampling.engines.transformers import Transformers

INSTRUCTION = "Say it."
STOP = "\n\nQuestion:"
GREEDY = Sampling(0.0, 1.0, 24)
DRAWN = Sampling(1.0, 1.0, 24)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(tiny_language.save(tmp_path_factory.mktemp("model"), scale=20.0, chat=tiny_language.CHAT))


@pytest.fixture(scope="module")
def engine(model):
    return Transformers(model, template("question"), batch_size=4)


def requests_of(engine, n=7):
    prompts = [engine.prompt(f"What is {i} + {'7' * (i + 1)}?", INSTRUCTION) for i in range(n)]
    return [Request(prompt, seed) for seed, prompt in enumerate(prompts)]


def answers(engine, requests, sampling):
    """Responses in the order of their requests, each of which has one."""
    found = sorted(engine.generate(requests, sampling))
    assert [place for place, _ in found] == list(range(len(requests)))
    return [response for _, response in found]


def reference(engine, prompt, limit):
    """Greedy tokens, one whole forward pass each: no cache, no batch, no padding."""
    tokens = engine.encode(prompt)
    written = []
    while len(written) < limit:
        logits = engine._model(input_ids=torch.tensor([tokens + written])).logits[0, -1]
        if int(logits.argmax()) in engine.ends:
            break
        written.append(int(logits.argmax()))
    return written


# --- templates -------------------------------------------------------------------------------------------


def test_templates_put_question_and_instruction_where_they_belong():
    assert template("qwen-math").fill("1+1?", "Box it.") == (
        "<|im_start|>system\nBox it.<|im_end|>\n<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert template("question").fill("1+1?", "Box it.") == "Question:\n1+1?\nBox it.\n\nAnswer:\n"
    assert template("none").fill("1+1?", "Box it.") == "1+1?"


def test_a_question_with_braces_is_left_alone():
    question = r"What is \frac{1}{2}, {instruction} or {question}?"
    assert template("none").fill(question, "Box it.") == question
    assert template("question").fill(question, r"\boxed{}").count(question) == 1


def test_ones_own_template_is_a_text_or_a_file(tmp_path):
    assert template("Q {question}\n").fill("1?", "") == "Q 1?\n"
    file = tmp_path / "mine.txt"
    file.write_text("{instruction} {question} A:")
    assert template(str(file)) == Template("mine.txt", "{instruction} {question} A:")
    file.write_text("nothing to fill")
    with pytest.raises(ValueError, match=r"no \{question\} in it"):
        template(str(file))
    with pytest.raises(ValueError, match="must be one of qwen-math, question, chat, none, a file"):
        template("qwen")
    with pytest.raises(ValueError, match="must be one of qwen-math, question, chat, none, a file"):
        template("What is asked: " * 100)


def test_the_chat_template_is_the_tokenizers_own(model, tmp_path):
    assert Transformers(model, template("chat")).prompt("1?", "Box.") == "[1?\nBox.]>"
    plain = tiny_language.save(tmp_path / "plain")
    with pytest.raises(ValueError, match="no chat template; choose another of qwen-math, question, none"):
        Transformers(str(plain), template("chat"))


@pytest.mark.parametrize("name", ["chat", "none"])
def test_a_prompt_begins_with_one_special_token_whoever_puts_it_there(tmp_path, name):
    path, begin = tiny_language.save(tmp_path), "<|im_start|>"
    tokenizer = tiny_language.tokenizer(begin + tiny_language.CHAT)
    begins = TemplateProcessing(single=f"{begin} $A", special_tokens=[(begin, 1)])  # as Llama's tokenizer does
    tokenizer.backend_tokenizer.post_processor = begins
    tokenizer.save_pretrained(path)
    engine = Transformers(str(path), template(name))
    prompt = engine.prompt("1?", "")
    behind = engine.tokenizer(prompt.removeprefix(begin), add_special_tokens=False)["input_ids"]
    assert engine.encode(prompt) == [1, *behind]
    assert engine.tokens_left(prompt) == 255 - len(behind)


def test_a_chat_ends_where_its_template_ends_a_turn(tmp_path):
    turns = "{% for turn in messages %}<|im_start|>{{ turn.role }}\n{{ turn.content }}<|im_end|>\n{% endfor %}"
    path = str(tiny_language.save(tmp_path, chat=turns))
    assert Transformers(path, template("chat")).ends == {0, 2}
    assert Transformers(path, template("none")).ends == {0}


# --- transformers ----------------------------------------------------------------------------------------


def test_greedy_responses_are_those_of_whole_forward_passes(engine):
    requests = requests_of(engine)
    for request, response in zip(requests, answers(engine, requests, GREEDY), strict=True):
        written = reference(engine, request.prompt, GREEDY.max_tokens)
        assert response == (engine.decode(written), len(written), len(written) == GREEDY.max_tokens)


@pytest.mark.slow_but_first
@pytest.mark.parametrize("sampling", [GREEDY, DRAWN, Sampling(0.7, 0.8, 24)])
def test_the_size_of_a_batch_changes_nothing(model, sampling):
    engines = [Transformers(model, template("question"), batch_size=size) for size in (1, 3, 7)]
    found = [answers(engine, requests_of(engine), sampling) for engine in engines]
    assert found[0] == found[1] == found[2]
    assert len({response.text for response in found[0]}) > 1


def test_a_seed_is_a_response(engine):
    prompt = engine.prompt("1?", INSTRUCTION)
    found = [r.text for r in answers(engine, [Request(prompt, seed) for seed in (0, 1, 0)], DRAWN)]
    assert found[0] == found[2] != found[1]


def test_what_a_checkpoint_recommends_for_itself_is_left_out(model, engine, tmp_path):
    other = Transformers(model, template("question"))
    other._model.generation_config.repetition_penalty = 5.0
    other._model.generation_config.temperature = 0.1
    requests = requests_of(engine)
    assert answers(other, requests, DRAWN) == answers(engine, requests, DRAWN)


def test_a_taught_model_ends_by_itself(tmp_path):
    path = tiny_language.taught(tmp_path)
    engine = Transformers(str(path), template("{question}="), batch_size=4)
    requests = [Request(engine.prompt(question, ""), 0) for question, _ in tiny_language.PROBLEMS[:-1]]
    found = answers(engine, requests, GREEDY)
    assert [response.text for response in found] == [f"\\boxed{{{n}}}" for _, n in tiny_language.PROBLEMS[:-1]]
    assert all(response.length == len(response.text) and not response.cut for response in found)


def test_a_response_ends_before_its_stop(model, engine):
    (whole,) = answers(engine, [Request("1?", 0)], GREEDY)
    stop = whole.text[5:8]
    stopped = Transformers(model, Template("own", "{question}", (stop,)))
    (found,) = answers(stopped, [Request("1?", 0)], GREEDY)
    assert found.text == whole.text[: whole.text.index(stop)]
    assert not found.cut
    assert found.length == whole.text.index(stop) + 3


@pytest.mark.parametrize("several", [True, False])
def test_whatever_the_generation_config_ends_with_ends_a_response(engine, tmp_path, several):
    written = reference(engine, "1?", 24)
    end = written[5]
    before = written[: written.index(end)]
    path = tiny_language.save(tmp_path, scale=20.0)
    GenerationConfig(eos_token_id=[0, end] if several else end).save_pretrained(path)  # chat models have several
    other = Transformers(str(path), template("question"))
    assert answers(other, [Request("1?", 0)], GREEDY) == [(engine.decode(before), len(before), False)]


def test_a_stop_that_is_a_special_token_ends_a_response(model):
    engine = Transformers(model, template("qwen-math"))
    assert engine.ends == {0, 2}
    assert engine.stop == []
    assert engine._response(Written([5, 2], True)) == (engine.decode([5]), 1, False)


def test_the_context_limits_responses(model):
    engine = Transformers(model, template("none"), batch_size=2)
    (found,) = answers(engine, [Request("x" * 250, 0)], GREEDY)
    assert (found.length, found.cut) == (6, True)
    assert engine.tokens_left("x" * 250) == 6
    with pytest.raises(ValueError, match=r"256 tokens leaves no room in a context of 256.*--context"):
        list(engine.generate([Request("x" * 256, 0)], GREEDY))
    assert Transformers(model, template("none"), context=300).tokens_left("x" * 250) == 50


def test_a_model_that_is_not_there_says_so(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="there is no such directory"):
        Transformers(str(tmp_path / "nowhere"), template("none"))
    with pytest.raises(ValueError, match=r"no config.json.*save_pretrained"):
        Transformers(str(tmp_path), template("none"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"nobody/nothing cannot be loaded.*a name on the hub, and network"):
        Transformers("nobody/nothing", template("none"))


def test_a_tilde_is_the_home_that_a_shell_leaves_to_us(model, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(Path(model).parent))
    name = f"~/{Path(model).name}"
    assert make_engine("transformers", name, template("none")).tokens_left("12") == 254
    assert load(name)[0].config.max_position_embeddings == 256


def test_a_model_without_weights_says_so(model, tmp_path):
    tiny_language.save(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="no weights that can be loaded"):
        Transformers(str(tmp_path), template("none"))


def test_an_engine_is_made_as_it_is_asked_for(model):
    options = {"batch_size": 3, "context": 300, "dtype": "bfloat16", "device": "cpu"}
    engine = make_engine("transformers", model, template("none"), **options)
    assert (engine._model.dtype, engine._model.device) == (torch.bfloat16, torch.device("cpu"))
    assert (engine.tokens_left("12"), engine._batch_size) == (298, 3)
    assert make_engine("transformers", model, template("none"), device="cpu")._model.dtype == torch.float32


@dataclass(frozen=True)
class SamplingParams:
    """The fields of vLLM's own that are set."""

    temperature: float
    top_p: float
    max_tokens: int
    seed: int
    stop: list[str] | None
    stop_token_ids: list[int]


@pytest.mark.parametrize(("name", "stop", "ends"), [("qwen-math", None, [0, 2]), ("question", [STOP], [0])])
def test_vllm_is_asked_in_token_ids_and_answers_in_order(model, monkeypatch, name, stop, ends):
    """A stub in vLLM's place, as it installs only beside a GPU; it shows what vLLM is given and how it is read."""
    vllm, made, asked = ModuleType("vllm"), [], []
    said = [("42", [10, 11, *ends], "stop"), ("4", [10], "length"), ("", ends[:1], "stop")]

    class LLM:
        def __init__(self, **options):
            made.append(options)

        def generate(self, prompts, settings, *, use_tqdm):
            asked.append((prompts, settings))
            before = sum(len(some) for some, _ in asked[:-1])
            outputs = [SimpleNamespace(text=t, token_ids=ids, finish_reason=why) for t, ids, why in said]
            return [SimpleNamespace(outputs=[outputs[before + i]]) for i in range(len(prompts))]

    vllm.LLM, vllm.SamplingParams = LLM, SamplingParams
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    options = {"batch_size": 2, "context": 200, "dtype": "bfloat16", "devices": 4}
    engine = make_engine("vllm", model, template(name), **options)
    prompts = ["1?", "2" * 190, "3?"]
    requests = [Request(prompt, seed) for seed, prompt in enumerate(prompts, start=7)]
    found = answers(engine, requests, Sampling(0.7, 0.8, 24))
    assert found == [("42", 2, False), ("4", 1, True), ("", 0, False)]
    sizes = {"max_model_len": 200, "tensor_parallel_size": 4}
    assert made == [{"model": model, "dtype": "bfloat16", **sizes, "trust_remote_code": False}]
    assert [[each["prompt_token_ids"] for each in some] for some, _ in asked] == [
        [engine.encode(prompt) for prompt in some] for some in (prompts[:2], prompts[2:])
    ]
    assert [each for _, some in asked for each in some] == [
        SamplingParams(0.7, 0.8, longest, seed, stop, ends) for seed, longest in ((7, 24), (8, 10), (9, 24))
    ]


def test_vllm_where_it_is_missing_names_the_ways_out(model):
    pytest.importorskip("torch")
    try:
        import vllm  # noqa: F401
    except ImportError:
        with pytest.raises(ImportError, match=r"pip install vllm.*--engine server.*--engine transformers"):
            make_engine("vllm", model, template("none"))
    else:
        pytest.skip("vLLM is installed")


# --- a server --------------------------------------------------------------------------------------------


class Handler(BaseHTTPRequestHandler):
    """Answers with the prompt and the seed; `server.script` has failures before: a status, maybe a Retry-After."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.seen.append((self.path, body, self.headers.get("Authorization")))
            status, *after = self.server.script.pop(0) if self.server.script else (200,)
        if body.get("prompt") == "slow":
            time.sleep(0.3)
        if status == "cut off":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            return
        said = self.server.answer(self.path, body)
        data = said if isinstance(said, bytes) else json.dumps(said).encode()
        self.send_response(status)
        for seconds in after:
            self.send_header("Retry-After", seconds)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


def echo(path, body):
    chat = path.endswith("chat/completions")
    text = f"{body['messages'][0]['content'] if chat else body['prompt']} {body['seed']}"
    choice = {"message": {"content": text}} if chat else {"text": text}
    reason = "length" if body["seed"] == 3 else "stop"
    return {"choices": [{**choice, "finish_reason": reason}], "usage": {"completion_tokens": len(text)}}


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.lock, server.seen, server.script, server.answer = threading.Lock(), [], [], echo
        server.url = f"http://127.0.0.1:{server.server_port}/v1/"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_server_is_asked_in_the_protocol_and_answers_in_order(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    engine = Server(server.url, "mine", template("question"), batch_size=3)
    sampling = Sampling(0.7, 0.8, 24)
    found = answers(engine, [Request("slow", 0), *(Request("q", i) for i in range(1, 6))], sampling)
    assert [response.text for response in found] == ["slow 0", *(f"q {i}" for i in range(1, 6))]
    assert [response.cut for response in found] == [False] * 3 + [True] + [False] * 2
    assert found[0].length == len("slow 0")
    assert {(path, key) for path, _, key in server.seen} == {("/v1/completions", "Bearer secret")}
    shared = {"model": "mine", "max_tokens": 24, "temperature": 0.7, "top_p": 0.8, "stop": [STOP], **NEUTRAL}
    bodies = sorted((body for _, body, _ in server.seen), key=lambda body: body["seed"])
    assert bodies == [{**shared, "prompt": "q" if i else "slow", "seed": i} for i in range(6)]


def test_without_a_key_none_is_sent(server, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert len(answers(Server(server.url, "mine", template("none")), [Request("q", 1)], GREEDY)) == 1
    assert [key for _, _, key in server.seen] == [None]


def test_without_the_client_the_extra_is_named(server, monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ImportError, match=r"entropyfloor\[server\]"):
        Server(server.url, "mine", template("none"))


def test_with_the_chat_template_a_server_puts_its_own_around(server):
    engine = Server(server.url, "mine", template("chat"))
    assert engine.tokens_left("x" * 10**6) is None
    (found,) = answers(engine, [Request(engine.prompt("1?", "Box."), 0)], GREEDY)
    assert found.text == "1?\nBox. 0"
    path, body, _ = server.seen[0]
    assert path == "/v1/chat/completions"
    messages = [{"role": "user", "content": "1?\nBox."}]
    sampling = {"max_tokens": 24, "temperature": 0.0, "top_p": 1.0, "seed": 0, **NEUTRAL}
    assert body == {"model": "mine", "messages": messages, **sampling}


def test_a_response_of_a_server_ends_before_its_stop(server):
    engine = Server(server.url, "mine", template("question"))
    (found,) = answers(engine, [Request("a\n\nQuestion: b", 0)], GREEDY)
    assert found.text == "a"


@pytest.mark.parametrize("status", [429, 500, 503, "cut off"])
def test_a_server_that_is_busy_is_asked_again(server, status):
    server.script = [(status,), (status,)]
    engine = Server(server.url, "mine", template("none"), wait=0.01)
    assert [r.text for r in answers(engine, [Request("q", 1)], GREEDY)] == ["q 1"]
    assert len(server.seen) == 3


def test_an_answer_that_is_no_json_is_asked_for_again(server):
    pages = [b"<html>starting</html>", b""]
    server.answer = lambda path, body: pages.pop() if pages else echo(path, body)
    engine = Server(server.url, "mine", template("none"), wait=0.01)
    assert [r.text for r in answers(engine, [Request("q", 1)], GREEDY)] == ["q 1"]
    assert len(server.seen) == 3


class Patience(threading.Event):
    """Does not wait, and keeps how long it was to."""

    def __init__(self):
        super().__init__()
        self.waits = []

    def wait(self, timeout=None):
        self.waits.append(timeout)
        return False


@pytest.mark.parametrize(
    ("script", "waits"),
    [
        ([(503,), (503,), (503,)], [1.0, 2.0, 4.0]),
        ([(429, "7"), (429, "0.5"), (503,)], [7.0, 2.0, 4.0]),  # what is asked for, unless it would wait longer
        ([(429, "86400")], [300.0]),
        ([(429, "Wed, 21 Oct 2015 07:28:00 GMT")], [1.0]),
    ],
)
def test_a_busy_server_is_left_alone_twice_as_long_each_time(server, script, waits):
    server.script, patience = [*script], Patience()
    engine = Server(server.url, "mine", template("none"))
    assert engine._ask(Request("q", 1), GREEDY, patience).text == "q 1"
    assert patience.waits == waits


def test_a_server_that_stays_down_is_given_up(server):
    server.script = [(503,)] * 3
    engine = Server(server.url, "mine", template("none"), wait=0.01, retries=2)
    with pytest.raises(ConnectionError, match=r"no answer, asked 3 times .503.*same command goes on"):
        list(engine.generate([Request("q", 1)], GREEDY))
    assert len(server.seen) == 3


def test_nobody_there_is_told():
    engine = Server("http://127.0.0.1:9", "mine", template("none"), wait=0.01, retries=1)
    with pytest.raises(ConnectionError, match=r"asked 2 times .*refused.*is the server up"):
        list(engine.generate([Request("q", 1)], GREEDY))


def test_what_was_answered_before_a_failure_is_handed_over(server):
    """Even if the failure is that of the first."""

    def answer(path, body):
        if body["prompt"] == "bad":
            time.sleep(0.2)
            return {"error": "no"}
        return echo(path, body)

    server.answer = answer
    requests = [Request("bad", 0), *(Request("q", i) for i in range(1, 10))]
    engine = Server(server.url, "mine", template("none"), batch_size=2)
    found = []
    with pytest.raises(ValueError, match="does not speak OpenAI's protocol"):
        found.extend(engine.generate(requests, GREEDY))
    assert sorted((place, response.text) for place, response in found) == [(i, f"q {i}") for i in range(1, 10)]


def test_a_server_is_asked_to_draw_from_the_model_itself_if_it_knows_how(server, caplog):
    """vLLM takes top-k and penalties from the checkpoint unless it is told; OpenAI's own servers refuse to be."""
    server.script = [(400,), (200,), (200,)]
    server.answer = lambda path, body: (
        {"error": "Unknown parameter: 'top_k'"} if "top_k" in body else echo(path, body)
    )
    engine = Server(server.url, "mine", template("none"), batch_size=1)
    assert [r.text for r in answers(engine, [Request("q", 1), Request("q", 2)], GREEDY)] == ["q 1", "q 2"]
    assert ["top_k" in body for _, body, _ in server.seen] == [True, False, False]
    (warning,) = caplog.records
    assert "completions does not know top_k, min_p, repetition_penalty" in warning.getMessage()


def test_a_refusal_is_told_at_once(server):
    server.script, server.answer = [(404,)], lambda path, body: {"error": "no such model"}
    engine = Server(server.url, "mine", template("none"), wait=0.01)
    with pytest.raises(ValueError, match=r"refuses with 404: .*no such model.*Does it serve mine"):
        list(engine.generate([Request("q", 1)], GREEDY))
    assert len(server.seen) == 1


@pytest.mark.parametrize("answer", [{"choices": []}, {"hello": 1}, [1], {"choices": [{"text": "a"}]}])
def test_another_protocol_is_told(server, answer):
    server.answer = lambda path, body: answer
    with pytest.raises(ValueError, match="does not speak OpenAI's protocol"):
        list(Server(server.url, "mine", template("none")).generate([Request("q", 1)], GREEDY))


def test_an_answer_without_content_is_empty(server):
    server.answer = lambda path, body: {
        "choices": [{"message": {"content": None}, "finish_reason": "stop"}],
        "usage": {"completion_tokens": 7},
    }
    (found,) = answers(Server(server.url, "mine", template("chat")), [Request("q", 1)], GREEDY)
    assert found == ("", 7, False)


def test_a_consumer_that_leaves_stops_the_asking(server):
    engine = make_engine("server", "mine", template("none"), url=server.url, batch_size=1)
    responses = engine.generate([Request("slow", i) for i in range(50)], GREEDY)
    next(responses)
    responses.close()
    time.sleep(1.5)
    assert len(server.seen) <= 3


def test_an_address_that_is_none_is_refused():
    with pytest.raises(ValueError, match="must be that of a server"):
        Server("localhost:8000", "mine", template("none"))
    with pytest.raises(ValueError, match="--engine server needs --url"):
        make_engine("server", "mine", template("none"))
