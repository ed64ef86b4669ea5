"""Answers in sentences: "The answer is 5.", "So response B is better.", "So Tom has 5 - 2 = 3 left."."""

from __future__ import annotations

import re
from collections.abc import Iterator

from femtune.data.answer_forms import Found
from femtune.data.grammar.labels import read_label
from femtune.data.grammar.numbers import number_said
from femtune.data.grammar.text import BACK, DOUBT, bare

# --- what is no answer

_NAMES = "answer|rating|score|label|letter|choice|option|number|value|result"
_PLACEHOLDER = re.compile(
    r"[\s.…*_?$]*|(?-i:X)|\W*(?:(?:the|my|your|final|correct|insert|write|put) )*"
    r"(?:answer|rating|score)(?: here)?\W*"
    rf"|[<[({{](?:\w+ ){{0,3}}(?:{_NAMES})(?: here)?[>\])}}]|(?:your|insert) (?:\w+ )?(?:{_NAMES})"
    r"|\W*and (?:your|the|an?|one|either) .*",  # words of the instruction
    re.IGNORECASE,
)


def is_placeholder(answer: str) -> bool:
    """Return True for words that stand in an answer's place: "your answer", "[rating]", "...".

    >>> is_placeholder("<your answer here>"), is_placeholder("A number")
    (True, False)
    """
    text = re.sub(r"\\(?:text|textbf|mathrm|boxed)\{([^{}]*)\}", r"\1", answer)
    return _PLACEHOLDER.fullmatch(" ".join(text.split())) is not None


# --- sentences

REMARK = re.compile(
    r"^(?:[^\S\n]|[>#*_])*(?:```|---|\$\$|\\\]|(?:I )?hope|(?:Please )?(?:let me know|feel free)|Thank"
    r"|Do you|Is there any|If you (?:have|need|want|would)|Would you|Have a |Good luck).*$"
    r"|^Think step by step, then end with (?:(?!\bis\b)[^.\n])*\.$",  # the instruction
    re.IGNORECASE | re.MULTILINE,
)
_BECAUSE = re.compile(r",? (?:because|since|as|which|so) ")
_SENTENCE = re.compile(r"\S[^\n]*?(?:[.!?。](?=\s)|(?=\n|\Z))")
_NOUN = (
    r"(?:(?:final|correct|right|best|overall|perfect)\s+)*(?:answer|grade|rating|score|solution)"
    r"|(?:(?:final|correct|right|best|better)\s+)+(?:choice|option|response|summary|letter)"
)
_IS = re.compile(
    r"(?:^|[,:]\s|\b(?:so|thus|therefore|hence|then|means|that)\s)[\s*_`]*(?:the\sletter\sof\s)?(?:(?:the|my|our|a)\s+)?"
    rf"(?:(?:final\s)?answer[*_`]*:|(?:{_NOUN})[*_`]*\s+"
    r"(?:(?:to|for|of)\s+(?:(?:the|this|that|your|our)\s+)?(?:(?:above|given)\s+)?"
    r"(?:question|problem|task|exercise|quiz|prompt|response|summary|text|item)\s+){0,3}"
    r"(?:is|must be|would be|will be|equals|=)(?:\s(?:indeed|clearly|definitely))?(?:\s*:)?)"
    r"\s(?:an?\s(?=tie\b))?(?P<answer>.+)",
    re.IGNORECASE | re.DOTALL,
)
_AGAIN = re.compile(r",? and (?:so |thus )?(?:the |my )?(?:answer|rating|score) is ", re.IGNORECASE)

