"""Folk tunes in ABC notation: counts of characters against a recurrent network that writes them.

A tune is a text: a header that says meter and key, and bars of notes as letters. Whether a bar adds up to the
meter is known only to who counts, and on which note to end only to who remembers the header.

    python -m examples.music train                                  # generated tunes; about half a minute
    python -m examples.music evaluate                               # on new ones
    python -m examples.music predict --kind jig --key Em            # a new tune: ABC, sound and picture
    python -m examples.music predict --begin "|:GAB dBG|" --key G --meter 6/8
    python -m examples.music play book.abc --number 3               # sound and picture of any tune
    python -m examples.music train --data book.abc --out out/book
"""

from __future__ import annotations

import argparse
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

from ..common import checkpoint, cli, results, terminal
from ..common.contest import check_resume, load_each, train_each
from ..common.data import InputError, split, write_generated
from ..common.text import Vocabulary
from ..common.train import History
from ..language_model.data import parts
from ..language_model.model import TruncatedBackpropagation, build, log_probabilities, perplexity
from ..language_model.ngram import NGram
from . import data, generator, report, sound
from .abc import parse
from .keys import Key, Meter
from .measure import measure
from .score import Tune, check, notes
from .writer import Model, write

NETWORK = "recurrent"  # the name of its checkpoint
LONGEST = 1200  # seconds of sound, all of which has to fit into memory
LEAST = 10  # tunes, too few to hold some out


def load(options: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Model]]:
    """The configuration of a training and all models that it left in `options.out`."""
    path = options.out / "ngram.safetensors"
    counted, saved = checkpoint.load(path)
    config = saved.get("config", {})
    if "headers" not in config:
        raise InputError(path, None, "a checkpoint of this program", "one of another")
    size = len(config["vocabulary"])
    models: dict[str, Model] = {
        f"{n}-gram": NGram.from_tensors(counted[str(n)], size) for n in config["orders"]
    }
    network = load_each(options, build, [NETWORK])[NETWORK]
    return config, models | {network.config["cell"].upper(): network.model}


def train(options: argparse.Namespace) -> History:
    """Count n-grams and train a network on tunes, and compare what they write.

    A tenth of the tunes is held out. Without --data, tunes are generated.
    """
    console = terminal.console()
    shape = {name: getattr(options, name) for name in ("cell", "hidden", "depth", "dropout")}
    shape["tunes"] = options.tunes if options.data is None else None
    check_resume(options, {NETWORK: shape})
    path = cli.given_or_generated(options, "train.abc", lambda: generator.book(options.tunes, options.seed))
    tunes = data.load(path, strict=options.strict, least=LEAST)
    learn, test = split(tunes, 0.1, options.seed)
    texts, held_out = [data.text_of(tune) for tune in learn], [data.text_of(tune) for tune in test]
    vocabulary = Vocabulary.build([*texts, [data.TUNE]])
    ids, unseen = data.encode(vocabulary, texts), data.stream(data.encode(vocabulary, held_out))
    whole = data.stream(ids)
    try:
        parts(whole, options.batch, options.length)
    except ValueError as error:
        raise InputError(path, None, "more tunes, or a smaller --batch", str(error)) from None
    console.print(
        f"{len(texts):,} tunes ({len(whole):,} characters) to learn from, {len(test):,} held out, "
        f"{len(vocabulary):,} different characters"
    )

    config = {"orders": options.orders, "vocabulary": vocabulary.to_json()}
    config["headers"] = [data.fields_of(tune) for tune in learn]
    # The network learns in the midst of a stream, its state never empty; so that is where it is asked, too.
    config["opening"] = [ids[0][-1], *ids[-1]]
    shape["vocabulary"] = config["vocabulary"]
    check_resume(options, {NETWORK: shape})
    size = len(vocabulary)
    counted = {n: NGram.count(whole.tolist(), n, size) for n in options.orders}
    tables = {str(n): model.tensors() for n, model in counted.items()}
    checkpoint.save(options.out / "ngram.safetensors", tables, {"config": config})

    def judge(model: Any) -> dict[str, float]:
        written = report.samples(model, config, options.samples, options.seed)
        return {
            "perplexity": perplexity(log_probabilities(model, unseen)),
            "valid bars": measure(written)["valid bars"],
        }

    trained = train_each(
        options,
        build,
        {NETWORK: shape},
        TruncatedBackpropagation(),
        lambda epoch: parts(
            data.stream(ids, f"{options.seed} {epoch}"), options.batch, options.length
        ),  # another order every time
        judge,
    )[NETWORK]
    name = options.cell.upper()
    models: dict[str, Model] = {f"{n}-gram": model for n, model in counted.items()} | {name: trained.model}
    rows = report.compare(models, held_out, config, options.samples, options.seed)
    results.show(options.out, "train", "on the held-out tunes", rows)
    epochs = {str(n): own for n, own in enumerate(trained.history.epochs)}
    tune = report.samples(trained.model, config, 1, options.seed)[0]
    picture = report.draw(rows, trained.history.losses, epochs, name, tune, options.out / "music.png")
    console.print(f"picture: {picture}")
    return trained.history


