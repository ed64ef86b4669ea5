"""The command line: a command, an optional file of settings, and flags that override it.

femtune train judge.jsonl --model Qwen/Qwen3-1.7B --config run.yaml --iterations 4
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from cyclopts import CycloptsError
from cyclopts.config import Dict

from femtune._util import interrupts
from femtune._util.consoles import make_printable
from femtune._util.parsing import Unreadable, as_pairs, read_yaml
from femtune._util.redaction import check_values, is_secret_name
from femtune._util.text import brief, near
from femtune.cli import inspect, ladder  # importing them registers their commands
from femtune.cli.groups import order_commands
from femtune.cli.stored_scheme import keep_scheme
from femtune.cli.train import app
from femtune.errors import ConfigError, FemtuneError
from femtune.reporting.terminal import (
    PipeConsole,
    errors,
    literal,
)

__all__ = ["app", "inspect", "ladder", "main"]

order_commands(app)
app.register_install_completion_command()

USAGE = 2  # exit status where a command can't be understood, as of other programs


class _Warn(logging.Handler):
    """A log handler that prints messages like other output, above a progress bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno < logging.WARNING:
            errors().print(literal(record.getMessage(), "dim"), soft_wrap=True)
        else:
            errors().print(literal(f"! {record.getMessage()}", "yellow"), soft_wrap=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status.

    1 if femtune refuses, 2 for an unknown command, option or kind of value, 130 after Ctrl-C.

    After the first Ctrl-C or SIGTERM, the work in progress is finished and stored: see interrupts.py.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # before huggingface_hub is imported
    make_printable()
    log = logging.getLogger("femtune")
    if not any(isinstance(handler, _Warn) for handler in log.handlers):
        log.addHandler(_Warn(logging.INFO))
        log.setLevel(logging.INFO)
        log.propagate = False
    arguments = [_dashed(word) for word in (sys.argv[1:] if argv is None else argv)]
    refused = 1
    try:
        _check_words(arguments)
        name, settings = _take_config(arguments)
        check_values({f"{name}: {key}": {key: value} for key, value in settings.items()})
        refused = USAGE
        known = _for_command(name, settings, arguments)
        arguments = _with_values(arguments)
        app.config = (Dict(known, source=name, use_commands_as_keys=False),) if known else ()
        refused = 1
        with interrupts.graceful():
            status = app(
                arguments,
                exit_on_error=False,
                print_error=False,
                result_action="return_value",
                console=PipeConsole(),  # of help
            )
        sys.stdout.flush()  # here, where a closed pipe is caught
    except (FemtuneError, CycloptsError) as error:
        kind = type(error) if isinstance(error, FemtuneError) else ConfigError
        # cyclopts names a key of the file in brackets, "[iterationz]" from run.yaml, and its whole value
        text = str(error)
        if kind is not type(error):
            text = brief(re.sub(r'"?\[(\w+)\]"?', r"\1", text), 1000)
        errors().print(literal(f"{kind.__name__}: {text}"), soft_wrap=True)
        return refused if kind is type(error) else USAGE
    except BrokenPipeError:  # the reader of the output, such as `head`, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt as stop:
        errors().print(literal("Stopped. Finished work is stored; run the same command to resume."))
        return stop.status if isinstance(stop, interrupts.Stopped) else 130
    return status if isinstance(status, int) else 0


def _check_words(words: Sequence[str]) -> None:
    """Refuse words of the command line that are secrets, as messages of its parser show words.

    Raises ConfigError, which omits them.
    """
    flag = ""
    for number, word in enumerate(words, 1):
        named = re.match(r"--?[A-Za-z][\w-]*(?==|$)", word)
        flag = named[0] if named else flag
        if word.startswith("--") and is_secret_name(flag):
            raise ConfigError(
                f"{flag} is not an option. Set keys in the environment (OPENAI_API_KEY, HF_TOKEN)."
            )
        check_values({flag or f"word {number}": word})


def _take_config(arguments: list[str]) -> tuple[str, dict[str, Any]]:
    """Remove --config from the arguments; return the file's name and content, "" and {} without one.

    Raises ConfigError if the file is not YAML with names and values.
    """
    at = next((i for i, word in enumerate(arguments) if word.partition("=")[0] == "--config"), None)
    if at is None:
        return "", {}
    _, equals, name = arguments.pop(at).partition("=")
    if not equals:
        name = arguments.pop(at) if at < len(arguments) else ""
    if not Path(name).is_file():
        raise ConfigError(f"--config needs the path of a YAML file, got {name or 'nothing'}.")
    try:
        found = read_yaml(Path(name))
    except Unreadable as error:
        raise ConfigError(f"{name} {error}.") from error
    if found is not None and not isinstance(found, dict):
        raise ConfigError(f"{name} holds a {type(found).__name__}. It needs lines of `name: value`.")
    if strange := [key for key in found or {} if not isinstance(key, str)]:
        raise ConfigError(f"{name} has the name {strange[0]!r}, expected words: lines of `name: value`.")
    return name, found or {}


def _spelled(value: Any) -> Any:
    """Return a value of the file as a flag has it: a mapping as name=value, a path without ~."""
    if isinstance(value, dict):
        return as_pairs(value)
    return _expanded(value) if isinstance(value, str) else value


def _expanded(value: str) -> str:
    """Return a path below the home directory in full; any other text as it is."""
    return os.path.expanduser(value) if value.startswith("~/") else value


def _for_command(file: str, settings: Mapping[str, Any], words: Sequence[str]) -> dict[str, Any]:
    """Return settings without those of other commands, so that one file serves all commands.

    Raises ConfigError for a setting that no command knows.
    """
    if not settings or not _is_command(words):
        return {key: _spelled(value) for key, value in settings.items()}
    verbs = [verb for verb in app if not verb.startswith("-")]
    names = {
        verb: {name for each in app[verb].assemble_argument_collection() for name in each.names}
        for verb in verbs
    }
    # entries of a run's config.yaml that are not settings
    own = {"--format", "--problems", "--relies-on", "--epochs-factor", "--scheme-data"}
    known = own.union(*names.values())
    if strange := [key for key in settings if _flag(key) not in known]:
        lists = (sorted(map(_key, flags)) for flags in (names[words[0]], known))
        meant = next(filter(None, (near(strange[0].lower(), keys) for keys in lists)), "")
        raise ConfigError(f"{file} has an unknown setting, {strange[0]!r}.{meant}")
    others = known - names[words[0]]
    kept = {key: value for key, value in settings.items() if _flag(key) not in others}
    kept = keep_scheme(kept, file, any(word.partition("=")[0] == "--scheme" for word in words))
    return {key: _spelled(value) for key, value in kept.items()}


def _flag(key: str) -> str:
    """Return the flag of a setting's name in a file."""
    return f"--{key.replace('_', '-')}"


def _key(flag: str) -> str:
    """Return the name in a file of a flag's setting."""
    return flag.removeprefix("--").replace("-", "_")


def _is_command(words: Sequence[str]) -> bool:
    return bool(words) and not words[0].startswith("-") and words[0] in app


def _with_values(arguments: list[str]) -> list[str]:
    """Return arguments with "--use-peft false" as "--use-peft=false": a flag alone takes no word."""
    if not _is_command(arguments):
        return arguments
    flags = {
        name
        for each in app[arguments[0]].assemble_argument_collection()
        if each.hint is bool or bool in get_args(each.hint)
        for name in each.names
        if not name.startswith("--no-")
    }
    joined: list[str] = []
    for word in arguments:
        if joined and joined[-1] in flags and word.lower() in ("true", "false"):
            joined[-1] += f"={word.lower()}"
        else:
            joined.append(word)
    return joined


def _dashed(word: str) -> str:
    """Return --output_dir as --output-dir: both spellings are common; and --output-dir=~/a in full."""
    if not word.startswith("--"):
        return _expanded(word)
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + _expanded(value)


if __name__ == "__main__":
    sys.exit(main())
