"""The fused pass gives the model's own logits, and is left where it does not."""

from __future__ import annotations

import random
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from femtune.engines.hf import fused
from femtune.engines.hf import model as hf_model
from femtune.engines.hf.agreement import STEPS, TEXTS, text_rows
from femtune.engines.hf.engine import TransformersEngine
from femtune.engines.hf.fused import Fused
from femtune.engines.hf.kv_slots import Slots
from femtune.errors import ModelError

from ..models import byte_tokenizer, tiny_model
from ..models import folder as folder  # fixtures
from ..models import one_thread as one_thread


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
