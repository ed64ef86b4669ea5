"""A console that is not UTF-8 ends no command: what it lacks is written in ASCII."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from femtune._util.consoles import ascii_of, make_printable
from femtune.cli.main import main

MODEL = ("--model", "seedling", "--max-new-tokens", "48", "--task", "judge", "--scale", "1,5")
SAID = "Wie heißt „Straße“ auf 日本語? ✓ 🦉"  # neither ASCII nor cp1252 has it all
Row = dict[str, Any]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 ratings whose text is of several scripts."""
    folder = tmp_path_factory.mktemp("data")
    assert (
        main(["world", "rubric", "--output-dir", str(folder), "--num-train", "24", "--seed", "2"]) == 0
    )
    lines = (folder / "train.jsonl").read_text(encoding="utf-8").splitlines()
    rows: list[Row] = [json.loads(line) for line in lines]
    path = folder / "rows.jsonl"
    texts = [{**row, "prompt": f"{SAID} {row['prompt']}"} for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in texts), encoding="utf-8")
    return path


def run(encoding: str, *argv: object, statuses: tuple[int, ...] = (0,)) -> tuple[str, str]:
    """Run the command line in a process of its own; return its two streams, decoded."""
    env = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "femtune", *map(str, argv)]
    done = subprocess.run(command, capture_output=True, env=env, check=False, timeout=300)
    out, err = done.stdout.decode(encoding), done.stderr.decode(encoding)
    assert done.returncode in statuses, f"{out}\n{err}"
    assert "Traceback" not in err and "UnicodeEncodeError" not in err
    return out, err


@pytest.mark.parametrize(("encoding", "tries"), [("ascii", ("--draws", 4)), ("cp1252", ("--no-try",))])
def test_check_shows_what_it_can(encoding: str, tries: tuple[object, ...], data: Path) -> None:
    out, _ = run(encoding, "check", data, *MODEL, *tries, statuses=(0, 1))  # 1: it is not ready to train
    assert "\n+ " in out  # the mark of what is well
    owl, letter = r"\ud83e\udd89", "ß" if encoding == "cp1252" else r"\u00df"
    assert owl in out.replace("\n", "") and f"hei{letter}t" in out


@pytest.mark.slow
def test_a_run_goes_on_to_its_report(data: Path, tmp_path: Path) -> None:
    steps = ("--iterations", 1, "--num-train-epochs", 1, "--bound-draws", 0, "--scheme", "rejection:1")
    steps += ("--per-device-train-batch-size", 8, "--reader-problems", 0)
    out, _ = run("cp1252", "train", data, *MODEL, *steps, "--output-dir", tmp_path / "run")
    assert "of problems at first" in out and (tmp_path / "run" / "report.html").exists()
    out, _ = run("ascii", "verify", tmp_path / "run")
    assert out.startswith("+ ")


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "cp437", "utf-8"])
def test_predictions_are_json_in_any_encoding(
    encoding: str, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from femtune.workflows import predict

    def predictions(*_: Any) -> Any:
        yield {"id": SAID, "answer": "4"}

    monkeypatch.setattr(predict, "predictions", predictions)
    out = io.TextIOWrapper(io.BytesIO(), encoding, write_through=True)
    monkeypatch.setattr(sys, "stdout", out)
    assert main(["predict", str(data), "--model", "seedling"]) == 0
    written = out.buffer.getvalue()  # type: ignore[attr-defined]  # typed as any buffer
    assert json.loads(written.decode("utf-8")) == {"id": SAID, "answer": "4"}


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "cp437", "shift_jis", "koi8-r"])
@given(said=st.text())
def test_any_text_is_written_to_any_console(encoding: str, said: str) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding, write_through=True)
    make_printable(stream)
    stream.write(said)
    stream.write("✓ ▁▃█ … \ud800")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_console_that_takes_any_text_is_left_alone(encoding: str) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding)
    make_printable(stream)
    assert stream.errors == "strict"


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_json_stays_the_same_in_ascii(said: str) -> None:
    line = json.dumps({"said": said}, ensure_ascii=False)
    assert ascii_of(line).isascii() and json.loads(ascii_of(line)) == {"said": said}


@pytest.mark.parametrize(
    "argv", [["--help"], ["train", "--help"], ["train", "x.jsonl", "--model", "„✓“"], ["verify", "日本"]]
)
def test_help_and_errors_are_written_too(argv: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    streams = {
        name: io.TextIOWrapper(io.BytesIO(), "ascii", write_through=True)
        for name in ("stdout", "stderr")
    }
    for name, stream in streams.items():
        monkeypatch.setattr(sys, name, stream)
    assert main(argv) in (0, 1)
    assert any(stream.buffer.getvalue() for stream in streams.values())  # type: ignore[attr-defined]  # typed as any buffer
