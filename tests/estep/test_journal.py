"""The journal of an open chunk: what was graded is there, whatever cut the file off."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from femtune.errors import RunError
from femtune.estep.journal import Journal, journal_of, remove_journal
from femtune.types import Completion, Draw, DrawKey, Score


def draw(problem: str, index: int = 0, text: str = "It is.\nAnswer: 4") -> Draw:
    completion = Completion((1, 2, 2**31 - 1), text, "stop", float("-inf"))
    return Draw(DrawKey(1, problem, 0, index), "plain", 2**63 - 1, completion, Score(1.0, "4"))


def reopened(shard: Path) -> tuple[list[Draw], tuple[float, float]]:
    with Journal(shard) as journal:
        return journal.draws, journal.spent_s


def test_draws_come_back_as_they_were_graded(tmp_path: Path) -> None:
    shard = tmp_path / "iteration-001" / "draws" / "00000.parquet"
    assert reopened(shard) == ([], (0.0, 0.0))
    odd = draw("b", text="\ud800 \x00 \u2028 two\nlines")
    with Journal(shard) as journal:
        journal.append([draw("a"), odd], (0.25, 0.5))
        journal.append([draw("a", 1)], (1.0, 2.0))
    assert reopened(shard) == ([draw("a"), odd, draw("a", 1)], (1.0, 2.0))
    remove_journal(shard)
    assert reopened(shard) == ([], (0.0, 0.0))


@given(st.data())
def test_wherever_it_is_cut_off_whole_lines_come_back_and_it_goes_on(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    shard = tmp_path_factory.mktemp("cut") / "0.parquet"
    ends = []
    with Journal(shard) as journal:
        for number in range(3):
            journal.append([draw(str(number))], (number, number))
            ends.append(journal_of(shard).stat().st_size)
    whole = journal_of(shard).read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    journal_of(shard).write_bytes(whole[:cut])
    kept = [draw(str(number)) for number, end in enumerate(ends) if end <= cut]
    with Journal(shard) as journal:
        assert journal.draws == kept
        journal.append([draw("last")], (9, 9))
    assert reopened(shard)[0] == [*kept, draw("last")]


@given(st.data())
def test_a_damaged_line_ends_it(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    shard = tmp_path_factory.mktemp("bad") / "0.parquet"
    with Journal(shard) as journal:
        journal.append([draw("a")], (1, 1))
        first = journal_of(shard).stat().st_size
        journal.append([draw("b")], (2, 2))
    spoilt = bytearray(journal_of(shard).read_bytes())
    at = data.draw(st.integers(first, len(spoilt) - 1))
    spoilt[at] ^= data.draw(st.integers(1, 255))
    journal_of(shard).write_bytes(spoilt)
    assert reopened(shard)[0] == [draw("a")]


def test_a_draw_that_two_workers_wrote_counts_once(tmp_path: Path) -> None:
    with Journal(tmp_path / "0.parquet") as one, Journal(tmp_path / "0.parquet") as other:
        one.append([draw("a")], (1, 1))
        other.append([draw("a"), draw("b")], (1, 1))
    assert reopened(tmp_path / "0.parquet")[0] == [draw("a"), draw("b")]


def test_a_place_that_can_not_be_written_is_a_run_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="can't be written"):
        Journal(tmp_path / "file" / "0.parquet")
