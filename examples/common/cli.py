"""The command line of all programs: `train | evaluate | predict`, the same options, one clear error."""

from __future__ import annotations

import argparse
import inspect
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from . import distributed, layers, repeat, results, terminal
from .arguments import (
    above_zero,
    cosine,
    device,
    folder,
    not_negative,
    order,
    positive,
    probability,
    seed,
    whole,
)
from .data import Batches, write_generated
from .errors import InputError, told
from .train import Diverged, History, Recipe

__all__ = [
    "CommandLine",
    "Help",
    "above_zero",
    "announce_generated",
    "batches",
    "cosine",
    "device",
    "folder",
    "given_or_generated",
    "not_negative",
    "order",
    "positive",
    "probability",
    "recipe",
    "seed",
    "status",
    "whole",
]

Item = TypeVar("Item")


class Help(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Descriptions as they are written, and the default of every option that says what it does."""


class CommandLine:
    """The command line of one program.

    Args:
        name: That of the folder: results go to out/NAME.
        description: The docstring of the program, which `--help` shows.
    """

    def __init__(self, name: str, description: str | None) -> None:
        self.name = name
        self.parser = argparse.ArgumentParser(
            f"python -m examples.{name}", description=description, formatter_class=Help
        )
        self._commands = self.parser.add_subparsers(metavar="COMMAND", required=True)

    def command(
        self, name: str, function: Callable[[argparse.Namespace], Any], *, of_seeds: bool = False
    ) -> argparse.ArgumentParser:
        """Add a command; its help is the docstring of the function that it calls with the options.

        Args:
            of_seeds: Whether it makes sense for each seed that was trained, and gets --all-seeds.
        """
        text = inspect.getdoc(function) or ""
        first = " ".join(text.split("\n\n")[0].split()).split(". ")[0].removesuffix(".")
        parser = self._commands.add_parser(
            name, help=first, description=text, formatter_class=Help, allow_abbrev=False
        )
        parser.set_defaults(command=name, function=function, cells_of=lambda options: ())
        parser.set_defaults(training=False, compares=False, all_seeds=False)
        out = Path("out") / self.name
        parser.add_argument("--out", type=folder, default=out, metavar="DIR", help="checkpoints and pictures")
        parser.add_argument("--device", type=device, default="cpu", help="cpu, cuda, cuda:1, …")
        threads = "CPU threads; networks this small are fastest on one"
        parser.add_argument("--threads", type=whole(1, 1024), default=1, metavar="N", help=threads)
        if of_seeds:
            help = "of each seed of `train --seeds`, with medians and spreads"
            parser.add_argument("--all-seeds", action="store_true", help=help)
        return parser

    def training(
        self,
        function: Callable[[argparse.Namespace], History],
        *,
        epochs: int,
        batch: int,
        rate: float,
        cell: str | None = "lstm",
        cells: Callable[[argparse.Namespace], Iterable[str]] = lambda options: [options.cell],
        clip: float = 1.0,
        name: str = "train",
        draw_seeds: Callable[[dict[int, Path], Path], Any] | None = None,
    ) -> argparse.ArgumentParser:
        """Add `train` with the options of all trainings at these defaults; cell=None: no --cell.

        Args:
            cells: Tells from the options which cells will be trained, so that what --backend does not have is
                refused before anything is trained.
            name: Of the command.
            draw_seeds: Draws one picture of several seeds' trainings: from the folder of each seed, and the
                folder that the picture goes to.
        """
        parser = self.command(name, function)
        parser.set_defaults(cells_of=cells, compares=True)
        add = parser.add_argument
        if cell is not None:
            help = "the recurrent layer; gru-before: GRU with the reset gate before the product"
            add("--cell", choices=layers.CELLS, default=cell, help=help)
        choices = (*layers.BACKENDS, "both")
        add(
            "--backend", choices=choices, default="fused", help="seqkernels, torch.nn, or one after the other"
        )
        add("--epochs", type=positive, default=epochs, metavar="N", help="passes through the data")
        add(
            "--batch",
            type=positive,
            default=batch,
            metavar="N",
            help="rows in a step, of all processes together",
        )
        add("--rate", type=not_negative, default=rate, metavar="X", help="learning rate of Adam")
        add(
            "--clip",
            type=not_negative,
            default=clip,
            metavar="X",
            help="largest norm of the gradient; 0: any",
        )
        self.seeds(parser, draw_seeds)
        add("--resume", action="store_true", help="go on from the checkpoint in --out")
        return parser

    def seeds(
        self,
        parser: argparse.ArgumentParser,
        draw_seeds: Callable[[dict[int, Path], Path], Any] | None = None,
    ) -> None:
        """Make a command one that can be repeated from several seeds; `draw_seeds` as in `training`."""
        parser.set_defaults(training=True, draw_seeds=draw_seeds)
        add = parser.add_argument
        add("--seed", type=seed, default=0, metavar="N", help="the same seed gives the same training")
        help = "train with N seeds from --seed on, side by side, and show medians and spreads"
        add("--seeds", type=whole(1, 1000), default=1, metavar="N", help=help)
        add("--jobs", type=positive, metavar="N", help="trainings at a time with --seeds; None: one a core")

    def run(self, arguments: list[str] | None = None) -> int:
        """Parse and obey; the exit status. What the user has to put right is one line on stderr."""
        given = sys.argv[1:] if arguments is None else arguments
        options = self.parser.parse_args(given)
        if broken := [argument for argument in given if any("\ud800" <= c <= "\udfff" for c in argument)]:
            self.parser.error(f"{broken[0]!a}: expected UTF-8 text, found other bytes")
        torch.set_num_threads(options.threads)
        return status(
            lambda: self._obey(options, given),
            "interrupted; `train --resume` goes on from the last full epoch",
        )

    def _obey(self, options: argparse.Namespace, given: list[str]) -> int:
        if options.training:
            self._train(options, given)
        else:
            with distributed.session(options.device) as options.device:
                self._use(options)
        return 0

    def _use(self, options: argparse.Namespace) -> None:
        """A command on what was trained, or on what was trained from each seed."""
        if not options.all_seeds:
            options.function(options)
            return
        folders = repeat.trained(options.out)
        for number, out in folders.items():
            terminal.console().rule(f"seed {number}")
            options.function(argparse.Namespace(**{**vars(options), "out": out}))
        repeat.write(options.out, folders)

    def _train(self, options: argparse.Namespace, arguments: list[str]) -> None:
        """One training, or that of several seeds or on both backends."""
        for cell in options.cells_of(options):
            layers.check(cell, options.backend)
        options.out.mkdir(parents=True, exist_ok=True)
        if options.seeds > 1:
            folders = repeat.train(self.name, arguments, options)
            if options.draw_seeds is not None:
                terminal.console().print(f"picture: {options.draw_seeds(folders, options.out)}")
            return
        with distributed.session(options.device) as options.device:
            world = distributed.world_size()
            if options.batch < world:
                raise InputError(
                    "--batch", None, f"{world} or more, one for each process", f"{options.batch}"
                )
            if options.compares and options.backend == "both":
                _compare(options)
            else:
                options.function(options)


def status(function: Callable[[], int], interrupted: str) -> int:
    """The exit status that a function returns. What the user has to put right is one line on stderr, and 2.

    Args:
        interrupted: What to say where the user stopped it.
    """
    try:
        return function()
    except (InputError, Diverged) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # who read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (OSError, MemoryError, RuntimeError) as error:
        line = told(error)
        if line is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return 130


def recipe(options: argparse.Namespace, **changes: Any) -> Recipe:
    """The options of a training as `train.fit` takes them."""
    made = Recipe(epochs=options.epochs, rate=options.rate, clip=options.clip, seed=options.seed)
    return replace(made, **changes)


def batches(
    options: argparse.Namespace, items: Sequence[Item], *, length: Callable[[Item], int] | None = None
) -> Batches[Item]:
    """The items as the batches of a training with these options.

    Raises:
        InputError: There are fewer items than processes.
    """
    try:
        return Batches(items, options.batch, length=length, seed=options.seed)
    except ValueError as error:
        raise InputError(options.data, None, "data for every process", str(error)) from None


def given_or_generated(options: argparse.Namespace, file: str, text: Callable[[], str]) -> Path:
    """The file of --data or, without, generated-`file` in --out, into which `text()` is written."""
    if options.data is not None:
        return Path(options.data)
    path = Path(options.out / f"generated-{file}")
    write_generated(path, text())
    announce_generated(path)
    return path


def announce_generated(path: Path) -> None:
    """Say that the data is not from the world."""
    said = f"no --data given: this is generated data, written to {path}"
    terminal.console().print(said, style="yellow")


def _compare(options: argparse.Namespace) -> None:
    """The same training on torch.nn and on seqkernels: last epoch's numbers, side by side.

    What seqkernels has trained is where it would be without the comparison, for `evaluate` and `predict`.
    """
    rows = {}
    for backend in ("torch", "fused"):
        own = argparse.Namespace(**vars(options))
        own.backend, own.out = backend, options.out / "torch" if backend == "torch" else options.out
        terminal.console().rule(f"backend {backend}")
        rows[backend] = options.function(own).epochs[-1]
    results.show(options.out, "backends", "last epoch, by backend", rows)
