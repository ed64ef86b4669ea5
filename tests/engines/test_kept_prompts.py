"""Prompts that begin alike pass what they share once, and draws and scores stay what they are."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from femtune.engines.hf.engine import TransformersEngine
from femtune.engines.hf.fused import Fused
from femtune.types import Asked, Completion, DrawKey, Request, Sampling, Tokens

from ..engine_requests import pull_from, requests, run, tokens_of
from ..models import FAMILIES, tiny_model
from ..models import folder as folder  # fixtures
from ..models import one_thread as one_thread

SAMPLING = Sampling(max_new_tokens=12)


def problems(num: int, hints: int = 1) -> list[Request]:
    """Requests in the order of a scheme: two attempts at a problem, then `hints` hinted prompts of it.

    Of two problems in a row, the prompts share 40 tokens; hinted prompts share 60 with the plain one.
    """
    asked = []
    for i in range(num):
        own = tuple(range(30 + i // 2, 70 + i // 2))
        plain = (*own, *((3 * i + n) % 250 for n in range(25)), 7)
        for attempt in range(2):
            asked.append(Request(DrawKey(1, f"{i}-{attempt}", 0, attempt), plain, 10 * i + attempt))
        for hint in range(hints):
            hinted = (*plain[:60], 200 + hint, 201, 202)
            asked.append(Request(DrawKey(1, f"{i}-h{hint}", 1, 0), hinted, 10 * i + 5 + hint))
    return asked


def num_distinct(prompts: Sequence[Tokens]) -> int:
    """Nodes of the tree of all prompts."""
    return len({prompt[: n + 1] for prompt in prompts for n in range(len(prompt))})


@pytest.mark.parametrize("family", FAMILIES)
def test_draws_are_the_same_and_each_prompt_token_passes_once(family: str, tmp_path: Path) -> None:
    """gemma2 (every second layer) and mistral slide a window of 8; others but gpt2 have a fused pass."""
    folder = tiny_model(tmp_path, family)
    asked = problems(8)
    plain, keeping = (
        TransformersEngine(folder, dtype="float32", max_batch=3, kept_bytes=size)
        for size in (0, 1 << 30)
    )
    expected = run(plain, asked, SAMPLING)
    found = run(keeping, asked, SAMPLING)
    assert tokens_of(found) == tokens_of(expected)
    for name, completion in found.items():
        assert completion.logprob == pytest.approx(expected[name].logprob, abs=1e-3)
    prompts = [request.tokens for request in asked]
    count = keeping.prompt_tokens
    assert count.asked == sum(map(len, prompts)) == plain.prompt_tokens.asked
    # the last token of a prompt passes with each attempt; fewer than 16 shared tokens pass again
    least = num_distinct([prompt[:-1] for prompt in prompts]) + len(prompts)
    assert least <= count.computed <= least + 16 * len(set(prompts))
    assert count.computed < 0.6 * plain.prompt_tokens.computed


@pytest.mark.parametrize("num_tokens", [30, 100, 200])
def test_with_room_for_a_few_prompts_draws_are_the_same(num_tokens: int, tmp_path: Path) -> None:
    folder = tiny_model(tmp_path, "qwen3")
    expected = run(TransformersEngine(folder, max_batch=4, kept_bytes=0), problems(12), SAMPLING)
    engine = TransformersEngine(folder, max_batch=4)
    config = engine._model.config
    token_bytes = 8 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    engine.kept_bytes = num_tokens * token_bytes
    found: dict[str, Completion] = {}
    for part in engine.generate(pull_from(problems(12)), replace(SAMPLING, continued=True)):
        assert engine._tree.num_bytes <= engine.kept_bytes
        found |= {request.key.problem_id: completion for request, completion in part}
    assert tokens_of(found) == tokens_of(expected)


def test_in_16_bits_draws_differ_by_rounding_alone(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path, "llama", dtype=torch.bfloat16)
    asked = problems(16)
    engines = [TransformersEngine(folder, max_batch=4, kept_bytes=size) for size in (0, 1 << 30)]
    assert all(isinstance(engine._quickest, Fused) for engine in engines)
    expected, found = (run(engine, asked, SAMPLING) for engine in engines)
    same = [name for name in found if found[name].tokens == expected[name].tokens]
    assert len(same) > 0.8 * len(asked)
    for name in same:
        assert found[name].logprob == pytest.approx(expected[name].logprob, abs=0.5)


def test_a_shared_beginning_apart_and_kept_prompts_go_together(tmp_path: Path) -> None:
    """Five prompts that share 70 tokens have these apart; what follows is kept for those that come."""
    folder = tiny_model(tmp_path, "llama")
    shared = tuple(range(100, 170))
    first = [replace(r, tokens=(*shared, *r.tokens)) for r in requests(5, longest=9)]
    later = [replace(r, tokens=(*shared, *r.tokens)) for r in problems(4)]
    asked = [*first, *later]
    engine = TransformersEngine(folder, dtype="float32", max_batch=5, kept_bytes=1 << 30)
    found = run(engine, asked, SAMPLING)
    alone = TransformersEngine(folder, dtype="float32", max_batch=1, kept_bytes=0)
    assert tokens_of(found) == tokens_of(run(alone, asked, SAMPLING))
    prompts = [request.tokens for request in asked]
    least = num_distinct([prompt[:-1] for prompt in prompts]) + len(prompts)
    assert engine.prompt_tokens.computed <= least + 16 * len(set(prompts))


def test_a_call_begins_with_nothing_kept_and_so_gives_the_same_bit_for_bit(folder: Path) -> None:
    engine = TransformersEngine(folder, max_batch=4)
    first = run(engine, problems(6), replace(SAMPLING, continued=True))
    assert engine._tree.num_bytes
    assert run(engine, problems(6), SAMPLING) == first  # log-probabilities too
    assert engine._tree.num_bytes == 0


def test_other_weights_and_a_release_drop_what_is_kept(folder: Path, tmp_path: Path) -> None:
    engine = TransformersEngine(folder, max_batch=4)
    run(engine, problems(2), replace(SAMPLING, continued=True))
    engine.load(tiny_model(tmp_path, seed=1))
    assert engine._tree.num_bytes == 0
    run(engine, problems(2), replace(SAMPLING, continued=True))
    engine.release()
    assert engine._tree.num_bytes == 0


class Passes:
    """Counts the tokens of an engine's passes, on their way to its model."""

    def __init__(self, engine: TransformersEngine) -> None:
        self._quickest: Any = engine._quickest
        self.config, self.device, self.dtype = (
            getattr(self._quickest, name) for name in ("config", "device", "dtype")
        )
        self.num_tokens = 0

    def __call__(self, *, input_ids: torch.Tensor, **rest: Any) -> Any:
        self.num_tokens += input_ids.numel()
        return self._quickest(input_ids=input_ids, **rest)


