"""Details of evaluations: confusion, reliability of votes, and problems before and after training."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from femtune.data.problems import load_problems
from femtune.data.prompts import prompt_text
from femtune.data.tasks.frames import frame, scale_of
from femtune.errors import DataError
from femtune.evaluation.evaluate import as_item
from femtune.evaluation.metrics import NUM_BINS, Item, count_votes, most_likely
from femtune.reporting.page.record import Record
from femtune.reporting.page.tally import batches, shards
from femtune.types import Completion, Draw, DrawKey, Problem, Score

MAX_SCALE = 12  # answers in a confusion matrix: scales from 0 to 10 are common
NO_ANSWER = "none"

Problems = Mapping[str, Problem]


@dataclass(frozen=True)
class Confusion:
    """Counts of problems by human answer (row) and model answer (column; the last one is no answer)."""

    scale: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]

    @property
    def total(self) -> int:
        return sum(map(sum, self.counts))


@dataclass(frozen=True)
class Bin:
    """Items of similar confidence: mean confidence, share right and number."""

    confidence: float
    right: float
    num_items: int


@dataclass(frozen=True, kw_only=True)
class ItemDraws:
    """One completion of a shown problem."""

    label: str
    text: str
    answer: str
    right: bool
    reason: str
    detail: str


@dataclass(frozen=True)
class ShownItem:
    """A problem with its completions."""

    problem_id: str
    prompt: str
    answer: str
    takes: tuple[ItemDraws, ...]


@dataclass(frozen=True)
class Change:
    """Problems with the same change from the base to the shown iteration."""

    title: str
    num_problems: int
    exhibits: tuple[ShownItem, ...]


# --- problems


def eval_problems(run: Record, notes: list[str]) -> Problems:
    """Return the held-out problems that a run stored; {} if they are missing or unreadable."""
    path = run.root / "eval.parquet"
    if not path.is_file():
        return {}
    try:
        return {problem.id: problem for problem in load_problems(path)}
    except (DataError, OSError, pa.ArrowException) as error:
        notes.append(f"{path} can't be read, and what needs it is left out: {error}")
        return {}


def asked(path: Path, ids: Iterable[str], notes: list[str]) -> dict[str, tuple[str, str]]:
    """Return the prompt, as one text, and the answer of some stored problems, by id."""
    if not path.is_file():
        return {}
    try:
        wanted = pc.field("id").isin(pa.array(sorted({*ids}), pa.string()))
        table = pq.read_table(
            pa.memory_map(str(path)), columns=["id", "prompt", "answer"], filters=wanted
        )
        return {row["id"]: (prompt_text(row["prompt"]), row["answer"]) for row in table.to_pylist()}
    except (OSError, pa.ArrowException, KeyError, TypeError) as error:
        notes.append(f"{path} can't be read, and the prompts are left out: {error}")
        return {}


# --- answers


def items(run: Record, iteration: int, problems: Problems, notes: list[str]) -> list[Item]:
    """Return each problem's answer and votes, as `evaluate` counts them."""
    votes: dict[str, list[tuple[int, str]]] = {}
    folder = run.root / f"iteration-{iteration:03}" / "eval"
    for _, _, batch in batches(shards(folder), ("problem_id", "index", "answer"), notes):
        columns = (batch[name].to_pylist() for name in ("problem_id", "index", "answer"))
        for problem_id, index, answer in zip(*columns, strict=True):
            votes.setdefault(problem_id, []).append((index, answer))
    return [
        as_item(problems[name], [_answer(name, *vote) for vote in sorted(own)])
        for name, own in votes.items()
        if name in problems
    ]


def _answer(problem_id: str, index: int, answer: str) -> Draw:
    """Return a draw of which only the answer is used."""
    key = DrawKey(0, problem_id, 0, index)
    return Draw(key, "plain", 0, Completion((), "", "stop", 0.0), Score(0.0, answer))


def one_scale(problems: Problems) -> tuple[str, ...]:
    """Return the scale that all problems share, if it is short enough to show; else ()."""
    scales = {scale_of(problem) for problem in problems.values()}
    scale = scales.pop() if len(scales) == 1 else None
    return scale.answers if scale is not None and len(scale.answers) <= MAX_SCALE else ()


def is_judge(problems: Problems) -> bool:
    """Return True if the answers are human judgements: ratings or choices of a response."""
    known = next((frame(problem) for problem in problems.values()), None)
    return known is not None and known.form in ("rating", "pair")


