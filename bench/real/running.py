"""Run one cell: a task, a contender, a seed. What it measured is two small CSV files.

    cells/singleop.pps.0.csv          a row an iteration, and those of the models on held-out problems
    cells/singleop.pps.0.items.csv    which held-out problems they answered rightly, by hash

Training goes on where it was stopped, from the runs' folder.
"""

from __future__ import annotations

import csv
import hashlib
import json
import random
import resource
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

import femtune
from femtune._util.atomic_files import replacing
from femtune.errors import NothingKept
from femtune.evaluation.evaluate import group_of
from femtune.evaluation.item_scores import held_out_problems, stored_scores
from femtune.types import Problem
from real.equations import right_rationales, right_share
from real.tasks import Task, delimiter, read_lines, write_parts

FOLDER = Path(__file__).parent / "cells"
COMMON: dict[str, Any] = {
    "temperature": 0.7,
    "bound_draws": 0,
    "reader_problems": 0,
    "dev_share": 0.0,  # the validation part is a file, and chooses the best iteration here
}
VARIANTS: dict[str, dict[str, Any]] = {
    "average": {"average_weights": True},
    "permuted": {},  # another file of training problems
}
BASE = "base"  # the contender that is not trained
KEYS = ("task", "contender", "seed", "part", "iteration")
MEASURES = (
    *("accuracy", "spearman", "answered", "answered_unforced", "num_problems"),
    *("kept_share", "num_kept", "right_equations", "num_equations", "right_rationales"),
    *("generated_tokens", "trained_tokens", "e_step_s", "m_step_s", "processor_s"),
)
Row = dict[str, Any]


def name_of(task: str, contender: str, seed: int) -> str:
    """Return a cell's name, which is that of its files.

    >>> name_of("stsb", "pps:4+importance@average", 0)
    'stsb.pps-4+importance@average.0'
    """
    return f"{task}.{contender.replace(':', '-')}.{seed}"


def is_done(task: str, contender: str, seed: int, folder: Path = FOLDER) -> bool:
    """Return True if the cell's measures are stored."""
    return (folder / f"{name_of(task, contender, seed)}.csv").exists()


def run_cell(
    task: Task, contender: str, seed: int, *, model: str, data: Path, runs: Path, folder: Path = FOLDER
) -> Path:
    """Train, choose the best iteration on the validation part, measure it on the held-out part once.

    A contender is a scheme, perhaps with variants after "@": average (of weights), permuted (labels of
    the training part), or "base". Returns the CSV with the measures.
    """
    if contender == BASE:
        return _run_base(task, seed, model=model, data=data, runs=runs, folder=folder)
    scheme, *variants = contender.split("@")
    started = _processor_s()
    place = runs / task.name / f"seed{seed}"
    paths = write_parts(task, data, seed, place)
    name = name_of(task.name, contender, seed)
    given = {**COMMON, **task.settings, "seed": seed}
    for variant in variants:
        given |= VARIANTS[variant]
    train = paths["train"]
    if "permuted" in variants:
        train = permuted(task, train, seed)
    rows: list[Row] = []
    key = {"task": task.name, "contender": contender, "seed": seed}
    try:
        done = femtune.train(
            train,
            model=model,
            scheme=scheme,
            eval_data=paths["validation"],
            iterations=task.iterations,
            output_dir=place / name,
            progress="lines",
            **given,
        )
    except NothingKept as error:
        print(error)
        rows.append({**key, "part": "nothing kept"})
        return _store(folder, name, rows, [])
    rows += [{**key, "part": "validation", **_measured(done.run, each)} for each in done.history]
    accuracies = [each["evaluation"]["accuracy"] for each in done.history[1:]]
    best = 1 + accuracies.index(max(accuracies))
    items: list[Row] = []
    for part, iteration in (("best", best), ("last", task.iterations)):
        own = _held_out(task, done.run, iteration, paths["held_out"], seed)
        rows.append({**key, "part": part, "iteration": iteration, **own.measures})
        items = own.joined(items, part)
        if best == task.iterations:
            rows.append({**rows[-1], "part": "last"})
            items = own.joined(items, "last")
            break
    rows.append({**key, "part": "cost", "processor_s": round(_processor_s() - started)})
    stored = _store(folder, name, rows, items)
    for each in done.run.glob("iteration-*/model"):
        shutil.rmtree(each)
    return stored


def _run_base(task: Task, seed: int, *, model: str, data: Path, runs: Path, folder: Path) -> Path:
    """Measure the base on the held-out part: plain, with worked examples, and by 16 votes with these."""
    started = _processor_s()
    place = runs / task.name / f"seed{seed}"
    held_out = write_parts(task, data, seed, place)["held_out"]
    name = name_of(task.name, BASE, seed)
    given = {**task.settings, "model": model, "seed": seed, "progress": "lines"}
    plain = femtune.evaluate(held_out, output_dir=place / name, **given).metrics
    ending = "_with_examples"
    shown = {each.removesuffix(ending): plain[each] for each in plain if each.endswith(ending)}
    votes = {"draws": 16, "temperature": COMMON["temperature"], "demos_in_prompt": True}
    voted = femtune.evaluate(
        held_out, output_dir=place / f"{name}-votes", aggregate="votes", **votes, **given
    )
    rows: list[Row] = []
    items: list[Row] = []
    key = {"task": task.name, "contender": BASE, "seed": seed, "iteration": 0}
    problems = held_out_problems(place / name)
    groups = {each: group_of(problem) for each, problem in problems.items()}
    for part, kind, found in (
        ("base", "eval", plain),
        ("examples", "eval_demos", shown),
        ("votes", "", voted.metrics),
    ):
        if kind:
            scores = stored_scores(place / name, 0, kind=kind)[""]
            measures = {each: found[each] for each in MEASURES if each in found}
            measures |= _equations(place / name, 0, kind)
        else:
            scores = stored_scores(place / f"{name}-votes", 0, by_vote=True)[""]
            measures = {"accuracy": sum(scores.values()) / len(scores), "num_problems": len(scores)}
        rows.append({**key, "part": part, **measures})
        items = _HeldOut(measures, scores, groups).joined(items, part)
    rows.append({**key, "part": "cost", "processor_s": round(_processor_s() - started)})
    return _store(folder, name, rows, items)


