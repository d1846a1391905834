"""Sequences that start anew so often that their segments run faster side by side.

Resets cut sequences into segments that know nothing of each other. The kernels start each from zeros on
their way (csrc/cpu/transition-inl.h), step by step. Where there are few sequences and long ones, it is faster
to run the segments as the sequences of one PackedSequence: it has the same rows, fewer steps, and more
sequences in each. Only rows are moved, there and back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling
from torch.nn.utils.rnn import invert_permutation

from . import _torch_compat as compat
from .spec import LayerSpec

Run = Callable[[LayerSpec, Tensor, tuple[Tensor, ...], Sequence[Tensor]], tuple[Tensor, ...]]


# On a CPU, a step of few sequences takes as long as reading W_hh, however many of them there are. With so
# many units for each, and so many steps, segments take 0.3 to 0.95 of the time where the longest is at most
# half of its sequence (Xeon with AVX-512, LSTM and GRU, inference and training). With fewer, 1 to 3 times.
UNITS_FOR_EACH, FEWEST_STEPS = 128, 256


def are_segments(spec: LayerSpec, x: Tensor, state: Sequence[Tensor]) -> bool:
    """Whether to run segments side by side. That reads the mask, so nobody may trace it."""
    mask = spec.reset_mask
    if mask is None or spec.lengths is not None or spec.batch_sizes is not None or is_compiling():
        return False
    if type(mask) is not Tensor or mask.dim() != 2 or x.device.type != "cpu":
        return False
    if spec.batch_first:
        mask = mask.t()
    steps, batch = mask.shape
    if not may_be_segments(steps, batch, state[0].size(2)) or spec.draws or spec.backend == "reference":
        return False
    return compat.nobody_transforms() and 2 * _longest(mask) <= steps


def may_be_segments(steps: int, batch: int, hidden_size: int) -> bool:
    """Whether such sizes run as segments on a CPU, if there are resets enough."""
    return steps >= FEWEST_STEPS and batch * UNITS_FOR_EACH <= hidden_size


def _longest(mask: Tensor) -> int:
    """Steps of the longest segment."""
    ends = torch.tensor([len(mask)], device="cpu")
    found = (torch.diff(column.nonzero().squeeze(1), prepend=ends * 0, append=ends) for column in mask.t())
    return max((int(lengths.max()) for lengths in found), default=0)


def run(
    spec: LayerSpec, x: Tensor, state: tuple[Tensor, ...], weights: Sequence[Tensor], run: Run
) -> tuple[Tensor, ...]:
    """`run`, but nothing passes from step t - 1 to t, or back, where `spec.reset_mask` is true at t.

    Args:
        spec: One of `are_segments`: with a mask, [T, B] or [B, T].
        x, state, weights: As for `seqkernels.stack.run`.
    """
    mask: Tensor = spec.reset_mask.detach()  # type: ignore[union-attr]
    plain = spec._replace(reset_mask=None)
    if not bool(mask.any()):
        return run(plain, x, state, weights)
    _check_sizes(spec, x, state)
    rows, first = _rows_of(mask.shape, 0 if spec.batch_first else 1)
    segments = _segments(rows, first, mask.flatten()[rows])
    packed = plain._replace(batch_first=False, batch_sizes=segments.batch_sizes)
    initial = tuple(segments.initial(s, spec.directions) for s in state)
    output, *rest = run(packed, x.flatten(0, -2).index_select(0, segments.order), initial, weights)
    finals, cell_states = rest[: len(state)], rest[len(state) :]

    def in_place(rows: Tensor) -> Tensor:
        return rows.index_select(0, segments.position).unflatten(0, x.shape[:-1])

    finals = [segments.final(s, spec.directions) for s in finals]
    return in_place(output), *finals, *map(in_place, cell_states)


@dataclass
class _Segments:
    """The N segments of B sequences of R rows, as the sequences of a PackedSequence: the longest first."""

    order: Tensor  # [R], the row of the input for each row of the PackedSequence
    position: Tensor  # [R], the other way round
    batch_sizes: Tensor
    sequence: Tensor  # [N], the sequence that a segment is of
    starts: tuple[Tensor, ...]  # [N], by direction: whether it starts with the sequence's initial state
    ends: tuple[Tensor, ...]  # [B], by direction: the segment that ends with the sequence's final state

    def initial(self, state: Tensor, directions: int) -> Tensor:
        """[L*D, B, H] to [L*D, N, H]."""
        parts = [
            torch.where(self.starts[d].unsqueeze(1), state[d::directions].index_select(1, self.sequence), 0)
            for d in range(directions)
        ]
        return torch.stack(parts, 1).flatten(0, 1)

    def final(self, state: Tensor, directions: int) -> Tensor:
        """[L*D, N, H] to [L*D, B, H]."""
        parts = [state[d::directions].index_select(1, self.ends[d]) for d in range(directions)]
        return torch.stack(parts, 1).flatten(0, 1)


def _segments(rows: Tensor, first: Tensor, reset: Tensor) -> _Segments:
    """From the input's rows, sequence by sequence: which is its sequence's first, and where resets are."""
    begin = (first | reset).nonzero().squeeze(1)  # [N], in the order of sequences, as all that follows
    length = torch.diff(begin, append=torch.tensor([len(rows)], device="cpu"))
    is_first = first[begin]
    is_last = torch.cat([is_first[1:], torch.ones(1, dtype=torch.bool, device="cpu")])
    longest = torch.argsort(length, descending=True, stable=True)
    rank: Any = invert_permutation(longest)

    step = torch.arange(len(rows), device="cpu") - begin.repeat_interleave(length)  # [R]
    batch_sizes = torch.bincount(step)
    placed = (batch_sizes.cumsum(0) - batch_sizes)[step] + rank.repeat_interleave(length)
    position = torch.empty_like(rows)
    position[rows] = placed
    order: Any = invert_permutation(position)
    return _Segments(
        order,
        position,
        batch_sizes,
        (is_first.cumsum(0) - 1)[longest],
        ((is_first & ~reset[begin])[longest], is_last[longest]),
        (rank[is_last], rank[is_first]),
    )


def _rows_of(shape: torch.Size, batch_dim: int) -> tuple[Tensor, Tensor]:
    """The rows of a [T, B] or [B, T] input, sequence by sequence, and which is the first of its own."""
    rows = torch.arange(shape.numel(), device="cpu").view(shape).movedim(batch_dim, 0)
    first = torch.zeros(rows.shape, dtype=torch.bool, device="cpu")
    first[:, 0] = True
    return rows.flatten(), first.flatten()


def _check_sizes(spec: LayerSpec, x: Tensor, state: tuple[Tensor, ...]) -> None:
    """Of what is taken apart into segments, which would hide that it does not fit together."""
    batch = x.size(0 if spec.batch_first else 1)
    for name, s in zip(("h0", "c0"), state, strict=False):
        layers = spec.num_layers * spec.directions
        if s.dim() != 3 or s.shape[:2] != (layers, batch):
            raise RuntimeError(f"{name} must have size [{layers}, {batch}, ...], got {list(s.shape)}")
