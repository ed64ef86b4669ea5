"""Tables with other names of columns: the flags that an error proposes read them as they are pasted."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from femtune._util.parsing import named_pairs
from femtune.cli.main import main
from femtune.data.column_names import SYNONYMS
from femtune.data.tasks.load import Options, read_task
from femtune.data.tasks.proposals import proposal
from femtune.errors import DataError

RATED = {"instruction": "Why?", "output": "Because.", "human_score": 3, "rater name": "Bo"}
TABLES: dict[str, tuple[dict[str, Any], str]] = {
    "ratings": (
        RATED,
        "--task judge --columns prompt=instruction response=output score=human_score 'rater=rater name'",
    ),
    "case and spaces": (
        {"Prompt": "Why?", " Response": "So.", "Score ": 3},
        "--task judge --columns prompt=Prompt 'response= Response' 'score=Score '",
    ),
    "femtune's names": ({"prompt": "Why?", "response": "So.", "score": 3}, "--task judge"),
    "pairs by number": (
        {"query": "Why?", "output_1": "So.", "output_2": "Thus.", "winner": "A", "worker": "w"},
        "--task judge --columns prompt=query response_a=output_1 response_b=output_2 "
        "preference=winner rater=worker",
    ),
    "pairs by letter": (
        {"input": "Why?", "Response A": "So.", "Response B": "Thus.", "Label": "tie"},
        "--task judge --columns prompt=input 'response_a=Response A' 'response_b=Response B' "
        "preference=Label",
    ),
    "summaries": (
        {"article": "Long.", "system_summary": "Short.", "stars": 4},
        "--task summarize --columns post=article summary=system_summary score=stars",
    ),
    "choices": (
        {"query": "Which?", "options": ["x", "y"], "gold": "B"},
        "--task choice --columns question=query choices=options answer=gold",
    ),
    "chosen and rejected": (
        {"Instruction": "Why?", "chosen": "So.", "Rejected": "Thus."},
        "--task judge --columns prompt=Instruction rejected=Rejected",
    ),
    "a column for each choice": (
        {"question": "Which?", "A": "x", "B": "y", "C": "z", "gold": "B"},
        "--task choice --columns choices=A,B,C answer=gold",
    ),
    "numbered choices": (
        {"stem": "Which?", "option_1": "x", "option_2": "y", "answer": "y"},
        "--task choice --columns question=stem choices=option_1,option_2",
    ),
    "questions": (
        {"input": "1 + 1?", "target": "2"},
        "--task table --columns prompt=input answer=target",
    ),
    "quotes and dashes": (
        {"-instruction": "1 + 1?", "answer's key": "x", "--gold--": "2"},
        "--task table --columns prompt=-instruction answer=--gold--",
    ),
}


def written(folder: Path, row: dict[str, Any]) -> Path:
    """Write a row as thirty: each asks something else in its first column, and scores vary."""
    file, (asked, *_) = folder / "rows.jsonl", row
    rows = [
        {name: 3 + n % 2 if value == 3 else value for name, value in row.items()}
        | {asked: f"{row[asked]} {n}"}
        for n in range(30)
    ]
    file.write_text("".join(json.dumps(each) + "\n" for each in rows))
    return file


def proposed(said: str) -> str:
    head, _, flags = said.partition("These flags would read it:\n")
    assert head and flags
    return flags.splitlines()[0].strip()


@pytest.mark.parametrize("name", TABLES)
def test_the_flags_are_one_line_that_reads_the_table(name: str, tmp_path: Path) -> None:
    row, flags = TABLES[name]
    assert proposal("table", [*row]) == flags
    task, columns = parts(flags)
    found = read_task(written(tmp_path, row), task, Options(columns=columns, scale=scale(flags)))
    assert found.problems and all(problem.answer for problem in found.problems)


def parts(flags: str) -> tuple[str, dict[str, str]]:
    _, task, *columns = shlex.split(flags)
    return task, named_pairs("columns", columns[1:])


def scale(flags: str) -> str | None:
    rates = "score=" in flags or flags.endswith("judge")
    return "1,5" if rates else None


@pytest.mark.parametrize("command", ["check", "train", "evaluate", "predict"])
@pytest.mark.parametrize("name", ["ratings", "questions", "quotes and dashes"])
def test_each_command_proposes_a_line_that_works_when_it_is_pasted(
    name: str, command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row, _ = TABLES[name]
    asked = [command, str(written(tmp_path, row)), "--model", "seedling", "--max-new-tokens", "32"]
    if name == "ratings":
        asked += ["--scale", "1,5", "--task", "judge"]
    assert main(asked) == 1
    pasted = shlex.split(proposed(capsys.readouterr().err))
    # up to the model, which is not there
    again = [word if word != "seedling" else str(tmp_path / "none") for word in asked]
    if "--task" in asked:
        again = again[: again.index("--task")]
    assert main([*again, *pasted]) == 1
    error = capsys.readouterr().err
    assert "ModelError" in error, error


def test_a_wrong_name_is_answered_with_the_whole_line(tmp_path: Path) -> None:
    file = written(tmp_path, RATED)
    with pytest.raises(DataError, match=r"no column `scor` for `score`") as found:
        read_task(file, "judge", Options(columns={"score": "scor"}))
    assert proposed(str(found.value)) == TABLES["ratings"][1]


def test_only_what_fits_is_proposed() -> None:
    assert proposal("judge", ["prompt", "response", "rater"]) == ""  # no score, and no table was asked
    assert proposal("table", ["x", "y"]) == ""
    assert proposal("judge", [*RATED]) == proposal("table", [*RATED])
    assert proposal("math", [*RATED]) == "--task math --columns prompt=instruction answer=output"
    assert proposal("table", ["question", "answer"]) == "--task table --columns prompt=question"
    without = ["instruction", "output"]
    expected = "--task judge --columns prompt=instruction response=output"
    assert proposal("judge", without, labels=False) == expected
    assert proposal("judge", ["pro\nmpt", "response", "score"]) == ""  # no line could hold it


def test_published_names_are_known_to_the_letter() -> None:
    rated = ["prompt", "response", "helpfulness", "correctness", "coherence", "complexity", "verbosity"]
    assert proposal("table", rated) == "--task judge"
    assert proposal("table", [name.title() for name in rated]).startswith("--task table")


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    rest=st.lists(st.text(max_size=8), max_size=4, unique=True),
    spelled=st.lists(st.sampled_from([*SYNONYMS["prompt"]]), min_size=1, max_size=2, unique=True),
    gold=st.sampled_from(["target", "gold answer", "Ground_Truth", " reference "]),
)
def test_whatever_the_other_columns_are_the_line_parses(
    rest: list[str], spelled: list[str], gold: str, tmp_path: Path
) -> None:
    row = dict.fromkeys([*rest, *spelled, gold], "text")
    flags = proposal("table", [*row])
    assert "\n" not in flags
    task, columns = parts(flags)
    assert {*columns.values()} <= {*row}
    assert len({*columns.values()}) == len(columns)
    if task == "table":
        assert read_task(written(tmp_path, row), task, Options(columns=columns)).problems
