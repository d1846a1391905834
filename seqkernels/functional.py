"""Recurrent layers and cells as functions of their weights.

What `torch.nn` computes for the same arguments: a stack of layers, one after another, dropout between them
with torch's generator. The modules of this package are built on these functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .regularization import check_probability, zoneout_pair
from .spec import LayerSpec, cell_of, check_nonlinearity, check_norm_eps
from .stack import State, run, run_cell

__all__ = ["gru", "gru_cell", "lstm", "lstm_cell", "rnn", "rnn_cell"]


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
    lengths: Tensor | None = None,
    recurrent_dropout: float = 0.0,
    zoneout: float | tuple[float, float] = 0.0,
    weight_dropout: float = 0.0,
    recompute: bool = False,
    return_cell_states: bool = False,
    norm: str | None = None,
    norm_eps: float = 1e-5,
    backend: str = "auto",
) -> tuple[Tensor, ...]:
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
        lengths: Of padded sequences, integers [B]. See `seqkernels.FusedLSTM`.
        recurrent_dropout, zoneout, weight_dropout: Probabilities; zoneout of h and c, or a pair of them. See
            `seqkernels.FusedLSTM`.
        recompute: Whether backward computes once more what forward would have saved for it.
        return_cell_states: Whether c of every step of the last layer is a result, too.
        norm, norm_eps: None, "layer" or "layer-joint", and what is added to variances; see
            `seqkernels.FusedLSTM`.
        backend: "native" runs the kernels or raises; "reference" runs plain torch, step by step; "auto" runs
            the kernels where they can run, else what torch.nn runs. `seqkernels.explain` says which and why.

    Returns:
        `(output, h_n, c_n)`: output [T, B, D*H] (with `batch_first` a [B, T, D*H] view of it; or [rows,
        D*H]), h_n and c_n shaped like h0 and c0. The dtype is that of `x`, or under autocast that of
        autocast. With `return_cell_states` also the cell states, [T, B, D*H] as the output.

    Raises:
        ValueError: An unknown `backend` or `norm`, a negative `norm_eps`, a probability that is none, or
            `reset_mask` or `lengths` of another shape.
        TypeError: A `reset_mask` that is no bool tensor, `lengths` that are no integers, a `norm_eps` or
            probability that is no number.
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
    zoneout_h, zoneout_c = zoneout_pair(zoneout, has_cell_state=True)
    spec = LayerSpec(
        cell_of("lstm", norm),
        *(num_layers, bias, bidirectional, batch_first, dropout, training, backend, batch_sizes, lengths),
        *(reset_mask, check_probability("recurrent_dropout", recurrent_dropout), zoneout_h, zoneout_c),
        weight_dropout=check_probability("weight_dropout", weight_dropout),
        return_cell_states=return_cell_states,
        recompute=recompute,
        norm_eps=check_norm_eps(norm_eps),
    )
    if norm is None and len(weights) == num_layers * spec.directions * (5 if bias else 3):
        spec = spec._replace(cell="lstm_projected")
    return run(spec, x, _pair(hx), weights)


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
    lengths: Tensor | None = None,
    recurrent_dropout: float = 0.0,
    zoneout: float = 0.0,
    weight_dropout: float = 0.0,
    recompute: bool = False,
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
    spec = LayerSpec(
        cell_of("gru", norm, reset_after),
        *(num_layers, bias, bidirectional, batch_first, dropout, training, backend, batch_sizes, lengths),
        *(reset_mask, check_probability("recurrent_dropout", recurrent_dropout)),
        *zoneout_pair(zoneout, has_cell_state=False),
        check_probability("weight_dropout", weight_dropout),
        norm_eps=check_norm_eps(norm_eps),
        recompute=recompute,
    )
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
    lengths: Tensor | None = None,
    recurrent_dropout: float = 0.0,
    zoneout: float = 0.0,
    weight_dropout: float = 0.0,
    recompute: bool = False,
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
    spec = LayerSpec(
        f"rnn_{nonlinearity}",
        *(num_layers, bias, bidirectional, batch_first, dropout, training, backend, batch_sizes, lengths),
        *(reset_mask, check_probability("recurrent_dropout", recurrent_dropout)),
        *zoneout_pair(zoneout, has_cell_state=False),
        check_probability("weight_dropout", weight_dropout),
        recompute=recompute,
    )
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


def _pair(hx: Any) -> State:
    if not isinstance(hx, (tuple, list)) or len(hx) != 2:
        got = f"{len(hx)} tensors" if isinstance(hx, (tuple, list)) else type(hx).__name__
        raise RuntimeError(f"hx must be a pair of tensors (h, c), got {got}")
    return tuple(hx)
