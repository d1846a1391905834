"""Export to ONNX: ONNX Runtime computes from the file what the module does, by the operators of ONNX.

Files are made once for many sizes, and hold many layers, because making one takes a second or two.
"""

from __future__ import annotations

import doctest
import re
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

import seqkernels
from seqkernels import _onnx
from tests.conftest import assert_close, flat

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

I, H = 3, 4
SIZES = [(T, B) for T in (1, 4, 9) for B in (1, 5)]  # other than that of the example
AUTO = torch.export.Dim.AUTO


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """The exporter warns of its own insides."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def session_of(program: Any) -> Any:
    """What is checked and loaded as any file would be."""
    onnx.checker.check_model(program.model_proto, full_check=True)
    return onnxruntime.InferenceSession(
        program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )


def run(session: Any, *inputs: Tensor) -> list[Tensor]:
    names = [given.name for given in session.get_inputs()]
    feeds = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
    return [torch.from_numpy(result) for result in session.run(None, feeds)]


def computed(module: nn.Module, *inputs: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return flat(module(*inputs))


def check_nodes(program: Any, expected: dict[str, int]) -> None:
    """So many recurrent nodes, on weights that are there once and ready; no loop, no other domain."""
    nodes = list(program.model.graph.all_nodes())
    assert {node.domain for node in nodes} == {""}
    found = Counter(node.op_type for node in nodes)
    assert not found.keys() & {"Loop", "Scan", "If", "SequenceAt", "Sigmoid", "Tanh", "MatMul", "Gemm"}
    assert {kind: found[kind] for kind in ("LSTM", "GRU", "RNN") if found[kind]} == expected
    weights = {
        value for node in nodes if node.op_type in expected for value in node.inputs[1:4] if value is not None
    }
    assert all(value.is_initializer() for value in weights)
    stored = program.model.graph.initializers.values()
    assert weights == {value for value in stored if value.dtype.is_floating_point() and value.shape.rank()}


# ---------------------------------------------------------------- layers and Cells

CELLS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "lstm": ("LSTM", "LSTM", {}),
    "gru": ("GRU", "GRU", {}),
    "gru_reset_before": ("GRU", "GRU", {"reset_after": False}),
    "rnn_tanh": ("RNN", "RNN", {}),
    "rnn_relu": ("RNN", "RNN", {"nonlinearity": "relu"}),
}
NAMES = ("num_layers", "bidirectional", "batch_first", "bias", "state", "lengths")
# Eight choices in which any two of the six options meet in all four combinations.
PAIRS = [(a, b, c, a ^ b, a ^ c, b ^ c) for a in (0, 1) for b in (0, 1) for c in (0, 1)]


class Layers(nn.Module):
    """Layers of one cell that differ in all options, side by side."""

    def __init__(self, name: str, **options: Any) -> None:
        super().__init__()
        self.calls = [dict(zip(NAMES, choice, strict=True)) for choice in PAIRS]
        kind = getattr(seqkernels, f"Fused{name}")
        self.layers = nn.ModuleList(
            kind(
                *(I, H),
                num_layers=1 + call["num_layers"],
                **{name: bool(call[name]) for name in ("bidirectional", "batch_first", "bias")},
                **options,
            )
            for call in self.calls
        )

    def forward(self, x: Tensor, padded: Tensor, states: Tensor, lengths: Tensor) -> list[Any]:
        results = []
        for call, layer in zip(self.calls, self.layers, strict=True):
            given = padded if call["lengths"] else x
            # By a list, which has a length: of a slice, torch 2.10 does not know it.
            state = states[:, list(range(layer.num_layers * (1 + layer.bidirectional)))]
            hx = (state[0], state[1]) if isinstance(layer, nn.LSTM) else state[0]
            result = layer(
                given.transpose(0, 1) if layer.batch_first else given,
                hx if call["state"] else None,
                lengths=lengths if call["lengths"] else None,
            )
            results.append(result)
        return results


def inputs_of(T: int, B: int) -> tuple[Tensor, ...]:
    """Lengths of 0 and of T among others, and nothing to be read beyond them."""
    x, lengths = torch.randn(T, B, I), torch.arange(B).mul(3).remainder(T + 1).flip(0)
    beyond = torch.arange(T).unsqueeze(1) >= lengths
    return x, x.masked_fill(beyond.unsqueeze(2), float("nan")), torch.randn(2, 4, B, H), lengths


@pytest.mark.parametrize("cell", CELLS)
def test_layers(cell: str) -> None:
    name, operator, options = CELLS[cell]
    model = Layers(name, **options).eval()
    program = seqkernels.onnx.export(model, inputs_of(3, 2))
    check_nodes(program, {operator: sum(layer.num_layers for layer in model.layers)})
    session = session_of(program)
    for T, B in SIZES:
        inputs = inputs_of(T, B)
        assert_close(run(session, *inputs), computed(model, *inputs), what=f"T = {T}, B = {B}: ")


class Steps(nn.Module):
    """A Cell of each kind, with and without a state, for two steps."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.ModuleList(
            getattr(seqkernels, f"Fused{name}Cell")(I, H, bias=cell != "gru", **options)
            for cell, (name, _, options) in CELLS.items()
        )

    def forward(self, x: Tensor, h: Tensor) -> list[Any]:
        first = [cell(x, (h, h) if isinstance(cell, nn.LSTMCell) else h) for cell in self.cells]
        return [first, [cell(x, hx) for cell, hx in zip(self.cells, first, strict=True)], self.cells[1](x)]


