"""Two tasks whose answer depends on what was seen many steps before; both from Hochreiter, Schmidhuber 1997.

Their length is free, so that memory can be tested and nothing else: the rule stays as simple as it is.
"""

from __future__ import annotations

import math
import random
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..common import distributed

__all__ = ["TASKS", "Adding", "Copy", "Stream", "Task", "Trials"]


LETTERS = "abcd"  # for the symbols of Copy


class Trials(NamedTuple):
    """Sequences and what is to be answered."""

    inputs: Tensor  # [T, B, I]
    targets: Tensor  # [B] or [K, B]


class Task(ABC):
    """What a network is to learn.

    Args:
        length: Steps over which it has to remember.
    """

    inputs: int  # features of an input, I
    outputs: int  # features of an answer
    steps: int  # of the input at the end, each of which is answered
    chance: float  # the loss of the best answer that needs no memory
    lengths: tuple[int, ...]  # to try by default

    def __init__(self, length: int) -> None:
        if length < 2:
            raise ValueError(f"there is nothing to remember in {length} steps")
        self.length = length

    @abstractmethod
    def draw(self, count: int, generator: torch.Generator) -> Trials:
        """Trials at random."""

    @abstractmethod
    def read(self, text: str) -> Trials | None:
        """One trial, as a user writes it; None for what is none of this task."""

    @abstractmethod
    def show(self, answers: Tensor) -> str:
        """The answers [steps, 1, outputs] to one trial."""

    @abstractmethod
    def loss(self, answers: Tensor, targets: Tensor) -> Tensor:
        """The mean loss of the answers [steps, B, outputs] of each trial, [B]."""


class Adding(Task):
    """Two of T numbers in [0, 1] are marked, one in each half of the sequence; the answer is their sum.

    An input is (number, mark). Always to answer 1 has a squared error of 1/6.
    """

    inputs, outputs, steps, chance = 2, 1, 1, 1 / 6
    lengths = (10, 25, 50, 100)

    def draw(self, count: int, generator: torch.Generator) -> Trials:
        numbers = torch.rand(self.length, count, generator=generator)
        marks = torch.zeros(self.length, count)
        half = self.length // 2
        for first, last in ((0, half), (half, self.length)):
            marks.scatter_(0, torch.randint(first, last, (1, count), generator=generator), 1.0)
        return Trials(torch.stack([numbers, marks], 2), (numbers * marks).sum(0))

    def read(self, text: str) -> Trials | None:
        """Numbers, two of them with a star: "0.3 0.5* 0.1 0.25*"."""
        found = re.fullmatch(r"\s*((0|1|[01]?\.\d+)\*?\s+)+", text + " ")
        if not found or text.count("*") != 2:
            return None
        marks = [float(word.endswith("*")) for word in text.split()]
        inputs = torch.tensor([[float(word.rstrip("*")) for word in text.split()], marks])
        return Trials(inputs.t()[:, None], inputs.prod(0).sum()[None])

    def show(self, answers: Tensor) -> str:
        return f"{answers.item():.3f}"

    def loss(self, answers: Tensor, targets: Tensor) -> Tensor:
        return (answers[0, :, 0] - targets).square()


class Copy(Task):
    """Symbols, T steps of nothing, a sign, and then the symbols are to be repeated.

    An input is one of the symbols, nothing or the sign, one-hot. To guess has a cross entropy of
    log(symbols).
    """

    symbols, steps = len(LETTERS), 3
    inputs, outputs = symbols + 2, symbols
    chance = math.log(symbols)
    lengths = (5, 10, 20)

    def draw(self, count: int, generator: torch.Generator) -> Trials:
        return self._trials(torch.randint(self.symbols, (self.steps, count), generator=generator))

    def _trials(self, targets: Tensor) -> Trials:
        nothing, sign = self.symbols, self.symbols + 1
        ids = torch.full((2 * self.steps + self.length, targets.size(1)), nothing)
        ids[: self.steps] = targets
        ids[-self.steps - 1] = sign
        return Trials(nn.functional.one_hot(ids, self.inputs).float(), targets)

    def read(self, text: str) -> Trials | None:
        """Three letters: "abd"."""
        if len(text) != self.steps or not set(text) <= set(LETTERS):
            return None
        return self._trials(torch.tensor([LETTERS.index(letter) for letter in text])[:, None])

    def show(self, answers: Tensor) -> str:
        return "".join(LETTERS[i] for i in answers[:, 0].argmax(1))

    def loss(self, answers: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(answers.movedim(2, 1), targets, reduction="none").mean(0)


TASKS: dict[str, type[Task]] = {"adding": Adding, "copy": Copy}


@dataclass(frozen=True)
class Stream:
    """Batches without end: an epoch is `steps` of them, never the same twice."""

    task: Task
    batch: int  # of all processes together
    steps: int
    seed: int

    def __call__(self, epoch: int) -> list[Trials]:
        generator = torch.Generator().manual_seed(random.Random(f"{self.seed} {epoch}").getrandbits(63))
        own = list(distributed.shard(range(self.batch)))
        batches = (self.task.draw(self.batch, generator) for _ in range(self.steps))
        return [Trials(b.inputs[:, own], b.targets[..., own]) for b in batches]
