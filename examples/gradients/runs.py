"""What is trained: a network on a task at a length, with one way of clipping; and what came of it."""

from __future__ import annotations

import argparse
import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..common import checkpoint, cli
from ..common.errors import InputError
from ..common.train import Recipe
from .model import VARIANTS, Network, Variant, gradient_norms, trial_loss
from .tasks import TASKS, Task

__all__ = ["CLIPPING", "Result", "Run", "measure", "plan", "relative_loss", "trained"]

CLIPPING = {"norm": "by norm", "value": "by value", "none": "not at all"}
TRIALS = 500  # to measure with


@dataclass(frozen=True)
class Run:
    """One training.

    Args:
        task, model: One of TASKS and of VARIANTS.
        length: Steps to remember.
        clipping: One of CLIPPING.
        limit: Largest norm of the gradient, or largest absolute value of each of its elements; 0 with "none".
        hidden: Features of a layer.
        seed: Decides about the parameters and the trials.
    """

    task: str
    length: int
    model: str
    clipping: str
    limit: float
    hidden: int
    seed: int

    @property
    def variant(self) -> Variant:
        return VARIANTS[self.model]

    @property
    def name(self) -> str:
        """That of its checkpoint."""
        return f"{self.task}-{self.length}-{self.model}-{self.clipping}"

    @property
    def label(self) -> str:
        """For people: what is special about it."""
        extra = {"norm": "", "value": ", clipped by value", "none": ", not clipped"}
        return self.variant.label + extra[self.clipping]

    def recipe(self, options: argparse.Namespace) -> Recipe:
        """How it is trained."""
        by_norm, by_value = (self.limit if self.clipping == way else 0.0 for way in ("norm", "value"))
        rate = options.rate * self.variant.rate
        return cli.recipe(options, rate=rate, clip=by_norm, clip_value=by_value)

    def build(self, device: torch.device, backend: str = "fused") -> tuple[Task, Network]:
        """The task, and the network as it is before training."""
        task = TASKS[self.task](self.length)
        torch.manual_seed(self.seed)
        return task, Network(self.variant, task, self.hidden, backend).to(device)


def plan(options: argparse.Namespace) -> list[Run]:
    """Every network on every task at every length. On the first task also deep ones, at the shortest length,
    where depth is the only difficulty; and networks whose gradients explode with the other ways of clipping,
    at the longest."""
    limits = {"norm": options.clip, "value": options.clip_value, "none": 0.0}
    usual = "norm" if options.clip else "none"
    runs = []
    for task in options.tasks:
        lengths = sorted(options.lengths or TASKS[task].lengths)
        for model in options.models:
            own = [(length, usual) for length in lengths]
            if VARIANTS[model].depth > 1:
                own = own[:1] if task == options.tasks[0] else []
            elif VARIANTS[model].explodes and task == options.tasks[0]:
                own += [
                    (lengths[-1], way) for way in CLIPPING if way != usual and (limits[way] or way == "none")
                ]
            runs += [
                Run(task, length, model, clipping, limits[clipping], options.hidden, options.seed)
                for length, clipping in own
            ]
    return runs


@dataclass
class Result:
    """What came of a training."""

    run: Run
    loss: float  # on new trials, relative to chance: 1 is nothing learned, 0 everything; inf: it diverged
    before: Tensor  # gradient norm at each step at the start of training, [T - 1]
    after: Tensor | None = None  # and at its end
    losses: list[float] = field(default_factory=list)  # in training, relative to chance
    norms: list[float] = field(default_factory=list)  # of the whole gradient at each training step


@torch.no_grad()
def relative_loss(network: Network, task: Task, seed: int) -> dict[str, float]:
    """The loss on new trials, as a fraction of that of an answer without memory."""
    loss = trial_loss(network, task.draw(TRIALS, torch.Generator().manual_seed(seed)))
    return {"loss/chance": loss.sum.item() / loss.terms / task.chance}


def trained(folder: Path) -> dict[Path, Run]:
    """The checkpoints of all trainings in a folder.

    Raises:
        InputError: There are none, or one is not of this program.
    """
    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise InputError(folder, None, "the checkpoints of a training (run `train` first)", "none")
    runs = {}
    for path in paths:
        config = checkpoint.load_data(path).get("config", {})
        with checkpoint.understood(path):
            runs[path] = Run(**{field.name: config[field.name] for field in fields(Run)})
    return runs


def measure(path: Path, run: Run, device: torch.device) -> Result:
    """What a training has come to."""
    tensors, data = checkpoint.load(path, device, "model")
    task, network = run.build(device)
    trials = task.draw(TRIALS, torch.Generator().manual_seed(run.seed + 1))
    history: dict[str, Any] = data["history"]
    losses = [loss / task.chance for loss in history["losses"]]
    result = Result(run, math.inf, gradient_norms(network, trials), None, losses, history["norms"])
    if "model" in tensors:  # else it diverged
        network.load_state_dict(tensors["model"])
        result.after = gradient_norms(network, trials)
        result.loss = relative_loss(network, task, run.seed + 2)["loss/chance"]
    return result


def diverged(path: Path, run: Run, losses: list[float], norms: list[float]) -> None:
    """Leave the checkpoint of a training that ended before its time: no tensors, which tells that it did."""
    history = {"losses": losses, "norms": norms, "epochs": []}
    checkpoint.save(path, {}, {"config": asdict(run), "history": history})
