r"""Answer formats: how a completion writes its answer, how it is parsed, and where it is complete.

    line        Answer: X                 the default
    boxed       \boxed{X}
    hash        #### X
    tag         <answer>X</answer>
    bracket     [[X]]
    json:KEY    {"KEY": X}                keys before it are part of the rationale
    regex:...   the pattern's first group

>>> parse_format("line").read("Two and two make four.\n**Answer:** 4\nI hope this helps!")
Parsed(rationale='Two and two make four.', answer='4', error='')
>>> parse_format("boxed").read("<think>Two and two.</think> So $\\boxed{\\frac{4}{1}}$.").answer
'\\frac{4}{1}'

An answer counts once its form is closed: by the line break, brace, tag or bracket after it. The end of
a completion counts as a line break. Placeholders and text in a thinking block are not answers. A
completion with two different answers has no answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

from femtune.data.answer_forms import FORMS, Form, Found, form_of, in_json, in_other_words
from femtune.data.answer_sentences import (
    REMARK,
    TURNED_DOWN,
    decides,
    every_sentence,
    is_placeholder,
    is_taken_back,
    label_of,
    sentences,
    without_rejected,
)
from femtune.data.grammar.labels import read_label, undecorated
from femtune.data.grammar.numbers import as_quantity
from femtune.data.grammar.text import DOUBT, bare
from femtune.types import Parsed

__all__ = ["AnswerFormat", "bare", "parse_format"]


@dataclass(frozen=True)
class AnswerFormat:
    """A format of answers. `spec` is its name on the command line, such as "line" or "json:score"."""

    spec: str

    def __post_init__(self) -> None:
        form_of(self.spec)  # raises ConfigError

    @property
    def cue(self) -> str:
        """Text after which a model writes its answer; "" if none, so that no answer can be forced."""
        return form_of(self.spec).cue

    @property
    def closers(self) -> str:
        """Characters that close an answer; the closing token contains at least one."""
        return form_of(self.spec).closers

    def ending(self, what: str = "your answer") -> str:
        """Return the part of the instruction that says how the completion must end.

        >>> parse_format("line").ending("A or B")
        'end with the line "Answer: " and A or B.'
        """
        return f"end with {form_of(self.spec).ending.replace('WHAT', what)}."

    def read(self, text: str, *, require_rationale: bool = True) -> Parsed:
        """Split a completion's text into rationale and answer; `error` says why if that fails.

        >>> parse_format("line").read("No idea.").error
        'the last line is not "Answer: ..."'
        """
        form, whole = form_of(self.spec), text.strip()
        if any(block["end"] is None for block in _THINKING.finditer(text)):
            return Parsed(whole, "", "the thinking block is not closed")
        final = _outside(text)[-1] + "\n"
        offset = len(text) + 1 - len(final)
        try:
            forms = list(form.find(final)) if form.needs in final.lower() else []
        except TimeoutError:
            return Parsed(whole, "", "the pattern takes over a second")
        if turn := _next_turn(final, forms, self.spec):
            final, forms = final[: turn + 1], [one for one in forms if one.end <= turn]
        found = [one for one in forms if not is_placeholder(one.answer)]
        if not forms and self.spec in FORMS:  # people read an answer in another form, too
            found = list(_in_other_forms(final, self.spec))
            form = form._replace(whole_line=False)  # a sentence may follow
            if not found and _ALONE.fullmatch(final.strip("`\n ")):
                return Parsed(
                    "", bare(final.strip("`\n ")), "no rationale before the answer" * require_rationale
                )
        if not found:
            return Parsed(whole, "", "the answer is empty" if forms else form.missing)
        found = _corrected(final, found)
        first, last = found[0], found[-1]
        said = [*found, *(() if forms or decides(final, found[-1]) else every_sentence(final))]
        if not all(
            _agree(last.answer, one.answer) for one in _corrected(final, sorted(said))
        ) or _is_choice(first.answer):
            return Parsed(whole, "", "two different answers")
        if not forms and _may_be_cut_off(final, last):
            return Parsed(whole, "", form.missing)
        if problem := _after(final[last.end :], last.answer, form):
            return Parsed(whole, "", problem)
        # the words before the answer; placeholders in the answer's form do not count
        spans = [
            (0, 0),
            *((offset + one.start, offset + one.end) for one in forms if one.start < first.start),
        ]
        starts = [*(start for start, _ in spans[1:]), offset + first.start]
        words = "".join(text[end:start] for (_, end), start in zip(spans, starts, strict=True))
        rationale = _rationale(text[: offset + first.start], first.said)
        no_words = not rationale or _NO_WORDS.fullmatch(_TAG.sub("", words) + first.said)
        if require_rationale and no_words:
            return Parsed(rationale, first.answer, "no rationale before the answer")
        return Parsed(rationale, first.answer)

    @property
    def missing(self) -> str:
        """The error of a completion that does not end with the answer's form."""
        return form_of(self.spec).missing

    @property
    def closing(self) -> str:
        """Text that closes an answer after the cue; "" if a line break or the end does."""
        return form_of(self.spec).closing

    def written(self, answer: str) -> str:
        r"""Return an answer as it stands after the cue, without what closes it.

        >>> parse_format("line").written("4"), parse_format("tag").written("4")
        (' 4', '4')
        """
        if self.spec.startswith("json:"):
            is_number = re.fullmatch(r"-?(?:0|[1-9]\d*)(?:\.\d+)?", answer) is not None
            return " " + (answer if is_number else json.dumps(answer, ensure_ascii=False))
        return answer if self.closing else f" {answer}"

    def begins(self, text: str) -> int | None:
        """Return the index at which the answer's form begins in a completion; None without an answer.

        >>> parse_format("line").begins("So 4.\\nAnswer: 4")
        6
        """
        if not self.read(text, require_rationale=False).answer:
            return None
        final = _outside(text)[-1] + "\n"
        offset = len(text) + 1 - len(final)
        found = [one for one in form_of(self.spec).find(final) if not is_placeholder(one.answer)]
        if not found and self.spec in FORMS:
            found = list(_in_other_forms(final, self.spec))
        return offset + found[0].start if found else offset

    def closed(self, text: str) -> bool:
        """Return True if a text holds a complete answer, not a placeholder and not in a thinking block.

        The result stays True for any continuation of the text. (A regex format with a lookahead may
        break this.)

        >>> line = parse_format("line")
        >>> line.closed("So 4.\\nAnswer: 4"), line.closed("So 4.\\nAnswer: 4\\n")
        (False, True)
        """
        form = form_of(self.spec)
        if form.needs not in text.lower():
            return False
        try:
            found = (one for part in _outside(text) for one in form.find(part))
            return any(not is_placeholder(one.answer) for one in found)
        except TimeoutError:
            return True  # unreadable; each further line would cost another second


