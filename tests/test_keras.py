"""Weights of Keras: modules compute the same with them, and what does not fit a module is refused.

`keras_record.json` has what Keras computed. `keras_record.py` wrote it.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import seqkernels
from seqkernels import reference
from tests import keras_record
from tests.conftest import assert_close, flat
from tests.keras_record import B, H, I, T

RECORD = json.loads(Path(__file__).with_name("keras_record.json").read_text(encoding="utf-8"))
# Of each recorded layer, the names of the classes that have its equations, and what they take.
LAYERS: dict[str, tuple[str, dict[str, Any]]] = {
    "GRU": ("GRU", {}),
    "GRU, use_bias=False": ("GRU", {"bias": False}),
    "LSTM": ("LSTM", {}),
    "SimpleRNN": ("RNN", {}),
    "SimpleRNN, relu": ("RNN", {"nonlinearity": "relu"}),
    "Bidirectional LSTM": ("LSTM", {"bidirectional": True}),
}
RESET_BEFORE = "GRU, reset_after=False"

Class = Callable[..., nn.Module]
Case = dict[str, Any]


def classes(name: str) -> list[Class]:
    return [getattr(nn, name), getattr(seqkernels, f"Fused{name}")]


def close(actual: Any, expected: Any) -> bool:
    return torch.allclose(actual.double(), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-5)


def check(module: nn.Module, case: Case, x: Any) -> None:
    """The module, which has this case's weights, computes its output and its final states."""
    output, final = module(torch.tensor(x, dtype=module.weight_ih_l0.dtype))
    assert close(output, case["output"])
    # Keras has all states of one direction, then those of the other; torch has each state of all directions.
    states, per_direction = case["states"], len(case["states"]) // len(case["weights"])
    expected = [state for n in range(per_direction) for state in states[n::per_direction]]
    assert close(torch.cat(flat(final)), expected)


def weights_of(cls: str, bias: bool = True, reset_after: bool = True) -> list[np.ndarray]:
    """Random ones, in the layout of Keras."""
    draw = np.random.default_rng(2)
    columns = {"LSTM": 4, "GRU": 3, "RNN": 1}[cls.removesuffix("Cell").removeprefix("Fused")] * H
    shapes: list[tuple[int, ...]] = [(I, columns), (H, columns)]
    if bias:
        shapes.append((2, columns) if "GRU" in cls and reset_after else (columns,))
    return [draw.standard_normal(shape).astype(np.float32) for shape in shapes]


def gates(weights: list[np.ndarray]) -> dict[str, list[Tensor]]:
    """The blocks of columns, one a gate, of each of Keras's weights."""
    names = ("kernel", "recurrent_kernel", "bias")
    return {n: list(torch.from_numpy(w).split(H, dim=-1)) for n, w in zip(names, weights, strict=False)}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("backend", ["torch.nn", "auto", "reference"])
def test_layers_compute_what_keras_does(name: str, dtype: torch.dtype, backend: str) -> None:
    cls, options = LAYERS[name]
    plain, fused = classes(cls)
    make, given = (plain, {}) if backend == "torch.nn" else (fused, {"backend": backend})
    module = make(I, H, batch_first=True, dtype=dtype, **given, **options)
    names = list(module.state_dict())
    case = RECORD["layers"][name]
    assert seqkernels.keras.load(module, *case["weights"]) is module
    assert list(module.state_dict()) == names
    assert all(p.dtype == dtype and p.requires_grad for p in module.parameters())
    check(module, case, RECORD["x"])


@pytest.mark.parametrize("name", [name for name in LAYERS if "Bidirectional" not in name])
def test_cells_compute_what_keras_does(name: str) -> None:
    cls, options = LAYERS[name]
    case = RECORD["layers"][name]
    for make in classes(f"{cls}Cell"):
        cell = seqkernels.keras.load(make(I, H, **options), *case["weights"])
        state, outputs = None, []
        for x in torch.tensor(RECORD["x"]).unbind(1):
            state = cell(x, state)
            outputs.append(flat(state)[0])
        assert close(torch.stack(outputs, 1), case["output"])
        assert close(torch.stack(flat(state)), case["states"])


