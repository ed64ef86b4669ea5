"""What rationales are worth where nobody knows the true ones: how much they help another reader.

    iteration-003/eval/00000.parquet         answers of theta_3 to held-out problems
    iteration-003/eval_scored/00000.parquet  what the base makes of some of them: see readings.py
    iteration-003/rationales.json            the measures: see `rationale_metrics`

The reader is the base, pi_0. It was not trained, so a rationale helps it only by what the rationale
says; theta_k may know the answer without its rationale.

The cost is a pass of the base over prompt and rationale for each item, one over the prompt alone for
each problem of a run, and one load of the base. Nothing is generated.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol, cast

import numpy as np

from femtune._util import interrupts
from femtune.data.prompts import Prompts, prompt_text
from femtune.errors import EngineError
from femtune.estep.answer_probs import AnswerLogprobs
from femtune.estep.scheduler import Sampler
from femtune.estep.scoring import read_logprobs, with_logprobs
from femtune.evaluation.bootstrap import Floats, Statistic, bootstrap, mean, ratio, summary
from femtune.evaluation.copying import Copied, copied
from femtune.evaluation.evaluate import group_of
from femtune.evaluation.likelihood_bound import subset
from femtune.evaluation.readings import Reading, read_readings, score_shard
from femtune.metric_types import RationaleMetrics
from femtune.runs.draws import read_shard
from femtune.runs.run import Run
from femtune.types import Draw, Problem

FILE = "rationales.json"  # in an iteration's folder
KIND = "eval_scored"  # the folder of scores, beside eval/

log = logging.getLogger("femtune")


class EvaluatedRun(Protocol):
    """A run whose evaluations are stored: what `loop.Steps` has of it."""

    @property
    def run(self) -> Run:
        """The run directory."""
        ...

    @property
    def base(self) -> Path:
        """The folder of the base model."""
        ...

    @property
    def eval_problems(self) -> Sequence[Problem]:
        """The held-out problems."""
        ...

    @property
    def sampler(self) -> Sampler:
        """Engine, prompts and tokens."""
        ...

    @property
    def progress(self) -> Phases:
        """Progress that shows phases."""
        ...

    def place(
        self, iteration: int, kind: str, problems: Sequence[Problem], weights: Path, /
    ) -> Callable[[int], Path]:
        """Return where each chunk of a kind of draws is stored, made with these weights."""
        ...


class Phases(Protocol):
    """Progress that shows phases."""

    def phase(self, name: str, iteration: int, total: int, /) -> None:
        """A phase of an iteration has started."""
        ...


def read_all(steps: EvaluatedRun, most: int, reader: Path | None = None) -> dict[int, RationaleMetrics]:
    """Let a reader score the rationales of each stored evaluation; return the measures by iteration.

    `most` is the number of held-out problems, the same in each iteration, of each the first draw. The
    reader is the base, unless another one with the same tokens is given. What is stored already is
    not scored again, so the weights are loaded only where something is missing. Returns {} and warns
    where the engine or the format can't score.
    """
    chosen = subset(steps.eval_problems, most, steps.sampler.seed)
    done = sorted(steps.run.root.glob("iteration-[0-9]*/eval"))
    numbers = [int(folder.parent.name.rpartition("-")[2]) for folder in done]
    if not chosen or not numbers or not _can_score(steps.sampler):
        return {}
    found: dict[int, RationaleMetrics] = {}
    direct: dict[str, AnswerLogprobs] = {}
    try:
        for number in numbers:
            path = steps.run.iteration(number) / FILE
            steps.run.verify(path)
            if not path.exists():
                _read_iteration(steps, number, chosen, reader or steps.base, direct)
            found[number] = json.loads(path.read_text())
            interrupts.check()
    except EngineError as error:  # the run itself is whole
        log.warning("what the rationales are worth to the base is not measured: %s", error)
    return found


def _can_score(sampler: Sampler) -> bool:
    if not sampler.engine.capabilities.scores:
        why = "the server can't score completions"
    elif not sampler.prompts.format.cue:
        why = f"answer_format {sampler.prompts.format.spec} has no cue to score an answer after"
    else:
        return True
    log.warning("what the rationales are worth to the base is not measured: %s.", why)
    return False


def _read_iteration(
    steps: EvaluatedRun,
    number: int,
    chosen: Sequence[Problem],
    reader: Path,
    direct: dict[str, AnswerLogprobs],
) -> None:
    run, sampler = steps.run, replace(steps.sampler, demos=())
    steps.progress.phase("rationales", number, len(chosen))
    run.log("rationales", iteration=number)
    sources = sorted((run.iteration(number) / "eval").glob("*.parquet"))
    run.verify(*sources)
    place = steps.place(number, KIND, steps.eval_problems, reader)
    problems = {problem.id: problem for problem in chosen}
    for index, source in enumerate(sources):
        if not place(index).exists():
            with interrupts.finishing("the scoring of this chunk"):
                score_shard(source, place(index), problems, sampler, direct)
                run.record(place(index))
    run.write_json(
        run.iteration(number) / FILE, rationale_metrics(problems, run.iteration(number), sampler.prompts)
    )


def rationale_metrics(
    problems: Mapping[str, Problem], folder: Path, prompts: Prompts
) -> RationaleMetrics:
    """Measure the read rationales in an iteration's folder; a measure `m` has its interval `m_ci`.

    num_rationales   read, one a problem; of `num_problems`: the others have no tokens
    rationale_gain   mean of log pi_0(y* | x, z) - log pi_0(y* | x), nats: how much the rationale helps
                     a reader who was not trained
    choice_gain      the same of probabilities normalized over the answers, where these are a closed set:
                     how much the rationale speaks for y* against the others
    helpful_share    share of rationales with a gain above 0: the latter, where there is one
    read_accuracy    of closed sets: share after which y* is the reader's likeliest answer
    direct_accuracy  of closed sets: share for which it is so without a rationale
    log_direct       mean of log pi_0(y* | x), nats: what the reader knows without a rationale
    copied_share     mean share of a rationale's words in fragments that stand in the prompt, and
    copied_density   the mean length of these: see copying.py; of rationales with words
    scored_tokens, total_s   what this took

    Intervals are bootstrap ones over problems.
    """
    draws: list[Draw] = []
    read: list[Reading] = []
    timings = []
    for place in sorted((folder / KIND).glob("*.parquet")):
        known, timing = read_readings(place)
        found = [draw for draw in read_shard(folder / "eval" / place.name)[0] if draw.key in known]
        draws += found
        read += [known[draw.key] for draw in found]
        timings.append(timing)
    made: RationaleMetrics = {}
    if draws:
        texts = [asked_text(prompts, problems[draw.key.problem_id]) for draw in draws]
        parts = [copied(d.score.rationale, text) for d, text in zip(draws, texts, strict=True)]
        groups = [group_of(problems[draw.key.problem_id]) for draw in draws]
        measured = summary(bootstrap(_statistic(read, parts), groups), _why(read))
        made = cast(RationaleMetrics, measured)
    return {
        "num_problems": len(problems),
        "num_rationales": len(draws),
        **made,
        "scored_tokens": sum(int(timing["tokens"]) for timing in timings),
        "total_s": round(sum(timing["total_s"] for timing in timings), 3),
    }


def _statistic(read: Sequence[Reading], parts: Sequence[Copied | None]) -> Statistic:
    values = {
        "rationale_gain": np.array([each.gain for each in read], float),
        "helpful_share": np.array([each.helps for each in read], float),
        "log_direct": np.array([each.log_direct for each in read], float),
    }
    if _is_closed(read):
        choices = [each.choice_gain for each in read]
        values["choice_gain"] = np.array(choices, float)
        values["read_accuracy"] = np.array([each.is_likeliest for each in read], float)
        values["direct_accuracy"] = np.array([each.is_likeliest_direct for each in read], float)
    worded = np.array([part is not None for part in parts], float)
    coverage, density = (np.array([part[i] if part else 0.0 for part in parts], float) for i in range(2))

    def statistic(weights: Floats) -> dict[str, Floats]:
        return {
            **{name: _finite_mean(weights, each) for name, each in values.items()},
            "copied_share": ratio(weights @ coverage, weights @ worded),
            "copied_density": ratio(weights @ density, weights @ worded),
        }

    return statistic


def _is_closed(read: Sequence[Reading]) -> bool:
    return all(each.choice_gain is not None for each in read)


def _why(read: Sequence[Reading]) -> dict[str, str]:
    impossible = "an answer has probability 0"
    copying = dict.fromkeys(("copied_share", "copied_density"), "no rationale has words")
    return dict.fromkeys(("rationale_gain", "choice_gain", "log_direct"), impossible) | copying


def _finite_mean(weights: Floats, values: Floats) -> Floats:
    """Return means, or NaN for all of them where a value is infinite."""
    return mean(weights, values) if np.isfinite(values).all() else np.full(len(weights), np.nan)


def asked_text(prompts: Prompts, problem: Problem) -> str:
    """Return the words of a problem's plain prompt, without worked examples."""
    return prompt_text(replace(prompts, demos=()).plain(problem))


def scored(draws: Path, scores: Path) -> Iterator[list[Draw]]:
    """Yield the draws of each shard of an E-step that were scored, with their nats: see scoring.py."""
    for place in sorted(scores.glob("*.parquet")):
        logprobs = read_logprobs(place)
        found, _ = read_shard(draws / place.name)
        yield [with_logprobs(draw, logprobs[draw.key]) for draw in found if draw.key in logprobs]


def read_rationales(folder: Path) -> RationaleMetrics:
    """Return the stored measures of an iteration's folder; {} if nothing is stored."""
    path = folder / FILE
    return json.loads(path.read_text()) if path.is_file() else {}
