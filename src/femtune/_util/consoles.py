r"""Output to a console that is not UTF-8: what its encoding lacks is written in ASCII.

Windows redirects output in a code page, such as cp1252; a C locale may allow ASCII alone.

>>> import io
>>> stream = io.TextIOWrapper(io.BytesIO(), "cp1252")
>>> make_printable(stream)
>>> print("✓ é ▁▅█ 日 🦉", file=stream, flush=True)
>>> print(stream.buffer.getvalue().decode("cp1252").strip())
+ é .=# \u65e5 \ud83e\udd89
"""

from __future__ import annotations

import codecs
import sys
from typing import TextIO

# Signs of femtune's own and of rich's; other characters become their code points, as in JSON.
_SIGNS = dict(
    zip("✓✗±×−–—…→←•·‘’“”⏎▁▂▃▄▅▆▇█━╸╺", "+x~x---.><*.''\"\"/..--==##---", strict=True),
)
_NAME = "femtune.ascii"


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    found = error.object[error.start : error.end]
    return "".join(_SIGNS.get(char) or ascii_of(char) for char in found), error.end


def ascii_of(text: str) -> str:
    r"""Return a text with characters beyond ASCII as JSON escapes them.

    >>> ascii_of("a é 🦉")
    'a \\u00e9 \\ud83e\\udd89'
    """
    units = text.encode("utf-16-be", "surrogatepass")
    codes = (int.from_bytes(units[n : n + 2], "big") for n in range(0, len(units), 2))
    return "".join(chr(code) if code < 0x80 else f"\\u{code:04x}" for code in codes)


def is_utf8(stream: TextIO) -> bool:
    """Return True if a stream takes any character."""
    name = getattr(stream, "encoding", None) or "utf-8"
    return codecs.lookup(name).name.startswith("utf")


def make_printable(*streams: TextIO) -> None:
    """Let streams, by default standard output and error, write ASCII for what they lack."""
    codecs.register_error(_NAME, _in_ascii)
    for stream in streams or (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure") and not is_utf8(stream):
            stream.reconfigure(errors=_NAME)
