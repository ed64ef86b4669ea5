"""Make a table of word problems of one operation: python examples/word_problems.py 240

Names, things and numbers are drawn by a seed, so that the table is the same everywhere. Each line is
{"prompt": ..., "answer": ...}; no two have the same prompt.
"""

from __future__ import annotations

import json
import random
import sys

NAMES = ("Ana", "Ben", "Chen", "Dora", "Emil", "Fatima", "Goran", "Hana", "Ivo", "Jun", "Kofi", "Lena")
THINGS = (
    "apples",
    "books",
    "cards",
    "coins",
    "eggs",
    "flowers",
    "marbles",
    "pencils",
    "shells",
    "stamps",
)
BOXES = ("bags", "baskets", "boxes", "jars", "rows", "shelves")


def plus(a: int, b: int, who: str, other: str, things: str, boxes: str) -> tuple[str, int]:
    return (
        f"{who} has {a} {things}. {other} gives {who} {b} more. How many {things} does {who} have now?",
        a + b,
    )


def minus(a: int, b: int, who: str, other: str, things: str, boxes: str) -> tuple[str, int]:
    return f"{who} has {a + b} {things} and gives {b} of them to {other}. How many {things} are left?", a


def times(a: int, b: int, who: str, other: str, things: str, boxes: str) -> tuple[str, int]:
    a, b = a % 11 + 2, b % 9 + 2
    return f"{who} fills {a} {boxes} with {b} {things} each. How many {things} is that in all?", a * b


def divided(a: int, b: int, who: str, other: str, things: str, boxes: str) -> tuple[str, int]:
    a, b = a % 11 + 2, b % 9 + 2
    return (
        f"{who} puts {a * b} {things} into {b} {boxes}, the same number in each. How many are in each?",
        a,
    )


def problems(number: int, seed: int = 0) -> list[dict[str, str]]:
    """Return so many different problems, all four operations in turn."""
    rng = random.Random(seed)
    made: dict[str, str] = {}
    while len(made) < number:
        who, other = rng.sample(NAMES, 2)
        ask = (plus, minus, times, divided)[len(made) % 4]
        numbers = rng.randint(3, 60), rng.randint(3, 60)
        prompt, answer = ask(*numbers, who, other, rng.choice(THINGS), rng.choice(BOXES))
        made.setdefault(prompt, str(answer))
    return [{"prompt": prompt, "answer": answer} for prompt, answer in made.items()]


if __name__ == "__main__":
    for row in problems(int(sys.argv[1]) if len(sys.argv) > 1 else 240):
        print(json.dumps(row))
