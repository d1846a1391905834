"""fuse, unfuse, explain, and what `python -m seqkernels` prints."""

from __future__ import annotations

import copy
import itertools
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import seqkernels
from seqkernels import _C, __main__, dispatch, functional, stack
from seqkernels.cells import CELLS
from seqkernels.spec import LayerSpec
from tests import kernels

from .conftest import assert_close, flat

NAMES = ("LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell")


class Custom(nn.LSTM):
    """A subclass, whose forward is its own."""

    def forward(self, input: Tensor) -> Tensor:
        return input.cumsum(0)


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


class Model(nn.Module):
    """Every kind, nested, one of them twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({name: getattr(nn, name)(4, 5) for name in NAMES})
        self.again = self.layers["LSTM"]
        self.nested = nn.Sequential(nn.Sequential(nn.GRU(4, 5, 2, bidirectional=True)))
        self.custom = Custom(4, 5)
        self.head = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> list[Tensor]:
        return flat([layer(x) for layer in (*self.layers.values(), self.again, self.nested, self.custom)])


def classes(model: nn.Module) -> list[str]:
    return [type(module).__name__ for module in model.modules()]


def test_fuse_and_unfuse(caplog: pytest.LogCaptureFixture) -> None:
    model = Model()
    x = torch.randn(3, 4)
    before = classes(model)
    parameters, modules = dict(model.named_parameters()), list(model.modules())
    expected = model(x)
    assert seqkernels.fuse(model) is model
    assert "seqkernels.fuse leaves Custom alone" in caplog.text
    assert classes(model) == [f"Fused{name}" if name in NAMES else name for name in before]
    assert_close(model(x), expected)
    assert all(a is b for a, b in zip(modules, model.modules(), strict=True))
    assert all(p is parameters[name] for name, p in model.named_parameters())
    assert seqkernels.unfuse(model) is model
    assert classes(model) == before
    assert not any("_backend" in vars(module) for module in model.modules())
    assert_close(model(x), expected)


@pytest.mark.parametrize("name", NAMES)
def test_the_model_itself(name: str) -> None:
    module = getattr(nn, name)(4, 5)
    assert seqkernels.fuse(module, backend="native") is module
    assert type(module) is getattr(seqkernels, f"Fused{name}")
    assert module.backend == "native"
    seqkernels.fuse(module)
    assert module.backend == "auto"
    assert type(seqkernels.unfuse(module)) is getattr(nn, name)


def test_hooks_and_optimizers_stay() -> None:
    model, calls = nn.Sequential(nn.LSTM(4, 5)), []
    model[0].register_forward_hook(lambda *_: calls.append("hook"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    seqkernels.fuse(model)
    model(torch.randn(3, 2, 4))[0].sum().backward()
    before = model[0].weight_hh_l0.detach().clone()
    optimizer.step()
    assert calls == ["hook"]
    assert not torch.equal(before, model[0].weight_hh_l0)


def test_training_mode_stays() -> None:
    model = seqkernels.fuse(nn.LSTM(4, 5, 2, dropout=0.9).eval())
    x = torch.randn(3, 2, 4)
    assert torch.equal(model(x)[0], model(x)[0])
    model.train()
    assert not torch.equal(model(x)[0], model(x)[0])


@pytest.mark.parametrize("name", NAMES)
def test_parametrized_modules(name: str) -> None:
    module = getattr(nn, name)(4, 5)
    key = "weight_hh" if name.endswith("Cell") else "weight_hh_l0"
    parametrize.register_parametrization(module, key, Doubled())
    twin, x = copy.deepcopy(module), torch.randn(3, 4)
    expected = flat(module(x))
    seqkernels.fuse(module)
    assert isinstance(module, getattr(seqkernels, f"Fused{name}"))
    assert type(module).__name__ == f"ParametrizedFused{name}"
    assert not isinstance(twin, getattr(seqkernels, f"Fused{name}"))
    for m in (module, twin, copy.deepcopy(module)):
        assert_close(flat(m(x)), expected)
    seqkernels.unfuse(module)
    assert type(module).__name__ == f"Parametrized{name}"
    assert_close(flat(module(x)), expected)
    parametrize.remove_parametrizations(seqkernels.fuse(module), key)
    assert type(module) is getattr(seqkernels, f"Fused{name}")
    assert_close(flat(module(x)), expected)


class Tagger(nn.Module):
    """A usual model for sequences of different lengths."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 6)
        self.recurrent = nn.LSTM(6, 7, 2, bidirectional=True, batch_first=True, dropout=dropout)
        self.head = nn.Linear(14, 5)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(self.embedding(tokens), lengths, batch_first=True, enforce_sorted=False)
        return self.head(pad_packed_sequence(self.recurrent(packed)[0], batch_first=True)[0])


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_model_trains_alike(dropout: float, device: torch.device) -> None:
    if dropout and device.type != "cpu":
        pytest.skip("cuDNN has a generator of its own for dropout")
    plain = Tagger(dropout).to(device, torch.float64)
    model = seqkernels.fuse(copy.deepcopy(plain), backend="native")
    lengths = torch.tensor([3, 8, 1, 5])
    tokens, labels = torch.randint(20, (4, 8), device=device), torch.randint(5, (4, 8), device=device)

    def losses(model: Tagger) -> list[float]:
        torch.manual_seed(1)
        optimizer, found = torch.optim.Adam(model.parameters(), lr=0.01), []
        for _ in range(10):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(tokens, lengths).flatten(0, 1), labels.flatten())
            loss.backward()
            optimizer.step()
            found.append(loss.item())
        return found

    expected = losses(plain)
    assert expected[-1] < expected[0]
    assert losses(model) == pytest.approx(expected, rel=1e-9)


