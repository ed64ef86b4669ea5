"""From a CSV with ratings to a calibrated judge that scores new rows, with nothing told twice."""

from __future__ import annotations

import csv
import json
import shlex
from pathlib import Path
from typing import Any

import pytest

import femtune
from femtune.cli.main import main
from femtune.data.worlds import WORLDS

SETTINGS = """
model: seedling
task: judge
scale: 1,5
columns: {prompt: question, response: answer text, score: stars}
max_new_tokens: 48
learning_rate: 3e-4
num_train_epochs: 2
per_device_train_batch_size: 32
iterations: 1
"""
SCRIPT = """
check ratings.csv --config judge.yaml --no-try
estimate ratings.csv --config judge.yaml
train ratings.csv --config judge.yaml --output-dir judge
report judge
verify judge
refilter judge --accept-at 0.75
evaluate test.csv --model judge
bias test.csv --model judge
calibrate validation.csv --model judge
predict new.csv --model judge --output scores.csv
demos judge --output examples.jsonl
push judge me/judge --dry-run
"""
PLACES = {"--config", "--model", "--output", "--output-dir"}  # names of files and folders


def write_csv(path: str, rows: list[dict[str, Any]], **names: str) -> None:
    """Write rows with other names for their columns; names that are left out leave out the column."""
    with open(path, "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(names.values())
        table.writerows([row[name] for name in names] for row in rows)


@pytest.fixture
def tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Write the tables of a world where the tests run, and return the rows to score."""
    monkeypatch.chdir(tmp_path)
    world = WORLDS["rubric"]
    rows = world.rows(170, seed=1, difficulty=world.difficulty, noise=0.0)
    own = {"prompt": "question", "response": "answer text", "score": "stars"}
    write_csv("ratings.csv", rows[:100], **own)
    write_csv("test.csv", rows[100:130], **own)
    write_csv("validation.csv", rows[130:160], **own)
    write_csv("new.csv", rows[160:], prompt="prompt", response="response")  # femtune's own names
    Path("judge.yaml").write_text(SETTINGS)
    return rows[160:]


@pytest.mark.slow
def test_twelve_commands_are_told_nothing_twice(
    tables: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    commands = [shlex.split(line) for line in SCRIPT.strip().splitlines()]
    flags = [word for words in commands for word in words if word.startswith("--")]
    assert len(commands) == 12
    assert all(flags.count(flag) == 1 for flag in {*flags} - PLACES)
    said = {}
    for words in commands:
        assert main(words) == 0, (words, capsys.readouterr().err)
        said[words[0]] = capsys.readouterr()
    assert "trained with" not in said["predict"].err + said["evaluate"].err
    assert "The model's own calibration is applied" in said["predict"].err
    assert "is not used: it was fitted to 16 draws at temperature 1" not in said["predict"].err
    assert "calibration.json" in said["push"].out  # it goes where the model goes
    with open("scores.csv", newline="") as file:
        scores = list(csv.DictReader(file))
    assert [row["response"] for row in scores] == [row["response"] for row in tables]
    assert {row["answer"] for row in scores} <= {*"12345"}
    assert any(row["distribution"] != row["probabilities"] for row in scores)


@pytest.mark.slow
def test_python_has_the_same_in_twenty_lines(tables: list[dict[str, Any]]) -> None:
    script = """
import csv, femtune
def rows(name):
    with open(name, newline="") as file:
        return list(csv.DictReader(file))
columns = {"prompt": "question", "response": "answer text", "score": "stars"}
judge = dict(task="judge", scale="1,5", columns=columns, max_new_tokens=48, iterations=1)
found = femtune.check(rows("ratings.csv"), "seedling", try_=False, progress="quiet", **judge)
assert found.ready is not False  # None: nothing was drawn
training = dict(learning_rate=3e-4, num_train_epochs=2, per_device_train_batch_size=32)
result = femtune.train(
    rows("ratings.csv"), "seedling", output_dir="judge", progress="quiet", **judge, **training
)
print(result)
print(result.best.evaluate(rows("test.csv"), progress="quiet").accuracy_ci)
print(result.best.calibrate(rows("validation.csv"), progress="quiet"))
scores = result.best.predict(rows("new.csv"))
print(scores[0]["answer"], scores[0]["confidence"])
"""
    assert len(script.strip().splitlines()) <= 20
    names: dict[str, Any] = {}
    exec(script, names)
    scores = names["scores"]
    assert [row["response"] for row in scores] == [row["response"] for row in tables]
    assert any(row["distribution"] != row["probabilities"] for row in scores)
    assert isinstance(names["result"].best, femtune.TrainedModel)
    assert json.loads(Path("judge/best/calibration.json").read_text())["draws"] == 16
