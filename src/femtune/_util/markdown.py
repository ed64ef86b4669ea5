"""Text of users and models inside Markdown, of which it can break nothing.

In prose and table cells (`text`), as code on a line (`code`), as a string in Python code (`literal`).
"""

from __future__ import annotations

import json
import re

_MARKS = re.compile(r"([\\`*_{}\[\]<>()#!|~$^&:@])")
# what a reader can't see: controls, separators of lines, marks that turn the direction, half characters
_UNSEEN = re.compile(r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


def on_a_line(value: object) -> str:
    """Any text on one line, without what can't be seen.

    >>> on_a_line("a\\n\\n# b\\u202e")
    'a # b'
    """
    return " ".join(_UNSEEN.sub(" ", str(value)).split())


def text(value: object) -> str:
    r"""Any text as prose, with each mark that Markdown or HTML could read escaped.

    >>> print(text("<b> *x* | y"))
    \<b\> \*x\* \| y
    """
    return _MARKS.sub(r"\\\1", on_a_line(value))


def code(value: object) -> str:
    """Any text as code on a line, fit for a table's cell.

    >>> print(code("train.jsonl"), code("a`b"))
    `train.jsonl` ``a`b``
    """
    line = on_a_line(value)
    if "|" in line:  # which ends a cell even in code
        return text(line)
    ticks = "`" * (_longest_run(line) + 1)
    space = " " if line.startswith("`") or line.endswith("`") or not line else ""
    return f"{ticks}{space}{line}{space}{ticks}"


def literal(value: str) -> str:
    """A text as a Python expression, a line of it a line.

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
    return _UNSEEN.sub(lambda found: f"\\u{ord(found[0]):04x}", written)


def _longest_run(value: str) -> int:
    return max((len(run) for run in re.findall("`+", value)), default=0)
