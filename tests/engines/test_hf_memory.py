"""The engine takes little memory, gives it back, and goes on with less where it runs out."""

from __future__ import annotations

import gc
import os
import random
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers

from femtune.engines.hf import batch as hf_batch
from femtune.engines.hf import model as hf_model
from femtune.engines.hf.batch import Batch
from femtune.engines.hf.engine import TransformersEngine, default_max_batch
from femtune.engines.hf.kv_slots import Slots
from femtune.engines.hf.memory import zeros
from femtune.engines.hf.prefix_tree import PrefixTree
from femtune.errors import EngineError
from femtune.types import DrawKey, Request, Sampling

from ..engine_requests import requests, run, tokens_of
from ..models import folder as folder  # fixtures
from ..models import one_thread as one_thread


def test_the_default_batch_is_what_two_gib_of_keys_and_values_hold(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of Qwen3-1.7B's shape at 16 bits: 28 layers, 8 heads of 128: 112 KiB a token."""
    config = transformers.Qwen3Config(
        num_hidden_layers=28, num_key_value_heads=8, head_dim=128, dtype=torch.bfloat16
    )
    assert default_max_batch(config, torch.device("cpu")) == 2 * 2**30 // (112 * 1024 * 512) == 36
    memory = SimpleNamespace(total_memory=80 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: memory)
    assert default_max_batch(config, torch.device("cuda")) == 24 * 2**30 // (112 * 1024 * 1024) == 219
    config.num_hidden_layers = 1
    assert default_max_batch(config, torch.device("cpu")) == 512  # no more: it gets no faster
    assert default_max_batch(config, torch.device("cuda")) == 1024


def test_long_rows_are_written_fewer_at_a_time_and_get_the_same_tokens(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of 8 tokens fill a room of 96 by twelve; with one of up to 40, by two."""
    short = [Request(DrawKey(1, str(i), 0, 0), (5, 6, 7, i), i) for i in range(16)]
    long = [Request(DrawKey(1, f"long{i}", 0, 0), (*range(36), i), i) for i in range(6)]
    sampling = Sampling(max_new_tokens=8)
    rows: list[tuple[int, int]] = []
    step = Batch.step

    def counted(batch: Batch) -> Any:
        rows.append((batch.num_going, max(len(row.request.tokens) for row in batch.rows)))
        return step(batch)

    monkeypatch.setattr(Batch, "step", counted)
    free = TransformersEngine(folder, max_batch=64)
    expected = run(free, [*short, *long], sampling)
    assert max(num for num, _ in rows) == 22
    rows.clear()
    tight = TransformersEngine(folder)
    tight._most_tokens = 96
    assert tokens_of(run(tight, [*short, *long], sampling)) == tokens_of(expected)
    assert max(num for num, longest in rows if longest == 4) == 12
    assert max(num for num, longest in rows if longest == 37) == 2


def test_keys_and_values_are_freed_when_a_call_ends(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once: the cycle collector comes when many objects were made, however large these are."""
    engine = TransformersEngine(folder, max_batch=4)
    steps: list[weakref.ref[torch.Tensor]] = []
    nodes: list[weakref.ref[torch.Tensor]] = []
    step, add = hf_batch.step_logits, PrefixTree.add

    def noted(model: Any, slots: Slots, *rest: Any) -> torch.Tensor:
        logits = step(model, slots, *rest)
        steps.append(weakref.ref(slots.layers[0].keys))
        return logits

    def added(tree: PrefixTree, tokens: Any, read: Callable[[int], torch.Tensor]) -> None:
        def copied(start: int) -> torch.Tensor:
            kept = read(start)
            nodes.append(weakref.ref(kept))
            return kept

        add(tree, tokens, copied)

    monkeypatch.setattr(hf_batch, "step_logits", noted)
    monkeypatch.setattr(PrefixTree, "add", added)
    gc.disable()
    try:
        run(engine, requests(6, longest=100))
        assert steps and nodes
        assert all(held() is None for held in [*steps, *nodes])
    finally:
        gc.enable()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's count of pages")
def test_zeros_take_memory_where_they_are_written_and_give_it_back() -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    before, size = resident(), 256 << 20
    made = zeros((64, size >> 6), torch.zeros(0, dtype=torch.int8))
    assert resident() - before < size // 4
    made[:32] = 1
    assert size // 4 < resident() - before < 3 * size // 4
    assert made.sum(1).tolist() == [size >> 6] * 32 + [0] * 32
    del made
    assert resident() - before < size // 4


def short_of_memory_above(limit: int, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Passes that `fill` and steps of more than `limit` rows fail, as on a device that is too small."""
    step, fill = hf_model.step_logits, hf_model.fill

    def short_step(model: Any, slots: Any, tokens: torch.Tensor, *rest: Any, **named: Any) -> Any:
        logits = step(model, slots, tokens, *rest, **named)
        if len(tokens) > limit:
            raise error
        return logits

    def short_fill(model: Any, slots: Any, prompts: Sequence[Any], *rest: Any) -> None:
        if len(prompts) > limit:
            raise error
        fill(model, slots, prompts, *rest)

    monkeypatch.setattr("femtune.engines.hf.batch.step_logits", short_step)
    monkeypatch.setattr("femtune.engines.hf.batch.fill", short_fill)


NO_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 4 bytes."),
]


@pytest.mark.parametrize("error", NO_MEMORY)
def test_out_of_memory_halves_the_batch_and_loses_nothing(
    error: Exception, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked = requests(100)
    undisturbed = run(TransformersEngine(folder, max_batch=16), asked)
    engine = TransformersEngine(folder, max_batch=16)
    short_of_memory_above(5, monkeypatch, error)
    assert tokens_of(run(engine, asked)) == tokens_of(undisturbed)
    assert [record.message for record in caplog.records] == [
        "out of memory with 16 rows at a time: continuing with 8",
        "out of memory with 8 rows at a time: continuing with 4",
    ]
    run(engine, asked)
    assert len(caplog.records) == 2  # it goes on with what it has learned


@pytest.mark.parametrize("fails_at", range(3, 60, 7))
def test_out_of_memory_while_rows_end_answers_each_once(
    fails_at: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory runs out at the worst place: rows have been marked as ended, but not given back."""
    asked = requests(40)
    undisturbed = run(TransformersEngine(folder, max_batch=8), asked)
    engine = TransformersEngine(folder, max_batch=8)
    tensor, calls = Batch._tensor, iter(range(1, 1000))

    def short(self: Batch, values: Sequence[Any]) -> torch.Tensor:
        if next(calls) == fails_at:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return tensor(self, values)

    monkeypatch.setattr(Batch, "_tensor", short)
    assert tokens_of(run(engine, asked)) == tokens_of(undisturbed)
    assert engine.max_batch == 4


def test_out_of_memory_with_one_row_says_what_to_do(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = TransformersEngine(folder, max_batch=4)
    short_of_memory_above(0, monkeypatch, NO_MEMORY[0])
    with pytest.raises(
        EngineError, match=r"single completion: ask for a shorter max_new_tokens, .*vllm"
    ):
        run(engine, requests(9))


def test_another_error_is_not_taken_for_a_lack_of_memory(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = TransformersEngine(folder, max_batch=4)
    short_of_memory_above(0, monkeypatch, RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        run(engine, requests(9))


def test_out_of_memory_in_scoring_halves_the_pass(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rng = random.Random(0)
    pairs = [(tuple(rng.choices(range(256), k=9)), (7,) * rng.randint(0, 30)) for _ in range(50)]
    engine = TransformersEngine(folder)
    expected = engine.logprob(pairs)
    score = TransformersEngine._score
    limit = 400

    def short(self: TransformersEngine, part: Sequence[Any]) -> torch.Tensor:
        if len(part) * max(sum(map(len, pair)) for pair in part) > limit:
            raise NO_MEMORY[1]
        return score(self, part)

    monkeypatch.setattr(TransformersEngine, "_score", short)
    assert engine.logprob(pairs) == pytest.approx(expected, abs=1e-4)
    assert all("out of memory scoring" in record.message for record in caplog.records)
    num_warnings = len(caplog.records)
    assert 1 <= num_warnings <= 4
    assert engine.logprob(pairs) == pytest.approx(expected, abs=1e-4)
    assert len(caplog.records) == num_warnings
    limit = 0
    with pytest.raises(EngineError, match="scoring a single completion"):
        engine.logprob(pairs)
