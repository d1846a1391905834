"""Teaches the extension's ops the rest: shapes, derivatives, autocast.

The schemas and kernels are C++ (csrc/layer_ops.cpp). Here the forward op of each cell gets a fake kernel
(torch.compile, torch.export, the meta device), its derivative, which is an op of its own, and an autocast
rule. The backward ops are derived through reference.py, so that every higher derivative exists.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling

from . import _C, reference
from . import _torch_compat as compat
from ._extension import BUILD_CONFIG
from .cells import CELLS, Cell

_library = torch.library.Library("seqkernels", "IMPL")


def tf32_allowed() -> bool:
    """Whether torch lets float32 recurrent layers use TF32 on the GPU."""
    return bool(torch.backends.cudnn.rnn.fp32_precision == "tf32")  # type: ignore[attr-defined]


if BUILD_CONFIG["cuda_targets"]:
    _C.set_tf32_query(tf32_allowed)


# ---------------------------------------------------------------- shapes


def _new_output(x: Tensor, state: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], state.size(0) * state.size(2))


def _new_saved(x: Tensor, state: Tensor, *sizes: Any) -> Tensor:
    """What forward keeps for backward, [D, rows, *sizes]; D as of `state`."""
    rows = x.size(0) if x.dim() == 2 else x.size(0) * x.size(1)
    return x.new_empty(state.size(0), rows, *sizes)


def _padded(state: Tensor) -> Any:
    """H, as of a state, padded to whole vectors."""
    return (state.size(2) + _C.unit_padding - 1) // _C.unit_padding * _C.unit_padding


def _computed(x: Tensor) -> Tensor:
    """One like x with the dtype that kernels compute in."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _check_devices(cell: Cell, x: Tensor, args: Sequence[Any]) -> None:
    """An error where one tensor on the meta device would make results of all others be nothing."""
    n = cell.states
    names = [*("h0", "c0")[:n], *(f"weights[{i}]" for i in range(len(args[n]))), *cell.options]
    for name, value in zip(names, (*args[:n], *args[n], *args[n + 1 :]), strict=False):
        if isinstance(value, Tensor) and value.device != x.device and name != "batch_sizes":
            raise RuntimeError(f"{name} must have the device of x, {x.device}, got {value.device}")


def _fake_forward(cell: Cell) -> Callable[..., tuple[Tensor, ...]]:
    def fake(x: Tensor, *args: Any) -> tuple[Tensor, ...]:
        states, save = args[: cell.states], args[-1]
        _check_devices(cell, x, args)
        options = dict(zip(cell.options, args[cell.states + 1 :], strict=False))
        results = [_new_output(x, states[0]), *(x.new_empty(s.shape) for s in states)]
        if cell.has_cell_state:
            results.append(_new_output(x, states[1]) if options["return_cell_states"] else x.new_empty(0))

        def saved(*sizes: Any) -> Tensor:
            return _new_saved(x, states[-1], *sizes) if save else x.new_empty(0)

        if cell.saved:
            results.append(saved(cell.saved, _padded(states[-1])))
        if cell.has_cell_state:
            results.append(_computed(saved(_padded(states[-1]))))
        if cell.is_normalized:
            results.append(_computed(saved(cell.norms)))
        return tuple(results)

    return fake


# ---------------------------------------------------------------- derivatives


def _apply_untransformed(function: Any, *args: Any) -> tuple[Tensor, ...]:
    """`function.apply`, without its search for torch.func's transforms, of which there are none."""
    if is_compiling():  # after a graph break; Dynamo knows this one alone
        return function.apply(*args)
    return super(torch.autograd.Function, function).apply(*args)


