"""What commands print: metrics as lines, and where results are."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from femtune.reporting.terminal import Show, console, literal

WITH = "_with_examples"  # suffix of an untrained model's metrics with worked examples
# measures of the same draws, made from votes and from probabilities
BOTH_WAYS = {
    "by_votes": "by votes",
    "by_probabilities": "by probabilities",
    "calibrated": "calibrated",
}


def show_metrics(metrics: Mapping[str, Any], show: Show) -> None:
    """Print metrics, one per line, with their interval or the reason why they are undefined.

    Metrics with worked examples are in a second column.
    """
    if show == "json":
        print(json.dumps(metrics))
    elif show != "quiet":
        metrics = dict(metrics)
        worth = metrics.pop("rationales", None)
        why = metrics.get("undefined", {})
        if any(name.endswith(WITH) for name in metrics):
            console().print(literal(f"{'':<22}{'without examples':<28}with examples", "bold"))
        for name in metrics:
            if name.endswith(("_ci", f"_ci{WITH}", WITH)) or name == "undefined" or name in BOTH_WAYS:
                continue
            shown = f"undefined: {why[name]}" if name in why else _with_interval(metrics, name)
            if f"{name}{WITH}" in metrics:
                shown = f"{shown:<28}{_with_interval(metrics, name, WITH)}"
            console().print(literal(f"{name:<22}{shown}"))
        for end in ("", WITH):
            ways = {
                title: metrics[name + end] for name, title in BOTH_WAYS.items() if name + end in metrics
            }
            if ways:
                _show_ways(ways, " with examples" if end else "")
        if worth:
            console().print(literal("what the rationales are worth to the base", "bold"))
            show_metrics(worth, show)


def _show_ways(ways: Mapping[str, Mapping[str, Any]], end: str) -> None:
    """Print the measures by votes and by probabilities: side by side, if the terminal has room."""
    if len(ways) > 1 and console().width < 22 + 28 * len(ways):
        for title, each in ways.items():
            _show_ways({title: each}, end)
        return
    heads = "".join(f"{title + end:<28}" for title in ways)
    console().print(literal(f"{'':<22}{heads}".rstrip(), "bold"))
    names = [name for name in next(iter(ways.values())) if not name.endswith("_ci")]
    for name in names:
        if name != "undefined":
            cells = [_with_interval(each, name) for each in ways.values()]
            console().print(literal(f"{name:<22}" + "".join(f"{cell:<28}" for cell in cells).rstrip()))


def _with_interval(metrics: Mapping[str, Any], name: str, suffix: str = "") -> str:
    value, interval = metrics[name + suffix], metrics.get(f"{name}_ci{suffix}")
    is_tiny = isinstance(value, float) and 0 < abs(value) < 5e-4  # a learning rate of 5e-5 is not 0.000
    shown = f"{value:.3{'g' if is_tiny else 'f'}}" if isinstance(value, float) else _in_words(value)
    return shown if interval is None else f"{shown}  {interval[0]:.3f} to {interval[1]:.3f}"


def _in_words(value: Any) -> str:
    """Return a value as a reader's text.

    >>> _in_words({"1": 19, "2": 36}), _in_words({"plain": {"wrong": 41}, "hinted": {"kept": 3}})
    ('1: 19, 2: 36', 'plain: wrong 41; hinted: kept 3')
    >>> _in_words(None), _in_words(True), _in_words(["a", 2]), _in_words("so")
    ('none', 'yes', 'a, 2', 'so')
    """
    if isinstance(value, Mapping):
        if not any(isinstance(each, Mapping) for each in value.values()):
            return ", ".join(f"{name}: {_in_words(each)}" for name, each in value.items()) or "none"
        groups = ((name, _in_words(each).replace(": ", " ")) for name, each in value.items())
        return "; ".join(f"{name}: {said}" for name, said in groups)
    if isinstance(value, list | tuple):
        return ", ".join(map(_in_words, value)) or "none"
    if value is None:
        return "none"
    return ("no", "yes")[value] if isinstance(value, bool) else str(value)


def tell(what: str, where: object) -> None:
    console().print(literal(f"{what}: {where}"), soft_wrap=True)


def write_report(place: Path, show: Show) -> None:
    """Write the report of a finished run; only warn if that fails, as the run has succeeded."""
    try:
        from femtune.reporting.page.render import report as run

        written = run([place])
    except Exception as error:
        logging.getLogger("femtune").warning(f"the report could not be written: {error}")
        return
    if show in ("auto", "lines"):
        tell("report", written)
