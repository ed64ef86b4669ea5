"""Tables and notes of what another filter would have kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def table(report: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return columns and rows: all problems, what the run kept, what the changes keep."""
    return ["", "problems", "stored", "refiltered"], [*_overall(report), *_groups(report)]


def _overall(report: Mapping[str, Any]) -> Iterator[list[str]]:
    sides = [report["stored"], report["refiltered"]]
    num = f"{sides[0]['num_problems']:,}"
    yield ["kept", num, *(f"{side['num_kept']:,} ({side['kept_share']:.3f})" for side in sides)]
    yield ["examples", "", *(f"{side['num_examples']:,}" for side in sides)]
    for prompt in sides[0]["reasons"]:
        counts = [side["reasons"].get(prompt, {}) for side in sides]
        for reason in dict.fromkeys((*counts[0], *counts[1])):
            yield [f"{prompt} draws: {reason}", "", *(f"{count.get(reason, 0):,}" for count in counts)]
    if "num_rationales" in sides[0]:
        yield [
            "kept rationales that were scored",
            "",
            *(f"{side['num_rationales']:,}" for side in sides),
        ]
        for name, title in (
            ("rationale_gain", "  what they add to log p(y* | x), nats"),
            ("helpful_share", "  share that adds to it"),
        ):
            values = [side[name] for side in sides]
            yield [title, "", *("-" if value is None else f"{value:.3f}" for value in values)]
    scores = [side["kept_scores"] for side in sides]
    if all(scores):
        for name, shift, title in _MEASURES:
            shown = [_shifted(side, f"kept_{name}", shift) for side in scores]
            yield [title.format(**scores[0]), f"{scores[0][name]:.3f}", *shown]
        means = [side["mean_trained_score"] for side in sides]
        shown = [f"{mean:.3f}" if mean is not None else "-" for mean in means]
        yield ["human score, mean by weight", f"{scores[0]['score_mean']:.3f}", *shown]


def _shifted(scores: Mapping[str, Any], name: str, shift: str) -> str:
    """Return a measure of the kept problems, and the interval of its difference to all."""
    if scores[name] is None:
        return "-"
    low, high = scores.get(f"{shift}_ci", (None, None))
    return f"{scores[name]:.3f}" + (f" ({low:+.3f} to {high:+.3f})" if low is not None else "")


def _groups(report: Mapping[str, Any]) -> Iterator[list[str]]:
    sides = [report["stored"], report["refiltered"]]
    for kind, groups in sides[0]["kept_by"].items():
        yield [f"kept, by {kind}", "", "", ""]
        for name, group in groups.items():
            found = [side["kept_by"].get(kind, {}).get(name) for side in sides]
            yield [f"  {name}", f"{group['num_problems']:,}", *map(_with_interval, found)]
    data = report["problems_by_answer"]
    if "answer" in sides[0]["kept_by"]:
        yield ["share of the weight, by answer", "", "", ""]
        for name in sides[0]["kept_by"]["answer"]:
            if name in data:
                shares = [side["weight_by_answer"].get(name, 0.0) for side in sides]
                yield [f"  {name}", f"{data[name]:.3f}", *(f"{share:.3f}" for share in shares)]


def _with_interval(group: Mapping[str, Any] | None) -> str:
    if group is None:
        return "-"
    low, high = group["kept_share_ci"]
    return f"{group['kept_share']:.3f} ({low:.3f} to {high:.3f})"


def notes(report: Mapping[str, Any]) -> Iterator[str]:
    """Yield the notes needed to read the table."""
    if report["not_asked"]:
        why = "this E-step was stopped before its end"
        why += ", or did not ask them" if report["alike"] else ""
        yield f"{report['not_asked']:,} problems have no draws: {why}."
    if report["alike"]:
        yield (
            "weights are equal over the iteration's own right draws: the run's own weights depend on "
            "log-probabilities, or on remembered draws."
        )
    if report["asked_again"]:
        yield (
            f"{report['asked_again']:,} problems would have been asked again: the other filter refuses "
            "the draw at which the run stopped asking. A run with it may keep more than is shown."
        )
    if report["left_out"]:
        yield f"{report['left_out']:,} stored draws would not have been asked for; they are left out."
    if clipped := report["refiltered"].get("balance_clipped"):
        yield (
            f"answers {', '.join(clipped)} are too rare among what is kept: their factor is held at "
            f"{max(report['refiltered']['balance'].values()):g}."
        )
    lost = report["problems_by_answer"].keys() - report["refiltered"]["weight_by_answer"].keys()
    if lost and "balance" in report["refiltered"]:
        yield f"nothing is kept of the answers {', '.join(sorted(lost)[:5])}: no balance puts them back."


_MEASURES = (  # of kept_scores: the measure, its shift, and its title
    ("score_mean", "mean_shift", "human score, mean"),
    ("score_sd", "sd_shift", "human score, spread (sd)"),
    ("mode_share", "mode_shift", "human score {mode}, its share"),
)
