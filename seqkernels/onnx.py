"""Export to ONNX: a fused layer becomes one LSTM, GRU or RNN of ONNX, for sequences of any length.

    >>> program = seqkernels.onnx.export(model, x)  # and program.save("model.onnx"), or a path here

It needs onnx and onnxscript (`pip install "seqkernels[onnx]"`), which are imported when they are used.
docs/guide/onnx.md says what of these layers ONNX can say, and what it cannot.
"""

from __future__ import annotations

import importlib
import itertools
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from . import _onnx
from . import _torch_compat as compat
from ._ops import OPS
from .frozen import Frozen

__all__ = ["export", "translation_table"]

# Where a node of a recurrent operator has its weights, with a letter for each; and its initial states.
WEIGHTS, STATES = {1: "W", 2: "R", 3: "B"}, (5, 6)
RECURRENT = {operator.name for operator in _onnx.OPERATORS.values()}


def export(
    model: torch.nn.Module | torch.export.ExportedProgram,
    args: Any = (),
    path: str | os.PathLike[str] | None = None,
    *,
    kwargs: dict[str, Any] | None = None,
    dynamic_shapes: Any = None,
    custom_translation_table: dict[Any, Any] | None = None,
    optimize: bool = True,
    external_data: bool = False,
    verbose: bool | None = False,
    **options: Any,
) -> Any:
    """Export a model that has fused layers or Cells to ONNX, by `torch.onnx.export(dynamo=True)`.

    Each layer with all its directions, and each call of a Cell, is one node: an LSTM, a GRU or an RNN of
    ONNX's default domain. The graph has no loop and no steps of the example's number. Beyond what torch does:

    - Sizes of the inputs may vary where the model lets them: all that no weight and no line of Python fixes,
      so the number of steps and of sequences. They are called `seq_len` and `batch` in the file.
    - Weights are in the file once, in ONNX's order of gates, under the name of the first parameter that is
      in them with W, R or B for weight_ih, weight_hh and the biases: `encoder.W_l0`. Nothing of them is
      computed when the file runs; that holds for parametrized ones as well.
    - Initial states that are zeros are left to the operator, where they are its default.
    - What ONNX has no operator for is one error, which names it.

    Args:
        model: A module, best in evaluation, or a program of `torch.export.export`.
        args: Example inputs, a tensor or a tuple; for a program, nothing.
        path: Where to save the file; None saves none.
        kwargs: Example inputs by name.
        dynamic_shapes: Which sizes may vary, as for `torch.onnx.export`; None for all that can. Those of a
            program are its own.
        custom_translation_table: As for `torch.onnx.export`; goes before `translation_table()`.
        optimize: As for `torch.onnx.export`.
        external_data: Whether weights go into a second file. Beyond some 1.5 GB they do in any case.
        verbose: As for `torch.onnx.export`, which by default prints what it does.
        **options: Further arguments of `torch.onnx.export`, such as `opset_version`, `input_names`,
            `output_names` and `report`.

    Returns:
        A `torch.onnx.ONNXProgram`. Its `model_proto` is the file; called with inputs, it runs ONNX Runtime.

    Raises:
        ImportError: Without onnx or onnxscript.
        TypeError: A model of another kind, or a PackedSequence among the inputs.
        RuntimeError: A call that no operator of ONNX says, as with `reset_mask`; the message names the way
            out. A frozen module. A bfloat16 layer with `opset_version` below 22.

    Source: https://onnx.ai/onnx/operators/onnx__LSTM.html, onnx__GRU.html and onnx__RNN.html.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), seqkernels.FusedGRU(8, 16, num_layers=2))
        >>> program = seqkernels.onnx.export(model.eval(), torch.randn(5, 3, 4))
        >>> [node.op_type for node in program.model.graph if node.op_type == "GRU"]
        ['GRU', 'GRU']
        >>> [str(size) for size in program.model.graph.inputs[0].shape]
        ['seq_len', 'batch', '4']
    """
    _import("onnx", "onnxscript")
    if reserved := options.keys() & {"dynamo", "f", "dynamic_axes"}:
        raise TypeError(
            f"export takes no {min(reserved)}: it is path and dynamic_shapes here, and dynamo=True"
        )
    args = (args,) if isinstance(args, Tensor) else tuple(args)
    named = dict(kwargs or {})
    given_shapes = dynamic_shapes
    if isinstance(model, torch.nn.Module) and not isinstance(model, torch.jit.ScriptModule):
        model = compat.uncompiled(model)
        _check_model(model, (*args, *named.values()))
        if dynamic_shapes is None:
            dynamic_shapes = _all_that_can(model, args, named)
    elif not isinstance(model, torch.export.ExportedProgram):
        raise TypeError(f"model must be a Module or an ExportedProgram, got {type(model).__name__}")
    failed: Exception | None = None
    program: Any = None
    try:
        program = torch.onnx.export(
            model,
            args,
            kwargs=named or None,
            dynamo=True,
            dynamic_shapes=dynamic_shapes,
            custom_translation_table={**translation_table(), **(custom_translation_table or {})},
            optimize=False,
            verbose=verbose,
            **options,
        )
    except torch.onnx.OnnxExporterError as error:
        failed = error
    if failed is not None:
        raise _reason(failed, model, args, named)
    _check_opset(program.model)
    _tidy(program.model)
    if given_shapes is None:
        _name_sizes(program.model, program.exported_program.range_constraints)
    if optimize:
        program.optimize()
    if path is not None:
        program.save(path, external_data=external_data)
    return program


