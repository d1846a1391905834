"""Layers as operators of ONNX, while torch captures a model for it: `torch.onnx.export(dynamo=True)`.

An LSTM, GRU or RNN of ONNX (https://onnx.ai/onnx/operators/onnx__LSTM.html and its neighbours) is one layer,
with all its directions. `layer` puts it into the graph that torch captures. `seqkernels.onnx` builds on it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor
from torch.compiler import is_compiling
from torch.jit import is_tracing

from . import _torch_compat as compat
from .cells import CELLS
from .spec import NORMS, LayerSpec


class Operator(NamedTuple):
    """What ONNX has for a cell.

    Attributes:
        name: Of the operator.
        gates: For each of its blocks of H rows, which of ours it is.
        attributes: Beside its sizes and direction.
        activations: For one direction, where they are not its default.
    """

    name: str
    gates: tuple[int, ...]
    attributes: Mapping[str, int] = MappingProxyType({})
    activations: tuple[str, ...] = ()

    def attributes_of(self, hidden_size: int, directions: int, reverse: bool) -> dict[str, Any]:
        """All attributes of a node."""
        direction = "bidirectional" if directions == 2 else "reverse" if reverse else "forward"
        found: dict[str, Any] = {"hidden_size": hidden_size, "direction": direction, **self.attributes}
        if self.activations:
            found["activations"] = list(self.activations * directions)
        return found


# i f g o as i o f c, and r z n as z r h.
OPERATORS = {
    "lstm": Operator("LSTM", (0, 3, 1, 2)),
    "gru": Operator("GRU", (1, 0, 2), {"linear_before_reset": 1}),
    "gru_reset_before": Operator("GRU", (1, 0, 2), {"linear_before_reset": 0}),
    "rnn_tanh": Operator("RNN", (0,), activations=("Tanh",)),
    "rnn_relu": Operator("RNN", (0,), activations=("Relu",)),
}


class NotInONNX(RuntimeError):
    """What ONNX has no operator for."""


def is_capturing() -> bool:
    """Whether torch captures a model for ONNX, other than by tracing it as before `dynamo=True`."""
    return is_compiling() and not is_tracing() and compat.in_onnx_export()


def check(
    cell: str, asked: Sequence[str] = (), *, packed: bool = False, random: str | None = None
) -> Operator:
    """The operator of a cell, or an error that names what ONNX lacks of a call, and the way out."""
    if random:
        raise NotInONNX(
            f"{cell} with {random} in training cannot be exported to ONNX, whose operators draw no masks; "
            "call eval() of the model before"
        )
    if packed:
        raise NotInONNX(
            f"{cell} with a PackedSequence cannot be exported to ONNX as one operator; call it with padded "
            "input and lengths, which computes the same"
        )
    if cell not in OPERATORS or asked:
        refuse(cell, *asked)
    return OPERATORS[cell]


def refuse(cell: str, *asked: str) -> NoReturn:
    """An error for what becomes the operators of single steps at best."""
    raise NotInONNX(
        f"{' with '.join([_named(cell), *asked[:1]])} cannot be exported to ONNX as one operator; with "
        "backend='reference' it becomes the operators of as many steps as the example has"
    )


def _named(cell: str) -> str:
    """A cell by the options of a module that has it."""
    if CELLS[cell].is_projected:
        return "lstm with proj_size"
    for kind, cells in NORMS.items():
        for norm, name in cells.items():
            if name == cell and norm:
                return f"{kind} with norm={norm!r}"
    return cell


def check_call(spec: LayerSpec, x: Tensor, state: Sequence[Tensor], weights: Sequence[Tensor]) -> None:
    """An error for a call of layers that no operators say. Arguments as those of the ops.

    Nobody runs what is captured, so that sizes that do not fit are found here or nowhere.
    """
    random: list[str] = [
        name for name in ("recurrent_dropout", "zoneout", "weight_dropout") if name in spec.beyond_torch
    ]
    if spec.training and spec.num_layers > 1 and spec.dropout > 0:
        random.append("dropout")
    if compat.transforms_active():
        raise NotInONNX(
            f"{spec.cell} under torch.vmap or another transform of torch.func cannot be exported to ONNX; "
            "for vmap, make its dimension part of the batch"
        )
    asked = [name for name in spec.beyond_torch if name != "lengths"]
    check(
        spec.cell,
        asked,
        packed=spec.batch_sizes is not None,
        random=random[0] if spec.training and random else None,
    )
    dtypes = {t.dtype: None for t in (x, *state, *weights)}
    if len(dtypes) > 1:
        found = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise NotInONNX(f"operators of ONNX take input, states and weights of one dtype, got {found}")
    _check_sizes(spec, x, state, weights)


def _check_sizes(spec: LayerSpec, x: Tensor, state: Sequence[Tensor], weights: Sequence[Tensor]) -> None:
    """Those of the first layer and of the states."""
    w_ih, w_hh = weights[:2]
    hidden, batch = w_hh.size(1), x.size(-2)
    gates = len(OPERATORS[spec.cell].gates)
    expected = {"w_ih": (w_ih, (gates * hidden, x.size(-1))), "w_hh": (w_hh, (gates * hidden, hidden))}
    for name, s in zip(("h0", "c0"), state, strict=False):
        expected[name] = s, (*s.shape[:-2], batch, hidden)
    for name, (t, shape) in expected.items():
        if t.shape != shape:
            raise RuntimeError(f"{name} must have size {list(shape)}, got {list(t.shape)}")


def layer(
    spec: LayerSpec, x: Tensor, state: Sequence[Tensor], weights: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """One layer, all its directions, in the graph that torch captures; arguments and results as those of ops.

    ONNX does not say what a final state is after no step, and ONNX Runtime has zeros: here that is in the
    graph. Outputs beyond `sequence_lens` are zeros in ONNX Runtime, as they are here.
    """
    operator = OPERATORS[spec.cell]
    directions, per_direction = spec.directions, len(weights) // spec.directions
    hidden = weights[1].size(1)  # no size of an input, which may be a symbol
    w, r, *b = (
        _ordered(torch.stack(tuple(weights[kind::per_direction])), operator, hidden)
        for kind in range(per_direction)
    )
    bias = torch.cat(b, 1) if b else None
    lengths = None if spec.lengths is None else spec.lengths.to(torch.int32)
    inputs = (x, w, r, bias, lengths, *state)
    results = torch.onnx.ops.symbolic_multi_out(
        operator.name,
        inputs,
        operator.attributes_of(hidden, directions, spec.reverse),
        dtypes=[x.dtype] * (1 + len(state)),
        shapes=[(*x.shape[:1], directions, *x.shape[1:2], hidden), *[tuple(s.shape) for s in state]],
    )
    y, *finals = [t.to(x.device) for t in results]  # what torch has of them in the meantime is on the CPU
    output = y.squeeze(1) if directions == 1 else y.transpose(1, 2).flatten(2)
    if spec.lengths is not None:
        empty = (spec.lengths == 0).unsqueeze(1)
        finals = [torch.where(empty, s, final) for s, final in zip(state, finals, strict=True)]
    return output, *finals


def _ordered(weight: Tensor, operator: Operator, hidden: int) -> Tensor:
    """Weights [D, G*H, ...] or biases [D, G*H] with their blocks in the order of ONNX."""
    if len(operator.gates) == 1:
        return weight
    return torch.cat([weight.narrow(1, gate * hidden, hidden) for gate in operator.gates], 1)
