"""StackedRNN against torch.nn's own stacks, and against its equations written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence, unpack_sequence

import seqkernels
from seqkernels.models import StackedRNN
from tests.conftest import assert_close, flat, random_state

CLASSES = [seqkernels.FusedLSTM, seqkernels.FusedGRU, seqkernels.FusedRNN, nn.LSTM]
T, B, I, H, L = 6, 3, 5, 4, 3
each_cell = pytest.mark.parametrize(
    "cell", CLASSES, ids=lambda cls: f"{cls.__module__.split('.')[0]}.{cls.__name__}"
)
each_way = pytest.mark.parametrize("bidirectional", [False, True], ids=["one way", "both ways"])
each_skip = pytest.mark.parametrize("skip", [None, "residual", "concat"])


@each_cell
@each_way
def test_without_skips_it_is_torchs_stack(cell: type[nn.RNNBase], bidirectional: bool) -> None:
    stack = StackedRNN(cell, I, H, L, bidirectional=bidirectional)
    whole = next(c for c in cell.__mro__ if c.__module__.startswith("torch."))(  # the torch.nn class
        I, H, L, bidirectional=bidirectional
    )
    names = [name for name, _ in stack.named_parameters()]
    renamed = {name: f"{name.split('.')[2].replace('_l0', f'_l{name.split(chr(46))[1]}')}" for name in names}
    whole.load_state_dict({renamed[name]: p for name, p in stack.named_parameters()})
    x, hx = (
        torch.randn(T, B, I, requires_grad=True),
        random_state(cell.__name__, L * (2 if bidirectional else 1), B, H),
    )
    actual, expected = flat(stack(x, hx)), flat(whole(x, hx))
    assert_close(actual, expected)
    gradients = [torch.autograd.grad(sum(t.sin().sum() for t in out), x)[0] for out in (actual, expected)]
    assert_close(*gradients)


@each_cell
@each_way
@each_skip
def test_equations(cell: type[nn.RNNBase], bidirectional: bool, skip: str | None) -> None:
    width = 8 if bidirectional else 4
    stack = StackedRNN(cell, I, H, L, skip=skip, bidirectional=bidirectional)
    x = torch.randn(T, B, I)
    output, final = stack(x)
    x0, (f0, f1, f2) = x, stack.layers
    x1 = f0(x0)[0] if skip != "concat" else torch.cat([x0, f0(x0)[0]], 2)  # I is not D*H: no sum here
    y1, y1_final = f1(x1)
    x2 = {None: y1, "residual": x1 + y1 if skip == "residual" else y1, "concat": torch.cat([x1, y1], 2)}[skip]
    y2 = f2(x2)[0]
    x3 = {None: y2, "residual": x2 + y2 if skip == "residual" else y2, "concat": torch.cat([x2, y2], 2)}[skip]
    assert_close(output, x3)
    assert output.size(-1) == stack.output_size == (width if skip != "concat" else I + L * width)
    d = stack.directions
    for all_layers, second in zip(flat(final), flat(y1_final), strict=True):
        assert_close(all_layers[d : 2 * d], second)


def test_residual_from_the_first_layer_where_widths_are_equal() -> None:
    stack = StackedRNN(seqkernels.FusedGRU, H, H, 1, skip="residual")
    x = torch.randn(T, B, H)
    assert_close(stack(x)[0], x + stack.layers[0](x)[0])


@each_skip
@each_way
def test_packed_sequences(skip: str | None, bidirectional: bool) -> None:
    """Every sequence for itself gives what the packed batch gives, whatever the order of lengths."""
    stack = StackedRNN(seqkernels.FusedLSTM, I, H, 2, skip=skip, bidirectional=bidirectional)
    x, lengths = torch.randn(T, B, I), torch.tensor([2, 6, 3])
    packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
    output, (h_n, c_n) = stack(packed)
    assert isinstance(output, PackedSequence)
    for n, sequence in enumerate(unpack_sequence(output)):
        alone, (h, c) = stack(x[: lengths[n], n : n + 1])
        assert_close([sequence, h_n[:, n], c_n[:, n]], [alone[:, 0], h[:, 0], c[:, 0]])
    assert pad_packed_sequence(output)[0].shape == (T, B, stack.output_size)


def test_layouts() -> None:
    stack = StackedRNN(seqkernels.FusedGRU, I, H, 2, skip="concat")
    turned = StackedRNN(seqkernels.FusedGRU, I, H, 2, skip="concat", batch_first=True)
    turned.load_state_dict(stack.state_dict())
    x = torch.randn(T, B, I)
    output, h_n = stack(x)
    assert_close(flat(turned(x.transpose(0, 1))), [output.transpose(0, 1), h_n])
    alone, h_alone = stack(x[:, 0])
    assert_close([alone, h_alone], [output[:, 0], h_n[:, 0]])


def test_state_carries_on() -> None:
    stack = StackedRNN(seqkernels.FusedLSTM, I, H, 2, skip="residual")
    x = torch.randn(T, B, I)
    whole, final = stack(x)
    first, middle = stack(x[:2])
    second, end = stack(x[2:], middle)
    assert_close([torch.cat([first, second]), *end], [whole, *final])


@each_skip
def test_dropout_between_layers_while_training(skip: str | None) -> None:
    stack = StackedRNN(seqkernels.FusedRNN, I, H, 2, skip=skip, dropout=1.0)
    x = torch.randn(T, B, I)
    received: list[Tensor] = []
    stack.layers[1].register_forward_pre_hook(lambda module, args: received.append(args[0]))
    output, _ = stack(x)
    assert not received[0][..., -H:].any()  # nothing of the first layer's output is left
    assert output[..., -H:].any()  # the last layer's is not dropped
    stack.eval()
    stack(x)
    assert received[1][..., -H:].any()


def test_initialisation_and_backends_reach_every_layer() -> None:
    stack = StackedRNN(seqkernels.FusedRNN, H, H, 2, nonlinearity="relu", backend="native")
    seqkernels.init.identity_(stack)
    assert all(torch.equal(layer.weight_hh_l0, torch.eye(H)) for layer in stack.layers)
    assert [layer.backend for layer in stack.layers] == ["native", "native"]
    plain = seqkernels.unfuse(StackedRNN(seqkernels.FusedLSTM, I, H, 2))
    assert [type(layer) for layer in plain.layers] == [nn.LSTM, nn.LSTM]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [({"skip": "dense"}, "'dense'"), ({"num_layers": 0}, "at least 1"), ({"dropout": 1.5}, "probability")],
)
def test_wrong_arguments(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StackedRNN(seqkernels.FusedGRU, I, H, **kwargs)


def test_wrong_state() -> None:
    stack = StackedRNN(seqkernels.FusedGRU, I, H, L, bidirectional=True)
    with pytest.raises(RuntimeError, match=r"size 3 .* expected 3 layers \* 2 directions"):
        stack(torch.randn(T, B, I), torch.randn(L, B, H))
