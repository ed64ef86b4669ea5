"""A run's models say how they are asked, and `predict RUN/best` is a whole command."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from femtune import evaluate, fit, train
from femtune._util import device_memory
from femtune.cli.main import main
from femtune.config import Train
from femtune.data.worlds import SEEDLING, WORLDS, make_rows
from femtune.model_info import FILE, is_trained, read_info
from femtune.mstep import memory
from femtune.mstep.config import Training
from femtune.mstep.memory import needs_peft
from femtune.run_folder import choose_peft
from femtune.runs.hashes import hash_weights

SETTINGS: dict[str, Any] = {"task": "judge", "raters": "named", "scale": "1,5", "max_new_tokens": 48}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of ratings under a name of its own, items without them, and a run that learnt from it."""
    place = tmp_path_factory.mktemp("info")
    rows, items = make_rows(WORLDS["rubric"], 16, 4, seed=0)
    for name, group, labels in (("rows", rows, True), ("items", items, False)):
        named = [
            {("human" if key == "score" else key): value for key, value in row.items()} for row in group
        ]
        kept = [row if labels else {k: v for k, v in row.items() if k != "human"} for row in named]
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    train(
        str(place / "rows.jsonl"),
        "seedling",
        scheme="rejection:2",
        output_dir=place / "run",
        columns=("score=human",),
        iterations=1,
        eval_every=0,
        learning_rate=1e-4,
        use_cpu=True,
        **SETTINGS,
    )
    return place


def lines(folder: Path, *flags: str, capsys: pytest.CaptureFixture[str]) -> tuple[list[Any], str]:
    """Predictions of the items by the run's model, and what was warned of."""
    argv = ["predict", str(folder / "items.jsonl"), "--model", str(folder / "run/best"), "--draws", "2"]
    assert main([*argv, *flags]) == 0
    said = capsys.readouterr()
    return [json.loads(line) for line in said.out.splitlines()], said.err


def test_each_model_says_how_it_is_asked(folder: Path) -> None:
    info = read_info(folder / "run/best")
    assert info is not None and info == read_info(folder / "run/last")
    assert {name: getattr(info, name) for name in SETTINGS} == SETTINGS
    assert (info.base, info.base_sha256) == ("seedling", hash_weights(SEEDLING))
    assert (info.reward, info.trained) == ('ordinal("1,5")', True)
    assert is_trained(folder / "run/best") and not is_trained(SEEDLING)
    listed = (folder / "run/manifest.jsonl").read_text()
    assert f"iteration-001/model/{FILE}" in listed


def test_the_schedule_is_stored_and_leads_to_forty_steps(folder: Path) -> None:
    done = json.loads((folder / "run/best/m_step.json").read_text())
    expected = Training(learning_rate=1e-4).schedule(done["num_examples"])
    assert (done["num_epochs"], done["batch_size"]) == (expected.num_epochs, expected.batch_size)
    assert done["learning_rate"] == 1e-4
    assert done["num_steps"] >= 40


def test_predict_needs_no_setting_of_the_training_s(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--task", "judge", "--raters", "named", "--scale", "1,5", "--max-new-tokens", "48"]
    bare, said = lines(folder, capsys=capsys)
    given, _ = lines(folder, *flags, capsys=capsys)
    assert bare == given and len(bare) == 4
    assert said.startswith("4 items: ") and said.count("\n") == 1  # the closing line, and no warning
    # the configuration that trained it names a column of scores that items lack
    mapped, _ = lines(folder, "--columns", "score=human", capsys=capsys)
    assert mapped == bare
    other, said = lines(folder, "--scale", "1,7", capsys=capsys)
    assert [*other[0]["distribution"]] == [*"1234567"]
    assert "the model was trained with scale 1,5; asked for 1,7" in " ".join(said.split())


def test_a_column_that_is_no_answer_is_still_missed(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["predict", str(folder / "items.jsonl"), "--model", str(folder / "run/best")]
    assert main([*argv, "--columns", "score=human", "rater=nobody"]) == 1
    assert "no column `nobody` for `rater`" in " ".join(capsys.readouterr().err.split())


def test_evaluate_asks_as_the_run_did(folder: Path, tmp_path: Path) -> None:
    data, model = str(folder / "rows.jsonl"), str(folder / "run/best")
    mapped = {"columns": ["score=human"]}
    bare = evaluate(data, model, output_dir=tmp_path / "bare", **mapped).metrics
    full = evaluate(data, model, output_dir=tmp_path / "full", **mapped, **SETTINGS).metrics
    times = {name for name in bare if name.endswith("_s") or name == "tokens_per_s"}
    assert {k: v for k, v in bare.items() if k not in times} == {
        k: v for k, v in full.items() if k not in times
    }


def test_fit_says_what_its_examples_run_did(folder: Path, tmp_path: Path) -> None:
    examples = folder / "run/iteration-001/examples.parquet"
    short: Any = {"num_train_epochs": 0.1, "use_cpu": True}
    fit(examples, "seedling", output_dir=tmp_path / "fitted", **short)
    made, run = read_info(tmp_path / "fitted"), read_info(folder / "run/best")
    assert made is not None and run is not None
    assert replace(made, from_task=()) == replace(run, from_task=())
    # of examples from elsewhere nothing but the base is known, or what the base says
    alone = tmp_path / "alone.parquet"
    alone.write_bytes(examples.read_bytes())
    fit(alone, "seedling", output_dir=tmp_path / "plain", **short)
    assert (plain := read_info(tmp_path / "plain")) is not None
    assert (plain.task, plain.base) == (None, "seedling")
    fit(alone, folder / "run/best", output_dir=tmp_path / "again", **short)
    assert (again := read_info(tmp_path / "again")) is not None
    assert (again.task, again.base) == ("judge", str(folder / "run/best"))


def test_lora_is_chosen_where_full_fine_tuning_does_not_fit(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(logging.getLogger("femtune"), "propagate", True)
    here = Training(use_cpu=True)
    assert not needs_peft(here, SEEDLING) and not caplog.records
    monkeypatch.setattr(device_memory, "machine_memory", lambda: 1e6)
    assert not needs_peft(here, SEEDLING)  # so small a model is not asked about
    monkeypatch.setattr(memory, "_ANY_DEVICE", 0)
    assert needs_peft(here, SEEDLING)
    assert "training a LoRA adapter instead" in caplog.text
    for given in (True, False):  # what is set stands
        settings = Train(training=replace(here, use_peft=given))
        assert choose_peft(settings, SEEDLING) == settings
    # a run that was begun elsewhere goes on as it was begun
    begun = choose_peft(Train(training=here), SEEDLING, folder / "run")
    assert begun.training.use_peft is False
    assert choose_peft(Train(training=here), SEEDLING, tmp_path).training.use_peft is True
    assert not needs_peft(replace(here, fsdp=True), SEEDLING)
