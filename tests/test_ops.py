"""Every op against the reference in float64: results, gradients, memory layouts, bad arguments."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from seqkernels import functional

from .conftest import assert_close, in_child, paired
from .problems import CELLS, FINALS, REGISTRY, Problem, lengths_of

# T, B, I, H, directions, bias, packed. Every size takes 1, 2, 3, 7, 17, 63, 129 (remainders of vectors,
# register tiles and panels) or 16, 64 (none) in turn; directions, bias and packed meet in many combinations.
# Dtypes take turns from one to the next (`paired`), so of any kind there are two of different parity.
SHAPES = [
    (1, 1, 1, 1, 1, True, False),
    (2, 1, 3, 2, 2, False, True),
    (3, 2, 1, 7, 1, False, True),
    (7, 3, 2, 3, 2, True, False),
    (2, 7, 17, 16, 2, False, False),
    (16, 16, 16, 17, 1, True, True),
    (17, 2, 7, 64, 1, False, False),
    (3, 17, 63, 63, 2, True, True),
    (1, 63, 64, 129, 2, True, False),
    (2, 129, 3, 17, 1, True, True),
    (63, 1, 17, 2, 2, True, False),
    (4, 64, 129, 16, 1, False, True),
    (6, 5, 33, 130, 1, True, False),
    (129, 3, 16, 7, 2, False, True),
    (1, 1, 96, 64, 1, True, False),  # few rows and whole vectors: weights are read where they lie
    (2, 4, 32, 80, 2, False, False),
    (3, 5, 33, 130, 1, True, False),
    (2, 6, 17, 260, 2, True, True),
    (4, 3, 48, 32, 2, True, True),
    # More panels of W_ih than threads: with 2 and 3 chunks of rows, with one that is taken in two parts, with
    # more inputs than a chunk has rows, and with 2 chunks forward.
    (10, 30, 200, 20, 1, True, False),
    (11, 80, 200, 18, 2, False, True),
    (1, 600, 200, 17, 1, True, False),
    (7, 100, 400, 17, 1, True, True),
    (3, 200, 40, 130, 1, True, False),
    (3, 8, 20, 40, 1, True, False),  # a register tile in two parts
    (3, 950, 2, 33, 1, True, False),  # a chunk of inputs for each step, so that one begins with an odd step
]


def make(cell: str, shape: tuple, **options: object) -> Problem:
    seq_len, batch, input_size, hidden_size, directions, bias, packed = shape
    lengths = lengths_of(seq_len, batch) if packed else None
    return Problem(cell, seq_len, batch, input_size, hidden_size, directions, bias, lengths, **options)


def small(cell: str, **options: object) -> Problem:
    """One of everything: two directions, a bias, sizes with remainders."""
    return Problem(cell, 5, 3, 7, 19, directions=2, **options)


@paired("cell shape", CELLS, SHAPES)
def test_results_and_gradients(cell: str, shape: tuple, dtype: torch.dtype, target: torch.device) -> None:
    make(cell, shape, dtype=dtype, device=target).check()


@pytest.mark.parametrize("cell", CELLS)
def test_results_do_not_depend_on_saving(cell: str, dtype: torch.dtype, target: torch.device) -> None:
    problem = small(cell, dtype=dtype, device=target)
    n = problem.n_results
    saved, unsaved = problem.forward(True), problem.forward(False)
    assert all(torch.equal(a, b) for a, b in zip(saved[:n], unsaved[:n], strict=True))
    assert all(t.numel() > 0 for t in saved[n:])
    assert all(t.shape == (0,) for t in unsaved[n:])


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_dtypes_shapes_and_strides(cell: str, packed: bool, dtype: torch.dtype, device: torch.device) -> None:
    problem = small(cell, dtype=dtype, device=device, lengths=[5, 2, 2] if packed else None)
    forward = problem.forward()
    n = 1 + len(problem.states)
    assert forward[0].shape == (*problem.x.shape[:-1], 2 * problem.output_size)
    assert [t.shape for t in forward[1:n]] == [(2, 3, size) for size in problem.state_sizes]
    assert all(t.dtype == dtype and t.is_contiguous() for t in forward[:n])
    for grad, tensor in zip(problem.backward(forward), problem.inputs, strict=True):
        assert grad.shape == tensor.shape
        assert grad.dtype == dtype
        assert grad.is_contiguous()


def strided(tensor: Tensor) -> Tensor:
    """The same values, no two neighbours."""
    return torch.stack((tensor, torch.full_like(tensor, torch.nan)), dim=-1)[..., 0]


def transposed(tensor: Tensor) -> Tensor:
    """The same values, with the first two dimensions (of a bias: its neighbours) the other way round."""
    return tensor.transpose(0, 1).contiguous().transpose(0, 1) if tensor.dim() > 1 else strided(tensor)


def windowed(tensor: Tensor) -> Tensor:
    """The same values as part of larger rows."""
    return torch.nn.functional.pad(tensor, (3, 2), value=torch.nan)[..., 3:-2]


LAYOUTS = [strided, transposed, windowed]


@paired("cell layout packed", CELLS, LAYOUTS, [False, True], each=1)
def test_any_strides(
    cell: str, layout: Callable[[Tensor], Tensor], packed: bool, dtype: torch.dtype, target: torch.device
) -> None:
    problem = small(cell, dtype=dtype, device=target, lengths=[5, 4, 1] if packed else None)
    expected = problem.run()
    problem.x = layout(problem.x)
    problem.states = [layout(t) for t in problem.states]
    problem.weights = [layout(t) for t in problem.weights]
    problem.grads = [layout(t) for t in problem.grads]
    assert not problem.x.is_contiguous()
    actual = problem.run()
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


@pytest.mark.parametrize("cell", CELLS)
def test_expanded_tensors(cell: str, dtype: torch.dtype, target: torch.device) -> None:
    problem = small(cell, dtype=dtype, device=target)
    problem.x = problem.x[:1].expand_as(problem.x)
    problem.states = [t[:, :1].expand_as(t) for t in problem.states]
    problem.grads = [g.flatten()[0].expand_as(g) for g in problem.grads]
    problem.check()


@pytest.mark.parametrize("cell", CELLS)
def test_saved_tensors_in_other_layouts(cell: str, device: torch.device) -> None:
    problem = small(cell, device=device)
    forward = problem.forward()
    expected = problem.backward(forward)
    actual = problem.backward([strided(t) for t in forward])
    assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))


@paired("cell seq_len batch", CELLS, [0, 3], [0, 2], each=1)
def test_empty(cell: str, seq_len: int, batch: int, dtype: torch.dtype, target: torch.device) -> None:
    problem = Problem(cell, seq_len, batch, 5, 18, directions=2, dtype=dtype, device=target)
    results = problem.run()
    assert results["output"].shape == (seq_len, batch, 2 * problem.output_size)
    if batch == 0 or seq_len == 0:
        for final, state, grad in zip(problem.finals, problem.states, problem.grads[1:], strict=True):
            assert torch.equal(results[final], state)
            assert torch.equal(results[f"grad_{final[0]}0"], grad)
        weights = (results[f"grad_{name}"] for name in problem.names[1 + len(problem.states) :])
        assert all(not grad.any() for grad in weights)
    else:
        problem.check()


@pytest.mark.parametrize("cell", CELLS)
def test_no_input_features(cell: str, dtype: torch.dtype, target: torch.device) -> None:
    Problem(cell, 3, 2, 0, 4, directions=2, dtype=dtype, device=target).check()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("batch", [1, 40])
@pytest.mark.parametrize("scale", [1, 2**-15], ids=["normal", "denormal"])
def test_results_are_rounded_as_by_torch(
    scale: float, batch: int, dtype: torch.dtype, target: torch.device
) -> None:
    """To the nearest number, halfway between two to the even one; in float16 also below normal numbers."""
    if target.type != "cpu":
        pytest.skip("torch's matrix products on a GPU may sum in less than float32")
    problem = Problem("rnn_relu", 1, batch, 2, 13, bias=False, dtype=dtype, device=target)
    # Sums of two numbers, the second one smaller by a power of two, which float32 has exactly.
    problem.x = (torch.rand(1, batch, 2).to(dtype) + 1).to(target) * scale
    w_ih = torch.stack((torch.ones(13), 0.5 ** torch.arange(13)), dim=1).to(dtype).to(target)
    problem.weights = [w_ih, torch.zeros_like(problem.weights[1])]
    forward = problem.forward()
    assert torch.equal(forward[0], (problem.x.double() @ w_ih.double().T).to(dtype))
    # Products of two numbers, of either sign.
    problem.weights[0] = torch.randn_like(w_ih) * (torch.arange(13, device=target) == 3).to(dtype)[:, None]
    problem.grads[1] = None
    right = problem.grads[0].double() @ problem.weights[0].double()
    assert torch.equal(problem.backward(forward)[0], right.to(dtype))


@pytest.mark.parametrize("cell", [name for name, cell in REGISTRY.items() if not cell.has_cell_state])
def test_a_state_that_is_handed_on(cell: str, dtype: torch.dtype, target: torch.device) -> None:
    """A sequence in two pieces is, bit by bit, the whole one; with one input, sums have but one order.

    An LSTM's c is rounded at the end of a piece alone.
    """
    if target.type != "cpu":
        pytest.skip("a GPU may plan a piece otherwise than the whole")
    problem = Problem(cell, 2, 20, 1, 19, dtype=dtype, device=target)
    whole, x = problem.forward(False)[0], problem.x
    for t in range(2):
        problem.x = x[t : t + 1]
        output, problem.states[0] = problem.forward(False)[:2]
        assert torch.equal(output[0], whole[t])


@pytest.mark.parametrize("cell", CELLS)
def test_no_hidden_units(cell: str) -> None:
    """Refused or empty; in a child process, since a crash is what is looked for."""

    def run() -> None:
        with contextlib.suppress(RuntimeError):
            assert Problem(cell, 3, 2, 4, 0, directions=2).run()["output"].shape == (3, 2, 0)

    in_child(run)


@paired("cell packed", CELLS, [False, True])
def test_each_gradient_alone(cell: str, packed: bool, dtype: torch.dtype, target: torch.device) -> None:
    problem = small(cell, dtype=dtype, device=target, lengths=[5, 4, 1] if packed else None)
    forward = problem.forward()
    everything = problem.backward(forward)
    for n, expected in enumerate(everything):
        found = problem.backward(forward, [i == n for i in range(len(everything))])
        assert all(t.shape == (0,) for i, t in enumerate(found) if i != n)
        assert_close(found[n], expected, what=problem.names[n])
    assert all(t.shape == (0,) for t in problem.backward(forward, [False] * len(everything)))


@paired("cell used", CELLS, ["output", "finals", "nothing"])
def test_results_that_the_loss_leaves_out(
    cell: str, used: str, dtype: torch.dtype, target: torch.device
) -> None:
    problem = small(cell, dtype=dtype, device=target)
    names, grads = ["output", *problem.finals], problem.grads
    for only in problem.finals if used == "finals" else [used]:
        problem.grads = [grad if name == only else None for name, grad in zip(names, grads, strict=True)]
        if used == "nothing":
            assert not any(g.any() for g in problem.backward(problem.forward()))
        else:
            problem.check()


@pytest.mark.parametrize("seq_len", [0, 3])
@pytest.mark.parametrize("cell", CELLS)
def test_nothing_is_shared_with_the_inputs(cell: str, seq_len: int, device: torch.device) -> None:
    problem = Problem(cell, seq_len, 2, 16, 16, directions=1, device=device)
    forward = problem.forward()
    given = [*problem.inputs, *forward, *problem.grads]
    before = [t.clone() for t in given]
    found = [*forward, *problem.backward(forward)]
    storages = [t.untyped_storage().data_ptr() for t in found if t.numel()]
    assert len(set(storages)) == len(storages)
    assert not set(storages) & {t.untyped_storage().data_ptr() for t in problem.inputs}
    assert all(torch.equal(a, b) for a, b in zip(given, before, strict=True))


@pytest.mark.parametrize("cell", CELLS)
def test_nan_and_infinity_stay_in_their_sequence(cell: str, dtype: torch.dtype, target: torch.device) -> None:
    problem = small(cell, dtype=dtype, device=target)
    clean = problem.forward()[0]
    problem.x[2, 1, 0] = torch.nan
    output, size = problem.forward()[0], problem.output_size
    assert torch.equal(output[:, [0, 2]], clean[:, [0, 2]])
    assert output[2:, 1, :size].isnan().all()
    assert torch.equal(output[:2, 1, :size], clean[:2, 1, :size])
    assert output[:3, 1, size:].isnan().all()
    assert torch.equal(output[3:, 1, size:], clean[3:, 1, size:])


@pytest.mark.parametrize("cell", [cell for cell in CELLS if cell != "rnn_relu"])
def test_infinity_saturates_the_gates(cell: str, dtype: torch.dtype, target: torch.device) -> None:
    """Or has no norm, which is of the gates of its own sequence."""
    problem = small(cell, dtype=dtype, device=target)
    problem.x[1, 1, 0] = torch.inf
    expected, output = problem.expected()["output"], problem.forward()[0]
    assert expected[:, 1].isfinite().all() != REGISTRY[cell].is_normalized
    assert torch.equal(output.isfinite().cpu(), expected.isfinite())
    assert_close(output.nan_to_num(), expected.nan_to_num(), dtype)


def test_memory_of_the_kernels_is_poisoned(dtype: torch.dtype, device: torch.device) -> None:
    """The fixture `poison` reaches aten::new_empty, with which the C++ side allocates."""
    x = torch.zeros(1, dtype=dtype, device=device)
    assert torch.ops.aten.new_empty(x, [1000]).isnan().all()
    workspace = torch.ops.aten.new_empty(x, [1000 * x.itemsize], dtype=torch.uint8)
    assert workspace.view(dtype).isnan().all()


# ---------------------------------------------------------------- bad arguments


def replaced(what: str, index: int, change: Callable[[Tensor], Tensor]) -> Callable[[Problem], None]:
    def apply(problem: Problem) -> None:
        tensors = getattr(problem, what)
        tensors[index] = change(tensors[index])

    return apply


def replaced_x(change: Callable[[Tensor], Tensor]) -> Callable[[Problem], None]:
    return lambda problem: setattr(problem, "x", change(problem.x))


def with_batch_sizes(*sizes: int, **options: object) -> Callable[[Problem], None]:
    def apply(problem: Problem) -> None:
        problem.x = problem.x.flatten(0, 1)
        problem.batch_sizes = torch.tensor(sizes, **options)

    return apply


MISTAKES = {
    "x dimensions": (replaced_x(lambda t: t[0]), r"x must have 3 dimensions, got 2"),
    "x integer": (replaced_x(Tensor.long), r"x must be float32, float64, bfloat16 or float16"),
    "x features": (
        replaced_x(lambda t: t[..., 1:]),
        r"weights\[0\] \(w_ih\) must have size \[\d+, 6\], got \[\d+, 7\]",
    ),
    "h0 dimensions": (replaced("states", 0, lambda t: t[0]), r"h0 must have 3 dimensions, got 2"),
    "h0 directions": (
        replaced("states", 0, lambda t: torch.cat((t, t))),
        r"h0 must have 1 or 2 directions in its first dimension, got 4",
    ),
    "h0 no directions": (replaced("states", 0, lambda t: t[:0]), r"h0 must have 1 or 2 directions"),
    "h0 batch": (
        replaced("states", 0, lambda t: t[:, 1:]),
        r"h0 must have size \[2, 3, (\d+)\], got \[2, 2, \1\]",
    ),
    "h0 features": (replaced("states", 0, lambda t: t[..., 1:]), r"must have size"),
    "h0 dtype": (replaced("states", 0, Tensor.double), r"h0 must have dtype \w+, got \w+"),
    "w_ih size": (replaced("weights", 0, lambda t: t[1:]), r"weights\[0\] \(w_ih\) must have size"),
    "w_hh size": (replaced("weights", 1, lambda t: t[:, 1:]), r"weights\[1\] \(w_hh\) must have size"),
    "b_ih size": (replaced("weights", 2, lambda t: t[1:]), r"weights\[2\] \(b_ih\) must have size"),
    "b_hh dimensions": (replaced("weights", 3, lambda t: t[None]), r"weights\[3\] \(b_hh\) must have size"),
    "w_ih of the reverse direction": (
        lambda problem: replaced("weights", len(problem.weights) // 2, Tensor.double)(problem),
        r"weights\[[4-8]\] \(w_ih\) must have dtype \w+, got \w+",
    ),
    "too few weights": (
        lambda problem: problem.weights.pop(),
        r"weights must be w_ih, w_hh and optionally b_ih, b_hh.* 2 directions, got (7|9|11|13|15) tensors",
    ),
    "no weights": (lambda problem: problem.weights.clear(), r"weights must be .* got 0 tensors"),
    "batch_sizes dtype": (
        with_batch_sizes(3, 3, 3, 3, 3, dtype=torch.int32),
        r"batch_sizes must be .* int64",
    ),
    "batch_sizes dimensions": (
        lambda problem: (with_batch_sizes(3)(problem), setattr(problem, "batch_sizes", torch.tensor(3))),
        r"batch_sizes must be a one-dimensional",
    ),
    "batch_sizes increase": (with_batch_sizes(3, 2, 3), r"batch_sizes must be .* got 3 at step 2"),
    "batch_sizes zero": (with_batch_sizes(3, 0), r"batch_sizes must be positive.* got 0 at step 1"),
    "batch_sizes negative": (with_batch_sizes(3, -1), r"batch_sizes must be positive.* got -1 at step 1"),
    "batch_sizes begin": (with_batch_sizes(2, 1), r"begin with the batch of h0 \(3\); got 2 at step 0"),
    "batch_sizes sum": (
        with_batch_sizes(3, 3),
        r"x must have as many rows as batch_sizes add up to \(6\), got 15",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("cell", CELLS)
def test_mistakes(cell: str, mistake: str, device: torch.device) -> None:
    problem = small(cell, device=device)
    make_mistake, message = MISTAKES[mistake]
    make_mistake(problem)
    with pytest.raises(RuntimeError, match=message):
        problem.forward()


def test_mistakes_in_c0(device: torch.device) -> None:
    for change, message in (
        (lambda t: t[:, 1:], r"c0 must have size \[2, 3, 19\], got \[2, 2, 19\]"),
        (Tensor.double, r"c0 must have dtype \w+, got \w+"),
    ):
        problem = small("lstm", device=device)
        problem.states[1] = change(problem.states[1])
        with pytest.raises(RuntimeError, match=message):
            problem.forward()


def test_unknown_nonlinearity(device: torch.device) -> None:
    problem = small("rnn_tanh", device=device)
    with pytest.raises(ValueError, match="nonlinearity must be 'tanh' or 'relu', got 'gelu'"):
        functional.rnn(problem.x, problem.states[0], problem.weights, bidirectional=True, nonlinearity="gelu")


SAVED = {
    name: ["gates"] * (cell.saved > 0) + ["cells"] * cell.has_cell_state + ["norms"] * cell.is_normalized
    for name, cell in REGISTRY.items()
}
CHANGES = {"narrow": lambda t: t[..., 1:], "short": lambda t: t[:1], "double": Tensor.double}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(
    ("cell", "name"),
    [(c, n) for c in CELLS for n in ["grad_output", *(f"grad_{f}" for f in FINALS[c]), "output", *SAVED[c]]],
)
def test_mistakes_in_backward(cell: str, name: str, change: str, device: torch.device) -> None:
    problem = small(cell, device=device)
    forward = list(problem.forward())
    results = ["output", *FINALS[cell], *["cell_states"] * REGISTRY[cell].has_cell_state, *SAVED[cell]]
    changed, what = (problem.grads, name[5:]) if name.startswith("grad_") else (forward, name)
    n = results.index(what)
    changed[n] = CHANGES[change](changed[n])
    with pytest.raises(RuntimeError, match=rf"{name}\b.* must have"):
        problem.backward(forward)


@pytest.mark.parametrize("cell", CELLS)
def test_needs_grad_of_the_wrong_length(cell: str, device: torch.device) -> None:
    problem = small(cell, device=device)
    count = len(problem.inputs)
    with pytest.raises(RuntimeError, match=rf"needs_grad must have {count} entries, got {count - 1}"):
        problem.backward(problem.forward(), [True] * (count - 1))


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_backward_of_what_was_not_saved(cell: str, device: torch.device) -> None:
    problem = small(cell, device=device)
    with pytest.raises(RuntimeError, match=r"gates \(of a forward pass with save_for_backward=True\)"):
        problem.backward(problem.forward(False))
