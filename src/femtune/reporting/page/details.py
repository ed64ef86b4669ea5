"""The page's end: judgements, rationales to read, settings, and where each number comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from femtune.metric_types import EStepMetrics
from femtune.reporting.cards import read_teacher
from femtune.reporting.page import predictions
from femtune.reporting.page.contenders import best, contenders
from femtune.reporting.page.drawing import NUM_COLOURS, Axis, mark
from femtune.reporting.page.estep_section import REASONS, EStepTallies
from femtune.reporting.page.figures import Series, diagonal
from femtune.reporting.page.parts import Figure, Key, Section, Table
from femtune.reporting.page.record import BY_VOTE, Found, Record, differing
from femtune.reporting.page.tally import Pick
from femtune.reporting.page.texts import count, name, percent, setting

EXHIBITS = 6  # problems shown that changed from wrong to right; half as many of each other change


@dataclass(frozen=True)
class Matrix:
    """A confusion matrix as the template shows it."""

    title: str
    scale: Sequence[str]
    rows: Sequence[
        tuple[str, Sequence[tuple[int, float]]]
    ]  # human answer; counts, and shares of the row
    right: str


@dataclass(frozen=True)
class Shown:
    """A draw of an E-step as the template shows it."""

    pick: Pick
    prompt: str
    answer: str
    verdict: str


def lead_of(found: Found) -> Record | None:
    """Return the run that is shown in detail: the first seed of the best scheme."""
    lead = best(contenders(found), "scheme")
    if lead is not None:
        return next(run for run in lead.group.runs if run.evaluations())
    return found.schemes[0].runs[0] if found.schemes else None


# --- judgements


def judgements(found: Found, problems: predictions.Problems, notes: list[str]) -> Section | None:
    """Build the section of confusion matrices and reliability, for answers on a scale."""
    lead, scale = lead_of(found), predictions.one_scale(problems)
    if lead is None or not scale or not lead.evaluations():
        return None
    numbers = list(dict.fromkeys([min(lead.evaluations()), lead.shown_iteration]))
    matrices = []
    for number in numbers:
        items = predictions.items(lead, number, problems, notes)
        if items:
            title = "The base" if number == 0 else f"After iteration {number}"
            matrices.append(_matrix(title, predictions.confusion(items, scale)))
    voters = _voters(found, scale, notes)
    if not matrices and not voters:
        return None
    what = "ratings" if predictions.is_judge(problems) else "answers"
    who = (
        f" Both are of {lead.scheme}, seed {lead.seed}."
        if len(found.schemes) > 1 or len(found.runs) > 1
        else ""
    )
    says = [
        f"Rows are the human's {what}, columns the model's; darker is a larger share of the row. The "
        f"diagonal is agreement.{who}"
    ]
    return Section(
        "judgements",
        "Who says what",
        says,
        figures=[_reliability(voters)] if voters else [],
        notes=[] if voters else [NO_VOTES],
        extra="matrices",
        data=matrices,
    )


def _matrix(title: str, confusion: predictions.Confusion) -> Matrix:
    none = any(row[-1] for row in confusion.counts)
    rows = []
    for answer, counts in zip(confusion.scale, confusion.counts, strict=True):
        shown = counts if none else counts[:-1]
        rows.append((answer, [(n, n / max(1, sum(counts))) for n in shown]))
    right = sum(counts[at] for at, counts in enumerate(confusion.counts))
    scale = [*confusion.scale, *([predictions.NO_ANSWER] if none else [])]
    return Matrix(title, scale, rows, f"{right} of {confusion.total} on the diagonal")


Voter = tuple[str, list[predictions.Bin]]


def _voters(found: Found, scale: tuple[str, ...], notes: list[str]) -> list[Voter]:
    """Return the label and bins of each group whose first run's evaluation drew several times."""
    made = []
    for group in found.groups:
        run = group.runs[0]
        if not run.evaluations():
            continue
        shown = run.shown_iteration
        metrics = run.evaluations()[shown]
        if metrics.get("num_draws", 0) <= metrics.get("num_problems", 0):
            continue
        if group.is_baseline and run.scheme not in BY_VOTE:  # a regression answers once per problem
            continue
        items = predictions.items(run, shown, predictions.eval_problems(run, notes), notes)
        bins = predictions.reliability(items, scale) if items else []
        if bins:
            made.append((group.label, bins))
    return made


