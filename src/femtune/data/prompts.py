"""Plain and hinted prompts of a problem, their tokens, and the parsing of completions.

    plain    x + instruction                      what the model is asked, and trained under
    hinted   x + instruction + hint with y*       what STaR and PPS draw under; never trained under

Both begin with the system message and the worked examples, if there are any.

    >>> problem = Problem("p1", "What is 2 + 2?", "4")
    >>> Prompts().plain(problem)[0]["content"].splitlines()[0]
    'What is 2 + 2?'
    >>> Prompts().parse("Two and two make four.\\nAnswer: 4")
    Parsed(rationale='Two and two make four.', answer='4', error='')

The hint comes last, so that both prompts of a problem share all tokens before it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

from femtune.data.answer_format import AnswerFormat, parse_format
from femtune.errors import ConfigError, DataError, ModelError
from femtune.types import Demos, Message, Parsed, Problem, Prompt, Tokenizer

LINE = parse_format("line")
INSTRUCTION = 'Think step by step, then end with the line "Answer: " and your answer.'
HINT = (
    "The correct answer is {answer}. Give the reasoning that leads to it, so that it would "
    "convince someone who was not told; do not say that you were told."
)

# Patterns by which a rationale reveals that it saw the answer. What the problem itself contains is no
# sign of a leak.
_NOUNS = ("answer", "rating", "score", "label", "preference")


def leaks_of(*nouns: str) -> tuple[str, ...]:
    """Return patterns of phrases that reveal knowledge of the answer, under any of these nouns."""
    answer = rf"(correct |right |final |expected )*({'|'.join(nouns)})"
    return (
        r"\bhint(s|ed)?\b(?! (of|at)\b)",
        rf"\b(was|were|been|am|are) (told|given|provided with) (that )?(the|this|an?) {answer}\b",
        rf"\b{answer} (was|is|has been|being) (already )?"
        r"(given|provided|known|told|stated|supplied)\b",
        rf"\b(the|this) (given|provided|supplied|stated|known) {answer}\b"
        r"(?! (choice|option|candidate|scale|categor))",
        rf"\b(since|because|as|given that|knowing that|we know that|we know) the {answer} "
        r"(is|was|must be)\b",
    )


LEAKS = leaks_of("answer", "rating", "score", "label")
# A judge may well speak of the answers that it was given, but not of ratings.
JUDGE_LEAKS = leaks_of("rating", "score", "label", "preference")
_ANSWER = rf"(correct |right |final |expected )*({'|'.join(_NOUNS)})"
# Necessary parts of the patterns above: looser, and starting with a literal. `re` finds them 20 times as
# fast in a lowered text, and nearly all rationales have none of them.
_TOLD = ("told", "given", "provided", "supplied", "stated", "known")
_SIGNS = (
    re.compile("hint"),
    *(re.compile(rf"{told} (with )?(that )?((the|this|an?) )?{_ANSWER}") for told in _TOLD),
    *(re.compile(rf"{why} the {_ANSWER}") for why in ("since", "because", "as", "that", "know")),
    *(re.compile(rf"{noun} (was|is|has been|being) (already )?({'|'.join(_TOLD)})") for noun in _NOUNS),
)


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """The wording of both prompts and the parsing of completions; every part can be replaced.

    `instruction` is appended to x ("" leaves x as it is), then `hint`, with `{answer}` in it.
    """

    instruction: str = INSTRUCTION
    hint: str = HINT
    leaks: tuple[str, ...] = LEAKS
    require_rationale: bool = True  # an answer without reasoning teaches none, and is not accepted
    format: AnswerFormat = LINE
    opening: str = ""  # "<think>" if the chat template opens the thinking block of a completion
    demos: Demos = ()  # worked examples, shown before the problem
    system_prompt: str | None = None
    demos_as: Literal["turns", "text"] = "turns"  # text: within the first user message
    system_as: Literal["message", "text"] = "message"  # text: at the start of the first user message
    _leaks: re.Pattern[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if "{answer}" not in self.hint:
            raise ConfigError(f"hint needs {{answer}} where y* belongs, got {self.hint!r}.")
        pattern = "|".join(f"(?:{leak})" for leak in self.leaks) or r"(?!)"
        object.__setattr__(self, "_leaks", re.compile(pattern, re.IGNORECASE))

    def with_demos(self, demos: Demos) -> Prompts:
        """Return the same prompts with these worked examples before each problem."""
        return replace(self, demos=demos)

    def plain(self, problem: Problem) -> list[Message]:
        """Return x + instruction as messages."""
        return self._framed(problem, hinted=False)

    def hinted(self, problem: Problem) -> list[Message]:
        """Return x + instruction + hint as messages; each worked example has a hint of its own."""
        return self._framed(problem, hinted=True)

    def _framed(self, problem: Problem, *, hinted: bool) -> list[Message]:
        """Build the system message, the worked examples, and the problem's own messages."""
        own = self._asked(problem.prompt, problem.answer, hinted)
        system = [self.system_prompt] if self.system_prompt else []
        if own[0]["role"] == "system":  # many templates refuse a second system message
            system, own = [*system, own[0]["content"]], own[1:]
        turns: list[Message] = []
        for demo in self.demos:
            turns += self._asked(demo.prompt, demo.answer, hinted)
            turns.append({"role": "assistant", "content": demo.completion})
        if self.demos_as == "text" and self.demos:
            turns, own = [], _before(_shown(turns), own)
        messages = [*turns, *own]
        if not system:
            return messages
        if self.system_as == "text":
            return _before("\n\n".join(system), messages)
        return [{"role": "system", "content": "\n\n".join(system)}, *messages]

    def _asked(self, prompt: Prompt, answer: str, hinted: bool) -> list[Message]:
        """Append the instruction (and the hint) to the last message of a prompt."""
        suffix = self.instruction
        if hinted:
            suffix = f"{suffix}\n{self.hint.replace('{answer}', answer)}".strip()
        return _append(prompt, suffix)

    def render(self, name: str, problem: Problem) -> list[Message]:
        """Return the prompt of a name: "plain" or "hinted"."""
        return {"plain": self.plain, "hinted": self.hinted}[name](problem)

    def parse(self, text: str) -> Parsed:
        """Split a completion into rationale and answer, by the answer format."""
        return self.format.read(f"{self.opening}{text}", require_rationale=self.require_rationale)

    def leak(self, problem: Problem, rationale: str) -> str:
        """Return the phrase that reveals that a rationale saw the answer; "" without one."""
        allowed: set[str] | None = None  # computed only when needed: nearly all rationales are clean
        for found in self._told(rationale):
            if allowed is None:
                allowed = {known.lower() for known in self._told(prompt_text(problem.prompt))}
            if found.lower() not in allowed:
                return found
        return ""

    def _told(self, text: str) -> Iterator[str]:
        """Yield the matches of the `leaks` patterns in a text."""
        if self.leaks not in (LEAKS, JUDGE_LEAKS) or _may_leak(text):
            yield from (found.group() for found in self._leaks.finditer(text))


