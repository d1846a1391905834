"""The cells that this build knows, as csrc/cells/registry.h lists them."""

from __future__ import annotations

from dataclasses import dataclass

from ._extension import _C

__all__ = ["CELLS", "PARAMETERS", "RNN_MODES", "WEIGHTS", "Cell"]

# Of a layer's direction and of a Cell, in the order that every function and op takes them in.
WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
# How modules name the weights that some cells have beside these, by their names in the ops.
PARAMETERS = {
    "w_hr": "weight_hr",
    "norm_ih": "norm_ih_weight",
    "norm_hh": "norm_hh_weight",
    "norm_c": "norm_c_weight",
    "norm_c_bias": "norm_c_bias",
}


@dataclass(frozen=True)
class Cell:
    """What is the same for every layer of a cell.

    Attributes:
        name: Its name everywhere: "lstm", "lstm_projected", "lstm_layer_norm", "lstm_layer_norm_joint",
            "gru", "gru_reset_before", "gru_layer_norm", "rnn_tanh" or "rnn_relu".
        gates: Blocks of H rows in w_ih and w_hh.
        saved: Values per hidden unit and step that forward saves for backward.
        has_cell_state: Whether the state has a second part, c.
        stages: Products of a step, one after another.
        is_projected: Whether h is a projection, of a size P of its own, and a direction has a weight w_hr.
        norms: Numbers per step and sequence that forward saves of its layer normalisation; 0 without one.
        extra_weights: Weights of a direction after w_ih, w_hh and the biases, as the ops name them.
    """

    name: str
    gates: int
    saved: int
    has_cell_state: bool
    stages: int = 1
    is_projected: bool = False
    norms: int = 0
    extra_weights: tuple[str, ...] = ()

    @property
    def is_normalized(self) -> bool:
        """Whether gates are normalised, and the op has an argument `norm_eps`."""
        return self.norms > 0

    @property
    def results(self) -> int:
        """Results of its op that have gradients: the output, the final states, and of c the cell states."""
        return 1 + self.states + self.has_cell_state

    @property
    def options(self) -> tuple[str, ...]:
        """What its op takes beside tensors that have gradients, in the order of its schema."""
        names = ["batch_sizes", "reverse", "lengths", "reset_mask", "recurrent_mask"]
        names += ["zoneout_h", "zoneout_h_rate"]
        if self.has_cell_state:
            names += ["zoneout_c", "zoneout_c_rate", "return_cell_states"]
        return tuple(names + ["norm_eps"] * self.is_normalized)

    def weights(self, bias: bool) -> int:
        """How many weights a direction has."""
        return (4 if bias else 2) + len(self.extra_weights)

    @property
    def states(self) -> int:
        """How many parts the state has: h, or h and c."""
        return 2 if self.has_cell_state else 1


# What torch's RNN has as `mode`.
RNN_MODES = {"RNN_TANH": "rnn_tanh", "RNN_RELU": "rnn_relu"}

CELLS = {str(cell["name"]): Cell(**cell) for cell in _C.cells()}
