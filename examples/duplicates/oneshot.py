"""One-shot use: classes known from a single example each, and recognised without training.

A classifier has to be trained anew for every class that is added. A similarity does not: a question is of the
class whose example it is most similar to, if that is above the threshold, and of no known class otherwise.
The most similar of many wrong examples is more similar than a single one, so that one-shot use has a
threshold of its own, beside the one that parts pairs.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from examples.common.data import InputError, replace_text

from .data import Pair, tokenize
from .groups import same_question
from .learn import Encoded, Task, best_threshold, vectors


class Recognised(NamedTuple):
    """The class of the most similar example, None where nothing is similar enough, and that similarity."""

    name: str | None
    similarity: float


class Classes:
    """Examples by class, in a JSON file.

    The examples are kept as text: after another training, they are read by the new encoder.

    Args:
        path: The file; it is made with the first class.

    Raises:
        InputError: The file is not one of examples by class.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.examples: dict[str, list[str]] = {}
        if path.exists():
            try:
                self.examples = json.loads(path.read_text(encoding="utf-8"))
                lists = self.examples.values()
                if not all(isinstance(own, list) and own for own in lists):
                    raise ValueError
                if not all(isinstance(e, str) and tokenize(e) for own in lists for e in own):
                    raise ValueError
            except (OSError, ValueError, AttributeError, TypeError):
                found = "something else"
                raise InputError(path, None, "a JSON object of lists of examples by class", found) from None

    def add(self, name: str, example: str) -> None:
        """Add an example, and the class if it is new."""
        own = self.examples.setdefault(name, [])
        if example not in own:
            own.append(example)
        replace_text(self.path, json.dumps(self.examples, ensure_ascii=False, indent=2) + "\n")

    def recognise(self, task: Task, model: nn.Module, question: str, threshold: float) -> Recognised:
        """The class of a question.

        Raises:
            InputError: There are no classes yet.
        """
        if not self.examples:
            raise InputError(self.path, None, "a class at least (run `add` first)", "none")
        names = [name for name, own in self.examples.items() for _ in own]
        known = vectors(task, model, [example for own in self.examples.values() for example in own])
        similarity, best = (known @ vectors(task, model, [question])[0]).max(0)
        name = names[int(best)] if similarity > threshold else None
        return Recognised(name, float(similarity))


def accuracy(encoded: Encoded, pairs: Sequence[Pair]) -> dict[str, float]:
    """How often a question is recognised from one example for each class, where all classes are known.

    Every group of questions that ask the same is a class; the first question of each is its only example, the
    others are to be recognised among all classes.

    Returns:
        `classes`, how many there are, and, if there are some, `one-shot`, the fraction recognised.
    """
    classes = classes_of(pairs)
    if not classes:
        return {"classes": 0.0}
    _, found = nearest(encoded(q for own in classes for q in own[1:]), encoded(own[0] for own in classes))
    right = found == torch.tensor([n for n, own in enumerate(classes) for _ in own[1:]])
    return {"classes": float(len(classes)), "one-shot": float(right.float().mean())}


class Queries(NamedTuple):
    """Questions of known and of unknown classes, looked up among one example of each known class."""

    similarity: Tensor  # [Q], with the most similar example
    right: Tensor  # bool [Q], whether that is of the question's class
    known: Tensor  # bool [Q], whether the question is of a known class

    @classmethod
    def of(cls, encoded: Encoded, pairs: Sequence[Pair]) -> Queries | None:
        """Those of some pairs: of the classes in order, the first is known, the second is not, and so on; of
        known ones, the first question is the example.

        Returns:
            None where there are fewer than two classes.
        """
        classes = classes_of(pairs)
        known, unknown = classes[::2], classes[1::2]
        if not unknown:
            return None
        asked = [(question, n) for n, own in enumerate(known) for question in own[1:]]
        asked += [(question, -1) for own in unknown for question in own]
        similarity, found = nearest(encoded(q for q, _ in asked), encoded(own[0] for own in known))
        wanted = torch.tensor([n for _, n in asked])
        return cls(similarity, found == wanted, wanted >= 0)

    def best_threshold(self) -> float:
        """The threshold with the highest balanced accuracy."""
        # A question of a known class that is taken for another one is wrong at every threshold.
        share = self.known.double() / self.known.sum() + (~self.known).double() / (~self.known).sum()
        return best_threshold(self.similarity, self.known, share * (self.right | ~self.known))

    def scores(self, threshold: float) -> dict[str, float]:
        """What comes of a threshold τ. With s the similarity with the most similar example:

        recognised   of questions of known classes, the fraction with the right example and s > τ
        rejected     of questions of unknown classes, the fraction with s ≤ τ
        balanced     (recognised + rejected) / 2
        """
        above = self.similarity > threshold
        recognised = float((self.right & above)[self.known].float().mean())
        rejected = float((~above)[~self.known].float().mean())
        balanced = (recognised + rejected) / 2
        return {
            "threshold": threshold,
            "recognised": recognised,
            "rejected": rejected,
            "balanced": balanced,
        }


def classes_of(pairs: Sequence[Pair]) -> list[list[str]]:
    """Groups of two or more questions that ask the same, as their first questions appear."""
    groups: defaultdict[int, list[str]] = defaultdict(list)
    for question, group in same_question(pairs).items():
        groups[group].append(question)
    return [own for own in groups.values() if len(own) > 1]


def nearest(queries: Tensor, examples: Tensor, batch: int = 1024) -> tuple[Tensor, Tensor]:
    """For each of the vectors [Q, hidden], the highest similarity [Q] with any of the examples [K, hidden],
    and which one that is [Q]; never more than batch · K similarities at a time."""
    parts = [(part @ examples.T).max(1) for part in queries.split(batch)]
    return torch.cat([part.values for part in parts]), torch.cat([part.indices for part in parts])
