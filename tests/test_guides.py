"""The guides run: every command in them, in order, on the files they show, with the shipped seedling."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from femtune.cli.main import main

DOCS = Path(__file__).parent.parent / "docs"
# tests/real/test_guide.py runs the guide to pretrained models
GUIDES = sorted({*(DOCS / "guides").glob("*.md")} - {DOCS / "guides" / "pretrained.md"})
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
FILE = re.compile(r"`([\w-]+\.(?:yaml|py))`:$", re.MULTILINE)


def blocks(guide: Path, kind: str) -> list[str]:
    return [body for found, body in BLOCK.findall(guide.read_text()) if found == kind]


def shown_files(guide: Path) -> dict[str, str]:
    """The files that a guide shows: a name with a colon after it, then the block."""
    names = FILE.findall(guide.read_text())
    bodies = [body for kind, body in BLOCK.findall(guide.read_text()) if kind in ("yaml", "python")]
    return dict(zip(names, bodies, strict=True))


def test_there_are_the_guides_that_were_promised() -> None:
    assert [guide.stem for guide in GUIDES] == [
        "examples",
        "judge",
        "ladder",
        "multiple-choice",
        "rewards",
        "summaries",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.stem)
def test_a_guides_commands_run(
    guide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, body in shown_files(guide).items():
        Path(name).write_text(body)
    commands = [line for block in blocks(guide, "sh") for line in block.splitlines()]
    assert commands
    for command in commands:
        program, *arguments = shlex.split(command)
        assert program == "femtune"
        status = main(arguments)
        assert status == 0, (command, capfd.readouterr())
