"""Layers that cuDNN runs faster than the kernels of this package, handed to it where nothing else is lost.

cuDNN keeps W_hh on chip for a few sizes alone (small H; float16 in multiples of 128): there it can win, of
these only with small H by more than handing over costs. It has no derivative of its derivative and none
outside of training, so it gets only what needs no gradient. It reads weights from one buffer, into which they
are copied anew for every call: nothing tells of all the ways in which a parameter may change. So a call must
be long enough to earn the copy.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.compiler import is_compiling
from torch.jit import is_tracing

from . import _torch_compat as compat
from .spec import LayerSpec

__all__ = ["NAME", "is_faster", "refuse", "run", "supports"]

NAME = "cudnn"  # as a plan, beside those of csrc/cuda/plan.h
# Microseconds that a call takes longer by cuDNN from here than from torch.nn, whose weights lie in its
# buffer; most of it is the host's. Measured on an H200: 120 to 245.
HANDOVER = 150.0
_MODES = {"rnn_relu": 0, "rnn_tanh": 1, "lstm": 2, "gru": 3}  # cuDNN's own numbers of its cells


@dataclass(frozen=True)
class Region:
    """Sizes at which cuDNN was measured to be faster in inference; both ends of a range belong to it."""

    cell: str
    dtype: str  # "tf32": float32 that may be multiplied so
    hidden: tuple[int, int]
    batch: tuple[int, int]
    gain: float  # microseconds a step

    def contains(self, cell: str, dtype: str, hidden: int, batch: int) -> bool:
        return (
            (self.cell, self.dtype) == (cell, dtype)
            and self.hidden[0] <= hidden <= self.hidden[1]
            and self.batch[0] <= batch <= self.batch[1]
        )


# H100 and H200, torch 2.11, cuDNN 9.19: benchmarks/results/nvidia-*.json have all cases behind these. Not
# among them: float16 LSTMs with H = 512. A step of theirs takes 0.3 to 0.6 microseconds less, but only up to
# 256 steps.
FASTER = (
    Region("gru", "tf32", (1, 128), (1, 128), 0.35),  # its kernel for small H
    Region("lstm", "tf32", (1024, 1024), (128, 128), 3.2),  # step by step
    Region("gru", "tf32", (1024, 1024), (128, 128), 1.4),
)


def is_faster(
    cell: str, dtype: torch.dtype, tf32: bool, seq_len: int, batch: int, hidden: int, directions: int
) -> bool:
    """Whether cuDNN is to be preferred for a layer's inference, by what was measured.

    `SEQKERNELS_CUDA_PLAN=cudnn` says so for all layers, any other plan for none.
    """
    if wanted := os.environ.get("SEQKERNELS_CUDA_PLAN"):
        return wanted == NAME
    if directions != 1:
        return False
    name = "tf32" if dtype == torch.float32 and tf32 else str(dtype).removeprefix("torch.")
    gains = [region.gain for region in FASTER if region.contains(cell, name, hidden, batch)]
    return max(gains, default=0.0) * seq_len > HANDOVER


def refuse() -> None:
    """An error where `SEQKERNELS_CUDA_PLAN=cudnn` asks for what it cannot have."""
    if os.environ.get("SEQKERNELS_CUDA_PLAN") == NAME:
        raise RuntimeError(
            "SEQKERNELS_CUDA_PLAN asks for cudnn, which cannot run this: it gets one layer, not packed, that"
            " needs no gradient, is not traced, and is no float64 or bfloat16"
        )


def supports(spec: LayerSpec, x: Tensor, state: Sequence[Tensor], weights: Sequence[Tensor]) -> bool:
    """Whether nothing is lost: no gradient, nobody who watches, cuDNN is there, allowed and knows the cell,
    and all sizes fit together. Where they do not, the kernels' own check says so."""
    if spec.cell not in _MODES or compat.cudnn_rnn is None or compat.cudnn_rnn_flatten_weight is None:
        return False
    if x.device.type != "cuda" or is_compiling() or is_tracing() or not torch.backends.cudnn.is_acceptable(x):
        return False
    if compat.modes_active():
        return False
    if torch.is_grad_enabled() and any(t.requires_grad for t in (x, *state, *weights)):
        return False
    if x.dtype == torch.float64 or x.dim() != 3 or x.numel() == 0 or state[0].dim() != 3:
        return False
    directions, _, hidden = state[0].shape
    gates = spec.info.gates * hidden
    shapes = [(gates, x.size(2)), (gates, hidden), (gates,), (gates,)][: len(weights) // directions]
    return all(s.shape == (directions, x.size(1), hidden) for s in state) and (
        [w.shape for w in weights] == shapes * directions
    )


@functools.lru_cache(maxsize=1024)
def _layout(
    cell: str, shapes: tuple[torch.Size, ...], directions: int, dtype: torch.dtype, device: torch.device
) -> tuple[int, ...]:
    """What lies in cuDNN's buffer one after another: the number of a weight, or less than zero, so many
    elements that belong to none.

    Asking cuDNN takes half a millisecond, as long as a layer; the answer depends on nothing but sizes.
    """
    weights = [torch.empty(shape, dtype=dtype, device=device) for shape in shapes]
    hidden, per_direction = shapes[1][1], len(shapes) // directions
    with torch.no_grad(), torch.cuda.device(device):
        buffer = compat.cudnn_rnn_flatten_weight(
            weights, per_direction, shapes[0][1], _MODES[cell], hidden, 0, 1, False, directions == 2
        )  # which makes the weights views of it
    return in_order([(int(w.storage_offset()), w.numel()) for w in weights], buffer.numel())


def in_order(places: Sequence[tuple[int, int]], size: int) -> tuple[int, ...]:
    """The numbers of `places`, each (begin, length), as they follow one another in a buffer of `size`; a gap
    of n as -n."""
    order, end = [], 0
    for number in sorted(range(len(places)), key=lambda number: places[number]):
        begin, length = places[number]
        order += [end - begin] if begin > end else []
        order.append(number)
        end = begin + length
    return (*order, end - size) if size > end else tuple(order)


def run(spec: LayerSpec, x: Tensor, state: Sequence[Tensor], weights: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """`(output, *final_state)` of one layer in evaluation; x [T, B, I]."""
    hidden, per_direction = state[0].size(2), len(weights) // spec.directions
    order = _layout(spec.cell, tuple(w.shape for w in weights), spec.directions, x.dtype, x.device)
    buffer = torch.cat([weights[n].reshape(-1) if n >= 0 else x.new_zeros(-n) for n in order])
    output, h_n, c_n, *_ = compat.cudnn_rnn(
        x.contiguous(),
        list(weights),  # of which the buffer is a copy
        per_direction,
        buffer,
        state[0].contiguous(),
        state[1].contiguous() if spec.info.has_cell_state else None,
        _MODES[spec.cell],
        hidden,
        0,  # no projection
        1,  # layer
        False,  # batch_first
        0.0,  # dropout
        False,  # train
        spec.bidirectional,
        [],  # batch_sizes
        None,  # dropout_state
    )
    return (output, h_n, c_n) if spec.info.has_cell_state else (output, h_n)
