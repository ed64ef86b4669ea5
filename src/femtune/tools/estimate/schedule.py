"""Mean draws that a scheme asks, scores and remembers over a run's iterations: see formulas.py.

Let a be the right draws per problem in an iteration, kept the share of problems with one, m the maximum
number of remembered draws, and t the number of earlier iterations with draws:

    covered             1 - (1 - kept)^t
    remembered          min(m, a t) draws per problem, all assumed different
    scored              right draws whose log pi the engine did not return, if the scheme's rules need
                        it, and once more if they need the probability of answers. With `expected` all
                        draws count as right, as each may become an example

Where the scheme says so, each problem is asked in every n-th iteration, an n-th of them in each. All
problems are assumed equally hard.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from femtune.schemes.filters import paper_filter, weigh
from femtune.tools.estimate.formulas import Asking, Attempt, asking
from femtune.types import Completion, Draw, DrawKey, Rule, Scheme, Score

_MANY = 64  # draws used to find how many a rule keeps


@dataclass(frozen=True)
class Schedule:
    """A scheme's iterations, on average."""

    asking: Asking
    scored: Mapping[str, float]  # completions per problem and iteration, by the prompt before them
    remembered: float  # draws stored per problem and iteration


def is_steady(scheme: Scheme) -> bool:
    """Return True if all iterations ask in the same way."""
    return scheme.remember is None


def schedule(scheme: Scheme, right: Mapping[str, float], iterations: int) -> Schedule:
    """Return a scheme's mean iterations, given the probability of a right draw by prompt."""
    one_each = scheme.weigh == paper_filter
    counted = dict.fromkeys(right, 1.0) if "answers" in scheme.needs else right
    each_time = asking(scheme.stages, right, one_each=one_each)
    most = capacity(scheme)
    asked: list[Asking] = []
    scored: dict[str, list[float]] = {"plain": [], "hinted": []}
    stored: list[float] = []
    for turn in range(scheme.every):  # each with the same number of problems
        covered = remembered = 0.0  # before the iteration
        for iteration in range(iterations):
            draws = iteration % scheme.every == turn
            parts = [each_time] if draws else []
            fresh = _right(parts, counted)
            scored["plain"].append(fresh["hinted"] * ("log_pi" in scheme.needs))
            scored["hinted"].append(0.0)
            for prompt, tokens in scored.items():
                tokens[-1] += _answered(scheme, prompt, fresh)
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
    return Schedule(_mean(asked), found, fmean(stored))


def _answered(scheme: Scheme, prompt: str, fresh: Mapping[str, float]) -> float:
    """Return the rationales per problem read for the probability of its answer, under this prompt."""
    read = sum(fresh.values()) if scheme.needs & {"answers", "gain"} else 0.0
    ratios = fresh["hinted"] if "ratio" in scheme.needs else 0.0  # under both prompts
    return read * (prompt == "plain") + ratios


def capacity(scheme: Scheme) -> float:
    """Return the maximum of remembered draws per problem: what the rule keeps of many similar ones."""
    return 0.0 if scheme.remember is None else _made(scheme.remember, _MANY)


def most_draws(scheme: Scheme) -> int:
    """Return the maximum number of draws for a problem in an iteration."""
    return sum(stage.draws for stage in scheme.stages)


def _right(parts: Sequence[Asking], right: Mapping[str, float]) -> dict[str, float]:
    """Return the right draws per problem, by prompt."""
    found = {"plain": 0.0, "hinted": 0.0}
    for part in parts:
        for attempt in part.attempts:
            found[attempt.prompt] += attempt.reach * attempt.draws * right[attempt.prompt]
    return found


def _mean(asked: Sequence[Asking]) -> Asking:
    """Return the mean iteration: all attempts, each for its part of the problems."""
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
    """Return the mean number of examples from so many right draws, over problems with at least one."""
    below = max(1, math.floor(number))
    few, more = _made(rule, below), _made(rule, below + 1)
    return few + max(0.0, number - below) * (more - few)


def _made(rule: Rule, number: int) -> int:
    """Return the number of examples from so many right draws, all different and equally likely."""
    draws = [
        Draw(
            DrawKey(1, "", 0, index),
            "plain",
            index,
            Completion((index,), "", "stop", -1.0),
            Score(1.0, ""),
            log_pi=-1.0,
            log_answer=-1.0,
            log_direct=-2.0,
            is_likeliest=True,
            log_ratio=0.0,
        )
        for index in range(number)
    ]
    return len(weigh(rule, [replace(draw, right=draw) for draw in draws]))
