"""Summaries of posts: each keeps some facts and may add faults, and a human prefers one of two.

    Which summary would Robin prefer, A or B?       prompt x

    Post:
    I missed a train.
    It was at work.
    My boss saw it.

    Summary A:
    I missed a train.
    It was at work.

    Summary B:
    My boss saw it.
    I am never wrong.

    Summary A starts at 0.                          rationale z
    It says what happened: plus 1, so 1.
    It says where: plus 0, so 1.
    Summary B starts at 0.
    It says who saw it: plus 0, so 0.
    It boasts: minus 2, so -2.
    Answer: A                                       answer y

The weight of each kind of fact and fault, 0 to 2, depends on the human, and no prompt tells it. Rows
have the schema of openai/summarize_from_feedback: comparisons, or ratings from 1 to 7 (axis), whose
tally starts at 4.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from femtune.data.answers import parse_scale
from femtune.data.tasks.frames import frame
from femtune.data.tasks.judge import write_pair, write_rating
from femtune.data.tasks.summarize import SUMMARIZE
from femtune.data.worlds.rubric import STRANGERS
from femtune.data.worlds.tally import Point, Step, Weights, check_steps, total, write_steps
from femtune.errors import ConfigError
from femtune.types import Problem

# A point is a kind of fact (+1) or of fault (-1).
Summary = Sequence[tuple[str, str, int]]  # one entry for each statement: kind, sentence, sign

PAIR = parse_scale("A,B")
SCALE = parse_scale("1,7")
START = 4  # the start of a rating's tally

# A rationale's name for each kind, and the sentences of posts and summaries.
CLAIMS: dict[Point, str] = {
    ("event", 1): "It says what happened",
    ("cause", 1): "It says why",
    ("place", 1): "It says where",
    ("witness", 1): "It says who saw it",
    ("feeling", 1): "It tells the feeling",
    ("question", 1): "It keeps the question",
    ("chatter", -1): "It chatters",
    ("boast", -1): "It boasts",
    ("lecture", -1): "It lectures",
}
FACTS: dict[str, tuple[str, ...]] = {
    "event": (
        *("I lost my keys.", "I broke a vase.", "I missed a train."),
        *("I failed a test.", "I burnt the dinner.", "I forgot a birthday."),
    ),
    "cause": (
        *("I was tired.", "I was in a hurry.", "I was on the phone."),
        *("I was half asleep.", "I was daydreaming.", "I was too proud."),
    ),
    "place": (
        *("It was at work.", "It was at home.", "It was at school."),
        *("It was at the beach.", "It was in a shop.", "It was on a bus."),
    ),
    "witness": (
        *("My boss saw it.", "My sister saw it.", "My friend saw it."),
        *("My neighbour saw it.", "My teacher saw it.", "Nobody saw it."),
    ),
    "feeling": (
        *("I feel ashamed.", "I feel silly.", "I feel sad."),
        *("I feel guilty.", "I feel relieved.", "I feel worried."),
    ),
    "question": (
        *("Should I say sorry?", "Should I laugh it off?", "Should I tell someone?"),
        *("Should I pay for it?", "Should I wait?", "Should I move away?"),
    ),
}
FAULTS: dict[str, tuple[str, ...]] = {
    "chatter": ("You had to be there.", "It is a long story.", "Believe it or not."),
    "boast": ("I am never wrong.", "I am the best at this.", "I always win."),
    "lecture": ("People never learn.", "Always be careful.", "Let this be a lesson."),
}
KINDS = tuple(FACTS)

# Robin weighs feelings and the writer's question most, ignores chatter, and punishes boasts. A human who
# gives every point weight 1, which is the seedling's best guess, agrees on 3 pairs in 4.
HUMAN: Weights = {
    ("event", 1): 0,
    ("cause", 1): 1,
    ("place", 1): 0,
    ("witness", 1): 0,
    ("feeling", 1): 2,
    ("question", 1): 2,
    ("chatter", -1): 0,
    ("boast", -1): 2,
    ("lecture", -1): 1,
}


def comparisons(
    num_problems: int,
    *,
    seed: int = 0,
    difficulty: tuple[int, int] = (1, 2),
    noise: float = 0.0,
    human: Weights = HUMAN,
    name: str = STRANGERS[0],
) -> list[dict[str, Any]]:
    """Return rows in the schema of comparisons, all with different texts.

    `difficulty` is the smallest and largest number of statements in a summary. The human's tallies of
    the two summaries always differ. `noise` is the probability that the other summary is chosen; the
    column `truth` keeps the original choice.

    >>> row = comparisons(1)[0]
    >>> row["summaries"][row["choice"]]["text"].splitlines()
    ['I forgot a birthday.', 'Should I laugh it off?']

    Raises ConfigError for values out of range.
    """

    def draw(rng: random.Random) -> tuple[dict[str, Any], str]:
        facts, (one, other) = draw_post(rng, difficulty, summaries=2)
        tallies = [total(points(summary), human) for summary in (one, other)]
        if tallies[0] == tallies[1]:
            return {}, ""
        better = int(tallies[1] > tallies[0])
        row = _row(facts, name) | {
            "summaries": [_summary(one), _summary(other)],
            "choice": better,
            "extra": {"confidence": None},
            "evidence": [[list(point) for point in points(summary)] for summary in (one, other)],
        }
        return row, "AB"[better]

    def spoil(row: dict[str, Any], rng: random.Random) -> None:
        row["choice"] = 1 - row["choice"]

    return _rows(draw, spoil, "tldr", num_problems, seed, difficulty, noise)


def axis(
    num_problems: int,
    *,
    seed: int = 0,
    difficulty: tuple[int, int] = (1, 3),
    noise: float = 0.0,
    human: Weights = HUMAN,
    name: str = STRANGERS[0],
) -> list[dict[str, Any]]:
    """Return rows in the schema of axis ratings: a summary and its overall quality from 1 to 7."""

    def draw(rng: random.Random) -> tuple[dict[str, Any], str]:
        facts, (one,) = draw_post(rng, difficulty, summaries=1)
        rating = clip(START + total(points(one), human))
        axes = {"overall": rating, "accuracy": None, "coverage": None, "coherence": None}
        row = _row(facts, name) | {
            "summary": _summary(one) | {"axes": axes},
            "evidence": [list(point) for point in points(one)],
        }
        return row, str(rating)

    def spoil(row: dict[str, Any], rng: random.Random) -> None:
        axes = row["summary"]["axes"]
        axes["overall"] = rng.choice([r for r in range(1, 8) if r != axes["overall"]])

    return _rows(draw, spoil, "tldr-axis", num_problems, seed, difficulty, noise)


def _rows(
    draw: Callable[[random.Random], tuple[dict[str, Any], str]],
    spoil: Callable[[dict[str, Any], random.Random], None],
    world: str,
    num_problems: int,
    seed: int,
    difficulty: tuple[int, int],
    noise: float,
) -> list[dict[str, Any]]:
    low, high = difficulty
    if not 1 <= low <= high <= 4:
        raise ConfigError(f"difficulty is {difficulty}: it must be 1 <= low <= high <= 4 statements.")
    if not 0 <= noise <= 1:
        raise ConfigError(f"noise is {noise}: it must be from 0 to 1.")
    rng, errs = random.Random(f"{world} {seed}"), random.Random(f"{world} noise {seed}")
    rows: dict[str, dict[str, Any]] = {}
    while len(rows) < num_problems:  # millions of posts are possible
        row, truth = draw(rng)
        key = repr((row.get("info"), row.get("summaries"), row.get("summary")))
        if not row or key in rows:
            continue
        name = f"{world}-{seed}-{len(rows)}"
        rows[key] = row | {"world": world, "truth": truth}
        row["info"]["id"] = name
        if errs.random() < noise:
            spoil(rows[key], errs)
    return list(rows.values())


def _row(facts: Mapping[str, str], name: str) -> dict[str, Any]:
    post = "\n".join(facts.values())
    info = {"id": "", "post": post, "title": None, "subreddit": "tifu", "site": None, "article": None}
    return {"info": info, "worker": name, "batch": "world", "split": "train"}


def _summary(summary: Summary) -> dict[str, Any]:
    text = "\n".join(sentence for _, sentence, _ in summary)
    return {"text": text, "policy": "world", "note": None}


def draw_post(
    rng: random.Random, difficulty: tuple[int, int], summaries: int
) -> tuple[dict[str, str], list[Summary]]:
    """Draw a post's facts by kind, and summaries of equal length with a share of 1/4 of faults."""
    kinds = rng.sample(KINDS, rng.randint(max(3, difficulty[1]), 5))
    facts = {kind: rng.choice(FACTS[kind]) for kind in kinds}
    num_statements = rng.randint(*difficulty)
    made: list[Summary] = []
    while len(made) < summaries:
        num_faults = min(len(FAULTS), sum(rng.random() < 0.25 for _ in range(num_statements)))
        told = [(kind, facts[kind], 1) for kind in rng.sample(kinds, num_statements - num_faults)]
        faults = [(kind, rng.choice(FAULTS[kind]), -1) for kind in rng.sample([*FAULTS], num_faults)]
        summary = rng.sample([*told, *faults], num_statements)
        if summary not in made:
            made.append(summary)
    return facts, made


