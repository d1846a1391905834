"""Question duplicates: do two questions ask the same? A Siamese network, trained with the triplet loss.

One encoder makes a vector of each question; the cosine of two vectors above a threshold says duplicate. Two
of them:

  mean       embedding → ReLU layer → mean over the words → length 1: sees which words there are
  recurrent  embedding → LSTM (or another --cell) → mean over time → length 1: reads them in their order

  python -m examples.duplicates train                    on generated questions, ten seconds
  python -m examples.duplicates train --data train.tsv   on yours: question1, question2, is_duplicate
  python -m examples.duplicates losses                   mean negative, closest negative, or both
  python -m examples.duplicates evaluate --data test.tsv
  python -m examples.duplicates predict "how is butter made from cream ?" "how do i turn cream into butter ?"

One-shot: a class from a single example, recognised without training.

  python -m examples.duplicates add butter "how do i turn cream into butter ?"
  python -m examples.duplicates recognise "how is butter made from cream ?"
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from examples.common import cli, results, terminal
from examples.common.contest import load_each, train_each
from examples.common.data import InputError, split
from examples.common.train import History

from . import data, losses, oneshot, picture
from .data import Pair
from .generator import generate
from .groups import Rows
from .learn import Encoded, Task, build, metrics, similarities, triplet_loss
from .loss import NEGATIVES

GENERATED = {"train": (6000, 1), "valid": (4000, 2), "test": (4000, 3)}  # how many pairs, and the seed
MODELS = ("mean", "recurrent")


def train(options: argparse.Namespace) -> History:
    """Train both encoders on the same duplicates, and choose the thresholds on the validation pairs."""
    prepared = prepare(options)
    cells = {name: options.cell if name == "recurrent" else "none" for name in MODELS}
    trained = train_each(
        options,
        build,
        {name: prepared.config(options, cell, options.loss) for name, cell in cells.items()},
        triplet_loss(prepared.task, options.margin, options.loss),
        prepared.rows,
        prepared.evaluate,
    )
    histories = {name: own.history for name, own in trained.items()}
    last = {name: history.epochs[-1] for name, history in histories.items()}
    results.show(options.out, "train", "validation pairs", last)
    encoded = {name: Encoded.of(prepared.task, own.model, prepared.valid) for name, own in trained.items()}
    similarity = {name: similarities(own, prepared.valid) for name, own in encoded.items()}
    duplicate = torch.tensor([pair.duplicate for pair in prepared.valid])
    path = picture.draw(options.out / "duplicates.png", histories, similarity, duplicate)
    terminal.console().print(f"picture: {path}")
    return histories["recurrent"]


def compare_losses(options: argparse.Namespace) -> History:
    """Train the recurrent encoder with each of the three losses and compare them."""
    prepared = prepare(options)
    trained = train_each(
        options,
        build,
        {name: prepared.config(options, options.cell, loss) for loss, name in losses.NAMES.items()},
        {name: triplet_loss(prepared.task, options.margin, loss) for loss, name in losses.NAMES.items()},
        prepared.rows,
        prepared.evaluate,
    )
    histories = {loss: trained[name].history for loss, name in losses.NAMES.items()}
    rows = {loss: losses.summary(history) for loss, history in histories.items()}
    title = f"validation pairs; batches of {options.batch}, {options.batches}, margin {options.margin:g}"
    results.show(options.out, "losses", title, rows)
    terminal.console().print(f"picture: {losses.draw(options.out / 'losses.png', [histories])}")
    return histories["sum"]


class Prepared(NamedTuple):
    """What a training needs."""

    task: Task
    rows: Rows
    valid: list[Pair]

    def config(self, options: argparse.Namespace, cell: str, loss: str) -> dict[str, Any]:
        """What a checkpoint has to tell: how to build the encoder, and what it was trained with."""
        trained_with = {"loss": loss, "margin": options.margin, "batches": options.batches}
        return {**self.task.config(cell), **trained_with}

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """The metrics of a model after an epoch, and its thresholds: that for pairs and that for one-shot."""
        encoded = Encoded.of(self.task, model, self.valid)
        found = metrics(encoded, self.valid)
        if queries := oneshot.Queries.of(encoded, self.valid):
            found["one-shot"] = oneshot.accuracy(encoded, self.valid)["one-shot"]
            found["one-shot threshold"] = queries.best_threshold()
        return found


def prepare(options: argparse.Namespace) -> Prepared:
    """The data of a training, in batches."""
    if options.batch < 2:
        raise InputError("--batch", None, "2 or more, so that every row has a negative", f"{options.batch}")
    seen, valid = pairs_of(options)
    try:
        rows = Rows(seen, options.batch, seed=options.seed, rivals=options.batches == "rivals")
    except ValueError as error:
        raise InputError(
            options.data or "--batch", None, "batches of different questions", str(error)
        ) from None
    task = Task.of(seen)
    terminal.console().print(
        f"{len(seen):,} pairs, {len(rows):,} batches of {len(rows.duplicates):,} different questions,"
        f" {len(task.vocabulary):,} words"
    )
    return Prepared(task, rows, valid)


def pairs_of(options: argparse.Namespace) -> tuple[list[Pair], list[Pair]]:
    """Training and validation pairs: two files, or one of which a tenth is held out."""
    seen = read(options, source(options, "train"))
    if options.valid is not None or options.data is None:
        return seen, read(options, options.valid or source(options, "valid"))
    if len(seen) < 2:
        raise InputError(options.data, None, "two pairs at least", "one")
    return split(seen, 0.1, options.seed)


def read(options: argparse.Namespace, path: Path) -> list[Pair]:
    """The pairs of a file; how many others are left out is said in one line."""
    pairs, left_out = data.read(path, strict=options.strict)
    if left_out:
        have, are = ("has", "is") if left_out == 1 else ("have", "are")
        share = f"{left_out:,} of {len(pairs) + left_out:,} pairs"
        terminal.console().print(f"{share} {have} no words in a question and {are} left out")
    return pairs


def evaluate(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Test both encoders on the pairs of a file, at the thresholds of the validation pairs, and one-shot."""
    pairs = read(options, source(options, "test"))
    scores: dict[str, dict[str, float]] = {}
    rejection: dict[str, dict[str, float]] = {}
    for name in MODELS:
        task, model, chosen = load(options, name)
        encoded = Encoded.of(task, model, pairs)
        scores[name] = {**metrics(encoded, pairs, chosen.pairs), **oneshot.accuracy(encoded, pairs)}
        if queries := oneshot.Queries.of(encoded, pairs):
            rejection[f"{name}, threshold of pairs"] = queries.scores(chosen.pairs)
            rejection[f"{name}, one-shot threshold"] = queries.scores(chosen.one_shot)
    results.show(options.out, "evaluate", f"{len(pairs):,} pairs", scores)
    if rejection:
        results.show(options.out, "rejection", "one-shot, every other class unknown", rejection)
    return scores


