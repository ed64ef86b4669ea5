"""The commands that the documentation shows, read from its code blocks."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from femtune.cli.main import main

ROOT = Path(__file__).parent.parent
FENCED = re.compile(r"^```([\w-]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
INDENTED = re.compile(r"(?:^(?: {4}).*\n)+", re.MULTILINE)
FILE = re.compile(
    r"`([\w-]+\.(?:yaml|py))`:\n\n```(?:yaml|python)\n(.*?)^```$", re.DOTALL | re.MULTILINE
)
LINK = re.compile(r"\]\(([^)\s#]+)(#[^)\s]*)?\)")
PAGES = (
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    ROOT / "bench" / "RESULTS.md",
    *sorted((ROOT / "docs").rglob("*.md")),
)


@dataclass(frozen=True)
class Block:
    """A block of code; `kind` is the word after its fence, empty for none and for indented code."""

    kind: str
    body: str

    def commands(self) -> list[str]:
        """Return its lines, those that end in a backslash joined with the next."""
        return [line for line in self.body.replace("\\\n", " ").splitlines() if line.strip()]


def blocks(page: Path) -> Iterator[Block]:
    """Yield the fenced blocks of a page, in order."""
    for kind, body in FENCED.findall(page.read_text(encoding="utf-8")):
        yield Block(kind, body)


def indented(page: Path) -> Iterator[Block]:
    """Yield the indented blocks of a page."""
    for body in INDENTED.findall(FENCED.sub("", page.read_text(encoding="utf-8"))):
        yield Block("", body)


def run_commands(page: Path) -> list[str]:
    """Return the commands of a page that a test runs: those of its blocks of kind `sh`."""
    return [line for block in blocks(page) if block.kind == "sh" for line in block.commands()]


def shown_files(page: Path) -> dict[str, str]:
    """Return the files that a page shows: a name with a colon after it, then the block."""
    return dict(FILE.findall(page.read_text(encoding="utf-8")))


def scripts(page: Path) -> list[str]:
    """Return the Python of a page that a test runs: blocks of kind `python` that are no named file."""
    files = shown_files(page).values()
    return [each.body for each in blocks(page) if each.kind == "python" and each.body not in files]


def run_line(line: str, model: Path | None = None) -> int:
    """Run a command of a page in the working folder and return its status.

    `python FILE ... > OUTPUT` runs a file of the repository. `make real-model` did its work before.
    """
    program, *words = shlex.split(line, comments=True)
    if program == "make":
        assert words == ["real-model"] and model is not None
        return 0
    if program == "python":
        *words, arrow, output = words
        assert arrow == ">"
        done = subprocess.run([sys.executable, ROOT / words[0], *words[1:]], capture_output=True)
        Path(output).write_bytes(done.stdout)
        return done.returncode
    assert program == "femtune"
    return main(words)


def with_flags(command: str, flags: str) -> str:
    """Return a command with these flags, each in the place of the same flag where it is there."""
    for flag in re.findall(r"--\S+", flags):
        command = re.sub(rf" {flag} [^-\s]\S*", "", command)
    return f"{command} {flags}".strip()


def femtune_words(page: Path) -> Iterator[list[str]]:
    """Yield the words of each call of femtune on a page, runnable here or not, without comments."""
    for block in (*blocks(page), *indented(page)):
        for line in block.commands() if block.kind not in ("python", "py", "json", "text") else ():
            found = re.match(r"\s*(?:\w+=\S+ )*femtune ([a-z].*)", line)
            if found and " ... " not in f"{line} ":
                yield shlex.split(found[1], comments=True)
