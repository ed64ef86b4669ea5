"""The user's text around the items of a task: a prompt template, and a rubric of the scores.

>>> template = parse_template("Text: {prompt}\\nIs it {{good}}?")
>>> template.fill({"prompt": "Hi."})
'Text: Hi.\\nIs it {good}?'
"""

from __future__ import annotations

import re
import string
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from femtune._util.text import brief, first, near, number_text
from femtune.data.answers import Scale
from femtune.data.rows import BadRow
from femtune.errors import ConfigError

_LABELS = {"answer", "score", "preference", "right"}  # columns that a template must not show
# looks like a path; "/no_think" is a text that some models know
_PATH = re.compile(r"(~|\.{1,2})/\S+|/\S+[/.]\S+|\S+\.(txt|md|rst|jinja|j2|yaml|json)")


def text_or_file(name: str, given: str | None) -> str | None:
    """Return a setting's text: the given text, or the content of the file at that path.

    Raises ConfigError for an empty text, or a path without a readable file.
    """
    if given is None:
        return None
    text, where = given, ""
    if "\n" not in given and len(given) < 1000:
        path = Path(given).expanduser()
        if _is_file(path):
            where = f" {path}"
            try:
                text = path.read_text(encoding="utf-8-sig")
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(
                    f"{name}: {path} can't be read: {error}. Save it as UTF-8 text."
                ) from error
        elif _PATH.fullmatch(given):
            raise ConfigError(f"{name}: there is no file {given}. Give its path, or the text itself.")
    if not text.strip():
        raise ConfigError(f"{name}{where} is empty: give a text, or leave it out.")
    return text.strip()


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long for a name, or with a null character
        return False


# --- templates


@dataclass(frozen=True)
class Template:
    """A text with column names in braces."""

    text: str
    parts: tuple[tuple[str, str | None], ...]  # pairs of a literal text and the name after it

    @property
    def names(self) -> tuple[str, ...]:
        """The columns that the template shows, each once."""
        return tuple(dict.fromkeys(name for _, name in self.parts if name is not None))

    def check(self, known: Collection[str], labels: Collection[str] = ()) -> None:
        """Check that each name is a column, and not one with the label. Raises ConfigError."""
        labels = {*labels, *_LABELS}
        there = sorted({*known} - labels)
        for name in self.names:
            if name in labels:
                raise ConfigError(f"prompt_template shows {{{name}}}, the correct answer: leave it out.")
            if name not in there:
                raise ConfigError(
                    f"prompt_template shows {{{name}}}, but the data has no such column."
                    f"{near(name, there)} It has {first(there)}. For a literal brace, double it: "
                    "{{ }}."
                )

    def fill(self, values: Mapping[str, Any]) -> str:
        """Return the text filled with the columns of a row. Raises BadRow if one is empty."""
        made = []
        for literal, name in self.parts:
            made.append(literal)
            if name is not None:
                value = values.get(name)
                if value is None or (isinstance(value, str) and not value.strip()):
                    raise BadRow(f"`{name}` is empty, and prompt_template shows it")
                made.append(number_text(value) if isinstance(value, float) else str(value).strip())
        return "".join(made)


def parse_template(text: str) -> Template:
    """Parse a text with {names} of columns; {{ and }} are braces. Raises ConfigError."""
    try:
        found = list(string.Formatter().parse(text))
    except ValueError as error:
        raise ConfigError(
            f"prompt_template {brief(text)!r}: {error}. For a literal brace, double it: {{{{ }}}}."
        ) from error
    for _, name, spec, conversion in found:
        if name is not None and (spec or conversion or not re.fullmatch(r"[^\W\d][\w .-]*", name)):
            raise ConfigError(
                f"prompt_template: {{{name}}} is not a column name. "
                "For a literal brace, double it: {{ }}."
            )
    template = Template(text, tuple((literal, name) for literal, name, _, _ in found))
    if not template.names:
        raise ConfigError("prompt_template shows no column: write {prompt} where the prompt belongs.")
    return template


# --- rubrics

_SCORED = re.compile(r"\b(?:score|rating)s?(?: of)? (-?\d+(?:\.\d+)?)(?![\d.]*[\d%])", re.IGNORECASE)
_LINE = re.compile(r"\W*(-?\d+(?:\.\d+)?)(?: points?)?\s*[:=]")
_NAMED = re.compile(r"\W*(?:score|rating) ([^\s:=]+)\s*[:=]", re.IGNORECASE)


def check_rubric(rubric: str, scale: Scale) -> None:
    """Check that a rubric explains only scores of the scale. Raises ConfigError.

    >>> check_rubric("Score 1: wrong\\nScore 5: right", Scale(("1", "2", "3", "4", "5")))
    """
    lines = rubric.splitlines()
    named = [match[1] for line in lines if (match := _NAMED.match(line))]
    if scale.numeric:
        named += _SCORED.findall(rubric)
        bare = [match[1] for line in lines if (match := _LINE.match(line))]
        named += bare if len(bare) > 1 else []  # a single one may be something else, such as a time
    off = [score for score in dict.fromkeys(named) if scale.read(score) is None]
    if off:
        raise ConfigError(
            f"rubric explains score {first(off)}, but the scale is {scale}: set --scale to the rubric's "
            "scale, or correct the rubric."
        )
