"""What a model writes and what a user says in a word: completions, answers, scales, rewards, schemes."""

from __future__ import annotations

import contextlib
from pathlib import Path
from random import Random

from femtune.data import answers
from femtune.data.grammar.dates import read_date
from femtune.data.grammar.labels import Choices, read_label
from femtune.data.leaks import JUDGE_LEAKS
from femtune.data.prompts import Prompts
from femtune.errors import FemtuneError
from femtune.rewards.builtin import AnswerReward, as_reward, score
from femtune.rewards.math_equality import same_value
from femtune.schemes.named import ADDED, SCHEMES, parse_scheme
from femtune.types import Completion, Problem

from .mangling import (
    damaged,
    nested,
    sequence,
)

_SAID = (
    *("Answer:", "answer: ", "**Answer:**", "Answer", "\n", " ", "4", "4.", "**4**", "$5$", "`x`"),
    *("*", "A*", "\\boxed{", "\\boxed{4}", "}", "$$", "\\(", "\\)", "# ", "> ", "- ", "(b) "),
    *("B. Paris", "4/5", "out of", "the correct ", "correct ", "answer ", "rating ", "was given "),
    *("told ", "hint ", "since the ", "as ", "\u2028", "\x00", "\ud800", "\u202e", "٤", "½", "10²"),
    *("\ufb01", "é\u0301", "ſ", "İ", "…", "。", "，", "1,000", "1e-3", "1e999", "-", "−", "+", "%", "€"),
    *("3/4", "1/0", "0", "9" * 30, "9" * 401, ".", "e5", "tie", "or", "and ", "Response A", "A", "B"),
    *("good", "bad", "[", "]", "(", ")", ",", " I think so.\n"),
)


def make_text(rng: Random) -> str:
    return sequence(rng, _SAID, most=20)


def read_completion(text: str, folder: Path) -> None:
    problem = Problem("p", "What was the rating given? A hint: it was 4.", "4")
    for prompts in (Prompts(), Prompts(leaks=JUDGE_LEAKS), Prompts(leaks=(r"\btold\b",))):
        parsed = prompts.parse(text)
        prompts.leak(problem, parsed.rationale)
        prompts.leak(problem, text)
        assert parsed.error or parsed.answer.strip()
    completion = Completion((1,), text, "stop", -1.0)
    score([problem], [completion], [True], prompts=Prompts(), reward=as_reward("number"))


_SCALES = tuple(map(answers.parse_scale, ("1,5", "0,1,0.25", "bad,fair,good", "A,B,tie", "-3,3")))


def read_answer(text: str, folder: Path) -> None:
    number = answers.as_fraction(text)
    if number is not None and len(str(number)) <= 400:
        assert answers.as_fraction(str(number)) == number
    read_label(text), read_date(text), answers.same_text(text, "4")
    assert Choices(("A", "B"), ("Paris", text)).read(text) in (None, "A", "B")
    for scale in _SCALES:
        read = scale.read(text)
        assert read is None or (scale.read(read) == read and scale.value(read) is not None)
    for name in (
        "exact",
        "number(tol=1)",
        "ordinal(1, 5)",
        'ordinal("1,5")',
        "choice",
        'choice("A,B,tie")',
    ):
        reward = as_reward(name)
        assert isinstance(reward, AnswerReward)
        assert all(0 <= reward.grade(*pair) <= 1 for pair in ((text, "4"), ("4", text), (text, text)))


_SCALE_PARTS = (
    *("1", "5", "0", "0.5", "-3", "1e3", "1e999", "1/2", "1/3", "9" * 40, "1001", "A", "B", "tie"),
    *("bad", ",", ",", ",", ", ", " ", "", "good", "٥", "½", "\ud800", "(", "%", "NaN", "inf", "-"),
    *("1e-300", "\x00"),
)


def make_scale(rng: Random) -> str:
    if rng.random() < 0.3:
        parts = [rng.choice(("0", "1", "5", "10", "0.5", "-3", "good", "bad")) for _ in range(3)]
        return ",".join(parts[: rng.randint(1, 3)])
    return sequence(rng, _SCALE_PARTS)


def read_scale(text: str, folder: Path) -> None:
    with contextlib.suppress(FemtuneError):
        answers.infer_scale(text.split(","))
    scale = answers.parse_scale(text)
    str(scale)
    for answer in scale.answers[:20]:
        read = scale.read(answer)
        assert read is not None
        assert scale.nearest(scale.value(read)) is not None


