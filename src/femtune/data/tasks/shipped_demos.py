"""Worked examples that ship with femtune: rows of each task, in its own columns, with a rationale.

They were written for this purpose and are in no data set. `place` stands for a rating: 0 is the lowest
and 1 the highest of the scale. `{answer}` in a rationale stands for the answer, since labels of choices
may be letters or numbers, and a scale may have any.

Rationales are short and alike, because a small model imitates them and fails at long ones. No two
ratings have the same answer, and among pairs A is as frequent as B.
"""

from __future__ import annotations

from typing import Any

Row = dict[str, Any]

MATH: tuple[Row, ...] = (
    {
        "prompt": "Tom has 8 apples and eats 3 of them. How many apples does he have left?",
        "answer": "5",
        "rationale": "Tom has 8 apples and eats 3. 8 - 3 = 5.",
    },
    {
        "prompt": "A bus ticket costs 4 dollars. How many dollars do 6 bus tickets cost?",
        "answer": "24",
        "rationale": "Each of the 6 tickets costs 4 dollars. 6 * 4 = 24.",
    },
    {
        "prompt": "There are 12 red cups and 9 blue cups on a shelf. Then 5 cups break. "
        "How many cups are left?",
        "answer": "16",
        "rationale": "At first there are 12 + 9 = 21 cups. After 5 break, 21 - 5 = 16 cups are left.",
    },
    {
        "prompt": "Four friends share 20 stickers equally. Lena is one of them and buys 2 more. "
        "How many stickers does Lena have now?",
        "answer": "7",
        "rationale": "Lena gets 20 / 4 = 5 stickers. With 2 more, she has 5 + 2 = 7.",
    },
)

CHOICE: tuple[Row, ...] = (
    {
        "question": "Which of these animals has feathers?",
        "choices": ["a frog", "a goat", "a duck", "a shark"],
        "right": 2,
        "rationale": "Birds have feathers, and a duck is a bird. So {answer} is right.",
    },
    {
        "question": "What is a thermometer used for?",
        "choices": ["to measure temperature", "to measure length", "to cut paper", "to hold water"],
        "right": 0,
        "rationale": "A thermometer shows how hot or cold something is. That is its temperature. "
        "So {answer} is right.",
    },
    {
        "question": "Wet clothes hang in the sun. What will most likely happen to the water?",
        "choices": [
            "It turns to ice.",
            "It turns to stone.",
            "It burns.",
            "It evaporates.",
        ],
        "right": 3,
        "rationale": "The sun warms the water in the clothes, and warm water evaporates. "
        "So {answer} is right.",
    },
    {
        "question": "A ball rolls down a hill and gets faster. Which force pulls it down?",
        "choices": ["sound", "gravity", "light", "magnetism"],
        "right": 1,
        "rationale": "Gravity pulls things toward the ground. So {answer} is right.",
    },
)

RATINGS: tuple[Row, ...] = (
    {
        "prompt": "Why does ice float on water?",
        "response": "Ice is less dense than water.",
        "place": 1,
        "rationale": "The response gives the right reason, and nothing is missing. "
        "So the rating is {answer}.",
    },
    {
        "prompt": "How can I keep bread fresh for longer?",
        "response": "My brother likes trains.",
        "place": 0,
        "rationale": "The response is about trains and not about bread. So the rating is {answer}.",
    },
    {
        "prompt": "Explain in one sentence why we sleep.",
        "response": "Sleep lets the body rest. It also helps us to remember.",
        "place": 0.75,
        "rationale": "The response is right, and has one sentence too many. So the rating is {answer}.",
    },
    {
        "prompt": "Name three countries in Africa.",
        "response": "Kenya, Peru and Japan.",
        "place": 0.25,
        "rationale": "The response names one country in Africa, and two are elsewhere. "
        "So the rating is {answer}.",
    },
    {
        "prompt": "Name the four seasons.",
        "response": "Spring and summer.",
        "place": 0.5,
        "rationale": "The response names two seasons, and two are missing. So the rating is {answer}.",
    },
)

