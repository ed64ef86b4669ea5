"""Tasks with labels by people: files, columns, sizes and settings. Edited here, and nowhere else.

Files are those of the folder given as --data, in the form in which they were published. No row of them
is stored in this repository: cells hold measures, and hashes of problems.
"""

from __future__ import annotations

import csv
import hashlib
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]

REJECTION, STAR, PPS = "rejection:4", "star", "pps"
WEIGHED, REASONS = "pps:4+importance", "pps+reasons:0"
ALL = (REJECTION, STAR, PPS, WEIGHED, REASONS, "auto")
FEW = (REJECTION, PPS, "auto")
SEEDS = (0, 1, 2)

ALIKE = (
    "How alike are the meanings of the two sentences? 5: they mean the same. 4: the same but for "
    "details. 3: roughly the same, with some information different or missing. 2: not alike, but they "
    "share details. 1: only the topic is the same. 0: nothing in common."
)
SENTENCE = (
    "How good is the sentence that says what the act asks for? 6: fluent, natural and complete. "
    "4: understandable, with flaws. 2: hard to read. 1: no proper sentence."
)
COHERENT = (
    "How coherent is the summary: do its sentences build one well-organized text? 5: fully. 3: partly. "
    "1: not at all."
)


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task: where its rows are, which belong together, how many are used, and what it is trained with.

    The held-out part is the same for all seeds; a seed chooses the rows to train on and the validation
    part, by which the best iteration is chosen, from the others. Rows of a cluster stay in one part.
    """

    name: str
    file: str
    cluster: Callable[[Row], str]
    train: int
    validation: int
    held_out: int
    iterations: int
    schemes: Sequence[str]
    settings: Mapping[str, Any]
    labels: Sequence[str]  # columns with the answers, which a control permutes
    held_out_file: str | None = None  # where the held-out part is a file of its own


def _text(*names: str) -> Callable[[Row], str]:
    return lambda row: " ".join(" ".join(str(row[name]).casefold().split()) for name in names)


def _trained_on_120(name: str, *, held_out: int = 250, **fields: Any) -> Task:
    """Return a task of which all schemes are run, four iterations each."""
    return Task(
        name=name, train=120, validation=60, held_out=held_out, iterations=4, schemes=ALL, **fields
    )


def _math(name: str, tokens: int) -> Task:
    columns = ("prompt=input", "answer=target")
    return _trained_on_120(
        name,
        file=f"{name}.jsonl",
        cluster=_text("input"),
        labels=("target",),
        settings={"task": "math", "columns": columns, "max_new_tokens": tokens},
    )


def _judge(
    name: str,
    *,
    file: str,
    cluster: Callable[[Row], str],
    labels: Sequence[str],
    held_out: int = 250,
    **settings: Any,
) -> Task:
    settings = {"task": "judge", "max_new_tokens": 64, **settings}
    return _trained_on_120(
        name, file=file, cluster=cluster, labels=labels, held_out=held_out, settings=settings
    )


TASKS = {
    task.name: task
    for task in (
        _math("singleop", 48),
        _math("multiarith", 72),
        _judge(
            "stsb",
            file="stsb_train.tsv",
            cluster=_text("sentence1"),
            labels=("similarity",),
            columns=("prompt=sentence1", "response=sentence2", "score=similarity"),
            scale="0,5",
            round_scores=True,
            rubric=ALIKE,
        ),
        _judge(
            "nlg_ratings",
            file="nlg_ratings.csv",
            cluster=_text("mr"),
            labels=("quality",),
            columns=("prompt=mr", "response=sys_ref", "score=quality"),
            scale="1,6",
            round_scores=True,
            rubric=SENTENCE,
        ),
        _judge(
            "pandalm",
            file="pandalm.jsonl",
            cluster=_text("instruction", "input"),
            labels=("annotator1", "annotator2", "annotator3"),
            held_out=200,
            columns=("prompt=instruction,input", "preference=annotator1,annotator2,annotator3"),
            raters="majority",
            bad_rows="skip",
        ),
        Task(
            name="arc_easy",
            labels=("answerKey",),
            file="arc_easy_train.jsonl",
            held_out_file="arc_easy_test.jsonl",
            cluster=_text("question"),
            train=120,
            validation=60,
            held_out=250,
            iterations=3,
            schemes=FEW,
            settings={"task": "choice", "max_new_tokens": 64},
        ),
        Task(
            name="tldr_comparisons",
            labels=("choice",),
            file="tldr_comparisons_train.jsonl",
            held_out_file="tldr_comparisons_test.jsonl",
            cluster=lambda row: row["info"]["id"],
            train=100,
            validation=60,
            held_out=87,
            iterations=3,
            schemes=FEW,
            settings={"task": "summarize", "max_new_tokens": 64},
        ),
        Task(
            name="summeval",
            labels=("expert_annotations",),
            file="summeval.jsonl",
            cluster=_text("id"),
            train=144,
            validation=36,
            held_out=60,
            iterations=3,
            schemes=FEW,
            settings={
                "task": "summarize",
                "columns": (
                    "id=id,model_id",
                    "post=text",
                    "summary=decoded",
                    "score=expert_annotations[].coherence",
                ),
                "scale": "1,5",
                "raters": "mean",
                "round_scores": True,
                "rubric": COHERENT,
                "max_new_tokens": 64,
            },
        ),
    )
}


# --- parts


@dataclass(frozen=True)
class Lines:
    """The lines of a file as they are, and the rows that they hold."""

    header: str
    lines: Sequence[str]
    rows: Sequence[Row]


def read_lines(path: Path) -> Lines:
    """Read .jsonl, .csv or .tsv with one row a line. Raises ValueError for rows of several lines."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines(keepends=True) if path.suffix != ".jsonl" else text.split("\n")
    if path.suffix == ".jsonl":
        kept = [line + "\n" for line in lines if line.strip()]
        return Lines("", kept, [json.loads(line) for line in kept])
    rows = list(csv.DictReader(lines, delimiter=delimiter(path)))
    if len(rows) != len(lines) - 1:
        raise ValueError(f"{path}: {len(rows)} rows in {len(lines) - 1} lines.")
    return Lines(lines[0], lines[1:], rows)


