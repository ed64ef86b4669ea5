"""A run is not resumed with another model, tokenizer, template, reward or column than it began with."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml

from femtune import run_folder
from femtune.config import CHANGEABLE, Train
from femtune.data.worlds import SEEDLING
from femtune.engines.model_files import load_tokenizer
from femtune.errors import ConfigError, RunError
from femtune.rewards.builtin import as_reward
from femtune.run_folder import relied_on_inputs, run_place
from femtune.runs import hashes
from femtune.runs.hashes import hash_weights, writes_date
from femtune.runs.run import open_run
from femtune.types import Problem

PROBLEMS = [Problem(str(n), f"question {n}", str(n), {"level": n, "source": f"s{n}"}) for n in range(4)]
REWARD = "def grade(completion, level):\n    return 1.0 if str(level) in completion else 0.0\n"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a model and a reward's file, and a run that was started with them."""
    shutil.copytree(SEEDLING, tmp_path / "model")
    (tmp_path / "grade.py").write_text(REWARD)
    start(tmp_path)
    return tmp_path


def start(place: Path, problems: Sequence[Problem] = PROBLEMS, **settings: Any) -> None:
    """Start the run, or resume it."""
    spec = f"{place / 'grade.py'}:grade"
    chosen = Train(reward=spec, **settings)
    root, config = run_place(
        place / "run",
        *("train", "data.jsonl", str(place / "model"), chosen, problems),
        reward=as_reward(spec),
    )
    with open_run(root, config, CHANGEABLE):
        pass


def flip(path: Path) -> None:
    """Change one byte in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def prepend(path: Path, text: str) -> None:
    path.write_text(text + path.read_text())


CHANGES: dict[str, Callable[[Path], None]] = {
    "the base model's weights": lambda at: flip(at / "model/model.safetensors"),
    "the base model's config.json": lambda at: edit(at / "model/config.json", rope_theta=9.0),
    "the base model's tokenizer": lambda at: edit(at / "model/tokenizer.json", version="9"),
    "the chat template": lambda at: prepend(at / "model/chat_template.jinja", "Hello. "),
    "the code of the reward": lambda at: prepend(at / "grade.py", "# new\n"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_changed_file_refuses_the_resume_and_is_named(what: str, place: Path) -> None:
    start(place)  # as it was, it is resumed
    CHANGES[what](place)
    with pytest.raises(RunError) as error:
        start(place)
    said = str(error.value)
    assert f"can't be resumed: {what}" in said and "another --output-dir" in said
    named = [name for name in CHANGES if name in said]
    assert named == [what]  # and nothing else is


def test_a_column_that_the_reward_reads_is_looked_at_and_no_other(place: Path) -> None:
    def with_column(name: str) -> list[Problem]:
        return [replace(each, columns={**each.columns, name: "other"}) for each in PROBLEMS]

    start(place, with_column("source"))
    with pytest.raises(RunError, match="can't be resumed: the data's columns that the reward reads"):
        start(place, with_column("level"))


def test_a_changed_setting_is_named_before_what_it_changes(place: Path) -> None:
    with pytest.raises(RunError, match=r"\+- add_x=1"):
        start(place, template_args=("add_x=1",))


def test_a_run_of_an_older_femtune_is_refused(place: Path) -> None:
    path = place / "run/config.yaml"
    config = yaml.safe_load(path.read_text())
    assert config.pop("relies_on")
    path.write_text(yaml.safe_dump(config))
    with pytest.raises(RunError, match="older femtune, which did not record hashes"):
        start(place)


def test_large_weights_are_sampled_head_tail_and_between(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashes, "_WHOLE", 1000)
    monkeypatch.setattr(hashes, "_BLOCK", 100)
    monkeypatch.setattr(hashes, "_NUM_BLOCKS", 3)
    path = tmp_path / "model.safetensors"

    def hashed(at: int | None) -> str:
        content = bytearray(2100)
        if at is not None:
            content[at] = 1
        path.write_bytes(content)
        return hash_weights(tmp_path)

    usual = hashed(None)
    assert {at for at in (0, 99, 1000, 1099, 2000, 2099) if hashed(at) == usual} == set()
    assert hashed(500) == usual  # the price
    path.write_bytes(bytes(2101))
    assert hash_weights(tmp_path) != usual  # its size counts
    path.rename(tmp_path / "other.safetensors")
    assert hash_weights(tmp_path) != usual  # and its name


def test_an_adapter_relies_on_its_base(tmp_path: Path) -> None:
    (tmp_path / "adapter_model.safetensors").write_bytes(b"1")
    assert hash_weights(tmp_path, SEEDLING) != hash_weights(tmp_path)


def test_a_function_s_own_source_counts_and_femtune_s_rewards_have_none() -> None:
    def grade(completion: str) -> float:
        return float("4" in completion)

    found = relied_on_inputs(reward=as_reward(grade))
    assert "reward" in found and "reward_columns" not in found
    assert "reward" not in relied_on_inputs(spec="exact", reward=as_reward("exact"))
    assert relied_on_inputs(demos=[{"prompt": "a"}])["demos"]


def dated(folder: Path) -> Path:
    """The demo model with a template that writes a date, as that of Llama 3 does."""
    shutil.copytree(SEEDLING, folder)
    template = folder / "chat_template.jinja"
    head = (
        "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    )
    template.write_text(head + "Today: {{ date_string }}\n" + template.read_text())
    return folder


def test_only_a_template_that_writes_today_needs_a_date(tmp_path: Path) -> None:
    assert not writes_date(SEEDLING, ())
    assert writes_date(dated(tmp_path / "model"), ("enable_thinking=false",))
    for given in ('date_string="26 Jul 2024"', "strftime_now=2024-07-26"):
        assert not writes_date(tmp_path / "model", (given,))


def test_a_resumed_run_renders_the_prompts_of_its_first_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = dated(tmp_path / "model")
    monkeypatch.chdir(tmp_path)

    def prompts(day: date, output_dir: Path | None, **settings: Any) -> tuple[Path, str]:
        """A run's folder and the prompt that it renders, as a command on that day would."""

        class Day(date):
            @classmethod
            def today(cls) -> date:
                return day

        monkeypatch.setattr(run_folder, "date", Day)
        given = ("train", "data.jsonl", str(model), Train(**settings), PROBLEMS)
        root, config = run_place(output_dir, *given)
        with open_run(root, config, CHANGEABLE):
            pass
        stored = yaml.safe_load((root / "config.yaml").read_text())["template_args"]
        return root, load_tokenizer(model, stored).prompt_text("2 + 2?")

    for place in (tmp_path / "run", None):
        root, first = prompts(date(2026, 11, 30), place)
        assert first.startswith("Today: 30 Nov 2026")
        assert prompts(date(2026, 12, 1), place) == (root, first)
    assert prompts(date(2026, 12, 1), tmp_path / "other")[1].startswith("Today: 01 Dec 2026")
    own = prompts(date(2026, 12, 1), tmp_path / "own", template_args=("strftime_now=2024-07-26",))
    assert own[1].startswith("Today: 26 Jul 2024")
    with pytest.raises(RunError, match="another configuration"):
        prompts(date(2026, 12, 1), tmp_path / "run", template_args=("strftime_now=2024-07-26",))


def test_a_date_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="as strftime_now=2024-07-26"):
        load_tokenizer(dated(tmp_path / "model"), ("strftime_now=tomorrow",))
