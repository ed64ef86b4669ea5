"""The engine gives what the model by itself would, for any batch, schedule and kind of model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from femtune.engines.hf import model as hf_model
from femtune.engines.hf.batch import Batch
from femtune.engines.hf.engine import TransformersEngine
from femtune.engines.hf.fused import Fused
from femtune.errors import EngineError
from femtune.types import DrawKey, Request, Sampling

from ..engine_requests import NORMAL, pull_from, requests, run, tokens_of
from ..models import FAMILIES, byte_tokenizer, tiny_model
from ..models import folder as folder  # fixtures
from ..models import one_thread as one_thread

GREEDY = Sampling(max_new_tokens=24, temperature=0)


@pytest.fixture(scope="module")
def engine(folder: Path) -> TransformersEngine:
    return TransformersEngine(folder, max_batch=8)


def greedy_by_generate(folder: Path, prompt: Sequence[int]) -> tuple[int, ...]:
    """What transformers itself writes, a row at a time, without padding."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.tensor([prompt])
    written = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=GREEDY.max_new_tokens,
        pad_token_id=0,
    )
    return tuple(written[0, len(prompt) :].tolist())


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_equals_generate_row_by_row(family: str, tmp_path: Path) -> None:
    """gemma2 (soft caps, every second layer) and mistral slide a window of 8 over 64 tokens."""
    folder = tiny_model(tmp_path, family)
    asked = requests(12)
    done = run(TransformersEngine(folder, max_batch=4), asked, GREEDY)
    expected = {r.key.problem_id: greedy_by_generate(folder, r.tokens) for r in asked}
    assert tokens_of(done) == expected
    assert len({token for tokens in expected.values() for token in tokens}) > 30  # no degenerate model


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_that_share_their_beginning_pass_it_once_and_give_the_same(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = TransformersEngine(tiny_model(tmp_path, family), dtype="float32")
    passed: list[int] = []
    whole = hf_model._pass

    def counted(model: Any, slots: Any, rows: Sequence[Sequence[int]]) -> None:
        passed.append(sum(map(len, rows)))
        whole(model, slots, rows)

    monkeypatch.setattr(hf_model, "_pass", counted)
    shared = tuple(range(5, 85))  # 80 tokens
    asked = [replace(r, tokens=(*shared, *r.tokens, 7)) for r in requests(12, longest=9)]
    together = tokens_of(run(engine, asked))
    # 80 once, and of each prompt what follows, less its last token
    assert sum(passed) == 80 + sum(len(r.tokens) - 81 for r in asked)
    alone = {}
    for request in asked:
        alone |= tokens_of(run(engine, [request]))
    assert together == alone
    assert sum(passed) > 12 * 80


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rows_of_several_beginnings_and_of_none_are_written_side_by_side(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    """Prefixes come and go, more of them than are kept when unused; retries start from held prompts."""
    engine = TransformersEngine(tiny_model(tmp_path, "qwen2", dtype=dtype), max_batch=10)
    assert isinstance(engine._quickest, Fused)
    asked = []
    for request in requests(60, longest=9):
        kind = int(request.key.problem_id) // 5 % 7  # five of a kind come in a row
        shared = () if kind == 0 else tuple(range(5 + kind, 75 + 3 * kind))
        asked.append(replace(request, tokens=(*shared, *request.tokens, 7, 9)))
    asked += [replace(r, key=replace(r.key, problem_id=f"{r.key.problem_id}b")) for r in asked[-9:]]
    together = run(engine, asked)
    alone = {}
    for request in asked:
        alone |= run(engine, [request])
    if dtype == torch.float32:
        assert tokens_of(together) == tokens_of(alone)
    for name, completion in together.items():  # rounding may turn a draw, not a log-probability
        if completion.tokens == alone[name].tokens:
            close = {"rel": 1e-4} if dtype == torch.float32 else {"abs": 0.5}
            assert completion.logprob == pytest.approx(alone[name].logprob, **close)
    same = sum(completion.tokens == alone[name].tokens for name, completion in together.items())
    assert same > 0.8 * len(asked)


@pytest.mark.parametrize("family", FAMILIES)
def test_logprob_of_written_tokens_is_that_of_scoring_them(family: str, tmp_path: Path) -> None:
    engine = TransformersEngine(tiny_model(tmp_path, family), max_batch=4)
    asked = requests(20)
    sampling = Sampling(max_new_tokens=24, temperature=0.8, top_p=0.9, top_k=50)
    done = run(engine, asked, sampling)
    scored = engine.logprob([(r.tokens, done[r.key.problem_id].tokens) for r in asked])
    written = [done[r.key.problem_id].logprob for r in asked]
    assert written == pytest.approx(scored, abs=1e-4)


def test_logprob_is_that_of_the_model_token_by_token(engine: TransformersEngine, folder: Path) -> None:
    prompt, completion = (5, 6, 7), (8, 9, 10, 11)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    logprobs = model(torch.tensor([[*prompt, *completion]])).logits[0].log_softmax(-1)
    expected = sum(logprobs[2 + i, token].item() for i, token in enumerate(completion))
    other = ((1,) * 20, (2,) * 9)
    assert engine.logprob([other, (prompt, completion), (prompt, ())])[1:] == pytest.approx(
        [expected, 0]
    )


def test_a_draw_is_the_same_alone_in_512_and_in_another_order(folder: Path) -> None:
    """Rounding may differ by batch; at about 1e-6 a token, 10,000 tokens flip with a chance of 1 %."""
    asked = requests(512)
    many = run(TransformersEngine(folder, max_batch=512), asked)
    few = run(TransformersEngine(folder, max_batch=32), asked[::-1])
    assert tokens_of(many) == tokens_of(few)
    alone = TransformersEngine(folder, max_batch=1)
    assert tokens_of(run(alone, asked[:20])) == {str(i): many[str(i)].tokens for i in range(20)}


def test_first_tokens_follow_the_models_softmax(engine: TransformersEngine, folder: Path) -> None:
    """4,000 draws of one token: the five likeliest come as often as they should, within 4 sigma."""
    prompt = tuple(b"Q?")
    asked = [Request(DrawKey(1, str(i), 0, 0), prompt, i) for i in range(4000)]
    wide = TransformersEngine(folder, max_batch=512)
    drawn = [c.tokens[0] for c in run(wide, asked, Sampling(max_new_tokens=1)).values()]
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    share, tokens = model(torch.tensor([prompt])).logits[0, -1].softmax(-1).topk(5)
    for p, token in zip(share.tolist(), tokens.tolist(), strict=True):
        assert drawn.count(token) == pytest.approx(4000 * p, abs=4 * (4000 * p * (1 - p)) ** 0.5)


def test_the_same_requests_give_the_same_stream_bit_for_bit(folder: Path) -> None:
    streams = []
    for _ in range(2):
        engine = TransformersEngine(folder, max_batch=8)
        streams.append(list(engine.generate(pull_from(requests(80)), NORMAL)))
    assert streams[0] == streams[1]  # log-probabilities too


def test_a_retry_comes_in_while_the_others_go_on(engine: TransformersEngine) -> None:
    """The retry of the first row to end ends before the last of the first rows does."""
    first = requests(8)
    todo = list(first)
    ended: list[str] = []
    retried = ""
    for part in engine.generate(pull_from(todo), Sampling(max_new_tokens=100)):
        for request, _ in part:
            ended.append(request.key.problem_id)
            if not retried:
                retried = "retry"
                todo.append(Request(DrawKey(1, retried, 0, 1), request.tokens, request.seed))
    assert len(ended) == 9
    assert ended.index("retry") < 8


def test_a_retry_starts_from_the_prompt_that_its_slot_holds(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled: list[int] = []
    fill = hf_model.fill

    def spy(model: Any, slots: Any, prompts: Sequence[Any], *rest: Any) -> None:
        filled.append(len(prompts))
        fill(model, slots, prompts, *rest)

    monkeypatch.setattr("femtune.engines.hf.batch.fill", spy)
    engine = TransformersEngine(folder, max_batch=4)
    todo = [Request(DrawKey(1, "p", 0, 0), (1, 2, 3, 4), seed=0)] * 2
    done = []
    for part in engine.generate(pull_from(todo), NORMAL):
        done += part
        if len(done) < 6:
            last = part[-1][0]
            todo.append(Request(last.key, last.tokens, last.seed + 1))
    assert sum(filled) == 1  # equal prompts once, retries not at all
    new = run(
        engine, [Request(DrawKey(1, str(i), 0, 0), r.tokens, r.seed) for i, (r, _) in enumerate(done)]
    )
    assert [c.tokens for _, c in done] == [new[str(i)].tokens for i in range(len(done))]


def test_ragged_rows_fill_the_batch_and_nothing_is_stepped_in_vain(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten times more requests than slots: rows in a step are those going on, but for a sixteenth."""
    engine = TransformersEngine(folder, max_batch=32)
    rows: list[tuple[int, int]] = []
    step = Batch.step

    def spy(self: Batch) -> Any:
        rows.append((len(self.rows), self.num_going))
        return step(self)

    monkeypatch.setattr(Batch, "step", spy)
    sampling = Sampling(max_new_tokens=60)
    done = run(engine, requests(320), sampling)
    lengths = [len(completion.tokens) for completion in done.values()]
    assert len(set(lengths)) > 20
    assert sum(going for _, going in rows) == sum(lengths)
    assert sum(stepped for stepped, _ in rows) < 1.05 * sum(lengths)


def test_an_ended_row_that_was_the_longest_stands_in_nobodys_way(folder: Path) -> None:
    """It stays as a gap while others go on, in fewer columns than its next token would need."""
    model = TransformersEngine(folder)._model
    batch = Batch(model, 2, frozenset(), Sampling(max_new_tokens=2))
    long, short = (Request(DrawKey(1, name, 0, 0), (7,) * num, 1) for name, num in (("a", 15), ("b", 2)))
    batch.admit([long])
    batch.step()
    batch.admit([short])
    ended, *_ = batch.step()  # 15 + 2 tokens: its next one would be in column 16, the 17th
    assert ended.request == long
    batch.admit([])
    (ended,) = batch.step()
    assert ended.request == short
    assert tuple(ended.tokens) == run(TransformersEngine(folder), [short], Sampling(2))["b"].tokens


def test_columns_grow_with_the_rows(folder: Path) -> None:
    """Short prompts first, then ones that the slots have no columns for yet."""
    asked = sorted(requests(20, longest=150), key=lambda request: len(request.tokens))
    done = run(TransformersEngine(folder, max_batch=2), asked, GREEDY)
    for request in asked[-3:]:
        assert done[request.key.problem_id].tokens == greedy_by_generate(folder, request.tokens)


def test_rows_end_at_any_end_token_or_at_the_limit(tmp_path: Path) -> None:
    endless = tiny_model(tmp_path / "endless", num_ends=0)
    plain = run(TransformersEngine(endless, max_batch=8), requests(40), GREEDY)
    ends = [plain["3"].tokens[4], plain["7"].tokens[2]]
    config = transformers.GenerationConfig(eos_token_id=ends)
    model = transformers.AutoModelForCausalLM.from_pretrained(endless)
    model.generation_config = config
    model.save_pretrained(tmp_path / "ends")
    byte_tokenizer().save_pretrained(tmp_path / "ends")
    done = run(TransformersEngine(tmp_path / "ends", max_batch=8), requests(40), GREEDY)
    all_ends = {*ends, byte_tokenizer().eos_token_id}
    reasons = set()
    for name, completion in done.items():
        *before, last = completion.tokens
        assert not all_ends & set(before)
        assert (completion.finish_reason == "stop") == (last in all_ends)
        assert completion.finish_reason == "stop" or len(completion.tokens) == 24
        assert completion.tokens == plain[name].tokens[: len(completion.tokens)]
        reasons.add(completion.finish_reason)
    assert reasons == {"stop", "length"}


def test_text_is_decoded_without_special_tokens(engine: TransformersEngine) -> None:
    done = run(engine, requests(200)).values()
    assert all(c.text == engine.tokenizer.decode(c.tokens) for c in done)
    by_eos = [c for c in done if c.tokens[-1] == engine.tokenizer.tokenizer.eos_token_id]
    assert by_eos
    assert all(c.text == engine.tokenizer.decode(c.tokens[:-1]) for c in by_eos)


def test_no_pad_token_and_a_bos_are_no_trouble(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(bos=True, pad=False)
    engine = TransformersEngine(tiny_model(tmp_path, "llama", tokenizer=tokenizer), max_batch=3)
    questions = ["Why?", "What is the sum of two and two?", "Who?"]
    prompts = [engine.tokenizer.encode_prompt(question) for question in questions]
    assert [prompt.count(tokenizer.bos_token_id) for prompt in prompts] == [1, 1, 1]
    asked = [Request(DrawKey(1, str(i), 0, 0), p, i) for i, p in enumerate(prompts)]
    done = run(engine, asked, GREEDY)
    assert [done[str(i)].tokens for i in range(3)] == [greedy_by_generate(tmp_path, p) for p in prompts]


def test_a_prompt_too_long_names_its_problem(engine: TransformersEngine) -> None:
    asked = [Request(DrawKey(1, "p9", 0, 0), (1,) * 240, 0)]
    with pytest.raises(EngineError, match='"p9": a prompt of 240 tokens and up to 24 new ones'):
        run(engine, asked)
    with pytest.raises(EngineError, match="at least one"):
        run(engine, [Request(DrawKey(1, "p9", 0, 0), (), 0)])


def test_logits_that_are_no_numbers_give_a_failed_completion(folder: Path) -> None:
    engine = TransformersEngine(folder, max_batch=2)
    engine._model.lm_head.weight.fill_(float("nan"))
    done = run(engine, requests(3))
    assert {completion.finish_reason for completion in done.values()} == {"error"}
    assert "gives no numbers" in done["0"].error
