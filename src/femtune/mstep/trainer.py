"""transformers' Trainer for the M-step: planned micro-batches, and the weighted loss.

Trainer provides devices, precisions, schedules and several processes (DDP, FSDP2, and a user's own
`accelerate config`). femtune adds the batches and the loss, and stops all processes if a loss is NaN
or infinite.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.data import SequentialSampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from femtune.errors import FemtuneError
from femtune.mstep import distributed
from femtune.mstep.config import Training
from femtune.mstep.examples import TokenExamples

_SLICE = 1 << 24  # logits held in float32 at a time: 64 MB


class Batches(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Micro-batches, padded on the left, so that all completions end in the last column.

    A filler, planned without rows, is the shortest row with loss weight 0: it changes no gradient.
    """

    def __init__(self, data: TokenExamples, micro_batches: Sequence[Sequence[int]], pad: int) -> None:
        self.data, self.micro_batches, self.pad = data, micro_batches, pad
        self.num_fed = 0
        self.shortest = min(range(len(data)), key=data.lengths.__getitem__)

    def __len__(self) -> int:
        return len(self.micro_batches)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Return input_ids, attention_mask, position_ids [B, T]; loss_weights [B, completion]."""
        self.num_fed += 1
        rows = self.micro_batches[index] or [self.shortest]
        prompts = [self.data.prompts[row] for row in rows]
        completions = [self.data.completions[row] for row in rows]
        width = max(len(p) + len(c) for p, c in zip(prompts, completions, strict=True))
        longest = max(map(len, completions))
        input_ids = torch.full((len(rows), width), self.pad)
        mask = torch.zeros((len(rows), width), dtype=torch.long)
        loss_weights = torch.zeros((len(rows), longest))
        for at, (row, prompt, completion) in enumerate(zip(rows, prompts, completions, strict=True)):
            tokens = torch.tensor([*prompt, *completion])
            input_ids[at, width - len(tokens) :] = tokens
            mask[at, width - len(tokens) :] = 1
            weight = self.data.weights[row] if self.micro_batches[index] else 0.0
            loss_weights[at, longest - len(completion) :] = weight
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        return {
            "input_ids": input_ids,
            "attention_mask": mask,
            "position_ids": positions,
            "loss_weights": loss_weights,
            "rows": torch.tensor(rows),
        }


class WeightedTrainer(Trainer):  # type: ignore[misc]  # transformers is untyped to mypy
    """transformers' Trainer with femtune's batches and weighted loss.

    `on_begin` is called with the model on its devices, before the first step; `on_step` after each, with
    step, steps and loss.
    """

    def __init__(
        self,
        model: Any,
        arguments: TrainingArguments,
        batches: Batches,
        *,
        sharded: bool,
        on_begin: Callable[[], None],
        on_step: Callable[[int, int, float], None],
    ) -> None:
        self.sharded = sharded  # before Trainer creates its accelerator
        self.losses: list[tuple[torch.Tensor, torch.Tensor]] = []  # of this step: loss [], rows [B]
        super().__init__(
            model=model,
            args=arguments,
            train_dataset=batches,
            data_collator=lambda items: items[0],
            callbacks=[_Watch(self, on_begin, on_step)],
        )
        self.remove_callback(PrinterCallback)  # on_step reports progress
        # the loss covers the whole step: else it is divided again if a model takes no loss arguments
        self.model_accepts_loss_kwargs = True

    def create_accelerator_and_postprocess(self) -> None:
        """Create the accelerator, with FSDP2 if requested, on the CPU too."""
        with environment(ACCELERATE_USE_FSDP=None if not self.sharded else "true"):
            super().create_accelerator_and_postprocess()
        state = self.accelerator.state
        if self.sharded and getattr(state, "fsdp_plugin", None) is None:
            # accelerate shards only on accelerators, and silently runs DDP on the CPU
            from accelerate import PartialState
            from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

            PartialState().distributed_type = state.distributed_type = DistributedType.FSDP
            state.fsdp_plugin = self.plugin or FullyShardedDataParallelPlugin()
            self.is_fsdp_enabled = True

    def _build_accelerator_args(self, **kwargs: Any) -> dict[str, Any]:
        made: dict[str, Any] = super()._build_accelerator_args(**kwargs)
        if self.sharded:
            self.plugin = made["fsdp_plugin"] = fsdp_plugin(self.args.bf16)
        return made

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        return SequentialSampler(train_dataset if train_dataset is not None else self.train_dataset)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        total = sum(batch["loss_weights"].abs().sum() for batch in batch_samples).to(device)
        return self.accelerator.gather(total).sum() if self.args.world_size > 1 else total

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Compute -sum of w log pi over completions, divided by the weighted tokens of the step."""
        rows, weights = inputs.pop("rows"), inputs.pop("loss_weights")
        # the logit at a column foretells the next one, hence one column more than completions have
        outputs = model(**inputs, logits_to_keep=weights.shape[1] + 1, use_cache=False)
        logprobs = minus_logprob(outputs.logits, inputs["input_ids"][:, -weights.shape[1] :])
        loss = (logprobs * weights.flatten()).sum() / num_items_in_batch
        self.losses.append((loss.detach(), rows))
        # gradients are averaged over processes, while this loss is already the share of the whole
        loss = loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def check_losses(self) -> None:
        """Raise FemtuneError in all processes if any loss of this step is NaN or infinite.

        This is checked once per step, to avoid a GPU synchronization at each micro-batch.
        """
        step, self.losses = self.losses, []
        losses = torch.stack([loss for loss, _ in step])
        sums = self.accelerator.gather(losses) if self.args.world_size > 1 else losses
        if sums.isfinite().all():
            return
        bad = [(loss.item(), rows.tolist()) for loss, rows in step if not loss.isfinite()]
        loss, rows = next(found[0] for found in distributed.gathered(bad) if found)
        raise FemtuneError(
            f"the loss is {loss} in a batch of the examples at rows {[row + 1 for row in rows[:8]]}, "
            "counted without those of weight 0: lower learning_rate, or look at these examples."
        )

    def network(self) -> Any:
        """Return the model to call outside of training; if it is sharded, all processes must call it."""
        wrapped = self.model_wrapped
        return wrapped if self.is_cut_up else self.accelerator.unwrap_model(wrapped)

    @property
    def is_cut_up(self) -> bool:
        """Return True if no process holds all weights, so that all must take part in a forward."""
        return bool(self.is_fsdp_enabled or self.is_deepspeed_enabled)


