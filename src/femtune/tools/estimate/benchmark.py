"""A benchmark of a run: draw for some problems, train on the draws, and discard the results."""

from __future__ import annotations

import math
import random
import tempfile
import time
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from femtune.estep.driver import e_step
from femtune.estep.scheduler import Sampler
from femtune.estep.scoring import scored_draws
from femtune.loop import LoopConfig
from femtune.mstep.disk import exported_dtype
from femtune.mstep.examples import write_examples
from femtune.sampler import SamplerBuilder
from femtune.tools.estimate.formulas import Asking, Attempt
from femtune.types import SCORED, Draw, Example, Need, Problem, Sampling, Scheme

_STEPS = 6  # optimizer steps
_BUDGET_S = 5.0  # seconds that drawing for more problems may take


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """Measurements from drawing for some problems at once."""

    problems: int
    asking: Asking
    tokens_per_draw: float
    longest_draw: float
    right: Mapping[str, float]  # share of first draws, by prompt
    seconds: float


@dataclass(frozen=True)
class Benchmark:
    """Measurements of a benchmark."""

    drawn: Drawn
    row_tokens: float  # tokens of an example, prompt and completion
    token_s: float  # seconds per token of the M-step
    loading_s: float  # seconds per iteration to load: an M-step without its steps, and the engine
    score_token_s: float | None = None  # seconds per token scored; None: nothing was scored


def try_out(
    builder: SamplerBuilder, steps: LoopConfig, problems: Sequence[Problem], number: int, draws: Sampling
) -> Benchmark:
    """Draw for some problems as the scheme does, and take a few optimizer steps on the draws.

    If this is fast, it is repeated for more problems, up to a chunk of the run: rates depend on the
    batch size, and shares become more precise.
    """
    alone = replace(builder.settings, ray_workers=0, ray_address=None, worker_gpus=None)
    most = min(len(problems), builder.settings.chunk_size)
    order = random.Random(f"{builder.settings.seed} plan").sample(problems, most)
    with replace(builder, settings=alone).sampler(draws) as sampler:
        for _ in e_step(order[:8], steps.scheme, sampler, iteration=0):  # warm-up
            pass
        made, found = _draw(sampler, steps.scheme, order[:number], 1)
        more = min(most, int(number * _BUDGET_S / made.seconds))
        if more > made.problems:
            made, found = _draw(sampler, steps.scheme, order[:more], 2)
        found, score_token_s = _scored(sampler, steps.scheme, order[: made.problems], found)
        sampler.engine.release()
        with tempfile.TemporaryDirectory() as scratch:
            out = Path(scratch) / "model"
            some = order[: made.problems]
            num, done, epochs, wall_s, step_s = _fit(builder, steps, some, found, Path(scratch), out)
            begun = time.perf_counter()
            sampler.engine.load(out)
            load_s = time.perf_counter() - begun
    stepping_s = step_s * done.num_steps
    asked = replace(made.asking, examples=num / made.problems)
    token_s = stepping_s / done.trained_tokens
    row_tokens = done.trained_tokens / (done.num_examples * epochs)
    loading_s = wall_s - stepping_s + load_s
    return Benchmark(replace(made, asking=asked), row_tokens, token_s, loading_s, score_token_s)


def _draw(
    sampler: Sampler, scheme: Scheme, problems: Sequence[Problem], iteration: int
) -> tuple[Drawn, list[Draw]]:
    """Run a timed E-step with its scoring; return measurements and draws."""
    begun = time.perf_counter()
    chunks = [*e_step(problems, scheme, sampler, iteration=iteration)]
    draws = [draw for chunk in chunks for draw in chunk.draws]
    scored = {draw.key: draw for draw in scored_draws(draws, problems, scheme, sampler, iteration)}
    draws = [scored.get(draw.key, draw) for draw in draws]
    seconds = time.perf_counter() - begun
    lengths = [len(draw.completion.tokens) for draw in draws]
    first: dict[str, list[bool]] = {}
    for draw in draws:
        if draw.key.index == 0:
            first.setdefault(draw.prompt_kind, []).append(draw.accepted)
    made = Drawn(
        problems=len(problems),
        asking=_asked(scheme, draws, len(problems)),
        tokens_per_draw=fmean(lengths),
        longest_draw=float(max(lengths)),
        right={prompt: fmean(each) for prompt, each in first.items()},
        seconds=seconds,
    )
    return made, draws


