"""Real runs of schemes that weigh by the posterior: the rubric world, the seedling, two iterations."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from femtune.cli.main import main
from femtune.engines.hf.engine import TransformersEngine
from femtune.engines.model_files import local_model
from femtune.estep.scoring import read_logprobs
from femtune.reporting.terminal import Quiet
from femtune.runs.draws import read_draws, read_shard
from femtune.tools.refilter import Change, refilter
from femtune.tools.replay import name_of, replay
from femtune.tools.stored_run import open_stored
from femtune.types import Draw, DrawKey
from femtune.workflows.fit import run_fit

from ..demo_runs import make_world, train_command

RESTARTS = "pps:2+importance+restart:2"
SETTLES = "pps+importance+restart:2+settle:1"
SPECS = [RESTARTS, SETTLES]
SHORT = ("--eval-every", "0", "--show", "quiet")
KINDS = {"draws", "scored", "examples.parquet", "model", "metrics.json"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"), 16, 4)


@pytest.fixture(scope="module", params=SPECS)
def run(request: pytest.FixtureRequest, world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root: Path = tmp_path_factory.mktemp("run") / "run"
    assert main(train_command(world, root, "--scheme", request.param, *SHORT)) == 0
    return root


def metrics(run: Path, iteration: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / f"iteration-00{iteration}" / "metrics.json").read_text())
    return found


def scored(run: Path, iteration: int, kind: str) -> Mapping[DrawKey, tuple[float | None, float | None]]:
    folder = run / f"iteration-00{iteration}" / kind
    return {
        key: logprobs
        for path in sorted(folder.glob("*.parquet"))
        for key, logprobs in read_logprobs(path).items()
    }


def draws_in(folder: Path) -> dict[DrawKey, Draw]:
    return {draw.key: draw for chunk, _ in read_draws(folder) for draw in chunk}


def test_files_of_each_iteration_are_there(run: Path) -> None:
    for iteration in (1, 2):
        folder = run / f"iteration-00{iteration}"
        names = {path.name for path in folder.iterdir() if path.name[0] != "."} - {"README.md"}
        assert names == KINDS
        for kind in ("draws", "scored"):
            shards = sorted(path.name for path in (folder / kind).glob("*"))
            assert shards in ([], ["00000.parquet", "00001.parquet"])
    assert main(["verify", str(run)]) == 0  # and all are as they were stored


def test_log_probabilities_are_those_of_the_weights_before(run: Path) -> None:
    """Of theta_{k-1}, under the plain prompt, whatever the draw came from."""
    for iteration in (1, 2):
        stored = open_stored(run, iteration)
        prompts = stored.prompts()
        before = run / f"iteration-00{iteration - 1}/model"
        engine = TransformersEngine(local_model("seedling") if iteration == 1 else before)
        own = {k: d for k, d in draws_in(stored.draws).items() if d.accepted}
        found = scored(run, iteration, "scored")
        assert found.keys() == own.keys()
        pairs = []
        for key in found:
            messages = prompts.render("plain", stored.problems[key.problem_id])
            pairs.append((engine.tokenizer.encode_prompt(messages), own[key].completion.tokens))
        log_pi = [logprobs[0] for logprobs in found.values()]
        assert log_pi == pytest.approx(engine.logprob(pairs), abs=1e-3)


def test_each_solved_problem_counts_one(run: Path) -> None:
    for iteration in (1, 2):
        rows = pq.read_table(run / f"iteration-00{iteration}" / "examples.parquet").to_pylist()
        total: Counter[str] = Counter()
        for row in rows:
            assert row["weight"] > 0
            total[row["problem_id"]] += row["weight"]
        assert total and all(weight == pytest.approx(1) for weight in total.values())
        assert metrics(run, iteration)["m_step"]["num_examples"] == len(rows)


def test_weighted_examples_train(run: Path) -> None:
    for iteration in (1, 2):
        found = metrics(run, iteration)
        assert math.isfinite(found["m_step"]["loss"]) and found["m_step"]["num_steps"] > 0
        assert found["e_step"]["scored_tokens"] > 0
    weights = [run / f"iteration-00{i}/model/model.safetensors" for i in (1, 2)]
    assert weights[0].read_bytes() != weights[1].read_bytes()


@pytest.mark.parametrize("run", [RESTARTS], indirect=True)
def test_a_restart_trains_the_base_for_longer(run: Path, tmp_path: Path) -> None:
    stored, out = open_stored(run, 2), tmp_path / "model"
    training = replace(stored.settings.training, num_train_epochs=2.0)  # 2 times 1
    examples = run / "iteration-002/examples.parquet"
    again = run_fit(examples, "seedling", training, out, stored.settings.seed + 2, Quiet()).metrics
    assert again["num_steps"] == metrics(run, 2)["m_step"]["num_steps"]
    weights = [folder / "model.safetensors" for folder in (out, run / "iteration-002/model")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


@pytest.mark.parametrize("run", [SETTLES], indirect=True)
def test_once_settled_m_steps_go_on_from_the_previous_weights(run: Path, tmp_path: Path) -> None:
    for iteration, epochs, rate in ((1, 2.0, "constant"), (2, 1.0, "linear")):
        stored, out = open_stored(run, iteration), tmp_path / str(iteration)
        training = replace(stored.settings.training, num_train_epochs=epochs, lr_scheduler_type=rate)
        start = "seedling" if iteration == 1 else str(run / "iteration-001/model")
        assert stored.start() == Path(local_model(start))
        examples = run / f"iteration-00{iteration}/examples.parquet"
        run_fit(examples, start, training, out, stored.settings.seed + iteration, Quiet())
        weights = [f / "model.safetensors" for f in (out, run / f"iteration-00{iteration}/model")]
        assert weights[0].read_bytes() == weights[1].read_bytes()
        report = refilter(
            run, Change(), iteration=iteration, output_dir=tmp_path / f"r{iteration}", train=True
        )
        assert report["m_step"]["num_steps"] == metrics(run, iteration)["m_step"]["num_steps"]


def test_draws_are_drawn_again_by_the_weights_that_drew_them(run: Path) -> None:
    """Of the base in iteration 2 as well: log-probabilities are those that were said then."""
    draws, _ = read_shard(run / "iteration-002/draws/00000.parquet")
    for draw in (draws[0], draws[-1]):
        [again] = replay(run, name_of(draw))
        assert again.same and again.logprob_gap < 1e-4


def test_another_filter_weighs_alike_where_weights_hang_on_log_probabilities(run: Path) -> None:
    report = refilter(run, Change())
    assert report["alike"] and report["refiltered"]["num_examples"] > 0


@pytest.mark.parametrize("spec", ["pps:2+importance"])
def test_what_a_run_will_take_is_measured_with_its_scoring(
    spec: str, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = train_command(world, tmp_path, "--scheme", spec)
    argv[0] = "estimate"
    del argv[argv.index("--output-dir") : argv.index("--output-dir") + 2]
    assert main([*argv, "--measure", "4"]) == 0
    assert "measured: " in capsys.readouterr().out
