"""The rule of a ladder on made tables, and what is shown of it."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from femtune.comparison.ladder.board import line, titles
from femtune.comparison.ladder.budget import parse_budget
from femtune.comparison.ladder.cost import NO_TOKENS, Prices, Tokens
from femtune.comparison.ladder.differences import against, all_pairs
from femtune.comparison.ladder.result import entries, sentences
from femtune.comparison.ladder.store import Rung
from femtune.comparison.ladder.verdict import ALPHA, Entry, adjusted, decide
from femtune.errors import ConfigError, RunError
from femtune.evaluation.paired import PairedDifference

NO_PRICES = Prices()


def pair(difference: float, p_value: float) -> PairedDifference:
    return PairedDifference(
        difference=difference,
        low=difference - 0.1,
        high=difference + 0.1,
        p_value=p_value,
        num_items=100,
        num_groups=100,
        seed_spread=None,
    )


def table(
    accuracies: dict[str, float], p_values: dict[tuple[str, str], float]
) -> tuple[list[Entry], dict[tuple[str, str], PairedDifference]]:
    """Return entries of cost 0, 1, 2, ...; pairs without a p-value have 1."""
    made = [Entry(name, value, float(cost)) for cost, (name, value) in enumerate(accuracies.items())]
    pairs = {
        (b, a): pair(accuracies[b] - accuracies[a], p_values.get((b, a), 1.0))
        for a, b in combinations(accuracies, 2)
    }
    return made, pairs


def test_nothing_beats_the_majority_where_no_difference_is_told_apart() -> None:
    made, pairs = table({"majority": 0.4, "base": 0.5, "fem": 0.6}, {("fem", "majority"): 0.03})
    # 0.03 of two comparisons is 0.06 by Holm
    assert decide(made, pairs).chosen == "majority"


def test_the_cheapest_rung_that_nothing_beats_is_chosen() -> None:
    accuracies = {"majority": 0.4, "base": 0.45, "examples": 0.6, "votes": 0.61, "fem": 0.62}
    found = {
        (better, worse): 0.001
        for better in ("examples", "votes", "fem")
        for worse in ("majority", "base")
    }
    decision = decide(*table(accuracies, found))
    assert decision.chosen == "examples"
    assert decision.beaten == {
        "majority": ("examples", "votes", "fem"),
        "base": ("examples", "votes", "fem"),
    }
    assert decision.p_values == dict.fromkeys(("majority", "base"), 0.004) | {"votes": 1, "fem": 1}


def test_what_is_within_the_margin_beats_nothing_however_sure_it_is() -> None:
    made, pairs = table({"majority": 0.5, "fem": 0.515}, {("fem", "majority"): 0.0001})
    assert decide(made, pairs, 0.02).chosen == "majority"
    assert decide(made, pairs, 0.01).chosen == "fem"


def test_a_rung_below_the_majority_is_never_chosen() -> None:
    """The base is too noisy to be told apart from FEM, which is clearly ahead of the majority."""
    made, pairs = table({"majority": 0.5, "base": 0.49, "fem": 0.7}, {("fem", "majority"): 0.001})
    decision = decide(made, pairs)
    assert decision.chosen == "fem" and decision.beaten == {"majority": ("fem",), "base": ()}


def test_the_order_is_that_of_costs_and_not_of_names() -> None:
    made, pairs = table({"a": 0.5, "b": 0.5}, {})
    assert decide(made, pairs).chosen == "a"
    dearer = [Entry("a", 0.5, 9.0), made[1]]
    assert decide(dearer, pairs).chosen == "b"


names = [f"r{number}" for number in range(5)]


@given(
    st.lists(st.sampled_from([0.2, 0.3, 0.31, 0.4, 0.6]), min_size=2, max_size=5),
    st.lists(st.sampled_from([0.0001, 0.01, 0.04, 0.2, 1.0]), min_size=10, max_size=10),
    st.booleans(),
    st.randoms(use_true_random=False),
)
def test_the_choice_is_what_the_rule_says(values, p_values, has_floor, random) -> None:  # type: ignore[no-untyped-def]  # of hypothesis
    called = [*(["majority"] if has_floor else []), *names][: len(values)]
    accuracies = dict(zip(called, values, strict=True))
    places = [(b, a) for a, b in combinations(called, 2)]
    made, pairs = table(accuracies, dict(zip(places, p_values, strict=False)))
    decision = decide(made, pairs)

    def beaten(entry: Entry) -> bool:
        found = adjusted(entry.name, made, pairs)
        return any(p < ALPHA and accuracies[other] - entry.accuracy > 0.02 for other, p in found.items())

    chosen = next(entry for entry in made if entry.name == decision.chosen)
    assert not beaten(chosen)
    floor = accuracies.get("majority", -1.0)
    for entry in made[: made.index(chosen)]:
        assert beaten(entry) or entry.accuracy <= floor
    shuffled = random.sample(made, len(made))
    flipped = {(a, b): pair(-each.difference, each.p_value) for (b, a), each in pairs.items()}
    again = decide(shuffled, flipped)
    assert again.chosen == decision.chosen and again.p_values == pytest.approx(decision.p_values)


# --- sentences


def rung(name: str, scores: list[float], tokens: Tokens = NO_TOKENS, **more: float) -> Rung:
    accuracy = sum(scores) / len(scores)
    return Rung(
        name=name,
        metrics={"accuracy": accuracy, "accuracy_ci": [max(0, accuracy - 0.1), accuracy + 0.1]},
        scores={f"p{number}": score for number, score in enumerate(scores)},
        setup=NO_TOKENS,
        use=tokens,
        seconds=more.get("seconds", 1.0),
        processor_s=more.get("seconds", 1.0),
    )


def concluded(rungs: list[Rung]) -> tuple[str, str]:
    ids = [*rungs[0].scores]
    pairs = all_pairs(rungs, ids, [""] * len(ids))
    decision = decide(entries(rungs, NO_PRICES), pairs)
    compared = against(decision.chosen, rungs, ids, [""] * len(ids))
    return sentences(rungs, decision, compared, NO_PRICES, 0.02)


HALF = [1.0, 0.0] * 50
GOOD = [1.0] * 90 + [0.0] * 10


def test_the_verdict_says_exactly_that_nothing_beats_the_majority() -> None:
    rungs = [rung("majority", HALF), rung("base", [*HALF[1:], 1.0], Tokens(100))]
    first, second = concluded(rungs)
    assert first == "Of what was run, nothing beats the majority."
    assert second.startswith("It is ahead of the best other rung, base, by .000 (-.")
    assert second.endswith(": not told apart).")
    first, _ = concluded([*rungs, rung("fem", HALF, Tokens(1000))])
    assert first == "Do not train: nothing beats the majority."


def test_the_verdict_names_what_to_use_and_what_is_nearest() -> None:
    nearly = [*GOOD[:-1], 1.0]
    rungs = [rung("majority", HALF), rung("votes", GOOD, Tokens(200)), rung("fem", nearly, Tokens(3000))]
    first, second = concluded(rungs)
    assert first.startswith("Do not train: use votes, accuracy .900 on 100 held-out problems; no other")
    assert second.startswith("The most accurate rung, fem, is ahead by .010 (.000 to +.0")
    assert second.endswith(": not told apart), at 15 times the cost.")
    first, second = concluded([rung("majority", HALF), rung("votes", HALF, Tokens(9)), rungs[2]])
    assert first.startswith("Train: use fem, accuracy .910")
    assert second.startswith("It is ahead of the best cheaper rung, ")
    assert "not told apart" not in second
    first, _ = concluded(rungs[:2])
    assert first.startswith("So far: use votes")


def test_a_ladder_without_training_on_other_problems_is_refused() -> None:
    with pytest.raises(RunError, match="rung base has no score of 50 held-out problems, such as p50"):
        all_pairs(
            [rung("majority", HALF), rung("base", HALF[:50])], [*map("p{}".format, range(100))], []
        )


# --- cost, budget, table


def test_prices_are_of_a_million_tokens_and_nothing_is_free_by_silence() -> None:
    prices = Prices(prompt=2.0, generated=8.0)
    assert prices.money(Tokens(1_000_000, 500_000, 500_000)) == 8 + 1 + 1
    assert prices.money(Tokens(trained=1)) is None
    assert Prices(trained=3.0).money(Tokens(trained=2_000_000)) == 6
    with pytest.raises(ConfigError, match="price_generated must be at least 0, got -1"):
        Prices(generated=-1.0)


def test_rungs_are_ordered_by_money_only_where_each_has_a_price() -> None:
    rungs = [rung("base", HALF, Tokens(100)), rung("fem", HALF, Tokens(trained=10))]
    assert [each.cost for each in entries(rungs, Prices(prompt=1.0, generated=1e6))] == [100, 30]
    assert [each.cost for each in entries(rungs, Prices(generated=1e6, trained=1e6))] == [100, 10]
    assert [each.cost for each in entries(rungs, Prices(generated=1e4, trained=1e6))] == [1, 10]


@pytest.mark.parametrize("text", ["30", "30 min", "m", "-5m", "5k", "tokens"])
def test_a_budget_without_a_unit_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="30m"):
        parse_budget(text)


@pytest.mark.parametrize("prices", [NO_PRICES, Prices(1.0, 1.0, 1.0)], ids=["bare", "priced"])
@pytest.mark.parametrize(("width", "money"), [(80, False), (120, True)])
def test_the_table_fits_the_terminal(prices: Prices, width: int, money: bool) -> None:
    large = Tokens(999_999_999, 999_949, 99_949_999, 123_456_789_012)
    shown = rung("fem-probabilities", [1.0] * 9, large, seconds=99_999.0)
    head, row = titles(prices, width), line(shown, prices, width)
    assert len(head) == len(row) <= width
    assert row.startswith("fem-probabilities 1.000 (.900 to 1.100) ")
    assert ("money" in head) == prices.known
    assert ("seconds" in head) == (width == 120)
