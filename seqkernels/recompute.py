"""Layers whose backward pass computes once more what the forward pass would have saved for it.

A layer runs in chunks of steps that save nothing; autograd keeps their inputs and the states that they start
from. Backward takes chunk after chunk, the last one first: runs it again, saving now, and derives it. The one
that it begins with has saved at once, if there are several. So a layer keeps what one chunk saves, at the
price of almost one more forward pass.

    Chen, Xu, Zhang, Guestrin, "Training deep nets with sublinear memory cost", 2016, arXiv:1604.06174.

States and their gradients have the dtype of the layer between chunks, as have the gradients of weights that
are added up: in float16 and bfloat16 they are rounded there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.compiler import is_compiling
from torch.jit import is_tracing
from torch.utils.checkpoint import checkpoint

from . import _torch_compat as compat
from ._ops import keep, kept
from .spec import LayerSpec

State = tuple[Tensor, ...]
Run = Callable[[LayerSpec, Tensor, State, Sequence[Tensor]], tuple[Tensor, ...]]


class Runs(NamedTuple):
    """What runs a layer whose backward finds saved what it reads, and one whose backward runs it anew."""

    saving: Run
    anew: Run


# Chunks, and rows of each at least if there are more than the fewest: beside the products of so many, packing
# the weights anew costs little.
FEWEST_CHUNKS, MOST_CHUNKS, FEWEST_ROWS = 2, 8, 1536


def applies(spec: LayerSpec, implementation: str, tensors: Sequence[Tensor]) -> bool:
    """Whether layers are to be run by `run`: there is something to save, and autograd alone to keep it."""
    if not spec.recompute or implementation not in ("native", "reference") or not torch.is_grad_enabled():
        return False
    if is_tracing() or compat.transforms_active():
        return False
    return any(t.requires_grad for t in tensors)


def run(
    spec: LayerSpec, x: Tensor, state: State, weights: Sequence[Tensor], runs: Runs
) -> tuple[Tensor, ...]:
    """One layer in all its directions, whose backward runs most of it anew."""
    if is_compiling():  # whose graph is one of any number of steps

        def run_all(x: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
            return runs.saving(spec, x, tensors[: len(state)], tensors[len(state) :])

        args: Any = (run_all, x, *state, *weights)
        return tuple(checkpoint(*args, use_reentrant=False, preserve_rng_state=False))
    if not spec.bidirectional:
        return _run_direction(spec, x, state, weights, runs)
    results = []
    for d in range(2):
        own = tuple(s[d : d + 1] for s in state)
        per_direction = len(weights) // 2
        mine = weights[d * per_direction : (d + 1) * per_direction]
        recurrent, zoneout_h, zoneout_c = spec.masks
        masks = (
            None if recurrent is None else recurrent[d : d + 1],
            *(None if flags is None else flags.chunk(2, dim=-1)[d] for flags in (zoneout_h, zoneout_c)),
        )
        one = spec._replace(bidirectional=False, reverse=d == 1, masks=type(spec.masks)(*masks))
        results.append(_run_direction(one, x, own, mine, runs))
    n = 1 + len(state)
    return tuple(
        torch.cat(both, dim=0 if 0 < i < n else -1) for i, both in enumerate(zip(*results, strict=True))
    )


@dataclass(frozen=True)
class _Chunk:
    """Some steps, and their part of x in its first dimension."""

    begin: int  # step
    steps: int
    size: int  # of x: steps, or rows of a packed sequence
    batch: int  # sequences that have the first of these steps


def _chunks(x: Tensor, batch_sizes: Tensor | None, batch: int) -> Iterator[_Chunk]:
    """Steps in the order of time."""
    if batch == 0:
        yield _Chunk(0, x.size(0), x.size(0), 0)
        return
    sizes, unit = ([batch] * x.size(0), batch) if batch_sizes is None else (batch_sizes.tolist(), 1)
    count = min(max(sum(sizes) // FEWEST_ROWS, FEWEST_CHUNKS), MOST_CHUNKS)
    fewest = -(-sum(sizes) // count)
    begin, rows = 0, 0
    for t, size in enumerate(sizes):
        rows += size
        if rows >= fewest or t == len(sizes) - 1:
            yield _Chunk(begin, t + 1 - begin, rows // unit, sizes[begin])
            begin, rows = t + 1, 0


def _run_direction(
    spec: LayerSpec, x: Tensor, state: State, weights: Sequence[Tensor], runs: Runs
) -> tuple[Tensor, ...]:
    chunks = list(_chunks(x, spec.batch_sizes, state[0].size(1)))
    sizes = [chunk.size for chunk in chunks]
    n, n_states = len(chunks), len(state)
    parts = x.split(sizes)
    masks = [_split(mask, sizes, n) for mask in (spec.reset_mask, *spec.masks[1:])]
    rows: list[Any] = [None] * n
    for i in reversed(range(n)) if spec.reverse else range(n):
        chunk, (resets, zoneout_h, zoneout_c) = chunks[i], [mask[i] for mask in masks]
        if spec.reverse and i + 1 < n and spec.reset_mask is not None:
            state = _reset(spec, state, chunks[i + 1], masks[0][i + 1])
        recurrent = None if spec.masks.recurrent is None else spec.masks.recurrent[:, : chunk.batch]
        own = spec._replace(reset_mask=resets, masks=type(spec.masks)(recurrent, zoneout_h, zoneout_c))
        given = tuple(_of_first(s, chunk.batch) for s in state)
        is_derived_first = n > 1 and i == (0 if spec.reverse else n - 1)
        run_chunk = runs.saving if is_derived_first else runs.anew
        output, *rest = run_chunk(_of_chunk(own, chunk), parts[i], given, weights)
        state = tuple(
            new if chunk.batch == s.size(1) else torch.cat([new, s[:, chunk.batch :]], dim=1)
            for new, s in zip(rest[:n_states], state, strict=True)
        )
        rows[i] = (output, *rest[n_states:])
    output, *cell_states = (torch.cat(r) for r in zip(*rows, strict=True))
    return output, *state, *cell_states


def _of_first(state: Tensor, batch: int) -> Tensor:
    """The state [D, B, H] of so many first sequences; itself, without a node of autograd, if that is all."""
    return state if state.size(1) == batch else state[:, :batch]


def _split(mask: Tensor | None, sizes: list[int], n: int) -> Sequence[Tensor | None]:
    return [None] * n if mask is None else mask.split(sizes)


def _reset(spec: LayerSpec, state: State, later: _Chunk, mask: Any) -> State:
    """The state that a chunk starts from in reverse, where the one after it in time says that it is reset."""
    reset = mask[: later.batch] if spec.batch_sizes is not None else mask[0]
    if spec.lengths is not None:
        reset = reset & (later.begin < spec.lengths)
    if later.batch < state[0].size(1):
        reset = torch.cat([reset, reset.new_zeros(state[0].size(1) - later.batch)])
    return tuple(torch.where(reset.unsqueeze(1), 0, s) for s in state)


def _of_chunk(spec: LayerSpec, chunk: _Chunk) -> LayerSpec:
    """`spec` with the sequences' ends as these steps see them."""
    if spec.batch_sizes is not None:
        spec = spec._replace(batch_sizes=spec.batch_sizes[chunk.begin : chunk.begin + chunk.steps])
    if spec.lengths is not None:
        spec = spec._replace(lengths=(spec.lengths - chunk.begin).clamp(0, chunk.steps))
    return spec


