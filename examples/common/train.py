"""The training loop of all programs: seeded, resumable, on one process or on many with the same losses.

The loss of a step is a mean over the real tokens (or rows) of the global batch. Processes hold different
numbers of them, so the mean of the processes' means would be another loss; instead every process divides the
sum over its own part by the count of all.

Every epoch starts with random numbers made from the seed and the epoch. So a checkpoint after an epoch needs
no generator's state, and a training resumed from it goes on (on CPUs to the bit) as if it had never stopped.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterable, Sized
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from . import checkpoint, distributed, terminal
from .errors import InputError

__all__ = ["Diverged", "History", "Loss", "Recipe", "check_config", "fit"]

Batch = TypeVar("Batch")
Metrics = dict[str, float]


class Loss(NamedTuple):
    """The loss of one process's part of a batch."""

    sum: Tensor  # over the part, a scalar
    terms: int  # of the sum, real tokens or rows: the loss is sum / terms over all processes
    tokens: int  # real tokens that were read, for the speed


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Args:
        epochs: Passes through the data.
        rate: Learning rate of Adam.
        clip: Largest norm of the gradient of all parameters together; longer ones are scaled down to it
            (Pascanu, Mikolov, Bengio 2013, arXiv:1211.5063). 0 leaves them as they are.
        seed: Decides about dropout; the model and the batches have seeds of their own.
        clip_value: Largest absolute value of each element of the gradient; larger ones are cut to it (Mikolov
            2012), each by itself, which turns the direction of the step. 0 leaves them as they are.
    """

    epochs: int = 10
    rate: float = 1e-3
    clip: float = 1.0
    seed: int = 0
    clip_value: float = 0.0


@dataclass
class History:
    """What a training went through."""

    losses: list[float] = field(default_factory=list)  # of each step
    norms: list[float] = field(default_factory=list)  # of each step's gradient, before clipping
    epochs: list[Metrics] = field(default_factory=list)  # mean loss, tokens/s and evaluation of each epoch


class Diverged(ArithmeticError):
    """The loss, or a parameter, is no longer a number.

    Args:
        message: At which step.
        history: What the training went through before.
    """

    def __init__(self, message: str, history: History | None = None) -> None:
        super().__init__(message)
        self.history = history or History()


class _Objective(nn.Module):
    """Model and loss in one call, which is what DistributedDataParallel wants of a step."""

    def __init__(self, model: nn.Module, loss: Callable[[Any, Any], Loss]) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, batch: Any) -> Loss:
        return self.loss(self.model, batch)


def fit(
    model: nn.Module,
    loss: Callable[[Any, Batch], Loss],
    batches: Callable[[int], Iterable[Batch]],
    recipe: Recipe,
    *,
    evaluate: Callable[[], Metrics] | None = None,
    path: Path | None = None,
    config: dict[str, Any] | None = None,
    resume: bool = False,
) -> History:
    """Train the model in place.

    Args:
        model: On its device already.
        loss: The loss of this process's part of a batch, from the model and the part.
        batches: From the number of an epoch to its batches, as many in every process.
        recipe: Epochs, learning rate, clipping, seed.
        evaluate: Called after each epoch, the model in eval mode and without gradients; in every process, and
            expected to give the same in all.
        path: A checkpoint is written here after each epoch: groups "model" and "optimizer", and as data
            `config` and the history.
        config: What is needed to make the model again; kept in the checkpoint under "config".
        resume: Go on from the checkpoint, up to `recipe.epochs` in all.

    Returns:
        All losses, gradient norms and metrics, those before a `resume` included.

    Raises:
        InputError: `resume` without a checkpoint, or with that of another model.
        Diverged: The loss of a step, or a parameter, is infinite or NaN.
    """
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.rate)
    history = History()
    if resume:
        if path is None:
            raise ValueError("resume needs the path of the checkpoint")
        history = _resume(model, optimizer, path, config)
    objective: nn.Module = _Objective(model, loss)
    if distributed.world_size() > 1:
        objective = DistributedDataParallel(objective)
    console = terminal.console()
    for epoch in range(len(history.epochs), recipe.epochs):
        torch.manual_seed(random.Random(f"{recipe.seed} {epoch} {distributed.rank()}").getrandbits(63))
        metrics = _epoch(
            objective, batches(epoch), optimizer, recipe, history, f"epoch {epoch + 1}/{recipe.epochs}"
        )
        # The last step of an epoch may break a model of which no loss is computed any more.
        if not all(bool(p.isfinite().all()) for p in model.parameters()):
            raise Diverged(f"parameters are no longer numbers after step {len(history.losses)}", history)
        if evaluate is not None:
            model.eval()
            with torch.inference_mode():
                metrics.update(evaluate())
        history.epochs.append(metrics)
        shown = "  ".join(f"{name} {terminal.number(value)}" for name, value in metrics.items())
        console.print(f"epoch {epoch + 1}/{recipe.epochs}  {shown}")
        if path is not None:
            tensors = {"model": model.state_dict(), "optimizer": checkpoint.optimizer_tensors(optimizer)}
            checkpoint.save(path, tensors, {"config": config, "history": asdict(history)})
    distributed.barrier()
    model.eval()
    return history


def _epoch(
    objective: nn.Module,
    batches: Iterable[Any],
    optimizer: torch.optim.Optimizer,
    recipe: Recipe,
    history: History,
    title: str,
) -> Metrics:
    """One pass: the mean loss over it, and tokens per second of all processes together."""
    objective.train()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    device = parameters[0].device
    limit = recipe.clip or math.inf
    sums, counts, tokens, start = 0.0, 0, 0, time.perf_counter()
    with terminal.progress("tokens") as bar:
        size = len(batches) if isinstance(batches, Sized) else None
        task = bar.add_task(title, total=size, loss=math.nan, rate=0.0)
        for batch in batches:
            part: Loss = objective(batch)
            own = torch.tensor([part.sum.item(), part.terms, part.tokens], dtype=torch.float64)
            loss_sum, count, read = distributed.total(own.to(device)).tolist()
            if not math.isfinite(loss_sum):
                where = f"the loss became {loss_sum} at step {len(history.losses) + 1}"
                raise Diverged(where, history)
            optimizer.zero_grad()
            # DistributedDataParallel takes the mean of the processes' gradients, where their sum is wanted.
            (part.sum * (distributed.world_size() / count)).backward()
            history.norms.append(float(nn.utils.clip_grad_norm_(parameters, limit)))
            if recipe.clip_value:
                nn.utils.clip_grad_value_(parameters, recipe.clip_value)
            optimizer.step()
            history.losses.append(loss_sum / count)
            sums, counts, tokens = sums + loss_sum, counts + int(count), tokens + int(read)
            rate = tokens / (time.perf_counter() - start)
            bar.update(task, advance=1, loss=history.losses[-1], rate=rate)
    return {"loss": sums / counts, "tokens/s": rate}


def _resume(
    model: nn.Module, optimizer: torch.optim.Optimizer, path: Path, config: dict[str, Any] | None
) -> History:
    """Put model and optimizer into the checkpoint's state."""
    device = next(model.parameters()).device
    tensors, data = checkpoint.load(path, device)
    check_config(path, data, config or {})
    with checkpoint.understood(path):
        model.load_state_dict(tensors["model"])
        checkpoint.load_optimizer(optimizer, tensors.get("optimizer", {}))
        return History(**data["history"])


def check_config(path: Path, data: dict[str, Any], config: dict[str, Any]) -> None:
    """Refuse to go on from a checkpoint, of which `data` was read, with another configuration.

    Raises:
        InputError: The checkpoint is of another model.
    """
    with checkpoint.understood(path):
        kept = dict(data["config"])
    for name, value in config.items():
        if kept.get(name) != value:
            there = str(kept.get(name))
            raise InputError(path, None, f"a training with {name} = {value!s:.60}", f"one with {there:.60}")
