"""The command line: what its commands do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from femtune.cli.main import USAGE, main
from femtune.runs.draws import read_draws

from .rubric_world import JUDGE, SEEDLING, listing, make_world, rows_of, write

SHORT_M_STEP = ("--num-train-epochs=1", "--per-device-train-batch-size=8")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def done(world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    """A run of one iteration, and the command that made it."""
    out = tmp_path_factory.mktemp("done") / "run"
    argv = [
        *("train", str(world / "train.jsonl"), *SEEDLING, *JUDGE),
        *("--eval-data", str(world / "test.jsonl")),
        *("--iterations", "1", "--learning-rate", "1e-3", *SHORT_M_STEP, "--output-dir", str(out)),
    ]
    assert main(argv) == 0
    return argv, out


def all_draws(root: Path) -> dict[str, list[Any]]:
    folders = sorted(path for kind in ("draws", "eval") for path in root.glob(f"iteration-*/{kind}"))
    return {
        str(folder.relative_to(root)): [d for chunk, _ in read_draws(folder) for d in chunk]
        for folder in folders
    }


def test_a_completed_run_given_again_does_nothing_and_prints_the_same(
    done: tuple[list[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    argv, root = done
    before = listing(root)
    assert main(argv) == 0
    first = capsys.readouterr().out
    assert main(argv) == 0
    assert capsys.readouterr().out == first
    assert listing(root) == before
    lines = first.splitlines()
    assert lines[0].startswith("base ")
    assert lines[1].startswith("iteration 1  kept ")
    why = "iteration 1, the last: there is no development part to choose by"
    models = [f"best model ({why}): {root / 'best'}", f"last model: {root / 'last'}"]
    told = [*models, f"draws, examples, metrics: {root}"]
    assert lines[-5:-2] == told and lines[-1] == f"report: {root / 'report.html'}"
    assert lines[-2].startswith(f"next: femtune predict new.csv --model {root} ")


def test_json_is_one_object_an_iteration_and_nothing_else(
    done: tuple[list[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    argv, root = done
    assert main([*argv, "--show", "json"]) == 0
    history = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [metrics["iteration"] for metrics in history] == [0, 1]
    stored = (root / "iteration-001" / "metrics.json").read_text()
    assert history[1] == json.loads(stored)


def test_quiet_says_nothing(done: tuple[list[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*done[0], "--show=quiet"]) == 0
    assert capsys.readouterr() == ("", "")


def test_more_iterations_go_on_with_a_run(
    done: tuple[list[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    argv, root = done
    before = all_draws(root)
    more = [word if word != "1" else "2" for word in argv]
    assert main(more) == 0
    assert "iteration 2" in capsys.readouterr().out.splitlines()[2]
    after = all_draws(root)
    assert {name: after[name] for name in before} == before
    assert after.keys() - before.keys() == {"iteration-002/draws", "iteration-002/eval"}
    assert (root / "last").resolve() == root / "iteration-002" / "model"


def test_flags_override_the_file_and_both_are_stored(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "run.yaml"
    given = {"model": "seedling", "scheme": "star", "seed": 3, "max_new_tokens": 48, "iterations": 1}
    given |= {"task": "judge", "raters": "named", "scale": "1,5"}
    given |= {"num_train_epochs": 1.0, "per_device_train_batch_size": 8}
    columns = {"columns": ["score=label"], "lr_scheduler_type": "linear", "eval_share": 0}
    file.write_text(yaml.safe_dump(given | columns))
    rows = [
        {key: row[key] for key in ("prompt", "response", "rater")} | {"label": row["score"]}
        for row in rows_of(world / "train.jsonl")
    ]
    data = write(tmp_path / "labels.jsonl", rows)
    argv = ["train", data, "--config", str(file), "--seed", "4", "--scheme=pps", "--show", "quiet"]
    assert main([*argv, "--output_dir", str(tmp_path / "run")]) == 0
    stored = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert stored.items() >= (given | columns | {"seed": 4, "scheme": "pps", "data": data}).items()
    saved = pq.read_table(tmp_path / "run" / "problems.parquet").to_pylist()
    assert [row["answer"] for row in saved] == [str(row["label"]) for row in rows]
    # what the task brings is stored too: nothing is left open
    assert stored["reward"] == 'ordinal("1,5")'
    assert stored["instruction"].endswith("the rating, a whole number from 1 to 5.")


def test_a_run_without_a_name_finds_itself_again(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    argv = ["evaluate", str(world / "test.jsonl"), *SEEDLING, *JUDGE, "--show", "json"]
    printed = []
    for _ in range(2):
        assert main(argv) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    assert [path.name.rsplit("-", 1)[0] for path in (tmp_path / "runs").iterdir()] == ["evaluate-test"]


def test_sample_fit_evaluate_and_predict_are_a_pipeline(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train, test = (str(world / name) for name in ("train.jsonl", "test.jsonl"))
    where = tmp_path / "drawn"
    argv = ["sample", train, *SEEDLING, *JUDGE, "--scheme", "star", "--output-dir", str(where)]
    assert main([*argv, "--show", "json"]) == 0
    sampled = json.loads(capsys.readouterr().out)
    examples = where / "iteration-001" / "examples.parquet"
    table = pq.read_table(examples)
    assert {"prompt", "completion", "weight"} <= {*table.column_names}
    assert table.num_rows == sampled["num_kept"] > 0

    model = tmp_path / "model"
    short = [*SHORT_M_STEP, "--output-dir", str(model)]
    assert main(["fit", str(examples), "--model", "seedling", *short]) == 0
    printed = capsys.readouterr().out
    assert f"{'num_examples':<22}{table.num_rows}\n" in printed
    assert printed.endswith(f"model: {model}\n")
    assert f"{'learning_rate':<22}5e-05\n" in printed  # not 0.000

    trained = ["--model", str(model), "--max-new-tokens", "48", *JUDGE]
    argv = ["evaluate", test, *trained, "--output-dir", str(tmp_path / "e")]
    assert main(argv) == 0
    printed = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines())
    assert printed["num_problems"] == "12"

    rows = [{k: row[k] for k in ("id", "prompt", "response", "rater")} for row in rows_of(Path(test))]
    items = write(tmp_path / "items.jsonl", rows)  # no scores
    file = tmp_path / "votes" / "predictions.jsonl"
    assert (
        main(["predict", items, *trained, "--draws", "3", "--temperature", "1", "--output", str(file)])
        == 0
    )
    counts, *where = capsys.readouterr().out.splitlines()
    assert counts.startswith("12 items: ")
    assert where == [f"predictions: {file}", f"their draws: {file}.draws"]
    assert main(["predict", items, *trained, "--draws", "1", "--temperature", "0"]) == 0
    greedy = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    voted = rows_of(file)
    assert [p["id"] for p in greedy] == [p["id"] for p in voted] == [row["id"] for row in rows]
    assert all(sum(p["votes"].values()) <= 3 for p in voted)
    right = [p["answer"] == str(r["score"]) for p, r in zip(greedy, rows_of(Path(test)), strict=True)]
    assert float(printed["accuracy"].split()[0]) == pytest.approx(
        sum(right) / 12, abs=5e-4
    )  # as printed


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("raters", JUDGE),
        ("tldr", ("--task", "summarize", "--raters", "named")),
        ("tldr-axis", ("--task", "summarize", "--raters", "named")),
        ("sums", ("--task", "math")),
        ("quiz", ("--task", "choice")),
    ],
)
def test_every_world_is_a_task(
    name: str, flags: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its files are read without a word of where its columns are, and nothing of one is in the other."""
    assert main(["world", name, "--output-dir", str(tmp_path), "--num-train", "20"]) == 0
    train, test = (str(tmp_path / file) for file in ("train.jsonl", "test.jsonl"))
    argv = ["check", train, "--model", "seedling", "--max-new-tokens", "48", *flags, "--no-try"]
    assert main([*argv, "--eval-data", test]) == 0
    assert "every correct answer earns at least 1" in capsys.readouterr().out


