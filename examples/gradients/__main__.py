"""Vanishing and exploding gradients: why long sequences are hard to learn, and what helps.

Networks are trained on a task that needs nothing but memory, at growing length: the adding problem (the sum
of two marked numbers among many) or the copy task (say again what was said before a long silence). Beyond
some steps a tanh RNN learns nothing, where GRU and LSTM do; a ReLU RNN that starts with the identity comes
further than tanh; clipping keeps steps short where its gradients explode; skip connections let gradients
through deep stacks. The tasks are random numbers by definition, so there is no data to bring.

    python -m examples.gradients train                      # the whole picture; about a minute
    python -m examples.gradients train --seeds 5            # medians and spreads, as the README has them
    python -m examples.gradients train --models gru lstm --lengths 200 400 --epochs 20 --out out/long
    python -m examples.gradients train --tasks copy --out out/copy
    python -m examples.gradients evaluate                   # measure and draw again, on new trials
    python -m examples.gradients predict "0.3 0.5* 0.9 0.8 0.1 0.25* 0.7 0.2 0.6 0.4"
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch

from ..common import checkpoint, cli, distributed, layers, results, terminal
from ..common.errors import InputError
from ..common.train import Diverged, History, fit
from .model import VARIANTS, trial_loss
from .report import clipping_table, draw, loss_table
from .runs import diverged, measure, plan, relative_loss, trained
from .tasks import TASKS, Stream


def train(options: argparse.Namespace) -> History:
    """Train all networks on all tasks at all lengths, and draw what they have learned and how far gradients
    reach.

    Each training has a checkpoint of its own in --out; --resume leaves finished ones as they are.
    """
    console = terminal.console()
    if min(options.lengths or [2]) < 2:
        raise InputError("--lengths", None, "2 or more", str(min(options.lengths)))
    ended = []
    for run in plan(options):
        path = options.out / f"{run.name}.safetensors"
        console.print(run.name, style="bold")
        task, network = run.build(options.device, options.backend)
        resume = options.resume and path.exists()
        if resume and "model" not in checkpoint.load(path, "cpu", "model")[0]:
            continue  # it diverged, and would again
        try:
            history = fit(
                network,
                trial_loss,
                Stream(task, options.batch, options.steps, options.seed),
                run.recipe(options),
                evaluate=partial(relative_loss, network, task, options.seed),
                path=path,
                config=asdict(run),
                resume=resume,
            )
            ended.append(history.epochs[-1])
        except Diverged as error:
            console.print(f"diverged: {error}", style="red")
            ended.append({"loss/chance": math.inf, "tokens/s": 0.0})
            diverged(path, run, error.history.losses, error.history.norms)
            distributed.barrier()
    evaluate(options)
    names = ("loss/chance", "tokens/s") if ended else ()
    return History(epochs=[{name: sum(e[name] for e in ended) / len(ended) for name in names}])


def evaluate(options: argparse.Namespace) -> None:
    """Measure all trained networks on new trials, and how far gradients reach in them; draw the picture."""
    measured = [measure(path, run, options.device) for path, run in trained(options.out).items()]
    title = "loss / chance: 1 is nothing learned, 0 everything"
    results.show(options.out, "evaluate", title, loss_table(measured))
    if table := clipping_table(measured):
        results.show(options.out, "clipping", "gradients that explode, by way of clipping", table)
    if distributed.rank() == 0:
        terminal.console().print(f"picture: {draw(measured, options.out / 'gradients.png')}")


def draw_seeds(folders: dict[int, Path], out: Path) -> Path:
    """The picture of the trainings from several seeds."""
    paths = [item for folder in folders.values() for item in trained(folder).items()]
    return draw([measure(path, run, torch.device("cpu")) for path, run in paths], out / "gradients.png")


@torch.no_grad()
def predict(options: argparse.Namespace) -> None:
    """Give a trial to all networks that were trained on its task.

    "0.3 0.5* 0.1 0.25*" asks for the sum of the two numbers with stars; "abd" is to be repeated after the
    silence that each network was trained with.
    """
    shown = False
    for path, run in trained(options.out).items():
        tensors, _ = checkpoint.load(path, options.device, "model")
        task, network = run.build(options.device)
        trial = task.read(options.trial)
        if trial is None or "model" not in tensors:
            continue
        network.load_state_dict(tensors["model"])
        answer = task.show(network(trial.inputs.to(options.device)))
        terminal.console().print(f"{run.task} {run.length:>4}  {answer}  {run.label}")
        shown = True
    if not shown:
        expected = (
            "numbers in [0, 1], two with a star, or three of the letters abcd, of a task that was trained"
        )
        raise InputError("TRIAL", None, expected, repr(options.trial))


def cells(options: argparse.Namespace) -> list[str]:
    """What the recurrent layers of the networks to train are made of."""
    return [VARIANTS[model].cell for model in options.models]


def main(arguments: list[str] | None = None) -> int:
    line = cli.CommandLine("gradients", __doc__)
    training = line.training(
        train, epochs=10, batch=64, rate=1e-2, cell=None, cells=cells, draw_seeds=draw_seeds
    )
    add = training.add_argument
    add("--tasks", nargs="+", choices=TASKS, default=["adding"], help="what to learn")
    # By default, what both backends have, so that --backend both needs no other option.
    usual = [name for name, variant in VARIANTS.items() if variant.cell in layers.SHARED_CELLS]
    help = "networks to train; gru-before: GRU with the reset gate before the product"
    add("--models", nargs="+", choices=VARIANTS, default=usual, help=help)
    add(
        "--lengths",
        nargs="+",
        type=cli.positive,
        metavar="T",
        help="steps to remember; None: those of each task",
    )
    help = "largest absolute value of each element of the gradient where it is clipped by value; 0: not tried"
    add("--clip-value", type=cli.not_negative, default=0.1, metavar="X", help=help)
    add("--steps", type=cli.positive, default=125, metavar="N", help="batches in an epoch")
    add("--hidden", type=cli.positive, default=32, metavar="N", help="features of a layer")
    line.command("evaluate", evaluate, of_seeds=True)
    line.command("predict", predict).add_argument(
        "trial", metavar="TRIAL", help='such as "0.3 0.5* 0.1 0.25*" or "abd"'
    )
    return line.run(arguments)


if __name__ == "__main__":
    sys.exit(main())
