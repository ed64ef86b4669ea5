"""A judge's task: a response has good and bad points, and the rationale says what each counts for.

    Rate the response from 1 to 5, as Robin would.  prompt x
    Question: Can you explain how bees find flowers?
    About the response:
    - It cites two studies.
    - It wanders off topic.
    - It sounds friendly.

    Start at 3.                                     rationale z
    It is accurate: plus 2, so 5.
    It is wordy: minus 2, so 3.
    It is kind: plus 0, so 3.
    Answer: 3                                       answer y

What each point counts for, 0 to 2, is up to the rater, and no prompt says it: it is in the ratings
only. `RATER` is the one of this world, Robin. The tally may leave 1 to 5; the answer is clipped.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence

from femtune.errors import ConfigError
from femtune.types import Problem

Point = tuple[str, int]  # a criterion, and +1 for or -1 against the response
Rater = Mapping[Point, int]  # what each point counts for: one of WEIGHTS

WEIGHTS = (0, 1, 2)
SCALE = (1, 5)
START = 3

# How a rationale names each point, and the sentences of a response that are evidence for it.
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

# Raters of whom the seedling has heard no more than the name; the first is this world's.
STRANGERS = ("Robin", "Sasha", "Kim", "Jules", "Noor", "Alex", "Toni", "Charlie")

# Robin: facts first, bad manners are noticed, good ones are not, and clarity is taken
# for granted. Chosen so that all ratings occur, and that one who counts every point as 1 (which is
# the seedling's best guess) agrees on 4 problems in 10.
RATER: Rater = {
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

_STEP = re.compile(r"(?P<claim>[\w ]+): (?P<sign>plus|minus) (?P<weight>[0-2]), so (?P<tally>.+)\.")
_TALLY = re.compile(r"-?[0-9]{1,3}")
_POINTS = {claim: point for point, claim in CLAIMS.items()}


def make(
    num_problems: int,
    *,
    seed: int = 0,
    difficulty: tuple[int, int] = (1, 3),
    noise: float = 0.0,
    rater: Rater = RATER,
    name: str = STRANGERS[0],
) -> list[Problem]:
    """Problems as the rater of this name rates them, no two with the same prompt.

    `difficulty` is the least and the largest number of points in a response, each equally likely.
    `noise` is the probability that a rating is replaced by one of the four others; the column
    `truth` keeps what it was.

    >>> problem = make(2, seed=0)[1]
    >>> problem.id, problem.answer, problem.columns["truth"]
    ('rubric-0-1', '4', '4')
    >>> problem.columns["evidence"]
    [['brevity', 1], ['completeness', 1], ['accuracy', -1]]

    Two seeds may share prompts of one point (there are 1,440): `make_splits` sees to it that
    training and test problems do not.

    Raises ConfigError where there are not that many prompts, or the numbers make no sense.
    """
    low, high = difficulty
    if not 1 <= low <= high <= len(CRITERIA):
        raise ConfigError(f"difficulty is {difficulty}: expected 1 <= low <= high <= 5 points.")
    if not 0 <= noise <= 1:
        raise ConfigError(f"noise is {noise}: expected a share from 0 to 1.")
    rng = random.Random(f"rubric {seed}")
    problems: dict[str, Problem] = {}
    for _ in range(100 * num_problems):  # far more than needed, unless the prompts run out
        if len(problems) == num_problems:
            break
        points = draw_points(rng, low, high)
        prompt = write_prompt(points, rng, name)
        truth = clip(START + sum(sign * rater[criterion, sign] for criterion, sign in points))
        others = [rating for rating in range(SCALE[0], SCALE[1] + 1) if rating != truth]
        rating = rng.choice(others) if rng.random() < noise else truth
        evidence = [list(point) for point in points]
        columns = {"world": "rubric", "evidence": evidence, "truth": str(truth)}
        problem_id = f"rubric-{seed}-{len(problems)}"
        problems.setdefault(prompt, Problem(problem_id, prompt, str(rating), columns))
    if len(problems) < num_problems:
        message = f"found only {len(problems)} different prompts of {difficulty} points"
        raise ConfigError(f"{message}, expected {num_problems}: raise difficulty or ask for fewer.")
    return list(problems.values())


def check(problem: Problem, rationale: str, answer: str) -> list[bool]:
    """Whether each step is sound, in order, and last whether the answer is the clipped tally.

    A step is sound where it names the point of the response at its place, its sign agrees, its
    weight is one that a rater may have, and its tally follows from the last one written (of the
    line "Start at 3." for the first step). Whether the weight is this rater's is not asked: that
    is what the answer tells. A missing step and a surplus one count as one unsound step each, so
    the list has max(points, steps) + 1 entries.

    >>> problem = make(2, seed=0)[1]
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
    tally = START if lines[:1] == [f"Start at {START}."] else None
    steps = [line for line in lines if not line.startswith("Start at ")]
    sound = []
    for place in range(max(len(points), len(steps))):
        point = points[place] if place < len(points) else None
        match = _STEP.fullmatch(steps[place]) if place < len(steps) else None
        before, tally = tally, _as_tally(match["tally"] if match else "")
        if match is None or before is None or tally is None:
            sound.append(False)
            continue
        sign = 1 if match["sign"] == "plus" else -1
        named = _POINTS.get(match["claim"], ("nothing", 0))
        follows = tally == before + sign * int(match["weight"])
        sound.append(named == point and named[1] == sign and follows)
    return [*sound, tally is not None and answer == str(clip(tally))]


def solve(problem: Problem) -> str:
    """The completion that leads to the true rating by this world's rater, answer line included."""
    points = [(criterion, sign) for criterion, sign in problem.columns["evidence"]]
    return write_completion([(point, point[1], RATER[point]) for point in points])


def write_completion(
    steps: Sequence[tuple[Point, int, int]], slips: Mapping[int, int] | None = None
) -> str:
    """Rationale and answer of steps (point, sign, weight); `slips` adds errors to their tallies.

    >>> print(write_completion([(("tone", 1), 1, 2), (("brevity", -1), -1, 0)]))
    Start at 3.
    It is kind: plus 2, so 5.
    It is wordy: minus 0, so 5.
    Answer: 5
    """
    tally = START
    lines = [f"Start at {START}."]
    for place, (point, sign, weight) in enumerate(steps):
        tally += sign * weight + (slips or {}).get(place, 0)
        word = "plus" if sign > 0 else "minus"
        lines.append(f"{CLAIMS[point]}: {word} {weight}, so {tally}.")
    return "\n".join([*lines, f"Answer: {clip(tally)}"])


def write_prompt(points: Sequence[Point], rng: random.Random, name: str) -> str:
    """A question and a response with these points, in words drawn at random, for that rater."""
    sentences = [f"- {rng.choice(SENTENCES[point])}" for point in points]
    question = f"Question: {rng.choice(QUESTIONS)}"
    head = [f"Rate the response from 1 to 5, as {name} would.", question, "About the response:"]
    return "\n".join([*head, *sentences])


def draw_points(rng: random.Random, low: int, high: int) -> list[Point]:
    """Between `low` and `high` points of different criteria, each for or against."""
    criteria = rng.sample(CRITERIA, rng.randint(low, high))
    return [(criterion, rng.choice((1, -1))) for criterion in criteria]


def clip(tally: int) -> int:
    """The rating of a tally: the nearest one on the scale."""
    return max(SCALE[0], min(SCALE[1], tally))


def _as_tally(text: str) -> int | None:
    return int(text) if _TALLY.fullmatch(text) else None
