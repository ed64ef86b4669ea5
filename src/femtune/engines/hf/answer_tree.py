"""Score continuations after prefixes in two passes: what prefixes share, then a tree of all the rest.

    beginning    Rate this.                      passes once; its keys and values are kept
    tree          ├ It is clear. Answer: ┬ 1      each token attends to the beginning and to its own
                  │                      └ 2      ancestors, at the position that it has in its text
                  └ It is short. Answer: ┬ 1
                                         └ 2      a last token is scored by its parent: it need not pass

Prefixes that share a quarter of their tokens or more, such as rationales of one problem, are one tree.
A prefix that a prefix tree knows by half or more is a tree of its own, whose beginning does not pass.
Trees are rows of a batch. Logits are made only at nodes with a child to score: these are a row's last.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, pairwise
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from femtune.engines.hf.model import masks, pad
from femtune.engines.hf.prefix_tree import Piece, PrefixTree, num_common
from femtune.types import Asked, Tokens

_SHARED_PART = 4  # a prefix joins others if it shares at least one in so many of its tokens
_PADDING = (0, 0, -1, 0)  # no node of a tree attends to it: it ends before any of them


@dataclass(slots=True)
class Group:
    """Prefixes, by their index, whose first `shared` tokens are the same and pass once."""

    members: list[int]
    shared: int
    rest: int  # nodes of the tree, at most
    num_scored: int  # nodes with logits, at most
    is_kept: bool = False  # the beginning's keys and values are in a prefix tree


@dataclass(frozen=True, slots=True)
class _Tree:
    """Nodes after a beginning, in preorder: node i's descendants are i + 1 to ends[i] - 1."""

    beginning: Sequence[int]
    tokens: list[int]
    depths: list[int]
    ends: list[int]
    paths: dict[Tokens, list[int]]  # nodes of a prefix's rest with a continuation less its last token


def batches(
    asked: Sequence[Asked],
    indices: Sequence[int],
    most_tokens: int,
    most_logits: int,
    kept: PrefixTree,
) -> Iterator[list[Group]]:
    """Group prefixes into trees, and trees into batches of about one size.

    A batch has at most `most_tokens` padded tokens and `most_logits` rows of logits, unless it is a
    single prefix.
    """
    known = {index: kept.num_known(tuple(asked[index][0][:-1])) for index in indices}
    is_kept = {index: 2 * known[index] >= len(asked[index][0]) for index in indices}
    new = [index for index in indices if not is_kept[index]]
    groups = _groups(asked, new, most_tokens, most_logits)
    for index in filter(is_kept.__getitem__, indices):
        own = _group_of(asked, index)
        beyond = own.shared - known[index]
        groups.append(Group([index], known[index], own.rest + beyond, own.num_scored, True))
    batch: list[Group] = []
    order = sorted(groups, key=lambda group: (group.is_kept, group.shared + group.rest, group.shared))
    for group in order:
        if batch and (
            batch[0].is_kept != group.is_kept
            or padded(more := [*batch, group]) > most_tokens
            or len(more) * max(each.num_scored for each in more) > most_logits
        ):
            yield batch
            batch = []
        batch.append(group)
    if batch:
        yield batch


def padded(batch: Sequence[Group]) -> int:
    """Return the tokens that a batch passes, with padding; kept ones, which are copied, by an eighth."""
    width = max(each.shared for each in batch) // (8 if batch[0].is_kept else 1)
    return len(batch) * (width + max(each.rest for each in batch))


def _groups(
    asked: Sequence[Asked], indices: Sequence[int], most_tokens: int, most_logits: int
) -> list[Group]:
    groups: list[Group] = []
    for index in sorted(indices, key=lambda index: tuple(asked[index][0])):
        prefix, own = asked[index][0], _group_of(asked, index)
        if groups:
            last = groups[-1]
            shared = min(last.shared, own.shared, num_common(asked[last.members[-1]][0], prefix))
            rest = last.rest + own.rest + own.shared - shared
            rest += len(last.members) * (last.shared - shared)
            num_scored = last.num_scored + own.num_scored
            fits = shared + rest <= most_tokens and num_scored <= most_logits
            if fits and shared * _SHARED_PART >= len(prefix):
                groups[-1] = Group([*last.members, index], shared, rest, num_scored)
                continue
        groups.append(own)
    return groups


def _group_of(asked: Sequence[Asked], index: int) -> Group:
    """Return the group of a prefix by itself: all of it but its last token passes first."""
    prefix, several = asked[index]
    inner = len({each[:n] for each in several for n in range(1, len(each))})
    return Group([index], len(prefix) - 1, 1 + inner, 1 + inner)


