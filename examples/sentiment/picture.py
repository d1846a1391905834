"""What was learned, as a picture: accuracy by epoch, and the feeling of tweets word by word."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from examples.common import plot
from examples.common.contest import Trained

from .data import POSITIVE, Tweet
from .learn import Task, predict

TELLING = 2  # how many tweets are shown


def draw(path: Path, task: Task, trained: dict[str, Trained], tweets: Sequence[Tweet]) -> Path:
    """Left, accuracy on held-out tweets after each epoch; then how both models change their minds, word by
    word, over some of those that only the recurrent one gets right."""
    figure, (left, *others) = plot.new(1, 1 + TELLING, width=16, height=4.2)
    for name, own in trained.items():
        epochs = range(1, len(own.history.epochs) + 1)
        left.plot(epochs, [epoch["accuracy"] for epoch in own.history.epochs], marker=".", label=name)
    left.set(title="Held-out tweets", xlabel="epoch", ylabel="accuracy")
    left.xaxis.get_major_locator().set_params(integer=True)
    left.legend()

    shown = task.feelings.index(POSITIVE) if POSITIVE in task.feelings else len(task.feelings) - 1
    models = {name: own.model for name, own in trained.items()}
    for axes, tweet in zip(others, telling(task, models, tweets), strict=False):
        for name, model in models.items():
            axes.plot(word_by_word(task, model, tweet.tokens)[:, shown], marker="o", label=name)
        axes.axhline(1 / len(task.feelings), color=plot.COLOURS[-1], linestyle="--", linewidth=1)
        axes.set(title=f"A {tweet.feeling} tweet, word by word", ylim=(-0.05, 1.05))
        axes.set_ylabel(f"probability of {task.feelings[shown]}")
        words = [token if token.isascii() else "☺" for token in tweet.tokens]  # the font has no emoji
        axes.set_xticks(range(len(words)), words, rotation=60, ha="right", rotation_mode="anchor")
    return plot.save(figure, path)


def telling(task: Task, models: dict[str, nn.Module], tweets: Sequence[Tweet]) -> list[Tweet]:
    """Tweets that only the recurrent model gets right, of different feelings by turns. First come those over
    which it was sure of the contrary once, and of these the ones with the fewest detours."""
    texts = [task.vocabulary.ids(tweet.tokens) for tweet in tweets]
    guesses = {name: predict(model, texts).argmax(-1).tolist() for name, model in models.items()}
    found: list[tuple[int, int, Tweet]] = []
    for feeling, name in enumerate(task.feelings):
        own = [
            tweet
            for tweet, mean, recurrent in zip(tweets, guesses["mean"], guesses["recurrent"], strict=True)
            if tweet.feeling == name and recurrent == feeling != mean
        ]
        own.sort(
            key=lambda tweet: _detours(word_by_word(task, models["recurrent"], tweet.tokens)[:, feeling])
        )
        found += [(rank, feeling, tweet) for rank, tweet in enumerate(own[:TELLING])]
    return [tweet for _, _, tweet in sorted(found)[:TELLING]]


def _detours(probability: Tensor) -> tuple[bool, float]:
    """Whether a probability [T] never was below 0.1, and how far it wanders up and down in all."""
    return bool(probability.min() > 0.1), float(probability.diff().abs().sum())


def word_by_word(task: Task, model: nn.Module, tokens: Sequence[str]) -> Tensor:
    """Probabilities [T, classes] after each of T tokens, as if the tweet ended there."""
    ids = task.vocabulary.ids(tokens)
    return predict(model, [ids[: end + 1] for end in range(len(ids))]).exp()
