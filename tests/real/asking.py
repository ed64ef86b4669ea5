"""Requests to an engine from questions, and the pairs to score that come of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from femtune.data.chat_tokenizer import ChatTokenizer
from femtune.types import Completion, DrawKey, Engine, Request, Sampling

QUESTIONS = (
    "What is the capital of France?",
    "Name three colors.",
    "Tom has 3 apples and buys 4 more. How many apples does he have?",
    "Write one sentence about the sea.",
    "Is ice cold or hot? Answer in one word.",
    "Translate 'good morning' into French.",
    "Which planet is called the red planet?",
    "A box has 12 pens. Ann takes 5 of them. How many pens are left in the box? Explain how you know.",
)
WORKED = (
    ("There are 5 birds and 2 more come. How many birds are there?", "5 + 2 = 7.\nAnswer: 7"),
    ("Sam had 9 coins and lost 4. How many coins has he?", "9 - 4 = 5.\nAnswer: 5"),
    ("A car has 4 wheels. How many wheels have 3 cars?", "3 * 4 = 12.\nAnswer: 12"),
    ("Eva shares 8 nuts among 2 friends. How many does each get?", "8 / 2 = 4.\nAnswer: 4"),
)
Pair = tuple[tuple[int, ...], tuple[int, ...]]  # prompt and completion


def requests(tokenizer: ChatTokenizer, questions: Sequence[str] = QUESTIONS) -> list[Request]:
    """One request for each question, each with a seed of its own."""
    prompts = map(tokenizer.encode_prompt, questions)
    return [Request(DrawKey(1, str(i), 0, 0), tokens, 2**61 + i) for i, tokens in enumerate(prompts)]


def run(engine: Engine, asked: Sequence[Request], sampling: Sampling) -> list[Completion]:
    """Completions in the order of the requests; each request must end once."""
    finished = [pair for part in engine.generate(pull_from(asked), sampling) for pair in part]
    assert len(finished) == len(asked)
    done = {request.key: completion for request, completion in finished}
    return [done[request.key] for request in asked]


def pull_from(asked: Sequence[Request]) -> Callable[[int], Sequence[Request]]:
    """Hand out requests in their order."""
    todo = list(asked)

    def pull(room: int) -> Sequence[Request]:
        given, todo[:room] = todo[:room], []
        return given

    return pull


def worked_pairs(tokenizer: ChatTokenizer) -> list[Pair]:
    """Prompts and right completions, end token included."""
    return [
        (tokenizer.encode_prompt(question), tokenizer.encode_completion(answer))
        for question, answer in WORKED
    ]
