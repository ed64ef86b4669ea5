"""The M-step's settings, and which examples go into which batch. Without torch: it imports fast."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from femtune.errors import ConfigError
from femtune.words import near

TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio")
# transformers' schedules that need no settings of their own; its enum is slow to import
SCHEDULES = ("constant", "constant_with_warmup", "linear", "cosine", "inverse_sqrt")


@dataclass(frozen=True)
class Training:
    """The M-step's settings, under the names that transformers, TRL and PEFT give them."""

    num_train_epochs: float = 2.0
    """Passes over the examples in each M-step."""
    learning_rate: float | None = None
    """By default 2e-5 for full fine-tuning, 2e-4 for LoRA."""
    lr_scheduler_type: str = "constant"
    """Of each M-step: constant, linear, cosine, ... as transformers names them."""
    warmup_steps: float = 0.0
    """Steps; below 1: share of all steps."""
    weight_decay: float = 0.0
    """AdamW's."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm."""
    per_device_train_batch_size: int = 32
    """Examples in a batch."""
    max_tokens_per_batch: int = 16384
    """Padded tokens in a batch; fewer examples go into one where this is reached."""
    gradient_accumulation_steps: int = 1
    """Batches for one optimizer step."""
    gradient_checkpointing: bool = False
    """Less memory for more time."""
    bf16: bool | None = None
    """Autocast to bfloat16; by default where a GPU has it."""
    dtype: str = "auto"
    """Of stored weights under LoRA; full fine-tuning holds them in float32."""
    attn_implementation: str | None = None
    """As transformers names them: sdpa, flash_attention_2, ..."""
    use_peft: bool = False
    """LoRA in place of full fine-tuning."""
    lora_r: int = 16
    """Rank."""
    lora_alpha: int = 32
    """Scale: updates are multiplied by lora_alpha / lora_r."""
    lora_dropout: float = 0.0
    """Of the adapter's input."""
    lora_target_modules: str = "all-linear"
    """Modules that get an adapter, as PEFT takes them."""
    report_to: tuple[str, ...] = ()
    """Trackers, told of the run and of some completions: tensorboard, wandb, mlflow, trackio."""
    use_cpu: bool = False
    """Train on the CPU though there is a GPU."""
    fsdp: bool = False
    """Shard weights, gradients and optimizer state over the processes: FSDP2."""

    def __post_init__(self) -> None:
        for name in ("per_device_train_batch_size", "gradient_accumulation_steps", "lora_r"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if not self.num_train_epochs > 0:
            raise ConfigError(f"num_train_epochs must be above 0, got {self.num_train_epochs}.")
        if self.learning_rate is not None and not 0 < self.learning_rate < math.inf:
            raise ConfigError(f"learning_rate must be above 0, got {self.learning_rate}.")
        for name in self.trackers:
            if name not in TRACKERS:
                known = f"choose from {', '.join(TRACKERS)}, by name."
                raise ConfigError(f"report_to {name!r}:{near(name, TRACKERS)} {known}")
        if self.lr_scheduler_type not in SCHEDULES:
            known = f"choose one of {', '.join(SCHEDULES)}."
            guess = near(self.lr_scheduler_type, SCHEDULES)
            raise ConfigError(f"lr_scheduler_type {self.lr_scheduler_type!r}:{guess} {known}")

    @property
    def trackers(self) -> tuple[str, ...]:
        """Those of `report_to`, in which "none" stands for none, as elsewhere."""
        return tuple(name for name in dict.fromkeys(self.report_to) if name != "none")

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


def shared_plan(plan: Sequence[Sequence[int]], processes: int) -> list[Sequence[int]]:
    """A plan whose micro-batches go round the processes evenly: fillers, of no rows, end it.

    >>> shared_plan([[0, 1], [2], [3]], 2)
    [[0, 1], [2], [3], []]
    """
    return [*plan, *[[]] * (-len(plan) % processes)]


def halved_plan(plan: Sequence[Sequence[int]]) -> list[Sequence[int]]:
    """Each micro-batch as two of half its rows, so that twice as many hold the same rows in order.

    >>> halved_plan([[0, 1, 2], [3]])
    [[0, 1], [2], [3], []]
    """
    return [half for rows in plan for half in (rows[: -(-len(rows) // 2)], rows[-(-len(rows) // 2) :])]


def context_length(config: Any) -> int:
    """The most tokens a model takes, or a very large number where its config does not say."""
    limit = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    return int(limit or 2**31)
