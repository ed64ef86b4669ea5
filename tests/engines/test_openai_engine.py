"""The engine over OpenAI-compatible servers: what it finds out of one, and makes of what it says."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from femtune.data.chat_tokenizer import ChatTokenizer
from femtune.data.worlds import SEEDLING
from femtune.engines.hf.engine import TransformersEngine
from femtune.engines.openai.dialects import LLAMACPP, SGLANG, VLLM, completion_body
from femtune.engines.openai.http import RetryPolicy
from femtune.errors import ConfigError, EngineError, ModelError
from femtune.estep.forced_answers import FORCED_TOKENS
from femtune.sampler import check_able
from femtune.schemes.named import parse_scheme
from femtune.types import Completion, Sampling

from ..greedy import FORMATS, Model, assert_same, greedy_draws
from ..models import byte_tokenizer, tiny_model
from ..openai_engines import QUICK, TOKENIZER, draw, engines, requests, tokens, written
from ..servers import Faults, free_port, serving, token_logprobs_of

KEY = "sk-this-is-secret"
END = TOKENIZER.end_token_id

HTML = (200, {}, "<html><body>Welcome</body></html>")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("base"), num_ends=0)


@pytest.fixture
def make(folder: Path) -> Iterator[Any]:
    with engines(folder) as made:
        yield made


# --- what comes back


@pytest.mark.parametrize("kind", ["vllm", "sglang", "llamacpp"])
def test_draws_are_the_servers_tokens(kind: str, make: Any) -> None:
    with serving(kind) as server:
        engine = make(server.url)
        asked = requests(20)
        found = draw(engine, asked)
    for request in asked:
        expected = written(request, 31 if kind == "llamacpp" else 63)
        logprob = math.fsum(map(token_logprobs_of, expected))
        text = TOKENIZER.decode(expected)
        completion = found[request.key.problem_id]
        assert completion == Completion(expected, text, "stop", pytest.approx(logprob))
    able = engine.capabilities
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
    assert engine.capabilities.scores
    [record] = caplog.records
    assert "encoded again" in record.message


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


def test_an_end_that_is_left_out_is_added_and_its_logprob_unknown(make: Any) -> None:
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
    assert found == pytest.approx(
        [math.fsum(map(token_logprobs_of, completion)) for _, completion in pairs]
    )


@pytest.mark.parametrize("kind", ["vllm", "openai"])
def test_continuations_are_scored_after_their_prefix(kind: str, make: Any) -> None:
    """Those of one token without a prompt's log-probabilities, for which vLLM reads no cached prefix."""
    asked = [(tokens("x"), [(60,), (61,), (62, 63, 64), ()]), (tokens("yy"), []), (tokens("z"), [(60,)])]
    with serving(kind) as server:
        engine = make(server.url)
        seen = len(server.asked)
        found = engine.logprobs_after(asked)
        bodies = server.asked[seen:]
    expected = [[math.fsum(map(token_logprobs_of, each)) for each in several] for _, several in asked]
    assert [len(each) for each in found] == [4, 0, 1]
    for given, right in zip(found, expected, strict=True):
        assert given == pytest.approx(right)
    assert len(bodies) == 4
    if kind == "vllm":
        assert sum("prompt_logprobs" in body for body in bodies) == 1


def test_a_server_that_cannot_score_says_so(make: Any) -> None:
    with serving("openai", faults=Faults(echoes=False)) as server:
        engine = make(server.url)
        assert not engine.capabilities.scores
        with pytest.raises(EngineError, match="can't score"):
            engine.logprob([(tokens("x"), (60,))])
        with pytest.raises(EngineError, match="can't score"):
            engine.logprobs_after([(tokens("x"), [(60,)])])


