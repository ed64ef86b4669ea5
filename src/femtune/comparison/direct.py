"""Answers without a rationale: pi(y | x), the probability of every answer right after prompt and cue.

    iteration-000/direct_answers/00000.parquet      for held-out problems: see scored_answers.py

The expected score of a rating is its mean under these probabilities, normalized over the scale. Source:
G-Eval, Liu et al. 2023, arXiv 2303.16634, section 2.1, "scoring function". There the probabilities are
estimated from 20 samples if a server does not report them; here the model computes them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import cast

from femtune._util import interrupts
from femtune.data.answers import Scale
from femtune.estep.answer_probs import AnswerLogprobs, direct_logprobs
from femtune.estep.scheduler import Sampler
from femtune.evaluation.answer_metrics import distribution_metrics, judged_by_probabilities
from femtune.evaluation.scored_answers import possible, read_scored, write_scored
from femtune.metric_types import EvaluationMetrics
from femtune.runs.run import Run
from femtune.types import Problem


def direct_answers(
    run: Run, problems: Sequence[Problem], sampler: Sampler
) -> list[AnswerLogprobs | None]:
    """Score every answer of each problem, or read the stored results of iteration 0.

    Uses the plain prompt with `sampler.demos`. Raises EngineError if the engine cannot score.
    """
    path = run.shard(0, "direct_answers", 0)
    run.verify(path)
    if not path.exists():
        with interrupts.finishing("the scoring of the answers"):
            begun = time.perf_counter()
            found = direct_logprobs(problems, sampler)
            scored = {
                (p.id, 0): logprobs
                for p, logprobs in zip(problems, found, strict=True)
                if possible(logprobs)
            }
            write_scored(path, scored, time.perf_counter() - begun)
            run.record(path)
    stored = read_scored(path.parent)
    return [stored.get((problem.id, 0)) for problem in problems]


def expected_score(logprobs: AnswerLogprobs, scale: Scale) -> float:
    """Return the mean rating under the probabilities of the answers.

    >>> expected_score(AnswerLogprobs(("1", "2"), (0.0, 0.0)), Scale(("1", "2")))
    1.5
    """
    return sum(scale.value(answer) * share for answer, share in logprobs.shares().items())


def direct_metrics(
    problems: Sequence[Problem], found: Sequence[AnswerLogprobs | None]
) -> EvaluationMetrics:
    """Measure the probabilities themselves: `ece`, `brier`, `log_likelihood`."""
    pairs = zip(problems, found, strict=True)
    metrics = distribution_metrics(
        [judged_by_probabilities(problem, [logprobs] if logprobs else []) for problem, logprobs in pairs]
    )
    names = [f"{name}{end}" for name in ("ece", "brier", "log_likelihood") for end in ("", "_ci")]
    chosen = {name: value for name, value in metrics.items() if name in names}
    return cast(EvaluationMetrics, chosen)
