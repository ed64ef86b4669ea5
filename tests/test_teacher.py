"""A teacher draws in the first E-step; the student trains on its text, then draws by itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from femtune import train
from femtune.comparison.demo import write_world
from femtune.data.worlds import SEEDLING
from femtune.errors import ConfigError, FemtuneError, ModelError, RunError
from femtune.reporting.page.render import report
from femtune.runs.draws import read_draws
from femtune.workflows.teacher import license_of

SETTINGS: dict[str, Any] = {
    "task": "judge",
    "scale": "1,5",
    "raters": "named",
    "scheme": "rejection:2",
    "iterations": 2,
    "max_new_tokens": 40,
    "bound_draws": 0,
    "reader_problems": 0,
    "eval_every": 0,
    "num_train_epochs": 1,
    "chunk_size": 16,
    "device": "cpu",
    "use_cpu": True,
}


def changed_seedling(folder: Path, by: float) -> Path:
    """Return a copy of the demo model with other weights, and a licence in its card."""
    shutil.copytree(SEEDLING, folder)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n\nA teacher.\n")
    weights = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    moved = {
        name: w * (1 + by * torch.randn(w.shape, generator=generator)) for name, w in weights.items()
    }
    save_file(moved, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_world("rubric", tmp_path_factory.mktemp("data"), 40, 10)[0])


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return changed_seedling(tmp_path_factory.mktemp("teacher") / "model", 0.01)


@pytest.fixture(scope="module")
def run(data: str, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("taught") / "run"
    return train(data, "seedling", teacher=str(teacher), output_dir=place, **SETTINGS).run


def texts(run: Path, iteration: int) -> list[str]:
    folder = run / f"iteration-{iteration:03}" / "draws"
    return [draw.completion.text for chunk, _ in read_draws(folder) for draw in chunk]


def test_the_first_draws_are_those_that_the_teacher_makes_itself(
    run: Path, data: str, teacher: Path, tmp_path: Path
) -> None:
    once = SETTINGS | {"iterations": 1}
    itself = train(data, str(teacher), output_dir=tmp_path / "itself", **once).run
    assert texts(run, 1) == texts(itself, 1)
    student = train(data, "seedling", output_dir=tmp_path / "student", **once).run
    assert texts(run, 1) != texts(student, 1)


def test_the_student_trains_on_the_teachers_text_under_the_plain_prompt(run: Path) -> None:
    first = pq.read_table(run / "iteration-001" / "examples.parquet").to_pydict()
    assert "completion_tokens" not in first
    assert {each[0]["content"] for each in first["completion"]} <= {*texts(run, 1)}
    assert "completion_tokens" in pq.read_schema(run / "iteration-002" / "examples.parquet").names


def test_what_drew_is_stored_and_its_tokens_are_apart(run: Path, teacher: Path) -> None:
    about = json.loads((run / "teacher.json").read_text())
    relied = yaml.safe_load((run / "config.yaml").read_text())["relies_on"]
    assert about["model"] == str(teacher) and about["license"] == "mit"
    assert about["sha256"] == relied["teacher"] != relied["weights"]
    files = [run / f"iteration-00{number}" / "metrics.json" for number in (1, 2)]
    steps = [json.loads(file.read_text())["e_step"] for file in files]
    assert steps[0]["teacher_tokens"] > 0 == steps[0]["generated_tokens"]
    assert "teacher_tokens" not in steps[1] and steps[1]["generated_tokens"] > 0


def test_card_and_report_say_the_teachers_name_tokens_and_licence(run: Path, tmp_path: Path) -> None:
    card = (run / "last" / "README.md").read_text()
    assert "The draws of iteration 1 are those of a teacher, `model`" in card
    assert "Licence of the teacher: mit." in card
    page = report([run], tmp_path / "report.html").read_text()
    assert "teacher of iteration 1" in page and "mit" in page


def test_a_resumed_run_draws_what_is_missing_by_the_teacher(
    run: Path, data: str, teacher: Path, tmp_path: Path
) -> None:
    place = tmp_path / "run"
    shutil.copytree(run, place, symlinks=True)
    for number in (1, 2):
        shutil.rmtree(place / f"iteration-00{number}")
    train(data, "seedling", teacher=str(teacher), output_dir=place, **SETTINGS)
    assert [texts(place, k) for k in (1, 2)] == [texts(run, k) for k in (1, 2)]


def test_a_run_whose_teacher_changed_is_refused(run: Path, data: str, teacher: Path) -> None:
    weights = (teacher / "model.safetensors").read_bytes()
    try:
        (teacher / "model.safetensors").write_bytes((SEEDLING / "model.safetensors").read_bytes())
        with pytest.raises(RunError, match="can't be resumed: the teacher's weights changed"):
            train(data, "seedling", teacher=str(teacher), output_dir=run, **SETTINGS)
    finally:
        (teacher / "model.safetensors").write_bytes(weights)
    with pytest.raises(RunError, match=r"another configuration"):
        train(data, "seedling", output_dir=run, **SETTINGS)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"teacher": "/nowhere/model"}, ModelError, "is no model folder"),
        ({"scheme": "rejection:4+chain"}, ConfigError, "the teacher's draws are another model's"),
        ({"scheme": "pps:4+importance"}, ConfigError, "the teacher's draws are another model's"),
        ({"scheme": "star+reasons"}, ConfigError, "the teacher's draws are another model's"),
        (
            {"m_step": "examples", "eval_every": 1},
            ConfigError,
            "is for M-steps that train weights",
        ),
        ({"max_cost": 1.0}, ConfigError, "max_cost is for --engine chat"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_does_not_go_with_a_teacher_is_refused_before_the_data_are_read(
    settings: dict[str, Any], error: type[FemtuneError], message: str, teacher: Path, tmp_path: Path
) -> None:
    asked = SETTINGS | {"teacher": str(teacher)} | settings
    with pytest.raises(error, match=message):
        train("nowhere.jsonl", "seedling", output_dir=tmp_path / "run", **asked)
    assert not (tmp_path / "run").exists()


def test_a_teacher_without_a_tokenizer_is_refused(teacher: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(teacher, bare)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (bare / name).unlink()
    with pytest.raises(ModelError, match="tokenizer"):
        train("nowhere.jsonl", "seedling", teacher=str(bare), output_dir=tmp_path / "run", **SETTINGS)


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: apache-2.0\n---\n", "apache-2.0"),
        ("---\nlicense: other\nlicense_name: llama3\n---\n", "llama3"),
        ("No metadata.", "unknown"),
        (None, "unknown"),
    ],
)
def test_a_licence_is_that_of_the_models_card(card: str | None, licence: str, tmp_path: Path) -> None:
    if card is not None:
        (tmp_path / "README.md").write_text(card)
    assert license_of(tmp_path) == licence
