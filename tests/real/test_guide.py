"""The guide to pretrained models: its commands, on few problems and a real model."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from femtune.cli.main import main

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs" / "guides" / "pretrained.md"
HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
NUM_PROBLEMS = "20"  # in place of 240: two of them are held out

pytestmark = pytest.mark.real


@pytest.mark.timeout(1800)
def test_the_guides_commands_run(
    real_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```sh\n(.*?)^```$", GUIDE.read_text(), re.DOTALL | re.MULTILINE)
    commands = [line for block in blocks for line in block.splitlines()]
    assert [command.split()[:2] for command in commands] == [
        ["python", "examples/word_problems.py"],
        ["femtune", "check"],
        ["femtune", "train"],
        ["femtune", "evaluate"],
        ["femtune", "predict"],
    ]
    table, *others = commands
    script, output = ROOT / shlex.split(table)[1], shlex.split(table)[-1]
    made = subprocess.run([sys.executable, script, NUM_PROBLEMS], check=True, capture_output=True)
    Path(output).write_bytes(made.stdout)
    for command in others:
        _, *arguments = shlex.split(command.replace(HUB, str(real_model)))
        status = main([*arguments, "--draws", "2"] if arguments[0] == "check" else arguments)
        assert status == 0, (command, capfd.readouterr())
    assert len(Path("answers.jsonl").read_text().splitlines()) == int(NUM_PROBLEMS)
    info = json.loads(Path("words/best/femtune.json").read_text())
    assert (info["task"], info["max_new_tokens"]) == ("math", 64)
