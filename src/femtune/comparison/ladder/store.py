"""What a ladder stores: a file for each finished rung, what was spent, and its settings.

rungs/votes.json     accuracy, measures, tokens, and each held-out problem's score; written whole
spent.json           seconds by rung, of attempts that were stopped too; a kill loses its attempt's
settings.json        by which the same command knows its ladder
ladder.json          table, pairs and verdict, once all rungs are done that are to be run
votes/, fem/, ...    the run of each rung
"""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from femtune._util.atomic_files import write_json
from femtune.comparison.ladder.cost import Prices, Tokens
from femtune.comparison.ladder.rungs import Measured
from femtune.errors import RunError
from femtune.metric_types import EvaluationMetrics, interval

SETTINGS = "settings.json"


@dataclass(frozen=True, kw_only=True)
class Rung:
    """A finished rung."""

    name: str
    metrics: EvaluationMetrics
    scores: Mapping[str, float] = field(repr=False)  # by id of the held-out problem
    setup: Tokens  # spent once, on training problems
    use: Tokens  # spent on the held-out problems
    seconds: float
    processor_s: float
    detail: Mapping[str, Any] = field(default_factory=dict)

    @property
    def accuracy(self) -> float:
        return self.metrics["accuracy"]

    @property
    def accuracy_ci(self) -> tuple[float, float] | None:
        return interval(self.metrics, "accuracy")

    @property
    def tokens(self) -> Tokens:
        return self.setup + self.use


def rung_file(folder: Path, name: str) -> Path:
    """Return where a rung is stored."""
    return folder / "rungs" / f"{name}.json"


def save_rung(folder: Path, rung: Rung) -> None:
    """Store a finished rung."""
    path = rung_file(folder, rung.name)
    path.parent.mkdir(exist_ok=True)
    write_json(path, asdict(rung))


def read_rung(folder: Path, name: str) -> Rung | None:
    """Return a stored rung, or None. Raises RunError if its file is damaged."""
    path = rung_file(folder, name)
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text())
        setup, use = Tokens(**found.pop("setup")), Tokens(**found.pop("use"))
        return Rung(setup=setup, use=use, **found)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise RunError(
            f"{path} can't be read ({error}). Remove it: the same command makes it again from the "
            "rung's run."
        ) from error


def finished(name: str, measured: Measured, spent: tuple[float, float], earlier: Rung | None) -> Rung:
    """Make a rung of what was measured; the model or the draws of an earlier rung cost it, too.

    `measured.use` has the tokens of draws that it shares with the earlier rung already.
    """
    setup = measured.setup if earlier is None else measured.setup + earlier.setup
    seconds, processor_s = spent
    return Rung(
        name=name,
        metrics=measured.metrics,
        scores=dict(measured.scores),
        setup=setup,
        use=measured.use,
        seconds=round(seconds + (earlier.seconds if earlier else 0.0), 1),
        processor_s=round(processor_s + (earlier.processor_s if earlier else 0.0), 1),
        detail=dict(measured.detail),
    )


class Spent:
    """Wall and processor seconds by rung, over all attempts."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "spent.json"
        self._by_rung: dict[str, list[float]] = {}
        if self._path.exists():
            self._by_rung = json.loads(self._path.read_text())

    @property
    def seconds(self) -> float:
        """Return the wall seconds of all rungs."""
        return sum(seconds for seconds, _ in self._by_rung.values())

    def of(self, name: str) -> tuple[float, float]:
        """Return a rung's wall and processor seconds."""
        seconds, processor_s = self._by_rung.get(name, [0.0, 0.0])
        return seconds, processor_s

    @contextmanager
    def counting(self, name: str) -> Iterator[None]:
        """Add the seconds of the block to a rung, however the block ends."""
        before = self.of(name)
        begun = time.perf_counter(), _processor_s()
        try:
            yield
        finally:
            passed = time.perf_counter() - begun[0], _processor_s() - begun[1]
            self._by_rung[name] = [a + b for a, b in zip(before, passed, strict=True)]
            write_json(self._path, self._by_rung)


def _processor_s() -> float:
    """Return the seconds of this process's threads and of its ended children on processors."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def stored_settings(folder: Path) -> dict[str, Any]:
    """Return a ladder's stored settings; {} of a new one."""
    path = folder / SETTINGS
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def check_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Store a ladder's settings, or compare with those stored. Raises RunError if they differ."""
    asked = json.loads(json.dumps(settings))
    stored = stored_settings(folder)
    if not stored:
        write_json(folder / SETTINGS, asked)
        return
    names = [name for name in {**stored, **asked} if stored.get(name) != asked.get(name)]
    if names:
        shown = "; ".join(f"{name} {stored.get(name)!r} -> {asked.get(name)!r}" for name in names[:4])
        raise RunError(
            f"{folder} holds a ladder of other settings ({shown}). Give the same settings to resume it, "
            "or another --output-dir."
        )


def row(rung: Rung, prices: Prices) -> dict[str, Any]:
    """Return a rung as ladder.json has it, without its scores."""
    tokens = rung.tokens
    return {
        "name": rung.name,
        "accuracy": rung.accuracy,
        "accuracy_ci": rung.accuracy_ci,
        "tokens": asdict(tokens),
        "setup": asdict(rung.setup),
        "use": asdict(rung.use),
        "passes": tokens.passes,
        "money": prices.money(tokens),
        "seconds": rung.seconds,
        "processor_s": rung.processor_s,
        "metrics": rung.metrics,
        "detail": dict(rung.detail),
    }


def costs(rungs: Sequence[Rung], prices: Prices) -> list[float]:
    """Return what orders the rungs: money if each has a price, else passes of tokens."""
    money = [prices.money(rung.tokens) for rung in rungs]
    if all(each is not None for each in money):
        return [each for each in money if each is not None]
    return [float(rung.tokens.passes) for rung in rungs]