class _HeldOut:
    """Measures of a model on the held-out part, and its score on each problem."""

    def __init__(self, measures: Row, scores: Mapping[str, float], groups: Mapping[str, str]) -> None:
        self.measures = measures
        self.scores = scores
        self.groups = groups

    def joined(self, items: Sequence[Row], column: str) -> list[Row]:
        """Return the rows of items with a column of scores more."""
        known = {row["item"]: row for row in items}
        made = []
        for problem, score in self.scores.items():
            item = _hash(problem)
            before = known.get(item, {"item": item, "cluster": _hash(self.groups[problem] or problem)})
            made.append({**before, column: score})
        return made


def _held_out(task: Task, run: Path, iteration: int, held_out: Path, seed: int) -> _HeldOut:
    model = run / f"iteration-{iteration:03}" / "model"
    out = run.with_name(f"{run.name}-held-out-{iteration}")
    found = femtune.evaluate(
        held_out, model=model, output_dir=out, seed=seed, progress="lines", **task.settings
    )
    metrics = found.metrics
    measures = {name: metrics.get(name) for name in MEASURES if name in metrics}
    measures |= _equations(out, 0, "eval")
    problems = held_out_problems(out)
    groups = {name: group_of(problem) for name, problem in problems.items()}
    return _HeldOut(measures, stored_scores(out, 0)[""], groups)


def _measured(run: Path, history: Mapping[str, Any]) -> Row:
    """Return the measures of an iteration."""
    iteration = history["iteration"]
    e_step, m_step = history.get("e_step", {}), history.get("m_step", {})
    evaluation = history.get("evaluation", {})
    row: Row = {"iteration": iteration}
    row |= {name: evaluation[name] for name in MEASURES if name in evaluation}
    if not e_step:
        return row
    texts = _kept(run / f"iteration-{iteration:03}" / "examples.parquet")
    share, num = right_share(text for _, text in texts)
    good, _ = right_rationales(texts)
    return row | {
        "answered_unforced": e_step.get("answered"),
        "kept_share": e_step["kept_share"],
        "num_kept": len(texts),
        "right_equations": _rounded(share),
        "num_equations": num,
        "right_rationales": _rounded(good),
        "generated_tokens": e_step["generated_tokens"],
        "e_step_s": e_step["total_s"],
        "m_step_s": m_step.get("seconds"),
        "trained_tokens": m_step.get("trained_tokens"),
    }


def _kept(examples: Path) -> list[tuple[str, str]]:
    """Return the problems and rationales that were trained on."""
    rows = pq.read_table(examples, columns=["prompt", "completion"]).to_pylist()
    return [(_content(row["prompt"]), _content(row["completion"])) for row in rows]


def _content(messages: Any) -> str:
    return messages if isinstance(messages, str) else messages[-1]["content"]


def _equations(run: Path, iteration: int, kind: str) -> Row:
    """Return the right equations of rightly answered held-out problems."""
    problems: dict[str, Problem] = held_out_problems(run)
    texts = []
    for path in sorted((run / f"iteration-{iteration:03}" / kind).glob("*.parquet")):
        for row in pq.read_table(path, columns=["problem_id", "text", "reward"]).to_pylist():
            if row["reward"] == 1.0:
                texts.append((str(problems[row["problem_id"]].prompt), row["text"]))
    share, num = right_share(text for _, text in texts)
    good, _ = right_rationales(texts)
    return {"right_equations": _rounded(share), "num_equations": num, "right_rationales": _rounded(good)}


def _rounded(share: float | None) -> float | None:
    return None if share is None else round(share, 4)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _processor_s() -> float:
    """Return the processor seconds of this process and its children so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + used.ru_utime + used.ru_stime


def permuted(task: Task, train: Path, seed: int) -> Path:
    """Write the training part with its labels permuted: only how often each occurs can be learnt."""
    found = read_lines(train)
    order = list(range(len(found.rows)))
    random.Random(f"permuted {seed}").shuffle(order)
    pairs = zip(found.rows, (found.rows[other] for other in order), strict=True)
    made = [{**row, **{name: other[name] for name in task.labels}} for row, other in pairs]
    out = train.with_name(f"permuted-{train.name}")
    with replacing(out) as part, part.open("w", newline="", encoding="utf-8") as file:
        if not found.header:
            file.writelines(json.dumps(row) + "\n" for row in made)
        else:
            writer = csv.DictWriter(file, made[0].keys(), delimiter=delimiter(train))
            writer.writeheader()
            writer.writerows(made)
    return out


def _store(folder: Path, name: str, rows: Sequence[Row], items: Sequence[Row]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    if items:
        _write(folder / f"{name}.items.csv", list(items[0]), items)
    _write(folder / f"{name}.csv", (*KEYS, *MEASURES), rows)
    return folder / f"{name}.csv"


def _write(path: Path, columns: Sequence[str], rows: Sequence[Row]) -> None:
    with replacing(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