def points(summary: Summary) -> list[Point]:
    """Return the points of a summary, in its order."""
    return [(kind, sign) for kind, _, sign in summary]


def clip(value: int) -> int:
    """Return the rating of a tally: the nearest one on the scale."""
    return max(1, min(7, value))


def write_prompts(facts: Mapping[str, str], made: Sequence[Summary], name: str) -> str:
    """Write the task's prompt: a rating for one summary, a comparison for two."""
    post = {"post": "\n".join(facts.values())}
    texts = ["\n".join(sentence for _, sentence, _ in summary) for summary in made]
    if len(texts) == 1:
        row = post | {"summary": texts[0], "attribute": "overall"}
        return write_rating(row, SCALE, SUMMARIZE, name)
    return write_pair(post | {"summary_a": texts[0], "summary_b": texts[1]}, SUMMARIZE, name)


# --- rationales


def write_completion(
    parts: Sequence[Sequence[Step]], slips: Mapping[tuple[int, int], int] | None = None, tie: str = "A"
) -> str:
    """Write rationale and answer: the rating of one part, the better of two, `tie` if both are equal.

    `slips` adds errors to tallies, by part and step.
    """
    lines, tallies = [], []
    for number, part in enumerate(parts):
        own = {place: slip for (where, place), slip in (slips or {}).items() if where == number}
        written, value = write_steps(part, _starts(len(parts)), CLAIMS, own)
        lines += [_heads(len(parts))[number], *written]
        tallies.append(value)
    if len(parts) == 1:
        answer = str(clip(tallies[0]))
    else:
        answer = tie if tallies[0] == tallies[1] else "AB"[tallies[1] > tallies[0]]
    return "\n".join([*lines, f"Answer: {answer}"])


