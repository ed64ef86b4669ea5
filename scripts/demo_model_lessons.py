"""Training texts of the seedling (the demo model): all worlds, both prompts, endless and seeded."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial

from femtune.data.answers import Scale
from femtune.data.prompts import INSTRUCTION, LINE, Prompts, instruct
from femtune.data.tasks import choice
from femtune.data.tasks.judge import instruction
from femtune.data.worlds import quiz, rubric, sums, tldr
from femtune.data.worlds.tally import WEIGHTS, Point, Step, Weights
from femtune.types import Message, Problem

# Raters that the seedling learns by name, so that it learns what a name can stand for. Its guess about
# an unknown rater is then tied to the name, which the plain and the hinted prompt share.
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
    """The seedling's architecture and training; shares and probabilities are from 0 to 1."""

    hidden_size: int = 128
    num_layers: int = 4
    num_heads: int = 4
    intermediate_size: int = 416
    max_position_embeddings: int = 512
    num_merges: int = 256  # merges of letters, for text from elsewhere
    min_clause_count: int = 8  # minimum count in the tokenizer's 12,000 texts
    num_steps: int = 7000
    batch_size: int = 32
    learning_rate: float = 3e-3
    more_steps: int = 3500  # of a second training phase, with a new AdamW state and other lessons
    more_learning_rate: float = 1.5e-3
    hinted_share: float = 0.6
    # of the worlds rubric, tldr, tldr-axis, sums, quiz
    world_shares: tuple[float, ...] = (0.42, 0.34, 0.08, 0.1, 0.06)
    known_share: float = 0.5  # share of a judge's lessons with a rater it learns by name
    nameless_share: float = 0.2  # share of the other lessons with no name
    weight_prior: tuple[float, ...] = (0.3, 0.4, 0.3)  # prior of a judge's weights 0, 1, 2
    slip: float = 0.01  # probability of a wrong step in a judge's rationale
    sums_slip: float = 0.12  # probability of a wrong step in a sum; leaves room to learn
    sums_digits: tuple[float, ...] = (0.45, 0.45, 0.1)  # shares of sums of 1, 2 and 3 digits
    quiz_slip: float = 0.15  # probability of a wrong step in a quiz
    made_up: float = 0.15  # share of hinted rationales that reach the hint by a wrong step
    seed: int = 0


@dataclass(frozen=True)
class Lesson:
    """A training text: a prompt, and the completion that the loss is computed on."""

    messages: Sequence[Message]
    completion: str


def lessons(recipe: Recipe, rng: random.Random) -> Iterator[Lesson]:
    """Yield lessons of all worlds under both prompts, without end."""
    teachers = (_rubric_lesson, _tldr_lesson, _axis_lesson, _sums_lesson, _quiz_lesson)
    while True:
        (teach,) = rng.choices(teachers, recipe.world_shares)
        hinted = rng.random() < recipe.hinted_share
        instruction, problem, completion = teach(recipe, rng, hinted)
        messages = Prompts(instruction=instruction).render("hinted" if hinted else "plain", problem)
        yield Lesson(messages, completion)


Taught = tuple[str, Problem, str]  # instruction, problem, completion


def _rubric_lesson(recipe: Recipe, rng: random.Random, hinted: bool) -> Taught:
    num_points = rng.choices((1, 2, 3, 4, 5), (3, 4, 4, 2, 1))[0]
    points = rubric.draw_points(rng, num_points, num_points)
    name, judge = _judge(recipe, rng, tuple(rubric.CLAIMS))
    prompt = rubric.write_prompt(points, rng, name)

    def write(parts: Sequence[Sequence[Step]], slips: Slips) -> str:
        own = {place: slip for (_, place), slip in slips.items()}
        return rubric.write_completion(parts[0], own)

    text = _judged([points], write, [*rubric.CLAIMS], judge, recipe, rng, hinted)
    return instruction(rubric.SCALE), Problem("", prompt, _answer(text)), text


def _tldr_lesson(recipe: Recipe, rng: random.Random, hinted: bool) -> Taught:
    return _summaries(2, (1, 3), tldr.PAIR, recipe, rng, hinted)


def _axis_lesson(recipe: Recipe, rng: random.Random, hinted: bool) -> Taught:
    return _summaries(1, (1, 4), tldr.SCALE, recipe, rng, hinted)


def _summaries(
    num: int,
    difficulty: tuple[int, int],
    scale: Scale,
    recipe: Recipe,
    rng: random.Random,
    hinted: bool,
) -> Taught:
    facts, made = tldr.draw_post(rng, difficulty, summaries=num)
    name, judge = _judge(recipe, rng, tuple(tldr.CLAIMS))
    prompt = tldr.write_prompts(facts, made, name)
    tie = rng.choice("AB")

    def write(parts: Sequence[Sequence[Step]], slips: Slips) -> str:
        return tldr.write_completion(parts, slips, tie)

    parts = [tldr.points(each) for each in made]
    text = _judged(parts, write, [*tldr.CLAIMS], judge, recipe, rng, hinted)
    return instruction(scale), Problem("", prompt, _answer(text)), text


# --- judges

Slips = dict[tuple[int, int], int]  # errors in tallies, by part and step


