"""The run directory: whose it is, and that whatever is in it is whole."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args
from unittest.mock import patch

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from femtune._util.atomic_files import read_lines, replacing
from femtune.errors import RunError
from femtune.runs.draws import by_problem, read_draws, read_shard, write_draws
from femtune.runs.run import FORMAT, Run, check_run, open_run, read_log
from femtune.types import Completion, Draw, DrawKey, FinishReason, Reason, Score

CONFIG: dict[str, Any] = {"model": "m", "scheme": "pps", "iterations": 2, "seed": 0}
STORED = {"format": FORMAT} | CONFIG
CHANGEABLE = frozenset({"iterations"})


@contextmanager
def opened(root: Path, **changes: Any) -> Iterator[Run]:
    with open_run(root, CONFIG | changes, CHANGEABLE) as run:
        yield run


def refused(root: Path, **changes: Any) -> str:
    with pytest.raises(RunError) as error, opened(root, **changes):
        pass
    return str(error.value)


def test_the_same_configuration_goes_on(tmp_path: Path) -> None:
    with opened(tmp_path / "a" / "run") as run:
        run.log("begun")
    with opened(run.root) as again:
        assert again == run
        assert (run.root / "log.jsonl").exists()
    assert yaml.safe_load((run.root / "config.yaml").read_text()) == STORED
    assert "torch" in json.loads((run.root / "environment.json").read_text())["packages"]


def test_a_changeable_setting_may_change_and_is_stored(tmp_path: Path) -> None:
    with opened(tmp_path / "run"):
        pass
    with opened(tmp_path / "run", iterations=9) as run:
        assert yaml.safe_load((run.root / "config.yaml").read_text()) == STORED | {"iterations": 9}


def test_another_configuration_is_refused_with_the_difference(tmp_path: Path) -> None:
    with opened(tmp_path):
        pass
    message = refused(tmp_path, scheme="star", iterations=9, new=1)
    changes = [line.strip() for line in message.splitlines() if line.startswith("  ")]
    assert sorted(changes) == ["+new: 1", "+scheme: star", "-scheme: pps"]
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == STORED


values = st.text() | st.floats(allow_nan=False) | st.lists(st.integers()) | st.none()


@given(st.dictionaries(st.sampled_from([*CONFIG]), values))
@settings(max_examples=30, deadline=None)
def test_any_configuration_is_its_own_after_it_was_stored(
    tmp_path_factory: pytest.TempPathFactory, config: Mapping[str, Any]
) -> None:
    root = tmp_path_factory.mktemp("run")
    (root / "environment.json").write_text("{}")
    (root / "config.yaml").write_text(f"format: {FORMAT}")
    for changeable in (frozenset(config), frozenset[str]()):
        # what it is made with takes long to find out
        with patch("femtune.runs.run.environment", dict), open_run(root, config, changeable):
            pass


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    assert "is not a run directory: it holds ['thesis.tex']" in refused(tmp_path)
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_a_run_that_was_killed_as_it_began_goes_on(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    (tmp_path / ".config.yaml.part").write_text("mod")
    with opened(tmp_path):
        assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == STORED


def test_a_place_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    (file := tmp_path / "file").touch()
    for place in (file, file / "run"):
        assert f"{place} can't be written ({file} is not writable)" in refused(place)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_place_without_leave_to_write_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert f"({tmp_path} is not writable)" in refused(tmp_path / "run")


def test_checking_writes_nothing(tmp_path: Path) -> None:
    check_run(tmp_path / "run", CONFIG, CHANGEABLE)
    assert not (tmp_path / "run").exists()


def test_a_run_is_one_process_at_a_time(tmp_path: Path) -> None:
    with opened(tmp_path):
        assert "is in use by another femtune process" in refused(tmp_path)
    with opened(tmp_path):
        pass


# --- written whole or not at all


class Killed(BaseException):
    pass


def test_a_file_is_there_only_once_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "file"
    with pytest.raises(Killed), replacing(path) as part:
        part.write_text("ha")
        assert not path.exists()
        raise Killed
    assert not path.exists()
    with replacing(path) as part:
        part.write_text("whole")
    assert path.read_text() == "whole"
    assert os.listdir(path.parent) == ["file"]


def test_what_was_there_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(Killed), replacing(path) as part:
        part.write_text("ne")
        raise Killed
    assert path.read_text() == "old"


def test_a_folder_is_there_only_once_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "model"
    with pytest.raises(Killed), replacing(path) as part:
        part.mkdir()
        (part / "left over").write_text("half")
        raise Killed
    assert not path.exists()
    with replacing(path) as part:
        (part / "weights").mkdir(parents=True)
        (part / "weights" / "0").write_text("whole")
    assert [p.relative_to(tmp_path).as_posix() for p in sorted(tmp_path.rglob("*"))] == [
        "model",
        "model/weights",
        "model/weights/0",
    ]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_files_of_a_folder_may_be_read_by_whom_the_umask_lets(
    umask: int, mode: int, tmp_path: Path
) -> None:
    before = os.umask(umask)
    try:
        with replacing(tmp_path / "model") as part:
            (part / "shards").mkdir(parents=True)
            # as safetensors does
            os.close(os.open(part / "shards" / "model.safetensors", os.O_CREAT, 0o600))
    finally:
        os.umask(before)
    files = [path for path in (tmp_path / "model").rglob("*") if path.is_file()]
    assert {path.name: path.stat().st_mode & 0o777 for path in files} == {"model.safetensors": mode}


def test_a_full_disk_is_a_run_error(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with pytest.raises(RunError, match="file can't be written: No space left"), replacing(path):
        raise OSError(28, "No space left on device")


CHILD = """
import sys, time, yaml
from pathlib import Path
from femtune._util.atomic_files import replacing
from femtune.runs.run import open_run
root = Path(sys.argv[1])
with open_run(root, yaml.safe_load((root / "config.yaml").read_text()), frozenset()) as run:
    with replacing(root / "model") as part:
        part.mkdir()
        (part / "half").write_text("half")
        print("halfway", flush=True)
        time.sleep(60)
