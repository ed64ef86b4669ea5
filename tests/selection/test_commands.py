"""A run whose M-steps choose examples, by the command line and from Python, and the use of its model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import femtune
from femtune.cli.main import main
from femtune.config import Train
from femtune.data.demos import demos_digest, read_demos
from femtune.engines.model_files import local_model, named_folder
from femtune.errors import ConfigError, ModelError
from femtune.model_info import read_info, write_info
from femtune.mstep.config import Training
from femtune.resolve import make_loop_config
from femtune.runs.draws import drawn
from femtune.tools.verify import check_up

from ..demo_runs import JUDGE, SEEDLING, make_world

OWN = [
    {"prompt": "Rate this.", "answer": "4", "completion": "It is kind.\nAnswer: 4"},
    {"prompt": "Rate that.", "answer": "2", "completion": "It is unclear.\nAnswer: 2"},
]


def command(world: Path, run: Path) -> list[str]:
    data = [str(world / "train.jsonl"), "--eval-data", str(world / "test.jsonl")]
    choice = ["--m-step", "examples", "--num-examples", "2", "--selection-requests", "120"]
    brief = ["--iterations", "1", "--bound-draws", "0", "--reader-problems", "0"]
    where = ["--demos", str(world / "demos.jsonl"), "--output-dir", str(run)]
    return ["train", *data, *SEEDLING, *JUDGE, *choice, *brief, *where]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = make_world(tmp_path_factory.mktemp("world"), num_train=40, num_test=10)
    (made / "demos.jsonl").write_text("".join(json.dumps(row) + "\n" for row in OWN))
    return made


@pytest.fixture(scope="module")
def run(world: Path) -> Path:
    """A run that begins with two worked examples, so that its model has some whatever is chosen."""
    assert main(command(world, world / "run")) == 0
    return world / "run"


def metrics(run: Path, iteration: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / f"iteration-{iteration:03}" / "metrics.json").read_text())
    return found


def test_the_model_is_its_examples_and_the_name_of_its_base(run: Path) -> None:
    info = read_info(run / "best")
    assert info is not None and (info.m_step, info.base) == ("examples", "seedling")
    examples = read_demos(run / "best" / "examples.jsonl")
    assert len(examples) == metrics(run, 1)["m_step"]["num_examples"] == 2
    assert [demo["completion"] for demo in info.demos or ()] == [demo.completion for demo in examples]
    assert not [*(run / "best").glob("*.safetensors")]
    assert local_model(str(run)) == local_model("seedling") != named_folder(str(run))


def test_evaluate_asks_as_the_run_did(run: Path, world: Path, tmp_path: Path) -> None:
    found = femtune.evaluate(
        world / "test.jsonl",
        model=run / "best",
        force_answers="evaluation",
        output_dir=tmp_path / "evaluation",
        progress="quiet",
    )
    assert found.accuracy == metrics(run, 1)["evaluation"]["accuracy"]


def test_predict_needs_the_folder_alone(run: Path, world: Path, tmp_path: Path) -> None:
    new = [str(world / "test.jsonl"), "--model", str(run / "best"), "--draws", "2"]
    assert main(["predict", *new, "--output", str(tmp_path / "answers.jsonl")]) == 0
    rows = (tmp_path / "answers.jsonl").read_text().splitlines()
    assert len(rows) == 10 and all(json.loads(row)["answer"] for row in rows)


def test_a_changed_base_is_refused(run: Path, world: Path, tmp_path: Path) -> None:
    info = read_info(run / "best")
    assert info is not None
    write_info(tmp_path, replace(info, base_sha256="0"))
    with pytest.raises(ModelError, match="the weights of seedling are not those"):
        femtune.evaluate(world / "test.jsonl", model=tmp_path, progress="quiet")


def test_the_run_is_intact_and_the_same_command_does_nothing(run: Path, world: Path) -> None:
    before = (run / "manifest.jsonl").read_text()
    assert main(command(world, run)) == 0
    assert (run / "manifest.jsonl").read_text() == before
    assert check_up(run).faults == []
    assert "2 worked examples" in (run / "best" / "README.md").read_text()


def test_a_lost_answer_is_not_needed_once_the_examples_are_chosen(run: Path) -> None:
    shard = run / "iteration-001" / "selection" / "00000.parquet"
    kept = shard.read_bytes()
    shard.write_bytes(b"damaged")
    try:
        assert [(fault.path, fault.remedy) for fault in check_up(run).faults] == [
            ("iteration-001/selection/00000.parquet", "not needed: the examples are chosen")
        ]
    finally:
        shard.write_bytes(kept)


def test_a_draw_is_replayed_under_its_own_prompt(run: Path) -> None:
    first = next(iter(next(drawn(run / "iteration-001" / "draws"))))
    assert first.demos == demos_digest(read_demos(run / "demos.jsonl"))
    name = f"{first.key.iteration}/{first.key.problem_id}/{first.key.stage}/{first.key.index}"
    assert main(["replay", str(run), "--draw", name]) == 0


def test_python_takes_the_same_settings(world: Path, tmp_path: Path) -> None:
    made = femtune.train(
        world / "train.jsonl",
        eval_data=world / "test.jsonl",
        model="seedling",
        task="judge",
        raters="named",
        scale="1,5",
        max_new_tokens=48,
        iterations=1,
        m_step="examples",
        num_examples=2,
        selection_requests=60,
        dev_share=0.25,
        bound_draws=0,
        reader_problems=0,
        output_dir=tmp_path / "run",
        progress="quiet",
    )
    m_step = made.history[1]["m_step"]
    assert m_step["num_requests"] <= 60 and m_step["num_examples"] in (0, 2)
    assert Path(made.best) == tmp_path / "run" / "best"


REFUSED = {
    "num_examples": (Train(num_examples=3), "num_examples is of --m-step examples"),
    "none": (Train(m_step="examples", num_examples=0), "num_examples must be from 1 to 100"),
    "requests": (Train(m_step="examples", selection_requests=59), "must be at least 60, got 59"),
    "tokens": (Train(m_step="examples", selection_tokens=0), "selection_tokens must be at least 1"),
    "training": (
        Train(m_step="examples", training=Training(learning_rate=1e-3)),
        "trains no weights: leave learning_rate out",
    ),
    "launch": (Train(m_step="examples", launch="torchrun"), "trains no weights: leave launch out"),
    "restart": (Train(m_step="examples", scheme="star+restart"), "leave restart and start_from"),
    "start": (Train(m_step="examples", start_from="base"), "leave restart and start_from"),
    "dev": (Train(m_step="examples", dev_share=0.0), "chooses by the development part"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_settings_that_do_not_go_together_are_refused(name: str) -> None:
    settings, said = REFUSED[name]
    with pytest.raises(ConfigError, match=said):
        make_loop_config(settings)


def test_a_development_part_that_the_budget_does_not_cover_is_refused(world: Path) -> None:
    with pytest.raises(ConfigError, match=r"selection_requests 60 is too few for 20 .* at least 120"):
        femtune.train(
            world / "train.jsonl",
            model="seedling",
            task="judge",
            eval_share=0.0,
            m_step="examples",
            dev_share=0.5,
            selection_requests=60,
            progress="quiet",
        )
