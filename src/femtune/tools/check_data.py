"""What a check finds in the data alone: rows left out, held-out problems, labels, correct answers."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from femtune._util.text import brief
from femtune.config import Train
from femtune.data.problems import GROUP
from femtune.data.prompts import prompt_text
from femtune.data.tasks.frames import frame, scale_of
from femtune.data.tasks.judge import ROUNDED
from femtune.data.tasks.labels import SOFT
from femtune.evaluation.chance import guessed_share, is_closed, plain_attempts
from femtune.reporting.terminal import sparkline
from femtune.resolve import TaskInputs
from femtune.types import Problem, Scheme

MOST_LABELS = 11  # the largest scale that is shown as a histogram
FEW_HELD_OUT = 50  # items; an accuracy of fewer is measured to worse than 14 points
LONG_ANSWER = 100  # characters; few models give so long an answer word for word
OWN_COLUMNS = {"frame", "ratings", ROUNDED, SOFT, GROUP}  # columns that femtune adds to problems


@dataclass(frozen=True)
class Finding:
    """One result of a check."""

    what: str
    found: str
    warning: str = ""  # what to do, if something looks wrong
    details: tuple[str, ...] = ()  # further lines
    error: str = ""  # what to do, if training can't work


def data_findings(
    problems: Sequence[Problem],
    num_test: int,
    asked: TaskInputs[Train],
    scheme: Scheme,
    num_dev: int = 0,
) -> Iterator[Finding]:
    """Yield what the data show; there are `num_test` held-out items, `num_dev` development problems."""
    settings = asked.settings
    names = {name for problem in problems[:100] for name in problem.columns} - OWN_COLUMNS
    columns = ", ".join(sorted(names)) or "none"
    yield Finding("problems", f"{len(problems):,}; further columns: {columns}")
    yield from _of_rows(asked)
    yield _of_held_out(num_test)
    yield _of_dev(num_dev)
    yield from _of_answers(problems, settings, scheme)
    earned = f"every correct answer earns at least {settings.accept_at:g}"
    unknown = "correct answers were not checked against it (check_gold is off)"
    yield Finding("reward", f"{settings.reward}; {earned if settings.check_gold else unknown}")


def held_out_items(test: Sequence[Problem]) -> int:
    """Return the number of different items among problems: a pair in both orders is one."""
    frames = [(problem, frame(problem)) for problem in test]
    return len({(known.item if known else "") or problem.id for problem, known in frames})


def _of_rows(asked: TaskInputs[Train]) -> Iterator[Finding]:
    report = asked.report
    if report.skipped:
        share = report.num_skipped / max(1, report.num_rows)
        found = f"{report.num_skipped:,} of {report.num_rows:,} ({share:.0%})"
        said = "Check the columns, or correct the rows."
        yield Finding("rows left out", found, said, tuple(report.reasons()))
    for coding in report.codings:
        yield Finding("coding", coding)
    if asked.rounded:
        yield Finding(
            "rounded", f"{asked.rounded:,} problems have a score between two points of the scale"
        )


def _of_held_out(num_test: int) -> Finding:
    if not num_test:
        return Finding("held out", "none: no accuracy is measured")
    half = 1.96 * math.sqrt(0.25 / num_test)
    return Finding(
        "held out",
        f"{num_test:,}; an accuracy of 50% is measured to ±{half:.0%}",
        "A smaller gain can't be told from chance. Hold out more (--eval-share, --eval-data)."
        * (num_test < FEW_HELD_OUT),
    )


def _of_dev(num_dev: int) -> Finding:
    chosen = f"{num_dev:,} problems of the training data choose the best iteration"
    return Finding("development", chosen if num_dev else "none: the best model is the last")


def _of_answers(problems: Sequence[Problem], settings: Train, scheme: Scheme) -> Iterator[Finding]:
    counts = Counter(problem.answer for problem in problems)
    answers = counts.most_common()
    shown = ", ".join(f"{brief(answer, 20)} ({count})" for answer, count in answers[:6])
    share = answers[0][1] / len(problems)
    one_sided = share > 0.8 and len(problems) > 20
    yield Finding(
        "answers",
        f"{len(answers):,} different: {shown}" + (", ..." if len(answers) > 6 else ""),
        f"{share:.0%} are the same: a model that always gives this answer is right that often."
        * one_sided,
    )
    if is_closed(problems):
        yield from _of_labels(problems, counts, settings, scheme)
    else:
        yield from _of_solutions(problems)
    yield from _of_repeats(problems)


def _of_labels(
    problems: Sequence[Problem], counts: Counter[str], settings: Train, scheme: Scheme
) -> Iterator[Finding]:
    if len(labels := labels_of(problems)) <= MOST_LABELS:
        bars = sparkline([counts[label] / len(problems) for label in labels])
        parts = (f"{brief(label, 12)} {counts[label] / len(problems):.0%}" for label in labels)
        yield Finding("labels", f"{bars}  {', '.join(parts)}")
    [(most, number)] = counts.most_common(1)
    share = number / len(problems)
    yield Finding("majority", f"always answering {brief(most, 20)} is right for {share:.0%}")
    once = guessed_share(counts.elements())
    found = f"{once:.0%} of guesses that follow the labels' frequencies"
    attempts = plain_attempts(replace(scheme, accept_at=settings.accept_at))
    if attempts > 1 and settings.soft_accept is None:
        kept = guessed_share(counts.elements(), attempts)
        found += f"; {attempts} attempts keep {kept:.0%} of the problems by luck"
    yield Finding("right by luck", found)


_SOLUTION = re.compile(r"\n|\\boxed|####|\b(answer|result) (is|=)|\bso\b.*=", re.IGNORECASE)


def _of_solutions(problems: Sequence[Problem]) -> Iterator[Finding]:
    """Report correct answers that look like whole solutions, which no answer will match."""
    whole = [
        problem.answer
        for problem in problems
        if len(problem.answer) > LONG_ANSWER or _SOLUTION.search(problem.answer)
    ]
    if whole:
        example = brief(" ".join(whole[0].split()))
        yield Finding(
            "whole solutions",
            f"{len(whole):,} of {len(problems):,} correct answers, such as: {example}",
            "An answer is compared with all of this text. Give the final answer alone, or a reward that "
            "finds it in the text (--reward file.py:function).",
        )


def _of_repeats(problems: Sequence[Problem]) -> Iterator[Finding]:
    """Report prompts that occur several times with different answers."""
    given = defaultdict[str, list[str]](list)
    for problem in problems:
        given[prompt_text(problem.prompt)].append(problem.answer)
    several = [answers for answers in given.values() if len(answers) > 1]
    if not any(len(set(answers)) > 1 for answers in several):
        return
    agreed = sum(len(set(answers)) == 1 for answers in several) / len(several)
    most = sum(max(Counter(answers).values()) for answers in given.values()) / len(problems)
    yield Finding(
        "same prompt",
        f"{len(several):,} prompts have several answers; all agree in {agreed:.0%} of them; a model is "
        f"right for at most {most:.0%} of the problems",
        "No model can give different answers to one prompt. Name the rater in the prompt "
        "(--raters named), or take one answer for each item (--raters mean).",
    )


def labels_of(problems: Sequence[Problem]) -> list[str]:
    """Return the labels of a closed set of answers: those of the problems' scales, in their order."""
    labels: dict[str, None] = {}
    for problem in problems:
        scale = scale_of(problem)
        labels.update(dict.fromkeys(scale.answers if scale else ()))
    return [*labels]
