"""What is measured: of held-out problems, how well the model answers; of an E-step, what it kept.

All from draws as they are stored, so that any number can be made again from a run. Shares are 0 to 1;
an interval is of 95%.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import cast

import numpy as np

from femtune.data.grammar.numbers import as_quantity
from femtune.data.grammar.text import plain
from femtune.data.problems import GROUP
from femtune.data.tasks.frames import frame, scale_of
from femtune.data.worlds import WORLDS
from femtune.estep.driver import e_step
from femtune.estep.scheduler import Chunk, Sampler
from femtune.evaluation.bootstrap import Floats, bootstrap, mean, summary
from femtune.evaluation.calibration_map import Calibration
from femtune.evaluation.chance import guessed_share, is_closed
from femtune.evaluation.metrics import (
    Item,
    choice_metrics,
    pair_metrics,
    pass_at_k,
    rater_ceiling,
    rating_metrics,
)
from femtune.evaluation.number_errors import number_metrics, relative_error
from femtune.evaluation.scored_answers import Scoring
from femtune.metric_types import DrawMetrics, EStepMetrics, EvaluationMetrics
from femtune.runs.draws import by_problem
from femtune.runs.run import Run
from femtune.schemes.filters import paper_filter
from femtune.types import Draw, Problem, Scheme, Stage

Stored = Iterable[tuple[Sequence[Draw], Mapping[str, float]]]  # chunks: draws, and their seconds


def evaluation_draws(
    problems: Sequence[Problem],
    sampler: Sampler,
    *,
    draws: int,
    iteration: int,
    place: Callable[[int], Path] | None = None,
    on_draws: Callable[[Sequence[Draw]], None] = lambda draws: None,
) -> Iterator[Chunk]:
    """Ask every problem `draws` times under the plain prompt: not adaptive, so fit for estimates."""
    scheme = Scheme("evaluate", (Stage("plain", draws=draws, ask="all"),), weigh=paper_filter)
    return e_step(problems, scheme, sampler, iteration=iteration, place=place, on_draws=on_draws)


def ask_into(
    run: Run,
    kind: str,
    problems: Sequence[Problem],
    sampler: Sampler,
    *,
    draws: int,
    iteration: int = 0,
    on_draws: Callable[[Sequence[Draw]], None] = lambda draws: None,
    scoring: Scoring | None = None,
) -> Path:
    """Ask of problems what is not stored yet, store it in the run, and give the folder of all draws.

    With `scoring`, of the same problems and sampler, it sees the draws in place of `on_draws`, and the
    answers after new ones are scored and stored, too.
    What is there is looked at first. Raises RunError where it is damaged.
    """
    if scoring:
        sampler, on_draws = scoring.sampler, scoring.add
    place = partial(run.shard, iteration, kind)
    run.verify(*(place(index) for index in range(-(-len(problems) // sampler.chunk_size))))
    for chunk in evaluation_draws(
        problems, sampler, draws=draws, iteration=iteration, place=place, on_draws=on_draws
    ):
        run.record(place(chunk.index))
        if scoring:
            scoring.store(run, kind, iteration, chunk)
    return run.iteration(iteration) / kind


def evaluation_metrics(
    problems: Mapping[str, Problem],
    stored: Stored,
    calibration: Calibration | None = None,
    max_new_tokens: int | None = None,
) -> EvaluationMetrics:
    """Metrics of evaluation draws; a draw that gave no answer counts as wrong.

    accuracy            mean share of a problem's draws with full reward
    majority_accuracy   of the most frequent answer, where there are several draws
    pass_at_k           of math: that one of k draws is right; k is 2, 4, 8 ... and all draws
    answered            share of draws with an answer, forced ones included
    forced_share        share of draws whose answer was forced: see forced_answers.py
    answered_unforced   share of draws with an answer that was not forced, if there are forced ones
    accuracy_unforced   accuracy where forced answers count as wrong, if there are any
    truncated_share     share of draws that ended at max_new_tokens; with `max_new_tokens` given, also
                        those whose answer was forced after that
    sound_steps         in a world: share of rationale steps that are sound, and `sound_rationales`
    ratings             `metrics.rating_metrics`, and the raters' own agreement, `metrics.rater_ceiling`
    pairs, choices      `metrics.pair_metrics`, `metrics.choice_metrics`
    numbers             `number_errors.number_metrics`, where every y* is a number on no scale

    A measure `m` has its bootstrap interval `m_ci`, [low, high], over what is judged. A calibration is a
    map of vote shares: see `calibration`.
    """
    right: list[float] = []
    unforced: list[float] = []
    majority: list[float] = []
    errors: list[list[float | None]] = []
    steps: list[list[bool]] = []  # of each rationale, which of its steps are valid
    asked: list[tuple[Problem, Item]] = []
    counts: list[tuple[int, int]] = []  # draws, and right ones
    tally = _Tally(max_new_tokens)
    for chunk, timing in stored:
        tally.add(chunk, timing)
        for problem_id, draws in by_problem(chunk):
            problem = problems[problem_id]
            hits = [is_right(draw) for draw in draws]
            right.append(fmean(hits))
            free = (hit and not d.completion.num_forced for hit, d in zip(hits, draws, strict=True))
            unforced.append(fmean(free))
            counts.append((len(hits), sum(hits)))
            asked.append((problem, item := as_item(problem, draws)))
            majority.append(vote_is_right(item, hits))
            errors.append([error_of(draw, problem) for draw in draws])
            steps += filter(None, (sound_steps(draw, problem) for draw in draws))
    return {
        "num_problems": len(right),
        **_shares(asked, {"accuracy": right}),
        **(_shares(asked, {"accuracy_unforced": unforced}) if tally.forced else {}),
        **(_shares(asked, {"majority_accuracy": majority}) if tally.draws > len(right) else {}),
        **_passes(asked, counts),
        **_numbers(asked, errors),
        **_of_the_task(asked, calibration),
        **_soundness([each for own in steps for each in own], [all(own) for own in steps]),
        **tally.metrics(),
    }


def vote_is_right(item: Item, hits: Sequence[bool]) -> bool:
    """Return True if the most frequent answer is right; `hits` tell which of the votes are."""
    votes = Counter(filter(None, item.votes))
    winner = votes.most_common(1)[0][0] if votes else None
    return any(hit for hit, vote in zip(hits, item.votes, strict=True) if vote == winner)


def as_item(problem: Problem, draws: Sequence[Draw]) -> Item:
    """A problem's answer and votes, as the scale writes them where there is one, else alike if equal."""
    scale, known = scale_of(problem), frame(problem)
    answers = [draw.score.answer for draw in draws]
    if scale is None:
        answers = [_as_vote(answer, known is not None and known.form == "math") for answer in answers]
    else:
        answers = [scale.read(answer) or "" for answer in answers]
    item = (known.pair or known.item) if known else ""
    return Item(problem.answer, tuple(answers), item, str(problem.columns.get(GROUP) or ""))