def parse_format(spec: str) -> AnswerFormat:
    """Return the answer format of a name. Raises ConfigError for an unknown name."""
    return AnswerFormat(spec)


# --- what is not an answer, and what may surround one

_TAG = re.compile("</?think(?:ing)?>", re.IGNORECASE)
_THINKING = re.compile(r"<think(?:ing)?>.*?(?:(?P<end></think(?:ing)?>)|\Z)", re.IGNORECASE | re.DOTALL)
# a completion that is only a letter or a number, perhaps after a word such as "Score"
_ALONE = re.compile(
    r"[*_`]*(?:(?:response|option|choice|summary|rating|score) )?"
    r"[(\[]?(?:[A-Z]|-?\d[\d.,]*%?(?: (?:points|stars)| ?/ ?\d+| out of \d+)?)[)\]]?[.*_`]*"
    # a copy of a choice
    r"|(?:(?:option|choice) )?(?-i:[A-Z])[.:)]\s(?!.*\b(?:is|are|was|were)\b)[^\n]{1,60}",
    re.IGNORECASE,
)
_NO_WORDS = re.compile(
    r"(?:[\W_]|\b(?:(?:so|thus|therefore|hence)\W+(?=the\b)|(?:the|my|final|correct|answer|is|json)\b))*",
    re.IGNORECASE,
)
# a form that is named as an example, or turned down: "Example: [[4]]", "It is not [[4]]"
_BEFORE_EXAMPLE = re.compile("n’t |never |example|e\\.g\\.|format is")
_EXAMPLE = re.compile(
    r"(?:(?:\bnot|\bnever|n['’]t)[^\S\n]+(?:(?:answer|choose|give|say|write)[^\S\n]+)?"
    r"|(?:(?:\bfor example|\be\.g\.|\bformat is)[,:]?|\bexample:)\s*)[*_`$\"“(]*"
    r"(?P<form>\\boxed\{(?:[^{}\n]|\{[^{}\n]*\})*\}|\[\[[^\]\n]*\]\]|<answer>[^<\n]*</answer>|\{\s*\"[^}\n]*\}"
    r"|(?:(?:final )?answer[*_`]*[:：]|####)[^\n]*)",
    re.IGNORECASE,
)
# the beginning of another question and its answer, as base models write them
_NEXT_TURN = re.compile(
    r"\n(?:[#*]|[^\S\n])*(?:Question|Problem|Exercise|Q|Human|User|Prompt)\b[^\S\n]*\d*[*]*[:.]",
    re.IGNORECASE,
)
# a last paragraph that is only a letter or a number
_LETTER_ALONE = re.compile(
    r"\n[^\S\n]*\n[*_`]*[(\[]*(?P<answer>[A-Z]|-?\d[\d,]*(?:\.\d+)?)[)\]]*[.*_`]*\s*\Z"
)
# a first line that is only a letter or a number, or a copy of a choice before a few words
_FIRST = re.compile(
    r"\s*[*_`]*[(\[]*(?P<answer>[A-J]|\d\d?)[)\]]*[.*_`]*[^\S\n]*\n(?=\s*\S)"
    r"|\s*(?P<copy>(?P<label>[A-J])[.)] [^\n]{1,60})\n(?=.{1,60}\Z|\n)",
    re.DOTALL,
)
_QA = re.compile(r"\s*A: ?(?P<answer>\S?\d[\d.,]*)[^\S\n]*\n")  # as after "Q:"
_LISTED = re.compile(r"^\W*(?:[A-Z]|\d[\d.,]*)\W*$", re.MULTILINE)