def evaluate(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Compare the trained models on other tunes; without --data, on newly generated ones."""
    config, models = load(options)
    path = cli.given_or_generated(options, "test.abc", lambda: generator.book(200, options.seed + 1_000_000))
    texts = [data.text_of(tune) for tune in data.load(path, strict=options.strict)]
    rows = report.compare(models, texts, config, options.samples, options.seed)
    results.show(options.out, "evaluate", f"on {len(texts):,} tunes of {path.name}", rows)
    return rows


def predict(options: argparse.Namespace) -> str:
    """Write a new tune with the network, and save it as ABC, as sound and as a picture."""
    config, models = load(options)
    kinds = sorted({fields["R"] for fields in config["headers"] if "R" in fields})
    if options.kind is not None and options.kind not in kinds:
        raise InputError("--kind", None, f"one of {', '.join(kinds) or 'none'}", repr(options.kind))
    asked = {
        "R": options.kind,
        "M": options.meter and options.meter.name,
        "K": options.key and options.key.name,
    }
    given = {name: value for name, value in asked.items() if value is not None}
    start = data.header(data.begin(config["headers"], given, options.seed)) + options.begin
    vocabulary = Vocabulary.from_json(config["vocabulary"])
    if unknown := "".join(sorted(set(start) - set(vocabulary.tokens))):
        raise InputError("the beginning", None, "characters that the training had", repr(unknown))
    network, end = list(models.values())[-1], vocabulary.index[data.TUNE]
    prompt = config["opening"] + vocabulary.ids(start)
    ids = write(network, prompt, 1, end=end, temperature=options.temperature, seed=options.seed)[0]
    text = f"X:1\nT:A tune by a network\n{start}{''.join(vocabulary.words(ids))}".rstrip("\n") + "\n"
    terminal.console().print(text, markup=False)
    write_generated(options.out / "tune.abc", text)
    perform(parse(text), options, "A tune by a network")
    return text


def play(options: argparse.Namespace) -> None:
    """Sound and picture of a tune in a file."""
    tunes = data.load(options.file, strict=options.strict)
    own = [tune for tune in tunes if options.number in (None, tune.fields["X"].strip())]
    if not own:
        raise InputError(options.file, None, f"a tune with X:{options.number}", f"{len(tunes)} others")
    perform(own[0], options, own[0].fields.get("T", "A tune"))


def perform(tune: Tune, options: argparse.Namespace, title: str) -> None:
    """Say which bars are not valid; write what sounds and what it looks like to `options.out`."""
    console = terminal.console()
    checked = check(tune)
    for number, problem in enumerate(checked, 1):
        if problem is not None:
            console.print(f"bar {number} is not valid: {problem}", markup=False)
    console.print(f"{checked.count(None)} of {len(checked)} bars are valid")
    beat = tune.meter.beat if tune.meter else Fraction(1, 4)
    sounding = notes(tune)
    if (seconds := sound.seconds(sounding, beat, options.tempo)) > LONGEST:
        expected = f"a tune of at most {LONGEST:,} seconds at --tempo {options.tempo}"
        raise InputError(title, None, expected, f"one of {seconds:,.0f}")
    samples = sound.render(sounding, beat, options.tempo)
    console.print(
        f"sound: {sound.save(samples, options.out / 'tune.wav')} ({len(samples) / sound.RATE:.1f} s)"
    )
    console.print(f"picture: {report.draw_tune(tune, title, options.out / 'tune.png')}")


def key(text: str) -> Key:
    """A key, as an argument."""
    made = Key.parse(text)
    if made is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a key such as G, Em or Ador")
    return made


def meter(text: str) -> Meter:
    """A meter, as an argument."""
    made = Meter.parse(text)
    if made is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a meter such as 6/8")
    return made


def main(arguments: list[str] | None = None) -> int:
    line = cli.CommandLine("music", __doc__)
    training = line.training(train, epochs=8, batch=16, rate=6e-3)
    testing = line.command("evaluate", evaluate, of_seeds=True)
    writing, playing = line.command("predict", predict), line.command("play", play)
    add = training.add_argument
    orders = "n of the n-gram models"
    add("--orders", nargs="+", type=cli.order, default=[5, 8], metavar="N", help=orders)
    add("--hidden", type=cli.positive, default=128, metavar="N", help="features of embedding and layers")
    add("--depth", type=cli.positive, default=1, metavar="N", help="recurrent layers")
    add("--dropout", type=cli.probability, default=0.0, metavar="P", help="between the layers")
    add("--length", type=cli.positive, default=128, metavar="N", help="characters that gradients go back")
    add("--tunes", type=cli.positive, default=1500, metavar="N", help="to generate without --data")
    for parser in (training, testing):
        help = "a tune book in ABC; without it, tunes are generated"
        parser.add_argument("--data", type=Path, metavar="ABC", help=help)
        help = "tunes that each model writes to be measured"
        parser.add_argument("--samples", type=cli.positive, default=64, metavar="N", help=help)
    for parser in (testing, writing):
        parser.add_argument(
            "--seed", type=cli.seed, default=0, metavar="N", help="the same seed draws the same tunes"
        )
    for parser in (training, testing, playing):
        help = "refuse a file with a tune that is not understood"
        parser.add_argument("--strict", action="store_true", help=help)
    for parser in (writing, playing):
        help = "beats a minute: in 6/8 dotted quarters, in 4/4 quarters"
        parser.add_argument("--tempo", type=cli.positive, default=110, metavar="N", help=help)
    add = writing.add_argument
    add("--kind", metavar="R", help="jig, reel, waltz, … as the training had them")
    add("--meter", type=meter, metavar="M", help="such as 6/8")
    add("--key", type=key, metavar="K", help="such as G, Em or Ador")
    add("--begin", default="", metavar="TEXT", help="the beginning of the music, after the header")
    help = "0: always the likeliest; above 1: wild"
    add("--temperature", type=cli.not_negative, default=0.7, metavar="X", help=help)
    playing.add_argument("file", type=Path, metavar="FILE", help="a tune book in ABC")
    playing.add_argument("--number", metavar="X", help="which tune; without it, the first")
    return line.run(arguments)


if __name__ == "__main__":
    sys.exit(main())
