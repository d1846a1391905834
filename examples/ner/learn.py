"""Sentences as batches of ids, the masked loss, and the tags that a model finds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from examples.common.text import Vocabulary, pad_batch
from examples.common.train import Loss

from .data import Sentence
from .model import Tagger
from .spans import OUTSIDE, Score, score

NO_TAG = -1  # what a target has at padding: the number of no tag, so that no model can predict it


class Example(NamedTuple):
    """The ids of a sentence's tokens, and of their tags."""

    ids: list[int]
    tags: list[int]


class Task(NamedTuple):
    """The vocabulary and the tags that a model knows, each by number."""

    vocabulary: Vocabulary
    tags: list[str]

    @classmethod
    def of(cls, sentences: Sequence[Sentence], types: set[str], min_count: int = 2) -> Task:
        """The words that occur `min_count` times in training, the others being unknown, and the tags of
        `types`."""
        vocabulary = Vocabulary.build((s.tokens for s in sentences), min_count=min_count)
        return cls(vocabulary, ["O", *(f"{letter}-{type}" for type in sorted(types) for letter in "BI")])

    @property
    def types(self) -> set[str]:
        """The types of entity."""
        return {tag[2:] for tag in self.tags if tag != "O"}

    def encode(self, sentences: Sequence[Sentence]) -> list[Example]:
        number = {tag: i for i, tag in enumerate(self.tags)}
        return [Example(self.vocabulary.ids(s.tokens), [number[tag] for tag in s.tags]) for s in sentences]

    def config(self, bidirectional: bool, cell: str, length: int | None = None) -> dict[str, Any]:
        """What a checkpoint has to tell."""
        own = {"tags": self.tags, "vocabulary": self.vocabulary.to_json()}
        return {"bidirectional": bidirectional, "cell": cell, "length": length, **own}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Task:
        return cls(Vocabulary.from_json(config["vocabulary"]), config["tags"])


def build(config: dict[str, Any], backend: str = "fused") -> Tagger:
    """A new model of a configuration."""
    sizes = len(config["vocabulary"]), len(config["tags"])
    options = {name: config[name] for name in ("bidirectional", "cell", "length")}
    return Tagger(*sizes, **options, backend=backend)


def reads(model: nn.Module) -> int | None:
    """How many tokens of each sentence a model of `build` reads; None is all of them."""
    return cast(Tagger, model).length


def pad(
    rows: Sequence[list[int]], length: int | None, *, fill: int = 0, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Lists of ids side by side, all of one length: longer ones are cut, shorter ones filled up.

    Args:
        rows: B lists of ids, none of them empty.
        length: N; None is that of the longest list.
        fill: What goes after the end of the shorter ones.

    Returns:
        ids, int64 [B, N] on `device`; and how many of each row are real, int64 [B] on the CPU.

    Example:
        >>> pad([[5, 6, 7], [8]], 2)
        (tensor([[5, 6],
                [8, 0]]), tensor([2, 1]))
        >>> pad([[8]], 2)
        (tensor([[8, 0]]), tensor([1]))
    """
    ids, lengths = pad_batch([row[:length] for row in rows], fill=fill, device=device)
    missing = (length or ids.size(1)) - ids.size(1)
    return nn.functional.pad(ids, (0, missing), value=fill), lengths


def masked_nll(log_p: Tensor, tags: Tensor) -> Tensor:
    """Negative log-likelihood of the right tags, summed over the real tokens alone:

        -Σ_{b,t: y_bt ≠ NO_TAG} log p_bt[y_bt]

    Divided by the number of real tokens, it does not depend on how much padding a batch has.

    Args:
        log_p: Log probabilities [B, T, tags].
        tags: Numbers of tags [B, T], NO_TAG at padding.
    """
    return nn.functional.nll_loss(log_p.flatten(0, 1), tags.flatten(), ignore_index=NO_TAG, reduction="sum")


def loss(model: nn.Module, batch: Sequence[Example]) -> Loss:
    """The masked loss of a batch, to be divided by the number of real tokens that the model reads of it."""
    device = next(model.parameters()).device
    ids, lengths = pad([example.ids for example in batch], reads(model), device=device)
    tags, _ = pad([example.tags for example in batch], reads(model), fill=NO_TAG, device=device)
    tokens = int(lengths.sum())
    return Loss(masked_nll(model(ids, lengths), tags), tokens, tokens)


@torch.inference_mode()
def predict(
    model: nn.Module, task: Task, sentences: Sequence[Sequence[str]], batch: int = 256
) -> list[list[str]]:
    """The likeliest tag of each token of each sentence; O for those that the model does not read."""
    device = next(model.parameters()).device
    found: list[list[str]] = []
    for start in range(0, len(sentences), batch):
        part = sentences[start : start + batch]
        ids, lengths = pad([task.vocabulary.ids(s) for s in part], reads(model), device=device)
        best = model(ids, lengths).argmax(-1).tolist()
        for own, row in zip(part, best, strict=True):
            read = [task.tags[i] for i in row[: len(own)]]
            found.append(read + [OUTSIDE] * (len(own) - len(read)))
    return found


def metrics(scores: dict[str, Score]) -> dict[str, float]:
    """Precision, recall and F1 of all types together."""
    return {"precision": scores["all"].precision, "recall": scores["all"].recall, "F1": scores["all"].f1}


def model_scores(model: nn.Module, task: Task, sentences: Sequence[Sentence]) -> dict[str, Score]:
    """The scores, by type, of what a model finds in sentences whose entities are known."""
    return score(predict(model, task, [s.tokens for s in sentences]), [s.tags for s in sentences])
