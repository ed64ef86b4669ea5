"""A scheme made in Python, with a rule of the user's own, is good for all that a named one is.

It is the example of docs/schemes.md, "Your own scheme".
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from runpy import run_path
from typing import Any, ClassVar

import pytest
import yaml

from femtune import Scheme, Stage, settle, star, train
from femtune.cli.main import main
from femtune.errors import ConfigError, RunError
from femtune.mstep_schedule import MStepSchedule
from femtune.reporting.cards import write_model_card
from femtune.runs.draws import read_draws
from femtune.runs.run import stored_config
from femtune.schemes.filters import Accepted, Chain, paper_filter
from femtune.schemes.serialization import scheme_from_data, scheme_to_data
from femtune.tools.refilter import Change, refilter
from femtune.tools.replay import replay
from femtune.tools.stored_run import open_stored, stored_scheme
from femtune.tools.verify import check_up
from femtune.types import Draw

ROOT = Path(__file__).parents[2]
FILE = re.compile(r"`(\w+\.py)`:\n\n```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def drawn(root: Path) -> dict[str, list[Draw]]:
    """All draws of a run, by iteration and kind."""
    folders = sorted(root.glob("iteration-*/draws")) + sorted(root.glob("iteration-*/eval"))
    return {
        str(folder.relative_to(root)): [draw for chunk, _ in read_draws(folder) for draw in chunk]
        for folder in folders
    }


def killed_once(command: list[str], place: Path, folder: Path, env: dict[str, str]) -> None:
    """Kill a command with SIGKILL as soon as a place exists."""
    with subprocess.Popen(command, cwd=folder, env=env) as process:
        until = time.monotonic() + 200
        while not place.exists() and process.poll() is None and time.monotonic() < until:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert place.exists() and process.returncode == -signal.SIGKILL


def test_a_scheme_made_in_python_is_trained_resumed_replayed_refiltered_and_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = dict(FILE.findall((ROOT / "docs" / "schemes.md").read_text()))
    assert files.keys() == {"shorter.py", "own.py"}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    sizes = ["--num-train", "16", "--num-test", "8"]
    assert main(["world", "rubric", "--output-dir", "ratings", *sizes]) == 0

    # killed as the second iteration draws, and resumed by the same script, here
    root = tmp_path / "runs" / "shorter"
    path = os.pathsep.join([str(ROOT / "src"), str(tmp_path)])
    env = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    killed_once([sys.executable, "own.py"], root / "iteration-002" / "draws", tmp_path, env)
    assert not (root / "iteration-002" / "metrics.json").exists()
    scheme = run_path("own.py", run_name="__main__")["scheme"]

    # the same draws as of a run that was not killed
    asked = {"task": "judge", "scale": "1,5", "raters": "named", "iterations": 2, "max_new_tokens": 48}
    asked |= {"num_train_epochs": 1, "per_device_train_batch_size": 8}
    whole = train("ratings/train.jsonl", model="seedling", scheme=scheme, output_dir="whole", **asked)
    assert drawn(root) == drawn(whole.run) and len(drawn(root)) == 5

    # what is stored is the scheme
    config = stored_config(root)
    assert config["scheme"] == "shorter" and stored_scheme(config, root) == scheme
    assert {"shorter:Shorter": {"power": 1.0}} in config["scheme_data"]["weigh"]
    assert check_up(root).faults == []
    assert open_stored(root, 2).start() == root / "iteration-001" / "model"  # the second is no restart

    # replayed and refiltered by it
    again_of = f"2/{drawn(root)['iteration-002/draws'][0].key.problem_id}"
    again = list(replay(root, again_of))
    assert len(again) >= 2 and all(each.same for each in again)
    report = refilter(root, Change(), iteration=2)
    assert report["stored"] == report["refiltered"] and not report["alike"]
    assert report["asked_again"] == report["left_out"] == 0

    # the card and the report say what it is, also where its rule is gone
    for path_ in (tmp_path / "shorter.py", tmp_path / "own.py"):
        path_.unlink()
    monkeypatch.delitem(sys.modules, "shorter")
    card = root / "iteration-002" / "model" / "README.md"
    first = card.read_text()
    assert "Accepted(), Distinct(), shorter:Shorter(power=1.0), Share()" in first
    assert "2 plain draws of all problems, then 1 hinted draw of unsolved problems" in first
    assert "restarts from the base take more" in first and "keeps using a hint" not in first
    card.unlink()
    assert write_model_card(root, 2).read_text() == first
    assert main(["report", str(root), "--output", "report.html"]) == 0
    page = (tmp_path / "report.html").read_text()
    assert "shorter:Shorter(power=1.0)" in page
    gone = "shorter: Rule shorter:Shorter can't be imported"
    with pytest.raises(RunError, match=gone):
        list(replay(root, again_of))
    with pytest.raises(RunError, match=gone):
        refilter(root, Change())


# --- what can't be stored, or is not what it was


@dataclass(frozen=True)
class Reads:
    """A rule whose parameters are of every kind that can be stored."""

    number: float = 0.1
    text: str = "a: b"
    flag: bool = True
    several: tuple[tuple[int, ...], None] = ((1, 2), None)

    needs: ClassVar[frozenset[Any]] = frozenset({"log_pi"})

    def __call__(self, draws: Any, examples: Any) -> Any:
        return examples


@dataclass
class Thawed:
    def __call__(self, draws: Any, examples: Any) -> Any:
        return examples


@dataclass(frozen=True)
class Holds:
    what: Any

    def __call__(self, draws: Any, examples: Any) -> Any:
        return examples


@dataclass(frozen=True)
class Misspelt:
    needs: ClassVar[frozenset[str]] = frozenset({"log_py"})

    def __call__(self, draws: Any, examples: Any) -> Any:
        return examples


def scheme(rule: Any, **changes: Any) -> Scheme:
    return Scheme("mine", (Stage("plain"),), weigh=rule, **changes)


def made_in_a_function() -> Any:
    @dataclass(frozen=True)
    class Local:
        def __call__(self, draws: Any, examples: Any) -> Any:
            return examples

    return Local()


def test_a_rule_of_the_users_is_made_again_with_all_that_it_was_given() -> None:
    made = scheme(Chain(Accepted(), Reads(-1e-9, "x", False, ((), None))))
    stored = yaml.safe_load(yaml.safe_dump(scheme_to_data(made)))
    assert scheme_from_data(stored) == made and made.needs == {"log_pi"}


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        (lambda draws, examples: examples, "<lambda> is no frozen dataclass"),
        (Thawed(), "Thawed is no frozen dataclass"),
        (made_in_a_function(), "Local is made in a function: move it to the top level of a module"),
        (Holds([1]), r"Holds\.what is of type list\. It must be a string, a number"),
        (Holds(Accepted()), r"Holds\.what is of type Accepted"),
        (Holds((1, {2})), r"Holds\.what is of type set"),
    ],
)
def test_a_rule_that_can_not_be_stored_is_refused_before_anything_is_done(
    rule: Any, told: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=rf"Scheme mine can't be stored\. .*{told}"):
        train(tmp_path / "none.jsonl", model="seedling", scheme=scheme(rule))


def test_needs_that_are_none_are_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"Rule Misspelt has needs .*log_py.* Give a frozenset of some"
    ):
        scheme(Misspelt())


def test_an_acceptance_of_its_own_is_refused_as_settings_would_override_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="mine has an accept_at of its own: leave it out, and give"):
        train(tmp_path / "none.jsonl", model="seedling", scheme=scheme(paper_filter, accept_at=0.5))


@pytest.mark.parametrize(
    ("part", "told"),
    [
        ({"nowhere.rules:Rare": {}}, r"nowhere\.rules:Rare can't be imported \(ModuleNotFoundError"),
        ({"femtune.schemes.filters:Rare": {}}, r"filters:Rare can't be imported \(AttributeError"),
        ({"os:system": {}}, "os:system is no dataclass any more"),
        ({"femtune.schemes.filters:First": {"most": 1}}, "filters:First takes other fields"),
        ("First", "is not as it was stored: AttributeError"),
    ],
)
def test_a_stored_rule_that_is_no_more_is_named(part: Any, told: str) -> None:
    data = scheme_to_data(star()) | {"weigh": [part]}
    with pytest.raises(ConfigError, match=told):
        scheme_from_data(data)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"epochs_factor": 0}, "epochs_factor must be > 0"),
        ({"epochs_factor": float("nan")}, "epochs_factor must be > 0"),
        ({"restart_every": -1}, "restart_every must be >= 0"),
        ({"restart_every": 2, "restart_for": 3}, "restart_for from 1 to restart_every, got 2 and 3"),
        ({"restart_every": 2, "restart_for": 0}, "got 2 and 0"),
        ({"restart_for": 2}, "got 0 and 2"),
        ({"restart_every": 2, "start": "base"}, "drop start_from, or settle"),
    ],
)
def test_a_schedule_that_is_impossible_is_refused(given: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        MStepSchedule(**given)


def test_restarts_are_the_first_of_each_period() -> None:
    """By enumeration; `settle` of n is n of every 3 n."""
    for num in (1, 2, 5):
        made = settle(replace(star(), m_steps=MStepSchedule(restart_every=1)), num).m_steps
        wanted = ([True] * num + [False] * 2 * num) * 2
        assert [made.restarts(iteration) for iteration in range(1, 6 * num + 1)] == wanted
    always, never = MStepSchedule(restart_every=1), MStepSchedule()
    assert all(always.restarts(iteration) for iteration in range(1, 20)) and not always.settles
    assert not any(never.restarts(iteration) for iteration in range(1, 20)) and not never.settles
    assert never.starting("base").origin(3) == "base" and always.origin(3) == "base"
