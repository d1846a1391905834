"""One place decides what runs a call: `explain` says what then really ran."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import seqkernels
from seqkernels import _C, _cudnn, _ops, stack
from seqkernels._fused import Given

from .conftest import BEST_TARGETS

DEVICES = ["cpu", "cpu", "cpu", "meta"] + ["cuda"] * ("cuda" in BEST_TARGETS)
CASES = 600


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The implementations that have run so far."""
    names: set[str] = set()

    def recorded(function: Callable[..., Any], name: str) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            result = function(*args)
            if result is not None:
                names.add(name)
            return result

        return run

    for name, layer in stack.LAYERS.items():
        monkeypatch.setitem(stack.LAYERS, name, recorded(layer, name))
    differentiable: Any = type(_ops.OPS["lstm"])
    monkeypatch.setattr(differentiable, "step", recorded(differentiable.step, "native"))
    monkeypatch.setattr(stack, "_run_torch_step", recorded(stack._run_torch_step, "torch"))
    monkeypatch.setattr(_C, "fastpath", recorded(_C.fastpath, "native"))
    return names


@dataclass
class Call:
    """A module, its input and state, and whether the call goes through a transform, autocast, no_grad."""

    module: nn.Module
    x: Any
    hx: Any
    transform: bool
    autocast: bool
    grad: bool

    def __call__(self) -> tuple[seqkernels.Explanation, Any]:
        with ExitStack() as stack:
            stack.enter_context(torch.set_grad_enabled(self.grad))
            if self.autocast:
                stack.enter_context(torch.autocast(self.module.device_type, torch.bfloat16))
            if self.transform:
                stack.enter_context(torch.autograd.forward_ad.dual_level())
            explained = seqkernels.explain(self.module, self.x, self.hx)
            try:
                return explained, self.module(self.x, self.hx)
            except (RuntimeError, ValueError) as error:
                return explained, error


COMPLEX = torch.complex64  # which no kernel takes


def random_call(seed: int) -> Call:
    draw = random.Random(seed)
    torch.manual_seed(seed)
    some = draw.choice
    device, dtype = some(DEVICES), some([torch.float32] * 4 + [torch.bfloat16, torch.float64] * 2 + [COMPLEX])
    kind, is_layer = some(["LSTM", "GRU", "RNN"]), draw.random() < 0.7
    backend = some(["auto", "auto", "native", "reference"])
    options: dict[str, Any] = {"bias": some([True, False]), "backend": backend}
    if is_layer:
        options |= {"num_layers": some([1, 1, 2]), "bidirectional": some([True, False])}
        dropout = some([0.0, 0.0, 0.5]) * (options["num_layers"] > 1)
        options |= {"batch_first": some([True, False]), "dropout": dropout}
        if kind == "LSTM" and draw.random() < 0.5:
            options["proj_size"] = 3
    if kind == "RNN":
        options["nonlinearity"] = some(["tanh", "relu"])
    name = f"Fused{kind}" if is_layer else f"Fused{kind}Cell"
    module = getattr(seqkernels, name)(4, 6, device=device, dtype=dtype, **options)
    module.device_type = device
    module.train(draw.random() < 0.5)

    steps, batch = some([1, 3]), some([1, 2, 5])
    single = draw.random() < 0.2
    packed = is_layer and not single and device != "meta" and draw.random() < 0.3
    x = torch.randn(*([steps] if is_layer else []), batch, 4).to(device, dtype)
    x.requires_grad_(draw.random() < 0.3 and not (packed and dtype is COMPLEX))  # no derivative of packing
    hx: Any = None
    if draw.random() < 0.5:
        leading = [module.num_layers * (1 + module.bidirectional)] if is_layer else []
        rows = [] if single else [batch]
        widths = [getattr(module, "proj_size", 0) or 6, 6]
        other = dtype if draw.random() < 0.8 else torch.float64
        states = [torch.randn(*leading, *rows, width).to(device, other) for width in widths]
        hx = tuple(states) if kind == "LSTM" else torch.randn(*leading, *rows, 6).to(device, other)
    data: Any = x
    if single:
        data = x[:, 0] if is_layer else x[0]
    elif packed:
        lengths = sorted((draw.randint(1, steps) for _ in range(batch - 1)), reverse=True)
        data = pack_padded_sequence(x, torch.tensor([steps, *lengths]))
    elif is_layer and module.batch_first:
        data = x.transpose(0, 1)
    autocast = draw.random() < 0.2 and device != "meta"
    return Call(module, data, hx, draw.random() < 0.1, autocast, draw.random() < 0.6)


@pytest.mark.parametrize("first", range(0, CASES, 100))
def test_explain_says_what_runs(first: int, ran: set[str]) -> None:
    seen: dict[str, int] = {}
    for seed in range(first, first + 100):
        ran.clear()
        call = random_call(seed)
        explained, result = call()
        if isinstance(result, Exception):  # of torch, for dtypes that do not meet; or native was asked for
            if "backend='native'" in str(result):
                assert explained.backend == "none", (seed, explained, result)
                assert all(f"  - {reason}" in str(result) for reason in explained.reasons), (seed, result)
            continue
        expected = "cudnn" if _cudnn.NAME in explained.kernel else explained.backend
        assert ran == {expected}, (seed, explained)
        seen[expected] = seen.get(expected, 0) + 1
    assert seen["native"] > 20
    assert seen["torch"] > 1
    assert seen["reference"] > 10


def test_reasons_are_those_of_the_call(ran: set[str]) -> None:
    lstm = seqkernels.FusedLSTM(4, 6, dtype=torch.complex64)
    explained = seqkernels.explain(lstm, torch.randn(3, 2, 4, dtype=torch.complex64))
    assert explained.reasons == ["dtype complex64 (the kernels take float32, float64, bfloat16, float16)"]
    lstm(torch.randn(3, 2, 4, dtype=torch.complex64))
    assert ran == {"torch"}


def test_options_pass_through_the_spec() -> None:
    """What a module is set to is what its calls say; no tensor of a call stays behind."""
    layer = seqkernels.FusedGRU(4, 6, 2, bias=False, batch_first=True, dropout=0.5, bidirectional=True)
    mask = torch.zeros(3, 5, dtype=torch.bool)
    spec = layer._spec(None, Given(mask))
    assert (spec.cell, spec.num_layers, spec.directions, spec.bias) == ("gru", 2, 2, False)
    assert (spec.batch_first, spec.dropout, spec.training, spec.backend) == (True, 0.5, True, "auto")
    assert spec.reset_mask is mask
    packed: Tensor = torch.tensor([3, 2])
    assert not layer._spec(packed).batch_first
    assert layer._spec(packed).of_op == (packed, False, None, None, None, None, 0.0)