# sentences that give an answer without the word "answer", matched up to their end
_END = r"[*_`]*(?:,?\s(?:because|since|as|which)\s.+|\s[-–—]\s.+)?[.!。*_`\s]*\Z"
_SO = r"\b(?:so|thus|therefore|hence|overall),?\s"
_THEN = re.compile(f",?\\s{_SO}", re.IGNORECASE)
_THING = r"(?:response|summary|option|choice|answer|model|assistant)"
_LETTER = rf"[*_`]*(?:(?:the\s)?{_THING}\s)?[*_`(]*(?P<answer>(?-i:[A-Z]))\b[*_`)]*"
_SURELY = r"(?:(?:certainly|clearly|definitely|far|indeed|much|significantly|slightly)\s)?"
_POINTS = r"(?P<answer>-?\d+(?:\.\d+)?(?:/\d+|\sout\sof\s\d+)?)(?:\s(?:stars?|points?))?"
_WOULD = r"\b(?:I|we)(?:\swould|['’]d|\swill|['’]ll)?\s"
_VERDICTS = tuple(
    re.compile(pattern + _END, re.IGNORECASE | re.DOTALL)
    for pattern in (
        rf"(?:^|,\s|{_SO}|\band\s){_LETTER}\sis\s{_SURELY}(?:the\s|a\s)?(?:better|best)(?:\s(?:{_THING}|one))?"
        rf"(?:\sthan\s(?:the\s)?(?:{_THING}\s)?\w+)?(?:\sin\sthis\s(?:case|example|scenario))?",
        rf"(?:^|{_SO}){_LETTER}\s(?:gives|has|offers|provides)\sthe\s(?:better|best)\s{_THING}",
        rf"{_SO}{_LETTER}\sis\s(?:the\s)?(?:right|correct|okay|ok)(?:\s(?:{_THING}|one))?",
        rf"(?:^|\band\s){_LETTER}\sis\sthe\s(?:right|correct)\s(?:{_THING}|one)",
        rf"^{_LETTER}\sis\sthe\sanswer(?:\sto\s.+)?",
        r"^(?:the\s)?(?:answer|choice|option)\s[*_`(]*(?P<answer>(?-i:[A-Z]))\b[*_`)]*\sis\s(?:also\s)?(?:right|correct)",
        rf"(?:^|,\s|{_SO})[*_`]*(?:it|this)(?:\sis|['’]s)\sa\s(?P<answer>tie)",
        rf"(?:^|,\s|{_SO}){_WOULD}(?:choose|go\swith|pick|prefer|say|select|vote\sfor)\s(?:that\s)?{_LETTER}",
        rf"^(?:so|thus|therefore|hence):\s{_LETTER}",
        rf"{_WOULD}(?:give|grade|rate|score)\s(?:[a-z]+\s){{0,5}}{_POINTS}",
        rf"\b(?:deserves|gets|receives|earns)\s(?:an?\s)?(?:(?:rating|score)\sof\s)?[*_`]*{_POINTS}",
        rf"\b(?:rating|score)\sof\s[*_`]*{_POINTS}",
        rf"\b(?:rating|score|overall)[*_`]*:\s?[*_`]*{_POINTS}",
        r"^(?:(?:my|the)\s)?(?:(?:final|overall)\s)*(?:decision|rating|result|score|total|verdict|winner)[*_`]*:\s*"
        r"(?P<answer>\S.{0,40}?)",
    )
)
# words of which each pattern needs one, found faster than the patterns
_NEEDED = (
    "answer",
    "grade",
    "rating",
    "score",
    "solution",
    "choice",
    "option",
    "response",
    "summary",
    "letter",
)
_NEEDED_VERDICT = (
    *[
        "answer",
        "better",
        "best",
        "correct",
        "right",
        "ok",
        "tie",
        "chose",
        "choose",
        "deserves",
        "earns",
        "gets",
        "give",
        "grade",
        "pick",
    ],
    *[
        "prefer",
        "rate",
        "receives",
        "say",
        "select",
        "vote",
        "rating",
        "score",
        "overall",
        "decision",
        "result",
        "total",
        "verdict",
    ],
    *("winner", "go with", "so:", "thus:", "therefore:", "hence:"),
)
_SHOULD = re.compile(r"\bshould\s(?=(?:be\s(?:given|rated|scored)|get|have|receive)\b)", re.IGNORECASE)
# 'The answer is not "B", as', before "the answer is A."
_NOT_THAT = re.compile(
    r"\A(?:the|my) (?:\w+ )?(?:answer|choice|option) is not [\"“(]?[\w.]{1,8}[\"”)]?[,;]"
    r" (?:as|because|but|since) (?=the\b)",
    re.IGNORECASE,
)
_NO_COMMA = re.compile(r"(?:no|ok(?:ay)?|well|yes),\s(?=(?:so\s)?(?:the|my)\s)", re.IGNORECASE)
_SHOULD_BE = re.compile(r"\b(answer|choice|letter|option|rating)\sshould be\b", re.IGNORECASE)
TURNED_DOWN = re.compile(r"\b(?:eliminate|exclude|reject|rule out)\b", re.IGNORECASE)
# what others say, what is turned down, a condition, or no definite thing
_NOT_SAID = re.compile(
    r"\b(?:many|most|others|people|some|someone|students?|they|users?|one|you)\s(?:\w+\s){0,2}"
    r"(?:argue|assume|believe|claim|guess|feel|say|think)s?\b"
    rf"|{TURNED_DOWN.pattern}[^,]*\bthat\b"
    r"|\b(?:almost|nearly)\s(?:deserves|earns|gets|receives)\b|\b(?:close to|short of)\san?\b"
    r"|^(?:at (?:best|first|least|most|worst)|had|ideally|normally|otherwise|typically|usually|were"
    r"|(?:for|in) (?:example|instance|part|step)|on one hand|with(?:out)? (?:better|less|more))\b"
    r"|^(?:an?|any|every)\s(?:\w+\s){0,2}(?:answer|one|response|summary|text)\s(?!is\b)",
    re.IGNORECASE,
)
# a judgement of one aspect: "In terms of length, A is better."
_ASPECT = re.compile(
    r"^(?:for|in terms of|regarding|as (?:for|to)|with (?:regard|respect))\b(?! (?:all|this)\b)[^,]*,",
    re.IGNORECASE,
)
# "Total: 12", where other numbers follow
_SUBTOTAL = re.compile(r"(?:the )?(?:result|total)[*_`]*:", re.IGNORECASE)
_NUMBER = re.compile(r"\d+")
# another choice turned down: "A is incorrect.", after "The answer is B."
_REJECTED = re.compile(
    rf"(?:{_THING}\s)?\(?(?P<other>[A-HJ-Z])\)?\s(?:is|was)\s(?:also\s)?(?:not|incorrect|wrong|worse|less)\b.*",
    re.IGNORECASE | re.DOTALL,
)
# doubt in a later paragraph, which may say "not" of other matter
_TAKEN_BACK = re.compile(
    rf"\b(?:{BACK}|wrong|incorrect|false|should be|not (?:right|correct|true|sure|the answer))\b"
    r"|\bno[,.]|\?",
    re.IGNORECASE,
)
_OBJECTS = re.compile(r"\b(?:but|however|maybe|perhaps)\b", re.IGNORECASE)
_COMPARES = re.compile(r"\b(?:(?i:although|though|whereas|while))\b.*\b[A-HJ-Z]\b", re.ASCII | re.DOTALL)
_MATTER = re.compile(
    r"\d|\b[A-HJ-Z]\b|(?i:\b(?:answer|choice|option|rating|response|score|summary)\b)", re.ASCII
)
_REOPENS = re.compile(r"\b(?:again|check|let['’]?s|next|now|then|verify)\b", re.IGNORECASE)
_PARAGRAPH = re.compile(r"\n[^\S\n]*\n")


