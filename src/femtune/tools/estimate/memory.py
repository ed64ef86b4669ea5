"""The device memory of the engine and the M-step, and settings that make them fit.

One is freed before the other starts, so each must fit alone. All values are bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from femtune.engines.hf.batch_size import usual_kept_bytes, usual_rows
from femtune.tools.estimate.formulas import BYTES, Job, Shape
from femtune.tools.estimate.hardware import Hardware

RUNTIME = 1e9  # bytes of a GPU's driver and libraries; assumed
_SPARE = 0.95  # share of the rest that an engine may fill; assumed
_VLLM_ROWS = 256  # vLLM's default max_num_seqs


@dataclass(frozen=True)
class Memory:
    """The memory needed on one device, by purpose."""

    parts: Mapping[str, float]
    limit: float  # the device's memory without driver and libraries

    @property
    def total(self) -> float:
        return sum(self.parts.values())

    @property
    def fits(self) -> bool:
        return self.total <= self.limit


def limit(device: Hardware) -> float:
    """Return the usable memory of a device."""
    return device.memory - RUNTIME if device.is_gpu else device.memory


def batch_rows(shape: Shape, job: Job, device: Hardware) -> int:
    """Return an engine's batch size: as set or by default, limited by memory."""
    usual = _VLLM_ROWS
    if job.engine == "transformers":
        usual = usual_rows(shape.kv_bytes(shape.dtype), device.memory if device.is_gpu else None)
    weights = shape.parameters * BYTES[job.engine_dtype] / job.tensor_parallel
    held = int((_SPARE * limit(device) - weights - _kept(job, device)) // _row(shape, job))
    return max(1, min(job.max_batch or usual, held))


def _kept(job: Job, device: Hardware) -> float:
    """Return the memory of keys and values that the transformers engine keeps for other rows."""
    if job.engine != "transformers":
        return 0.0
    return usual_kept_bytes(device.memory if device.is_gpu else None)


def _row(shape: Shape, job: Job) -> float:
    """Return the memory of a row: keys and values at the maximum length, and its logits."""
    columns = job.longest + job.max_new_tokens
    numbers = 3 * 4 * shape.vocabulary  # logits, log-probabilities and noise, in float32
    return columns * shape.kv_bytes(job.engine_dtype) / job.tensor_parallel + numbers


def engine_memory(shape: Shape, job: Job, device: Hardware) -> Memory:
    """Return an engine's memory: weights / tensor_parallel, the rows of a batch, and kept prompts."""
    rows = batch_rows(shape, job, device)
    parts = {
        "weights": shape.parameters * BYTES[job.engine_dtype] / job.tensor_parallel,
        f"keys, values and logits of {rows} rows": rows * _row(shape, job),
    }
    if kept := _kept(job, device):
        parts["kept keys and values of prompts"] = kept
    return Memory(parts, limit(device))


def training_memory(shape: Shape, job: Job, device: Hardware, processes: int) -> Memory:
    """Return the memory of each process of an M-step.

        full            4 bytes per parameter for the weight, 4 for its gradient, 8 for Adam's moments
                        (Rajbhandari et al. 2020, arXiv 1910.02054, section 3.1; here all in float32);
                        2 for the copy under bfloat16 autocast; 4 for the buckets of several
                        processes
        LoRA            the base as stored, and the same for the adapter
        fsdp            all of these / processes
        activations     34 bytes x width per token and layer in bfloat16, twice that in float32
                        (Korthikanti et al. 2022, arXiv 2205.05198, equation 2, without the attention
                        matrix, which sdpa does not keep); with checkpointing 2, and 34 for one layer
        logits          3 times completion tokens x vocabulary: the logits, a copy, and their gradient

    Activations and logits are those of the largest possible micro-batch: all rows at maximum length.
    """
    training, number = job.training, BYTES[job.training_dtype]
    whole = not training.use_peft
    trained = shape.parameters if whole else shape.lora(training)
    sharded = processes if training.fsdp else 1
    each = 16 + 2 * (whole and number == 2) + 4 * (processes > 1 and not training.fsdp)
    parts = {"weights, gradients, Adam's moments": each * trained / sharded}
    if not whole:
        stored = BYTES.get(training.dtype, BYTES[shape.dtype])
        parts = {
            "base": stored * shape.parameters / sharded,
            "adapter, its gradients and moments": each * trained / sharded,
        }
    longest = job.longest + job.max_new_tokens
    fitting = max(1, training.max_tokens_per_batch // longest)
    examples = max(1, round(job.problems * job.asking.examples))
    rows = min(training.schedule(examples, processes).batch_size, fitting)
    layer = 17 * number * shape.width  # 34 where numbers have 2 bytes
    kept = layer * shape.layers
    if training.gradient_checkpointing:
        kept = number * shape.width * shape.layers + layer
    parts[f"activations of {rows} rows of {longest} tokens"] = float(rows * longest * kept)
    parts["logits"] = 3.0 * number * rows * (job.max_new_tokens + 1) * shape.vocabulary
    return Memory(parts, limit(device))


def advice(shape: Shape, job: Job, device: Hardware, devices: int) -> Iterator[str]:
    """Yield settings to change if a device's memory is too small."""
    if not engine_memory(shape, job, device).fits:
        ways = [*_of_engine(shape, job, device)]
        yield f"the engine does not fit into {device.name}: {', or '.join(ways)}."
    if not training_memory(shape, job, device, devices).fits:
        ways = [*_of_training(shape, job, device, devices)]
        what = f"set {', or '.join(ways)}" if ways else "take a smaller model, or larger devices"
        yield f"the M-step does not fit into {device.name}: {what}."


def _of_engine(shape: Shape, job: Job, device: Hardware) -> Iterator[str]:
    found = False
    if job.engine_dtype == "float32":
        found = engine_memory(shape, replace(job, engine_dtype="bfloat16"), device).fits
        if found:
            yield "set --engine-dtype bfloat16"
    for parallel in (2, 4, 8, 16):
        if engine_memory(shape, replace(job, tensor_parallel=parallel), device).fits:
            yield f"set --engine vllm --engine-args tensor_parallel_size={parallel}"
            return
    if not found:
        yield "take a smaller model, or devices with more memory"


def _of_training(shape: Shape, job: Job, device: Hardware, devices: int) -> Iterator[str]:
    """Yield the smallest changes that fit, by kind, with the memory they take."""
    less: dict[str, object] = {"gradient_checkpointing": True}
    short: dict[str, object] = {
        **less,
        "max_tokens_per_batch": min(2048, job.training.max_tokens_per_batch),
    }
    cheap = {"--gradient-checkpointing": less}
    if job.training.max_tokens_per_batch > 2048:
        cheap["--gradient-checkpointing --max-tokens-per-batch 2048"] = short
    kinds: list[dict[str, tuple[int, Mapping[str, object]]]] = [
        {flags: (devices, values) for flags, values in cheap.items()},
        {
            f"--use-peft {flags}": (devices, {**values, "use_peft": True})
            for flags, values in cheap.items()
        },
        {
            f"--fsdp {flags} --launch on {many} devices": (many, {**values, "fsdp": True})
            for many in (2, 4, 8, 16, 32, 64)
            if many >= devices
            for flags, values in cheap.items()
        },
    ]
    for kind in kinds:
        for flags, (processes, values) in kind.items():
            training = replace(job.training, **values)  # type: ignore[arg-type]  # values of several types
            taken = training_memory(shape, replace(job, training=training), device, processes)
            if taken.fits:
                yield f"{flags} ({taken.total / 1e9:.0f} GB)"
                break
