"""Nothing is lost: torn files, failing disks, clocks, two processes."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from femtune._util.atomic_files import replacing
from femtune.errors import RunError
from femtune.estep.journal import Journal, journal_of
from femtune.runs.draws import read_shard
from femtune.runs.run import Run, locked
from femtune.types import Completion, Draw, DrawKey, Score

from .models import byte_tokenizer, tiny_model
from .write_points import differences, whole_run

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model") / "base", "llama", tokenizer=byte_tokenizer())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    root = tmp_path_factory.mktemp("whole") / "run"
    whole_run(root, base)
    return root


def goes_on(root: Path, whole: Path, base: Path) -> None:
    """A run comes to the end that the whole one came to."""
    assert differences(root, whole, whole_run(root, base), whole_run(whole, base)) == []


# --- damaged files


def cut(path: Path, rng: random.Random) -> None:
    with path.open("r+b") as file:
        file.truncate(rng.randrange(path.stat().st_size))


def flip(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= rng.randrange(1, 256)
    path.write_bytes(content)


BOTH = pytest.mark.parametrize("damage", [cut, flip])


@pytest.fixture
def root(whole: Path, tmp_path: Path) -> Path:
    """A run that was stopped in its last iteration, when all but the metrics was stored."""
    copy = shutil.copytree(whole, tmp_path / "run", symlinks=True)
    (copy / "iteration-003/metrics.json").unlink()
    return copy


NEEDED = ["draws/00001.parquet", "examples.parquet", "model/model.safetensors", "eval/00000.parquet"]


@BOTH
@pytest.mark.parametrize(
    "name", [*(f"iteration-003/{name}" for name in NEEDED), "iteration-001/metrics.json"]
)
def test_what_is_damaged_and_needed_is_named(
    root: Path, base: Path, name: str, damage: Callable[[Path, random.Random], None]
) -> None:
    rng = random.Random(name)
    sound = (root / name).read_bytes()
    for _ in range(5):
        (root / name).write_bytes(sound)
        damage(root / name, rng)
        with pytest.raises(RunError, match=f"damaged since it was stored: {name} .*femtune verify"):
            whole_run(root, base)


@pytest.mark.parametrize("name", NEEDED)
def test_what_was_cut_off_before_it_was_entered_is_named(root: Path, base: Path, name: str) -> None:
    """The manifest is gone: files are known by their own form alone."""
    (root / "manifest.jsonl").unlink()
    rng = random.Random(name)
    path = root / "iteration-003" / name
    sound = path.read_bytes()
    for _ in range(5):
        path.write_bytes(sound)
        cut(path, rng)
        with pytest.raises(RunError, match=f"iteration-003/{name}"):
            whole_run(root, base)


@BOTH
@pytest.mark.parametrize("name", ["iteration-001/draws/00000.parquet", "iteration-002/examples.parquet"])
def test_what_is_damaged_and_not_needed_any_more_stops_nothing(
    root: Path, base: Path, whole: Path, name: str, damage: Callable[[Path, random.Random], None]
) -> None:
    sound = (root / name).read_bytes()
    damage(root / name, random.Random(name))
    history = whole_run(root, base)
    (root / name).write_bytes(sound)
    assert differences(root, whole, history, whole_run(whole, base)) == []


@BOTH
@pytest.mark.parametrize("name", ["manifest.jsonl", "log.jsonl", "environment.json", ".lock"])
def test_lines_that_are_damaged_cost_no_others(
    root: Path, base: Path, whole: Path, name: str, damage: Callable[[Path, random.Random], None]
) -> None:
    """A line of the manifest that is damaged may also name a file that is as it was."""
    sound = (root / name).read_bytes()
    rng = random.Random(name)
    for _ in range(5):
        (root / name).write_bytes(sound)
        (root / "iteration-003/metrics.json").unlink(missing_ok=True)
        damage(root / name, rng)
        try:
            history = whole_run(root, base)
        except RunError as error:
            assert (name, damage) == ("manifest.jsonl", flip) and "femtune verify" in str(error)
            continue
        found = differences(root, whole, history, history)
        if name == "environment.json":  # a note for readers, that doctor names as damaged
            found = [each for each in found if not each.startswith(name)]
        # a path that was flipped stands for a file that never was
        assert found == [] or ((name, damage) == ("manifest.jsonl", flip) and len(found) == 1)


@BOTH
def test_a_configuration_that_is_damaged_is_refused(
    root: Path, base: Path, damage: Callable[[Path, random.Random], None]
) -> None:
    damage(root / "config.yaml", random.Random(1))
    with pytest.raises(RunError, match=str(root)):
        whole_run(root, base)


@BOTH
def test_a_journal_that_is_damaged_is_read_as_far_as_it_is_whole(
    root: Path, base: Path, whole: Path, damage: Callable[[Path, random.Random], None]
) -> None:
    shard = root / "iteration-003/draws/00001.parquet"
    draws = read_shard(shard)[0]
    rng = random.Random(0)
    for _ in range(5):
        shard.unlink()
        (root / "iteration-003/metrics.json").unlink(missing_ok=True)
        with Journal(shard) as journal:
            for draw in draws[:-1]:
                journal.append([draw], (1.0, 1.0))
        damage(journal_of(shard), rng)
        goes_on(root, whole, base)


# --- disks


@contextmanager
def mounted(place: Path, kib: int) -> Iterator[Path]:
    """A small disk of its own, in memory."""
    place.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(place)]
    if not shutil.which("mount") or subprocess.run(words, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs is not permitted here")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def fill(disk: Path, left: int) -> None:
    """Have a file take all but `left` bytes."""
    (disk / "ballast").unlink(missing_ok=True)
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    with (disk / "ballast").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, free - left))


def test_a_full_disk_ends_a_run_that_goes_on_when_there_is_room(
    tmp_path: Path, base: Path, whole: Path
) -> None:
    """Full from the start, then with room for some files more each time."""
    rng = random.Random(0)
    with mounted(tmp_path / "disk", 4096) as disk:
        said = set()
        few = rng.choices(range(1, 12), k=25)
        for pages in [0, *few, *([150, 3] * 20)]:
            fill(disk, pages * 4096)
            try:
                whole_run(disk / "run", base)
                break
            except RunError as error:
                said.add(str(error))
        (disk / "ballast").unlink()
        assert len(said) >= 5
        assert all("No space left" in each or "are free there" in each for each in said)
        goes_on(disk / "run", whole, base)


def test_weights_that_a_disk_has_no_room_for_are_a_run_error(tmp_path: Path, base: Path) -> None:
    """Not of Python's own: safetensors tells the system's error as text."""
    model = AutoModelForCausalLM.from_pretrained(base)
    with mounted(tmp_path / "disk", 64) as disk:
        with pytest.raises(RunError, match="No space left on device"), replacing(disk / "model") as part:
            model.save_pretrained(part)
        assert [path.name for path in disk.iterdir()] == []


def a_draw(name: str) -> Draw:
    completion = Completion(tuple(range(40)), "so " * 40, "stop", -1.5)
    return Draw(DrawKey(1, name, 0, 0), "plain", 7, completion, Score(1.0, "4"))


def test_a_journal_on_a_full_disk_keeps_what_it_said_was_stored(tmp_path: Path) -> None:
    """A full disk takes the first part of a line, and says nothing until the next."""
    with mounted(tmp_path / "disk", 64) as disk:
        fill(disk, 3 * 4096)
        kept: list[Draw] = []
        with pytest.raises(RunError, match="No space left"), Journal(disk / "0.parquet") as journal:
            for number in range(99):
                journal.append([a_draw(str(number))], (1.0, 1.0))
                kept.append(a_draw(str(number)))
        assert len(kept) > 5
        (disk / "ballast").unlink()
        with Journal(disk / "0.parquet") as journal:
            assert journal.draws == kept
            journal.append([a_draw("last")], (1.0, 1.0))
        with Journal(disk / "0.parquet") as journal:
            assert journal.draws == [*kept, a_draw("last")]


def test_a_limit_on_the_size_of_files_is_a_full_disk(tmp_path: Path, base: Path, whole: Path) -> None:
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))
        with pytest.raises(RunError, match="File too large"):
            whole_run(tmp_path / "run", base)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    goes_on(tmp_path / "run", whole, base)


def test_a_disk_that_can_only_be_read_refuses_a_run_and_its_going_on(
    tmp_path: Path, base: Path, whole: Path
) -> None:
    with mounted(tmp_path / "disk", 4096) as disk:
        shutil.copytree(whole, disk / "run", symlinks=True)
        (disk / "run/iteration-003/metrics.json").unlink()
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        for name in ("run", "new"):
            with pytest.raises(RunError, match="can't be written"):
                whole_run(disk / name, base)
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        goes_on(disk / "run", whole, base)


@pytest.mark.parametrize("what", ["removed", "moved"])
def test_a_run_whose_directory_goes_away_says_so(
    tmp_path: Path, base: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    root, record, times = tmp_path / "run", Run.record, [3]

    def record_or_go(run: Run, *paths: Path) -> None:
        times[0] -= 1
        if times == [0]:
            shutil.move(root, tmp_path / "elsewhere")
        record(run, *paths)

    monkeypatch.setattr(Run, "record", record_or_go)
    with pytest.raises(RunError, match="was removed or moved during the run"):
        whole_run(root, base)
    assert not root.exists()
    if what == "moved":
        shutil.move(tmp_path / "elsewhere", root)
    goes_on(root, whole, base)


def test_a_clock_that_jumps_changes_nothing(
    tmp_path: Path, base: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng, now = random.Random(0), time.time
    monkeypatch.setattr(time, "time", lambda: now() + rng.uniform(-1e9, 1e9))
    goes_on(tmp_path / "run", whole, base)


# --- two processes

OWNER = """
import os, sys, time
from pathlib import Path
from femtune.runs.run import locked
with locked(Path(sys.argv[1])):
    if not os.fork():  # what it leaves behind, as a pool of rewards would
        print(os.getpid(), flush=True)
        time.sleep(600)
    time.sleep(600)
"""


def test_a_second_process_is_refused_and_a_dead_ones_child_holds_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-c", OWNER, str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        left_behind = int(owner.stdout.readline())
        try:
            said = f"in use by .* \\(process {owner.pid} on {os.uname().nodename}\\)"
            with pytest.raises(RunError, match=said), locked(tmp_path / "run"):
                pass
            owner.kill()
            owner.wait()
            os.kill(left_behind, 0)  # is there still
            with locked(tmp_path / "run"):
                pass
        finally:
            os.kill(left_behind, signal.SIGKILL)


def test_a_child_of_the_owner_leaves_its_lock_alone(tmp_path: Path) -> None:
    with locked(tmp_path):
        if not (child := os.fork()):
            os._exit(0)
        os.waitpid(child, 0)
        with pytest.raises(RunError, match="in use"), locked(tmp_path):
            pass
