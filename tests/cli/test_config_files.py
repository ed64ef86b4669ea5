"""Settings in a YAML file are spelled as people spell them: mappings of columns, paths with ~."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from femtune.cli.main import USAGE, main

ROWS = [{"ask": {"text": f"Rate {n}."}, "said": "Fine.", "stars": 1 + n % 5} for n in range(30)]
ASKED = ["--model", "seedling", "--task", "judge", "--scale", "1,5", "--max-new-tokens", "40"]
COLUMNS = {"prompt": "ask.text", "response": "said", "score": "stars"}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home directory with a table in it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in ROWS))
    (tmp_path / "test.jsonl").write_text(json.dumps(ROWS[0] | {"ask": {"text": "Rate 99."}}))
    return tmp_path


def check(home: Path, settings: dict[str, Any], *flags: str) -> int:
    (home / "run.yaml").write_text(yaml.safe_dump(settings))
    config = ["--config", str(home / "run.yaml")]
    return main(["check", "~/rows.jsonl", *ASKED, "--no-try", *config, *flags])


def test_columns_are_a_mapping_or_a_list(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for columns in (COLUMNS, [f"{name}={column}" for name, column in COLUMNS.items()]):
        assert check(home, {"columns": columns}) == 0
        assert "30; further columns" in capsys.readouterr().out
    assert check(home, {"columns": COLUMNS | {"score": "starz"}}) == 1
    assert "no column `starz` for `score`" in capsys.readouterr().err


def test_columns_without_a_header_are_numbers(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "rows.jsonl").rename(home / "unused")
    (home / "rows.csv").write_text("".join(f"Rate {n};Fine;{1 + n % 5}\n" for n in range(30)))
    (home / "run.yaml").write_text("header: false\ncolumns: {prompt: 1, response: 2, score: 3}\n")
    argv = ["check", "~/rows.csv", *ASKED, "--no-try", "--config", str(home / "run.yaml")]
    assert main(argv) == 0
    said = capsys.readouterr()
    assert "30; further columns" in said.out and "separated by semicolons" in said.err


@pytest.mark.parametrize("in_file", [True, False])
def test_paths_begin_at_home(home: Path, in_file: bool, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {"columns": COLUMNS} | ({"eval_data": "~/test.jsonl"} if in_file else {})
    flags = [] if in_file else ["--eval_data=~/test.jsonl"]
    assert check(home, settings, *flags) == 0
    assert "held out" in capsys.readouterr().out
    assert check(home, settings | {"eval_data": "~/tset.jsonl"}) == 1
    assert f"no file {home}/tset.jsonl. There is test.jsonl" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "flags", "said"),
    [
        ({"scael": "1,5"}, [], "has an unknown setting, 'scael'."),
        ({"scael": "1,5"}, [], "Did you mean scale?"),
        ({"training": {"lora_r": 4}}, [], "has an unknown setting, 'training'."),
    ],
)
def test_what_is_no_setting_is_said(
    home: Path, settings: dict[str, Any], flags: list[str], said: str, capsys: Any
) -> None:
    assert check(home, {"columns": COLUMNS} | settings, *flags) == USAGE
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_predict_reads_standard_input_with_a_mark(
    encoding: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"id": f"é{n}", "prompt": f"Rate {n}.", "response": "Fine."} for n in range(2)]
    text = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)
    buffer = io.BufferedReader(io.BytesIO(text.encode(encoding)))  # type: ignore[arg-type]  # bytes do as a raw stream
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(buffer, encoding="latin-1"))
    assert main(["predict", "-", *ASKED, "--draws", "1"]) == 0
    made = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [each["id"] for each in made] == ["é0", "é1"]


def test_bytes_of_standard_input_that_are_no_text_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    buffer = io.BufferedReader(io.BytesIO(b'{"prompt": "\xe9"}\n'))  # type: ignore[arg-type]  # bytes do as a raw stream
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(buffer, encoding="latin-1"))
    assert main(["predict", "-", *ASKED, "--draws", "1"]) == 1
    assert "stdin: not UTF-8" in capsys.readouterr().err
