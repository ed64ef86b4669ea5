"""Plain and hinted prompts of a problem, their tokens, and the parsing of what came back.

    plain    x + instruction                      what the model is asked, and trained under
    hinted   x + instruction + hint with y*       what STaR and PPS draw under; never trained under

    >>> problem = Problem("p1", "What is 2 + 2?", "4")
    >>> Prompts().plain(problem)[0]["content"].splitlines()[0]
    'What is 2 + 2?'
    >>> Prompts().parse("Two and two make four.\\nAnswer: 4")
    Parsed(rationale='Two and two make four.', answer='4', problem='')

The hint comes last, so that both prompts of a problem share all tokens before it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from femtune.errors import ConfigError, DataError, ModelError
from femtune.types import Message, Parsed, Problem, Prompt

INSTRUCTION = 'Think step by step, then end with the line "Answer: " and your answer.'
HINT = (
    "The correct answer is {answer}. Give the reasoning that leads to it, so that it would "
    "convince someone who was not told; do not say that you were told."
)

# Words by which a rationale shows that it was told the answer. A pattern that the problem itself
# contains is no sign of a leak there.
_ANSWER = r"(correct |right |final |expected )*(answer|rating|score|label)"
LEAKS = (
    r"\bhint(s|ed)?\b",
    rf"\b(was|were|been|am|are) (told|given|provided with) (that )?(the|this|an?) {_ANSWER}\b",
    rf"\b{_ANSWER} (was|is|has been|being) (already )?"
    r"(given|provided|known|told|stated|supplied)\b",
    rf"\b(the|this) (given|provided|supplied|stated|known) {_ANSWER}\b",
    rf"\b(since|because|as|given that|knowing that|we know that|we know) the {_ANSWER} "
    r"(is|was|must be)\b",
)

_ANSWER_LINE = re.compile(r"^[\s*_#>`]*answer[\s*_`]*:[ \t]*(?P<answer>.*)$", re.IGNORECASE)


@dataclass(frozen=True)
class Prompts:
    """The wording of both prompts and the reading of completions; every part can be replaced.

    `instruction` is appended to x ("" leaves x as it is), `hint` after that, with `{answer}` in it.
    """

    instruction: str = INSTRUCTION
    hint: str = HINT
    leaks: tuple[str, ...] = LEAKS
    require_rationale: bool = True  # a bare answer teaches no reasoning, and is not accepted
    _leaks: re.Pattern[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if "{answer}" not in self.hint:
            raise ConfigError(f"hint has no {{answer}}: {self.hint!r}. Write it where y* belongs.")
        pattern = "|".join(f"(?:{leak})" for leak in self.leaks) or r"(?!)"
        object.__setattr__(self, "_leaks", re.compile(pattern, re.IGNORECASE))

    def plain(self, problem: Problem) -> list[Message]:
        """x + instruction, as messages."""
        return _append(problem.prompt, self.instruction)

    def hinted(self, problem: Problem) -> list[Message]:
        """x + instruction + hint, as messages."""
        hint = self.hint.replace("{answer}", problem.answer)
        return _append(problem.prompt, f"{self.instruction}\n{hint}".strip())

    def render(self, name: str, problem: Problem) -> list[Message]:
        """The prompt of that name: "plain" or "hinted"."""
        return {"plain": self.plain, "hinted": self.hinted}[name](problem)

    def parse(self, text: str) -> Parsed:
        """Split a completion at its last line, `Answer: ...`; says why where it can't.

        >>> Prompts().parse("No idea.").problem
        'the last line is not "Answer: ..."'
        """
        lines = text.strip().splitlines()
        match = _ANSWER_LINE.match(lines[-1]) if lines else None
        if match is None:
            return Parsed(text.strip(), "", 'the last line is not "Answer: ..."')
        rationale = "\n".join(lines[:-1]).strip()
        answer = _bare(match["answer"])
        if not answer:
            return Parsed(rationale, "", "the answer is empty")
        if self.require_rationale and not rationale:
            return Parsed("", answer, "no rationale before the answer")
        return Parsed(rationale, answer)

    def leak(self, problem: Problem, rationale: str) -> str:
        """The words by which a rationale gives away that it was told the answer, or ""."""
        question = prompt_text(problem.prompt)
        allowed = {found.group().lower() for found in self._leaks.finditer(question)}
        for found in self._leaks.finditer(rationale):
            if found.group().lower() not in allowed:
                return found.group()
        return ""


@dataclass(frozen=True)
class ChatTokenizer:
    """A Hugging Face tokenizer as femtune uses it: prompts in by its template, completions out.

    A tokenizer without a template (a base model's) gets the text itself and a newline, with the BOS
    that it adds by itself. Raises ModelError where the template fails or renders nothing.
    """

    tokenizer: Any
    template_args: tuple[tuple[str, Any], ...] = ()  # such as ("enable_thinking", False)

    def encode_prompt(self, prompt: Prompt) -> tuple[int, ...]:
        """Prompt tokens, up to where the model starts to write."""
        messages = as_messages(prompt)
        if not self.tokenizer.chat_template:
            text = "\n\n".join(message["content"] for message in messages) + "\n"
            return tuple(self.tokenizer(text)["input_ids"])
        try:
            rendered = self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True, **dict(self.template_args)
            )
        except Exception as error:  # jinja2's, or whatever the template itself raises
            roles = [message["role"] for message in messages]
            message = f"the chat template refuses messages of roles {roles}: {error}"
            raise ModelError(message) from error
        # the template writes BOS itself, so the tokenizer must not add a second one
        tokens = tuple(self.tokenizer(rendered, add_special_tokens=False)["input_ids"])
        if not tokens:
            raise ModelError("the chat template renders nothing for a user message.")
        return tokens

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of completion tokens, special tokens left out, spaces as they were sampled."""
        text: str = self.tokenizer.decode(
            list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text


def as_messages(prompt: Prompt) -> list[Message]:
    """A prompt as a list of messages; a string is one user message."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)


def prompt_text(prompt: Prompt) -> str:
    """A prompt as one text, for readers and rewards."""
    return prompt if isinstance(prompt, str) else "\n\n".join(m["content"] for m in prompt)


def _append(prompt: Prompt, suffix: str) -> list[Message]:
    messages = as_messages(prompt)
    last = messages[-1]
    if last["role"] != "user":
        raise DataError(f'the last message is of role "{last["role"]}", expected "user".')
    content = f"{last['content']}\n\n{suffix}" if suffix else last["content"]
    return [*messages[:-1], {**last, "content": content}]


def _bare(answer: str) -> str:
    """An answer without markup around it and the full stop after it: "**4.**" is 4."""
    answer = answer.strip().strip("*_`$ ")
    return answer.removesuffix(".").strip()
