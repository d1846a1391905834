"""Vanishing and exploding gradients: why long sequences are hard to learn, and what helps.

Networks are trained on two tasks that need nothing but memory, at growing length: the adding problem (the sum
of two marked numbers among many) and the copy task (say again what was said before a long silence). A tanh
RNN forgets; a ReLU RNN that starts with the identity, a GRU and an LSTM remember; clipping keeps steps short
where gradients explode; skip connections let gradients through deep stacks. The tasks are random numbers by
definition, so there is no data to bring.

    python -m examples.gradients train                      # the whole picture; about a minute
    python -m examples.gradients train --tasks adding --models gru lstm --lengths 100 200 --epochs 20
    python -m examples.gradients evaluate                   # measure and draw again, on new trials
    python -m examples.gradients predict "0.3 0.5* 0.9 0.8 0.1 0.25* 0.7 0.2 0.6 0.4"
"""

from __future__ import annotations

import argparse
import math
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..common import checkpoint, cli, distributed, layers, results, terminal
from ..common.data import InputError
from ..common.train import Diverged, History, fit
from .model import VARIANTS, Network, gradient_norms, trial_loss
from .report import Result, draw
from .tasks import TASKS, Stream, Task

TRIALS = 500  # to measure with


def plan(options: argparse.Namespace) -> list[dict[str, Any]]:
    """What is trained: every network on every task at every length. On the first task also deep ones, at the
    shortest length, where depth is the only difficulty, and the others without clipping, at the longest."""
    runs = []
    for n, task in enumerate(options.tasks):
        lengths = sorted(options.lengths or TASKS[task].lengths)
        for model in options.models:
            if VARIANTS[model].depth > 1:
                own = [(lengths[0], options.clip)] if n == 0 else []
            else:
                own = [(length, options.clip) for length in lengths]
                own += [(lengths[-1], 0.0)] if n == 0 and options.clip else []
            runs += [{"task": task, "length": length, "model": model, "clip": clip} for length, clip in own]
    return runs


def build(config: dict[str, Any], device: torch.device, backend: str = "fused") -> tuple[Task, Network]:
    """The task and the network of a run, as they are before training."""
    task = TASKS[config["task"]](config["length"])
    torch.manual_seed(config["seed"])
    return task, Network(VARIANTS[config["model"]], task, config["hidden"], backend).to(device)


@torch.no_grad()
def relative_loss(network: Network, task: Task, seed: int) -> dict[str, float]:
    """The loss on new trials, as a fraction of that of an answer without memory."""
    loss = trial_loss(network, task.draw(TRIALS, torch.Generator().manual_seed(seed)))
    return {"loss/chance": loss.sum.item() / loss.terms / task.chance}


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
        config = {**run, "hidden": options.hidden, "seed": options.seed}
        name = "-".join(str(value) for value in run.values())
        path = options.out / f"{name}.safetensors"
        console.print(f"[bold]{name}[/bold]")
        task, network = build(config, options.device, options.backend)
        recipe = cli.recipe(options, clip=run["clip"])
        try:
            history = fit(
                network,
                trial_loss,
                Stream(task, options.batch, options.steps, options.seed),
                recipe,
                evaluate=partial(relative_loss, network, task, options.seed),
                path=path,
                config=config,
                resume=options.resume and path.exists(),
            )
            ended.append(history.epochs[-1])
        except Diverged as error:
            console.print(f"[red]diverged: {error}[/red]")
            ended.append({"loss/chance": math.inf, "tokens/s": 0.0})
            checkpoint.save(path, {}, {"config": config, "history": None})
            distributed.barrier()
    evaluate(options)
    return History(
        epochs=[{name: sum(e[name] for e in ended) / len(ended) for name in ("loss/chance", "tokens/s")}]
    )


def evaluate(options: argparse.Namespace) -> None:
    """Measure all trained networks on new trials, and how far gradients reach in them; draw the picture."""
    measured = [measure(path, options.device) for path in trained(options.out)]
    order = list(VARIANTS)
    measured.sort(key=lambda r: (r.task, order.index(r.model), r.length, r.clip))
    rows: dict[str, dict[str, float]] = {}
    for r in measured:
        row = rows.setdefault(VARIANTS[r.model].label + ("" if r.clip else ", no clipping"), {})
        row[f"{r.task} {r.length}"] = r.loss
    columns = sorted({(r.task, r.length) for r in measured})
    ordered = {
        n: {f"{t} {l}": row[f"{t} {l}"] for t, l in columns if f"{t} {l}" in row} for n, row in rows.items()
    }
    title = "loss / chance: 1 is nothing learned, 0 everything"
    results.show(options.out, "evaluate", title, ordered)
    if distributed.rank() == 0:
        terminal.console().print(f"picture: {draw(measured, options.out / 'gradients.png')}")


def trained(folder: Path) -> list[Path]:
    """The checkpoints of all trainings in a folder."""
    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise InputError(folder, None, "the checkpoints of a training (run `train` first)", "none")
    return paths


def measure(path: Path, device: torch.device) -> Result:
    """What a training has come to."""
    tensors, data = checkpoint.load(path, device, "model")
    config, history = data["config"], data["history"]
    task, network = build(config, device)
    trials = task.draw(TRIALS, torch.Generator().manual_seed(config["seed"] + 1))
    run = {name: config[name] for name in ("task", "length", "model", "clip")}
    result = Result(**run, loss=math.inf, before=gradient_norms(network, trials))
    if history:
        network.load_state_dict(tensors["model"])
        result.after = gradient_norms(network, trials)
        result.loss = relative_loss(network, task, config["seed"] + 2)["loss/chance"]
        result.losses = [loss / task.chance for loss in history["losses"]]
        result.norms = history["norms"]
    return result


@torch.no_grad()
def predict(options: argparse.Namespace) -> None:
    """Give a trial to all networks that were trained on its task: "0.3 0.5* 0.1 0.25*" (the sum of the two
    numbers with stars is asked for) or "abd" (to be repeated after the silence that each network was trained
    with)."""
    shown = False
    for path in trained(options.out):
        tensors, data = checkpoint.load(path, options.device, "model")
        config = data["config"]
        task, network = build(config, options.device)
        trial = task.read(options.trial)
        if trial is None or not data["history"]:
            continue
        network.load_state_dict(tensors["model"])
        answer = task.show(network(trial.inputs.to(options.device)))
        label = VARIANTS[config["model"]].label + ("" if config["clip"] else ", no clipping")
        terminal.console().print(f"{config['task']} {config['length']:>4}  {answer}  {label}")
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
    add = line.training(train, epochs=4, batch=32, rate=3e-3, cell=None, cells=cells).add_argument
    add("--tasks", nargs="+", choices=TASKS, default=list(TASKS), help="what to learn")
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
    add("--steps", type=cli.positive, default=125, metavar="N", help="batches in an epoch")
    add("--hidden", type=cli.positive, default=32, metavar="N", help="features of a layer")
    line.command("evaluate", evaluate)
    line.command("predict", predict).add_argument(
        "trial", metavar="TRIAL", help='such as "0.3 0.5* 0.1 0.25*" or "abd"'
    )
    return line.run(arguments)


if __name__ == "__main__":
    sys.exit(main())