def every_sentence(text: str) -> Iterator[Found]:
    """Yield all sentences such as "The answer is 5." that are not in doubt, in any paragraph."""
    for sentence in _SENTENCE.finditer(text):
        match = _IS.search(sentence[0].strip("*_` "))
        if match and not _doubtful(sentence[0].strip("*_` ")):
            for answer in _stated(match):
                yield Found(sentence.start(), sentence.end(), answer)


def decides(text: str, found: Found) -> bool:
    """Return True if an answer is all of the last paragraph, after sentences that weigh it and others.

    After a single other answer it does not decide: then the text has two.
    """
    text = REMARK.sub(lambda line: " " * len(line[0]), text).rstrip()
    last = max((gap.end() for gap in _PARAGRAPH.finditer(text)), default=0)
    if not last or found.start < last or len([*_SENTENCE.finditer(text, last)]) > 1:
        return False
    before = {bare(one.answer).casefold() for one in every_sentence(text[:last])}
    return len(before) > 1 and bare(found.answer).casefold() in before


def is_taken_back(text: str) -> bool:
    """Return True if paragraphs after an answer take it back: "Wait.", "But 6 is right, too."."""
    return _TAKEN_BACK.search(text) is not None or any(
        found.start() < 4 or _MATTER.search(sentence[0])
        for sentence in _SENTENCE.finditer(text)
        if (found := _OBJECTS.search(sentence[0]))
    )


