"""What runs a stack of layers, one after another, or a single step: `run` and `run_cell`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling
from torch.jit import is_tracing
from torch.nn.functional import dropout as _dropout

from . import _C, _cudnn, _onnx, _ops, autocast, dispatch, recompute, reference, regularization, resets, rows
from . import _torch_compat as compat
from ._transforms import TRANSFORMABLE
from .cells import WEIGHTS
from .spec import LayerSpec

State = tuple[Tensor, ...]  # h0, or h0 and c0
# Of (spec, x, state, weights), `(output, *final_state)`, or of a step its final state alone.
Run = Callable[[LayerSpec, Tensor, State, Sequence[Tensor]], tuple[Tensor, ...]]


def run(spec: LayerSpec, x: Tensor, state: State, weights: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """A stack of layers: `(output, *final_state)`. In place of `torch._VF.lstm` and its like.

    x is [T, B, I], [B, T, I] with `spec.batch_first`, or packed [R, I] with `spec.batch_sizes`. With
    `spec.return_cell_states`, c of every step comes last, in the layout of the output.
    """
    if spec.reset_mask is not None or spec.lengths is not None:
        spec = rows.check(spec, x)
        if resets.are_segments(spec, x, state):
            return resets.run(spec, x, state, weights, run)
    if not is_tracing():
        _check_stack(spec, state, weights)
    if spec.batch_sizes is None:
        if not is_tracing() and x.size(1 if spec.batch_first else 0) == 0:
            raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
        if spec.batch_first:
            if spec.reset_mask is not None:
                spec = spec._replace(reset_mask=spec.reset_mask.transpose(0, 1))
            output, *finals = _run_stack(spec, x.transpose(0, 1), state, weights)
            if spec.return_cell_states:
                finals[-1] = finals[-1].transpose(0, 1)
            return output.transpose(0, 1), *finals
    return _run_stack(spec, x, state, weights)


def _run_stack(spec: LayerSpec, x: Tensor, state: State, weights: Sequence[Tensor]) -> tuple[Tensor, ...]:
    if _autocast(x):
        return _with_autocast(_run_layers, LAYERS["torch"], spec, x, state, weights)
    return _run_layers(spec, x, state, weights)


def _run_layers(spec: LayerSpec, x: Tensor, state: State, weights: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Layer after layer; x [T, B, I] or packed [R, I]."""
    implementation = dispatch.choose(spec, x, state, weights)
    if implementation == "reference":
        _check_devices(x, state, weights)
    run_layer = LAYERS[implementation]
    again = recompute.applies(spec, implementation, (x, *state, *weights))
    if (spec.num_layers == 1 and not spec.draws and not again) or implementation == "torch":
        output, *finals = run_layer(spec, x, state, weights)
        return _callers_own(output, implementation), *finals
    directions, per_layer = spec.directions, len(weights) // spec.num_layers
    layers: list[Sequence[Tensor]] = []
    cell_states: Sequence[Tensor] = ()
    for n in range(spec.num_layers):
        if n > 0 and spec.training and spec.dropout > 0:
            x = _dropout(x, spec.dropout, True)
        own = tuple(s[n * directions : (n + 1) * directions] for s in state)
        layer, own_weights = spec, weights[n * per_layer : (n + 1) * per_layer]
        if spec.return_cell_states and n < spec.num_layers - 1:
            layer = layer._replace(return_cell_states=False)
        if spec.draws:
            layer, own_weights = regularization.draw(layer, x, own, own_weights)
        if again:
            x, *final = recompute.run(layer, x, own, own_weights, RECOMPUTING[implementation])
        else:
            x, *final = run_layer(layer, x, own, own_weights)
        cell_states = final[len(state) :]
        layers.append(final[: len(state)])
    together = layers[0] if len(layers) == 1 else [torch.cat(f) for f in zip(*layers, strict=True)]
    return x if again else _callers_own(x, implementation), *together, *cell_states


def _callers_own(output: Tensor, implementation: str) -> Tensor:
    """The output as a caller may have it, to change as it likes: backward reads what the kernel wrote.

    On a GPU both are one tensor, as they are in cuDNN.
    """
    if implementation != "native" or not output.requires_grad or output.is_cuda:
        return output
    return output if is_compiling() or is_tracing() else output.clone()


def run_cell(
    spec: LayerSpec,
    x: Tensor,  # [B, I]
    state: State,  # each [B, H]
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
) -> State:
    """One step: a layer of one direction with T = 1. In place of `torch._VF.lstm_cell` and its like."""
    weights: Any = [w_ih, w_hh] if b_ih is None and b_hh is None else [w_ih, w_hh, b_ih, b_hh]
    if _autocast(x):
        return _with_autocast(_run_step, _run_torch_step, spec, x, state, weights)
    return _run_step(spec, x, state, weights)


