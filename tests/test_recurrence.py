"""What happens to states between steps: resets, lengths, recurrent dropout, zoneout; cell states; reverse.

The ops against the reference. test_recurrence_modules.py has a loop of its own, and the modules.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.library import opcheck

from .conftest import BEST_TARGETS, DTYPES, FOR_BFLOAT16, paired, running_on
from .problems import (
    CELLS,
    OPTIONS,
    RATES,
    REGISTRY,
    Problem,
    assert_finite,
    lengths_of,
    tiny,
    with_infinite_gradients,
    with_unread_states,
)

EACH = [(name,) for name in (*OPTIONS, *RATES)]
TOGETHER = [OPTIONS, ("lengths", "reset_mask", "recurrent_mask", *RATES), ("reset_mask", "zoneout_h")]


def is_native(cell: str, asked: tuple[str, ...]) -> bool:
    """Whether the kernels derive it: an RNN has no gradients of zoneout in proportion."""
    return REGISTRY[cell].saved > 0 or "zoneout_h_rate" not in asked


@paired("cell asked", CELLS, [*EACH, *TOGETHER])
def test_against_the_reference(
    cell: str, asked: tuple[str, ...], dtype: torch.dtype, target: torch.device
) -> None:
    if not is_native(cell, asked):
        pytest.skip("these gradients are those of the reference")
    Problem(cell, 7, 5, 9, 19, 2, dtype=dtype, device=target, asked=asked).check()


@paired("cell shape", CELLS, [(3, 9, 40, 33), (20, 33, 17, 16), (1, 3, 8, 65)])
def test_sizes(cell: str, shape: tuple[int, ...], dtype: torch.dtype, target: torch.device) -> None:
    """Tiles of several rows, several chunks, a single step."""
    Problem(cell, *shape, 2, dtype=dtype, device=target, asked=OPTIONS).check()


PACKED = [option for option in OPTIONS if option != "lengths"]


@paired("cell directions", CELLS, [1, 2])
def test_packed(cell: str, directions: int, dtype: torch.dtype, target: torch.device) -> None:
    lengths = lengths_of(6, 5)
    Problem(cell, 6, 5, 9, 19, directions, lengths=lengths, dtype=dtype, device=target, asked=PACKED).check()


@pytest.mark.parametrize("lengths", [None, [6, 4, 4, 1]])
@pytest.mark.parametrize("cell", CELLS)
def test_reverse_is_the_second_direction(cell: str, lengths: list[int] | None, target: torch.device) -> None:
    asked = ["reset_mask", "recurrent_mask", "zoneout_h", "return_cell_states"]
    asked += [] if lengths else ["lengths"]
    both = Problem(cell, 6, 4, 5, 7, 2, dtype=torch.float64, device=target, asked=asked, lengths=lengths)
    one = Problem(cell, 6, 4, 5, 7, 1, dtype=torch.float64, device=target, asked=asked, lengths=lengths)
    n = len(both.weights) // 2
    one.x, one.weights, one.states = both.x, both.weights[n:], [s[1:] for s in both.states]
    halves = {"recurrent_mask": 0, "zoneout_h": -1}
    one.extra = {k: v.chunk(2, halves[k])[1] if k in halves else v for k, v in both.extra.items()}
    one.extra["reverse"] = True
    output, *finals = one.forward(False)[: one.n_results]
    expected, *expected_finals = both.forward(False)[: one.n_results]
    assert torch.equal(output, expected.chunk(2, -1)[1])
    for final, other in zip(finals[: len(one.states)], expected_finals, strict=False):
        assert torch.equal(final, other[1:])
    one.grads = [output, *finals[: len(one.states)], *finals[len(one.states) :]]
    one.check()


def test_reverse_of_two_directions() -> None:
    problem = tiny("gru", directions=2, asked=["reverse"])
    with pytest.raises(RuntimeError, match="reverse needs one direction in h0, got 2"):
        problem.forward()


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    seq_len, batch = draw(st.integers(1, 9)), draw(st.integers(0, 9))
    lengths = None
    if batch and draw(st.booleans()):
        lengths = draw(st.lists(st.integers(1, seq_len), min_size=batch, max_size=batch))
        lengths = sorted(lengths, reverse=True)
    cell = draw(st.sampled_from(CELLS))
    asked = [option for option in (*OPTIONS, *RATES) if draw(st.booleans())]
    if lengths is not None:
        asked = [option for option in asked if option != "lengths"]
    asked = [o for o in asked if o not in RATES or (o.removesuffix("_rate") not in asked)]
    return Problem(
        *(cell, seq_len, batch, draw(st.integers(1, 40)), draw(st.integers(1, 40)), draw(st.integers(1, 2))),
        bias=draw(st.booleans()),
        lengths=lengths,
        dtype=draw(st.sampled_from(DTYPES)),
        seed=draw(st.integers(0, 1000)),
        asked=[o for o in asked if is_native(cell, (o,))],
    )


@pytest.mark.parametrize("where", BEST_TARGETS)
@given(problem=problems())
def test_any_combination(problem: Problem, where: str) -> None:
    dtype = torch.bfloat16 if where in FOR_BFLOAT16 else problem.dtype
    with running_on(where) as device:
        problem = replace(problem, dtype=dtype, device=device)
        if problem.batch > 0:
            problem.check()
        else:
            assert problem.forward()[0].numel() == 0


def function_of(problem: Problem) -> Callable[..., tuple[Tensor, ...]]:
    """The op as one of what has a gradient, without what is empty."""
    n = 1 + len(problem.states)
    op = getattr(torch.ops.seqkernels, problem.cell)

    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        results = op(*tensors[:n], list(tensors[n:]), *problem.options)[: problem.n_results]
        return tuple(t for t in results if t.numel() > 0)

    return run


@pytest.mark.parametrize("asked", [OPTIONS, ("lengths", *RATES)], ids=["masks", "rates"])
@pytest.mark.parametrize("cell", CELLS)
def test_gradcheck(cell: str, asked: tuple[str, ...]) -> None:
    if not is_native(cell, asked):
        pytest.skip("these gradients are those of the reference")
    problem = tiny(cell, directions=2, asked=asked)
    problem.x = problem.x.nan_to_num(0.0)  # which gradcheck would change
    inputs = [t.requires_grad_() for t in problem.inputs]
    assert torch.autograd.gradcheck(function_of(problem), inputs)
    assert torch.autograd.gradgradcheck(function_of(problem), inputs)


@pytest.mark.parametrize("cell", CELLS)
def test_opcheck(cell: str) -> None:
    problem = Problem(cell, 3, 2, 4, 5, 2, asked=OPTIONS)
    problem.x = problem.x.nan_to_num(0.0)  # opcheck compares results of several runs
    forward_op = getattr(torch.ops.seqkernels, cell).default
    backward_op = getattr(torch.ops.seqkernels, f"_{cell}_backward").default
    forward = problem.forward()
    opcheck(
        backward_op,
        problem.backward_arguments(forward),
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )
    tests = ("test_schema", "test_faketensor")
    opcheck(forward_op, problem.arguments(save_for_backward=False), test_utils=tests)
    for tensor in problem.inputs:
        tensor.requires_grad_()
    shapes = [t.shape for t in forward]
    torch._dynamo.reset()
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = [mode.from_tensor(t) for t in problem.inputs]
        n = 1 + len(problem.states)
        options = [mode.from_tensor(o) if isinstance(o, Tensor) else o for o in problem.options]
        results = forward_op(*fake[:n], fake[n:], *options)
    assert [t.shape for t in results] == shapes


def test_padding_is_never_read() -> None:
    """NaN where no sequence is leaves no trace: neither in results nor in any gradient."""
    problem = Problem("lstm", 6, 4, 5, 7, 2, asked=OPTIONS, dtype=torch.float64)
    assert problem.x.isnan().any()
    results = problem.run()
    assert not any(t.isnan().any() for t in results.values())
    beyond = torch.arange(6).unsqueeze(1) >= problem.extra["lengths"]
    assert (results["output"][beyond] == 0).all()
    assert (results["cell_states"][beyond] == 0).all()
    assert (results["grad_x"][beyond] == 0).all()


@pytest.mark.parametrize("cell", CELLS)
def test_states_that_nobody_reads_leave_no_trace(cell: str, target: torch.device) -> None:
    """But in what a sequence without steps ends with."""
    problem = Problem(cell, 4, 5, 6, 18, 2, device=target, asked=("lengths", "reset_mask", "recurrent_mask"))
    results = with_unread_states(problem).run()
    assert_finite(results, ("h_n", "c_n"))
    has_steps = problem.extra["lengths"] > 0
    assert_finite({name: results[name][:, has_steps] for name in ("h_n", "c_n") if name in results}, ())


@pytest.mark.parametrize("cell", CELLS)
def test_infinite_gradients_pass_by_with_what_is_kept(cell: str, target: torch.device) -> None:
    problem = with_infinite_gradients(Problem(cell, 4, 5, 6, 18, device=target, asked=("zoneout_h",)))
    results = problem.run()
    assert_finite(results, ("grad_h0",))
    assert bool(results["grad_h0"][0, 0, 0].isinf())
    results["grad_h0"][0, 0, 0] = 0
    assert_finite(results, ())


def test_an_infinite_gradient_that_the_cell_stops(target: torch.device) -> None:
    """A unit of ReLU whose output is zero hands nothing on, whatever comes."""
    problem = Problem("rnn_relu", 3, 2, 4, 9, dtype=torch.float64, device=target)
    dead = problem.run()["output"][1] == 0
    assert bool(dead.any())
    problem.grads[0][1][dead] = float("inf")
    assert_finite(problem.run(), ())


def test_lengths_of_zero_alone(target: torch.device) -> None:
    problem = Problem("gru", 4, 3, 5, 7, 2, device=target, asked=["lengths", "reset_mask"])
    problem.extra["lengths"] = torch.zeros(3, dtype=torch.int64, device=target)
    results = problem.run()
    assert torch.equal(results["h_n"], problem.states[0])
    assert torch.equal(results["grad_h0"], problem.grads[1])
    assert all((results[name] == 0).all() for name in results if name not in ("h_n", "grad_h0"))


OFF = torch.zeros(3, 2, dtype=torch.bool)


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("lengths", torch.tensor([1, 4]), r"between 0 and the steps of x \(3\), got 4 of sequence 1"),
        ("lengths", torch.tensor([-1, 3]), "between 0 .* got -1 of sequence 0"),
        ("lengths", torch.tensor([1, 2, 3]), r"size \[2\], got \[3\]"),
        ("lengths", torch.tensor([1.0, 2.0]), "an int64 tensor on the CPU"),
        ("reset_mask", torch.zeros(3, 3, dtype=torch.bool), r"size \[3, 2\], got \[3, 3\]"),
        ("reset_mask", OFF.float(), "dtype Bool, got Float"),
        ("recurrent_mask", torch.ones(1, 2, 3), r"size \[1, 2, 2\], got \[1, 2, 3\]"),
        ("recurrent_mask", torch.ones(1, 2, 2), "dtype Double, got Float"),
        ("zoneout_h", OFF, r"size \[3, 2, 2\], got \[3, 2\]"),
        ("zoneout_c", torch.zeros(3, 2, 2), "dtype Bool, got Float"),
        ("zoneout_h_rate", 1.5, "between 0 and 1, got 1.5"),
        ("zoneout_c_rate", float("nan"), "between 0 and 1, got nan"),
    ],
)
def test_mistakes(name: str, wrong: Any, message: str) -> None:
    problem = tiny("lstm")
    forward = problem.forward()
    problem.extra = {name: wrong}
    name = "rates of zoneout" if name in RATES else name
    message = f"{name} must (be|have) {message}"
    for call in (problem.forward, lambda: problem.backward(forward)):
        with pytest.raises(RuntimeError, match=message):
            call()


def test_a_mask_whose_storage_was_freed() -> None:
    problem = tiny("gru", asked=["reset_mask", "zoneout_h", "recurrent_mask", "lengths"])
    for name, tensor in problem.extra.items():
        whole = tensor.clone()
        problem.extra[name] = whole
        whole.untyped_storage().resize_(0)
        with pytest.raises(RuntimeError, match=f"{name} must have a storage of at least"):
            problem.forward()
        problem.extra[name] = tensor


def test_lengths_of_packed_sequences() -> None:
    problem = Problem("gru", 3, 2, 4, 5, lengths=[3, 1])
    problem.extra["lengths"] = torch.tensor([3, 1])
    with pytest.raises(RuntimeError, match="lengths are those of padded sequences"):
        problem.forward()
