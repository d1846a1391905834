"""fuse and subclasses of torch.nn's layers: fused where they leave the computation to torch.nn."""

from __future__ import annotations

import copy
import io
import pickle
import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import seqkernels
from seqkernels import stack

from .conftest import assert_close, flat

I, H = 5, 6


class Encoder(ABC, nn.RNNBase):
    """A base of several kinds, as libraries for forecasts have it."""

    @abstractmethod
    def first_state(self, x: Tensor) -> Any: ...

    def forward(self, x: Any, hx: Any = None, lengths: Tensor | None = None) -> Any:
        if lengths is None:
            return super().forward(x, hx=hx)
        packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
        output, hx = super().forward(packed, hx=hx)
        return pad_packed_sequence(output)[0], hx


class LSTM(Encoder, nn.LSTM):
    def first_state(self, x: Tensor) -> Any:
        return torch.zeros(1, x.size(1), H), torch.zeros(1, x.size(1), H)


class GRU(Encoder, nn.GRU):
    def first_state(self, x: Tensor) -> Any:
        return torch.zeros(1, x.size(1), H)


class OldStyle(nn.RNN):
    def forward(self, input: Tensor) -> Tensor:
        return super(OldStyle, self).forward(input)[0]  # noqa: UP008


class WithoutForward(nn.GRU):
    def check_input(self, input: Tensor, batch_sizes: Tensor | None) -> None:
        super().check_input(input, batch_sizes)
        if input.isnan().any():
            raise ValueError("not a number")


class WithNorm(nn.LSTM):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.norm, self.norm_eps = nn.LayerNorm(self.hidden_size), 0.5

    def forward(self, input: Tensor, hx: Any = None) -> Any:
        output, state = super().forward(input, hx)
        return self.norm(output) * self.norm_eps, state


class Step(nn.LSTMCell):
    def forward(self, input: Tensor, hx: Any = None) -> Any:
        h, c = super().forward(input, hx)
        return h, c.clamp(-1, 1)


class Computes(nn.LSTM):
    def forward(self, input: Tensor) -> Tensor:
        return input.cumsum(0)


class ByName(nn.LSTM):
    def forward(self, input: Tensor) -> Any:
        return nn.LSTM.forward(self, input)


class AroundIt(nn.GRU):
    def forward(self, input: Tensor) -> Any:
        if input.size(0) > 2:
            return super().forward(input)
        return torch.gru(input, torch.zeros(1, 2, H), list(self.parameters()), True, 1, 0.0, False, False)


class KeepsWeights(nn.LSTM):
    def tie(self) -> None:
        self._flat_weights[0] = self._flat_weights[1]


class Stateful(nn.GRU):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._state = None

    def forward(self, input: Tensor) -> Tensor:
        output, self._state = super().forward(input, self._state)
        return output


class NamesAlike(nn.LSTM):
    def _run(self) -> None: ...


class Slotted(nn.RNN):
    __slots__ = ("extra",)


FUSED = {
    LSTM: seqkernels.FusedLSTM,
    GRU: seqkernels.FusedGRU,
    OldStyle: seqkernels.FusedRNN,
    WithoutForward: seqkernels.FusedGRU,
    WithNorm: seqkernels.FusedLSTM,
    Step: seqkernels.FusedLSTMCell,
}
LEFT_ALONE = {
    Computes: "the forward of Computes computes by itself, without super\\(\\).forward",
    ByName: "the forward of ByName computes by itself",
    AroundIt: "the forward of AroundIt computes by itself",
    KeepsWeights: "KeepsWeights.tie uses _flat_weights, torch.nn's own list of weights",
    Stateful: "Stateful has a _state of its own, and so has the fused class",
    NamesAlike: "NamesAlike has a _run of its own",
    Slotted: "Slotted has a __slots__ of its own",
}


def results(module: nn.Module) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(4, 3, I, generator=generator)
    found = [module(x[0] if isinstance(module, nn.LSTMCell) else x)]
    if isinstance(module, Encoder):
        found += [module(x, module.first_state(x)), module(x, lengths=torch.tensor([2, 4, 1]))]
    return flat(found)


def saved_and_loaded(module: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "itself": lambda m: m,
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "torch.save": saved_and_loaded,
    **{f"pickle {n}": lambda m, n=n: pickle.loads(pickle.dumps(m, n)) for n in range(6)},
}