def group_of(problem: Problem) -> str:
    """Return the name of the cluster that is resampled as one: group, pair or item; "" stands alone."""
    return as_item(problem, ()).resampled


def _as_vote(answer: str, numeric: bool) -> str:
    """The same for answers that say the same: 1/2 and 0.5 are one number, if numbers are asked for."""
    number = as_quantity(answer) if numeric else None
    return plain(answer) if number is None else str(number.value)


def _passes(
    asked: Sequence[tuple[Problem, Item]], counts: Sequence[tuple[int, int]]
) -> EvaluationMetrics:
    """pass@k of mathematics, k being 2, 4, 8 ... and all draws; of k = 1 it is the accuracy."""
    known = frame(asked[0][0]) if asked else None
    if known is None or known.form != "math":
        return {}
    most = min(draws for draws, _ in counts)
    sizes = sorted({2**power for power in range(1, most.bit_length()) if 2**power <= most} | {most})
    return _shares(
        asked,
        {f"pass_at_{k}": [pass_at_k(*count, k) for count in counts] for k in sizes if k > 1},
    )


def _shares(
    asked: Sequence[tuple[Problem, Item]], values: Mapping[str, Sequence[float]]
) -> EvaluationMetrics:
    """Means over problems, with their intervals."""
    arrays = {name: np.asarray(each, float) for name, each in values.items()}

    def statistic(weights: Floats) -> dict[str, Floats]:
        return {name: mean(weights, each) for name, each in arrays.items()}

    return cast(
        EvaluationMetrics, summary(bootstrap(statistic, [item.resampled for _, item in asked]), {})
    )


