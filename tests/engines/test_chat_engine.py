"""Chat completions: every fault that a server may have, what is paid for, and what caps leave."""

from __future__ import annotations

import json
import math
import random
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from femtune.engines.chat.budget import Budget, Caps, Prices, Spent
from femtune.engines.chat.engine import ChatEngine
from femtune.engines.chat.probe import MOST_REQUESTS, probe
from femtune.engines.chat.request_log import LOG, RequestLog
from femtune.engines.openai.http import RetryPolicy
from femtune.errors import BudgetReached, ConfigError, EngineError
from femtune.types import Completion, DrawKey, Request, Sampling, draw_seed

from ..chat_server import Messages, chatting, count, said

QUICK = RetryPolicy(timeout_s=2.0, handshake_s=2.0, retries=3, backoff_s=0.01)
SAMPLING = Sampling(max_new_tokens=40)


def echo(messages: Messages, times: int) -> str:
    return f"You said {messages[-1]['content']} {times}"


def requests(num: int, draws: int = 1) -> list[Request]:
    keys = [DrawKey(1, f"p{i}", 0, n) for i in range(num) for n in range(draws)]
    return [
        Request(
            key,
            (),
            draw_seed(0, key),
            messages=({"role": "user", "content": f"Question {key.problem_id}?"},),
        )
        for key in keys
    ]


def draw(
    engine: ChatEngine, asked: Sequence[Request], sampling: Sampling = SAMPLING
) -> dict[DrawKey, Completion]:
    """Return all completions, by draw."""
    todo, found = list(asked), {}

    def pull(room: int) -> list[Request]:
        given, todo[:room] = todo[:room], []
        return given

    for finished in engine.generate(pull, sampling):
        found.update({request.key: completion for request, completion in finished})
    return found


@pytest.fixture
def make() -> Iterator[Any]:
    made: list[ChatEngine] = []

    def engine(url: str, **settings: Any) -> ChatEngine:
        made.append(ChatEngine("a-model", base_url=url, **{"retry_policy": QUICK, **settings}))
        return made[-1]

    yield engine
    for one in made:
        one.close()
    assert "femtune-http" not in [thread.name for thread in threading.enumerate()]


# --- requests and answers


def test_text_comes_back_with_what_the_server_says_of_it(make: Any) -> None:
    with chatting(echo) as server:
        engine = make(server.url)
        found = draw(engine, requests(5))
    for key, completion in found.items():
        assert completion.text == f"You said Question {key.problem_id}? 0"
        assert (completion.tokens, completion.finish_reason) == ((), "stop")
        assert math.isnan(completion.logprob)
        assert completion.num_tokens == count(completion.text)
        assert completion.served.model == "a-model-1" and completion.served.fingerprint == "fp_1"
    assert {body["seed"] for body in server.asked} == {each.seed % 2**31 for each in requests(5)}
    assert engine.spent == Spent(
        requests=5, prompt_tokens=10, completion_tokens=sum(c.num_tokens for c in found.values())
    )


def test_the_first_request_goes_alone_and_then_as_many_as_said(make: Any) -> None:
    with chatting(echo, delay_s=0.1) as server:
        draw(make(server.url, max_batch=4), requests(9))
        assert server.most_open == 4
    with chatting(echo, refuses=frozenset({"seed"})) as server:
        draw(make(server.url, max_batch=8), requests(9))
        assert [("seed" in body) for body in server.asked] == [True] + [False] * 9


@pytest.mark.parametrize("url", ["", "http://127.0.0.1:1/v1,http://127.0.0.1:2/v1", "ftp://x"])
def test_a_url_that_is_none_is_refused(url: str, make: Any) -> None:
    with pytest.raises(ConfigError):
        make(url)


def test_parameters_that_are_refused_are_renamed_or_left_out(make: Any) -> None:
    with chatting(echo, refuses=frozenset({"max_tokens", "seed", "temperature"})) as server:
        found = draw(make(server.url), requests(3))
        assert [c.finish_reason for c in found.values()] == ["stop"] * 3
        assert len(server.paid) == 3
        for body in server.paid:
            assert body["max_completion_tokens"] == 40
            assert not {"max_tokens", "seed", "temperature"} & set(body)


