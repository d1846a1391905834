"""The cells that this build knows, as csrc/cells/registry.h lists them."""

from __future__ import annotations

from dataclasses import dataclass

from ._extension import _C

__all__ = ["CELLS", "RNN_MODES", "WEIGHTS", "Cell"]

# Of a layer's direction and of a Cell, in the order that every function and op takes them in.
WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


@dataclass(frozen=True)
class Cell:
    """What is the same for every layer of a cell.

    Attributes:
        name: Its name everywhere: "lstm", "lstm_projected", "gru", "gru_reset_before", "rnn_tanh" or
            "rnn_relu".
        gates: Blocks of H rows in w_ih and w_hh.
        saved: Values per hidden unit and step that forward saves for backward.
        has_cell_state: Whether the state has a second part, c.
        stages: Products of a step, one after another.
        is_projected: Whether h is a projection, of a size P of its own, and a direction has a weight w_hr.
    """

    name: str
    gates: int
    saved: int
    has_cell_state: bool
    stages: int = 1
    is_projected: bool = False

    @property
    def states(self) -> int:
        """How many parts the state has: h, or h and c."""
        return 2 if self.has_cell_state else 1


# What torch's RNN has as `mode`.
RNN_MODES = {"RNN_TANH": "rnn_tanh", "RNN_RELU": "rnn_relu"}

CELLS = {str(cell["name"]): Cell(**cell) for cell in _C.cells()}
