"""Built-in rewards r(y, y*) from 0 to 1, and the scoring of completions by any reward.

    >>> grade = as_reward("ordinal(1, 5)")
    >>> problem = Problem("p1", "Rate it from 1 to 5.", "4")
    >>> grade([problem], [Completion((), "Good.\\nAnswer: 3", "stop", 0.0)], [Parsed("Good.", "3")])
    [0.75]

For writing a reward function of your own, see `femtune.rewards.custom`.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import regex as patterns

from femtune._util.extras import check_extra
from femtune._util.text import brief, near
from femtune.data.answers import Scale, parse_scale, read_rating
from femtune.data.grammar.labels import read_label
from femtune.data.grammar.numbers import stated_quantity
from femtune.data.grammar.text import remembered, same_text
from femtune.data.prompts import Prompts
from femtune.data.tasks.frames import scale_of
from femtune.errors import ConfigError, RewardError
from femtune.rewards.custom import Outcome, UserReward, checked, load_function, user_reward
from femtune.rewards.math_equality import same_value
from femtune.rewards.trl import trl_function
from femtune.types import Completion, Parsed, Problem, Reason, Reward, Score

# --- built in


@dataclass(frozen=True)
class AnswerReward:
    """A reward that depends on the two answers only: `grade(y, y*)`.

    With `knows_choices`, an answer that the problem's own choices settle is compared as their label.
    """

    name: str
    grade: Callable[[str, str], float]
    knows_choices: bool = False

    def __call__(
        self,
        problems: Sequence[Problem],
        completions: Sequence[Completion],
        parsed: Sequence[Parsed],
    ) -> list[float]:
        pairs = zip(problems, parsed, strict=True)
        return [self.of(read.answer, problem) for problem, read in pairs]

    def of(self, answer: str, problem: Problem) -> float:
        """Return the reward of an answer to a problem, from 0 to 1."""
        scale = scale_of(problem) if self.knows_choices else None
        if scale is None or not scale.texts:
            return self.grade(answer, problem.answer)
        return float(scale.read(answer) == scale.read(problem.answer) is not None)

    def for_trl(
        self, *, answer_column: str = "answer", answer_format: str = "line"
    ) -> Callable[..., list[float | None]]:
        """Return the reward as TRL's trainers call it: see `rewards.trl`."""
        return trl_function(self, self.name, answer_column=answer_column, answer_format=answer_format)

    def __reduce__(self) -> tuple[Any, ...]:
        return as_reward, (self.name,)  # pickled by name


def exact() -> AnswerReward:
    """Reward 1 for the same text, ignoring case, spaces, surrounding markup and forms of a character.

    >>> grade = exact().grade
    >>> grade("**Paris.**", "paris"), grade("４", "4"), grade("10²", "102")
    (1.0, 1.0, 0.0)
    """

    def grade(answer: str, gold: str) -> float:
        return float(same_text(answer, gold))

    return AnswerReward("exact", grade)


def number(tol: float = 0.0, rel: float = 1e-9) -> AnswerReward:
    """Reward 1 for the same number: |y - y*| <= tol, or rel·|y*| unless both are whole numbers.

    Reads 1,234.5, −3, 3/4, 3 1/2, 1e-3, $5, twelve and digits of every script. A unit may be left out;
    1 km is 1000 m, and not 1 m. Percent is a unit: 50% is 50, not 0.5. See docs/answers.md.

    >>> grade = number().grade
    >>> grade("1,000", "1000"), grade("0.75", "3/4"), grade("٤٢", "42"), grade("1001", "1000")
    (1.0, 1.0, 1.0, 0.0)
    """
    if not (_finite(tol, rel) and tol >= 0 and rel >= 0):
        raise ConfigError(f"number(tol={tol}, rel={rel}): both tolerances must be finite and >= 0.")
    most, share = Fraction(tol), Fraction(rel)

    @remembered
    def grade(answer: str, gold: str) -> float:
        mine, right = stated_quantity(answer), stated_quantity(gold)
        if mine is None or right is None or (y := mine.beside(right)) is None:
            return 0.0
        wanted = right.value
        whole = y.denominator == wanted.denominator == 1
        return float(abs(y - wanted) <= max(most, 0 if whole else share * abs(wanted)))

    return AnswerReward(f"number(tol={tol:g}, rel={rel:g})", grade)


