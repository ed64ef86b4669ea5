"""vLLM serves what it was told to: the same model as the transformers engine's, after every load."""

from __future__ import annotations

import json
import logging
import math
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed: see make test-vllm")

# before vLLM reads them
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")

import peft
import psutil
import torch
import transformers

from femtune.data.chat_tokenizer import ChatTokenizer
from femtune.data.worlds import SEEDLING
from femtune.engines.hf.engine import TransformersEngine, read_tokenizer
from femtune.engines.vllm.engine import VllmEngine
from femtune.engines.vllm.setup import read_end_tokens
from femtune.engines.weight_check import WeightCheck, check_served, write_check
from femtune.errors import ConfigError, EngineError, ModelError
from femtune.types import DrawKey, Engine, Request, Sampling

from ..engine_requests import pull_from, requests, run, tokens_of
from ..greedy import FORMATS, assert_same, greedy_draws
from ..models import byte_tokenizer, tiny_model

# a start of vLLM takes half a minute, so that engines are shared, and tests leave them as they were
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

TOKENIZER = ChatTokenizer(byte_tokenizer())
GREEDY = Sampling(max_new_tokens=24, temperature=0)
NORMAL = Sampling(max_new_tokens=24, temperature=0.7, top_p=0.9)
ARGS = {"enforce_eager": True}  # starts sooner
NEAR = 1e-3  # nats a completion


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)
    transformers.logging.disable_progress_bar()


def pairs_of(num: int = 12) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    rng = random.Random(5)
    completions = [tuple(rng.choices(range(256), k=rng.randint(1, 20))) for _ in range(num)]
    return [(r.tokens, done) for r, done in zip(requests(num), completions, strict=True)]


def changed(folder: Path, to: Path, seed: int = 1) -> Path:
    """Write a model with all weights of another's a little off."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    torch.manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * weight.abs().mean() * torch.randn_like(weight))
    model.save_pretrained(to)
    return to


def adapter(base: Path, to: Path, seed: int, rank: int = 4) -> Path:
    """Write a LoRA adapter with weights that matter."""
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    config = peft.LoraConfig(r=rank, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(model, config)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.copy_(0.05 * torch.randn_like(weight))
    adapted.save_pretrained(to)
    return to


def apart(engine: Engine, weights: Path) -> float:
    """The largest difference from what the transformers engine gives for these weights, in nats."""
    pairs = pairs_of()
    expected = TransformersEngine(weights, tokenizer=TOKENIZER, dtype="float32").logprob(pairs)
    return max(abs(a - b) for a, b in zip(engine.logprob(pairs), expected, strict=True))


def end_of(engine: VllmEngine) -> list[Any]:
    """Requests that vLLM still has."""
    return list(engine._engine.output_processor.request_states)


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(
        tmp_path_factory.mktemp("tied"), head_dim=32, tie_word_embeddings=True, sharpness=1
    )


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("untied"), head_dim=32)


def start(model: Path, **settings: Any) -> VllmEngine:
    settings = {"tokenizer": TOKENIZER, "dtype": "float32", "max_batch": 8, "args": ARGS, **settings}
    return VllmEngine(model, **settings)


@pytest.fixture(scope="module")
def of_untied(untied: Path) -> Iterator[VllmEngine]:
    engine = start(untied)
    yield engine
    engine.close()


@pytest.fixture
def engine(of_untied: VllmEngine, untied: Path) -> VllmEngine:
    of_untied.load(untied)
    return of_untied


@pytest.fixture(scope="module")
def theirs(untied: Path) -> TransformersEngine:
    return TransformersEngine(untied, tokenizer=TOKENIZER, dtype="float32", max_batch=8)


def test_greedy_tokens_are_those_of_the_transformers_engine(
    engine: VllmEngine, theirs: TransformersEngine
) -> None:
    asked = requests(30)
    assert tokens_of(run(engine, asked, GREEDY)) == tokens_of(run(theirs, asked, GREEDY))


def test_log_probabilities_are_the_models_whatever_the_sampling(
    engine: VllmEngine, theirs: TransformersEngine
) -> None:
    asked = requests(30)
    done = run(engine, asked, NORMAL)
    pairs = [(request.tokens, done[request.key.problem_id].tokens) for request in asked]
    expected = theirs.logprob(pairs)
    assert [done[request.key.problem_id].logprob for request in asked] == pytest.approx(
        expected, abs=NEAR
    )
    assert engine.logprob(pairs) == pytest.approx(expected, abs=NEAR)
    assert engine.logprob(pairs) == pytest.approx(expected, abs=NEAR)  # with their prefixes cached


def test_scores_pairs_that_fill_the_context_and_empty_ones(
    engine: VllmEngine, theirs: TransformersEngine
) -> None:
    long = (tuple(range(200)), tuple(range(200, 256)))
    assert sum(map(len, long)) == engine.context == theirs.context
    pairs = [long, ((5,), (6,)), ((5, 6), ())]
    assert engine.logprob(pairs) == pytest.approx(theirs.logprob(pairs), abs=NEAR)


def test_continuations_get_the_log_probabilities_that_their_pairs_get(
    engine: VllmEngine, theirs: TransformersEngine
) -> None:
    """Of more first tokens than vLLM scores at once, token 0 among them, and up to the context's end."""
    rng = random.Random(6)
    several = [tuple(rng.choices(range(3), k=rng.randint(0, 4))) for _ in range(20)]
    asked = [(request.tokens, several[: 3 * i]) for i, request in enumerate(requests(6))]
    asked.append(((7,) * 40, [(token,) for token in range(200)]))
    asked.append(((7,) * 252, [(1, 2, 3, 4), (1, 2, 5)]))
    for _ in range(2):  # then with their prefixes cached
        found = engine.logprobs_after(asked)
        for given, expected in zip(found, theirs.logprobs_after(asked), strict=True):
            assert given == pytest.approx(expected, abs=NEAR)
    assert (
        sum(map(math.exp, found[-2])) < 1
    )  # of the softmax over all tokens, not of those that are named
    assert not end_of(engine)
    with pytest.raises(EngineError, match="a continuation to score"):
        engine.logprobs_after([((7,) * 252, [(1,) * 5])])