def _run_step(spec: LayerSpec, x: Tensor, state: State, weights: Sequence[Tensor]) -> State:
    implementation = dispatch.choose(spec, x, state, weights)
    if implementation == "torch":
        return _run_torch_step(spec, x, state, weights)
    _check_cell(x, state, weights[0], weights[1])
    is_plain = not spec.beyond_torch
    if is_plain and implementation == "native" and _runs_by_autograd(x, state, weights):
        return _ops.OPS[spec.cell].step(x, state, weights)
    x, state = x.unsqueeze(0), tuple([s.unsqueeze(0) for s in state])
    if spec.reset_mask is not None:
        spec = spec._replace(reset_mask=spec.reset_mask.to(x.device).unsqueeze(0))
    if spec.draws:
        spec, weights = regularization.draw(spec, x, state, weights)
    _, *finals = LAYERS[implementation](spec, x, state, weights)
    return tuple([s.squeeze(0) for s in finals])


def _runs_by_autograd(x: Tensor, state: State, weights: Sequence[Tensor]) -> bool:
    """Whether autograd alone is to know of this call: no tracer, and no transform of torch.func."""
    if is_compiling() or is_tracing() or compat.transforms_active():
        return False
    return _needs_grad(x, state, weights)


def _run_native(spec: LayerSpec, x: Tensor, state: State, weights: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """One layer by its op, the shortest way: tracers see the dispatcher's, where autograd is slow."""
    save, op = _needs_grad(x, state, weights), _ops.OPS[spec.cell]
    args = (x, *state, weights, *spec.of_op, save)
    if is_compiling() or is_tracing():
        results = op.op(*args)
    elif compat.transforms_active():
        results = (op.op if compat.transforms_known("Vmap") else TRANSFORMABLE[spec.cell])(*args)
    elif save:
        results = op(*args)
    else:
        with compat.below_autograd():
            results = op.op(*args)
    return tuple(results[: 1 + len(state) + spec.return_cell_states])


def _run_native_anew(
    spec: LayerSpec, x: Tensor, state: State, weights: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """One layer by its op, whose backward runs that once more."""
    results = _ops.OPS[spec.cell].anew(x, state, weights, spec.of_op)
    return tuple(results[: 1 + len(state) + spec.return_cell_states])


def _run_reference(spec: LayerSpec, x: Tensor, state: State, weights: Sequence[Tensor]) -> tuple[Tensor, ...]:
    options = dict(zip(spec.info.options, spec.of_op, strict=True))
    return reference.layer(spec.cell, x, state, weights, **options)


def _run_torch(spec: LayerSpec, x: Tensor, state: State, weights: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """All layers by what torch.nn runs."""
    function = getattr(torch, dispatch.TORCH_CELLS[spec.cell])
    hx: Any = state if spec.info.has_cell_state else state[0]
    options = (spec.bias, spec.num_layers, spec.dropout, spec.training, spec.bidirectional)
    if spec.batch_sizes is None:
        return tuple(function(x, hx, weights, *options, False))
    return tuple(function(x, spec.batch_sizes, hx, weights, *options))


def _run_torch_step(spec: LayerSpec, x: Tensor, state: State, weights: Sequence[Tensor]) -> State:
    """One step by what torch.nn runs."""
    function = getattr(torch, f"{spec.cell}_cell")
    return function(x, state, *weights) if spec.info.has_cell_state else (function(x, state[0], *weights),)


# One layer, all its directions, by each implementation that `dispatch.choose` names.
LAYERS: dict[str, Run] = {
    "native": _run_native,
    "torch": _run_torch,
    "reference": _run_reference,
    "cudnn": _cudnn.run,
    "onnx": _onnx.layer,
}
RECOMPUTING = {
    "native": recompute.Runs(_run_native, _run_native_anew),
    "reference": recompute.Runs(_run_reference, recompute.anew(_run_reference)),
}


def _needs_grad(x: Tensor, state: State, weights: Sequence[Tensor]) -> bool:
    """Whether the forward op keeps what its derivative reads; a traced program always does.

    So does one that torch.func transforms: tensors do not say there what is asked of them outside.
    """
    if compat.transforms_active():
        return torch.is_grad_enabled() or not compat.transforms_known("Vmap")
    if not torch.is_grad_enabled():
        return is_tracing()
    if weights[0].requires_grad or x.requires_grad:
        return True
    return is_tracing() or any(t.requires_grad for t in (*state, *weights))


def _autocast(x: Tensor) -> bool:
    if not compat.is_any_autocast_enabled():
        return False
    device_type = x.device.type
    return compat.has_autocast(device_type) and torch.is_autocast_enabled(device_type)


def _with_autocast(
    run: Run, by_torch: Run, spec: LayerSpec, x: Tensor, state: State, weights: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """`run` on arguments cast once, as a whole; every backend then computes the same.

    On a CPU torch runs some of these step by step, and there the state that a step multiplies and adds, h of
    a GRU and c of an LSTM, keeps its dtype, which the result then takes by promotion. So it does here.
    """
    device_type = x.device.type
    dtype = torch.get_autocast_dtype(device_type)
    args = (
        _ops.cast(x, device_type, dtype),
        tuple([_ops.cast(s, device_type, dtype) for s in state]),
        autocast.cast_weights(weights, device_type, dtype),
    )
    supported = dispatch.supports(spec, *args)
    if spec.backend == "auto" and not supported and dispatch.torch_runs(spec, *args):
        return by_torch(spec, x, state, weights)
    is_plain_step = run is _run_step and not spec.beyond_torch
    result = _fast_step(spec, *args) if supported and is_plain_step else None
    if result is None:
        with compat.without_autocast(device_type):
            result = run(spec, *args)
    if device_type == "cpu" and _torch_runs_steps(spec, x, run is _run_step):
        wide = torch.promote_types(result[-1].dtype, state[-1].dtype)
        # What is projected is a product, which autocast casts: that leaves c.
        narrow = 2 if spec.info.is_projected else 0
        result = (*result[:narrow], *[t.to(wide) for t in result[narrow:]])
    return result


def _torch_runs_steps(spec: LayerSpec, x: Tensor, is_step: bool) -> bool:
    """Whether torch runs this step by step under autocast on a CPU."""
    if spec.cell == "lstm":
        return is_step or not _by_onednn(x)
    return spec.info.is_projected or spec.cell.startswith("gru")


def _fast_step(spec: LayerSpec, x: Tensor, state: State, weights: Sequence[Tensor]) -> State | None:
    """A step on the fast path of modules, whose weights these are, cast; None where that does not take it."""
    w_ih, w_hh, *_ = weights
    needs_grad = torch.is_grad_enabled() and w_ih.requires_grad
    if needs_grad or spec.backend == "reference" or not dispatch.fastpath_allowed(but_autocast=True):
        return None
    parameters = dict(zip(WEIGHTS, (*weights, None, None), strict=False))
    module = {"input_size": w_ih.size(-1), "hidden_size": w_hh.size(-1), "_parameters": parameters}
    is_pair = spec.info.has_cell_state
    hx = state if is_pair else state[0]
    result = _C.fastpath(module, spec.cell, True, x, hx, torch.is_grad_enabled())
    return result if is_pair or result is None else (result,)


def _by_onednn(x: Tensor) -> bool:
    """Whether torch hands LSTM layers to oneDNN under autocast, which returns what it has computed in."""
    return x.numel() > 0 and not (x.dtype is torch.float16 and torch.is_grad_enabled())


def _check_devices(x: Tensor, state: State, weights: Sequence[Tensor]) -> None:
    for what, tensors in (("hidden", state), ("parameter", weights)):
        for t in tensors:
            if t.device != x.device:
                raise RuntimeError(
                    f"Input and {what} tensors are not at the same device, "
                    f"found input tensor at {x.device} and {what} tensor at {t.device}"
                )


def _check_stack(spec: LayerSpec, state: State, weights: Sequence[Tensor]) -> None:
    """The options against the states and weights; sizes are for what runs a layer."""
    layers = spec.num_layers * spec.directions
    if layers < 1:
        raise RuntimeError(f"num_layers must be at least 1, got {spec.num_layers}")
    for n, s in enumerate(state):
        if s.dim() != 3 or s.size(0) != layers:
            expected = f"{spec.num_layers} layers * {spec.directions} directions"
            raise RuntimeError(f"{'hc'[n]}0 must have size [{expected}, B, H], got {list(s.shape)}")
    per_direction = spec.info.weights(spec.bias)
    if len(weights) != layers * per_direction:
        raise RuntimeError(
            f"weights must be {layers * per_direction} tensors, {per_direction} for each of {spec.num_layers}"
            f" layers and {spec.directions} directions with bias={spec.bias}, got {len(weights)}"
        )


def _check_cell(x: Tensor, state: State, w_ih: Tensor, w_hh: Tensor) -> None:
    """What `torch._VF.lstm_cell` and its like check, in their words."""
    if x.size(1) != w_ih.size(1):
        raise RuntimeError(f"input has inconsistent input_size: got {x.size(1)} expected {w_ih.size(1)}")
    for n, s in enumerate(state):
        if s.size(0) != x.size(0):
            raise RuntimeError(f"Input batch size {x.size(0)} doesn't match hidden{n} batch size {s.size(0)}")
        if s.size(1) != w_hh.size(1):
            raise RuntimeError(
                f"hidden{n} has inconsistent hidden_size: got {s.size(1)}, expected {w_hh.size(1)}"
            )