def _import(*names: str) -> list[Any]:
    """These modules, or one error that says how to get them."""
    try:
        return [importlib.import_module(name) for name in names]
    except ImportError as error:
        raise ImportError(
            "seqkernels.onnx needs onnx and onnxscript to export anything: pip install 'seqkernels[onnx]' "
            f"({error})"
        ) from error


def _reason(error: Exception, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> BaseException:
    """Why an export has failed, in few words where they are known: ours, or those of the model itself."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, _onnx.NotInONNX):
            return cause.with_traceback(None)
        cause = cause.__cause__
    if isinstance(model, torch.nn.Module):
        try:
            with torch.no_grad():
                model(*args, **kwargs)
        except Exception as wrong:
            return wrong
    return error


# ---------------------------------------------------------------- what is exported


def _check_model(model: torch.nn.Module, values: Sequence[Any]) -> None:
    for name, module in model.named_modules():
        if isinstance(module, Frozen):
            where = f"{name!r} of the model" if name else "the model"
            raise RuntimeError(
                f"{where} is frozen, which cannot be exported: take the module that it was made from, whose "
                "weights the file keeps as they are then"
            )
    if any(isinstance(value, PackedSequence) for value in values):
        raise TypeError(
            "a PackedSequence cannot be an input of a file of ONNX: give the model padded input, and lengths "
            "to its fused layers, which computes the same"
        )


def _all_that_can(model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Dynamic shapes that leave it to torch.export to find out what may vary."""
    found = torch.export.ShapesCollection()
    for tensor in _tensors((args, kwargs)):
        found[tensor] = dict.fromkeys(range(tensor.dim()), torch.export.Dim.AUTO)
    return found.dynamic_shapes(model, args, kwargs)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple, dict)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _tensors(inner)


# ---------------------------------------------------------------- ops of a program that torch.export made


def translation_table() -> dict[Any, Callable[..., Any]]:
    """What the ops of fused layers are in ONNX, as `torch.onnx.export` takes it.

    It is for programs that `torch.export.export` has made, which have these ops; `export` uses it by itself.
    A module needs none: while torch exports that to ONNX, its layers already are operators of ONNX.

    Returns:
        For each op of this package a function that builds its operators with onnxscript.

    Raises:
        ImportError: Without onnx or onnxscript.

    Example:
        >>> program = torch.export.export(seqkernels.FusedLSTM(8, 16), (torch.randn(5, 3, 8),))
        >>> table = seqkernels.onnx.translation_table()
        >>> exported = torch.onnx.export(program, custom_translation_table=table, verbose=False)
        >>> [node.op_type for node in exported.model.graph]
        ['LSTM', 'Squeeze']
    """
    _import("onnx", "onnxscript")
    return {op.op: _translation_of(cell) for cell, op in OPS.items()}