def test_a_draw_is_the_same_in_any_order_and_another_by_another_seed(engine: VllmEngine) -> None:
    asked = requests(30)
    done = tokens_of(run(engine, asked, NORMAL))
    again = random.Random(0).sample(asked, 30)
    assert tokens_of(run(engine, again, NORMAL)) == done
    assert tokens_of(run(engine, asked[:3], NORMAL)) == {name: done[name] for name in "012"}
    others = tokens_of(
        run(engine, [replace(request, seed=request.seed + 99) for request in asked], NORMAL)
    )
    assert sum(others[name] != done[name] for name in done) > 15


def test_ends_with_an_end_token_or_is_cut_off(engine: VllmEngine, untied: Path) -> None:
    ends = read_end_tokens(untied, TOKENIZER)
    assert {*range(16), TOKENIZER.end_token_id} == ends
    done = run(engine, requests(40), Sampling(max_new_tokens=12)).values()
    reasons = {completion.finish_reason for completion in done}
    assert reasons == {"stop", "length"}
    for completion in done:
        assert all(token not in ends for token in completion.tokens[:-1])
        assert (completion.tokens[-1] in ends) == (completion.finish_reason == "stop")
        assert len(completion.tokens) == 12 or completion.finish_reason == "stop"
        assert completion.text == TOKENIZER.decode(completion.tokens)


def test_what_a_yield_brings_about_is_asked_for(engine: VllmEngine) -> None:
    """Each problem is tried three times, the next when the last is in: no barrier, nothing lost."""
    todo = requests(20)
    done: list[Request] = []
    for finished in engine.generate(pull_from(todo), NORMAL):
        for request, _ in finished:
            done.append(request)
            if request.key.index < 2:
                key = replace(request.key, index=request.key.index + 1)
                todo.insert(0, replace(request, key=key, seed=request.seed + 1000))
    assert sorted(r.key for r in done) == [
        DrawKey(1, p, 0, i) for p in sorted(map(str, range(20))) for i in range(3)
    ]