def test_cells() -> None:
    """A layer of one step each; weights are there once, however often a Cell runs."""
    model = Steps().eval()
    program = seqkernels.onnx.export(model, (torch.randn(2, I), torch.randn(2, H)))
    check_nodes(program, {"LSTM": 2, "GRU": 5, "RNN": 4})
    assert {
        "cells.0.W",
        "cells.0.R",
        "cells.0.B",
        "cells.1.W",
        "cells.1.R",
    } <= program.model.graph.initializers.keys()
    session = session_of(program)
    for B in (1, 2, 5):
        inputs = torch.randn(B, I), torch.randn(B, H)
        assert_close(run(session, *inputs), computed(model, *inputs))


# ---------------------------------------------------------------- whole models


class Tagger(nn.Module):
    def __init__(self, H: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, I)
        self.encoder = nn.LSTM(I, H, num_layers=2, batch_first=True, bidirectional=True, dropout=0.1)
        self.again = nn.GRU(2 * H, 2 * H)
        self.head = nn.Linear(2 * H, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        states = self.encoder(self.embedding(tokens))[0].transpose(0, 1)
        return self.head(self.again(self.again(states)[0][::2])[0])


def test_a_model_that_was_fused(tmp_path: Path) -> None:
    """Weights too large for torch to fold; names; a file; a layer that runs twice, on half of the steps."""
    model = seqkernels.fuse(Tagger(50)).eval()
    path = tmp_path / "tagger.onnx"
    program = seqkernels.onnx.export(torch.compile(model), torch.randint(11, (2, 6)), path)
    assert [file.name for file in tmp_path.iterdir()] == ["tagger.onnx"]
    recurrent = [node for node in program.model.graph if node.op_type in ("LSTM", "GRU")]
    names = ["encoder.LSTM_l0", "encoder.LSTM_l1", "again.GRU_l0", "again.GRU_l0"]
    assert all(node.name.startswith(name) for node, name in zip(recurrent, names, strict=True))
    weights = [value.name for value in recurrent[1].inputs[1:]]
    assert weights == ["encoder.W_l1", "encoder.R_l1", "encoder.B_l1"]
    assert recurrent[2].inputs[1:] == recurrent[3].inputs[1:]
    stored = sum(value.const_value.size for value in program.model.graph.initializers.values())
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert parameters <= stored < parameters + 100  # some sizes of reshapes
    (tokens,) = program.model.graph.inputs
    assert [str(size) for size in tokens.shape] == ["batch", "seq_len"]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for T, B in SIZES:
        given = torch.randint(11, (B, T))
        assert_close(run(session, given), computed(model, given))


def test_shapes_and_names_that_are_given() -> None:
    """And parametrized weights, of which nothing is computed when the file runs."""
    gru = nn.utils.parametrizations.weight_norm(seqkernels.FusedGRU(I, 80), "weight_hh_l0").eval()
    shapes = ({0: "frames"},)
    program = seqkernels.onnx.export(gru, torch.randn(3, 2, I), dynamic_shapes=shapes, input_names=["x"])
    check_nodes(program, {"GRU": 1})
    (x,) = program.model.graph.inputs
    assert (x.name, [str(size) for size in x.shape]) == ("x", ["frames", "2", "3"])
    assert {"W_l0", "R_l0", "B_l0"} <= program.model.graph.initializers.keys()
    given = torch.randn(7, 2, I)
    assert_close(run(session_of(program), given), computed(gru, given))


# ---------------------------------------------------------------- torch.onnx.export itself


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru = seqkernels.FusedGRU(I, H, bidirectional=True, reset_after=False)
        self.lstm = seqkernels.FusedLSTM(2 * H, H, bias=False)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        output, _ = self.gru(x, lengths=lengths)
        return self.lstm(output)[0] + torch.ones_like(x[..., :1]).expand(-1, -1, H)


@pytest.mark.parametrize("way", ["module", "program and table", "program"])
def test_other_ways(way: str) -> None:
    """Plain torch needs no table for a module, and one for a program that torch.export made before."""
    model = Small().eval()
    example, shapes = (torch.randn(3, 2, I), torch.tensor([3, 1])), ({0: AUTO, 1: AUTO}, {0: AUTO})
    if way == "module":
        program = torch.onnx.export(model, example, dynamic_shapes=shapes, verbose=False, dynamo=True)
    else:
        captured = torch.export.export(model, example, dynamic_shapes=shapes)
        if way == "program":
            program = seqkernels.onnx.export(captured)
            check_nodes(program, {"LSTM": 1, "GRU": 1})
        else:
            table = seqkernels.onnx.translation_table()
            program = torch.onnx.export(captured, custom_translation_table=table, verbose=False)
    session = session_of(program)
    for T, B in ((7, 3), (4, 5)):
        inputs = torch.randn(T, B, I), torch.arange(B)
        assert_close(run(session, *inputs), computed(model, *inputs))


def test_a_program_that_no_operators_say() -> None:
    layer = seqkernels.FusedLSTM(I, H, return_cell_states=True)
    captured = torch.export.export(layer, (torch.randn(2, 1, I),))
    with pytest.raises(RuntimeError, match=r"^lstm with return_cell_states cannot be exported to ONNX"):
        seqkernels.onnx.export(captured)


# ---------------------------------------------------------------- what ONNX cannot say

MASK = torch.tensor([[False], [True]])
WITHOUT: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "lstm with reset_mask": ("LSTM", {}, {"reset_mask": MASK}),
    "lstm with zoneout": ("LSTM", {"zoneout": (0.0, 0.1)}, {}),
    "lstm with return_cell_states": ("LSTM", {"return_cell_states": True}, {}),
    "lstm with proj_size": ("LSTM", {"proj_size": 2}, {}),
    "lstm with norm='layer'": ("LSTM", {"norm": "layer"}, {}),
    "lstm with norm='layer-joint'": ("LSTM", {"norm": "layer-joint"}, {}),
    "gru with norm='layer'": ("GRU", {"norm": "layer"}, {}),
    "rnn_relu with zoneout": ("RNN", {"zoneout": 0.1, "nonlinearity": "relu"}, {}),
}


