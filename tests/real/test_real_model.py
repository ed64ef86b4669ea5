"""A pretrained model is served, drawn from and trained as transformers itself would do it.

No test knows which model it is: FEMTUNE_REAL_MODEL may name any folder with a chat template.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import transformers

from femtune.data.chat_tokenizer import ChatTokenizer
from femtune.engines.hf.engine import TransformersEngine, end_tokens
from femtune.engines.hf.model import quiet_peft
from femtune.mstep.config import Training
from femtune.mstep.fit import m_step
from femtune.types import Sampling

from .asking import QUESTIONS, requests, run, worked_pairs

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(900)]

GREEDY = Sampling(max_new_tokens=16, temperature=0)
DTYPES = ("float32", "bfloat16")
ENGLISH = (
    "The water of a river flows from the mountains to the sea. On its way it carries sand and small "
    "stones, and where it slows down it leaves them behind."
)


@pytest.fixture(scope="module")
def engine(real_model: Path) -> TransformersEngine:
    return TransformersEngine(real_model, dtype="float32", max_batch=8)


@pytest.fixture(scope="module")
def halved(real_model: Path) -> TransformersEngine:
    """The engine in bfloat16, as the folder is stored."""
    return TransformersEngine(real_model, dtype="bfloat16", max_batch=8)


def plain_model(folder: Path, dtype: str) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)


@torch.inference_mode()
def plain_logprobs(model: Any, prompt: tuple[int, ...], completion: tuple[int, ...]) -> torch.Tensor:
    """Log-probability of each token of a completion, by one full pass without a cache."""
    tokens = torch.tensor([[*prompt, *completion]])
    logprobs = model(input_ids=tokens).logits[0, :-1].float().log_softmax(-1)
    return logprobs.gather(1, tokens[0, 1:, None])[len(prompt) - 1 :, 0]


@pytest.mark.parametrize("dtype", DTYPES)
def test_transformers_loads_the_folder_and_the_model_knows_english(dtype: str, real_model: Path) -> None:
    """A model of random or damaged weights gives a token of English 1/V, or about e^-10."""
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        real_model, dtype=dtype, output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert {str(weight.dtype) for weight in model.parameters()} == {f"torch.{dtype}"}
    tokens = transformers.AutoTokenizer.from_pretrained(real_model)(ENGLISH)["input_ids"]
    logprobs = plain_logprobs(model, tuple(tokens[:1]), tuple(tokens[1:]))
    assert logprobs.mean() > -3.5
    shuffled = [tokens[0], *sorted(tokens[1:])]
    assert plain_logprobs(model, tuple(shuffled[:1]), tuple(shuffled[1:])).mean() < -6


def test_greedy_is_generate_row_by_row(engine: TransformersEngine, real_model: Path) -> None:
    asked = requests(engine.tokenizer)[:6]
    model = plain_model(real_model, "float32")
    for request, done in zip(asked, run(engine, asked, GREEDY), strict=True):
        ids = torch.tensor([request.tokens])
        written = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=GREEDY.max_new_tokens,
            eos_token_id=sorted(end_tokens(model, engine.tokenizer)),
            pad_token_id=engine.tokenizer.pad_token_id,
        )
        assert done.tokens == tuple(written[0, len(request.tokens) :].tolist())


def test_float32_logprobs_are_the_models(engine: TransformersEngine, real_model: Path) -> None:
    pairs = worked_pairs(engine.tokenizer)
    model = plain_model(real_model, "float32")
    expected = [plain_logprobs(model, *pair).double().sum().item() for pair in pairs]
    assert engine.logprob(pairs) == pytest.approx(expected, abs=1e-3)
    asked = requests(engine.tokenizer)
    done = run(engine, asked, Sampling(max_new_tokens=16, temperature=0.8, top_p=0.95))
    written = [(request.tokens, row.tokens) for request, row in zip(asked, done, strict=True)]
    assert [row.logprob for row in done] == pytest.approx(engine.logprob(written), abs=1e-3)


def test_bfloat16_is_served_and_near_float32(
    halved: TransformersEngine, engine: TransformersEngine
) -> None:
    """Rounding parts the two by 1 to 2 hundredths of a nat a token; another model by whole ones."""
    pairs = worked_pairs(engine.tokenizer)
    apart = [
        abs(one - other) / len(completion)
        for (_, completion), one, other in zip(
            pairs, halved.logprob(pairs), engine.logprob(pairs), strict=True
        )
    ]
    assert max(apart) < 0.06
    asked = requests(halved.tokenizer)[:4]
    done = run(halved, asked, GREEDY)
    scored = halved.logprob([(r.tokens, row.tokens) for r, row in zip(asked, done, strict=True)])
    assert [row.logprob for row in done] == pytest.approx(scored, abs=0.06 * GREEDY.max_new_tokens)
    assert sum(scored) / sum(len(row.tokens) for row in done) > -1.5  # greedy: it knows what it writes


def test_draws_are_reproducible_and_do_not_depend_on_the_batch(engine: TransformersEngine) -> None:
    sampling = Sampling(max_new_tokens=8)
    asked = requests(engine.tokenizer)
    done = run(engine, asked, sampling)
    assert run(engine, asked, sampling) == done  # the same schedule: bit for bit
    engine.max_batch = 3
    try:
        others = run(engine, asked[::-1], sampling)[::-1]
    finally:
        engine.max_batch = 8
    assert [row.tokens for row in others] == [row.tokens for row in done]
    assert [row.logprob for row in others] == pytest.approx([row.logprob for row in done], abs=1e-3)
    again = [type(request)(request.key, request.tokens, request.seed + 99) for request in asked]
    assert sum(a.tokens != b.tokens for a, b in zip(run(engine, again, sampling), done, strict=True)) > 4


def test_the_template_asks_and_its_end_token_ends(engine: TransformersEngine) -> None:
    tokenizer = engine.tokenizer
    assert tokenizer.tokenizer.chat_template
    turns = [
        {"role": "user", "content": QUESTIONS[0]},
        {"role": "assistant", "content": "It is Paris."},
        {"role": "user", "content": QUESTIONS[1]},
    ]
    text = tokenizer.tokenizer.decode(tokenizer.encode_prompt(turns))
    places = [text.find(turn["content"]) for turn in turns]
    assert -1 not in places and places == sorted(places)
    done = run(engine, requests(tokenizer)[:1], Sampling(max_new_tokens=64, temperature=0))[0]
    assert done.finish_reason == "stop"
    assert done.tokens[-1] == tokenizer.end_token_id == tokenizer.encode_completion("x")[-1]
    assert done.text and done.text == tokenizer.decode(done.tokens[:-1])


def test_a_base_model_without_template_goes_on_with_the_text(
    real_base: Path, real_model: Path, engine: TransformersEngine
) -> None:
    base = TransformersEngine(real_base, dtype="float32", max_batch=8)
    assert base.tokenizer.tokenizer.chat_template is None
    assert engine.tokenizer.tokenizer.chat_template  # the original keeps its own
    prompt = base.tokenizer.encode_prompt(ENGLISH)
    assert base.tokenizer.decode(prompt) == ENGLISH + "\n"
    pair = (base.tokenizer.encode_prompt(QUESTIONS[0]), (5, 6, 7))
    assert base.logprob([pair]) == pytest.approx(engine.logprob([pair]), abs=1e-3)  # the same weights
    done = run(base, requests(base.tokenizer)[:2], GREEDY)
    assert all(row.tokens and row.finish_reason in ("stop", "length") for row in done)


@pytest.mark.parametrize("use_peft", [False, True], ids=["full", "LoRA"])
def test_an_m_step_raises_its_examples_and_the_saved_model_is_the_trained_one(
    use_peft: bool, real_model: Path, engine: TransformersEngine, tmp_path: Path
) -> None:
    pairs = worked_pairs(engine.tokenizer)
    columns = {"prompt_tokens": [list(p) for p, _ in pairs], "completion_tokens": [c for _, c in pairs]}
    pq.write_table(pa.table({**columns, "weight": [1.0] * len(pairs)}), tmp_path / "examples.parquet")
    # a LoRA base is by default as stored: bfloat16, which is slow on most CPUs
    training = Training(
        num_train_epochs=3,
        per_device_train_batch_size=4,
        learning_rate=1e-3 if use_peft else 5e-5,
        use_peft=use_peft,
        dtype="float32",
        use_cpu=True,
    )
    done = m_step(
        tmp_path / "examples.parquet",
        real_model,
        tmp_path / "out",
        training,
        engine.tokenizer,
        seed=0,
    )
    assert done.num_steps == 3
    before = engine.logprob(pairs)
    engine.load(tmp_path / "out")
    try:
        after = engine.logprob(pairs)
    finally:
        engine.load(real_model)
    assert all(new > old + 1 for new, old in zip(after, before, strict=True))
    assert engine.logprob(pairs) == pytest.approx(before, abs=1e-3)  # it serves the base again
    assert read_back(tmp_path / "out", pairs, use_peft) == pytest.approx(after, abs=1e-2)


def read_back(folder: Path, pairs: Any, use_peft: bool) -> list[float]:
    """Log-probabilities by the saved folder as transformers and PEFT load it."""
    tokenizer = ChatTokenizer(transformers.AutoTokenizer.from_pretrained(folder))
    assert worked_pairs(tokenizer) == pairs
    if use_peft:
        import peft

        with quiet_peft():
            model = peft.AutoPeftModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    else:
        model = plain_model(folder, "float32")
    return [plain_logprobs(model, *pair).double().sum().item() for pair in pairs]
