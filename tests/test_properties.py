"""Random sizes, lengths and mistakes: whatever comes, the result is right or the error is clear."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from .conftest import BEST_TARGETS, FOR_BFLOAT16, running_on
from .problems import CELLS, Problem

SIZES = st.integers(1, 40)
DTYPES = st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16])


@st.composite
def problems(draw: st.DrawFn, cells: tuple[str, ...] = CELLS, least: int = 1) -> Problem:
    seq_len, batch = draw(st.integers(least, 12)), draw(st.integers(least, 12))
    lengths = None
    if draw(st.booleans()) and seq_len and batch:
        lengths = draw(st.lists(st.integers(1, seq_len), min_size=batch, max_size=batch))
        lengths = sorted(lengths, reverse=True)
    return Problem(
        draw(st.sampled_from(cells)),
        seq_len,
        batch,
        draw(SIZES),
        draw(SIZES),
        directions=draw(st.integers(1, 2)),
        bias=draw(st.booleans()),
        lengths=lengths,
        dtype=draw(DTYPES),
        seed=draw(st.integers(0, 1000)),
    )


@pytest.mark.parametrize("where", BEST_TARGETS)
@given(problem=problems())
def test_any_sizes(problem: Problem, where: str) -> None:
    dtype = torch.bfloat16 if where in FOR_BFLOAT16 else problem.dtype
    with running_on(where) as device:
        replace(problem, dtype=dtype, device=device).check()


@given(problem=problems(), data=st.data())
def test_packed_is_padded_without_padding(problem: Problem, data: st.DataObject) -> None:
    """Each sequence of a packed batch gives what it gives alone."""
    if problem.batch_sizes is None:
        return
    n = data.draw(st.integers(0, problem.batch - 1))
    length = problem.lengths[n]
    starts = torch.cat((torch.zeros(1, dtype=torch.long), problem.batch_sizes.cumsum(0)))[:length]
    alone = Problem(
        problem.cell,
        length,
        1,
        problem.input_size,
        problem.hidden_size,
        problem.directions,
        problem.bias,
        dtype=problem.dtype,
    )
    alone.x = problem.x[starts + n].unsqueeze(1)
    alone.states = [s[:, n : n + 1] for s in problem.states]
    alone.weights = problem.weights
    together, results = problem.forward(False), alone.forward(False)
    pairs = [(results[0][:, 0], together[0][starts + n])]
    pairs += [(results[i][:, 0], together[i][:, n]) for i in range(1, 1 + len(problem.states))]
    eps = torch.finfo(problem.dtype).eps
    for a, b in pairs:  # equal but for the order of summation
        torch.testing.assert_close(a, b, rtol=16 * eps, atol=16 * eps)


def shapes_near(shape: tuple[int, ...]) -> st.SearchStrategy[tuple[int, ...]]:
    """Shapes that differ: other numbers of dimensions, or another size somewhere."""
    return st.lists(st.integers(0, 9), min_size=0, max_size=4).map(tuple).filter(lambda s: s != shape)


@given(problem=problems(least=2), data=st.data())
@settings(max_examples=200)
def test_any_wrong_shape_is_an_error(problem: Problem, data: st.DataObject) -> None:
    """One argument, all but x, has a wrong shape; nothing is read that is not there."""
    which = data.draw(st.integers(1, len(problem.inputs) - 1))
    tensor = problem.inputs[which]
    wrong = torch.zeros(data.draw(shapes_near(tuple(tensor.shape))), dtype=problem.dtype)
    n = which - 1
    if n < len(problem.states):
        problem.states[n] = wrong
    else:
        problem.weights[n - len(problem.states)] = wrong
    with pytest.raises(RuntimeError, match=r"must have|must be"):
        problem.forward()


@given(problem=problems(least=2), shape=st.lists(st.integers(0, 50), max_size=4))
def test_any_wrong_x_is_an_error(problem: Problem, shape: list[int]) -> None:
    if tuple(shape) == tuple(problem.x.shape):
        return
    wrong_length_is_fine = len(shape) == 3 and problem.batch_sizes is None
    if wrong_length_is_fine and shape[1:] == list(problem.x.shape[1:]):
        return
    problem.x = torch.zeros(shape, dtype=problem.dtype)
    with pytest.raises(RuntimeError, match="must have"):
        problem.forward()


@given(problem=problems(least=2), sizes=st.lists(st.integers(-3, 15), max_size=14))
def test_any_batch_sizes(problem: Problem, sizes: list[int]) -> None:
    """Taken exactly where they are what a PackedSequence has."""
    right = (
        all(size > 0 for size in sizes)
        and sizes == sorted(sizes, reverse=True)
        and sizes[:1] in ([problem.batch], [])
        and sum(sizes) == problem.seq_len * problem.batch
    )
    problem.x = torch.randn(problem.seq_len * problem.batch, problem.input_size).to(problem.dtype)
    problem.batch_sizes = torch.tensor(sizes, dtype=torch.int64)
    if right:
        assert not problem.forward()[0].isnan().any()
    else:
        with pytest.raises(RuntimeError, match="batch_sizes"):
            problem.forward()