def _outside(text: str) -> list[str]:
    """Blank the thinking blocks and examples of a text, and split it at each unopened </think>."""
    small = text.lower()
    if "not " in small or "n't " in small or _BEFORE_EXAMPLE.search(small):
        text = _EXAMPLE.sub(lambda one: one[0].removesuffix(one["form"]) + " " * len(one["form"]), text)
    if "think" not in small:
        return [text]
    return _TAG.split(_THINKING.sub(lambda block: " " * len(block[0]), text))


def _corrected(text: str, found: list[Found]) -> list[Found]:
    """Drop answers that are called wrong before the next one: "Answer: 7", "I correct this."."""
    for place in range(len(found) - 1, 0, -1):
        if _CORRECTS.search(text, found[place - 1].end, found[place].start):
            return found[place:]
    return found


_CORRECTS = re.compile(
    r"\n.*\b(?:mistaken?|correction|(?:was|is|that['’]s) (?:wrong|incorrect|not (?:right|correct))"
    r"|I (?:was wrong|(?:must |(?:have|need) to )?correct (?:it|my|that|this)))\b.*\n",
    re.IGNORECASE,
)


def _may_be_cut_off(text: str, last: Found) -> bool:
    """Return True if a text ends in digits with which a longer number begins: "= 24. So it is 2"."""
    end = re.search(r"(?<![\d.,])\d+\Z", text.rstrip())
    return end is not None and last.end >= end.start() and re.search(rf"\b{end[0]}\d", text) is not None


def _next_turn(text: str, forms: list[Found], spec: str) -> int:
    """Return where a question begins that was not asked, behind an answer; 0 without one."""
    turn = _NEXT_TURN.search(text, forms[0].end if forms else 0)
    first = _NEXT_TURN.search(text)
    if first and first != turn and spec in FORMS and [*_in_other_forms(text[: first.start() + 1], spec)]:
        return first.start()
    return turn.start() if turn and (forms or [*_in_other_forms(text[: turn.start() + 1], spec)]) else 0


def _is_choice(answer: str) -> bool:
    """Return True for several alternative numbers or letters, as in "4 or 5"."""
    parts = re.split(r",? or (?:maybe |perhaps |possibly )?|, ", " ".join(answer.split()))
    values = {part.removeprefix("either ").strip("()") for part in parts}
    is_value = re.compile(r"[-−+]?\d[\d.,]*%?|[A-Z]").fullmatch
    return " or " in answer and len(values) > 1 and all(map(is_value, values))


def _after(tail: str, answer: str, form: Form) -> str:
    """Return what is wrong with the text after an answer; "" if it only comments on the answer."""
    if not tail.strip():
        return ""
    rest = without_rejected(REMARK.sub("", tail), answer)
    after = [*(one.answer for one in sentences(rest)), *_values(rest, answer)]
    if not all(_agree(each, answer) for each in after):
        return "two different answers"
    new_paragraph = re.match(r"[^\S\n]*\n[^\S\n]*\n", rest)
    doubt = is_taken_back(rest) if new_paragraph else DOUBT.search(rest)
    apart = new_paragraph or not form.whole_line or _explains(rest, answer)
    return "" if not rest.strip() or (apart and not doubt) else form.missing


