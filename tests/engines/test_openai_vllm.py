"""The same engine against vLLM's own server, on the CPU, with the seedling."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed: see make test-vllm")

import httpx2
import peft
import torch
import transformers

from femtune.data.chat_tokenizer import ChatTokenizer
from femtune.data.worlds import SEEDLING
from femtune.engines.hf.engine import TransformersEngine, read_tokenizer
from femtune.engines.openai.engine import OpenAIEngine
from femtune.engines.openai.http import RetryPolicy
from femtune.errors import ConfigError, ModelError
from femtune.types import Capabilities, Completion, DrawKey, Request, Sampling, draw_seed

from ..models import byte_tokenizer
from ..servers import free_port

KEY = "a-key-for-tests"
READY_S = 240.0
TOKENIZER = read_tokenizer(SEEDLING)
QUESTIONS = [f"Add {i} and {i + 7}." for i in range(12)]


@pytest.fixture(scope="module", autouse=True)
def _key() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_API_KEY", KEY)
        yield


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    port = free_port()
    log = tmp_path_factory.mktemp("vllm") / "log"
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(SEEDLING)]
    command += ["--served-model-name", "seedling", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--dtype", "float32", "--enforce-eager", "--max-model-len", "512"]
    command += ["--max-num-seqs", "16", "--enable-lora", "--max-lora-rank", "8"]
    environment = {
        **os.environ,
        "VLLM_API_KEY": KEY,
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    with log.open("w") as out:
        server = subprocess.Popen(command, env=environment, stdout=out, stderr=out)
    try:
        wait_until_ready(f"http://127.0.0.1:{port}/health", server, log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait(60)


def wait_until_ready(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + READY_S
    while True:
        try:
            if httpx2.get(url, timeout=5).status_code == 200:
                return
        except httpx2.HTTPError:
            pass
        assert server.poll() is None, log.read_text()[-4000:]
        assert time.monotonic() < until, log.read_text()[-4000:]
        time.sleep(0.5)


@pytest.fixture(scope="module")
def engine(url: str) -> Iterator[OpenAIEngine]:
    retry_policy = RetryPolicy(timeout_s=120, retries=2)
    engine = OpenAIEngine(SEEDLING, tokenizer=TOKENIZER, base_url=url, retry_policy=retry_policy)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def local() -> TransformersEngine:
    return TransformersEngine(SEEDLING, dtype="float32", device="cpu")


def requests(texts: Sequence[str], run_seed: int = 0) -> list[Request]:
    keys = [DrawKey(1, text, 0, 0) for text in texts]
    encode = TOKENIZER.encode_prompt
    return [Request(key, encode(key.problem_id), draw_seed(run_seed, key)) for key in keys]


def draw(engine: Any, asked: Sequence[Request], **sampling: Any) -> list[Completion]:
    """Completions in order of the requests."""
    todo = list(asked)

    def pull(room: int) -> list[Request]:
        given, todo[:room] = todo[:room], []
        return given

    settings = Sampling(**{"max_new_tokens": 40, **sampling})
    found = {r.key: completion for batch in engine.generate(pull, settings) for r, completion in batch}
    return [found[request.key] for request in asked]


def test_all_abilities_are_found(engine: OpenAIEngine) -> None:
    assert engine.capabilities == Capabilities(
        seeds=True, logprobs=True, raw_logprobs=True, token_ids=True, scores=True, adapters=True
    )
    assert engine.context == 512


def test_greedy_draws_are_those_of_transformers(engine: OpenAIEngine, local: TransformersEngine) -> None:
    asked = requests(QUESTIONS)
    for served, expected in zip(
        draw(engine, asked, temperature=0.0), draw(local, asked, temperature=0.0), strict=True
    ):
        assert (served.tokens, served.text) == (expected.tokens, expected.text)
        assert served.finish_reason == expected.finish_reason
        assert served.logprob == pytest.approx(expected.logprob, abs=1e-3)


@pytest.mark.parametrize(
    "sampling", [{}, {"temperature": 0.6}, {"top_p": 0.7, "top_k": 3, "temperature": 1.3}], ids=str
)
def test_sampled_draws_have_the_models_own_logprobs(
    sampling: dict[str, Any], engine: OpenAIEngine, local: TransformersEngine
) -> None:
    asked = requests(QUESTIONS)
    found = draw(engine, asked, **sampling)
    pairs = [(r.tokens, completion.tokens) for r, completion in zip(asked, found, strict=True)]
    expected = local.logprob(pairs)
    assert [completion.logprob for completion in found] == pytest.approx(expected, abs=1e-3)
    assert engine.logprob(pairs) == pytest.approx(expected, abs=1e-3)


def test_seeds_are_respected_whatever_the_batch(engine: OpenAIEngine) -> None:
    asked = requests(QUESTIONS)
    together = [completion.tokens for completion in draw(engine, asked)]
    alone = [draw(engine, [request])[0].tokens for request in asked]
    assert together == alone
    others = [completion.tokens for completion in draw(engine, requests(QUESTIONS, run_seed=1))]
    assert others != together


def test_a_pair_that_fills_the_context_is_scored(engine: OpenAIEngine, local: Any) -> None:
    prompt = TOKENIZER.encode_prompt(QUESTIONS[0])
    pair = (prompt, (prompt * 40)[: 512 - len(prompt)])
    assert engine.logprob([pair]) == pytest.approx(local.logprob([pair]), abs=0.02)


def test_adapters_are_served_in_turn(
    engine: OpenAIEngine, local: TransformersEngine, tmp_path: Path
) -> None:
    asked = requests(QUESTIONS[:4])
    pairs = [(r.tokens, TOKENIZER.encode_completion("I add.\nAnswer: 7")) for r in asked]
    base = local.logprob(pairs)
    try:
        for seed in (1, 2):
            folder = make_adapter(tmp_path / str(seed), seed)
            expected = TransformersEngine(folder, tokenizer=TOKENIZER, dtype="float32", device="cpu")
            engine.load(folder)
            scores = expected.logprob(pairs)
            assert engine.logprob(pairs) == pytest.approx(scores, abs=1e-3)
            assert scores != pytest.approx(base, abs=0.1)
            greedy = [draw(one, asked, temperature=0.0)[0].tokens for one in (engine, expected)]
            assert greedy[0] == greedy[1]
    finally:
        engine.load(SEEDLING)
    assert engine.logprob(pairs) == pytest.approx(base, abs=1e-3)
    listed = httpx2.get(
        f"{next(iter(engine._servers))}/models", headers={"authorization": f"Bearer {KEY}"}
    )
    assert [card["id"] for card in listed.json()["data"]] == ["seedling"]


def make_adapter(folder: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_pretrained(SEEDLING, dtype=torch.float32)
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    peft.get_peft_model(model, config).save_pretrained(folder)
    return folder


def test_an_adapter_of_too_high_a_rank_is_refused(engine: OpenAIEngine, tmp_path: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(SEEDLING, dtype=torch.float32)
    config = peft.LoraConfig(r=64, target_modules=["q_proj"], init_lora_weights=False)
    peft.get_peft_model(model, config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="max-lora-rank"):
        engine.load(tmp_path)
    assert len(draw(engine, requests(QUESTIONS))) == len(QUESTIONS)


def test_wrong_names_and_tokenizers_are_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"does not serve 'sapling': .*seedling"):
        OpenAIEngine(SEEDLING, tokenizer=TOKENIZER, base_url=url, served_model="sapling")
    with pytest.raises(ModelError, match="another tokenizer"):
        OpenAIEngine(SEEDLING, tokenizer=ChatTokenizer(byte_tokenizer()), base_url=url)
    monkeypatch.setenv("OPENAI_API_KEY", "another")
    with pytest.raises(ConfigError, match="set OPENAI_API_KEY"):
        OpenAIEngine(SEEDLING, tokenizer=TOKENIZER, base_url=url)
