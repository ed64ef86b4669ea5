"""The M-step: maximize sum_i w_i log pi(z_i, y_i | x_i; theta) over the weighted examples.

The input is the plain prompt and the sampled tokens; the loss covers only the latter, end token
included. It uses transformers' Trainer (trainer.py) with batches by length, to reduce padding, and this
loss:

    loss of an optimizer step = - sum_i w_i log pi(z_i, y_i | x_i) / sum_i |w_i| length_i

summed over all micro-batches and processes of that step, so neither their number nor unequal lengths
change a gradient. Weight 2 equals the row twice, weight 0 no row. P processes that accumulate A
micro-batches take the same steps as one that accumulates A P.
"""

from __future__ import annotations

import json
import logging
import os
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments, set_seed

from femtune._util.atomic_files import remove, replacing
from femtune._util.safetensors_header import stored_dtype
from femtune.data.chat_tokenizer import ChatTokenizer
from femtune.engines.hf.memory import give_back, is_out_of_memory
from femtune.engines.rounding import HALVES, round_in_place, rounded_state
from femtune.engines.weight_check import NUM_PAIRS, WeightCheck, read_check, write_check
from femtune.errors import ConfigError, FemtuneError, ModelError, RunError
from femtune.mstep import distributed
from femtune.mstep.average import Mean
from femtune.mstep.config import Training, context_length, halved_batches, make_batches, shared_batches
from femtune.mstep.examples import TokenExamples, read_examples
from femtune.mstep.memory import halvings_on_cpu
from femtune.mstep.model import attend_plainly, average_in_place, load_model, whole_weights
from femtune.mstep.trainer import Batches, WeightedTrainer, is_sharded, training_arguments

log = logging.getLogger("femtune")

M_STEP = "m_step.json"  # in a model's folder
_LOSS = 0.02  # share of an M-step's gain that rounding may lose without a warning
_NOISE = 0.005  # the same in nats per token


@dataclass(frozen=True)
class MStep:
    """The metrics of an M-step; stored as m_step.json in the model's folder."""

    num_examples: int
    num_steps: int
    trained_tokens: int  # input tokens, prompts included, over all epochs
    loss: float  # nats per completion token, averaged over steps
    _: KW_ONLY
    seconds: float  # training only, without loading and saving
    num_epochs: float
    batch_size: int  # examples of a batch on one device
    learning_rate: float  # the peak
    bf16: bool = False  # autocast
    # gain in log-probability of the check's examples by the saved 16-bit weights, over that by the
    # float32 ones; None if nothing was rounded, or nothing was gained
    exported_gain_share: float | None = None
    averaged_share: float | None = (
        None  # share of this M-step's weights in the saved mean; see average.py
    )


@dataclass(frozen=True, kw_only=True)
class _Export:
    """The outputs of an M-step: see `m_step`."""

    out: Path
    tokenizer: ChatTokenizer
    seed: int
    dtype: torch.dtype | None  # that weights are rounded to; None: no rounding
    master: Path | None
    mean: Mean | None


class OutOfMemory(ModelError):
    """A micro-batch did not fit into memory, in one of several processes."""


