"""Recurrent layers and cells as functions of their weights.

What `torch.nn` computes for the same arguments: a stack of layers, one after another, dropout between them
with torch's generator. The modules of this package are built on these functions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch._C import _AutoDispatchBelowAutograd, _is_any_autocast_enabled
from torch.compiler import is_compiling
from torch.jit import is_tracing
from torch.nn.functional import dropout as _dropout

from . import _cudnn, _ops, plan, reference

__all__ = ["gru", "gru_cell", "lstm", "lstm_cell", "rnn", "rnn_cell"]

State = tuple[Tensor, ...]  # h0, or h0 and c0

# One layer, all its directions: (x, state, weights, batch_sizes, save_for_backward) -> (output, *final_state)
Layer = Callable[[Tensor, State, Sequence[Tensor], Tensor | None, bool], tuple[Tensor, ...]]

_NATIVE: dict[str, Layer] = {
    "lstm": lambda x, s, w, sizes, save: _call(_ops.lstm, save, x, s[0], s[1], w, sizes, save)[:3],
    "gru": lambda x, s, w, sizes, save: _call(_ops.gru, save, x, s[0], w, sizes, save)[:2],
    "tanh": lambda x, s, w, sizes, save: _call(_ops.rnn, save, x, s[0], w, "tanh", sizes),
    "relu": lambda x, s, w, sizes, save: _call(_ops.rnn, save, x, s[0], w, "relu", sizes),
}
_REFERENCE: dict[str, Layer] = {
    "lstm": lambda x, s, w, sizes, save: reference.lstm(x, s[0], s[1], w, sizes),
    "gru": lambda x, s, w, sizes, save: reference.gru(x, s[0], w, sizes),
    "tanh": lambda x, s, w, sizes, save: reference.rnn(x, s[0], w, "tanh", sizes),
    "relu": lambda x, s, w, sizes, save: reference.rnn(x, s[0], w, "relu", sizes),
}


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
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """A stack of LSTM layers.

    With D = 2 directions if `bidirectional`, else 1, and L = `num_layers`:

    Args:
        x: [T, B, I]; [B, T, I] with `batch_first`; or [rows, I], the data of a PackedSequence, with
            `batch_sizes`.
        hx: `(h0, c0)`, each [L*D, B, H]. With a projection to P features, h0 is [L*D, B, P].
        weights: In the order of `torch.nn.LSTM`: for each layer, for each direction, w_ih [4H, I], w_hh [4H,
            H], then with `bias` b_ih [4H] and b_hh [4H], then with a projection w_hr [P, H]. Layers after the
            first have I = D*H (or D*P). Gate order i, f, g, o.
        batch_sizes: Sequences that have each time step, int64 [T] on the CPU, as in a PackedSequence.
        dropout: Probability of zeroing an element of each layer's output but the last, while `training`.
        backend: "native" runs the kernels or raises; "reference" runs plain torch; "auto" runs the kernels
            where they can run, else plain torch. `seqkernels.explain` says which and why.

    Returns:
        `(output, h_n, c_n)`: output [T, B, D*H] (with `batch_first` a [B, T, D*H] view of it; or [rows,
        D*H]), h_n and c_n shaped like h0 and c0. The dtype is that of `x`, or under autocast that of
        autocast.

    Raises:
        ValueError: An unknown `backend`.
        RuntimeError: T = 0, sizes, dtypes or devices that do not fit together, or with `backend="native"`
            every reason why the kernels cannot run.

    Example:
        >>> x, h0, c0 = torch.randn(5, 3, 8), torch.zeros(1, 3, 16), torch.zeros(1, 3, 16)
        >>> weights = [torch.randn(64, 8), torch.randn(64, 16), torch.randn(64), torch.randn(64)]
        >>> output, h_n, c_n = seqkernels.functional.lstm(x, (h0, c0), weights)
        >>> output.shape
        torch.Size([5, 3, 16])
    """
    args = (batch_sizes, bias, num_layers, dropout, training, bidirectional, batch_first, backend)
    return _stack("lstm", x, tuple(hx), weights, *args)  # type: ignore[return-value]


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
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """A stack of GRU layers: `(output, h_n)`.

    As `lstm`, with h0 [L*D, B, H], weights of 3H rows in the gate order r, z, n, and no projection. Under
    autocast on a CPU, the output has the wider dtype of autocast's and h0's, as in torch.

    Example:
        >>> weights = [torch.randn(48, 8), torch.randn(48, 16), torch.randn(48), torch.randn(48)]
        >>> output, h_n = seqkernels.functional.gru(torch.randn(5, 3, 8), torch.zeros(1, 3, 16), weights)
        >>> output.shape
        torch.Size([5, 3, 16])
    """
    args = (batch_sizes, bias, num_layers, dropout, training, bidirectional, batch_first, backend)
    return _stack("gru", x, (h0,), weights, *args)  # type: ignore[return-value]


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
    _check_nonlinearity(nonlinearity)
    args = (batch_sizes, bias, num_layers, dropout, training, bidirectional, batch_first, backend)
    return _stack(nonlinearity, x, (h0,), weights, *args)  # type: ignore[return-value]


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
    return _cell("lstm", x, tuple(hx), w_ih, w_hh, b_ih, b_hh, backend)  # type: ignore[return-value]


def gru_cell(
    x: Tensor,
    h: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    *,
    backend: str = "auto",
) -> Tensor:
    """One step of a GRU: the new h. As `lstm_cell`, with weights of 3H rows in the gate order r, z, n.

    Example:
        >>> x, h = torch.randn(3, 8), torch.zeros(3, 16)
        >>> seqkernels.functional.gru_cell(x, h, torch.randn(48, 8), torch.randn(48, 16)).shape
        torch.Size([3, 16])
    """
    return _cell("gru", x, (h,), w_ih, w_hh, b_ih, b_hh, backend)[0]


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
    _check_nonlinearity(nonlinearity)
    return _cell(nonlinearity, x, (h,), w_ih, w_hh, b_ih, b_hh, backend)[0]


def _stack(
    cell: str,
    x: Tensor,
    state: State,
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    bias: bool,
    num_layers: int,
    dropout: float,
    training: bool,
    bidirectional: bool,
    batch_first: bool,
    backend: str,
) -> tuple[Tensor, ...]:
    """Layer after layer: `(output, *final_state)`. Takes the place of `torch._VF.lstm` and its like."""
    if _autocast(x):
        args = (batch_sizes, bias, num_layers, dropout, training, bidirectional, batch_first, backend)
        return _with_autocast(_stack, cell, x, state, weights, *args)
    if batch_sizes is not None:
        batch_first = False
    elif not is_tracing() and x.size(1 if batch_first else 0) == 0:
        raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
    if batch_first:
        x = x.transpose(0, 1)

    directions = 2 if bidirectional else 1
    per_layer = len(weights) // num_layers
    projection = per_layer > (4 if bias else 2) * directions
    layer = _layer(cell, x, state, weights, projection, backend)
    if layer is not _NATIVE[cell]:
        _check_devices(x, state, weights)
    elif (
        backend == "auto"
        and x.is_cuda
        and not is_compiling()
        and _cudnn_runs(cell, x, state, weights, batch_sizes, num_layers, directions)
    ):
        output, *finals = _cudnn.run(cell, x, state, weights, bidirectional)
        return (output.transpose(0, 1) if batch_first else output, *finals)
    if num_layers == 1:
        output, *finals = layer(x, state, weights, batch_sizes, _needs_grad(x, state, weights))
    else:
        output, layers = x, []
        for n in range(num_layers):
            if n > 0 and training and dropout > 0:
                output = _dropout(output, dropout, True)
            states = tuple(s[n * directions : (n + 1) * directions] for s in state)
            own = weights[n * per_layer : (n + 1) * per_layer]
            output, *final = layer(output, states, own, batch_sizes, _needs_grad(output, states, own))
            layers.append(final)
        finals = [torch.cat(f) for f in zip(*layers, strict=True)]
    return (output.transpose(0, 1) if batch_first else output, *finals)


def _cudnn_runs(
    cell: str,
    x: Tensor,
    state: State,
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    num_layers: int,
    directions: int,
) -> bool:
    """Whether this is handed to cuDNN, of what the kernels take."""
    if batch_sizes is not None or num_layers != 1 or not _cudnn.takes(cell, x, state, weights):
        _cudnn.refuse()
        return False
    sizes = x.size(0), x.size(1), state[0].size(2)
    return _cudnn.is_faster(cell, x.dtype, _ops.tf32_allowed(), *sizes, directions)


def _cell(
    cell: str,
    x: Tensor,  # [B, I]
    state: State,  # each [B, H]
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    backend: str,
) -> State:
    """One step: a layer of one direction with T = 1. In place of `torch._VF.lstm_cell` and its like."""
    if _autocast(x):
        return _with_autocast(_cell, cell, x, state, w_ih, w_hh, b_ih, b_hh, backend)
    _check_cell(x, state, w_ih, w_hh)
    weights = [w_ih, w_hh]
    if b_ih is not None and b_hh is not None:
        weights = [w_ih, w_hh, b_ih, b_hh]
    elif b_ih is not None or b_hh is not None:
        raise RuntimeError("b_ih and b_hh are given together or not at all")
    layer = _layer(cell, x, state, weights, False, backend)
    save = _needs_grad(x, state, weights)
    _, *finals = layer(x.unsqueeze(0), tuple([s.unsqueeze(0) for s in state]), weights, None, save)
    return tuple([s.squeeze(0) for s in finals])


def _layer(
    cell: str, x: Tensor, state: State, weights: Sequence[Tensor], projection: bool, backend: str
) -> Layer:
    """The implementation that runs this input."""
    if backend not in plan.BACKENDS:
        plan.check_backend(backend)
    if backend != "reference" and plan.takes(x, state, weights, projection):
        return _NATIVE[cell]
    if backend == "native":
        reasons = plan.obstacles(x, state, weights, projection)
        raise RuntimeError("backend='native' cannot run this because of\n  - " + "\n  - ".join(reasons))
    return _REFERENCE[cell]


def _needs_grad(x: Tensor, state: State, weights: Sequence[Tensor]) -> bool:
    """Whether the forward op keeps what its derivative reads; a traced program always does."""
    if not torch.is_grad_enabled():
        return is_tracing()
    if weights[0].requires_grad or x.requires_grad:
        return True
    return is_tracing() or any(t.requires_grad for t in (*state, *weights))


def _call(op: torch._ops.OpOverload, save: bool, *args: object) -> tuple[Tensor, ...]:
    """Run the op the shortest way: tracers see the dispatcher's, but there autograd in Python is slow."""
    if is_compiling() or is_tracing():
        return op(*args)
    if save:
        return _ops.differentiable[op](*args)
    with _AutoDispatchBelowAutograd():
        return op(*args)


