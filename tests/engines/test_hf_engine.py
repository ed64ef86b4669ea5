"""The engine gives what the model by itself would, for any batch, schedule and kind of model."""

from __future__ import annotations

import gc
import os
import random
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file

from femtune.engines.hf import batch as hf_batch
from femtune.engines.hf import fused
from femtune.engines.hf import model as hf_model
from femtune.engines.hf.agreement import STEPS, TEXTS, text_rows
from femtune.engines.hf.batch import Batch
from femtune.engines.hf.engine import TransformersEngine, default_max_batch
from femtune.engines.hf.fused import Fused
from femtune.engines.hf.kv_slots import Slots
from femtune.engines.hf.memory import zeros
from femtune.engines.hf.prefix_tree import PrefixTree
from femtune.engines.weight_check import WeightCheck, write_check
from femtune.errors import EngineError, ModelError
from femtune.types import Completion, DrawKey, Engine, Request, Sampling

from ..models import FAMILIES, byte_tokenizer, tiny_model
from ..models import folder as folder  # fixtures
from ..models import one_thread as one_thread

GREEDY = Sampling(max_new_tokens=24, temperature=0)
NORMAL = Sampling(max_new_tokens=24)


@pytest.fixture(scope="module")
def engine(folder: Path) -> TransformersEngine:
    return TransformersEngine(folder, max_batch=8)


def requests(num: int, longest: int = 40) -> list[Request]:
    """Prompts of 1 to `longest` tokens, each with a seed of its own."""
    rng = random.Random(num)
    rows = [tuple(rng.choices(range(256), k=rng.randint(1, longest))) for _ in range(num)]
    return [Request(DrawKey(1, str(i), 0, 0), row, 2**62 + i) for i, row in enumerate(rows)]


def pull_from(todo: list[Request]) -> Callable[[int], Sequence[Request]]:
    def pull(room: int) -> Sequence[Request]:
        given, todo[:room] = todo[:room], []
        return given

    return pull


def run(engine: Engine, asked: Sequence[Request], sampling: Sampling = NORMAL) -> dict[str, Completion]:
    """Completions by problem id; each request must end once."""
    finished = [pair for part in engine.generate(pull_from(list(asked)), sampling) for pair in part]
    assert len(finished) == len(asked)
    return {request.key.problem_id: completion for request, completion in finished}


def tokens_of(done: dict[str, Completion]) -> dict[str, tuple[int, ...]]:
    return {name: completion.tokens for name, completion in done.items()}


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


def test_load_serves_other_weights(folder: Path, tmp_path: Path) -> None:
    engine = TransformersEngine(folder, max_batch=8)
    before = run(engine, requests(8))
    engine.load(tiny_model(tmp_path, seed=1))
    after = run(engine, requests(8))
    assert tokens_of(after) != tokens_of(before)
    assert after == run(TransformersEngine(tmp_path, max_batch=8), requests(8))
    engine.load(folder)
    assert run(engine, requests(8)) == before


# peft 0.21 asks transformers 5.23 for it
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_load_serves_an_adapter_with_its_base(dtype: str, folder: Path, tmp_path: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    lora = peft.LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(model, lora).eval()
    adapted.save_pretrained(tmp_path)
    ids = torch.tensor([[5, 6, 7, 8]])
    expected = adapted(ids).logits[0, 2].float().log_softmax(-1)[8].item()
    engine = TransformersEngine(folder, dtype=dtype, max_batch=8)
    plain = engine.logprob([((5, 6, 7), (8,))])
    engine.load(tmp_path)
    assert engine.logprob([((5, 6, 7), (8,))]) == pytest.approx([expected], abs=1e-4)
    assert abs(plain[0] - expected) > 0.01
    assert run(engine, requests(9))


def test_bfloat16_serves_too(tmp_path: Path) -> None:
    engine = TransformersEngine(tiny_model(tmp_path, dtype=torch.bfloat16), max_batch=8)
    asked = requests(20)
    done = run(engine, asked)
    scored = engine.logprob([(r.tokens, done[r.key.problem_id].tokens) for r in asked])
    for request, logprob in zip(asked, scored, strict=True):
        completion = done[request.key.problem_id]
        assert logprob == pytest.approx(completion.logprob, abs=0.1 * len(completion.tokens))


def test_what_is_no_model_is_refused_in_plain_words(folder: Path, tmp_path: Path) -> None:
    engine = TransformersEngine(folder)
    with pytest.raises(ModelError, match="holds neither config"):
        engine.load(tmp_path)
    with pytest.raises(ModelError, match="its tokenizer can't be read"):
        TransformersEngine(tmp_path / "absent")
    tiny_model(tmp_path / "other", vocab_size=300)
    with pytest.raises(ModelError, match="vocabulary of 300 tokens"):
        engine.load(tmp_path / "other")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="its causal language model can't be read"):
        engine.load(tmp_path / "broken")


