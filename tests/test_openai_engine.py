"""The engine over OpenAI-compatible servers, against one on loopback with every fault that was seen."""

from __future__ import annotations

import asyncio
import logging
import math
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest

from femtune.asker import check_able
from femtune.chunks import Setup
from femtune.engines.dialects import LLAMACPP, SGLANG, VLLM, completion_body
from femtune.engines.http import Patience, Wire, shown
from femtune.engines.openai import OpenAIEngine
from femtune.errors import ConfigError, EngineError, ModelError
from femtune.estep import e_step
from femtune.prompts import ChatTokenizer, Prompts
from femtune.rewards import exact, score
from femtune.schemes import parse_scheme, rejection
from femtune.types import Completion, DrawKey, Problem, Request, Sampling, draw_seed

from .models import byte_tokenizer, tiny_model
from .servers import Faults, free_port, letters, serving, token_nats

KEY = "sk-this-is-secret"
TOKENIZER = ChatTokenizer(byte_tokenizer())
END = TOKENIZER.end_token_id
QUICK = Patience(timeout_s=2.0, handshake_s=2.0, retries=3, backoff_s=0.01)
SAMPLING = Sampling(max_new_tokens=64)

HTML = (200, {}, "<html><body>Welcome</body></html>")
BUSY = (500, {}, {"error": {"message": "CUDA error"}})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("base"), num_ends=0)


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    yield
    names = [thread.name for thread in threading.enumerate()]
    assert "femtune-http" not in names


@pytest.fixture
def make(folder: Path) -> Iterator[Any]:
    """Makes engines, and closes them."""
    made: list[OpenAIEngine] = []

    def engine(url: str | None, patience: Patience = QUICK, **settings: Any) -> OpenAIEngine:
        settings = {"tokenizer": TOKENIZER, **settings}
        made.append(OpenAIEngine(folder, base_url=url, patience=patience, **settings))
        return made[-1]

    yield engine
    for one in made:
        one.close()


def requests(count: int) -> list[Request]:
    keys = [DrawKey(1, f"p{i}", 0, 0) for i in range(count)]
    return [Request(key, tokens(f"Question {key.problem_id}?"), draw_seed(0, key)) for key in keys]


def tokens(text: str) -> tuple[int, ...]:
    return TOKENIZER.encode_prompt(text)


def draw(
    engine: OpenAIEngine, asked: Sequence[Request], sampling: Sampling = SAMPLING
) -> dict[str, Completion]:
    """All completions, by problem."""
    todo = list(asked)

    def pull(room: int) -> list[Request]:
        assert room > 0
        given, todo[:room] = todo[:room], []
        return given

    found = [pair for batch in engine.generate(pull, sampling) for pair in batch]
    assert len(found) == len(asked)
    return {request.key.problem_id: completion for request, completion in found}


def written(request: Request, kind_bits: int = 63) -> tuple[int, ...]:
    """What the server's model writes for a request."""
    prompt = TOKENIZER.tokenizer.decode(list(request.tokens))
    return TOKENIZER.encode_completion(letters(prompt, request.seed % 2**kind_bits))


# --- what comes back


@pytest.mark.parametrize("kind", ["vllm", "sglang", "llamacpp"])
def test_draws_are_the_servers_tokens(kind: str, make: Any) -> None:
    with serving(kind) as server:
        engine = make(server.url)
        asked = requests(20)
        found = draw(engine, asked)
    for request in asked:
        expected = written(request, 31 if kind == "llamacpp" else 63)
        nats = math.fsum(map(token_nats, expected))
        text = TOKENIZER.decode(expected)
        completion = found[request.key.problem_id]
        assert completion == Completion(expected, text, "stop", pytest.approx(nats))
    able = engine.abilities
    assert able.seeds and able.logprobs and able.token_ids and able.raw_logprobs
    assert able.scores == (kind != "llamacpp")
    assert able.adapters == (kind != "llamacpp")