def test_a_temperature_that_was_asked_for_is_never_left_out(make: Any, tmp_path: Path) -> None:
    greedy = Sampling(max_new_tokens=40, temperature=0.0)
    with (
        chatting(echo, refuses=frozenset({"temperature"})) as server,
        pytest.raises(EngineError, match=r"refuses temperature 0.0.*--temperature 1"),
    ):
        draw(make(server.url, log=tmp_path / LOG), requests(3), greedy)
    log = RequestLog(tmp_path / LOG)
    assert (log.spent, log.lost) == (Spent(), 0)  # a refusal costs nothing
    log.close()


def test_top_k_is_refused_where_the_protocol_has_none(make: Any) -> None:
    with chatting(echo) as server, pytest.raises(ConfigError, match="top_k=5"):
        draw(make(server.url), requests(1), Sampling(top_k=5))
    with chatting(echo, owner="vllm") as server:
        draw(make(server.url), requests(1), Sampling(top_k=5))
        assert server.paid[0]["top_k"] == 5 and server.paid[0]["repetition_penalty"] == 1.0


def test_an_unknown_model_name_is_said_with_those_that_are_known(make: Any) -> None:
    fault = (404, {}, {"error": {"message": "The model `a-model` does not exist"}})
    with (
        chatting(echo, fault=lambda body, number: fault) as server,
        pytest.raises(EngineError, match=r"does not serve 'a-model'.*It lists a-model.*--served-model"),
    ):
        draw(make(server.url), requests(3))
    assert len(server.asked) == 1


@pytest.mark.parametrize("models", [None, (401, {}, {}), (404, {}, {}), (200, {}, {"models": []})])
def test_a_server_need_not_list_its_models(models: Any, make: Any) -> None:
    with chatting(echo, models=models) as server:
        assert len(draw(make(server.url), requests(2))) == 2


def test_a_server_that_is_not_there_is_said_at_once(make: Any) -> None:
    with chatting(echo) as server:
        pass
    with pytest.raises(EngineError, match="does not answer"):
        make(server.url)


# --- answers that are none


@pytest.mark.parametrize(
    ("change", "finish", "text", "error"),
    [
        ({"finish": "content_filter"}, "error", "ok", "content filter"),
        ({"message": {"content": None, "refusal": "I can't."}}, "error", "I can't.", "refused: I can't"),
        ({"finish": "tool_calls"}, "error", "ok", "ended it by tool_calls"),
        ({"message": {"content": ""}}, "stop", "", ""),
        ({"message": {"content": None}}, "stop", "", ""),
        ({"message": {"content": [{"type": "text", "text": "a"}]}}, "stop", "a", ""),
        ({"message": {"reasoning_content": "Hm."}}, "stop", "<think>\nHm.\n</think>\n\nok", ""),
        (
            {"message": {"content": "", "reasoning": "Hm."}, "finish": "length"},
            "length",
            "<think>\nHm.",
            "",
        ),
    ],
)
def test_answers_without_an_answer_say_why(
    change: dict[str, Any], finish: str, text: str, error: str, make: Any
) -> None:
    def fault(body: dict[str, Any], number: int) -> dict[str, Any]:
        return json.loads(json.dumps(change)) if number == 2 else {}  # type: ignore[no-any-return]  # a dict

    with chatting(lambda messages, times: "ok", fault=fault) as server:
        found = draw(make(server.url, max_batch=1), requests(3))
    odd = found[DrawKey(1, "p1", 0, 0)]
    assert (odd.finish_reason, odd.text) == (finish, text)
    assert error in odd.error and bool(error) == bool(odd.error)
    assert [c.text for k, c in found.items() if k.problem_id != "p1"] == ["ok", "ok"]


def test_a_prompt_that_is_refused_is_a_draw_with_an_error_and_costs_nothing(make: Any) -> None:
    words = {"error": {"message": "This model's maximum context length is 8 tokens."}}

    def fault(body: dict[str, Any], number: int) -> Any:
        return (400, {}, words) if "p1" in said(body["messages"]) else None

    with chatting(echo, fault=fault) as server:
        engine = make(server.url)
        found = draw(engine, requests(3))
    assert [c.finish_reason for _, c in sorted(found.items())] == ["stop", "error", "stop"]
    assert "maximum context" in found[DrawKey(1, "p1", 0, 0)].error
    assert engine.spent.requests == 2


def test_where_every_prompt_is_refused_the_command_ends(make: Any) -> None:
    fault = (400, {}, {"error": {"message": "roles must alternate"}})
    with (
        chatting(echo, fault=lambda body, number: fault) as server,
        pytest.raises(EngineError, match=r"refused the first 8 requests.*roles must alternate"),
    ):
        draw(make(server.url), requests(30))
    assert len(server.asked) == 8


