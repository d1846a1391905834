"""Cells that torch.nn does not have, as people write them who have torch alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class CellLoop(nn.Module):
    """The input projection of all steps at once, then a loop over steps; `torch.jit.script` takes it.

    Parameters are named and ordered as those of our layer of one direction; norms have torch's default of
    `eps`. `step` is one time step, from the input's part of the gates [B, G*H], the state and the weights.
    """

    gates: int
    norms: tuple[str, ...] = ()  # of "ih", "hh" and "c"
    factor = 1.0  # about which those of the norms are
    step: Callable[..., Any]

    if TYPE_CHECKING:  # TorchScript does not read these
        weight_ih_l0: Tensor  # [G*H, I]
        weight_hh_l0: Tensor  # [G*H, H]
        bias_ih_l0: Tensor  # [G*H]
        bias_hh_l0: Tensor  # [G*H]
        norm_ih_weight_l0: Tensor  # [G*H]
        norm_hh_weight_l0: Tensor  # [G*H]
        norm_c_weight_l0: Tensor  # [H]
        norm_c_bias_l0: Tensor  # [H]

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        rows = self.gates * hidden_size
        shapes: dict[str, tuple[int, ...]] = {
            "weight_ih": (rows, input_size),
            "weight_hh": (rows, hidden_size),
            "bias_ih": (rows,),
            "bias_hh": (rows,),
        }
        for norm in self.norms:
            shapes[f"norm_{norm}_weight"] = (hidden_size if norm == "c" else rows,)
        if "c" in self.norms:
            shapes["norm_c_bias"] = (hidden_size,)
        bound = 1 / math.sqrt(hidden_size)
        for name, shape in shapes.items():
            values = torch.empty(shape).uniform_(-bound, bound)
            if name.startswith("norm") and name.endswith("weight"):
                values += self.factor
            self.register_parameter(f"{name}_l0", nn.Parameter(values))


def with_compiled_step(loop: Any) -> nn.Module:
    """The loop in Python over a step that `torch.compile` has made.

    Compiling the whole loop unrolls it: with 100 steps, that takes minutes, and again for every other length.
    """
    torch.compiler.reset()  # or steps of other sizes would make this one dynamic
    loop.step = torch.compile(loop.step, dynamic=False)
    return loop


def normalized(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.layer_norm(x, weight.shape, weight, bias)


def reset_before_step(
    gates: Tensor, h: Tensor, w_rz: Tensor, w_n: Tensor, b_rz: Tensor, b_n: Tensor
) -> Tensor:
    x_rz, x_n = gates.split([2 * h.size(1), h.size(1)], 1)
    r, z = torch.sigmoid(x_rz + F.linear(h, w_rz, b_rz)).chunk(2, 1)
    n = torch.tanh(x_n + F.linear(r * h, w_n, b_n))
    return n + z * (h - n)


class ResetBeforeLoop(CellLoop):
    """A GRU whose reset gate comes before the product."""

    gates = 3
    step = staticmethod(reset_before_step)

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


def layer_norm_gru_step(
    gates: Tensor, h: Tensor, w: Tensor, norm_rz: Tensor, norm_n: Tensor, b_rz: Tensor, b_n: Tensor
) -> Tensor:
    sizes = [2 * h.size(1), h.size(1)]
    x_rz, x_n = gates.split(sizes, 1)
    h_rz, h_n = F.linear(h, w).split(sizes, 1)
    r, z = torch.sigmoid(x_rz + normalized(h_rz, norm_rz, b_rz)).chunk(2, 1)
    n = torch.tanh(x_n + r * normalized(h_n, norm_n, b_n))
    return n + z * (h - n)


class LayerNormGRULoop(CellLoop):
    """A GRU that normalises both products, r and z together and n by itself."""

    gates = 3
    norms = ("ih", "hh")
    step = staticmethod(layer_norm_gru_step)

    def forward(self, x: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
        sizes = [2 * self.hidden_size, self.hidden_size]
        x_rz, x_n = F.linear(x, self.weight_ih_l0).split(sizes, 2)
        norm_rz, norm_n = self.norm_ih_weight_l0.split(sizes)
        b_rz, b_n = self.bias_ih_l0.split(sizes)
        inputs = torch.cat([normalized(x_rz, norm_rz, b_rz), normalized(x_n, norm_n, b_n)], 2)
        h = x.new_zeros(x.size(1), self.hidden_size) if hx is None else hx[0]
        norm_rz, norm_n = self.norm_hh_weight_l0.split(sizes)
        b_rz, b_n = self.bias_hh_l0.split(sizes)
        outputs: list[Tensor] = []
        for gates in inputs.unbind(0):
            h = self.step(gates, h, self.weight_hh_l0, norm_rz, norm_n, b_rz, b_n)
            outputs.append(h)
        return torch.stack(outputs), h.unsqueeze(0)


def layer_norm_lstm_step(
    gates: Tensor, h: Tensor, c: Tensor, w: Tensor, norm: Tensor, b: Tensor, norm_c: Tensor, b_c: Tensor
) -> tuple[Tensor, Tensor]:
    i, f, g, o = (gates + normalized(F.linear(h, w), norm, b)).chunk(4, 1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(normalized(c, norm_c, b_c)), c


class LayerNormLSTMLoop(CellLoop):
    """An LSTM that normalises both products, and c on its way to h."""

    gates = 4
    norms: tuple[str, ...] = ("ih", "hh", "c")
    # With factors of 1 it is chaotic: what rounding changes in a state grows from step to step, in float32
    # beyond every tolerance.
    factor = 0.25
    step = staticmethod(layer_norm_lstm_step)

    def sides(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The input's part of the gates of all steps, and the bias of the steps' norm."""
        inputs = F.linear(x, self.weight_ih_l0)
        return normalized(inputs, self.norm_ih_weight_l0, self.bias_ih_l0), self.bias_hh_l0

    def forward(
        self, x: Tensor, hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        inputs, b = self.sides(x)
        zeros = x.new_zeros(x.size(1), self.hidden_size)
        h, c = (zeros, zeros) if hx is None else (hx[0][0], hx[1][0])
        w, norm, norm_c, b_c = (
            self.weight_hh_l0,
            self.norm_hh_weight_l0,
            self.norm_c_weight_l0,
            self.norm_c_bias_l0,
        )
        outputs: list[Tensor] = []
        for gates in inputs.unbind(0):
            h, c = self.step(gates, h, c, w, norm, b, norm_c, b_c)
            outputs.append(h)
        return torch.stack(outputs), (h.unsqueeze(0), c.unsqueeze(0))


def joint_layer_norm_lstm_step(
    gates: Tensor, h: Tensor, c: Tensor, w: Tensor, norm: Tensor, b: Tensor, norm_c: Tensor, b_c: Tensor
) -> tuple[Tensor, Tensor]:
    i, f, g, o = normalized(gates + F.linear(h, w), norm, b).chunk(4, 1)
    c = normalized(torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g), norm_c, b_c)
    return torch.sigmoid(o) * torch.tanh(c), c


class JointLayerNormLSTMLoop(LayerNormLSTMLoop):
    """An LSTM that normalises the sum of both products, and c itself."""

    norms = ("hh", "c")
    factor = 1.0
    step = staticmethod(joint_layer_norm_lstm_step)

    def sides(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return F.linear(x, self.weight_ih_l0), self.bias_ih_l0 + self.bias_hh_l0
