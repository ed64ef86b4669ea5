"""The manifest: every stored file is in it, and whatever happens to one is noticed."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from femtune.errors import RunError
from femtune.runs.manifest import (
    MANIFEST,
    damage,
    looked_through,
    record,
    record_removed,
    recorded,
    unrecorded,
)
from femtune.runs.run import Run


def stored(root: Path) -> dict[str, bytes]:
    """A run's directory with a few files, entered."""
    files = {
        "iteration-001/draws/00000.parquet": b"draws",
        "iteration-001/model/model.safetensors": b"weights",
        "iteration-001/model/sub/config.json": b"{}",
        "iteration-001/metrics.json": b"",
    }
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    record(root, [root / "iteration-001"])
    return files


def test_files_and_folders_are_entered_with_size_and_sha256(tmp_path: Path) -> None:
    files = stored(tmp_path)
    entries = recorded(tmp_path)
    assert {path: (e.bytes, e.sha256) for path, e in entries.items()} == {
        path: (len(content), hashlib.sha256(content).hexdigest()) for path, content in files.items()
    }
    assert not any(damage(tmp_path, entry) for entry in entries.values())
    assert unrecorded(tmp_path) == []


def test_what_is_not_finished_is_not_entered(tmp_path: Path) -> None:
    folder = tmp_path / "iteration-001" / "draws"
    folder.mkdir(parents=True)
    for name in (".00000.parquet.part", "00001.open.jsonl"):
        (folder / name).touch()
    record(tmp_path, [tmp_path / "iteration-001"])
    assert (recorded(tmp_path), unrecorded(tmp_path)) == ({}, [])


@given(st.sampled_from(["flip", "cut", "grow", "gone"]), st.data())
def test_any_change_is_noticed_and_named(
    tmp_path_factory: pytest.TempPathFactory, change: str, data: st.DataObject
) -> None:
    root = tmp_path_factory.mktemp("run")
    files = stored(root)
    name = data.draw(st.sampled_from([name for name, content in files.items() if content]))
    content = bytearray(files[name])
    if change == "gone":
        (root / name).unlink()
    else:
        at = data.draw(st.integers(0, len(content) - 1))
        if change == "flip":
            content[at] ^= data.draw(st.integers(1, 255))
        content = content[:at] if change == "cut" else content + b"!" * (change == "grow")
        (root / name).write_bytes(content)
    found = {path: damage(root, entry) for path, entry in recorded(root).items()}
    assert [path for path, what in found.items() if what] == [name]
    run = Run(root)
    if change != "gone" or "/model/" in name:  # a file that is not there is made again
        with pytest.raises(RunError, match=r"damaged since it was stored: .*femtune verify"):
            run.verify(root / "iteration-001" / "draws" / "00000.parquet", root / "iteration-001/model")


def test_a_file_that_this_process_stored_is_not_read_again(tmp_path: Path) -> None:
    stored(tmp_path)
    run, path = Run(tmp_path), tmp_path / "iteration-001" / "metrics.json"
    run.record(path)
    path.write_text("changed")
    run.verify(path)
    with pytest.raises(RunError):
        Run(tmp_path).verify(path)


def test_the_last_line_of_a_file_counts_and_removed_ones_are_none(tmp_path: Path) -> None:
    stored(tmp_path)
    path = tmp_path / "iteration-001" / "metrics.json"
    path.write_text("{}")
    record(tmp_path, [path])
    assert recorded(tmp_path)["iteration-001/metrics.json"].bytes == 2
    record_removed(tmp_path, tmp_path / "iteration-001" / "model")
    assert sorted(recorded(tmp_path)) == [
        "iteration-001/draws/00000.parquet",
        "iteration-001/metrics.json",
    ]


def test_a_line_that_was_cut_off_leaves_its_file_to_be_entered_again(tmp_path: Path) -> None:
    stored(tmp_path)
    whole = (tmp_path / MANIFEST).read_bytes()
    (tmp_path / MANIFEST).write_bytes(whole[:-20])
    [file] = unrecorded(tmp_path)
    record(tmp_path, [file])
    assert unrecorded(tmp_path) == [] and len(recorded(tmp_path)) == 4


def test_files_that_a_kill_kept_from_the_manifest_are_read_through(tmp_path: Path) -> None:
    folder = tmp_path / "iteration-001"
    folder.mkdir()
    pq.write_table(pa.table({"a": [*range(1000)]}), folder / "a.parquet", write_page_checksum=True)
    save_file({"w": pa.array([1.0]).to_numpy()}, folder / "b.safetensors")
    (folder / "c.json").write_text("{}")
    paths = sorted(folder.iterdir())
    assert [looked_through(path) for path in paths] == ["", "", ""]
    for path in paths:
        whole = path.read_bytes()
        path.write_bytes(whole[:-1])
        assert "can't be read" in looked_through(path)
        with pytest.raises(RunError, match=f"damaged .*{path.name}"):
            Run(tmp_path).record_rest()
        path.write_bytes(whole)
    spoilt = bytearray(paths[0].read_bytes())
    spoilt[len(spoilt) // 4] ^= 1  # within a page
    paths[0].write_bytes(spoilt)
    assert "can't be read" in looked_through(paths[0])