class _Watch(TrainerCallback):  # type: ignore[misc]  # the same
    """A callback that checks each step's losses before the step, and reports the loss after it."""

    def __init__(
        self,
        trainer: WeightedTrainer,
        on_begin: Callable[[], None],
        on_step: Callable[[int, int, float], None],
    ) -> None:
        self.trainer, self.on_begin, self.on_step = trainer, on_begin, on_step

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.on_begin()
        _keep_logits_small(self.trainer)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.check_losses()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            self.on_step(state.global_step, state.max_steps, logs["loss"])


def _keep_logits_small(trainer: WeightedTrainer) -> None:
    """Autocast without accelerate's float32 copy of all logits: it takes gigabytes and is not needed."""
    module = trainer.network()
    if trainer.args.bf16 and hasattr(module, "_original_forward"):
        cast = torch.autocast(trainer.args.device.type, torch.bfloat16)
        module.forward = cast(module._original_forward)


def minus_logprob(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Compute -log pi [B * C] float32 of targets [B, C] under logits [B, C + 1, V].

    The last column of logits is ignored. If there are many logits, they are never all in float32 at
    once, forward or backward.
    """
    if logits.numel() <= _SLICE:
        return torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1).float(), targets.flatten(), reduction="none"
        )
    padded = torch.nn.functional.pad(targets, (0, 1))  # keeping the last column avoids a copy
    logprobs: torch.Tensor = _MinusLogprob.apply(logits.flatten(0, 1), padded.flatten())  # type: ignore[no-untyped-call]  # torch's apply is untyped
    return logprobs.view(padded.shape)[:, :-1].flatten()


class _MinusLogprob(torch.autograd.Function):
    """The function -log pi [N] float32 of targets [N] under logits [N, V], in slices of float32."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        rows = max(1, _SLICE // logits.shape[1])
        parts = torch.split(logits, rows)
        norms = torch.cat([part.float().logsumexp(-1) for part in parts])
        ctx.save_for_backward(logits, targets, norms)
        return norms - logits.gather(1, targets[:, None]).squeeze(1).float()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        logits, targets, norms = ctx.saved_tensors
        rows = max(1, _SLICE // logits.shape[1])
        out = torch.empty_like(logits)
        for begin in range(0, len(logits), rows):
            part = slice(begin, begin + rows)
            probabilities = (logits[part].float() - norms[part, None]).exp_()
            ones = torch.full_like(targets[part, None], -1, dtype=torch.float32)
            probabilities.scatter_add_(1, targets[part, None], ones)
            out[part] = probabilities.mul_(grads[0][part, None])
        return out, None


def fsdp_plugin(bf16: bool) -> Any:
    """Return accelerate's settings of FSDP2: one unit per decoder layer, gathered layer by layer.

    Returns None if the user's own `accelerate config` has set them in the environment.
    """
    if os.environ.get("FSDP_VERSION"):
        return None
    from accelerate.utils import FullyShardedDataParallelPlugin
    from torch.distributed.fsdp import MixedPrecisionPolicy

    # gradients are summed in float32, whatever dtype they are computed in
    half = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    return FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        reshard_after_forward=True,
        cpu_ram_efficient_loading=True,
        state_dict_type="FULL_STATE_DICT",
        mixed_precision_policy=half if bf16 else None,
    )


@contextmanager
def environment(**values: str | None) -> Iterator[None]:
    """Set environment variables in a context and restore them; None leaves one unchanged."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update({name: value for name, value in values.items() if value is not None})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def training_arguments(
    training: Training, accumulation: int, scratch: str, seed: int
) -> TrainingArguments:
    """Return transformers' form of the settings; join the job's processes if there are several."""
    gpu = torch.cuda.is_available() and not training.use_cpu
    # transformers is renaming it, and warns of the old name in 5.23
    names = ("activation_checkpointing", "gradient_checkpointing")
    checkpointing = next(name for name in names if name in TrainingArguments.__dataclass_fields__)
    several = distributed.count() > 1
    arguments = TrainingArguments(
        output_dir=scratch,
        num_train_epochs=1,  # the micro-batches cover all epochs
        per_device_train_batch_size=1,  # an item is a batch
        gradient_accumulation_steps=accumulation,
        learning_rate=training.rate,
        lr_scheduler_type=training.lr_scheduler_type,
        warmup_steps=training.warmup_steps,
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        bf16=bool(training.bf16),
        use_cpu=not gpu,
        ddp_backend="gloo" if several and not gpu else None,
        seed=seed % 2**32,
        report_to=[],  # trackers.py logs the run as a whole
        save_strategy="no",
        logging_steps=1,
        logging_nan_inf_filter=False,  # it synchronizes at each micro-batch; check_losses once a step
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=gpu,
        log_level="error",
        # otherwise each process would hold all gradients until the last micro-batch of a step
        accelerator_config={"gradient_accumulation_kwargs": {"sync_each_batch": True}}
        if is_sharded(training)
        else None,
        **({checkpointing: True} if training.gradient_checkpointing else {}),
    )
    # several GPUs without a launcher: DataParallel would fetch several items at once, each a batch
    arguments._n_gpu = min(1, arguments.n_gpu)
    return arguments


def is_sharded(training: Training) -> bool:
    """Return True if FSDP is requested, by the setting or by the user's own `accelerate config`."""
    return training.fsdp or os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"
