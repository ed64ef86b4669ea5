"""Plain and hinted prompts of a problem, and the parsing of completions.

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

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from re import Pattern
from typing import Literal

from femtune.data.answer_format import AnswerFormat, parse_format
from femtune.data.leaks import LEAKS, compiled, copies_of, find_leak
from femtune.errors import ConfigError, DataError
from femtune.types import Demos, Message, Parsed, Problem, Prompt

LINE = parse_format("line")
INSTRUCTION = 'Think step by step, then end with the line "Answer: " and your answer.'
HINT = (
    "The correct answer is {answer}. Give the reasoning that leads to it, so that it would "
    "convince someone who was not told; do not say that you were told."
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
    _leaks: Pattern[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if "{answer}" not in self.hint:
            raise ConfigError(f"hint needs {{answer}} where y* belongs, got {self.hint!r}.")
        copies = copies_of(self.hint, self.instruction) if self.leaks else ()
        object.__setattr__(self, "_leaks", compiled((*self.leaks, *copies)))

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
        """Build the system message, worked examples of other problems, and the problem's messages."""
        own = self._asked(problem.prompt, problem.answer, hinted)
        system = [self.system_prompt] if self.system_prompt else []
        if own[0]["role"] == "system":  # many templates refuse a second system message
            system, own = [*system, own[0]["content"]], own[1:]
        turns: list[Message] = []
        for demo in self.demos:
            if prompt_text(demo.prompt) == prompt_text(problem.prompt):
                continue  # it would show the answer
            turns += self._asked(demo.prompt, demo.answer, hinted)
            turns.append({"role": "assistant", "content": demo.completion})
        if self.demos_as == "text" and turns:
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
        return find_leak(rationale, problem.answer, self._leaks, prompt_text(problem.prompt))


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
