"""Initial weights: what they are, and what they are for."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import seqkernels
from seqkernels.init import identity_
from tests.conftest import assert_close

GATES = {nn.LSTM: 4, nn.GRU: 3, nn.LSTMCell: 4, nn.GRUCell: 3}


@pytest.mark.parametrize("cls", [nn.RNN, nn.RNNCell, seqkernels.FusedRNN, seqkernels.FusedRNNCell])
def test_rnn_gets_the_identity(cls: type[nn.Module]) -> None:
    layer = identity_(cls(3, 5), gain=0.5)
    for name, parameter in layer.named_parameters():
        if name.startswith("weight_hh"):
            assert torch.equal(parameter, 0.5 * torch.eye(5))
        elif name.startswith("bias"):
            assert not parameter.any()
        else:
            assert parameter.all()  # left as it was: random


@pytest.mark.parametrize("cls", GATES, ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_every_gate_gets_its_own_orthogonal_matrix(cls: type[nn.Module], dtype: torch.dtype) -> None:
    layer = identity_(cls(3, 5, dtype=dtype), gain=2.0)
    weights = [p for name, p in layer.named_parameters() if name.startswith("weight_hh")]
    gates = [gate.detach() for w in weights for gate in w.chunk(GATES[cls])]
    for gate in gates:
        assert_close(gate @ gate.t(), 4 * torch.eye(5, dtype=dtype))
    assert not torch.equal(gates[0], gates[1])
    assert not any(p.any() for name, p in layer.named_parameters() if name.startswith("bias"))


def test_all_layers_and_directions_of_a_model() -> None:
    model = nn.Sequential(nn.Linear(2, 2), seqkernels.FusedRNN(2, 4, num_layers=2, bidirectional=True))
    assert identity_(model) is model
    weights = [p for name, p in model.named_parameters() if "weight_hh" in name]
    assert len(weights) == 4
    assert all(torch.equal(p, torch.eye(4)) for p in weights)


def test_projection() -> None:
    layer = identity_(nn.LSTM(3, 6, proj_size=4))
    for gate in layer.weight_hh_l0.detach().chunk(4):
        assert_close(gate.t() @ gate, torch.eye(4))


def test_generator() -> None:
    def weights(seed: int) -> Tensor:
        return identity_(nn.GRU(2, 4), generator=torch.Generator().manual_seed(seed)).weight_hh_l0

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_what_cannot_be_initialised() -> None:
    with pytest.raises(ValueError, match="no recurrent layer in this Linear"):
        identity_(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="parametrized"):
        identity_(parametrizations.weight_norm(seqkernels.FusedRNN(2, 2), "weight_hh_l0"))


def test_gradients_keep_their_length_over_200_steps() -> None:
    """Without input, a ReLU RNN with identity weights hands the gradient back as it is; torch's default start
    loses it on the way."""

    def first_over_last(rnn: nn.RNN) -> float:
        x = torch.zeros(200, 1, 4, requires_grad=True)
        h0 = torch.rand(1, 1, 16, requires_grad=True)
        output, _ = rnn(x, h0)
        (gradient,) = torch.autograd.grad(output[-1].sum(), h0)
        return float(gradient.norm()) / 4  # the norm of 16 ones

    rnn = seqkernels.FusedRNN(4, 16, nonlinearity="relu")
    assert first_over_last(rnn) < 1e-6
    assert first_over_last(identity_(rnn)) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("cls", "like", "options"),
    [
        (seqkernels.FusedLSTM, nn.LSTM, {"num_layers": 2, "bidirectional": True}),
        (seqkernels.FusedLSTM, nn.LSTM, {"proj_size": 2}),
        (seqkernels.FusedLSTMCell, nn.LSTMCell, {}),
    ],
)
def test_forget_bias(cls: type[nn.Module], like: type[nn.Module], options: dict) -> None:
    """Every bias_ih of a forget gate is that much larger, all else is torch.nn's from the same seed."""
    torch.manual_seed(5)
    plain = like(3, 4, **options).state_dict()
    torch.manual_seed(5)
    layer = cls(3, 4, forget_bias=1.5, **options)
    for _ in range(2):
        state = layer.state_dict()
        assert list(state) == list(plain)
        for name, value in state.items():
            more = torch.zeros(16)
            more[4:8] = 1.5
            assert torch.equal(value, plain[name] + more if name.startswith("bias_ih") else plain[name])
        torch.manual_seed(5)
        layer.reset_parameters()
    assert "forget_bias=1.5" in repr(layer)
    assert "forget_bias=1.5" in repr(copy.deepcopy(layer))
    assert repr(seqkernels.unfuse(layer)) == repr(like(3, 4, **options))


def test_forget_bias_is_zero_unless_said() -> None:
    torch.manual_seed(5)
    plain = nn.LSTM(3, 4).state_dict()
    torch.manual_seed(5)
    layer = seqkernels.FusedLSTM(3, 4)
    assert all(torch.equal(value, plain[name]) for name, value in layer.state_dict().items())
    assert "forget_bias" not in repr(layer)
    stack = seqkernels.models.StackedRNN(seqkernels.FusedLSTM, 3, 4, 2, forget_bias=1.0)
    assert "forget_bias=1.0" in repr(stack)


@pytest.mark.parametrize("cls", [seqkernels.FusedLSTM, seqkernels.FusedLSTMCell])
def test_forget_bias_needs_a_bias(cls: type[nn.Module]) -> None:
    with pytest.raises(ValueError, match=r"forget_bias=1\.0 needs bias=True"):
        cls(3, 4, bias=False, forget_bias=1.0)
    cls(3, 4, bias=False, forget_bias=0.0)


def test_forget_bias_of_somebody_else(caplog: pytest.LogCaptureFixture) -> None:
    """A class with such an attribute of its own keeps it, and is not fused."""

    class Theirs(nn.LSTM):
        _forget_bias = 2.0

    layer = Theirs(3, 4)
    seqkernels.fuse(layer)
    assert "_forget_bias of its own" in caplog.text
    assert type(layer) is Theirs
