"""Tweet sentiment: is this tweet glad or sour? Three models, side by side.

bayes      naive Bayes: counts words, and trains nothing
mean       embedding, mean over the tweet's words, a ReLU layer, log softmax: sees which words there are
recurrent  embedding, GRU (or another --cell), log softmax: reads the words in their order

  python -m examples.sentiment train                          on generated tweets, a quarter of a minute
  python -m examples.sentiment train --data tweets.csv        on yours: polarity (0, 2, 4) first, text last
  python -m examples.sentiment train --seeds 5                from five seeds: medians and spreads
  python -m examples.sentiment evaluate --data more.csv
  python -m examples.sentiment predict "not bad at all!"
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

from examples.common import checkpoint, cli, distributed, results, terminal
from examples.common.contest import Trained, check_resume, train_each
from examples.common.data import InputError, split, write_generated
from examples.common.train import History

from . import data, picture
from .bayes import NaiveBayes
from .generator import generate
from .learn import BAYES, MODELS, Example, Task, accuracy, build, drift, load, loss, predict, unknown_share
from .tokenizer import tokenize

GENERATED = {"train": (4000, 1), "test": (1000, 2)}  # how many tweets, and the seed
# The mean of vectors learns more slowly than a GRU, and an epoch of it costs little: until its accuracy stays
# where it is, it takes this many times the epochs.
PATIENCE = {"mean": 6}


def train(options: argparse.Namespace) -> History:
    """Count words, train both models on the same tweets, and compare all three on held-out ones."""
    tweets = data.read(source(options, "train"))
    feelings = {tweet.feeling for tweet in tweets}
    if len(feelings) < 2:
        raise InputError(options.data, None, "tweets of two feelings at least", f"only {feelings.pop()} ones")
    seen, held_out = split(tweets, 0.1, options.seed)
    task = Task.of(seen, feelings)
    examples, held_examples = task.encode(seen), task.encode(held_out)
    console = terminal.console()
    console.print(f"{len(seen):,} tweets, {len(task.vocabulary):,} words, {', '.join(task.feelings)}")
    console.print(f"{unknown_share(held_examples):.1%} of the held-out tokens are unknown")

    configs = {kind: task.config(kind, options.cell) for kind in MODELS}
    check_resume(options, configs)
    models = {BAYES: count(options, task, examples, held_examples)}
    models |= train_each(
        options,
        build,
        configs,
        loss,
        cli.batches(options, examples, length=lambda e: len(e.ids)),
        lambda model: accuracy(model, held_examples),
        {kind: {"epochs": times * options.epochs} for kind, times in PATIENCE.items()},
    )
    last = {
        kind: own.history.epochs[-1] | drift([epoch["accuracy"] for epoch in own.history.epochs])
        for kind, own in models.items()
    }
    results.show(options.out, "train", "held-out tweets", last)
    write_generated(options.out / picture.TELLING, data.write(picture.telling(task, models, held_out)))
    if distributed.rank() == 0:
        console.print(f"picture: {picture.draw({options.seed: options.out}, options.out)}")
    return models["recurrent"].history


def count(options: argparse.Namespace, task: Task, seen: list[Example], held_out: list[Example]) -> Trained:
    """Naive Bayes of what was seen, saved as trained models are, its accuracy in place of a history."""
    texts, labels = zip(*seen, strict=True)
    model = NaiveBayes.count(texts, labels, len(task.vocabulary), len(task.feelings)).to(options.device)
    config = {"seed": options.seed, **task.config(BAYES, options.cell)}
    history = History(epochs=[accuracy(model, held_out)])
    saved = {"config": config, "history": asdict(history)}
    checkpoint.save(options.out / f"{BAYES}.safetensors", {"model": model.state_dict()}, saved)
    return Trained(model, config, history)


def evaluate(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """The accuracy of the three models on the tweets of a file."""
    task, trained = load(options)
    examples = task.encode(data.read(source(options, "test"), task.feelings))
    terminal.console().print(f"{unknown_share(examples):.1%} of the tokens are unknown")
    scores = {kind: accuracy(own.model, examples) for kind, own in trained.items()}
    results.show(options.out, "evaluate", f"{len(examples):,} tweets", scores)
    return scores


def classify(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """What the three models make of a tweet, and the recurrent one of each word."""
    tokens = tokenize(options.text)
    if not tokens:
        raise InputError("TEXT", None, "a tweet with words in it", repr(options.text))
    task, trained = load(options)
    ids = task.vocabulary.ids(tokens)
    probabilities = {
        kind: dict(zip(task.feelings, predict(own.model, [ids])[0].exp().tolist(), strict=True))
        for kind, own in trained.items()
    }
    console = terminal.console()
    console.print(terminal.table(" ".join(tokens), probabilities))
    unknown = [token for token in dict.fromkeys(tokens) if token not in task.vocabulary]
    for token, p in zip(tokens, picture.word_by_word(task, trained["recurrent"].model, tokens), strict=True):
        note = "  (unknown)" if token in unknown else ""
        console.print(
            f"{token:>16}  {task.feelings[int(p.argmax())]} {float(p.max()):.2f}{note}", markup=False
        )
    if unknown:
        console.print(f"unknown, and all read as the one word <UNK>: {' '.join(unknown)}", markup=False)
    if len(unknown) == len(set(tokens)):
        console.print("not a word of this is known: the answer means nothing")
    return probabilities


def source(options: argparse.Namespace, part: str) -> Path:
    """The file given, or one of generated tweets."""
    count, seed = GENERATED[part]
    return cli.given_or_generated(options, f"{part}.csv", lambda: data.write(generate(count, seed)))


def main(arguments: list[str] | None = None) -> int:
    line = cli.CommandLine("sentiment", __doc__)
    training = line.training(train, epochs=8, batch=64, rate=5e-3, cell="gru", draw_seeds=picture.draw)
    for parser in (training, line.command("evaluate", evaluate, of_seeds=True)):
        help = "polarity first, text last; None generates tweets"
        parser.add_argument("--data", type=Path, metavar="CSV", help=help)
    line.command("predict", classify).add_argument("text", metavar="TEXT", help="a tweet")
    return line.run(arguments)


if __name__ == "__main__":
    sys.exit(main())
