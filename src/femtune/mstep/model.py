"""Load the model that an M-step trains, and its whole weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, TrainingArguments

from femtune._util.model_safety import check_weights, unreadable
from femtune.engines.dtypes import usable_dtype
from femtune.engines.hf.model import quiet_peft
from femtune.engines.model_files import base_of_adapter
from femtune.errors import ConfigError, FemtuneError, ModelError
from femtune.mstep.average import Mean
from femtune.mstep.config import Training
from femtune.mstep.examples import TokenExamples
from femtune.mstep.trainer import WeightedTrainer, environment

_SHORT = 512  # tokens of an example: longer ones take less time by torch's own attention


def load_model(start: Path, training: Training) -> PreTrainedModel:
    """Load the model to train: all weights in float32, or a LoRA adapter over a frozen base.

    If the folder holds an adapter, its training continues. Under FSDP one process per machine reads the
    weights, and the others get their shards.
    """
    check_weights(start)
    if (base := base_of_adapter(start)) is not None:
        check_weights(base)
    common = {
        "attn_implementation": training.attn_implementation,
        "use_safetensors": True,
        "trust_remote_code": False,
    }
    reading = "true" if training.fsdp else None
    try:
        with environment(ACCELERATE_USE_FSDP=reading, FSDP_CPU_RAM_EFFICIENT_LOADING=reading):
            if training.use_peft:
                with quiet_peft():
                    return _load_lora(start, training, common)
            if (start / "adapter_config.json").exists():
                raise ConfigError(f"{start} holds a LoRA adapter: set use_peft to go on training it.")
            return AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32, **common)
    except (OSError, ValueError) as error:
        if isinstance(error, FemtuneError):
            raise
        raise unreadable(start, "causal language model", error) from error


@torch.no_grad()
def average_in_place(network: Any, mean: Mean, training: Training) -> PreTrainedModel:
    """Replace the trained weights of a network by their mean with earlier ones; return the earlier ones.

    Of a LoRA adapter both factors are averaged: nearly the mean of their products, as successive
    adapters are near each other. Raises ModelError if the models have other weights.
    """
    earlier = load_model(mean.model, training)
    weights = dict(earlier.named_parameters())
    for name, weight in network.named_parameters():
        if not weight.requires_grad:
            continue
        if (old := weights.get(name)) is None or old.shape != weight.shape:
            raise ModelError(f"{mean.model} has no weights {name} of this size: they can't be averaged.")
        weight.copy_(torch.lerp(old.to(weight), weight, mean.share))
    return earlier


def attend_plainly(
    model: Any, data: TokenExamples, arguments: TrainingArguments, training: Training
) -> None:
    """Use plain attention where it is faster than torch's own: a CPU in bfloat16, short examples."""
    if training.attn_implementation or arguments.device.type != "cpu" or not arguments.bf16:
        return
    if max(data.lengths) <= _SHORT:
        model.set_attn_implementation("eager")


def _load_lora(start: Path, training: Training, common: dict[str, Any]) -> Any:
    from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model

    dtype = training.dtype
    if dtype == "auto" and usable_dtype("bfloat16", "cpu" if training.use_cpu else None) == "float32":
        dtype = "float32"
    if (start / "adapter_config.json").exists():
        return AutoPeftModelForCausalLM.from_pretrained(start, is_trainable=True, dtype=dtype, **common)
    base = AutoModelForCausalLM.from_pretrained(start, dtype=dtype, **common)
    lora = LoraConfig(
        r=training.lora_r,
        lora_alpha=training.lora_alpha,
        lora_dropout=training.lora_dropout,
        target_modules=training.lora_target_modules,
        task_type="CAUSAL_LM",
    )
    return get_peft_model(base, lora)


def whole_weights(trainer: WeightedTrainer, training: Training) -> dict[str, torch.Tensor] | None:
    """Gather sharded weights to save, in the first process only.

    With LoRA, only trained weights; None if the model holds them. All processes must call it.
    """
    weights: dict[str, Any]
    if not trainer.is_cut_up:
        return None
    if trainer.accelerator.is_fsdp2:
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        options = StateDictOptions(
            full_state_dict=True, cpu_offload=True, ignore_frozen_params=bool(training.use_peft)
        )
        weights = dict(get_model_state_dict(trainer.model_wrapped, options=options))
        # by parameter, so that tied ones are one tensor again, and stored once
        names: dict[int, str] = {}
        for name, weight in trainer.model.named_parameters(remove_duplicate=False):
            if (first := names.setdefault(id(weight), name)) in weights and name in weights:
                weights[name] = weights[first]
        return weights
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    return weights
