"""The M-step: maximise sum_i w_i log pi(z_i, y_i | x_i; theta) over the weighted examples.

What is fed is plain prompt + the tokens that were sampled; the loss sees only the latter, end token
included. On transformers' Trainer, which brings devices, precisions, schedules, trackers and several
processes; ours are the batches, cut by length so that little is padded, and the loss:

    loss of an optimizer step = - sum_i w_i log pi(z_i, y_i | x_i) / sum_i |w_i| length_i

summed over all micro-batches and processes of that step, so that neither their number nor the raggedness
of lengths changes a gradient. Weight 2 is the row twice, weight 0 the row absent.
"""

from __future__ import annotations

import json
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import SequentialSampler
from transformers import (
    AutoModelForCausalLM,
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from femtune.errors import ConfigError, FemtuneError, ModelError, RunError
from femtune.examples import TokenExamples, read_examples
from femtune.prompts import ChatTokenizer
from femtune.run import replacing
from femtune.training import Training, context_length, plan_batches


@dataclass(frozen=True)
class MStep:
    """What an M-step did; stored as m_step.json in the model's folder."""

    num_examples: int
    num_steps: int
    trained_tokens: int  # fed, prompts included, over all epochs
    loss: float  # nats a completion token, averaged over steps
    seconds: float  # training alone, without loading and saving


def m_step(
    examples: Path,
    start: Path,
    out: Path,
    training: Training,
    tokenizer: ChatTokenizer,
    *,
    seed: int,
    on_step: Callable[[int, int, float], None] = lambda step, steps, loss: None,
) -> MStep:
    """Fine-tune the weights in `start` on a file of examples and save them to `out`.

    `out` becomes an ordinary Hugging Face folder, or with LoRA a PEFT one, whole or not at all.
    `on_step` gets step, steps and the loss. Raises DataError for unusable examples, ModelError for an
    unusable start, RunError where `out` holds something already, and FemtuneError, naming the examples,
    where the loss stops being a number.
    """
    if out.is_dir() and any(out.iterdir()):  # found now, and not when all the work is done
        raise RunError(f"{out} holds something already: choose another folder.")
    set_seed(seed % 2**32)  # before an adapter is drawn at random
    model = load_model(start, training)
    data = read_examples(examples, tokenizer, context_length(model.config))
    if not len(data):
        raise FemtuneError(f"{examples} holds no examples: there is nothing to learn from.")
    plan = plan_batches(
        [len(p) + len(c) for p, c in zip(data.prompts, data.completions, strict=True)], training, seed
    )
    batches = _Batches(data, plan, pad=tokenizer.pad_token_id)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = _Trainer(
            model=model,
            args=_arguments(training, scratch, seed),
            train_dataset=batches,
            data_collator=lambda items: items[0],
            callbacks=[_Tell(on_step)],
        )
        trainer.remove_callback(PrinterCallback)  # progress is told by on_step
        begun = time.perf_counter()
        result = trainer.train()
        seconds = time.perf_counter() - begun
    if not all(weight.isfinite().all() for weight in model.parameters()):
        raise FemtuneError("the last step left weights that are no numbers: lower learning_rate.")
    fed = sum(len(data.prompts[row]) + len(data.completions[row]) for rows in plan for row in rows)
    done = MStep(len(data), result.global_step, fed, result.training_loss, round(seconds, 3))
    if trainer.is_world_process_zero():
        with replacing(out) as part:
            trainer.accelerator.unwrap_model(trainer.model).save_pretrained(part)
            tokenizer.tokenizer.save_pretrained(part)
            (part / "m_step.json").write_text(json.dumps(asdict(done)) + "\n")
    return done


def load_model(start: Path, training: Training) -> PreTrainedModel:
    """The model to train: all weights in float32, or a LoRA adapter over a frozen base.

    A folder that holds an adapter goes on with it.
    """
    common = {"attn_implementation": training.attn_implementation}
    try:
        if not training.use_peft:
            if (start / "adapter_config.json").exists():
                raise ConfigError(f"{start} holds a LoRA adapter: set use_peft to go on training it.")
            return AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32, **common)
        with warnings.catch_warnings():  # peft 0.21 asks a model by a name of transformers' past
            warnings.filterwarnings("ignore", ".*gradient_checkpointing", FutureWarning)
            return _load_lora(start, training, common)
    except (OSError, ValueError) as error:
        if isinstance(error, FemtuneError):
            raise
        raise ModelError(f"{start} can't be loaded as a causal language model: {error}") from error


