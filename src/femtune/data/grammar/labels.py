"""Labels of choices in answers: a letter or a number, alone or before a copy of its choice's text.

>>> read_label("**B.** Paris"), read_label("Option (b)"), read_label("A. Paris or C. Rome")
('b', 'b', '')
>>> choices = Choices(("A", "B"), ("Vitamins B and C", "Vitamin D"))
>>> choices.read("A. Vitamins B and C"), choices.read("Vitamin D"), choices.read("A. Vitamin D")
('A', 'B', None)

Words after a label may explain it. Where they take it back or name another label, the answer is refused,
unless they are the text of the label's own choice.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from femtune.data.grammar.text import BACK, DOUBT, remembered, unbracketed, unled, unmarked

_NOUN = re.compile(
    r"(?:the )?(?:answer|assistant|choice|label|model|option|response|summary) (?P<label>.+)",
    re.IGNORECASE | re.DOTALL,
)
_LABEL = re.compile(
    r"[(\[{]?(?P<label>[a-z]|[0-9]{1,2})"
    r"(?:[)\]}][.:]?(?=\W|$)|[.:](?=\s|$)|(?=\s\()|(?=\s[-–—]\s)|(?=\sis\s)|,?(?=\s(?:because|since)\s)"
    r"|,(?=\s(?:\w+\s)?better\s)|,?(?=\s(?:not|instead of|over|rather than)\s)|$)"
    r"\s*(?P<rest>.*)",
    re.DOTALL | re.IGNORECASE | re.ASCII,
)
_BEFORE_TEXT = re.compile(
    r"[(\[]?(?P<label>\w{1,2})(?:[)\].:,]+\s*|\s)(?:[-–—] )?(?:\((?P<inner>.*)\)|(?P<text>.*))"
)
_THING = r"(?:answer|choice|one|option|response|summary)"
_VERDICT = re.compile(
    rf"(?:is )?(?:the |a )?(?:(?:slightly|much|far|clearly|significantly|somewhat|marginally|a bit) )?"
    rf"(?:better|best|right|correct|preferred)(?: {_THING})?"
    rf"(?: than (?:the )?(?:{_THING} )?\(?\w{{1,5}}\)?)?|is the answer",
    re.IGNORECASE,
)
# B (not A), B rather than A; B. It is short, while A is long
_OVER = re.compile(
    r"[(,]?\s*(?:and )?(?:not|over|rather than|instead of|(?:eliminat|exclud|rul)(?:es|ing)(?: out)?)"
    rf" (?:{_THING} )?[(\[]?(?P<other>[A-Za-z])[)\]]?\)?",
    re.IGNORECASE,
)
_WHILE = re.compile(
    rf",? (?:while|whereas|unlike) (?:the )?(?:{_THING} )?(?-i:[A-Z])\b"
    r"(?:(?!\b(?:also|answer|best|better|correct|preferred|right|too|wins)\b)[^.,;])*(?=[.,;]|$)",
    re.IGNORECASE,
)
# Signs after a label that it is taken back, or that another one stands beside it.
_TAKEN_BACK = re.compile(
    rf"\\boxed|\b(?:{BACK}|no[:,.]|answer:|i mean)"
    # B (false), B - ruled out: the label of what was turned down; "B. False" is a choice's text
    r"|^(?:\(|[-–—] |is )(?:eliminated|excluded|false|inferior|ruled out|the loser|unlikely|worse)\b",
    re.IGNORECASE,
)
# after the label of one of a pair, whose texts are not known
_LOSES = re.compile(
    r"\b(?:inferior|loser|loses|worse|worst)\b|\bother\b.*\b(?:better|best|wins)\b", re.IGNORECASE
)
_OTHER = re.compile(r"(?<!\w)(?:[(\[][A-Za-z][)\]]|[A-Z][.):](?=\s))", re.ASCII)
_OTHER_LAST = re.compile(
    r"(?:\b(?i:or|nor|not|but|maybe|perhaps)\s+[(\[]?(?i:[a-z])|[,/&]\s*[(\[]?[A-Z])[)\]]?$"
)
_OTHER_FIRST = re.compile(r"(?:or|and|nor)\b|[,;|/&]|[(\[](?:[a-z]|\d\d?)[)\]]", re.IGNORECASE)
_ONLY_LABELS = re.compile(r"[a-z](?:\s*(?:or|and|nor|,|/|&)\s*[a-z])+", re.IGNORECASE)
_SIGNS = (
    _TAKEN_BACK.search,
    _OTHER.search,
    _OTHER_LAST.search,
    _OTHER_FIRST.match,
    _ONLY_LABELS.fullmatch,
)


@dataclass(frozen=True)
class Choices:
    """Labels of choices and their texts, one for each; "" for a text that is not known."""

    labels: tuple[str, ...]
    texts: tuple[str, ...] = ()

    def read(self, answer: str) -> str | None:
        """Return the label that an answer stands for, or None if that is no single one."""
        return _read(self, answer)


@remembered
def read_label(answer: str) -> str:
    """Return the label of "B", "(b)", "B. Paris" or "3) Paris" in lower case; "" for other answers."""
    match = _LABEL.match(undecorated(answer))
    return match["label"].lower() if match and _is_comment(match["label"], match["rest"]) else ""


def undecorated(answer: str) -> str:
    """Return an answer without markup, and without the words and brackets around a label.

    >>> undecorated("Response **B**"), undecorated("(B) Paris")
    ('B', '(B) Paris')
    """
    text = re.sub(r"^\$(?=[A-Za-z]$)", "", unled(unmarked(answer)))  # $B, as in "Answer: $LETTER"
    named = _NOUN.fullmatch(text)
    if named and _LABEL.match(after := unbracketed(unmarked(named["label"]))):
        text = after
    return " ".join(unbracketed(text).split())


def _is_comment(label: str, rest: str) -> bool:
    """Return True for words after a label that take nothing back, and name no other label."""
    if (over := _OVER.fullmatch(rest)) is not None:
        return over["other"].casefold() != label.casefold()
    rest = _WHILE.sub("", rest)
    if not rest or _VERDICT.fullmatch(rest):
        return True
    # after a number, or in brackets, words of doubt and numbers are no part of a choice's text
    strict = label.isdigit() or rest.startswith("(")
    if rest.startswith("is ") or (strict and (DOUBT.search(rest) or re.search(r"\d", rest))):
        return False
    return not any(sign(rest) for sign in _SIGNS)


@remembered
def _read(choices: Choices, answer: str) -> str | None:
    said = undecorated(answer)
    if (copied := _copied(choices, {said, _plain(answer)})) is not None:
        return copied
    match = _LABEL.match(said)
    label = _label(choices, match["label"]) if match else None
    if match is None or label is None:
        return None
    rest = match["rest"]
    for own, text, fold in _texts(choices):
        if own == label and re.match(rf"{re.escape(text)}(?!\w)", fold(rest)):
            rest = rest[len(text) :].strip(" .,;:")
    if _OVER.fullmatch(rest):
        return label if _is_comment(label, rest) else None
    rest = _WHILE.sub("", rest)
    if (DOUBT if any(choices.texts) else _LOSES).search(rest):
        return None
    other = not _VERDICT.fullmatch(rest) and _names_another(choices, label, rest)
    return label if _is_comment(label, rest) and not other else None


def _label(choices: Choices, written: str) -> str | None:
    """Return the label in the case that the choices have, or None."""
    if written in choices.labels:
        return written
    same = [label for label in choices.labels if label.casefold() == written.casefold()]
    return same[0] if len(same) == 1 else None


def _copied(choices: Choices, said: set[str]) -> str | None:
    """Return the label whose choice's text was copied, alone or after its label.

    A text that is another choice's label is that label.
    """
    found = {
        label
        for label, text, fold in _texts(choices)
        for each in said
        if text in (fold(each), fold(f"Both {each}"), _after(label, fold(each)))
    }
    known = {_label(choices, each) for each in said} - {None}
    return found.pop() if len(found) == 1 and known <= found else None


@remembered
def _texts(choices: Choices) -> list[tuple[str, str, Callable[[str], str]]]:
    """Return the labels and known texts of choices; case is dropped where no two texts differ by it."""
    plain = [_plain(text) for text in choices.texts]
    small = [text.casefold() for text in plain]
    folds: list[Callable[[str], str]] = [str.casefold if small.count(t) == 1 else str for t in small]
    rows = zip(choices.labels, plain, folds, strict=False)
    return [(label, fold(text), fold) for label, text, fold in rows if text]


def _after(label: str, said: str) -> str | None:
    """Return the text after a label, whatever stands between them, without brackets around it."""
    match = _BEFORE_TEXT.fullmatch(said)
    if match is None or match["label"].casefold() != label.casefold():
        return None
    return match["inner"] if match["inner"] is not None else match["text"]


@remembered
def _plain(text: str) -> str:
    return " ".join(unmarked(text).split())


def _names_another(choices: Choices, label: str, rest: str) -> bool:
    """Return True if the words after a label name another label, or copy another choice's text."""
    names = [other for other in choices.labels if other != label]
    if rest.islower():
        names += [name.lower() for name in names if name != "A"]  # "a" is an article
    in_words = any(re.search(rf"\b{re.escape(name)}\b", rest) for name in names)
    return in_words or any(
        re.search(rf"(?<!\w){re.escape(text)}(?!\w)", fold(rest))
        for own, text, fold in _texts(choices)
        if own != label
    )
