"""Derivatives of any order through the native kernels, and how autograd's other features meet them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.utils.rnn import PackedSequence

import seqkernels
from seqkernels import _ops, _torch_compat, functional

from .conftest import assert_close
from .problems import CELLS, FLOAT64, REGISTRY, Problem, of_inputs, tiny


def leaves(problem: Problem) -> list[Tensor]:
    return [t.detach().requires_grad_() for t in problem.inputs]


VARIANTS = {
    "plain": {},
    "no bias": {"bias": False},
    "bidirectional": {"directions": 2},
    "packed": {"lengths": [3, 1]},
    "bidirectional, packed": {"directions": 2, "lengths": [3, 2]},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("cell", CELLS)
def test_first_and_second_derivatives(cell: str, variant: str, device: torch.device) -> None:
    problem = tiny(cell, device=device, **VARIANTS[variant])
    assert gradcheck(of_inputs(problem), leaves(problem))
    assert gradgradcheck(of_inputs(problem), leaves(problem))


@pytest.mark.parametrize("cell", CELLS)
def test_third_derivative(cell: str, device: torch.device) -> None:
    problem = Problem(cell, 2, 1, 1, 1, device=device, **FLOAT64)
    run = of_inputs(problem)

    def gradient(*inputs: Tensor) -> tuple[Tensor, ...]:
        loss = sum(t.pow(3).sum() for t in run(*inputs))
        return torch.autograd.grad(loss, inputs, create_graph=True)

    assert gradgradcheck(gradient, leaves(problem))


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}], ids=["one", "stacked"])
@pytest.mark.parametrize(
    ("name", "norm"),
    [("LSTM", {}), ("GRU", {}), ("RNN", {})]
    + [(name, {"norm": "layer", "norm_eps": 0.1}) for name in ("LSTM", "GRU")],
)
def test_derivatives_of_modules(name: str, norm: dict, options: dict, device: torch.device) -> None:
    options = options | norm
    module = getattr(seqkernels, f"Fused{name}")(2, 2, backend="native", device=device, **FLOAT64, **options)
    batch_sizes = torch.tensor([2, 2, 1])

    def run(x: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
        named = dict(zip(dict(module.named_parameters()), parameters, strict=True))
        sequence = PackedSequence(x, batch_sizes)
        output, state = torch.func.functional_call(module, named, (sequence,))
        return output.data, *(state if isinstance(state, tuple) else (state,))

    x = torch.randn(5, 2, device=device, requires_grad=True, **FLOAT64)
    inputs = (x, *(p.detach().requires_grad_() for p in module.parameters()))
    assert gradcheck(run, inputs, fast_mode=True)
    assert gradgradcheck(run, inputs, fast_mode=True)


@pytest.mark.parametrize("name", ["lstm_cell", "gru_cell", "rnn_cell"])
def test_derivatives_of_cells(name: str, device: torch.device) -> None:
    problem = tiny({"lstm_cell": "lstm", "gru_cell": "gru", "rnn_cell": "rnn_tanh"}[name], device=device)
    cell = getattr(functional, name)

    def run(x: Tensor, *tensors: Tensor) -> tuple[Tensor, ...] | Tensor:
        states, weights = tensors[: len(problem.states)], tensors[len(problem.states) :]
        hx = states if name == "lstm_cell" else states[0]
        return cell(x, hx, *weights, backend="native")

    inputs = [problem.x[0], *(s[0] for s in problem.states), *problem.weights]
    inputs = [t.detach().requires_grad_() for t in inputs]
    assert gradcheck(run, inputs)
    assert gradgradcheck(run, inputs)


@pytest.mark.parametrize("cell", CELLS)
def test_second_derivative_is_the_references(cell: str, dtype: torch.dtype, device: torch.device) -> None:
    """A gradient penalty, native in `dtype` against float64 on the CPU: torch.nn's, where it has the cell."""
    name, options = {
        "lstm": ("LSTM", {}),
        "lstm_projected": ("LSTM", {"proj_size": 12}),
        "gru": ("GRU", {}),
        "gru_reset_before": ("GRU", {"reset_after": False}),
        "lstm_layer_norm": ("LSTM", {"norm": "layer", "norm_eps": 0.5}),
        "lstm_layer_norm_joint": ("LSTM", {"norm": "layer-joint", "norm_eps": 0.5}),
        "gru_layer_norm": ("GRU", {"norm": "layer", "norm_eps": 0.5}),
    }.get(cell, ("RNN", {"nonlinearity": cell.removeprefix("rnn_")}))
    backend = "auto" if device != "cpu" and len(options) and name != "RNN" else "native"
    module = getattr(seqkernels, f"Fused{name}")(
        5, 20, backend=backend, device=device, dtype=dtype, **options
    )
    if options.keys() & {"reset_after", "norm"}:
        fused = getattr(seqkernels, f"Fused{name}")
        right = fused(5, 20, backend="reference", **FLOAT64, **options)
    else:
        right = getattr(torch.nn, name)(5, 20, **FLOAT64, **options)
    right.load_state_dict(module.state_dict())
    x = torch.randn(4, 3, 5, device=device).to(dtype)
    if cell == "rnn_relu":  # keep away from the kink, where the derivative jumps
        x = x.abs() + 1
        for m in (module, right):
            m.load_state_dict({key: value.abs() for key, value in m.state_dict().items()})

    def penalty(module: torch.nn.Module, x: Tensor) -> list[Tensor]:
        x = x.requires_grad_()
        (grad,) = torch.autograd.grad(module(x)[0].double().sum(), x, create_graph=True)
        weights = [p for n, p in module.named_parameters() if "bias" not in n]
        return list(torch.autograd.grad(grad.double().square().mean(), weights))

    assert_close(penalty(module, x.clone()), penalty(right, x.cpu().double()), dtype)


