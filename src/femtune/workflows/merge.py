"""Merge a LoRA adapter into its base: a folder of whole weights, for programs that take no adapters."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

from femtune._util.atomic_files import replacing
from femtune._util.model_safety import check_weights, unreadable
from femtune._util.safetensors_header import stored_dtype
from femtune.engines.model_files import base_of_adapter, load_tokenizer, local_model
from femtune.errors import ConfigError, ModelError
from femtune.model_info import read_info, write_info
from femtune.run_folder import check_new
from femtune.runs.hashes import hash_weights
from femtune.sampler import no_foreign_bars
from femtune.workflows.chosen_calibration import FILE as CALIBRATION


def merge_adapter(model: str, output_dir: Path) -> Path:
    """Store an adapter's base with the adapter's updates added, in the base's dtype, and return it.

    W + (lora_alpha / r) B A is computed in float32 and rounded once. The folder has the model's
    femtune.json and calibration. Raises ConfigError if `model` is no adapter, ModelError if its base is
    missing or has changed, RunError if `output_dir` exists already.
    """
    check_new(output_dir)
    folder = local_model(model)
    base = base_of_adapter(folder)
    if base is None:
        raise ConfigError(f"{model} is a whole model, no LoRA adapter: there is nothing to merge.")
    check_weights(folder)
    check_weights(base)
    info = read_info(folder)
    if info is not None and info.base_sha256 not in (None, hash_weights(base, base_of_adapter(base))):
        raise ModelError(f"{base} has other weights than {model} was trained from. Restore them.")
    tokenizer = load_tokenizer(folder)
    network = _merged(folder, base)
    with replacing(output_dir) as part:
        network.save_pretrained(part)
        tokenizer.tokenizer.save_pretrained(part)
        if info is not None:
            write_info(part, info)
        if (folder / CALIBRATION).is_file():
            shutil.copyfile(folder / CALIBRATION, part / CALIBRATION)
    return output_dir


def _merged(folder: Path, base: Path) -> Any:
    """Return the network with the adapter's updates added. Raises ModelError if it can't be read."""
    import torch  # slow, like those below: only for what is merged
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    no_foreign_bars()
    try:
        network = AutoModelForCausalLM.from_pretrained(
            base, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
        )
        with warnings.catch_warnings():  # PEFT uses an old name of transformers
            warnings.filterwarnings("ignore", ".*gradient_checkpointing", FutureWarning)
            adapted = PeftModel.from_pretrained(network, str(folder), use_safetensors=True)
        merged = adapted.merge_and_unload(safe_merge=True)
    except Exception as error:  # OSError, ValueError, SafetensorError, or the model's own
        raise unreadable(folder, "LoRA adapter", error) from error
    return merged.to(getattr(torch, stored_dtype(base)))
