"""Layers that cuDNN runs faster than the kernels of this package, handed to it where nothing else is lost.

cuDNN keeps its own kernel on chip for a few sizes alone (small H; float16 in multiples of 128): there it
can win. It has no derivative of its derivative, none outside of training, and reads weights from one buffer
of its own. So it gets only what needs no gradient and is not recorded (CUDA graphs, torch.compile), and the
buffer is made anew whenever a weight has changed.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.compiler import is_compiling
from torch.jit import is_tracing
from torch.nn import Parameter
from torch.utils.weak import WeakIdKeyDictionary

__all__ = ["NAME", "is_faster", "refuse", "run", "takes"]

NAME = "cudnn"  # as a plan, beside those of csrc/cuda/plan.h
_MODES = {"relu": 0, "tanh": 1, "lstm": 2, "gru": 3}  # of torch._cudnn_rnn


@dataclass(frozen=True)
class Region:
    """Sizes at which cuDNN was measured to be faster in inference; both ends of a range belong to it."""

    cell: str
    dtype: str  # "tf32": float32 that may be multiplied so
    hidden: tuple[int, int]
    batch: tuple[int, int]
    multiples: tuple[int, int] = (1, 1)  # of H, of B

    def contains(self, cell: str, dtype: str, hidden: int, batch: int) -> bool:
        return (
            (self.cell, self.dtype) == (cell, dtype)
            and self.hidden[0] <= hidden <= self.hidden[1]
            and self.batch[0] <= batch <= self.batch[1]
            and hidden % self.multiples[0] == 0
            and batch % self.multiples[1] == 0
        )


# H100, torch 2.11, cuDNN 9.19: benchmarks/results/nvidia-h100-80gb-hbm3.json has all cases behind these.
FASTER = (
    Region("gru", "tf32", (1, 128), (1, 128)),  # its kernel for small H: 1.35 to 1.5 times as fast
    Region(
        "lstm", "float16", (256, 1024), (8, 16), multiples=(128, 8)
    ),  # its persistent one: 1.03 to 1.4 times
    Region("lstm", "tf32", (1024, 1024), (128, 128)),  # step by step: 1.15 times
    Region("gru", "tf32", (1024, 1024), (128, 128)),  # likewise: 1.06 times
)


def is_faster(cell: str, dtype: torch.dtype, tf32: bool, batch: int, hidden: int, directions: int) -> bool:
    """Whether cuDNN is to be preferred for a layer's inference, by what was measured.

    `SEQKERNELS_CUDA_PLAN=cudnn` says so for all layers, any other plan for none.
    """
    if wanted := os.environ.get("SEQKERNELS_CUDA_PLAN"):
        return wanted == NAME
    if directions != 1:
        return False
    name = "tf32" if dtype == torch.float32 and tf32 else str(dtype).removeprefix("torch.")
    return any(region.contains(cell, name, hidden, batch) for region in FASTER)


def refuse() -> None:
    """An error where `SEQKERNELS_CUDA_PLAN=cudnn` asks for what it cannot have."""
    if os.environ.get("SEQKERNELS_CUDA_PLAN") == NAME:
        raise RuntimeError(
            "SEQKERNELS_CUDA_PLAN asks for cudnn, which cannot run this: it gets no packed input, none that"
            " needs a gradient or is recorded, and no float64"
        )


def takes(x: Tensor, state: Sequence[Tensor], weights: Sequence[Tensor]) -> bool:
    """Whether nothing is lost: no gradient, no recording, and cuDNN is there and allowed.

    Weights must be parameters that count their changes: of others, such as those that autocast has just made,
    every call would make a new copy.
    """
    if x.device.type != "cuda" or is_compiling() or is_tracing() or not torch.backends.cudnn.is_acceptable(x):
        return False
    if not all(isinstance(w, Parameter) and not w.is_inference() for w in weights):
        return False
    if torch.is_grad_enabled() and any(t.requires_grad for t in (x, *state, *weights)):
        return False
    return x.dtype != torch.float64 and x.numel() > 0 and not torch.cuda.is_current_stream_capturing()


def run(
    cell: str,
    x: Tensor,
    state: Sequence[Tensor],
    weights: Sequence[Tensor],
    bias: bool,
    bidirectional: bool,
) -> tuple[Tensor, ...]:
    """`(output, *final_state)` of one layer in evaluation; x [T, B, I]."""
    flat = _flat(cell, weights, x.size(2), state[0].size(2), bias, bidirectional)
    h0, c0 = state[0].contiguous(), state[1].contiguous() if cell == "lstm" else None
    output, h_n, c_n, *_ = torch._cudnn_rnn(
        x.contiguous(),
        flat.weights,
        4 if bias else 2,
        flat.buffer,
        h0,
        c0,
        _MODES[cell],
        state[0].size(2),
        0,  # no projection
        1,  # layer
        False,  # batch_first
        0.0,  # dropout
        False,  # train
        bidirectional,
        [],  # batch_sizes
        None,  # dropout_state
    )
    return (output, h_n, c_n) if cell == "lstm" else (output, h_n)


class _Flat:
    """Copies of some weights, one behind the other in one buffer as cuDNN wants them."""

    def __init__(self, weights: Sequence[Tensor], versions: tuple[tuple[int, int], ...]) -> None:
        self.versions = versions
        # Clones, for the flattening makes views of `buffer` of them and counts that as a change.
        self.weights = [w.detach().clone() for w in weights]
        self.buffer: Tensor


_flattened: WeakIdKeyDictionary = WeakIdKeyDictionary()  # by the first weight, itself and not its numbers


def _flat(
    cell: str,
    weights: Sequence[Tensor],
    inputs: int,
    hidden: int,
    bias: bool,
    bidirectional: bool,
) -> _Flat:
    versions = tuple((w.data_ptr(), w._version) for w in weights)
    known = _flattened.get(weights[0])
    if known is not None and known.versions == versions:
        return known
    flat = _Flat(weights, versions)
    with torch.no_grad(), torch.cuda.device(weights[0].device):
        flat.buffer = torch._cudnn_rnn_flatten_weight(
            flat.weights, 4 if bias else 2, inputs, _MODES[cell], hidden, 0, 1, False, bidirectional
        )
    _flattened[weights[0]] = flat
    return flat