@pytest.mark.parametrize("cls", FUSED)
def test_fused(cls: type[nn.Module]) -> None:
    module = cls(I, H)
    keys, expected = list(module.state_dict()), results(module)
    with torch.no_grad():
        plain = results(module)
    assert seqkernels.fuse(module, backend="native") is module
    assert type(module).__name__ == f"Fused{cls.__name__}"
    for name, copied in COPIES.items():
        again = copied(module)
        assert isinstance(again, cls), name
        assert isinstance(again, FUSED[cls]), name
        assert again.backend == "native"
        assert list(again.state_dict()) == keys
        assert_close(results(again), expected, what=name)
        with torch.no_grad():
            assert_close(results(again), plain, what=name)
    assert seqkernels.unfuse(module) is module
    assert type(module) is cls
    assert all(torch.equal(a, b) for a, b in zip(results(module), expected, strict=True))
    pickle.loads(pickle.dumps(module))


@pytest.mark.parametrize("cls", FUSED)
def test_kernels_run_and_explain_says_so(cls: type[nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(3, I) if cls is Step else torch.randn(4, 3, I)
    module = cls(I, H)
    before = seqkernels.explain(module, x)
    seqkernels.fuse(module)
    assert seqkernels.explain(module, x) == before
    assert before.backend == "native"
    ran = []
    native = stack.LAYERS["native"]
    monkeypatch.setitem(stack.LAYERS, "native", lambda *args: ran.append(1) or native(*args))
    seqkernels.set_fastpath_enabled(False)
    try:
        with torch.no_grad():
            module(x)
    finally:
        seqkernels.set_fastpath_enabled(True)
    assert ran


def test_own_checks_are_asked_without_gradients() -> None:
    module = seqkernels.fuse(WithoutForward(I, H))
    with torch.no_grad(), pytest.raises(ValueError, match="not a number"):
        module(torch.full((4, 3, I), torch.nan))


def test_parametrized() -> None:
    class Doubled(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return 2 * weight

    module = LSTM(I, H)
    parametrize.register_parametrization(module, "weight_hh_l0", Doubled())
    expected = results(module)
    seqkernels.fuse(module)
    assert isinstance(module, (LSTM, seqkernels.FusedLSTM))
    assert_close(results(module), expected)
    assert_close(results(copy.deepcopy(module)), expected)
    assert_close(results(seqkernels.unfuse(module)), expected)


@pytest.mark.parametrize("cls", LEFT_ALONE)
def test_left_alone(cls: type[nn.Module], caplog: pytest.LogCaptureFixture) -> None:
    """With one line of the log for a class, however often it is met."""
    model = nn.ModuleList([cls(I, H), cls(I, H), nn.LSTM(I, H)])
    for _ in range(2):
        seqkernels.fuse(model)
    (line,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert re.match(f"seqkernels.fuse leaves {cls.__name__} alone: {LEFT_ALONE[cls]}", line)
    assert [type(m) for m in model] == [cls, cls, seqkernels.FusedLSTM]
    explained = seqkernels.explain(model[0], torch.randn(4, 3, I))
    assert explained.backend == "torch"
    assert explained.kernel == f"the forward of {cls.__name__}"
    (reason,) = explained.reasons
    assert reason in line


def test_no_namesake(caplog: pytest.LogCaptureFixture) -> None:
    class Own(nn.RNNBase):
        def forward(self, x: Tensor) -> Tensor:
            return x

    module = Own("GRU", I, H)
    seqkernels.fuse(module)
    assert "derived from none of the classes that have a fused version" in caplog.text
    assert type(module) is Own


def test_a_subclass_of_a_fused_class() -> None:
    """Is nobody's to change; explain reads its forward alike."""

    class Own(seqkernels.FusedLSTM):
        def forward(self, input: Tensor, hx: Any = None) -> Any:
            return input

    class Calls(seqkernels.FusedLSTM):
        def forward(self, input: Tensor, hx: Any = None) -> Any:
            return super().forward(input, hx)

    x = torch.randn(4, 3, I)
    for cls, backend in ((Own, "torch"), (Calls, "native")):
        module = seqkernels.unfuse(seqkernels.fuse(cls(I, H)))
        assert type(module) is cls
        assert seqkernels.explain(module, x).backend == backend


def test_subclasses_of_fused_classes_with_a_norm_of_their_own() -> None:
    class Own(WithNorm, seqkernels.FusedLSTM):
        pass

    class Cell(seqkernels.FusedGRUCell):
        norm = "batch"

    theirs, ours, x = WithNorm(I, H), Own(I, H), torch.randn(4, 3, I)
    ours.load_state_dict(theirs.state_dict())
    assert_close(ours(x), theirs(x))
    assert not Cell(I, H, reset_after=False).reset_after


@pytest.mark.parametrize("cls", [LSTM, Step])
def test_compiled(cls: type[nn.Module]) -> None:
    module = seqkernels.fuse(cls(I, H))
    x = torch.randn(3, I) if cls is Step else torch.randn(4, 3, I)
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    assert_close(flat(compiled(x)), flat(module(x)))
