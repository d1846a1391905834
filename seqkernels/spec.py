"""What a call of a recurrent layer is, beside its input, its states and its weights."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from .cells import CELLS, Cell

__all__ = ["NORMS", "LayerSpec", "Masks", "cell_of", "check_nonlinearity", "check_norm_eps"]

# The cells of each kind, by `norm`.
NORMS: dict[str, dict[str | None, str]] = {
    "lstm": {None: "lstm", "layer": "lstm_layer_norm", "layer-joint": "lstm_layer_norm_joint"},
    "gru": {None: "gru", "layer": "gru_layer_norm"},
}


class Masks(NamedTuple):
    """Random masks of one layer, None where there is none.

    Attributes:
        recurrent: Factors of h where it meets W_hh, [D, B, P].
        zoneout_h, zoneout_c: Which units keep the value before a step; bool, the shapes of the output and of
            the cell states.
    """

    recurrent: Tensor | None = None
    zoneout_h: Tensor | None = None
    zoneout_c: Tensor | None = None


NO_MASKS = Masks()


class LayerSpec(NamedTuple):
    """The options of a stack of layers, and the optional tensors of one call.

    It goes as a whole from a module or a function to whatever runs the call; only who reads a field names it.
    Its twin in C++, of what one layer's op gets, is `LayerSpec` in csrc/layer.h.

    Attributes:
        cell: The name of a cell in `seqkernels.cells.CELLS`.
        num_layers, bias, bidirectional, batch_first, dropout, training: As in torch.nn.
        backend: "auto", "native" or "reference"; see `seqkernels.functional.lstm`.
        batch_sizes: Of a packed sequence; int64 [T], on the CPU.
        reverse: Whether the only direction goes from the last step to the first.
        lengths: Of padded sequences; int64 [B], on the device of x.
        reset_mask: Where states start anew; bool, the shape of x without its last dimension.
        recurrent_dropout, zoneout_h, zoneout_c, weight_dropout: Probabilities; see `seqkernels.FusedLSTM`.
        return_cell_states: Whether c of every step of the last layer is a result, too.
        recompute: Whether backward computes once more what it needs; see `recompute.py`.
        norm_eps: Of a normalised cell, what is added to variances.
        masks: What is drawn for one layer of the probabilities above.
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
    lengths: Tensor | None = None
    reset_mask: Tensor | None = None
    recurrent_dropout: float = 0.0
    zoneout_h: float = 0.0
    zoneout_c: float = 0.0
    weight_dropout: float = 0.0
    return_cell_states: bool = False
    norm_eps: float = 1e-5
    recompute: bool = False
    reverse: bool = False
    masks: Masks = NO_MASKS

    @property
    def directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def info(self) -> Cell:
        return CELLS[self.cell]

    @property
    def of_op(self) -> tuple[Any, ...]:
        """The options that an op takes, in the order of its schema (csrc/layer_ops.cpp)."""
        info, (recurrent, zoneout_h, zoneout_c), training = self.info, self.masks, self.training
        options: tuple[Any, ...] = (
            *(self.batch_sizes, self.reverse, self.lengths, self.reset_mask, recurrent),
            *(zoneout_h, 0.0 if training else self.zoneout_h),
        )
        if info.has_cell_state:
            options += (zoneout_c, 0.0 if training else self.zoneout_c, self.return_cell_states)
        return (*options, self.norm_eps) if info.is_normalized else options

    @property
    def draws(self) -> bool:
        """Whether masks are to be drawn for each layer."""
        return self.training and (
            self.recurrent_dropout > 0 or self.zoneout_h > 0 or self.zoneout_c > 0 or self.weight_dropout > 0
        )

    @property
    def beyond_torch(self) -> list[str]:
        """The options of this call, by their names, that what torch.nn runs does not have."""
        asked = {
            "lengths": self.lengths is not None,
            "reset_mask": self.reset_mask is not None,
            "recurrent_dropout": self.training and self.recurrent_dropout > 0,
            "zoneout": self.zoneout_h > 0 or self.zoneout_c > 0,
            "weight_dropout": self.training and self.weight_dropout > 0,
            "return_cell_states": self.return_cell_states,
        }
        return [name for name, is_asked in asked.items() if is_asked]

    @property
    def has_transition(self) -> bool:
        """Whether anything happens to states between steps, or c of every step is asked for."""
        return any(name != "weight_dropout" for name in self.beyond_torch)


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
