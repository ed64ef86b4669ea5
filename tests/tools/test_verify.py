"""`femtune verify RUN`: what is damaged is named, set aside, and made again by the run's own command."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from femtune.cli.main import main
from femtune.errors import RunError
from femtune.estep.journal import Journal
from femtune.estep.scoring import read_logprobs
from femtune.evaluation.readings import read_readings
from femtune.runs.draws import read_draws
from femtune.runs.run import Run
from femtune.tools.verify import check_up, repair, runs_in

from ..demo_runs import make_world, train_command
from ..test_loop import timeless

BOUND = ("--bound-draws", "2", "--reader-problems", "6")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def whole(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two iterations."""
    root = tmp_path_factory.mktemp("runs") / "whole"
    assert main(train_command(world, root, "--scheme", "star", "--show", "quiet", *BOUND)) == 0
    return root


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "run", symlinks=True)


def state(root: Path) -> dict[str, Any]:
    """All that a run has made, seconds left out."""
    made: dict[str, Any] = {}
    for path in sorted(root.glob("iteration-*/*")):
        name = path.relative_to(root).as_posix()
        if path.name in ("draws", "eval", "bound", "memory"):
            made[name] = [chunk for chunk, _ in read_draws(path)]
        elif path.name in ("recalled", "scored", "bound_scored"):
            made[name] = [read_logprobs(shard) for shard in sorted(path.iterdir())]
        elif path.name == "eval_scored":
            made[name] = [read_readings(shard)[0] for shard in sorted(path.iterdir())]
        elif path.name == "examples.parquet":
            made[name] = pq.read_table(path).to_pylist()
        elif path.name == "model":
            made[name] = (path / "model.safetensors").read_bytes()
        else:
            made[name] = timeless(json.loads(path.read_text()))
    return made


