"""Estimate what a run will take, from settings to costs: `femtune estimate`.

Needs the data, and the model's config, tokenizer and weight shapes. Only the benchmark loads weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from femtune.config import Train
from femtune.data.partition import Parts
from femtune.errors import ConfigError
from femtune.loop import LoopConfig
from femtune.model_info import refuse_chat
from femtune.mstep.config import Training
from femtune.resolve import Data, held_out, make_loop_config, read_inputs, sampling
from femtune.sampler import SamplerBuilder, engine_args, make_sampler_builder
from femtune.tools.estimate.benchmark import Benchmark, try_out
from femtune.tools.estimate.disk import Disk, draws_bytes, masters_bytes, models_bytes
from femtune.tools.estimate.formulas import (
    BYTES,
    Attempt,
    Job,
    Phase,
    Shape,
    bounding,
    fitting,
    loading,
    scoring,
    writing,
)
from femtune.tools.estimate.hardware import DISK, TABLE, Hardware, check_hardware, this_machine
from femtune.tools.estimate.memory import Memory, advice, batch_rows, engine_memory, training_memory
from femtune.tools.estimate.schedule import is_steady, schedule
from femtune.tools.estimate.shapes import config_folder, read_shape
from femtune.types import Scheme

RIGHT = {"plain": 0.5, "hinted": 0.9}  # assumed by default
_LOOKED_AT = 200  # problems whose prompts are tokenized


@dataclass(frozen=True, kw_only=True)
class EstimateOptions:
    """Options of `estimate`, in addition to the settings of the run."""

    hardware: str = "here"
    """Device of the run: h100, h200, b200, a100, l40s, l4, rtx4090, or this machine."""
    num_devices: int = 1
    """Number of devices, for parallel engines in the E-step and processes in the M-step."""
    price: float | None = None
    """Price of one device for one hour."""
    right: float | None = None
    """Share of plain draws that are right; default: 0.5."""
    hinted_right: float | None = None
    """Share of hinted draws that are right; default: 0.9."""
    tokens_per_draw: float | None = None
    """Mean tokens of a completion; default: half of max_new_tokens."""
    measure: int = 0
    """Draw for at least this many problems and train on them, to measure the values above."""

    def __post_init__(self) -> None:
        check_hardware(self.hardware)
        if self.num_devices < 1 or self.measure < 0 or (self.price or 0) < 0:
            raise ConfigError(
                f"num_devices must be at least 1, measure and price at least 0, got {self.num_devices}, "
                f"{self.measure} and {self.price}."
            )
        for name in ("right", "hinted_right"):
            if (share := getattr(self, name)) is not None and not 0 <= share <= 1:
                raise ConfigError(f"{name} must be from 0 to 1, got {share:g}.")
        if self.tokens_per_draw is not None and self.tokens_per_draw < 1:
            raise ConfigError(f"tokens_per_draw must be at least 1, got {self.tokens_per_draw:g}.")


@dataclass(frozen=True, kw_only=True)
class RunEstimate:
    """The estimated cost of a run."""

    shape: Shape
    job: Job
    device: Hardware
    num_devices: int
    price: float | None
    rows: int  # batch size of generation
    each: Mapping[str, Phase]  # phases of an iteration, by name
    whole: Mapping[str, Phase]  # phases of the run, by name
    engine: Memory
    training: Memory
    disk: Disk
    advice: Sequence[str]
    assumed: Sequence[str]
    measured: Sequence[str]

    @property
    def seconds(self) -> float:
        return sum(phase.seconds for phase in self.whole.values())

    @property
    def device_hours(self) -> float:
        return self.seconds * self.num_devices / 3600


def look_ahead(
    data: Data,
    model: str,
    settings: Train,
    options: EstimateOptions | None = None,
    scheme: Scheme | None = None,
) -> RunEstimate:
    """Estimate the cost of `train` with the same arguments. Raises what `train` would raise at once."""
    options = options or EstimateOptions()
    if settings.m_step == "examples":
        raise ConfigError(
            "femtune estimate is about M-steps that train weights. One that chooses examples makes at "
            "most --selection-requests, as `femtune train` says before it begins."
        )
    refuse_chat(settings, "estimate")
    draws = sampling(settings, scheme)
    folder, name = config_folder(model, options.measure > 0)
    asked = read_inputs(data, settings, model=str(folder))
    steps = make_loop_config(asked.settings, scheme)
    parts = held_out(asked, data, str(folder))
    parallel = int(engine_args(settings).get("tensor_parallel_size", 1))
    if parallel > options.num_devices:
        raise ConfigError(
            f"tensor_parallel_size is {parallel}, and num_devices {options.num_devices}: an engine "
            f"needs that many. Set --num-devices {parallel} or more."
        )
    if options.hardware != "here" and not options.measure:
        asked = replace(asked, settings=_anywhere(asked.settings))
    builder = make_sampler_builder(str(folder), asked, *parts.groups)
    shape = read_shape(builder.base, name)
    if options.tokens_per_draw is not None and options.tokens_per_draw > settings.max_new_tokens:
        raise ConfigError(
            f"tokens_per_draw is {options.tokens_per_draw:g}, and max_new_tokens "
            f"{settings.max_new_tokens}."
        )
    dtype = settings.engine_dtype if settings.engine_dtype != "auto" else shape.dtype
    device = TABLE[options.hardware] if options.hardware in TABLE else _here(shape, dtype, settings)
    job = _job(shape, steps, builder, parts, options, dtype, device, settings, parallel)
    benchmark = try_out(builder, steps, parts.train, options.measure, draws) if options.measure else None
    trained = shape.lora(steps.training) if steps.training.use_peft else shape.parameters
    stored = "float32" if steps.training.use_peft else shape.dtype
    models = models_bytes(steps, BYTES[stored] * trained)
    models += masters_bytes(steps, stored, BYTES["float32"] * trained)
    return _estimate(shape, job, device, options, benchmark, settings, models, steps.scheme)


def _anywhere(settings: Train) -> Train:
    """Return settings that need no libraries or devices of this machine."""
    return replace(
        settings,
        engine="transformers",
        engine_args=(),
        base_url=None,
        served_model=None,
        device=None,
        ray_workers=0,
        ray_address=None,
        worker_gpus=None,
    )


def _here(shape: Shape, dtype: str, settings: Train) -> Hardware:
    kinds = {dtype, "bfloat16" if settings.training.computes_in_bf16(dtype) else "float32"}
    sides = [*shape.adapter.values(), (shape.vocabulary, shape.width)]
    return this_machine(sides, kinds, settings.device)


# --- the run, in numbers


def _job(
    shape: Shape,
    steps: LoopConfig,
    builder: SamplerBuilder,
    parts: Parts,
    options: EstimateOptions,
    dtype: str,
    device: Hardware,
    settings: Train,
    parallel: int,
) -> Job:
    problems, dev, test = parts
    some = problems[:: max(1, len(problems) // _LOOKED_AT)][:_LOOKED_AT]
    lengths = {
        name: [len(builder.tokenizer.encode_prompt(builder.prompts.render(name, each))) for each in some]
        for name in ("plain", "hinted")
    }
    length = options.tokens_per_draw or max(1.0, settings.max_new_tokens / 2)
    training = _mean_training(steps)
    on_gpu = device.is_gpu and not training.use_cpu
    half = training.bf16 if training.bf16 is not None else on_gpu or training.computes_in_bf16(dtype)
    if training.use_peft and (training.dtype if training.dtype in BYTES else shape.dtype) != "float32":
        half = True  # the dtype of the base
    every = steps.evaluation.every
    measured = [
        k for k in range(steps.iterations + 1) if every and (k % every == 0 or k == steps.iterations)
    ]
    run = schedule(steps.scheme, _right(options), steps.iterations)
    return Job(
        problems=len(problems),
        eval_problems=len(test),
        dev_problems=len(dev),
        prompt_tokens={name: fmean(each) for name, each in lengths.items()},
        longest=max(map(max, lengths.values())),
        tokens_per_draw=length,
        longest_draw=float(settings.max_new_tokens),
        tokens_per_example=length,
        max_new_tokens=settings.max_new_tokens,
        asking=run.asking,
        iterations=steps.iterations,
        evaluations=len(measured) if test or dev else 0,
        eval_draws=steps.evaluation.draws,
        chunk_size=settings.chunk_size,
        engine=settings.engine,
        engine_dtype=dtype,
        training_dtype="bfloat16" if half else "float32",
        max_batch=settings.max_batch,
        tensor_parallel=parallel,
        is_launched=options.num_devices > 1 or steps.launch is not None,
        training=training,
        scored=run.scored,
        remembered=run.remembered,
        bound_draws=steps.bound_draws,
        bound_problems=min(steps.bound_problems, len(test)),
    )


def _mean_training(steps: LoopConfig) -> Training:
    """The training settings, with epochs averaged over the iterations: restarts take more."""
    each = [steps.m_step(k)[1] for k in range(1, steps.iterations + 1)]
    given = [training.num_train_epochs for training in each if training.num_train_epochs is not None]
    if given:
        return replace(steps.training, num_train_epochs=fmean(given))
    return replace(steps.training, epochs_factor=fmean(training.epochs_factor for training in each))


def _right(options: EstimateOptions) -> dict[str, float]:
    """Return the share of right draws by prompt, as given or assumed."""
    given = {"plain": options.right, "hinted": options.hinted_right}
    return {name: RIGHT[name] if share is None else share for name, share in given.items()}


def _measured_job(job: Job, benchmark: Benchmark, scheme: Scheme) -> Job:
    """Return the job with what a trial measured in place of what is assumed."""
    run = schedule(scheme, RIGHT | dict(benchmark.drawn.right), job.iterations)
    return replace(
        job,
        asking=benchmark.drawn.asking if is_steady(scheme) else run.asking,
        scored=run.scored,
        remembered=run.remembered,
        tokens_per_draw=benchmark.drawn.tokens_per_draw,
        longest_draw=benchmark.drawn.longest_draw,
        tokens_per_example=max(1.0, benchmark.row_tokens - job.prompt_tokens["plain"]),
    )


def _estimate(
    shape: Shape,
    job: Job,
    device: Hardware,
    options: EstimateOptions,
    benchmark: Benchmark | None,
    settings: Train,
    models: int,
    scheme: Scheme,
) -> RunEstimate:
    """Return costs by the formulas, with a benchmark's measurements in place of assumptions."""
    if benchmark is not None:
        job = _measured_job(job, benchmark, scheme)
    engines = options.num_devices // job.tensor_parallel
    rows = batch_rows(shape, job, device)
    once = [Attempt("plain", job.eval_draws, 1.0, True)]
    drawn = writing(shape, job, device, job.asking.attempts, job.problems, rows=rows, engines=engines)
    checked = writing(shape, job, device, once, job.eval_problems, rows=rows, engines=engines)
    once = [Attempt("plain", 1, 1.0, True)]
    chosen = writing(shape, job, device, once, job.dev_problems, rows=rows, engines=engines)
    scored = scoring(shape, job, device, engines)
    bounded = bounding(shape, job, device, _right(options), rows=rows, engines=engines)
    fitted = fitting(shape, job, device, options.num_devices)
    loaded = loading(shape, job, device)
    if benchmark is not None and options.hardware == "here":
        num, asked = benchmark.drawn.problems, benchmark.drawn.asking.attempts
        slower = benchmark.drawn.seconds / writing(shape, job, device, asked, num, rows=rows).seconds
        drawn, checked, chosen, bounded = (
            replace(p, seconds=p.seconds * slower) for p in (drawn, checked, chosen, bounded)
        )
        fitted = replace(fitted, seconds=fitted.tokens * benchmark.token_s / options.num_devices)
        loaded = Phase(seconds=benchmark.loading_s)
        if benchmark.score_token_s is not None:
            scored = replace(scored, seconds=scored.prompt_tokens * benchmark.score_token_s / engines)
    each = {"E-step": drawn, "M-step": fitted, "evaluation": checked, "loading": loaded}
    if job.scored:
        each = {"E-step": drawn, "scoring": scored} | each
    each |= {"development": chosen} if job.dev_problems else {}
    each |= {"bound": bounded} if bounded.draws else {}
    times = {"evaluation": job.evaluations, "bound": job.evaluations}
    times |= {"development": max(0, job.evaluations - 1)}  # not of the base
    whole = {name: phase.times(times.get(name, job.iterations)) for name, phase in each.items()}
    draws = sum(each.draws for each in whole.values()) + job.iterations * job.problems * job.remembered
    return RunEstimate(
        shape=shape,
        job=job,
        device=device,
        num_devices=options.num_devices,
        price=options.price,
        rows=rows,
        each=each,
        whole=whole,
        engine=engine_memory(shape, job, device),
        training=training_memory(shape, job, device, options.num_devices),
        disk=Disk(models, draws_bytes(draws, job.tokens_per_draw)),
        advice=[*advice(shape, job, device, options.num_devices), *_idle(job, engines, settings)],
        assumed=[*_assumed(job, device, options, benchmark, scheme)],
        measured=[*_measured(device, options, benchmark)],
    )


