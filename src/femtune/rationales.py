"""What rationales are worth where nobody knows the true ones: how much they help another reader.

    iteration-003/eval/00000.parquet         answers of theta_3 to held-out problems
    iteration-003/eval_scored/00000.parquet  of some: log pi_0(y* | x, z) and log pi_0(y* | x)
    iteration-003/rationales.json            the measures: see `rationale_metrics`

The reader is the base, pi_0. It was not trained, so a rationale helps it only by what the rationale
says; theta_k may know the answer without its rationale. Both probabilities are of the correct answer
in canonical form, after the format's cue, under the plain prompt, in nats.

The cost is a pass of the base over prompt and rationale for each item, one over the prompt alone for
each problem of a run, and one load of the base. Nothing is generated.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from femtune import stopping
from femtune.answer_probs import answer_nats, direct_nats
from femtune.answer_rules import gain
from femtune.bound import subset
from femtune.chunks import Setup
from femtune.copying import copied
from femtune.errors import EngineError
from femtune.evaluate import group_of
from femtune.intervals import Floats, bootstrap, mean, ratio, summary
from femtune.prompts import Prompts, prompt_text
from femtune.run import read_shard
from femtune.tries import read_nats, read_timing, with_nats, write_nats
from femtune.types import Draw, Problem

if TYPE_CHECKING:
    from femtune.loop import Steps

FILE = "rationales.json"  # in an iteration's folder
KIND = "eval_scored"  # the folder of scores, beside eval/

log = logging.getLogger("femtune")


def read_all(steps: Steps, most: int, reader: Path | None = None) -> dict[int, dict[str, Any]]:
    """Let a reader score the rationales of each stored evaluation; return the measures by iteration.

    `most` is the number of held-out problems, the same in each iteration, of each the first draw. The
    reader is the base, unless another one with the same tokens is given. What is stored already is
    not scored again, so the weights are loaded only where something is missing. Returns {} and warns
    where the engine or the format can't score.
    """
    chosen = subset(steps.eval_problems, most, steps.setup.seed)
    done = sorted(steps.run.root.glob("iteration-[0-9]*/eval"))
    numbers = [int(folder.parent.name.rpartition("-")[2]) for folder in done]
    if not chosen or not numbers or not _can_score(steps.setup):
        return {}
    found: dict[int, dict[str, Any]] = {}
    direct: dict[str, float] = {}
    try:
        for number in numbers:
            path = steps.run.iteration(number) / FILE
            steps.run.verify(path)
            if not path.exists():
                _read_iteration(steps, number, chosen, reader or steps.base, direct)
            found[number] = json.loads(path.read_text())
            stopping.check()
    except EngineError as error:  # the run itself is whole
        log.warning("what the rationales are worth to the base is not measured: %s", error)
    return found


def _can_score(setup: Setup) -> bool:
    if not getattr(getattr(setup.engine, "abilities", None), "scores", True):
        why = "the server can't score completions"
    elif not setup.prompts.format.cue:
        why = f"answer_format {setup.prompts.format.spec} has no cue to score an answer after"
    else:
        return True
    log.warning("what the rationales are worth to the base is not measured: %s.", why)
    return False


def _read_iteration(
    steps: Steps, number: int, chosen: Sequence[Problem], reader: Path, direct: dict[str, float]
) -> None:
    run, setup = steps.run, replace(steps.setup, demos=())
    steps.progress.phase("rationales", number, len(chosen))
    run.log("rationales", iteration=number)
    sources = sorted((run.iteration(number) / "eval").glob("*.parquet"))
    run.verify(*sources)
    place = steps.place(number, KIND, steps.eval_problems, reader)
    problems = {problem.id: problem for problem in chosen}
    for index, source in enumerate(sources):
        if not place(index).exists():
            with stopping.finishing("the scoring of this chunk"):
                score_shard(source, place(index), problems, setup, direct)
                run.record(place(index))
    run.write_json(
        run.iteration(number) / FILE, rationale_metrics(problems, run.iteration(number), setup.prompts)
    )


def score_shard(
    source: Path,
    target: Path,
    problems: Mapping[str, Problem],
    setup: Setup,
    direct: dict[str, float] | None = None,
) -> None:
    """Store what the engine's weights make of a shard's first draws of these problems.

    `direct` is filled with log pi_0(y* | x) by problem, and read where it has it. Raises EngineError
    where the engine can't score.
    """
    begun = time.perf_counter()
    drawn = [d for d in read_shard(source)[0] if d.key.index == 0 and d.key.problem_id in problems]
    made = score_draws(drawn, problems, setup, {} if direct is None else direct)
    tokens = sum(len(draw.completion.tokens) for draw in made)
    write_nats(target, made, {"total_s": time.perf_counter() - begun, "tokens": tokens})


def score_draws(
    draws: Sequence[Draw], problems: Mapping[str, Problem], setup: Setup, direct: dict[str, float]
) -> list[Draw]:
    """Return the draws that can be scored, with `log_answer` and `log_direct`: see answer_scoring.py."""
    new = [problems[d.key.problem_id] for d in draws if d.key.problem_id not in direct]
    for problem, nats in zip(new, direct_nats(new, setup, closed=True, answers=_right), strict=True):
        direct[problem.id] = nats.nats[0] if nats is not None else math.nan
    after = answer_nats(draws, problems, setup, closed=True, answers=_right)
    return [
        replace(draw, log_answer=nats.nats[0], log_direct=direct[draw.key.problem_id])
        for draw, nats in zip(draws, after, strict=True)
        if nats is not None
    ]


def _right(problem: Problem) -> tuple[str, ...]:
    return (problem.answer,)


def rationale_metrics(problems: Mapping[str, Problem], folder: Path, prompts: Prompts) -> dict[str, Any]:
    """Measure the scored rationales in an iteration's folder; a measure `m` has its interval `m_ci`.

    num_rationales   scored, one a problem; of `num_problems`: the others have no tokens
    rationale_gain   mean of log pi_0(y* | x, z) - log pi_0(y* | x), nats: how much the rationale helps
                     a reader who was not trained
    helpful_share    share of rationales with a gain above 0
    log_direct       mean of log pi_0(y* | x), nats: what the reader knows without a rationale
    copied_share     mean share of a rationale's words in fragments that stand in the prompt, and
    copied_density   the mean length of these: see copying.py; of rationales with words
    scored_tokens, total_s   what this took

    Intervals are bootstrap ones over problems.
    """
    draws = [draw for part in scored(folder / "eval", folder / KIND) for draw in part]
    gains = np.array([gain(draw) for draw in draws], float)
    direct = np.array([draw.log_direct for draw in draws], float)
    parts = [
        copied(draw.score.rationale, asked_text(prompts, problems[draw.key.problem_id]))
        for draw in draws
    ]
    worded = np.array([part is not None for part in parts], float)
    coverage, density = (np.array([part[i] if part else 0.0 for part in parts], float) for i in range(2))

    def statistic(weights: Floats) -> dict[str, Floats]:
        return {
            "rationale_gain": _finite_mean(weights, gains),
            "helpful_share": mean(weights, gains > 0),
            "log_direct": _finite_mean(weights, direct),
            "copied_share": ratio(weights @ coverage, weights @ worded),
            "copied_density": ratio(weights @ density, weights @ worded),
        }

    timings = [read_timing(path) for path in sorted((folder / KIND).glob("*.parquet"))]
    impossible = "an answer has probability 0"
    why = {"rationale_gain": impossible, "log_direct": impossible}
    why |= dict.fromkeys(("copied_share", "copied_density"), "no rationale has words")
    groups = [group_of(problems[draw.key.problem_id]) for draw in draws]
    return {
        "num_problems": len(problems),
        "num_rationales": len(draws),
        **(summary(bootstrap(statistic, groups), why) if draws else {}),
        "scored_tokens": sum(int(timing["tokens"]) for timing in timings),
        "total_s": round(sum(timing["total_s"] for timing in timings), 3),
    }


def _finite_mean(weights: Floats, values: Floats) -> Floats:
    """Return means, or NaN for all of them where a value is infinite."""
    return mean(weights, values) if np.isfinite(values).all() else np.full(len(weights), np.nan)


def asked_text(prompts: Prompts, problem: Problem) -> str:
    """Return the words of a problem's plain prompt, without worked examples."""
    return prompt_text(replace(prompts, demos=()).plain(problem))


def scored(draws: Path, scores: Path) -> Iterator[list[Draw]]:
    """Yield the draws of each shard that were scored, with their nats."""
    for place in sorted(scores.glob("*.parquet")):
        nats = read_nats(place)
        found, _ = read_shard(draws / place.name)
        yield [with_nats(draw, nats[draw.key]) for draw in found if draw.key in nats]


def read_rationales(folder: Path) -> dict[str, Any]:
    """Return the stored measures of an iteration's folder; {} where there are none."""
    path = folder / FILE
    return json.loads(path.read_text()) if path.is_file() else {}
