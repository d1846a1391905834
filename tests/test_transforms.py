"""torch.func's transforms and batched gradients of torch.autograd, on the kernels."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call, grad, hessian, jacrev, jvp, stack_module_state, vjp, vmap
from torch.nn.utils.rnn import PackedSequence
from torch.utils._python_dispatch import TorchDispatchMode

import seqkernels

from .conftest import LAYERS, STEPS, assert_close, flat, random_state
from .problems import CELLS, FLOAT64, Problem, of_inputs, tiny

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no bias": {"bias": False},
    "bidirectional": {"directions": 2},
    "packed": {"lengths": [3, 1]},
}


def fused(name: str, *sizes: int, **options: Any) -> nn.Module:
    """One that refuses to run anything but the kernels."""
    return getattr(seqkernels, f"Fused{name}")(*sizes, backend="native", **FLOAT64, **options)


def on_reference(module: nn.Module) -> nn.Module:
    """The same parameters on plain torch."""
    other = copy.copy(module)
    other.backend = "reference"
    return other


class Ops(TorchDispatchMode):
    """How often each op of the package is called."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if op.namespace == "seqkernels":
            self.calls[op.name().split("::")[1]] += 1
        return op(*args, **kwargs or {})


# ---------------------------------------------------------------- batched gradients


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("cell", CELLS)
def test_batched_gradients(cell: str, variant: str, device: torch.device) -> None:
    problem = tiny(cell, device=device, **VARIANTS[variant])
    inputs = [t.detach().requires_grad_() for t in problem.inputs]
    assert gradcheck(of_inputs(problem), inputs, check_batched_grad=True)


@pytest.mark.filterwarnings("ignore:There is a performance drop because we have not yet implemented")
@pytest.mark.parametrize("cell", CELLS)
def test_batched_second_derivatives(cell: str, device: torch.device) -> None:
    problem = Problem(cell, 2, 1, 1, 2, device=device, **FLOAT64)
    inputs = [t.detach().requires_grad_() for t in problem.inputs]
    assert gradgradcheck(of_inputs(problem), inputs, check_batched_grad=True)


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_samples_of_a_gradient(name: str, create_graph: bool, device: torch.device) -> None:
    """Those of x and the states come of one backward, those of weights of one for each sample."""
    module = fused(name, 3, 4, 2, bidirectional=True, device=device)
    x = torch.randn(5, 2, 3, device=device, requires_grad=True, **FLOAT64)
    hx = random_state(name, 4, 2, 4, device=device, requires_grad=True, **FLOAT64)
    for of_weights in (True, False):
        module.requires_grad_(of_weights)
        inputs = [x, *flat(hx), *(module.parameters() if of_weights else ())]
        output = module(x, hx)[0]
        samples = torch.randn(3, *output.shape, device=device, **FLOAT64)
        with Ops() as ops:
            batched = torch.autograd.grad(
                output, inputs, samples, is_grads_batched=True, retain_graph=True, create_graph=create_graph
            )
        calls = 3 if of_weights or device.type != "cpu" else 1
        assert ops.calls == {f"_{module._cell}_backward": 2 * calls}
        options = {"retain_graph": True, "create_graph": create_graph}
        by_vmap = vmap(lambda g: torch.autograd.grad(output, inputs, g, **options))(samples)  # noqa: B023
        for i, sample in enumerate(samples):
            expected = torch.autograd.grad(output, inputs, sample, retain_graph=True)
            assert_close([g[i] for g in batched], expected)
            assert_close([g[i] for g in by_vmap], expected)


# ---------------------------------------------------------------- vmap