NO_VOTES = (
    "How reliable its votes are is left out: evaluation took one draw a problem, which is no vote. "
    "--eval-draws 8 --eval-temperature 1 gives votes."
)


def _reliability(voters: Sequence[Voter]) -> Figure:
    own, told = [], []
    for number, (label, bins) in enumerate(voters):
        own.append(Series(number, [(b.confidence, b.right, float(b.num_items), None) for b in bins]))
        each = [f"{percent(b.confidence, 0)} sure, {percent(b.right, 0)} right" for b in bins]
        told.append(f"{label} {', '.join(each)}")
    axes = (Axis("share of votes for the answer", ".0%"), Axis("share right", ".0%"))
    picture = diagonal(own, *axes, f"Reliability: {'; '.join(told)}.")
    labels = [label for label, _ in voters]
    keys = [Key(f"c{n % NUM_COLOURS}", mark(n), label) for n, label in enumerate(labels)]
    caption = "On the dashed line a vote is right as often as it is sure. Larger dots are more problems."
    return Figure("How sure, and how right", picture, caption, keys=keys)


# --- rationales


def before_and_after(found: Found, problems: predictions.Problems, notes: list[str]) -> Section | None:
    """Build the section of the same problems, answered by the base and by the trained models."""
    lead = lead_of(found)
    if lead is None or not problems:
        return None
    measured = lead.evaluations()
    if 0 not in measured or max(measured) == 0:
        return Section(
            "before-after",
            "The same problem, before and after",
            notes=["Before and after take an evaluation of the base and one of an iteration."],
        )
    others = [
        (f"{group.label}", group.runs[0])
        for group in found.schemes
        if any(number > 0 for number in group.runs[0].evaluations())
    ]
    others.sort(key=lambda pair: pair[1] is not lead)
    changes = predictions.changes(lead, others[:6], problems, EXHIBITS, notes)
    if not changes:
        return None
    says = [
        "Held-out problems, the base's rationale beside what was learnt. Which ones are shown is by "
        "chance, from their ids, within each kind of change."
    ]
    if len(found.schemes) > 1:
        says.append(f"Before and after are those of {lead.scheme}; the other schemes stand beside it.")
    title = "The same problem, before and after"
    return Section("before-after", title, says, extra="changes", data=changes)


def rationales(found: Found, looked: Sequence[EStepTallies], notes: list[str]) -> Section | None:
    """Build the section with a sample of E-step draws, kept and refused, with the reason."""
    groups = []
    for each in looked:
        run = each.group.runs[0]
        asked = predictions.asked(
            run.root / "problems.parquet", [p.problem_id for p in each.picks], notes
        )
        shown = [_shown(pick, *asked.get(pick.problem_id, ("", ""))) for pick in each.picks]
        kinds = list(dict.fromkeys(item.verdict for item in shown))
        if shown:
            groups.append(
                (each.group.label, [(kind, [s for s in shown if s.verdict == kind]) for kind in kinds])
            )
    if not groups:
        return None
    says = [
        "Draws of the E-steps, by chance (those of the smallest seeds) of each prompt and reason. What "
        "is kept is what the next model is trained on, always under the plain prompt."
    ]
    return Section(
        "rationales", "What was kept, and what was refused", says, extra="rationales", data=groups
    )


def _shown(pick: Pick, prompt: str, answer: str) -> Shown:
    under = "asked plainly" if pick.prompt_kind == "plain" else "with the answer as a hint"
    return Shown(pick, prompt, answer, f"{REASONS.get(pick.reason, (pick.reason, ''))[0]}, {under}")


# --- settings, and where numbers come from


