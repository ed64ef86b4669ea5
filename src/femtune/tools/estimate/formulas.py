"""Formulas for a run's draws, tokens, FLOPs and seconds, without loading a model.

**Draws** of an E-step. A stage's draw is right with chance q: p under the plain prompt, h under the
hinted; u is the share of problems that are unsolved when it is asked, first 1, after it u (1 - q)^n:

    unsolved, up to n draws     u (1 - (1 - q)^n) / q draws
    all, n draws                n draws
    kept                        1 - u after the last

For example, rejection(M) takes (1 - (1 - p)^M) / p draws, star 2 - p, pps 1. All problems are assumed
equally hard; if they are not, rejection draws more and keeps less. schedule.py covers schemes that
remember draws or start differently. Scored completions are read like prompts.

**FLOPs** per token, N parameters without the embedding table (MoE: the active ones), L
layers, d = heads x head_dim, s tokens of context (Kaplan et al. 2020, arXiv 2001.08361, section 2.1;
Hoffmann et al. 2022, arXiv 2203.15556, appendix F, whose attention is not halved for being causal):

    forward                 2 N + 4 L d s
    trained                 6 N + 12 L d s; LoRA 4 N + 8 L d s, as no weight of the base gets a gradient
    with checkpointing      one forward more
    the head, V x width     in N where a token is generated or predicted, and not in prompts

**Bytes**, b per number: weights N b; keys and values 2 L kv_heads head_dim b per token.

**Seconds.** Prompts: FLOPs / (peak x share). A decoding step of r rows, by the roofline (Williams,
Waterman and Patterson 2009, doi 10.1145/1498765.1498785) of products and of attention, one after the
other, and of sampling, which reads the logits several times:

    max(r 2 N / peak, weights / bandwidth) + max(r 4 L d s / peak, r s KV / bandwidth) + L x overhead

Rows come as in the scheduler: at most B at a time, retries first, fewer at a chunk's end (`rounds`);
finally the longest draw is generated alone. The M-step: FLOPs / (peak x share) + micro-batches x L x
overhead + optimizer steps x 28 N / bandwidth (AdamW reads weight, gradient and two moments, and writes
all but the gradient, in float32).

**Memory** of a device: memory.py. **Shares and overheads**: hardware.py.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from femtune.mstep.config import Training
from femtune.tools.estimate.hardware import DISK, Hardware
from femtune.types import Stage

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
PROCESSES_S = 15.0  # seconds for a launcher to start its processes, which import torch; assumed
SAMPLING_PASSES = 8  # passes over a row's float32 logits: log-softmax, noise, maximum; assumed


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The properties of a model that determine its costs; numbers of parameters."""

    parameters: int  # stored parameters; tied ones once
    active: int  # per token in the layers: without embeddings and head, only active experts in MoE
    head: int  # vocabulary x width
    embedding: int  # the size of a separate embedding table; 0 if it is tied to the head
    adapter: Mapping[str, tuple[int, int]]  # matrices that LoRA can adapt: outputs and inputs, by module
    layers: int
    width: int
    attention_width: int  # heads x head_dim
    kv_width: int  # kv_heads x head_dim
    vocabulary: int
    dtype: str  # as stored

    def kv_bytes(self, dtype: str) -> int:
        """Return the bytes of keys and values per token."""
        return 2 * self.layers * self.kv_width * BYTES[dtype]

    def attention(self, context: float) -> float:
        """Return the FLOPs of attention for a token with a context of this length."""
        return 4 * self.layers * self.attention_width * context

    def lora(self, training: Training) -> int:
        """Return the parameters of an adapter: rank x (inputs + outputs) of each adapted matrix."""
        target = training.lora_target_modules
        sizes = [
            sum(sides)
            for module, sides in self.adapter.items()
            if target == "all-linear" or re.fullmatch(target, module)
        ]
        return training.lora_r * sum(sizes)


@dataclass(frozen=True)
class Attempt:
    """Draws requested together, for a share of the problems."""

    prompt: str  # plain or hinted
    draws: int  # per problem that reaches the attempt
    reach: float  # share of problems that reach it
    is_new: bool  # True if its prompt must be read; a retry's prompt is cached


@dataclass(frozen=True)
class Asking:
    """The attempts of a scheme for a problem and their results, on average."""

    attempts: Sequence[Attempt]
    kept: float  # share of problems with an accepted draw
    examples: float  # examples per problem for the M-step

    @property
    def draws(self) -> float:
        """Return the mean number of draws per problem."""
        return sum(attempt.reach * attempt.draws for attempt in self.attempts)


