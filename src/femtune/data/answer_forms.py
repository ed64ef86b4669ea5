"""Finders of answers in a text, one for each form.

`answer_format` decides about what they find: a form may hold a placeholder, or be one of several.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import regex as patterns

from femtune._util.text import brief
from femtune.data.grammar.text import BRACES, bare
from femtune.errors import ConfigError

MOST_MISSES = 300  # objects that are invalid or lack the key; limits the time for a text of a million {


class Found(NamedTuple):
    """An answer in its form; `end` is the index after its closing text, or before its line break."""

    start: int
    end: int
    answer: str
    said: str = ""  # rationale inside the form


class Form(NamedTuple):
    cue: str
    closers: str
    ending: str
    missing: str
    find: Callable[[str], Iterator[Found]]  # yields all closed forms in a text
    needs: str = ""  # in lower case; a text without it has no such form
    whole_line: bool = False
    closing: str = ""  # text that closes an answer; "" for a line break or the completion's end


def _lines(pattern: re.Pattern[str]) -> Callable[[str], Iterator[Found]]:
    """Find lines that match a pattern; if one has no answer, as a heading, take the next line."""

    def find(text: str) -> Iterator[Found]:
        for match in pattern.finditer(text):
            answer, end = _unmarked(match), match.end()
            if not answer.strip(" *_`$\\["):
                answer, end = _below(text, end)
                answer = "" if pattern.match(answer + "\n") else answer
            yield Found(match.start(), end, bare(answer))

    return find


def _unmarked(line: re.Match[str]) -> str:
    """Remove unpaired markup from `**Answer:** 4`, `**Answer: 4**.` or `"Answer: 4"`."""
    mark, answer = line["mark"].replace("“", "”"), line["answer"].strip()
    if not mark or mark[-1] in line["closed"].replace("“", "”"):
        return answer
    if answer.startswith(mark):
        return answer.removeprefix(mark)
    stopped = answer.rstrip(".。 ")
    return stopped.removesuffix(mark[::-1]) if stopped.endswith(mark[::-1]) else answer


def _below(text: str, head: int) -> tuple[str, int]:
    """Return the next line with text, and its end; "" and `head` if that line has no line break."""
    end = head
    while (start := text.find("\n", end) + 1) and (end := text.find("\n", start)) >= 0:
        line = text[start:end].strip()
        if line and not line.startswith("```") and line not in ("$$", "\\["):
            # a longer line is reasoning under the heading "Answer:"
            return (line, end) if len(line) <= 80 else ("", head)
    return "", head


def _boxes(text: str) -> Iterator[Found]:
    r"""Yield each \boxed{...}; of nested boxes, the inner one."""
    opened: list[tuple[re.Match[str], int]] = []
    num = 0
    for brace in BRACES.finditer(text):
        if brace[0] == "}" and opened:
            start, before = opened.pop()
            if len(start[0]) > 1 and num == before:
                num += 1
                yield Found(start.start(), brace.end(), bare(text[start.end() : brace.start()]))
        elif brace[0][-1] == "{" and brace[0] != "\\{":
            opened.append((brace, num))


_AND = re.compile(r"[$\s]*(?:,|\band\b|,\s*and\b)[$\s]*")


def _listed_boxes(text: str) -> Iterator[Found]:
    r"""Yield boxes; \boxed{1} and \boxed{2} are one list, \boxed{1} or \boxed{2} are two answers."""
    joined: Found | None = None
    for one in _boxes(text):
        if joined and one.answer and joined.answer and _AND.fullmatch(text, joined.end, one.start):
            joined = Found(joined.start, one.end, f"{joined.answer}, {one.answer}")
            continue
        if joined:
            yield joined
        joined = one
    if joined:
        yield joined


def _spans(pattern: str) -> Callable[[str], Iterator[Found]]:
    compiled = re.compile(pattern, re.IGNORECASE | re.DOTALL)
    return lambda text: (
        Found(match.start(), match.end(), bare(match[1])) for match in compiled.finditer(text)
    )


def _objects(key: str) -> Callable[[str], Iterator[Found]]:
    """Make a finder of JSON objects that have a key."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(found := dict(pairs)) < len(pairs):
            raise ValueError("duplicate key")
        return found

    start = re.compile(r'\{\s*"')
    # numbers stay as written: 4.0 is not shortened to 4
    number: dict[str, Any] = {"parse_float": str, "parse_constant": str}
    decoder = json.JSONDecoder(object_pairs_hook=unique, strict=False, **number)

    def find(text: str) -> Iterator[Found]:
        end = misses = 0
        while (begun := start.search(text, end)) and misses < MOST_MISSES:
            end, misses = begun.start() + 1, misses + 1
            try:
                found, behind = decoder.raw_decode(text, begun.start())
                if key not in found:
                    continue  # an object inside it may have the key
                value = found[key]
                answer = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            except (ValueError, RecursionError):
                continue
            end, misses = behind, misses - 1
            names = list(found)[: list(found).index(key)]
            said = "\n".join(found[name] for name in names if isinstance(found[name], str))
            yield Found(begun.start(), end, "" if value is None else bare(answer), said)

    return find