def settings(found: Found) -> Section:
    runs = found.runs
    same, different = differing(runs)
    tables = []
    if different:
        head = ["setting", *(name(run.root.resolve().name) for run in runs)]
        rows = [[key, *(name(value, 200) for value in values)] for key, values in different.items()]
        tables.append(Table("Settings that differ", head, rows))
    rows = [[key, name(value, 400)] for key, value in same.items()]
    tables.append(
        Table("Settings of all runs" if len(runs) > 1 else "Settings", ["setting", "value"], rows)
    )
    tables += _rows(runs[0]) + _teachers(runs)
    environment = _flat(runs[0].environment)
    if environment:
        tables.append(
            Table("Environment", ["", ""], [[key, name(value, 200)] for key, value in environment])
        )
    return Section("settings", "Settings and environment", tables=tables)


def _rows(run: Record) -> list[Table]:
    """Return the rows that were left out by reason, and how labels were read."""
    where = {"problems": "training data", "eval": "evaluation data"}
    left = [
        [where.get(key, key), name(reason.what, 200), count(reason.count), name(example, 200)]
        for key, report in run.rows.items()
        for reason in report.skipped
        for example in [f"{report.unit} {reason.place} {reason.value}".strip()]
    ]
    read = [
        [where.get(key, key), name(said, 400)]
        for key, report in run.rows.items()
        for said in report.codings
    ]
    tables = [Table("Rows left out", ["of", "why", "rows", "for example"], left)] if left else []
    return tables + ([Table("How labels were read", ["of", "how"], read)] if read else [])


def _teachers(runs: Sequence[Record]) -> list[Table]:
    """Return the teachers that drew in iteration 1, with tokens, seconds and licence."""
    found = [(run, read_teacher(run.root, run.e_steps().get(1, EStepMetrics()))) for run in runs]
    rows = [
        [
            *(name(run.root.resolve().name), name(each["model"], 200), count(each["tokens"])),
            *(f"{each['seconds']:,.0f}", name(each["license"], 200)),
        ]
        for run, each in found
        if each is not None
    ]
    head = ["run", "teacher of iteration 1", "tokens", "seconds", "licence"]
    return [Table("Teachers", head, rows)] if rows else []


def _flat(environment: Mapping[str, Any]) -> list[tuple[str, str]]:
    made: list[tuple[str, str]] = []
    for key, value in environment.items():
        if isinstance(value, Mapping):
            made += [(f"{key}: {inner}", setting(own)) for inner, own in value.items()]
        else:
            made.append((str(key), setting(value)))
    return made


SOURCES = (
    ("The first screen, every measure and interval", "evaluation, in iteration-*/metrics.json"),
    ("Kept shares, by whom and what", "e_step, in iteration-*/metrics.json"),
    ("Where draws went, their lengths, difficulty, the sample", "iteration-*/draws/*.parquet"),
    ("Loss, tokens trained on, seconds", "m_step and e_step, in iteration-*/metrics.json"),
    ("Confusion, reliability, before and after", "iteration-*/eval/*.parquet with eval.parquet"),
    ("Prompts of the sample", "problems.parquet"),
    ("Settings, environment, times", "config.yaml, environment.json, log.jsonl"),
)


def sources(found: Found, notes: Sequence[str]) -> Section:
    runs = [
        [name(run.root.resolve().name, 80), run.scheme or "–", str(run.seed), _state(run)]
        for run in found.runs
    ]
    tables = [
        Table("Where each number comes from", ["on this page", "in the run's directory"], SOURCES),
        Table("Runs on this page", ["directory", "scheme", "seed", "state"], runs),
    ]
    says = ["This page is made of the runs' own files alone; femtune report makes it again from them."]
    return Section(
        "sources", "Where the numbers come from", says, tables=tables, notes=list(dict.fromkeys(notes))
    )


def _state(run: Record) -> str:
    if run.is_baseline:
        return "done" if run.history else "not done"
    return f"{run.done} of {count(run.planned, 'iteration')}" if run.history else "not measured yet"