def _explains(rest: str, answer: str) -> bool:
    """Return True for sentences in the lines after an answer that name no other number or letter."""
    named = {*_NUMBERS.findall(rest), *_LETTERS.findall(rest)}
    sentence = _NEW_LINE.match(rest) is not None and rest.rstrip()[-1:] in (".", "!")
    return sentence and named <= {*_NUMBERS.findall(answer), label_of(answer)}


_NEW_LINE = re.compile(r"[^\S\n]*\n[^\S\n]*[A-Z]\S*[^\S\n]")


_KINDS = tuple(
    re.compile(pattern, re.IGNORECASE).fullmatch
    for pattern in (r"[^\W\d]", r"yes|no|true|false", r"[-+$€£]*\d[\d.,/]*(?: ?%| [^\W\d]+)?")
)


def _values(text: str, answer: str) -> Iterator[str]:
    """Yield what stands in a line of its own, perhaps after "Final:", and is of the answer's kind."""
    for line in text.splitlines():
        value = undecorated(
            re.sub(r"^[\s*_`]*(?:final[*_`]*:|=)", "", line, flags=re.IGNORECASE).strip("*_` ")
        )
        if any(is_kind(value) and is_kind(undecorated(answer)) for is_kind in _KINDS):
            yield value
    named = _NAMED_VALUE.search(text)
    if named and re.fullmatch(r"[\d.]+|[^\W\d_]+", undecorated(answer)) and len(answer) < 12:
        yield named["value"]


# the last line of a text, as "Excel: 1"
_NAMED_VALUE = re.compile(
    r"\n(?!confidence|certainty|score)[^\W\d_]+: (?P<value>\d+)\s*\Z", re.IGNORECASE
)


def _in_other_forms(text: str, spec: str) -> Iterator[Found]:
    """Yield answers in other forms than a format's own; without any, in sentences."""
    small = text.lower()
    finds = [
        (name, form.find(text)) for name, form in FORMS.items() if name != spec and form.needs in small
    ]
    finds += [("", in_other_words(text)), ("", in_json(text))]
    found = [
        one
        for name, each in finds
        for one in each
        # a line that begins with #### may be a heading
        if not is_placeholder(one.answer) and (name != "hash" or _is_value(one.answer))
    ]
    if not found and not (found := sentences(text)):
        found = [*_alone(text)]
    yield from sorted(found)


def _alone(text: str) -> Iterator[Found]:
    """Yield a letter or number that is the last paragraph, or a first line without another answer."""
    if (last := _LETTER_ALONE.search(text)) is not None:
        before = text[: last.start()].rstrip().rpartition("\n")[2]
        short = len(before) <= 60 and before[-1:] != "?"
        refused = TURNED_DOWN.search(before) or (short and DOUBT.search(before))
        if len(_LISTED.findall(text)) <= 1 and not refused:
            yield Found(last.start("answer"), last.end(), last["answer"])
        return
    if (said := _QA.match(text)) and not re.search(r"^B:", text, re.MULTILINE):
        yield Found(0, said.end(), bare(said["answer"]))
        return
    first = _FIRST.match(text)
    if first is None or (first["answer"] and len(_LISTED.findall(text)) > 1):
        return
    name = first["answer"] or first["label"]
    rest = text[first.end() :]
    others = {*(_NUMBERS if name.isdigit() else _LETTERS).findall(rest)} - {name}
    if not others and not DOUBT.search(rest):
        yield Found(first.start(), first.end(), first["answer"] or first["copy"])


_NUMBERS = re.compile(r"\d+(?:\.\d+)?")
_LETTERS = re.compile(r"(?<![\w'’])[A-J](?![\w'’])")


def _is_value(answer: str) -> bool:
    return as_quantity(answer) is not None or read_label(answer) != ""


def _rationale(before: str, said: str) -> str:
    text = re.sub(r"(?m:^)```\w*\Z", "", _TAG.sub("", before).strip()).rstrip(" \n$*_([\\{")
    return f"{text}\n{said}".strip()


def _agree(one: str, other: str) -> bool:
    """Return True for one answer in two spellings: 18 and 18 eggs, B and (B) Paris."""
    numbers = as_quantity(one.rpartition("=")[2]), as_quantity(other.rpartition("=")[2])
    if numbers[0] is not None and numbers[1] is not None:
        return numbers[0].same(numbers[1])
    said = undecorated(one).casefold(), undecorated(other).casefold()
    return (
        said[0] == said[1] or (read_label(one) == said[1] != "") or (read_label(other) == said[0] != "")
    )
