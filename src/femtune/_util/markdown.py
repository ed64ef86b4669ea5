"""Escaping of users' and models' text in Markdown, so that it can't break the layout.

For prose and table cells (`text`), inline code (`code`), and strings in Python code (`literal`).
"""

from __future__ import annotations

import json
import re

from femtune._util.text import INVISIBLE, escaped

_MARKS = re.compile(r"([\\`*_{}\[\]<>()#!|~$^&:@])")


def on_a_line(value: object) -> str:
    """Return a text on one line, without invisible characters.

    >>> on_a_line("a\\n\\n# b\\u202e")
    'a # b'
    """
    return " ".join(INVISIBLE.sub(" ", str(value)).split())


def text(value: object) -> str:
    r"""Return a text as prose, with each mark escaped that Markdown or HTML could interpret.

    >>> print(text("<b> *x* | y"))
    \<b\> \*x\* \| y
    """
    return _MARKS.sub(r"\\\1", on_a_line(value))


def code(value: object) -> str:
    """Return a text as inline code that also fits a table cell.

    >>> print(code("train.jsonl"), code("a`b"))
    `train.jsonl` ``a`b``
    """
    line = on_a_line(value)
    if "|" in line:  # it ends a table cell even within code
        return text(line)
    ticks = "`" * (_longest_run(line) + 1)
    space = " " if line.startswith("`") or line.endswith("`") or not line else ""
    return f"{ticks}{space}{line}{space}{ticks}"


def literal(value: str) -> str:
    """Return a text as a Python expression, with one line of code for each line of text.

    >>> print(literal("one"))
    "one"
    >>> print(literal("one\\ntwo"))
    (
        "one\\n"
        "two"
    )
    """
    lines = value.split("\n")
    quoted = [_quoted(line + "\n") for line in lines[:-1]] + [_quoted(lines[-1])]
    if len(quoted) == 1:
        return quoted[0]
    return "\n".join(["(", *(f"    {line}" for line in quoted), ")"])


def _quoted(line: str) -> str:
    written = json.dumps(line, ensure_ascii=False)
    return str(INVISIBLE.sub(lambda found: escaped(found[0]), written))


def _longest_run(value: str) -> int:
    return max((len(run) for run in re.findall("`+", value)), default=0)