def test_a_whole_run_has_no_fault(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = check_up(whole)
    assert (found.faults, found.leftovers, found.state) == ([], [], "done: 2 iterations")
    assert main(["verify", str(whole)]) == 0
    assert "damage          none" in capsys.readouterr().out
    assert main(["verify", str(whole.parent), "--show", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["damaged"] == []


DAMAGED = {
    "iteration-001/draws/00001.parquet": "drawn again",
    "iteration-001/eval/00000.parquet": "drawn again",
    "iteration-000/bound/00000.parquet": "drawn again",
    "iteration-002/bound_scored/00000.parquet": "scored again",
    "iteration-001/eval_scored/00000.parquet": "scored again",
    "iteration-001/rationales.json": "computed again",
    "iteration-002/examples.parquet": "written again from the draws",
    "iteration-001/model/model.safetensors": "trained again from the examples",
    "iteration-000/metrics.json": "computed again",
    "problems.parquet": "written again from the data",
}


@pytest.mark.parametrize("path", DAMAGED)
def test_what_is_damaged_is_named_set_aside_and_made_again(
    whole: Path, run: Path, world: Path, path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    spoilt = bytearray((run / path).read_bytes())
    spoilt[len(spoilt) // 2] ^= 255
    (run / path).write_bytes(spoilt)
    [fault] = check_up(run).faults
    assert (fault.path, fault.what, fault.remedy) == (
        path,
        "other bytes than were stored",
        DAMAGED[path],
    )
    assert main(["verify", str(run)]) == 1
    assert "1 files are damaged; --repair sets aside" in capsys.readouterr().err
    assert main(["verify", str(run), "--repair"]) == 0
    assert (run / "damaged/1" / path).read_bytes() == spoilt  # nothing is thrown away
    assert main(train_command(world, run, "--scheme", "star", "--show", "quiet", *BOUND)) == 0
    assert check_up(run).faults == []
    assert state(run) == state(whole)


def test_several_faults_at_once_are_made_again_in_their_order(
    whole: Path, run: Path, world: Path
) -> None:
    for path in ("iteration-001/model/config.json", "iteration-002/draws/00002.parquet"):
        (run / path).unlink()
    faults = {fault.path: fault.remedy for fault in check_up(run).faults}
    assert faults["iteration-002/draws/00002.parquet"] == "drawn again, after the model of iteration 1"
    repair(check_up(run))
    assert check_up(run).state.startswith("resumes at iteration 1: 3 chunks of the E-step stored")
    assert main(train_command(world, run, "--scheme", "star", "--show", "quiet", *BOUND)) == 0
    assert state(run) == state(whole)


@pytest.mark.parametrize(
    ("scheme", "damaged"),
    [
        (
            "rejection:2+chain",
            {
                "iteration-001/memory/00002.parquet": "written again from the draws",
                "iteration-002/draws/00001.parquet": "drawn again",
                "iteration-002/memory/00000.parquet": "written again from the draws",
            },
        ),
        (
            "pps:2+importance",
            {
                "iteration-002/draws/00001.parquet": "drawn again",
                "iteration-002/scored/00002.parquet": "scored again",
            },
        ),
    ],
)
def test_what_a_scheme_remembers_or_scores_is_made_again(
    scheme: str, damaged: dict[str, str], world: Path, tmp_path: Path
) -> None:
    whole, run = tmp_path / "whole", tmp_path / "run"
    asked = ("--scheme", scheme, "--show", "quiet", "--eval-every", "0")
    assert main(train_command(world, whole, *asked)) == 0
    shutil.copytree(whole, run, symlinks=True)
    for path in damaged:
        (run / path).write_bytes(b"PAR1")
    assert {fault.path: fault.remedy for fault in check_up(run).faults} == damaged
    assert main(["verify", str(run), "--repair"]) == 0
    assert main(train_command(world, run, *asked)) == 0
    assert check_up(run).faults == []
    assert state(run) == state(whole)


def test_what_was_drawn_by_weights_that_were_removed_can_not_be_made_again(
    run: Path, world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = ("--scheme", "star", "--show", "quiet", *BOUND, "--keep-last", "1")
    assert main(train_command(world, run, *kept, iterations=3)) == 0
    gone = next(i for i in (1, 2) if not (run / f"iteration-00{i}/model").exists())
    path = f"iteration-00{gone + 1}/draws/00000.parquet"
    (run / path).write_bytes(b"PAR1")
    assert [fault.remedy for fault in check_up(run).faults] == [""]
    assert main(["verify", str(run), "--repair"]) == 1
    said = capsys.readouterr()
    assert f"{path}: 4 bytes of" in said.out and "can't be made again" in said.out
    assert (run / path).exists()


def test_damage_that_a_run_goes_on_from_stops_it_and_other_damage_does_not(
    run: Path, world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    star = ("--scheme", "star", "--show", "quiet", *BOUND)
    (run / "iteration-001/draws/00000.parquet").write_bytes(b"PAR1")
    assert main(train_command(world, run, *star, iterations=3)) == 0
    (run / "iteration-003/model/model.safetensors").write_bytes(b"")
    assert main(train_command(world, run, *star, iterations=4)) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "iteration-003/model/model.safetensors (0 bytes of" in said
    assert f"femtune verify {run}" in said


def test_an_open_iteration_is_told_with_its_journal(run: Path) -> None:
    open_ = run / "iteration-002"
    (open_ / "metrics.json").unlink()
    for kind in ("model", "eval", "bound", "bound_scored"):
        shutil.rmtree(open_ / kind)
    (open_ / "examples.parquet").unlink()
    [*_, (last, _)] = read_draws(open_ / "draws")
    shard = open_ / "draws" / "00002.parquet"
    shard.unlink()
    with Journal(shard) as journal:
        journal.append(last[:3], (1.0, 1.0))
    (open_ / "draws" / ".00002.parquet.part").write_text("PAR1 ha")
    found = check_up(run)
    expected = "2 chunks of the E-step stored, 3 draws of an open chunk of the E-step"
    assert found.state == f"resumes at iteration 2: {expected}"
    assert [path.name for path in found.leftovers] == [".00002.parquet.part"]
    assert {fault.what for fault in found.faults} == {"missing"}


def test_problems_of_another_run_are_noticed(run: Path) -> None:
    shutil.copy(run / "eval.parquet", run / "problems.parquet")
    (run / "manifest.jsonl").unlink()
    [fault] = check_up(run).faults
    assert (fault.path, fault.what) == ("problems.parquet", "not the problems that config.yaml names")


def test_a_run_in_use_is_looked_at_but_not_mended(run: Path) -> None:
    from femtune.runs.run import locked

    (run / "iteration-001/metrics.json").write_text("{}")
    with locked(run):
        found = check_up(run)
        assert len(found.faults) == 1
        with pytest.raises(RunError, match=r"in use by another femtune process \(process \d+ on "):
            repair(found)
    assert Run(run).iteration(1).joinpath("metrics.json").read_text() == "{}"


def test_what_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert runs_in(tmp_path) == []
    assert main(["verify", str(tmp_path)]) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "holds no run. Give the folder of a run; `femtune check` is for a data set." in said
    assert main(["verify", str(tmp_path / "rows.jsonl"), "--repair"]) == 1
    assert "holds no run" in " ".join(capsys.readouterr().err.split())
    (tmp_path / "config.yaml").write_text("[1")
    assert main(["verify", str(tmp_path)]) == 1
    assert "config.yaml is not valid YAML" in capsys.readouterr().err
