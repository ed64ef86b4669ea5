"""What is noted of versions, machine and code beside a result."""

from __future__ import annotations

import json
import logging
import subprocess
from pathlib import Path

import pytest

from femtune._util.environment import differences, environment, git_state
from femtune.runs import run as runs


def git(folder: Path, *words: str) -> None:
    names = ("-c", "user.name=a", "-c", "user.email=a@example.com")
    subprocess.run(["git", "-C", str(folder), *names, *words], check=True, capture_output=True)


def test_the_state_of_a_repository_is_its_commit_and_whether_it_was_changed(tmp_path: Path) -> None:
    assert git_state(tmp_path) is None
    git(tmp_path, "init", "-q")
    (tmp_path / "reward.py").write_text("a = 1\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "a")
    state = git_state(tmp_path)
    assert state is not None and len(state["commit"]) == 40 and not state["changed"]
    (tmp_path / "runs").mkdir()  # what git does not track is no change
    (tmp_path / "runs" / "x").touch()
    assert git_state(tmp_path) == state and git_state(tmp_path / "runs") is None
    (tmp_path / "reward.py").write_text("a = 2\n")
    assert git_state(tmp_path) == state | {"changed": True}


def test_the_environment_has_versions_and_hardware_and_no_secrets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    found = environment()
    assert found["packages"].keys() >= {"femtune", "torch", "transformers", "pyarrow"}
    assert found["cpus"] and found["processor"] and found["memory_gib"] > 0
    assert found["variables"]["OMP_NUM_THREADS"] == "1"
    assert "secret" not in json.dumps(found)


def test_a_run_that_goes_on_elsewhere_says_what_is_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = {"packages": {"torch": "2.13.0", "femtune": "0.1"}, "cpus": 2, "gpus": []}
    monkeypatch.setattr(runs, "environment", lambda: now)

    def opened() -> None:
        with caplog.at_level(logging.WARNING, "femtune"), runs.open_run(tmp_path, {}, frozenset()):
            pass

    opened()
    opened()
    assert not caplog.text
    now = now | {"cpus": 8, "packages": {"torch": "2.14.0", "femtune": "0.1"}}
    opened()
    [other] = runs.read_log(tmp_path)
    assert other["event"] == "session"
    assert other["changed"] == {"cpus": [2, 8], "packages.torch": ["2.13.0", "2.14.0"]}
    assert "started with other versions (torch 2.13.0 -> 2.14.0)" in caplog.text
    assert json.loads((tmp_path / "environment.json").read_text())["cpus"] == 2  # as it began


def test_differences_are_found_at_any_depth() -> None:
    assert differences({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1}, "e": 4}) == {
        "a.c": [2, None],
        "d": [3, None],
        "e": [None, 4],
    }
