"""What a call of a recurrent layer is, beside its input, its states and its weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .cells import CELLS, Cell

__all__ = ["NORMS", "LayerSpec", "cell_of", "check_nonlinearity", "check_norm_eps"]

# The cells of each kind, by `norm`.
NORMS: dict[str, dict[str | None, str]] = {
    "lstm": {None: "lstm", "layer": "lstm_layer_norm", "layer-joint": "lstm_layer_norm_joint"},
    "gru": {None: "gru", "layer": "gru_layer_norm"},
}


@dataclass(frozen=True)
class LayerSpec:
    """The options of a stack of layers, and the optional tensors of one call.

    It goes as a whole from a module or a function to whatever runs the call; only who reads a field names it.
    Its twin in C++, of what one layer's op gets, is `LayerSpec` in csrc/layer.h.

    Attributes:
        cell: The name of a cell in `seqkernels.cells.CELLS`.
        num_layers, bias, bidirectional, batch_first, dropout, training: As in torch.nn.
        backend: "auto", "native" or "reference"; see `seqkernels.functional.lstm`.
        batch_sizes: Of a packed sequence; int64 [T], on the CPU.
        reset_mask: Where states start anew; bool, the shape of x without its last dimension.
        norm_eps: Of a normalised cell, what is added to variances.
    """

    cell: str
    num_layers: int = 1
    bias: bool = True
    bidirectional: bool = False
    batch_first: bool = False
    dropout: float = 0.0
    training: bool = False
    backend: str = "auto"
    batch_sizes: Tensor | None = None
    reset_mask: Tensor | None = None
    norm_eps: float = 1e-5

    @property
    def directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def info(self) -> Cell:
        return CELLS[self.cell]

    @property
    def of_op(self) -> tuple[Any, ...]:
        """The options that an op takes, in the order of its schema (csrc/layer_ops.cpp)."""
        return (self.batch_sizes, self.norm_eps) if self.info.is_normalized else (self.batch_sizes,)


def cell_of(kind: str, norm: str | None, reset_after: bool = True) -> str:
    """The name of the cell that an "lstm" or "gru" with these options is.

    Raises:
        ValueError: A `norm` that there is not, or not with the other option.
    """
    norms = NORMS[kind]
    if norm not in list(norms):  # which need not be hashable
        raise ValueError(f"norm must be one of {', '.join(map(repr, norms))}, got {norm!r}")
    if norm and not reset_after:
        raise ValueError(f"norm={norm!r} needs reset_after=True: the reset gate acts on a normalised product")
    return norms[norm] if reset_after else "gru_reset_before"


def check_norm_eps(norm_eps: Any) -> float:
    """`norm_eps` as a float, or an error."""
    if isinstance(norm_eps, bool) or not isinstance(norm_eps, (int, float)):
        raise TypeError(f"norm_eps must be a number, got {type(norm_eps).__name__}")
    if not norm_eps >= 0:
        raise ValueError(f"norm_eps must be at least 0, got {norm_eps}")
    return float(norm_eps)


def check_nonlinearity(nonlinearity: str) -> None:
    """An error for what no RNN has."""
    if nonlinearity not in ("tanh", "relu"):
        raise ValueError(f"nonlinearity must be 'tanh' or 'relu', got {nonlinearity!r}")
