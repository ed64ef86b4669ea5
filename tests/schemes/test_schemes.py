"""Schemes: one table of all of them, and what must hold for each."""

from __future__ import annotations

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from femtune.config import Train
from femtune.engines.fake import FakeEngine
from femtune.errors import ConfigError
from femtune.estep.driver import e_step
from femtune.resolve import make_loop_config
from femtune.rewards.builtin import ordinal, score
from femtune.schemes.acceptance import SoftAcceptance
from femtune.schemes.filters import Accepted, Share, weigh
from femtune.schemes.named import ADDED, SCHEMES, parse_scheme, pps, rejection, star
from femtune.schemes.serialization import scheme_from_data, scheme_to_data
from femtune.types import Draw, DrawKey, Problem, Request, Scheme, Stage, draw_seed

from ..oracle import PROMPTS, Tables, ask, problem, sampler

WORLD = Tables.random(seed=5)
PROBLEMS = [problem(f"p{i}", i % 3, i // 3 % 3) for i in range(90)]
# Not the paper's: stages that ask all, before and after those that stop.
EVERY = Scheme("all", (Stage("plain", 3, "all"),), weigh=Accepted())
MIXED = Scheme(
    "mixed", (Stage("plain", 2), Stage("hinted", 3, "all"), Stage("plain", 2)), weigh=Accepted()
)
TABLE = [rejection(), rejection(4), star(), pps(), EVERY, MIXED]
each_scheme = pytest.mark.parametrize("scheme", TABLE, ids=lambda scheme: scheme.name)


def scoring(
    scheme: Scheme, *, room: int = 8, order: int = 0, chunk_size: int = 1024
) -> dict[str, list[Draw]]:
    """Each problem's draws, as they come out of the driver."""
    engine = FakeEngine(WORLD.write, room=room, order_seed=order)
    found: dict[str, list[Draw]] = defaultdict(list)
    for chunk in e_step(PROBLEMS, scheme, sampler(engine, seed=3, chunk_size=chunk_size), iteration=2):
        for draw in chunk.draws:
            found[draw.key.problem_id].append(draw)
    return found


def lawful(scheme: Scheme, draws: list[Draw]) -> Iterator[tuple[int, int]]:
    """(stage, index) of what should have been asked, going by how the draws came out."""
    outcome = {(draw.key.stage, draw.key.index): draw.accepted for draw in draws}
    solved = False
    for number, stage in enumerate(scheme.stages):
        if stage.ask == "all":
            yield from ((number, index) for index in range(stage.draws))
            solved = solved or any(outcome[number, index] for index in range(stage.draws))
            continue
        for index in range(stage.draws):
            if not solved:
                yield number, index
                solved = outcome[number, index]


@each_scheme
def test_what_is_asked_is_what_the_stages_say(scheme: Scheme) -> None:
    found = scoring(scheme)
    assert list(found) == [each.id for each in PROBLEMS]  # in the problems' order
    for draws in found.values():
        assert [(draw.key.stage, draw.key.index) for draw in draws] == list(lawful(scheme, draws))
        assert [draw.prompt_kind for draw in draws] == [
            scheme.stages[d.key.stage].prompt_kind for d in draws
        ]


@each_scheme
def test_only_accepted_draws_are_kept_and_count_one(scheme: Scheme) -> None:
    for draws in scoring(scheme).values():
        examples = weigh(scheme.weigh, draws)
        assert all(e.draw.accepted and e.draw.score.reward == 1 and e.weight == 1 for e in examples)
        assert bool(examples) == any(draw.accepted for draw in draws)


@pytest.mark.parametrize("scheme", [rejection(), rejection(4), star(), pps()], ids=lambda s: s.name)
def test_the_papers_schemes_keep_at_most_one_and_draw_no_further(scheme: Scheme) -> None:
    for draws in scoring(scheme).values():
        kept = [example.draw for example in weigh(scheme.weigh, draws)]
        assert kept == ([draws[-1]] if draws[-1].accepted else [])
        assert not any(draw.accepted for draw in draws[:-1])


@each_scheme
@pytest.mark.parametrize(
    ("room", "order", "chunk_size"), [(1, 0, 90), (3, 1, 7), (500, 2, 1), (8, 9, 31)]
)
def test_order_room_and_chunks_change_nothing(
    scheme: Scheme, room: int, order: int, chunk_size: int
) -> None:
    assert scoring(scheme, room=room, order=order, chunk_size=chunk_size) == scoring(scheme)


@each_scheme
def test_each_draw_has_the_seed_of_its_key_and_none_another_ones(scheme: Scheme) -> None:
    draws = [draw for each in scoring(scheme).values() for draw in each]
    assert all(draw.seed == draw_seed(3, draw.key) for draw in draws)
    assert all(draw.key.iteration == 2 for draw in draws)
    assert len({draw.seed for draw in draws}) == len(draws)
    assert all(0 <= draw.seed < 2**63 for draw in draws)


@each_scheme
def test_a_hinted_draw_that_leaks_is_not_kept(scheme: Scheme) -> None:
    for draw in ask(lambda prompt, seed: "hint\nAnswer: y0", PROBLEMS, scheme):
        assert (draw.score.reason == "hint_leak") == (draw.prompt_kind == "hinted")
        assert draw.accepted == (draw.prompt_kind == "plain" and draw.score.reward == 1)


def test_the_number_of_draws_is_what_each_law_says() -> None:
    """Of n problems with P(right) = p plain and h hinted; each within 4 sigma, 1 in 16,000 each."""
    n = 3000
    problems = [problem(str(i), 0, 0) for i in range(n)]
    p, h = WORLD.joint(0)[:, 0].sum().item(), WORLD.joint(0, told=0)[:, 0].sum().item()
    asked = Counter[str]()
    for scheme in (star(), pps()):
        engine = FakeEngine(WORLD.write)
        chunks = list(e_step(problems, scheme, sampler(engine), iteration=1))
        draws = [draw for chunk in chunks for draw in chunk.draws]
        asked[scheme.name] = len(draws)
        kept = sum(draw.accepted for draw in draws) / n
        law = p + (1 - p) * h if scheme.name == "star" else h
        assert abs(kept - law) < 4 * math.sqrt(law * (1 - law) / n)
    assert asked["pps"] == n
    assert abs(asked["star"] / n - (2 - p)) < 4 * math.sqrt(p * (1 - p) / n)


# --- by name


@pytest.mark.parametrize(
    ("spec", "name", "stages"),
    [
        ("rejection", "rejection(1)", (Stage("plain", 1),)),
        ("rejection:4", "rejection(4)", (Stage("plain", 4),)),
        (" rejection(16) ", "rejection(16)", (Stage("plain", 16),)),
        ("star", "star", (Stage("plain"), Stage("hinted"))),
        ("pps", "pps", (Stage("hinted"),)),
    ],
)
def test_a_scheme_has_a_name(spec: str, name: str, stages: tuple[Stage, ...]) -> None:
    scheme = parse_scheme(spec)
    assert (scheme.name, scheme.stages, scheme.accept_at) == (name, stages, 1.0)
    assert parse_scheme(scheme.name).stages == stages


@pytest.mark.parametrize(
    "spec",
    ["", "rs", "Star", "star:2", "rejection4", "rejection:", "rejection()", "rejection(4", 
     "rejection:4)", "rejection:-1", "rejection:1.5", "rejection 4", "star pps"],
)  # fmt: skip
def test_other_names_are_refused_with_those_there_are(spec: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(repr(spec)) + ".*rejection:4.*star, pps"):
        parse_scheme(spec)


ADDITIONS = [
    ("importance", ""), ("expected", ""), ("importance+expected", ""),
    ("reasons", ":.7"), ("reasons", ""),
    ("chain", ""), ("chain+every", ":3"), ("chain+every", ""), ("hard", ":1"), ("hard", ""),
    ("restart", ":2"), ("restart", ""), ("restart:2+settle", ":3"), ("restart+settle", ""),
]  # fmt: skip
STARTS = ["rejection", "rejection:1", "rejection:4", "star", "pps", "pps:1", "pps:4"]


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize(("name", "numbers"), [("", ""), *ADDITIONS], ids="".join)
def test_a_scheme_is_read_back_from_its_name(start: str, name: str, numbers: str) -> None:
    spec = f"{start}+{name}{numbers}" if name else start
    try:
        scheme = parse_scheme(spec)
    except ConfigError as error:
        reasons = ("unsolved alone", "until one is right", "expected needs", "chain needs plain draws")
        assert any(reason in str(error) for reason in reasons)
        return
    again = parse_scheme(scheme.name)
    assert again == scheme and again.needs == scheme.needs


def test_all_that_there_is_is_in_the_table_of_names() -> None:
    assert {start.split(":")[0] for start in STARTS} == {*SCHEMES}
    assert {part.partition(":")[0] for name, _ in ADDITIONS for part in name.split("+")} == {*ADDED}


numbers = st.one_of(
    st.integers(0, 10**9 - 1).map(str),
    st.tuples(st.integers(0, 10**9 - 1), st.integers(0, 10**9 - 1)).map(lambda n: f"{n[0]}.{n[1]}"),
    st.text("0123456789.,", max_size=8),
)
parts = st.tuples(
    st.sampled_from([*SCHEMES, *ADDED, "auto", "nonsense", ""]),
    st.one_of(st.just("{}"), st.just(":{}"), st.just("({})"), st.just("")),
    numbers,
).map(lambda part: part[0] + part[1].format(part[2]))


@given(st.lists(parts, min_size=1, max_size=4).map("+".join))
@settings(max_examples=500)
def test_whatever_is_read_is_read_back_and_all_else_is_refused(spec: str) -> None:
    try:
        scheme = parse_scheme(spec)
    except ConfigError as error:
        assert len(str(error)) < 400
        return
    again = parse_scheme(scheme.name)
    assert again == scheme and again.needs == scheme.needs
    data = scheme_to_data(scheme)
    for stored in (json.loads(json.dumps(data)), yaml.safe_load(yaml.safe_dump(data))):
        assert stored == data and scheme_from_data(stored) == scheme


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("auto", "rejection(4)+restart(3)+settle(4)"),
        ("star+restart:.5", "star+restart(0.5)"),
        ("star+settle+restart", "star+restart(3)+settle(4)"),
        (" pps:4 + reasons + importance ", "pps(4)+importance+reasons(0)"),
        ("rejection:4+hard:0.0000001+chain", "rejection(4)+chain+hard(0.0000001)"),
        ("star+reasons:123456789.5", "star+reasons(123456789.5)"),
        ("rejection(8)+chain+every+hard:1.0", "rejection(8)+chain+every(2)+hard(1)"),
        ("pps:4+reasons+expected+importance", "pps(4)+importance+expected+reasons(0)"),
    ],
)
def test_what_is_added_is_in_the_name_in_the_order_in_which_it_is_applied(spec: str, name: str) -> None:
    assert parse_scheme(spec).name == name


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("star+chainn", "addition 'chainn' of 'star.chainn' is not known: Did you mean chain"),
        ("star+", "addition '' of 'star.' is not known"),
        ("+chain", "scheme '' of '.chain' is not known: choose one of rejection:4"),
        ("chain+star", "scheme 'chain' of 'chain.star' is not known"),
        ("star+pps", "addition 'pps' of 'star.pps' is not known"),
        ("auto+hard", "scheme 'auto' of"),
        ("star+chain:3", "addition 'chain:3' of"),
        ("pps:1,2", "scheme 'pps:1,2' is not known"),
        ("rejection:4+hard:..", "addition 'hard:..' of"),
        ("star+reasons:1234567890", "addition 'reasons:1234567890' of"),
        ("star+reasons+reasons:2", "adds something twice"),
        ("rejection:4+chain+importance", "chain and importance exclude each other"),
        ("rejection:4+chain+every:1.5", "addition 'every:1.5' of"),
        ("rejection:4+chain+every:0", "every must be >= 1, got 0"),
        ("rejection:4+every", "remembers no draws, and every needs that: add chain"),
        ("rejection:4+chain+reasons", "remembers draws, and reasons judges new ones alone"),
        ("star+chain", "Scheme star: chain needs plain draws alone"),
        ("pps:4+chain", r"Scheme pps\(4\): chain needs plain draws alone"),
        ("mixture:1,2", "is not known"),
        ("trice", "trice of scheme 'trice' was removed: it was not measured"),
        ("star+memo:8", r"memo of scheme 'star\+memo:8' was removed: .* docs/findings.md"),
        *((f"star+{name}", f"{name} of .* was removed") for name in ("gain", "doubt", "wake", "base")),
        ("pps:4+importance+resample:2", "resample of .* was removed"),
        ("star+restart:0", "restart must be > 0 and finite, got 0"),
        (
            "star+restart+settle:0",
            r"settle=0 needs a scheme with restart, and n >= 1 .* Scheme: star.restart\(3\)",
        ),
        ("star+settle", "settle=4 needs a scheme with restart"),
        ("star+restart+settle:1.5", "addition 'settle:1.5' of"),
        ("rejection:4+hard:0", "hard must be > 0 and finite, got 0"),
        ("star+hard", r"Scheme star: hard counts plain attempts until one is right, as rejection:M"),
        ("pps:4+hard", r"Scheme pps\(4\): hard counts plain attempts"),
        ("star+expected", "Scheme star: expected needs rejection:M, or pps:K with imp"),
        ("pps:4+expected", r"Scheme pps\(4\): expected needs rejection:M"),
        ("rejection:2+expected:2", "addition 'expected:2' of"),
        ("rejection:2+expected+chain", "chain weighs sampled answers, and expected takes their place"),
        ("rejection:2+expected+hard", "hard weighs sampled answers, and expected takes their place"),
        ("star+reasons:-1", "addition 'reasons:-1' of"),
        ("pps:0", "draws at least 1"),
    ],
)
def test_what_can_not_be_added_is_refused_with_the_reason(spec: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        parse_scheme(spec)


@pytest.mark.parametrize("budget", [0, -1])
def test_a_budget_is_at_least_one(budget: int) -> None:
    with pytest.raises(ConfigError, match=f"at least 1 attempt, got {budget}"):
        rejection(budget)
    with pytest.raises(ConfigError):
        parse_scheme("rejection:0")


def test_every_scheme_says_its_law_cost_and_source() -> None:
    for make in SCHEMES.values():
        assert all(word in (make.__doc__ or "") for word in ("Law: ", "Kept: ", "Draws: "))


def test_weights_of_all_schemes_can_be_shared() -> None:
    examples = [weigh(Share(), draws) for draws in scoring(EVERY).values()]
    assert all(sum(e.weight for e in each) == pytest.approx(1) for each in examples)


# --- soft acceptance


def requests(num: int, iteration: int = 1) -> Iterator[Request]:
    for index in range(num):
        key = DrawKey(iteration, "p", 0, index)
        yield Request(key, (), draw_seed(0, key))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("off", [0, 1, 2, 4])
def test_an_answer_that_is_off_is_accepted_as_often_as_is_said(temperature: float, off: int) -> None:
    """Of 20,000 coins; within 5 sigma, a false alarm in 1.7 million each."""
    threshold = SoftAcceptance(temperature, span=4)
    found = sum(1 - off / 4 >= threshold(request) for request in requests(20_000)) / 20_000
    law = math.exp(-off / temperature)
    assert abs(found - law) <= 5 * math.sqrt(law * (1 - law) / 20_000)


def test_the_unit_is_a_point_of_the_scale() -> None:
    half, whole = SoftAcceptance(1.0, span=2), SoftAcceptance(1.0, span=4)
    for request in requests(1000):
        for off in (0, 1, 2):  # points
            assert (1 - off / 2 >= half(request)) == (1 - off / 4 >= whole(request))


@pytest.mark.parametrize("iteration", [1, 2, 4])
def test_with_a_decay_acceptance_anneals(iteration: int) -> None:
    threshold = SoftAcceptance(2.0, span=4, decay=0.5)
    found = sum(threshold(each) <= 0.75 for each in requests(20_000, iteration)) / 20_000
    law = math.exp(-1 / (2.0 * 0.5 ** (iteration - 1)))  # 0.61, 0.37, 0.02
    assert abs(found - law) <= 5 * math.sqrt(law * (1 - law) / 20_000)


def test_without_a_decay_all_iterations_are_alike() -> None:
    one, other = (next(requests(1, iteration)) for iteration in (1, 7))
    threshold = SoftAcceptance(1.0, span=4)
    assert threshold(one) == threshold(replace(one, key=replace(one.key, iteration=7)))
    assert threshold(one) != threshold(other)  # a draw of its own


def test_what_is_kept_follows_the_noise_model_and_rewards_stay_as_they_are() -> None:
    """Answers 1 to 5, each as likely: kept ones are 2 off with weight exp(-2), within 5 sigma."""
    num = 5000
    problems = [Problem(str(i), "x0", "3") for i in range(num)]
    engine = FakeEngine(lambda prompt, seed: f"z\nAnswer: {seed % 5 + 1}")
    graded = replace(sampler(engine), grade=partial(score, prompts=PROMPTS, reward=ordinal("1,5")))
    soft = replace(rejection(), accept_at=SoftAcceptance(1.0, span=4))
    hard = rejection()
    draws, others = (
        [d for chunk in e_step(problems, scheme, graded, iteration=1) for d in chunk.draws]
        for scheme in (soft, hard)
    )
    kept = Counter(draw.score.answer for draw in draws if draw.accepted)
    given = Counter(draw.score.answer for draw in draws)
    for answer, count in given.items():
        law = math.exp(-abs(int(answer) - 3))
        assert abs(kept[answer] - count * law) <= 5 * math.sqrt(count * law * (1 - law))
    # all that changes is which are kept
    assert [draw.completion for draw in draws] == [draw.completion for draw in others]
    for draw, other in zip(draws, others, strict=True):
        assert draw.score.reward == other.score.reward == 1 - abs(int(draw.score.answer) - 3) / 4
        assert (draw.score.reason == "") or draw.score.reason == other.score.reason == "wrong"
    assert {draw.score.answer for draw in others if draw.accepted} == {"3"}


@pytest.mark.parametrize(
    ("temperature", "decay"), [(0, 1), (-1, 1), (math.nan, 1), (1, 0), (1, 1.5), (1, -1), (1, math.nan)]
)
def test_a_temperature_that_is_none_is_refused(temperature: float, decay: float) -> None:
    with pytest.raises(ConfigError, match=r"soft_accept must be > 0 and soft_decay in"):
        SoftAcceptance(temperature, 4, decay)


RATED = Train(soft_accept=1.0, scale="1,5", reward='ordinal("1,5")')


@pytest.mark.parametrize(
    "settings",
    [
        replace(RATED, accept_at=0.75),
        replace(RATED, scale=None),
        replace(RATED, reward="exact"),
        replace(RATED, reward=None),
        replace(RATED, scale="A,B", reward='choice("A,B")'),
    ],
)
def test_soft_acceptance_is_for_ratings(settings: Train) -> None:
    with pytest.raises(ConfigError, match="and needs ratings and their own reward"):
        make_loop_config(settings)


@pytest.mark.parametrize(
    ("scale", "span"), [("1,5", 4), ("0,10", 10), ("1,5,0.5", 4), ("bad,fair,good", 2)]
)
def test_the_settings_make_it_for_their_scale(scale: str, span: float) -> None:
    settings = replace(RATED, scale=scale, reward=f'ordinal("{scale}")', soft_decay=0.5)
    accept_at = make_loop_config(settings).scheme.accept_at
    assert callable(accept_at)
    for request in requests(100, iteration=3):
        assert accept_at(request) == SoftAcceptance(1.0, span, 0.5)(request)


def test_budgets_of_any_length_are_refused_or_read() -> None:
    assert parse_scheme("rejection:٤").name == "rejection(4)"
    for digits in (10, 5000):
        with pytest.raises(ConfigError, match=r"scheme 'rejection:999.*is not known") as caught:
            parse_scheme(f"rejection:{'9' * digits}")
        assert len(str(caught.value)) < 300