def _load_lora(start: Path, training: Training, common: dict[str, Any]) -> Any:
    from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model

    if (start / "adapter_config.json").exists():
        return AutoPeftModelForCausalLM.from_pretrained(
            start, is_trainable=True, dtype=training.dtype, **common
        )
    base = AutoModelForCausalLM.from_pretrained(start, dtype=training.dtype, **common)
    lora = LoraConfig(
        r=training.lora_r,
        lora_alpha=training.lora_alpha,
        lora_dropout=training.lora_dropout,
        target_modules=training.lora_target_modules,
        task_type="CAUSAL_LM",
    )
    return get_peft_model(base, lora)


class _Batches(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Item i is micro-batch i, padded on the left, so that all completions end in the last column."""

    def __init__(self, data: TokenExamples, plan: Sequence[Sequence[int]], pad: int) -> None:
        self.data, self.plan, self.pad = data, plan, pad

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """input_ids, attention_mask, position_ids: [B, T]; loss_weights: [B, longest completion]."""
        rows = self.plan[index]
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
            loss_weights[at, longest - len(completion) :] = self.data.weights[row]
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        return {
            "input_ids": input_ids,
            "attention_mask": mask,
            "position_ids": positions,
            "loss_weights": loss_weights,
            "rows": torch.tensor(rows),
        }


class _Trainer(Trainer):  # type: ignore[misc]  # transformers is untyped to mypy
    """transformers' Trainer with femtune's batches and weighted loss."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # our loss is of the whole step: else it is divided again where a model takes no loss arguments
        self.model_accepts_loss_kwargs = True

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
        """-sum of w log pi over the completions, divided by the weighted tokens of the whole step."""
        rows, weights = inputs.pop("rows"), inputs.pop("loss_weights")
        # the logit at a column foretells the next one, hence one column more than completions have
        outputs = model(**inputs, logits_to_keep=weights.shape[1] + 1, use_cache=False)
        logits = outputs.logits[:, :-1]
        targets = inputs["input_ids"][:, -weights.shape[1] :]
        nats = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1).float(), targets.flatten(), reduction="none"
        )
        loss = (nats * weights.flatten()).sum() / num_items_in_batch
        if not loss.isfinite():
            raise FemtuneError(
                f"the loss is {loss.item()} in a batch of the examples at rows "
                f"{[row + 1 for row in rows.tolist()[:8]]}, counted without those of weight 0: "
                "lower learning_rate, or look at these examples."
            )
        # gradients are averaged over processes, while this loss is already the share of the whole
        loss = loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss


class _Tell(TrainerCallback):  # type: ignore[misc]  # the same
    """Passes each step's loss on."""

    def __init__(self, on_step: Callable[[int, int, float], None]) -> None:
        self.on_step = on_step

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            self.on_step(state.global_step, state.max_steps, logs["loss"])


def _arguments(training: Training, scratch: str, seed: int) -> TrainingArguments:
    gpu = torch.cuda.is_available() and not training.use_cpu
    bf16 = training.bf16 if training.bf16 is not None else gpu and torch.cuda.is_bf16_supported()
    # transformers is renaming it, and warns of the old name in 5.23
    names = ("activation_checkpointing", "gradient_checkpointing")
    checkpointing = next(name for name in names if name in TrainingArguments.__dataclass_fields__)
    arguments = TrainingArguments(
        output_dir=scratch,
        num_train_epochs=1,  # the plan holds all epochs
        per_device_train_batch_size=1,  # an item is a batch
        gradient_accumulation_steps=training.gradient_accumulation_steps,
        learning_rate=training.rate,
        lr_scheduler_type=training.lr_scheduler_type,
        warmup_steps=training.warmup_steps,
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        bf16=bf16,
        use_cpu=not gpu,
        seed=seed % 2**32,
        report_to=list(training.report_to),
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=gpu,
        log_level="error",
        **({checkpointing: True} if training.gradient_checkpointing else {}),
    )
    # several GPUs without a launcher: DataParallel would ask for several items at once, each a batch
    arguments._n_gpu = min(1, arguments.n_gpu)
    return arguments