@pytest.mark.parametrize("name", LAYERS + STEPS)
def test_ensemble(name: str, device: torch.device) -> None:
    """Several models with the same input, or each with its own."""
    is_layer = name in LAYERS
    options = {"num_layers": 2, "bidirectional": True} if is_layer else {}
    models = [fused(name, 3, 4, device=device, **options) for _ in range(3)]
    parameters, buffers = stack_module_state(models)  # type: ignore[arg-type]

    def run(parameters: Any, buffers: Any, x: Tensor) -> Any:
        return functional_call(models[0], (parameters, buffers), (x,))

    for in_dim in (None, 1):
        x = torch.randn(5, *[3] * (in_dim is not None), 2, 3, device=device, **FLOAT64)
        x = x if is_layer else x[0]
        in_dim = in_dim and in_dim - (not is_layer)
        xs = [x] * 3 if in_dim is None else x.unbind(in_dim)
        with Ops() as ops:
            actual = flat(vmap(run, (0, 0, in_dim))(parameters, buffers, x))
        assert sum(ops.calls.values()) == 3 * (2 if is_layer else 1)
        expected = [flat(m(x)) for m, x in zip(models, xs, strict=True)]
        assert_close(actual, [torch.stack(parts) for parts in zip(*expected, strict=True)])
        grads = torch.autograd.grad(sum(t.sin().sum() for t in actual), list(parameters.values()))
        for i, m in enumerate(models):
            own = torch.autograd.grad(sum(t.sin().sum() for t in expected[i]), list(m.parameters()))
            assert_close([g[i] for g in grads], own)


@pytest.mark.parametrize("grad_mode", [True, False])
@pytest.mark.parametrize("dim", [0, 1, 2])
@pytest.mark.parametrize("name", LAYERS)
def test_samples_are_sequences_of_one_batch(
    name: str, dim: int, grad_mode: bool, device: torch.device
) -> None:
    module = fused(name, 3, 4, bidirectional=True, device=device)
    hx = random_state(name, 2, 2, 4, device=device, **FLOAT64)
    hx_dims: Any = None
    if dim == 2:  # states of their own too
        hx, hx_dims = random_state(name, 2, 6, 2, 4, device=device, requires_grad=True, **FLOAT64), 1
    x = torch.randn(5, 2, 3, 6, device=device, **FLOAT64).movedim(-1, dim).requires_grad_()
    with torch.set_grad_enabled(grad_mode):
        with Ops() as ops:
            actual = flat(vmap(module, (dim, hx_dims))(x, hx))
        assert sum(ops.calls.values()) == (1 if device.type == "cpu" or not grad_mode else 6)

        def state(i: int) -> Any:
            if hx_dims is None:
                return hx
            return tuple(s[:, i] for s in hx) if name == "LSTM" else hx[:, i]

        samples = [flat(module(x.select(dim, i), state(i))) for i in range(6)]
        expected = [torch.stack(parts) for parts in zip(*samples, strict=True)]
    assert_close(actual, expected)
    if grad_mode:
        inputs = [x, *([] if hx_dims is None else flat(hx)), *module.parameters()]
        losses = (sum(t.sin().sum() for t in tensors) for tensors in (actual, expected))
        assert_close(*[torch.autograd.grad(loss, inputs) for loss in losses])


@pytest.mark.parametrize("name", LAYERS)
def test_packed(name: str, device: torch.device) -> None:
    module = fused(name, 3, 4, device=device)
    batch_sizes = torch.tensor([2, 2, 1])
    data = torch.randn(5, 4, 3, device=device, requires_grad=True, **FLOAT64)

    def run(data: Tensor) -> Tensor:
        return module(PackedSequence(data, batch_sizes))[0].data

    actual, expected = vmap(run, 1)(data), torch.stack([run(d) for d in data.unbind(1)])
    assert_close(actual, expected)
    assert_close(
        *[torch.autograd.grad(t.sin().sum(), [data, *module.parameters()]) for t in (actual, expected)]
    )


