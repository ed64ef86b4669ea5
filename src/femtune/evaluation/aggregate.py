"""How the rationales of an item become one answer: by their votes, or by the probabilities of answers.

votes           each rationale counts for the answer that it gave
probabilities   the mean over the rationales of pi(y | x, z), normalized over the answers that there are

A rationale that gave no answer has no vote; it has probabilities all the same. Both orders of a pair are
one item, its A and B as the data has them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

import numpy as np

from femtune.data.answer_format import bare
from femtune.data.answers import Scale, as_fraction
from femtune.data.tasks.frames import frame, scale_of
from femtune.data.tasks.judge import turned
from femtune.estep.answer_probs import AnswerLogprobs
from femtune.evaluation.calibration_map import Calibration, apply
from femtune.evaluation.evaluate import as_item
from femtune.evaluation.scored_answers import Scored
from femtune.types import Draw, Problem

Prediction = dict[str, Any]
Shares = dict[str, float]
# why an item has no answer: its confidence is too low, or no draw of it has an answer that can be read
NoAnswer = Literal["abstained", "unreadable"]


@dataclass(frozen=True, slots=True)
class Vote:
    """An answer that a draw gave, as the data has A and B."""

    answer: str
    draw: Draw
    swapped: bool  # of a pair: drawn in the other order


@dataclass(frozen=True, slots=True)
class Order:
    """Answers of the draws of one problem; of a pair, in one of its orders."""

    votes: list[Vote]
    swapped: bool
    scored: list[tuple[Draw, Shares]]  # each draw's pi(y | x, z), normalized, as the data has A and B


def prediction(
    orders: Sequence[tuple[Problem, Sequence[Draw]]],
    calibration: Calibration | None = None,
    abstain_below: float = 0.0,
    scored: Scored | None = None,
) -> Prediction:
    """Make one prediction of the draws of a problem, or of both orders of a pair; see `predict`.

    By probabilities where `scored` has some of the item, else by votes.
    """
    problem, scale = orders[0][0], scale_of(orders[0][0])
    heard = [_order(each, draws, scored or {}) for each, draws in orders]
    cast = [vote for order in heard for vote in order.votes]
    votes = Counter(vote.answer for vote in cast)
    probabilities = _over_orders(heard, scale) if scale else None
    by_votes = probabilities is None
    if calibration is not None and calibration.of != ("votes" if by_votes else "probabilities"):
        calibration = None  # of an item without draws that could be scored, say
    if by_votes:
        winner = next(iter(_ranked(votes)), "")
        distribution = _distribution(heard, scale, calibration) if scale and cast else None
        confidence = (distribution or {}).get(winner, votes[winner] / max(1, len(cast)))
    else:
        assert scale is not None and probabilities is not None
        distribution = probabilities
        if calibration is not None:
            distribution = _over_orders(heard, scale, calibration) or probabilities
        winner = likeliest(distribution)
        confidence = distribution[winner]
    # where there is no scale, equal answers may be written in several ways: the first stands for all
    written = {vote.answer: bare(vote.draw.score.answer) for vote in reversed(cast)} if not scale else {}
    why: NoAnswer | None = "abstained" if confidence < abstain_below else None
    if by_votes and not cast:
        why = "unreadable"
    return {
        "id": item_id(problem),
        "answer": None if why else written.get(winner, winner),
        "confidence": None if why == "unreadable" else confidence,
        "abstained": why == "abstained",
        "no_answer": why,
        "num_answered": len(cast),
        "votes": {written.get(answer, answer): count for answer, count in _ranked(votes).items()},
        "aggregate": "votes" if by_votes else "probabilities",
        "probabilities": probabilities,
        "distribution": distribution,
        "expected": _expected(problem, scale, distribution, votes),
        "consistent": _consistent(heard, by_votes),
        "rationale": _rationale(heard, winner),
    }


def item_id(problem: Problem) -> str:
    """Return the id of what is predicted: both orders of a pair have one."""
    known = frame(problem)
    return (known.pair if known else "") or problem.id


def likeliest(shares: Shares) -> str:
    """Return the answer with the largest share, the first of equals."""
    return max(shares, key=shares.__getitem__)


def mean_shares(scored: Sequence[AnswerLogprobs]) -> Shares | None:
    """Return the mean over rationales of their normalized probabilities; None of none.

    >>> mean_shares([AnswerLogprobs(("A", "B"), (0.0, 0.0)), AnswerLogprobs(("A", "B"), (0.0, -1000.0))])
    {'A': 0.75, 'B': 0.25}
    """
    return _mean([logprobs.shares() for logprobs in scored])


def _mean(shares: Sequence[Shares]) -> Shares | None:
    if not shares:
        return None
    return {answer: fmean(each[answer] for each in shares) for answer in shares[0]}


def _order(problem: Problem, draws: Sequence[Draw], scored: Scored) -> Order:
    known = frame(problem)
    swapped = known is not None and known.swapped
    answers = as_item(problem, draws).votes
    votes = [
        Vote(turned(answer) if swapped else answer, draw, swapped)
        for answer, draw in zip(answers, draws, strict=True)
        if answer
    ]
    found = [(draw, scored.get((problem.id, draw.key.index))) for draw in draws]
    shares = [
        (draw, _turned(logprobs.shares(), swapped)) for draw, logprobs in found if logprobs is not None
    ]
    return Order(votes, swapped, shares)


def _turned(shares: Shares, swapped: bool) -> Shares:
    return {turned(answer): share for answer, share in shares.items()} if swapped else shares


def _ranked(votes: Counter[str]) -> dict[str, int]:
    return dict(votes.most_common())


def _over_orders(
    orders: Sequence[Order], scale: Scale, calibration: Calibration | None = None
) -> Shares | None:
    """Return the mean over the orders of each one's mean probabilities; None where none was scored."""
    made = []
    for order in orders:
        shares = _mean([each for _, each in order.scored])
        if shares is not None:
            made.append(_calibrated(shares, order.swapped, scale, calibration))
    mean = _mean(made)
    return mean and {answer: mean[answer] for answer in scale.answers}  # in the order of the scale


