"""The rule that chooses a rung, a function of the table alone.

Rung r beats rung c if it is more accurate by more than the margin, and if the paired difference is
told apart from 0 at 5%, after Holm's correction over all rungs that c is compared with.

The rungs are gone through by cost, the cheapest first. The first one that no other rung beats, and that
is more accurate than the majority, is chosen; the majority itself, if nothing beats it.

So a dearer rung is looked at only once the cheaper ones are beaten: hypotheses in an order that is fixed
in advance, each tested at 5%, keep the chance of going on too far at 5% for the whole ladder (the
fixed-sequence procedure: Maurer, Hothorn, Lehmacher 1995). The order depends on costs, not on accuracy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from femtune.comparison.ladder.options import LadderOptions
from femtune.evaluation.paired import PairedDifference, holm

ALPHA = 0.05
MAJORITY = "majority"

Pairs = Mapping[tuple[str, str], PairedDifference]  # (a, b): the accuracy of a less that of b


@dataclass(frozen=True)
class Entry:
    """A rung as the rule sees it."""

    name: str
    accuracy: float
    cost: float  # money if each rung has a price, else passes of tokens: see cost.py


@dataclass(frozen=True)
class Decision:
    """The chosen rung, and the adjusted p-values behind the choice."""

    chosen: str
    beaten: Mapping[str, tuple[str, ...]]  # by rung that was passed over: the rungs that beat it
    p_values: Mapping[str, float]  # of each other rung against the chosen one, by Holm


def decide(entries: Sequence[Entry], pairs: Pairs, margin: float = LadderOptions.margin) -> Decision:
    """Choose a rung by the rule above.

    `pairs` holds each pair of rungs once, in either order. On equal costs the order of `entries` counts.
    """
    floor = next((each.accuracy for each in entries if each.name == MAJORITY), None)
    beaten: dict[str, tuple[str, ...]] = {}
    for entry in sorted(entries, key=lambda each: each.cost):
        p_values = adjusted(entry.name, entries, pairs)
        winners = tuple(
            name
            for name, p in p_values.items()
            if p < ALPHA and _difference(name, entry.name, pairs) > margin
        )
        candidate = entry.name == MAJORITY or floor is None or entry.accuracy > floor
        if candidate and not winners:
            return Decision(entry.name, beaten, p_values)
        beaten[entry.name] = winners
    raise AssertionError("no rung beats the most accurate one")  # as margin >= 0


def adjusted(name: str, entries: Sequence[Entry], pairs: Pairs) -> dict[str, float]:
    """Return the p-value of each other rung against this one, adjusted by Holm over them."""
    others = [each.name for each in entries if each.name != name]
    return dict(zip(others, holm([_pair(o, name, pairs).p_value for o in others]), strict=True))


def _difference(a: str, b: str, pairs: Pairs) -> float:
    return pairs[a, b].difference if (a, b) in pairs else -pairs[b, a].difference


def _pair(a: str, b: str, pairs: Pairs) -> PairedDifference:
    return pairs[a, b] if (a, b) in pairs else pairs[b, a]
