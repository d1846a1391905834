"""Named-entity recognition: which words name a person, a place, an organisation? A tag for every token.

Two taggers, embedding → LSTM (or another --cell) → dense layer → log softmax, differ in what they read before
they decide:

  one-way  the words up to the token
  two-way  the whole sentence, by a second LSTM from its end

    python -m examples.ner train                                       on generated sentences, 10 seconds
    python -m examples.ner train --data eng.train --valid eng.testa    on CoNLL columns: token first, tag last
    python -m examples.ner train --length 40                           every sentence made 40 tokens long
    python -m examples.ner train --seeds 5                             from five seeds: medians and spreads
    python -m examples.ner lengths                                     what such a length costs
    python -m examples.ner evaluate --data eng.testb
    python -m examples.ner predict "Jordan , the striker , left Paris ."
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from examples.common import cli, distributed, results, terminal
from examples.common.contest import Trained, load_each, train_each
from examples.common.data import Batches, InputError, split
from examples.common.train import History

from . import data, picture
from . import lengths as fixed
from .data import Sentence
from .generator import generate
from .learn import Example, Task, build, loss, metrics, model_scores, predict, reads
from .model import Memory
from .spans import Score, spans

GENERATED = {"train": (3000, 1), "test": (1000, 2)}  # how many sentences, and the seed
BASELINE = "memory"
MODELS = {"one-way": False, "two-way": True}  # whether it is bidirectional


def train(options: argparse.Namespace) -> History:
    """Train both taggers on the same sentences and compare them with a memory of each word's tag."""
    seen, held_out = sentences_of(options)
    task, batches = prepare(options, seen, held_out)
    memory = Memory.of(seen)
    known = {"memory": memory.to_json()}
    trained = train_each(
        options,
        build,
        {name: task.config(both, options.cell, options.length) | known for name, both in MODELS.items()},
        loss,
        batches,
        lambda model: metrics(model_scores(model, task, held_out)),
    )
    compare(options, "train", task, memory, trained, held_out, "held-out sentences")
    if distributed.rank() == 0:
        path = picture.draw({options.seed: options.out}, options.out)
        terminal.console().print(f"picture: {path}")
    return trained["two-way"].history


def lengths(options: argparse.Namespace) -> History:
    """Train the two-way tagger with sentences of their own length and of fixed ones, and compare these."""
    seen, held_out = sentences_of(options)
    task, batches = prepare(options, seen, held_out)
    choices = fixed.choices(batches.items)
    trained = train_each(
        options,
        build,
        {f"length-{name}": task.config(True, options.cell, length) for name, length in choices.items()},
        loss,
        batches,
        lambda model: metrics(model_scores(model, task, held_out)),
    )
    by_length = {name: trained[f"length-{name}"] for name in choices}
    title = "two-way, sentences cut or padded to N tokens"
    results.show(options.out, "lengths", title, fixed.rows(choices, by_length, batches))
    return by_length["none"].history


def prepare(
    options: argparse.Namespace, seen: list[Sentence], held_out: list[Sentence]
) -> tuple[Task, Batches[Example]]:
    """What there is to learn, and the sentences to learn it from in batches."""
    task = Task.of(seen, {tag[2:] for s in (*seen, *held_out) for tag in s.tags if tag != "O"})
    words, types = f"{len(task.vocabulary):,} words", ", ".join(sorted(task.types))
    terminal.console().print(f"{len(seen):,} sentences, {words}, {types}")
    return task, cli.batches(options, task.encode(seen), length=lambda e: len(e.ids))


def sentences_of(options: argparse.Namespace) -> tuple[list[Sentence], list[Sentence]]:
    """Training and held-out sentences: two files, or one of which a tenth is held out."""
    read = data.read(source(options, "train"))
    if options.valid is not None:
        return read, data.read(options.valid)
    if len(read) < 2:
        raise InputError(options.data, None, "two sentences at least", "one")
    return split(read, 0.1, options.seed)


def evaluate(options: argparse.Namespace) -> dict[str, dict[str, Score]]:
    """Precision, recall and F1 of both taggers, and of the memory of words, on the sentences of a file."""
    task, memory, trained = load(options)
    sentences = data.read(source(options, "test"), task.types)
    return compare(options, "evaluate", task, memory, trained, sentences, f"{len(sentences):,} sentences")


def tag(options: argparse.Namespace) -> list[tuple[str, str]]:
    """The entities in a text, as the two-way tagger finds them."""
    tokens = re.findall(r"\w+(?:['’.-]\w+)*|[^\w\s]", options.text)
    if not tokens:
        raise InputError("TEXT", None, "a text with words in it", repr(options.text))
    task, _, trained = load(options)
    model = trained["two-way"].model
    tags = predict(model, task, [tokens])[0]
    read = min(reads(model) or len(tokens), len(tokens))
    console = terminal.console()
    for n, (token, own) in enumerate(zip(tokens, tags, strict=True)):
        note = "" if token in task.vocabulary else "  (unknown)"
        console.print(f"{token:>16}  {own}{note if n < read else '  (not read)'}", markup=False)
    if read < len(tokens):
        console.print(f"trained with --length {read}: the last {len(tokens) - read} tokens were not read")
    entities = [(" ".join(tokens[start:end]), type) for start, end, type in spans(tags)]
    console.print(
        "entities: " + (", ".join(f"{text} ({type})" for text, type in entities) or "none"), markup=False
    )
    return entities


def compare(
    options: argparse.Namespace,
    table: str,
    task: Task,
    memory: Memory,
    trained: dict[str, Trained],
    sentences: list[Sentence],
    title: str,
) -> dict[str, dict[str, Score]]:
    """The scores of the baseline and of the taggers, which are printed, too: in all, then F1 by type."""
    scores = {BASELINE: memory.scores(sentences)}
    scores |= {name: model_scores(own.model, task, sentences) for name, own in trained.items()}
    rows = {
        name: metrics(own) | {f"F1 {type}": score.f1 for type, score in own.items() if type != "all"}
        for name, own in scores.items()
    }
    results.show(options.out, table, title, rows)
    return scores


def load(options: argparse.Namespace) -> tuple[Task, Memory, dict[str, Trained]]:
    """What the taggers know, the baseline, and the trained taggers."""
    trained = load_each(options, build, MODELS)
    config = trained["two-way"].config
    return Task.from_config(config), Memory.from_json(config["memory"]), trained


def source(options: argparse.Namespace, part: str) -> Path:
    """The file given, or one of generated sentences."""
    count, seed = GENERATED[part]
    return cli.given_or_generated(options, f"{part}.conll", lambda: data.write(generate(count, seed)))


def main(arguments: list[str] | None = None) -> int:
    line = cli.CommandLine("ner", __doc__)
    training = line.training(train, epochs=8, batch=32, rate=5e-3, draw_seeds=picture.draw)
    help = "cut or pad every sentence to N tokens; None: pad to the longest of each batch"
    training.add_argument("--length", type=cli.positive, metavar="N", help=help)
    comparing = line.training(lengths, epochs=8, batch=32, rate=5e-3, name="lengths")
    for parser in (training, comparing, line.command("evaluate", evaluate, of_seeds=True)):
        help = "columns, token first, tag last; None generates sentences"
        parser.add_argument("--data", type=Path, metavar="CONLL", help=help)
    for parser in (training, comparing):
        help = "held-out sentences; None: a tenth of --data"
        parser.add_argument("--valid", type=Path, metavar="CONLL", help=help)
    line.command("predict", tag).add_argument("text", metavar="TEXT", help="a sentence")
    return line.run(arguments)


if __name__ == "__main__":
    sys.exit(main())
