"""One-shot use: classes known from a single example each, and recognised without training.

A classifier has to be trained anew for every class that is added. A similarity does not: a question is of the
class whose example it is most similar to, if that is above the threshold, and of no known class otherwise.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from torch import nn

from examples.common.data import InputError

from .data import Pair
from .groups import same_question
from .learn import Task, vectors


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
                if not all(isinstance(e, str) for own in self.examples.values() for e in own):
                    raise ValueError
            except (OSError, ValueError, AttributeError, TypeError):
                found = "something else"
                raise InputError(path, None, "a JSON object of lists of examples by class", found) from None

    def add(self, name: str, example: str) -> None:
        """Add an example, and the class if it is new."""
        own = self.examples.setdefault(name, [])
        if example not in own:
            own.append(example)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self.path.with_name(self.path.name + ".unfinished")
        unfinished.write_text(
            json.dumps(self.examples, ensure_ascii=False, indent=2) + "\n", encoding="utf-8"
        )
        os.replace(unfinished, self.path)

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


def accuracy(task: Task, model: nn.Module, pairs: Sequence[Pair]) -> dict[str, float]:
    """How often a question is recognised from one example for each class.

    Every group of questions that ask the same is a class; the first question of each is its only example, the
    others are to be recognised among all classes.

    Returns:
        `classes`, how many there are, and, if there are some, `one-shot`, the fraction recognised.
    """
    groups: defaultdict[int, list[str]] = defaultdict(list)
    for question, group in same_question(pairs).items():
        groups[group].append(question)
    classes = [own for own in groups.values() if len(own) > 1]
    if not classes:
        return {"classes": 0.0}
    examples = vectors(task, model, [own[0] for own in classes])
    queries = [(question, n) for n, own in enumerate(classes) for question in own[1:]]
    found = (vectors(task, model, [question for question, _ in queries]) @ examples.T).argmax(1).tolist()
    right = sum(guess == n for guess, (_, n) in zip(found, queries, strict=True))
    return {"classes": float(len(classes)), "one-shot": right / len(queries)}