def _doubtful(sentence: str) -> bool:
    return DOUBT.search(sentence) is not None or _NOT_SAID.search(sentence) is not None


def _stated(match: re.Match[str]) -> list[str]:
    """Return the answers of a sentence; [] if they are placeholders, or too long for an answer."""
    parts = _AGAIN.split(_BECAUSE.split(match["answer"])[0])
    answers = [bare(bare(part).strip('"“”')) for part in parts]
    return [each for each in answers if len(each.split()) <= 8 and not is_placeholder(each)]


def sentences(text: str) -> list[Found]:
    """Return sentences such as "The answer is 5." of the last paragraph, unless they are put in doubt.

    If it has no such sentence, return those such as "So response B is better.", then those of the whole
    text, then its last sentence if that concludes with a number.
    """
    text = REMARK.sub(lambda line: " " * len(line[0]), text).rstrip()
    last = max((gap.end() for gap in _PARAGRAPH.finditer(text)), default=0)
    # "The answer is 5.", and in another paragraph, "Then we look at it again."
    reopened = _REOPENS.search(text, last)
    for start in dict.fromkeys((last, last if reopened else 0)):
        for patterns in ((_IS,), _VERDICTS):
            found = _stating(text, start, patterns)
            if found is None:  # in doubt
                return []
            if found:
                return found
    return _concluding(text)


def _plainly(sentence: str) -> str:
    """Drop "should" in a judgement, and "No," before a statement."""
    said = sentence.strip("*_` ")
    if "should" in said:
        said = _SHOULD.sub("", _SHOULD_BE.sub(r"\1 is", said))
    if " not " in said:
        said = _NOT_THAT.sub("", said)
    return _NO_COMMA.sub("", said) if "," in said[:5] else said


