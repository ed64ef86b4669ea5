"""What a scheme asks, scores and remembers over a run's iterations, on average: see formulas.py.

With a the right draws of a problem in an iteration that draws, kept the share that has one, m what is
remembered at most, and t the iterations that have drawn before:

    covered             1 - (1 - kept)^t
    remembered          min(m, a t) draws a problem, each taken to be another
    scored              what is remembered, and the right draws whose log pi or log q the engine has not
                        told as it drew them: once for each that the scheme's rules need; where they need
                        the probability of answers, once more. With expected, all draws are taken for
                        right, as each may be an example

A problem that is covered is asked by `stages`, another by `first`, and each in every n-th iteration, an
n-th of them in each, where the scheme says so. All problems are taken to be equally
hard, and none to be left out for want of gain.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from femtune.schemes.filters import paper_filter, weigh
from femtune.tools.estimate.formulas import Asking, Attempt, asking
from femtune.types import Completion, Draw, DrawKey, Rule, Scheme, Score, Stage

_MANY = 64  # draws by which it is tried how many a rule keeps


@dataclass(frozen=True)
class Course:
    """A scheme's iterations, on average."""

    asking: Asking
    scored: Mapping[str, float]  # completions a problem and iteration, by the prompt before them
    remembered: float  # draws a problem and iteration, as they are stored


def is_steady(scheme: Scheme) -> bool:
    """Whether all iterations ask alike, whatever came before."""
    return not scheme.first and scheme.remember is None


def course(scheme: Scheme, right: Mapping[str, float], iterations: int) -> Course:
    """What comes of a scheme where a draw is right with this chance, by prompt."""
    one_each = scheme.weigh == paper_filter
    counted = dict.fromkeys(right, 1.0) if "answers" in scheme.needs else right
    later = asking(scheme.stages, right, one_each=one_each)
    begun = asking(scheme.first, right, one_each=one_each) if scheme.first else later
    most = capacity(scheme)
    asked: list[Asking] = []
    scored: dict[str, list[float]] = {"plain": [], "hinted": []}
    stored: list[float] = []
    for turn in range(scheme.every):  # of each, as many problems
        covered = remembered = 0.0  # before the iteration
        for iteration in range(iterations):
            draws = iteration % scheme.every == turn
            parts = [_reached(begun, 1 - covered), _reached(later, covered)] if draws else []
            fresh = _right(parts, counted)
            for prompt, need in (("plain", "log_pi"), ("hinted", "log_q")):
                told = fresh[prompt] if scheme.proposal == "current" else 0.0
                new = sum(fresh.values()) - told
                scored[prompt].append((remembered + new) * (need in scheme.needs))
                scored[prompt][-1] += _answered(scheme, prompt, remembered, fresh)
            kept = sum(part.kept for part in parts)
            known = remembered + sum(fresh.values())
            if scheme.remember is not None:
                covered = 1 - (1 - covered) * (1 - kept) if draws else covered
                remembered = min(most, known)
            examples = sum(part.examples for part in parts)
            if not one_each:
                solved = covered if scheme.remember is not None else kept
                solved = 1.0 if "answers" in scheme.needs else solved
                examples = solved * _examples(scheme.weigh, known / solved) if solved else 0.0
            attempts = [attempt for part in parts for attempt in part.attempts]
            asked.append(Asking(attempts, max(kept, covered), examples))
            stored.append(remembered)
    found = {prompt: fmean(each) for prompt, each in scored.items() if any(each)}
    return Course(_mean(asked), found, fmean(stored))


def _answered(scheme: Scheme, prompt: str, remembered: float, fresh: Mapping[str, float]) -> float:
    """Rationales of a problem that are read for the probability of its answer, under this prompt."""
    read = remembered + sum(fresh.values()) if scheme.needs & {"answers", "gain"} else 0.0
    ratios = fresh["hinted"] if "ratio" in scheme.needs else 0.0  # under both prompts
    return read * (prompt == "plain") + ratios


def capacity(scheme: Scheme) -> float:
    """Draws of a problem that are remembered at most: what the rule keeps of many that are alike."""
    return 0.0 if scheme.remember is None else _made(scheme.remember, _MANY)


def most_draws(scheme: Scheme) -> int:
    """Draws that a problem can get in an iteration."""
    return max(_draws(scheme.stages), _draws(scheme.first))


def _draws(stages: Sequence[Stage]) -> int:
    return sum(stage.draws for stage in stages)


def _reached(asked: Asking, share: float) -> Asking:
    """The same, of a share of the problems."""
    attempts = [replace(each, reach=each.reach * share) for each in asked.attempts]
    return Asking(attempts, asked.kept * share, asked.examples * share)


def _right(parts: Sequence[Asking], right: Mapping[str, float]) -> dict[str, float]:
    """Right draws of a problem, by prompt."""
    found = {"plain": 0.0, "hinted": 0.0}
    for part in parts:
        for attempt in part.attempts:
            found[attempt.prompt] += attempt.reach * attempt.draws * right[attempt.prompt]
    return found


def _mean(asked: Sequence[Asking]) -> Asking:
    """The mean iteration. Its attempts are those of each, of which a part of the problems is asked."""
    reach: dict[tuple[int, str, int, bool], float] = {}
    for each in asked:
        for number, attempt in enumerate(each.attempts):
            at = (number, attempt.prompt, attempt.draws, attempt.is_new)
            reach[at] = reach.get(at, 0.0) + attempt.reach / len(asked)
    attempts = [
        Attempt(prompt, draws, share, new) for (_, prompt, draws, new), share in reach.items() if share
    ]
    kept, examples = (fmean(getattr(each, name) for each in asked) for name in ("kept", "examples"))
    return Asking(attempts, kept, examples)


def _examples(rule: Rule, number: float) -> float:
    """Examples that a rule makes of so many right draws, a mean over problems that have one at least."""
    below = max(1, math.floor(number))
    few, more = _made(rule, below), _made(rule, below + 1)
    return few + max(0.0, number - below) * (more - few)


def _made(rule: Rule, number: int) -> int:
    """Examples that a rule makes of so many right draws, all of them different and equally likely."""
    draws = [
        Draw(
            DrawKey(1, "", 0, index),
            "plain",
            index,
            Completion((index,), "", "stop", -1.0),
            Score(1.0, ""),
            log_pi=-1.0,
            log_q=-1.0,
            log_answer=-1.0,
            log_direct=-2.0,
            is_likeliest=True,
            log_ratio=0.0,
        )
        for index in range(number)
    ]
    return len(weigh(rule, [replace(draw, right=draw) for draw in draws]))
