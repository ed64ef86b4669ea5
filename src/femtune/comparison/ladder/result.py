"""The result of a ladder: its table, its verdict in two sentences, and the file that holds both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from femtune.comparison.ladder.board import line, ratio, share, signed, titles
from femtune.comparison.ladder.cost import Prices
from femtune.comparison.ladder.differences import Against
from femtune.comparison.ladder.rungs import RUNGS, TRAINED
from femtune.comparison.ladder.store import Rung, costs, row
from femtune.comparison.ladder.verdict import ALPHA, MAJORITY, Decision, Entry, Pairs

FILE = "ladder.json"


@dataclass(frozen=True, kw_only=True, repr=False)
class LadderResult:
    """Rungs from the cheapest to training, and the one to use. Its repr is what the CLI prints."""

    folder: Path
    """Folder with the run of each rung."""
    stored: Path
    """Table, pairs and verdict as ladder.json."""
    chosen: str
    """Name of the chosen rung."""
    verdict: str
    """Two sentences, by the rule in docs/guides/ladder.md."""
    command: str
    """Command of `predict` that answers new items like the chosen rung; "" if only `answer` does."""
    table: Mapping[str, Mapping[str, Any]] = field(repr=False)
    """By rung: accuracy, accuracy_ci, tokens, passes, money, seconds, processor_s, and so on."""
    not_run: Mapping[str, str] = field(repr=False)
    """Rungs that were not run, with the reason."""
    text: str = field(repr=False)
    """What the command line prints of it."""
    answers: Path | None = None
    """File with answers to the new items that were given; None without such items."""

    def __repr__(self) -> str:
        return self.text


def entries(rungs: Sequence[Rung], prices: Prices) -> list[Entry]:
    """Return the rungs as the rule sees them."""
    by_cost = zip(rungs, costs(rungs, prices), strict=True)
    return [Entry(rung.name, rung.accuracy, cost) for rung, cost in by_cost]


def sentences(
    rungs: Sequence[Rung],
    decision: Decision,
    compared: Sequence[Against],
    prices: Prices,
    margin: float,
) -> tuple[str, str]:
    """Return the verdict: what to use, and the comparison nearest to changing it."""
    by_name = {rung.name: rung for rung in rungs}
    cost = {entry.name: entry.cost for entry in entries(rungs, prices)}
    chosen, names = by_name[decision.chosen], {*by_name}
    trained = bool(names & {*TRAINED})
    beyond = f"by more than {share(margin)}"
    if chosen.name == MAJORITY:
        first = "Do not train: nothing" if trained else "Of what was run, nothing"
        first += " beats the majority."
    else:
        advice = "Train" if chosen.name in TRAINED else "Do not train" if trained else "So far"
        first = (
            f"{advice}: use {chosen.name}, accuracy {share(chosen.accuracy)} on "
            f"{len(chosen.scores)} held-out problems; no other rung beats it {beyond}."
        )
    if not compared:
        return first, "It is the only rung."
    best = max(compared, key=lambda each: each.difference)
    if best.difference > 0:
        times = ratio(cost[best.name], cost[chosen.name])
        return first, f"The most accurate rung, {best.name}, is ahead by {_told(best)}{times}."
    cheaper = [each for each in compared if cost[each.name] < cost[chosen.name]]
    near = max(cheaper or compared, key=lambda each: each.difference)
    which = "cheaper" if cheaper else "other"
    times = ratio(cost[chosen.name], cost[near.name])
    less = Against(near.name, -near.difference, -near.high, -near.low, near.p_value)
    return first, f"It is ahead of the best {which} rung, {near.name}, by {_told(less)}{times}."


def _told(found: Against) -> str:
    """Return a difference with its interval, and a word where it may be 0."""
    interval = f"{signed(found.low)} to {signed(found.high)}"
    clear = "" if found.p_value < ALPHA else ": not told apart"
    return f"{share(abs(found.difference))} ({interval}{clear})"


def as_stored(
    rungs: Sequence[Rung],
    pairs: Pairs,
    decision: Decision,
    compared: Sequence[Against],
    prices: Prices,
    **more: Any,
) -> dict[str, Any]:
    """Return the content of ladder.json."""
    return {
        **more,
        "prices": asdict(prices),
        "cost": "money" if prices.known and _all_priced(rungs, prices) else "passes",
        "rungs": [{"title": RUNGS[rung.name], **row(rung, prices)} for rung in rungs],
        "pairs": [{"a": a, "b": b, **asdict(found)} for (a, b), found in pairs.items()],
        "chosen": decision.chosen,
        "beaten": {name: list(winners) for name, winners in decision.beaten.items()},
        "against_chosen": [asdict(each) for each in compared],
    }


def _all_priced(rungs: Sequence[Rung], prices: Prices) -> bool:
    return all(prices.money(rung.tokens) is not None for rung in rungs)


def table_lines(rungs: Sequence[Rung], prices: Prices, width: int = 80) -> list[str]:
    """Return the table as lines of text."""
    return [titles(prices, width), *(line(rung, prices, width) for rung in rungs)]


def difference_lines(chosen: str, compared: Sequence[Against]) -> list[str]:
    """Return each other rung less the chosen one, with the interval and what it says."""
    if not compared:
        return []
    lines = [f"{'less ' + chosen:<24} {'difference':>10}   {'by Holm, 95% for all together':<20}"]
    for each in compared:
        says = "not told apart"
        if each.p_value < ALPHA:
            says = "better" if each.difference > 0 else "worse"
        bounds = f"{signed(each.low)} to {signed(each.high)}"
        lines.append(f"{each.name:<24} {signed(each.difference):>10}   {bounds:<20} {says}")
    return lines