def scored_between(
    engine: TransformersEngine, asked: Sequence[Request]
) -> Iterator[tuple[list[Asked], list[list[float]], int]]:
    """Answers after completions less their last two tokens, scored as completions end; tokens passed."""
    for part in engine.generate(pull_from(list(asked)), replace(SAMPLING, continued=True)):
        after = [((*r.tokens, *c.tokens[:-2]), [(1,), (2, 3), (2, 4)]) for r, c in part]
        fused = engine._quickest
        engine._quickest = passes = Passes(engine)
        yield after, engine.logprobs_after(after), passes.num_tokens
        engine._quickest = fused


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_after_a_new_completion_get_what_they_get_by_themselves(
    family: str, tmp_path: Path
) -> None:
    engine = TransformersEngine(tiny_model(tmp_path, family), dtype="float32", max_batch=4)
    other = TransformersEngine(tmp_path, dtype="float32")
    found: dict[Tokens, list[float]] = {}
    for after, values, num_tokens in scored_between(engine, problems(5)):
        found |= {tuple(prefix): nats for (prefix, _), nats in zip(after, values, strict=True)}
        # the last token of the prefix and one node of the continuations, of each
        assert num_tokens == 2 * len(after)
    assert len(found) > 10
    pairs = [(prefix, each) for prefix in found for each in ((1,), (2, 3), (2, 4))]
    with torch.inference_mode():
        expected = other._score(pairs).tolist()
    assert [nats for each in found.values() for nats in each] == pytest.approx(expected, abs=1e-4)


def test_scoring_between_does_not_change_the_draws_that_follow(folder: Path) -> None:
    engine = TransformersEngine(folder, max_batch=4)
    sampling = replace(SAMPLING, continued=True)
    expected = list(engine.generate(pull_from(problems(5)), sampling))
    made = []
    for part in engine.generate(pull_from(problems(5)), sampling):
        made.append(part)
        engine.logprobs_after([((*r.tokens, 9, 9), [(1,), (2, 3)]) for r, _ in part])
        engine.logprob([(r.tokens, c.tokens) for r, c in part] * 2)
    assert made == expected  # log-probabilities too


def test_another_thread_scores_without_what_is_kept(folder: Path) -> None:
    """There it may be dropped between looking it up and reading it."""
    engine = TransformersEngine(folder, dtype="float32", max_batch=2)
    stream = scored_between(engine, problems(2))
    after, here, _ = next(stream)
    there: list[list[list[float]]] = []
    engine._quickest = passes = Passes(engine)
    thread = threading.Thread(target=lambda: there.append(engine.logprobs_after(after)))
    thread.start()
    thread.join()
    assert passes.num_tokens > sum(len(prefix) for prefix, _ in after) / len(after)
    for mine, others in zip(here, there[0], strict=True):
        assert mine == pytest.approx(others, abs=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_completions_of_prompts_that_begin_alike_are_scored_by_fewer_tokens(
    family: str, tmp_path: Path
) -> None:
    engine = TransformersEngine(tiny_model(tmp_path, family), dtype="float32")
    pairs = [(r.tokens, tuple(range(i, i + 5))) for i, r in enumerate(problems(6, hints=2))]
    pairs += [(pairs[0][0], ()), pairs[3]]
    with torch.inference_mode():
        expected = engine._score([pair for pair in pairs if pair[1]]).tolist()
    expected.insert(len(pairs) - 2, 0.0)
    own = engine._quickest
    engine._quickest = passes = Passes(engine)
    assert engine.logprob(pairs) == pytest.approx(expected, abs=1e-4)
    assert passes.num_tokens < 0.6 * sum(len(prompt) + len(rest) for prompt, rest in pairs)
    engine._quickest = own
