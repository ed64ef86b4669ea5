"""What trackers are told, read back from where each stores it: an experiment for a run, also resumed."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from femtune import fit, train
from femtune.cli.main import main
from femtune.comparison.demo import write_world
from femtune.errors import ConfigError
from femtune.mstep.config import TRACKERS, Training
from femtune.reporting import trackers
from femtune.reporting.terminal import Quiet
from femtune.reporting.trackers import NUM_COMPLETIONS, check_trackers, completions, numbers, tracking
from femtune.runs.draws import read_draws

# theirs, of which there are many
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]

JUDGE: dict[str, Any] = {"task": "judge", "raters": "named", "scale": "1,5", "scheme": "rejection:2"}
JUDGE |= {"max_new_tokens": 40, "learning_rate": 3e-4, "num_train_epochs": 4, "chunk_size": 16}


def installed(name: str) -> bool:
    try:
        check_trackers([name])
    except ConfigError:
        return False
    return True


def need(name: str) -> Any:
    if not installed(name):
        pytest.skip(f"{name} is not installed")
    return importlib.import_module(name)


@dataclass(frozen=True)
class Heard(Quiet):
    """The losses that a terminal is shown."""

    losses: list[float] = field(default_factory=list)

    def step(self, step: int, steps: int, loss: float) -> None:
        self.losses.append(loss)


@dataclass(frozen=True)
class Followed:
    """A run of two iterations, the second in another call, told to all trackers that are here."""

    root: Path
    losses: list[float]
    history: list[dict[str, Any]]

    @property
    def keys(self) -> dict[str, str]:
        known = json.loads((self.root / "trackers.json").read_text())
        return {name: entry["key"] for name, entry in known.items()}

    @property
    def accuracies(self) -> dict[int, float]:
        return {each["iteration"]: each["evaluation"]["accuracy"] for each in self.history}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_world("rubric", tmp_path_factory.mktemp("world"), 40, 20)


@pytest.fixture(scope="module")
def followed(world: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Followed]:
    folder = tmp_path_factory.mktemp("followed")
    own = {
        "WANDB_MODE": "offline",
        "MLFLOW_TRACKING_URI": f"file:{folder}/mlruns",
        "MLFLOW_ALLOW_FILE_STORE": "true",
        "TRACKIO_PROJECT": "followed",  # its folder is one for all tests: see conftest.py
    }
    before = dict(os.environ)
    os.environ.update(own)
    names = [name for name in TRACKERS if installed(name)]
    heard = Heard()
    for iterations in (1, 2):
        result = train(
            str(world[0]),
            "seedling",
            output_dir=folder / "run",
            eval_data=str(world[1]),
            iterations=iterations,
            report_to=tuple(names),
            progress=heard,
            **JUDGE,
        )
    yield Followed(result.run, heard.losses, result.history)
    os.environ.clear()
    os.environ.update(before)


def steps_of(followed: Followed) -> list[int]:
    total = sum(each["m_step"]["num_steps"] for each in followed.history[1:])
    assert total == len(followed.losses) > 4
    return list(range(1, total + 1))


def test_tensorboard_has_one_line_of_steps_and_the_metrics(followed: Followed) -> None:
    need("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(followed.root / "tensorboard"))
    events.Reload()
    losses = events.Scalars("train/loss")
    assert [event.step for event in losses] == steps_of(followed)
    assert [event.value for event in losses] == pytest.approx(followed.losses)
    told = {event.step: event.value for event in events.Scalars("evaluation/accuracy")}
    assert told == pytest.approx(followed.accuracies)
    assert len(events.Scalars("e_step/kept_share")) == 2
    tables = events.Tensors("completions/text_summary")
    assert [event.step for event in tables] == [0, 1, 2]
    (text,) = tables[-1].tensor_proto.string_val
    assert text.decode().count("\n") == 1 + 2 * NUM_COMPLETIONS
    assert (
        "scheme: rejection:2"
        in events.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    )


def test_mlflow_has_one_run(followed: Followed) -> None:
    mlflow = need("mlflow")
    client = mlflow.MlflowClient()
    (experiment,) = [e for e in client.search_experiments() if e.name == "femtune"]
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_id == followed.keys["mlflow"] and run.info.status == "FINISHED"
    assert run.data.params["scheme"] == "rejection:2"
    losses = client.get_metric_history(run.info.run_id, "train/loss")
    assert [metric.step for metric in losses] == steps_of(followed)
    told = client.get_metric_history(run.info.run_id, "evaluation/accuracy")
    assert {metric.step: metric.value for metric in told} == followed.accuracies
    table = client.load_table(experiment.experiment_id, "completions.json", [run.info.run_id])
    assert len(table) == NUM_COMPLETIONS + 2 * 2 * NUM_COMPLETIONS
    assert set(table["iteration"]) == {0, 1, 2}


def test_trackio_has_one_run(followed: Followed) -> None:
    need("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    assert SQLiteStorage.get_runs("followed") == [followed.keys["trackio"]]
    logs = SQLiteStorage.get_logs("followed", followed.keys["trackio"])
    losses = {each["step"]: each["train/loss"] for each in logs if "train/loss" in each}
    assert losses == pytest.approx(dict(zip(steps_of(followed), followed.losses, strict=True)))
    told = {each["iteration"]: each["evaluation/accuracy"] for each in logs if "iteration" in each}
    assert told == pytest.approx(followed.accuracies)
    assert len([each for each in logs if "completions" in each]) == 3


def test_wandb_goes_on_with_its_run(followed: Followed) -> None:
    need("wandb")
    folders = sorted(followed.root.glob("wandb/offline-run-*"))
    assert len(folders) == 2  # one a process, to be synced into one
    assert {folder.name.rpartition("-")[2] for folder in folders} == {followed.keys["wandb"]}
    tables = [sorted(folder.rglob("*.table.json")) for folder in folders]
    assert [len(each) for each in tables] == [2, 1]  # iterations 0 and 1, then 2
    for path in [path for each in tables for path in each]:
        table = json.loads(path.read_text())
        assert "rationale" in table["columns"] and len(table["data"]) >= NUM_COMPLETIONS


def test_a_tracker_that_is_named_later_is_told_of_all_iterations(
    followed: Followed, world: tuple[Path, Path]
) -> None:
    told: dict[int, Mapping[str, float]] = {}

    class Late(trackers.TensorBoard):
        def iteration(self, iteration: int, step: int, values: Mapping[str, float], rows: Any) -> None:
            told[iteration] = values | {"step": float(step)}

    with tracking(["tensorboard"], followed.root, {}, Quiet()) as same:
        for each in followed.history:  # all is told already
            same.measured(each["iteration"], each)
    assert not told
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(trackers._OPEN, "late", Late)
        with tracking(["late"], followed.root, {}, Quiet()) as late:
            for each in followed.history:
                late.measured(each["iteration"], each)
    assert [values["evaluation/accuracy"] for values in told.values()] == [*followed.accuracies.values()]
    assert told[2]["step"] == len(followed.losses)


def test_a_tracker_that_fails_ends_alone(
    world: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    closed: list[str] = []

    class Failing:
        key = "x"

        def __init__(self, *args: Any) -> None: ...

        def step(self, step: int, values: Mapping[str, float]) -> None:
            raise ConnectionError("gone")

        def iteration(self, *args: Any) -> None: ...

        def close(self, failed: bool) -> None:
            closed.append("failed" if failed else "done")

    monkeypatch.setitem(trackers._OPEN, "tensorboard", Failing)
    heard = Heard()
    options = JUDGE | {"iterations": 1, "eval_every": 0, "report_to": ("tensorboard",)}
    with caplog.at_level("WARNING", logger="femtune"):
        result = train(str(world[0]), "seedling", output_dir=tmp_path / "run", progress=heard, **options)
    assert (result.last.path / "model.safetensors").exists() and len(heard.losses) > 1
    assert [record.message for record in caplog.records].count(
        "tensorboard failed; logging to it is disabled for this run: ConnectionError('gone')"
    ) == 1


def test_the_m_step_alone_is_told_too(followed: Followed, tmp_path: Path) -> None:
    need("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = tmp_path / "fitted"
    examples = followed.root / "iteration-001" / "examples.parquet"
    fit(examples, "seedling", output_dir=out, learning_rate=3e-4, report_to=["tensorboard"])
    events = EventAccumulator(str(tmp_path / "fitted.trackers" / "tensorboard"))
    events.Reload()
    assert (
        len(events.Scalars("train/loss")) == json.loads((out / "m_step.json").read_text())["num_steps"]
    )


def test_what_is_told_is_what_the_run_has(followed: Followed) -> None:
    told = numbers(followed.history[2])
    e_step, evaluation = (followed.history[2][name] for name in ("e_step", "evaluation"))
    assert told["e_step/reasons/plain/kept"] == e_step["reasons"]["plain"]["kept"]
    assert [told["evaluation/accuracy_low"], told["evaluation/accuracy_high"]] == evaluation[
        "accuracy_ci"
    ]
    assert not any("kept_by" in name for name in told)
    rows = completions(followed.root, 1)
    draws = [d for chunk, _ in read_draws(followed.root / "iteration-001" / "draws") for d in chunk]
    smallest = sorted(draws, key=lambda draw: draw.seed)[:NUM_COMPLETIONS]
    shown = [(row["problem"], row["answer"]) for row in rows if row["phase"] == "E-step"]
    assert shown == [(draw.key.problem_id, draw.score.answer) for draw in smallest]


# --- what is refused, and what is not sent


def test_a_tracker_that_is_not_installed_is_refused_before_the_run(
    world: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    argv = ["train", str(world[0]), "--model", "seedling", "--output-dir", str(tmp_path / "run")]
    assert main([*argv, "--report-to", "wandb"]) == 1
    assert "report_to wandb needs wandb: pip install wandb" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_folder_of_a_trackers_name_is_no_tracker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nosuchtracker").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match="needs nosuchtracker"):
        check_trackers(["nosuchtracker"])


def test_unknown_trackers_are_refused() -> None:
    with pytest.raises(ConfigError, match="Did you mean tensorboard"):
        Training(report_to=("tensorbord",))
    with pytest.raises(ConfigError, match="by name"):
        Training(report_to=("all",))
    assert Training(report_to=("none",)).trackers == ()


def test_nothing_is_told_where_nothing_is_named(tmp_path: Path) -> None:
    quiet = Quiet()
    with tracking((), tmp_path, {}, quiet) as progress:
        assert progress is quiet
    assert not list(tmp_path.iterdir())


def test_one_that_can_not_begin_stops_the_run_and_closes_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[bool] = []

    class Opened:
        key = "x"

        def __init__(self, *args: Any) -> None: ...

        def close(self, failed: bool) -> None:
            closed.append(failed)

    def refused(*args: Any) -> Any:
        raise OSError("no key")

    monkeypatch.setitem(trackers._OPEN, "wandb", Opened)
    monkeypatch.setitem(trackers._OPEN, "mlflow", refused)
    with (
        pytest.raises(ConfigError, match="report_to mlflow could not start: no key"),
        tracking(["wandb", "mlflow"], tmp_path, {}, Quiet()),
    ):
        pass
    assert closed == [True]