def ordinal(scale: tuple[float, float] | str) -> AnswerReward:
    """Reward 1 - |y - y*| / (hi - lo) on the scale, and 0 for an answer off the scale.

    (lo, hi) accepts any number between the two. As text ("1,5", "1,5,0.5" or "bad,fair,good"), the scale
    accepts only these answers. Labels are valued by position. If 5 is the highest, "4/5", "4 stars" and
    "4 (good)" are 4.

    >>> grade = ordinal(scale=(1, 5)).grade
    >>> grade("4", "4"), grade("2", "4"), grade("6", "5"), grade("good", "5")
    (1.0, 0.5, 0.0, 0.0)
    >>> grade = ordinal("bad,fair,good").grade
    >>> grade("fair", "good"), grade("excellent", "good")
    (0.5, 0.0)
    """
    if isinstance(scale, str):
        return _on(parse_scale(scale), scale)
    pair = isinstance(scale, tuple | list) and len(scale) == 2 and _finite(*scale)
    if not pair or not scale[0] < scale[1]:
        raise ConfigError(f"ordinal: scale is {scale!r}; give (lowest, highest), for example (1, 5).")
    lo, hi = scale

    @remembered
    def grade(answer: str, gold: str) -> float:
        y, wanted = read_rating(answer, Fraction(hi)), read_rating(gold, Fraction(hi))
        if y is None or wanted is None or not (lo <= y <= hi and lo <= wanted <= hi):
            return 0.0
        return 1.0 - float(abs(y - wanted)) / (hi - lo)

    return AnswerReward(f"ordinal({lo:g}, {hi:g})", grade)


def _finite(*numbers: Any) -> bool:
    """Return True if all values are numbers within the range of a float."""
    return all(isinstance(number, int | float) and -_MOST <= number <= _MOST for number in numbers)


_MOST = sys.float_info.max


def _on(scale: Scale, spec: str) -> AnswerReward:
    span = scale.value(scale.answers[-1]) - scale.value(scale.answers[0])

    @remembered
    def grade(answer: str, gold: str) -> float:
        y, wanted = scale.read(answer), scale.read(gold)
        if y is None or wanted is None:
            return 0.0
        return 1.0 - abs(scale.value(y) - scale.value(wanted)) / span

    return AnswerReward(f"ordinal({spec!r})", grade)


def choice(answers: str = "") -> AnswerReward:
    """Reward 1 for the same label: "B", "(b)", "Option B", "B. Paris" and "B) Paris" are all B.

    Labels 1, 2, 3 are read the same way, other labels as text; "(A) or (B)" matches neither. Problems of
    the task `choice` have the texts of their choices: a copy of one is its label. With `answers`, such
    as "A,B,tie", reward 1 for the same one of these. See `femtune.data.grammar.labels`.

    >>> grade = choice().grade
    >>> grade("(b)", "B"), grade("B. Paris", "B"), grade("A", "B"), grade("Bob", "B")
    (1.0, 1.0, 0.0, 0.0)
    >>> choice("A,B,tie").grade("Tie", "tie")
    1.0
    """
    known = Scale(tuple(part.strip() for part in answers.split(","))) if answers else None

    def grade(answer: str, gold: str) -> float:
        if known is not None:
            return float(known.read(answer) == known.read(gold) is not None)
        return float(read_label(answer) == read_label(gold) != "" or same_text(answer, gold))

    return (
        AnswerReward(f"choice({answers!r})", grade) if answers else AnswerReward("choice", grade, True)
    )


def math() -> AnswerReward:
    r"""Reward 1 for the same number, text or expression; see `math_equality.same_value`.

    >>> grade = math().grade
    >>> grade("0.5", r"\frac{1}{2}"), grade("(x + 1)^2", "x^2 + 2x + 1"), grade("1, 2", r"\{2, 1\}")
    (1.0, 1.0, 1.0)
    >>> grade("0.333", r"\frac{1}{3}"), grade("2 or 3", "3"), grade("9^{9^{9}}", "3")
    (0.0, 0.0, 0.0)

    Never raises, and gives the same value on every machine: expressions that could keep sympy busy for
    long are not parsed. Making it raises ConfigError if math-verify is not installed.
    """
    check_extra("reward math", "math_verify")

    def grade(answer: str, gold: str) -> float:
        return float(same_value(answer, gold))

    return AnswerReward("math", grade)