# ---------------------------------------------------------------- what needs a gradient


@pytest.mark.parametrize("cell", CELLS)
def test_only_some_inputs_need_gradients(cell: str, device: torch.device) -> None:
    problem = tiny(cell, directions=2, device=device)
    run = of_inputs(problem)
    inputs = leaves(problem)
    everything = torch.autograd.grad(sum(t.sin().sum() for t in run(*inputs)), inputs)
    for n in range(len(inputs)):
        some = [t.detach().requires_grad_(i == n) for i, t in enumerate(inputs)]
        sum(t.sin().sum() for t in run(*some)).backward()
        assert [t.grad is not None for t in some] == [i == n for i in range(len(some))]
        assert_close(some[n].grad, everything[n])
        alone = [t.detach() for t in inputs]
        assert gradgradcheck(lambda t, n=n, alone=alone: run(*alone[:n], t, *alone[n + 1 :]), (inputs[n],))


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_frozen_weights_and_input_without_gradient(name: str, device: torch.device) -> None:
    module = getattr(seqkernels, f"Fused{name}")(3, 4, device=device, **FLOAT64)
    plain = getattr(torch.nn, name)(3, 4, device=device, **FLOAT64)
    plain.load_state_dict(module.state_dict())
    x = torch.randn(5, 2, 3, device=device, **FLOAT64)
    for m in (module, plain):
        m.weight_hh_l0.requires_grad_(False)
        m(x)[0].square().sum().backward()
    assert module.weight_hh_l0.grad is None
    for key in ("weight_ih_l0", "bias_ih_l0", "bias_hh_l0"):
        assert_close(getattr(module, key).grad, getattr(plain, key).grad)


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell"])
def test_gradients_of_some_inputs_alone(
    name: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """autograd.grad computes what it is asked for, as torch's ops do, though weights require gradients."""
    layer = getattr(seqkernels, f"Fused{name}")(3, 4, device=device)
    like = getattr(torch.nn, name)(3, 4, device=device)
    like.load_state_dict(layer.state_dict())
    shape = (2, 3) if name.endswith("Cell") else (5, 2, 3)
    x = torch.randn(shape, device=device, requires_grad=True)
    computed: list[tuple[bool, ...]] = []
    run_backward = _ops._Differentiable._run_backward

    def spy(self: Any, args: Any) -> Any:
        computed.append(tuple(args[-1]))
        return run_backward(self, args)

    monkeypatch.setattr(_ops._Differentiable, "_run_backward", spy)
    states = 2 if name.startswith("LSTM") else 1

    def output(module: torch.nn.Module, x: Tensor) -> Tensor:
        result = module(x)
        return (result if isinstance(result, Tensor) else result[0]).sin().sum()

    weights = len(list(layer.parameters()))
    for wanted in ("x", "between", "weight_hh", "bias_ih", "all"):
        found = []
        for module in (layer, like):
            between = x * 2
            parameters = list(module.parameters())
            inputs = {
                "x": [x],
                "between": [between],
                "weight_hh": [parameters[1]],
                "bias_ih": [parameters[2]],
            }
            found.append(torch.autograd.grad(output(module, between), inputs.get(wanted, [x, *parameters])))
        assert_close(found[0], found[1])
        flags = computed.pop()
        assert not computed
        expected = {"weight_hh": [2 + states], "bias_ih": [3 + states], "x": [0], "between": [0]}
        own = [0, *range(1 + states, 1 + states + weights)]
        assert [i for i, flag in enumerate(flags) if flag] == expected.get(wanted, own)

    penalties = []
    for module in (layer, like):
        (grad,) = torch.autograd.grad(output(module, x), x, create_graph=True)
        penalties.append(torch.autograd.grad(grad.square().sum(), list(module.parameters())[:2]))
        x.grad = None
        output(module, x).backward(inputs=[x])
        assert all(p.grad is None for p in module.parameters())
        penalties[-1] = (*penalties[-1], x.grad)
    assert_close(*penalties)


def test_gradients_where_the_engine_knows_no_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """As that of torch.distributed.autograd, which lists none of those that it will run."""
    monkeypatch.setattr(_torch_compat, "_will_engine_execute_node", lambda node: False)
    layer, x = seqkernels.FusedGRU(3, 4), torch.randn(5, 2, 3, requires_grad=True)
    layer(x)[0].sum().backward()
    assert all(t.grad is not None for t in (x, *layer.parameters()))


@pytest.mark.parametrize("cell", CELLS)
def test_only_a_final_state_is_used(cell: str, device: torch.device) -> None:
    problem = tiny(cell, directions=2, device=device)
    for n in range(1, 1 + len(problem.states)):
        run = of_inputs(problem)
        assert gradcheck(lambda *t, n=n, run=run: run(*t)[n], leaves(problem))
        assert gradgradcheck(lambda *t, n=n, run=run: run(*t)[n], leaves(problem))


@pytest.mark.parametrize("cell", CELLS)
def test_tied_tensors(cell: str, device: torch.device) -> None:
    """One tensor in several places: the weights of both directions, and h0 = c0."""
    problem = tiny(cell, device=device)
    op = getattr(torch.ops.seqkernels, problem.cell)
    n = len(problem.states)

    def run(x: Tensor, state: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        return op(x, *[torch.cat((state, state))] * n, [*weights, *weights])[: 1 + n]

    inputs = [t.detach().requires_grad_() for t in (problem.x, problem.states[0], *problem.weights)]
    assert gradcheck(run, inputs)
    assert gradgradcheck(run, inputs)


@pytest.mark.parametrize("cell", CELLS)
def test_no_graph_where_none_is_needed(cell: str, device: torch.device) -> None:
    problem = tiny(cell, device=device)
    run = of_inputs(problem)
    assert not any(t.requires_grad for t in run(*problem.inputs))
    with torch.no_grad():
        assert not any(t.requires_grad for t in run(*leaves(problem)))
    with torch.inference_mode():
        assert all(t.is_inference() for t in run(*leaves(problem)))


# ---------------------------------------------------------------- the graph


@pytest.mark.parametrize("cell", CELLS)
def test_backward_twice(cell: str, device: torch.device) -> None:
    problem = Problem(cell, 5, 3, 7, 19, directions=2, device=device)
    inputs = leaves(problem)
    loss = sum(t.sin().sum() for t in of_inputs(problem)(*inputs))
    first = torch.autograd.grad(loss, inputs, retain_graph=True)
    second = torch.autograd.grad(loss, inputs)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(loss, inputs)


@pytest.mark.parametrize("what", ["x", "h0", "w_ih", "w_hh", "b_ih", "b_hh", "output"])
@pytest.mark.parametrize("cell", CELLS)
def test_changes_in_place_are_noticed(cell: str, what: str, device: torch.device) -> None:
    problem = tiny(cell, device=device)
    if what.startswith("b_") and not REGISTRY[cell].is_normalized:
        pytest.skip("backward does not read biases")
    inputs = leaves(problem)
    output = of_inputs(problem)(*inputs)[0]
    loss = output.sum()
    with torch.no_grad():
        changed = (
            output if what == "output" else inputs[problem.names.index(what + "[0]" * (what[0] in "wb"))]
        )
        changed.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_backward_needs_what_forward_saves(cell: str, device: torch.device) -> None:
    problem = tiny(cell, device=device)
    problem.x.requires_grad_()
    output = problem.forward(save_for_backward=False)[0]
    with pytest.raises(RuntimeError, match=rf"seqkernels::{cell} ran with save_for_backward=False"):
        output.sum().backward()


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_what_is_saved_has_no_derivative(cell: str, device: torch.device) -> None:
    problem = tiny(cell, device=device)
    problem.x.requires_grad_()
    results = problem.forward()
    n = problem.n_results
    assert all(t.requires_grad for t in results[:n])
    assert not any(t.requires_grad for t in results[n:])


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing(use_reentrant: bool, device: torch.device) -> None:
    module = seqkernels.FusedLSTM(3, 4, device=device)
    x = torch.randn(5, 2, 3, device=device, requires_grad=True)
    expected = torch.autograd.grad(module(x)[0].square().sum(), [x, *module.parameters()])
    again = torch.utils.checkpoint.checkpoint(module, x, use_reentrant=use_reentrant)[0]
    again.square().sum().backward()
    actual = [x.grad, *(p.grad for p in module.parameters())]
    assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))


