"""Tweet sentiment: is this tweet glad or sour? Two models, side by side.

mean       embedding, mean over the tweet's words, a ReLU layer, log softmax: sees which words there are
recurrent  embedding, GRU (or another --cell), log softmax: reads the words in their order

  python -m examples.sentiment train                          on generated tweets, half a minute
  python -m examples.sentiment train --data tweets.csv        on yours: polarity (0, 2, 4) first, text last
  python -m examples.sentiment evaluate --data more.csv
  python -m examples.sentiment predict "not bad at all!"
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from examples.common import cli, results, terminal
from examples.common.contest import load_each, train_each
from examples.common.data import Batches, InputError, split
from examples.common.train import History

from . import data, picture
from .generator import generate
from .learn import MODELS, Task, accuracy, build, loss, predict
from .tokenizer import tokenize

GENERATED = {"train": (4000, 1), "test": (1000, 2)}  # how many tweets, and the seed


def train(options: argparse.Namespace) -> History:
    """Train both models on the same tweets and compare them on held-out ones."""
    tweets = data.read(source(options, "train"))
    feelings = {tweet.feeling for tweet in tweets}
    if len(feelings) < 2:
        raise InputError(options.data, None, "tweets of two feelings at least", f"only {feelings.pop()} ones")
    seen, held_out = split(tweets, 0.1, options.seed)
    task = Task.of(seen, feelings)
    console = terminal.console()
    console.print(f"{len(seen):,} tweets, {len(task.vocabulary):,} words, {', '.join(task.feelings)}")
    batches = Batches(task.encode(seen), options.batch, length=lambda e: len(e.ids), seed=options.seed)
    examples = task.encode(held_out)

    trained = train_each(
        options,
        build,
        {kind: task.config(kind, options.cell) for kind in MODELS},
        loss,
        batches,
        lambda model: accuracy(model, examples),
    )
    last = {kind: own.history.epochs[-1] for kind, own in trained.items()}
    results.show(options.out, "train", "held-out tweets", last)
    console.print(f"picture: {picture.draw(options.out / 'sentiment.png', task, trained, held_out)}")
    return trained["recurrent"].history


def evaluate(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """The accuracy of both trained models on the tweets of a file."""
    trained = load_each(options, build, MODELS)
    task = Task.from_config(trained["recurrent"].config)
    examples = task.encode(data.read(source(options, "test"), task.feelings))
    scores = {kind: accuracy(own.model, examples) for kind, own in trained.items()}
    results.show(options.out, "evaluate", f"{len(examples):,} tweets", scores)
    return scores


def classify(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """What both trained models make of a tweet, and the recurrent one of each word."""
    tokens = tokenize(options.text)
    if not tokens:
        raise InputError("TEXT", None, "a tweet with words in it", repr(options.text))
    trained = load_each(options, build, MODELS)
    task = Task.from_config(trained["recurrent"].config)
    ids = task.vocabulary.ids(tokens)
    probabilities = {
        kind: dict(zip(task.feelings, predict(own.model, [ids])[0].exp().tolist(), strict=True))
        for kind, own in trained.items()
    }
    console = terminal.console()
    console.print(terminal.table(" ".join(tokens), probabilities))
    for token, p in zip(tokens, picture.word_by_word(task, trained["recurrent"].model, tokens), strict=True):
        unknown = "" if token in task.vocabulary else "  (unknown)"
        console.print(
            f"{token:>16}  {task.feelings[int(p.argmax())]} {float(p.max()):.2f}{unknown}", markup=False
        )
    return probabilities


def source(options: argparse.Namespace, part: str) -> Path:
    """The file given, or one of generated tweets."""
    count, seed = GENERATED[part]
    return cli.given_or_generated(options, f"{part}.csv", lambda: data.write(generate(count, seed)))


def main(arguments: list[str] | None = None) -> int:
    line = cli.CommandLine("sentiment", __doc__)
    training = line.training(train, epochs=8, batch=64, rate=5e-3, cell="gru")
    for parser in (training, line.command("evaluate", evaluate, of_seeds=True)):
        help = "polarity first, text last; None generates tweets"
        parser.add_argument("--data", type=Path, metavar="CSV", help=help)
    line.command("predict", classify).add_argument("text", metavar="TEXT", help="a tweet")
    return line.run(arguments)


if __name__ == "__main__":
    sys.exit(main())
