"""What `--cell` and `--backend` choose from."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

import seqkernels

from .errors import InputError

__all__ = ["BACKENDS", "CELLS", "SHARED_CELLS", "check", "maker", "recurrent"]

_LAYERS: dict[str, dict[str, Callable[..., torch.nn.RNNBase]]] = {
    "fused": {
        "lstm": seqkernels.FusedLSTM,
        "gru": seqkernels.FusedGRU,
        "gru-before": partial(seqkernels.FusedGRU, reset_after=False),
        "rnn": seqkernels.FusedRNN,
    },
    "torch": {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "rnn": torch.nn.RNN},
}
BACKENDS, CELLS = tuple(_LAYERS), tuple(_LAYERS["fused"])
SHARED_CELLS = tuple(_LAYERS["torch"])  # those that every backend has


def check(cell: str, backend: str) -> None:
    """Refuse a cell that the backend, or one of "both", does not have.

    A torch.nn.GRU in place of "gru-before" would load its parameters and compute something else with them.

    Raises:
        InputError: It does not.
    """
    if backend != "fused" and cell not in SHARED_CELLS:
        raise InputError("--backend", None, f"fused for {cell}, which torch.nn does not have", backend)


def maker(cell: str, backend: str = "fused") -> Callable[..., torch.nn.RNNBase]:
    """What makes a recurrent layer, from the arguments of torch.nn's.

    Args:
        cell: One of CELLS: "lstm", "gru", "rnn", or "gru-before", the GRU whose reset gate comes before the
            product, which only "fused" has.
        backend: "fused" or "torch".

    Raises:
        InputError: The backend does not have the cell.
    """
    check(cell, backend)
    return _LAYERS[backend][cell]


def recurrent(
    cell: str, input_size: int, hidden_size: int, *, backend: str = "fused", **kwargs: Any
) -> torch.nn.RNNBase:
    """A recurrent layer of seqkernels or torch.nn; each loads the other's `state_dict`.

    Example:
        >>> recurrent("gru", 8, 16, backend="torch", batch_first=True)
        GRU(8, 16, batch_first=True)
        >>> recurrent("gru", 8, 16, batch_first=True)
        FusedGRU(8, 16, batch_first=True)
        >>> recurrent("gru-before", 8, 16)
        FusedGRU(8, 16, reset_after=False)
    """
    return maker(cell, backend)(input_size, hidden_size, **kwargs)
