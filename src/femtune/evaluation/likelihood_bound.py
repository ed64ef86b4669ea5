"""What held-out problems tell of the posterior: how likely right answers are, and what hints give away.

    bound/00000.parquet          K draws of each problem by theta_k, half of them plain, half hinted
    bound_scored/00000.parquet   of the right ones: log pi, log q

Some of the held-out problems are asked, the same ones at each iteration, at temperature 1.

Of K = a + b draws, a plain ones from pi and b hinted ones from q, each has the weight

    w = 1[right] pi(z, y | x) / ((a pi(z, y | x) + b q(z, y | x, y*)) / K)

by the density of the mixture that all K are from, whichever part gave it (the balance heuristic: Veach
and Guibas 1995; Owen and Zhou 2000). E[mean w] = p = pi(y* | x) exactly, and no weight is above K / a:
hinted draws find what plain ones seldom do, and a rationale that only they would give can't mislead.
"Right" is of the completion alone: a hinted draw that leaks the hint in words is right if its answer is.

The probability of the answer after each rationale (answer_probs.py) would vary less. But its mean is
that of the canonical answer alone, while p sums over all texts that are read as y*.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np

from femtune._util import interrupts
from femtune.estep.driver import e_step
from femtune.estep.scheduler import Chunk, Sampler
from femtune.estep.scoring import (
    logprobs_under,
    read_logprobs,
    read_timing,
    with_logprobs,
    write_logprobs,
)
from femtune.evaluation.bootstrap import Floats, bootstrap, mean, ratio, summary
from femtune.evaluation.evaluate import group_of
from femtune.metric_types import PosteriorMetrics
from femtune.runs.draws import by_problem, read_shard
from femtune.runs.run import Run
from femtune.schemes.filters import paper_filter
from femtune.types import Draw, Problem, Sampling, Scheme, Stage

# Right draws that are added to those of each problem: see `log_mean`. Ten times as much would lift a
# bound from 4 draws above the truth, a tenth as much would leave little in it but which problems have
# no right draw.
PRIOR = 0.1


def subset(problems: Sequence[Problem], most: int, seed: int) -> list[Problem]:
    """At most so many, the same ones each time: the first by a hash of the run's seed and their ids."""

    def place(problem: Problem) -> bytes:
        return hashlib.blake2b(f"bound {seed} {problem.id}".encode(), digest_size=8).digest()

    return sorted(problems, key=place)[:most]


