"""Measure the sentences of README.md and the guides, and fail where they are too long.

    python scripts/check_readability.py          # part of `make check`
    python scripts/check_readability.py --list   # the longest sentences

Sentences are those of prose and lists; code, tables, headings and pictures count for nothing. In each
page the median is at most 18 words, the 90th percentile at most 30. README.md has at most 900 words,
code and tables included.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[1]
PAGES = (
    "README.md",
    "docs/index.md",
    "docs/tour.md",
    "docs/findings.md",
    "docs/costs.md",
    "docs/glossary.md",
    "docs/troubleshooting.md",
    "docs/guides/*.md",
)
MEDIAN, P90 = 18, 30  # words of a sentence
README_WORDS = 900

_SKIPPED = re.compile(
    r"^(```|~~~)[\s\S]*?^\1\s*$"  # fenced code
    r"|^(?: {4}|\t)(?![-*0-9]).*$"  # indented code
    r"|^\|.*$"  # tables
    r"|^#.*$"  # headings
    r"|<!--[\s\S]*?-->|!\[[^\]]*\]\([^)]*\)",
    re.MULTILINE,
)
_LINK = re.compile(r"\[([^\]]*)\]\([^)]*\)")
_CODE = re.compile(r"`[^`]*`")
# an item of a list starts a sentence
_BLOCK = re.compile(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.)\s)")
_END = re.compile(r"(?<=[.?!])[*_)\"]*\s+(?=[\[(*_\"]*[A-Z0-9`])")


def sentences(text: str) -> list[str]:
    """Return the sentences of a Markdown text; code in a sentence is one word.

    >>> text = "# Head\\n\\nOne `a b` two. Three:\\n\\n```sh\\nls\\n```\\n- Five.\\n- Six [to](x.md) 7."
    >>> sentences(text)
    ['One CODE two.', 'Three:', 'Five.', 'Six to 7.']
    """

    def blank(found: re.Match[str]) -> str:
        return "\n\n" if found[0].lstrip().startswith(("`", "~", "|", "#")) else ""

    prose = _CODE.sub("CODE", _LINK.sub(r"\1", _SKIPPED.sub(blank, text)))
    found = []
    for block in _BLOCK.split(prose):
        plain = re.sub(r"^\s*(?:[-*]|\d+\.)\s+", "", " ".join(block.split()))
        found += [each for each in _END.split(plain) if re.search(r"\w", each)]
    return found


def words(sentence: str) -> int:
    """Count the words of a sentence.

    >>> words("It is .85 - as CODE was.")
    6
    """
    return sum(bool(re.search(r"\w", word)) for word in sentence.split())


def percentile(numbers: list[int], share: float) -> int:
    """Return the smallest number that at least this share of the numbers does not exceed.

    >>> percentile([1, 2, 3, 4, 5, 6, 7, 8, 9, 10], 0.9)
    9
    """
    ordered = sorted(numbers)
    return ordered[max(0, -int(-share * len(ordered) // 1) - 1)]


def faults(name: str, text: str) -> list[str]:
    """Return what is too long in a page."""
    lengths = [words(sentence) for sentence in sentences(text)]
    found = []
    if (middle := median(lengths)) > MEDIAN:
        found.append(f"{name}: the median sentence has {middle:g} words, more than {MEDIAN}.")
    if (long := percentile(lengths, 0.9)) > P90:
        found.append(f"{name}: the 90th percentile of sentences is {long} words, more than {P90}.")
    if name == "README.md" and (number := len(text.split())) > README_WORDS:
        found.append(f"{name}: {number} words, more than {README_WORDS}.")
    return found


def pages() -> list[Path]:
    """Return the pages that are measured."""
    return [path for pattern in PAGES for path in sorted(ROOT.glob(pattern))]


def main() -> int:
    """Print the figures of each page; return 1 where one is too long."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--list", action="store_true", help="print the sentences of over 30 words")
    args = parser.parse_args()
    wrong: list[str] = []
    for path in pages():
        name, text = path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")
        found = sentences(text)
        lengths = [words(sentence) for sentence in found]
        print(f"{name}: median {median(lengths):g} words, 90th percentile {percentile(lengths, 0.9)}")
        if args.list:
            print(*(f"  {words(each)}: {each}" for each in found if words(each) > P90), sep="\n")
        wrong += faults(name, text)
    print("\n".join(wrong) or "All sentences are short enough.")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