def test_a_plain_server_is_sent_openais_parameters_alone(
    make: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with serving("openai") as server:
        engine = make(server.url)
        found = draw(engine, requests(3))
        sent = set(server.asked[-1])
    assert sent == {"model", "prompt", "max_tokens", "temperature", "top_p", "seed", "logprobs"}
    for request in requests(3):
        completion = found[request.key.problem_id]
        assert completion.tokens == written(request) and completion.finish_reason == "stop"
        assert math.isnan(completion.logprob)
    assert engine.abilities.scores
    [record] = caplog.records
    assert "encoded anew" in record.message


def test_a_plain_server_takes_no_top_k(make: Any) -> None:
    with serving("openai") as server, pytest.raises(ConfigError, match="top_k=5"):
        draw(make(server.url), requests(1), Sampling(top_k=5))


def test_what_servers_add_by_default_is_switched_off() -> None:
    bodies = {d.name: completion_body(d, Sampling(), 7, 63, [2]) for d in (VLLM, SGLANG, LLAMACPP)}
    assert bodies["vLLM"]["top_k"] == 0 and bodies["vLLM"]["repetition_penalty"] == 1
    assert bodies["SGLang"]["top_k"] == -1 and "ignore_eos" not in bodies["SGLang"]
    assert bodies["llama.cpp"]["top_k"] == 0 and "stop_token_ids" not in bodies["llama.cpp"]
    assert bodies["vLLM"]["stop_token_ids"] == [2]


def test_a_cut_off_draw_has_no_end(make: Any) -> None:
    with serving() as server:
        found = draw(make(server.url), requests(5), Sampling(max_new_tokens=2))
    assert {c.finish_reason for c in found.values()} == {"length"}
    assert all(len(c.tokens) == 2 and END not in c.tokens for c in found.values())


def test_an_end_that_is_left_out_is_added_and_its_nats_unknown(make: Any) -> None:
    with serving(faults=Faults(leaves_out_end=True)) as server:
        found = draw(make(server.url), requests(3))
    for request in requests(3):
        assert found[request.key.problem_id].tokens == written(request)
        assert math.isnan(found[request.key.problem_id].logprob)


def test_a_draw_ends_at_the_models_first_end(make: Any) -> None:
    """A server that knows fewer end tokens writes on behind one."""

    def beyond(body: dict[str, Any], count: int) -> Any:
        if body["max_tokens"] != 64:
            return None
        ids = [66, 67, END, 68, 69]
        logprobs = {"token_logprobs": [-1.0] * 5, "tokens": ["?"] * 5}
        choice = {"text": "?", "token_ids": ids, "finish_reason": "length", "logprobs": logprobs}
        return 200, {}, {"choices": [choice]}

    with serving(faults=Faults(completion=beyond)) as server:
        [completion] = draw(make(server.url), requests(1)).values()
    assert completion.tokens == (66, 67, END)
    assert completion.finish_reason == "stop" and completion.logprob == -3.0


def test_unknown_finish_and_numbers_that_are_none_are_errors(make: Any) -> None:
    logprobs = {"token_logprobs": [math.nan], "tokens": ["?"]}
    answers = [
        {"text": "", "token_ids": [], "finish_reason": "content_filter"},
        {"text": "?", "token_ids": [66], "finish_reason": "length", "logprobs": logprobs},
    ]

    def odd(body: dict[str, Any], count: int) -> Any:
        return (200, {}, {"choices": [answers.pop()]}) if body["max_tokens"] == 64 else None

    with serving(faults=Faults(completion=odd)) as server:
        found = draw(make(server.url, max_batch=1), requests(2))
    assert [c.finish_reason for c in found.values()] == ["error", "error"]
    assert "nan" in found["p0"].error and "content_filter" in found["p1"].error


@pytest.mark.parametrize("kind", ["vllm", "openai"])
def test_scores(kind: str, make: Any) -> None:
    pairs = [(tokens(f"x{i}"), tuple(range(60, 61 + i))) for i in range(70)] + [(tokens("x"), ())]
    with serving(kind) as server:
        engine = make(server.url)
        echo = "echo" in server.asked[-1]
        server.faults.completion = lambda body, count: time.sleep(0.01 * echo)
        found = engine.logprob(pairs)
        assert server.most_open == 1 if kind == "vllm" else server.most_open > 1
    assert found == pytest.approx([math.fsum(map(token_nats, completion)) for _, completion in pairs])


def test_a_server_that_cannot_score_says_so(make: Any) -> None:
    with serving("openai", faults=Faults(echoes=False)) as server:
        engine = make(server.url)
        assert not engine.abilities.scores
        with pytest.raises(EngineError, match="can't score"):
            engine.logprob([(tokens("x"), (60,))])


@pytest.mark.parametrize("scheme", ["star+memo", "pps:4+importance", "star+chain", "star+doubt"])
def test_a_server_that_lacks_what_a_scheme_needs_is_refused(make: Any, scheme: str) -> None:
    needs = parse_scheme(scheme).needs
    with serving("openai", faults=Faults(echoes=False)) as server:
        with pytest.raises(EngineError, match=r"can't score given completions.*--engine vllm"):
            check_able(make(server.url), needs)
        check_able(make(server.url), parse_scheme("star+wake").needs)
    with serving("openai") as server:
        engine = make(server.url)
        check_able(engine, needs)
        engine.abilities = replace(engine.abilities, logprobs=False)
        if "importance" in scheme:
            with pytest.raises(EngineError, match="does not tell log-probabilities of what it samples"):
                check_able(engine, needs)


# --- the handshake


def test_nothing_listens(make: Any) -> None:
    with pytest.raises(EngineError, match="start the server"):
        make(f"http://127.0.0.1:{free_port()}/v1")


def test_it_never_answers(make: Any) -> None:
    patience = Patience(handshake_s=0.2)
    with serving(faults=Faults(models="hang")) as server:
        with pytest.raises(EngineError, match=r"no answer within 0\.2 s"):
            make(server.url, patience)
        server.faults.models, server.faults.completion = None, lambda body, count: "hang"
        patience = Patience(handshake_s=0.2, retries=0)
        with pytest.raises(EngineError, match=r"no answer within 0\.2 s"):
            make(server.url, patience)


@pytest.mark.parametrize("models", [HTML, (404, {}, {"detail": "Not Found"}), (200, {}, {"x": 1})])
def test_it_is_another_kind_of_server(models: Any, make: Any) -> None:
    with (
        serving(faults=Faults(models=models)) as server,
        pytest.raises(ConfigError, match="OpenAI-comp"),
    ):
        make(server.url)


def test_it_is_loading_its_model(make: Any) -> None:
    loading = (503, {}, {"error": {"message": "Loading model"}})
    with serving(faults=Faults(models=loading)) as server, pytest.raises(EngineError, match="not ready"):
        make(server.url)


def test_the_version_may_be_left_out_of_the_url(make: Any) -> None:
    with serving() as server:
        engine = make(server.url.removesuffix("/v1") + "/")
        assert len(draw(engine, requests(2))) == 2


@pytest.mark.parametrize("url", [None, "", "127.0.0.1:8000", "http://127.0.0.1:1/v1,"])
def test_no_url(url: str | None, make: Any) -> None:
    with pytest.raises(ConfigError, match="http://"):
        make(url)


def test_the_url_of_the_environment(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving() as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        assert len(draw(make(None), requests(2))) == 2


def test_the_models_name(make: Any) -> None:
    with serving(names=("first", "second")) as server:
        assert len(draw(make(server.url, served_model="second"), requests(1))) == 1
        with pytest.raises(ConfigError, match=r"serves 2 models.*first, second"):
            make(server.url)
        with pytest.raises(ConfigError, match=r"does not serve 'secnd'.*second"):
            make(server.url, served_model="secnd")


def test_the_key_is_sent_and_never_shown(
    make: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with serving(faults=Faults(key=KEY)) as server:
        monkeypatch.setenv("OPENAI_API_KEY", KEY + "-wrong")
        with pytest.raises(ConfigError, match="set OPENAI_API_KEY") as raised:
            make(server.url)
        assert KEY not in str(raised.value)
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        engine = make(server.url)
        draw(engine, requests(1))
        assert {h["authorization"] for h in server.headers[1:]} == {f"Bearer {KEY}"}
        server.faults.key = "another"
        with pytest.raises(EngineError, match="set OPENAI_API_KEY") as later:
            draw(engine, requests(1))
        assert KEY not in str(later.value) + repr(engine) + repr(vars(engine)) + caplog.text
        assert server.asked and KEY not in repr(vars(engine._wire)["_client"])


def test_a_key_that_is_none(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY + "\n" + KEY)
    with pytest.raises(ConfigError, match="OPENAI_API_KEY") as raised:
        make("http://127.0.0.1:1/v1")
    assert KEY not in str(raised.value)


@pytest.mark.parametrize("kind", ["vllm", "llamacpp", "openai"])
def test_another_tokenizer(kind: str, make: Any) -> None:
    with serving(kind, faults=Faults(shift=1)) as server:
        if kind == "openai":  # by the number of its tokens
            server.faults.shift = 0
            bos = ChatTokenizer(byte_tokenizer(bos=True, template=False))
            bos.tokenizer.add_tokens(["1234567890"])
            with pytest.raises(ModelError, match="another tokenizer"):
                make(server.url, tokenizer=bos)
            return
        with pytest.raises(ModelError, match="another tokenizer"):
            make(server.url)


def test_it_takes_no_token_prompts(make: Any) -> None:
    faults = Faults(refuses=frozenset({"prompt"}))
    with serving("openai", faults=faults) as server, pytest.raises(EngineError, match="of token ids"):
        make(server.url)


def test_it_ignores_seeds(make: Any, caplog: pytest.LogCaptureFixture) -> None:
    with serving(faults=Faults(ignores_seeds=True)) as server:
        assert not make(server.url).abilities.seeds
    assert "can't be made again" in caplog.text


def test_it_takes_small_seeds_alone(make: Any) -> None:
    with serving(faults=Faults(largest_seed=2**31 - 1)) as server:
        engine = make(server.url)
        asked = requests(5)
        found = draw(engine, asked)
        assert engine.abilities.seeds
    assert all(found[r.key.problem_id].tokens == written(r, 31) for r in asked)


@pytest.mark.parametrize("refuses", [frozenset(), frozenset({"logprobs"})])
def test_it_gives_no_logprobs(
    refuses: frozenset[str], make: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(faults=Faults(tells_logprobs=False, refuses=refuses)) as server:
        engine = make(server.url)
        found = draw(engine, requests(2))
    assert not engine.abilities.logprobs and engine.abilities.seeds
    assert all(c.finish_reason == "stop" and math.isnan(c.logprob) for c in found.values())
    assert "no log-probabilities" in caplog.text


def test_it_tells_no_tokens(make: Any, caplog: pytest.LogCaptureFixture) -> None:
    with serving(faults=Faults(tells_ids=False)) as server:
        engine = make(server.url)
        found = draw(engine, requests(2))
        assert not engine.abilities.token_ids
        assert all(found[r.key.problem_id].tokens == written(r) for r in requests(2))
        assert caplog.text.count("encoded anew") == 1


def test_logprobs_at_the_samplings_temperature_are_not_the_models(
    make: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(faults=Faults(tempered=True)) as server:
        engine = make(server.url)
        assert engine.abilities.logprobs and not engine.abilities.raw_logprobs
        plain = draw(engine, requests(2))
        assert not caplog.records
        warm = draw(engine, requests(2), Sampling(max_new_tokens=64, temperature=0.7))
        draw(engine, requests(2), Sampling(max_new_tokens=64, temperature=0.7))
    assert all(math.isfinite(c.logprob) for c in plain.values())
    assert all(math.isnan(c.logprob) for c in warm.values())
    assert len(caplog.records) == 1


def test_a_prompt_too_long(make: Any) -> None:
    with serving(context=100) as server:
        engine = make(server.url)
        assert engine.context == 100
        with pytest.raises(EngineError, match=r'"p0".*server.s 100'):
            draw(engine, requests(1), Sampling(max_new_tokens=100))
        with pytest.raises(EngineError, match="a pair to score"):
            engine.logprob([(tokens("x"), (60,) * 100)])


# --- requests at once


@pytest.mark.parametrize("max_batch", [1, 7])
def test_no_more_requests_are_open_than_said(max_batch: int, make: Any) -> None:
    delay_s = 0.01 if max_batch == 1 else 0.2  # long enough for all of them to be sent
    with serving(faults=Faults(delay_s=delay_s)) as server:
        draw(make(server.url, max_batch=max_batch), requests(30))
        assert server.most_open == max_batch


def test_a_free_place_is_filled_at_once_and_retries_are_asked_for(make: Any) -> None:
    """Slow requests hold up nobody, and what is graded in a yield is in the next pull."""

    last = threading.Event()  # of the quick ones was graded

    def slow(body: dict[str, Any], count: int) -> Any:
        assert "slow" not in TOKENIZER.decode(body["prompt"]) or last.wait(10)

    with serving(faults=Faults(completion=slow)) as server:
        engine = make(server.url, max_batch=2)
        key = [DrawKey(1, f"p{i}", 0, 0) for i in range(9)]
        todo = [Request(key[0], tokens("slow"), 0), Request(key[1], tokens("quick"), 0)]
        order = []

        def pull(room: int) -> list[Request]:
            given, todo[:room] = todo[:room], []
            return given

        for batch in engine.generate(pull, SAMPLING):
            for request, _ in batch:
                order.append(request.key.problem_id)
                number = int(request.key.problem_id[1:])
                if 1 <= number < 8:  # a quick one brings the next
                    todo.append(Request(key[number + 1], tokens("quick"), number))
                if number == 8:
                    last.set()
        assert order == ["p1", "p2", "p3", "p4", "p5", "p6", "p7", "p8", "p0"]


def test_a_closed_generator_cancels_what_is_open(make: Any) -> None:
    with serving() as server:
        engine = make(server.url, max_batch=4)
        todo = requests(8)
        quick = list(todo[-1].tokens)
        server.faults.completion = lambda body, count: None if body["prompt"] == quick else "hang"
        stream = engine.generate(
            lambda room: [todo.pop() for _ in range(min(room, len(todo)))], SAMPLING
        )
        next(stream)
        wait_for(lambda: server.open == 3)
        stream.close()
        wait_for(lambda: server.open == 0)
        assert server.cancelled == 3
        server.faults.completion = lambda body, count: None
        assert len(draw(engine, requests(5))) == 5  # and it can be asked again


def test_closing_the_engine_ends_its_thread_while_requests_are_open(make: Any) -> None:
    with serving() as server:
        engine = make(server.url)
        server.faults.completion = lambda body, count: "hang"
        pool = threading.Timer(0.1, engine.close)
        pool.start()
        begun = time.monotonic()
        with pytest.raises(CancelledError):
            draw(engine, requests(2))
        assert time.monotonic() - begun < 5  # and not the minute that it hangs
        pool.join()
        with pytest.raises(EngineError, match="closed"):
            draw(engine, requests(1))


def wait_for(condition: Any) -> None:
    until = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


# --- faults that pass


@pytest.mark.parametrize(
    "fault",
    [
        BUSY,
        (502, {}, HTML[2]),
        (504, {}, ""),
        (503, {"retry-after": "0"}, ""),
        (429, {}, {"error": "slow down"}),
        (200, {}, '{"choices": [{"text": "x'),
        (200, {}, {"object": "error"}),
        (200, {}, {"choices": []}),
        HTML,
        "drop",
        "truncate",
        "hang",
    ],
    ids=str,
)
def test_a_passing_fault_is_not_seen(fault: Any, make: Any) -> None:
    """Each request fails twice."""
    seen: dict[str, int] = {}

    def flaky(body: dict[str, Any], count: int) -> Any:
        name = str(body["prompt"])
        seen[name] = seen.get(name, 0) + 1
        return fault if body["max_tokens"] == 64 and seen[name] <= 2 else None

    patience = Patience(timeout_s=0.1, handshake_s=2, retries=3, backoff_s=0.01)
    with serving() as server:
        engine = make(server.url, patience)
        server.faults.completion = flaky
        found = draw(engine, requests(4))
    assert all(found[r.key.problem_id].tokens == written(r) for r in requests(4))
    assert set(seen.values()) == {3}


def test_retry_after_is_heeded(make: Any) -> None:
    times: list[float] = []

    def limited(body: dict[str, Any], count: int) -> Any:
        times.append(time.monotonic())
        return (429, {"retry-after": "0.4"}, {"error": "quota"}) if len(times) == 1 else None

    with serving() as server:
        engine = make(server.url)
        server.faults.completion = limited
        draw(engine, requests(1))
    assert times[1] - times[0] >= 0.4


def test_a_request_that_always_fails_is_one_error_and_others_go_on(make: Any) -> None:
    bad = list(requests(6)[3].tokens)
    with serving() as server:
        engine = make(server.url, max_batch=2)
        server.faults.completion = lambda body, count: BUSY if body["prompt"] == bad else None
        server.faults.delay_s = 0.05  # others are answered meanwhile
        found = draw(engine, requests(30))
    errors = {name for name, completion in found.items() if completion.finish_reason == "error"}
    assert errors == {"p3"}
    assert "failed 4 times" in found["p3"].error and "CUDA error" in found["p3"].error


def test_a_request_that_always_fails_may_be_the_last(make: Any) -> None:
    bad = list(requests(1)[0].tokens)
    with serving() as server:
        engine = make(server.url)
        server.faults.completion = lambda body, count: BUSY if body["prompt"] == bad else None
        [completion] = draw(engine, requests(1)).values()
    assert completion.finish_reason == "error"


@pytest.mark.parametrize("status", [400, 422])
def test_a_refused_request_is_an_error_at_once(status: int, make: Any) -> None:
    bad = list(requests(3)[1].tokens)
    refusal = (status, {}, {"error": {"message": "prompt is too odd"}})
    with serving() as server:
        engine = make(server.url)
        before = len(server.asked)
        server.faults.completion = lambda body, count: refusal if body["prompt"] == bad else None
        found = draw(engine, requests(3))
        assert len(server.asked) == before + 3
    assert found["p1"].finish_reason == "error" and "prompt is too odd" in found["p1"].error
    assert found["p0"].finish_reason == found["p2"].finish_reason == "stop"


@pytest.mark.parametrize(("status", "words"), [(404, "still serve the model"), (403, "OPENAI_API_KEY")])
def test_a_server_that_refuses_all_in_mid_run_stops_it(status: int, words: str, make: Any) -> None:
    with serving() as server:
        engine = make(server.url)
        server.faults.completion = lambda body, count: (status, {}, "no") if count % 10 == 0 else None
        with pytest.raises(EngineError, match=words):
            draw(engine, requests(30))


def test_no_connection_stays_open_though_all_forgot_it() -> None:
    """As anyio's connect_tcp does where its caller is cancelled in the moment that it is made."""
    with serving() as server:
        wire = Wire("", QUICK, 4)

        async def lose() -> asyncio.BaseTransport:
            loop, at = asyncio.get_running_loop(), httpx2.URL(server.url)
            transport, _ = await loop.create_connection(asyncio.Protocol, at.host, at.port)
            return transport

        transport = wire.run(lose())
        assert not transport.is_closing()
        wire.close()
        assert transport.is_closing()


def test_a_server_that_goes_down_in_mid_run_stops_it(make: Any) -> None:
    """Requests that were open when it went are no errors of their own: the run stops, none is lost."""
    with serving(faults=Faults(delay_s=0.05)) as server:
        engine = make(server.url, max_batch=8)
        todo, found = requests(40), []
        with pytest.raises(
            EngineError, match=r"failed 4 times.*another small one fails too.*same command"
        ):
            for batch in engine.generate(
                lambda room: [todo.pop() for _ in range(min(room, len(todo)))], SAMPLING
            ):
                found += batch
                if len(found) > 10 and not server.closing.is_set():
                    server.stop()
    assert found and all(completion.finish_reason == "stop" for _, completion in found)


def test_a_server_that_comes_back_is_used_again(make: Any) -> None:
    port = free_port()
    patience = Patience(timeout_s=2, handshake_s=2, retries=8, backoff_s=0.05)
    with serving(port=port) as server:
        engine = make(server.url, patience)
        draw(engine, requests(3))
    with serving(port=port, faults=Faults(delay_s=0.01)) as server:
        assert len(draw(engine, requests(3))) == 3


def test_ctrl_c_ends_promptly(make: Any) -> None:
    main = threading.get_ident()
    with serving() as server:
        engine = make(server.url)
        server.faults.completion = lambda body, count: "hang"
        timer = threading.Timer(0.2, lambda: signal.pthread_kill(main, signal.SIGINT))
        timer.start()
        begun = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            draw(engine, requests(4))
        assert time.monotonic() - begun < 5  # and not the minute that it hangs
        timer.join()
        wait_for(lambda: server.open == 0)


# --- several servers


def test_several_servers_share_the_work_and_one_may_go(
    make: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(faults=Faults(delay_s=0.02)) as one, serving(faults=Faults(delay_s=0.02)) as other:
        engine = make(f"{one.url}, {other.url}", max_batch=8)
        begun = len(one.asked), len(other.asked)
        draw(engine, requests(40))
        shares = len(one.asked) - begun[0], len(other.asked) - begun[1]
        assert sum(shares) == 40 and min(shares) >= 10
        one.stop()
        found = draw(engine, requests(40))
    assert all(found[r.key.problem_id].tokens == written(r) for r in requests(40))
    assert "is left out while others do" in caplog.text


# --- adapters


def adapter(parent: Path, name: str) -> Path:
    (parent / name).mkdir()
    (parent / name / "adapter_config.json").write_text("{}")
    return parent / name


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
def test_adapters_are_served_in_turn(kind: str, make: Any, folder: Path, tmp_path: Path) -> None:
    with serving(kind) as server:
        engine = make(server.url)

        def asked_for() -> str:
            draw(engine, requests(1))
            return str(server.asked[-1].get("lora_path") or server.asked[-1]["model"])

        assert asked_for() == "base"
        names = []
        for name in ("first", "second", "first"):
            path = tmp_path / name
            engine.load(path if path.exists() else adapter(tmp_path, name))
            names.append(asked_for())
            assert server.adapters == {names[-1]: str(path)}
            engine.logprob([(tokens("x"), (60,))])
        assert len(set(names)) == 3
        engine.load(folder)
        assert asked_for() == "base" and not server.adapters
        engine.load(tmp_path / "first")
        engine.close()
        assert not server.adapters and len(server.unloaded) == 4


def test_weights_that_a_server_cannot_be_given(make: Any, tmp_path: Path) -> None:
    with serving() as server:
        engine = make(server.url)
        with pytest.raises(ModelError, match="full weights"):
            engine.load(tmp_path)
        with pytest.raises(ModelError, match=r"rank 64 is greater.*max-lora-rank"):
            engine.load(adapter(tmp_path, "refused"))
    with serving(faults=Faults(takes_adapters=False)) as server:
        engine = make(server.url)
        assert not engine.abilities.adapters
        with pytest.raises(ModelError, match="VLLM_ALLOW_RUNTIME_LORA_UPDATING"):
            engine.load(adapter(tmp_path, "third"))


# --- end to end


def test_an_e_step(make: Any) -> None:
    """Rejection sampling, over HTTP, with a server that fails now and then."""
    problems = [Problem(f"p{i}", f"What is {i} + 1?", str(i + 1)) for i in range(30)]

    def write(prompt: str, seed: int) -> str:
        if "What is" not in prompt:
            return letters(prompt, seed)
        number = int(prompt.split("What is ")[1].split()[0])
        return f"One more.\nAnswer: {number + 1 + seed % 3}"

    def grade(some: Any, completions: Any, **rest: Any) -> Any:
        return score(some, completions, prompts=Prompts(), reward=exact(), **rest)

    with serving(write=write) as server:
        setup = Setup(make(server.url, max_batch=5), TOKENIZER, Prompts(), grade, SAMPLING)
        server.faults.completion = lambda body, count: BUSY if count % 7 == 0 else None
        [chunk] = e_step(problems, rejection(3), setup, iteration=1)
    assert {draw.key.problem_id for draw in chunk.draws} == {problem.id for problem in problems}
    assert all(draw.completion.finish_reason == "stop" for draw in chunk.draws)
    for draw in chunk.draws:
        assert draw.accepted == (draw.seed % 3 == 0)


def test_passwords_of_urls_are_not_shown() -> None:
    assert shown("http://me:secret@host:8/v1") == "http://host:8/v1"
