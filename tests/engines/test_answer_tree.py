"""Continuations scored as a tree get what each gets as a pair, for any tree, batch and kind of model."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from femtune.data.worlds import SEEDLING
from femtune.engines.hf import answer_tree
from femtune.engines.hf.engine import TransformersEngine, read_tokenizer
from femtune.engines.hf.prefix_tree import PrefixTree
from femtune.errors import EngineError
from femtune.types import Asked, Engine

from ..models import FAMILIES, tiny_model
from ..models import folder as folder  # fixtures
from ..models import one_thread as one_thread
from .test_hf_memory import NO_MEMORY


@pytest.fixture
def engine(folder: Path) -> TransformersEngine:
    return TransformersEngine(folder, dtype="float32")


def forest(seed: int, num: int = 20, tokens: int = 256) -> list[Asked]:
    """Ragged prefixes, one to three of which share a beginning, and continuations of 0 to 4 tokens."""
    rng = random.Random(seed)
    asked: list[Asked] = []
    while len(asked) < num:
        beginning = rng.choices(range(tokens), k=rng.randint(1, 40))
        for _ in range(rng.randint(1, 3)):
            prefix = (*beginning, *rng.choices(range(tokens), k=rng.randint(0, 12)))
            several = [
                tuple(rng.choices(range(3), k=rng.randint(0, 4))) for _ in range(rng.randint(0, 6))
            ]
            asked.append((prefix, several))
    rng.shuffle(asked)
    return asked


def by_pairs(engine: TransformersEngine, asked: Sequence[Asked]) -> list[float]:
    """Nats of each pair by whole passes of the model itself, in one list."""
    pairs = [(prefix, each) for prefix, several in asked for each in several]
    todo = [pair for pair in pairs if pair[1]]
    with torch.inference_mode():
        whole = iter(engine._score(todo).tolist() if todo else [])
    return [next(whole) if each else 0.0 for _, each in pairs]


def as_trees(engine: Engine, asked: Sequence[Asked]) -> list[float]:
    """The same by `logprobs_after`."""
    found = engine.logprobs_after(asked)
    assert [len(each) for each in found] == [len(several) for _, several in asked]
    return [logprob for each in found for logprob in each]


@pytest.mark.parametrize("family", FAMILIES)
def test_each_continuation_gets_what_its_pair_gets(family: str, tmp_path: Path) -> None:
    """gemma2 (every second layer) and mistral slide a window of 8 over up to 56 tokens."""
    engine = TransformersEngine(tiny_model(tmp_path, family), dtype="float32")
    asked = forest(1)
    assert as_trees(engine, asked) == pytest.approx(by_pairs(engine, asked), abs=1e-4)
    assert {len(each) for _, several in asked for each in several} == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("family", ["qwen3", "llama", "seedling"])
def test_at_16_bits_it_is_off_by_no_more_than_pairs_are(family: str, tmp_path: Path) -> None:
    """Root mean squares of what rounding adds to the same weights at 32 bits, within a factor of 2."""
    if family == "seedling":
        model = transformers.AutoModelForCausalLM.from_pretrained(SEEDLING, dtype=torch.bfloat16)
        model.save_pretrained(tmp_path)
    else:
        tiny_model(tmp_path, family, dtype=torch.bfloat16)
    tokenizer = read_tokenizer(SEEDLING if family == "seedling" else tmp_path)
    engine, exact = (
        TransformersEngine(tmp_path, tokenizer=tokenizer, dtype=dtype)
        for dtype in ("bfloat16", "float32")
    )
    asked = forest(2, 40, tokens=250)
    expected = torch.tensor(by_pairs(exact, asked))
    pairs, trees = (torch.tensor(score(engine, asked)) - expected for score in (by_pairs, as_trees))
    assert 0 < trees.norm() < 2 * pairs.norm()


def test_ratings_after_rationales_with_the_seedling() -> None:
    """Several rationales of a problem, with one-token ratings and with a closed rating."""
    engine = TransformersEngine(SEEDLING, dtype="float32")
    encode = engine.tokenizer.encode_text
    asked: list[Asked] = []
    for problem in ("It wastes no words.", "It gets a date wrong. It covers every part."):
        prompt = engine.tokenizer.encode_prompt(f"Rate the response from 1 to 5.\n\n{problem}")
        for rationale in ("It is short.", "It is short, so it is good.", "A mistake counts double."):
            prefix = (*prompt, *encode(f"{rationale}\nAnswer:"))
            asked.append((prefix, [tuple(encode(f" {n}")) for n in range(1, 6)]))
            asked.append((prefix, [tuple(encode(f" {n}\n")) for n in (1, 5, 10)]))
    assert as_trees(engine, asked) == pytest.approx(by_pairs(engine, asked), abs=1e-4)


tokens = st.integers(0, 2)
prefixes = st.lists(tokens, min_size=1, max_size=12).map(tuple)
continuations = st.lists(st.lists(tokens, max_size=4).map(tuple), max_size=5)
forests = st.lists(st.tuples(prefixes, continuations), max_size=6)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25, deadline=None)
@given(asked=forests, most=st.integers(1, 60))
def test_any_trees_in_batches_of_any_size(
    asked: list[Asked], most: int, engine: TransformersEngine
) -> None:
    """Three tokens alone, so that beginnings and whole prefixes are often shared."""
    expected = by_pairs(engine, asked)
    engine._pass_tokens = most
    assert as_trees(engine, asked) == pytest.approx(expected, abs=1e-4)


@given(asked=forests, most_tokens=st.integers(1, 60), most_logits=st.integers(1, 20))
def test_batches_hold_each_prefix_once_within_the_limits(
    asked: list[Asked], most_tokens: int, most_logits: int
) -> None:
    indices = range(len(asked))
    made = list(answer_tree.batches(asked, indices, most_tokens, most_logits, PrefixTree(0)))
    assert sorted(i for batch in made for group in batch for i in group.members) == [*range(len(asked))]
    for batch in made:
        for group in batch:
            whole = [asked[index][0] for index in group.members]
            assert all(len(each) > group.shared for each in whole)
            assert len({each[: group.shared] for each in whole}) == 1
            built = answer_tree._tree(asked, group)
            assert len(built.tokens) <= group.rest
        if sum(len(group.members) for group in batch) > 1:
            assert answer_tree.padded(batch) <= most_tokens
            assert len(batch) * max(group.num_scored for group in batch) <= most_logits


def all_seen(config: Any, hidden: torch.Tensor, before: torch.Tensor, dtype: torch.dtype) -> Any:
    return torch.zeros(hidden.shape, dtype=dtype)[:, None]


def ancestors_hidden(config: Any, hidden: torch.Tensor, before: torch.Tensor, dtype: Any) -> Any:
    return torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden | (before == 1), -1e9)[:, None]


@pytest.mark.parametrize("wrong", [all_seen, ancestors_hidden])
def test_another_mask_would_be_noticed(
    wrong: Any, engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = forest(3)
    expected = by_pairs(engine, asked)
    assert as_trees(engine, asked) == pytest.approx(expected, abs=1e-4)
    monkeypatch.setattr(answer_tree, "masks", wrong)
    assert as_trees(engine, asked) != pytest.approx(expected, abs=0.1)


@pytest.mark.parametrize("by", [-1, 1])
def test_other_positions_would_be_noticed(
    by: int, engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [each for each in forest(3) if len(each[0]) > 1]
    expected = by_pairs(engine, asked)
    row = answer_tree._row

    def shifted(*args: Any) -> list[tuple[int, ...]]:
        return [(token, position + by, *rest) for token, position, *rest in row(*args)]

    monkeypatch.setattr(answer_tree, "_row", shifted)
    assert as_trees(engine, asked) != pytest.approx(expected, abs=0.1)


def test_a_prefix_passes_once_and_rationales_share_their_prompt(
    engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logits are made of one token a rationale where continuations have one token."""
    passed: list[tuple[int, int]] = []
    whole = engine._quickest

    class Counting:
        config, device, dtype = whole.config, whole.device, whole.dtype

        def __call__(self, *, input_ids: torch.Tensor, **rest: Any) -> Any:
            output = whole(input_ids=input_ids, **rest)
            made = 0 if output.logits is None else output.logits.shape[1]
            passed.append((input_ids.numel(), made))
            return output

    monkeypatch.setattr(engine, "_quickest", Counting())
    prompt = tuple(range(60))
    ratings = [(token,) for token in range(5)]
    engine.logprobs_after([((*prompt, *(7 + i, 8, 9, 10)), ratings) for i in range(3)])
    assert passed == [(60, 0), (3 * 4, 3)]


