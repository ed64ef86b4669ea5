"""A judge's task: a response has good and bad points, and the rationale weighs each of them.

    Rate the response from 1 to 5, as Robin would.  prompt x

    Prompt:
    Can you explain how bees find flowers?

    Response:
    - It cites two studies.
    - It wanders off topic.
    - It sounds friendly.

    Start at 3.                                     rationale z
    It is accurate: plus 2, so 5.
    It is wordy: minus 2, so 3.
    It is kind: plus 0, so 3.
    Answer: 3                                       answer y

The weight of each point, 0 to 2, depends on the rater. No prompt tells it; only the ratings reveal it.
`RATER` holds the weights of this world's rater, Robin. The tally may leave 1 to 5; the answer is clipped
to it. Rows have the schema of a table of ratings: prompt, response, score, rater.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from femtune.data.answers import parse_scale
from femtune.data.tasks.judge import JUDGE, write_rating
from femtune.data.worlds.tally import Point, Step, Weights, check_steps, total, write_steps
from femtune.errors import ConfigError
from femtune.types import Problem

# A point is a criterion, with +1 for the response or -1 against it.
SCALE = parse_scale("1,5")
START = 3

# A rationale's name for each point, and the sentences of a response that show it.
CLAIMS: dict[Point, str] = {
    ("accuracy", 1): "It is accurate",
    ("accuracy", -1): "It is inaccurate",
    ("completeness", 1): "It is complete",
    ("completeness", -1): "It is incomplete",
    ("clarity", 1): "It is clear",
    ("clarity", -1): "It is unclear",
    ("tone", 1): "It is kind",
    ("tone", -1): "It is unkind",
    ("brevity", 1): "It is brief",
    ("brevity", -1): "It is wordy",
}
SENTENCES: dict[Point, tuple[str, ...]] = {
    ("accuracy", 1): ("It cites two studies.", "Its facts check out.", "Its figures are right."),
    ("accuracy", -1): ("It gets a date wrong.", "It makes up a quote.", "Its figures are off."),
    ("completeness", 1): (
        "It covers every part.",
        "It answers both halves.",
        "It leaves nothing out.",
    ),
    ("completeness", -1): (
        "It skips the last part.",
        "It stops halfway.",
        "It misses the main point.",
    ),
    ("clarity", 1): ("It gives an example.", "It defines each term.", "It reads easily."),
    ("clarity", -1): ("It is full of jargon.", "Its order confuses.", "It is hard to follow."),
    ("tone", 1): ("It is polite.", "It thanks the reader.", "It sounds friendly."),
    ("tone", -1): ("It mocks the question.", "It sounds rude.", "It lectures the reader."),
    ("brevity", 1): ("It is short.", "It wastes no words.", "It gets to the point."),
    ("brevity", -1): ("It wanders off topic.", "It repeats itself.", "It rambles for pages."),
}
CRITERIA = tuple(dict.fromkeys(criterion for criterion, _ in CLAIMS))

# Raters that the seedling knows only by name; the first is this world's.
STRANGERS = ("Robin", "Sasha", "Kim", "Jules", "Noor", "Alex", "Toni", "Charlie")

# Robin weighs facts most, notices bad manners but not good ones, and takes clarity for granted. The
# weights make all ratings occur. A rater who gives every point weight 1, which is the seedling's best
# guess, agrees on 4 problems in 10.
RATER: Weights = {
    ("accuracy", 1): 2,
    ("accuracy", -1): 2,
    ("completeness", 1): 2,
    ("completeness", -1): 1,
    ("clarity", 1): 0,
    ("clarity", -1): 0,
    ("tone", 1): 0,
    ("tone", -1): 2,
    ("brevity", 1): 1,
    ("brevity", -1): 2,
}

_SUBJECTS = (
    "bees find flowers",
    "birds know the way south",
    "bread rises",
    "bridges carry trains",
    "cats land on their feet",
    "clocks keep time",
    "clouds form",
    "coral grows",
    "deserts spread",
    "dogs read faces",
    "earthquakes start",
    "elections work",
    "engines turn heat into motion",
    "eyes see colour",
    "fish breathe",
    "glaciers move",
    "glass is made",
    "judges decide",
    "languages die out",
    "lenses bend light",
    "magnets attract iron",
    "maps flatten the globe",
    "markets set prices",
    "memories fade",
    "muscles grow",
    "novels get published",
    "ovens bake evenly",
    "planes stay up",
    "plants drink",
    "radios pick a station",
    "rainbows form",
    "rivers bend",
    "rumours spread",
    "satellites stay in orbit",
    "ships float",
    "snow crystals grow",
    "soap cleans",
    "spiders spin webs",
    "stars shine",
    "tides rise",
    "trees make sugar",
    "vaccines protect",
    "violins make sound",
    "volcanoes erupt",
    "whales sleep",
    "wheels grip the road",
    "wine ages",
    "yeast lives",
)
QUESTIONS = tuple(f"Can you explain how {subject}?" for subject in _SUBJECTS)

# Raters of the world `raters`: Robin, one who is more lenient about manners, one who loves detail.
RATERS: dict[str, Weights] = {
    STRANGERS[0]: RATER,
    STRANGERS[1]: {**RATER, ("tone", -1): 1, ("tone", 1): 1, ("brevity", -1): 1},
    STRANGERS[2]: {**RATER, ("completeness", -1): 2, ("clarity", 1): 1, ("brevity", 1): 0},
}


def _check_ranges(difficulty: tuple[int, int], noise: float) -> None:
    """Raise ConfigError for values out of range."""
    low, high = difficulty
    if not 1 <= low <= high <= len(CRITERIA):
        raise ConfigError(f"difficulty is {difficulty}: it must be 1 <= low <= high <= 5 points.")
    if not 0 <= noise <= 1:
        raise ConfigError(f"noise is {noise}: it must be from 0 to 1.")


def rows(
    num_problems: int,
    *,
    seed: int = 0,
    difficulty: tuple[int, int] = (1, 3),
    noise: float = 0.0,
    raters: Mapping[str, Weights] | None = None,
) -> list[dict[str, Any]]:
    """Return ratings; each response is rated once by every rater, in turn.

    `difficulty` is the smallest and largest number of points in a response, each equally likely. `noise`
    is the probability that a rating is replaced by one of the four others; the column `truth` keeps the
    original. The default of `raters` is Robin alone.

    >>> row = rows(2, seed=0)[1]
    >>> row["id"], row["score"], row["rater"], row["truth"]
    ('rubric-0-1', 4, 'Robin', '4')
    >>> row["evidence"]
    [['brevity', 1], ['completeness', 1], ['accuracy', -1]]

    Responses of one seed are all different. Two seeds may share responses of one point, of which there
    are 1,440.

    Raises ConfigError if there are too few responses, or for values out of range.
    """
    _check_ranges(difficulty, noise)
    raters = raters or {STRANGERS[0]: RATER}
    rng, errs = random.Random(f"rubric {seed}"), random.Random(f"rubric noise {seed}")
    made: list[dict[str, Any]] = []
    seen: set[tuple[str, str]] = set()
    for _ in range(100 * num_problems):  # far more than needed, unless the responses are exhausted
        if len(made) >= num_problems:
            break
        points = draw_points(rng, *difficulty)
        texts = write_texts(points, rng)
        if texts in seen:
            continue
        seen.add(texts)
        for name, weights in raters.items():
            truth = clip(START + total(points, weights))
            others = [rating for rating in range(1, 6) if rating != truth]
            score = errs.choice(others) if errs.random() < noise else truth
            made.append(
                {
                    "id": f"rubric-{seed}-{len(made)}",
                    "prompt": texts[0],
                    "response": texts[1],
                    "score": score,
                    "rater": name,
                    "world": "rubric" if len(raters) == 1 else "raters",
                    "evidence": [list(point) for point in points],
                    "truth": str(truth),
                }
            )
    if len(made) < num_problems:
        message = f"found only {len(made)} different responses of {difficulty} points"
        raise ConfigError(f"{message}, expected {num_problems}: raise difficulty or ask for fewer.")
    return made[:num_problems]


def check(problem: Problem, rationale: str, answer: str) -> list[bool]:
    """Return whether each step is valid, in order, and last, whether the answer follows.

    Steps are checked by `tally.check_steps`. The answer follows if it is the clipped tally. The list has
    max(points, steps) + 1 entries.

    >>> from femtune.data.worlds import WORLDS
    >>> problem = WORLDS["rubric"].make(2)[1]
    >>> rationale, answer = solve(problem).split("\\nAnswer: ")
    >>> print(rationale)
    Start at 3.
    It is brief: plus 1, so 4.
    It is complete: plus 2, so 6.
    It is inaccurate: minus 2, so 4.
    >>> check(problem, rationale, answer)
    [True, True, True, True]
    >>> check(problem, rationale.replace("minus 2", "minus 1"), answer)
    [True, True, False, True]
    """
    points = [(criterion, sign) for criterion, sign in problem.columns["evidence"]]
    lines = rationale.strip().splitlines()
    start = START if lines[:1] == [f"Start at {START}."] else None
    steps = [line for line in lines if not line.startswith("Start at ")]
    sound, tally = check_steps(steps, points, start, CLAIMS)
    return [*sound, tally is not None and answer == str(clip(tally))]


def solve(problem: Problem) -> str:
    """The completion that leads to the true rating by the problem's rater, answer line included."""
    points = [(criterion, sign) for criterion, sign in problem.columns["evidence"]]
    weights = RATERS[problem.columns["rater"]]
    return write_completion([(point, point[1], weights[point]) for point in points])