def test_missing_weights_are_refused_not_drawn_at_random(folder: Path, tmp_path: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    state = model.state_dict()
    del state["model.layers.0.mlp.up_proj.weight"]
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(ModelError, match=r"lacks weights .*up_proj"):
        TransformersEngine(folder).load(tmp_path)


def test_a_model_with_other_than_keys_and_values_is_refused(tmp_path: Path) -> None:
    config = transformers.MambaConfig(vocab_size=260, hidden_size=16, num_hidden_layers=1)
    transformers.MambaForCausalLM(config).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="MambaForCausalLM keeps its past in linear_attention"):
        TransformersEngine(tmp_path)


def test_a_model_whose_masks_work_otherwise_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("femtune.engines.hf.model.masks", lambda *args: None)
    with pytest.raises(ModelError, match="gives other logits in slots than by itself"):
        TransformersEngine(folder)


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["qwen3", "llama", "qwen2", "mistral"])
def test_the_fused_pass_gives_the_models_own_logits(
    family: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    """Of prompts in one batch, at positions up to 200, with biases (qwen2) and normed heads (qwen3)."""
    window = {"sliding_window": None} if family == "mistral" else {}
    if family == "llama":  # turns scaled by length, as Llama 3.1's are
        scaled = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
        old = {"original_max_position_embeddings": 64, "rope_theta": 10000.0}
        window = {"rope_parameters": {"rope_type": "llama3", **scaled, **old}, "mlp_bias": True}
    folder = tiny_model(tmp_path, family, dtype=dtype, **window)
    engine = TransformersEngine(folder)
    assert isinstance(engine._quickest, Fused)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    rng = random.Random(0)
    prompts = [tuple(rng.choices(range(256), k=num)) for num in (200, 2, 31, 90)]
    with torch.inference_mode():
        slots = Slots(len(prompts))
        hf_model.fill(engine._quickest, slots, prompts, [[i] for i in range(len(prompts))])
        newest = torch.tensor([[prompt[-1], len(prompt) - 1] for prompt in prompts])
        newest = newest.to(engine.device)
        found = hf_model.step_logits(engine._quickest, slots, *newest.T, longest=200).float().cpu()
        expected = torch.cat([model(torch.tensor([prompt])).logits[:, -1] for prompt in prompts])
    tolerance = 1e-4 if dtype == torch.float32 else 0.25
    assert (found - expected).abs().max() < tolerance * expected.std()


def test_models_of_another_shape_are_served_by_their_own_pass(folder: Path, tmp_path: Path) -> None:
    for family in ("gemma2", "mistral", "gpt2"):  # here, gemma2 and mistral slide a window
        engine = TransformersEngine(tiny_model(tmp_path / family, family))
        assert engine._quickest is engine._model


SHAPES = ("llama", "qwen2", "qwen3", "gemma2", "mistral")
BOTH = [torch.float32, torch.bfloat16]
NO_WINDOW = {"sliding_window": None}  # of mistral: with one it has no fused pass


@pytest.mark.parametrize("dtype", BOTH, ids=str)
@pytest.mark.parametrize("family", SHAPES)
def test_right_passes_agree_on_text_and_wrong_ones_do_not(
    family: str, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shifted positions; a mask that hides the newest column, and one that shows a column too many."""
    engine = TransformersEngine(tiny_model(tmp_path, family, dtype=dtype))
    model, tokenizer = engine._model, engine.tokenizer.tokenizer
    reference = hf_model._check_slots(model, tokenizer)
    step, masks = hf_model.step_logits, hf_model.masks

    def shifted(model: Any, slots: Any, tokens: Any, positions: Any, longest: int) -> Any:
        return step(model, slots, tokens, positions + 1, longest + 1)

    def masked(by: int) -> Any:
        return lambda config, hidden, before, dtype: masks(config, before + by < 0, before + by, dtype)

    for name, wrong in (("step_logits", shifted), ("masks", masked(-1)), ("masks", masked(1))):
        with monkeypatch.context() as patch:
            patch.setattr(hf_model, name, wrong)
            assert reference.differs(hf_model._slotted_logits(model, reference.rows)), name
            with pytest.raises(ModelError, match="gives other logits in slots than by itself"):
                hf_model._check_slots(model, tokenizer)


@pytest.mark.parametrize("dtype", BOTH, ids=str)
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral"])
def test_a_fused_pass_that_is_apart_from_its_model_is_not_used_and_that_is_logged(
    family: str,
    dtype: torch.dtype,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Swapped queries and keys, or gate and up; turned wrongly; the weights from before an M-step."""
    window = NO_WINDOW if family == "mistral" else {}
    model = TransformersEngine(tiny_model(tmp_path, family, dtype=dtype, **window))._model
    reference = hf_model.Reference(model, byte_tokenizer())
    assert isinstance(hf_model.quickest(model, reference), Fused) and not caplog.records
    turn, act = fused._turn, Fused._layer

    def swapped(name: str) -> Any:
        def layer(self: Fused, source: Any) -> Any:
            made = act(self, source)
            if name == "gate_up":
                return replace(made, gate_up=torch.cat(made.gate_up.chunk(2)[::-1]))
            size = self._num_keys * self._size  # keys in the place of the first queries, and these there
            ends = self._num_queries * self._size
            q, k = made.qkv[:size], made.qkv[ends : ends + size]
            rest, values = made.qkv[size:ends], made.qkv[ends + size :]
            return replace(made, qkv=torch.cat([k, rest, q, values]))

        return layer

    def older(self: Fused, source: Any) -> Any:
        made = act(self, source)
        noise = torch.randn(made.gate_up.shape).to(made.gate_up) * made.gate_up.std()
        return replace(made, gate_up=made.gate_up + 0.1 * noise)

    for target, name, wrong in (
        (Fused, "_layer", swapped("gate_up")),
        (Fused, "_layer", swapped("qkv")),
        (Fused, "_layer", older),
        (fused, "_turn", lambda heads, cos, sin: turn(heads, cos, 1.2 * sin)),
    ):
        caplog.clear()
        with monkeypatch.context() as patch:
            patch.setattr(target, name, wrong)
            assert hf_model.quickest(model, reference) is model
        assert "the model's own pass is used, which is slower" in caplog.text


def test_texts_are_encoded_by_the_tokenizer_and_spread_over_the_vocabulary_without_one() -> None:
    config = transformers.Qwen3Config(vocab_size=50_000, max_position_embeddings=40)
    rows = text_rows(config, byte_tokenizer())
    assert rows == [byte_tokenizer()(text)["input_ids"][:40] for text in TEXTS]
    spread = text_rows(config)
    tokens = [token for row in spread for token in row]
    assert len({len(row) for row in spread}) == len(spread)
    assert all(STEPS < len(row) <= 40 for row in [*rows, *spread])
    assert len({token // 5_000 for token in tokens}) == 10 and max(tokens) < 50_000
    small = transformers.Qwen3Config(vocab_size=64)  # fewer tokens than the tokenizer has
    assert max(token for row in text_rows(small, byte_tokenizer()) for token in row) < 64


def test_float32_weights_that_femtune_trained_are_rounded_stochastically(tmp_path: Path) -> None:
    """A base is cast to nearest; weights with a weight check keep an update on average."""
    tiny_model(tmp_path, "llama", tokenizer=byte_tokenizer())
    exact = load_file(tmp_path / "model.safetensors")["model.embed_tokens.weight"]

    def held() -> torch.Tensor:
        weight = TransformersEngine(tmp_path, dtype="bfloat16")._model.get_input_embeddings().weight
        return weight.cpu()

    assert torch.equal(held(), exact.bfloat16())
    write_check(tmp_path, WeightCheck([[1]], [[2]], [-1.0], [-2.0]))
    found = held()
    assert torch.equal(found, held())
    away = found != exact.bfloat16()
    assert 0.1 < away.float().mean() < 0.4  # a quarter, as a value is a quarter of a gap off on average
    write_check(tmp_path, WeightCheck([[1]], [[2]], [-1.5], [-2.0]))  # other weights, other bits
    assert not torch.equal(found, held())


def test_the_fused_pass_holds_no_weight_twice_and_goes_with_the_model(folder: Path) -> None:
    engine = TransformersEngine(folder)
    layer, own = engine._quickest._layers[0], engine._model.model.layers[0]
    assert layer.qkv.data_ptr() == own.self_attn.q_proj.weight.data_ptr()
    assert layer.gate_up.data_ptr() == own.mlp.gate_proj.weight.data_ptr()
    plain = transformers.AutoModelForCausalLM.from_pretrained(folder).state_dict()
    held = engine._model.state_dict()
    assert all(torch.equal(held[name].cpu(), weight) for name, weight in plain.items())
    gone = weakref.ref(engine._quickest)
    del layer, own
    engine.release()
    assert gone() is None
    engine.load(folder)
    assert isinstance(engine._quickest, Fused)


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