@pytest.fixture
def capturing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls are taken for such of a model that torch captures for ONNX."""
    monkeypatch.setattr(_onnx, "is_capturing", lambda: True)


@pytest.mark.parametrize("what", WITHOUT)
def test_what_takes_single_steps(what: str, capturing: None) -> None:
    name, options, given = WITHOUT[what]
    layer = getattr(seqkernels, f"Fused{name}")(I, H, **options).eval()
    with pytest.raises(RuntimeError) as caught:
        layer(torch.randn(2, 1, I), **given)
    assert str(caught.value) == (
        f"{what} cannot be exported to ONNX as one operator; with backend='reference' it becomes the "
        "operators of as many steps as the example has"
    )


class ByReference(nn.Module):
    """All of them, as the errors advise."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            getattr(seqkernels, f"Fused{name}")(I, H, backend="reference", **options)
            for name, options, _ in WITHOUT.values()
        )

    def forward(self, x: Tensor, reset_mask: Tensor) -> list[Any]:
        options = [{"reset_mask": reset_mask} if given else {} for _, _, given in WITHOUT.values()]
        return [layer(x, **given) for layer, given in zip(self.layers, options, strict=True)]


def test_the_way_out() -> None:
    """It has the steps of the example, and any number of sequences... of the example."""
    model = ByReference().eval()
    program = seqkernels.onnx.export(model, (torch.randn(2, 1, I), MASK))
    inputs = torch.randn(2, 1, I), MASK
    assert_close(run(session_of(program), *inputs), computed(model, *inputs))


@pytest.mark.parametrize("option", ["recurrent_dropout", "zoneout", "weight_dropout", "dropout"])
def test_training(option: str, capturing: None) -> None:
    layer = seqkernels.FusedLSTM(I, H, 2, **{option: 0.1})
    with pytest.raises(RuntimeError, match=rf"^lstm with {option} in training .* call eval\(\) of the model"):
        layer(torch.randn(2, 1, I))