# ---------------------------------------------------------------- explain

FIXES = {
    "dtype int32": lambda m, x: (m, x.int(), None),
    "layout torch.sparse_coo": lambda m, x: (m, x.to_sparse(), None),
    "state of dtype float64": lambda m, x: (m, x, (torch.zeros(1, 2, 5).double(),) * 2),
    "state on meta": lambda m, x: (m, x, (torch.zeros(1, 2, 5, device="meta"),) * 2),
    "weights of dtype float64": lambda m, x: (m.double(), x, None),
    "weights on meta": lambda m, x: (m.to("meta"), x, None),
    "backend='reference'": lambda m, x: (seqkernels.FusedLSTM(4, 5, backend="reference"), x, None),
}


@pytest.mark.parametrize("reason", FIXES)
def test_explain_gives_the_reason(reason: str) -> None:
    module, x, hx = FIXES[reason](seqkernels.FusedLSTM(4, 5), torch.randn(3, 2, 4))
    explanation = seqkernels.explain(module, x, hx)
    backend = "reference" if reason.startswith("backend") else "torch"
    assert explanation.backend == backend
    assert any(text.startswith(reason) for text in explanation.reasons), explanation.reasons
    assert reason in str(explanation)
    assert str(explanation).startswith(f"{backend}: cpu/{backend} lstm\nnot faster because of\n  - ")


def test_explain_gives_every_reason() -> None:
    module = seqkernels.FusedLSTM(4, 5, backend="reference")
    reasons = seqkernels.explain(module, torch.zeros(3, 2, 4).int()).reasons
    beginnings = ["backend='reference'", "dtype int32", "weights of dtype float32"]
    assert [r[: len(b)] for r, b in zip(reasons, beginnings, strict=True)] == beginnings


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("wide", [torch.float32, torch.bfloat16])
def test_explain_what_runs(name: str, wide: torch.dtype, target: torch.device) -> None:
    x = torch.randn(3, 4, device=target, dtype=wide)
    cell = name.removesuffix("Cell").lower()
    for module in (getattr(nn, name)(4, 5), getattr(seqkernels, f"Fused{name}")(4, 5)):
        explanation = seqkernels.explain(module.to(target, wide), x)
        assert explanation.backend == "native"
        if target.type == "cpu":
            assert explanation.kernel == f"cpu/{_C.cpu_isa()} {cell}"
            isas = [*kernels.EMULATED, *_C.cpu_isas()]
            of_no_use = {"baseline", *kernels.EMULATED}
            of_no_use |= {"avx512bf16", "amx"} if wide == torch.float32 else set()
            faster = set(isas[isas.index(_C.cpu_isa()) + 1 :]) - of_no_use
            named = [reason.split(":")[0] for reason in explanation.reasons if "is set" in reason]
            assert sorted(named) == sorted(faster)
        else:
            assert explanation.kernel.startswith(f"cuda {cell}: ")
            plan = os.environ.get("SEQKERNELS_CUDA_PLAN")
            assert plan is None or explanation.kernel.endswith(f": {plan} forward, {plan} backward")


