"""What is measured: of held-out problems, how well the model answers; of an E-step, what it kept.

All from draws as they are stored, so that any number can be made again from a run. Shares are 0 to 1;
a half-width is of a 95% interval.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from femtune.estep import Chunk, Setup, e_step
from femtune.run import by_problem
from femtune.schemes import paper_filter
from femtune.types import Draw, Problem, Scheme, Stage
from femtune.worlds import WORLDS

Stored = Iterable[tuple[Sequence[Draw], Mapping[str, float]]]  # chunks: draws, and their seconds


def evaluation_draws(
    problems: Sequence[Problem],
    setup: Setup,
    *,
    draws: int,
    iteration: int,
    skip: Callable[[int], bool] = lambda index: False,
    on_draws: Callable[[Sequence[Draw]], None] = lambda draws: None,
) -> Iterator[Chunk]:
    """Ask every problem `draws` times under the plain prompt: not adaptive, so fit for estimates."""
    scheme = Scheme("evaluate", (Stage("plain", draws=draws, ask="all"),), paper_filter)
    return e_step(problems, scheme, setup, iteration=iteration, skip=skip, on_draws=on_draws)


def evaluation_metrics(problems: Mapping[str, Problem], stored: Stored) -> dict[str, Any]:
    """Metrics of evaluation draws; a draw that gave no answer counts as wrong.

    accuracy            mean share of a problem's draws with full reward, and `accuracy_ci`
    majority_accuracy   of the most frequent answer, where there are several draws
    mae                 mean |y - y*| of the draws with a number for an answer, where every y* is one
    answered            share of draws with an answer
    sound_steps         in a world: share of rationale steps that are sound, and `sound_rationales`
    """
    right: list[float] = []
    majority: list[float] = []
    errors: list[float] = []
    sound: list[bool] = []
    wholly_sound: list[bool] = []
    tally = _Tally()
    for chunk, timing in stored:
        tally.add(chunk, timing)
        for problem_id, draws in by_problem(chunk):
            problem = problems[problem_id]
            hits = [is_right(draw) for draw in draws]
            right.append(fmean(hits))
            votes = Counter(draw.score.answer for draw in draws if draw.score.answer)
            winner = votes.most_common(1)[0][0] if votes else None
            majority.append(any(h for h, d in zip(hits, draws, strict=True) if d.score.answer == winner))
            errors += [e for draw in draws if (e := absolute_error(draw, problem)) is not None]
            for steps in filter(None, (sound_steps(draw, problem) for draw in draws)):
                sound += steps
                wholly_sound.append(all(steps))
    numeric = all(as_number(problem.answer) is not None for problem in problems.values())
    return {
        "num_problems": len(right),
        "accuracy": fmean(right),
        **({"accuracy_ci": half_width(right)} if len(right) > 1 else {}),
        **({"majority_accuracy": fmean(majority)} if tally.draws > len(right) else {}),
        **({"mae": fmean(errors)} if numeric and errors else {}),
        **_soundness(sound, wholly_sound),
        **tally.metrics(),
    }


def estep_metrics(problems: Mapping[str, Problem], stored: Stored) -> dict[str, Any]:
    """Metrics of an E-step's draws.

    kept_share          share of problems with an accepted draw
    solved_by           of the problems, how many were solved by which draw of theirs (from 1)
    reasons             draws by prompt and reason, "kept" where accepted
    sound_steps         in a world: of the accepted draws
    """
    solved_by: Counter[int] = Counter()
    reasons: dict[str, Counter[str]] = defaultdict(Counter)
    sound: list[bool] = []
    wholly_sound: list[bool] = []
    num_problems = 0
    tally = _Tally()
    for chunk, timing in stored:
        tally.add(chunk, timing)
        for problem_id, draws in by_problem(chunk):
            num_problems += 1
            accepted = [number for number, draw in enumerate(draws, 1) if draw.accepted]
            if accepted:
                solved_by[accepted[0]] += 1
            for draw in draws:
                reasons[draw.prompt][draw.score.reason or "kept"] += 1
                if draw.accepted and (steps := sound_steps(draw, problems[problem_id])):
                    sound += steps
                    wholly_sound.append(all(steps))
    return {
        "num_problems": num_problems,
        "num_kept": solved_by.total(),
        "kept_share": solved_by.total() / num_problems if num_problems else 0.0,
        "solved_by": {str(number): solved_by[number] for number in sorted(solved_by)},
        "reasons": {prompt: dict(counts.most_common()) for prompt, counts in reasons.items()},
        **_soundness(sound, wholly_sound),
        **tally.metrics(),
    }


class _Tally:
    """Counts and seconds that every set of draws has."""

    def __init__(self) -> None:
        self.draws = self.tokens = self.answered = 0
        self.engine_s = self.total_s = 0.0

    def add(self, draws: Sequence[Draw], timing: Mapping[str, float]) -> None:
        self.draws += len(draws)
        self.tokens += sum(len(draw.completion.tokens) for draw in draws)
        self.answered += sum(draw.score.answer != "" for draw in draws)
        self.engine_s += timing["engine_s"]
        self.total_s += timing["total_s"]

    def metrics(self) -> dict[str, Any]:
        return {
            "answered": self.answered / self.draws if self.draws else 0.0,
            "num_draws": self.draws,
            "generated_tokens": self.tokens,
            "tokens_per_draw": self.tokens / self.draws if self.draws else 0.0,
            "engine_s": round(self.engine_s, 3),
            "total_s": round(self.total_s, 3),
        }


def is_right(draw: Draw) -> bool:
    """Whether the answer earned the full reward, whatever the scheme accepts."""
    return draw.score.reason in ("", "wrong") and draw.score.reward >= 1


def absolute_error(draw: Draw, problem: Problem) -> float | None:
    """|y - y*|, where both are numbers."""
    given, wanted = as_number(draw.score.answer), as_number(problem.answer)
    return abs(given - wanted) if given is not None and wanted is not None else None


def sound_steps(draw: Draw, problem: Problem) -> list[bool] | None:
    """In a world: which steps of the rationale are sound; elsewhere, nobody knows."""
    world = WORLDS.get(str(problem.columns.get("world")))
    return world.check(problem, draw.score.rationale, draw.score.answer) if world else None


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


def half_width(values: Sequence[float]) -> float:
    """Half the 95% interval of a mean of two or more independent values: 1.96 standard errors.

    >>> round(half_width([0, 1, 0, 1]), 3)
    0.566
    """
    return 1.96 * stdev(values) / math.sqrt(len(values))


def _soundness(steps: Sequence[bool], rationales: Sequence[bool]) -> dict[str, float]:
    if not rationales:
        return {}
    return {"sound_steps": fmean(steps), "sound_rationales": fmean(rationales)}