# --- limits of the rate, and faults


@pytest.mark.parametrize("headers", [{"retry-after": "0.2"}, {"retry-after-ms": "200"}, {}])
def test_a_limit_of_the_rate_is_waited_out_by_all(headers: dict[str, str], make: Any) -> None:
    begun = time.monotonic()

    def fault(body: dict[str, Any], number: int) -> Any:
        limited = number > 1 and time.monotonic() < begun + 0.3
        return (429, headers, {"error": {"message": "Rate limit reached"}}) if limited else None

    with chatting(echo, fault=fault) as server:
        engine = make(server.url, max_batch=8)
        found = draw(engine, requests(20))
        assert [c.finish_reason for c in found.values()] == ["stop"] * 20
        assert engine.spent.requests == len(server.paid) == 20 and not server.repeats()
        if headers:  # 8 are refused at once, and come back when they may
            assert len(server.asked) <= 20 + 2 * 8


def test_an_account_without_money_ends_the_command(make: Any) -> None:
    words = {"error": {"message": "You exceeded your current quota, check your plan and billing."}}

    def fault(body: dict[str, Any], number: int) -> Any:
        return (429, {}, words) if number > 3 else None

    with chatting(echo, fault=fault) as server:
        engine, found = make(server.url, max_batch=1), {}
        with pytest.raises(EngineError, match=r"nothing left to spend.*What is stored stays"):
            found.update(draw(engine, requests(9)))
    assert len(server.asked) == 4


@pytest.mark.parametrize("kind", ["drop", (500, {}, {}), (503, {}, {}), (529, {}, {}), "hang"])
def test_faults_are_tried_again(kind: Any, make: Any) -> None:
    policy = RetryPolicy(timeout_s=0.3, handshake_s=2.0, retries=3, backoff_s=0.01)
    with chatting(echo, fault=lambda body, number: kind if number % 3 == 2 else None) as server:
        found = draw(make(server.url, max_batch=1, retry_policy=policy), requests(4))
        assert [c.finish_reason for c in found.values()] == ["stop"] * 4
        assert len(server.paid) == 4


def test_one_request_that_always_fails_is_a_draw_with_an_error(make: Any) -> None:
    def fault(body: dict[str, Any], number: int) -> Any:
        return (500, {}, {"error": {"message": "boom"}}) if "p1" in said(body["messages"]) else None

    with chatting(echo, fault=fault, delay_s=0.02) as server:
        found = draw(make(server.url, max_batch=2), requests(9))
    assert "boom; others are answered" in found[DrawKey(1, "p1", 0, 0)].error
    assert sum(c.finish_reason == "stop" for c in found.values()) == 8


def test_a_server_that_stops_answering_ends_the_command_and_answers_are_kept(
    make: Any, tmp_path: Path
) -> None:
    broken = threading.Event()

    def fault(body: dict[str, Any], number: int) -> Any:
        if number > 10:
            broken.set()
        return (500, {}, {}) if broken.is_set() else None

    with chatting(echo, fault=fault) as server:
        with pytest.raises(EngineError, match=r"again and again.*same command resumes"):
            draw(make(server.url, log=tmp_path / LOG), requests(30))
        assert len(server.paid) == 10
        server.fault = lambda body, number: None
        found = draw(make(server.url, log=tmp_path / LOG), requests(30))
        assert len(found) == 30 and len(server.paid) == 30 and not server.repeats()


# --- nothing is paid for twice


def test_a_stored_answer_is_not_asked_for_again(make: Any, tmp_path: Path) -> None:
    with chatting(echo) as server:
        first = draw(make(server.url, log=tmp_path / LOG), requests(6, draws=2))
        again = make(server.url, log=tmp_path / LOG)
        assert draw(again, requests(6, draws=2)) == first
        assert len(server.paid) == 12 == again.spent.requests
        # another temperature, prompt or draw is another request
        draw(again, requests(1), Sampling(max_new_tokens=40, temperature=0.5))
        draw(again, requests(1, draws=3))
        assert len(server.paid) == 14


