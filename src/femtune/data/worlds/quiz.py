"""Multiple choice: find the sentence of a given kind among four.

    Which sentence tells a feeling?                 prompt x

    A. My boss saw it.
    B. I feel silly.
    C. I always win.
    D. It was at work.

    A tells a witness.                              rationale z
    B tells a feeling.
    C tells a boast.
    D tells a place.
    Answer: B                                       answer y

The sentences are those of `tldr`. Rows have the schema of allenai/ai2_arc.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from femtune.data.worlds.tldr import FACTS, FAULTS
from femtune.errors import ConfigError
from femtune.types import Problem

LETTERS = "ABCDE"
SENTENCES = {**FACTS, **FAULTS}  # by kind
NAMES = {kind: f"an {kind}" if kind == "event" else f"a {kind}" for kind in SENTENCES}


def rows(
    num_problems: int,
    *,
    seed: int = 0,
    difficulty: tuple[int, int] = (4, 4),
    noise: float = 0.0,
) -> list[dict[str, Any]]:
    """Return questions, all different; `difficulty` is the smallest and largest number of choices.

    `noise` is the probability of a wrong key; the column `truth` keeps the right one.

    >>> row = rows(1)[0]
    >>> row["question"], row["choices"]["text"][row["choices"]["label"].index(row["answerKey"])]
    ('Which sentence tells an event?', 'I failed a test.')

    Raises ConfigError for values out of range.
    """
    low, high = difficulty
    if not 2 <= low <= high <= len(LETTERS):
        raise ConfigError(f"difficulty is {difficulty}: it must be 2 <= low <= high <= 5 choices.")
    if not 0 <= noise <= 1:
        raise ConfigError(f"noise is {noise}: it must be from 0 to 1.")
    rng, errs = random.Random(f"quiz {seed}"), random.Random(f"quiz noise {seed}")
    made: dict[str, dict[str, Any]] = {}
    while len(made) < num_problems:  # millions are possible
        kinds, choices, asked = draw_choices(rng, rng.randint(low, high))
        letters = LETTERS[: len(kinds)]
        row = {
            "id": f"quiz-{seed}-{len(made)}",
            "question": write_question(kinds[asked]),
            "choices": {"text": choices, "label": [*letters]},
            "world": "quiz",
            "evidence": kinds,
            "truth": letters[asked],
        }
        if (name := repr((row["question"], choices))) not in made:
            wrong = errs.choice(letters.replace(letters[asked], ""))
            made[name] = row | {"answerKey": wrong if errs.random() < noise else letters[asked]}
    return list(made.values())


def draw_choices(rng: random.Random, num: int) -> tuple[list[str], list[str], int]:
    """Draw kinds, a sentence of each, and the index of the one to ask for."""
    kinds = rng.sample([*SENTENCES], num)
    return kinds, [rng.choice(SENTENCES[kind]) for kind in kinds], rng.randrange(num)


def write_question(kind: str) -> str:
    """Write the question for the sentence of a kind."""
    return f"Which sentence tells {NAMES[kind]}?"


def check(problem: Problem, rationale: str, answer: str) -> list[bool]:
    """Return whether each line names the kind of its choice, and last, whether the answer follows.

    The answer follows if it is the letter of a line that names the requested kind. A missing or surplus
    line counts as one invalid step.

    >>> from femtune.data.worlds import WORLDS
    >>> problem = WORLDS["quiz"].make(1)[0]
    >>> rationale, answer = solve(problem).split("\\nAnswer: ")
    >>> check(problem, rationale, answer)
    [True, True, True, True, True]
    >>> check(problem, rationale.replace("an event", "a place"), answer)
    [True, True, False, True, False]
    """
    kinds = problem.columns["evidence"]
    lines = rationale.strip().splitlines()
    told = write_lines(kinds)
    sound = [
        place < min(len(told), len(lines)) and lines[place] == told[place]
        for place in range(max(len(told), len(lines)))
    ]
    asked = str(problem.prompt).partition("Which sentence tells ")[2].partition("?")[0]
    return [*sound, f"{answer} tells {asked}." in lines]


def solve(problem: Problem) -> str:
    """Return the completion with the right choice."""
    return write_completion(problem.columns["evidence"], LETTERS.index(problem.columns["truth"]))


def write_lines(kinds: Sequence[str]) -> list[str]:
    """Write one line for each choice."""
    return [f"{letter} tells {NAMES[kind]}." for letter, kind in zip(LETTERS, kinds, strict=False)]


def write_completion(
    kinds: Sequence[str], asked: int, slips: Mapping[int, str] | None = None, guess: int = 0
) -> str:
    """Write rationale and answer; `slips` replaces a choice's kind, `guess` is the answer if none fits.

    >>> print(write_completion(["place", "boast"], asked=1))
    A tells a place.
    B tells a boast.
    Answer: B
    """
    seen = [(slips or {}).get(place, kind) for place, kind in enumerate(kinds)]
    found = seen.index(kinds[asked]) if kinds[asked] in seen else guess
    return "\n".join([*write_lines(seen), f"Answer: {LETTERS[found]}"])
