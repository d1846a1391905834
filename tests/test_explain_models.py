"""explain, of calls that raise and of whole models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

import seqkernels

from .conftest import LAYERS, STEPS

I, H = 5, 6
KINDS = LAYERS + STEPS


def fused(name: str, **options: Any) -> nn.Module:
    return getattr(seqkernels, f"Fused{name}")(I, H, **options)


@pytest.mark.parametrize("name", ["LSTM", "LSTMCell"])
def test_a_state_in_a_list(name: str) -> None:
    x = torch.randn(4, 3, I) if name == "LSTM" else torch.randn(3, I)
    h = torch.zeros(1, 3, H) if name == "LSTM" else torch.zeros(3, H)
    for state in ([h, h], (h, h)):
        assert seqkernels.explain(fused(name), x, state).backend == "native"
    assert seqkernels.explain(fused(name), x, [h, h.double()]).backend == "torch"


@pytest.mark.parametrize("name", KINDS)
def test_calls_that_raise(name: str) -> None:
    module, suffix = fused(name), "_l0" if name in LAYERS else ""
    rows = (4, 3) if name in LAYERS else (3,)
    wrong = [torch.zeros(1, *rows, I)]
    if name in LAYERS:
        wrong += [torch.zeros(0, 3, I), torch.zeros(0, I)]
    for x in wrong:
        raises(module, x)
    setattr(module, f"weight_hh{suffix}", None)
    raises(module, torch.zeros(*rows, I))
    raises(fused(name, backend="native"), torch.zeros(*rows, I).int())


def raises(module: nn.Module, x: Tensor) -> None:
    explained = seqkernels.explain(module, x)
    assert explained.backend == "none"
    assert explained.reasons
    assert str(explained).startswith("none: the call raises\nbecause of\n  - ")
    with pytest.raises((TypeError, ValueError, RuntimeError)):
        module(x)


def test_frozen() -> None:
    frozen = seqkernels.freeze(seqkernels.FusedGRU(I, H))
    explained = seqkernels.explain(frozen, torch.zeros(1, 1, I))
    assert explained.backend == "frozen"
    assert explained.kernel.endswith(" gru, frozen")
    raises(frozen, torch.zeros(1, 1, I, dtype=torch.float64))


class Model(nn.Module):
    """Layers of many kinds, called in many ways; it changes with every call."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.BatchNorm1d(I), nn.Dropout(0.5))
        self.packed = seqkernels.FusedLSTM(I, H, backend="native")
        self.step = nn.GRUCell(I, H)
        self.projected = nn.ModuleList([nn.LSTM(H, H, proj_size=2)])
        self.frozen = seqkernels.freeze(seqkernels.FusedRNN(H, H))
        self.unused = nn.RNN(I, H)
        self.calls = 0

    def forward(self, x: Tensor, scale: float = 1.0, *, wide: bool = False) -> Tensor:
        self.calls += 1
        x = self.encoder(x.flatten(0, 1)).view_as(x) * scale
        (output, *_), _ = self.packed(input=pack_sequence(list(x.unbind(1))))
        h = torch.zeros(3, H)
        for step in x:
            h = self.step(step, hx=h)
        with torch.no_grad():
            self.frozen(h.unsqueeze(0))
        y = output.view(4, 3, H)
        with torch.autocast("cpu", torch.bfloat16, enabled=wide):
            self.projected[0](y + h, None)
        return y


def test_a_model() -> None:
    """One answer a layer, by its path, from what the model hands to it; nothing of the model changes."""
    model, x = Model(), torch.randn(4, 3, I)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    generator = torch.get_rng_state()
    explained = seqkernels.explain(model, x)
    assert model.calls == 0
    assert torch.equal(generator, torch.get_rng_state())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(m._forward_pre_hooks for m in model.modules())
    backends = {name: [e.backend for e in found] for name, found in explained.layers.items()}
    assert backends == {
        "packed": ["native"],
        "step": ["native"],
        "projected.0": ["native"],
        "frozen": ["frozen"],
        "unused": [],
    }
    lines = str(explained).splitlines()
    assert lines[0].startswith("packed: native: cpu/")
    assert "unused: not called" in lines
    assert str(explained) == str(seqkernels.explain(seqkernels.fuse(model), x, 2.0, wide=False))


def test_containers() -> None:
    x = torch.randn(4, 3, I)
    stack = seqkernels.models.StackedRNN(seqkernels.FusedLSTM, I, H, 2)
    explained = seqkernels.explain(stack, x)
    assert list(explained.layers) == ["layers.0", "layers.1"]
    assert all(e.backend == "native" for found in explained.layers.values() for e in found)
    state = torch.zeros(2, 3, H), torch.zeros(2, 3, H)
    assert seqkernels.explain(stack, x, state) == explained
    wide = seqkernels.explain(nn.Sequential(nn.GRU(I, H)), x)
    assert wide.layers["0"][0] == seqkernels.explain(nn.GRU(I, H), x)


def test_calls_that_differ() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.GRU(I, H)

        def forward(self, x: Tensor) -> Any:
            self.layer(x)
            with torch.autograd.forward_ad.dual_level():
                return self.layer(x)

    (found,) = seqkernels.explain(Twice(), torch.randn(4, 3, I)).layers.values()
    assert [e.backend for e in found] == ["native", "reference"]
