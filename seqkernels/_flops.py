"""What torch's FlopCounterMode counts for the ops: the matrix products that torch.nn's layers are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from .cells import CELLS, Cell

Shape = Sequence[int]


def _forward_flops(cell: Cell, *args: Any, **_: Any) -> int:
    """From the shapes of the op's arguments."""
    rows, weights = prod(args[0][:-1]), args[1 + cell.states]
    return sum(2 * rows * prod(w) for w in weights if len(w) == 2)


def _backward_flops(cell: Cell, *args: Any, **_: Any) -> int:
    """A product for each gradient that is asked for, and from every step to the one before it."""
    n, needs_grad = 1 + cell.states, args[-1]  # x and the states
    args = args[cell.results :]
    (x, h0), weights = args[:2], args[n]
    rows, batch = prod(x[:-1]), h0[1]
    of_x = rows if needs_grad[0] else 0
    of_h = rows if needs_grad[1] else rows - batch  # the first step has none before it but h0
    matrices = [(w, needed) for w, needed in zip(weights, needs_grad[n:], strict=True) if len(w) == 2]
    of_operands = (of_x, of_h, rows)[: len(matrices) // h0[0]]  # of w_ih, w_hh and, in every step, w_hr
    return sum(
        2 * prod(w) * (of_operands[i % len(of_operands)] + (rows if needed else 0))
        for i, (w, needed) in enumerate(matrices)
    )


def register_flop_formulas() -> None:
    """Tell torch's counter what all ops compute."""
    for cell in CELLS.values():
        formulas: dict[str, Callable[..., int]]
        formulas = {cell.name: _forward_flops, f"_{cell.name}_backward": _backward_flops}
        for name, formula in formulas.items():
            op = getattr(torch.ops.seqkernels, name)
            register_flop_formula(op)(partial(formula, cell))