def test_asks_for_no_more_than_it_says_and_leaves_nothing_when_stopped(engine: VllmEngine) -> None:
    rooms: list[int] = []
    todo = requests(50)

    def pull(room: int) -> Sequence[Request]:
        rooms.append(room)
        return pull_from(todo)(room)

    parts = engine.generate(pull, NORMAL)
    next(parts)
    parts.close()  # type: ignore[attr-defined]  # a generator
    assert rooms[0] == 12  # eight rows and four that wait
    assert end_of(engine) == []
    assert len(run(engine, requests(5), NORMAL)) == 5


def test_refuses_what_is_too_long(engine: VllmEngine) -> None:
    with pytest.raises(EngineError, match=r'problem "0": a prompt of \d+ tokens and up to 256 new ones'):
        run(engine, requests(3), Sampling(max_new_tokens=256))
    with pytest.raises(EngineError, match="a pair to score"):
        engine.logprob([((1,) * 200, (2,) * 57)])
    assert end_of(engine) == []


def test_serves_new_untied_weights_in_place(
    engine: VllmEngine, untied: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asked = requests(20)
    before = run(engine, asked, GREEDY)  # prompts are in the prefix cache now
    started = engine._llm
    new = changed(untied, tmp_path / "new")
    engine.load(new)
    assert engine._llm is started
    assert apart(engine, new) < NEAR < apart(engine, untied)
    expected = TransformersEngine(new, tokenizer=TOKENIZER, dtype="float32")
    after = run(engine, asked, GREEDY)
    assert tokens_of(after) == tokens_of(run(expected, asked, GREEDY)) != tokens_of(before)
    engine.load(untied)
    assert apart(engine, untied) < NEAR
    assert engine._llm is started and not caplog.records


def test_loads_again_only_what_has_changed(
    engine: VllmEngine, untied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[Path] = []
    monkeypatch.setattr(engine, "_serve_full", loads.append)
    engine.load(untied)
    engine.release()  # on a CPU its memory stays
    engine.load(untied)
    assert loads == []
    os.utime(untied / "model.safetensors", ns=(1, 1))
    engine.load(untied)
    assert loads == [untied]


def test_refuses_folders_that_are_no_such_model(engine: VllmEngine, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no model that can be read"):
        engine.load(tmp_path)
    with pytest.raises(ModelError, match="vocabulary of 300 tokens, the engine's model 260"):
        engine.load(tiny_model(tmp_path / "larger", head_dim=32, vocab_size=300))
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 8}))
    with pytest.raises(ModelError, match="rank 8, the engine was started for full models"):
        engine.load(tmp_path)


def test_cut_and_forced_draws_are_those_of_the_transformers_engine() -> None:
    theirs = TransformersEngine(SEEDLING, dtype="float32", device="cpu", max_batch=8)
    engine = start(SEEDLING, tokenizer=theirs.tokenizer)
    try:
        for spec in FORMATS:
            assert_same(greedy_draws(engine, spec), greedy_draws(theirs, spec), spec)
    finally:
        engine.close()