def _scored(
    sampler: Sampler, scheme: Scheme, problems: Sequence[Problem], draws: Sequence[Draw]
) -> tuple[list[Draw], float | None]:
    """Return draws with the log-probabilities that the scheme needs, and the seconds per token."""
    if not scheme.needs & SCORED:
        return list(draws), None
    # as if no draw were of this iteration, so that all are scored
    begun = time.perf_counter()
    scored = {draw.key: draw for draw in scored_draws(draws, problems, scheme, sampler, iteration=-1)}
    seconds = time.perf_counter() - begun
    by_id = {problem.id: problem for problem in problems}
    num = 0
    passes: tuple[tuple[Set[Need], str], ...] = (
        ({"log_pi"}, "plain"),
        ({"answers", "gain"}, "plain"),
    )
    for needs, prompt in passes:
        if needs & scheme.needs:
            for draw in scored.values():
                messages = sampler.prompts.render(prompt, by_id[draw.key.problem_id])
                num += len(sampler.tokenizer.encode_prompt(messages)) + len(draw.completion.tokens)
    return [scored.get(draw.key, draw) for draw in draws], seconds / num if num else None


def _fit(
    builder: SamplerBuilder,
    steps: LoopConfig,
    problems: Sequence[Problem],
    draws: Sequence[Draw],
    scratch: Path,
    out: Path,
) -> tuple[int, Any, int, float, float]:
    """Train; return the number of examples, the M-step, epochs, its wall seconds, seconds per step."""
    from femtune.mstep.fit import m_step

    file = scratch / "examples.parquet"
    by_id = {problem.id: problem for problem in problems}
    prompts, tokenizer = builder.prompts, builder.tokenizer
    num = write_examples(file, [draws], by_id, steps.scheme.weigh, prompts, tokenizer)
    if not num:  # wrong draws take as long
        write_examples(
            file, [draws], by_id, lambda scoring, _: [Example(scoring[0])], prompts, tokenizer
        )
    training = steps.training
    known = max(1, num or len(problems))
    rows = training.schedule(known).batch_size * training.gradient_accumulation_steps
    epochs = math.ceil(_STEPS * rows / known)
    training = replace(training, num_train_epochs=float(epochs), fsdp=False, report_to=())
    told: list[float] = []

    def tell(step: int, of: int, loss: float) -> None:
        told.append(time.perf_counter())

    begun = time.perf_counter()
    dtype = exported_dtype(builder.base, training)
    done = m_step(file, builder.base, out, training, tokenizer, seed=0, on_step=tell, dtype=dtype)
    wall_s = time.perf_counter() - begun
    step_s = (told[-1] - told[0]) / (len(told) - 1) if len(told) > 1 else done.seconds
    return num, done, epochs, wall_s, step_s


def _asked(scheme: Scheme, draws: Sequence[Draw], problems: int) -> Asking:
    """Return the measured draws in the form of the expected ones."""
    attempts = []
    for number, stage in enumerate(scheme.stages):
        if stage.ask == "all":
            attempts.append(Attempt(stage.prompt_kind, stage.draws, 1.0, True))
            continue
        for index in range(stage.draws):
            reach = sum((draw.key.stage, draw.key.index) == (number, index) for draw in draws) / problems
            if not reach:
                break
            attempts.append(Attempt(stage.prompt_kind, 1, reach, index == 0))
    kept = len({draw.key.problem_id for draw in draws if draw.accepted}) / problems
    return Asking(attempts, kept, kept)