def _groups(pattern: str) -> Callable[[str], Iterator[Found]]:
    """Make a finder of a pattern's first group in whole lines. Raises ConfigError for a bad pattern."""
    said = f"answer_format regex:{brief(repr(pattern))}"
    try:
        compiled = patterns.compile(pattern, patterns.MULTILINE)
    except (patterns.error, ValueError, RecursionError) as error:
        raise ConfigError(f"{said} is invalid: {error}. Use the syntax of Python's `re`.") from error
    if not compiled.groups:
        raise ConfigError(
            f"{said} has no group. Put parentheses around the answer, for example 'Score: (.+)'."
        )

    def find(text: str) -> Iterator[Found]:
        text = text[: text.rfind("\n") + 1]
        for match in compiled.finditer(text, timeout=1.0):  # Python's own `re` has no timeout
            if match[1] is not None:
                yield Found(match.start(), match.end(), bare(match[1]))

    return find


@lru_cache(maxsize=64)
def form_of(spec: str) -> Form:
    kind, _, given = spec.partition(":")
    if spec in FORMS:
        return FORMS[spec]
    if kind == "json" and given:
        name = json.dumps(given, ensure_ascii=False)
        missing = f"the end is not a JSON object with {name}"
        return Form(
            f"\n{{{name}:",
            "}",
            f"WHAT in a JSON object: {{{name}: ...}}",
            missing,
            _objects(given),
            closing="}",
        )
    if kind == "regex" and given:
        return Form("", "\n", "WHAT", "the pattern is not found", _groups(given))
    raise ConfigError(
        f"answer_format {brief(repr(spec))} is unknown. "
        f"Choose {', '.join(FORMS)}, json:KEY or regex:PATTERN."
    )


