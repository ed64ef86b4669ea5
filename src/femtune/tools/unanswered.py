"""What draws have in place of an answer that can be used."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from femtune.data.tasks.frames import scale_of
from femtune.types import Draw, Problem


def form_of(draw: Draw, problem: Problem | None) -> tuple[str, str]:
    """Return the form of a draw without a usable answer, and a text that shows it."""
    text, score = draw.completion.text.strip(), draw.score
    if score.reason in ("engine_failed", "reward_failed", "hint_leak"):
        said = {"hint_leak": "mentions the hint"}.get(
            score.reason, f"the {score.reason}".replace("_", " ")
        )
        return said, text if score.reason == "hint_leak" else score.detail
    if is_truncated(draw):
        if "<think" in text and "</think" not in text:
            return "truncated while thinking", _tail(text)
        return "truncated, repeats itself" if repeats_itself(text) else "truncated", _tail(text)
    if not text:
        return "empty", ""
    scale = scale_of(problem) if problem is not None else None
    if score.answer and scale is not None and scale.read(score.answer) is None:
        return "an answer off the scale", score.answer
    known = {
        "two different answers": "two different answers",
        "the answer is empty": "no value, or the placeholder",
        "no rationale before the answer": "an answer without reasons",
    }
    if score.detail in known:
        return known[score.detail], _tail(text)
    for form, pattern in _WRITTEN:
        if match := pattern.search(text):
            return form, text[match.start() :]
    return "other text", _tail(text)


def repeats_itself(text: str) -> bool:
    """Return True if the end of a text occurs in it at least three times."""
    end = " ".join(text.split())[-24:]
    return len(end) == 24 and " ".join(text.split()).count(end) >= 3


def _tail(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 60 else f"...{line[-57:]}"


def written(draws: Sequence[Draw], problems: Sequence[Problem]) -> list[tuple[str, int, str]]:
    """Return the forms of draws without a usable answer, with a count and an example for each."""
    by_id = {problem.id: problem for problem in problems}
    counts, shown = Counter[str](), dict[str, str]()
    for draw in draws:
        problem = by_id.get(draw.key.problem_id)
        scale = scale_of(problem) if problem else None
        off = bool(scale and draw.score.answer and scale.read(draw.score.answer) is None)
        if draw.score.reason in ("", "wrong") and not off:
            continue
        form, text = form_of(draw, problem)
        counts[form] += 1
        shown.setdefault(form, text)
    return [(form, count, shown[form]) for form, count in counts.most_common()]


def is_truncated(draw: Draw) -> bool:
    return draw.completion.finish_reason == "length"


_FORMATS = {r"\boxed{...}": "boxed", "#### ...": "hash", "<answer>": "tag", "[[...]]": "bracket"}

_WRITTEN = (
    (r"\boxed{...}", re.compile(r"\\boxed\s*\{")),
    ("#### ...", re.compile(r"####\s*\S")),
    ("<answer>", re.compile("<answer>")),
    ("[[...]]", re.compile(r"\[\[[^\]]+\]\]")),
    ("a JSON object", re.compile(r'\{\s*"')),
    ('"Answer:" and more after it', re.compile(r"(?i)\banswer\W{0,4}[:：]")),
    (
        'a sentence, "The answer is ..."',
        re.compile(r"(?i)\b(?:answer|rating|score|choice)\b[^.\n]{0,40}?\b(?:is|would be)\b"),
    ),
    ("a list", re.compile(r"(?ms)^\s*(?:\d+[.)]|[-*•])\s.*^\s*(?:\d+[.)]|[-*•])\s")),
    ("a number alone", re.compile(r"\A\W*\d[\d.,/%]*\W*\Z")),
)


def refused(draws: Sequence[Draw]) -> list[Draw]:
    """Return the draws that can't be graded as right or wrong."""
    return [draw for draw in draws if draw.score.reason not in ("", "wrong")]
