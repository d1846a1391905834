"""The networks that are compared, and the gradient that reaches each step of a sequence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from seqkernels.init import identity_
from seqkernels.models import StackedRNN

from ..common import layers
from ..common.train import Loss
from .tasks import Task, Trials

__all__ = ["VARIANTS", "Network", "Variant", "gradient_norms", "trial_loss"]


@dataclass(frozen=True)
class Variant:
    """A kind of network."""

    label: str
    cell: str
    nonlinearity: str | None = None
    identity: bool = False  # recurrent weights at the start, with zero biases
    depth: int = 1
    skip: str | None = None
    rate: float = 1.0  # of learning, relative to the others': those that take none so large get less
    explodes: bool = False  # whether its gradients do, so that ways of clipping are tried on it


VARIANTS = {
    "tanh": Variant("tanh RNN", "rnn", "tanh"),
    "identity": Variant("identity ReLU RNN", "rnn", "relu", identity=True, rate=0.1, explodes=True),
    "gru": Variant("GRU", "gru"),
    "lstm": Variant("LSTM", "lstm"),
    "deep": Variant("6 layers", "rnn", "tanh", depth=6),
    "deep-residual": Variant("6 layers, residual", "rnn", "tanh", depth=6, skip="residual"),
    "deep-concat": Variant("6 layers, concatenating", "rnn", "tanh", depth=6, skip="concat"),
    "gru-before": Variant("GRU, reset before", "gru-before"),
}


class Network(nn.Module):
    """Recurrent layers, and a linear answer from their output at the last steps.

    An LSTM starts with a forget gate that is open (Jozefowicz, Zaremba, Sutskever 2015).

    Args:
        variant: Which kind.
        task: What it is to learn.
        hidden: Features of a layer.
        backend: "fused" or, where it has the cell, "torch".
    """

    def __init__(self, variant: Variant, task: Task, hidden: int, backend: str = "fused") -> None:
        super().__init__()
        self.task = task
        layer = layers.maker(variant.cell, backend)
        kwargs: dict[str, Any] = {"nonlinearity": variant.nonlinearity} if variant.nonlinearity else {}
        self.recurrent = StackedRNN(layer, task.inputs, hidden, variant.depth, skip=variant.skip, **kwargs)
        if variant.identity:
            identity_(self.recurrent)
        for name, parameter in self.recurrent.named_parameters():
            if variant.identity and "weight_ih" in name:
                nn.init.normal_(
                    parameter, std=0.1
                )  # small, or a state that forgets nothing grows without bounds
            if variant.cell == "lstm" and "bias_ih" in name:
                nn.init.ones_(parameter.data[hidden : 2 * hidden])  # of the forget gate: at first, remember
        self.head = nn.Linear(self.recurrent.output_size, task.outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        """[T, B, inputs] -> answers [steps, B, outputs]"""
        output, _ = self.recurrent(inputs)
        return self.head(output[-self.task.steps :])


def trial_loss(model: nn.Module, trials: Trials) -> Loss:
    """The loss of a batch of trials, to be averaged over them."""
    device = next(model.parameters()).device
    answers = model(trials.inputs.to(device))
    task: Task = model.task  # type: ignore[assignment]
    each = task.loss(answers, trials.targets.to(device))
    return Loss(each.sum(), each.numel(), each.numel() * trials.inputs.size(0))


def gradient_norms(model: Network, trials: Trials) -> Tensor:
    """How much the loss depends on the state after each step: the norm of its gradient, [T - 1].

    The chain rule makes the gradient at step t a product of Jacobians,

        dL/ds_t = dL/ds_T  ds_T/ds_{T-1} ... ds_{t+1}/ds_t,

    which shrinks or grows exponentially with T - t unless their norms stay close to one (Bengio, Simard,
    Frasconi 1994). The state s_t is that of all layers, h and for an LSTM also c. The network runs step by
    step, so that every s_t is a tensor of its own; T - 1 because the last state of all is read by nobody.
    """
    device = next(model.parameters()).device
    state, states, outputs = None, [], []
    for x in trials.inputs.to(device).split(1):
        output, state = model.recurrent(x, state)
        outputs.append(output)
        states.append((state,) if isinstance(state, Tensor) else state)
    answers = model.head(torch.cat(outputs[-model.task.steps :]))
    loss = model.task.loss(answers, trials.targets.to(device)).mean()
    flat = [tensor for state in states[:-1] for tensor in state]
    gradients = torch.autograd.grad(loss, flat)
    per_step = len(states[0])
    squares = torch.stack([g.double().square().sum() for g in gradients])
    return squares.view(-1, per_step).sum(1).sqrt().cpu()
