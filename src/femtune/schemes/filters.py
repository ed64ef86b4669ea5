"""Rules: what each draw of a problem counts for in the M-step.

A rule is a pure function of one problem's draws in an iteration (in order of their keys) and of the
examples made of them so far; it gives new examples. `chain` makes one rule of several, so that the
filter of the paper reads `chain(accepted(), first())`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice

from femtune.types import Draw, Example, Need, Rule


def chain(*rules: Rule) -> Rule:
    """One rule that applies these from left to right, and needs what any of them does."""
    needs: set[Need] = {need for rule in rules for need in getattr(rule, "needs", ())}

    @needing(*needs)
    def chained(draws: Sequence[Draw], examples: Sequence[Example]) -> Sequence[Example]:
        for rule in rules:
            examples = rule(draws, examples)
        return examples

    return chained


def needing(*needs: Need) -> Callable[[Rule], Rule]:
    """Says what a rule must know of draws: its attribute `needs`, by which it is seen to."""

    def marked(rule: Rule) -> Rule:
        rule.needs = frozenset(needs)  # type: ignore[attr-defined]  # functions take attributes
        return rule

    return marked


def accepted() -> Rule:
    """Keeps the draws that passed the filter r >= accept_at, did not leak, and ended properly."""
    return lambda draws, examples: [e for e in examples if e.draw.accepted]


def first(num: int = 1) -> Rule:
    """Keeps a problem's first `num` by key, not by arrival: batching must not change a result."""
    return lambda draws, examples: list(islice(sorted(examples, key=lambda e: e.draw.key), num))


def last(num: int = 1) -> Rule:
    """Keeps a problem's last `num` by key: of the newest iteration that gave it any."""
    return lambda draws, examples: sorted(examples, key=lambda e: e.draw.key)[-num:]


def distinct() -> Rule:
    """Keeps the first of draws with the same tokens."""

    def rule(draws: Sequence[Draw], examples: Sequence[Example]) -> Sequence[Example]:
        seen: dict[tuple[int, ...], Example] = {}
        for example in examples:
            seen.setdefault(example.draw.completion.tokens, example)
        return list(seen.values())

    return rule


def by_reward() -> Rule:
    """Multiplies each weight by the draw's reward: r(y, y*) itself in place of the paper's filter.

    A draw that ended badly or leaked has no claim to its reward and keeps weight 0, which drops it.
    """

    def rule(draws: Sequence[Draw], examples: Sequence[Example]) -> Sequence[Example]:
        sound = (e for e in examples if e.draw.score.reason in ("", "wrong"))
        weighted = (replace(e, weight=e.weight * e.draw.score.reward) for e in sound)
        return [e for e in weighted if e.weight != 0]

    return rule


def heaviest(num: int) -> Rule:
    """Keeps the `num` examples of most weight; of equal ones, those that come first by key."""
    return lambda draws, examples: sorted(examples, key=lambda e: (-e.weight, e.draw.key))[:num]


def above(least: float) -> Rule:
    """Keeps the examples that have at least this share of the problem's weight."""

    def rule(draws: Sequence[Draw], examples: Sequence[Example]) -> Sequence[Example]:
        total = sum(e.weight for e in examples)
        return [e for e in examples if e.weight >= least * total]

    return rule


def share() -> Rule:
    """Divides each weight by the problem's total, so that every solved problem counts the same."""

    def rule(draws: Sequence[Draw], examples: Sequence[Example]) -> Sequence[Example]:
        total = sum(e.weight for e in examples)
        return [replace(e, weight=e.weight / total) for e in examples] if total else []

    return rule


def weigh(rule: Rule, draws: Sequence[Draw]) -> list[Example]:
    """The examples that a rule makes of one problem's draws, each of weight 1 to begin with."""
    ordered = sorted(draws, key=lambda draw: draw.key)
    return list(rule(ordered, [Example(draw) for draw in ordered]))
