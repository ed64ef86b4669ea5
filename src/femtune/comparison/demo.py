"""The demo: a first comparison in minutes, built from the same parts as all commands."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.columns import Columns
from rich.console import Group
from rich.panel import Panel

from femtune._util.atomic_files import replacing
from femtune.comparison.compare import Job
from femtune.config import Train
from femtune.data.problems import load_problems
from femtune.data.prompts import prompt_text
from femtune.data.worlds import WORLDS, make_rows
from femtune.errors import ConfigError, RunError
from femtune.evaluation.evaluate import sound_steps
from femtune.metric_types import History
from femtune.mstep.config import Training
from femtune.reporting.terminal import framed, literal
from femtune.run_folder import check_new
from femtune.runs.checkpoints import best_of
from femtune.runs.draws import read_draws
from femtune.types import Draw, Problem

# Settings for a model of 1M parameters; larger models should use the defaults.
SETTINGS = Train(
    task="judge",
    raters="named",
    scale="1,5",
    max_new_tokens=64,
    iterations=5,
    dev_share=0.0,  # as in the paper: the last model of each scheme
    bound_draws=0,  # a quarter of the time, here
    reader_problems=0,
    training=Training(learning_rate=3e-4, per_device_train_batch_size=32, num_train_epochs=2),
)


def write_world(
    name: str,
    folder: Path,
    num_train: int = 400,
    num_test: int = 200,
    seed: int = 0,
    noise: float = 0.0,
    difficulty: tuple[int, int] | None = None,
) -> tuple[Path, Path]:
    """Write a synthetic task's rows as train.jsonl and test.jsonl, disjoint.

    Raises ConfigError for an unknown task or no problems, RunError if the folder is not writable or
    holds other rows, which are kept.
    """
    if name not in WORLDS:
        raise ConfigError(f"world {name!r} is not known: choose one of {', '.join(WORLDS)}.")
    if num_train < 1 or num_test < 1:
        raise ConfigError(f"num_train {num_train}, num_test {num_test}: both must be at least 1.")
    if not folder.is_dir():
        check_new(folder)
    train, test = make_rows(
        WORLDS[name], num_train, num_test, seed=seed, noise=noise, difficulty=difficulty
    )
    paths = folder / "train.jsonl", folder / "test.jsonl"
    texts = ["".join(f"{json.dumps(row)}\n" for row in rows) for rows in (train, test)]
    for path, text in zip(paths, texts, strict=True):
        if path.exists() and path.read_text() != text:
            raise RunError(f"{path} holds other rows: choose another --output-dir.")
    for path, text in zip(paths, texts, strict=True):
        with replacing(path) as part:
            part.write_text(text)
    return paths


def changes(histories: Mapping[Job, History], num: int = 3) -> Iterator[Group]:
    """Yield rationales of the best run, before and after, side by side."""
    shown = {job: best_of(history) for job, history in histories.items()}
    best = max(shown, key=lambda job: histories[job][shown[job]]["evaluation"]["accuracy"])
    root = best.output_dir
    problems = load_problems(root / "eval.parquet")
    before, after = (
        [draw for draws, _ in read_draws(root / f"iteration-{number:03}" / "eval") for draw in draws]
        for number in (0, shown[best])
    )
    for problem, old, new in telling(problems, before, after, num):
        title = f"{problem.id}, the rater said {problem.answer}"
        question = framed(literal(prompt_text(problem.prompt)), title)
        panels = [_panel("before", old), _panel(f"after {best.scheme}", new)]
        yield Group(question, Columns(panels))  # a line each, where both fit into one


def _panel(title: str, draw: Draw) -> Panel:
    verdict = "right" if draw.accepted else "wrong"
    return framed(literal(draw.completion.text), f"{title}: {verdict}")


def telling(
    problems: Sequence[Problem], before: Sequence[Any], after: Sequence[Any], num: int
) -> list[Any]:
    """Return problems whose draws show the change best: wrong before, right after, many valid steps."""
    old = {draw.key.problem_id: draw for draw in before}
    new = {draw.key.problem_id: draw for draw in after}

    def merit(problem: Problem) -> tuple[bool, bool, int]:
        draw = new[problem.id]
        steps = sound_steps(draw, problem)
        mended = draw.accepted and not old[problem.id].accepted
        return mended, steps is None or all(steps), len(steps or ())

    chosen = sorted(problems, key=merit, reverse=True)[:num]
    return [(problem, old[problem.id], new[problem.id]) for problem in chosen]
