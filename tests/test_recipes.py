"""Every file in recipes/: its command knows its keys, and those that can run here do."""

from __future__ import annotations

from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
import yaml

from femtune.cli.main import main
from femtune.schemes.named import spelled_out

ROOT = Path(__file__).parent.parent
RECIPES = {path.stem: path for path in sorted((ROOT / "recipes").rglob("*.yaml"))}
SMALL = {  # recipes for the seedling, and what makes their commands quick
    "rubric": ("--iterations", "1"),
    "rubric-compare": ("--iterations", "1", "--seeds", "1", "--schemes", "star", "--no-baselines"),
    "sums": ("--iterations", "1"),
    "tldr-compare": ("--iterations", "1", "--seeds", "1", "--schemes", "star", "--no-baselines"),
}


# tests/real/test_guide.py runs it
REAL = {"word-problems"}


def keys(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(RECIPES[name].read_text())
    return found


def test_all_recipes_are_found() -> None:
    assert len(RECIPES) == 6
    assert {name for name in RECIPES if keys(name)["model"] == "seedling"} == {*SMALL}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_says_what_it_is_and_how_to_run_it(name: str) -> None:
    lines = RECIPES[name].read_text().splitlines()
    head = [*takewhile(lambda line: line.startswith("#"), lines)]
    assert not any(line.startswith("#") for line in lines[len(head) :])
    assert any(f"--config recipes/{RECIPES[name].name}" in line for line in head)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if "compare" in name else ()) for name in SMALL],
)
def test_a_recipe_for_the_seedling_runs_as_its_head_says(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """But for one iteration on 24 problems."""
    (tmp_path / "recipes").symlink_to(RECIPES[name].parent)
    monkeypatch.chdir(tmp_path)
    lines = RECIPES[name].read_text().splitlines()
    make, run = (line.split()[2:] for line in lines if line.startswith("#   femtune "))
    assert main([*make, "--num-train", "24", "--num-test", "8"]) == 0
    assert main([*run, *SMALL[name], "--output-dir", "run"]) == 0
    assert {"train": "iteration 1  kept ", "compare": "star seed 0 evaluation 1: "}[run[0]] in (
        capsys.readouterr().out
    )
    (file,) = tmp_path.glob("run/**/config.yaml")
    asked = {key: value for key, value in keys(name).items() if key not in ("schemes", "seeds")}
    if "scheme" in asked:
        asked["scheme"] = spelled_out(asked["scheme"])
    assert yaml.safe_load(file.read_text()).items() >= (asked | {"iterations": 1}).items()


@pytest.mark.parametrize("verb", ["train", "check"])
@pytest.mark.parametrize("name", sorted({*RECIPES} - {*SMALL} - REAL))
def test_a_recipe_for_a_model_of_the_hub_lacks_but_the_model(
    name: str,
    verb: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [
        f'{{"prompt": "What is {i}?", "response": "{i}", "score": {i % 5 + 1}}}\n' for i in range(40)
    ]
    (tmp_path / "judge.jsonl").write_text("".join(rows))
    assert main([verb, "judge.jsonl", "--config", str(RECIPES[name])]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"ModelError: model '{keys(name)['model']}'")
    assert [path.name for path in tmp_path.iterdir()] == ["judge.jsonl"]
