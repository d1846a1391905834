"""The next word: n-grams with back-off against RNN, GRU and LSTM language models, on the same text.

An n-gram model has seen what followed the last n-1 words. What is further away does not exist for it, and
every word of context more multiplies what it has to store. A recurrent network keeps a state of fixed size,
and learns what to keep in it. On generated text, where a verb agrees with a noun many words away, the
difference is plain:

    python -m examples.language_model train                    # generated text; about half a minute
    python -m examples.language_model predict "the singers near the tower"
    python -m examples.language_model train --data moby-dick.txt --level char --out out/moby-dick
    python -m examples.language_model evaluate --data other.txt --out out/moby-dick
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from rich.text import Text

from ..common import books, checkpoint, cli, distributed, layers, results, terminal
from ..common.contest import check_resume, load_each, train_each
from ..common.data import InputError, write_generated
from ..common.text import UNK, Vocabulary
from ..common.train import History
from . import data, generator, report
from .model import TruncatedBackpropagation, build, log_probabilities, perplexity, sample
from .ngram import NGram

Models = dict[str, report.Model]


def load(options: argparse.Namespace) -> tuple[dict[str, Any], Models]:
    """The configuration of a training and all models that it left in `options.out`."""
    path = options.out / "ngram.safetensors"
    counted, saved = checkpoint.load(path)
    with checkpoint.understood(path):
        config = saved["config"]
        size, cells = len(config["vocabulary"]), config["cells"]
        models: Models = {f"{n}-gram": NGram.from_tensors(counted[str(n)], size) for n in config["orders"]}
    networks = load_each(options, build, cells)
    return config, models | {cell.upper(): own.model for cell, own in networks.items()}


def read_probes(config: dict[str, Any]) -> list[data.Probe]:
    return data.read_probes(Path(config["probes"])) if config["probes"] else []


def train(options: argparse.Namespace) -> History:
    """Count n-grams and train recurrent networks on a text.

    The last tenth of the lines is held out; on it, perplexities and the memory of all models are compared.
    Without --data, a text is generated, and with it pairs of verb forms that test agreement at growing
    distance.
    """
    console = terminal.console()
    known = {name: getattr(options, name) for name in ("level", "hidden", "depth", "dropout")}
    # Another number of generated sentences is another text, which must not replace the one learned from.
    known["sentences"] = options.sentences if options.data is None and not options.book else None
    check_resume(options, {cell: known | {"cell": cell} for cell in options.cells})
    if options.book:
        options.data = write_generated(options.out / "language-reference.txt", books.language_reference())
        console.print(f"Python's own language reference, written to {options.data}")
    if options.data is None:
        text = generator.text(options.sentences, options.seed)
        probes = data.write_probes(generator.probes(40, options.seed))
        options.data = write_generated(options.out / "generated.txt", text)
        options.probes = write_generated(options.out / "generated-probes.tsv", probes)
        cli.announce_generated(options.data)
    learn, test = data.split_lines(data.read_text(options.data, options.level))
    vocabulary = Vocabulary.build(learn, min_count=options.min_count, max_size=options.max_size)
    ids, held_out = data.stream(vocabulary, learn), data.stream(vocabulary, test)
    try:
        parts = data.parts(ids, options.batch, options.length)
    except ValueError as error:
        raise InputError(options.data, None, "more text, or a smaller --batch", str(error)) from None
    config = {
        name: getattr(options, name) for name in ("level", "hidden", "depth", "dropout", "orders", "cells")
    }
    config |= {"vocabulary": vocabulary.to_json(), "data": str(options.data)}
    config["probes"] = str(options.probes) if options.probes else None
    # Networks learn in the midst of a text, their state never empty; so that is where they are asked, too.
    config["opening"] = ids[max(0, len(ids) - 50) :].tolist()
    read_probes(config)  # if something is wrong with them, now is the time to say so
    unknown = [float((part == vocabulary.index[UNK]).double().mean()) for part in (ids, held_out)]
    console.print(
        f"{len(ids):,} tokens to learn from, {len(held_out):,} held out, {len(vocabulary):,} different;"
        f" unknown and counted as one, {UNK}: {unknown[0]:.2%} and {unknown[1]:.2%}"
    )

    shared = known | {"vocabulary": config["vocabulary"]}
    networks = {cell: shared | {"cell": cell} for cell in options.cells}
    check_resume(options, networks)
    models: Models = {f"{n}-gram": NGram.count(ids.tolist(), n, len(vocabulary)) for n in options.orders}
    tables = {str(model.order): model.tensors() for model in models.values() if isinstance(model, NGram)}
    checkpoint.save(options.out / "ngram.safetensors", tables, {"config": config})
    trained = train_each(
        options,
        build,
        networks,
        TruncatedBackpropagation(),
        lambda epoch: parts,
        lambda model: {"perplexity": perplexity(log_probabilities(model, held_out))},
    )
    models |= {cell.upper(): own.model for cell, own in trained.items()}
    rows = report.compare(models, test, read_probes(config), config)
    for cell, own in trained.items():
        rows[cell.upper()] |= report.costs(own.model, parts[0], own.history.epochs)
    results.show(options.out, "train", "on the held-out text", rows)
    if distributed.rank() == 0:
        picture = report.draw([options.out], options.cells, options.out / "language_model.png")
        console.print(f"picture: {picture}")
    last = {cell: own.history.epochs[-1] for cell, own in trained.items()}
    return History(
        epochs=[{f"{cell} {name}": value for cell, own in last.items() for name, value in own.items()}]
    )


def evaluate(options: argparse.Namespace) -> None:
    """Compare the trained models on another text, or again on the lines that were held out."""
    config, models = load(options)
    lines = data.read_text(options.data or Path(config["data"]), config["level"])
    if options.data is None:
        lines = data.split_lines(lines)[1]
    rows = report.compare(models, lines, read_probes(config), config)
    results.show(options.out, "evaluate", f"on {options.data or 'the held-out text'}", rows)


def draw_seeds(folders: dict[int, Path], out: Path) -> Path:
    """The picture of the trainings from several seeds."""
    config = checkpoint.load_data(out / "ngram.safetensors")["config"]
    return report.draw(list(folders.values()), config["cells"], out / "language_model.png")


def predict(options: argparse.Namespace) -> None:
    """Go on writing where the given text ends, each model in its own way."""
    config, models = load(options)
    vocabulary = Vocabulary.from_json(config["vocabulary"])
    tokens = data.tokenize(options.text, config["level"])
    if not tokens:
        raise InputError("TEXT", None, "a beginning to go on from", repr(options.text))
    width = max(map(len, models))
    for name, model in models.items():
        random = torch.Generator().manual_seed(options.seed)
        prompt = config["opening"] + vocabulary.ids(tokens)
        written = sample(model, prompt, options.count, temperature=options.temperature, generator=random)
        text = data.join([*tokens, *vocabulary.words(written)], config["level"])
        terminal.console().print(Text.assemble((f"{name:>{width}}", "bold"), f"  {text.strip()}"))


def main(arguments: list[str] | None = None) -> int:
    line = cli.CommandLine("language_model", __doc__)
    made = line.training(
        train,
        epochs=6,
        batch=16,
        rate=5e-3,
        cell=None,
        cells=lambda options: options.cells,
        draw_seeds=draw_seeds,
    )
    texts = made.add_mutually_exclusive_group()
    texts.add_argument("--data", type=Path, metavar="FILE", help="UTF-8 text; without it, text is generated")
    help = "learn Python's own language reference, which this Python has with it"
    texts.add_argument("--book", action="store_true", help=help)
    add = made.add_argument
    add("--probes", type=Path, metavar="TSV", help="beginning, right word, wrong word, distance")
    add("--level", choices=("word", "char"), default="word", help="what a token is")
    help = "networks to train; gru-before: GRU with the reset gate before the product"
    add("--cells", nargs="+", choices=layers.CELLS, default=["rnn", "gru", "lstm"], help=help)
    add(
        "--orders",
        nargs="+",
        type=cli.order,
        default=[2, 3, 4, 5],
        metavar="N",
        help="n of the n-gram models",
    )
    add("--hidden", type=cli.positive, default=64, metavar="N", help="features of embedding and layers")
    add("--depth", type=cli.positive, default=1, metavar="N", help="recurrent layers")
    add("--dropout", type=cli.probability, default=0.0, metavar="P", help="between the layers")
    add("--length", type=cli.positive, default=35, metavar="N", help="tokens that gradients go back")
    help = "rarer tokens become <UNK>; with 1, training has none, and the networks do not expect any"
    add("--min-count", type=cli.positive, default=2, metavar="N", help=help)
    add("--max-size", type=cli.positive, default=10_000, metavar="N", help="of the vocabulary")
    add("--sentences", type=cli.positive, default=10_000, metavar="N", help="to generate without --data")
    add = line.command("evaluate", evaluate, of_seeds=True).add_argument
    add("--data", type=Path, metavar="FILE", help="UTF-8 text; without it, the lines held out by train")
    add = line.command("predict", predict).add_argument
    add("text", metavar="TEXT", help="a beginning")
    add("--count", type=cli.positive, default=30, metavar="N", help="tokens to write")
    add(
        "--temperature",
        type=cli.not_negative,
        default=0.8,
        metavar="X",
        help="0: always the likeliest; above 1: wild",
    )
    add("--seed", type=cli.seed, default=0, metavar="N", help="the same seed draws the same text")
    return line.run(arguments)


if __name__ == "__main__":
    sys.exit(main())
