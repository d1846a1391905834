"""Options of the recurrence on a GPU: in every plan, without a host that waits, in graphs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import seqkernels
from benchmarks.gpu_timing import captured

from .conftest import BEST_TARGETS, PLANS, assert_close
from .problems import CELLS, OPTIONS, RATES, REGISTRY
from .test_cuda import CUDA, NARROW, SHAPES, ForcedProblem, make, same, without_waiting

pytestmark = pytest.mark.skipif("cuda" not in BEST_TARGETS, reason="no GPU, or a build without CUDA kernels")

PACKED = tuple(name for name in OPTIONS if name != "lengths")


@pytest.mark.parametrize("which", ["forward", "backward"])
@pytest.mark.parametrize("chosen", PLANS)
@pytest.mark.parametrize("shape", SHAPES[1::2], ids=lambda s: "-".join(str(int(v)) for v in s))
@pytest.mark.parametrize("dtype", [*NARROW, torch.float32], ids=["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("cell", CELLS)
def test_plans_with_options(cell: str, dtype: torch.dtype, shape: tuple, chosen: str, which: str) -> None:
    asked = PACKED if shape[-1] else OPTIONS
    make(cell, shape, ForcedProblem, dtype=dtype, plan=chosen, forced=which, asked=asked).check()


@pytest.mark.parametrize("chosen", PLANS)
@pytest.mark.parametrize("asked", [(name,) for name in (*OPTIONS, *RATES)], ids="-".join)
@pytest.mark.parametrize("cell", [cell for cell in CELLS if REGISTRY[cell].saved > 0])
def test_plans_with_one_option(cell: str, asked: tuple[str, ...], chosen: str) -> None:
    torch._C._set_cudnn_allow_tf32(True)
    make(cell, SHAPES[3], ForcedProblem, dtype=torch.float32, plan=chosen, asked=asked).check("tf32")


def layer(name: str, **options: Any) -> tuple[torch.nn.Module, dict[str, Tensor]]:
    """A module with all that is drawn, and what a call says of rows."""
    kind = getattr(seqkernels, f"Fused{name}")
    module = kind(16, 64, 2, recurrent_dropout=0.2, zoneout=0.1, weight_dropout=0.2, device=CUDA, **options)
    rows = {
        "reset_mask": torch.rand(20, 9, device=CUDA) < 0.1,
        "lengths": torch.randint(0, 21, (9,), device=CUDA),
    }
    return module, rows


@pytest.mark.usefixtures("unpoisoned")
@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_host_does_not_wait_for_options(name: str) -> None:
    module, rows = layer(name)
    x = torch.randn(20, 9, 16, device=CUDA)

    def train() -> tuple[Tensor, ...]:
        torch.cuda.manual_seed(1)
        return torch.autograd.grad(module(x, **rows)[0].square().sum(), list(module.parameters()))

    expected = train()
    assert_close(without_waiting(train), expected)


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_graph_draws_anew(name: str) -> None:
    module, rows = layer(name)
    x = torch.randn(20, 9, 16, device=CUDA)

    def train() -> tuple[Tensor, ...]:
        output = module(x, **rows)[0]
        return output, *torch.autograd.grad(output.square().sum(), list(module.parameters()))

    graph, results = captured(train)
    graph.replay()
    first = [tensor.clone() for tensor in results]
    graph.replay()
    assert all(not torch.equal(a, b) for a, b in zip(first, results, strict=True))
    assert all(bool(tensor.isfinite().all()) for tensor in results)


@pytest.mark.parametrize("cell", CELLS)
def test_options_of_a_captured_call(cell: str) -> None:
    problem = make(cell, (4, 9, 16, 64, 2, False), asked=OPTIONS)
    expected = problem.run()
    graph, results = captured(problem.run)
    graph.replay()
    assert same(results, expected)


def test_options_keep_the_persistent_plan() -> None:
    """What runs without options is no stepwise plan with them."""
    x = torch.randn(20, 9, 16, device=CUDA, dtype=torch.bfloat16)
    plain = seqkernels.FusedLSTM(16, 64, device=CUDA, dtype=torch.bfloat16)
    module, rows = layer("LSTM", dtype=torch.bfloat16)
    kernels = [
        seqkernels.explain(plain, x).kernel,
        seqkernels.explain(module, x, **rows).kernel,
        seqkernels.explain(plain, x, reset_mask=rows["reset_mask"]).kernel,
    ]
    assert all("persistent" in kernel and "stepwise" not in kernel for kernel in kernels), kernels


def test_lengths_on_the_device_are_looked_at_where_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    module = seqkernels.FusedGRU(3, 5, device=CUDA)
    x, lengths = torch.randn(4, 2, 3, device=CUDA), torch.tensor([5, -1], device=CUDA)
    output, h_n = module(x, lengths=lengths)
    assert_close(output[:, :1], module(x[:, :1])[0])
    assert not output[:, 1].any()
    assert not h_n[:, 1].any()
    monkeypatch.setenv("SEQKERNELS_CHECK_LENGTHS", "1")
    with pytest.raises(ValueError, match="lengths"):
        module(x, lengths=lengths)
