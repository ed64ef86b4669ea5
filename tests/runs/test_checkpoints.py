"""Which models are kept, what is called best, and that a disk's room is looked at first."""

from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from femtune.engines.model_files import find_model
from femtune.errors import RunError
from femtune.mstep.config import Training
from femtune.mstep.disk import check_room, exported_dtype, model_bytes
from femtune.runs.checkpoints import (
    MASTER,
    best_model,
    best_of,
    drop_masters,
    is_out_of_patience,
    link_models,
    next_start,
    thin_out,
)
from femtune.runs.manifest import recorded
from femtune.runs.run import Run

from ..models import tiny_model

Usage = namedtuple("Usage", "total used free")


def run_of(root: Path, accuracies: list[float | None]) -> tuple[Run, list[dict[str, Any]]]:
    """A run of so many iterations; None: not measured."""
    run, history = Run(root), [{"iteration": 0, "evaluation": {"accuracy": 1.0}}]
    for iteration, accuracy in enumerate(accuracies, 1):
        model = run.iteration(iteration) / "model"
        model.mkdir(parents=True)
        (model / "weights").write_text(str(iteration))
        run.record(model)
        measured = {} if accuracy is None else {"development": {"accuracy": accuracy}}
        history.append({"iteration": iteration, **measured})
    return run, history


def models(run: Run) -> list[int]:
    return [int(path.parent.name[-3:]) for path in sorted(run.root.glob("iteration-*/model"))]


def test_the_best_is_the_first_of_the_most_accurate_the_base_aside() -> None:
    history = [
        {"iteration": i, "development": {"accuracy": a}} for i, a in enumerate([1, 0.5, 0.7, 0.7])
    ]
    assert best_of(history) == 2
    held_out = [each | {"evaluation": {"accuracy": 1 / (1 + each["iteration"])}} for each in history]
    assert best_of(held_out) == 2  # these choose nothing
    assert best_of([{"iteration": 0}, {"iteration": 1}, {"iteration": 2}]) == 2


@pytest.mark.parametrize(
    ("accuracies", "patience", "is_over"),
    [
        ([0.5, 0.4], 0, False),
        ([0.5, 0.4], 1, True),
        ([0.5, 0.5], 1, True),  # as good is not better
        ([0.5, 0.6], 1, False),
        ([0.5, 0.4, 0.4], 3, False),
        ([0.5, None, 0.4], 2, True),
        ([0.5, None, None], 2, False),  # nobody looked whether it is better
        ([None, None], 1, False),  # nothing to be impatient by
    ],
)
def test_patience_counts_from_the_best(
    tmp_path: Path, accuracies: list[float | None], patience: int, is_over: bool
) -> None:
    assert is_out_of_patience(run_of(tmp_path, accuracies)[1], patience) == is_over