def write_completion(steps: Sequence[Step], slips: Mapping[int, int] | None = None) -> str:
    """Rationale and answer of steps; `slips` adds errors to their tallies.

    >>> print(write_completion([(("tone", 1), 1, 2), (("brevity", -1), -1, 0)]))
    Start at 3.
    It is kind: plus 2, so 5.
    It is wordy: minus 0, so 5.
    Answer: 5
    """
    lines, tally = write_steps(steps, START, CLAIMS, slips)
    return "\n".join([f"Start at {START}.", *lines, f"Answer: {clip(tally)}"])


def write_texts(points: Sequence[Point], rng: random.Random) -> tuple[str, str]:
    """A question, and a response told by its points, in words drawn at random."""
    sentences = [f"- {rng.choice(SENTENCES[point])}" for point in points]
    return rng.choice(QUESTIONS), "\n".join(sentences)


def write_prompt(points: Sequence[Point], rng: random.Random, name: str) -> str:
    """The prompt as the task writes it, for that rater; for none where the name is empty."""
    question, response = write_texts(points, rng)
    return write_rating({"prompt": question, "response": response}, SCALE, JUDGE, name)


def draw_points(rng: random.Random, low: int, high: int) -> list[Point]:
    """Between `low` and `high` points of different criteria, each for or against."""
    criteria = rng.sample(CRITERIA, rng.randint(low, high))
    return [(criterion, rng.choice((1, -1))) for criterion in criteria]


def clip(tally: int) -> int:
    """The rating of a tally: the nearest one on the scale."""
    return max(1, min(5, tally))
