"""A merged adapter is its base with the updates added, as an ordinary folder that knows its task."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from femtune.cli.main import main
from femtune.engines.hf.model import quiet_peft
from femtune.engines.model_files import load_tokenizer
from femtune.model_info import ModelInfo, read_info, write_info
from femtune.runs.hashes import hash_weights

from .models import tiny_model

TEXT = torch.arange(10, 40)[None]


def save_adapter(base: Path, out: Path, **info: Any) -> None:
    """Store an adapter of random updates for a base, with femtune.json."""
    network = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    torch.manual_seed(0)
    with quiet_peft():
        adapted = get_peft_model(network, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"))
    for name, weight in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.1)
    adapted.save_pretrained(out)
    load_tokenizer(base).tokenizer.save_pretrained(out)
    write_info(out, ModelInfo(task="judge", scale="1,5", base=str(base), **info))


@torch.no_grad()
def logits(network: Any) -> torch.Tensor:
    return network.float().eval()(TEXT).logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_merged_model_says_what_base_and_adapter_say(dtype: torch.dtype, tmp_path: Path) -> None:
    base, adapter, out = tmp_path / "base", tmp_path / "adapter", tmp_path / "out"
    tiny_model(base, sharpness=0.5, dtype=dtype)
    save_adapter(base, adapter, base_sha256=hash_weights(base))
    assert main(["merge", str(adapter), "--output-dir", str(out)]) == 0
    network = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    plain = logits(network).clone()
    with quiet_peft():
        wanted = logits(PeftModel.from_pretrained(network, adapter))
    found = logits(AutoModelForCausalLM.from_pretrained(out))
    # each weight is rounded once, to 8 bits of mantissa where it has 16
    tolerance = 1e-5 if dtype == torch.float32 else 0.02
    assert (found - wanted).abs().max() < tolerance * wanted.abs().max()
    assert (plain - wanted).abs().max() > 3 * tolerance * wanted.abs().max()  # the updates matter
    assert {w.dtype for w in load_file(out / "model.safetensors").values()} == {dtype}
    assert not (out / "adapter_config.json").exists()
    info = read_info(out)
    assert info is not None and (info.task, info.scale) == ("judge", "1,5")
    assert (out / "model.safetensors").stat().st_mode == (out / "config.json").stat().st_mode


def test_what_cannot_be_merged_is_refused_and_nothing_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, adapter, out = tmp_path / "base", tmp_path / "adapter", tmp_path / "out"
    tiny_model(base, sharpness=0.5, dtype=torch.float32)
    save_adapter(base, adapter, base_sha256=hash_weights(base))
    assert main(["merge", str(base), "--output-dir", str(out)]) == 1
    assert "is a whole model, no LoRA adapter" in capsys.readouterr().err
    weights = load_file(base / "model.safetensors")
    save_file({name: 2 * w for name, w in weights.items()}, base / "model.safetensors", {"format": "pt"})
    assert main(["merge", str(adapter), "--output-dir", str(out)]) == 1
    assert "has other weights than" in capsys.readouterr().err
    assert not out.exists()
    assert json.loads((adapter / "adapter_config.json").read_text())["r"] == 4