def test_a_runs_folder_stands_for_its_best_model(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run, history = run_of(tmp_path, [0.5, 0.9, 0.6])
    assert best_model(tmp_path) is None
    (tmp_path / "config.yaml").write_text("format: 1")
    link_models(run, history)
    for each in history:
        found = each | {"development": each.get("development", {}) | {"num_problems": 40}}
        run.write_json(run.iteration(each["iteration"]) / "metrics.json", found)
    assert best_model(tmp_path) == (
        tmp_path / "best",
        "iteration 2, accuracy 0.900 on 40 development problems",
    )
    (run.iteration(2) / "model" / "config.json").write_text("{}")
    with caplog.at_level("INFO", "femtune"):
        assert find_model(str(tmp_path)) == find_model(str(tmp_path)) == tmp_path / "best"
    [said] = caplog.messages  # once, though the model is found twice
    why = "iteration 2, accuracy 0.900 on 40 development problems"
    assert said.endswith(f"is a run: its best model is used ({why}).")
    (run.iteration(1) / "metrics.json").write_text("{")
    with pytest.raises(RunError, match=r"metrics\.json is not valid JSON"):
        best_model(tmp_path)


@pytest.mark.parametrize(
    ("keep_last", "kept"), [(0, [1, 2, 3, 4, 5]), (1, [2, 5]), (2, [2, 4, 5]), (9, [1, 2, 3, 4, 5])]
)
def test_the_last_and_the_best_are_kept(tmp_path: Path, keep_last: int, kept: list[int]) -> None:
    run, history = run_of(tmp_path, [0.5, 0.9, 0.6, None, 0.7])
    link_models(run, history)
    thin_out(run, history, keep_last)
    assert models(run) == kept
    assert {path.split("/")[0] for path in recorded(tmp_path)} == {f"iteration-00{i}" for i in kept}
    assert [(tmp_path / name / "weights").read_text() for name in ("best", "last")] == ["2", "5"]
    assert not list(tmp_path.rglob(".*part"))


def test_thinning_out_as_a_run_goes_keeps_what_it_goes_on_from(tmp_path: Path) -> None:
    run, history = run_of(tmp_path, [0.5, 0.9, 0.6, 0.95, 0.7])
    for end in range(2, len(history) + 1):
        link_models(run, history[:end])
        thin_out(run, history[:end], 1)
        assert (tmp_path / "last" / "weights").read_text() == str(end - 1)
    assert models(run) == [4, 5]


def test_links_that_became_folders_as_a_run_was_copied_are_refused(tmp_path: Path) -> None:
    run, history = run_of(tmp_path / "a", [0.5])
    link_models(run, history)
    copy = Run(shutil.copytree(run.root, tmp_path / "b"))  # follows links
    with pytest.raises(RunError, match="last is a folder and must be a link"):
        link_models(copy, history)


def test_float32_weights_of_the_newest_iteration_alone_are_kept(tmp_path: Path) -> None:
    run, _ = run_of(tmp_path, [0.5, 0.9])
    for iteration in (1, 2):
        master = run.iteration(iteration) / MASTER
        master.mkdir()
        (master / "weights").write_text("x")
        run.record(master)
    drop_masters(run, 2)
    assert [path for path in recorded(tmp_path) if MASTER in path] == ["iteration-002/master/weights"]
    assert next_start(run.iteration(1) / "model") == run.iteration(1) / "model"
    assert next_start(run.iteration(2) / "model") == run.iteration(2) / MASTER
    assert not list(tmp_path.rglob(".*part")) and models(run) == [1, 2]


def test_a_models_size_is_that_of_its_weights_in_float32(tmp_path: Path) -> None:
    import torch

    folder = tiny_model(tmp_path / "m", "llama", dtype=torch.bfloat16)
    size = (folder / "model.safetensors").stat().st_size
    assert model_bytes(folder, Training()) == pytest.approx(2 * size, rel=0.2)
    assert exported_dtype(folder, Training()) == "bfloat16"
    assert exported_dtype(folder, Training(use_peft=True)) == "float32"
    assert model_bytes(folder, Training(), "bfloat16") == pytest.approx(size, rel=0.2)
    assert model_bytes(folder, Training(use_peft=True)) == 0  # a new adapter's is not known


def test_an_m_step_without_room_for_its_model_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_model(tmp_path / "m", "llama")
    check_room(tmp_path / "run" / "model", folder, Training())
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 10**9 - 1000, 1000))
    with pytest.raises(RunError, match=r"would take \d+ kB, and 1 kB are free there"):
        check_room(tmp_path / "run" / "model", folder, Training())
    needed = model_bytes(folder, Training(), "bfloat16")
    room = Usage(10**9, 0, 2 * needed)  # of the 2 + 4 bytes for each number
    monkeypatch.setattr(shutil, "disk_usage", lambda path: room)
    check_room(tmp_path / "run" / "model", folder, Training(), "bfloat16")
    with pytest.raises(RunError, match="would take"):
        check_room(tmp_path / "run" / "model", folder, Training(), "bfloat16", with_master=True)