def delimiter(path: Path) -> str:
    """Return what parts the columns of a .csv or .tsv file."""
    return "\t" if path.suffix == ".tsv" else ","


def write_parts(task: Task, data: Path, seed: int, folder: Path) -> dict[str, Path]:
    """Write train, validation and held_out as files of the task's form; return their paths."""
    found = read_lines(data / task.file)
    other = read_lines(data / task.held_out_file) if task.held_out_file else None
    order = list(_distinct(task, found))
    random.Random("held out").shuffle(order)
    held = [] if other else _whole_clusters(order, task.held_out)
    names = {name for name, _ in held}
    left = [(name, rows) for name, rows in order if name not in names]
    random.Random(f"seed {seed}").shuffle(left)
    validation = _whole_clusters(left, task.validation)
    names = {name for name, _ in validation}
    train = _whole_clusters([each for each in left if each[0] not in names], task.train)
    folder.mkdir(parents=True, exist_ok=True)
    suffix = Path(task.file).suffix
    paths = {}
    for part, clusters in (("train", train), ("validation", validation), ("held_out", held)):
        lines = [found.lines[row] for _, rows in clusters for row in rows]
        if part == "held_out" and other:
            chosen = _whole_clusters(list(_distinct(task, other)), task.held_out)
            lines = [other.lines[row] for _, rows in chosen for row in rows]
        paths[part] = folder / f"{part}{suffix}"
        paths[part].write_text(found.header + "".join(lines), encoding="utf-8")
    return paths


def _distinct(task: Task, found: Lines) -> Iterator[tuple[str, list[int]]]:
    """Yield clusters with the numbers of their rows; of equal rows the first."""
    clusters: dict[str, list[int]] = {}
    seen: set[str] = set()
    for number, (line, row) in enumerate(zip(found.lines, found.rows, strict=True)):
        key = hashlib.sha256(line.encode()).hexdigest()
        if task.settings["task"] == "math":  # a problem with its answer twice
            key = task.cluster(row)
        if key in seen:
            continue
        seen.add(key)
        clusters.setdefault(task.cluster(row), []).append(number)
    yield from clusters.items()


def _whole_clusters(order: Sequence[tuple[str, list[int]]], most: int) -> list[tuple[str, list[int]]]:
    """Return clusters from the front that have at most so many rows together."""
    chosen: list[tuple[str, list[int]]] = []
    num = 0
    for name, rows in order:
        if num + len(rows) <= most:
            chosen.append((name, rows))
            num += len(rows)
    return chosen
