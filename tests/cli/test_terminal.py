"""What data, models and files say is shown in a terminal, and does nothing there."""

from __future__ import annotations

import ast
import functools
import io
import json
import logging
import os
import re
import subprocess
import sys
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

import femtune
from femtune._util.text import visible
from femtune.cli import main
from femtune.comparison.demo import changes
from femtune.reporting import terminal
from femtune.reporting.terminal import framed, literal, plain_table

SOURCE = Path(femtune.__file__).parent

# escape codes that erase, colour, move, ring, name the window, link, and set the clipboard; what turns
# text around, hides it or hides in it; Rich's markup; carriage return and backspace, which write over
HOSTILE = (
    "\x1b[2J\x1b[31mred\x1b[0m\x1b[3A\x07\x1b]0;title\x07\x1b]8;;http://evil.example\x1b\\link\x1b]8;;\x1b\\"
    "\x1b]52;c;cm0gLXJm\x07\x9b2J\x9d0;c1\x9c\x90q\x9c\x85\u202egnp.exe\u202c\u2066in\u2069\u200b\u200d\ufeff"
    "\U000e0041\U000e0101\u00ad\u2028\u061c[red]not red[/red][link=http://evil.example]x[/link]"
    ":smile: over\rwritten\x08\x08\x7f\x00end"
)
# what Rich itself sends: colours alone
COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def acts(text: str) -> set[str]:
    """Characters that may do something in a terminal, or not be seen in it."""
    kinds = {char: unicodedata.category(char) for char in set(text) - {"\n", "\t"}}
    bad = {char for char, kind in kinds.items() if kind in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")}
    # `regex` knows a newer Unicode than the standard library
    bad |= {*regex.findall(r"\p{Cn}", "".join(char for char, kind in kinds.items() if kind == "Cn"))}
    return bad | {char for char in kinds if "\U000e0100" <= char <= "\U000e01ef"}


@given(st.text(st.characters(exclude_categories=())) | st.text("\x00\x07\x1b\x7f\x85\x9b\r\n\t[]8;m\\"))
def test_what_is_visible_has_nothing_that_acts(text: str) -> None:
    shown = visible(text)
    assert not acts(shown)
    shown.encode()  # a half of a surrogate pair could not
    assert visible(shown) == shown


FILLERS = "\u115f\u1160\u3164\uffa0"  # letters without a shape


@given(
    st.text(
        st.characters(
            exclude_categories=["C", "Zl", "Zp", "M"],
            include_characters="\n\t",
            exclude_characters=FILLERS,
        )
    )
)
def test_what_can_be_seen_stays(text: str) -> None:
    assert visible(text) == text


def test_every_character_that_acts_is_written_out() -> None:
    bad = [*acts("".join(map(chr, range(sys.maxunicode + 1))))]
    shown = visible("\n".join(bad))  # a line each, as a million calls take their time
    assert not acts(shown)
    assert not [char for char, line in zip(bad, shown.split("\n"), strict=True) if line == char]


def test_long_lines_are_no_problem() -> None:
    assert visible("\x1b" * 1_000_000) == "␛" * 1_000_000


def on_screen(*things: Any) -> str:
    """What a terminal is sent."""
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    for thing in things:
        console.print(thing)
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]  # the file is a StringIO


def test_markup_is_shown_as_it_stands_in_lines_titles_and_tables() -> None:
    markup = "[red]a[/red][link=http://e.x]b[/link][/]:x:"
    for thing in (literal(markup), framed(literal("x"), markup), plain_table([markup], [["x"]])):
        assert markup in on_screen(thing)
    assert markup in on_screen(plain_table(["", "a"], [[markup, markup]]))


def test_all_that_shows_something_shows_it_harmless() -> None:
    sent = on_screen(
        literal(HOSTILE, "yellow"),
        framed(literal(HOSTILE), HOSTILE),
        plain_table([HOSTILE], [[HOSTILE]]),
    )
    assert not acts(COLOURS.sub("", sent))
    assert "\x1b[31mred" not in sent  # a colour of the data's


def test_a_demo_of_hostile_rationales_is_harmless(tmp_path: Path) -> None:
    """The panels of `demo`, of a run whose problems and draws say what they like."""
    from femtune.comparison.compare import Job
    from femtune.config import Train
    from femtune.data.problems import save_problems
    from femtune.runs.draws import write_draws
    from femtune.types import Completion, Draw, DrawKey, Problem, Score

    save_problems([Problem(HOSTILE, HOSTILE, HOSTILE)], tmp_path / "eval.parquet")
    for iteration in (0, 1):
        draw = Draw(
            DrawKey(iteration, HOSTILE, 0, 0),
            "plain",
            0,
            Completion((1,), HOSTILE.encode("utf-8", "replace").decode(), "stop", -1.0),
            Score(1.0, HOSTILE, ""),
        )
        folder = tmp_path / f"iteration-{iteration:03}" / "eval"
        folder.mkdir(parents=True)
        write_draws(folder / "00000.parquet", [draw], {})
    job = Job(HOSTILE, 0, tmp_path, Train(iterations=1))
    history: Any = [{"iteration": number, "evaluation": {"accuracy": 1.0}} for number in (0, 1)]
    sent = on_screen(*changes({job: history}))
    assert "gnp.exe" in sent
    assert not acts(COLOURS.sub("", sent))


def test_warnings_are_harmless(capsys: pytest.CaptureFixture[str]) -> None:
    record = logging.LogRecord("femtune", logging.WARNING, "", 0, "odd: %s", (HOSTILE,), None)
    main._Warn().emit(record)
    said = capsys.readouterr().err
    assert "odd: ␛[2J" in said
    assert not acts(COLOURS.sub("", said))


