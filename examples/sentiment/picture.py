"""What was learned, as a picture: accuracy by epoch, and the feeling of tweets word by word."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from examples.common import plot
from examples.common.contest import Trained

from . import data
from .data import POSITIVE, Tweet
from .learn import BAYES, MODELS, Task, load, predict

TELLING = "telling.csv"  # the tweets that are shown, in the folder of a training
SHOWN = 2  # how many they are
COLOURS = dict(zip((*MODELS, BAYES), plot.COLOURS, strict=False))


def draw(folders: Mapping[int, Path], out: Path) -> Path:
    """Left, accuracy on held-out tweets after each epoch, over all seeds the median and from the lowest to
    the highest; then how the models of the first seed change their minds, word by word, over its telling
    tweets.

    Args:
        folders: What `train` left for each seed.
        out: Where the picture goes.
    """
    seeds = [load(argparse.Namespace(out=own, device=torch.device("cpu"))) for own in folders.values()]
    figure, (left, *others) = plot.new(1, 1 + SHOWN, width=16, height=4.2)
    _accuracy_by_epoch(left, [trained for _, trained in seeds])
    task, trained = seeds[0]
    shown = task.feelings.index(POSITIVE) if POSITIVE in task.feelings else len(task.feelings) - 1
    for axes, tweet in zip(others, data.read(next(iter(folders.values())) / TELLING), strict=False):
        for name, own in trained.items():
            probability = word_by_word(task, own.model, tweet.tokens)[:, shown]
            axes.plot(probability, marker="o", label=name, color=COLOURS[name])
        axes.axhline(1 / len(task.feelings), color=plot.COLOURS[-1], linestyle="--", linewidth=1)
        axes.set(title=f"A {tweet.feeling} tweet, word by word", ylim=(-0.05, 1.05))
        axes.set_ylabel(f"probability of {task.feelings[shown]}")
        words = [token if token.isascii() else "☺" for token in tweet.tokens]  # the font has no emoji
        axes.set_xticks(range(len(words)), words, rotation=60, ha="right", rotation_mode="anchor")
    return plot.save(figure, out / "sentiment.png")


def _accuracy_by_epoch(axes: Any, seeds: Sequence[Mapping[str, Trained]]) -> None:
    """A curve and its band for each trained model; naive Bayes, which has no epochs, is level."""
    last = max(len(own.history.epochs) for own in seeds[0].values())
    for name in seeds[0]:
        curves = [[epoch["accuracy"] for epoch in trained[name].history.epochs] for trained in seeds]
        if name == BAYES:
            level = [curve * 2 for curve in curves]
            plot.band(axes, [1, last], level, color=COLOURS[name], label=name, linestyle="--")
        else:
            epochs = range(1, len(curves[0]) + 1)
            plot.band(axes, epochs, curves, color=COLOURS[name], label=name, marker=".")
    axes.set(title="Held-out tweets", xlabel="epoch", ylabel="accuracy")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.legend()


def telling(task: Task, trained: Mapping[str, Trained], tweets: Sequence[Tweet]) -> list[Tweet]:
    """Tweets that only the recurrent model gets right, of different feelings by turns; the first ones where
    there are none. Before others come those over which it was sure of the contrary once, and of these the
    ones with the fewest detours."""
    texts = [task.vocabulary.ids(tweet.tokens) for tweet in tweets]
    guesses = {name: predict(own.model, texts).argmax(-1).tolist() for name, own in trained.items()}
    reader = trained["recurrent"].model
    found: list[tuple[int, int, Tweet]] = []
    for feeling, name in enumerate(task.feelings):
        own = [
            tweet
            for n, tweet in enumerate(tweets)
            if tweet.feeling == name
            and [kind for kind, guess in guesses.items() if guess[n] == feeling] == ["recurrent"]
        ]
        own.sort(key=lambda tweet: _detours(word_by_word(task, reader, tweet.tokens)[:, feeling]))
        found += [(rank, feeling, tweet) for rank, tweet in enumerate(own[:SHOWN])]
    return [tweet for _, _, tweet in sorted(found)[:SHOWN]] or list(tweets[:SHOWN])


def _detours(probability: Tensor) -> tuple[bool, float]:
    """Whether a probability [T] never was below 0.1, and how far it wanders up and down in all."""
    return bool(probability.min() > 0.1), float(probability.diff().abs().sum())


def word_by_word(task: Task, model: nn.Module, tokens: Sequence[str]) -> Tensor:
    """Probabilities [T, classes] after each of T tokens, as if the tweet ended there."""
    ids = task.vocabulary.ids(tokens)
    return predict(model, [ids[: end + 1] for end in range(len(ids))]).exp()