def _autocast(x: Tensor) -> bool:
    if not _is_any_autocast_enabled():
        return False
    device_type = x.device.type
    return torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)


def _with_autocast(
    run: Callable[..., tuple[Tensor, ...]], cell: str, x: Tensor, state: State, *args: object
) -> tuple[Tensor, ...]:
    """`run` on arguments cast once, as a whole; every backend then computes the same.

    On a CPU torch runs some of these step by step, and there the state that a step multiplies and adds, h of
    a GRU and c of an LSTMCell, keeps its dtype, which the result then takes by promotion. So it does here.
    """
    device_type = x.device.type
    dtype = torch.get_autocast_dtype(device_type)
    with torch.autocast(device_type, enabled=False):
        result = run(cell, *_ops.cast((x, state, *args), device_type, dtype))
    if device_type == "cpu" and (cell == "gru" or (cell == "lstm" and run is _cell)):
        wide = torch.promote_types(result[-1].dtype, state[-1].dtype)
        result = tuple([t.to(wide) for t in result])
    return result


def _check_devices(x: Tensor, state: State, weights: Sequence[Tensor]) -> None:
    for what, tensors in (("hidden", state), ("parameter", weights)):
        for t in tensors:
            if t.device != x.device:
                raise RuntimeError(
                    f"Input and {what} tensors are not at the same device, "
                    f"found input tensor at {x.device} and {what} tensor at {t.device}"
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


def _check_nonlinearity(nonlinearity: str) -> None:
    if nonlinearity not in ("tanh", "relu"):
        raise ValueError(f"nonlinearity must be 'tanh' or 'relu', got {nonlinearity!r}")
