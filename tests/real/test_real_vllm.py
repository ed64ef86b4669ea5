"""vLLM serves a pretrained bfloat16 checkpoint as the transformers engine does, but for rounding."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed: see make test-real-vllm")

# before vLLM reads them
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")

from femtune.engines.hf.engine import TransformersEngine
from femtune.engines.vllm.engine import VllmEngine
from femtune.types import Completion, Sampling

from .asking import requests, run, worked_pairs

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(900)]

GREEDY = Sampling(max_new_tokens=16, temperature=0)
ROUNDING = 0.06  # nats a token, by which bfloat16 parts two implementations


@pytest.fixture(scope="module")
def theirs(real_model: Path) -> TransformersEngine:
    return TransformersEngine(real_model, dtype="bfloat16", max_batch=8)


@pytest.fixture(scope="module")
def engine(real_model: Path, theirs: TransformersEngine) -> Iterator[VllmEngine]:
    args: dict[str, Any] = {"enforce_eager": True, "max_model_len": 1024}  # starts sooner
    engine = VllmEngine(real_model, tokenizer=theirs.tokenizer, dtype="bfloat16", max_batch=8, args=args)
    yield engine
    engine.close()


def test_log_probabilities_of_given_completions_agree(
    engine: VllmEngine, theirs: TransformersEngine
) -> None:
    pairs = worked_pairs(theirs.tokenizer)
    apart = [
        abs(one - other) / len(completion)
        for (_, completion), one, other in zip(
            pairs, engine.logprob(pairs), theirs.logprob(pairs), strict=True
        )
    ]
    print("nats a token apart:", [round(value, 4) for value in apart])
    assert max(apart) < ROUNDING


def test_greedy_completions_agree_up_to_near_ties(
    engine: VllmEngine, theirs: TransformersEngine
) -> None:
    """Some are equal; where one is not, each engine finds the other's choice nearly as likely."""
    asked = requests(theirs.tokenizer)
    ours, others = run(engine, asked, GREEDY), run(theirs, asked, GREEDY)
    assert {row.finish_reason for row in ours} <= {"stop", "length"}
    equal = [one.tokens == other.tokens for one, other in zip(ours, others, strict=True)]
    print(f"equal greedy completions: {sum(equal)} of {len(equal)}")
    assert any(equal)  # a near tie within 25 tokens is common: the check of ties below is the strict one
    for request, one, other in zip(asked, ours, others, strict=True):
        if one.tokens != other.tokens:
            first = first_difference(one, other)
            pairs = [(request.tokens, row.tokens[: first + 1]) for row in (one, other)]
            chosen, alternative = theirs.logprob(pairs)
            assert abs(chosen - alternative) < 0.5
    scored = engine.logprob([(r.tokens, row.tokens) for r, row in zip(asked, ours, strict=True)])
    for value, row in zip(scored, ours, strict=True):
        assert row.logprob == pytest.approx(value, abs=ROUNDING * len(row.tokens))


def first_difference(one: Completion, other: Completion) -> int:
    """The first position at which two completions have different tokens."""
    pairs = enumerate(zip(one.tokens, other.tokens, strict=False))
    return next(at for at, (a, b) in pairs if a != b)