def compare(options: argparse.Namespace) -> dict[str, float]:
    """How similar two questions are to each of the encoders, and what their thresholds make of it."""
    pair = Pair(question(options.first, "FIRST"), question(options.second, "SECOND"), False)
    found: dict[str, float] = {}
    for name in MODELS:
        task, model, chosen = load(options, name)
        found[name] = float(similarities(Encoded.of(task, model, [pair]), [pair]))
        verdict = "duplicates" if found[name] > chosen.pairs else "different questions"
        terminal.console().print(
            f"{name:>10}: {verdict} (similarity {found[name]:.3f}, threshold {chosen.pairs:.3f})"
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
    task, model, chosen = load(options, "recurrent")
    threshold = chosen.one_shot if options.threshold is None else options.threshold
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


class Thresholds(NamedTuple):
    """Chosen on the validation pairs: for two questions, and for the most similar of many examples."""

    pairs: float
    one_shot: float


def load(options: argparse.Namespace, name: str) -> tuple[Task, nn.Module, Thresholds]:
    """What a trained encoder knows, the encoder, and its thresholds."""
    model, config, history = load_each(options, build, [name])[name]
    last = history.epochs[-1]
    # Validation pairs of a single class leave nothing to choose the second one by.
    chosen = Thresholds(last["threshold"], last.get("one-shot threshold", last["threshold"]))
    return Task.from_config(config), model, chosen


def source(options: argparse.Namespace, part: str) -> Path:
    """The file given, or one of generated questions."""
    count, seed = GENERATED[part]
    return cli.given_or_generated(options, f"{part}.tsv", lambda: data.write(generate(count, seed, part)))


def main(arguments: list[str] | None = None) -> int:
    line = cli.CommandLine("duplicates", __doc__)
    training = line.training(train, epochs=20, batch=64, rate=5e-3)
    comparing = line.training(
        compare_losses, epochs=25, batch=64, rate=5e-3, name="losses", draw_seeds=losses.draw_seeds
    )
    for parser in (training, comparing, line.command("evaluate", evaluate, of_seeds=True)):
        help = "columns question1, question2, is_duplicate; None generates questions"
        parser.add_argument("--data", type=Path, metavar="TSV", help=help)
        help = "refuse a question without words; else its pair is left out"
        parser.add_argument("--strict", action="store_true", help=help)
    for parser in (training, comparing):
        parser.add_argument("--valid", type=Path, metavar="TSV", help="None: a tenth of --data")
        parser.add_argument(
            "--margin", type=cli.not_negative, default=0.3, metavar="α", help="of the triplet loss"
        )
        help = "rivals: pairs known as no duplicates are in one batch; random: any are"
        parser.add_argument("--batches", choices=("rivals", "random"), default="rivals", help=help)
    help = "what the triplet loss compares with: the mean negative, the closest one, or both"
    training.add_argument("--loss", choices=NEGATIVES, default="sum", help=help)
    predicting = line.command("predict", compare)
    predicting.add_argument("first", metavar="FIRST", help="a question")
    predicting.add_argument("second", metavar="SECOND", help="another")
    adding = line.command("add", add)
    adding.add_argument("name", metavar="CLASS", help="what to call it")
    adding.add_argument("example", metavar="EXAMPLE", help="a question of that class")
    recognising = line.command("recognise", recognise)
    recognising.add_argument("question", metavar="QUESTION", help="a question to recognise")
    recognising.add_argument(
        "--threshold", type=cli.cosine, metavar="X", help="None: the one-shot one of the validation pairs"
    )
    return line.run(arguments)


if __name__ == "__main__":
    sys.exit(main())
