"""Arguments that do not fit: torch.nn's own error where it has one, else one that names the argument."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

import seqkernels
from seqkernels import functional

from .conftest import LAYERS, STEPS, flat, random_state
from .test_modules import H, I, fused, outcome, pair

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def agree(name: str, call: Callable[[nn.Module], Any]) -> None:
    """With gradients and without, ours ends as torch's does."""
    for grad in (True, False):
        theirs, ours = pair(name, I, H)
        with torch.set_grad_enabled(grad):
            assert outcome(lambda m=ours: call(m)) == outcome(lambda m=theirs: call(m))


def input_of(name: str, layout: str) -> Any:
    if name in STEPS:
        return torch.zeros(I) if layout == "unbatched" else torch.zeros(3, I)
    x = torch.zeros(4, I) if layout == "unbatched" else torch.zeros(4, 3, I)
    return pack_sequence(list(x.unbind(1))) if layout == "packed" else x


# ---------------------------------------------------------------- states

STATES: dict[str, Callable[[Tensor], Any]] = {
    "three": lambda h: (h, h, h),
    "one": lambda h: (h,),
    "none": lambda h: (),
    "list": lambda h: [h, h],
    "list of three": lambda h: [h, h, h],
    "stacked": lambda h: torch.stack([h, h]),
    "three stacked": lambda h: torch.stack([h, h, h]),
    "dict": lambda h: {},
    "number": lambda h: 3,
    "generator": lambda h: (s for s in (h, h)),
    "strings": lambda h: ("h", "c"),
    "Nones": lambda h: (None, None),
}


CASES = [(name, layout) for name in LAYERS + STEPS for layout in ("batched", "unbatched", "packed")]


@pytest.mark.parametrize("strange", STATES)
@pytest.mark.parametrize(("name", "layout"), [c for c in CASES if c[0] in LAYERS or c[1] != "packed"])
def test_strange_states(name: str, strange: str, layout: str) -> None:
    x, rows = input_of(name, layout), () if layout == "unbatched" else (3,)
    h = torch.zeros(*([1] if name in LAYERS else []), *rows, H)
    agree(name, lambda m: m(x, STATES[strange](h)))


@pytest.mark.parametrize("layers", [0, 2, 3])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_packed_states_of_other_layers(layers: int, backend: str) -> None:
    """Where torch.nn.LSTM reads past the end of a list."""
    h = torch.zeros(layers, 3, H)
    for options in ({}, {"proj_size": 2}):
        module = seqkernels.FusedLSTM(I, H, backend=backend, **options)
        for grad in (True, False):
            with torch.set_grad_enabled(grad), pytest.raises(RuntimeError, match="h0 must have size"):
                module(input_of("LSTM", "packed"), (h, h))


@pytest.mark.parametrize("c_dtype", DTYPES)
@pytest.mark.parametrize("h_dtype", DTYPES)
@pytest.mark.parametrize("name", LAYERS + STEPS)
def test_dtypes_of_states(name: str, h_dtype: torch.dtype, c_dtype: torch.dtype) -> None:
    shape = (1, 3, H) if name in LAYERS else (3, H)
    h, c = torch.zeros(shape, dtype=h_dtype), torch.zeros(shape, dtype=c_dtype)
    hx = (h, c) if "LSTM" in name else h
    agree(name, lambda m: m(input_of(name, "batched"), hx))
    if name in LAYERS:
        agree(name, lambda m: m(input_of(name, "packed"), hx))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", STEPS)
def test_dtype_of_a_cells_input(name: str, dtype: torch.dtype) -> None:
    agree(name, lambda m: m(torch.zeros(3, I, dtype=dtype)))
    agree(name, lambda m: m(torch.zeros(3, I, dtype=dtype), random_state(name, 3, H, dtype=dtype)))


@pytest.mark.parametrize("name", LAYERS + STEPS)
def test_sparse(name: str) -> None:
    h = torch.zeros(*([1] if name in LAYERS else []), 3, H).to_sparse()
    agree(name, lambda m: m(input_of(name, "batched"), (h, h) if "LSTM" in name else h))
    agree(name, lambda m: m(input_of(name, "batched").to_sparse()))


# ---------------------------------------------------------------- weights and options


@pytest.mark.parametrize("name", LAYERS + STEPS)
def test_weights_that_are_none(name: str) -> None:
    suffix = "_l0" if name in LAYERS else ""
    for weight in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):

        def call(module: nn.Module, weight: str = weight) -> Any:
            setattr(module, weight + suffix, None)
            return module(input_of(name, "batched"))

        agree(name, call)


@pytest.mark.parametrize("name", LAYERS)
def test_weights_that_are_gone(name: str) -> None:
    """With which torch.nn goes on computing."""
    module = fused(name)(I, H)
    del module.bias_ih_l0
    for grad in (True, False):
        with torch.set_grad_enabled(grad), pytest.raises(TypeError, match="expected Tensor as element 2"):
            module(torch.zeros(4, 3, I))


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("layers", [0, -1, 2])
@pytest.mark.parametrize("name", LAYERS)
def test_num_layers_set_to_what_there_is_not(name: str, layers: int, grad: bool) -> None:
    theirs, ours = pair(name, I, H)
    theirs.num_layers = ours.num_layers = layers
    with torch.set_grad_enabled(grad):
        expected = outcome(lambda: theirs(torch.zeros(4, 3, I)))
        assert outcome(lambda: ours(torch.zeros(4, 3, I)))[0] is expected[0] is RuntimeError


OWN = (
    "check_input",
    "check_forward_args",
    "check_hidden_size",
    "get_expected_hidden_size",
    "get_expected_cell_size",
    "permute_hidden",
)


