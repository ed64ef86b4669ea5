"""Fit an M-step into memory: a LoRA adapter in place of all weights, smaller micro-batches."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from femtune._util.device_memory import training_device_memory
from femtune._util.safetensors_header import num_parameters
from femtune.engines.model_files import adapter_base
from femtune.errors import ModelError
from femtune.mstep.config import Training
from femtune.mstep.disk import sized

log = logging.getLogger("femtune")

_ANY_DEVICE = 2 << 30  # bytes that every device has
_ACTIVATIONS = 1 << 29  # bytes of a micro-batch on a CPU, where larger ones are no faster


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


def halvings_on_cpu(
    config: Any, micro_batches: Sequence[Sequence[int]], lengths: Sequence[int], bf16: bool
) -> int:
    """Return how often to halve micro-batches of rows so that their activations take about 0.5 GiB.

    A token takes layers x (34 hidden + 5 heads x length) bytes in 16 bits, twice as much in float32
    (Korthikanti et al. 2022, arXiv 2205.05198, section 4.1).
    """
    layers, hidden, heads = (
        int(getattr(config, name, 0) or 0)
        for name in ("num_hidden_layers", "hidden_size", "num_attention_heads")
    )
    halvings = 0
    for rows in filter(None, micro_batches):
        length = max(lengths[row] for row in rows)
        row_bytes = (1 if bf16 else 2) * length * layers * (34 * hidden + 5 * heads * length)
        most = max(1, _ACTIVATIONS // max(1, row_bytes))
        halvings = max(halvings, math.ceil(math.log2(len(rows) / most)))
    return halvings
