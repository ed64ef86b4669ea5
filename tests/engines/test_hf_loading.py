"""The engine serves the weights that it is given, and refuses folders that hold no model."""

from __future__ import annotations

import json
from pathlib import Path

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file

from femtune.data.worlds import SEEDLING
from femtune.engines import model_files
from femtune.engines.hf.engine import TransformersEngine
from femtune.engines.weight_check import WeightCheck, write_check
from femtune.errors import ModelError

from ..engine_requests import requests, run, tokens_of
from ..models import byte_tokenizer, tiny_model
from ..models import folder as folder  # fixtures
from ..models import one_thread as one_thread


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


def test_4_bit_weights_need_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_files, "gpu_has_bfloat16", lambda: None)
    config = json.loads((SEEDLING / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="holds 4-bit weights of bitsandbytes, which need a GPU, and"):
        model_files.load_config(tmp_path)
    monkeypatch.setattr(model_files, "gpu_has_bfloat16", lambda: True)
    assert model_files.load_config(tmp_path).quantization_config["load_in_4bit"]


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
