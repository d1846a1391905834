"""A GRU that resets before the product, as people write it who have torch alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def reset_before_step(
    gates: Tensor, h: Tensor, w_rz: Tensor, w_n: Tensor, b_rz: Tensor, b_n: Tensor
) -> Tensor:
    """One time step: from the input's part of the three gates [B, 3H] and h [B, H] to the next h."""
    x_rz, x_n = gates.split([2 * h.size(1), h.size(1)], 1)
    r, z = torch.sigmoid(x_rz + F.linear(h, w_rz, b_rz)).chunk(2, 1)
    n = torch.tanh(x_n + F.linear(r * h, w_n, b_n))
    return n + z * (h - n)


class ResetBeforeLoop(nn.Module):
    """The input projection of all steps at once, then a loop over steps; `torch.jit.script` takes it.

    Parameters are named and ordered as those of a `torch.nn.GRU` with one layer.
    """

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        bound = 1 / math.sqrt(hidden_size)
        self.weight_ih_l0 = nn.Parameter(torch.empty(3 * hidden_size, input_size).uniform_(-bound, bound))
        self.weight_hh_l0 = nn.Parameter(torch.empty(3 * hidden_size, hidden_size).uniform_(-bound, bound))
        self.bias_ih_l0 = nn.Parameter(torch.empty(3 * hidden_size).uniform_(-bound, bound))
        self.bias_hh_l0 = nn.Parameter(torch.empty(3 * hidden_size).uniform_(-bound, bound))

    def step(self, gates: Tensor, h: Tensor, w_rz: Tensor, w_n: Tensor, b_rz: Tensor, b_n: Tensor) -> Tensor:
        return reset_before_step(gates, h, w_rz, w_n, b_rz, b_n)

    def forward(self, x: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
        inputs = F.linear(x, self.weight_ih_l0, self.bias_ih_l0)
        h = x.new_zeros(x.size(1), self.hidden_size) if hx is None else hx[0]
        sizes = [2 * self.hidden_size, self.hidden_size]
        w_rz, w_n = self.weight_hh_l0.split(sizes)
        b_rz, b_n = self.bias_hh_l0.split(sizes)
        outputs: list[Tensor] = []
        for gates in inputs.unbind(0):
            h = self.step(gates, h, w_rz, w_n, b_rz, b_n)
            outputs.append(h)
        return torch.stack(outputs), h.unsqueeze(0)


class CompiledStepLoop(ResetBeforeLoop):
    """The loop in Python over a step that `torch.compile` has made.

    Compiling the whole loop unrolls it: with 100 steps, that takes minutes, and again for every other length.
    """

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size, hidden_size)
        torch.compiler.reset()  # or steps of other sizes would make this one dynamic
        self.compiled = torch.compile(reset_before_step, dynamic=False)

    def step(self, gates: Tensor, h: Tensor, w_rz: Tensor, w_n: Tensor, b_rz: Tensor, b_n: Tensor) -> Tensor:
        return self.compiled(gates, h, w_rz, w_n, b_rz, b_n)