@dataclass(frozen=True)
class ChatTokenizer:
    """A Hugging Face tokenizer that encodes prompts by its chat template, and decodes completions.

    Without a chat template (a base model), a prompt is the plain text and a newline, with the BOS token
    that the tokenizer adds. Raises ModelError if the template fails or renders nothing.
    """

    tokenizer: Any
    template_args: tuple[tuple[str, Any], ...] = ()  # such as ("enable_thinking", False)

    def encode_prompt(self, prompt: Prompt) -> tuple[int, ...]:
        """Return the tokens of a prompt, up to where the model's completion begins.

        Under a chat template, special tokens spelled out in a message are encoded as text, so that data
        can't end the user's turn.
        """
        messages = as_messages(prompt)
        if not self.tokenizer.chat_template:
            return tuple(self.tokenizer(self.as_text(messages))["input_ids"])
        messages, hidden = self._hide_marks(messages)
        rendered = self._render(messages, add_generation_prompt=True)
        parts = re.split(f"([{''.join(hidden)}])", rendered) if hidden else [rendered]
        tokens: list[int] = []
        for part in filter(None, parts):
            # the template writes BOS, so the tokenizer must not add a second one
            mark = {"split_special_tokens": True} if part in hidden else {}
            text = hidden.get(part, part)
            tokens += self.tokenizer(text, add_special_tokens=False, **mark)["input_ids"]
        if not tokens:
            raise ModelError(
                "the chat template renders nothing for a user message: correct the template."
            )
        return tuple(tokens)

    def prompt_text(self, prompt: Prompt) -> str:
        """Return the text of a prompt as the model reads it."""
        messages = as_messages(prompt)
        if not self.tokenizer.chat_template:
            return self.as_text(messages)
        return self._render(messages, add_generation_prompt=True)

    def as_text(self, messages: Sequence[Message]) -> str:
        """Return messages as text, for a model without a template: a break before answers, else two."""
        parts = []
        for message, after in zip(messages, [*messages[1:], None], strict=True):
            close = after is None or after["role"] == "assistant"
            parts.append(message["content"] + ("\n" if close else "\n\n"))
        return "".join(parts)

    def check(self) -> None:
        """Check that the chat template shows the text of messages. Raises ModelError."""
        asked = ("Seven maple leaves", "Nine copper coins")
        shown = [self.prompt_text(text) for text in asked]
        if not all(text in found for text, found in zip(asked, shown, strict=True)):
            raise ModelError(
                "the chat template drops the text of messages, so the model would see none of the "
                "data. It may expect messages whose content is a list of parts. Put a template into the "
                "model's folder that writes message['content'] as text (chat_template.jinja)."
            )
        if self.encode_prompt(asked[0]) == self.encode_prompt(asked[1]):
            raise ModelError(
                "the tokenizer gives different messages the same tokens: get its files again."
            )
        _ = self.end_token_id  # raises ModelError if it is missing

    def _hide_marks(self, messages: Sequence[Message]) -> tuple[list[Message], dict[str, str]]:
        """Replace special tokens in messages by private characters; return both, and the mapping."""
        marks = self._marks
        found = {mark for m in messages for mark in marks.findall(m["content"])} if marks else set()
        if not marks or not found:
            return list(messages), {}
        text = "".join(message["content"] for message in messages)
        free = (chr(code) for code in range(0xE000, 0xF900) if chr(code) not in text)
        names = dict(zip(sorted(found), free, strict=False))
        hidden: list[Message] = [
            {**m, "content": marks.sub(lambda mark: names[mark[0]], m["content"])} for m in messages
        ]
        return hidden, {name: mark for mark, name in names.items()}

    @cached_property
    def _marks(self) -> re.Pattern[str] | None:
        """A pattern that finds special tokens in a text; None if the tokenizer has none."""
        added = self.tokenizer.added_tokens_decoder.values()
        special = sorted((str(token) for token in added if token.special), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, special))) if special else None

    def encode_text(self, text: str) -> tuple[int, ...]:
        """Return the tokens of a text within a completion, without special tokens."""
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def encode_completion(self, text: str) -> tuple[int, ...]:
        """Return the tokens of a completion written elsewhere, with the end token after it."""
        return (*self.encode_text(text), self.end_token_id)

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of completion tokens, without special tokens, with spaces as sampled."""
        text: str = self.tokenizer.decode(
            list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text

    def _render(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
        args = dict(self.template_args)
        try:
            return self._applied(messages, add_generation_prompt, args)
        except Exception as error:  # jinja2's, or anything that the template raises
            try:  # some templates require a list of tools, and accept an empty one
                return self._applied(
                    messages, add_generation_prompt, {"tools": [], "functions": [], **args}
                )
            except Exception:
                roles = [message["role"] for message in messages]
                message = f"the chat template refuses messages of roles {roles}: {error}"
                raise ModelError(message) from error

    def _applied(self, messages: Sequence[Message], opens: bool, args: dict[str, Any]) -> str:
        text: str = self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=opens, **args
        )
        return text

    @cached_property
    def end_token_id(self) -> int:
        """The token that ends a turn: the first special one that the template writes after an answer.

        EOS if it writes no special token. Gemma's turns, for example, end with <end_of_turn>, which is
        not its EOS.
        """
        if self.tokenizer.chat_template:
            turn = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "\u2021"}]
            after = self._render(turn).rpartition("\u2021")[2]
            added = self.tokenizer.added_tokens_decoder
            special = {number for number, token in added.items() if token.special}
            for token in self.tokenizer(after, add_special_tokens=False)["input_ids"]:
                if token in special:
                    return int(token)
        if self.tokenizer.eos_token_id is None:
            raise ModelError(
                "the tokenizer has no end token (eos_token), so completions would never end: set one."
            )
        return int(self.tokenizer.eos_token_id)

    @cached_property
    def opening(self) -> str:
        """The thinking block that the template opens for the model ("<think>"); "" if it opens none."""
        fed = self.prompt_text("x") if self.tokenizer.chat_template else ""
        last = fed.rpartition("<think>")[2]
        return "<think>" if "<think>" in fed and "</think>" not in last else ""

    @property
    def pad_token_id(self) -> int:
        """The token that pads a batch; always masked, so the end token serves if there is no other."""
        pad = self.tokenizer.pad_token_id
        return int(pad) if pad is not None else self.end_token_id


def instruct(form: AnswerFormat, what: str = "your answer") -> str:
    """Return the instruction that asks for an answer in a format.

    >>> instruct(LINE) == INSTRUCTION
    True
    """
    return f"Think step by step, then {form.ending(what)}"


def write_completion(form: AnswerFormat, rationale: str, answer: str) -> str:
    """Write a rationale and an answer in an answer format.

    >>> write_completion(LINE, "8 - 3 = 5.", "5")
    '8 - 3 = 5.\\nAnswer: 5'
    """
    kind, _, key = form.spec.partition(":")
    written = {
        "line": f"Answer: {answer}",
        "boxed": f"\\boxed{{{answer}}}",
        "hash": f"#### {answer}",
        "tag": f"<answer>{answer}</answer>",
        "bracket": f"[[{answer}]]",
        "json": f'{{"{key}": "{answer}"}}',
    }
    return f"{rationale}\n{written.get(kind, f'{form.cue.strip()} {answer}'.strip())}"


def fit_prompts(prompts: Prompts, tokenizer: Tokenizer) -> Prompts:
    """Return the prompts in a form that the chat template shows in full.

    A template may refuse system messages, or drop part of an earlier answer, as those of thinking models
    drop the thinking. The system message or the worked examples then go into the first user message.
    Raises ModelError if no form is shown in full.
    """
    if not isinstance(tokenizer, ChatTokenizer) or not (prompts.demos or prompts.system_prompt):
        return prompts
    forms: list[dict[str, Any]] = [
        {"system_as": "message", "demos_as": "turns"},
        {"system_as": "text", "demos_as": "turns"},
        {"system_as": "message", "demos_as": "text"},
        {"system_as": "text", "demos_as": "text"},
    ]
    for form in forms:
        fitted = replace(prompts, **form)
        if is_shown(fitted, tokenizer):
            return fitted
    what = " and ".join(
        name
        for name, there in (
            ("worked examples", prompts.demos),
            ("a system prompt", prompts.system_prompt),
        )
        if there
    )
    raise ModelError(
        f"the chat template does not show {what} in full, neither as messages nor as text. "
        "Leave them out (--demos none), or correct the template in the model's folder."
    )


def is_shown(prompts: Prompts, tokenizer: ChatTokenizer) -> bool:
    """Return True if the model's input shows the system prompt and the worked examples, in order."""
    messages = prompts.plain(Problem("", "Seven maple leaves?", "7"))
    try:
        fed = _letters(tokenizer.prompt_text(messages))
    except ModelError:
        return False
    texts = [prompts.system_prompt or ""]
    for demo in prompts.demos:
        texts += [prompt_text(demo.prompt), demo.completion]
    place = 0
    for line in (_letters(line) for text in texts for line in text.splitlines()):
        place = fed.find(line, place)
        if place < 0:
            return False
        place += len(line)
    return True


