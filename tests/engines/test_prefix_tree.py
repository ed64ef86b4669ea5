"""A prefix tree gives back what was put in, for any rows, and stays within its budget."""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
from hypothesis import given
from hypothesis import strategies as st

from femtune.engines.hf.prefix_tree import PrefixTree, num_common
from femtune.types import Tokens

LAYERS, HEADS, SIZE = 2, 3, 1
TOKEN_BYTES = 2 * LAYERS * HEADS * SIZE * 4

rows = st.lists(st.integers(0, 2), min_size=1, max_size=12).map(tuple)


def values(tokens: Tokens, start: int = 0) -> torch.Tensor:
    """Stand-ins for keys and values from the n-th token on: a number that tokens so far say."""
    numbers = [float(hash(tokens[: n + 1]) % 1_000_003) for n in range(start, len(tokens))]
    return torch.tensor(numbers).view(1, 1, -1, 1).expand(2 * LAYERS, HEADS, -1, SIZE).clone()


def reader(tokens: Tokens) -> Callable[[int], torch.Tensor]:
    return lambda start: values(tokens, start)


def kept(tree: PrefixTree, tokens: Tokens) -> torch.Tensor:
    """What the tree has of a row, joined."""
    parts = [part[:, :, :num] for part, num in tree.pieces(tokens)]
    return torch.cat([values(tokens)[:, :, :0], *parts], 2)


@given(added=st.lists(rows, max_size=30), asked=st.lists(rows, max_size=5), most=st.integers(0, 40))
def test_any_row_gets_its_own_values_within_the_budget(
    added: list[Tokens], asked: list[Tokens], most: int
) -> None:
    tree = PrefixTree(most * TOKEN_BYTES)
    for tokens in added:
        tree.add(tokens, reader(tokens))
        held = set(tree._used)
        assert tree.num_bytes == sum(len(node.tokens) for node in held) * TOKEN_BYTES <= tree.budget
        assert all(node.parent is tree._root or node.parent in held for node in held)
    for tokens in (*added, *asked):
        known = tree.num_known(tokens)
        assert known <= max((num_common(tokens, other) for other in added), default=0)
        assert torch.equal(kept(tree, tokens), values(tokens)[:, :, :known])


@given(added=st.lists(rows, max_size=30), asked=rows)
def test_with_room_for_all_each_row_is_known_as_far_as_any_row_began_so(
    added: list[Tokens], asked: Tokens
) -> None:
    tree = PrefixTree(1 << 30)
    for tokens in added:
        tree.add(tokens, reader(tokens))
    assert all(tree.num_known(tokens) == len(tokens) for tokens in added)
    assert tree.num_known(asked) == max((num_common(asked, each) for each in added), default=0)
    nodes = {tokens[: n + 1] for tokens in added for n in range(len(tokens))}
    assert tree.num_bytes == len(nodes) * TOKEN_BYTES  # nothing twice


def test_what_was_used_longest_ago_goes_first_and_beginnings_last() -> None:
    tree = PrefixTree(9 * TOKEN_BYTES)
    rows = [(1, 1, 1, *(i,) * 3) for i in (2, 3)]
    for tokens in rows:
        tree.add(tokens, reader(tokens))  # 3 shared, 3 each: full
    tree.add(rows[0], reader(rows[0]))  # used again
    tree.add((7, 7, 7), reader((7, 7, 7)))
    assert [tree.num_known(tokens) for tokens in (*rows, (7, 7, 7))] == [6, 3, 3]
    tree.add((8,) * 9, reader((8,) * 9))
    assert [tree.num_known(tokens) for tokens in (*rows, (7, 7, 7), (8,) * 9)] == [0, 0, 0, 9]


def test_a_row_above_the_budget_is_not_kept_and_a_budget_of_none_reads_nothing() -> None:
    tree = PrefixTree(3 * TOKEN_BYTES)
    tree.add((1, 2, 3, 4), reader((1, 2, 3, 4)))
    assert tree.num_known((1, 2, 3, 4)) == tree.num_bytes == 0
    none = PrefixTree(0)
    none.add((1, 2), lambda start: 1 / 0)  # type: ignore[arg-type,return-value]  # is not called
    assert none.num_known((1, 2)) == 0


def test_num_common_counts_the_same_first_tokens() -> None:
    rng = random.Random(0)
    for _ in range(200):
        one, other = ([rng.randint(0, 1) for _ in range(rng.randint(0, 6))] for _ in range(2))
        num = num_common(tuple(one), tuple(other))
        assert one[:num] == other[:num]
        assert num in (len(one), len(other)) or one[num] != other[num]