def _stating(text: str, start: int, patterns: tuple[re.Pattern[str], ...]) -> list[Found] | None:
    """Return what sentences state from an index on; None if it is in doubt, and not stated again."""
    found: list[Found] = []
    doubted = False
    needed = _NEEDED_VERDICT if patterns is _VERDICTS else _NEEDED
    small = text.lower()
    if not any(word in small for word in needed):
        return found
    for sentence in _SENTENCE.finditer(text, start):
        small = sentence[0].lower()
        likely = any(word in small for word in needed)
        if not likely and not found:
            continue
        said = _plainly(sentence[0])
        if _SUBTOTAL.match(said) and {*_NUMBER.findall(text, sentence.end())} - {*_NUMBER.findall(said)}:
            continue
        match = likely and next(filter(None, (pattern.search(said) for pattern in patterns)), None)
        # in "A is not polite, so B is better.", the conclusion is not in doubt
        whole = found or patterns is not _VERDICTS
        if not match and not found:
            continue
        if match is None or not match:
            later = _PARAGRAPH.search(text, found[-1].end - 1, sentence.start())
            doubt = is_taken_back(said) if later else DOUBT.search(said) is not None
            doubt = doubt or _COMPARES.search(said) is not None
        else:
            concluded = said if whole else _THEN.split(said)[-1]
            doubt = _doubtful(concluded) or (patterns is _VERDICTS and _ASPECT.match(said) is not None)
            if found and all(each == found[-1].answer for each in _stated(match)):  # the same again
                doubt = _TAKEN_BACK.search(said) is not None
        if doubt:
            other = _REJECTED.fullmatch(said) if found and not match else None
            if other is None or any(other["other"] == label_of(one.answer) for one in found):
                found, doubted = [], True
        elif match:
            at = sentence.start() + max(0, sentence[0].find(match[0]))
            stated = [Found(at, sentence.end(), answer) for answer in _stated(match)]
            found += stated if patterns is _VERDICTS else [_with_text(text, one) for one in stated]
    return None if doubted and not found else found


_TEXT_AFTER = re.compile(
    r"[^\S\n]+(?P<text>(?:(?![A-Z]\b)\S+[^\S\n]+){0,7}(?![A-Z]\b)\S+?)(?:[.!](?=\s)|(?=\n|\Z))"
)


def _with_text(text: str, found: Found) -> Found:
    """Add the text of a choice to its letter: "The answer is D. Animals." is cut after "D."."""
    after = _TEXT_AFTER.match(text, found.end) if re.fullmatch(r"[A-J]", found.answer) else None
    if after is None or text[found.end - 1] != ".":
        return found
    return Found(found.start, after.end(), bare(f"{found.answer}. {after['text']}".strip('"“”')))


def without_rejected(text: str, answer: str) -> str:
    """Return a text without sentences that turn down another choice than the answer's."""

    def kept(sentence: re.Match[str]) -> str:
        other = _REJECTED.fullmatch(sentence[0].strip("*_` "))
        return "" if other and other["other"] != label_of(answer) else sentence[0]

    return _SENTENCE.sub(kept, text) if label_of(answer) else text


def label_of(answer: str) -> str:
    """Return the letter of an answer, "" without one."""
    return read_label(answer).upper()


# --- a conclusion: "So Tom has 5 - 2 = 3 apples left."

_CONCLUDES = re.compile(
    r"(?:^|,\s)(?:so|thus|therefore|hence|altogether|overall|in total|finally)\b,?\s*(?P<said>.+)",
    re.IGNORECASE | re.DOTALL,
)
# "5 - 2 = 3.", not as a step
_STEP = re.compile(r"(?:first|next|now|second|step|then|to)\b", re.IGNORECASE)
_RESULT = re.compile(r"\s*\S?\d[^\s=]*(?:\s[^\W\d_]+){0,2}[.!]")
_CUT_OFF = re.compile(r"\s*[^\W\d_]+,?")  # a last line such as "So,"


def _concluding(text: str) -> list[Found]:
    """Return the last sentence of a text, if it is whole and concludes with a number."""
    before_last, _, line = text.rstrip().rpartition("\n")
    whole = before_last if before_last and _CUT_OFF.fullmatch(line) else text
    *_, last = (None, *_SENTENCE.finditer(whole))
    if last is None or last[0][-1] not in ".!":
        return []
    said = last[0].strip("*_` ")
    match = _CONCLUDES.search(said)
    before, _, result = said.rpartition("=")
    if match is not None:
        answer = number_said(match["said"])
    elif re.search(r"\d", before) and _RESULT.fullmatch(result) and not _STEP.match(said):
        answer = number_said(said)
    else:
        answer = ""
    return [Found(last.start(), last.end(), answer)] if answer else []