@pytest.mark.parametrize("through", ["setattr", "fuse", "copy"])
@pytest.mark.parametrize(
    ("name", "method"), [(n, m) for n in LAYERS for m in OWN if n == "LSTM" or m != "get_expected_cell_size"]
)
def test_methods_of_one_instance(name: str, method: str, through: str) -> None:
    """What is set on a module, in place of a method, is called as often as with torch.nn."""
    theirs, ours = pair(name, I, H)
    if through == "fuse":
        ours = seqkernels.unfuse(ours)
    calls: list[list[int]] = [[], []]
    for module, seen in zip((theirs, ours), calls, strict=True):
        original = getattr(module, method)

        def own(*args: Any, original: Any = original, seen: list[int] = seen) -> Any:
            seen.append(1)
            return original(*args)

        setattr(module, method, own)
    if through == "fuse":
        seqkernels.fuse(ours)
    elif through == "copy":
        again = fused(name)(I, H)
        again.__setstate__(ours.__getstate__())
        ours = again
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            for x in (torch.zeros(4, 3, I), torch.zeros(4, I)):
                theirs(x), ours(x)
    assert calls[0] == calls[1] != []
    seqkernels.unfuse(ours)
    assert "_fastpath_supported" not in vars(ours)


# ---------------------------------------------------------------- functions


def lstm_arguments(layers: int, count: int) -> tuple[Tensor, Any, list[Tensor]]:
    h = torch.zeros(layers, 3, H)
    return torch.zeros(4, 3, I), (h, h), list(nn.LSTM(I, H).parameters())[:count]


CONTRADICTIONS: dict[str, tuple[Callable[..., Any], str]] = {
    "h0 of two layers": (
        lambda **o: functional.lstm(*lstm_arguments(2, 4), **o),
        r"h0 must have size \[1 layers \* 1 directions, B, H\], got \[2, 3, 6\]",
    ),
    "h0 of one direction": (
        lambda **o: functional.gru(
            torch.zeros(4, 3, I),
            torch.zeros(1, 3, H),
            list(nn.GRU(I, H, bidirectional=True).parameters()),
            bidirectional=True,
            **o,
        ),
        r"h0 must have size \[1 layers \* 2 directions, B, H\], got \[1, 3, 6\]",
    ),
    "h0 unbatched": (
        lambda **o: functional.rnn(
            torch.zeros(4, 3, I), torch.zeros(1, H), list(nn.RNN(I, H).parameters()), **o
        ),
        r"h0 must have size \[1 layers \* 1 directions, B, H\], got \[1, 6\]",
    ),
    "c0 of two layers": (
        lambda **o: functional.lstm(
            torch.zeros(4, 3, I),
            (torch.zeros(1, 3, H), torch.zeros(2, 3, H)),
            lstm_arguments(1, 4)[2],
            **o,
        ),
        r"c0 must have size",
    ),
    "a weight too few": (
        lambda **o: functional.lstm(*lstm_arguments(1, 3), **o),
        r"weights must be 4 tensors, 4 for each of 1 layers and 1 directions with bias=True, got 3",
    ),
    "a weight too many": (
        lambda **o: functional.gru(
            torch.zeros(4, 3, I),
            torch.zeros(1, 3, H),
            [*nn.GRU(I, H).parameters(), torch.zeros(1)],
            **o,
        ),
        r"weights must be 4 tensors, .*, got 5",
    ),
    "biases that are not asked for": (
        lambda **o: functional.lstm(*lstm_arguments(1, 4), bias=False, **o),
        r"weights must be 2 tensors, .* with bias=False, got 4",
    ),
    "no biases": (
        lambda **o: functional.lstm(*lstm_arguments(1, 2), **o),
        r"weights must be 4 tensors, .* with bias=True, got 2",
    ),
    "three states": (
        lambda **o: functional.lstm(
            torch.zeros(4, 3, I), (torch.zeros(1, 3, H),) * 3, lstm_arguments(1, 4)[2], **o
        ),
        r"hx must be a pair of tensors \(h, c\), got 3 tensors",
    ),
    "three states of a step": (
        lambda **o: functional.lstm_cell(
            torch.zeros(3, I), [torch.zeros(3, H)] * 3, *lstm_arguments(1, 4)[2], **o
        ),
        r"hx must be a pair of tensors \(h, c\), got 3 tensors",
    ),
    "one state": (
        lambda **o: functional.lstm(torch.zeros(4, 3, I), torch.zeros(1, 3, H), lstm_arguments(1, 4)[2], **o),
        r"hx must be a pair of tensors \(h, c\), got Tensor",
    ),
    "no layers": (
        lambda **o: functional.lstm(*lstm_arguments(0, 0), num_layers=0, **o),
        r"num_layers must be at least 1, got 0",
    ),
}


@pytest.mark.parametrize("backend", ["auto", "native", "reference"])
@pytest.mark.parametrize("what", CONTRADICTIONS)
def test_functions_refuse_contradictions(what: str, backend: str) -> None:
    call, message = CONTRADICTIONS[what]
    for grad in (True, False):
        with torch.set_grad_enabled(grad), pytest.raises(RuntimeError, match=message):
            call(backend=backend)


@pytest.mark.parametrize("name", STEPS)
def test_one_bias_of_a_cell(name: str) -> None:
    """Which torch adds."""
    theirs, ours = pair(name, I, H)
    theirs.bias_hh = ours.bias_hh = None
    x = torch.randn(3, I)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            for a, b in zip(flat(ours(x)), flat(theirs(x)), strict=True):
                assert torch.equal(a, b)
