"""JSON, YAML and Parquet that others wrote: what can't be read says why, in one way."""

from __future__ import annotations

import datetime
import re
from pathlib import Path

import pyarrow as pa
import pytest

from femtune._util.parsing import Unreadable, read_json, read_yaml, reading_arrow
from femtune.errors import DataError

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)  # 9^9 values


def test_plain_values_and_aliases_of_them_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("\ufeffa: &b [1, x]\nc: *b\nd: 2001-02-03\n", encoding="utf-8")
    assert read_yaml(path) == {"a": [1, "x"], "c": [1, "x"], "d": datetime.date(2001, 2, 3)}
    path.write_text('{"a": [1, NaN]}')
    assert read_json(path)["a"][0] == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [", "is not valid YAML: .*line 1"),
        ("a: !!int x", "is not valid YAML: invalid literal"),
        ("a: 2001-99-99", "is not valid YAML: month must be in 1..12"),
        ("[1]: 2\n? {a: 1}\n: 2", "is not valid YAML: "),
        ("a: !!python/object/apply:os.system ['true']", "could not determine a constructor"),
        ("[" * 3000, "is not valid YAML: it is nested too deep"),
        ("a: &a [*a]", "nested more than 50 levels deep"),
        ("9" * 5000, "is not valid YAML: Exceeds the limit"),
        (BOMB, "holds over 100,000 values"),
    ],
)
def test_yaml_that_is_broken_or_hostile(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(Unreadable, match=said):
        read_yaml(path)


@pytest.mark.parametrize("read", [read_json, read_yaml])
def test_bytes_that_are_no_text_and_files_that_are_not_there(tmp_path: Path, read: object) -> None:
    assert callable(read)
    (tmp_path / "a").write_bytes(b"a\xff")
    with pytest.raises(Unreadable, match=r"not UTF-8 \(invalid start byte, byte 2\)$"):
        read(tmp_path / "a")
    with pytest.raises(Unreadable, match=r"^can't be read: No such file or directory$"):
        read(tmp_path / "b")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError("Corrupt snappy compressed data."), "can't be read as Parquet: Corrupt snappy data"),
        (pa.ArrowInvalid("no\n magic"), "can't be read as Parquet: no magic"),
        (OverflowError("date value out of range"), "can't be read as Parquet: date value out of range"),
        (Unreadable("holds no draws"), "holds no draws"),
    ],
)
def test_what_arrow_says(error: Exception, said: str) -> None:
    with pytest.raises(Unreadable) as caught, reading_arrow():
        raise error
    assert re.sub("compressed ", "", str(caught.value)) == said


def test_what_is_no_fault_of_a_file_passes() -> None:
    with pytest.raises(DataError, match=r"^row 3 has no `prompt`\.$"), reading_arrow():
        raise DataError("row 3 has no `prompt`.")
    with pytest.raises(KeyboardInterrupt), reading_arrow():
        raise KeyboardInterrupt
