"""Find phrases by which a rationale reveals that its writer saw the answer.

Two kinds of patterns are searched for:

    LEAKS, JUDGE_LEAKS    phrases about any hint: "since the correct answer is 4"
    copies_of(hint)       the words of the hint itself, whatever it says

In a text that is searched, y* is marked, so that patterns can ask for it: "as the score is 4" reveals
the hint, "as the score is tied" does not.

>>> find_leak("As the score is 4, it is good.", "4", compiled(JUDGE_LEAKS))
'As the score is 4'
>>> find_leak("As the score is tied, each gets a point.", "4", compiled(JUDGE_LEAKS))
''
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache

MARK = "\ue0ff"  # stands for each character of y* in a text that is searched: see `marked`

# In the patterns below, a space is whitespace, markup, quotes or an opening bracket.
_GAP = r"[\s*_`\"'“”‘’(\[$\\]{1,6}"
_ANY = "answer|rating|score|grade|label|preference|option|choice|verdict"
_KNOWN = "correct|right|expected|true|actual|known|given|stated|intended|desired|target|required|final"
_NOUN = rf"(?:(?:the|this|that|an?|its|their|my) )?(?:(?:{_KNOWN}) )*(?:{_ANY})"
_VALUE = rf"(?:(?:an?|the|option|choice|response|summary|exactly) )?{MARK}+"
_IS = "(?:is|was|are|were|as|of|being|to be|must be|should be|has to be|needs to be|equals)"
_SINCE = "(?:since|because|as|given|knowing|know|knew|seeing|considering|remembering)"
_MUST = "(?:need|needs|must|have to|has to|had to|should|asked to|supposed to|want to|trying to|let me)"
_REASON = "reasons?|reasoning|explain|justify|justification|defend|argue|argument|support"
_LEADING = (
    "why|how|that|which|for|of|to|as|the|an?|it|this|is|was|be|should|must|leads?|leading|deserves?"
)
_HAD = "(?:was|were|am|are|have been|had been)"
_TOLD = "(?:given|told|shown)"

# Phrases that reveal the hint in any task.
_COMMON = (
    r"\bhint(?:s|ed)?\b(?! (?:of|at)\b)",
    r"\b(?:answer key|ground truth|gold (?:label|answer|rating|score))\b",
    r"\bi(?: was| am| have been|'ve been|’ve been)(?: not)? told\b",
    r"\b(?:i|we) (?:already |do |did )?(?:know|knew) (?:the|its) (?:\w+ )?"
    r"(?:rating|score|label|preference)\b",
    r"\bi (?:already |do )?(?:know|knew) (?:what )?the (?:\w+ )?answer\b",
    # the answer is repeated as something known
    rf"\b(?:told|informed|given|instructed|shown) (?:that |of |to give )?"
    rf"(?:{_NOUN}|it|the result) (?:{_IS} )?{_VALUE}",
    rf"\b(?:{_KNOWN}) (?:{_ANY}) (?:was|is) (?:given|stated|known|provided) (?:as|to be) {_VALUE}",
    rf"\b{_NOUN} (?:that )?(?:i|we) {_HAD} {_TOLD} {_IS} {_VALUE}",
    rf"\b{_NOUN} of {_VALUE} (?:was|is|has been) (?:already )?(?:given|assigned|stated)\b",
    rf"\b(?:was|been) (?:rated|scored|graded|labeled) (?:at |as |with )?{_VALUE}",
    rf"\b{_SINCE} (?:that )?{_NOUN} {_IS} {_VALUE}",
    rf"\b{_SINCE} (?:that )?{_VALUE} (?:is|was) the (?:{_KNOWN}) (?:{_ANY})\b",
    rf"\b{_NOUN} {_IS} {_VALUE}[\W_]{{1,4}}so (?:i|we|let me|let us) "
    r"(?:\w+ ){0,2}?(?:need|look|find|must|search|have to)\b",
    rf"\bwith {_NOUN} being {_VALUE}",
    rf"\b(?:is|was|are|were) (?:supposed|meant|said|known|expected) to be {_VALUE}",
    rf"\b(?:prompt|question|user|task|problem|instructions?|system|message) "
    rf"(?:already )?(?:says?|said|states?|stated|tells? (?:me|us)|told (?:me|us)|gives?|gave) "
    rf"(?:that )?{_NOUN} {_IS} {_VALUE}",
    rf"\b(?:user|rater|human|annotator|person|expert)s? "
    rf"(?:gave|rated|chose|picked|assigned|preferred|wants?|expects?) "
    rf"(?:it |this |for it )?(?:an? )?(?:(?:rating|score) of )?{_VALUE}",
    # reasons are looked for, with the answer at hand
    rf"\b{_MUST}(?: \w+){{0,4}}? (?:{_REASON})(?: (?:{_LEADING}|{_ANY}))*? {_VALUE}",
    rf"\b(?:must|has to|have to|needs? to|should) (?:lead|end up|arrive|result|work out) "
    rf"(?:to|at|as|in) {_VALUE}",
    rf"\bwork(?:ing)? backwards? from (?:{_NOUN}|{_VALUE})",
    # it is kept back that the answer is known
    r"\b(?:not|without|never|n't|n’t) (?:to )?"
    r"(?:say|saying|mention|mentioning|reveal|revealing|admit|admitting|show|showing|let on) "
    r"(?:that |how )?(?:i|we) (?:\w+ ){0,2}?(?:told|know|knew|given|saw|seen)\b",
    r"\bas (?:if|though) (?:i|we) (?:had |did |do |was |were )?(?:not|never|n't|n’t)",
    r"\bas (?:if|though) (?:i|we) (?:hadn|didn|don|wasn|weren)['’]t\b",
    r"\bpretend(?:ing)? (?:that )?(?:i|we|not to|to not)\b",
)


def leaks_of(*nouns: str) -> tuple[str, ...]:
    """Return patterns of phrases that reveal the hint, in a task whose answers are called by the nouns.

    A noun that the problem speaks of too, such as the answers that a judge rates, is left out: then only
    phrases with y* itself count.
    """
    names = "|".join(nouns)
    answer = rf"(?:(?:{_KNOWN}) )*(?:{names})"
    known = rf"(?:(?:{_KNOWN}) )+(?:{names})"
    return (
        *_COMMON,
        rf"\b(?:was|were|been|am|are) (?:told|given|provided with|shown) (?:that )?"
        rf"(?:the|this|an?) {answer}\b",
        rf"\b{answer} (?:was|is|has been|being) (?:already )?"
        r"(?:given|provided|known|told|stated|supplied)\b(?! by (?!the\b))",
        rf"\b(?:the|this) (?:given|provided|supplied|stated|known) {answer}\b"
        r"(?! (?:choice|option|candidate|scale|categor))",
        rf"\b(?:the|this) {answer} (?:that )?(?:i|we) {_HAD} {_TOLD}\b",
        rf"\b(?:match|matches|matching|agrees? with|consistent with|confirms?|in line with) "
        rf"(?:the|this) {known}\b",
    )


LEAKS = leaks_of("answer", "rating", "score", "label")
# A judge may well speak of the answers that it was given, but not of ratings.
JUDGE_LEAKS = leaks_of("rating", "score", "label", "preference")

# --- copies of the hint

_RUN = 5  # words in a row, two of them telling, that are no chance
_RUN_CJK = 8  # characters, in scripts that write no spaces
_CJK = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_CJK}]|(?:(?![{_CJK}])[^\W_])+")
# words of any rationale
_USUAL = frozenset(
    _WORD.findall(
        """
        a about all also an and answer any are as at be because been but by can choice correct could did
        do does final for from given had has have he how i if in into is it its label let me must my no
        not of on only option or our preference rating right score she should since so some step than
        that the their them then there these they think this those to two was we were what when which
        who why will with would you your
        """
    )
)
_SAME = {
    word: f"(?:{'|'.join(words)})"
    for words in (
        ("you", "i", "we", "me", "us"),
        ("your", "my", "our"),
        ("were", "are", "was", "am", "is"),
        ("tu", "vous", "je", "nous"),
        ("du", "sie", "ich", "wir"),
        ("你", "您", "我"),
    )
    for word in words
}


def copies_of(hint: str, shown: str = "") -> tuple[str, ...]:
    """Return patterns of the words of a hint, in which a writer speaks of itself as "I" or "we".

    `shown` is text of the plain prompt, whose words tell nothing. A statement of the answer such as "The
    gold label is 4" is a copy anywhere. One of usual words, "The correct answer is 4", is one only where
    it opens the rationale, as it may also end one.
    """
    usual = _USUAL | {word.lower() for word in _WORD.findall(shown)}
    patterns: dict[str, None] = {}
    *before, last = hint.lower().split("{answer}")
    for part in (*before, last):
        words = _WORD.findall(part)
        size = _RUN_CJK if _is_cjk(words) else _RUN
        for run in zip(*(words[start:] for start in range(size)), strict=False):
            if sum(word not in usual for word in run) >= 2:
                patterns[rf"{_edge(run)}{_joined(run)}{_edge(run)}"] = None
    is_english = not usual.isdisjoint(_WORD.findall(hint.lower()))  # else all words look telling
    for part in before:
        stated = _WORD.findall(re.split(r"[.!?\n。！？]", part)[-1])[-_RUN:]
        if len(stated) > 1 or (stated and part.rstrip().endswith(":")):
            is_telling = is_english and any(word not in usual for word in stated)
            begin = _edge(stated) if is_telling else _OPENING
            patterns[rf"{begin}{_joined(stated)}[\W_]*(?:(?:is|was)[\W_]+)?{MARK}+"] = None
    return tuple(patterns)


_OPENING = r"\A[\W_]*(?:(?:think|okay|ok|well)[\W_]+)*"  # where a rationale begins


def _edge(words: Sequence[str]) -> str:
    return "" if _is_cjk(words) else r"\b"


def _joined(words: Sequence[str]) -> str:
    between = r"[\W_]*" if _is_cjk(words) else r"[\W_]+"
    return between.join(_SAME.get(word, re.escape(word)) for word in words)


def _is_cjk(words: Sequence[str]) -> bool:
    return any(re.match(f"[{_CJK}]", word) for word in words)


# --- the search


@lru_cache(maxsize=64)
def compiled(patterns: Sequence[str]) -> re.Pattern[str]:
    """Return one pattern that matches where any of the patterns does, with wide spaces.

    It is for text in lower case, which `re` searches faster than it ignores case.
    """
    wide = [pattern.replace(" ", _GAP) for pattern in patterns]
    # capitals that are no part of a class such as \W
    wide = [f"(?i:{each})" if re.search(r"(?<!\\)[A-Z]", each) else each for each in wide]
    words = [each.removeprefix(r"\b") for each in wide if each.startswith(r"\b")]
    others = [f"(?:{each})" for each in wide if not each.startswith(r"\b")]
    # most places of a text begin no word, so one look rules these patterns out
    begun = [rf"\b(?:{'|'.join(words)})"] if words else []
    return re.compile("|".join([*begun, *others]) or r"(?!)")


def find_leak(text: str, answer: str, pattern: re.Pattern[str], allowed: str = "") -> str:
    """Return the first phrase of a text that reveals y*, or "".

    What `allowed`, the problem's own text, says too is no leak.
    """
    known: set[str] | None = None  # computed only when needed: nearly all rationales are clean
    for found in _found(text, answer, pattern):
        if known is None:
            known = {phrase.lower() for phrase in _found(allowed, answer, pattern)}
        if found.lower() not in known:
            return found
    return ""


def _found(text: str, answer: str, pattern: re.Pattern[str]) -> Iterator[str]:
    lowered = marked(text, answer).replace("\u0130", "i").lower()  # as long as the text
    for match in pattern.finditer(lowered):
        yield text[match.start() : match.end()]


def marked(text: str, answer: str) -> str:
    """Return a text, as long as before, in which MARK replaces each character of y*.

    >>> marked("4 of 14, or 4.5?", "4").replace(MARK, "#")
    '# of 14, or 4.5?'
    """
    text = text.replace(MARK, " ")
    if not answer.strip():
        return text
    # a lone letter is y* only as a capital, since "a" is a word
    case = "" if len(answer) == 1 else "(?i)"
    part = rf"[^\W{_CJK}]"  # of a word; there are no spaces between words in Chinese
    whole = rf"{case}(?<!{part})(?<!\d\.){re.escape(answer)}(?!{part}|[.,]\d)"
    return re.sub(whole, lambda match: MARK * len(match[0]), text)