def _distribution(orders: Sequence[Order], scale: Scale, calibration: Calibration | None) -> Shares:
    """Shares of all votes; calibrated, the mean over the orders: a map is of one order's shares."""
    ballots = [(order.votes, order.swapped) for order in orders if order.votes]
    if calibration is None:
        ballots = [([vote for ballot, _ in ballots for vote in ballot], False)]
    made = []
    for ballot, swapped in ballots:
        votes = Counter(vote.answer for vote in ballot)
        shares = {answer: votes[answer] / len(ballot) for answer in scale.answers}
        made.append(_calibrated(shares, swapped, scale, calibration))
    return {answer: fmean(shares[answer] for shares in made) for answer in scale.answers}


def _calibrated(shares: Shares, swapped: bool, scale: Scale, calibration: Calibration | None) -> Shares:
    if calibration is None:
        return shares
    # a map knows A as what is shown first
    shown = [turned(answer) if swapped else answer for answer in scale.answers]
    mapped = apply(calibration, np.array([[shares[answer] for answer in shown]]))
    return dict(zip(shown, mapped[0].tolist(), strict=True))


def _expected(
    problem: Problem, scale: Scale | None, distribution: Mapping[str, float] | None, votes: Counter[str]
) -> float | None:
    if scale is not None:
        known = frame(problem)
        if known is None or known.form != "rating" or distribution is None:
            return None
        return sum(scale.value(answer) * share for answer, share in distribution.items())
    numbers = [number for answer in votes.elements() if (number := as_fraction(answer)) is not None]
    if not numbers or len(numbers) < votes.total():
        return None
    try:
        return float(sum(numbers) / len(numbers))
    except OverflowError:  # 1e999
        return None


def _consistent(orders: Sequence[Order], by_votes: bool) -> bool | None:
    if len(orders) != 2:
        return None
    if by_votes:
        ballots = [Counter(vote.answer for vote in order.votes) for order in orders]
        winners = [next(iter(_ranked(ballot)), None) for ballot in ballots]
    else:
        means = [_mean([each for _, each in order.scored]) for order in orders]
        winners = [likeliest(mean) if mean else None for mean in means]
    return winners[0] == winners[1] if None not in winners else None


def _rationale(orders: Sequence[Order], winner: str) -> str:
    """Return the likeliest rationale by token that gave the answer; else the one most in its favor.

    "" where only a swapped order has any: it speaks of A for B.
    """
    draws = [
        vote.draw
        for order in orders
        for vote in order.votes
        if vote.answer == winner and not vote.swapped
    ]
    if draws:
        return max(draws, key=_likelihood).score.rationale
    scored = [each for order in orders if not order.swapped for each in order.scored]
    best = max(scored, key=lambda each: each[1].get(winner, 0.0), default=None)
    return best[0].score.rationale if best else ""


def _likelihood(draw: Draw) -> float:
    """Nats a token: summed over tokens, the shortest would be the likeliest."""
    return draw.completion.logprob / max(1, draw.completion.num_tokens)
