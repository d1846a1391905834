"""Random masks inside the recurrence: recurrent dropout, zoneout, weight dropout.

All are drawn from torch's generator of the device, so that a seed repeats them and checkpointing,
torch.compile and CUDA graphs know of them: by torch's own functions, but for flags on the CPU, of which torch
draws the seed. The kernels read them.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling
from torch.jit import is_tracing
from torch.nn.functional import dropout

from . import _torch_compat as compat
from ._ops import random_flags
from .spec import LayerSpec, Masks

__all__ = ["check_probability", "draw", "zoneout_pair"]


def draw(
    spec: LayerSpec, x: Tensor, state: Sequence[Tensor], weights: Sequence[Tensor]
) -> tuple[LayerSpec, Sequence[Tensor]]:
    """One layer of `spec` with its masks, and its weights with dropped ones; x [T, B, I] or packed [R, I]."""
    recurrent = zoneout_h = zoneout_c = None
    if spec.recurrent_dropout > 0:
        recurrent = dropout(x.new_ones(state[0].shape), spec.recurrent_dropout)
    if spec.zoneout_h > 0:
        zoneout_h = _flags(x, state[0], spec.zoneout_h)
    if spec.zoneout_c > 0:
        zoneout_c = _flags(x, state[1], spec.zoneout_c)
    if spec.weight_dropout > 0:
        per_direction = len(weights) // spec.directions
        weights = [
            dropout(weight, spec.weight_dropout) if i % per_direction == 1 else weight  # of w_hh
            for i, weight in enumerate(weights)
        ]
    return spec._replace(masks=Masks(recurrent, zoneout_h, zoneout_c)), weights


def _flags(x: Tensor, state: Tensor, p: float) -> Tensor:
    """True with probability p, for each unit of a state [D, B, H] and each row: [.., D*H].

    Drawn as bits of random words, p rounded to a multiple of 2^-16, where that makes neither 0 nor 1 of it:
    torch's `bernoulli_` takes as long as half of a training step with H = 64.
    """
    shape = (*x.shape[:-1], state.size(0) * state.size(2))
    threshold = round(p * 2**16)
    is_edge = threshold in (0, 2**16)
    if is_edge or is_compiling() or is_tracing() or compat.transforms_active():
        return torch.rand(shape, device=x.device) < p
    if x.device.type == "cpu":
        flags = torch.empty(shape, dtype=torch.bool, device=x.device)
        seed = torch.empty((), dtype=torch.int64, device=x.device).random_(-(2**63), None)
        random_flags(flags, seed, p)
        return flags
    count = prod(shape)
    numbers = torch.empty(-(-count // 4), dtype=torch.int64, device=x.device).random_(-(2**63), None)
    return numbers.view(torch.int16)[:count].view(shape) < threshold - 2**15


def check_probability(name: str, p: Any) -> float:
    """`p` as a float, or an error."""
    if isinstance(p, bool) or not isinstance(p, (int, float)):
        raise TypeError(f"{name} must be a number, got {type(p).__name__}")
    if not 0 <= p <= 1:
        raise ValueError(f"{name} must be a probability, from 0 to 1, got {p}")
    return float(p)


def zoneout_pair(zoneout: Any, has_cell_state: bool) -> tuple[float, float]:
    """The probabilities of h and c: one for both, or one for each."""
    if not isinstance(zoneout, (tuple, list)):
        p = check_probability("zoneout", zoneout)
        return p, p if has_cell_state else 0.0
    if not has_cell_state or len(zoneout) != 2:
        expected = "a number or a pair of h and c" if has_cell_state else "a number: there is no c"
        raise ValueError(f"zoneout must be {expected}, got {zoneout!r}")
    return check_probability("zoneout", zoneout[0]), check_probability("zoneout", zoneout[1])
