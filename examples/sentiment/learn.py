"""Tweets as batches of ids, the loss, the accuracy, and whether it still changes."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from examples.common.contest import Trained, load_each
from examples.common.text import Vocabulary, pad_batch
from examples.common.train import Loss

from .bayes import NaiveBayes
from .data import Tweet
from .model import MeanClassifier, RecurrentClassifier

BAYES = "bayes"  # what is counted
MODELS = ("mean", "recurrent")  # what is trained


class Example(NamedTuple):
    """The ids of a tweet's tokens and the number of its feeling."""

    ids: list[int]
    feeling: int


class Task(NamedTuple):
    """The vocabulary and the feelings that a model knows, each by number."""

    vocabulary: Vocabulary
    feelings: list[str]

    @classmethod
    def of(cls, tweets: Sequence[Tweet], feelings: Iterable[str], min_count: int = 2) -> Task:
        """The words that occur `min_count` times in training, the others being unknown, and the feelings."""
        vocabulary = Vocabulary.build((tweet.tokens for tweet in tweets), min_count=min_count)
        return cls(vocabulary, sorted(feelings))

    def encode(self, tweets: Sequence[Tweet]) -> list[Example]:
        return [Example(self.vocabulary.ids(t.tokens), self.feelings.index(t.feeling)) for t in tweets]

    def config(self, kind: str, cell: str) -> dict[str, Any]:
        """What a checkpoint has to tell; `kind` is BAYES or one of MODELS."""
        return {
            "kind": kind,
            "cell": cell,
            "feelings": self.feelings,
            "vocabulary": self.vocabulary.to_json(),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Task:
        return cls(Vocabulary.from_json(config["vocabulary"]), config["feelings"])


def build(config: dict[str, Any], backend: str = "fused") -> nn.Module:
    """A new model of a configuration."""
    sizes = len(config["vocabulary"]), len(config["feelings"])
    if config["kind"] == BAYES:
        return NaiveBayes(*sizes)
    if config["kind"] == "mean":
        return MeanClassifier(*sizes)
    return RecurrentClassifier(*sizes, cell=config["cell"], backend=backend)


def load(options: argparse.Namespace) -> tuple[Task, dict[str, Trained]]:
    """What was learned in the folder `options.out`: the task, and the models, those that only count first.

    Raises:
        InputError: A checkpoint is not there, or not of these models.
    """
    trained = load_each(options, build, (*MODELS, BAYES))
    return Task.from_config(trained[BAYES].config), {name: trained[name] for name in (BAYES, *MODELS)}


def log_probabilities(model: nn.Module, texts: Sequence[list[int]]) -> tuple[Tensor, int]:
    """Log probabilities [B, classes] for B lists of ids, and how many ids these are."""
    ids, lengths = pad_batch(texts, device=next(model.parameters()).device)
    return model(ids, lengths), int(lengths.sum())


def loss(model: nn.Module, batch: Sequence[Example]) -> Loss:
    """Negative log-likelihood of the right feelings: -Σ_b log p_b[y_b], to be divided by the number of
    tweets."""
    log_p, tokens = log_probabilities(model, [example.ids for example in batch])
    feelings = torch.tensor([example.feeling for example in batch], device=log_p.device)
    return Loss(nn.functional.nll_loss(log_p, feelings, reduction="sum"), len(batch), tokens)


@torch.inference_mode()
def predict(model: nn.Module, texts: Sequence[list[int]], batch: int = 256) -> Tensor:
    """Log probabilities [N, classes], on the CPU, for N lists of ids."""
    parts = [texts[i : i + batch] for i in range(0, len(texts), batch)]
    return torch.cat([log_probabilities(model, part)[0].cpu() for part in parts])


def accuracy(model: nn.Module, examples: Sequence[Example]) -> dict[str, float]:
    """The fraction of tweets whose likeliest feeling is the right one."""
    guesses = predict(model, [example.ids for example in examples]).argmax(-1)
    return {
        "accuracy": float((guesses == torch.tensor([example.feeling for example in examples])).float().mean())
    }


def unknown_share(examples: Sequence[Example]) -> float:
    """The fraction of all tokens that are not in the vocabulary, and so have the id of <UNK>.

    Example:
        >>> unknown_share([Example([2, 1, 3], 0), Example([1], 1)])
        0.5
    """
    return sum(example.ids.count(1) for example in examples) / sum(len(example.ids) for example in examples)


def drift(accuracies: Sequence[float]) -> dict[str, float]:
    """How far training still moves the accuracy: its mean over the last quarter of the epochs, less that over
    the quarter before. There is none of fewer than four epochs.

    Example:
        >>> drift([0.0, 0.25, 0.5, 0.5, 0.75, 0.75, 0.75, 1.0])
        {'drift': 0.125}
    """
    quarter = len(accuracies) // 4
    if not quarter:
        return {}
    last, before = accuracies[-quarter:], accuracies[-2 * quarter : -quarter]
    return {"drift": statistics.mean(last) - statistics.mean(before)}
