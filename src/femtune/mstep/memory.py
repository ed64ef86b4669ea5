"""Whether full fine-tuning fits into a device's memory."""

from __future__ import annotations

import logging
from pathlib import Path

from femtune._util.device_memory import training_device_memory
from femtune._util.safetensors_header import num_parameters
from femtune.engines.model_files import adapter_base
from femtune.errors import ModelError
from femtune.mstep.config import Training
from femtune.mstep.disk import sized

log = logging.getLogger("femtune")

_ANY_DEVICE = 2 << 30  # bytes that every device has


def needs_peft(training: Training, base: Path, device: str | None = None) -> bool:
    """Return True if full fine-tuning in float32 exceeds the device's memory, with a warning.

    Weights, gradients and Adam's moments take 16 bytes per parameter; activations are not counted. Under
    fsdp several devices share them, so the choice is left to the user.
    """
    if adapter_base(base) is not None:
        return True  # full fine-tuning can't continue from an adapter
    try:
        needed = 16 * num_parameters(base)
    except ModelError:
        return False  # loading the weights reports the error
    if training.fsdp or needed <= _ANY_DEVICE:  # torch, to find devices, is slow to import
        return False
    memory = training_device_memory(device, training.use_cpu)
    if needed <= memory:
        return False
    log.warning(
        "full fine-tuning needs at least %s and the device has %s: training a LoRA adapter instead. "
        "Set --use-peft to confirm, or --no-use-peft to try full fine-tuning.",
        *(sized(needed), sized(memory)),
    )
    return True
