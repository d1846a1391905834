"""torch.compile, torch.export and torch.library's own checks of the ops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.library import opcheck

import seqkernels
from seqkernels import functional

from .conftest import assert_close, flat
from .problems import CELLS, Problem

NAMES = ("LSTM", "GRU", "RNN")
NORMS = {
    "LSTM layer": {"norm": "layer", "norm_eps": 0.1},
    "LSTM joint": {"norm": "layer-joint", "norm_eps": 0.1},
    "GRU layer": {"norm": "layer", "norm_eps": 0.1},
}


@pytest.fixture(autouse=True)
def _fresh_compiler() -> None:
    torch._dynamo.reset()
    torch.use_deterministic_algorithms(False)  # the fixture `poison` sets it back


@pytest.mark.parametrize("variant", [{}, {"directions": 2, "bias": False}, {"lengths": [3, 1]}], ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_opcheck(cell: str, variant: dict[str, Any], device: torch.device) -> None:
    problem = Problem(cell, 3, 2, 4, 5, device=device, **variant)
    forward_op = getattr(torch.ops.seqkernels, problem.cell).default
    backward_op = getattr(torch.ops.seqkernels, f"_{problem.cell}_backward").default
    forward = problem.forward()
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    opcheck(backward_op, problem.backward_arguments(forward), test_utils=tests)
    needs_grad = [n % 2 == 0 for n in range(len(problem.inputs))]
    opcheck(backward_op, problem.backward_arguments(forward, needs_grad), test_utils=tests)
    opcheck(forward_op, problem.arguments(save_for_backward=False), test_utils=tests)
    for tensor in problem.inputs:
        tensor.requires_grad_()
    opcheck(forward_op, problem.arguments())


@pytest.mark.parametrize(
    "options", [{}, {"num_layers": 2, "bidirectional": True, "batch_first": True}], ids=str
)
@pytest.mark.parametrize("name", [*NAMES, *NORMS])
def test_compile_once_for_all_sizes(name: str, options: dict[str, Any], device: torch.device) -> None:
    options = options | NORMS.get(name, {})
    module = getattr(seqkernels, f"Fused{name.split()[0]}")(4, 5, device=device, **options)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda x: module(x), backend=counter, fullgraph=True)
    frames = []
    for shape in ((7, 3), (9, 3), (11, 4), (12, 5), (2, 2)):
        x = torch.randn(*shape, 4, device=device, requires_grad=True)
        results = []
        for run in (compiled, module):
            found = flat(run(x))
            loss = sum(t.square().sum() for t in found)
            results.append([*found, *torch.autograd.grad(loss, [x, *module.parameters()])])
        assert_close(*results)
        frames.append(counter.frame_count)
    assert frames[-1] == frames[2]  # static, T dynamic, B dynamic too; no more
    targets = [str(node.target) for graph in counter.graphs for node in graph.graph.nodes]
    cell = module._cell
    assert f"seqkernels.{cell}.default" in " ".join(targets) or f"seqkernels.{cell}" in targets


@pytest.mark.parametrize("name", ["LSTMCell", "GRUCell", "RNNCell"])
def test_compile_cells(name: str, device: torch.device) -> None:
    module = getattr(seqkernels, f"Fused{name}")(4, 5, device=device)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    for batch in (3, 4, 5):
        x = torch.randn(batch, 4, device=device)
        assert_close(flat(compiled(x)), flat(module(x)))


@pytest.mark.slow
def test_inductor(device: torch.device) -> None:
    module = nn.Sequential(nn.Linear(3, 4), seqkernels.FusedLSTM(4, 5)).to(device)
    head = nn.Linear(5, 2).to(device)

    def run(x: Tensor) -> Tensor:
        return head(module(x)[0].relu()).square().mean()

    compiled = torch.compile(run, fullgraph=True)
    x = torch.randn(6, 3, 3, device=device)
    parameters = [*module.parameters(), *head.parameters()]
    loss, expected = compiled(x), run(x)
    assert_close(loss, expected)
    assert_close(torch.autograd.grad(loss, parameters), torch.autograd.grad(expected, parameters))


def test_compile_packed_autocast_and_backends(device: torch.device) -> None:
    module = seqkernels.FusedLSTM(4, 5, device=device)
    x, h = torch.randn(3, 2, 4, device=device), torch.zeros(1, 2, 5, device=device)
    batch_sizes = torch.tensor([2, 2, 1])

    def packed(data: Tensor) -> Tensor:
        weights = list(module.parameters())
        return functional.lstm(data, (h, h), weights, batch_sizes=batch_sizes)[0]

    def mixed(x: Tensor) -> Tensor:
        with torch.autocast(device.type, dtype=torch.bfloat16):
            return module(x)[0]

    for function, given in ((packed, torch.randn(5, 4, device=device)), (mixed, x)):
        actual = torch.compile(function, backend="aot_eager", fullgraph=True)(given)
        assert actual.dtype == function(given).dtype
        assert_close(actual, function(given))
    for backend in ("native", "reference"):
        module.backend = backend
        assert_close(torch.compile(module, backend="aot_eager", fullgraph=True)(x)[0], module(x)[0])


@pytest.mark.parametrize("forward_too", [False, True], ids=["backward", "all"])
@pytest.mark.parametrize("name", [*NAMES, "LSTMCell", "GRUCell", "RNNCell", "ensemble"])
def test_compiled_autograd(name: str, forward_too: bool, device: torch.device) -> None:
    """A backward that the compiler traces, of an eager forward and of one that it traces too."""
    module = getattr(seqkernels, f"Fused{name}" if name != "ensemble" else "FusedGRU")(4, 5, device=device)
    shape = {"ensemble": (3, 3, 2, 4)}.get(name, (3, 2, 4) if name in NAMES else (2, 4))
    x = torch.randn(shape, device=device, requires_grad=True)

    def run(x: Tensor) -> None:
        found = flat(torch.vmap(module)(x) if name == "ensemble" else module(x))
        sum(t.sin().sum() for t in found).backward()

    def gradients(run: Callable[[Tensor], None]) -> list[Tensor]:
        x.grad = None
        module.zero_grad()
        run(x)
        return [t.grad for t in (x, *module.parameters())]  # type: ignore[misc]

    expected = gradients(run)
    counter = CompileCounterWithBackend("aot_eager")
    if forward_too:
        with torch._dynamo.config.patch(compiled_autograd=True):
            actual = gradients(torch.compile(run, backend=counter))
    else:
        with torch._dynamo.compiled_autograd._enable(torch.compile(backend=counter)):
            actual = gradients(run)
    assert_close(actual, expected)
    assert "_backward" in " ".join(str(n.target) for graph in counter.graphs for n in graph.graph.nodes)


def test_compile_dropout(device: torch.device) -> None:
    module = seqkernels.FusedGRU(4, 5, 2, dropout=0.5, device=device)
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    x = torch.randn(3, 2, 4, device=device)
    torch.manual_seed(1)
    actual = compiled(x)
    torch.manual_seed(1)
    assert_close(actual, module(x))


@pytest.mark.parametrize("name", NAMES)
def test_plain_layers_stay_as_they_are(name: str) -> None:
    """Dynamo refuses torch.nn's own layers with and without this package."""
    module = getattr(nn, name)(4, 5)
    with pytest.raises(torch._dynamo.exc.Unsupported):
        torch.compile(lambda x: module(x), backend="eager", fullgraph=True)(torch.randn(3, 2, 4))
    assert not torch._dynamo.config.allow_rnn


@pytest.mark.parametrize("strict", [False, True], ids=["non-strict", "strict"])
@pytest.mark.parametrize("name", NAMES)
def test_export(name: str, strict: bool, device: torch.device) -> None:
    module = getattr(seqkernels, f"Fused{name}")(4, 5, 2, bidirectional=True, device=device).eval()
    dynamic = ({0: torch.export.Dim("T"), 1: torch.export.Dim("B")}, None)
    example = torch.randn(5, 3, 4, device=device)
    program = torch.export.export(module, (example, None), dynamic_shapes=dynamic, strict=strict)
    ops = [str(node.target) for node in program.graph.nodes]
    assert sum(op.startswith(f"seqkernels.{name.lower()}") for op in ops) == 2
    for shape in ((5, 3), (9, 2), (30, 8)):
        x = torch.randn(*shape, 4, device=device)
        assert_close(flat(program.module()(x, None)), flat(module(x)))


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_jit_trace(device: torch.device) -> None:
    module = seqkernels.FusedLSTM(4, 5, device=device)
    traced = torch.jit.trace(module, torch.randn(3, 2, 4, device=device))
    x = torch.randn(6, 2, 4, device=device)
    assert_close(flat(traced(x)), flat(module(x)))
