"""The table of a ladder on screen: a line for each finished rung, and the one that runs below."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from femtune.comparison.ladder.cost import Prices
from femtune.comparison.ladder.store import Rung
from femtune.loop import Progress
from femtune.metric_types import IterationMetrics
from femtune.reporting.terminal import Bars, Lines, Quiet, Screen, Show, console, literal, screen

_NAME, _ACCURACY, _NUMBER = 18, 21, 8  # widths of columns


def compact(number: float) -> str:
    """Return a count in few characters.

    >>> [compact(n) for n in (0, 950, 12_345, 999_999, 45_600_000, 3.2e9)]
    ['0', '950', '12.3k', '1.00M', '45.6M', '3.20G']
    """
    rounded = float(f"{number:.3g}")
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if rounded >= size:
            value = rounded / size
            return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f}{unit}"
    return f"{number:.0f}"


def share(value: float) -> str:
    """Return a share without its leading 0.

    >>> share(0.42), share(1.0), share(0.02)
    ('.420', '1.000', '.020')
    """
    return f"{value:.3f}".removeprefix("0")


def signed(value: float) -> str:
    """Return a difference of shares with its sign.

    >>> signed(0.05), signed(-0.1), signed(0.0)
    ('+.050', '-.100', '.000')
    """
    text = share(abs(value))
    return text if text == ".000" else ("+" if value > 0 else "-") + text


def ratio(a: float, b: float) -> str:
    """Return how many times the cost of one is that of another, as the end of a sentence.

    >>> ratio(5000, 100), ratio(150, 100), ratio(1, 0)
    (', at 50 times the cost', ', at 1.5 times the cost', '')
    """
    if not b or not a:
        return ""
    times = a / b
    return f", at {times:.0f} times the cost" if times >= 10 else f", at {times:.2g} times the cost"


def _columns(prices: Prices, width: int) -> list[str]:
    """Return the columns of numbers that fit: 78 characters without money, all of them from 94 on."""
    names = ["written", "read", "scored", "trained", "CPU s"]
    if width >= 94:
        return [*names, "seconds", *(["money"] if prices.known else [])]
    return [*names[:2], "trained", "CPU s", "money"] if prices.known else names


def titles(prices: Prices, width: int) -> str:
    """Return the heads of the table."""
    heads = "".join(f"{name:>{_NUMBER}}" for name in _columns(prices, width))
    return f"{'rung':<{_NAME}}{'accuracy (95%)':<{_ACCURACY}}{heads}"


def line(rung: Rung, prices: Prices, width: int) -> str:
    """Return a rung as a line of the table."""
    low_high = rung.accuracy_ci
    interval = f" ({share(low_high[0])} to {share(low_high[1])})" if low_high else ""
    tokens, money = rung.tokens, prices.money(rung.tokens)
    values = {
        "written": compact(tokens.generated),
        "read": compact(tokens.prompt),
        "scored": compact(tokens.scored),
        "trained": compact(tokens.trained),
        "CPU s": compact(rung.processor_s) if rung.processor_s >= 100 else f"{rung.processor_s:.1f}",
        "seconds": compact(rung.seconds) if rung.seconds >= 100 else f"{rung.seconds:.1f}",
        "money": "–" if money is None else f"{money:.2g}",
    }
    cells = "".join(f"{values[name]:>{_NUMBER}}" for name in _columns(prices, width))
    return f"{rung.name:<{_NAME}}{share(rung.accuracy) + interval:<{_ACCURACY}}{cells}"


class _RungBars(Bars):
    """Bars of one rung: its name before the phase, and no lines of iterations."""

    def __init__(self, bars: Screen, name: str) -> None:
        self._name = name
        super().__init__(bars)
        self.phase("begins", 0, 0)

    def phase(self, name: str, iteration: int, total: int) -> None:
        super().phase(name, iteration, total)
        number = f" {iteration}" if iteration else ""
        self._bars.update(self._task, description=f"{self._name}: {name}{number}")

    def measured(self, iteration: int, metrics: IterationMetrics) -> None: ...


class _RungLines(Lines):
    """A short line for each iteration of a rung."""

    def __init__(self, name: str) -> None:
        self._name = name

    def measured(self, iteration: int, metrics: IterationMetrics) -> None:
        if iteration and (found := metrics.get("evaluation")):
            said = f"  {self._name}, iteration {iteration}: accuracy {share(found['accuracy'])}"
            console().print(literal(said, "dim"))


class Board:
    """Show a ladder while it runs."""

    def __init__(self, show: Show, prices: Prices) -> None:
        self._live = show == "auto" and console().is_terminal
        self._lines = self._live or show in ("auto", "lines")
        self._prices = prices

    def say(self, said: str, style: str = "") -> None:
        """Print a line, or a paragraph that is wrapped at words."""
        if self._lines:
            console().print(literal(said, style))

    def begin(self) -> None:
        self.say(titles(self._prices, console().width), "bold")

    def add(self, rung: Rung) -> None:
        self.say(line(rung, self._prices, console().width))

    @contextmanager
    def running(self, name: str) -> Iterator[Progress]:
        """Show a rung at work, below the finished ones."""
        if self._live:
            with screen() as bars:
                yield _RungBars(bars, name)
        else:
            yield _RungLines(name) if self._lines else Quiet()