@pytest.mark.parametrize("name", LAYERS + STEPS)
def test_nested(name: str, device: torch.device) -> None:
    """Models along one dimension, inputs along another."""
    models = [fused(name, 3, 4, device=device) for _ in range(2)]
    parameters, _ = stack_module_state(models)  # type: ignore[arg-type]
    x = torch.randn(3, *[5] * (name in LAYERS), 2, 3, device=device, **FLOAT64)

    def run(parameters: Any, x: Tensor) -> Tensor:
        return flat(functional_call(models[0], parameters, (x,)))[0]

    actual = vmap(vmap(run, (None, 0)), (0, None))(parameters, x)
    assert_close(actual, torch.stack([torch.stack([flat(m(s))[0] for s in x]) for m in models]))


@pytest.mark.parametrize("of_weights", [False, True])
def test_no_samples(of_weights: bool, device: torch.device) -> None:
    module = fused("LSTM", 3, 4, device=device)
    x = torch.randn(5, 0, 2, 3, device=device, requires_grad=True, **FLOAT64)
    parameters = {key: p.detach().requires_grad_() for key, p in module.named_parameters()}
    if of_weights:
        parameters = {key: p.new_empty(0, *p.shape).requires_grad_() for key, p in parameters.items()}
    dims = (0 if of_weights else None, 1)
    output, (h_n, _) = vmap(lambda p, x: functional_call(module, p, (x,)), dims)(parameters, x)
    assert output.shape == (0, 5, 2, 4)
    assert h_n.shape == (0, 1, 2, 4)
    inputs = [x, *parameters.values()]
    for t, gradient in zip(inputs, torch.autograd.grad(output.sum(), inputs), strict=True):
        assert_close(gradient, torch.zeros_like(t))


def test_options_of_vmap(device: torch.device) -> None:
    module = fused("GRU", 3, 4, device=device)
    x = torch.randn(5, 2, 6, 3, device=device, **FLOAT64)
    expected = torch.stack([module(x[:, :, i])[0] for i in range(6)], -1)
    for options in ({"chunk_size": 4}, {"randomness": "different"}):
        assert_close(vmap(lambda x: module(x)[0], 2, -1, **options)(x), expected)


# ---------------------------------------------------------------- derivatives


@pytest.mark.parametrize("name", LAYERS + STEPS)
def test_gradients_of_each_sample(name: str, device: torch.device) -> None:
    module = fused(name, 3, 4, device=device)
    x = torch.randn(3, *[5] * (name in LAYERS), 1, 3, device=device, **FLOAT64)
    parameters = {key: p.detach() for key, p in module.named_parameters()}

    def loss(parameters: Any, x: Tensor) -> Tensor:
        return flat(functional_call(module, parameters, (x,)))[0].square().sum()

    per_sample = vmap(grad(loss), (None, 0))(parameters, x)
    for i in range(3):
        expected = torch.autograd.grad(flat(module(x[i]))[0].square().sum(), list(module.parameters()))
        assert_close([g[i] for g in per_sample.values()], expected)
    total = grad(lambda p: vmap(loss, (None, 0))(p, x).sum())(parameters)
    assert_close(total, {key: g.sum(0) for key, g in per_sample.items()})


@pytest.mark.parametrize("name", LAYERS)
def test_jacobians_and_higher_derivatives(name: str, device: torch.device) -> None:
    module = fused(name, 2, 3, bidirectional=True, device=device)
    x = torch.randn(2, 2, 2, device=device, **FLOAT64)

    def all_of(module: nn.Module) -> list[Any]:
        def cubes(x: Tensor) -> Tensor:
            return sum(t.pow(3).sum() for t in flat(module(x)))  # type: ignore[return-value]

        def penalty(x: Tensor) -> Tensor:
            return grad(cubes)(x).sin().sum()

        return [
            jacrev(lambda x: module(x)[0])(x),
            jacrev(jacrev(cubes))(x),
            grad(lambda x: grad(penalty)(x).square().sum())(x),
            vjp(lambda x: module(x)[0], x)[1](torch.ones(2, 2, 6, device=device, **FLOAT64))[0],
            vmap(grad(penalty), 1)(x.unsqueeze(2)),
            torch.autograd.grad(penalty(x), list(module.parameters())),
        ]

    assert_close(all_of(module), all_of(on_reference(module)))


