"""The ops under torch.func's transforms, and under batched gradients of torch.autograd.

A vmap rule makes the samples of a vmapped dimension more sequences of the batch where it can. Where each
sample has weights of its own, or is to have its own gradient of them, it goes from sample to sample. The
rules are those of the ops themselves, and of autograd Functions that torch.func can differentiate; ordinary
autograd has the faster ones of `_ops.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from . import _torch_compat as compat
from ._ops import OPS, keep, kept

Args = Sequence[Any]

_library = torch.library.Library("seqkernels", "IMPL")


class _Op:
    """An op, its vmap rule, and an autograd Function whose forward it is.

    The op takes the list of weights as its argument number `n_before`; the Function takes them one by one, as
    its last arguments, and returns all results in one tuple.
    """

    def __init__(
        self,
        op: Any,
        n_before: int,
        can_fold: Callable[[Args], bool],
        setup_context: Callable[..., None],
        derive: Callable[..., tuple[Tensor | None, ...]],
    ) -> None:
        self.op, self.n_before, self.can_fold = op, n_before, can_fold
        self.n_others = len(compat.argument_names(op)) - 1  # all but the weights

        def forward(*args: Any) -> tuple[Tensor, ...]:
            return _flat(op(*self._as_of_op(args)))

        def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
            return derive(ctx, *grads)

        def vmap(info: Any, in_dims: Args, *args: Any) -> Any:
            return self._vmap(self, info.batch_size, self._as_of_op(in_dims), self._as_of_op(args))

        def vmap_of_op(info: Any, in_dims: Args, *args: Any) -> Any:
            return self._vmap(op, info.batch_size, in_dims, args)

        # Compiled autograd traces no bound method, so `backward` is not one.
        methods: dict[str, Callable[..., Any]] = {
            "forward": forward,
            "setup_context": setup_context,
            "backward": backward,
            "vmap": vmap,
        }
        static = {name: staticmethod(method) for name, method in methods.items()}
        self.function: Any = type(compat.op_name(op), (torch.autograd.Function,), static)
        torch.library.register_vmap(f"seqkernels::{compat.op_name(op)}", vmap_of_op)
        compat.register_batched_gradients(_library, op, partial(self._vmap, op))

    def __call__(self, *args: Any) -> tuple[Tensor, ...]:
        n = self.n_before
        return self.function.apply(*args[:n], *args[n + 1 :], *args[n])

    def _as_of_op(self, args: Args) -> tuple[Any, ...]:
        n = self.n_before
        return *args[:n], list(args[self.n_others :]), *args[n : self.n_others]

    def _vmap(self, run: Callable[..., Any], size: int, in_dims: Args, args: Args) -> tuple[Any, Any]:
        """The results of `run`, and where they have the vmapped dimension, which is of that size."""
        if size == 0:  # one has to run, to make shapes and a graph
            results, dims = self._vmap(run, 1, in_dims, compat.map_nested(_sample_of_zeros, args, in_dims))
            return compat.map_nested(_no_sample, results, dims), dims
        pairs = list(zip(args, in_dims, strict=True))
        if self.can_fold(args) and all(dim is None for dim in in_dims[self.n_before]):
            return _unfold(run(*(_fold(arg, dim, size) for arg, dim in pairs)), size)
        samples = [run(*compat.map_nested(partial(_sample, i=i), args, in_dims)) for i in range(size)]
        return _stack(samples)


class _Transformable:
    """The forward op of a cell, for `vmap`, `grad`, `vjp` and `jacrev` of torch.func in any order.

    Of its Functions, the inputs are (x, *states, *options, save_for_backward, *weights), and of backward
    (*grads, x, *states, *options, output, *saved, needs_grad, *weights).
    """

    def __init__(self, cell: str) -> None:
        ops = OPS[cell]
        self.ops, self.n, self.n_results, self.n_options = ops, ops.n, ops.n_results, ops.n_options
        self._backward_op = _Op(
            ops.backward_op,
            self.n_results + self.n,
            self._can_fold_backward,
            self._setup_double_backward,
            self._double_backward,
        )
        self._op = _Op(ops.op, self.n, self._can_fold, self._setup_backward, self._backward)

    def __call__(self, *args: Any) -> tuple[Tensor, ...]:
        """The op with all its arguments."""
        return self._op(*args)

    def _can_fold(self, args: Args) -> bool:
        """Whether samples can be sequences of the batch: not packed, and saved in a layout that is known."""
        options, save = args[self.n + 1 :][: self.n_options], args[self.n + 1 + self.n_options :]
        return not any(isinstance(t, Tensor) for t in options) and not (args[0].is_cuda and save != (False,))

    def _can_fold_backward(self, args: Args) -> bool:
        needs_grad = args[-1]
        return self._can_fold(args[self.n_results :]) and not any(needs_grad[self.n :])

    def _setup_backward(self, ctx: Any, inputs: Args, output: Args) -> None:
        first_weight = self._op.n_others
        ctx.n_weights = len(inputs) - first_weight
        ctx.save_for_backward(
            *keep(ctx, inputs[: first_weight - 1]),
            output[0],
            *output[self.n_results :],
            *inputs[first_weight:],
        )
        ctx.mark_non_differentiable(*output[self.n_results :])
        ctx.set_materialize_grads(False)

    def _backward(self, ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        n, first_weight, asked = self.n, self._op.n_others, ctx.needs_input_grad
        needs_grad = (*asked[:n], *asked[first_weight:])
        given, saved = kept(ctx)
        results, weights = saved[: -ctx.n_weights], list(saved[-ctx.n_weights :])
        inputs = (*given, *results)
        found = self._backward_op(*grads[: self.n_results], *inputs[:n], weights, *inputs[n:], needs_grad)
        wanted = [g if needed else None for g, needed in zip(found, needs_grad, strict=True)]
        return *wanted[:n], *[None] * (first_weight - n), *wanted[n:]

    def _setup_double_backward(self, ctx: Any, inputs: Args, output: Args) -> None:
        first_weight = self._backward_op.n_others
        given = inputs[: self.n_results + self.n + self.n_options]
        ctx.save_for_backward(*keep(ctx, given), *inputs[first_weight:])
        ctx.set_materialize_grads(False)

    def _double_backward(self, ctx: Any, *v: Tensor | None) -> tuple[Tensor | None, ...]:
        n, n_grads = self.n, self.n_results
        (given, weights), first_option = kept(ctx), n_grads + n
        grads, inputs = given[:n_grads], (*given[n_grads:first_option], *weights)
        options = given[first_option:]

        def run(inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
            return self.ops.by_reference(inputs, options)

        to_inputs, to_grads = _second_derivative(run, inputs, grads, v)
        rest = self._backward_op.n_others - first_option
        return *to_grads, *to_inputs[:n], *[None] * rest, *to_inputs[n:]


def _second_derivative(
    run: Callable[[Sequence[Tensor]], tuple[Tensor, ...]],
    inputs: Sequence[Tensor],
    grads: Sequence[Tensor | None],  # of the outputs of `run`
    v: Sequence[Tensor | None],  # one for each of the inputs
) -> tuple[list[Tensor | None], list[Tensor | None]]:
    """As the one in `_ops.py`, but made of what torch.func can differentiate once more."""
    asked = [i for i, t in enumerate(v) if t is not None]
    given = [i for i, t in enumerate(grads) if t is not None]

    def gradient(inputs: list[Tensor], given_grads: list[Tensor]) -> list[Tensor]:
        def run_asked(*some: Tensor) -> tuple[Tensor, ...]:
            results = run(_spread(some, asked, inputs))
            return tuple([results[i] for i in given])

        return list(torch.func.vjp(run_asked, *[inputs[i] for i in asked])[1](tuple(given_grads)))

    with torch.autocast(inputs[0].device.type, enabled=False):
        pull = torch.func.vjp(gradient, list(inputs), [grads[i] for i in given])[1]
        to_inputs, to_given = pull([v[i] for i in asked])
    return to_inputs, _spread(to_given, given, [None] * len(grads))


def _spread(some: Sequence[Any], places: Sequence[int], others: Sequence[Any]) -> list[Any]:
    """`others`, with `some` in those places."""
    result = list(others)
    for i, value in zip(places, some, strict=True):
        result[i] = value
    return result


# ---------------------------------------------------------------- samples


def _fold(value: Any, dim: int | None, size: int) -> Any:
    """A tensor with the samples in dimension 1, the batch or the rows, as the faster index of it."""
    if not isinstance(value, Tensor):
        return value
    batched = value.unsqueeze(2) if dim is None else value.movedim(dim, 2)
    return batched.expand(-1, -1, size, *[-1] * (batched.dim() - 3)).flatten(1, 2)


def _unfold(value: Any, size: int) -> tuple[Any, Any]:
    """What `_fold` has folded, and the dimension of the samples; what is empty has none."""
    if not isinstance(value, Tensor):
        values, dims = zip(*(_unfold(v, size) for v in value), strict=True)
        return type(value)(values), type(value)(dims)
    if value.dim() == 1:  # not asked for
        return value, None
    return value.unflatten(1, (value.size(1) // size, size)), 2


def _sample(value: Any, dim: int | None, i: int) -> Any:
    return value if dim is None else value.select(dim, i)


def _sample_of_zeros(value: Any, dim: int | None) -> Any:
    """In place of no sample."""
    return value if dim is None else value.sum(dim, keepdim=True)


def _no_sample(value: Any, dim: int | None) -> Any:
    return value if dim is None else value.narrow(dim, 0, 0)


def _stack(samples: Sequence[Any]) -> tuple[Any, Any]:
    """The results of all samples together, and the dimension of the samples."""
    if isinstance(samples[0], Tensor):
        return torch.stack(tuple(samples)), 0
    values, dims = zip(*(_stack(results) for results in zip(*samples, strict=True)), strict=True)
    return type(samples[0])(values), type(samples[0])(dims)


def _flat(results: Sequence[Any]) -> tuple[Tensor, ...]:
    return tuple(t for r in results for t in ([r] if isinstance(r, Tensor) else r))


# The op of every cell, by the cell's name.
TRANSFORMABLE = {cell: _Transformable(cell) for cell in OPS}