def asking(stages: Sequence[Stage], right: Mapping[str, float], *, one_each: bool = True) -> Asking:
    """Return the attempts of these stages, given the probability of a right draw by prompt.

    With `one_each` a kept problem gives one example, as in the paper's schemes, else each right draw.

    >>> found = asking([Stage("plain", draws=2)], {"plain": 0.5})
    >>> found.draws, found.kept
    (1.5, 0.75)
    """
    attempts, unsolved, accepted = [], 1.0, 0.0
    for stage in stages:
        chance = right[stage.prompt_kind]
        each = stage.draws if stage.ask == "unsolved" else 1
        for index in range(each):
            if stage.ask == "unsolved" and unsolved < 1e-9 and index:
                break
            draws, reach = (1, unsolved) if stage.ask == "unsolved" else (stage.draws, 1.0)
            attempts.append(Attempt(stage.prompt_kind, draws, reach, index == 0))
            accepted += reach * draws * chance
            unsolved *= (1 - chance) ** draws
    kept = 1 - unsolved
    return Asking(attempts, kept, kept if one_each else accepted)


@dataclass(frozen=True, kw_only=True)
class Job:
    """The quantities of a run of FEM."""

    problems: int
    eval_problems: int
    prompt_tokens: Mapping[str, float]  # mean, by prompt: plain, hinted
    longest: int  # tokens of the longest prompt
    tokens_per_draw: float
    longest_draw: float  # tokens
    tokens_per_example: float  # of a completion in training: right ones may be shorter
    max_new_tokens: int
    asking: Asking
    iterations: int
    evaluations: int  # of the held-out problems
    dev_problems: int = 0  # asked once after each of these but the base's
    eval_draws: int
    chunk_size: int
    engine: str
    engine_dtype: str
    training_dtype: str  # of products: bfloat16 or float32
    max_batch: int | None
    tensor_parallel: int
    is_launched: bool  # True if M-steps run in separate processes
    training: Training
    # completions per problem that an iteration scores, by the prompt before them
    scored: Mapping[str, float] = field(default_factory=dict)
    remembered: float = 0.0  # draws per problem that an iteration stores for the next
    bound_draws: int = 0  # draws per held-out problem for the likelihood bound
    bound_problems: int = 0


@dataclass(frozen=True)
class Phase:
    """A part of a run; seconds are of wall time."""

    draws: float = 0.0
    prompt_tokens: float = 0.0  # tokens read; in an M-step, of the prompts
    tokens: float = 0.0  # tokens generated; in an M-step, all tokens
    flops: float = 0.0
    seconds: float = 0.0

    def times(self, number: float) -> Phase:
        return Phase(*(number * value for value in vars(self).values()))

    def plus(self, other: Phase) -> Phase:
        return Phase(*map(sum, zip(vars(self).values(), vars(other).values(), strict=True)))


def rounds(problems: int, attempts: Sequence[Attempt], rows: int) -> Iterator[list[float]]:
    """Yield the draws of each attempt in a batch, until a chunk of problems is done.

    All draws are assumed equally long, so they end together, and retries take their place first.

    >>> list(rounds(4, [Attempt("plain", 1, 1.0, True), Attempt("plain", 1, 0.5, False)], rows=3))
    [[3.0, 0.0], [1.0, 1.5], [0.0, 0.5]]
    """
    each = [attempt.reach * attempt.draws for attempt in attempts]  # draws per problem
    waiting = [float(problems)] + [0.0] * len(attempts)  # by next attempt, solved too; last: done
    while problems - waiting[-1] > 1e-6 * problems:
        room, moved = float(rows), [0.0] * len(attempts)
        for number in (*range(1, len(attempts)), 0):
            most = room / each[number] if each[number] else math.inf
            moved[number] = min(waiting[number], most)
            room -= moved[number] * each[number]
        for number, passing in enumerate(moved):
            waiting[number] -= passing
            waiting[number + 1] += passing
        draws = [passing * per for passing, per in zip(moved, each, strict=True)]
        if any(draws):
            yield draws