def _of_the_task(
    asked: Sequence[tuple[Problem, Item]], calibration: Calibration | None
) -> EvaluationMetrics:
    """Return what the task of these problems measures beyond accuracy."""
    known = frame(asked[0][0]) if asked else None
    if known is None or not known.scale:
        return {}
    items = [item for _, item in asked]
    if known.form == "rating":
        made = rating_metrics(items, known.scale, calibration=calibration)
        made.pop("accuracy", None)  # of the vote: `majority_accuracy`
        made.pop("accuracy_ci", None)
        return made | rater_ceiling(_ratings(asked), known.scale)
    if known.form == "pair":
        swapped = [(own := frame(problem)) is not None and own.swapped for problem, _ in asked]
        return pair_metrics(items, known.scale, swapped=swapped, calibration=calibration)
    if len({scale_of(problem) for problem, _ in asked}) > 1:  # of four choices, of five
        return {}
    return choice_metrics(items, known.scale, calibration=calibration)


def _numbers(
    asked: Sequence[tuple[Problem, Item]], errors: Sequence[Sequence[float | None]]
) -> EvaluationMetrics:
    """Return the measures of free numbers; {} for other answers, and for those of a scale."""
    free = asked and all(
        as_number(problem.answer) is not None and scale_of(problem) is None for problem, _ in asked
    )
    if not free:
        return {}
    return cast(EvaluationMetrics, number_metrics(errors, [item.resampled for _, item in asked]))


def _ratings(asked: Sequence[tuple[Problem, Item]]) -> dict[str, list[str]]:
    """Return the ratings of each item: its problems' answers, or the ratings behind an average."""
    ratings: dict[str, list[str]] = defaultdict(list)
    for problem, item in asked:
        given = problem.columns.get("ratings")
        name = f"{item.group}\x00{problem.columns.get('attribute')}"
        ratings[name] += given if isinstance(given, list) else [problem.answer]
    return ratings


def teacher_tokens(metrics: EStepMetrics) -> EStepMetrics:
    """Return the counts of tokens of an E-step that a teacher drew: none are the student's."""
    return {"teacher_tokens": metrics["generated_tokens"], "generated_tokens": 0}


def estep_metrics(problems: Mapping[str, Problem], stored: Stored, attempts: int = 0) -> EStepMetrics:
    """Metrics of an E-step's draws; `attempts` is how often a problem may be asked without a hint.

    luck_share          share of the problems that guesses by the answers' frequencies would keep in so
                        many attempts, where the answers are a closed set; beside it `plain_share`, the
                        share of the problems that plain draws kept

    kept_share          share of the problems that were asked with an accepted draw; None: none was
    solved_by           of the problems, how many were solved by which draw of theirs (from 1)
    reasons             draws by prompt and reason, "kept" where accepted
    sound_steps         in a world: of the accepted draws
    """
    solved_by: Counter[int] = Counter()
    reasons: dict[str, Counter[str]] = defaultdict(Counter)
    sound: list[bool] = []
    wholly_sound: list[bool] = []
    num_problems = num_plain = 0
    asked: list[Problem] = []
    tally = _Tally()
    for chunk, timing in stored:
        tally.add(chunk, timing)
        for problem_id, draws in by_problem(chunk):
            num_problems += 1
            asked += [problems[problem_id]] if attempts else []
            num_plain += any(draw.accepted and draw.prompt_kind == "plain" for draw in draws)
            accepted = [number for number, draw in enumerate(draws, 1) if draw.accepted]
            if accepted:
                solved_by[accepted[0]] += 1
            for draw in draws:
                reasons[draw.prompt_kind][draw.score.reason or "kept"] += 1
                if draw.accepted and (steps := sound_steps(draw, problems[problem_id])):
                    sound += steps
                    wholly_sound.append(all(steps))
    return {
        "num_problems": num_problems,
        "num_kept": solved_by.total(),
        "kept_share": solved_by.total() / num_problems if num_problems else None,
        "solved_by": {str(number): solved_by[number] for number in sorted(solved_by)},
        "reasons": {prompt: dict(counts.most_common()) for prompt, counts in reasons.items()},
        **_luck(asked, num_plain, attempts),
        **_soundness(sound, wholly_sound),
        **tally.metrics(),
    }