def confusion(found: Sequence[Item], scale: tuple[str, ...]) -> Confusion:
    """Count each item's most frequent vote; the first one on a tie."""
    votes = count_votes(found, scale)
    said = np.where(votes.cast, most_likely(votes.counts, votes.first), len(scale))
    counts = np.zeros((len(scale), len(scale) + 1), int)
    np.add.at(counts, (votes.truth, said), 1)
    return Confusion(scale, tuple(tuple(row) for row in counts.tolist()))


def reliability(found: Sequence[Item], scale: tuple[str, ...]) -> list[Bin]:
    """Group items by confidence, the vote share of the most frequent answer, in ten equal bins."""
    votes = count_votes(found, scale)
    if not votes.several:
        return []
    shares, cast = votes.shares[votes.cast], votes.cast
    top = most_likely(shares, votes.first[cast])
    sure = shares[np.arange(len(top)), top]
    right = top == votes.truth[cast]
    number = np.maximum(
        np.ceil((sure * NUM_BINS).round(9)).astype(int) - 1, 0
    )  # as in metrics.confidence
    return [
        Bin(float(sure[own].mean()), float(right[own].mean()), int(own.sum()))
        for own in (number == each for each in range(NUM_BINS))
        if own.any()
    ]


# --- before and after


def changes(
    lead: Record, others: Sequence[tuple[str, Record]], problems: Problems, each: int, notes: list[str]
) -> list[Change]:
    """Group held-out problems by the change of the lead run's answer, with every run's completions.

    `others` are labelled runs, the lead among them. A hash of their ids selects the problems shown:
    the selection is reproducible and independent of the results.
    """
    last = lead.shown_iteration
    before, after = (_right(lead, number, notes) for number in (0, last))
    names = {
        (False, True): "Wrong before, right after",
        (True, False): "Right before, wrong after",
        (False, False): "Wrong before and after",
        (True, True): "Right before and after",
    }
    made = []
    for key, title in names.items():
        own = [n for n in before if (before[n], after.get(n)) == key and n in problems]
        shown = sorted(own, key=_by_chance)[: each if key == (False, True) else -(-each // 2)]
        made.append((title, len(own), shown))
    ids = [name for _, _, shown in made for name in shown]
    takes = _takes(lead, others, ids, notes)
    return [
        Change(title, num, tuple(_shown_item(problems[name], takes[name]) for name in shown))
        for title, num, shown in made
        if num
    ]


def _shown_item(problem: Problem, takes: Sequence[ItemDraws]) -> ShownItem:
    return ShownItem(problem.id, prompt_text(problem.prompt), problem.answer, tuple(takes))


def _by_chance(name: str) -> bytes:
    return hashlib.blake2b(f"report\x00{name}".encode(), digest_size=8).digest()


def _first_draws(run: Record, iteration: int, columns: Sequence[str], notes: list[str]) -> Iterable[Any]:
    folder = run.root / f"iteration-{iteration:03}" / "eval"
    for _, _, batch in batches(shards(folder), ("problem_id", "index", *columns), notes):
        yield pa.table(batch).filter(pc.equal(batch["index"], 0))


def _right(run: Record, iteration: int, notes: list[str]) -> dict[str, bool]:
    """Return, by problem, True if its first draw was right."""
    made: dict[str, bool] = {}
    for table in _first_draws(run, iteration, ("reason", "reward"), notes):
        columns = (table[name].to_pylist() for name in ("problem_id", "reason", "reward"))
        for problem_id, reason, reward in zip(*columns, strict=True):
            made[problem_id] = reason in ("", "wrong") and reward >= 1  # as in evaluate.is_right
    return made


def _takes(
    lead: Record, others: Sequence[tuple[str, Record]], ids: Sequence[str], notes: list[str]
) -> dict[str, list[ItemDraws]]:
    """Return the first completion of the base and of each run's shown model for these problems."""
    made: dict[str, list[ItemDraws]] = {name: [] for name in ids}
    wanted = pa.array(ids, pa.string())
    runs = [("before: the base", lead, 0)]
    runs += [(f"after: {label}", run, run.shown_iteration) for label, run in others]
    columns = ("text", "answer", "reason", "detail", "reward")
    for label, run, iteration in runs:
        for table in _first_draws(run, iteration, columns, notes):
            for row in table.filter(pc.is_in(table["problem_id"], wanted)).to_pylist():
                right = row["reason"] in ("", "wrong") and row["reward"] >= 1
                own = {name: row[name] for name in ("text", "answer", "reason", "detail")}
                made[row["problem_id"]].append(ItemDraws(label=label, right=right, **own))
    return made
