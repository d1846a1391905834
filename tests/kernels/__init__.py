"""Kernels for tests alone, compiled by a build in place; SEQKERNELS_TEST_KERNELS=0 leaves them out."""

from __future__ import annotations

import torch
from torch import Tensor

from seqkernels import _C

try:
    from . import _kernels
except ImportError:  # then what needs them is skipped, and says so
    _kernels = None  # type: ignore[assignment]

MISSING = "" if _kernels else "built without the tests' kernels (SEQKERNELS_TEST_KERNELS)"
# Instruction sets for bfloat16 that any CPU runs in this process.
EMULATED = [_C.add_cpu_isa(kernels) for kernels in _kernels.bf16_kernels()] if _kernels else []
# Instruction sets whose vectors are another's.
_VECTORS_OF = {"avx512bf16": "avx512", "amx": "avx512"} | dict.fromkeys(EMULATED, "baseline")


def splits(
    members: int, batch: int, hidden: int, gates: int = 4, *, lanes: int = 16, tile_rows: int = 8
) -> list[tuple[int, int, float]]:
    """How members may share a step of float32, (parts of the batch, parts of the units, cycles); what is
    chosen comes first."""
    panels = -(-hidden // lanes)
    return _kernels.splits(members, batch, panels, gates, hidden, gates, 4 * lanes, 2, tile_rows)


def math(x: Tensor, function: str) -> Tensor:
    """exp, sigmoid or tanh of a float32 or float64 tensor, by the instruction set in use."""
    x = x.contiguous()
    y = torch.empty_like(x)
    isa = _C.cpu_isa()
    _kernels.math(_VECTORS_OF.get(isa, isa), function, x.numpy(), y.numpy())
    return y