def mixture_draws(
    problems: Sequence[Problem],
    sampler: Sampler,
    *,
    draws: int,
    iteration: int,
    place: Callable[[int], Path] | None = None,
    on_draws: Callable[[Sequence[Draw]], None] = lambda draws: None,
) -> Iterator[Chunk]:
    """Ask every problem `draws` times, an even number, at temperature 1: half under each prompt."""
    sampling = Sampling(sampler.sampling.max_new_tokens)
    sampler = replace(sampler, sampling=sampling, demos=(), force="never")
    stages = (Stage("plain", draws // 2, "all"), Stage("hinted", draws // 2, "all"))
    scheme = Scheme("bound", stages, weigh=paper_filter)
    return e_step(problems, scheme, sampler, iteration=iteration, place=place, on_draws=on_draws)


def score_right(source: Path, target: Path, problems: Mapping[str, Problem], sampler: Sampler) -> None:
    """Store log pi and log q of a shard's right draws, by the weights that drew it.

    One of the two was known as the draw was made. Raises EngineError where the engine can't score.
    """
    begun = time.perf_counter()
    right = [draw for draw in read_shard(source)[0] if is_right(draw)]
    log_pi, log_q = (logprobs_under(name, right, problems, sampler) for name in ("plain", "hinted"))
    scored = [
        replace(draw, log_pi=pi, log_q=q) for draw, pi, q in zip(right, log_pi, log_q, strict=True)
    ]
    tokens = sum(len(draw.completion.tokens) for draw in right)
    write_logprobs(target, scored, {"total_s": time.perf_counter() - begun, "tokens": tokens})


def bound_into(
    run: Run,
    chosen: Sequence[Problem],
    problems: Sequence[Problem],
    sampler: Sampler,
    *,
    draws: int,
    iteration: int,
    place: Callable[[str], Callable[[int], Path]],
    on_draws: Callable[[Sequence[Draw]], None],
) -> PosteriorMetrics:
    """Draw and score what is not stored in the run yet, and measure it: see `posterior_metrics`.

    `chosen` of the held-out `problems` are asked. `place` returns where chunks of a kind are stored.
    """
    for chunk in mixture_draws(
        chosen,
        sampler,
        draws=draws,
        iteration=iteration,
        place=place("bound"),
        on_draws=on_draws,
    ):
        run.record(run.shard(iteration, "bound", chunk.index))
    by_id = {problem.id: problem for problem in problems}
    scored = place("bound_scored")
    for index in range(-(-len(chosen) // sampler.chunk_size)):
        if not scored(index).exists():
            with interrupts.finishing("the scoring of this chunk"):
                score_right(run.shard(iteration, "bound", index), scored(index), by_id, sampler)
                run.record(scored(index))
    return posterior_metrics(by_id, run.iteration(iteration))


def is_right(draw: Draw) -> bool:
    """Return True if the completion earned the full reward, whatever it says of a hint."""
    return draw.score.reward >= 1


def weights(draws: Sequence[Draw]) -> list[float]:
    """The weight w of each of a problem's draws; 0 of wrong ones. The right ones have their nats."""
    plain = sum(draw.prompt_kind == "plain" for draw in draws) / len(draws)
    return [_weight(_excess(draw), plain) if is_right(draw) else 0.0 for draw in draws]


def _weight(excess: float, plain: float) -> float:
    """pi / (plain pi + (1 - plain) q), where log q - log pi is `excess`; plain is from 0 to 1."""
    parts = [math.log(share) + more for share, more in ((plain, 0.0), (1 - plain, excess)) if share]
    return math.exp(-float(np.logaddexp.reduce(parts)))


def log_mean(weights: Sequence[float]) -> float:
    """log((sum w + PRIOR) / K) of a problem's K weights, nats: on average at most log(p + PRIOR / K).

    By Jensen, as E[mean w] = p; it tends to log p as K grows. Without the prior, a problem without a
    right draw would make any mean over problems minus infinity. For one and the same PRIOR / K, more
    draws raise its expectation (Burda et al. 2016, arXiv 1509.00519, theorem 1, as x -> log(x + c) is
    concave).
    """
    return math.log((math.fsum(weights) + PRIOR) / len(weights))


def effective_share(draws: Sequence[Draw]) -> float:
    """(sum w)^2 / sum w^2, by the number of hinted draws, with w = pi / q of those that are right.

    Source: Kong 1992; Liu 2001, section 2.5.3. It can't be less than 1 / number where one is right.
    """
    hinted = [draw for draw in draws if draw.prompt_kind == "hinted"]
    logs = [-_excess(draw) for draw in hinted if is_right(draw)]
    if not logs:
        return 0.0
    found = [math.exp(each - max(logs)) for each in logs]
    return math.fsum(found) ** 2 / math.fsum(each**2 for each in found) / len(hinted)


def posterior_metrics(problems: Mapping[str, Problem], folder: Path) -> PosteriorMetrics:
    """Measures of the draws in an iteration's folder; theta_k's, on held-out problems.

    bound        mean over problems of `log_mean`, nats: on average no more than the mean of
                 log(p + PRIOR / K), and so above that of log p by no more than of PRIOR / (K p)
    likelihood   mean over problems of mean w: unbiased for that of p, the accuracy at temperature 1
    ess_share    mean over problems of `effective_share`: how much of q's draws the posterior would be
                 estimated from; 0 where none is right. Compare it at the same K alone
    leak_share   share of hinted draws whose rationale gives the hint away in words
    leak_logprob mean over right hinted draws of log q(z, y | x, y*) - log pi(z, y | x), nats a
                 completion: minus the log of the weight of `weights.importance`. Of a problem, on
                 average, KL(q(z | right) || posterior) + log h - log p, where h is the chance that a
                 hinted draw is right; 0 where a hint changes nothing
    draws        K
    generated_tokens, scored_tokens, total_s   what all this took

    Intervals are bootstrap ones over problems. `leak_logprob` is None where no hinted draw is right.
    """
    rows: list[_Row] = []
    groups: list[str] = []
    tokens, seconds, most = 0, 0.0, 0
    for chunk, timing in _scored_chunks(folder):
        tokens += sum(len(draw.completion.tokens) for draw in chunk)
        seconds += timing.get("total_s", 0.0)
        for problem_id, draws in by_problem(chunk):
            rows.append(_row(draws))
            groups.append(group_of(problems[problem_id]))
            most = max(most, len(draws))
    timings = [read_timing(path) for path in sorted((folder / "bound_scored").glob("*.parquet"))]
    scoring_s = sum(timing["total_s"] for timing in timings)
    bound, likelihood, effective, hinted, leaked, right, excess = np.array(rows, float).T

    def statistic(weights: Floats) -> dict[str, Floats]:
        return {
            "bound": mean(weights, bound),
            "likelihood": mean(weights, likelihood),
            "ess_share": mean(weights, effective),
            "leak_share": ratio(weights @ leaked, weights @ hinted),
            "leak_logprob": ratio(weights @ excess, weights @ right),
        }

    measured = summary(bootstrap(statistic, groups), {"leak_logprob": "no hinted draw is right"})
    return {
        "num_problems": len(rows),
        "draws": most,
        **cast(PosteriorMetrics, measured),
        "generated_tokens": tokens,
        "scored_tokens": sum(int(timing["tokens"]) for timing in timings),
        "total_s": round(seconds + scoring_s, 3),
    }


def _scored_chunks(folder: Path) -> Iterator[tuple[list[Draw], Mapping[str, float]]]:
    """The chunks of draws with their nats, and the seconds that drawing them took."""
    for place in sorted((folder / "bound_scored").glob("*.parquet")):
        draws, timing = read_shard(folder / "bound" / place.name)
        known = read_logprobs(place)
        yield (
            [with_logprobs(draw, known[draw.key]) if draw.key in known else draw for draw in draws],
            timing,
        )


class _Row(NamedTuple):
    """A problem's part in the measures."""

    bound: float
    likelihood: float
    effective: float
    hinted: int  # draws; of these
    leaked: int
    right: int
    excess: float  # of the right ones, summed


def _row(draws: Sequence[Draw]) -> _Row:
    hinted = [draw for draw in draws if draw.prompt_kind == "hinted"]
    excess = [_excess(draw) for draw in hinted if is_right(draw)]
    found = weights(draws)
    return _Row(
        log_mean(found),
        math.fsum(found) / len(found),
        effective_share(draws),
        len(hinted),
        sum(draw.score.reason == "hint_leak" for draw in hinted),
        len(excess),
        math.fsum(excess),
    )


def _excess(draw: Draw) -> float:
    """log q - log pi, nats."""
    assert draw.log_pi is not None and draw.log_q is not None, f"{draw.key}: was not scored"
    return draw.log_q - draw.log_pi
