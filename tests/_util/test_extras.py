"""Without an extra's library, its part says what to install, before it begins."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from femtune._util.extras import OPTIONAL, check_extra
from femtune.comparison.baselines import chosen
from femtune.config import Calibrate, Train
from femtune.data.tasks.hub import Address, open_hub
from femtune.errors import ConfigError
from femtune.reporting.page.render import report
from femtune.rewards.builtin import as_reward

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomllib")

PYPROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]


def packages(requirements: list[str]) -> set[str]:
    return {re.split(r"[\[><=]", each)[0] for each in requirements}


def without(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed


def test_each_optional_package_is_in_its_extra_and_not_in_the_core() -> None:
    extras = PYPROJECT["optional-dependencies"]
    for package, extra in OPTIONAL.values():
        assert package in packages(extras[extra])
        assert package not in packages(PYPROJECT["dependencies"])


@pytest.mark.parametrize("module", sorted(OPTIONAL))
def test_a_missing_library_is_named_with_the_command_that_installs_it(
    module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    package, extra = OPTIONAL[module]
    without(monkeypatch, module)
    with pytest.raises(ConfigError) as raised:
        check_extra("this", module)
    assert str(raised.value) == f"this needs {package}: pip install 'femtune[{extra}]'."


def test_each_part_asks_for_its_library_before_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without(monkeypatch, *OPTIONAL)
    judged = Train(task="judge", eval_share=0.2)
    parts = (
        ("math", lambda: as_reward("math")),
        ("datasets", lambda: open_hub(Address("openai/gsm8k", "train"), "math")),
        ("stats", lambda: Calibrate()),
        ("stats", lambda: chosen(None, judged)),
        ("report", lambda: report([tmp_path])),
    )
    for extra, begin in parts:
        with pytest.raises(ConfigError, match=rf"pip install 'femtune\[{extra}\]'"):
            begin()


def test_a_baseline_that_needs_a_library_can_be_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    judged = Train(task="judge", eval_share=0.2)
    usual = chosen(None, judged)
    without(monkeypatch, "sklearn")
    with pytest.raises(ConfigError, match=r"left out by --baselines ([a-z -]+)\)") as raised:
        chosen(None, judged)
    others = re.search(r"--baselines ([a-z -]+)\)", str(raised.value))[1].split()
    assert chosen(others, judged) == tuple(name for name in usual if name != "regression")
