"""Whatever others wrote gives a result or a femtune error: a few inputs of each target of `fuzzing`.

The inputs hang on their numbers alone, so that it gives the same everywhere. `bench/fuzz.py` has more.
"""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from femtune.data.tasks.load import Options, read_task
from femtune.errors import DataError
from femtune.evaluation.aggregate import item_id

from .fuzz import tables
from .fuzzing import TARGETS, Target, made, outcome

CI_SHARE = 0.02  # of those that the bench gives to a target, and 40 or more
PATIENCE_S = 30.0  # of processor time: several times the bench's, as CI's machines are slow


@pytest.mark.parametrize("target", TARGETS.values(), ids=lambda target: target.name)
def test_it_gives_a_result_or_a_femtune_error(target: Target, tmp_path: Path) -> None:
    kinds = set()
    for number in range(max(40, round(target.share * CI_SHARE))):
        value = made(target, seed=0, number=number)
        found = outcome(target, value, tmp_path, PATIENCE_S)
        assert found.kind != "fault", f"{target.name} {number}: {value!r:.2000}\n{found.said}"
        kinds.add(found.kind)
    assert "result" in kinds  # else it is refused at the door, and nothing behind it is read


def test_an_input_is_the_same_again() -> None:
    for target in TARGETS.values():
        assert made(target, 1, 2) == made(target, 1, 2)
    assert made(TARGETS["answer"], 1, 2) != made(TARGETS["answer"], 1, 3)


def spin(value: str, folder: Path) -> None:
    while True:
        try:
            signal.pause() if value == "wait" else len(value)
        except Exception:  # what reads may have its own
            continue


def raise_(error: BaseException) -> None:
    raise error


def test_what_is_a_fault() -> None:
    """An exception that is none of ours, one that ends the program, a warning, a hang, no message."""

    def found(read: object, value: str = "") -> tuple[str, str]:
        target = Target("x", lambda rng: "", read, 1)  # type: ignore[arg-type]  # a reader of the test's own
        said = outcome(target, value, Path(), limit_s=0.2)
        return said.kind, said.said.strip().splitlines()[-1] if said.said.strip() else ""

    assert found(lambda value, folder: None) == ("result", "")
    assert found(lambda value, folder: raise_(DataError("row 3: mend it."))) == (
        "refused",
        "row 3: mend it.",
    )
    assert found(lambda value, folder: raise_(DataError(" "))) == ("fault", "")
    assert found(lambda value, folder: raise_(KeyError("x"))) == ("fault", "KeyError: 'x'")
    assert found(lambda value, folder: raise_(SystemExit(2))) == ("fault", "SystemExit: 2")
    assert found(lambda value, folder: compile("1 is 1", "x", "eval"))[0] == "fault"
    assert found(spin) == ("fault", "tests.fuzzing.Hung: took over 0.2 s")


RATED = [{"prompt": f"Why {n}?", "response": f"So {n}.", "score": 1 + n} for n in range(4)]


def test_a_row_or_a_text_that_is_lost_is_a_fault(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*RATED, {**RATED[0], "response": " "}]))
    options = Options(bad_rows="skip", scale="1,5")
    found = read_task(path, "judge", options)
    tables.check_rows(path, "judge", options, found, True)
    first, *rest = found.problems
    for lossy in (
        replace(found, problems=rest),
        replace(found, report=replace(found.report, skipped=())),
        replace(found, problems=[replace(first, prompt=first.prompt[:-4]), *rest]),
        replace(found, places=found.places | {first.id: 2}),  # the text is another row's
    ):
        with pytest.raises(AssertionError):
            tables.check_rows(path, "judge", options, lossy, True)


@pytest.mark.parametrize("task", tables.FORMS)
def test_each_form_is_read_by_some_input(task: str, tmp_path: Path) -> None:
    """As it is, or by the flags that the error proposes."""
    for rows, columns in tables.FORMS[task]:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        options = Options(columns=columns, scale="1,5" if "stars" in rows[0] else None)
        try:
            found = read_task(path, task, options)
        except DataError as error:
            assert "These flags would read it" in str(error) or "--labels" in str(error), error
        else:
            assert len({item_id(problem) for problem in found.problems}) >= len(rows)
