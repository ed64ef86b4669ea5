"""What a run, or somebody in its place, has stored: calibrations, draws, examples, models."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from femtune.cli import main
from femtune.comparison.compare import state
from femtune.config import CHANGEABLE
from femtune.data.worlds import SEEDLING
from femtune.engines.model_files import load_config, load_tokenizer
from femtune.errors import FemtuneError
from femtune.evaluation.calibration import load_calibration
from femtune.evaluation.calibration_map import Calibration, apply
from femtune.mstep import examples
from femtune.runs import draws as stored_draws
from femtune.runs.run import check_run
from femtune.tools.estimate.shapes import read_shape
from femtune.tools.refilter import Change, refilter
from femtune.workflows.chosen_calibration import check_calibration

from .mangling import (
    File,
    altered,
    as_jsonl,
    as_parquet,
    as_yaml,
    damaged,
    odd_bytes,
    often,
    rows,
    within,
    written,
)
from .tables import tokenizer


@cache
def _calibrations() -> tuple[bytes, ...]:
    knots = (((0.0, 1.0), (0.1, 0.9)),) * 2
    made = (
        Calibration("temperature", ("1", "2"), temperature=1.9, smoothing=0.1),
        Calibration("isotonic", ("A", "B"), knots=knots),
    )
    return tuple(json.dumps(asdict(one)).encode() for one in made)


def make_calibration(rng: Random) -> File:
    good = rng.choice(_calibrations())
    value = json.loads(good)
    for _ in range(rng.choice((0, 1, 1, 2))):
        value = altered(rng, value)
    return File("map.json", often(rng, 0.3, json.dumps(value).encode("utf-8", "surrogatepass")))


def read_calibration(file: File, folder: Path) -> None:
    found = load_calibration(file.write(folder))
    size = len(found.scale)
    shares = np.eye(size, dtype=float)
    assert np.allclose(apply(found, shares).sum(axis=1), 1)
    check_calibration(found, [])


@cache
def stored_files() -> dict[str, bytes]:
    """The files of a run, by name: an E-step of `sample` on the rubric world, by the seedling."""
    with tempfile.TemporaryDirectory() as scratch, within(Path(scratch)):
        for words in (
            "world rubric --output-dir rubric --num-train 12 --num-test 4",
            "sample rubric/train.jsonl --output-dir run --model seedling --task judge --scale 1,5 "
            "--raters named --scheme rejection:2 --max-new-tokens 48 --chunk-size 6 --show quiet",
        ):
            assert main.main(words.split()) == 0
        files = [
            path for path in sorted(Path().glob("*/**/*")) if path.is_file() and path.stat().st_size
        ]
        return {str(path): path.read_bytes() for path in files}


def unpacked(folder: Path) -> Path:
    """The folder `run` of `stored_files`, and beside it `rubric`, as they were."""
    shutil.rmtree(folder / "run", ignore_errors=True)
    for name, content in stored_files().items():
        File(name, content).write(folder)
    return folder / "run"


def _altered_table(rng: Random, stored: bytes) -> bytes:
    """A Parquet file of other values, rows, columns or metadata than those of the one stored."""
    table = pq.read_table(pa.BufferReader(stored))
    name = rng.choice(table.column_names)
    what = rng.randrange(6)
    if what == 0:
        return damaged(rng, stored)
    if what == 1:
        table = table.drop_columns(name)
    elif what == 2:
        table = table.replace_schema_metadata({b"timing": odd_bytes(rng)} if rng.random() < 0.8 else {})
    elif what == 3:
        return as_parquet(rng, [altered(rng, row) for row in table.slice(0, 4).to_pylist()])
    else:
        place, column = table.column_names.index(name), table[name]
        odd_ones = (None, None, 7, "x", -1.5, [1], [None], True, b"\xff")
        same = {"string": ("", "x", "\x00", "hinted", "length"), "double": (float("nan"), -1e308, 0.5)}
        values = odd_ones if what == 4 else same.get(str(column.type), (0, -1, 2**31 - 1))
        found_ = column.to_pylist()
        found_ = [rng.choice(values)] * len(found_) if what == 4 else _some(rng, found_, values)
        with contextlib.suppress(pa.ArrowException, TypeError):
            array = pa.array(found_, None if what == 4 else column.type)
            table = table.set_column(place, name if what == 4 else table.schema.field(place), array)
    return often(rng, 0.2, written(table))


def _some(rng: Random, values: Sequence[Any], others: Sequence[Any]) -> list[Any]:
    """Values, every third or so one of the others."""
    return [rng.choice(others) if rng.random() < 0.3 else value for value in values]


_SHARD = "run/iteration-001/draws/00000.parquet"


def make_shard(rng: Random) -> File:
    return File("00000.parquet", _altered_table(rng, stored_files()[_SHARD]))


def read_shard(file: File, folder: Path) -> None:
    draws, timing = stored_draws.read_shard(file.write(folder))
    assert all(isinstance(draw.completion.text, str) for draw in draws)
    assert isinstance(timing, dict)


def make_examples(rng: Random) -> File:
    stored = stored_files()["run/iteration-001/examples.parquet"]
    if rng.random() < 0.6:
        return File("examples.parquet", _altered_table(rng, stored))
    good = pq.read_table(pa.BufferReader(stored)).slice(0, 4).to_pylist()
    names = [*good[0]]
    if rng.random() < 0.7:
        names = ["prompt", "completion", *(["weight"] if rng.random() < 0.5 else [])]
    made = rows(rng, [{name: row[name] for name in names} for row in good])
    return File("examples.jsonl", as_jsonl(rng, made))


def read_examples(file: File, folder: Path) -> None:
    found = examples.read_examples(file.write(folder), tokenizer(), context=512)
    for prompt, completion, weight in zip(found.prompts, found.completions, found.weights, strict=True):
        assert all(isinstance(token, int) for token in (*prompt, *completion))
        assert isinstance(weight * 1.0, float)


def make_run(rng: Random) -> File:
    names = [_SHARD, "run/problems.parquet", "run/config.yaml", "run/config.yaml", "run/log.jsonl"]
    name = rng.choice(names)
    stored = stored_files()[name]
    if name == _SHARD:
        return File(name, _altered_table(rng, stored))
    if name == "run/problems.parquet":
        return File(name, _altered_table(rng, stored))
    if name == "run/config.yaml" and rng.random() < 0.7:
        return File(name, as_yaml(rng, yaml.safe_load(stored)))
    if name == "run/log.jsonl" and rng.random() < 0.5:
        return File(name, as_jsonl(rng, rows(rng, [json.loads(line) for line in stored.splitlines()])))
    return File(name, damaged(rng, stored))


def read_run(file: File, folder: Path) -> None:
    run = unpacked(folder)
    file.write(folder)
    state(run)
    with contextlib.suppress(FemtuneError):
        check_run(run, {"model": "seedling", "seed": 0}, CHANGEABLE)
    refilter(run, Change(accept_at=0.5))


# --- models


def make_model(rng: Random) -> File:
    names = (
        "config.json",
        "tokenizer_config.json",
        "tokenizer.json",
        "model.safetensors",
        "adapter_config.json",
    )
    name = rng.choice(names)
    stored = (
        (SEEDLING / name).read_bytes()
        if (SEEDLING / name).exists()
        else b'{"base_model_name_or_path": "x"}'
    )
    if name == "model.safetensors":  # its header alone: nothing else is read here
        size = 8 + int.from_bytes(stored[:8], "little")
        return File(name, damaged(rng, stored[:size]))
    if rng.random() < 0.7:
        return File(name, often(rng, 0.2, json.dumps(altered(rng, json.loads(stored))).encode()))
    return File(name, damaged(rng, stored))


def read_model(file: File, folder: Path) -> None:
    shutil.rmtree(folder / "model", ignore_errors=True)
    shutil.copytree(SEEDLING, folder / "model")
    file.write(folder / "model")
    load_config(folder / "model")
    read_shape(folder / "model")
    tokenizer = load_tokenizer(folder / "model")
    tokenizer.encode_prompt([{"role": "user", "content": "Hi"}])
    tokenizer.encode_completion("Answer: 4")
