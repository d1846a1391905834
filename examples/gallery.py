"""Runs all programs from several seeds and collects what they measure and draw on one page.

    python -m examples.gallery              # all, a quarter of an hour on two cores; likewise `make examples`
    python -m examples.gallery ner          # one; the page keeps the others as they were
    python -m examples.gallery --renew      # docs/gallery.md and the tables in the programs' READMEs

What was trained stays in out/, so that `evaluate` and `predict` of each program work afterwards. Without
--renew the page and its pictures go to out/gallery.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from .common import cli, results, terminal

ROOT = Path(__file__).resolve().parents[1]
SEEDS = 5


class Command(NamedTuple):
    """A run of a program that the page shows.

    Args:
        arguments: Those of the program, but for the number of seeds.
        tables: Of its results: the name here and in the README's marks, and that in the folder of results.
        pictures: Files that it draws.
        out: Where its results go, within out/; None: to the folder of the program's name.
    """

    arguments: str
    tables: dict[str, str]
    pictures: tuple[str, ...] = ()
    out: str | None = None


class Program(NamedTuple):
    """What the page shows of a program."""

    title: str
    commands: tuple[Command, ...]


PROGRAMS = {
    "sentiment": Program(
        "Tweet sentiment",
        (
            Command("train", {"train": "train"}, ("sentiment.png",)),
            Command("evaluate", {"evaluate": "evaluate"}),
        ),
    ),
    "language_model": Program(
        "Language models",
        (
            Command("train --cells rnn gru gru-before lstm", {"train": "train"}, ("language_model.png",)),
            Command(
                "train --book --orders 2 3 5 --hidden 128 --dropout 0.3",
                {"book": "train"},
                ("language_model.png",),
                "book",
            ),
        ),
    ),
    "ner": Program(
        "Named entities",
        (
            Command("train", {"train": "train"}, ("ner.png",)),
            Command("evaluate", {"evaluate": "evaluate"}),
            Command("lengths", {"lengths": "lengths"}),
        ),
    ),
    "duplicates": Program(
        "Duplicate questions",
        (
            Command("train", {"train": "train"}, ("duplicates.png",)),
            Command("evaluate", {"evaluate": "evaluate", "rejection": "rejection"}),
            Command("losses", {"losses": "losses"}, ("losses.png",)),
        ),
    ),
    "gradients": Program(
        "Vanishing and exploding gradients",
        (Command("train", {"evaluate": "evaluate", "clipping": "clipping"}, ("gradients.png",)),),
    ),
    "memory_task": Program(
        "A task that needs memory", (Command("train", {"train": "train"}, ("memory_task.png",)),)
    ),
    "music": Program(
        "Folk tunes",
        (
            Command("train", {"train": "train"}, ("music.png",)),
            Command("predict --kind jig --key Em --seed 1", {}, ("tune.png",)),
        ),
    ),
}
HEAD = """# What the examples learn

Made by `make examples`: each program at its default settings, from {seeds} seeds, each on one CPU thread.
Numbers are medians, the lowest and the highest in brackets; bands in pictures go from the lowest to the
highest, and what has none is of the first seed. All data are made by the programs' own generators, not from
the world, but for the book, which is Python's own language reference. Speeds were measured with a training on
each core.

The programs follow lecture notes on sequence models. What these say, and what came out:

{statements}
"""
# What the lecture notes say, what came out, and the program that shows it.
STATEMENTS = (
    ("Deep networks do better than baselines like naive Bayes.", "Yes.", "sentiment"),
    ("The mean of a tweet's embeddings encodes its meaning.", "But for the order of its words.", "sentiment"),
    ("An embedding is a product with a one-hot vector, a dense layer inner products.", "Equal.", "sentiment"),
    ("Sequence models see context that n-grams cannot, in less memory.", "Yes.", "language_model"),
    ("Gates keep information over long sequences.", "From every seed; without, from some.", "language_model"),
    ("A GRU takes more time and memory than an RNN.", "Yes, and an LSTM more again.", "language_model"),
    ("`hstack` is vertical, `vstack` horizontal.", "The other way round.", "language_model"),
    ("Read in one direction, context from the other side is lacking.", "Yes.", "ner"),
    ("Sentences need one length: pick it, and pad.", "One for each batch will do; padding is masked.", "ner"),
    (
        "The mean negative trains faster.",
        "Its own loss falls faster, and teaches nothing more.",
        "duplicates",
    ),
    (
        "The closest negative costs more; the loss is the sum of both.",
        "Yes; the sum is fastest.",
        "duplicates",
    ),
    (
        "One-shot: a threshold on the similarity recognises new classes.",
        "Yes, and rejects others.",
        "duplicates",
    ),
    ("Gradients of long sequences vanish; an LSTM prevents it.", "Yes, and so does a GRU.", "gradients"),
    ("So does the identity with ReLU and zero biases.", "Yes, at a small rate and clipped.", "gradients"),
    ("Large gradients are cut to a threshold.", "By norm it helps, element by element not.", "gradients"),
    ("Skip connections help deep RNNs.", "Yes, residual as well as concatenating ones.", "gradients"),
    ("LSTMs compose music.", "This one counts bars right, and does not learn form.", "music"),
)


def statements() -> str:
    """The lecture notes' statements as a table, each with a link to the part of the page that shows it."""
    lines = ["| the notes say | here | |", "|---|---|---|"]
    for said, found, name in STATEMENTS:
        title = PROGRAMS[name].title
        lines.append(f"| {said} | {found} | [{title}](#{title.lower().replace(' ', '-')}) |")
    return "\n".join(lines)