_LINE = re.compile(
    r"^(?:[^\S\n]|[#>✅✔☑➡👉\ufe0f])*(?:[*-][^\S\n]+)?(?P<mark>[*_`\"“]*)(?:final[^\S\n]+)?answer"
    r"(?P<closed>(?:[^\S\n]|[*_`\"”])*)(?:[:：]|[-–—][^\S\n](?=\(?(?:[a-z]|-?\d[\d.,]*)\)?\.?$))(?P<answer>.*?)"
    r"(?:(?<=[.!$*])[^\S\n]+(?:I hope|Hope|Let me know|Feel free).*)?(?=\n)",
    re.IGNORECASE | re.MULTILINE,
)
# "The correct answer is:", or a heading "Answer", with the answer in the next line
_ABOVE = re.compile(
    r"^(?:(?:.*\b(?:the|my)[^\S\n]+)(?:(?:final|correct|right|best)[^\S\n]+)*"
    r"(?:answer|(?<=[a-z][^\S\n])(?:choice|option)\b[^:\n]{0,100})[^\S\n]+is[:：]"
    r"|[^\S\n]*#+[^\S\n]*(?:final[^\S\n]+)?answer)(?P<mark>)(?P<closed>)"
    r"(?P<answer>[*_`]*[^\S\n]*)(?=\n)",
    re.IGNORECASE | re.MULTILINE,
)
# words for "answer" and "rating" in other languages; in the first, 2,5 is two and a half
_WITH_COMMA = "antwort|respuesta|réponse|risposta|resposta|ответ|bewertung|puntuación|оценка"
_ELSEWHERE = re.compile(
    r"^[^\S\n]*(?P<mark>[*_`]*)(?:die|la|el|a|o|il|最終的な|最终|正しい|正确)?[^\S\n]*"
    rf"(?:{_WITH_COMMA}|答案|答え|回答|答|정답|답변|답|الإجابة|الجواب|उत्तर|উত্তর|評価|评分|評分|평가)(?P<closed>[*_`]*)"
    r"[^\S\n]*(?:(?:ist|es|est|è|é|是|为|は)?[^\S\n]*[:：])(?P<answer>.+)(?=\n)",
    re.IGNORECASE | re.MULTILINE,
)
_HASH = re.compile(
    r"(?<![*_`#])(?P<mark>[*_`]*)####(?!#)(?P<closed>[*_`]*)"
    r"(?:[^\S\n]*(?:final )?answer:)?(?P<answer>.*)(?=\n)",
    re.IGNORECASE,
)

FORMS = {
    "line": Form(
        "\nAnswer:",
        "\n",
        'the line "Answer: " and WHAT',
        'the last line is not "Answer: ..."',
        _lines(_LINE),
        "answer",
        True,
    ),
    "boxed": Form(
        "\n\\boxed{",
        "}",
        "WHAT in \\boxed{}",
        "the end is not \\boxed{...}",
        _listed_boxes,
        "box",
        closing="}",
    ),
    "hash": Form(
        "\n####",
        "\n",
        'the line "#### " and WHAT',
        'the last line is not "#### ..."',
        _lines(_HASH),
        "####",
        True,
    ),
    "tag": Form(
        "\n<answer>",
        ">",
        "WHAT in <answer></answer>",
        "the end is not <answer>...</answer>",
        _spans("<answer>((?:(?!<answer>).)*?)</answer>"),
        "</answer>",
        closing="</answer>",
    ),
    "bracket": Form(
        "\n[[",
        "]",
        "WHAT in double brackets, as [[...]]",
        "the end is not [[...]]",
        _spans(r"\[\[((?:[^\[\]\n]|\[[^\[\]\n]*\])*)\]\]"),
        "]]",
        closing="]]",
    ),
}

_IN_JSON = tuple(
    _objects(key)
    for key in ("answer", "final_answer", "rating", "score", "winner", "verdict", "choice", "label")
)


def in_json(text: str) -> Iterator[Found]:
    """Yield answers in JSON objects under the usual keys."""
    if "{" in text:
        found = [one for find in _IN_JSON for one in find(text)]
        yield from found
        # cut off within a later value: {"winner": "A", "why": "It names
        if not found and (match := _CUT_OFF.search(text)):
            yield Found(match.start(), len(text), bare(match["answer"]))


_CUT_OFF = re.compile(
    r'\{\s*"(?:answer|rating|score|winner|verdict)":\s*"?(?P<answer>[^"{},\n]+)"?,[^{}]*\Z'
)


_ABOVE_LINES, _ELSEWHERE_LINES = _lines(_ABOVE), _lines(_ELSEWHERE)


def in_other_words(text: str) -> Iterator[Found]:
    """Yield answers after a heading, and after the word for "answer" in other languages."""
    yield from _ABOVE_LINES(text)
    for one in _ELSEWHERE_LINES(text):
        if "," in one.answer and re.search(_WITH_COMMA, text[one.start : one.end], re.IGNORECASE):
            one = one._replace(answer=re.sub(r"(?<=\d),(?=\d{1,2}(?!\d))", ".", one.answer))
        yield one
