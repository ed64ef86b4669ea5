"""Three parts of a data set: to train on, to choose a checkpoint by, to measure it on.

train   the E-steps draw rationales of these problems, and the M-steps train on them
dev     the development part, taken from the training data: the best iteration is chosen by it
test    the held-out part: nothing is chosen by it, so it measures the chosen model without bias
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

from femtune.data.problems import GROUP, asked_key, item_key, split
from femtune.errors import ConfigError, DataError
from femtune.types import Problem

log = logging.getLogger("femtune")

# Items held out where the user gives no share: a tenth, and of small data more. At a true accuracy of
# 50% the 95% interval of 200 items is +-7 points.
HELD_OUT_SHARE, HELD_OUT_ITEMS, MOST_HELD_OUT = 0.1, 200, 0.3
# Items of the development part: a tenth of the training data, within these bounds. Where it would take
# more than a fifth, the data train instead: that is a judgment, not measured.
DEV_SHARE, LEAST_DEV, MOST_DEV, MOST_DEV_SHARE = 0.1, 40, 200, 0.2


class Parts(NamedTuple):
    """The problems of a run."""

    train: list[Problem]
    dev: list[Problem]
    test: list[Problem]

    @property
    def groups(self) -> tuple[list[Problem], ...]:
        """Return the parts in the order of a run's fingerprint; an empty one is left out."""
        return (self.train, self.test, self.dev) if self.dev else (self.train, self.test)


def num_held_out(num_items: int) -> int:
    """Return how many of so many items are held out by default: at least 200, or 30% of small data.

    >>> [num_held_out(num) for num in (100, 400, 1000, 10_000)]
    [30, 120, 200, 1000]
    """
    return max(round(HELD_OUT_SHARE * num_items), min(HELD_OUT_ITEMS, round(MOST_HELD_OUT * num_items)))


def num_dev(num_items: int) -> int:
    """Return the default size of the development part of so many training items; 0 of too few.

    >>> [num_dev(num) for num in (199, 200, 1000, 10_000)]
    [0, 40, 100, 200]
    """
    num = min(MOST_DEV, max(LEAST_DEV, round(DEV_SHARE * num_items)))
    return num if num <= MOST_DEV_SHARE * num_items else 0


def hold_out(
    problems: Sequence[Problem], eval_share: float | None, seed: int
) -> tuple[list[Problem], list[Problem]]:
    """Return the problems to train on and the held-out ones; the default share is `num_held_out`'s.

    The default takes the items with the least hashes of seed and item, so its number is exact. With a
    share, see `split`. Raises ConfigError for an impossible share, DataError if a side would be empty.
    """
    if eval_share is not None:
        return split(problems, eval_share, seed)
    rest, held = _least(problems, num_held_out(num_items(problems)), f"{seed}\x00")
    if not rest or not held:
        units = len({asked_key(problem) for problem in problems})
        raise DataError(
            f"{len(problems)} problems of {units} different items or groups are too few to hold "
            "some out: give --eval-data, more problems, or --eval-share 0, which measures nothing."
        )
    return rest, held


def set_aside(
    train: Sequence[Problem],
    dev_share: float | None,
    seed: int,
    usual: Callable[[int], int] = num_dev,
) -> tuple[list[Problem], list[Problem]]:
    """Return the problems to train on without the development part, and that part.

    The default is `usual` of the number of items; of `num_dev` none of few problems, nor where whole
    clusters would take more than a fifth of the items. Problems of one cluster are in one part. Raises
    ConfigError for an impossible share, DataError if one would leave a part empty.
    """
    if dev_share is not None and not 0 <= dev_share < 1:
        raise ConfigError(f"dev_share must be in [0, 1), got {dev_share}.")
    num = num_items(train)
    wanted = usual(num) if dev_share is None else round(dev_share * num)
    if dev_share and not 0 < wanted < num:
        raise DataError(
            f"dev_share {dev_share:g} of {num} training items is {wanted}: change dev_share, or set it "
            "to 0, for no development part."
        )
    # another hash than the held-out part's, which took the least of its own
    rest, dev = _least(train, wanted, f"development\x00{seed}\x00")
    if dev_share is None and usual is num_dev and num_items(dev) > MOST_DEV_SHARE * num:
        return [*train], []
    if not rest and dev:
        raise DataError(
            f"dev_share {dev_share:g} takes all {num} training items, as no group is parted: change "
            "dev_share, or set it to 0, for no development part."
        )
    return rest, dev


def num_items(problems: Sequence[Problem]) -> int:
    """Return the number of items among problems: what is judged, or the prompt, once each."""
    return len({item_key(problem) for problem in problems})


def _least(problems: Sequence[Problem], num: int, salt: str) -> tuple[list[Problem], list[Problem]]:
    """Return the other problems, and `num` items, those whose salted hashes are least.

    Of clusters, so many are taken that at least `num` items are.
    """

    def place(unit: str) -> bytes:
        return hashlib.blake2b(f"{salt}{unit}".encode(), digest_size=8).digest()

    units: dict[str, set[str]] = {}
    for problem in problems:
        units.setdefault(asked_key(problem), set()).add(item_key(problem))
    chosen, taken = set[str](), 0
    for unit in sorted(units, key=place):
        if taken >= num:
            break
        chosen.add(unit)
        taken += len(units[unit])
    sides: tuple[list[Problem], list[Problem]] = ([], [])
    for problem in problems:
        sides[asked_key(problem) in chosen].append(problem)
    return sides


def warn_of_groups(train: Sequence[Problem], test: Sequence[Problem]) -> None:
    """Warn of clusters that are in the data of both."""
    groups, trained = ({each.columns.get(GROUP) for each in part} - {None, ""} for part in (test, train))
    if shared := groups & trained:
        log.warning(
            "%d of %d groups of the held-out data are trained on too, so they are not new to the model.",
            *(len(shared), len(groups)),
        )
