"""Options on the command line and in a file of settings: their descriptions, values and misspellings."""

from __future__ import annotations

import shlex
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from femtune.cli.groups import COMMANDS, EXAMPLES, PANELS
from femtune.cli.main import USAGE, app, main
from femtune.config import Train
from femtune.errors import DataError
from femtune.mstep.config import Training

# --- help


VERBS = [verb for verb in app if not verb.startswith("-")]


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_has_a_description_and_the_file_of_settings_is_named(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = app[verb].assemble_argument_collection(parse_docstring=True)
    assert [option.name for option in options if option.show and not option.parameter.help] == []
    assert main([verb, "--help"]) == 0
    assert "--config run.yaml" in capsys.readouterr().out


@pytest.mark.parametrize("verb", VERBS)
def test_every_command_has_a_panel_and_every_option_of_a_panel_is_one(verb: str) -> None:
    assert [verb in names for names in COMMANDS.values()].count(True) == 1
    settings = {field.name for kind in (Train, Training) for field in fields(kind)}
    assert {name for names in PANELS.values() for name in names} <= settings


def test_the_first_screen_of_train_is_enough_to_train_a_judge(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["train", "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    screen = "\n".join(lines[:40])
    for word in ("--config", "DATA", "--model", "--task", "--scale", "--raters", "--scheme"):
        assert word in screen
    for word in ("--iterations", "--max-new-tokens", "--learning-rate"):
        assert word in screen
    assert EXAMPLES["train"] in screen and EXAMPLES["train"] in lines[-2:]
    panels = [line.split("─")[1].strip() for line in lines if line.startswith("╭")]
    assert panels == ["Options", *PANELS]


def test_examples_are_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    for verb, example in EXAMPLES.items():
        program, *words = shlex.split(example)
        assert program == "femtune" and words[0] == verb
        command, bound, _ = app.parse_args(words, exit_on_error=False, print_error=False)
        assert command.__name__ == verb and bound.arguments


# --- values of flags and of the file


@pytest.mark.parametrize(
    ("given", "value"),
    [
        ("--use-peft false", False),
        ("--use-peft true", True),
        ("--use_peft False", False),
        ("--use-peft=false", False),
        ("--no-use-peft", False),
        ("--use-peft", True),
        ("--use-peft --check-gold FALSE", True),
    ],
)
def test_a_flag_takes_true_and_false_as_a_word(
    given: str, value: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from femtune.workflows import train

    seen: list[Any] = []

    def watched(data: str, model: str, settings: Any, *_: Any, **__: Any) -> Any:
        seen.append(settings)
        raise DataError(data)

    monkeypatch.setattr(train, "run_train", watched)
    assert main(["train", "true", "--model", "seedling", *given.split()]) == 1
    assert seen[0].training.use_peft is value
    assert seen[0].check_gold is ("FALSE" not in given)


def test_a_word_after_another_option_stays_a_word(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "x.jsonl", "--model", "seedling", "false"]) == USAGE
    assert "['false']" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("scael", "scale"),
        ("Scale", "scale"),
        ("max_new_tokns", "max_new_tokens"),
        ("iteratons", "iterations"),
        ("learning-rat", "learning_rate"),
        ("usepeft", "use_peft"),
        ("qqq", ""),
    ],
)
def test_a_key_of_the_file_that_no_command_knows(
    key: str, meant: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "r.yaml").write_text(f"{key}: 1\n")
    argv = ["train", "x.jsonl", "--model", "seedling", "--config", str(tmp_path / "r.yaml")]
    assert main(argv) == USAGE
    said = " ".join(capsys.readouterr().err.split())
    assert f"has an unknown setting, '{key}'." in said
    assert (f"Did you mean {meant}?" in said) == bool(meant)
