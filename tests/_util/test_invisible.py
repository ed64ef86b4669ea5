"""Terminal, report, browser and model cards agree on which characters a reader can't see."""

from __future__ import annotations

import sys
import unicodedata

import pytest

from femtune._util import markdown
from femtune._util.text import visible as in_terminal
from femtune.reporting.browser.texts import visible as in_browser
from femtune.reporting.page.texts import visible as in_report

JOINERS = {"\u200c", "\u200d"}
# format characters that are drawn: signs that enclose or precede numbers
SIGNS = set("\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd")
# blank though of a category that has a shape: fillers, and selectors of variants but for the first 16
BLANK = set("\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u3164\uffa0")
BLANK |= {chr(code) for code in range(0xE0100, 0xE01F0)}


def is_invisible(char: str) -> bool:
    """Decide by the standard library's categories, which our code does not use."""
    return unicodedata.category(char) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp") or char in BLANK


@pytest.mark.parametrize("shown", [in_terminal, in_report, in_browser, markdown.literal])
def test_every_place_escapes_the_same_characters(shown) -> None:
    drawn = set("\n\t\r") if shown is markdown.literal else set("\n\t")
    drawn |= set() if shown is in_terminal else JOINERS | SIGNS
    for code in range(sys.maxunicode + 1):
        char = chr(code)
        if unicodedata.category(char) != "Cn" and is_invisible(char) and char not in drawn:
            assert char not in shown(f"a{char}b"), hex(code)
    for char in drawn - set("\n\r\t"):
        assert char in shown(f"a{char}b")


def test_a_card_has_none_of_them_on_a_line() -> None:
    for code in range(sys.maxunicode + 1):
        char = chr(code)
        if unicodedata.category(char) != "Cn" and is_invisible(char) and char not in JOINERS | SIGNS:
            assert markdown.on_a_line(f"a{char}b") == "a b"


def test_a_literal_is_read_back_as_it_was() -> None:
    text = "".join(map(chr, range(sys.maxunicode + 1)))
    assert eval(markdown.literal(text)) == text
