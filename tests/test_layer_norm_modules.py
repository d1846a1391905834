"""Layers with layer normalisation as modules: parameters, copies, mistakes, and what torch makes of them."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import seqkernels
from seqkernels import functional, keras

from .conftest import assert_close, flat
from .problems import FLOAT64
from .test_layer_norm import EPS, NAMES, NORMS, H, I, called, gradients, make, states_of


@pytest.mark.parametrize("name", NAMES)
def test_parameters(name: str) -> None:
    cls, norm, extra = NORMS[name]
    layer = cls(I, H, 2, bidirectional=True, norm=norm)
    theirs = cls._like(I, H, 2, bidirectional=True)
    own = ["weight_ih", "weight_hh", "bias_ih", "bias_hh", *extra]
    suffixes = ["_l0", "_l0_reverse", "_l1", "_l1_reverse"]
    assert list(layer.state_dict()) == [key + suffix for suffix in suffixes for key in own]
    gates = len(layer.weight_ih_l0)
    for key, p in layer.named_parameters():
        if "norm" in key:
            assert list(p.shape) == [H if "norm_c" in key else gates]
        else:
            assert p.shape == getattr(theirs, key).shape
        if "bias" in key or "norm" in key:
            assert (p == float("bias" not in key)).all()
        else:
            assert p.abs().max() <= H**-0.5
            assert p.std() > 0.1
    assert [[p.shape for p in layers] for layers in layer.all_weights] == [
        [getattr(layer, key + suffix).shape for key in own] for suffix in suffixes
    ]
    assert layer.double()(torch.randn(4, 3, I, **FLOAT64))[0].dtype is torch.float64


@pytest.mark.parametrize("name", NAMES)
def test_initial_weights_are_those_of_torch(name: str) -> None:
    cls, norm, _ = NORMS[name]
    torch.manual_seed(5)
    layer = cls(I, H, 2, norm=norm)
    torch.manual_seed(5)
    theirs = cls._like(I, H, 2)
    assert all((getattr(layer, key) == p).all() for key, p in theirs.named_parameters() if "weight" in key)


@pytest.mark.parametrize("name", NAMES)
def test_explain(name: str) -> None:
    cls, norm, _ = NORMS[name]
    layer = cls(I, H, norm=norm)
    report = seqkernels.explain(layer, torch.randn(4, 3, I))
    assert report.backend == "native"
    cells = {"LSTM": "lstm_layer_norm", "joint": "lstm_layer_norm_joint", "GRU": "gru_layer_norm"}
    assert report.kernel.split()[1:] == [cells[name]]
    assert not report.reasons
    batch = torch.nn.utils.rnn.pack_sequence([torch.randn(4, I)])
    assert seqkernels.explain(layer, batch).backend == "native"
    layer.backend = "reference"
    assert seqkernels.explain(layer, torch.randn(4, 3, I)).backend == "reference"


@pytest.mark.parametrize("norm", ["layer", "layer-joint"])
def test_forget_bias(norm: str) -> None:
    layer = seqkernels.FusedLSTM(I, H, 2, norm=norm, forget_bias=1.5)
    for _ in range(2):
        for key, p in layer.named_parameters():
            if "bias" in key:
                blocks = [0, 1.5, 0, 0] if key.startswith("bias_ih") else [0] * (len(p) // H)
                assert p.tolist() == [value for value in blocks for _ in range(H)]
        layer.reset_parameters()


@pytest.mark.parametrize("name", NAMES)
def test_identity(name: str) -> None:
    layer = seqkernels.init.identity_(make(name))
    for gate in layer.weight_hh_l0.detach().split(H):
        assert_close(gate @ gate.t(), torch.eye(H))
    for key, p in layer.named_parameters():
        assert key.startswith("weight") or (p == float("bias" not in key)).all()


def saved_and_loaded(module: Any) -> Any:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    "duplicate", [copy.copy, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), saved_and_loaded]
)
@pytest.mark.parametrize("name", NAMES)
def test_copies(name: str, duplicate: Callable[[Any], Any]) -> None:
    layer, x = make(name, num_layers=2, bidirectional=True), torch.randn(4, 3, I)
    for module in (layer, seqkernels.freeze(layer, torch.bfloat16)):
        again = duplicate(module)
        assert repr(again) == repr(module)
        assert all(torch.equal(a, b) for a, b in zip(flat(again(x)), flat(module(x)), strict=True))


@pytest.mark.parametrize("cls", [seqkernels.FusedLSTM, seqkernels.FusedGRU])
def test_modules_that_were_made_before_the_option(cls: type[nn.RNNBase]) -> None:
    layer = cls(I, H)
    assert not [key for key in layer.__dict__ if "norm" in key]
    assert "norm" not in repr(layer)


def test_state_dicts() -> None:
    layer, x = make("LSTM", num_layers=2), torch.randn(4, 3, I)
    again = seqkernels.FusedLSTM(I, H, 2, norm="layer", norm_eps=EPS)
    again.load_state_dict(layer.state_dict())
    assert torch.equal(again(x)[0], layer(x)[0])
    with pytest.raises(RuntimeError, match=r'Missing key.*"norm_ih_weight_l0", "norm_hh_weight_l0"'):
        layer.load_state_dict(nn.LSTM(I, H, 2).state_dict())
    with pytest.raises(RuntimeError, match=r'Unexpected key.*"norm_ih_weight_l0"'):
        seqkernels.FusedLSTM(I, H, 2, norm="layer-joint").load_state_dict(layer.state_dict())


def test_stack() -> None:
    options = {"skip": "concat", "norm": "layer", "norm_eps": EPS}
    stack = seqkernels.models.StackedRNN(seqkernels.FusedGRU, I, H, 2, **options)
    x = torch.randn(4, 3, I)
    first, _ = stack.layers[0](x)
    second, _ = stack.layers[1](torch.cat([x, first], -1))
    assert_close(stack(x)[0], torch.cat([x, first, second], -1))
    assert [layer.norm_eps for layer in stack.layers] == [EPS, EPS]


# ---------------------------------------------------------------- functions, tools, other backends


@pytest.mark.parametrize("name", NAMES)
def test_functions(name: str) -> None:
    layer = make(name, num_layers=2, bias=False)
    x, hx = torch.randn(4, 3, I), states_of(layer, 3)
    weights = list(layer.parameters())
    options: dict[str, Any] = {"norm": NORMS[name][1], "norm_eps": EPS, "num_layers": 2, "bias": False}
    run: Callable[..., Any] = functional.gru if name == "GRU" else functional.lstm
    state = hx[0] if name == "GRU" else hx
    assert_close(list(run(x, state, weights, **options)), called(name, layer, x, hx))
    own = len(weights) // 2
    with pytest.raises(
        RuntimeError, match=rf"must be {2 * own} tensors, {own} for each .* got {2 * own - 1}"
    ):
        run(x, state, weights[:-1], **options)
    for backend in ("native", "reference"):
        with pytest.raises(RuntimeError, match=r"must have size \[\d+\], got \[1\]|of shape \[1\]"):
            run(x, state, [*weights[:-1], torch.ones(1)], **options, backend=backend)
    with pytest.raises(ValueError, match="norm_eps must be at least 0, got -1"):
        run(x, state, weights, **options | {"norm_eps": -1})


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize("name", NAMES)
def test_compiled_traced_and_exported(name: str) -> None:
    layer, x = make(name), torch.randn(4, 3, I)
    expected = flat(layer(x))
    assert_close(flat(torch.jit.trace(layer, (x,))(x)), expected)
    assert_close(flat(torch.export.export(layer, (x,)).module()(x)), expected)
    assert_close(flat(torch.fx.symbolic_trace(nn.Sequential(layer))(x)), expected)


@pytest.mark.parametrize("name", NAMES)
def test_flops(name: str) -> None:
    """Those of the products, which a layer without norms has too."""
    counts = []
    for layer in (make(name), NORMS[name][0](I, H)):
        with FlopCounterMode(display=False) as counter:
            layer(torch.randn(4, 3, I))[0].sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize("name", NAMES)
def test_autocast(name: str) -> None:
    layer, x = make(name), torch.randn(4, 3, I)
    with torch.autocast("cpu", torch.bfloat16):
        output = layer(x)[0]
    expected, parameters = layer(x)[0], list(layer.parameters())
    assert output.dtype is (torch.float32 if name == "GRU" else torch.bfloat16)  # as of torch.nn, with zeros
    assert_close(output.float(), expected, torch.bfloat16)
    assert_close(gradients([output], parameters), gradients([expected], parameters), torch.bfloat16)
    assert all(g.dtype is torch.float32 for g in gradients([layer(x)[0]], parameters))


def test_what_torch_does_not_have(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Sequential(make("LSTM"), make("GRU"), seqkernels.FusedLSTM(I, H))
    seqkernels.unfuse(model)
    for name in ("FusedLSTM", "FusedGRU"):
        assert f"unfuse leaves {name} alone: torch.nn has no norm='layer'" in caplog.text
    assert [type(m) for m in model] == [seqkernels.FusedLSTM, seqkernels.FusedGRU, nn.LSTM]
    layer = make("joint")
    with pytest.raises(RuntimeError, match="FusedLSTM cannot be scripted with norm='layer-joint'"):
        torch.jit.script(layer)
    before = copy.deepcopy(layer.state_dict())
    with pytest.raises(
        ValueError, match="must have norm=None, as no layer of Keras has one, not 'layer-joint'"
    ):
        keras.load(layer, [torch.zeros(I, 4 * H), torch.zeros(H, 4 * H), torch.zeros(4 * H)])
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())


LSTM, GRU = seqkernels.FusedLSTM, seqkernels.FusedGRU
MISTAKES: list[tuple[type[Exception], str, type, dict[str, Any]]] = [
    (ValueError, "norm must be one of None, 'layer', 'layer-joint', got 'batch'", LSTM, {"norm": "batch"}),
    (ValueError, "norm must be one of None, 'layer', 'layer-joint', got True", LSTM, {"norm": True}),
    (ValueError, r"norm must be one of .* got \['layer'\]", LSTM, {"norm": ["layer"]}),
    (ValueError, "norm must be one of None, 'layer', got 'layer-joint'", GRU, {"norm": "layer-joint"}),
    (ValueError, "norm='layer' needs proj_size=0, got 2", LSTM, {"norm": "layer", "proj_size": 2}),
    (ValueError, "norm='layer' needs reset_after=True", GRU, {"norm": "layer", "reset_after": False}),
    (ValueError, "needs bias=True", LSTM, {"norm": "layer", "forget_bias": 1.0, "bias": False}),
    (ValueError, "norm_eps must be at least 0, got -1", LSTM, {"norm_eps": -1}),
    (ValueError, "norm_eps must be at least 0, got nan", GRU, {"norm": "layer", "norm_eps": float("nan")}),
    (TypeError, "norm_eps must be a number, got str", LSTM, {"norm": "layer", "norm_eps": "1e-5"}),
    (TypeError, "norm_eps must be a number, got bool", GRU, {"norm": "layer", "norm_eps": True}),
    (TypeError, "argument 'norm'", seqkernels.FusedRNN, {"norm": "layer"}),
    (TypeError, "argument 'norm'", seqkernels.FusedLSTMCell, {"norm": "layer"}),
]


@pytest.mark.parametrize(("error", "message", "cls", "options"), MISTAKES)
def test_mistakes(error: type[Exception], message: str, cls: type, options: dict[str, Any]) -> None:
    with pytest.raises(error, match=message):
        cls(I, H, **options)


def test_reset_after_of_a_normalised_gru() -> None:
    layer, x = make("GRU"), torch.randn(4, 3, I)
    before = layer(x)[0]
    with pytest.raises(ValueError, match="norm='layer' needs reset_after=True"):
        layer.reset_after = False
    assert layer.reset_after
    layer.reset_after = True
    assert torch.equal(layer(x)[0], before)