class _Differentiable:
    """The forward op of a cell with its derivatives, and the derivatives of its backward op.

    With the states h0 and, where the cell has one, c0, the signatures are
        forward:  (x, *states, weights, *options, save_for_backward) -> (*results, *saved)
        backward: (*grads, x, *states, weights, *options, output, *saved, needs_grad)
                  -> (grad_x, *grad_states, grad_weights)
    `options` are those of `LayerSpec.of_op`; `results` are the output, the final states and, of a cell with
    c, the cell states, each with a gradient among `grads`; `saved` are gates, cells and norms; `needs_grad`
    has a flag for each of x, the states and every weight.

    `torch.library.register_autograd` would do for the forward op too, but its handling of lists costs more
    than a short sequence does, so the weights are passed one by one to an autograd.Function that is
    registered here.
    """

    def __init__(self, cell: Cell) -> None:
        self.info, name = cell, cell.name
        self.op = getattr(torch.ops.seqkernels, name).default
        self.backward_op = getattr(torch.ops.seqkernels, f"_{name}_backward").default
        self.n = 1 + cell.states  # x and the states
        self.n_results = cell.results
        self.arguments = compat.argument_names(self.op)
        self.n_options = len(cell.options)
        assert self.arguments[self.n + 1 : -1] == list(cell.options)
        self.defaults = compat.argument_defaults(self.op)[self.n + 1 :]

        self.function = self._function("with_derivative", self._forward, self._backward)
        self.step_function = self._function("step_with_derivative", self._forward_step, self._backward_step)
        self.anew_function = self._function("computed_anew", self._forward_alone, self._backward_anew)
        _library.impl(name, self._autograd_kernel, "Autograd", with_keyset=True)
        torch.library.register_fake(f"seqkernels::{name}", self._with_defaults(_fake_forward(cell)))
        torch.library.register_autograd(
            f"seqkernels::_{name}_backward", self._double_backward, setup_context=self._setup_double_backward
        )
        torch.library.register_fake(f"seqkernels::_{name}_backward", self._fake_backward)

    def _function(self, suffix: str, forward: Callable[..., Any], backward: Callable[..., Any]) -> Any:
        def run_backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
            return backward(ctx, *grads)  # compiled autograd traces no bound method

        methods = {"forward": staticmethod(forward), "backward": staticmethod(run_backward)}
        return type(f"{self.info.name}_{suffix}", (torch.autograd.Function,), methods)

    def __call__(self, *args: Any) -> tuple[Tensor, ...]:
        """The op where a gradient is needed: differentiable, without the detour through the dispatcher."""
        return _apply_untransformed(self.function, *self._of_function(self.op, args))

    def step(self, x: Tensor, state: Sequence[Tensor], weights: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The new state of one step where a gradient is needed; x [B, I], states [B, H]."""
        return _apply_untransformed(self.step_function, x, *state, *weights)

    def anew(
        self, x: Tensor, state: Sequence[Tensor], weights: Sequence[Tensor], options: Sequence[Any]
    ) -> tuple[Tensor, ...]:
        """The results of the op where a gradient is needed, for which backward runs the op once more."""
        return _apply_untransformed(self.anew_function, options, x, *state, *weights)

    def all_arguments(self, args: Sequence[Any]) -> list[Any]:
        """All arguments of the op: the dispatcher leaves out those at their default."""
        return [*args, *self.defaults[len(args) - self.n - 1 :]]

    def _with_defaults(self, fake: Callable[..., tuple[Tensor, ...]]) -> Callable[..., tuple[Tensor, ...]]:
        """`fake` with all arguments, some of which may be named."""

        def run(*args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
            given = self.all_arguments(args)
            for name, value in kwargs.items():
                given[self.arguments.index(name)] = value
            return fake(*given)

        return run

    def _of_function(self, op: Callable[..., Any], args: Sequence[Any]) -> tuple[Any, ...]:
        """The arguments of `function` for those of the op: itself, what has no gradient, and what has."""
        n, (*given, save) = self.n, self.all_arguments(args)
        return op, save, tuple(given[n + 1 :]), *args[:n], *args[n]

    def _autograd_kernel(self, keyset: Any, *args: Any) -> tuple[Tensor, ...]:
        op = compat.below_autograd_of(self.op, keyset)
        if torch.is_grad_enabled() and compat.any_requires_grad(*args):
            return self.function.apply(*self._of_function(op, args))
        with compat.below_autograd():
            return op(*args)

    def _forward(self, ctx: Any, op: Any, save: bool, options: tuple[Any, ...], *tensors: Tensor) -> Any:
        n = self.n
        with compat.below_autograd():
            results = op(*tensors[:n], list(tensors[n:]), *options, save)
        ctx.was_saved = save
        needed, directions = ctx.needs_input_grad[-len(tensors) :], int(tensors[1].size(0))
        read, ctx.unread = self._what_backward_reads(tensors, needed, directions)
        saved = results[self.n_results :]
        ctx.save_for_backward(*keep(ctx, options), results[0], *saved, *read)
        ctx.mark_non_differentiable(*saved)
        ctx.set_materialize_grads(False)
        return results

    def _backward(self, ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        if not ctx.was_saved:
            raise RuntimeError(
                f"seqkernels::{self.info.name} ran with save_for_backward=False and kept nothing to derive; "
                "call it with save_for_backward=True where gradients are needed"
            )
        n, needs_grad = self.n, compat.wanted_by_engine(ctx, ctx.needs_input_grad[3:])
        options, saved = kept(ctx)
        tensors = self._inputs(ctx, saved[-len(needs_grad) :])
        results = saved[: -len(needs_grad)]
        args = (*grads[: self.n_results], *tensors[:n], tensors[n:], *options, *results, needs_grad)
        return None, None, None, *_where(needs_grad, self._run_backward(args))

    def _forward_step(self, ctx: Any, *tensors: Tensor) -> Any:
        n = self.n
        with compat.below_autograd():
            results = self.op(*[t.unsqueeze(0) for t in tensors[:n]], tensors[n:])
        read, ctx.unread = self._what_backward_reads(tensors, ctx.needs_input_grad, 1)
        ctx.save_for_backward(results[0], *results[self.n_results :], *read)
        ctx.set_materialize_grads(False)
        return tuple([final.squeeze_(0) for final in results[1:n]])  # in place: these are to be no views

    def _backward_step(self, ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        n, saved = self.n, ctx.saved_tensors
        needs_grad = compat.wanted_by_engine(ctx, ctx.needs_input_grad)
        tensors = self._inputs(ctx, saved[-len(needs_grad) :])
        cell_states = [None] * self.info.has_cell_state  # nobody has asked for them
        steps = [t if t is None else t.unsqueeze(0) for t in (*grads, *cell_states, *tensors[:n])]
        args = (None, *steps, tensors[n:], *self.defaults[:-1], *saved[: -len(needs_grad)], needs_grad)
        found = self._run_backward(args)
        for i in range(n):
            if needs_grad[i]:
                found[i] = found[i].squeeze(0)
        return tuple(_where(needs_grad, found))

    def _forward_alone(self, ctx: Any, options: Sequence[Any], *tensors: Tensor) -> Any:
        n = self.n
        with compat.below_autograd():
            results = self.op(*tensors[:n], tensors[n:], *options, False)
        ctx.save_for_backward(*keep(ctx, options), *tensors)
        ctx.set_materialize_grads(False)
        return results[: self.n_results]

    def _backward_anew(self, ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        n, (options, tensors) = self.n, kept(ctx)
        inputs = (*tensors[:n], tensors[n:], *options)
        with compat.below_autograd():
            output, *results = self.op(*inputs, True)
        needs_grad = compat.wanted_by_engine(ctx, ctx.needs_input_grad[1:])
        args = (*grads, *inputs, output, *results[self.n_results - 1 :], needs_grad)
        return None, *_where(needs_grad, self._run_backward(args))

    def _inputs(self, ctx: Any, saved: Sequence[Any]) -> list[Tensor]:
        """All tensors that a forward pass had got, from those that were saved and those that were not."""
        tensors = list(saved)
        for i, tensor, version in ctx.unread:
            reads_all = torch.is_grad_enabled()  # create_graph=True: the derivative of backward does
            if reads_all:
                compat.check_version(tensor, version)
            if reads_all or tensors[i] is None:
                tensors[i] = tensor
        return tensors

    def _run_backward(self, args: Sequence[Any]) -> list[Tensor]:
        """The gradient of x, of each state and each weight."""
        if torch.is_grad_enabled() or is_compiling():  # create_graph=True, or compiled autograd
            *found, grad_weights = self.backward_op(*args)
        else:
            with compat.below_autograd():
                *found, grad_weights = self.backward_op(*args)
        return [*found, *grad_weights]

    def _what_backward_reads(
        self, tensors: Sequence[Tensor], needed: tuple[bool, ...], directions: int
    ) -> tuple[list[Tensor | None], list[tuple[int, Tensor, int]]]:
        """The inputs that backward reads for the gradients that are needed, None in the place of the others;
        and these others, with their place and version.

        As in torch, what is not read may be changed in place before backward. h0, which every cell may read,
        is there as a copy where W_hh needs no gradient.
        """
        kept: list[Tensor | None] = list(tensors)
        unread = []
        per_direction = (len(tensors) - self.n) // directions
        has_biases = per_direction == self.info.weights(True)
        for i in _unread(self.n, needed, per_direction, has_biases and not self.info.is_normalized):
            unread.append((i, tensors[i], compat.version_of(tensors[i])))
            kept[i] = tensors[i].detach().clone() if i == 1 else None
        return kept, unread

    def _setup_double_backward(self, ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        n, grads, args = self.n, inputs[: self.n_results], inputs[self.n_results :]
        ctx.needs_grad = inputs[-1]
        options = args[n + 1 : n + 1 + self.n_options]
        ctx.save_for_backward(*keep(ctx, options), *grads, *args[:n], *args[n])
        ctx.set_materialize_grads(False)

    def _double_backward(self, ctx: Any, *v: Any) -> tuple[Any, ...]:
        n, (options, tensors) = self.n, kept(ctx)
        grads, inputs = tensors[: self.n_results], tensors[self.n_results :]

        def run(inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
            return self.by_reference(inputs, options)

        v_weights = v[n] or [None] * (len(inputs) - n)
        to_inputs, to_grads = _second_derivative(
            run, inputs, grads, _where(ctx.needs_grad, [*v[:n], *v_weights])
        )
        rest = len(ctx.needs_input_grad) - self.n_results - n - 1
        return *to_grads, *to_inputs[:n], to_inputs[n:], *[None] * rest

    def by_reference(self, inputs: Sequence[Tensor], options: Sequence[Any]) -> tuple[Tensor, ...]:
        """The results of the op, for (x, *states, *weights)."""
        named, n = dict(zip(self.info.options, options, strict=True)), self.n
        results = reference.layer(self.info.name, inputs[0], inputs[1:n], inputs[n:], **named)
        return (*results, *[results[0].new_zeros(0)] * (self.n_results - len(results)))

    def _fake_backward(self, *args: Any) -> tuple[Any, ...]:
        n, args = self.n, args[self.n_results :]
        inputs = [*args[:n], *args[n]]
        found = [t.new_empty(t.shape if needed else 0) for t, needed in zip(inputs, args[-1], strict=True)]
        return *found[:n], found[n:]


_A_TENSOR = object()  # in the place of one that is saved


def keep(ctx: Any, values: Sequence[Any]) -> list[Tensor]:
    """The tensors among these, which are to be saved first; the other values stay in `ctx`."""
    tensors = [value for value in values if isinstance(value, Tensor)]
    ctx.n_kept = len(tensors)
    ctx.kept = [_A_TENSOR if isinstance(v, Tensor) else v for v in values] if tensors else values
    return tensors


def kept(ctx: Any) -> tuple[Sequence[Any], Sequence[Any]]:
    """The values that `keep` got, and what was saved after its tensors."""
    saved, n = ctx.saved_tensors, ctx.n_kept
    if n == 0:
        return ctx.kept, saved
    tensors = iter(saved[:n])
    return [next(tensors) if value is _A_TENSOR else value for value in ctx.kept], saved[n:]


@functools.lru_cache(maxsize=256)
def _unread(n: int, needed: tuple[bool, ...], per_direction: int, biases_unread: bool) -> list[int]:
    """Places among x, the states (together n) and the weights that a layer's backward does not read.

    With biases the backward of a normalised cell makes its gates once more; others save them.
    """
    kinds = [range(n + kind, len(needed), per_direction) for kind in range(per_direction)]  # of weights
    unread = [i for biases in kinds[2:4] for i in biases] if biases_unread else []
    if not needed[0]:
        unread += kinds[0]
    for i in (0, 1):  # x by the gradient of W_ih, h0 by that of W_hh
        if not any(needed[w] for w in kinds[i]):
            unread.append(i)
    return unread


def _second_derivative(
    run: Callable[[Sequence[Tensor]], tuple[Tensor, ...]],
    inputs: Sequence[Tensor],
    grads: Sequence[Tensor | None],  # of the outputs of `run`
    v: Sequence[Tensor | None],  # one for each of the inputs
) -> tuple[list[Tensor | None], list[Tensor | None]]:
    """The gradients of Σ v · (d outputs / d inputs)ᵀ grads, for the inputs and for the grads."""
    create_graph = torch.is_grad_enabled()
    device_type = inputs[0].device.type
    with torch.enable_grad(), torch.autocast(device_type, enabled=False):
        # An alias for each, since one tensor may stand in several places (tied weights, h0 = c0 = zeros).
        inputs = [_alias(t, needed is not None) for t, needed in zip(inputs, v, strict=True)]
        grads = [None if t is None else _alias(t) for t in grads]
        outputs = [
            (o, g) for o, g in zip(run(inputs), grads, strict=True) if g is not None and o.requires_grad
        ]
        wanted = [(t, v_t) for t, v_t in zip(inputs, v, strict=True) if v_t is not None]
        first = _grad(*_unzip(outputs), [t for t, _ in wanted], create_graph=True)
        roots = [
            (f, v_t) for f, (_, v_t) in zip(first, wanted, strict=True) if f is not None and f.requires_grad
        ]
        second = _grad(*_unzip(roots), [*inputs, *grads], create_graph=create_graph)
        return second[: len(inputs)], second[len(inputs) :]


def _alias(tensor: Tensor, needs_grad: bool = False) -> Tensor:
    if tensor.requires_grad:
        return tensor.view_as(tensor)
    return tensor.detach().requires_grad_() if needs_grad else tensor


def _unzip(pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[list[Tensor], list[Tensor]]:
    return [a for a, _ in pairs], [b for _, b in pairs]


def _grad(
    outputs: list[Tensor], grads: list[Tensor], inputs: Sequence[Tensor | None], create_graph: bool
) -> list[Tensor | None]:
    """`torch.autograd.grad`, with None for what needs no gradient or does not have one."""
    asked = {i: t for i, t in enumerate(inputs) if t is not None and t.requires_grad}
    found: list[Tensor | None] = [None] * len(inputs)
    if outputs and asked:
        result = torch.autograd.grad(
            outputs, list(asked.values()), grads, create_graph=create_graph, allow_unused=True
        )
        for i, g in zip(asked, result, strict=True):
            found[i] = g
    return found


def _where(flags: Sequence[bool], tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
    return [t if flag else None for flag, t in zip(flags, tensors, strict=True)]


# The op of every cell, by the cell's name.
OPS = {name: _Differentiable(cell) for name, cell in CELLS.items()}

# Fills bool `flags`, contiguous and on the CPU, each True with probability p; `seed` is an int64
# (csrc/cpu/random.cpp).
random_flags = torch.ops.seqkernels.random_flags.default
torch.library.register_fake("seqkernels::random_flags", lambda flags, seed, p: None)


# ---------------------------------------------------------------- autocast


def cast(value: Any, device_type: str, dtype: torch.dtype) -> Any:
    """Autocast's rule: floating-point tensors of the device, float64 excepted, take its dtype."""
    if isinstance(value, Tensor):
        eligible = (
            value.is_floating_point() and value.dtype != torch.float64 and value.device.type == device_type
        )
        return value.to(dtype) if eligible else value
    if isinstance(value, (list, tuple)):
        return type(value)(cast(v, device_type, dtype) for v in value)
    return value


for _op in OPS.values():
    for _device_type in ("cpu", "cuda"):
        compat.register_autocast(_library, _op.op, _device_type, cast)