def test_a_log_that_was_cut_off_or_damaged_keeps_the_rest(make: Any, tmp_path: Path) -> None:
    path = tmp_path / LOG
    with chatting(echo) as server:
        draw(make(server.url, log=path, max_batch=1), requests(4))
        lines = path.read_bytes().splitlines(keepends=True)
        assert len(lines) == 8
        lines[3] = lines[3].replace(b"Question", b"Puzzling")  # an answer
        path.write_bytes(b"".join(lines) + b'0123abcd {"sent": "x"')
        engine = make(server.url, log=path)
        assert len(draw(engine, requests(4))) == 4
        assert len(server.paid) == 5  # the damaged one alone is asked for again
        assert engine.spent.requests == 5  # it was paid for, so far as the log can tell


def test_a_request_that_was_open_at_a_kill_counts_as_spent(make: Any, tmp_path: Path) -> None:
    log = RequestLog(tmp_path / LOG)
    log.add_sent("a", Spent(requests=1, prompt_tokens=90, completion_tokens=40))
    log.add_sent("b", Spent(requests=1, prompt_tokens=90, completion_tokens=40))
    log.add_answer("b", {"prompt_tokens": 7, "completion_tokens": 2, "model": "m", "fingerprint": ""})
    log.add_sent("c", Spent(requests=1, prompt_tokens=90, completion_tokens=40))
    log.add_free("c")
    log.close()
    log = RequestLog(tmp_path / LOG)
    assert log.lost == 1
    assert log.spent == Spent(requests=2, prompt_tokens=97, completion_tokens=42)
    log.close()


# --- caps


def test_a_cap_on_requests_is_kept_and_a_higher_one_goes_on(make: Any, tmp_path: Path) -> None:
    with chatting(echo) as server:
        with pytest.raises(BudgetReached, match=r"--max-requests 7\): 7 requests.*higher cap"):
            draw(make(server.url, log=tmp_path / LOG, caps=Caps(max_requests=7)), requests(20))
        assert len(server.paid) == 7
        found = draw(make(server.url, log=tmp_path / LOG, caps=Caps(max_requests=20)), requests(20))
        assert len(found) == len(server.paid) == 20 and not server.repeats()


@pytest.mark.parametrize("usage", [True, False])
@pytest.mark.parametrize("most", [300, 1000])
def test_a_cap_on_tokens_is_never_exceeded_and_nearly_reached(most: int, usage: bool, make: Any) -> None:
    with chatting(echo, usage=usage) as server:
        engine = make(server.url, caps=Caps(max_total_tokens=most))
        with pytest.raises(BudgetReached):
            draw(engine, requests(1000))
    took = [count(said(body["messages"])) + count(echo(body["messages"], 0)) for body in server.paid]
    assert sum(took) <= most
    worst = 40 + len("Question p999?") + 2 * 16
    if usage:
        assert sum(took) > most - worst
        assert engine.spent.prompt_tokens + engine.spent.completion_tokens == sum(took)
    else:
        assert engine.spent.prompt_tokens + engine.spent.completion_tokens > most - worst


def test_a_cap_on_money_is_kept_by_the_prices(make: Any) -> None:
    prices = Prices(prompt=1e6, generated=2e6)  # 1 and 2 a token
    with chatting(echo) as server:
        engine = make(server.url, caps=Caps(max_cost=1000.0, prices=prices))
        with pytest.raises(BudgetReached, match="by the prices"):
            draw(engine, requests(1000))
    money = engine.spent.prompt_tokens + 2 * engine.spent.completion_tokens
    assert engine.spent.cost(prices) == money
    assert 1000 - (46 + 80) < money <= 1000


def test_a_budget_never_lets_reservations_pass_its_caps() -> None:
    noise = random.Random(0)
    budget = Budget(Caps(max_requests=40, max_total_tokens=900))
    open_now: list[str] = []
    for number in range(2000):
        most = Spent(
            requests=1, prompt_tokens=noise.randint(1, 50), completion_tokens=noise.randint(1, 50)
        )
        if budget.reserve(str(number), most):
            open_now.append(str(number))
        if open_now and noise.random() < 0.5:
            name = open_now.pop(noise.randrange(len(open_now)))
            if noise.random() < 0.3:
                budget.free(name)
            else:
                budget.book(name, Spent(requests=1, prompt_tokens=1, completion_tokens=1))
        spent = budget.spent
        assert spent.requests <= 40 and spent.prompt_tokens + spent.completion_tokens <= 900
    assert budget.spent.requests > 30


# --- another model in mid-run