def test_gru_that_resets_before_the_product() -> None:
    case = RECORD["layers"][RESET_BEFORE]
    for backend in ("auto", "reference"):
        gru = seqkernels.FusedGRU(I, H, reset_after=False, batch_first=True, backend=backend)
        check(seqkernels.keras.load(gru, *case["weights"]), case, RECORD["x"])


def test_weights_of_a_gru_that_resets_before_the_product() -> None:
    """Its equations, written out, on the parameters of a module that says it has them."""
    case = RECORD["layers"][RESET_BEFORE]
    gru = nn.GRU(I, H)
    gru.reset_after = False
    seqkernels.keras.load(gru, *case["weights"])
    assert not gru.bias_hh_l0.any()
    u_r, u_z, u_n = gru.weight_hh_l0.chunk(3)
    h, outputs = torch.zeros(B, H), []
    for x in torch.tensor(RECORD["x"]).unbind(1):
        x_r, x_z, x_n = nn.functional.linear(x, gru.weight_ih_l0, gru.bias_ih_l0).chunk(3, dim=-1)
        r, z = (x_r + h @ u_r.t()).sigmoid(), (x_z + h @ u_z.t()).sigmoid()
        n = (x_n + (r * h) @ u_n.t()).tanh()
        h = (1 - z) * n + z * h
        outputs.append(h)
    assert close(torch.stack(outputs, 1), case["output"])
    assert close(h, case["states"][0])


def test_reference_with_loaded_weights() -> None:
    lstm = seqkernels.keras.load(nn.LSTM(I, H), *RECORD["layers"]["LSTM"]["weights"])
    zeros = torch.zeros(1, B, H)
    x = torch.tensor(RECORD["x"]).transpose(0, 1)
    output, *_ = reference.layer("lstm", x, (zeros, zeros), lstm._flat_weights)
    assert close(output.transpose(0, 1), RECORD["layers"]["LSTM"]["output"])


def test_every_block_is_in_its_place() -> None:
    lstm = seqkernels.keras.load(seqkernels.FusedLSTM(I, H), weights := weights_of("LSTM"))
    keras = gates(weights)
    assert torch.equal(lstm.weight_ih_l0, torch.cat(keras["kernel"], 1).t())
    assert torch.equal(lstm.weight_hh_l0, torch.cat(keras["recurrent_kernel"], 1).t())
    assert torch.equal(lstm.bias_ih_l0, torch.cat(keras["bias"]))
    assert not lstm.bias_hh_l0.any()

    gru = seqkernels.keras.load(seqkernels.FusedGRUCell(I, H), weights := weights_of("GRU"))
    z, r, n = gates(weights)["kernel"]
    assert torch.equal(gru.weight_ih, torch.cat([r, z, n], 1).t())
    z, r, n = gates(weights)["recurrent_kernel"]
    assert torch.equal(gru.weight_hh, torch.cat([r, z, n], 1).t())
    z, r, n = gates(weights)["bias"]
    assert torch.equal(torch.stack([gru.bias_ih, gru.bias_hh]), torch.cat([r, z, n], 1))


@pytest.mark.parametrize(
    "convert",
    [
        torch.from_numpy,
        lambda array: torch.from_numpy(array).requires_grad_(),
        np.ndarray.tolist,
        lambda array: array.astype(np.float64),
        lambda array: array.astype(">f4"),
        lambda array: array[::-1].copy()[::-1],
        lambda array: np.frombuffer(array.tobytes(), array.dtype).reshape(array.shape),
    ],
    ids=["tensor", "parameter", "list", "float64", "big-endian", "negative strides", "read-only"],
)
@pytest.mark.filterwarnings("error")
def test_kinds_of_arrays(convert: Callable[[np.ndarray], Any]) -> None:
    weights = weights_of("GRU")
    expected = seqkernels.keras.load(nn.GRU(I, H), weights).state_dict()
    for kind in (list, tuple):
        module = seqkernels.keras.load(nn.GRU(I, H), kind(map(convert, weights)))
        for name, value in module.state_dict().items():
            assert torch.equal(value, expected[name])


