"""What the seedling is taught: texts of both worlds under both prompts, endless and seeded."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial

from femtune.prompts import Prompts
from femtune.types import Message, Problem
from femtune.worlds import rubric, sums

# Raters that the seedling gets to know, so that it learns what a name can stand for: what it finds
# out about a stranger then has a place, which the plain and the hinted prompt share.
_KNOWN = """
Ada Adam Agnes Alan Albert Alice Amara Amos Amy Ana Andrew Angela Anita Anna Anton Arthur Asha
Astrid Audrey Aurora Axel Barbara Basil Beatrice Ben Bernard Bertha Bianca Boris Brenda Brian Bruno
Caleb Camille Carl Carla Carmen Cecil Celia Chloe Clara Claude Clement Conrad Cora Cyril Cyrus
Dagmar Daisy Damian Dana Daniel Daphne David Deborah Delia Dennis Diana Dinah Dora Doris Duncan
Edgar Edith Edmund Edna Edwin Elena Elias Eliza Ella Elmer Elsa Emil Emma Enid Erica Ernest Esther
Ethan Eva Felix Fiona Flora Floyd Frances Frank Freda Gabriel Gavin Gemma George Gerda Gilbert
Gloria Grace Grant Greta Gustav Hannah Harold Harriet Harvey Hazel Hector Heidi Helen Henry Herman
Hilda Homer Hugo Ida Igor Ines Ingrid Irene Iris Isaac Ivan Ivy Jacob Jane Janet Jasper Jonas Joseph
Joyce Judith Julia Julian June Karen Karl Keith Klaus Lara Laura Leo Leon Leonard Lewis Lidia Lily
Linda Lionel Lois Louis Lucas Lucy Luther Lydia Mabel Magnus Marcel Marcus Margaret Maria Martha
Martin Mary Matilda Maud Maurice Max Maya Mildred Miles Milo Mira Miriam Moses Myra Nadia Naomi
Nathan Nell Nina Nora Norman Olga Oliver Olive Oscar Otto Owen Pablo Paula Pearl Percy Peter Philip
Phoebe Polly Ralph Ramona Raoul Rebecca Rhoda Richard Rita Robert Rosa Roland Ruby Rufus Ruth Samuel
Sarah Saul Selma Silas Simon Sofia Stella Sven Sylvia Thea Thelma Theo Thomas Tilda Tobias Ursula
Vera Victor Viola Vivian Walter Wanda Wilma Wolf Yusuf Yvonne Zelda Zeno
"""
KNOWN = tuple(_KNOWN.split())


@dataclass(frozen=True)
class Recipe:
    """What the seedling is made of. Shares and probabilities are from 0 to 1."""

    hidden_size: int = 128
    num_layers: int = 4
    num_heads: int = 4
    intermediate_size: int = 416
    max_position_embeddings: int = 512
    num_merges: int = 256  # of letters, for text from elsewhere
    min_clause_count: int = 8  # in the tokenizer's 12,000 texts
    num_steps: int = 6000
    batch_size: int = 32
    learning_rate: float = 3e-3
    hinted_share: float = 0.6
    sums_share: float = 0.2
    known_share: float = 0.5  # of rubric lessons: of a rater it can get to know
    weight_prior: tuple[float, ...] = (0.3, 0.4, 0.3)  # of a rater's weights 0, 1, 2
    slip: float = 0.01  # probability that a step of a rubric rationale is false
    sums_slip: float = 0.12  # and one of a sum: the room that is left to learn
    made_up: float = 0.15  # share of hinted rationales that reach the hint by a false step
    seed: int = 0


@dataclass(frozen=True)
class Lesson:
    """A training text: a prompt, and the completion that the loss sees."""

    messages: Sequence[Message]
    completion: str


def lessons(recipe: Recipe, rng: random.Random) -> Iterator[Lesson]:
    """Endless lessons of both worlds under both prompts."""
    prompts = Prompts()
    while True:
        teach = _sums_lesson if rng.random() < recipe.sums_share else _rubric_lesson
        hinted = rng.random() < recipe.hinted_share
        problem, completion = teach(recipe, rng, hinted)
        yield Lesson(prompts.render("hinted" if hinted else "plain", problem), completion)


def _rubric_lesson(recipe: Recipe, rng: random.Random, hinted: bool) -> tuple[Problem, str]:
    """A known rater has one mind, a stranger another one in each lesson."""
    known = rng.random() < recipe.known_share
    name = rng.choice(KNOWN if known else rubric.STRANGERS)
    num_points = rng.choices((1, 2, 3, 4, 5), (3, 4, 4, 2, 1))[0]
    points = rubric.draw_points(rng, num_points, num_points)
    prompt = rubric.write_prompt(points, rng, name)
    think = partial(_rationale, points, recipe, rng, known_rater(name, recipe) if known else None)
    made_up = hinted and rng.random() < recipe.made_up
    false = {rng.randrange(num_points)} if made_up else set()
    if not hinted:
        false = {place for place in range(num_points) if rng.random() < recipe.slip}
        return Problem("", prompt, ""), think(false)
    if known:
        text = think(false)
        return Problem("", prompt, _rate(text)), text
    # any rating that one of eight raters gives is as likely, so that rare ones are learnt too
    hint = rng.choice(sorted({_rate(think(set())) for _ in range(8)}))
    while True:  # by rejection: exactly what a rater thinks who gives this rating
        text = think({rng.randrange(num_points)} if made_up else set())
        if _rate(text) == hint:
            return Problem("", prompt, hint), text


@cache
def known_rater(name: str, recipe: Recipe) -> rubric.Rater:
    """What a rater of `KNOWN` weighs, always the same."""
    rng = random.Random(f"rater {name} {recipe.seed}")
    return {point: rng.choices(rubric.WEIGHTS, recipe.weight_prior)[0] for point in rubric.CLAIMS}


def _rationale(
    points: Sequence[rubric.Point],
    recipe: Recipe,
    rng: random.Random,
    rater: rubric.Rater | None,
    false: set[int],
) -> str:
    """A rationale by this rater, or by one drawn afresh, whose steps at these places are false."""
    steps, slips = [], {}
    for place, (criterion, sign) in enumerate(points):
        (weight,) = rng.choices(rubric.WEIGHTS, recipe.weight_prior)
        if rater is not None:
            weight = rater[criterion, sign]
        if place in false and rng.random() < 0.5:
            slips[place] = rng.choice((-1, 1))
        elif place in false:
            sign = -sign
        steps.append(((criterion, sign), sign, weight))
    return rubric.write_completion(steps, slips)


def _rate(completion: str) -> str:
    return completion.rpartition(": ")[2]


def _sums_lesson(recipe: Recipe, rng: random.Random, hinted: bool) -> tuple[Problem, str]:
    digits = rng.randint(1, 3)
    a, b = (rng.randrange(10 ** (digits - 1) if digits > 1 else 0, 10**digits) for _ in "ab")
    problem = Problem("", f"What is {a} + {b}?", str(a + b), {"terms": [a, b]})
    made_up = hinted and rng.random() < recipe.made_up
    wrong = {rng.randrange(digits)} if made_up else set()
    if not hinted:
        wrong = {place for place in range(digits) if rng.random() < recipe.sums_slip}
    slips = {place: rng.choice((-1, 1)) for place in wrong}
    text = sums.write_completion(problem, slips)
    if hinted:  # a made-up one slips and copies the hint all the same
        text = f"{text.rpartition(': ')[0]}: {problem.answer}"
    return problem, text
