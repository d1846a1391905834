"""Question duplicates: do two questions ask the same? A Siamese network, trained with the triplet loss.

One encoder makes a vector of each question; the cosine of two vectors above a threshold says duplicate. Two
of them:

  mean       embedding → ReLU layer → mean over the words → length 1: sees which words there are
  recurrent  embedding → LSTM (or another --cell) → mean over time → length 1: reads them in their order

    python -m examples.duplicates train                              on generated questions, a minute
    python -m examples.duplicates train --data train.tsv             columns question1, question2,
    is_duplicate python -m examples.duplicates evaluate --data test.tsv python -m examples.duplicates predict
    "how is butter made from cream ?" "how do i turn cream into butter ?"

One-shot: a class from a single example, recognised without training.

    python -m examples.duplicates add butter "how do i turn cream into butter ?"
    python -m examples.duplicates recognise "how is butter made from cream ?"
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from torch import nn

from examples.common import cli, results, terminal
from examples.common.contest import load_each, train_each
from examples.common.data import InputError, split
from examples.common.train import History

from . import data, oneshot, picture
from .data import Pair
from .generator import generate
from .groups import Rows
from .learn import Task, build, metrics, similarities, triplet_loss

GENERATED = {"train": (6000, 1), "valid": (1000, 2), "test": (4000, 3)}  # how many pairs, and the seed
MODELS = ("mean", "recurrent")


def train(options: argparse.Namespace) -> History:
    """Train both encoders on the same duplicates, and choose each one's threshold on the validation pairs."""
    seen, valid = pairs_of(options)
    task = Task.of(seen)
    try:
        rows = Rows(seen, options.batch, seed=options.seed)
    except ValueError as error:
        raise InputError(
            options.data or "--batch", None, "batches of different questions", str(error)
        ) from None
    console = terminal.console()
    console.print(
        f"{len(seen):,} pairs, {len(rows):,} batches of {len(rows.duplicates):,} different questions,"
        f" {len(task.vocabulary):,} words"
    )

    trained = train_each(
        options,
        build,
        {name: task.config(options.cell if name == "recurrent" else "none") for name in MODELS},
        triplet_loss(task, options.margin),
        rows,
        lambda model: metrics(task, model, valid),
    )
    histories = {name: own.history for name, own in trained.items()}
    last = {name: history.epochs[-1] for name, history in histories.items()}
    results.show(options.out, "train", "validation pairs", last)
    similarity = {name: similarities(task, own.model, valid) for name, own in trained.items()}
    duplicate = torch.tensor([pair.duplicate for pair in valid])
    path = picture.draw(options.out / "duplicates.png", histories, similarity, duplicate)
    console.print(f"picture: {path}")
    return histories["recurrent"]


def pairs_of(options: argparse.Namespace) -> tuple[list[Pair], list[Pair]]:
    """Training and validation pairs: two files, or one of which a tenth is held out."""
    read = data.read(source(options, "train"))
    if options.valid is not None or options.data is None:
        return read, data.read(options.valid or source(options, "valid"))
    if len(read) < 2:
        raise InputError(options.data, None, "two pairs at least", "one")
    return split(read, 0.1, options.seed)


def evaluate(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Both encoders on the pairs of a file: accuracy at the threshold of the validation pairs, and
    one-shot."""
    pairs = data.read(source(options, "test"))
    scores: dict[str, dict[str, float]] = {}
    for name in MODELS:
        task, model, threshold = load(options, name)
        scores[name] = {**metrics(task, model, pairs, threshold), **oneshot.accuracy(task, model, pairs)}
    results.show(options.out, "evaluate", f"{len(pairs):,} pairs", scores)
    return scores


def compare(options: argparse.Namespace) -> dict[str, float]:
    """How similar two questions are to each of the encoders, and what their thresholds make of it."""
    pair = Pair(question(options.first, "FIRST"), question(options.second, "SECOND"), False)
    found: dict[str, float] = {}
    for name in MODELS:
        task, model, threshold = load(options, name)
        found[name] = float(similarities(task, model, [pair]))
        verdict = "duplicates" if found[name] > threshold else "different questions"
        terminal.console().print(
            f"{name:>10}: {verdict} (similarity {found[name]:.3f}, threshold {threshold:.3f})"
        )
    return found


def add(options: argparse.Namespace) -> None:
    """Add an example of a class, which need not be one that there is already. No training."""
    classes = oneshot.Classes(options.out / "classes.json")
    classes.add(options.name, question(options.example, "EXAMPLE"))
    listed = ", ".join(f"{name} ({len(own)})" for name, own in classes.examples.items())
    terminal.console().print(f"classes and their examples: {listed}", markup=False)


def recognise(options: argparse.Namespace) -> oneshot.Recognised:
    """The class, among those added, that a question is of; or that it is of none."""
    task, model, threshold = load(options, "recurrent")
    threshold = threshold if options.threshold is None else options.threshold
    classes = oneshot.Classes(options.out / "classes.json")
    found = classes.recognise(task, model, question(options.question, "QUESTION"), threshold)
    name = "none of the classes" if found.name is None else found.name
    shown = f"{name} (similarity {found.similarity:.3f}, threshold {threshold:.3f})"
    terminal.console().print(shown, markup=False)
    return found


def question(text: str, argument: str) -> str:
    """The text, if there is a question in it."""
    if not data.tokenize(text):
        raise InputError(argument, None, "a question", repr(text))
    return text


def load(options: argparse.Namespace, name: str) -> tuple[Task, nn.Module, float]:
    """What a trained encoder knows, the encoder, and its threshold."""
    model, config, history = load_each(options, build, [name])[name]
    return Task.from_config(config), model, history.epochs[-1]["threshold"]


def source(options: argparse.Namespace, part: str) -> Path:
    """The file given, or one of generated questions."""
    count, seed = GENERATED[part]
    return cli.given_or_generated(options, f"{part}.tsv", lambda: data.write(generate(count, seed, part)))


def main(arguments: list[str] | None = None) -> int:
    line = cli.CommandLine("duplicates", __doc__)
    training = line.training(train, epochs=20, batch=64, rate=5e-3)
    for parser in (training, line.command("evaluate", evaluate, of_seeds=True)):
        help = "columns question1, question2, is_duplicate; None generates questions"
        parser.add_argument("--data", type=Path, metavar="TSV", help=help)
    training.add_argument("--valid", type=Path, metavar="TSV", help="None: a tenth of --data")
    training.add_argument(
        "--margin", type=cli.not_negative, default=0.3, metavar="α", help="of the triplet loss"
    )
    predicting = line.command("predict", compare)
    predicting.add_argument("first", metavar="FIRST", help="a question")
    predicting.add_argument("second", metavar="SECOND", help="another")
    adding = line.command("add", add)
    adding.add_argument("name", metavar="CLASS", help="what to call it")
    adding.add_argument("example", metavar="EXAMPLE", help="a question of that class")
    recognising = line.command("recognise", recognise)
    recognising.add_argument("question", metavar="QUESTION", help="a question to recognise")
    recognising.add_argument(
        "--threshold", type=cli.cosine, metavar="X", help="None: that of the validation pairs"
    )
    return line.run(arguments)


if __name__ == "__main__":
    sys.exit(main())
