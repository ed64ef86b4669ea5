"""`femtune replay`: a stored draw is drawn again, token for token, or the difference is told."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from femtune.cli.main import main
from femtune.errors import ConfigError, RunError
from femtune.runs.draws import read_draws, write_draws
from femtune.tools.replay import Replayed, find_draws, name_of, replay, told
from femtune.types import Draw

from ..demo_runs import make_world, train_command


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """STaR over two iterations: plain and hinted draws, of the base and of a trained model."""
    folder = tmp_path_factory.mktemp("replay")
    argv = train_command(
        make_world(folder / "world"), folder / "run", "--scheme", "star", "--show", "quiet"
    )
    assert main([*argv, "--soft-accept", "1"]) == 0
    return folder / "run"


def draws_of(run: Path, iteration: int, kind: str) -> list[Draw]:
    folder = run / f"iteration-00{iteration}" / kind
    return [draw for chunk, _ in read_draws(folder) for draw in chunk]


@pytest.mark.parametrize(("iteration", "kind"), [(1, "draws"), (2, "draws"), (0, "eval"), (2, "eval")])
def test_every_draw_is_drawn_again_and_graded_the_same(run: Path, iteration: int, kind: str) -> None:
    stored = draws_of(run, iteration, kind)
    if kind == "draws":
        assert {draw.prompt_kind for draw in stored} == {"plain", "hinted"}
    for name in dict.fromkeys(draw.key.problem_id for draw in stored[:6]):
        for again in replay(run, f"{iteration}/{name}", kind=kind):  # type: ignore[arg-type]  # a kind by its name
            assert again.same and again.differs_at is None and again.logprob_gap < 1e-3
            assert "the same" in told(again)


def test_a_draw_is_found_by_its_id_or_all_of_a_problem(run: Path) -> None:
    stored = draws_of(run, 1, "draws")
    some = next(draw for draw in stored if draw.key.stage == 1)
    assert find_draws(run, name_of(some), "draws") == [some]
    of_problem = [draw for draw in stored if draw.key.problem_id == some.key.problem_id]
    assert find_draws(run, f"1/{some.key.problem_id}", "draws") == of_problem and len(of_problem) == 2
    with pytest.raises(RunError, match=r"has no draw 1/nobody; it has, for example, 1/rubric-\S+"):
        find_draws(run, "1/nobody", "draws")
    for bad in ("x", "1", "one/p", "1/", ""):
        with pytest.raises(ConfigError, match="ITERATION/PROBLEM"):
            find_draws(run, bad, "draws")


def test_the_command_line_shows_it(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    some = draws_of(run, 2, "draws")[0]
    assert main(["replay", str(run), "--draw", name_of(some)]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"✓ {name_of(some)}: the same {len(some.completion.tokens)} tokens")
    assert some.completion.text.splitlines()[0] in said
    evaluated = name_of(draws_of(run, 1, "eval")[0])
    assert main(["replay", str(run), "--draw", evaluated, "--eval", "--show", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["same"] is True


def test_what_is_not_what_was_stored_is_told(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = shutil.copytree(run, tmp_path / "run", symlinks=True)
    shard = root / "iteration-001/draws/00000.parquet"
    [first, *_], _ = next(read_draws(shard.parent))
    tokens = (*first.completion.tokens[:3], 7, *first.completion.tokens[4:])
    other = replace(first, completion=replace(first.completion, tokens=tokens))
    write_draws(shard, [other], {"engine_s": 0.0, "total_s": 0.0})
    [again] = replay(root, name_of(first))
    assert (again.same, again.differs_at) == (False, 3)
    assert main(["replay", str(root), "--draw", name_of(first)]) == 1
    said = capsys.readouterr()
    assert "differs from token 4 of" in said.out and "1 draws differ from the stored ones" in said.err
    assert "drawn again" in said.out
    graded = Replayed(first, first.completion, replace(first.score, reward=0.25))
    assert "but another grade" in told(graded)


def test_what_it_needs_and_is_not_there_is_named(run: Path, tmp_path: Path) -> None:
    root = shutil.copytree(run, tmp_path / "run", symlinks=True)
    name = name_of(draws_of(run, 2, "draws")[0])
    shutil.rmtree(root / "iteration-001/model")
    with pytest.raises(RunError, match="drew it but is missing"):
        list(replay(root, name))
    config = yaml.safe_load((root / "config.yaml").read_text())
    (root / "config.yaml").write_text(yaml.safe_dump(config | {"seed": 1}))
    with pytest.raises(RunError, match=r"config\.yaml does not belong to this draw"):
        list(replay(root, name_of(draws_of(run, 1, "draws")[0])))
    (root / "problems.parquet").unlink()
    with pytest.raises(RunError, match=r"has no problems\.parquet"):
        list(replay(root, name_of(draws_of(run, 1, "draws")[0])))