"""


def test_a_killed_process_leaves_a_run_that_goes_on(tmp_path: Path) -> None:
    root = tmp_path / "run"
    with opened(root):
        pass
    command = [sys.executable, "-c", CHILD, str(root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "halfway\n"
        assert "in use" in refused(root)
        child.send_signal(signal.SIGKILL)
    with opened(root):  # the kernel gave the lock back
        assert not (root / "model").exists()
        with replacing(root / "model") as part:
            part.mkdir()
        assert os.listdir(root / "model") == []


# --- draws


tokens = st.lists(st.integers(0, 2**31 - 1), max_size=4).map(tuple)
logprobs = st.floats()  # infinite and nan, too
draws = st.builds(
    Draw,
    st.builds(DrawKey, st.integers(0, 999), st.text(), st.integers(0, 9), st.integers(0, 9999)),
    st.sampled_from(["plain", "hinted"]),
    st.integers(0, 2**63 - 1),
    st.builds(
        Completion, tokens, st.text(), st.sampled_from(get_args(FinishReason)), logprobs, error=st.text()
    ),
    st.builds(
        Score, st.floats(0, 1), st.text(), st.sampled_from(get_args(Reason)), st.text(), st.text()
    ),
)


@given(st.lists(st.lists(draws, max_size=3), max_size=3))
@settings(max_examples=30, deadline=None)
def test_draws_come_back_exactly(
    tmp_path_factory: pytest.TempPathFactory, chunks: list[list[Draw]]
) -> None:
    run = Run(tmp_path_factory.mktemp("run"))
    for index, chunk in enumerate(chunks):
        write_draws(run.shard(1, "draws", index), chunk, {"engine_s": 0.1 + index})
    stored = list(read_draws(run.iteration(1) / "draws"))
    assert repr([chunk for chunk, _ in stored]) == repr(chunks)  # in repr, nan equals nan
    assert [timing for _, timing in stored] == [{"engine_s": 0.1 + i} for i in range(len(chunks))]


def test_shards_are_read_in_order_and_half_written_ones_not_at_all(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for index in (10, 2, 100_000):
        write_draws(run.shard(1, "draws", index), [], {"index": index})
    (run.iteration(1) / "draws" / ".00003.parquet.part").write_text("PAR1 ha")
    found = [timing["index"] for _, timing in read_draws(run.iteration(1) / "draws")]
    assert found == [2, 10, 100_000]


def test_a_problems_draws_stay_together() -> None:
    made = [
        Draw(DrawKey(1, name, 0, i), "plain", 0, Completion((), "", "stop", 0.0), Score(0.0, ""))
        for name in "ba"
        for i in range(2)
    ]
    assert list(by_problem(made)) == [("b", made[:2]), ("a", made[2:])]


# --- the log


def test_events_are_read_as_they_were_logged(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.log("E-step", iteration=1)
    run.log("über", text="two\nlines {")
    events = list(read_log(tmp_path))
    assert [event["event"] for event in events] == ["E-step", "über"]
    assert events[1]["text"] == "two\nlines {"


def test_a_line_that_was_cut_off_costs_no_other(tmp_path: Path) -> None:
    run, path = Run(tmp_path), tmp_path / "log.jsonl"
    run.log("first")
    whole = path.read_bytes()
    for length in range(len(whole) - 1):  # with all but the newline it is whole
        path.write_bytes(whole + whole[:length])
        run.log("last")  # the run went on
        assert [event["event"] for event in read_log(tmp_path)] == ["first", "last"]


# --- what fuzzing found


def shard_of(path: Path, change: Callable[[Any], Any]) -> Path:
    """A shard of one draw, with its table changed."""
    key = DrawKey(1, "a", 0, 0)
    draw = Draw(key, "plain", 1, Completion((5, 2), "z\nAnswer: 4", "stop", -1.0), Score(1.0, "4"))
    write_draws(path, [draw], {"engine_s": 1.0, "total_s": 2.0})
    read_shard(path)
    table = change(pq.read_table(path))
    path.unlink()
    pq.write_table(table, path)
    return path


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.drop_columns("reward"), "holds no draws as they are stored"),
        (lambda t: t.set_column(16, "answer", pa.array([None], pa.string())), "holds no draws"),
        (lambda t: t.set_column(6, "tokens", pa.array([[1, None]], pa.list_(pa.int32()))), "tokens"),
        (lambda t: t.set_column(4, "prompt_kind", pa.array(["wake"])), "has a prompt_kind of 'wake'"),
        (lambda t: t.set_column(8, "finish_reason", pa.array(["x"])), "has a finish_reason of 'x'"),
        (lambda t: t.replace_schema_metadata(None), "lacks the seconds"),
        (lambda t: t.replace_schema_metadata({"timing": "{"}), "can't be read as Parquet"),
        (lambda t: t.replace_schema_metadata({"timing": '{"total_s": "1"}'}), "lacks the seconds"),
    ],
)
def test_a_shard_that_is_none(tmp_path: Path, change: Callable[[Any], Any], said: str) -> None:
    path = shard_of(tmp_path / "00000.parquet", change)
    with pytest.raises(RunError, match=said) as caught:
        read_shard(path)
    assert str(caught.value).startswith(f"{path} ")
    assert "femtune verify" in str(caught.value)


def test_a_shard_that_is_torn(tmp_path: Path) -> None:
    path = shard_of(tmp_path / "00000.parquet", lambda table: table)
    whole = path.read_bytes()
    for at in (0, 3, 100, len(whole) // 2, len(whole) - 1):
        path.unlink()
        path.write_bytes(whole[:at])
        with pytest.raises(RunError, match="It is damaged"):
            read_shard(path)


@pytest.mark.parametrize("content", [b"a: [", b"\xff", b"- 1", b"7: 8", b"", b"a: &a [*a]"])
def test_a_damaged_configuration_is_no_other_run(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(RunError, match=r"config\.yaml .*Put back what was in it, or start again"):
        check_run(tmp_path, CONFIG, CHANGEABLE)


def test_lines_of_a_log_that_are_no_events(tmp_path: Path) -> None:
    lines = ['{"event": "E-step"}', "7", "null", "[" * 100_000, "9" * 5000, '{"event": "']
    (tmp_path / "log.jsonl").write_bytes("\n".join(lines).encode() + b"\xff\n")
    assert [*read_lines(tmp_path / "log.jsonl")] == [{"event": "E-step"}]
