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
import functools
import sys
from pathlib import Path

import torch
from torch import nn

from examples.common import checkpoint, cli, terminal
from examples.common.data import Batches, InputError, split
from examples.common.train import History, fit

from . import data, picture
from .generator import generate
from .learn import MODELS, Task, accuracy, loss, predict
from .tokenizer import tokenize

GENERATED = {"train": (4000, 1), "test": (1000, 2)}  # how many tweets, and the seed


def train(options: argparse.Namespace) -> History:
    """Train both models on the same tweets and compare them on held-out ones."""
    tweets = data.read(source(options, "train"))
    if len(tweets) < 2:
        raise InputError(options.data, None, "two tweets at least", "one")
    seen, held_out = split(tweets, 0.1, options.seed)
    task = Task.of(seen)
    console = terminal.console()
    console.print(f"{len(seen):,} tweets, {len(task.vocabulary):,} words, {', '.join(task.feelings)}")
    batches = Batches(task.encode(seen), options.batch, length=lambda e: len(e.ids), seed=options.seed)
    examples = task.encode([tweet for tweet in held_out if tweet.feeling in task.feelings])

    models: dict[str, nn.Module] = {}
    histories: dict[str, History] = {}
    for kind in MODELS:
        console.print(f"[bold]{kind}[/bold]")
        torch.manual_seed(options.seed)
        model = models[kind] = task.model(kind, options.cell, options.backend).to(options.device)
        histories[kind] = fit(
            model,
            loss,
            batches,
            cli.recipe(options),
            evaluate=functools.partial(accuracy, model, examples),
            path=weights(options, kind),
            config=task.config(kind, options.cell),
            resume=options.resume,
        )
    console.print(terminal.table("held-out tweets", {kind: histories[kind].epochs[-1] for kind in MODELS}))
    console.print(
        f"picture: {picture.draw(options.out / 'sentiment.png', histories, task, models, held_out)}"
    )
    return histories["recurrent"]


def evaluate(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """The accuracy of both trained models on the tweets of a file."""
    task, models = load(options)
    examples = task.encode(data.read(source(options, "test"), task.feelings))
    scores = {kind: accuracy(model, examples) for kind, model in models.items()}
    terminal.console().print(terminal.table(f"{len(examples):,} tweets", scores))
    return scores


def classify(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """What both trained models make of a tweet, and the recurrent one of each word."""
    tokens = tokenize(options.text)
    if not tokens:
        raise InputError("TEXT", None, "a tweet with words in it", repr(options.text))
    task, models = load(options)
    probabilities = {
        kind: dict(
            zip(task.feelings, predict(model, [task.vocabulary.ids(tokens)])[0].exp().tolist(), strict=True)
        )
        for kind, model in models.items()
    }
    console = terminal.console()
    console.print(terminal.table(" ".join(tokens), probabilities))
    for token, p in zip(tokens, picture.word_by_word(task, models["recurrent"], tokens), strict=True):
        unknown = "" if token in task.vocabulary else "  (unknown)"
        console.print(
            f"{token:>16}  {task.feelings[int(p.argmax())]} {float(p.max()):.2f}{unknown}", markup=False
        )
    return probabilities


def load(options: argparse.Namespace) -> tuple[Task, dict[str, nn.Module]]:
    """The two trained models and what they know."""
    models: dict[str, nn.Module] = {}
    for kind in MODELS:
        tensors, saved = checkpoint.load(weights(options, kind), options.device, "model")
        task = Task.from_config(saved["config"])
        models[kind] = task.model(kind, saved["config"]["cell"]).to(options.device).eval()
        models[kind].load_state_dict(tensors["model"])
    return task, models


def source(options: argparse.Namespace, part: str) -> Path:
    """The file given, or one of generated tweets."""
    count, seed = GENERATED[part]
    path = Path(options.out / f"generated-{part}.csv")
    return cli.given_or_generated(options.data, path, lambda: data.write(generate(count, seed)))


def weights(options: argparse.Namespace, kind: str) -> Path:
    return Path(options.out / f"{kind}.safetensors")


def main(arguments: list[str] | None = None) -> int:
    line = cli.CommandLine("sentiment", __doc__)
    training = line.training(train, epochs=8, batch=64, rate=5e-3, cell="gru")
    for parser in (training, line.command("evaluate", evaluate)):
        help = "polarity first, text last; None generates tweets"
        parser.add_argument("--data", type=Path, metavar="CSV", help=help)
    line.command("predict", classify).add_argument("text", metavar="TEXT", help="a tweet")
    return line.run(arguments)


if __name__ == "__main__":
    sys.exit(main())