def regex(pattern: str) -> AnswerReward:
    """Reward 1 if the pattern matches the whole answer; {answer} in it stands for y*, taken literally.

    >>> grade = regex("(?i)(about )?{answer}( years?)?").grade
    >>> grade("About 40 years", "40"), grade("400", "40"), grade("4.0", "4.0"), grade("4x0", "4.0")
    (1.0, 0.0, 1.0, 0.0)

    On the command line: --reward 'regex(r"...")'. Raises ConfigError for an invalid pattern. In use,
    raises RewardError if a match takes over a second, as patterns like r"(a|aa)+b" can.
    """

    @remembered
    def matcher(gold: str) -> Any:
        return patterns.compile(pattern.replace("{answer}", f"(?:{re.escape(gold)})"))

    try:
        matcher("y*")
    except (patterns.error, TypeError, AttributeError, ValueError, RecursionError) as error:
        said = f"regex({brief(repr(pattern))}): {error}"
        raise ConfigError(f"{said}. Give a pattern in the syntax of Python's `re`.") from error

    def grade(answer: str, gold: str) -> float:
        try:
            # Python's own `re` has no timeout
            return float(answer != "" and matcher(gold).fullmatch(answer, timeout=1.0) is not None)
        except TimeoutError:
            raise RewardError(
                f"reward regex({brief(repr(pattern))}) takes over a second for the answer "
                f"{brief(repr(answer))}. Avoid a repetition within a repetition."
            ) from None

    return AnswerReward(f"regex({pattern!r})", grade)


REWARDS: dict[str, Callable[..., AnswerReward]] = {
    "exact": exact,
    "number": number,
    "ordinal": ordinal,
    "choice": choice,
    "math": math,
    "regex": regex,
}


def as_reward(spec: str | Callable[..., Any]) -> AnswerReward | UserReward:
    """Return the reward for a specification: "exact", "ordinal(1, 5)", "file.py:fn", or a function.

    >>> as_reward("number(tol=0.5)").name
    'number(tol=0.5, rel=1e-09)'

    Raises ConfigError for an unknown reward, or arguments that it does not take.
    """
    if isinstance(spec, AnswerReward | UserReward):
        return spec
    if not isinstance(spec, str):
        return user_reward(spec)
    try:
        call = _expression(spec.strip())
        name = call.func if isinstance(call, ast.Call) else call
        if not isinstance(name, ast.Name):
            raise ValueError
        args, named = (call.args, call.keywords) if isinstance(call, ast.Call) else ([], [])
        values = [ast.literal_eval(arg) for arg in args]
        keywords = {str(arg.arg): ast.literal_eval(arg.value) for arg in named}
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # the last two: nested too deeply
        if ":" in spec:
            return load_reward(spec)
        forms = 'a name, a call with constants such as "ordinal(1, 5)", or "file.py:function"'
        raise ConfigError(f"reward {brief(repr(spec))} is not understood: give {forms}.") from None
    if name.id not in REWARDS:
        raise ConfigError(
            f"no reward {brief(repr(name.id))}.{near(name.id, REWARDS)} Choose one of "
            f"{', '.join(REWARDS)}, or give your own as file.py:function."
        )
    factory = REWARDS[name.id]
    if factory is ordinal and len(values) == 2:  # the pair's brackets are optional
        values = [tuple(values)]
    try:
        return factory(*values, **keywords)
    except TypeError as error:
        parameters = inspect.signature(factory).parameters.values()
        form = ", ".join(str(p.replace(annotation=p.empty)) for p in parameters)
        message = f"reward {brief(repr(spec))}: {error}. The form is {name.id}({form})."
        raise ConfigError(message) from error


def _expression(spec: str) -> ast.expr:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about \d in a pattern that is not r"..."; Python keeps its \
        return ast.parse(spec, mode="eval").body


def load_reward(spec: str) -> AnswerReward | UserReward:
    """Load a user's reward from "package.module:function" or "path/file.py:function".

    Raises ConfigError if the file, module or function does not exist, or its import fails.
    """
    return as_reward(load_function(spec))


# --- use


