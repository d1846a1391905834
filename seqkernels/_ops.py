"""Loads the extension and teaches its ops the rest: shapes, derivatives, autocast.

The schemas and kernels are C++ (csrc/ops.cpp). Here each forward op gets a fake kernel (torch.compile,
torch.export, the meta device), its derivative, which is an op of its own, and an autocast rule. The backward
ops are derived through reference.py, so that every higher derivative exists.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import reference

try:
    from . import _C
except ImportError as error:
    raise ImportError(
        "The compiled part of seqkernels, seqkernels._C, cannot be loaded. In a source checkout, build it "
        "with `pip install --no-build-isolation -e .`; otherwise install seqkernels again for this Python. "
        f"({error})"
    ) from error

BUILD_CONFIG: dict[str, Any] = _C.build_config()

lstm = torch.ops.seqkernels.lstm.default
gru = torch.ops.seqkernels.gru.default
rnn = torch.ops.seqkernels.rnn.default

_library = torch.library.Library("seqkernels", "IMPL")


def tf32_allowed() -> bool:
    """Whether torch lets float32 recurrent layers use TF32 on the GPU."""
    return bool(torch.backends.cudnn.rnn.fp32_precision == "tf32")  # type: ignore[attr-defined]


if BUILD_CONFIG["cuda_targets"]:
    _C.set_tf32_query(tf32_allowed)


# ---------------------------------------------------------------- shapes


def _new_output(x: Tensor, h0: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], h0.size(0) * h0.size(2))


def _new_saved(x: Tensor, h0: Tensor, *gates: int) -> Tensor:
    """What forward keeps for backward, [D, rows, *gates, Hp]: H is padded to whole vectors."""
    rows = x.size(0) if x.dim() == 2 else x.size(0) * x.size(1)
    padded = (h0.size(2) + 15) // 16 * 16
    return x.new_empty(h0.size(0), rows, *gates, padded)


@torch.library.register_fake("seqkernels::lstm")
def _(
    x: Tensor,
    h0: Tensor,
    c0: Tensor,
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None = None,
    save_for_backward: bool = True,
) -> tuple[Tensor, ...]:
    gates = _new_saved(x, h0, 4) if save_for_backward else x.new_empty(0)
    cells = _new_saved(x, h0) if save_for_backward else x.new_empty(0)
    if x.dtype in (torch.float16, torch.bfloat16):
        cells = cells.float()
    return _new_output(x, h0), x.new_empty(h0.shape), x.new_empty(c0.shape), gates, cells


@torch.library.register_fake("seqkernels::gru")
def _(
    x: Tensor,
    h0: Tensor,
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None = None,
    save_for_backward: bool = True,
) -> tuple[Tensor, ...]:
    gates = _new_saved(x, h0, 4) if save_for_backward else x.new_empty(0)
    return _new_output(x, h0), x.new_empty(h0.shape), gates


@torch.library.register_fake("seqkernels::rnn")
def _(
    x: Tensor, h0: Tensor, weights: Sequence[Tensor], nonlinearity: str, batch_sizes: Tensor | None = None
) -> tuple[Tensor, ...]:
    return _new_output(x, h0), x.new_empty(h0.shape)


# ---------------------------------------------------------------- derivatives


class _Differentiable:
    """One cell's forward op with its derivatives, and the derivatives of its backward op.

    With the states h0 and, for the LSTM, c0, the signatures are
        forward:  (x, *states, weights, *options, batch_sizes[, save_for_backward]) -> (output, *finals,
            *saved)
        backward: (*grads, x, *states, weights, *options, batch_sizes, output, *saved, needs_grad)
                  -> (grad_x, *grad_states, grad_weights)
    `options` is the nonlinearity of an RNN, `saved` are gates and cells, `needs_grad` has a flag for each of
    x, the states and every weight.

    `torch.library.register_autograd` would do for the forward op too, but its handling of lists costs more
    than a short sequence does, so the weights are passed one by one to an autograd.Function that is
    registered here.
    """

    def __init__(self, op: torch._ops.OpOverload, states: int) -> None:
        self.cell = cell = op._schema.name.split("::")[1]
        self.op = op
        self.backward_op = getattr(torch.ops.seqkernels, f"_{cell}_backward").default
        self.n = 1 + states  # x and the states; also the output and the final states
        self.optional_save = cell != "rnn"  # the RNN's derivative reads its output alone
        self.batch_sizes_at = self.n + (1 if self.optional_save else 2)
        self.function: Any = type(
            f"{cell}_with_derivative",
            (torch.autograd.Function,),
            {"forward": staticmethod(self._forward), "backward": staticmethod(self._backward)},
        )
        _library.impl(cell, self._autograd_kernel, "Autograd", with_keyset=True)
        torch.library.register_autograd(
            f"seqkernels::_{cell}_backward", self._double_backward, setup_context=self._setup_double_backward
        )
        torch.library.register_fake(f"seqkernels::_{cell}_backward", self._fake_backward)

    def __call__(self, *args: Any) -> tuple[Tensor, ...]:
        """The op where a gradient is needed: differentiable, without the detour through the dispatcher."""
        return self._apply(self.op, args)

    def _apply(self, op: Callable[..., Any], args: Sequence[Any]) -> tuple[Tensor, ...]:
        n, at = self.n, self.batch_sizes_at
        batch_sizes = args[at] if len(args) > at else None  # the dispatcher leaves defaults out
        save = args[at + 1] if len(args) > at + 1 else True
        return self.function.apply(op, save, args[n + 1 : at], batch_sizes, *args[:n], *args[n])

    def _autograd_kernel(self, keyset: Any, *args: Any) -> tuple[Tensor, ...]:
        op = functools.partial(self.op.redispatch, keyset & torch._C._after_autograd_keyset)
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*args):
            return self._apply(op, args)
        with torch._C._AutoDispatchBelowAutograd():
            return op(*args)

    def _forward(
        self, ctx: Any, op: Any, save: bool, options: Any, batch_sizes: Any, *tensors: Tensor
    ) -> Any:
        n = self.n
        save_for_backward = (save,) if self.optional_save else ()
        with torch._C._AutoDispatchBelowAutograd():
            results = op(*tensors[:n], list(tensors[n:]), *options, batch_sizes, *save_for_backward)
        ctx.was_saved, ctx.options = save, options
        ctx.save_for_backward(batch_sizes, results[0], *results[n:], *tensors)
        ctx.mark_non_differentiable(*results[n:])
        ctx.set_materialize_grads(False)
        return results

    def _backward(self, ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        if not ctx.was_saved:
            raise RuntimeError(
                f"seqkernels::{self.cell} ran with save_for_backward=False and kept nothing to derive; "
                "call it with save_for_backward=True where gradients are needed"
            )
        n, needs_grad = self.n, list(ctx.needs_input_grad[4:])
        batch_sizes, *kept = ctx.saved_tensors
        tensors = kept[-len(needs_grad) :]
        del kept[-len(needs_grad) :]
        args = (*grads[:n], *tensors[:n], tensors[n:], *ctx.options, batch_sizes, *kept, needs_grad)
        if torch.is_grad_enabled():  # create_graph=True
            *found, grad_weights = self.backward_op(*args)
        else:
            with torch._C._AutoDispatchBelowAutograd():
                *found, grad_weights = self.backward_op(*args)
        return None, None, None, None, *_where(needs_grad, [*found, *grad_weights])

    def _setup_double_backward(self, ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        n, args = self.n, inputs[self.n :]  # after the grads come the arguments of the forward op
        ctx.options, ctx.needs_grad = args[n + 1 : self.batch_sizes_at], inputs[-1]
        ctx.save_for_backward(args[self.batch_sizes_at], *inputs[:n], *args[:n], *args[n])
        ctx.set_materialize_grads(False)

    def _double_backward(self, ctx: Any, *v: Any) -> tuple[Any, ...]:
        n, (batch_sizes, *tensors) = self.n, ctx.saved_tensors
        grads, inputs = tensors[:n], tensors[n:]
        layer = getattr(reference, self.cell)

        def run(inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
            return layer(*inputs[:n], inputs[n:], *ctx.options, batch_sizes)

        v_weights = v[n] or [None] * (len(inputs) - n)
        to_inputs, to_grads = _second_derivative(
            run, inputs, grads, _where(ctx.needs_grad, [*v[:n], *v_weights])
        )
        rest = len(ctx.needs_input_grad) - 2 * n - 1
        return *to_grads, *to_inputs[:n], to_inputs[n:], *[None] * rest

    def _fake_backward(self, *args: Any) -> tuple[Any, ...]:
        n = self.n
        inputs = [*args[n : 2 * n], *args[2 * n]]
        found = [t.new_empty(t.shape if needed else 0) for t, needed in zip(inputs, args[-1], strict=True)]
        return *found[:n], found[n:]


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


differentiable = {
    lstm: _Differentiable(lstm, states=2),
    gru: _Differentiable(gru, states=1),
    rnn: _Differentiable(rnn, states=1),
}


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


def _register_autocast(op: torch._ops.OpOverload, device_type: str) -> None:
    """As `torch.library.register_autocast`, but with the dtype that is in force when the op is called."""
    key_name = "Autocast" + torch._C._dispatch_key_for_device(device_type)
    key = getattr(torch._C.DispatchKey, key_name)

    def kernel(*args: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(key)):
            return op(*cast(args, device_type, torch.get_autocast_dtype(device_type)))

    op.py_impl(key)(kernel)  # for tracing, which dispatches in Python
    _library.impl(op._schema.name.split("::")[1], lambda _, *args: kernel(*args), key_name, with_keyset=True)


for _op in (lstm, gru, rnn):
    for _device_type in ("cpu", "cuda"):
        _register_autocast(_op, _device_type)