def _luck(asked: Sequence[Problem], num_plain: int, attempts: int) -> EStepMetrics:
    if not is_closed(asked):
        return {}
    luck = guessed_share((problem.answer for problem in asked), attempts)
    return {"luck_share": luck, "plain_share": num_plain / len(asked)}


class _Tally:
    """Counts and seconds that every set of draws has."""

    def __init__(self, max_new_tokens: int | None = None) -> None:
        self.max_new_tokens = max_new_tokens
        self.draws = self.tokens = self.answered = self.forced = self.truncated = self.unforced = 0
        self.engine_s = self.total_s = 0.0

    def add(self, draws: Sequence[Draw], timing: Mapping[str, float]) -> None:
        self.draws += len(draws)
        self.tokens += sum(draw.completion.num_tokens for draw in draws)
        self.answered += sum(draw.score.answer != "" for draw in draws)
        self.forced += sum(draw.completion.num_forced > 0 for draw in draws)
        self.unforced += sum(
            draw.score.answer != "" and not draw.completion.num_forced for draw in draws
        )
        self.truncated += sum(self._is_truncated(draw) for draw in draws)
        self.engine_s += timing.get("engine_s", 0.0)
        self.total_s += timing.get("total_s", 0.0)

    def _is_truncated(self, draw: Draw) -> bool:
        """True if it ended at max_new_tokens, before its answer was forced where it was."""
        made = draw.completion
        if made.num_forced and self.max_new_tokens is not None:
            # one that ended by itself has its end token dropped, so it is shorter
            return made.num_tokens - made.num_forced >= self.max_new_tokens
        return made.finish_reason == "length"

    def metrics(self) -> DrawMetrics:
        return {
            "answered": self.answered / self.draws if self.draws else 0.0,
            "forced_share": self.forced / self.draws if self.draws else 0.0,
            **({"answered_unforced": self.unforced / self.draws} if self.forced else {}),
            "truncated_share": self.truncated / self.draws if self.draws else 0.0,
            "num_draws": self.draws,
            "generated_tokens": self.tokens,
            "tokens_per_draw": self.tokens / self.draws if self.draws else 0.0,
            "engine_s": round(self.engine_s, 3),
            "total_s": round(self.total_s, 3),
        }


def is_right(draw: Draw) -> bool:
    """Return True if the answer earned the full reward, whatever the scheme accepts."""
    return draw.score.reason in ("", "wrong") and draw.score.reward >= 1


def error_of(draw: Draw, problem: Problem) -> float | None:
    """Return the relative error of a number, 0 if the answer is right; None if either is no number."""
    wanted = as_number(problem.answer)
    if wanted is None:
        return None
    given = wanted if is_right(draw) else as_number(draw.score.answer)  # 1/2 is right for 0.5
    return relative_error(given, wanted)


def sound_steps(draw: Draw, problem: Problem) -> list[bool] | None:
    """In a world: which steps of the rationale are sound; elsewhere, nobody knows."""
    world = WORLDS.get(str(problem.columns.get("world")))
    try:
        return world.check(problem, draw.score.rationale, draw.score.answer) if world else None
    except (LookupError, TypeError, ValueError, AttributeError):
        return None  # a row of somebody's own, with a column that only is called `world`


def as_number(text: str) -> float | None:
    """A finite number, or None.

    >>> as_number("4.5"), as_number("four")
    (4.5, None)
    """
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _soundness(steps: Sequence[bool], rationales: Sequence[bool]) -> DrawMetrics:
    if not rationales:
        return {}
    return {"sound_steps": fmean(steps), "sound_rationales": fmean(rationales)}