_MATHS = (
    *("9", "1", "2", "x", "y", "pi", "\\pi", "99", "0.5", ".", ",", "+", "-", "*", "/", "=", "<"),
    *("\\le", "!", "^", "^", "_", "{", "}", "(", ")", "[", "]", "\\left(", "\\right)", "|", "\\frac"),
    *("\\frac{1}{2}", " ", "\\sqrt", "\\sqrt[3]{2}", "\\binom", "\\sin", "\\log", "\\int", "\\sum"),
    *("\\lim", "\\infty", "\\cdot", "\\begin{pmatrix}", "\\end{pmatrix}", "&", "\\\\", "\\in"),
    *("\\cup", "\\text{ cm}", "\\%", "\\$", "$", "\\boxed{", "9" * 30, "9" * 31, "x^2", "^{9^{9}}"),
    *("^99", "(a+b+c+d)^{99}", "\ud800", "²", "½", "٤", "∞"),
)
_MATH_FORMS = (
    *("({})", "{}^{{}}", "\\frac{{}}{{}}", "\\sqrt{{}}", "{}+{}", "{}{}", "-{}", "{}!", "\\sin {}"),
    *("|{}|", "\\left({}\\right)", "{{}}", "\\{{}, {}\\}", "[{}, {})", "{}={}", "\\binom{{}}{{}}"),
    *("\\log_{{}} {}", "{} \\cup {}", "({})^{9}", "{} \\le {}", "\\sqrt[9]{{}}"),
    "\\begin{pmatrix}{} & {}\\end{pmatrix}",
)
_GOLD = (
    *("4", "\\frac{1}{2}", "x^2 + 2x + 1", "\\{1, 2\\}", "(1, 2)", "\\sqrt{2}", "\\text{even}"),
    *("x = 5", "2^{10}", "(0, \\infty)", "\\begin{pmatrix}1 \\\\ 2\\end{pmatrix}", "10\\%", "\\pi"),
    *("x \\le 3", "1024_5"),
)


def make_maths(rng: Random) -> str:
    """An answer and, after a line of its own, the gold one."""
    depth = rng.choice((1, 2, 3, 4, 30))
    nest = nested(rng, _MATH_FORMS, ("x", "2", "9", "\\pi", "a"), depth)
    wide = sequence(rng, _MATHS)
    answer = rng.choice((nest, wide, nest + wide, rng.choice(_GOLD) + rng.choice(_MATHS)))
    return f"{answer}\n=\n{answer if rng.random() < 0.2 else rng.choice(_GOLD)}"


def read_maths(text: str, folder: Path) -> None:
    answer, _, gold = text.rpartition("\n=\n")
    for pair in ((answer, gold), (gold, answer)):
        assert same_value(*pair) in (True, False)


_SPEC_PARTS = (
    *("exact", "number", "ordinal", "choice", "math", "regex", "(", ")", ",", "=", "tol", "rel", "1"),
    *("5", "0", '"1,5"', "'A,B,tie'", '"', "'", "r", "\\d", "\\", "[", "]", "{answer}", "(?P<x>", "*"),
    *("+", "?", ":", "fn", "-1", "1e999", "None", "True", "{}", "(1, 5)", "lambda: 0", "__import__"),
    *("**", " ", "\n", "\x00", "\ud800", "(1,5)", "(tol=0.5)", '(r"(a+)+b")', '(r"(x+x+)+y{answer}")'),
    *('("a{99999999999}")', '("[[a]")', "#", ".", "(" * 300, "-" * 5_000, "9" * 5_000),
    *("no/such/file.py", "a.py:", ":", ".:f", "é", "(nan)", '("\\z")'),
)
_SPECS = ("exact", "number(tol=0.5)", "ordinal(1, 5)", 'choice("A,B,tie")', "math", 'regex("a{answer}")')


def make_spec(rng: Random) -> str:
    whole = rng.choice(_SPECS)
    if rng.random() < 0.2:
        return whole
    text = damaged(rng, whole.encode(), [part.encode("utf-8", "replace") for part in _SPEC_PARTS])
    made = rng.choice((sequence(rng, _SPEC_PARTS, most=6), text.decode("utf-8", "replace")))
    hostile = rng.choice(
        (".", "a", "(a+)+", "(a|a)*", "(.*)*", "[a-z", "{answer}", "\\1", "(?i)", "$", "b")
    )
    return f"regex(r'{hostile}{sequence(rng, _SPEC_PARTS, 2)}')" if rng.random() < 0.2 else made


def read_spec(spec: str, folder: Path) -> None:
    if ":" in spec and "(" not in spec:  # of others' code only what is not there: it would be run
        spec = f"./none/{spec}"
    reward = as_reward(spec)
    problem = Problem("p", "?", "4")
    texts = ("4", "a" * 40, "x" * 40 + "!", "(A) or (B)", "")
    texts_ = [Completion((1,), f"So.\nAnswer: {text}", "stop", 0.0) for text in texts]
    score([problem] * 5, texts_, [False] * 5, prompts=Prompts(), reward=reward)


_SCHEME_PARTS = (
    *("rejection", "star", "pps", ":", "(", ")", "4", "0", "-1", "٤", "²", "9" * 5_000, " ", "\x00"),
    *("é", "1e3", "+", "+", "+", ",", ".", "0.5", ".5", "1,2", "1.", "auto", *SCHEMES, *ADDED),
)


def make_scheme(rng: Random) -> str:
    whole = rng.choice(("star", "pps", "rejection", "rejection:4", "rejection(4)"))
    if rng.random() < 0.4:
        numbers = ("", "", ":2", "(3)", ":0.5", "(0)", ":1", "(1,2)", ":.000000001", ":999999999")
        added = rng.sample([*ADDED], rng.randint(1, 4))
        return "+".join(name + rng.choice(numbers) for name in (rng.choice([*SCHEMES]), *added))
    return whole if rng.random() < 0.2 else sequence(rng, (*_SCHEME_PARTS, whole), most=4)


def read_scheme(text: str, folder: Path) -> None:
    scheme = parse_scheme(text)
    assert scheme.stages and parse_scheme(scheme.name).name == scheme.name
