"""Completions whose last or only number, letter or name is no answer, and others that have one."""

from __future__ import annotations

import re

import pytest

from femtune.data.answer_format import parse_format
from femtune.data.grammar.labels import Choices
from femtune.rewards.builtin import as_reward

READ = {
    "math": as_reward("math").grade,
    "number": as_reward("number").grade,
    "rating": as_reward("ordinal('1,5')").grade,
    "pair": as_reward("choice('A,B,tie')").grade,
    "exact": as_reward("exact").grade,
}
GOLDS = {"rating": "1 2 3 4 5", "pair": "A B tie", "choice": "A B C D", "exact": "Paris yes no"}
CITIES = Choices(tuple("ABCD"), ("Paris", "Rome", "Berlin", "Madrid"))


def rewarded(task: str, text: str, *also: str) -> list[str]:
    """Return the correct answers for which a completion would be rewarded, of all that it could mean."""
    parsed = parse_format("line").read(text, require_rationale=False)
    golds = GOLDS.get(task, "").split() or sorted({*re.findall(r"\d+(?:\.\d+)?", text), *"12345", *also})
    if parsed.error:
        return []
    if task == "choice":
        return [gold for gold in golds if CITIES.read(parsed.answer) == gold]
    return [gold for gold in golds if READ[task](parsed.answer, gold) == 1]


NO_ANSWER = {
    "math": (
        "The answer is not 5.",
        "Is the answer 5?",
        "I doubt that the answer is 5.",
        "So there are 3 ways to look at this.\nStep 2: add.",
        "So Tom has between 3 and 5 apples.",
        "So 5 > 3.",
        "So x is at least 5.",
        "So the probability is 1 in 4.",
        "So if Tom has 5 apples, he is happy.",
        "The answer is one of 4 and 5.",
        "The answer is second to none.",
        "The answer is 5. I take it back.",
        "Let x be the bees.\nTotal: 12 + 2\nSo 7x is too many, and 3 are left over",
        "We add.\nAnswer: 5\n\nNo, that is 4.",
        "We add.\nAnswer: 5\n\nHold on.",
        "We add.\nAnswer: 5\n\nFinal: 4",
        "We add.\nAnswer: 5\n\n**4**",
        "We add.\nAnswer: 5\n\n= 4",
        "Example:\nAnswer: 4",
        "It is not \\boxed{4}.",
        "We add.\nAnswer: ~~5~~",
        "We add.\nAnswer: one in four",
        "We add.\nAnswer: one must add",
        "We add.\nAnswer: 5 apples four pears",
        "We add.\nAnswer: 5 negative",
        "We add.\nAnswer: 5 lakh",
        "We add.\nAnswer: 5 grand",
        "We add.\nAnswer: 5 May",
        "We add.\nAnswer: 5k",
        "We add.\nAnswer: 5 > 4",
        "The answer is 5.\n\nThe answer is 4.",
        "The answer is 5.\n\nBut 4 is right, too.",
        "The answer is 5.\n\nWait.",
        "The answer is 5.\nIs that so?",
        "Answer: 5\nAnother one is 4.",
        "Answer: 5\nWait.\nAnswer: 4",
        "$\\boxed{5}$ or $\\boxed{4}$",
        "20 + 4 = 24. So the answer is 2",  # cut off
        "Step 1: 2 + 3 = 5.",
        "We count.\n\n120\n\n150\n\n180",
        "We add.\nAnswer: m + n = 2 + 4 = 5",
        "Answer - the sum of 5 and 4",
        "x = 5\n(4)",
    ),
    "rating": (
        "On a scale of 1 to 5, it could be better.",
        "It is fine. I would not give it a 4.",
        "It is bad. If it were good I would give it a 5.",
        "It is bad. Were it good, I would give it a 5.",
        "It is bad. Had it been longer, I would give it a 5.",
        "It is bad. Otherwise I would give it a 5.",
        "It is bad. With more detail I would give it a 5.",
        "It is bad. A perfect response gets a 5.",
        "It is good. It almost deserves a 5.",
        "It is good. It falls short of a rating of 5.",
        "The user says that the rating is 4.",
        "Ideally, the rating is 5.",
        "Rating: 1 (bad) to 5 (good).",
        "Rating: 1 | 2 | 3 | 4 | 5",
        "The rating is one of the best.",
        "It is fine.\nAnswer: 4 (leaning five)",
        "It is fine.\nAnswer: 4 - almost five",
        "It is fine.\nAnswer: 4 (at most)",
        "For example, Answer: 4",
        "Rating: 4.\nQuality: 1",
        "It is fine. The format is:\nAnswer: 4",
    ),
    "pair": (
        "So B is worse than A.",
        "A is longer than B. So A is longer.",
        "At first glance, A is better.",
        "In terms of length, A is better.",
        "For beginners, A is better.",
        "Had it been shorter, A is better.",
        "Both are fine.\nAnswer: A (worse)",
        "Both are fine.\nAnswer: A: worse",
        "Both are fine.\nAnswer: A because it is worse",
        "Both are fine.\nAnswer: A since the other is better",
        "Both are fine.\nAnswer: A >= B",
        "A is better.\n\nA is plain, whereas B is clear.",
        "We compare.\nAnswer: B. It is plain, while A is better.",
        "We compare.\nAnswer: B, not B",
        "B is a better response. A is a better response.",
    ),
    "choice": (
        "A. Paris\nB. Rome\nC. Berlin\nD. Madrid\n\nThe question asks for a capital.",
        "Many think that the answer is B.",
        "One may think that the answer is B.",
        "It is false that the answer is B.",
        "I rule out that the answer is B.",
        "For part (a), the answer is B.",
        "It is a city.\nAnswer: B (false)",
        "It is a city.\nAnswer: B - ruled out",
        "It is a city.\nAnswer: B\n\nC",
        "It is a city.\nAnswer: B\n\nI was wrong.",
        "We exclude\n\nB.",
        "Not this one:\n\nB",
        "It isn't [[B]].",
        'It is a city. Example: {"answer": "B"}',
    ),
    "exact": (
        "It is a city.\nAnswer: not Paris",
        "It is a city.\nAnswer: ~~Paris~~",
        "It is true.\nAnswer: no\n\nYes.",
        "Some say the answer is Paris.",
        "It is true.\nAnswer: Yes, but no.",
        "It is true.\nAnswer: No, yes.",
    ),
}