def test_numbers_are_rounded_once() -> None:
    """Those of lists are float64, not torch's default dtype."""
    weights = [array.astype(np.float64) / 3 for array in weights_of("RNN")]
    for given in (weights, [array.tolist() for array in weights]):
        rnn = seqkernels.keras.load(nn.RNN(I, H, dtype=torch.float64), given)
        assert torch.equal(rnn.weight_hh_l0.t(), torch.from_numpy(weights[1]))
        half = seqkernels.keras.load(nn.RNN(I, H, dtype=torch.bfloat16), given)
        assert torch.equal(half.weight_hh_l0.t(), torch.from_numpy(weights[1]).bfloat16())


def test_weights_of_the_module_itself() -> None:
    """They are read before any is written."""
    rnn = nn.RNN(H, H)
    before = copy.deepcopy(rnn.state_dict())
    seqkernels.keras.load(rnn, [rnn.weight_hh_l0, rnn.weight_ih_l0, rnn.bias_hh_l0])
    assert torch.equal(rnn.weight_ih_l0, before["weight_hh_l0"].t())
    assert torch.equal(rnn.weight_hh_l0, before["weight_ih_l0"].t())
    assert torch.equal(rnn.bias_ih_l0, before["bias_hh_l0"])


def test_fused_modules_and_training_go_on() -> None:
    lstm = seqkernels.fuse(nn.LSTM(I, H))
    x = torch.randn(T, B, I)
    with torch.no_grad():
        before = lstm(x)[0]
        seqkernels.keras.load(lstm, weights_of("LSTM"))
        assert not torch.equal(lstm(x)[0], before)
    lstm(x)[0].sum().backward()
    assert all(p.grad is not None for p in lstm.parameters())
    plain = seqkernels.keras.load(nn.LSTM(I, H), weights_of("LSTM"))
    assert_close(lstm(x), plain(x))


def refused(module: nn.Module, error: type[Exception], message: str, *weights: Any) -> None:
    """The message is one line, and the module is as it was."""
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(error, match=re.escape(message)) as caught:
        seqkernels.keras.load(module, *weights)
    assert "\n" not in str(caught.value)
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("cls", [nn.Linear, nn.Transformer, seqkernels.models.StackedRNN])
def test_modules_without_such_weights(cls: Class) -> None:
    module: nn.Module = cls.__new__(cls)
    nn.Module.__init__(module)
    message = f"module must be an LSTM, GRU or RNN, or the Cell of one, not {cls.__name__}"
    refused(module, TypeError, message, weights_of("LSTM"))


def test_modules_that_keras_has_not() -> None:
    for cls in (nn.GRU, seqkernels.FusedGRU):
        refused(cls(I, H, 2), ValueError, "module must have num_layers=1, as a", weights_of("GRU"))
    lstm = seqkernels.FusedLSTM(I, H, proj_size=2)
    refused(lstm, ValueError, "module must have no projection", weights_of("LSTM"))
    normed = parametrizations.weight_norm(nn.LSTM(I, H), "weight_hh_l0")
    message = "weight_hh_l0 is no parameter of this ParametrizedLSTM: is it parametrized or pruned?"
    refused(normed, ValueError, message, weights_of("LSTM"))


def test_directions() -> None:
    two = seqkernels.FusedGRU(I, H, bidirectional=True)
    weights = weights_of("GRU")
    message = "reverse_weights must be given for this FusedGRU: it is bidirectional"
    refused(two, ValueError, message, weights)
    message = "reverse_weights must be None for this FusedGRU: it is not bidirectional"
    refused(seqkernels.FusedGRU(I, H), ValueError, message, weights, weights)
    message = "reverse_weights must be None for this GRUCell"
    refused(nn.GRUCell(I, H), ValueError, message, weights, weights)
    message = "reverse_weights[0], the kernel, must be [3, 12] for this FusedGRU, got [3, 16]"
    refused(two, ValueError, message, weights, weights_of("LSTM"))
    both = "weights must be [kernel, recurrent_kernel, bias] for a module with bias=True, got 6 arrays"
    refused(two, ValueError, both, weights + weights, weights)


