"""Requests to OpenAI-compatible servers, many at once, with every fault that was seen."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import httpx2
import pytest

from femtune.data.prompts import Prompts
from femtune.engines.openai.http import HttpClient, RetryPolicy, shown
from femtune.errors import EngineError, ModelError
from femtune.estep.driver import e_step
from femtune.estep.scheduler import Sampler
from femtune.rewards.builtin import exact, score
from femtune.schemes.named import rejection
from femtune.types import DrawKey, Problem, Request

from ..models import tiny_model
from ..openai_engines import (
    QUICK,
    SAMPLING,
    TOKENIZER,
    draw,
    engines,
    has_threads,
    requests,
    tokens,
    written,
)
from ..servers import Faults, free_port, letters, serving

HTML = (200, {}, "<html><body>Welcome</body></html>")
BUSY = (500, {}, {"error": {"message": "CUDA error"}})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("base"), num_ends=0)


@pytest.fixture
def make(folder: Path) -> Iterator[Any]:
    with engines(folder) as made:
        yield made


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

    retry_policy = RetryPolicy(timeout_s=0.1, handshake_s=2, retries=3, backoff_s=0.01)
    with serving() as server:
        engine = make(server.url, retry_policy)
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
        client = HttpClient("", QUICK, 4)

        async def lose() -> asyncio.BaseTransport:
            loop, at = asyncio.get_running_loop(), httpx2.URL(server.url)
            transport, _ = await loop.create_connection(asyncio.Protocol, at.host, at.port)
            return transport

        transport = client.run(lose())
        assert not transport.is_closing()
        client.close()
        assert transport.is_closing()
        assert not has_threads()


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
    retry_policy = RetryPolicy(timeout_s=2, handshake_s=2, retries=8, backoff_s=0.05)
    with serving(port=port) as server:
        engine = make(server.url, retry_policy)
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
        assert not engine.capabilities.adapters
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
        sampler = Sampler(make(server.url, max_batch=5), TOKENIZER, Prompts(), grade, SAMPLING)
        server.faults.completion = lambda body, count: BUSY if count % 7 == 0 else None
        [chunk] = e_step(problems, rejection(3), sampler, iteration=1)
    assert {each.key.problem_id for each in chunk.draws} == {problem.id for problem in problems}
    assert all(each.completion.finish_reason == "stop" for each in chunk.draws)
    for each in chunk.draws:
        assert each.accepted == (each.seed % 3 == 0)


def test_passwords_of_urls_are_not_shown() -> None:
    assert shown("http://me:secret@host:8/v1") == "http://host:8/v1"
