"""Files of settings and words on the command line."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from random import Random

import yaml

from femtune.cli import main
from femtune.errors import FemtuneError

from .mangling import (
    File,
    Row,
    as_yaml,
    within,
)
from .runs import stored_files, unpacked

RECIPES = Path(__file__).parents[2] / "recipes"


@cache
def _recipes() -> tuple[Row, ...]:
    return tuple(yaml.safe_load(path.read_text()) for path in sorted(RECIPES.glob("*.yaml")))


def make_config(rng: Random) -> File:
    stored_files()  # it takes its time, which is not the reader's
    good = {**rng.choice(_recipes()), "model": "seedling"}
    return File("config.yaml", as_yaml(rng, good))


def read_config(file: File, folder: Path) -> None:
    """The file goes to one of the verbs, up to where weights are loaded."""
    unpacked(folder)
    file.write(folder)
    rng = Random(file.content)
    verbs = (
        "world rubric --output-dir made --num-train 3 --num-test 3 --seed 0",
        "fit no.parquet --output-dir fitted --model none/here",
        "check rubric/train.jsonl --no-try --max-new-tokens 64 --model seedling",
        "train none.jsonl --model seedling",
        "compare none.jsonl --model seedling",
        "refilter run",
    )
    run_command([*rng.choice(verbs).split(), "--config", "config.yaml"], folder)


def read_plan(file: File, folder: Path) -> None:
    unpacked(folder)
    file.write(folder)
    run_command(
        ["estimate", "rubric/train.jsonl", "--model", "seedling", "--config", "config.yaml"], folder
    )


_WORDS = (
    *("train", "world", "rubric", "refilter", "run", "verify", "estimate", "fit", "evaluate", "predict"),
    *("calibrate", "--config", "config.yaml", "--config=", "--model", "none/such/model"),
    *("--output-dir", "out", "--show", "json", "--seed", "-1", "x", "1e9", "--iterations", "--scheme"),
    *("rejection:0", "--reward", "ordinal(", "--accept-at", "nan", "inf", "--columns", "a=b", "a"),
    *("=", "--raters", "named", "--scale", "5,1", "--task", "judge", "-", "--", "-h", "--help"),
    *("--version", "--no-try", "--row", "0", "--num-train", "3", "--noise", "--difficulty", "2", ""),
    *("none.jsonl", ".", "..", "\ud800", "\x00", "é", "[bold]", "\x1b[31m", "--[x]", "a" * 5_000),
    *("--model=", "-x", "--change.reward", "--no-baselines", "--baselines", "--settings"),
    *("--training", "--output_dir=out", "🦊", "'", "rubric/train.jsonl", "rubric", "run/config.yaml"),
    *("run/iteration-001/examples.parquet", "--balance", "data"),
)


def make_words(rng: Random) -> list[str]:
    stored_files()
    others = (
        "fit",
        "train",
        "check",
        "verify",
        "estimate",
        "predict",
        "sample",
        "compare",
        "bias",
        "calibrate",
    )
    verb = rng.choice(("world", "refilter", rng.choice((*others, "calibrate"))))
    good = {
        "world": ["rubric", "--output-dir", "out", "--num-train", "3"],
        "refilter": ["run", "--accept-at", "0.5"],
    }.get(verb, ["none.jsonl", "--model", "none/such/model"])
    words = [verb, *good]
    for _ in range(rng.choice((0, 1, 1, 2, 4))):
        what = rng.randrange(3)
        at = rng.randrange(len(words) + 1)
        words[at : at + (what == 0)] = [] if what == 1 else [rng.choice(_WORDS)]
    return words


def read_words(words: list[str], folder: Path) -> None:
    unpacked(folder)
    run_command(words, folder)


class Refused(FemtuneError):
    """What the command line refused, with the message it gave."""


def run_command(words: Sequence[str], folder: Path) -> None:
    """`femtune` with these words, in a folder. Raises Refused with what it says if refused."""
    out = io.TextIOWrapper(io.BytesIO(), "utf-8", "strict", write_through=True)
    errors = io.TextIOWrapper(io.BytesIO(), "utf-8", "backslashreplace", write_through=True)
    with (
        within(folder),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(errors),
        _no_input(),
    ):
        status = main.main(words)
    said = errors.buffer.getvalue().decode()
    assert len(said) < 10_000, f"{len(said)} characters of error"
    if status in (1, main.USAGE):
        raise Refused(said)
    assert status == 0, f"exit status {status}, and says: {said!r}"


@contextlib.contextmanager
def _no_input() -> Iterator[None]:
    before, sys.stdin = sys.stdin, io.StringIO("")
    try:
        yield
    finally:
        sys.stdin = before
