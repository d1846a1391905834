"""What was learned, as a picture: accuracy by epoch, and the feeling word by word."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from examples.common import plot
from examples.common.train import History

from .data import POSITIVE, Tweet
from .learn import Task, predict
from .model import RecurrentClassifier


def draw(
    path: Path,
    histories: dict[str, History],
    task: Task,
    models: dict[str, nn.Module],
    tweets: Sequence[Tweet],
) -> Path:
    """Left, accuracy on held-out tweets after each epoch; right, how the recurrent model changes its mind
    while it reads some of those that it gets right and the mean of word vectors gets wrong."""
    figure, (left, right) = plot.new(1, 2, width=13)
    for name, history in histories.items():
        epochs = range(1, len(history.epochs) + 1)
        left.plot(epochs, [epoch["accuracy"] for epoch in history.epochs], marker=".", label=name)
    left.set(title="Held-out tweets", xlabel="epoch", ylabel="accuracy")
    left.legend()

    last = task.feelings.index(POSITIVE) if POSITIVE in task.feelings else len(task.feelings) - 1
    for shift, tweet in enumerate(instructive(task, models, tweets)):
        probability = word_by_word(task, models["recurrent"], tweet.tokens)[:, last]
        line = right.plot(probability, marker=".")[0]
        for i, (p, token) in enumerate(zip(probability, tweet.tokens, strict=True)):
            above = {"xytext": (0, 6 if shift % 2 else -12), "textcoords": "offset points"}
            token = token if token.isascii() else "☺"  # the font has few emoji
            right.annotate(token, (i, float(p)), fontsize=7, ha="center", color=line.get_color(), **above)
    right.set(title="The recurrent model, word by word", xlabel="words read", ylim=(-0.1, 1.1))
    right.set_ylabel(f"probability of {task.feelings[last]}")
    return plot.save(figure, path)


def instructive(
    task: Task, models: dict[str, nn.Module], tweets: Sequence[Tweet], per_feeling: int = 1
) -> list[Tweet]:
    """For each feeling, the shortest tweets that only the recurrent model gets right."""
    texts = [task.vocabulary.ids(tweet.tokens) for tweet in tweets]
    guesses = {name: predict(model, texts).argmax(-1).tolist() for name, model in models.items()}
    shown: list[Tweet] = []
    for number, feeling in enumerate(task.feelings):
        only = [
            tweet
            for tweet, mean, recurrent in zip(tweets, guesses["mean"], guesses["recurrent"], strict=True)
            if tweet.feeling == feeling and recurrent == number != mean
        ]
        shown += sorted(only, key=lambda tweet: len(tweet.tokens))[:per_feeling]
    return shown


@torch.inference_mode()
def word_by_word(task: Task, model: nn.Module, tokens: list[str]) -> torch.Tensor:
    """Probabilities [T, classes], on the CPU, after each of T tokens."""
    if not isinstance(model, RecurrentClassifier):
        raise TypeError("only the recurrent model reads word by word")
    ids = torch.tensor([task.vocabulary.ids(tokens)], device=next(model.parameters()).device)
    return model.trace(ids)[0].exp().cpu()
