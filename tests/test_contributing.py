"""The skeletons of CONTRIBUTING.md run as they stand, and the picture of the rooms is of this code."""

from __future__ import annotations

import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from femtune.data.prompts import Prompts
from femtune.data.tasks import load, schemas
from femtune.estep.driver import e_step
from femtune.estep.scheduler import Sampler
from femtune.rewards import builtin
from femtune.schemes import named
from femtune.schemes.filters import weigh
from femtune.schemes.named import rejection
from femtune.types import Completion, Draw, DrawKey, Engine, Example, Problem, Sampling, Score

ROOT = Path(__file__).parent.parent
LONGEST = 40  # lines


def skeleton(name: str) -> str:
    """Return the code under a heading: the block whose first line is `# add NAME`."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
    [found] = [block for block in blocks if block.startswith(f"# add {name}\n")]
    assert len(found.splitlines()) < LONGEST
    return found


def run(name: str) -> dict[str, Any]:
    module = ModuleType("skeleton")
    code = compile(skeleton(name), f"CONTRIBUTING.md: {name}", "exec", dont_inherit=True)
    exec(code, module.__dict__)
    return module.__dict__


def test_a_reward(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builtin, "REWARDS", dict(builtin.REWARDS))
    made = run("a reward")
    assert made["same_length"]().grade("a b c", "a b c d") == 0.75


def test_a_task(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = run("a task")
    task = ModuleType("claims")
    task.__dict__.update(made)
    monkeypatch.setattr(load, "TASKS", (*load.TASKS, "claims"))
    monkeypatch.setitem(load.MODULES, "claims", task)
    monkeypatch.setattr(schemas, "SCHEMAS", (*schemas.SCHEMAS, made["SCHEMA"]))
    file = tmp_path / "claims.csv"
    file.write_text("claim,answer\nIce melts.,yes\nSand melts at noon.,no\n")
    found = load.read_task(file, "claims")
    assert [problem.answer for problem in found.problems] == ["yes", "no"]
    assert found.problems[0].prompt == "Is this true? Ice melts."
    assert 'Answer: " and yes or no' in found.instruction
    grade = builtin.as_reward(found.reward)
    assert grade.grade("YES", "yes") == 1 and grade.grade("no", "yes") == 0  # type: ignore[attr-defined]  # a reward by its own class


def test_an_engine() -> None:
    engine = run("an engine")["EchoEngine"]()
    assert isinstance(engine, Engine)
    problems = [Problem("a", "Say 7 again.", "7"), Problem("b", "And 8.", "9")]
    grade = partial(builtin.score, prompts=Prompts(), reward=builtin.exact())
    sampler = Sampler(engine, engine.tokenizer, Prompts(), grade, Sampling(64))
    chunks = e_step(problems, rejection(2), sampler, iteration=1)
    draws = [draw for chunk in chunks for draw in chunk.draws]
    assert [(draw.key.problem_id, draw.accepted) for draw in draws] == [
        ("a", True),
        ("b", False),
        ("b", False),
    ]


def test_a_scheme(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(named.ADDED, "surprising", run("a scheme")["surprising"])
    scheme = named.parse_scheme("star+surprising:2")
    assert scheme.name == "star+surprising(2)" and scheme.needs == {"log_pi"}
    completion, score = Completion((1,), "", "stop", -3.0), Score(1.0, "1")
    draw = Draw(DrawKey(1, "a", 0, 0), "plain", 0, completion, score, log_pi=-3.0)
    assert weigh(scheme.weigh, [draw]) == [Example(draw, weight=9.0)]


def test_the_picture_of_the_rooms_is_of_this_code() -> None:
    pytest.importorskip("grimp", reason="import-linter is not installed")
    argv = [sys.executable, str(ROOT / "scripts" / "draw_rooms.py"), "--check"]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