def writing(
    shape: Shape,
    job: Job,
    device: Hardware,
    attempts: Sequence[Attempt],
    problems: int,
    *,
    rows: int,
    engines: int = 1,
) -> Phase:
    """Return the cost of draws for so many problems: an engine takes a chunk at a time, in batches."""
    chunks = -(-problems // job.chunk_size)
    if not chunks:
        return Phase()
    last = problems - (chunks - 1) * job.chunk_size
    part = _chunk(shape, job, device, attempts, last, rows)
    whole = part if chunks == 1 else _chunk(shape, job, device, attempts, job.chunk_size, rows)
    turns = -(-chunks // engines)  # of the busiest engine
    is_alone = chunks - (turns - 1) * engines == 1  # the last chunk, while other engines wait
    seconds = (turns - 1) * whole.seconds + (part if is_alone else whole).seconds
    return replace(whole.times(chunks - 1).plus(part), seconds=seconds)


def _chunk(
    shape: Shape, job: Job, device: Hardware, attempts: Sequence[Attempt], problems: int, rows: int
) -> Phase:
    reached = device.efficiency(job.engine)
    peak = device.peak(job.engine_dtype) * reached.matrix * job.tensor_parallel
    bandwidth = device.bandwidth * reached.bandwidth * job.tensor_parallel
    prompts = [job.prompt_tokens[attempt.prompt] for attempt in attempts]
    length = job.tokens_per_draw
    made = Phase()
    for attempt, prompt in zip(attempts, prompts, strict=True):
        if attempt.is_new:
            read = problems * attempt.reach * prompt
            flops = read * (2 * shape.active + shape.attention(prompt))
            made = made.plus(Phase(0.0, read, 0.0, flops, flops / peak))
    weights = (shape.parameters - shape.embedding) * BYTES[job.engine_dtype]
    for now in rounds(problems, attempts, rows):
        draws = sum(now)
        context = sum(n * prompt for n, prompt in zip(now, prompts, strict=True)) / draws + length / 2
        products = draws * 2 * (shape.active + shape.head)
        attention = draws * shape.attention(context)
        looked_at = draws * context * shape.kv_bytes(job.engine_dtype)
        sampled = draws * shape.vocabulary * 4 * SAMPLING_PASSES
        step_s = (
            max(products / peak, weights / bandwidth)
            + max(attention / peak, looked_at / bandwidth)
            + sampled / bandwidth
            + shape.layers * reached.step_layer_s
        )
        flops = length * (products + attention)
        made = made.plus(Phase(draws, 0.0, length * draws, flops, length * step_s))
    alone = shape.layers * reached.step_layer_s + weights / bandwidth  # all other draws have ended
    return made.plus(Phase(seconds=(job.longest_draw - length) * alone))


def scoring(shape: Shape, job: Job, device: Hardware, engines: int = 1) -> Phase:
    """Return the cost of an iteration's passes to compute log-probabilities."""
    reached = device.efficiency(job.engine)
    peak = device.peak(job.engine_dtype) * reached.matrix * job.tensor_parallel * engines
    made = Phase()
    for prompt, each in job.scored.items():
        pairs, row = job.problems * each, job.prompt_tokens[prompt] + job.tokens_per_example
        read = pairs * row
        flops = read * (2 * shape.active + shape.attention(row))
        flops += pairs * job.tokens_per_example * 2 * shape.head
        made = made.plus(Phase(0.0, read, 0.0, flops, flops / peak))
    return made


def bounding(
    shape: Shape, job: Job, device: Hardware, right: Mapping[str, float], *, rows: int, engines: int
) -> Phase:
    """Return the cost of the bound: draws, half per prompt, and scoring under the other prompt."""
    half = job.bound_draws // 2
    if not half:
        return Phase()
    attempts = [Attempt(prompt, half, 1.0, True) for prompt in ("plain", "hinted")]
    made = writing(shape, job, device, attempts, job.bound_problems, rows=rows, engines=engines)
    peak = device.peak(job.engine_dtype) * device.efficiency(job.engine).matrix * job.tensor_parallel
    for drawn, other in (("plain", "hinted"), ("hinted", "plain")):
        row = job.prompt_tokens[other] + job.tokens_per_draw
        scored = job.bound_problems * half * right[drawn]
        flops = scored * (
            row * (2 * shape.active + shape.attention(row)) + job.tokens_per_draw * 2 * shape.head
        )
        made = made.plus(Phase(0.0, scored * row, 0.0, flops, flops / peak))
    return made


def fitting(shape: Shape, job: Job, device: Hardware, processes: int) -> Phase:
    """Return the cost of an M-step."""
    training, reached = job.training, device.efficiency(job.engine)
    prompt, written = job.prompt_tokens["plain"], job.tokens_per_example
    row = prompt + written
    examples = job.problems * job.asking.examples
    schedule = training.schedule(max(1, round(examples)), processes)
    epochs = schedule.num_epochs
    tokens = examples * row * epochs
    forward = 2 * shape.active + 2 * shape.head * written / row + shape.attention(row)
    passes = (2 if training.use_peft else 3) + training.gradient_checkpointing
    trained = shape.lora(training) if training.use_peft else shape.parameters
    flops = tokens * (passes * forward + (6 * trained if training.use_peft else 0))
    rows = min(schedule.batch_size, max(1.0, training.max_tokens_per_batch // row))
    batches = math.ceil(epochs * math.ceil(examples / rows) / processes)
    steps = math.ceil(batches / training.gradient_accumulation_steps)
    sharded = processes if training.fsdp else 1
    seconds = (
        flops / (processes * device.peak(job.training_dtype) * reached.training)
        + batches * shape.layers * reached.batch_layer_s
        + steps * 28 * trained / sharded / (device.bandwidth * reached.bandwidth)
    )
    return Phase(0.0, examples * prompt * epochs, tokens, flops, seconds)


def loading(shape: Shape, job: Job, device: Hardware) -> Phase:
    """Return the seconds per iteration to write an M-step's weights and to load weights."""
    if job.training.use_peft:
        base = shape.parameters * BYTES[shape.dtype]
        served = 0 if job.engine == "vllm" else base  # it loads the adapter beside the base
        moved = base + served + 3 * 4 * shape.lora(job.training)
    else:
        moved = 3 * 4 * shape.parameters
    waits = 3 * device.efficiency(job.engine).load_s + (PROCESSES_S if job.is_launched else 0.0)
    return Phase(seconds=moved / DISK + waits)