@pytest.mark.parametrize("cls", ["LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell"])
def test_shapes_and_counts(cls: str) -> None:
    for make in classes(cls):
        module = make(I, H)
        kernel, recurrent_kernel, bias = weights_of(cls)
        kind, columns = type(module).__name__, kernel.shape[1]
        for given in ([], [kernel, recurrent_kernel], [kernel, recurrent_kernel, bias, bias]):
            message = "weights must be [kernel, recurrent_kernel, bias] for a module with bias=True, got "
            refused(module, ValueError, f"{message}{len(given)} arrays", given)
        message = "weights must be [kernel, recurrent_kernel] for a module with bias=False, got 3 arrays"
        refused(make(I, H, bias=False), ValueError, message, [kernel, recurrent_kernel, bias])
        message = f"weights[0], the kernel, must be [3, {columns}] for this {kind}, got [{columns}, 3]"
        refused(module, ValueError, message, [kernel.T, recurrent_kernel, bias])
        message = (
            f"weights[1], the recurrent_kernel, must be [4, {columns}] for this {kind}, got [3, {columns}]"
        )
        refused(module, ValueError, message, [kernel, kernel, bias])
        expected = f"{list(bias.shape)} for this {kind}, got {[*bias.shape[:-1], columns - 1]}"
        message = f"weights[2], the bias, must be {expected}"
        refused(module, ValueError, message, [kernel, recurrent_kernel, bias[..., 1:]])
        message = "weights must be a list, as get_weights() returns, not "
        refused(module, TypeError, f"{message}ndarray", kernel)
        refused(module, TypeError, f"{message}NoneType", None)
        message = "weights[1], the recurrent_kernel, must be an array of numbers, not this "
        refused(module, ValueError, f"{message}list", [kernel, [[1.0], [1.0, 2.0]], bias])
        refused(module, ValueError, f"{message}str", [kernel, "recurrent_kernel", bias])
        refused(module, ValueError, f"{message}ndarray", [kernel, np.array(["a"]), bias])


@pytest.mark.parametrize("cls", [nn.GRU, nn.GRUCell, seqkernels.FusedGRU, seqkernels.FusedGRUCell])
def test_reset_after_of_the_module_and_of_the_bias(cls: Class) -> None:
    module = cls(I, H)
    name = cls.__name__
    message = (
        f"weights[2], the bias, is [12], that of a GRU with reset_after=False; this {name} has "
        "reset_after=True, for which it must be [2, 12]: "
        "make a FusedGRU or FusedGRUCell with reset_after=False to load it"
    )
    refused(module, ValueError, message, weights_of("GRU", reset_after=False))


def test_reset_after_false_of_the_module() -> None:
    module = nn.GRU(I, H)
    module.reset_after = False
    message = (
        "weights[2], the bias, is [2, 12], that of a GRU with reset_after=True; this GRU has "
        "reset_after=False, for which it must be [12]: "
        "make a FusedGRU or FusedGRUCell with reset_after=True to load it"
    )
    refused(module, ValueError, message, weights_of("GRU"))


def test_other_cells_have_no_reset_after() -> None:
    """Two rows of biases are only wrong for them."""
    kernel, recurrent_kernel, bias = weights_of("LSTM")
    message = "weights[2], the bias, must be [16] for this LSTM, got [2, 16]"
    refused(nn.LSTM(I, H), ValueError, message, [kernel, recurrent_kernel, np.stack([bias, bias])])


def test_keras_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """The installed Keras, if there is one, computes what is recorded, and its own arrays can be loaded."""
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    keras = pytest.importorskip("keras")
    live = keras_record.record(keras)
    assert live["x"] == RECORD["x"]
    for name, case in live["layers"].items():
        assert case["weights"] == RECORD["layers"][name]["weights"]
        assert np.allclose(case["output"], RECORD["layers"][name]["output"], rtol=0, atol=1e-5)

    both = keras.layers.Bidirectional(keras.layers.GRU(H, return_sequences=True))
    x = np.random.default_rng(3).standard_normal((B, T, I)).astype(np.float32)
    expected = keras.ops.convert_to_numpy(both(x))
    gru = seqkernels.FusedGRU(I, H, bidirectional=True, batch_first=True)
    all_weights = both.get_weights()
    for weights in (
        (both.forward_layer.get_weights(), both.backward_layer.get_weights()),
        (all_weights[:3], all_weights[3:]),
    ):
        seqkernels.keras.load(gru, *weights)
        assert close(gru(torch.from_numpy(x))[0], expected)
