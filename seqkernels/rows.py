"""What a call says of single rows of its input, checked: where sequences start anew, and where they end."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.compiler import is_compiling

from . import _torch_compat as compat
from .spec import LayerSpec

__all__ = ["check", "check_lengths", "check_reset_mask"]


def check(spec: LayerSpec, x: Tensor) -> LayerSpec:
    """`spec` with its `reset_mask` and `lengths` as kernels take them, on the device of x.

    Raises:
        TypeError: A mask that is no bool tensor, lengths that are no integers.
        ValueError: A mask or lengths of another shape, lengths of a packed sequence, and on the CPU lengths
            that are negative or above T.
    """
    mask, lengths = spec.reset_mask, spec.lengths
    if mask is not None:
        check_reset_mask(mask, x.shape[:-1])
        if mask.device != x.device:
            mask = mask.to(x.device)
    if lengths is not None:
        if spec.batch_sizes is not None:
            raise ValueError("lengths are those of padded input: a packed sequence has batch sizes")
        batch_dim = 0 if spec.batch_first else 1
        lengths = check_lengths(lengths, x.shape[batch_dim : batch_dim + 1], x.size(1 - batch_dim))
        lengths = lengths.to(device=x.device, dtype=torch.int64)
    is_same = mask is spec.reset_mask and lengths is spec.lengths
    return spec if is_same else spec._replace(reset_mask=mask, lengths=lengths)


def check_reset_mask(reset_mask: Any, shape: torch.Size) -> None:
    """An error for what is no mask of the rows of an input of `shape`, its last dimension left out."""
    if not isinstance(reset_mask, Tensor) or reset_mask.dtype != torch.bool:
        got = reset_mask.dtype if isinstance(reset_mask, Tensor) else type(reset_mask).__name__
        raise TypeError(f"reset_mask must be a bool tensor, got {got}")
    if reset_mask.shape != shape:
        expected = f"one value for each row of the input, {tuple(shape)}"
        raise ValueError(f"reset_mask must have {expected}, got {tuple(reset_mask.shape)}")


def check_lengths(lengths: Any, shape: Sequence[int], seq_len: int) -> Tensor:
    """The lengths of sequences, a tensor or a list, as a tensor of integers of `shape`; or an error.

    Values of a tensor on another device are not looked at, for that would wait for it, unless the environment
    has SEQKERNELS_CHECK_LENGTHS=1; steps beyond T there are none, and a negative length is one of 0.
    """
    if isinstance(lengths, (list, tuple)) and all(type(length) is int for length in lengths):
        for b, length in enumerate(lengths):
            if not 0 <= length <= seq_len:
                _refuse(length, b, seq_len)
        lengths = torch.tensor(lengths, dtype=torch.int64, device="cpu")
    if not isinstance(lengths, Tensor) or lengths.dtype not in (torch.int64, torch.int32):
        got = lengths.dtype if isinstance(lengths, Tensor) else type(lengths).__name__
        raise TypeError(f"lengths must be int64 or int32, got {got}")
    if lengths.shape != torch.Size(shape):
        expected = f"one length for each sequence, {tuple(shape)}"
        raise ValueError(f"lengths must have {expected}, got {tuple(lengths.shape)}")
    is_read = lengths.device.type == "cpu" or os.environ.get("SEQKERNELS_CHECK_LENGTHS") == "1"
    if type(lengths) is Tensor and is_read and not lengths.is_meta and not _is_traced():
        wrong = (lengths < 0) | (lengths > seq_len)
        if bool(wrong.any()):
            b = int(wrong.nonzero()[0])
            _refuse(int(lengths[b]), b, seq_len)
    return lengths


def _refuse(length: int, sequence: int, seq_len: int) -> NoReturn:
    raise ValueError(
        f"lengths must be from 0 to {seq_len}, the steps of the input, got {length} for sequence {sequence}"
    )


def _is_traced() -> bool:
    return is_compiling() or not compat.nobody_transforms()