def saves(pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> bool:
    """Return whether trees pass at most nine tenths of the tokens of these prompts and completions."""
    ordered = sorted(tuple(prompt) for prompt, _ in pairs)
    shared = sum(num_common(a, b) for a, b in pairwise(ordered))
    return 10 * shared >= sum(len(prompt) + len(completion) for prompt, completion in pairs)


def score(
    model: Any, asked: Sequence[Asked], batch: Sequence[Group], kept: PrefixTree
) -> list[tuple[int, list[float]]]:
    """Return log-probabilities (nats) of each continuation in the batch, with prefix indices.

    `kept` is the tree that the batch was made with.
    """
    trees = [_tree(asked, group) for group in batch]
    questions, places, number = [], [], count()
    scored: list[dict[int, int]] = []  # of each tree, nodes with logits, numbered
    for row, (group, tree) in enumerate(zip(batch, trees, strict=True)):
        scored.append({})
        for index in group.members:
            prefix, several = asked[index]
            places.append((index, len(several)))
            for continuation in several:
                into = next(number)
                path = tree.paths.get((*prefix[group.shared :], *continuation[:-1]), [])
                for node, token in zip(path[-len(continuation) :], continuation, strict=False):
                    at = scored[row].setdefault(node, len(scored[row]))
                    questions.append((row, at, token, into))
    pieces = [kept.pieces(tuple(tree.beginning)) for tree in trees] if batch[0].is_kept else []
    logits = _logits(model, trees, scored, pieces)
    rows, columns, tokens, into_ = torch.tensor(questions, device=logits.device).T
    logprobs = (logits[rows, columns, tokens] - logits.logsumexp(-1)[rows, columns]).double()
    sums = logprobs.new_zeros(next(number)).index_add_(0, into_, logprobs).tolist()
    found = iter(sums)
    return [(index, [next(found) for _ in range(num)]) for index, num in places]


def _tree(asked: Sequence[Asked], group: Group) -> _Tree:
    beginning = asked[group.members[0]][0][: group.shared]
    stems = {
        (*asked[index][0][group.shared :], *continuation[:-1])
        for index in group.members
        for continuation in asked[index][1]
        if continuation
    }
    tree = _Tree(beginning, [], [], [], {})
    before: Tokens = ()
    path: list[int] = []
    for stem in sorted(stems):  # in this order, nodes are made in preorder
        same, start = num_common(before, stem), len(tree.tokens)
        tree.tokens.extend(stem[same:])
        tree.depths.extend(range(same, len(stem)))
        tree.ends.extend(stem[same:])  # to be set
        path = [*path[:same], *range(start, len(tree.tokens))]
        for node in path:
            tree.ends[node] = len(tree.tokens)
        tree.paths[stem] = path
        before = stem
    return tree


def _logits(
    model: Any,
    trees: Sequence[_Tree],
    scored: Sequence[dict[int, int]],
    pieces: Sequence[Sequence[Piece]],
) -> Tensor:
    """Logits [n, most scored, V] float32 at the scored nodes of each tree.

    `pieces` are keys and values of the beginnings; without any, the beginnings pass first.
    """
    device, width = model.device, max(len(tree.beginning) for tree in trees)
    cache = _cache(pieces, width) if pieces else DynamicCache()
    if width and not pieces:
        # padding is at the right, where causal attention hides it
        tokens = pad([tree.beginning for tree in trees], device)
        model(input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
    keep = max(map(len, scored))
    others = max(len(tree.tokens) - len(own) for tree, own in zip(trees, scored, strict=True))
    rows = [_row(tree, own, others, keep) for tree, own in zip(trees, scored, strict=True)]
    tokens, positions, numbers, ends = torch.tensor(rows, device=device).unbind(-1)  # each [n, t]
    starts = torch.tensor([[len(tree.beginning)] for tree in trees], device=device)
    before = torch.arange(width, device=device).expand(len(trees), -1)
    reached, reader = numbers[:, None], numbers[:, :, None]
    in_tree = (reached <= reader) & (reader < ends[:, None])
    in_beginning = (before < starts)[:, None].expand(-1, tokens.shape[1], -1)
    columns = torch.cat((before, positions), 1)
    output = model(
        input_ids=tokens,
        attention_mask=masks(
            model.config.get_text_config(),
            ~torch.cat((in_beginning, in_tree), 2),
            positions[:, :, None] - columns[:, None],
            model.dtype,
        ),
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=keep,
    )
    logits: Tensor = output.logits.float()
    return logits


def _cache(pieces: Sequence[Sequence[Piece]], width: int) -> DynamicCache:
    """Return a cache with a row for each beginning, of `width` tokens with padding at the right."""
    like = pieces[0][0][0]
    layers, heads, _, size = like.shape
    joined = like.new_zeros(layers, len(pieces), heads, width, size)
    for row, several in enumerate(pieces):
        at = 0
        for part, num in several:
            joined[:, row, :, at : at + num] = part[:, :, :num]
            at += num
    cache = DynamicCache()
    for layer in range(layers // 2):
        cache.update(joined[2 * layer], joined[2 * layer + 1], layer)
    return cache


def _row(tree: _Tree, scored: dict[int, int], others: int, keep: int) -> Sequence[tuple[int, ...]]:
    """Token, position, number and end of each node: scored ones last, in their order, then padding."""
    start = len(tree.beginning)
    nodes = [
        (token, start + depth, number, end)
        for number, (token, depth, end) in enumerate(
            zip(tree.tokens, tree.depths, tree.ends, strict=True)
        )
    ]
    unscored = [node for node in nodes if node[2] not in scored]
    row = [*unscored, *[_PADDING] * (others - len(unscored)), *[nodes[number] for number in scored]]
    return row + [_PADDING] * (keep - len(scored))