def test_bad_rows_are_left_out_where_asked(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = rows_of(world / "train.jsonl")
    rows[3]["score"] = 9
    data = write(tmp_path / "bad.jsonl", rows)
    argv = ["check", data, *SEEDLING, *JUDGE, "--no-try", "--bad-rows", "skip"]
    assert main(argv) == 0
    assert "23; further columns" in capsys.readouterr().out


def test_a_world_given_again_is_the_same(world: Path, tmp_path: Path) -> None:
    for _ in range(2):
        argv = ["world", "rubric", "--num-train", "24", "--num-test", "12", "--seed", "2"]
        assert main([*argv, "--output-dir", str(tmp_path)]) == 0
        assert listing(tmp_path) == listing(world)


# --- signals and pipes

CLI = (
    "import signal, sys; from femtune.cli.main import main;"
    "signal.signal(signal.SIGINT, signal.default_int_handler);"  # a parent may have it ignored
    "sys.exit(main())"
)


@pytest.mark.parametrize(
    ("command", "line"),
    [
        ("predict", '{"item": 0}'),  # plain print
        ("--help", "Settings may also stand in a YAML file, which flags override: --config run.yaml,"),
        ("world", "written: {}/train.jsonl"),  # through rich
    ],
)
def test_a_reader_that_has_had_enough_makes_no_traceback(
    tmp_path: Path, command: str, line: str
) -> None:
    """More is printed than a pipe holds, 64 KiB."""
    argv = {"predict": "x --model y", "--help": "", "world": f"rubric --output-dir {tmp_path}"}[command]
    code = (
        "import sys, femtune.comparison.demo, femtune.workflows.predict\n"
        "femtune.workflows.predict.predictions = lambda *args: ({'item': i} for i in range(100_000))\n"
        "write = femtune.comparison.demo.write_world\n"
        f"femtune.comparison.demo.write_world = lambda *args: write(*args)[:1] * 10_000\n{CLI}"
    )
    shell = f'set -o pipefail; "{sys.executable}" -c "$CODE" {command} {argv} | head -1'
    environ = {**os.environ, "CODE": code}
    done = subprocess.run(["bash", "-c", shell], env=environ, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert done.stdout == line.replace("{}", str(tmp_path)) + "\n"
    assert done.stderr == ""


def test_a_long_value_is_shown_in_part(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.yaml").write_text(f"seed: {'x' * 50_000}\n")
    argv = ["train", "a.jsonl", "--model", "m", "--config", str(tmp_path / "run.yaml")]
    assert main(argv) == USAGE
    error = capsys.readouterr().err
    assert "seed" in error and "..." in error and len(error) < 2000