def run(name: str, command: Command, seeds: int) -> str:
    """Run a command, and give it back as a user would write it."""
    program, *others = command.arguments.split()
    repeated = {"predict": [], "evaluate": ["--all-seeds"]}.get(program, ["--seeds", str(seeds)])
    shown = [f"examples.{name}", program, *others, *repeated]
    if command.out is not None:
        shown += ["--out", f"out/{command.out}"]
    jobs = ["--jobs", "1"] if "--seeds" in repeated else []  # programs run side by side, not seeds
    start = time.perf_counter()
    ended = subprocess.run(
        [sys.executable, "-m", *shown, *jobs], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if ended.returncode:
        raise RuntimeError(f"python -m {' '.join(shown)} ended with {ended.returncode}\n{ended.stderr}")
    print(f"{time.perf_counter() - start:4.0f} s  python -m {' '.join(shown)}", flush=True)
    return f".venv/bin/python -m {' '.join(shown)}"


def collect(name: str, seeds: int, pictures: Path) -> str:
    """Run all commands of a program; its part of the page. Its numbers and pictures go to `pictures`."""
    program = PROGRAMS[name]
    tables: dict[str, Any] = {}
    parts = []
    pictures.mkdir(parents=True, exist_ok=True)
    for command in program.commands:
        out = ROOT / "out" / (command.out or name)
        part = f"```sh\n{run(name, command, seeds)}\n```\n"
        for picture in command.pictures:
            there = f"{command.out}-{picture}" if command.out else picture
            shutil.copyfile(out / picture, pictures / there)
            part += f"\n![{program.title}]({pictures.name}/{there})\n"
        if command.tables:
            found = json.loads((out / results.SUMMARY).read_text(encoding="utf-8"))["tables"]
            own = {here: found[table] for here, table in command.tables.items()}
            tables |= own
            part += "".join(f"\n{table['title']}:\n\n{markdown(table['rows'])}\n" for table in own.values())
        parts.append(part)
    numbers = json.dumps(tables, ensure_ascii=False, indent=1) + "\n"
    (pictures / f"{name}.json").write_text(numbers, encoding="utf-8")
    readme = ROOT / "examples" / name / "README.md"
    about = readme.read_text(encoding="utf-8").split("\n\n")[1]  # the paragraph after the title
    link = os.path.relpath(readme, pictures.parent)
    return "\n".join([f"## {program.title}\n", about, "", *parts, f"[How it works]({link})", ""])


def markdown(rows: Mapping[str, Mapping[str, list[float]]]) -> str:
    """Numbers of each seed as a table of medians and spreads."""
    return results.markdown(results.spreads(rows))


def fill(text: str, name: str, tables: Mapping[str, Any]) -> str:
    """A README with its tables renewed: each stands between two marks, `<!-- results: NAME TABLE -->` and
    `<!-- end -->`."""

    def renewed(found: re.Match[str]) -> str:
        return f"{found[1]}\n{markdown(tables[found[2]]['rows'])}\n{found[3]}"

    mark = rf"(<!-- results: {name} (\S+) -->)\n.*?(<!-- end -->)"
    return re.sub(mark, renewed, text, flags=re.DOTALL)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m examples.gallery",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(PROGRAMS)} (default: all)")
    parser.add_argument(
        "--renew", action="store_true", help="write docs/gallery.md, and the tables in the READMEs"
    )
    help = "trainings of each network (default: %(default)s)"
    parser.add_argument("--seeds", type=cli.positive, default=SEEDS, metavar="N", help=help)
    help = "programs at a time (default: one a core)"
    parser.add_argument("--jobs", type=cli.positive, default=os.cpu_count(), metavar="N", help=help)
    options = parser.parse_args(arguments)
    if unknown := set(options.names) - PROGRAMS.keys():
        parser.error(f"there is no {', '.join(sorted(unknown))}")
    page = ROOT / "docs" / "gallery.md" if options.renew else ROOT / "out" / "gallery" / "gallery.md"
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"{page.parent}: {(error.strerror or str(error)).lower()}")
    pictures, names = page.with_suffix(""), options.names or list(PROGRAMS)
    text = page.read_text(encoding="utf-8") if page.exists() else ""
    kept = {part.split("\n", 1)[0]: f"## {part.rstrip()}\n" for part in text.split("\n## ")[1:]}
    with ThreadPoolExecutor(options.jobs) as pool:
        made = {name: pool.submit(collect, name, options.seeds, pictures) for name in slowest_first(names)}
    for name, part in made.items():
        try:
            kept[PROGRAMS[name].title] = part.result()
        except (RuntimeError, OSError) as error:
            terminal.console().print(f"{name} is left as it was: {error}", style="red")
            continue
        if options.renew:
            renew(name, pictures)
    ordered = [kept[program.title] for program in PROGRAMS.values() if program.title in kept]
    page.write_text(
        "\n".join([HEAD.format(seeds=options.seeds, statements=statements()), *ordered]), encoding="utf-8"
    )
    print(f"page: {page}")
    return int(any(part.exception() for part in made.values()))


def renew(name: str, pictures: Path) -> None:
    """The tables in the README of a program."""
    tables = json.loads((pictures / f"{name}.json").read_text(encoding="utf-8"))
    readme = ROOT / "examples" / name / "README.md"
    readme.write_text(fill(readme.read_text(encoding="utf-8"), name, tables), encoding="utf-8")


def slowest_first(names: list[str]) -> list[str]:
    """In an order in which several cores are done at about the same time."""
    order = ["language_model", "gradients", "duplicates", "memory_task", "ner", "music", "sentiment"]
    return sorted(names, key=order.index)


if __name__ == "__main__":
    sys.exit(main())