def _translation_of(cell: str) -> Callable[..., Any]:
    op: Any = _import("onnxscript")[0].opset18
    known, info = OPS[cell], OPS[cell].info

    def translate(*given: Any, **named: Any) -> Sequence[Any]:
        arguments = dict(zip(known.arguments, known.all_arguments(given), strict=True)) | named
        states, weights = [arguments[name] for name in known.arguments[1 : known.n]], arguments["weights"]
        operator = _onnx.check(cell, _asked(arguments), packed=arguments["batch_sizes"] is not None)
        has_biases = len(weights) > 2 and len(weights[2].shape) == 1
        directions, hidden = len(weights) // info.weights(has_biases), weights[1].shape[1]

        def ordered(parts: Sequence[Any]) -> Any:
            """A weight of each direction, with its blocks in the order of ONNX."""
            parts = [op.Unsqueeze(part, [0]) for part in parts]
            together = parts[0] if len(parts) == 1 else op.Concat(*parts, axis=0)
            if len(operator.gates) == 1:
                return together
            blocks = [op.Slice(together, [g * hidden], [(g + 1) * hidden], [1]) for g in operator.gates]
            return op.Concat(*blocks, axis=1)

        per_direction = len(weights) // directions
        w, r, *b = (ordered(weights[kind::per_direction]) for kind in range(per_direction))
        bias = op.Concat(*b, axis=1) if b else None
        lengths = arguments["lengths"]
        sequence_lens = None if lengths is None else op.Cast(lengths, to=6)  # int32
        attributes = operator.attributes_of(hidden, directions, arguments["reverse"])
        run = getattr(op, operator.name)
        y, *finals = run(arguments["x"], w, r, bias, sequence_lens, *states, **attributes)
        if directions == 1:
            output = op.Squeeze(y, [1])
        else:
            output = op.Reshape(op.Transpose(y, perm=[0, 2, 1, 3]), [0, 0, -1])
        if lengths is not None:
            empty = op.Unsqueeze(op.Equal(lengths, 0), [1])
            finals = [op.Where(empty, s, final) for s, final in zip(states, finals, strict=True)]
        # What the op keeps for its derivative nobody reads in a program that is exported.
        rest = 2 * info.has_cell_state + bool(info.saved)
        return [output, *finals, *[op.ConstantOfShape([0]) for _ in range(rest)]]

    translate.__name__ = f"seqkernels_{cell}"
    return translate


def _asked(arguments: dict[str, Any]) -> list[str]:
    """The options of a call of an op that ONNX does not have, as users know them."""
    asked = {
        "reset_mask": arguments["reset_mask"] is not None,
        "recurrent_dropout": arguments["recurrent_mask"] is not None,
        "zoneout": any(arguments.get(f"zoneout_{part}{end}") for part in "hc" for end in ("", "_rate")),
        "return_cell_states": arguments.get("return_cell_states", False),
    }
    return [name for name, is_asked in asked.items() if is_asked]


# ---------------------------------------------------------------- the file, before torch optimizes it


def _recurrent(model: Any) -> list[Any]:
    """All nodes of recurrent operators."""
    return [node for node in model.graph.all_nodes() if node.domain == "" and node.op_type in RECURRENT]


def _check_opset(model: Any) -> None:
    version = model.opset_imports.get("", 0)
    for node in _recurrent(model):
        if version < 22 and node.inputs[0].dtype.name == "BFLOAT16":
            raise _onnx.NotInONNX(
                f"{node.op_type} of ONNX takes bfloat16 from opset 22 on, and this is opset {version}: "
                "export with opset_version=22"
            )