def m_step(
    examples: Path,
    start: Path,
    out: Path,
    training: Training,
    tokenizer: ChatTokenizer,
    *,
    seed: int,
    on_step: Callable[[int, int, float], None] = lambda step, steps, loss: None,
    halvings: int = 0,
    dtype: str = "float32",
    master: Path | None = None,
    mean: Mean | None = None,
) -> MStep:
    """Fine-tune the weights in `start` on a file of examples and save them to `out`.

    `out` becomes a Hugging Face folder, or with LoRA a PEFT one, complete or not at all, with a check of
    its weights (see weight_check.py). `on_step` gets step, steps and loss. If each process of a job
    calls this, all share the same steps, the first one saves, and all return the same.

    Full fine-tuning trains in float32. With `dtype` bfloat16 or float16, weights in `out` are rounded
    stochastically, seeded by `seed` (see rounding.py); with `mean` they are averaged (see average.py).
    In both cases `master`, if given, becomes a folder with the trained float32 weights, from which the
    next M-step should start. If it exists without `out`, `out` is made from it. Adapters stay float32.

    If a micro-batch does not fit into memory, all are halved and the M-step restarts with the same
    optimizer steps. Several processes cannot agree on that, as some wait for the failed one. There the
    caller restarts with `halvings` one higher, as launch.py does.

    Raises DataError for unusable examples, ModelError for an unusable start, or one too large for the
    memory (OutOfMemory if halving may help), ConfigError for `fsdp` with one process, RunError if `out`
    is not empty, and FemtuneError, naming the examples, if the loss becomes NaN or infinite.
    """
    if out.is_dir() and any(out.iterdir()):  # checked before any work is done
        raise RunError(f"{out} holds something already: choose another folder.")
    if training.fsdp and distributed.count() == 1:
        raise ConfigError(
            "fsdp shards over several processes, and this is one: set launch to what starts them "
            '("accelerate launch --num_processes 8"), or leave fsdp off.'
        )
    half = None if training.use_peft else HALVES.get(dtype)
    if training.bf16 is None:  # a folder of float32 masters does not show the base's dtype
        stored = dtype if half or training.use_peft else stored_dtype(start)
        training = replace(training, bf16=training.computes_in_bf16(stored))
    master = master if half or mean else None
    export = _Export(out=out, tokenizer=tokenizer, seed=seed, dtype=half, master=master, mean=mean)
    if master and distributed.count() == 1 and (master / M_STEP).exists():
        return _export_again(training, export)
    while True:
        try:
            return _attempt(examples, start, training, export, on_step, halvings)
        except _TooLarge as error:
            rows = error.rows
        finally:
            give_back(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        halvings += 1
        log.warning(
            f"out of memory in a micro-batch of up to {rows} examples: the M-step starts over with "
            "batches of half the size. Optimizer steps stay the same."
        )


class _TooLarge(Exception):
    """A micro-batch, of up to `rows` examples, did not fit into this process's memory."""

    def __init__(self, rows: int) -> None:
        self.rows = rows


def _attempt(
    examples: Path,
    start: Path,
    training: Training,
    export: _Export,
    on_step: Callable[[int, int, float], None],
    halvings: int,
) -> MStep:
    """Run an M-step with micro-batches halved `halvings` times. Raises _TooLarge to halve again."""
    tokenizer, seed = export.tokenizer, export.seed
    with tempfile.TemporaryDirectory() as scratch:
        # first of all, as it joins the processes
        arguments = training_arguments(
            training, training.gradient_accumulation_steps << halvings, scratch, seed
        )
        batches: Batches | None = None
        try:
            set_seed(seed % 2**32)  # before an adapter is initialized
            model = load_model(start, training)
            data = read_examples(examples, tokenizer, context_length(model.config))
            if not len(data):
                raise FemtuneError(f"{examples} holds no examples: there is nothing to learn from.")
            if arguments.device.type == "cpu" and distributed.count() == 1:
                more = _halvings_on_cpu(model, data, training, seed)
                arguments.gradient_accumulation_steps <<= max(0, more - halvings)
                halvings = max(more, halvings)
            micro_batches = _make_batches(data, training, seed, halvings)
            batches = Batches(data, micro_batches, pad=tokenizer.pad_token_id)
            attend_plainly(model, data, arguments, training)
            return _train(model, batches, arguments, training, export, on_step)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise _too_large(batches, arguments, error) from None


def _halvings_on_cpu(model: Any, data: TokenExamples, training: Training, seed: int) -> int:
    whole = _make_batches(data, training, seed, halvings=0)
    return halvings_on_cpu(model.config.get_text_config(), whole, data.lengths, bool(training.bf16))


def _make_batches(
    data: TokenExamples, training: Training, seed: int, halvings: int
) -> list[Sequence[int]]:
    planned = make_batches(data.lengths, training, seed, distributed.count())
    micro_batches: list[Sequence[int]] = list(planned)
    for _ in range(halvings):
        micro_batches = halved_batches(micro_batches)
    return shared_batches(micro_batches, distributed.count())


def _train(
    model: Any,
    batches: Batches,
    arguments: TrainingArguments,
    training: Training,
    export: _Export,
    on_step: Callable[[int, int, float], None],
) -> MStep:
    data, micro_batches, seed = batches.data, batches.micro_batches, export.seed
    rows = check_rows(data, seed)
    before: list[float] = []
    trainer = WeightedTrainer(
        model,
        arguments,
        batches,
        sharded=is_sharded(training),
        on_begin=lambda: before.extend(completion_logprobs(trainer.network(), data, rows)),
        on_step=on_step,
    )
    if distributed.rank():  # each process has its own dropout
        set_seed((seed + distributed.rank()) % 2**32)
    begun = time.perf_counter()
    result = trainer.train()
    seconds = time.perf_counter() - begun
    if not all(distributed.gathered(_are_numbers(model))):
        raise FemtuneError("the last step gave NaN or infinite weights: lower learning_rate.")
    lengths = data.lengths
    fed = sum(lengths[row] for rows in micro_batches for row in rows)
    schedule = asdict(training.schedule(len(data), distributed.count()))
    about = {"seconds": round(seconds, 3), "bf16": arguments.bf16}
    done = MStep(len(data), result.global_step, fed, result.training_loss, **about, **schedule)
    prompts, completions = ([side[row] for row in rows] for side in (data.prompts, data.completions))
    after = completion_logprobs(trainer.network(), data, rows)
    check = WeightCheck(prompts, completions, after, before)
    saved = trainer.accelerator.unwrap_model(trainer.model)

    def save(folder: Path, done: MStep, check: WeightCheck, dtype: torch.dtype | None = None) -> MStep:
        weights = whole_weights(trainer, training)  # a collective call of all processes
        first = partial(_save, folder, saved, weights, export.tokenizer, check, done, dtype)
        return MStep(**distributed.by_first(first))

    if export.master is not None:
        distributed.by_first(partial(_discard, export.master))
        save(export.master, done, check)
    if export.mean is not None:
        if trainer.is_cut_up:
            raise ConfigError("sharded weights can't be averaged: drop average_weights.")
        done, check = _average(saved, export.mean, training, done, check)
    if not export.dtype:
        return save(export.out, done, check)
    if trainer.is_deepspeed_enabled:  # it holds the weights, so rounding happens on saving
        log.warning("under DeepSpeed the log-probabilities of the rounded weights are not measured.")
        return save(export.out, done, check, export.dtype)
    own = f"{seed} {distributed.rank()}" if trainer.is_cut_up else str(seed)
    round_in_place(saved, export.dtype, own)
    served = completion_logprobs(trainer.network(), data, rows)
    done = replace(done, exported_gain_share=_gain_share(check, served))
    return save(export.out, done, replace(check, logprobs=served), export.dtype)


def _average(
    network: Any, mean: Mean, training: Training, done: MStep, check: WeightCheck
) -> tuple[MStep, WeightCheck]:
    """Average weights in place; return metrics and a check that tells them from the earlier ones."""
    earlier = average_in_place(network, mean, training)
    data = TokenExamples(check.prompts, check.completions, [1.0] * len(check.prompts))
    before, after = (
        completion_logprobs(each, data, range(len(data)))
        for each in (earlier.to(network.device), network)
    )
    done = replace(done, averaged_share=round(mean.share, 6))
    return done, replace(check, logprobs=after, logprobs_before=before)


def _export_again(training: Training, export: _Export) -> MStep:
    """Make `out` from an M-step's stored float32 weights, with the same bytes as before."""
    master = export.master
    assert master is not None
    done, check = MStep(**json.loads((master / M_STEP).read_text())), read_check(master)
    model = load_model(master, training)
    if check is None:
        raise ModelError(f"{master} lacks its weight check: remove the folder, and it is trained again.")
    data = TokenExamples(check.prompts, check.completions, [1.0] * len(check.prompts))
    if export.mean is not None:
        done, check = _average(model, export.mean, training, done, check)
    if export.dtype is not None:
        round_in_place(model, export.dtype, str(export.seed))
        served = completion_logprobs(model, data, range(len(data)))
        done = replace(done, exported_gain_share=_gain_share(check, served))
        check = replace(check, logprobs=served)
    return MStep(**_save(export.out, model, None, export.tokenizer, check, done, export.dtype))


def _save(
    folder: Path,
    network: Any,
    weights: dict[str, Any] | None,
    tokenizer: ChatTokenizer,
    check: WeightCheck,
    done: MStep,
    dtype: torch.dtype | None,
) -> dict[str, Any]:
    """Save a model, in 16 bits if a dtype is given; return the metrics of the M-step."""
    if dtype is not None:
        state = network.state_dict() if weights is None else weights
        # float32 numbers that are rounded already stay as they are
        weights = rounded_state(state, dtype, f"{check.logprobs}")
    with replacing(folder) as part:
        network.save_pretrained(part, **({} if weights is None else {"state_dict": weights}))
        if dtype is not None:
            _name_dtype(part / "config.json", dtype)
        tokenizer.tokenizer.save_pretrained(part)
        write_check(part, check)
        (part / M_STEP).write_text(json.dumps(asdict(done)) + "\n")
    return asdict(done)


def _discard(folder: Path) -> None:
    """Remove a folder, if it exists, atomically even if the process is killed."""
    if folder.exists():
        gone = folder.with_name(f".{folder.name}.part")
        remove(gone)
        os.replace(folder, gone)
        remove(gone)


def _name_dtype(path: Path, dtype: torch.dtype) -> None:
    """Write the dtype of the weights to a model's config; transformers writes that of the network."""
    config = json.loads(path.read_text())
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        for name in ("dtype", "torch_dtype"):
            if part.get(name) == "float32":
                part[name] = str(dtype).removeprefix("torch.")
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _gain_share(check: WeightCheck, served: Sequence[float]) -> float | None:
    """Return the share of the gain that rounded weights keep; warn where more than 2% are lost."""
    before, exact, found = sum(check.logprobs_before), sum(check.logprobs), sum(served)
    if exact <= before:
        return None
    share = (found - before) / (exact - before)
    # a smaller loss per token is within the rounding of any 16-bit engine
    if share < 1 - _LOSS and exact - found > _NOISE * check.num_tokens:
        log.warning(
            "the weights rounded to 16 bits keep %.1f%% of what the M-step gained in log-probability on "
            "%d of its examples (%.2f of %.2f nats): evaluation shows less than was learnt. The next "
            "M-step is not affected where it starts from the float32 weights.",
            *(100 * share, len(served), found - before, exact - before),
        )
    return round(share, 6)


def check_rows(data: TokenExamples, seed: int) -> list[int]:
    """Return rows for the weight check, from the shorter half of rows with positive weight, if any."""
    positive = [row for row, weight in enumerate(data.weights) if weight > 0] or range(len(data))
    by_length = sorted(positive, key=data.lengths.__getitem__)
    shorter = by_length[: max(NUM_PAIRS, len(by_length) // 2)]
    return random.Random(f"{seed} probe").sample(shorter, min(NUM_PAIRS, len(shorter)))


@torch.no_grad()
def completion_logprobs(network: Any, data: TokenExamples, rows: Sequence[int]) -> list[float]:
    """Compute log-probabilities of these rows' completions, without dropout or autocast.

    Rows are passed one by one, without padding. For a sharded model all processes must call it.
    """
    training = network.training
    network.eval()
    forward = network
    if "flash" not in str(getattr(network.config, "_attn_implementation", "")):  # flash needs autocast
        forward = getattr(network, "_original_forward", network)  # accelerate's name for the original
    device = next(network.parameters()).device
    logprobs = []
    for row in rows:
        prompt, completion = data.prompts[row], data.completions[row]
        tokens = torch.tensor([[*prompt, *completion]], device=device)
        logits = forward(input_ids=tokens, logits_to_keep=len(completion) + 1, use_cache=False).logits
        chosen = logits[0, :-1].float().log_softmax(-1).gather(1, tokens[0, -len(completion) :, None])
        logprobs.append(chosen.double().sum().item())
    network.train(training)
    return logprobs


def _are_numbers(model: torch.nn.Module) -> bool:
    """Return True if all trained weights of this process, or its shards of them, are finite."""
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    parts = [weight.to_local() if hasattr(weight, "to_local") else weight for weight in trained]
    return bool(torch.stack([part.detach().isfinite().all() for part in parts]).all())


def _too_large(
    batches: Batches | None, arguments: TrainingArguments, error: BaseException
) -> _TooLarge | ModelError:
    """Return the error for a lack of memory: _TooLarge to halve batches, else ModelError."""
    largest = max(map(len, batches.micro_batches)) if batches is not None and batches.num_fed else 0
    if largest <= 1:
        what = "one example at a time does" if largest else "the model and its optimizer do"
        return ModelError(
            f"{what} not fit into memory: set gradient_checkpointing, use_peft, or fsdp over several "
            f"GPUs, or lower max_new_tokens. ({str(error).splitlines()[0]})"
        )
    if distributed.count() == 1:
        return _TooLarge(largest)
    return OutOfMemory(
        f"out of memory in a micro-batch of up to {largest} examples: halve per_device_train_batch_size "
        f"and max_tokens_per_batch, and set gradient_accumulation_steps to "
        f"{2 * arguments.gradient_accumulation_steps} for the same optimizer steps."
    )