@pytest.mark.parametrize("name", LAYERS)
def test_second_derivative_of_packed_input(name: str, device: torch.device) -> None:
    module = fused(name, 2, 3, device=device)
    data = torch.randn(3, 2, device=device, **FLOAT64)

    def of(module: nn.Module) -> Tensor:
        def cubes(data: Tensor) -> Tensor:
            return module(PackedSequence(data, torch.tensor([2, 1])))[0].data.pow(3).sum()

        return jacrev(jacrev(cubes))(data)

    assert_close(of(module), of(on_reference(module)))


def test_no_grad_inside(device: torch.device) -> None:
    """As in torch: of two derivatives, it is the inner one that does not see what runs without gradients."""
    module = fused("GRU", 2, 3, device=device)
    x = torch.randn(2, 2, 2, device=device, **FLOAT64)

    def run(module: nn.Module) -> Tensor:
        def inner(x: Tensor) -> Tensor:
            with torch.no_grad():
                y = module(x)[0].sum()
            return x.pow(3).sum() * y

        return grad(lambda x: grad(inner)(x).sum())(x)

    assert_close(run(module), run(on_reference(module)))


@pytest.mark.parametrize("name", LAYERS)
def test_forward_mode_is_the_references(name: str, device: torch.device) -> None:
    module = fused(name, 2, 3, device=device)
    x = torch.randn(2, 2, 2, device=device, **FLOAT64)
    run: Callable[[Tensor], Tensor] = lambda x: module(x)[0].sum()  # noqa: E731
    for transform in (hessian(run), lambda x: jvp(run, (x,), (x,)), vmap(lambda x: jvp(run, (x,), (x,))[1])):
        with pytest.raises(RuntimeError, match="forward-mode differentiation"):
            transform(x)
    module.backend = "auto"
    assert_close(hessian(run)(x), torch.autograd.functional.hessian(run, x))


# ---------------------------------------------------------------- what runs


def test_explain_inside(device: torch.device) -> None:
    module = seqkernels.FusedGRU(2, 3, device=device)
    said = []

    def run(x: Tensor) -> Tensor:
        said.append(seqkernels.explain(module, x).backend)
        return module(x)[0].sum()

    x = torch.randn(2, 2, 2, 2, device=device)
    vmap(run)(x), grad(run)(x[0]), vmap(grad(run))(x), jvp(run, (x[0],), (x[0],))
    assert said == ["native"] * 3 + ["reference"]


@pytest.mark.parametrize("name", LAYERS + STEPS)
def test_compiled(name: str, device: torch.device) -> None:
    """vmap stays on the kernels, derivatives go to the reference."""
    torch._dynamo.reset()
    torch.use_deterministic_algorithms(False)  # the fixture `poison` sets it back
    module = getattr(seqkernels, f"Fused{name}")(3, 4, device=device)
    x = torch.randn(6, *[5] * (name in LAYERS), 2, 3, device=device, requires_grad=True)

    def run(x: Tensor) -> Tensor:
        return vmap(lambda x: flat(module(x))[0])(x)

    def derive(x: Tensor) -> Tensor:
        return vmap(grad(lambda x: flat(module(x))[0].sum()))(x)

    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(run, backend=counter, fullgraph=True)
    assert_close(compiled(x), run(x))
    assert_close(*[torch.autograd.grad(f(x).sin().sum(), [x, *module.parameters()]) for f in (compiled, run)])
    targets = [str(node.target) for graph in counter.graphs for node in graph.graph.nodes]
    assert sum("seqkernels" in target for target in targets) == 1
    assert_close(torch.compile(derive, backend="aot_eager", fullgraph=True)(x.detach()), derive(x.detach()))