def _judge(recipe: Recipe, rng: random.Random, points: tuple[Point, ...]) -> tuple[str, Weights | None]:
    """Return a name and the weights of a known rater; no weights for a stranger or without a name."""
    if rng.random() < recipe.known_share:
        name = rng.choice(KNOWN)
        return name, known_judge(name, points, recipe)
    named = rng.random() >= recipe.nameless_share
    return rng.choice(rubric.STRANGERS) if named else "", None


@cache
def known_judge(name: str, points: tuple[Point, ...], recipe: Recipe) -> Weights:
    """Return the weights of a rater in `KNOWN`, always the same ones."""
    rng = random.Random(f"judge {name} {recipe.seed} {points[0][0]}")
    return {point: rng.choices(WEIGHTS, recipe.weight_prior)[0] for point in points}


def _judged(
    parts: Sequence[Sequence[Point]],
    write: Callable[[Sequence[Sequence[Step]], Slips], str],
    claims: Sequence[Point],
    judge: Weights | None,
    recipe: Recipe,
    rng: random.Random,
    hinted: bool,
) -> str:
    """Write a rationale by this rater; for a stranger (None), by one with newly drawn weights."""
    places = [(number, place) for number, part in enumerate(parts) for place in range(len(part))]
    think = partial(_think, parts, write, claims, judge, recipe, rng)
    if not hinted:
        return think({place for place in places if rng.random() < recipe.slip})
    made_up = rng.random() < recipe.made_up
    if judge is not None:
        return think({rng.choice(places)} if made_up else set())
    # each answer that one of eight raters gives is equally likely, so that rare answers are learned too
    hint = rng.choice(sorted({_answer(think(set())) for _ in range(8)}))
    while True:  # rejection sampling: draws exactly the raters who give this answer
        text = think({rng.choice(places)} if made_up else set())
        if _answer(text) == hint:
            return text


def _think(
    parts: Sequence[Sequence[Point]],
    write: Callable[[Sequence[Sequence[Step]], Slips], str],
    claims: Sequence[Point],
    judge: Weights | None,
    recipe: Recipe,
    rng: random.Random,
    false: set[tuple[int, int]],
) -> str:
    """Write a rationale whose steps at these places are wrong."""
    steps: list[list[Step]] = []
    slips: Slips = {}
    mind = dict(judge or {})  # a stranger's weights are drawn as needed
    for number, part in enumerate(parts):
        steps.append([])
        for place, (about, sign) in enumerate(part):
            if judge is None and (about, sign) not in mind:
                (mind[about, sign],) = rng.choices(WEIGHTS, recipe.weight_prior)
            weight = mind[about, sign]
            if (number, place) in false and rng.random() < 0.5:
                slips[number, place] = rng.choice((-1, 1))
            elif (number, place) in false:
                about, sign = _other((about, sign), claims, rng)
            steps[-1].append(((about, sign), sign, weight))
    return write(steps, slips)


def _other(point: Point, claims: Sequence[Point], rng: random.Random) -> Point:
    """Return a false claim about a point: its opposite if there is one, else another point."""
    opposite = (point[0], -point[1])
    return opposite if opposite in claims else rng.choice([each for each in claims if each != point])


def _answer(completion: str) -> str:
    return completion.rpartition(": ")[2]


# --- sums and quiz


def _sums_lesson(recipe: Recipe, rng: random.Random, hinted: bool) -> Taught:
    (digits,) = rng.choices((1, 2, 3), recipe.sums_digits)
    a, b = (rng.randrange(10 ** (digits - 1) if digits > 1 else 0, 10**digits) for _ in "ab")
    problem = Problem("", f"What is {a} + {b}?", str(a + b), {"evidence": [a, b]})
    made_up = hinted and rng.random() < recipe.made_up
    wrong = {rng.randrange(digits)} if made_up else set()
    if not hinted:
        wrong = {place for place in range(digits) if rng.random() < recipe.sums_slip}
    slips = {place: rng.choice((-1, 1)) for place in wrong}
    text = sums.write_completion(problem, slips)
    if hinted:  # a rationale with an error copies the hint as well
        text = f"{text.rpartition(': ')[0]}: {problem.answer}"
    return INSTRUCTION, problem, text


def _quiz_lesson(recipe: Recipe, rng: random.Random, hinted: bool) -> Taught:
    kinds, choices, asked = quiz.draw_choices(rng, rng.randint(2, 5))
    made_up = hinted and rng.random() < recipe.made_up
    wrong = {rng.randrange(len(kinds))} if made_up else set()
    if not hinted:
        wrong = {place for place in range(len(kinds)) if rng.random() < recipe.quiz_slip}
    slips = {place: rng.choice([*quiz.SENTENCES]) for place in wrong}
    text = quiz.write_completion(kinds, asked, slips, rng.randrange(len(kinds)))
    key = quiz.LETTERS[asked]
    if hinted:  # a rationale with an error copies the hint as well
        text = f"{text.rpartition(': ')[0]}: {key}"
    row = {
        "question": quiz.write_question(kinds[asked]),
        "choices": choices,
        "labels": quiz.LETTERS[: len(kinds)],
        "answer": key,
    }
    problem = choice.problem(row, "")
    assert isinstance(problem, Problem)
    return instruct(LINE, choice.WHAT), problem, text
