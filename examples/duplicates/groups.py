"""Which questions ask the same, and batches in which no two rows do."""

from __future__ import annotations

import itertools
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from examples.common import distributed

from .data import Pair


class Row(NamedTuple):
    """Two questions that ask the same, and the number of their group."""

    first: str
    second: str
    group: int


def connected(links: Iterable[tuple[str, str]]) -> dict[str, int]:
    """The number of each question's group: linked questions, also over others, are in one group.

    Groups are numbered as their first question appears. Union-find with path halving.

    Example:
        >>> connected([("a", "b"), ("c", "c"), ("d", "b")])
        {'a': 0, 'b': 0, 'c': 1, 'd': 0}
    """
    parent: dict[str, str] = {}

    def root(question: str) -> str:
        parent.setdefault(question, question)
        while parent[question] != question:
            parent[question] = question = parent[parent[question]]
        return question

    for one, other in links:
        parent[root(other)] = root(one)
    numbers: dict[str, int] = {}
    return {question: numbers.setdefault(root(question), len(numbers)) for question in list(parent)}


def same_question(pairs: Iterable[Pair]) -> dict[str, int]:
    """The number of each question's group, by the pairs that are duplicates."""
    return connected((p.first, p.second if p.duplicate else p.first) for p in with_mirrors(pairs))


def with_mirrors(pairs: Iterable[Pair]) -> Iterator[Pair]:
    """Every pair, and after it the pair the other way round."""
    for pair in pairs:
        yield pair
        yield Pair(pair.second, pair.first, pair.duplicate)


class Rows:
    """Batches of duplicates in which every other row is a negative: no two rows ask the same.

    In an epoch, every group of questions that ask the same gives one of its pairs of duplicates, drawn at
    random. With rivals, groups that are known to be different, by a pair that is no duplicate, stand near
    each other, in the same batch as a rule: a row is then to be told from what it is most easily mistaken
    for. Without, batches are drawn at random.

    Args:
        pairs: Duplicates and others.
        batch_size: Rows of all processes' parts together; the sizes of batches are at least that, where there
            are as many groups.
        seed: Decides, with the epoch, about the rows and their order.
        rivals: Whether rivals share a batch.

    Raises:
        ValueError: Fewer than two groups have a pair of duplicates, or a process would get no row.
    """

    def __init__(self, pairs: Sequence[Pair], batch_size: int, *, seed: int = 0, rivals: bool = True) -> None:
        self.seed = seed
        group = same_question(pairs)
        self.duplicates: defaultdict[int, list[Pair]] = defaultdict(list)
        self.rivals: defaultdict[int, list[int]] = defaultdict(list)
        for pair in with_mirrors(pairs):
            one, other = group[pair.first], group[pair.second]
            if pair.duplicate and pair.first != pair.second:
                self.duplicates[one].append(pair)
            elif rivals and one != other:
                self.rivals[one].append(other)
        if len(self.duplicates) < 2:
            raise ValueError(
                f"{len(self.duplicates)} questions with a duplicate, where two are needed at least"
            )
        if min(len(self.duplicates), batch_size) < max(2, distributed.world_size()):
            raise ValueError(f"batches of {batch_size} from {len(self.duplicates)} questions are too small")
        self.count = max(1, len(self.duplicates) // batch_size)

    def __len__(self) -> int:
        """Batches in an epoch."""
        return self.count

    def rows(self, epoch: int) -> list[list[Row]]:
        """All batches of an epoch, in full: the same in every process."""
        rng = random.Random(f"{self.seed} {epoch}")
        order = self._order(rng)
        rows = [Row(*rng.choice(self.duplicates[group])[:2], group) for group in order]
        edges = [n * len(rows) // self.count for n in range(self.count + 1)]
        batches = [rows[start:end] for start, end in itertools.pairwise(edges)]
        rng.shuffle(batches)
        return batches

    def __call__(self, epoch: int) -> Iterator[Sequence[Row]]:
        """This process's part of every batch of an epoch."""
        for batch in self.rows(epoch):
            yield distributed.shard(batch)

    def _order(self, rng: random.Random) -> list[int]:
        """The groups at random, but each followed by its rivals, and these by theirs."""
        starts = list(self.duplicates)
        rng.shuffle(starts)
        order: dict[int, None] = {}  # a set that keeps the order
        waiting: list[int] = []
        for start in starts:
            waiting.append(start)
            while waiting:
                group = waiting.pop()
                if group not in order and group in self.duplicates:
                    order[group] = None
                    waiting += rng.sample(self.rivals[group], len(self.rivals[group]))
        return list(order)