def test_explain_takes_packed_sequences_and_autocast() -> None:
    module = seqkernels.FusedLSTM(4, 5)
    packed = nn.utils.rnn.pack_sequence([torch.randn(3, 4)])
    assert seqkernels.explain(module, packed).backend == "native"
    x = torch.randn(3, 2, 4).bfloat16()
    assert seqkernels.explain(module, x).backend == "torch"
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert seqkernels.explain(module, x).backend == "native"


def test_explain_refuses_other_modules() -> None:
    with pytest.raises(TypeError, match="a recurrent layer or cell, or a model that has some, got Linear"):
        seqkernels.explain(nn.Linear(4, 5), torch.zeros(3, 4))


@pytest.mark.parametrize("cell", ["lstm", "lstm_projected", "lstm_layer_norm"])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_supported_where_there_is_no_reason_against(device: str, cell: str) -> None:
    dtypes = (torch.float32, torch.bfloat16, torch.int64, torch.complex64)
    for x_dtype, s_dtype, w_dtype in itertools.product(dtypes, repeat=3):
        x, w = torch.zeros(1, 1, 2, dtype=x_dtype), torch.zeros(2, 2, dtype=w_dtype)
        state = [torch.zeros(1, 1, 2, dtype=s_dtype, device=device)]
        spec, weights = LayerSpec(cell), [w] * CELLS[cell].weights(True)
        reasons = dispatch.not_supported_reasons(spec, x, state, weights)
        assert dispatch.supports(spec, x, state, weights) == (not reasons)


def test_native_raises_with_every_reason() -> None:
    x, h = torch.zeros(3, 2, 4, dtype=torch.complex64), torch.zeros(1, 2, 5, dtype=torch.float64)
    weights = list(nn.LSTM(4, 5).parameters())
    with pytest.raises(RuntimeError) as caught:
        functional.lstm(x, (h, h), weights, backend="native")
    message = str(caught.value)
    assert message.startswith("backend='native' cannot run this because of\n  - dtype complex64")
    assert "state of dtype float64 with input of complex64" in message
    assert "weights of dtype float32 with input of complex64" in message


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_explained_backend_is_the_one_that_runs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = getattr(seqkernels, f"Fused{name}")(4, 5)
    ran = []
    for backend, layer in stack.LAYERS.items():

        def record(*args: Any, layer: Callable[..., tuple] = layer, backend: str = backend) -> tuple:
            ran.append(backend)
            return layer(*args)

        monkeypatch.setitem(stack.LAYERS, backend, record)
    x = torch.randn(3, 2, 4)
    for chosen in ("auto", "native", "reference"):
        module.backend = chosen
        module(x)
        assert ran.pop() == seqkernels.explain(module, x).backend


def test_report() -> None:
    lines = __main__.report().splitlines()
    rows = {line[:16].strip(): line[17:] for line in lines}
    assert rows["seqkernels"].startswith(seqkernels.__version__)
    assert rows["torch"].startswith(torch.__version__)
    assert rows["runnable here"].split(", ") == _C.cpu_isas()
    assert rows["in use"].startswith(_C.cpu_isa())
    assert rows["threads"] == str(torch.get_num_threads())
    assert all(rows.values())