def test_calls_that_are_wrong(capturing: None) -> None:
    gru, lstm = seqkernels.FusedGRU(I, H), seqkernels.FusedLSTM(I, H)
    x = torch.randn(2, 1, I)
    with pytest.raises(RuntimeError, match=r"^lstm with a PackedSequence .* padded input and lengths"):
        lstm(pack_sequence([x[:, 0]]))
    with pytest.raises(RuntimeError, match=r"^gru under torch.vmap .* part of the batch"):
        torch.vmap(lambda row: gru(row)[0])(torch.randn(5, 2, 1, I))
    with pytest.raises(
        RuntimeError, match=r"take input, states and weights of one dtype, got float32, float64"
    ):
        gru(x, torch.zeros(1, 1, H).double())
    cell = seqkernels.FusedGRUCell(I, H)
    with pytest.raises(RuntimeError, match=r"^gru with reset_mask cannot be exported to ONNX"):
        cell(x[0], reset_mask=MASK[1])
    weights = [torch.randn(3 * H, I), torch.randn(3 * H, H + 1)]
    with pytest.raises(RuntimeError, match=r"^w_ih must have size \[15, 3\], got \[12, 3\]"):
        seqkernels.functional.gru(x, torch.zeros(1, 1, H), weights, bias=False)


def test_errors_of_export(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that names what is wrong, and nothing around it."""
    export, x = seqkernels.onnx.export, torch.randn(2, 1, I)
    gru = seqkernels.FusedGRU(I, H).eval()
    with pytest.raises(
        RuntimeError, match=r"^gru with reset_mask cannot be exported to ONNX as one operator"
    ):
        export(gru, x, kwargs={"reset_mask": MASK})
    with pytest.raises(ValueError, match="type") as theirs:
        nn.GRU(I, H)(x.double())
    with pytest.raises(ValueError, match=f"^{re.escape(str(theirs.value))}"):
        export(gru, x.double())
    with pytest.raises(
        RuntimeError, match=r"^'0' of the model is frozen, which cannot be exported: take the"
    ):
        export(nn.Sequential(seqkernels.freeze(gru)), x)
    with pytest.raises(
        TypeError, match=r"^a PackedSequence cannot be an input .* give the model padded input"
    ):
        export(gru, (pack_sequence([x[:, 0]]),))
    with pytest.raises(TypeError, match=r"^model must be a Module or an ExportedProgram, got function"):
        export(lambda x: x, x)
    with pytest.raises(TypeError, match=r"^export takes no dynamo"):
        export(gru, x, dynamo=False)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    for function in (seqkernels.onnx.translation_table, lambda: export(gru, x)):
        with pytest.raises(
            ImportError, match=r"needs onnx and onnxscript .* pip install 'seqkernels\[onnx\]'"
        ):
            function()


# ---------------------------------------------------------------- dtypes, and what is imported


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.bfloat16])
def test_dtypes(dtype: torch.dtype) -> None:
    """ONNX has all of them, bfloat16 from opset 22 on; of these, ONNX Runtime runs float16 on a CPU."""
    layer, x = seqkernels.FusedLSTM(I, H).to(dtype).eval(), torch.randn(3, 2, I, dtype=dtype)
    if dtype is torch.bfloat16:
        with pytest.raises(
            RuntimeError, match=r"^LSTM of ONNX takes bfloat16 from opset 22 on, .* opset 20: .*=22"
        ):
            seqkernels.onnx.export(layer, x)
        program = seqkernels.onnx.export(layer, x, opset_version=22)
    else:
        program = seqkernels.onnx.export(layer, x)
    onnx.checker.check_model(program.model_proto, full_check=True)
    if dtype is torch.float16:
        x = torch.randn(5, 4, I, dtype=dtype)
        assert_close(run(session_of(program), x), computed(layer, x))


def test_nothing_is_imported_before() -> None:
    code = "import sys, seqkernels.onnx; sys.exit(bool({'onnx', 'onnxscript'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_docstrings() -> None:
    model = nn.Sequential(seqkernels.FusedLSTM(I, H)).eval()
    names = {"torch": torch, "seqkernels": seqkernels, "model": model, "x": torch.randn(2, 1, I)}
    result = doctest.testmod(seqkernels.onnx, extraglobs=names)
    assert result.attempted > 3
    assert result.failed == 0


def test_the_guide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its blocks run, in their order."""
    text = (Path(__file__).parents[1] / "docs/guide/onnx.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert blocks
    monkeypatch.chdir(tmp_path)
    exec(compile("\n".join(blocks), "docs/guide/onnx.md", "exec"), {})