def _tidy(model: Any) -> None:
    """Compute weights once and for all, name them and their nodes, and leave out states that are zeros."""
    optimizer: Any = _import("onnxscript.optimizer")[0]
    nodes = _recurrent(model)
    sources = {(node, i): _Source(node.inputs[i]) for node in nodes for i in WEIGHTS if node.inputs[i]}
    of_weights = {made for source in sources.values() for made in source.nodes}
    optimizer.fold_constants(
        model,
        input_size_limit=sys.maxsize,
        output_size_limit=sys.maxsize,
        should_fold=lambda node: node in of_weights,
    )
    for node in nodes:
        for i in STATES:
            if i < len(node.inputs) and _is_zero(node.inputs[i]):
                node.replace_input_with(i, None)
        while node.inputs[-1] is None:
            node.resize_inputs(len(node.inputs) - 1)
    for (node, i), source in sources.items():
        if source.parameters:
            if i == 1:
                node.name = _name(source.parameters[0], node.op_type)
            _name_or_share(model.graph, node, i, _name(source.parameters[0], WEIGHTS[i]))
    optimizer.remove_unused_nodes(model)


class _Source:
    """What a value is computed from.

    Attributes:
        nodes: All that compute it.
        parameters: The names of the initializers that they read, in this order.
    """

    def __init__(self, value: Any) -> None:
        self.nodes: dict[Any, None] = {}
        self.parameters: list[str] = []
        self._follow(value)

    def _follow(self, value: Any) -> None:
        if value is None:
            return
        if value.is_initializer():
            self.parameters.append(value.name)
        elif (node := value.producer()) is not None and node not in self.nodes:
            self.nodes[node] = None
            for other in node.inputs:
                self._follow(other)


def _name(parameter: str, letter: str) -> str:
    """`encoder.W_l0` of `encoder.weight_ih_l0`, the first parameter of several."""
    plain = re.sub(r"parametrizations\.(\w+)\.original\d*", r"\1", parameter)
    name, found = re.subn(r"(weight|bias)_[ih]h", letter, plain)
    return name if found else f"{plain}.{letter}"


def _name_or_share(graph: Any, node: Any, i: int, name: str) -> None:
    """Give a weight its name, or what already has the name if it is the same, as where a layer runs twice."""
    value, taken = node.inputs[i], name
    if not value.is_initializer():
        return
    for n in itertools.count(2):
        other = graph.initializers.get(taken)
        if other is None or other is value:
            value.name = taken
            return
        if _is_same(other.const_value, value.const_value):
            node.replace_input_with(i, other)
            return
        taken = f"{name}_{n}"


def _is_same(tensor: Any, other: Any) -> bool:
    return tensor.dtype == other.dtype and tensor.shape == other.shape and tensor.tobytes() == other.tobytes()


def _is_zero(value: Any) -> bool:
    """Whether it is zeros in some shape, as a state that nobody has given."""
    ir: Any = _import("onnx_ir")[0]
    while value is not None:
        tensor = ir.convenience.get_const_tensor(value)
        if tensor is not None:
            return tensor.size > 0 and not tensor.numpy().any()
        node = value.producer()
        if node is None or node.op_type not in (
            "Cast",
            "Expand",
            "Identity",
            "Slice",
            "Squeeze",
            "Unsqueeze",
        ):
            return False
        value = node.inputs[0]
    return False


def _name_sizes(model: Any, ranges: Any) -> None:
    """Call the sizes that may vary `seq_len` and `batch`, by what recurrent nodes take; fix the others."""
    ir: Any = _import("onnx_ir")[0]
    names = {str(symbol): str(r.lower) for symbol, r in ranges.items() if r.lower == r.upper}
    symbols = {str(symbol) for symbol in ranges}
    for node in _recurrent(model):
        for dim, name in zip(node.inputs[0].shape or (), ("seq_len", "batch"), strict=False):
            symbol = str(getattr(dim, "value", None))
            if symbol in symbols and symbol not in names:
                same = sum(re.fullmatch(rf"{name}(_\d+)?", other) is not None for other in names.values())
                names[symbol] = f"{name}_{same + 1}" if same else name
    made = (value for node in model.graph.all_nodes() for value in node.outputs)
    for value in (*model.graph.inputs, *made):
        if value.shape is not None:
            dims = [_named(dim, names) for dim in value.shape]
            value.shape = ir.Shape(dims)


def _named(dim: Any, names: dict[str, str]) -> int | str | None:
    if isinstance(dim, int) or dim.value is None:
        return dim if isinstance(dim, int) else None
    name = re.sub(r"[A-Za-z_]\w*", lambda found: names.get(found[0], found[0]), dim.value)
    return int(name) if name.isdigit() else name
