"""Autocast on the CPU: the dtypes of torch.nn's results, and weights that are cast once for a region."""

from __future__ import annotations

import gc
import itertools
import threading
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

import seqkernels
from seqkernels import autocast

from .conftest import LAYERS, STEPS, assert_close, flat
from .test_modules import pair

I, H, P = 5, 6, 3
NARROW = (torch.bfloat16, torch.float16)
DTYPES = (torch.float32, torch.float64, *NARROW)
# torch's LSTM is oneDNN's, which fails or gives other dtypes where the CPU lacks the instructions.
ONEDNN = {
    torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported(),
    torch.float16: torch.ops.mkldnn._is_mkldnn_fp16_supported(),
}


def casts_packed() -> bool:
    """Whether autocast means anything to torch's LSTM with packed input: not yet in torch 2.10."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, _ = nn.LSTM(I, H)(pack_sequence([torch.zeros(4, I)]))
    return output.data.dtype is not torch.float32


def kind_of_result(module: nn.Module, *inputs: Any) -> Any:
    try:
        return [t.dtype for t in flat(module(*inputs)) if t.is_floating_point()]
    except RuntimeError as error:
        return str(error).split("\n")[0]


CASES = [
    (name, kind, options)
    for name in LAYERS + STEPS
    for kind in ("batched", "unbatched", "empty batch", "packed")
    for options in ({}, {"proj_size": P})
    if (name == "LSTM" or not options) and (name in LAYERS or kind != "packed")
]


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
@pytest.mark.parametrize("wide", NARROW, ids=str)
@pytest.mark.parametrize(("name", "kind", "options"), CASES)
def test_dtypes(name: str, kind: str, options: dict[str, Any], wide: torch.dtype, grad: bool) -> None:
    """Of results, and errors, for every dtype of input and states."""
    rows = {"unbatched": (), "empty batch": (0,)}.get(kind, (3,))
    leading, time = ((1,), (4,)) if name in LAYERS else ((), ())
    features = (options.get("proj_size", H), H)[: 2 if "LSTM" in name else 1]
    for x_dtype, h_dtype, c_dtype in itertools.product(DTYPES, (None, *DTYPES), DTYPES):
        if (h_dtype is None or len(features) == 1) and c_dtype is not DTYPES[0]:
            continue  # there is no c, and this is the same case again
        theirs, ours = pair(name, I, H, **options)
        x: Any = torch.randn(*time, *rows, I).to(x_dtype)
        x = pack_sequence(list(x.unbind(1))) if kind == "packed" else x
        inputs: tuple[Any, ...] = (x,)
        if h_dtype is not None:
            states = [torch.zeros(*leading, *rows, n, dtype=d) for n, d in zip(features, (h_dtype, c_dtype))]  # noqa: B905
            inputs = x, tuple(states) if len(states) > 1 else states[0]
        with torch.set_grad_enabled(grad), torch.autocast("cpu", dtype=wide):
            expected, actual = kind_of_result(theirs, *inputs), kind_of_result(ours, *inputs)
        by_onednn = name == "LSTM" and not options and kind != "empty batch"
        if by_onednn and (not ONEDNN[wide] or "could not create a primitive descriptor" in expected):
            continue  # torch has no kernel; ours computes
        if by_onednn and kind == "packed" and not casts_packed():
            continue  # ours does what later versions do
        assert actual == expected, (x_dtype, h_dtype, c_dtype)


# ---------------------------------------------------------------- weights cast once

LARGE = 128  # a hidden size whose weights are worth keeping


@pytest.fixture
def casts(monkeypatch: pytest.MonkeyPatch) -> list[weakref.ref[Tensor]]:
    """The casts of parameters so far."""
    found: list[weakref.ref[Tensor]] = []
    original = autocast.cast

    def cast(value: Any, device_type: str, dtype: torch.dtype) -> Any:
        result = original(value, device_type, dtype)
        if isinstance(value, nn.Parameter):
            found.append(weakref.ref(result))
        return result

    monkeypatch.setattr(autocast, "cast", cast)
    return found


def region(**options: Any) -> Any:
    return torch.autocast("cpu", torch.bfloat16, **options)


def steps(module: nn.Module, count: int = 3) -> Tensor:
    x, hx = torch.ones(2, LARGE), None
    for _ in range(count):
        hx = module(x, hx)
    return (hx[0] if isinstance(hx, tuple) else hx).float()


MODES = {"grad": torch.enable_grad, "no_grad": torch.no_grad, "inference": torch.inference_mode}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", STEPS)
def test_once_for_a_region(name: str, mode: str, casts: list[Any]) -> None:
    module = getattr(seqkernels, f"Fused{name}")(LARGE, LARGE)
    with MODES[mode](), region():
        first = steps(module)
        assert len(casts) == 4
        with region(), region(enabled=False):
            pass
        assert torch.equal(steps(module), first)
        assert len(casts) == 4
    gc.collect()
    assert mode == "grad" or not any(cast() is not None for cast in casts)  # nothing is kept longer
    with MODES[mode](), region():
        steps(module)
    assert len(casts) == 8


def test_layers_too(casts: list[Any]) -> None:
    module, x = seqkernels.FusedLSTM(LARGE, LARGE), torch.randn(4, 3, LARGE)
    with region():
        module(x)
        module(x)
    assert len(casts) == 4


def test_small_weights_begin_no_region(casts: list[Any]) -> None:
    module, x = seqkernels.FusedGRUCell(I, H), torch.randn(3, I)
    with region():
        module(x)
        module(x)
    assert len(casts) == 8


@pytest.mark.parametrize("name", STEPS)
def test_gradients_are_those_of_torch(name: str) -> None:
    """Through a cast that several calls and several backward passes share."""
    theirs, ours = pair(name, LARGE, LARGE)
    for module in (theirs, ours):
        with region():
            first, second = steps(module), steps(module, 2)
        first.sum().backward()
        second.sin().sum().backward()
        with region():
            loss = steps(module).sum()
        loss.backward()
    right = getattr(nn, name)(LARGE, LARGE).double()
    right.load_state_dict(ours.state_dict())
    for loss in (steps64(right, 3).sum(), steps64(right, 2).sin().sum(), steps64(right, 3).sum()):
        loss.backward()
    for ours_p, theirs_p, right_p in zip(
        ours.parameters(), theirs.parameters(), right.parameters(), strict=True
    ):
        assert ours_p.grad.dtype == torch.float32
        scale = right_p.grad.square().mean().sqrt()
        ours_error, theirs_error = ((p.grad - right_p.grad).abs().max() / scale for p in (ours_p, theirs_p))
        assert ours_error < max(2 * theirs_error, 0.05)


def steps64(module: nn.Module, count: int) -> Tensor:
    x, hx = torch.ones(2, LARGE, dtype=torch.float64), None
    for _ in range(count):
        hx = module(x, hx)
    return hx[0] if isinstance(hx, tuple) else hx


CHANGES = {
    "in place": lambda m: m.weight_hh.mul_(0.5),
    "an optimizer's step": lambda m: torch.optim.SGD([m.weight_hh], lr=0.1).step(),
    "another parameter": lambda m: setattr(m, "weight_hh", nn.Parameter(m.weight_hh * 0.5)),
    "data exchanged": lambda m: setattr(m.weight_hh, "data", m.weight_hh * 0.5),
    "the cache cleared": lambda m: (m.weight_hh.data.mul_(0.5), torch.clear_autocast_cache()),
    "load_state_dict": lambda m: m.load_state_dict({k: v * 0.5 for k, v in m.state_dict().items()}),
}


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
@pytest.mark.parametrize("change", CHANGES)
def test_nothing_stale_within_a_region(change: str, grad: bool) -> None:
    module = seqkernels.FusedGRUCell(LARGE, LARGE)
    with region(), torch.set_grad_enabled(grad):
        before = steps(module)
        module.weight_hh.grad = torch.ones_like(module.weight_hh)
        with torch.no_grad():
            CHANGES[change](module)
        after = steps(module)
    with region(cache_enabled=False):
        assert torch.equal(after, steps(module))
    assert not torch.equal(after, before)


def test_nothing_stale_in_the_next_region() -> None:
    """After a change that no version counts."""
    module = seqkernels.FusedLSTMCell(LARGE, LARGE)
    with region():
        steps(module)
    module.weight_hh.data.add_(0.1)
    with region():
        after = steps(module)
    with region(cache_enabled=False):
        assert torch.equal(after, steps(module))


def test_without_a_cache_each_call_casts(casts: list[Any]) -> None:
    with region(cache_enabled=False):
        steps(seqkernels.FusedGRUCell(LARGE, LARGE))
    assert len(casts) == 12


@pytest.mark.parametrize("first", ["no_grad", "inference"])
def test_gradients_after_a_call_without(first: str) -> None:
    module = seqkernels.FusedLSTMCell(LARGE, LARGE)
    with region():
        with MODES[first]():
            steps(module)
        loss = steps(module).sum()
    loss.backward()
    assert all(p.grad.any() for p in module.parameters())


def test_weights_that_are_computed_or_need_no_gradient(casts: list[Any]) -> None:
    """Are cast for every call, as in torch."""
    module = seqkernels.FusedGRUCell(LARGE, LARGE).requires_grad_(False)
    with region():
        steps(module)
    assert len(casts) == 12
    module = seqkernels.FusedGRU(LARGE, LARGE)
    halved = {key: (p.detach() / 2).requires_grad_() for key, p in module.named_parameters()}
    with region():
        for _ in range(2):
            torch.func.functional_call(module, {k: p * 2 for k, p in halved.items()}, (torch.ones(1, LARGE),))
    assert len(casts) == 12


def test_threads_have_their_own(casts: list[Any]) -> None:
    module, results = seqkernels.FusedGRUCell(LARGE, LARGE), []

    def work() -> None:
        with region():
            results.append(steps(module))

    with region():
        steps(module)
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        results.append(steps(module))
    assert torch.equal(*results)
    assert len(casts) >= 8


def test_compiled_and_transformed() -> None:
    module = seqkernels.FusedGRUCell(LARGE, LARGE)
    x = torch.randn(2, LARGE)
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    with region():
        expected = module(x)
        assert_close(compiled(x), expected, torch.bfloat16)
        assert_close(torch.vmap(module)(x.unsqueeze(1)).squeeze(1), expected, torch.bfloat16)
        traced = torch.jit.trace(module, (x,), check_trace=False)
        assert_close(traced(x), expected, torch.bfloat16)
