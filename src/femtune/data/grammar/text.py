r"""The text of an answer: markup around it, forms of characters, and words that lead to it or doubt it.

>>> bare("**4**."), bare('"B"'), unled("The correct answer is: B"), same_text("**Paris.**", "paris")
('4', 'B', 'B', True)
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterator

remembered = functools.lru_cache(maxsize=65536)  # the answers of a data set repeat a lot

LONGEST = 2_000  # characters of the longest answer that is searched for markup

# --- markup around an answer

# It must be paired: A* and $5 differ from A and 5.
_WRAPPED = re.compile(
    r"(?P<mark>\*{1,3}|`{1,3}|\${1,2})(?P<marked>(?:(?!(?P=mark)).)+)(?P=mark)"
    r"|\\\((?P<inline>(?:(?!\\\)).)+)\\\)|\\\[(?P<display>(?:(?!\\\]).)+)\\\]"
    r"|\[\[(?P<bracketed>[^\[\]]+)\]\]"
    r"""|"(?P<quoted>[^"]+)"|“(?P<curly>[^“”]+)”|'(?P<single>[^']+)'|‘(?P<low>[^‘’]+)’""",
    re.DOTALL,
)
_COMMAND = re.compile(r"\\(?:boxed|fbox|text|textbf|textit|textrm|mathrm|mathbf|emph)\s*\{")
BRACES = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
_REPEATS = re.compile(r"\.\d*?(\d+?)\1\1+\.\.\.$")  # 0.333...
_ENDS = ".。;；,，、"  # marks that end a sentence or a part of it, and say nothing


@remembered
def bare(answer: str) -> str:
    r"""Return an answer without the markup and quotes around all of it, and without its full stop.

    >>> bare(r"$\boxed{\frac{1}{2}}$"), bare(r"\text{B}"), bare("A*"), bare("$5")
    ('\\frac{1}{2}', 'B', 'A*', '$5')
    """
    for _ in range(20 if len(answer) <= LONGEST else 0):
        while (stripped := answer.strip().rstrip(_ENDS)) != answer and not _REPEATS.search(answer):
            answer = stripped
        match = _WRAPPED.fullmatch(answer)
        if match is not None:
            answer = match[match.lastgroup or 0]
        elif (inner := _unwrapped(answer)) is not None:
            answer = inner
        else:
            break
    return answer.strip()


def _unwrapped(answer: str) -> str | None:
    """Return the argument of a command that is the whole answer; None if there is no such command."""
    start = _COMMAND.match(answer)
    if start is None:
        return None
    end = closing_brace(answer, start.end() - 1)
    return answer[start.end() : end].strip() or None if end == len(answer) - 1 else None


def closing_brace(text: str, opening: int) -> int:
    """Return the index of the brace that closes the one at `opening`; -1 if none does."""
    depth = 0
    for brace in BRACES.finditer(text, opening):
        depth += -1 if brace[0] == "}" else brace[0][-1] == "{" and brace[0] != "\\{"
        if depth == 0:
            return brace.start() if brace[0] == "}" else -1
    return -1


_EMPHASIS = re.compile(r"(\*{1,3}|`|__)(?=\S)([^*`\n]+?)(?<=\S)\1")


def unmarked(answer: str) -> str:
    """Return an answer without markup, in one form of each character, without emphasis within it.

    >>> unmarked("**B.** Paris")
    'B. Paris'
    """
    return bare(_EMPHASIS.sub(r"\2", bare(folded(answer))))


_BRACKETED = re.compile(r"\((?P<a>[^()\[\]{}]+)\)|\[(?P<b>[^()\[\]{}]+)\]")


def unbracketed(answer: str) -> str:
    """Return an answer without one pair of brackets around all of it.

    >>> unbracketed("(4)"), unbracketed("(A) or (B)")
    ('4', '(A) or (B)')
    """
    match = _BRACKETED.fullmatch(answer)
    return bare(match[match.lastgroup or 0]) if match else answer


# --- words around an answer