def _idle(job: Job, engines: int, settings: Train) -> Iterator[str]:
    """Yield settings that keep all devices busy."""
    chunks = -(-job.problems // job.chunk_size)
    if chunks < engines:
        size = max(1, job.problems // engines)
        yield (
            f"{chunks} chunk{'s' * (chunks > 1)} of problems for {engines} engines: some are idle. "
            f"Set --chunk-size {size}."
        )
    if engines > 1 and settings.engine != "openai" and settings.ray_workers != engines:
        yield f"this assumes {engines} parallel engines: set --ray-workers {engines}."
    if job.is_launched and settings.launch is None:
        launch = "torchrun --standalone --nproc-per-node N"
        yield f'this assumes an M-step on several devices: set --launch "{launch}".'


def _assumed(
    job: Job, device: Hardware, options: EstimateOptions, benchmark: Benchmark | None, scheme: Scheme
) -> Iterator[str]:
    timed = benchmark is not None and options.hardware == "here"
    if benchmark is None:
        for flag, given, name in (
            ("--right", options.right, "plain"),
            ("--hinted-right", options.hinted_right, "hinted"),
        ):
            if given is None and any(attempt.prompt == name for attempt in job.asking.attempts):
                yield f"{RIGHT[name]:.0%} of {name} draws are right ({flag}, or --measure)"
        if options.tokens_per_draw is None:
            half = "half of max_new_tokens (--tokens-per-draw, or --measure)"
            yield f"{job.tokens_per_draw:g} tokens a draw, {half}"
        yield "all problems are equally hard"
        yield "all draws are equally long, but for one of max_new_tokens at the end of a chunk"
    if is_steady(scheme):
        yield "later iterations are like the first"
    else:
        yield "draws are right as often in later iterations; an iteration's numbers are their mean"
    if scheme.remember is not None:
        yield "all right draws of a problem are different, and equally likely"
    if not timed:
        shares = device.efficiency(job.engine)
        yield (
            f"{shares.matrix:.0%} of the peak in prompts and products, {shares.training:.0%} in the "
            f"M-step, {shares.bandwidth:.0%} of the bandwidth, {shares.step_layer_s * 1e6:.0f} us for a "
            f"layer in each step: {shares.source}"
        )
        yield f"weights are read and written at {DISK / 1e9:g} GB/s"
    yield "rewards take no time"


def _measured(device: Hardware, options: EstimateOptions, benchmark: Benchmark | None) -> Iterator[str]:
    if device.is_measured:
        peaks = ", ".join(
            f"{peak / 1e9:,.0f} GFLOP/s {name}" for name, peak in sorted(device.peaks.items())
        )
        yield f"{device.name}: {peaks}, {device.bandwidth / 1e9:.0f} GB/s"
    else:
        yield f"{device.name}: nothing; peak and bandwidth are its data sheet's"
    yield f"prompts: tokens of at most {_LOOKED_AT} problems"
    if benchmark is not None:
        many = benchmark.drawn
        shares = ", ".join(f"{share:.0%} of {name} draws right" for name, share in many.right.items())
        kept = many.asking.kept
        error = 1.96 * (kept * (1 - kept) / many.problems) ** 0.5
        yield (
            f"{many.problems} problems: {shares}; {kept:.0%} kept, give or take {error:.0%}; "
            f"{many.tokens_per_draw:.1f} tokens a draw, the longest {many.longest_draw:.0f}"
        )
        tokens = many.asking.draws * many.problems * many.tokens_per_draw
        yield (
            f"on this machine: {tokens / many.seconds:,.0f} tokens/s written at that number, "
            f"{1 / benchmark.token_s:,.0f} tokens/s trained"
        )


# --- shown