def anew(run_layer: Run) -> Run:
    """`run_layer` of which autograd keeps the inputs alone: backward runs it once more, and derives it."""

    def run_anew(spec: LayerSpec, x: Tensor, state: State, weights: Sequence[Tensor]) -> tuple[Tensor, ...]:
        def run(given: Sequence[Any], *tensors: Tensor) -> tuple[Tensor, ...]:
            n, (batch_sizes, lengths, mask, *masks) = 1 + len(state), given
            own = spec._replace(
                batch_sizes=batch_sizes, lengths=lengths, reset_mask=mask, masks=type(spec.masks)(*masks)
            )
            return run_layer(own, tensors[0], tensors[1:n], tensors[n:])

        given = (spec.batch_sizes, spec.lengths, spec.reset_mask, *spec.masks)
        return tuple(_Recomputed.apply(run, given, x, *state, *weights))

    return run_anew


class _Recomputed(torch.autograd.Function):
    """A function of tensors whose backward runs it once more; its first argument has no gradients."""

    @staticmethod
    def forward(
        ctx: Any, function: Callable[..., tuple[Tensor, ...]], given: Sequence[Any], *tensors: Tensor
    ) -> Any:
        ctx.function = function
        ctx.save_for_backward(*keep(ctx, given), *tensors)
        ctx.set_materialize_grads(False)
        return function(given, *tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        create_graph, asked = torch.is_grad_enabled(), ctx.needs_input_grad[2:]
        given, saved = kept(ctx)
        with torch.enable_grad(), torch.autocast(saved[0].device.type, enabled=False):
            # An alias of each, for one tensor may stand in several places.
            inputs = [
                t.view_as(t) if create_graph and t.requires_grad else t.detach().requires_grad_(needed)
                for t, needed in zip(saved, asked, strict=True)
            ]
            results = ctx.function(given, *inputs)
            pairs = [(r, g) for r, g in zip(results, grads, strict=True) if g is not None and r.requires_grad]
            wanted = [t for t, needed in zip(inputs, asked, strict=True) if needed]
            gradients = iter(
                torch.autograd.grad(
                    *([r for r, _ in pairs], wanted, [g for _, g in pairs]),
                    create_graph=create_graph,
                    allow_unused=True,
                )
            )
        return None, None, *(next(gradients) if needed else None for needed in asked)