def score(
    problems: Sequence[Problem],
    completions: Sequence[Completion],
    hinted: Sequence[bool],
    *,
    prompts: Prompts,
    reward: Reward,
    accept_at: float | Sequence[float] = 1.0,
    timeout_s: float = 60.0,
    on_error: Literal["stop", "skip"] = "stop",
) -> list[Score]:
    """Return a score for each completion; `hinted` says whose prompt held the answer.

    `accept_at` is the smallest reward that is accepted, for all completions or for each.

    A hint leak keeps its reward, as information. Truncated and unparsable completions are not graded,
    but for a user's function that reads the answer itself, where the format's form is missing.
    `timeout_s` limits each call of a user's function. A failing reward raises RewardError; with
    on_error="skip" it scores 0 as "reward_failed" instead. An abstaining reward (None) always does.
    """
    read = [_read(completion, prompts) for completion in completions]
    scores = [Score(0.0, p.answer, reason, detail, p.rationale) for p, reason, detail in read]
    unread = prompts.format.missing if _reads_completions(reward) else None
    rows = [
        row
        for row, (parsed, reason, detail) in enumerate(read)
        if not reason or (detail == unread and parsed.rationale)
    ]
    asked, written = [problems[row] for row in rows], [completions[row] for row in rows]
    outcomes = _outcomes(reward, asked, written, [read[row][0] for row in rows], timeout_s)
    for row, outcome in zip(rows, outcomes, strict=True):
        problem, parsed = problems[row], read[row][0]
        if isinstance(outcome, RewardError) and on_error == "stop" and not parsed.error:
            raise outcome
        leak = prompts.leak(problem, parsed.rationale) if hinted[row] else ""
        least = accept_at if isinstance(accept_at, int | float) else accept_at[row]
        scores[row] = _graded(problem, parsed, outcome, leak, least)
    return scores


def _read(completion: Completion, prompts: Prompts) -> tuple[Parsed, Reason, str]:
    """Parse a completion, and say why it is not to be graded ("" and "" if it is)."""
    if completion.finish_reason == "error":
        return Parsed("", ""), "engine_failed", completion.error or "the engine did not say why"
    if completion.finish_reason == "length":
        # an apparent answer in a truncated text may be incomplete
        detail = f"no end after {completion.num_tokens} tokens"
        return Parsed(completion.text.strip(), ""), "truncated", detail
    parsed = prompts.parse(completion.text)
    return parsed, "parse_error" if parsed.error else "", parsed.error


def _reads_completions(reward: Reward) -> bool:
    return isinstance(reward, UserReward) and reward.reads_completions


def _outcomes(
    reward: Reward,
    problems: list[Problem],
    completions: list[Completion],
    parsed: list[Parsed],
    timeout_s: float,
) -> Sequence[Outcome]:
    if isinstance(reward, UserReward):
        return reward.outcomes(problems, completions, parsed, timeout_s)
    if isinstance(reward, AnswerReward):
        return [_tried(reward, *pair) for pair in zip(parsed, problems, strict=True)]
    values = reward(problems, completions, parsed)
    items = zip(problems, completions, values, strict=True)
    return [checked("function", *item) for item in items]


def _tried(reward: AnswerReward, parsed: Parsed, problem: Problem) -> Outcome:
    try:
        return reward.of(parsed.answer, problem)
    except RewardError as error:
        return error


def _graded(problem: Problem, parsed: Parsed, outcome: Outcome, leak: str, accept_at: float) -> Score:
    answer, rationale = parsed.answer, parsed.rationale
    value = outcome if isinstance(outcome, int | float) else 0.0
    if leak:
        return Score(value, answer, "hint_leak", leak, rationale)
    if parsed.error and not (isinstance(outcome, int | float) and outcome >= accept_at):
        return Score(value, answer, "parse_error", parsed.error, rationale)
    if isinstance(outcome, RewardError):
        return Score(0.0, answer, "reward_failed", str(outcome), rationale)
    if outcome is None:
        return Score(0.0, answer, "reward_failed", "the reward abstained (None)", rationale)
    if outcome < accept_at:
        compared = f"answer {brief(answer)}, expected {brief(problem.answer)}"
        detail = f"{compared}, reward {outcome:g} < {accept_at:g}"
        return Score(outcome, answer, "wrong", detail, rationale)
    return Score(outcome, answer, rationale=rationale)
