"""The n-gram model: counts of what followed the last words, smoothed, backing off to shorter contexts.

Interpolated Kneser-Ney smoothing (Kneser, Ney 1995; Chen, Goodman 1998). With h the last n-1 tokens, h'
without its oldest, and c(h w) how often w followed h,

    p(w | h) = max(c(h w) - D, 0) / c(h) + D u(h) / c(h) p(w | h')       where h was seen, else p(w | h')

u(h) is the number of different tokens that followed h. What the discount D takes from tokens that were seen
goes to the shorter context, in proportion. Below the highest order, c(h w) is not how often h w occurred but
after how many different tokens: "Francisco" is frequent but follows only "San". Below the unigrams is the
uniform distribution. D is estimated for each order, from the numbers n1 and n2 of n-grams that were counted
once and twice: n1 / (n1 + 2 n2).
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["NGram"]

Context = tuple[int, ...]


class NGram:
    """Interpolated Kneser-Ney.

    Args:
        order: n, the longest n-gram: n-1 tokens of context.
        vocabulary: Number of different tokens.
        tables: For each order from 1, the next tokens' counts by context.

    Example:
        >>> model = NGram.count([0, 1, 2, 0, 1, 2, 0, 1], order=2, vocabulary=4)
        >>> model.distribution([1]).argmax().item(), round(model.distribution([1]).sum().item(), 6)
        (2, 1.0)
    """

    def __init__(self, order: int, vocabulary: int, tables: Sequence[dict[Context, dict[int, int]]]) -> None:
        self.order, self.vocabulary, self.tables = order, vocabulary, tables
        self.totals = [{h: sum(after.values()) for h, after in table.items()} for table in tables]
        self.discounts = [self._discount(table) for table in tables]

    @classmethod
    def count(cls, tokens: Sequence[int], order: int, vocabulary: int) -> NGram:
        """The model of a text."""
        grams = Counter(tuple(tokens[i : i + order]) for i in range(len(tokens) - order + 1))
        tables = [_by_context(grams)]
        seen = set(grams)
        for _ in range(order - 1):  # an n-gram one shorter counts once for every token seen before it
            shorter = Counter(gram[1:] for gram in seen)
            tables.insert(0, _by_context(shorter))
            seen = set(shorter)
        return cls(order, vocabulary, tables)

    @staticmethod
    def _discount(table: dict[Context, dict[int, int]]) -> float:
        counts = Counter(count for after in table.values() for count in after.values())
        return counts[1] / (counts[1] + 2 * counts[2]) if counts[1] and counts[2] else 0.5

    def probability(self, context: Sequence[int], token: int) -> float:
        """p(token | context), of which at most the last n-1 tokens count."""
        p = 1 / self.vocabulary
        for length, h in self._seen(context):
            after, total, discount = self.tables[length][h], self.totals[length][h], self.discounts[length]
            p = (max(after.get(token, 0) - discount, 0.0) + discount * len(after) * p) / total
        return p

    def distribution(self, context: Sequence[int]) -> Tensor:
        """p(. | context), float64 [vocabulary]."""
        p = torch.full((self.vocabulary,), 1 / self.vocabulary, dtype=torch.float64)
        for length, h in self._seen(context):
            after, total, discount = self.tables[length][h], self.totals[length][h], self.discounts[length]
            p *= discount * len(after) / total
            counts = torch.tensor(list(after.values()), dtype=torch.float64)
            p[list(after)] += (counts - discount).clamp(min=0) / total
        return p

    def _seen(self, context: Sequence[int]) -> list[tuple[int, Context]]:
        """The ends of the context that were seen, from the empty one on."""
        ends: list[tuple[int, Context]] = []
        for length in range(min(self.order, len(context) + 1)):
            h = tuple(context[len(context) - length :])
            if h not in self.tables[length]:
                break
            ends.append((length, h))
        return ends

    def log_probabilities(self, tokens: Sequence[int]) -> Tensor:
        """log p of each of N tokens but the first, given those before it, float64 [N - 1]."""
        logs = [
            math.log(self.probability(tokens[max(0, i - self.order + 1) : i], tokens[i]))
            for i in range(1, len(tokens))
        ]
        return torch.tensor(logs, dtype=torch.float64)

    def tensors(self) -> dict[str, Tensor]:
        """All there is to store: for each order n its n-grams with their counts, int32 [N, n + 1]."""
        return {
            str(n): torch.tensor([(*h, w, c) for h, after in table.items() for w, c in after.items()]).int()
            for n, table in enumerate(self.tables, 1)
        }

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], vocabulary: int) -> NGram:
        """What `tensors` gave, as a model again."""
        rows = [tensors[str(n)].tolist() for n in range(1, len(tensors) + 1)]
        tables = [_by_context({tuple(row[:-1]): row[-1] for row in own}) for own in rows]
        return cls(len(tables), vocabulary, tables)


def _by_context(grams: dict[Context, int]) -> dict[Context, dict[int, int]]:
    table: dict[Context, dict[int, int]] = defaultdict(dict)
    for gram, count in grams.items():
        table[gram[:-1]][gram[-1]] = count
    return dict(table)
