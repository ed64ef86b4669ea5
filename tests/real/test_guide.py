"""The README and the guide to pretrained models: their commands, on few problems and a real model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ..doc_commands import ROOT, run_commands, run_line, scripts, with_flags

GUIDE = ROOT / "docs" / "guides" / "pretrained.md"
README = ROOT / "README.md"
MODELS = ("HuggingFaceTB/SmolLM2-135M-Instruct", "~/.cache/femtune/SmolLM2-135M-Instruct")
RECIPE = "--config recipes/word-problems.yaml"
NUM_PROBLEMS = "20"  # in place of 240: two of them are held out

pytestmark = pytest.mark.real


def here(text: str, model: Path) -> str:
    """Return a command or script for this machine's model and few problems."""
    for name in MODELS:
        text = text.replace(name, str(model))
    text = text.replace("word_problems.py 240", f"word_problems.py {NUM_PROBLEMS}")
    if RECIPE in text:
        text = with_flags(text, f"--model {model}")
    few = {"check": "--draws 2", "train": "--iterations 1"}
    return with_flags(text, few.get(text.split()[1], ""))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    return tmp_path


@pytest.mark.timeout(1800)
def test_the_guides_commands_run(
    real_model: Path, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    commands = run_commands(GUIDE)
    assert [command.split()[:2] for command in commands] == [
        ["python", "examples/word_problems.py"],
        ["femtune", "check"],
        ["femtune", "train"],
        ["femtune", "evaluate"],
        ["femtune", "predict"],
    ]
    for command in commands:
        assert run_line(here(command, real_model)) == 0, (command, capfd.readouterr())
    assert len(Path("answers.jsonl").read_text().splitlines()) == int(NUM_PROBLEMS)
    info = json.loads(Path("words/best/femtune.json").read_text())
    assert (info["task"], info["max_new_tokens"]) == ("math", 64)


@pytest.mark.timeout(1800)
def test_the_readmes_commands_and_python_run(
    real_model: Path, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    commands = run_commands(README)
    assert [command.split()[1] for command in commands][:3] == [
        "real-model",
        "examples/word_problems.py",
        "ladder",
    ]
    for command in commands:
        assert run_line(here(command, real_model), real_model) == 0, (command, capfd.readouterr())
    (script,) = scripts(README)
    exec(
        compile(script.replace(MODELS[1], str(real_model)), "README.md", "exec"), {"__name__": "readme"}
    )
    assert json.loads(Path("ladder/ladder.json").read_text())["rungs"]
    assert Path("words/report.html").exists()
