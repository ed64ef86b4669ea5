"""The pages run: every command in an `sh` block, in order, on the files they show, with the demo model.

The README and the guide to pretrained models run on a real model, in tests/real/test_guide.py.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from .doc_commands import ROOT, blocks, run_commands, run_line, scripts, shown_files, with_flags

DOCS = ROOT / "docs"
REAL = {ROOT / "README.md", DOCS / "guides" / "pretrained.md"}
PAGES = sorted({page for page in (ROOT / "README.md", *DOCS.rglob("*.md")) if run_commands(page)} - REAL)
# added to a page's commands, so that a test of it is quick
SMALL = {
    "examples": {"world": "--num-train 40 --num-test 12"},
    "index": {
        "world": "--num-train 40 --num-test 40",
        "check": "--draws 4",
        "train": "--iterations 1 --bound-draws 0",
        "calibrate": "--draws 2",
        "predict": "--draws 2",
    },
    "tour": {
        "world": "--num-train 40 --num-test 40",
        "check": "--draws 4",
        "train": "--iterations 1 --bound-draws 0",
        "compare": "--iterations 1 --seeds 1 --schemes star --no-baselines",
    },
}


def small(page: Path, command: str) -> str:
    verb = command.split()[1]
    return with_flags(command, SMALL.get(page.stem, {}).get(verb, ""))


def test_the_pages_whose_commands_run_are_found() -> None:
    assert {page.relative_to(DOCS).as_posix() for page in PAGES} >= {
        "guides/examples.md",
        "guides/judge.md",
        "guides/ladder.md",
        "guides/multiple-choice.md",
        "guides/rewards.md",
        "guides/summaries.md",
        "index.md",
        "tour.md",
        "troubleshooting.md",
    }


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_pages_commands_run(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    for name, body in shown_files(page).items():
        Path(name).write_text(body)
    said = ""
    for block in blocks(page):
        if block.kind == "sh":
            statuses = [run_line(small(page, command)) for command in block.commands()]
            out, err = capfd.readouterr()
            said = out + err
            assert statuses[:-1] == [0] * (len(statuses) - 1), said
            assert statuses[-1] == int("Not ready" in said), said
        elif block.kind == "text":
            assert [line for line in outlines(block.body) if line not in outlines(said)] == []


def outlines(text: str) -> set[str]:
    """Return how the lines of an output begin, without numbers, which depend on the machine."""
    return {re.sub(r"[\d.,]+", "0", line)[:24].strip() for line in text.splitlines()}


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if scripts(page)], ids=lambda page: page.stem)
def test_a_pages_python_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    world = next(command for command in run_commands(page) if command.startswith("femtune world"))
    assert run_line(small(page, world)) == 0
    for script in scripts(page):
        exec(compile(script, str(page), "exec"), {"__name__": "page"})
    assert os.listdir("runs")