def solve(problem: Problem) -> str:
    """Return the completion with the human's true answer and valid steps, including the answer line."""
    parts = [[(point, point[1], HUMAN[point]) for point in part] for part in _evidence(problem)]
    return write_completion(parts)


def check(problem: Problem, rationale: str, answer: str) -> list[bool]:
    """Return whether each step is valid, in order, and last, whether the answer follows.

    The steps of each summary's statements are checked by `tally.check_steps`. If the tallies are equal,
    either answer follows. Missing and surplus steps are invalid.

    >>> from femtune.data.worlds import WORLDS
    >>> problem = WORLDS["tldr"].make(1)[0]
    >>> rationale, answer = solve(problem).split("\\nAnswer: ")
    >>> print(rationale, answer, sep="\\n")
    Summary A starts at 0.
    It says what happened: plus 0, so 0.
    It keeps the question: plus 2, so 2.
    Summary B starts at 0.
    It lectures: minus 1, so -1.
    It boasts: minus 2, so -3.
    A
    >>> all(check(problem, rationale, answer)), all(check(problem, rationale, "B"))
    (True, False)
    """
    evidence = _evidence(problem)
    num = len(evidence)
    sound: list[bool] = []
    tallies: list[int | None] = []
    for counted, lines in zip(evidence, _parts(rationale, _heads(num)), strict=True):
        start = None if lines is None else _starts(num)
        steps, tally = check_steps(lines or [], counted, start, CLAIMS)
        sound += steps
        tallies.append(tally)
    return [*sound, _follows(answer, tallies)]


def _starts(num_parts: int) -> int:
    return START if num_parts == 1 else 0


def _heads(num_parts: int) -> list[str]:
    """Return the line before each part's steps."""
    if num_parts == 1:
        return [f"Start at {START}."]
    return [f"Summary {name} starts at 0." for name in "AB"]


def _follows(answer: str, tallies: Sequence[int | None]) -> bool:
    known = [value for value in tallies if value is not None]
    if len(known) < len(tallies):
        return False
    if len(known) == 1:
        return answer == str(clip(known[0]))
    return answer in ("A", "B") and known["AB".index(answer)] == max(known)


def _parts(rationale: str, heads: Sequence[str]) -> list[list[str] | None]:
    """Split the lines after each head, up to the next; None for a missing head."""
    found: list[list[str] | None] = [None] * len(heads)
    at = -1
    for line in rationale.strip().splitlines():
        if at + 1 < len(heads) and line == heads[at + 1]:
            at += 1
            found[at] = []
        elif at >= 0 and (part := found[at]) is not None:
            part.append(line)
        else:
            return [None] * len(heads)  # text before the first head
    return found


def _evidence(problem: Problem) -> list[list[Point]]:
    """Return the points of each summary, in the order in which the prompt shows them."""
    stored = problem.columns["evidence"]
    known = frame(problem)
    if known is not None and known.form == "rating":
        return [[(kind, sign) for kind, sign in stored]]
    parts = [[(kind, sign) for kind, sign in part] for part in stored]
    return parts[::-1] if known is not None and known.swapped else parts
