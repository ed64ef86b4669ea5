"""The M-step's settings, and which examples go into which batch. Without torch: it imports fast."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from femtune.errors import ConfigError


@dataclass(frozen=True)
class Training:
    """The M-step's settings, under the names that transformers, TRL and PEFT give them."""

    num_train_epochs: float = 2.0
    learning_rate: float | None = None  # None: 2e-5 for full fine-tuning, 2e-4 for LoRA
    lr_scheduler_type: str = "constant"
    warmup_steps: float = 0.0  # steps; below 1: share of all steps
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    per_device_train_batch_size: int = 32  # examples
    max_tokens_per_batch: int = 16384  # padded; fewer examples go into a batch where this is reached
    gradient_accumulation_steps: int = 1
    gradient_checkpointing: bool = False
    bf16: bool | None = None  # autocast; None: where a GPU has it
    dtype: str = "auto"  # of stored weights under LoRA; full fine-tuning holds them in float32
    attn_implementation: str | None = None
    use_peft: bool = False
    lora_r: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.0
    lora_target_modules: str = "all-linear"
    report_to: tuple[str, ...] = ()
    use_cpu: bool = False

    def __post_init__(self) -> None:
        for name in ("per_device_train_batch_size", "gradient_accumulation_steps", "lora_r"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if not self.num_train_epochs > 0:
            raise ConfigError(f"num_train_epochs must be above 0, got {self.num_train_epochs}.")
        if self.learning_rate is not None and not 0 < self.learning_rate < math.inf:
            raise ConfigError(f"learning_rate must be above 0, got {self.learning_rate}.")

    @property
    def rate(self) -> float:
        """The learning rate, with its default filled in."""
        return self.learning_rate or (2e-4 if self.use_peft else 2e-5)


def plan_batches(lengths: Sequence[int], training: Training, seed: int) -> list[list[int]]:
    """Rows of each micro-batch, all epochs in a row; every epoch holds each row once.

    Shuffled, then sorted by length within windows of 16 batches, cut where a batch would exceed
    `per_device_train_batch_size` rows or `max_tokens_per_batch` padded tokens, and shuffled again. A
    fraction of an epoch is that share of its batches.
    """
    plan: list[list[int]] = []
    for epoch in range(math.ceil(training.num_train_epochs)):
        rng = random.Random(f"{seed} {epoch}")
        rows = list(range(len(lengths)))
        rng.shuffle(rows)
        window = 16 * training.per_device_train_batch_size
        batches: list[list[int]] = []
        for begin in range(0, len(rows), window):
            batches += _cut(
                sorted(rows[begin : begin + window], key=lengths.__getitem__), lengths, training
            )
        rng.shuffle(batches)
        share = min(1.0, training.num_train_epochs - epoch)
        plan += batches[: max(1, round(share * len(batches)))]
    return plan


def _cut(rows: Sequence[int], lengths: Sequence[int], training: Training) -> list[list[int]]:
    batches: list[list[int]] = [[]]
    for row in rows:  # ascending length, so this row's is what the batch is padded to
        full = len(batches[-1]) == training.per_device_train_batch_size
        if full or (
            batches[-1] and (len(batches[-1]) + 1) * lengths[row] > training.max_tokens_per_batch
        ):
            batches.append([])
        batches[-1].append(row)
    return batches


def context_length(config: Any) -> int:
    """The most tokens a model takes, or a very large number where its config does not say."""
    limit = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    return int(limit or 2**31)
