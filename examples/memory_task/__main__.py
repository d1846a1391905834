"""Recurrent PPO on a task that needs memory, before and after `seqkernels.integrations.sb3.fuse`.

A cue is shown, some steps of nothing pass, then the cue is to be named. Who remembers nothing can but guess.
sb3-contrib's RecurrentPPO learns it twice from the same seeds: as it is, and on fused kernels. It needs
sb3-contrib: pip install -r requirements-integrations.txt

    python -m examples.memory_task train                             # `train` may be left out
    python -m examples.memory_task train --delay 24 --rounds 80
    python -m examples.memory_task evaluate                          # draw again from the checkpoints
    python -m examples.memory_task predict 2 0 3 --delay 20          # what it names after these cues
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..common import cli, results, terminal
from ..common.errors import InputError
from . import picture

BACKENDS = tuple(picture.NAMES)
# Options of a training that shows that everything runs, and learns nothing.
QUICK = {"rounds": 2, "hidden": 16, "envs": 4, "steps": 32, "batch": 64, "passes": 1}


def train(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Train with and without fused kernels, from the same seeds, and draw how they did.

    There is a checkpoint of each after every round; --resume goes on from them.
    """
    learn = _learn()
    if options.quick:
        vars(options).update(QUICK)
    recipe = learn.Recipe(**{field.name: vars(options)[field.name] for field in fields(learn.Recipe)})
    if (
        min(options.batch, options.envs * options.steps) < 2
        or options.envs * options.steps % options.batch == 1
    ):
        expected = "2 steps or more in every training step"  # their advantages are divided by their spread
        raise InputError(
            "--batch", None, expected, f"{options.batch} of {options.envs * options.steps} steps"
        )
    console = terminal.console()
    paths = {backend: _path(options, backend) for backend in _backends(options)}
    if options.resume and not any(path.exists() for path in paths.values()):
        raise InputError(options.out, None, "checkpoints to go on from", "none")
    for backend, path in paths.items():
        console.rule(picture.NAMES[backend])
        model = learn.build(recipe, backend, options.device)
        learn.train(model, recipe, options.rounds, path, options.resume and path.exists())
    return evaluate(options)


def evaluate(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Ask the trained models after every delay up to twice the longest in training, and draw the picture."""
    learn = _learn()
    recipes, histories, by_delay = {}, {}, {}
    for backend in _trained(options):
        path = _path(options, backend)
        recipe, histories[backend], _ = learn.read(path)
        model = learn.build(recipe, backend, options.device)
        learn.load(model, path)
        recipes[backend] = recipe
        by_delay[backend] = {
            delay: float(learn.answers(model, delay, range(recipe.cues)).diagonal().mean())
            for delay in range(1, 2 * recipe.delay + 1)
        }
    recipe = next(iter(recipes.values()))
    if any(other != recipe for other in recipes.values()):
        raise InputError(options.out, None, "trainings that are alike", "different ones; train both again")
    rows = {
        picture.NAMES[backend]: {
            "right": rounds[-1]["right"],
            "chance": 1 / recipe.cues,
            **{speed: picture.median([r[speed] for r in rounds]) for speed in picture.SPEEDS},
            "seconds": sum(r["seconds"] for r in rounds),
        }
        for backend, rounds in histories.items()
    }
    console = terminal.console()
    results.show(options.out, "train", "the last round's answers, and medians of the speeds", rows)
    path = options.out / "memory_task.png"
    per_round = recipe.envs * recipe.steps
    drawn = picture.draw(path, histories, per_round, 1 / recipe.cues, by_delay, recipe.delay)
    console.print(f"picture: {drawn}")
    return rows


def predict(options: argparse.Namespace) -> None:
    """What the trained models name after some cues."""
    learn = _learn()
    for backend in _trained(options):
        path = _path(options, backend)
        recipe, *_ = learn.read(path)
        if max(options.cue) >= recipe.cues:
            raise InputError("CUE", None, f"one of 0 to {recipe.cues - 1}", str(max(options.cue)))
        model = learn.build(recipe, backend, options.device)
        learn.load(model, path)
        found = learn.answers(model, options.delay, options.cue)
        for cue, p in zip(options.cue, found, strict=True):
            said = f"cue {cue}: {int(p.argmax())}, with a probability of {float(p.max()):.2f}"
            terminal.console().print(f"{picture.NAMES[backend]}  {said}")


def _learn() -> Any:
    """The module that needs the optional packages."""
    try:
        from . import learn
    except ModuleNotFoundError as error:
        needed = "sb3-contrib (pip install -r requirements-integrations.txt)"
        raise InputError("memory_task", None, needed, f"no module {error.name}") from None
    return learn


def _path(options: argparse.Namespace, backend: str) -> Path:
    return Path(options.out / f"{backend}.safetensors")


def _backends(options: argparse.Namespace) -> tuple[str, ...]:
    return BACKENDS if options.backend == "both" else (options.backend,)


def _trained(options: argparse.Namespace) -> list[str]:
    """The backends that there are checkpoints of."""
    found = [backend for backend in BACKENDS if _path(options, backend).exists()]
    if not found:
        raise InputError(options.out, None, "the checkpoints of a training (run `train` first)", "none")
    return found


def main(arguments: list[str] | None = None) -> int:
    line = cli.CommandLine("memory_task", __doc__)
    training = line.command("train", train)
    line.seeds(training)
    add = training.add_argument
    add(
        "--backend",
        choices=(*BACKENDS, "both"),
        default="both",
        help="as it is, fused, or one after the other",
    )
    numbers = {
        "rounds": (32, "of collecting and training"),
        "cues": (4, "different cues"),
        "delay": (12, "longest delay between cue and answer; the shortest is half of it"),
        "hidden": (64, "units of each LSTM"),
        "envs": (16, "environments"),
        "steps": (128, "steps of each environment in a round"),
        "batch": (256, "steps in a training step"),
        "passes": (10, "trainings on each step"),
    }
    for name, (default, help) in numbers.items():
        add(f"--{name}", type=cli.positive, default=default, metavar="N", help=help)
    add("--rate", type=cli.not_negative, default=2e-3, metavar="X", help="learning rate of Adam")
    add("--resume", action="store_true", help="go on from the checkpoints in --out")
    add(
        "--quick",
        action="store_true",
        help="see that it runs, in seconds: two small rounds that learn nothing",
    )
    line.command("evaluate", evaluate)
    predicting = line.command("predict", predict)
    predicting.add_argument(
        "cue", type=cli.whole(0, 10**6), nargs="+", metavar="CUE", help="numbers from 0 on"
    )
    predicting.add_argument("--delay", type=cli.positive, default=12, metavar="N", help="steps to remember")
    given = sys.argv[1:] if arguments is None else arguments
    return line.run(given or ["train"])


if __name__ == "__main__":
    sys.exit(main())
