"""States that start anew inside a sequence.

Resets cut sequences into segments that know nothing of each other, so they run as what a layer is good at:
the sequences of one PackedSequence. It has the same rows, fewer steps, and more sequences in each; kernels,
derivatives and backends stay what they are. Only rows are moved, there and back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, invert_permutation

State = Any  # None, h0 [L*D, B, H], or a tuple of such


def run(layer: Any, forward: Callable[[Any, State], Any], input: Any, hx: State, reset_mask: Tensor) -> Any:
    """`forward(input, hx)`, but nothing passes from step t - 1 to t, or back, where the mask is true at t.

    Args:
        layer: A subclass of `torch.nn.RNNBase`.
        forward: Its forward without resets.
        input, hx: As for the layer.
        reset_mask: bool, one for each row of the input: the shape of the input, or of a PackedSequence's
            data, without the last dimension.

    Raises:
        TypeError: A mask that is no bool tensor.
        ValueError: A mask of another shape.
    """
    data, batch_sizes = input, None
    if isinstance(input, PackedSequence):
        data, batch_sizes = input.data, input.batch_sizes
    if data.dim() != 2 and (batch_sizes is not None or data.dim() != 3):
        return forward(input, hx)  # which says what is wrong
    _check(reset_mask, data.shape[:-1])
    mask = reset_mask.detach().cpu()
    if not bool(mask.any()):
        return forward(input, hx)

    batch_dim, unbatched = 0 if layer.batch_first else 1, batch_sizes is None and data.dim() == 2
    if batch_sizes is not None:
        hx = None if hx is None else layer.permute_hidden(hx, input.sorted_indices)
        rows, first = _rows_of_packed(batch_sizes)
    else:
        if any(s.dim() != data.dim() for s in _states(hx)):
            return forward(input, hx)  # likewise
        if unbatched:
            data, mask = data.unsqueeze(batch_dim), mask.unsqueeze(batch_dim)
            hx = _each(hx, lambda s: s.unsqueeze(1))
        rows, first = _rows_of_padded(mask.shape, batch_dim)
    if hx is not None:
        layer.check_forward_args(data, hx, batch_sizes)

    directions = 2 if layer.bidirectional else 1
    segments = _segments(rows, first, mask.flatten()[rows]).to(data.device)
    x = PackedSequence(data.flatten(0, -2).index_select(0, segments.order), segments.batch_sizes)
    packed, final = forward(x, _each(hx, lambda s: segments.initial(s, directions)))
    output = packed.data.index_select(0, segments.position).unflatten(0, data.shape[:-1])
    final = _each(final, lambda s: segments.final(s, directions))
    if batch_sizes is not None:
        return input._replace(data=output), layer.permute_hidden(final, input.unsorted_indices)
    if unbatched:
        return output.squeeze(batch_dim), _each(final, lambda s: s.squeeze(1))
    return output, final


@dataclass
class _Segments:
    """The N segments of B sequences of R rows, as the sequences of a PackedSequence: the longest first."""

    order: Tensor  # [R], the row of the input for each row of the PackedSequence
    position: Tensor  # [R], the other way round
    batch_sizes: Tensor  # on the CPU
    sequence: Tensor  # [N], the sequence that a segment is of
    starts: tuple[Tensor, ...]  # [N], by direction: whether it starts with the sequence's initial state
    ends: tuple[Tensor, ...]  # [B], by direction: the segment that ends with the sequence's final state

    def to(self, device: torch.device) -> _Segments:
        """All but the batch sizes."""
        move = partial(Tensor.to, device=device)
        starts, ends = tuple(map(move, self.starts)), tuple(map(move, self.ends))
        return _Segments(
            move(self.order), move(self.position), self.batch_sizes, move(self.sequence), starts, ends
        )

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
    length = torch.diff(begin, append=torch.tensor([len(rows)]))
    is_first = first[begin]
    is_last = torch.cat([is_first[1:], torch.ones(1, dtype=torch.bool)])
    longest = torch.argsort(length, descending=True, stable=True)
    rank: Any = invert_permutation(longest)

    step = torch.arange(len(rows)) - begin.repeat_interleave(length)  # [R]
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


def _rows_of_padded(shape: torch.Size, batch_dim: int) -> tuple[Tensor, Tensor]:
    """The rows of a [T, B] or [B, T] input, sequence by sequence, and which is the first of its own."""
    rows = torch.arange(shape.numel()).view(shape).movedim(batch_dim, 0)
    first = torch.zeros(rows.shape, dtype=torch.bool)
    first[:, 0] = True
    return rows.flatten(), first.flatten()


def _rows_of_packed(batch_sizes: Tensor) -> tuple[Tensor, Tensor]:
    """Likewise of a PackedSequence."""
    step = torch.repeat_interleave(batch_sizes)
    sequence = torch.arange(len(step)) - (batch_sizes.cumsum(0) - batch_sizes)[step]
    rows = torch.argsort(sequence, stable=True)
    return rows, step[rows] == 0


def _check(reset_mask: Any, shape: torch.Size) -> None:
    if not isinstance(reset_mask, Tensor) or reset_mask.dtype != torch.bool:
        got = reset_mask.dtype if isinstance(reset_mask, Tensor) else type(reset_mask).__name__
        raise TypeError(f"reset_mask must be a bool tensor, got {got}")
    if reset_mask.shape != shape:
        expected = f"one value for each row of the input, {tuple(shape)}"
        raise ValueError(f"reset_mask must have {expected}, got {tuple(reset_mask.shape)}")


def _states(state: State) -> tuple[Tensor, ...]:
    return () if state is None else (state,) if isinstance(state, Tensor) else tuple(state)


def _each(state: State, change: Callable[[Tensor], Tensor]) -> State:
    if state is None or isinstance(state, Tensor):
        return None if state is None else change(state)
    return tuple(change(s) for s in state)
