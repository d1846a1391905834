"""Recurrent layers and cells as functions of their weights.

What `torch.nn` computes for the same arguments: a stack of layers, one after another, dropout between them
with torch's generator. The modules of this package are built on these functions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling
from torch.jit import is_tracing
from torch.nn.functional import dropout as _dropout

from . import _C, _cudnn, _ops, autocast, dispatch, reference, resets
from . import _torch_compat as compat
from ._transforms import TRANSFORMABLE
from .cells import WEIGHTS
from .spec import LayerSpec, cell_of, check_nonlinearity, check_norm_eps

__all__ = ["gru", "gru_cell", "lstm", "lstm_cell", "rnn", "rnn_cell"]

State = tuple[Tensor, ...]  # h0, or h0 and c0
# Of (spec, x, state, weights), `(output, *final_state)`, or of a step its final state alone.
Run = Callable[[LayerSpec, Tensor, State, Sequence[Tensor]], tuple[Tensor, ...]]


def lstm(
    x: Tensor,
    hx: tuple[Tensor, Tensor],
    weights: Sequence[Tensor],
    *,
    batch_sizes: Tensor | None = None,
    bias: bool = True,
    num_layers: int = 1,
    dropout: float = 0.0,
    training: bool = False,
    bidirectional: bool = False,
    batch_first: bool = False,
    reset_mask: Tensor | None = None,
    norm: str | None = None,
    norm_eps: float = 1e-5,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """A stack of LSTM layers.

    With D = 2 directions if `bidirectional`, else 1, and L = `num_layers`:

    Args:
        x: [T, B, I]; [B, T, I] with `batch_first`; or [rows, I], the data of a PackedSequence, with
            `batch_sizes`.
        hx: `(h0, c0)`, each [L*D, B, H]. With a projection to P features, h0 is [L*D, B, P].
        weights: In the order of `torch.nn.LSTM`: for each layer, for each direction, w_ih [4H, I], w_hh [4H,
            H], then with `bias` b_ih [4H] and b_hh [4H], then with a projection w_hr [P, H], with a `norm`
            norm_ih [4H] ("layer" alone), norm_hh [4H], norm_c [H] and norm_c_bias [H]. Layers after the first
            have I = D*H (or D*P). Gate order i, f, g, o.
        batch_sizes: Sequences that have each time step, int64 [T] on the CPU, as in a PackedSequence.
        dropout: Probability of zeroing an element of each layer's output but the last, while `training`.
        reset_mask: Where sequences start anew; bool, the shape of `x` without its last dimension. See
            `seqkernels.FusedLSTM`.
        norm, norm_eps: None, "layer" or "layer-joint", and what is added to variances; see
            `seqkernels.FusedLSTM`.
        backend: "native" runs the kernels or raises; "reference" runs plain torch, step by step; "auto" runs
            the kernels where they can run, else what torch.nn runs. `seqkernels.explain` says which and why.

    Returns:
        `(output, h_n, c_n)`: output [T, B, D*H] (with `batch_first` a [B, T, D*H] view of it; or [rows,
        D*H]), h_n and c_n shaped like h0 and c0. The dtype is that of `x`, or under autocast that of
        autocast.

    Raises:
        ValueError: An unknown `backend` or `norm`, a negative `norm_eps`, or a `reset_mask` of another shape.
        TypeError: A `reset_mask` that is no bool tensor, a `norm_eps` that is no number.
        RuntimeError: T = 0; states or weights that are not as many as the options say; sizes, dtypes or
            devices that do not fit together; or with `backend="native"` every reason why the kernels cannot
            run.

    Example:
        >>> x, h0, c0 = torch.randn(5, 3, 8), torch.zeros(1, 3, 16), torch.zeros(1, 3, 16)
        >>> weights = [torch.randn(64, 8), torch.randn(64, 16), torch.randn(64), torch.randn(64)]
        >>> output, h_n, c_n = seqkernels.functional.lstm(x, (h0, c0), weights)
        >>> output.shape
        torch.Size([5, 3, 16])
    """
    options = (num_layers, bias, bidirectional, batch_first, dropout, training, backend)
    spec = LayerSpec(cell_of("lstm", norm), *options, batch_sizes, reset_mask, check_norm_eps(norm_eps))
    if norm is None and len(weights) == num_layers * spec.directions * (5 if bias else 3):
        spec = replace(spec, cell="lstm_projected")
    return run(spec, x, _pair(hx), weights)  # type: ignore[return-value]


def gru(
    x: Tensor,
    h0: Tensor,
    weights: Sequence[Tensor],
    *,
    batch_sizes: Tensor | None = None,
    bias: bool = True,
    num_layers: int = 1,
    dropout: float = 0.0,
    training: bool = False,
    bidirectional: bool = False,
    batch_first: bool = False,
    reset_mask: Tensor | None = None,
    reset_after: bool = True,
    norm: str | None = None,
    norm_eps: float = 1e-5,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """A stack of GRU layers: `(output, h_n)`.

    As `lstm`, with h0 [L*D, B, H], weights of 3H rows in the gate order r, z, n, and no projection;
    `reset_after` and `norm` as for `seqkernels.FusedGRU`, norm_ih and norm_hh are [3H]. Under autocast on a
    CPU, the output has the wider dtype of autocast's and h0's, as in torch.

    Example:
        >>> weights = [torch.randn(48, 8), torch.randn(48, 16), torch.randn(48), torch.randn(48)]
        >>> output, h_n = seqkernels.functional.gru(torch.randn(5, 3, 8), torch.zeros(1, 3, 16), weights)
        >>> output.shape
        torch.Size([5, 3, 16])
    """
    options = (num_layers, bias, bidirectional, batch_first, dropout, training, backend)
    cell = cell_of("gru", norm, reset_after)
    spec = LayerSpec(cell, *options, batch_sizes, reset_mask, check_norm_eps(norm_eps))
    return run(spec, x, (h0,), weights)  # type: ignore[return-value]


def rnn(
    x: Tensor,
    h0: Tensor,
    weights: Sequence[Tensor],
    *,
    nonlinearity: str = "tanh",
    batch_sizes: Tensor | None = None,
    bias: bool = True,
    num_layers: int = 1,
    dropout: float = 0.0,
    training: bool = False,
    bidirectional: bool = False,
    batch_first: bool = False,
    reset_mask: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """A stack of Elman layers: `(output, h_n)`.

    As `lstm`, with h0 [L*D, B, H], weights of H rows, `nonlinearity` "tanh" or "relu", and no projection.

    Example:
        >>> weights = [torch.randn(16, 8), torch.randn(16, 16), torch.randn(16), torch.randn(16)]
        >>> output, h_n = seqkernels.functional.rnn(torch.randn(5, 3, 8), torch.zeros(1, 3, 16), weights)
        >>> output.shape
        torch.Size([5, 3, 16])
    """
    check_nonlinearity(nonlinearity)
    options = (num_layers, bias, bidirectional, batch_first, dropout, training, backend)
    spec = LayerSpec(f"rnn_{nonlinearity}", *options, batch_sizes, reset_mask)
    return run(spec, x, (h0,), weights)  # type: ignore[return-value]


def lstm_cell(
    x: Tensor,
    hx: tuple[Tensor, Tensor],
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    *,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """One step of an LSTM: `(h, c)`.

    Args:
        x: [B, I].
        hx: `(h, c)` before the step, each [B, H].
        w_ih, w_hh, b_ih, b_hh: [4H, I], [4H, H], [4H], [4H]; gate order i, f, g, o.
        backend: As for `lstm`.

    Raises:
        ValueError: An unknown `backend`.
        RuntimeError: As `lstm`.

    Example:
        >>> hx = torch.zeros(3, 16), torch.zeros(3, 16)
        >>> w_ih, w_hh = torch.randn(64, 8), torch.randn(64, 16)
        >>> h, c = seqkernels.functional.lstm_cell(torch.randn(3, 8), hx, w_ih, w_hh)
        >>> h.shape
        torch.Size([3, 16])
    """
    spec = LayerSpec("lstm", backend=backend)
    return run_cell(spec, x, _pair(hx), w_ih, w_hh, b_ih, b_hh)  # type: ignore[return-value]


def gru_cell(
    x: Tensor,
    h: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    *,
    reset_after: bool = True,
    backend: str = "auto",
) -> Tensor:
    """One step of a GRU: the new h. As `lstm_cell`, with weights of 3H rows in the gate order r, z, n.

    `reset_after` is that of `seqkernels.FusedGRU`.

    Example:
        >>> x, h = torch.randn(3, 8), torch.zeros(3, 16)
        >>> seqkernels.functional.gru_cell(x, h, torch.randn(48, 8), torch.randn(48, 16)).shape
        torch.Size([3, 16])
    """
    spec = LayerSpec(cell_of("gru", None, reset_after), backend=backend)
    return run_cell(spec, x, (h,), w_ih, w_hh, b_ih, b_hh)[0]


def rnn_cell(
    x: Tensor,
    h: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    *,
    nonlinearity: str = "tanh",
    backend: str = "auto",
) -> Tensor:
    """One step of an Elman network: the new h. As `lstm_cell`, with weights of H rows.

    Example:
        >>> x, h = torch.randn(3, 8), torch.zeros(3, 16)
        >>> seqkernels.functional.rnn_cell(x, h, torch.randn(16, 8), torch.randn(16, 16)).shape
        torch.Size([3, 16])
    """
    check_nonlinearity(nonlinearity)
    spec = LayerSpec(f"rnn_{nonlinearity}", backend=backend)
    return run_cell(spec, x, (h,), w_ih, w_hh, b_ih, b_hh)[0]


def run(spec: LayerSpec, x: Tensor, state: State, weights: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """A stack of layers: `(output, *final_state)`. In place of `torch._VF.lstm` and its like.

    x is [T, B, I], [B, T, I] with `spec.batch_first`, or packed [R, I] with `spec.batch_sizes`.
    """
    if spec.reset_mask is not None:
        return resets.run(spec, x, state, weights, run)
    if not is_tracing():
        _check_stack(spec, state, weights)
    if spec.batch_sizes is None:
        if not is_tracing() and x.size(1 if spec.batch_first else 0) == 0:
            raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
        if spec.batch_first:
            output, *finals = _run_stack(spec, x.transpose(0, 1), state, weights)
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
    if spec.num_layers == 1 or implementation == "torch":
        output, *finals = run_layer(spec, x, state, weights)
        return _callers_own(output, implementation), *finals
    directions, per_layer = spec.directions, len(weights) // spec.num_layers
    layers = []
    for n in range(spec.num_layers):
        if n > 0 and spec.training and spec.dropout > 0:
            x = _dropout(x, spec.dropout, True)
        own = tuple(s[n * directions : (n + 1) * directions] for s in state)
        x, *final = run_layer(spec, x, own, weights[n * per_layer : (n + 1) * per_layer])
        layers.append(final)
    return _callers_own(x, implementation), *(torch.cat(f) for f in zip(*layers, strict=True))


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
    if implementation == "native" and _runs_by_autograd(x, state, weights):
        return _ops.OPS[spec.cell].step(x, state, weights)
    x, state = x.unsqueeze(0), tuple([s.unsqueeze(0) for s in state])
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
    return tuple(results[: 1 + len(state)])


def _run_reference(spec: LayerSpec, x: Tensor, state: State, weights: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return reference.layer(spec.cell, x, state, weights, *spec.of_op)


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
    return torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)


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
    result = _fast_step(spec, *args) if supported and run is _run_step else None
    if result is None:
        with compat.without_autocast(device_type):
            result = run(spec, *args)
    if device_type == "cpu" and _torch_runs_steps(spec, x, run is _run_step):
        wide = torch.promote_types(result[-1].dtype, state[-1].dtype)
        # What is projected is a product, which autocast casts: that leaves c.
        narrow = len(result) - 1 if spec.info.is_projected else 0
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


def _pair(hx: Any) -> State:
    if not isinstance(hx, (tuple, list)) or len(hx) != 2:
        got = f"{len(hx)} tensors" if isinstance(hx, (tuple, list)) else type(hx).__name__
        raise RuntimeError(f"hx must be a pair of tensors (h, c), got {got}")
    return tuple(hx)


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
