"""Settings and batches of the M-step. This module does not import torch, so it imports fast."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

from cyclopts import Parameter

from femtune._util.redaction import check_values
from femtune._util.text import near
from femtune.engines.dtypes import gpu_has_bfloat16, usable_dtype
from femtune.errors import ConfigError

TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio")
# transformers' schedules that need no settings of their own; its enum is slow to import
SCHEDULES = ("constant", "constant_with_warmup", "linear", "cosine", "inverse_sqrt")

MIN_STEPS = 40  # default optimizer steps of an M-step
MIN_EPOCHS, MAX_EPOCHS = 2, 10  # more passes over a handful of examples memorize them
MOST_EPOCHS = 100_000  # that anyone could mean
MIN_BATCH, MAX_BATCH = 4, 32  # examples on a device
PARTS = 8  # an optimizer step takes at most 1/8 of the examples


@dataclass(frozen=True)
class Schedule:
    """The epochs, batch size and learning rate of an M-step with a known number of examples."""

    num_epochs: float
    batch_size: int  # examples of a batch on one device
    learning_rate: float


@dataclass(frozen=True, kw_only=True)
class Training:
    """The M-step's settings, under the names that transformers, TRL and PEFT give them."""

    num_train_epochs: float | None = None
    """Epochs of each M-step; default: 2 to 10, enough for 40 optimizer steps."""
    learning_rate: float | None = None
    """Peak learning rate; default: 5e-5 for full fine-tuning, 2e-4 for LoRA."""
    lr_scheduler_type: str = "constant"
    """Learning rate schedule of each M-step, as named in transformers: constant, linear, cosine, ..."""
    warmup_steps: float = 0.0
    """Warmup steps; a value below 1 is a share of all steps."""
    weight_decay: float = 0.0
    """Weight decay of AdamW."""
    max_grad_norm: float = 1.0
    """Maximum gradient norm; larger gradients are clipped."""
    per_device_train_batch_size: int | None = None
    """Examples in a batch; default: 4 to 32, so that 2 epochs take 40 steps."""
    max_tokens_per_batch: int = 16384
    """Maximum padded tokens in a batch; a batch takes fewer examples if it reaches this."""
    gradient_accumulation_steps: int = 1
    """Batches per optimizer step."""
    gradient_checkpointing: bool = False
    """Recompute activations to save memory, which takes more time."""
    bf16: bool | None = None
    """Autocast to bfloat16; default: if the GPU supports it, or the CPU and the base is in bfloat16."""
    dtype: str = "auto"
    """Dtype of the frozen base under LoRA; full fine-tuning uses float32 weights."""
    attn_implementation: str | None = None
    """Attention implementation by its name in transformers: sdpa, flash_attention_2, ..."""
    use_peft: bool | None = None
    """Train a LoRA adapter; default: only if full fine-tuning does not fit into memory."""
    lora_r: int = 16
    """Rank of the LoRA adapter."""
    lora_alpha: int = 32
    """Scale of the LoRA adapter: updates are multiplied by lora_alpha / lora_r."""
    lora_dropout: float = 0.0
    """Dropout on the input of the LoRA adapter."""
    lora_target_modules: str = "all-linear"
    """Modules with a LoRA adapter, in PEFT's notation."""
    report_to: Annotated[
        tuple[str, ...], Parameter(consume_multiple=True, negative=(), show_default=False)
    ] = ()
    """Trackers for metrics and some completions: tensorboard, wandb, mlflow, trackio."""
    use_cpu: bool = False
    """Train on the CPU even if there is a GPU."""
    fsdp: bool = False
    """Shard weights, gradients and optimizer state over the processes with FSDP2."""
    # multiplies the default number of epochs: a restart needs more; set by the loop, not by users
    epochs_factor: Annotated[float, Parameter(parse=False)] = 1.0

    def __post_init__(self) -> None:
        check_values(vars(self))  # first, as the other messages show values
        for name in ("per_device_train_batch_size", "gradient_accumulation_steps", "lora_r"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}.")
        for name in ("warmup_steps", "weight_decay", "max_grad_norm", "lora_dropout"):
            if not 0 <= (value := getattr(self, name)) < math.inf:
                raise ConfigError(f"{name} must be at least 0 and finite, got {value}.")
        if self.num_train_epochs is not None and not 0 < self.num_train_epochs <= MOST_EPOCHS:
            most = f"above 0 and at most {MOST_EPOCHS:,}"
            raise ConfigError(f"num_train_epochs must be {most}, got {self.num_train_epochs}.")
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
        """Return the trackers of `report_to`, without duplicates and "none"."""
        return tuple(name for name in dict.fromkeys(self.report_to) if name != "none")

    @property
    def rate(self) -> float:
        """Return the learning rate, with its default filled in."""
        return self.learning_rate or (2e-4 if self.use_peft else 5e-5)

    def computes_in_bf16(self, dtype: str) -> bool:
        """Return True if matrix products are computed in bfloat16; `dtype` is that of the base.

        By default a GPU does so where it can. A CPU does where it has bfloat16 instructions, which take
        less than half of float32's time, and the base is in bfloat16, with numbers no finer.
        """
        if self.bf16 is not None:
            return self.bf16
        if not self.use_cpu and (on_gpu := gpu_has_bfloat16()) is not None:
            return on_gpu
        return usable_dtype(dtype, "cpu") == "bfloat16"

    def schedule(self, num_examples: int, processes: int = 1) -> Schedule:
        """Fill in defaults: a few large steps teach little, so small sets get many small steps.

        Batches shrink before epochs grow, as more epochs take time and memorize the examples.

        >>> Training().schedule(180)
        Schedule(num_epochs=2.0, batch_size=9, learning_rate=5e-05)
        >>> Training().schedule(40)
        Schedule(num_epochs=4.0, batch_size=4, learning_rate=5e-05)
        >>> Training(per_device_train_batch_size=16, num_train_epochs=1.0).schedule(40)
        Schedule(num_epochs=1.0, batch_size=16, learning_rate=5e-05)
        """
        batches_a_step = self.gradient_accumulation_steps * processes
        batch = self.per_device_train_batch_size
        if batch is None:
            enough = MIN_EPOCHS * num_examples // (MIN_STEPS * batches_a_step)
            most = max(1, min(MAX_BATCH, num_examples // (PARTS * batches_a_step)))
            batch = min(most, max(MIN_BATCH, enough))
        if self.num_train_epochs is not None:
            return Schedule(self.num_train_epochs, batch, self.rate)
        steps_an_epoch = max(1, math.ceil(num_examples / (batch * batches_a_step)))
        epochs = min(MAX_EPOCHS, max(MIN_EPOCHS, math.ceil(MIN_STEPS / steps_an_epoch)))
        return Schedule(epochs * self.epochs_factor, batch, self.rate)

    def longer(self, factor: float) -> Training:
        """Multiply the epochs, whether they are set or filled in by `schedule`."""
        if self.num_train_epochs is None:
            return replace(self, epochs_factor=self.epochs_factor * factor)
        return replace(self, num_train_epochs=self.num_train_epochs * factor)


def make_batches(
    lengths: Sequence[int], training: Training, seed: int, processes: int = 1
) -> list[list[int]]:
    """Return the rows of each micro-batch over all epochs; every epoch holds each row once.

    Rows are shuffled, then sorted by length within windows of 16 batches, split where a batch would
    exceed the schedule's batch size or `max_tokens_per_batch` padded tokens, and shuffled again. A
    fraction of an epoch is that share of its batches.
    """
    plan: list[list[int]] = []
    schedule = training.schedule(len(lengths), processes)
    for epoch in range(math.ceil(schedule.num_epochs)):
        rng = random.Random(f"{seed} {epoch}")
        rows = list(range(len(lengths)))
        rng.shuffle(rows)
        window = 16 * schedule.batch_size
        batches: list[list[int]] = []
        for begin in range(0, len(rows), window):
            part = sorted(rows[begin : begin + window], key=lengths.__getitem__)
            batches += _cut(part, lengths, schedule.batch_size, training.max_tokens_per_batch)
        rng.shuffle(batches)
        share = min(1.0, schedule.num_epochs - epoch)
        plan += batches[: max(1, round(share * len(batches)))]
    return plan


def _cut(
    rows: Sequence[int], lengths: Sequence[int], batch_size: int, max_tokens: int
) -> list[list[int]]:
    batches: list[list[int]] = [[]]
    for row in rows:  # ascending length, so the batch is padded to this row's length
        is_full = len(batches[-1]) == batch_size
        if is_full or (batches[-1] and (len(batches[-1]) + 1) * lengths[row] > max_tokens):
            batches.append([])
        batches[-1].append(row)
    return batches


def shared_batches(plan: Sequence[Sequence[int]], processes: int) -> list[Sequence[int]]:
    """Return a plan that divides evenly over the processes, with empty fillers at its end.

    >>> shared_batches([[0, 1], [2], [3]], 2)
    [[0, 1], [2], [3], []]
    """
    return [*plan, *[[]] * (-len(plan) % processes)]


def halved_batches(plan: Sequence[Sequence[int]]) -> list[Sequence[int]]:
    """Split each micro-batch into two halves, which hold the same rows in order.

    >>> halved_batches([[0, 1, 2], [3]])
    [[0, 1], [2], [3], []]
    """
    return [half for rows in plan for half in (rows[: -(-len(rows) // 2)], rows[-(-len(rows) // 2) :])]


def context_length(config: Any) -> int:
    """Return a model's context length, or a very large number if its config has none."""
    limit = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    return int(limit or 2**31)
