"""Layers whose states start anew inside sequences, against one step at a time in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import seqkernels
from seqkernels import resets

from .conftest import LAYERS, assert_close, flat

I, H = 5, 6


def fused(name: str, *args: Any, **kwargs: Any) -> nn.Module:
    torch.manual_seed(0)
    return getattr(seqkernels, f"Fused{name}")(*args, **kwargs)


def by_segments(name: str, layer: nn.Module, x: Tensor, hx: Any, mask: Tensor) -> tuple[Tensor, list[Tensor]]:
    """What is right, of one sequence: x [T, I], state [L*D, H], mask [T]; each segment is run alone."""
    cell, directions = getattr(nn, name), 2 if layer.bidirectional else 1
    cuts = [t for t in range(1, len(x)) if mask[t]]
    bounds = list(zip([0, *cuts], [*cuts, len(x)], strict=True))
    states, finals = [s.clone() for s in flat(hx)], []
    for n in range(layer.num_layers):
        width, outputs = x.size(1), []
        single = cell(width, H, bias=layer.bias, bidirectional=directions == 2, dtype=torch.float64)
        for key, weight in layer.state_dict().items():
            if f"_l{n}" in key:
                single.state_dict()[key.replace(f"_l{n}", "_l0")].copy_(weight)
        last = [torch.zeros(directions, H, dtype=torch.float64) for _ in states]
        for begin, end in bounds:
            start = [s[n * directions : (n + 1) * directions].clone() for s in states]
            for s in start:
                if begin > 0 or mask[0]:
                    s[0] = 0
                if end < len(x) and directions == 2:
                    s[1] = 0
            output, final = single(x[begin:end], tuple(start) if name == "LSTM" else start[0])
            outputs.append(output)
            for kept, s in zip(last, flat(final), strict=True):
                if end == len(x):
                    kept[0] = s[0]
                if begin == 0 and directions == 2:
                    kept[1] = s[1]
        x = torch.cat(outputs)
        finals.append(last)
    return x, [torch.cat(f) for f in zip(*finals, strict=True)]


def problem(name: str, seq_len: int = 9, batch: int = 4, layers: int = 2, directions: int = 2) -> Any:
    generator = torch.Generator().manual_seed(3)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    hx = tuple(random(layers * directions, batch, H) for _ in range(2 if name == "LSTM" else 1))
    mask = torch.rand(seq_len, batch, generator=generator) < 0.3
    mask[:, 0] = False  # a sequence without, one with nothing else, one that starts with its own state
    mask[:, 1] = True
    mask[0, 2] = False
    return random(seq_len, batch, I), hx if name == "LSTM" else hx[0], mask


def expected(name: str, layer: nn.Module, x: Tensor, hx: Any, mask: Tensor, lengths: Any = None) -> Any:
    """Padded output and final states."""
    output = torch.zeros(*x.shape[:2], (2 if layer.bidirectional else 1) * H, dtype=torch.float64)
    finals = []
    for b in range(x.size(1)):
        length = x.size(0) if lengths is None else int(lengths[b])
        state = tuple(s[:, b].double() for s in flat(hx))
        own, final = by_segments(name, layer, x[:length, b].double(), state, mask[:length, b])
        output[:length, b] = own
        finals.append(final)
    return output, [torch.stack(f, 1) for f in zip(*finals, strict=True)]


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("layout", ["time_first", "batch_first", "unbatched", "packed", "unsorted"])
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("name", LAYERS)
def test_against_segments_alone(name: str, directions: int, layout: str, backend: str) -> None:
    x, hx, mask = problem(name, directions=directions)
    first = layout == "batch_first"
    layer = fused(name, I, H, 2, bidirectional=directions == 2, batch_first=first, backend=backend)
    lengths = None
    if layout == "unbatched":
        x, mask = x[:, 2:3], mask[:, 2:3]
        hx = tuple(s[:, 2:3] for s in hx) if name == "LSTM" else hx[:, 2:3]
    if layout in ("packed", "unsorted"):
        lengths = torch.tensor([9, 7, 7, 1] if layout == "packed" else [7, 1, 9, 7])
    output, finals = expected(name, layer, x, hx, mask, lengths)

    if lengths is not None:
        packed = pack_padded_sequence(x, lengths, enforce_sorted=layout == "packed")
        own = pack_padded_sequence(mask.unsqueeze(-1), lengths, enforce_sorted=layout == "packed").data
        result, final = layer(packed, hx, reset_mask=own.squeeze(-1))
        assert isinstance(result, PackedSequence)
        result = pad_packed_sequence(result, total_length=9)[0]
    elif layout == "unbatched":
        state = tuple(s.squeeze(1) for s in hx) if name == "LSTM" else hx.squeeze(1)
        result, final = layer(x.squeeze(1), state, reset_mask=mask.squeeze(1))
        output, finals = output.squeeze(1), [f.squeeze(1) for f in finals]
    elif first:
        result, final = layer(x.transpose(0, 1), hx, reset_mask=mask.t())
        output = output.transpose(0, 1)
    else:
        result, final = layer(x, hx, reset_mask=mask)
    assert result.shape == output.shape
    assert_close(result, output)
    for got, want in zip(flat(final), finals, strict=True):
        assert got.shape == want.shape
        assert_close(got, want)


@pytest.mark.parametrize("name", LAYERS)
def test_without_a_state(name: str) -> None:
    x, hx, mask = problem(name)
    layer = fused(name, I, H, 2, bidirectional=True)
    zeros = tuple(torch.zeros_like(s) for s in hx) if name == "LSTM" else torch.zeros_like(hx)
    for got, want in zip(
        flat(layer(x, reset_mask=mask)), flat(layer(x, zeros, reset_mask=mask)), strict=True
    ):
        assert torch.equal(got, want)


@pytest.mark.parametrize("name", LAYERS)
def test_a_mask_of_nothing(name: str) -> None:
    x, hx, mask = problem(name)
    layer = fused(name, I, H, 2, bidirectional=True)
    for got, want in zip(
        flat(layer(x, hx, reset_mask=torch.zeros_like(mask))), flat(layer(x, hx)), strict=True
    ):
        assert torch.equal(got, want)


@pytest.mark.parametrize("name", LAYERS)
def test_gradients(name: str) -> None:
    """Of first and second order; and nothing of what was before a reset, or of a state never used."""
    x, hx, mask = problem(name, seq_len=4, batch=3, layers=1)
    layer = fused(name, I, H, 1, bidirectional=True).double()
    inputs = [t.double().requires_grad_() for t in (x, *flat(hx))]

    def run(x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        return tuple(flat(layer(x, state if name == "LSTM" else state[0], reset_mask=mask)))

    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)

    layer = fused(name, I, H).double()
    mask = torch.tensor([False, False, True, False]).unsqueeze(1).expand(4, 3)
    state = tuple(s[:1] for s in inputs[1:])
    output, _ = layer(inputs[0], state if name == "LSTM" else state[0], reset_mask=mask)
    before, *of_state = torch.autograd.grad(output[3].sum(), [inputs[0], *inputs[1:]])
    assert (before[:2] == 0).all()
    assert (before[2:] != 0).all()
    assert all((g == 0).all() for g in of_state)


def test_a_state_that_is_not_finite_ends_at_a_reset() -> None:
    x, hx, mask = problem("LSTM", layers=1, directions=1)
    mask[0] = True
    broken = tuple(torch.full_like(s, float("nan")) for s in hx)
    output, _ = fused("LSTM", I, H)(x, broken, reset_mask=mask)
    assert output.isfinite().all()


def test_dtype_device_and_long_segments(dtype: torch.dtype, target: torch.device) -> None:
    x, hx, mask = problem("GRU", seq_len=70, batch=9, layers=1, directions=1)
    mask &= torch.rand(mask.shape) < 0.1
    layer = fused("GRU", I, H).to(dtype)
    output, finals = expected("GRU", layer, x.to(dtype), hx.to(dtype), mask)
    layer.to(target)
    result, final = layer(x.to(dtype).to(target), hx.to(dtype).to(target), reset_mask=mask)
    assert_close(result, output)
    assert_close(final, finals[0])


def test_no_bias_and_dropout_in_eval() -> None:
    x, hx, mask = problem("LSTM")
    layer = fused("LSTM", I, H, 2, bidirectional=True, bias=False, dropout=0.5)
    layer.eval()
    output, _ = expected("LSTM", layer, x, hx, mask)
    assert_close(layer(x, hx, reset_mask=mask)[0], output)


def test_compiled() -> None:
    x, hx, mask = problem("GRU")
    layer = fused("GRU", I, H, 2, bidirectional=True)
    compiled = torch.compile(lambda x, mask: layer(x * 2, hx, reset_mask=mask)[0] + 1, backend="eager")
    assert_close(compiled(x, mask), layer(x * 2, hx, reset_mask=mask)[0].double() + 1)
    assert_close(compiled(x, ~mask), layer(x * 2, hx, reset_mask=~mask)[0].double() + 1)


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        (torch.zeros(9, 4), TypeError, "reset_mask must be a bool tensor, got torch.float32"),
        ([True], TypeError, "reset_mask must be a bool tensor, got list"),
        (
            torch.zeros(4, 9, dtype=torch.bool),
            ValueError,
            r"reset_mask must have one value for each row of the input, \(9, 4\), got \(4, 9\)",
        ),
    ],
)
def test_wrong_masks(mask: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        fused("RNN", I, H)(torch.randn(9, 4, I), reset_mask=mask)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("shapes", [((9, 4, I), (1, 3, H)), ((9, 4, I + 1), (1, 4, H)), ((9, I), (1, 4, H))])
def test_errors_of_torch_stay(name: str, shapes: Any) -> None:
    """A state or an input of the wrong size: the same words with and without a mask."""
    x, state = (torch.randn(shape) for shape in shapes)
    layer, hx = fused(name, I, H), (state, state) if name == "LSTM" else state
    errors = []
    for options in ({}, {"reset_mask": torch.ones(x.shape[:-1], dtype=torch.bool)}):
        with pytest.raises(RuntimeError) as error:
            layer(x, hx, **options)
        errors.append(str(error.value))
    assert errors[0] == errors[1]


@pytest.mark.parametrize("name", LAYERS)
def test_states_of_another_batch_are_refused(name: str) -> None:
    """Segments would hide them; of packed sequences, too."""
    layer, packed = fused(name, I, H), pack_padded_sequence(torch.randn(4, 2, I), torch.tensor([4, 3]))
    states = tuple(torch.randn(1, 3, H) for _ in range(2 if name == "LSTM" else 1))
    hx = states if name == "LSTM" else states[0]
    mask = torch.ones(7, dtype=torch.bool)
    with pytest.raises(RuntimeError, match=r"Expected hidden(\[0\])? size \(1, 2, 6\), got \[1, 3, 6\]"):
        layer(packed, hx, reset_mask=mask)
    run = getattr(seqkernels.functional, name.lower())
    weights, batch_sizes = list(layer.parameters()), packed.batch_sizes
    with pytest.raises(RuntimeError, match=r"begin with the batch of h0 \(3\); got 2 at step 0"):
        run(packed.data, hx, weights, batch_sizes=batch_sizes, reset_mask=mask)


def test_functional_with_a_mask() -> None:
    """A mask in the layout of x; what does not fit is named."""
    layer = fused("GRU", I, H, bidirectional=True)
    x, h0, weights = torch.randn(4, 2, I), torch.randn(2, 2, H), list(layer.parameters())
    mask = torch.rand(4, 2) < 0.5
    expected = layer(x, h0, reset_mask=mask)
    gru, options = seqkernels.functional.gru, {"bidirectional": True}
    output, h_n = gru(x, h0, weights, reset_mask=mask, **options)
    assert torch.equal(output, expected[0])
    assert torch.equal(h_n, expected[1])
    turned, _ = gru(x.transpose(0, 1), h0, weights, reset_mask=mask.t(), batch_first=True, **options)
    assert torch.equal(turned.transpose(0, 1), output)
    ones = torch.ones(4, dtype=torch.bool)
    for sizes in ([1, 3], [3, 1, 0], [3, 2], []):
        batch_sizes = torch.tensor(sizes, dtype=torch.int64)
        with pytest.raises(RuntimeError, match="batch_sizes"):
            gru(x[:, 0], h0, weights, reset_mask=ones, batch_sizes=batch_sizes, **options)
    with pytest.raises(RuntimeError, match="x must have 3 dimensions, got 2"):
        gru(x[:, 0], h0, weights, reset_mask=ones, **options)


def test_stack() -> None:
    x, _, mask = problem("GRU")
    stack = seqkernels.models.StackedRNN(seqkernels.FusedGRU, I, H, 2)
    plain = seqkernels.FusedGRU(I, H, 2)
    plain.load_state_dict(
        {
            key.replace("_l0", f"_l{n}"): value
            for n, layer in enumerate(stack.layers)
            for key, value in layer.state_dict().items()
        }
    )
    for got, want in zip(flat(stack(x, reset_mask=mask)), flat(plain(x, reset_mask=mask)), strict=True):
        assert_close(got, want.double())


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("directions", [1, 2])
def test_segments_side_by_side(name: str, directions: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where that is faster, with the results of the kernels' own resets; explain says so."""
    x, hx, mask = problem(name, seq_len=12, directions=directions)
    mask[2:10:3] = True  # now no segment is longer than half of the steps
    options = {"return_cell_states": True} if name == "LSTM" else {}
    layer, ran, run = fused(name, I, H, 2, bidirectional=directions == 2, **options), [], resets.run
    monkeypatch.setattr(resets, "run", lambda *args: ran.append(1) or run(*args))
    expected = flat(layer(x, hx, reset_mask=mask))
    assert not ran
    assert "segments" not in seqkernels.explain(layer, x, hx, reset_mask=mask).kernel
    monkeypatch.setattr(resets, "UNITS_FOR_EACH", 1)
    monkeypatch.setattr(resets, "FEWEST_STEPS", 12)
    assert "segments between resets side by side" in seqkernels.explain(layer, x, hx, reset_mask=mask).kernel
    for got, want in zip(flat(layer(x, hx, reset_mask=mask)), expected, strict=True):
        assert_close(got, want.double())
    assert ran
    ran.clear()
    mask[:, 0] = False
    layer(x, hx, reset_mask=mask)
    layer(x[:11], hx, reset_mask=mask[:11])
    assert not ran


def test_longest_segment() -> None:
    mask = torch.zeros(10, 3, dtype=torch.bool)
    assert resets._longest(mask) == 10
    mask[[2, 7], :] = True
    assert resets._longest(mask) == 5
    mask[5, 1:] = True
    assert resets._longest(mask[:, 1:]) == 3
    assert resets._longest(mask[:, :0]) == 0


@pytest.mark.parametrize("batch_first", [False, True])
def test_under_a_default_device(batch_first: bool) -> None:
    """What is made on the way has the device of the tensors that are there."""
    layer = fused("LSTM", I, H, batch_first=batch_first)
    x, mask = torch.randn(4, 4, I), torch.rand(4, 4) < 0.5
    packed = pack_padded_sequence(x, torch.tensor([4, 3, 3, 1]))
    rows = torch.rand(len(packed.data)) < 0.5
    expected = flat([layer(x, reset_mask=mask), layer(packed, reset_mask=rows)])
    with torch.device("meta"):
        found = flat([layer(x, reset_mask=mask), layer(packed, reset_mask=rows)])
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