@pytest.mark.parametrize("task", [*NO_ANSWER, "number"])
def test_what_is_no_answer_earns_nothing(task: str) -> None:
    texts = NO_ANSWER["math" if task == "number" else task]
    assert {text: found for text in texts if (found := rewarded(task, text))} == {}


@pytest.mark.parametrize(
    ("task", "text", "gold"),
    [
        ("math", "For all of them together, the answer is 5.", "5"),
        ("math", "We conclude that the answer is 5.", "5"),
        ("math", "2 is not 3, so it is \\boxed{5}.", "5"),
        ("math", "We add.\nAnswer: 5\n\nCheck: 2 + 3 = 5", "5"),
        ("math", "We add.\nAnswer: 3 two-liter bottles", "3"),
        ("math", "We add.\nAnswer: 60 miles in one hour", "60"),
        ("math", "We add.\nAnswer: three in total", "3"),
        ("math", "We add.\nAnswer: 3 times as many", "3"),
        ("math", "When you add 2 and 3, the answer is 5.", "5"),
        ("math", "For 5 boxes, the answer is 20.", "20"),
        ("math", "The simplest form is \\boxed{5}.", "5"),
        ("math", "We add.\nTotal: 14\nThat makes 14 eggs.", "14"),
        ("math", "We add.\nAnswer: 5\n\nConfidence: 90%", "5"),
        ("rating", "It is short.\nAnswer: 4 (two errors)", "4"),
        ("rating", "It is short.\nAnswer: 4 - a bit too long", "4"),
        ("choice", "Which one is not in Spain?\n\nB", "B"),
        ("rating", "It is short. I would give it a 4.", "4"),
        ("rating", "It is short.\nAnswer: 4 - a good one", "4"),
        ("pair", "In conclusion, A is better.", "A"),
        ("pair", "It is short.\nAnswer: A, better than B", "A"),
        ("choice", "We looked at both. The answer is B. A is incorrect.", "B"),
        ("choice", "By elimination, the answer is B.", "B"),
        ("exact", "It is a city.\nAnswer: Paris\n\nParis is a city.", "Paris"),
        ("exact", "It is true.\nAnswer: Yes, they did.", "yes"),
        ("exact", "It is false.\nAnswer: No, it does not.", "no"),
        # other matter follows in another paragraph
        ("pair", "Response B is better.\n\nI don't think it will rain, but who knows.", "B"),
        ("math", "The answer is 7.\n\nYou don't need a pen for it, but it may help.", "7"),
        ("math", "We add.\nAnswer: 18\nHe sells nine pears, and gets two dollars for each.", "18"),
        ("choice", "The answer is B.\nQuestion: And of Spain?\nAnswer: D", "B"),
        (
            "rating",
            'The rating is 4.\nThink step by step, then end with the line "Answer: " and 1 to 5.',
            "4",
        ),
        # said again after a doubt, decided after others were weighed, corrected
        ("math", "The answer is 5.\nIs that so? 2 + 3 = 5.\nThe answer is 5.", "5"),
        ("choice", "The answer is A. The answer is B. The answer is C.\n\nThe answer is B.", "B"),
        ("math", "Answer: 7\nThat was wrong, the last one counts too.\nAnswer: 8", "8"),
        # the words around an answer
        ("math", "Solution: the answer is 5.", "5"),
        ("math", "No, the correct answer is 5.", "5"),
        ("choice", "The letter of the right choice should be 'B'.", "B"),
        ("choice", "Option B is correct.", "B"),
        ("pair", "B is indeed a better response, since it is short.", "B"),
        ("pair", "B has the better summary.", "B"),
        ("math", "A: 5\nTwo and three make that.", "5"),
        ("choice", 'The answer is not "C", as the correct choice is B.', "B"),
        ("choice", "A. Paris\nB. Rome\nC. Oslo\nSo: B", "B"),
        ("choice", "Answer - b", "B"),
        ("choice", "We choose B!", "B"),
        ("choice", "Answer: rules out A and C, leaving B", "B"),
        ("choice", "Hence the best option for a trip in spring is:\n\nB. Rome", "B"),
        ("choice", "The final grade is B.", "B"),
        (
            "choice",
            "It was a long and warm summer, but all went home at last, and the towns were empty.\n\nB",
            "B",
        ),
        ("math", "The solution is $5$.", "5"),
        ("math", "We count them all.\n\n240", "240"),
        ("rating", "4 points", "4"),
        ("rating", "Rating: 4. The weight of doubt is gone.", "4"),
        ("choice", "The answer is A.\nActually that was a mistake.\nThe answer is B.", "B"),
        (
            "pair",
            "We compare.\nTherefore, Model B is significantly better than Model A in this case.",
            "B",
        ),
        ("pair", "We compare.\nAnswer: Model B", "B"),
        ("rating", "```\n4\n```", "4"),
        ("rating", "4 out of 5", "4"),
        ("rating", "The rating is 4 based on its length.", "4"),
        # computed, without a word that concludes
        ("math", "It takes 3 hours. 3 * 14 = 42.", "42"),
        ("math", "Therefore, she needs 6 vans for her class.\n\nSo,", "6"),
        # another letter that is turned down
        ("choice", "We compare.\nAnswer: B (not D)", "B"),
        ("pair", "We compare.\nAnswer: B rather than A", "B"),
        ("pair", "We compare.\nAnswer: B. It names the street, while A mixes up the towns.", "B"),
        # numbers
        ("math", "We add.\nAnswer: m + n = 25 + 37 = 62", "62"),
        ("math", "One in three.\n\\boxed{0.333\\ldots}", "1/3"),
        ("math", "One in six.\nAnswer: 0.1666...", "1/6"),
        ("math", "One in eleven.\nAnswer: $0.\\overline{09}$", "1/11"),
        ("math", "Fünf Liter in zwei Krüge.\nAntwort: 2,5", "2.5"),
        ("math", "Twelve hundred.\nAnswer: 1.2k", "1200"),
        ("math", "Two cubes.\n$\\boxed{8}$ and $\\boxed{27}$", "8, 27"),
        ("pair", '{"winner": "B", "why": "It says wh', "B"),
    ],
)
def test_what_is_one_still_does(task: str, text: str, gold: str) -> None:
    assert rewarded(task, text, gold) == [gold]
