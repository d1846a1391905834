"""Questions as vectors, the loss of a batch of duplicates, thresholds and accuracies."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from examples.common import distributed
from examples.common.text import Vocabulary, pad_batch
from examples.common.train import Loss

from .data import Pair, tokenize
from .groups import Row
from .loss import triplet_costs
from .model import Encoder


class Task(NamedTuple):
    """The vocabulary that a model knows."""

    vocabulary: Vocabulary

    @classmethod
    def of(cls, pairs: Sequence[Pair], min_count: int = 2) -> Task:
        """The words that occur `min_count` times in training, the others being unknown."""
        questions = (question for pair in pairs for question in pair[:2])
        return cls(Vocabulary.build(map(tokenize, questions), min_count=min_count))

    def config(self, cell: str) -> dict[str, Any]:
        """What a checkpoint has to tell; `cell` as for `Encoder`."""
        return {"cell": cell, "vocabulary": self.vocabulary.to_json()}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Task:
        return cls(Vocabulary.from_json(config["vocabulary"]))

    def batch(self, questions: Sequence[str], model: nn.Module) -> tuple[Tensor, Tensor]:
        """Ids [B, T] on the model's device, and lengths [B]."""
        device = next(model.parameters()).device
        return pad_batch([self.vocabulary.ids(tokenize(question)) for question in questions], device=device)


def build(config: dict[str, Any], backend: str = "fused") -> Encoder:
    """A new encoder of a configuration."""
    return Encoder(len(config["vocabulary"]), cell=config["cell"], backend=backend)


def triplet_loss(
    task: Task, margin: float, negatives: str = "sum"
) -> Callable[[nn.Module, Sequence[Row]], Loss]:
    """The loss of a batch: the sum of `triplet_costs` over its rows, to be divided by their number.

    Where several processes share a batch, each compares the first questions of its rows with the second ones
    of all: every other row is a negative, whoever has it.
    """

    def loss(model: nn.Module, rows: Sequence[Row]) -> Loss:
        ids, lengths = task.batch([row.first for row in rows] + [row.second for row in rows], model)
        one, other = model(ids, lengths).chunk(2)
        others = distributed.gather(other)
        here = distributed.shard(range(len(others)))
        costs = triplet_costs(one @ others.T, margin, here[0], negatives)
        return Loss(costs.sum(), len(rows), int(lengths.sum()))

    return loss


@torch.inference_mode()
def vectors(task: Task, model: nn.Module, questions: Sequence[str], batch: int = 256) -> Tensor:
    """The vectors [N, hidden] of N questions, on the CPU."""
    parts = [questions[i : i + batch] for i in range(0, len(questions), batch)]
    return torch.cat([model(*task.batch(part, model)).cpu() for part in parts])


class Encoded(NamedTuple):
    """Questions, and their vectors, each read once however often it is asked for."""

    place: dict[str, int]  # of a question among the rows of `table`
    table: Tensor  # [N, hidden]

    @classmethod
    def of(cls, task: Task, model: nn.Module, pairs: Sequence[Pair]) -> Encoded:
        """All questions of some pairs."""
        place = {question: n for n, question in enumerate(dict.fromkeys(q for p in pairs for q in p[:2]))}
        return cls(place, vectors(task, model, list(place)))

    def __call__(self, questions: Iterable[str]) -> Tensor:
        """The vectors [M, hidden] of M of the questions."""
        return self.table[[self.place[question] for question in questions]]


def similarities(encoded: Encoded, pairs: Sequence[Pair]) -> Tensor:
    """The cosine similarity [N] of each of N pairs."""
    return (encoded(pair.first for pair in pairs) * encoded(pair.second for pair in pairs)).sum(-1)


def accuracy(similarity: Tensor, duplicate: Tensor, threshold: float) -> float:
    """The fraction of pairs that are duplicates if, and only if, their similarity is above the threshold."""
    return float(((similarity > threshold) == duplicate).float().mean())


def best_threshold(similarity: Tensor, duplicate: Tensor, weights: Tensor | None = None) -> float:
    """The threshold with the highest accuracy; halfway between the two similarities that it parts.

    Args:
        similarity: [N].
        duplicate: bool [N].
        weights: [N], what each counts in the accuracy; None: 1.

    Example:
        >>> best_threshold(torch.tensor([0.25, 0.875, 0.375, 0.625]), torch.tensor([0, 1, 0, 1]).bool())
        0.5
    """
    similarity, order = similarity.double().sort()
    labels = duplicate[order].double()
    counts = torch.ones_like(similarity) if weights is None else weights[order].double()
    # With the threshold before the n-th similarity, right are the others below it and the duplicates from it
    # on.
    none = counts.new_zeros(1)
    below, above = ((1 - labels) * counts).cumsum(0), (labels * counts).flip(0).cumsum(0).flip(0)
    right = torch.cat([none, below]) + torch.cat([above, none])
    edges = torch.cat([similarity[:1] - 1, similarity, similarity[-1:] + 1])
    between = edges.diff() > 0  # no threshold parts equal similarities
    n = int(torch.where(between, right, -1).argmax())
    return float((edges[n] + edges[n + 1]) / 2)


def metrics(encoded: Encoded, pairs: Sequence[Pair], threshold: float | None = None) -> dict[str, float]:
    """Accuracy at a threshold, by default at the one that is best for these very pairs."""
    similarity = similarities(encoded, pairs)
    duplicate = torch.tensor([pair.duplicate for pair in pairs])
    threshold = best_threshold(similarity, duplicate) if threshold is None else threshold
    return {"accuracy": accuracy(similarity, duplicate, threshold), "threshold": threshold}