# runs commands one after the other, the streams of each in files: a process for each takes long to start
COMMANDS = """
import json, os, sys
from femtune.cli.main import main
statuses = []
for number, argv in enumerate(json.loads(sys.argv[1])):
    for stream, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{number}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    statuses.append(main(argv))
    sys.stdout.flush(), sys.stderr.flush()
with open("statuses.json", "w") as file:
    json.dump(statuses, file)
"""


def run_in_terminal(*commands: Sequence[str], cwd: Path) -> list[tuple[int, str, str]]:
    """Status, output and errors of each command where Rich takes both for a terminal."""
    terminal = {"FORCE_COLOR": "1", "TTY_COMPATIBLE": "1", "TERM": "xterm-256color", "COLUMNS": "100"}
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS, json.dumps(commands)],
        capture_output=True,
        timeout=120,
        cwd=cwd,
        env={**os.environ, **terminal, "PYTHONIOENCODING": "utf-8"},
    )
    assert done.returncode == 0
    statuses = json.loads((cwd / "statuses.json").read_text())
    return [
        (status, *((cwd / f"{number}.{name}").read_bytes().decode() for name in ("out", "err")))
        for number, status in enumerate(statuses)
    ]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Problems that are hostile in every place that is shown."""
    tmp_path = tmp_path_factory.mktemp("data")
    rows = [
        {"id": f"{HOSTILE}{n}", "prompt": f"{HOSTILE} {n} + 2?", "answer": f"{HOSTILE}{n}", HOSTILE: n}
        for n in range(20)
    ]
    path = tmp_path / "data.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def test_doctor_shows_hostile_problems_harmless(data: Path) -> None:
    words = ("--model", "seedling", "--no-try", "--max-new-tokens", "9", "--no-check-gold")
    [(status, out, err)] = run_in_terminal(("check", data.name, *words), cwd=data.parent)
    assert (status, err) == (0, "")
    assert "gnp.exe" in out and "[red]not red[/red]" in out
    assert not acts(COLOURS.sub("", out))


WORD = HOSTILE.replace("\x00", "")  # what a command line can hold
REFUSED = {
    "columns": ("check", "data.jsonl", "--model", "seedling", "--columns", f"answer={WORD[:-3]}"),
    "row": ("check", "bad.jsonl", "--model", "seedling"),
    "reward": ("check", "data.jsonl", "--model", "seedling", "--reward", "number"),
    "config": ("train", "data.jsonl", "--model", "seedling", "--config", "run.yaml"),
    "flag": ("train", "data.jsonl", "--model", "seedling", f"--{WORD}"),
    "value": ("train", "data.jsonl", "--model", "seedling", "--engine", WORD),
    "path": ("check", WORD, "--model", "seedling"),
    "verb": (WORD,),
}
MISUSED = {"config", "flag", "value", "verb"}  # of the command line, which ends with 2


@pytest.fixture(scope="module")
def refused(data: Path) -> dict[str, tuple[int, str, str]]:
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    rows[3]["answer"] = ""
    (data.parent / "bad.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (data.parent / "run.yaml").write_text(json.dumps({HOSTILE: HOSTILE}))
    found = run_in_terminal(*REFUSED.values(), cwd=data.parent)
    return dict(zip(REFUSED, found, strict=True))


@pytest.mark.parametrize("what", REFUSED)
def test_errors_tell_of_hostile_input_harmless(
    what: str, refused: dict[str, tuple[int, str, str]]
) -> None:
    status, out, err = refused[what]
    assert (status, out) == (2 if what in MISUSED else 1, "")
    assert err.partition(":")[0].endswith("Error") and "Traceback" not in err
    assert not acts(COLOURS.sub("", err))


# --- what the source may not say


@functools.cache
def shown_calls() -> list[tuple[str, ast.Call]]:
    return [
        (str(path.relative_to(SOURCE)), node)
        for path in sorted(SOURCE.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
    ]


def test_texts_and_frames_are_made_in_one_place() -> None:
    made = {"Text", "Panel", "Console", "Text.from_markup", "Text.assemble", "Text.from_ansi"}
    found = {place for place, call in shown_calls() if ast.unparse(call.func) in made}
    assert found == {"reporting/terminal.py"}
    appended = [
        place
        for place, call in shown_calls()
        if isinstance(call.func, ast.Attribute) and call.func.attr == "append" and len(call.args) > 1
        if "literal" in (SOURCE / place).read_text()
    ]
    assert not appended  # Text.append takes a string as it is


def test_what_is_printed_was_made_there_or_is_json() -> None:
    strings = (ast.Constant, ast.JoinedStr, ast.BinOp)
    by_rich = [
        ast.unparse(call)
        for _, call in shown_calls()
        if isinstance(call.func, ast.Attribute) and call.func.attr == "print"
    ]
    assert len(by_rich) > 10
    assert not [text for text in by_rich if isinstance(ast.parse(text).body[0].value.args[0], strings)]  # type: ignore[attr-defined]  # the text of a call
    plainly = {
        (place, ast.unparse(call.args[0]))
        for place, call in shown_calls()
        if call.args
        if ast.unparse(call.func) == "print"
    }
    assert {text for _, text in plainly if not text.startswith("json.dumps(")} == {
        "result.stored.read_text()",  # compare.json
        "visible(line) if console().is_terminal else line",
        "verify.as_json(found)",
    }


def test_consoles_take_no_markup_of_a_plain_string() -> None:
    for console in (terminal.console(), terminal.errors()):
        assert console.render_str("[red]a[/red] :smile:").plain == "[red]a[/red] :smile:"
