"""What a call of a recurrent layer is, beside its input, its states and its weights."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .cells import CELLS, Cell

__all__ = ["LayerSpec"]


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

    @property
    def directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def info(self) -> Cell:
        return CELLS[self.cell]

    @property
    def of_op(self) -> tuple[Tensor | None, ...]:
        """The optional tensors that an op takes, in the order of its schema (csrc/layer_ops.cpp)."""
        return (self.batch_sizes,)
