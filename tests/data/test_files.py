"""Files of every kind give the same rows; a file that is something else is refused with what to do."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from femtune.data.files.reading import file_rows, file_unit
from femtune.data.problems import load_problems
from femtune.data.rows import BadRow
from femtune.data.tasks.load import Options, read_places, read_task
from femtune.errors import ConfigError, DataError

ROWS = [
    {"prompt": "What is 2 + 2?", "answer": "4"},
    {"prompt": 'Say "a; b,\tc | d"\nnow', "answer": "é"},
]


def rows(path: Path, header: bool = True) -> list[Any]:
    return [row for _, row in file_rows(path, header)]


def refused(path: Path, *words: str, header: bool = True) -> None:
    with pytest.raises((DataError, ConfigError)) as caught:
        rows(path, header)
    missing = [word for word in (str(path), *words) if word not in str(caught.value)]
    assert not missing, str(caught.value)


def as_csv(made: Sequence[dict[str, str]], separator: str = ",") -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(made[0]), delimiter=separator)
    writer.writeheader()
    writer.writerows(made)
    return text.getvalue()


def as_lines(made: Sequence[Any]) -> str:
    return "".join(f"{json.dumps(row)}\n" for row in made)


def zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as out:
        out.write(content)
    return bytes(sink.getvalue())


# --- compression and encoding

TEXTS = {
    ".jsonl": as_lines(ROWS),
    ".ndjson": as_lines(ROWS),
    ".json": json.dumps(ROWS),
    ".csv": as_csv(ROWS),
    ".tsv": as_csv(ROWS, "\t"),
}


@pytest.mark.parametrize("suffix", TEXTS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize(
    ("ending", "compress"),
    [("", bytes), (".gz", gzip.compress), (".zst", zstd), (".bz2", bz2.compress)],
)
def test_text_is_read_in_any_compression_and_encoding(
    tmp_path: Path, suffix: str, encoding: str, ending: str, compress: Any
) -> None:
    path = tmp_path / f"a{suffix}{ending}"
    path.write_bytes(compress(TEXTS[suffix].encode(encoding)))
    assert rows(path) == ROWS


def test_big_endian_marks_are_known_too(tmp_path: Path) -> None:
    for encoding in ("utf-16-be", "utf-32-be"):
        (tmp_path / "a.jsonl").write_bytes(("\ufeff" + as_lines(ROWS)).encode(encoding))
        assert rows(tmp_path / "a.jsonl") == ROWS


def test_a_compressed_file_of_several_parts_is_read_whole(tmp_path: Path) -> None:
    parts = [json.dumps(row).encode() + b"\n" for row in ROWS]
    (tmp_path / "a.jsonl.gz").write_bytes(b"".join(map(gzip.compress, parts)))
    (tmp_path / "a.jsonl.zst").write_bytes(b"".join(map(zstd, parts)))
    assert rows(tmp_path / "a.jsonl.gz") == rows(tmp_path / "a.jsonl.zst") == ROWS


@pytest.mark.parametrize(("ending", "compress"), [(".gz", gzip.compress), (".zst", zstd)])
def test_a_truncated_compressed_file_is_refused(tmp_path: Path, ending: str, compress: Any) -> None:
    path = tmp_path / f"a.jsonl{ending}"
    path.write_bytes(compress(as_lines(ROWS * 100).encode())[:-9])
    refused(path, "Truncated", "Create the file again")
    path.write_bytes(b"prompt")
    refused(path, "can't be read")


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("a.csv", b"PK\x03\x04rest", "spreadsheet or a zip file"),
        ("a.jsonl", gzip.compress(b"{}", mtime=0), "name it .gz too"),
        ("a.jsonl", zstd(b"{}"), "name it .zst too"),
        ("a.csv", b"PAR1rest", "name it .parquet"),
        ("a.csv", b"ARROW1rest", "name it .arrow"),
        ("a.parquet", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ("a.jsonl", b"\n<!doctype html><html>", "a web page"),
        ("a.jsonl", '{"prompt"'.encode("utf-16-le"), "null bytes"),
        ("a.csv", b"\xff\xfep\x00\x00\xd8", "not UTF-16"),
        ("a.jsonl", b'[\n{"prompt": "x"}\n]', "name it .json"),
        ("a.xlsx", b"PK\x03\x04", "save it as CSV UTF-8"),
        ("a.xls", b"\xd0\xcf\x11\xe0", "save it as CSV UTF-8"),
        ("a.zip", b"PK\x03\x04", "unpack it"),
        ("a.pkl", b"\x80", "can run code"),
        ("a.txt", b"x", "without columns"),
        ("a.parquet.gz", b"x", "Unpack it"),
        ("a.gz", b"x", "unknown kind"),
        ("a", b"x", "unknown kind"),
    ],
)
def test_a_file_of_something_else_says_so(tmp_path: Path, name: str, content: bytes, what: str) -> None:
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, what)


def test_standard_input_is_for_predict_alone() -> None:
    with pytest.raises(DataError, match="only predict reads standard input"):
        rows(Path("-"))


# --- separators and headers


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_any_separator_is_found_and_said(
    tmp_path: Path, suffix: str, separator: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_text(as_csv(ROWS, separator), newline="")
    assert rows(path) == ROWS
    usual = {".csv": ",", ".tsv": "\t"}[suffix] == separator
    names = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
    assert usual == (f"separated by {names[separator]}" not in caplog.text)


def test_commas_in_a_header_do_not_hide_another_separator(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("the prompt, in English;answer\nWhat, then?;4\nWhy?;5\n")
    assert rows(tmp_path / "a.csv")[1] == {"the prompt, in English": "Why?", "answer": "5"}


def test_a_single_column_is_one(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt\nWhy; and how?\nWhat | that?\n")
    assert rows(tmp_path / "a.csv") == [{"prompt": "Why; and how?"}, {"prompt": "What | that?"}]


def test_rows_of_another_width_stay_bad_rows_under_a_separator_that_was_found(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt;answer\nWhy?;4\nWhat; then?;5\n")
    found = list(file_rows(tmp_path / "a.csv"))
    assert found[0] == (2, {"prompt": "Why?", "answer": "4"})
    assert isinstance(found[1][1], BadRow) and found[1][1].detail == "3 cells, 2 columns"


def test_two_separators_that_fit_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id;prompt,answer\n1;Why?,4\n2;How?,5\n")
    refused(tmp_path / "a.csv", "commas and semicolons both", "Quote the cells")


def test_a_first_line_may_name_the_separator(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("sep=;\nprompt;answer\nWhy?;4\nWhat\n")
    (good, bad) = file_rows(tmp_path / "a.csv")
    assert good == (3, {"prompt": "Why?", "answer": "4"}) and bad[0] == 4


def test_without_a_header_columns_are_counted_from_1(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("What is 2 + 2?,easy,4\nWhat is 2 + 3?,easy,5\n")
    problems = load_problems(path, columns={"prompt": "1", "answer": "3"}, header=False)
    assert [(each.prompt, each.answer) for each in problems] == [
        ("What is 2 + 2?", "4"),
        ("What is 2 + 3?", "5"),
    ]
    with pytest.raises(DataError, match="Without a header they are numbers: --columns prompt=1"):
        load_problems(path, header=False)
    path.write_text("Why; and how?\nWhat\n")
    assert rows(path, header=False) == [{"1": "Why; and how?"}, {"1": "What"}]
    path.write_text("a;b\nc;d\n")
    assert rows(path, header=False) == [{"1": "a", "2": "b"}, {"1": "c", "2": "d"}]


def test_columns_without_a_name_are_counted_too(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(",prompt,,\n0,Why?,4,\n")
    assert rows(tmp_path / "a.csv") == [{"1": "0", "prompt": "Why?", "3": "4", "4": ""}]
    (tmp_path / "a.csv").write_text(",1\n0,Why?\n")
    refused(tmp_path / "a.csv", "column `1` occurs twice")


def test_a_first_row_in_place_of_a_header_gets_the_flag(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("Why?,4,4\nHow?,5,5\n")
    refused(path, "`4` occurs twice", "--no-header")
    path.write_text("What is 2 + 2?,4\nWhat is 2 + 3?,5\n")
    with pytest.raises(DataError, match="--no-header --columns prompt=1"):
        load_problems(path)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_only_tables_of_cells_have_no_header(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"a{suffix}").write_text("{}")
    refused(tmp_path / f"a{suffix}", "no-header is for .csv and .tsv", header=False)


def test_the_hub_and_rows_in_memory_have_names_of_columns() -> None:
    with pytest.raises(ConfigError, match="names: drop no-header"):
        read_task("openai/gsm8k", "math", Options(header=False))
    with pytest.raises(ConfigError, match="drop no-header"):
        read_places(enumerate(ROWS, 1), "rows", "table", Options(header=False))


def test_a_row_is_named_by_the_line_on_which_it_begins(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('prompt,answer\n"one\ntwo",4\n\n"three\nfour",\n')
    assert [place for place, _ in file_rows(path)] == [2, 5]
    with pytest.raises(DataError, match="`answer` is empty: line 5"):
        load_problems(path)


CELLS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00\ufeff"), max_size=12)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.fixed_dictionaries({"a": CELLS, "b": CELLS, "c": CELLS}), min_size=1, max_size=5),
    st.sampled_from([",", ";", "\t", "|"]),
)
def test_any_table_is_read_as_it_was_written(
    tmp_path: Path, made: list[dict[str, str]], separator: str
) -> None:
    (tmp_path / "a.csv").write_text(as_csv(made, separator), newline="", encoding="utf-8")
    assert rows(tmp_path / "a.csv") == made


# --- JSON


def test_rows_under_the_only_key_with_objects_are_taken_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"version": 1, "data": ROWS, "splits": [], "names": ["a"]}))
    assert rows(path) == ROWS
    assert "rows are those under `data`; not read: version, splits, names" in caplog.text


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ({"train": ROWS, "test": ROWS}, "several lists of objects, `train`, `test`"),
        ({"prompt": {"0": "x"}, "answer": {"0": "y"}}, "orient='records'"),
        ({"prompt": ["x"], "answer": ["y"]}, "orient='records'"),
        ({"data": {"rows": ROWS}}, "a JSON dict with `data`"),
        ({}, "a JSON dict with nothing"),
        ("x", "a JSON str"),
    ],
)
def test_json_without_one_list_of_objects_is_refused(tmp_path: Path, content: Any, what: str) -> None:
    (tmp_path / "a.json").write_text(json.dumps(content))
    refused(tmp_path / "a.json", what)


def test_a_key_that_occurs_twice_is_a_fault(tmp_path: Path) -> None:
    line = '{"prompt": "x", "answer": "4", "answer": "5"}'
    (tmp_path / "a.jsonl").write_text(line)
    [(place, row)] = file_rows(tmp_path / "a.jsonl")
    assert place == 1 and isinstance(row, BadRow) and "`answer` occurs twice" in row.detail
    (tmp_path / "a.json").write_text(f"[{line}]")
    refused(tmp_path / "a.json", "`answer` occurs twice")


# --- Arrow, and folders


def test_arrow_files_and_streams_are_read(tmp_path: Path) -> None:
    table = pa.Table.from_pylist(ROWS)
    with pa.ipc.new_file(str(tmp_path / "a.arrow"), table.schema) as out:
        out.write_table(table, max_chunksize=1)
    with pa.ipc.new_stream(str(tmp_path / "b.arrow"), table.schema) as out:
        out.write_table(table)
    assert rows(tmp_path / "a.arrow") == rows(tmp_path / "b.arrow") == ROWS
    (tmp_path / "c.arrow").write_bytes((tmp_path / "b.arrow").read_bytes()[:100])
    refused(tmp_path / "c.arrow", "can't be read as Arrow")


def test_a_column_that_occurs_twice_in_parquet_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table([pa.array(["x"])] * 2, names=["a", "a"]), tmp_path / "a.parquet")
    refused(tmp_path / "a.parquet", "`a` twice")


def test_saved_data_sets_are_read_in_the_order_of_their_files(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    many = [{"prompt": f"What is {n} + 2?", "answer": n + 2} for n in range(24)]
    made = datasets.Dataset.from_list(many)
    made.select(range(1, 24, 2)).save_to_disk(tmp_path / "odd", num_shards=12)
    assert rows(tmp_path / "odd") == many[1::2]
    assert file_unit(tmp_path / "odd") == "row"
    datasets.DatasetDict(train=made, test=made).save_to_disk(tmp_path / "both")
    refused(tmp_path / "both", "holds the splits test, train")
    assert rows(tmp_path / "both" / "train") == many
    (tmp_path / "odd" / "data-00003-of-00012.arrow").unlink()
    refused(tmp_path / "odd", "lacks data-00003-of-00012.arrow")
    (tmp_path / "odd" / "state.json").write_text("{}")
    with pytest.raises(DataError, match="does not list the files"):
        rows(tmp_path / "odd")


def shards(folder: Path, files: dict[str, str]) -> Path:
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


def test_a_folder_of_shards_is_one_table_in_sorted_order(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = {"part-2.jsonl": as_lines(ROWS[1:]), "part-1.jsonl": as_lines(ROWS[:1]), "README.md": "rows"}
    folder = shards(tmp_path / "a", made | {"dataset_infos.json": "{}", "_SUCCESS": "", ".part.crc": ""})
    assert rows(folder) == ROWS and file_unit(folder) == "line"
    said = "those of 2 files, part-1.jsonl, part-2.jsonl; not read: README.md, dataset_infos.json."
    assert said in caplog.text
    assert [problem.id for problem in load_problems(folder)] == ["a-1", "a-2"]


def test_a_bad_row_of_a_shard_names_its_file(tmp_path: Path) -> None:
    folder = shards(tmp_path / "a", {"1.jsonl": as_lines(ROWS), "2.jsonl": "\n{}\n"})
    with pytest.raises(DataError, match=r"`prompt` is missing: line 2 of 2.jsonl"):
        load_problems(folder)
    twins = as_lines([{**ROWS[0], "id": "r"}])
    folder = shards(tmp_path / "b", {"1.jsonl": twins, "2.jsonl": twins})
    with pytest.raises(DataError, match=r"line 1 of 2.jsonl \(\"r\", first in line 1 of 1.jsonl"):
        load_problems(folder)


@pytest.mark.parametrize(
    ("files", "what"),
    [
        ({"a.jsonl": "", "b.csv": ""}, "files of several kinds, .csv, .jsonl"),
        ({"a.jsonl": "", "a.jsonl.gz": ""}, "files of several kinds, .jsonl, .jsonl.gz"),
        ({"train-1.jsonl": "", "test-1.jsonl": ""}, "several splits, test, train"),
        ({"README.md": "x"}, "without a file of data"),
        ({"a.csv": "prompt,answer\nx,4\n", "b.csv": "prompt,score\nx,4\n"}, "`answer`, `score` differ"),
        ({"a.csv": "prompt,answer\nx,4\n", "b.csv": ""}, "b.csv is empty"),
    ],
)
def test_a_folder_that_is_not_one_table_is_refused(
    tmp_path: Path, files: dict[str, str], what: str
) -> None:
    refused(shards(tmp_path / "a", files), what)


def test_a_folder_of_folders_names_them(tmp_path: Path) -> None:
    shards(tmp_path / "a" / "data", {"a.jsonl": as_lines(ROWS)})
    refused(tmp_path / "a", "Give a folder of it: data")


def test_what_is_read_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    load_problems(shards(tmp_path / "a", {"a.csv": as_csv(ROWS, ";")}))
    assert caplog.text.count("those of 1 files") == caplog.text.count("separated by semicolons") == 1