NOUNS = "answer|assistant|choice|label|option|rating|response|result|score|solution|summary|verdict"
_LEAD = re.compile(
    r"(?:(?:so|thus|therefore|hence|then),? )?(?:(?:the|my|our|your) )?"
    r"(?:(?:final|correct|right|best|better|overall) )*"
    rf"(?:{NOUNS}) ?(?:(?:is|would be|must be|will be) ?:?|[:：=])\s*(?=\S)",
    re.IGNORECASE,
)
# "I think it is", "there are" and "it is not 4, it is", before an answer
_IT = r"(?:it(?: is|['’]s)|the (?:\w+ )?answer(?: is|['’]s))"
_HEDGE = re.compile(
    rf"(?:i (?:think|believe|guess|would say|['’]d say),? (?:that )?(?:{_IT} )?"
    r"|there (?:is|are|was|were|will be) (?:only |now |still )?"
    r"|rules out \(?\w\)?(?:,? (?:and )?\(?\w\)?){0,8}, (?:leaving|which leaves) "
    r"|[^.!?\n]{1,40}\bor\b[^.!?\n]{1,40}\?\s+"
    rf"|{_IT} not (?:option |choice )?\(?[\w.]{{1,8}}\)?(?:,|;|\.|, but) {_IT} )(?=\S)",
    re.IGNORECASE,
)
# words by which an answer is taken back
BACK = (
    r"wait|actually|hmm+|sorry|oops|mistake|correction|instead|rather|alternatively|hold on|scratch that"
    r"|second thoughts?|take (?:it|that|this) back"
)
# and by which it is put in doubt, or given beside another one
DOUBT = re.compile(
    rf"\b(?:{BACK}|however|but|not?|or|nor|maybe|perhaps|wrong|incorrect|should|if|whether|unless|suppose"
    r"|assum\w+|might|could|(?:i|we) doubt|doubtful|untrue|never|cannot|unlikely|deny|disagree)\b"
    r"|\b(?:is|was|['’]s) false\b|n['’]t\b|~~|\?",
    re.IGNORECASE,
)


def unled(answer: str) -> str:
    """Return an answer without the words that lead to it.

    >>> unled("Rating: 4"), unled("So the final answer is 18 eggs"), unled("Response B")
    ('4', '18 eggs', 'Response B')
    """
    while match := _LEAD.match(answer) or _HEDGE.match(answer):
        answer = bare(answer[match.end() :])
    return answer


# --- characters


def same_text(answer: str, gold: str) -> bool:
    """Return True if two answers are equal, ignoring case, spaces, markup and forms of characters."""
    return plain(answer) == plain(gold) != "" or (
        plain(gold) in _OPPOSITES and _yes_or_no(plain(answer)) == plain(gold)
    )


_OPPOSITES = {"yes": "no", "no": "yes", "true": "false", "false": "true"}
_YES_OR_NO = re.compile(r"(?P<word>yes|no|true|false)[,.;:] (?P<rest>.+)")


def _yes_or_no(text: str) -> str:
    """Return the word with which "yes, it does" begins; "" if the rest puts it in doubt."""
    match = _YES_OR_NO.fullmatch(text)
    if match is None:
        return ""
    word, rest = match["word"], match["rest"]
    if word in ("no", "false"):  # "no, it does not" agrees
        rest = re.sub(r"\b(?:not?|cannot|false)\b|n['’]t\b", "", rest)
    return "" if DOUBT.search(rest) or re.search(rf"\b{_OPPOSITES[word]}\b", rest) else word


@remembered
def plain(answer: str) -> str:
    """Normalize an answer: no markup, one case, single spaces, one form of each character."""
    return " ".join(folded(bare(answer)).casefold().split())


_KEPT = ("<super>", "<sub>", "<fraction>")  # NFKC would turn 10² into 102, and 1½ into 11/2


def folded(text: str) -> str:
    """Replace compatibility forms of characters by one, and digits of all scripts by 0 to 9."""
    if text.isascii():
        return text
    composed = unicodedata.normalize("NFC", text)
    return "".join(map(_folded_character, composed)).replace("\N{MINUS SIGN}", "-")


def _folded_character(character: str) -> str:
    digit = unicodedata.decimal(character, None)
    if digit is not None:
        return str(digit)
    kept = unicodedata.decomposition(character).startswith(_KEPT)
    return character if kept else unicodedata.normalize("NFKC", character)


# --- parts

_OPEN, _CLOSE = "([{", ")]}"


def split_parts(text: str, between: re.Pattern[str]) -> list[str]:
    """Split a text where a pattern matches outside all brackets.

    >>> split_parts("(1, 2), 3", re.compile(","))
    ['(1, 2)', ' 3']
    """
    parts, start = [], 0
    for match in _outside_brackets(text, between):
        parts.append(text[start : match.start()])
        start = match.end()
    return [*parts, text[start:]]


def _outside_brackets(text: str, pattern: re.Pattern[str]) -> Iterator[re.Match[str]]:
    depth = done = 0
    for match in pattern.finditer(text):
        before = text[done : match.start()]
        depth += sum(before.count(c) for c in _OPEN) - sum(before.count(c) for c in _CLOSE)
        done = match.start()
        if depth == 0:
            yield match
