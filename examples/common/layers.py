"""What `--cell` and `--backend` choose from."""

from __future__ import annotations

from typing import Any

import torch

import seqkernels

__all__ = ["BACKENDS", "CELLS", "layer_class", "recurrent"]

_LAYERS: dict[str, dict[str, type[torch.nn.RNNBase]]] = {
    "fused": {"lstm": seqkernels.FusedLSTM, "gru": seqkernels.FusedGRU, "rnn": seqkernels.FusedRNN},
    "torch": {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "rnn": torch.nn.RNN},
}
BACKENDS, CELLS = tuple(_LAYERS), tuple(_LAYERS["fused"])


def layer_class(cell: str, backend: str = "fused") -> type[torch.nn.RNNBase]:
    """The class of a recurrent layer: `cell` is "lstm", "gru" or "rnn", `backend` is "fused" or "torch"."""
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
    """
    return layer_class(cell, backend)(input_size, hidden_size, **kwargs)  # type: ignore[arg-type]