PAIRS: tuple[Row, ...] = (
    {
        "prompt": "How many legs does a spider have?",
        "response_a": "A spider has eight legs.",
        "response_b": "A spider has six legs.",
        "preference": "A",
        "rationale": "Response A is right. Response B has a wrong number. So A is better.",
    },
    {
        "prompt": "How do I boil an egg?",
        "response_a": "Eggs are laid by hens.",
        "response_b": "Put it in boiling water for eight minutes, then cool it in cold water.",
        "preference": "B",
        "rationale": "Response A does not say how. Response B says how to boil an egg. So B is better.",
    },
    {
        "prompt": "Name a yellow fruit.",
        "response_a": "A banana is yellow.",
        "response_b": "A lemon is yellow.",
        "preference": "tie",
        "rationale": "Response A names a yellow fruit. Response B names one too. So it is a tie.",
    },
    {
        "prompt": "Make this sentence shorter: I am of the opinion that we should leave at this point.",
        "response_a": "I am of the opinion that at this point in time we should leave here.",
        "response_b": "I think we should leave now.",
        "preference": "B",
        "rationale": "Response A is too long. Response B is short and says the same. So B is better.",
    },
    {
        "prompt": "List three colors.",
        "response_a": "Red, green and blue.",
        "response_b": "Red and green.",
        "preference": "A",
        "rationale": "Response A lists three colors. Response B lists only two. So A is better.",
    },
)

_LOST_KEY = (
    "I came home late last night and my key did not turn in the lock. I pulled too hard and it broke. "
    "A neighbor let me sleep on her sofa. Today a locksmith put in a new lock for 90 dollars. "
    "Should I ask my landlord to pay for it?"
)
_GARDEN = (
    "We planted tomatoes in May. In July the leaves turned yellow, though we water them each day. "
    "A friend says that we give them too much water. How often should we water them?"
)

SUMMARY_RATINGS: tuple[Row, ...] = (
    {
        "post": _LOST_KEY,
        "summary": "My key broke in the lock and a new lock cost 90 dollars. Should my landlord pay?",
        "place": 1,
        "rationale": "The summary has the broken key, the price and the question. "
        "So the rating is {answer}.",
    },
    {
        "post": _GARDEN,
        "summary": "Someone bought a new car and is happy with it.",
        "place": 0,
        "rationale": "The summary is about a car and not about tomatoes. So the rating is {answer}.",
    },
    {
        "post": _GARDEN,
        "summary": "We planted tomatoes in May.",
        "place": 0.5,
        "rationale": "The summary is true, and leaves out the yellow leaves and the question. "
        "So the rating is {answer}.",
    },
)

SUMMARY_PAIRS: tuple[Row, ...] = (
    {
        "post": _LOST_KEY,
        "summary_a": "My key broke and I paid 90 dollars for a new lock. Should my landlord pay?",
        "summary_b": "I slept on the sofa of a neighbor.",
        "preference": "A",
        "rationale": "Summary A has the main point. Summary B has a detail only. So A is better.",
    },
    {
        "post": _GARDEN,
        "summary_a": "Our tomatoes died because it was too cold in May.",
        "summary_b": "Our tomatoes have yellow leaves, perhaps from too much water. How often should we "
        "water them?",
        "preference": "B",
        "rationale": "Summary A says what is not in the post. Summary B has the main point. "
        "So B is better.",
    },
    {
        "post": _GARDEN,
        "summary_a": "Our tomato leaves are yellow. How often should we water?",
        "summary_b": "How often should we water our tomatoes, whose leaves are yellow?",
        "preference": "tie",
        "rationale": "Summary A has the main point. Summary B has it too. So it is a tie.",
    },
)

# by task and the column that holds the label
SHIPPED: dict[tuple[str, str], tuple[Row, ...]] = {
    ("math", "answer"): MATH,
    ("choice", "answer"): CHOICE,
    ("judge", "score"): RATINGS,
    ("judge", "preference"): PAIRS,
    ("summarize", "score"): SUMMARY_RATINGS,
    ("summarize", "preference"): SUMMARY_PAIRS,
}