def test_another_model_in_mid_run_ends_it_and_is_stored(make: Any, tmp_path: Path) -> None:
    def fault(body: dict[str, Any], number: int) -> dict[str, Any]:
        return {"model": "a-model-2"} if number > 5 else {}

    with chatting(echo, fault=fault) as server:
        with pytest.raises(EngineError, match=r"'a-model-2', and did by 'a-model-1'.*--on-model-change"):
            draw(make(server.url, log=tmp_path / LOG, max_batch=3), requests(20))
        paid = len(server.paid)
        assert 6 <= paid <= 8  # those that were open
        with pytest.raises(EngineError, match="a-model-2"):
            draw(make(server.url, log=tmp_path / LOG, max_batch=3), requests(20))
        assert len(server.paid) == paid  # the stored answer tells it
        both = draw(make(server.url, log=tmp_path / LOG, on_model_change="warn"), requests(20))
        assert len(server.paid) == 20 and not server.repeats()
        assert {c.served.model for c in both.values() if c.served} == {"a-model-1", "a-model-2"}


def test_a_new_fingerprint_is_warned_of(make: Any, caplog: pytest.LogCaptureFixture) -> None:
    def fault(body: dict[str, Any], number: int) -> dict[str, Any]:
        return {"system_fingerprint": f"fp_{1 + (number > 2)}"}

    with chatting(echo, fault=fault) as server:
        found = draw(make(server.url), requests(5))
    assert {c.served.fingerprint for c in found.values() if c.served} == {"fp_1", "fp_2"}
    assert caplog.text.count("fingerprint 'fp_2' after 'fp_1'") == 1


def test_a_server_that_does_not_keep_its_limit_is_warned_of(
    make: Any, caplog: pytest.LogCaptureFixture
) -> None:
    fault = {"usage": {"prompt_tokens": 2, "completion_tokens": 99}}
    with chatting(echo, fault=lambda body, number: dict(fault)) as server:
        draw(make(server.url), requests(2))
    assert "wrote 99 tokens" in caplog.text


# --- what `femtune check` finds out


def able(body: dict[str, Any], number: int) -> dict[str, Any]:
    """Reply as a server that does all that it is asked."""
    messages, text = body["messages"], f"{random.Random(body.get('seed')).getrandbits(30)}"
    if body.get("stop"):
        text = "one two three "
    if messages[-1]["role"] == "assistant":
        text = "is."
    choice: dict[str, Any] = {"message": {"content": text}, "finish_reason": "stop"}
    if body.get("logprobs"):
        choice["logprobs"] = {"content": [{"token": "a", "logprob": -0.5}]}
    return {"choices": [choice] * body.get("n", 1)}


def test_a_probe_finds_what_a_server_can_do(make: Any) -> None:
    with chatting(echo, fault=able, owner="vllm") as server:
        found = probe(make(server.url))
    assert found == {
        "answers by": "a-model-1, configuration fp_1",
        "token limit": "max_tokens",
        "token counts": "given",
        "seeds": "kept, in this trial",
        "logprobs": "given; --engine chat does without",
        "n": "several choices a request; --engine chat asks for one",
        "stop": "kept; --engine chat cuts the text itself",
        "partial message": "continued, and used to force answers",
    }
    assert len(server.paid) <= MOST_REQUESTS


def test_a_probe_finds_what_a_server_takes_and_does_not_do(make: Any) -> None:
    def unable(body: dict[str, Any], number: int) -> dict[str, Any]:
        return {"message": {"content": f"one, five and {number}"}, "system_fingerprint": None}

    with chatting(echo, fault=unable, usage=False) as server:
        found = probe(make(server.url))
    assert found == {
        "answers by": "a-model-1",
        "token limit": "max_tokens",
        "token counts": "not given: caps count the most that is possible",
        "seeds": "taken, and not kept: draws differ by the same seed",
        "logprobs": "taken, and not given",
        "n": "one choice a request",
        "stop": "taken, and not kept",
        "partial message": "not continued: answers are forced by a turn of their own",
    }


def test_a_probe_keeps_caps_and_says_what_a_run_would(make: Any) -> None:
    with chatting(echo) as server:
        with pytest.raises(BudgetReached):
            probe(make(server.url, caps=Caps(max_requests=3)))
        assert len(server.paid) == 3
    fault = (404, {}, {"error": {"message": "no such model"}})
    with (
        chatting(echo, fault=lambda body, number: fault) as server,
        pytest.raises(EngineError, match="does not serve 'a-model'"),
    ):
        probe(make(server.url))