def _letters(text: str) -> str:
    """Drop spaces and punctuation from a text; a template may trim or escape them."""
    return re.sub(r"\W", "", text)


def as_messages(prompt: Prompt) -> list[Message]:
    """Return a prompt as a list of messages; a string becomes one user message."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)


def prompt_text(prompt: Prompt) -> str:
    """Return a prompt as one text, for readers and rewards."""
    return prompt if isinstance(prompt, str) else "\n\n".join(m["content"] for m in prompt)


def rewritten(prompt: Prompt, change: Callable[[str], str]) -> Prompt:
    """Return a prompt with its text, or the text of its last message, changed by a function."""
    if isinstance(prompt, str):
        return change(prompt)
    *before, last = prompt
    return [*before, {**last, "content": change(last["content"])}]


def _may_leak(text: str) -> bool:
    """Return False if no pattern of `leaks_of` can match."""
    # re.IGNORECASE matches dotted I, dotless i and long s as i and s too; `lower` does not
    lowered = text.replace("\u0130", "i").replace("\u0131", "i").replace("\u017f", "s").lower()
    named = any(word in lowered for word in ("hint", *_NOUNS))
    return named and any(sign.search(lowered) for sign in _SIGNS)


def _before(text: str, messages: Sequence[Message]) -> list[Message]:
    """Put a text at the start of the first user message."""
    place = next(n for n, message in enumerate(messages) if message["role"] == "user")
    first = {**messages[place], "content": f"{text}\n\n{messages[place]['content']}"}
    return [*messages[:place], first, *messages[place + 1 :]]


def _shown(turns: Sequence[Message]) -> str:
    """Join worked examples into one text, with a line that leads to the problem."""
    texts, number = [], 0
    for message in turns:
        if message["role"] == "assistant":
            texts.append(message["content"])
        else:
            number += 1
            texts.append(f"Example {number}:\n{message['content']}")
    return "\n\n".join([*texts, "Your turn:"])


def _append(prompt: Prompt, suffix: str) -> list[Message]:
    messages = as_messages(prompt)
    last = messages[-1]
    if last["role"] != "user":
        raise DataError(f'the last message has role "{last["role"]}": it must be "user".')
    content = f"{last['content']}\n\n{suffix}" if suffix else last["content"]
    return [*messages[:-1], {**last, "content": content}]
