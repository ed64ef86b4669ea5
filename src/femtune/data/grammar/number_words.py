"""Numbers in words at the beginning of an answer, in English.

word2number takes "one in four" for 5 and "no one" for 1; text2num leaves "minus three", halves and a
"one" alone as they are. Here, words with two readings are no number.

>>> in_digits("twenty-one eggs"), in_digits("one hundred and five"), in_digits("four and a half")
('21 eggs', '105', '4 1/2')
>>> in_digits("one of them"), in_digits("two three"), in_digits("minus three")
('one of them', 'two three', '-3')
"""

from __future__ import annotations

import re

_SMALL = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven"),
    *("twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
_BY_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_TENS = {word: 10 * place for place, word in enumerate(_BY_TENS, 2)}
_ONES = {word: number for number, word in enumerate(_SMALL)}
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9}
WORD = "|".join([*_SMALL, *_TENS, *_SCALES, "hundred"])
_LARGE = "(?:(?<=hundred)|(?<=thousand)|(?<=million)|(?<=billion))"  # before "and" or a comma
_WORDS = re.compile(
    rf"(?P<minus>(?:minus|negative) )?(?P<words>(?:a (?=hundred|thousand|million|billion))?"
    rf"(?:{WORD})(?:(?:{_LARGE}(?:,? and |, )| |-)(?:{WORD})\b)*)\b(?P<half> and a half\b)?(?P<rest>.*)",
    re.IGNORECASE | re.DOTALL,
)
_NO_NUMBER = re.compile(
    r"\s*(?:-|(?:another|by|can|half|of|or|point|quarters?|thirds?|to|way|\w+ths?)\b)", re.IGNORECASE
)


def in_digits(text: str) -> str:
    """Return a text with the number words at its beginning as digits; other texts as they are."""
    minus = re.match(r"(?:minus|negative) (?=\d)", text, re.IGNORECASE)
    if minus:
        return f"-{text[minus.end() :]}"
    match = _WORDS.fullmatch(text)
    if match is None or _NO_NUMBER.match(match["rest"]):
        return text
    number = _number(re.findall(r"[a-z]+", match["words"].lower()))
    if number is None:
        return text
    sign = "-" if match["minus"] else ""
    return f"{sign}{number}{' 1/2' if match['half'] else ''}{match['rest']}"


def _number(words: list[str]) -> int | None:
    """Return the number of words in their usual order, or None: "two three" is no number."""
    total = group = 0
    least, scale = 10**12, 10**12  # what follows must be smaller
    for word in words:
        if word in ("a", "and"):
            group, least = (group or 1, least) if word == "a" else (group, least)
        elif word in _SCALES:
            if not group or _SCALES[word] >= scale:
                return None
            scale = _SCALES[word]
            total, group, least = total + group * scale, 0, scale
        elif word == "hundred":
            if not 0 < group < 10:
                return None
            group, least = group * 100, 100
        else:
            value = _TENS.get(word, _ONES.get(word, 0))
            if value >= least or (group and value == 0):
                return None
            group, least = group + value, 10 if value >= 20 else 1
    return total + group