@pytest.mark.parametrize("scheme", ["pps:4+importance", "star+reasons", "rejection:2+expected"])
def test_a_server_that_lacks_what_a_scheme_needs_is_refused(make: Any, scheme: str) -> None:
    needs = parse_scheme(scheme).needs
    with serving("openai", faults=Faults(echoes=False)) as server:
        with pytest.raises(EngineError, match=r"can't score given completions.*--engine vllm"):
            check_able(make(server.url), needs)
        check_able(make(server.url), parse_scheme("rejection:8+chain+every:3+hard").needs)
    with serving("openai") as server:
        engine = make(server.url)
        check_able(engine, needs)
        engine.capabilities = replace(engine.capabilities, logprobs=False)
        if "importance" in scheme:
            with pytest.raises(
                EngineError, match="does not return log-probabilities of what it samples"
            ):
                check_able(engine, needs)


# --- the handshake


def test_nothing_listens(make: Any) -> None:
    with pytest.raises(EngineError, match="start the server"):
        make(f"http://127.0.0.1:{free_port()}/v1")


def test_it_never_answers(make: Any) -> None:
    retry_policy = RetryPolicy(handshake_s=0.2)
    with serving(faults=Faults(models="hang")) as server:
        with pytest.raises(EngineError, match=r"no answer within 0\.2 s"):
            make(server.url, retry_policy)
        server.faults.models, server.faults.completion = None, lambda body, count: "hang"
        retry_policy = RetryPolicy(handshake_s=0.2, retries=0)
        with pytest.raises(EngineError, match=r"no answer within 0\.2 s"):
            make(server.url, retry_policy)


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
        assert server.asked and KEY not in repr(vars(engine._client)["_client"])


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
        assert not make(server.url).capabilities.seeds
    assert "can't be made again" in caplog.text


def test_it_takes_small_seeds_alone(make: Any) -> None:
    with serving(faults=Faults(largest_seed=2**31 - 1)) as server:
        engine = make(server.url)
        asked = requests(5)
        found = draw(engine, asked)
        assert engine.capabilities.seeds
    assert all(found[r.key.problem_id].tokens == written(r, 31) for r in asked)


@pytest.mark.parametrize("refuses", [frozenset(), frozenset({"logprobs"})])
def test_it_gives_no_logprobs(
    refuses: frozenset[str], make: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(faults=Faults(tells_logprobs=False, refuses=refuses)) as server:
        engine = make(server.url)
        found = draw(engine, requests(2))
    assert not engine.capabilities.logprobs and engine.capabilities.seeds
    assert all(c.finish_reason == "stop" and math.isnan(c.logprob) for c in found.values())
    assert "no log-probabilities" in caplog.text


def test_it_tells_no_tokens(make: Any, caplog: pytest.LogCaptureFixture) -> None:
    with serving(faults=Faults(tells_ids=False)) as server:
        engine = make(server.url)
        found = draw(engine, requests(2))
        assert not engine.capabilities.token_ids
        assert all(found[r.key.problem_id].tokens == written(r) for r in requests(2))
        assert caplog.text.count("encoded again") == 1


def test_logprobs_at_the_samplings_temperature_are_not_the_models(
    make: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(faults=Faults(tempered=True)) as server:
        engine = make(server.url)
        assert engine.capabilities.logprobs and not engine.capabilities.raw_logprobs
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


# --- the same draws as from another engine


@pytest.fixture(scope="module")
def demo_model() -> Model:
    return Model()


@pytest.fixture(scope="module")
def local() -> TransformersEngine:
    return TransformersEngine(SEEDLING, dtype="float32", device="cpu", max_batch=8)


@pytest.mark.parametrize("spec", FORMATS)
def test_cut_and_forced_draws_are_those_of_the_transformers_engine(
    spec: str, demo_model: Model, local: TransformersEngine
) -> None:
    faults = Faults(echoes=False)  # it scores by bytes
    with serving(model=demo_model, faults=faults) as server, engines(SEEDLING) as make:
        retry_policy = replace(QUICK, timeout_s=60.0, handshake_s=60.0)
        engine = make(server.url, retry_policy, tokenizer=local.tokenizer)
        draws = greedy_draws(engine, spec)
        forced = [body for body in server.asked if body["max_tokens"] == FORCED_TOKENS]
    assert_same(draws, greedy_draws(local, spec), spec)
    assert len(forced) == sum(draw.completion.num_forced > 0 for draw in draws)
