"""Rules: what each draw of a problem counts for in the M-step.

A rule is a pure function of one problem's draws in an iteration (in order of their keys) and of the
examples made of them so far; it returns new examples. It is a frozen dataclass, so that a run stores it
as data. `Chain` makes one rule of several: the filter of the paper is `Chain(Accepted(), First())`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from femtune.types import Draw, Example, Need, Rule, Tokens, needs_of


@dataclass(frozen=True, init=False)
class Chain:
    """Apply rules from left to right; needs what any of them needs. A chain in a chain is unfolded."""

    rules: tuple[Rule, ...]

    def __init__(self, *rules: Rule) -> None:
        object.__setattr__(self, "rules", tuple(each for rule in rules for each in rules_of(rule)))

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset[Need]().union(*map(needs_of, self.rules))

    def __call__(self, draws: Sequence[Draw], examples: Sequence[Example]) -> Sequence[Example]:
        for rule in self.rules:
            examples = rule(draws, examples)
        return examples


def rules_of(rule: Rule | None) -> Iterator[Rule]:
    """Yield the rules that a rule is made of: those of a chain, else the rule itself."""
    if isinstance(rule, Chain):
        yield from rule.rules
    elif rule is not None:
        yield rule


@dataclass(frozen=True)
class Accepted:
    """Keep the draws that passed the filter r >= accept_at, did not leak, and ended properly."""

    def __call__(self, draws: Sequence[Draw], examples: Sequence[Example]) -> Sequence[Example]:
        return [e for e in examples if e.draw.accepted]


@dataclass(frozen=True)
class First:
    """Keep a problem's first `num` by key, not by arrival: batching must not change a result."""

    num: int = 1

    def __call__(self, draws: Sequence[Draw], examples: Sequence[Example]) -> Sequence[Example]:
        return list(islice(sorted(examples, key=lambda e: e.draw.key), self.num))


@dataclass(frozen=True)
class Last:
    """Keep a problem's last `num` by key: of the newest iteration that gave it any."""

    num: int = 1

    def __call__(self, draws: Sequence[Draw], examples: Sequence[Example]) -> Sequence[Example]:
        return sorted(examples, key=lambda e: e.draw.key)[-self.num :]


@dataclass(frozen=True)
class Distinct:
    """Keep the first of draws with the same tokens, or the same text of a `text_only` engine."""

    def __call__(self, draws: Sequence[Draw], examples: Sequence[Example]) -> Sequence[Example]:
        seen: dict[Tokens | str, Example] = {}
        for example in examples:
            seen.setdefault(example.draw.completion.sampled, example)
        return list(seen.values())


@dataclass(frozen=True)
class ByReward:
    """Multiply each weight by the draw's reward: r(y, y*) itself in place of the paper's filter.

    A draw that ended badly or leaked has no claim to its reward and gets weight 0, which drops it.
    """

    def __call__(self, draws: Sequence[Draw], examples: Sequence[Example]) -> Sequence[Example]:
        sound = (e for e in examples if e.draw.score.reason in ("", "wrong"))
        weighted = (replace(e, weight=e.weight * e.draw.score.reward) for e in sound)
        return [e for e in weighted if e.weight != 0]


@dataclass(frozen=True)
class Share:
    """Divide each weight by the problem's total, so that every solved problem counts the same."""

    def __call__(self, draws: Sequence[Draw], examples: Sequence[Example]) -> Sequence[Example]:
        total = sum(e.weight for e in examples)
        return [replace(e, weight=e.weight / total) for e in examples] if total else []


paper_filter = Chain(Accepted(), First())


def weigh(rule: Rule, draws: Sequence[Draw]) -> list[Example]:
    """Return the examples that a rule makes of one problem's draws, each of weight 1 to begin with."""
    ordered = sorted(draws, key=lambda draw: draw.key)
    return list(rule(ordered, [Example(draw) for draw in ordered]))