def test_saved_tensor_hooks_see_everything(device: torch.device) -> None:
    """save_on_cpu and the like work: the gradient is computed from what the hooks hand back."""
    module = seqkernels.FusedGRU(3, 4, device=device)
    x = torch.randn(5, 2, 3, device=device)
    with torch.autograd.graph.save_on_cpu():
        module(x)[0].sum().backward()
    saved = [p.grad.clone() for p in module.parameters()]
    module.zero_grad()
    module(x)[0].sum().backward()
    assert all(torch.equal(p.grad, s) for p, s in zip(module.parameters(), saved, strict=True))


def test_anomaly_mode_finds_nan(device: torch.device) -> None:
    module = seqkernels.FusedLSTM(3, 4, device=device)
    x = torch.full((5, 2, 3), torch.nan, device=device, requires_grad=True)
    with (
        pytest.warns(UserWarning, match="Anomaly Detection"),
        torch.autograd.detect_anomaly(),
        pytest.raises(RuntimeError, match=r"lstm.*returned nan values"),
        pytest.warns(UserWarning, match="Error detected in lstm"),
    ):
        module(x)[0].sum().backward()


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("scale", [1e30, 1e38, 3e38])
@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_states_near_the_largest_number(name: str, scale: float, layers: int) -> None:
    """Gradients are finite where those of torch.nn are: no product overflows on the way."""
    plain = getattr(torch.nn, name)(4, 8, num_layers=layers)
    fused = getattr(seqkernels, f"Fused{name}")(4, 8, num_layers=layers)
    fused.load_state_dict(plain.state_dict())
    x, state = torch.randn(5, 3, 4), torch.randn(2, layers, 3, 8) * scale
    finite = []
    for module in (plain, fused):
        leaves = [x.clone().requires_grad_(), state.clone().requires_grad_()]
        output, final = module(leaves[0], tuple(leaves[1]) if name == "LSTM" else leaves[1][0])
        (output.sum() + (final[1].sum() if name == "LSTM" else 0)).backward()
        finite.append([t.grad.isfinite() for t in (*leaves, *module.parameters())])
    for theirs, ours in zip(*finite, strict=True):
        assert (ours >= theirs).all()