def test_tied_weights_a_wrong_update_and_an_end(
    tied: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One engine for all three, as each start takes long."""
    engine = start(tied)
    started = engine._llm
    new = changed(tied, tmp_path / "new")
    engine.load(new)
    assert engine._llm is started
    assert apart(engine, new) < NEAR < apart(engine, tied)

    newer = changed(tied, tmp_path / "newer", seed=2)
    check = probe_of(newer, before=new)
    write_check(newer, check)
    # vLLM's own reload, which leaves the packed copy of a tied output layer as it was
    rpc = engine._llm.collective_rpc
    wrong = lambda name, args: rpc("reload_weights", kwargs={"weights_path": args[0]})  # noqa: E731
    monkeypatch.setattr(engine._llm, "collective_rpc", wrong)
    with caplog.at_level(logging.WARNING, logger="femtune"):
        engine.load(newer)
    assert engine._llm is not started
    assert [r.message for r in caplog.records if "did not take the weights" in r.message]
    check_served(engine, check, 0.001)
    assert apart(engine, newer) < NEAR

    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        run(engine, requests(1), NORMAL)


def probe_of(weights: Path, before: Path) -> WeightCheck:
    prompts, completions = zip(*pairs_of(4), strict=True)
    logprobs = [
        TransformersEngine(folder, tokenizer=TOKENIZER, dtype="float32").logprob(pairs_of(4))
        for folder in (weights, before)
    ]
    return WeightCheck(prompts, completions, *logprobs)


def test_adapters_take_turns_over_one_base(tied: Path, tmp_path: Path) -> None:
    first, second = (adapter(tied, tmp_path / str(seed), seed) for seed in (1, 2))
    engine = start(first, lora_rank=4)  # by an adapter's folder: its base is found, and it is served
    try:
        assert apart(engine, first) < NEAR < min(apart(engine, second), apart(engine, tied))
        asked = requests(20)
        run(engine, asked, GREEDY)
        engine.load(second)
        assert apart(engine, second) < NEAR < apart(engine, first)
        expected = TransformersEngine(second, tokenizer=TOKENIZER, dtype="float32")
        assert tokens_of(run(engine, asked, GREEDY)) == tokens_of(run(expected, asked, GREEDY))
        prefixes = [(request.tokens, [(1,), (2, 3), (2, 4)]) for request in asked]
        found = zip(engine.logprobs_after(prefixes), expected.logprobs_after(prefixes), strict=True)
        assert all(given == pytest.approx(theirs, abs=NEAR) for given, theirs in found)
        engine.load(tied)
        assert apart(engine, tied) < NEAR
        engine.load(first)
        assert apart(engine, first) < NEAR
        with pytest.raises(
            ModelError, match=r"rank 16, the engine was started for rank 4.*lora_rank=16"
        ):
            engine.load(adapter(tied, tmp_path / "wide", 3, rank=16))
    finally:
        engine.close()


def test_serves_the_seedling_by_its_text() -> None:
    theirs = TransformersEngine(SEEDLING, dtype="float32")
    engine = start(SEEDLING, tokenizer=theirs.tokenizer, max_batch=None)
    try:
        prompt = theirs.tokenizer.encode_prompt("What is 2 + 2?")
        asked = [Request(DrawKey(1, str(i), 0, 0), prompt, i) for i in range(20)]
        done, expected = (run(e, asked[:1], GREEDY)["0"] for e in (engine, theirs))
        assert (done.tokens, done.text, done.finish_reason) == (
            expected.tokens,
            expected.text,
            expected.finish_reason,
        )
        assert done.logprob == pytest.approx(expected.logprob, abs=NEAR)
        assert len(set(tokens_of(run(engine, asked, NORMAL)).values())) > 1
    finally:
        engine.close()


def test_says_what_vllm_has_not(untied: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no engine argument tensor_parallel: see"):
        start(untied, args={"tensor_parallel": 2})
    with pytest.raises(ConfigError, match=r"model is set by femtune"):
        start(untied, args={"model": "x"})
    with pytest.raises(ConfigError, match="up to rank 512"):
        start(untied, lora_rank=513)
    with pytest.raises(ModelError, match="vLLM can't serve"):
        start(tmp_path)


def test_says_how_to_install_vllm(untied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ConfigError, match="pip install vllm"):
        start(untied)


def test_prompts_that_do_not_fit_into_one_step_are_served_too() -> None:
    """vLLM would cut the last of them, and die of its seed on a CPU."""
    asked = [replace(r, tokens=(r.tokens * 40)[:40]) for r in requests(300)]
    engine = start(SEEDLING, tokenizer=read_tokenizer(SEEDLING), max_batch=256)
    try:
        assert len(run(engine, asked, replace(NORMAL, max_new_tokens=4))) == 300
    finally:
        engine.close()


KILLED = """
import os, sys, time
from femtune.engines.hf.engine import read_tokenizer
from femtune.engines.vllm.engine import VllmEngine

if __name__ == "__main__":
    engine = VllmEngine(sys.argv[1], tokenizer=read_tokenizer(sys.argv[1]), args={"enforce_eager": True})
    print("ready", flush=True)
    time.sleep(300)
"""


def test_vllm_ends_with_a_process_that_is_killed(tmp_path: Path) -> None:
    """Else its process would keep the GPU's memory, and the same command could not go on."""
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    argv = [sys.executable, str(script), str(SEEDLING)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert any(line.strip() == "ready" for line in process.stdout)
        begun = [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
        assert begun
        process.kill()
        deadline = time.monotonic() + 30
        while any(map(is_alive, begun)):
            assert time.monotonic() < deadline, begun
            time.sleep(0.2)


def is_alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