@pytest.mark.parametrize("error", NO_MEMORY)
def test_out_of_memory_halves_the_pass_and_loses_nothing(
    error: Exception,
    engine: TransformersEngine,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    asked = forest(4, 40)
    expected = by_pairs(engine, asked)
    score = answer_tree.score

    def short(model: Any, asked: Any, batch: Sequence[answer_tree.Group], kept: Any) -> Any:
        if answer_tree.padded(batch) > 150:
            raise error
        return score(model, asked, batch, kept)

    monkeypatch.setattr(answer_tree, "score", short)
    assert as_trees(engine, asked) == pytest.approx(expected, abs=1e-4)
    assert 1 < len(caplog.records) < 6
    assert all("out of memory scoring" in record.message for record in caplog.records)
    caplog.clear()
    as_trees(engine, asked)
    assert not caplog.records  # it goes on with what it has learned


def test_out_of_memory_with_one_prefix_says_what_to_do(
    engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short(*args: Any) -> None:
        raise NO_MEMORY[0]

    monkeypatch.setattr(answer_tree, "score", short)
    with pytest.raises(EngineError, match="out of memory while scoring a single completion"):
        engine.logprobs_after(forest(4))


def test_another_error_is_raised_as_it_is(
    engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*args: Any) -> None:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(answer_tree, "score", fails)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        engine.logprobs_after(forest(4))


def test_what_is_too_long_or_has_no_prefix_is_refused(engine: TransformersEngine) -> None:
    full = (1,) * 250
    assert len(engine.logprobs_after([(full, [(2,) * 6])])[0]) == 1
    with pytest.raises(EngineError, match="a prompt of 250 tokens and up to 7 new ones"):
        engine.logprobs_after([(full, [(2,), (2,) * 7])])
    with pytest.raises(EngineError, match="a prompt of 0 tokens"):
        engine.logprobs_after([((), [(2,)])])


def test_nothing_to_score_is_no_pass(engine: TransformersEngine, monkeypatch: Any) -> None:
    monkeypatch.setattr(engine, "_quickest", None)
    assert engine.logprobs_after([]) == []
    assert engine.logprobs_after([((1,), []), ((1, 2), [()])]) == [[], [0.0]]
