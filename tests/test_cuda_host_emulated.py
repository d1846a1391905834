"""csrc/cuda's host code with the emulator in the place of CUDA: what it asks torch and tells the kernels.

Needs no GPU, but CUDA's headers.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.gpu import PLANS
from tests.emulator import host
from tests.problems import (
    CELLS,
    NORMALIZED_CELLS,
    OPTIONS,
    PERSISTENT_CELLS,
    RATES,
    REGISTRY,
    Problem,
    assert_finite,
    lengths_of,
    with_infinite_gradients,
    with_unread_states,
)

pytestmark = pytest.mark.skipif(
    host.cuda_headers() is None or torch.version.cuda is not None,
    reason="no CUDA headers, or a torch with a cuBLAS of its own",
)

# T, B, I, H, directions, packed
SHAPES = [
    (3, 9, 24, 70, 2, True),
    (3, 17, 7, 33, 1, False),
    (1, 3, 4, 16, 2, False),
    (0, 3, 4, 16, 1, False),
]


class Emulated(Problem):
    def _cell(self) -> int:
        return CELLS.index(self.cell)

    def _c0(self) -> Tensor | None:
        return self.states[1] if REGISTRY[self.cell].has_cell_state else None

    def _arguments(self) -> tuple[Any, ...]:
        named = dict.fromkeys(REGISTRY["lstm"].options) | dict.fromkeys(RATES, 0.0) | self.named_options
        options = [named[name] for name in REGISTRY["lstm"].options if name not in ("batch_sizes", "reverse")]
        options[-1] = bool(options[-1])
        first = (self.x, self.states[0], self._c0(), self.weights)
        return (*first, self.batch_sizes, bool(named["reverse"]), self.norm_eps, *options)

    def forward(self, save_for_backward: bool | None = None) -> tuple[Tensor, ...]:
        args = self._arguments()
        saves = REGISTRY[self.cell].saved > 0 if save_for_backward is None else save_for_backward
        return tuple(torch.ops.seqkernels_emulated.forward(self._cell(), *args, saves))

    def backward(self, forward: Sequence[Tensor], needs_grad: Sequence[bool] | None = None) -> list[Tensor]:
        saved = iter(forward[self.n_results :])
        info = REGISTRY[self.cell]
        there = (info.saved > 0, info.has_cell_state, info.is_normalized)  # gates, cells, norms
        grads = [*self.grads, None, None, None][: self.n_results]
        grads = [*grads, None, None][:4]  # of cell states, too, for all
        return torch.ops.seqkernels_emulated.backward(
            self._cell(),
            *grads,
            *self._arguments(),
            *(forward[0], *(next(saved) if is_there else None for is_there in there)),
            [True] * len(self.inputs) if needs_grad is None else list(needs_grad),
        )


@contextlib.contextmanager
def loaded() -> Iterator[ctypes.CDLL]:
    """The library, and torch's products of 16-bit matrices that give float32, which a CPU does not have."""
    headers = host.cuda_headers()
    assert headers is not None
    path = str(host.build(headers))
    torch.ops.load_library(path)

    def product(a: Tensor, b: Tensor, dtype: torch.dtype, *, out: Tensor) -> Tensor:
        return out.copy_((a.double() @ b.double()).to(dtype))

    products = torch.library.Library("aten", "IMPL")
    for name in ("mm", "bmm"):
        products.impl(f"{name}.dtype_out", product, "CPU")
    yield ctypes.CDLL(path)
    products._destroy()


@pytest.fixture(scope="module")
def library() -> Iterator[ctypes.CDLL]:
    with loaded() as library:
        yield library


@pytest.fixture(
    params=[torch.float64, torch.float32, "tf32", torch.float16],
    ids=lambda dtype: str(dtype).removeprefix("torch."),
)
def numbers(request: pytest.FixtureRequest, library: ctypes.CDLL) -> Any:
    """A dtype, or float32 multiplied as TF32."""
    library.allow_tf32(request.param == "tf32")
    return request.param


def problem(cell: str, shape: tuple, numbers: Any, **options: Any) -> Emulated:
    seq_len, batch, input_size, hidden_size, directions, packed = shape
    lengths = lengths_of(seq_len, batch) if packed else None
    dtype = torch.float32 if numbers == "tf32" else numbers
    sizes = (seq_len, batch, input_size, hidden_size, directions)
    return Emulated(cell, *sizes, lengths=lengths, dtype=dtype, **options)


@pytest.mark.parametrize("plan", ["", *PLANS])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "-".join(str(int(v)) for v in s))
@pytest.mark.parametrize("cell", [cell for cell in CELLS if cell != "rnn_relu"])  # as rnn_tanh
def test_right(cell: str, shape: tuple, numbers: Any, plan: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEQKERNELS_CUDA_PLAN", plan)
    problem(cell, shape, numbers).check("tf32" if numbers == "tf32" else None)


# What is asked of the recurrence, each by itself and together.
ASKED = [*[(name,) for name in (*OPTIONS, *RATES)], OPTIONS, ("lengths", *RATES)]
ASKED += [("reverse",), ("reverse", *OPTIONS)]


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("asked", ASKED, ids="-".join)
@pytest.mark.parametrize("cell", CELLS)
def test_options(
    cell: str, asked: tuple[str, ...], packed: bool, numbers: Any, plan: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What happens to states between steps."""
    if REGISTRY[cell].saved == 0 and "zoneout_h_rate" in asked:
        pytest.skip("these gradients are those of the reference")
    if plan != "stepwise" and (cell not in PERSISTENT_CELLS or numbers == torch.float64):
        pytest.skip("no persistent kernels")
    monkeypatch.setenv("SEQKERNELS_CUDA_PLAN", plan)
    shape = (5, 6, 7, 33, 1 if "reverse" in asked else 2, packed)
    asked = [name for name in asked if not packed or name != "lengths"]
    problem(cell, shape, numbers, asked=asked).check("tf32" if numbers == "tf32" else None)


@pytest.mark.parametrize("plan", ["stepwise", "persistent_grid"])
@pytest.mark.parametrize("cell", CELLS)
def test_what_leaves_no_trace(cell: str, plan: str, library: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """States that no step reads; infinite gradients that pass by the cell, or that it stops."""
    monkeypatch.setenv("SEQKERNELS_CUDA_PLAN", plan if cell in PERSISTENT_CELLS else "stepwise")
    asked = ("lengths", "reset_mask", "recurrent_mask")
    unread = with_unread_states(problem(cell, (4, 5, 6, 18, 2, False), torch.float32, asked=asked))
    assert_finite(unread.run(), ("h_n", "c_n"))
    kept = problem(cell, (4, 5, 6, 18, 1, False), torch.float32, asked=("zoneout_h",))
    assert_finite(with_infinite_gradients(kept).run(), ("grad_h0",))
    if cell == "rnn_relu":
        stopped = problem(cell, (3, 2, 4, 9, 1, False), torch.float32)
        stopped.grads[0][1][stopped.run()["output"][1] == 0] = float("inf")
        assert_finite(stopped.run(), ())


def test_lost_states_have_no_gradients(library: Any) -> None:
    lost = problem("rnn_tanh", (3, 2, 4, 9, 1, False), torch.float32, asked=("zoneout_h_rate",))
    with pytest.raises(RuntimeError, match="zoneout_h_rate must be 0 where gradients are needed"):
        lost.run()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("cell", [cell for cell in CELLS if "norm_c" not in REGISTRY[cell].extra_weights])
def test_one_unit(cell: str, dtype: torch.dtype, library: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A matrix of one column is as well one of one row, but for its strides."""
    monkeypatch.setenv("SEQKERNELS_CUDA_PLAN", "stepwise")
    problem(cell, (3, 2, 3, 1, 2, False), dtype).check()
    if REGISTRY[cell].is_projected:
        problem(cell, (3, 2, 3, 5, 1, False), dtype, proj_size=1).check()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_products_of_steps_are_asked_of_cublas(
    dtype: torch.dtype, library: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEQKERNELS_CUDA_PLAN", "stepwise")
    before = library.emulated_products()
    problem("lstm", (3, 5, 4, 33, 2, True), dtype).check()
    assert library.emulated_products() - before == 2 * 3  # of both passes, both directions at once


ON_THREE_MULTIPROCESSORS = """
import torch
from tests import test_cuda_host_emulated as host
with host.loaded() as library:
    for cell, dtype in (("lstm", torch.bfloat16), ("gru", torch.float32)):
        before = library.emulated_grids()
        host.problem(cell, (3, 40, 4, 70, 2, True), dtype).check()
        assert library.emulated_grids() - before >= 4, "both passes in one launch a direction at most"
    for cell, dtype in host.OF_SEVERAL_QUARTERS:
        for packed in (False, True):
            asked = [name for name in host.OPTIONS if not packed or name != "lengths"]
            host.problem(cell, (3, 40, 4, 70, 2, packed), dtype, asked=asked).check()
"""
# So many sequences and so few multiprocessors make kernels whose warps have several quarters.
OF_SEVERAL_QUARTERS = [
    ("lstm", torch.bfloat16),
    ("gru", torch.float32),
    ("gru_reset_before", torch.float16),
    ("lstm_projected", torch.bfloat16),
    ("rnn_tanh", torch.float16),
]


def test_groups_that_find_no_room_come_in_another_launch(library: Any) -> None:
    settings = {"SEQKERNELS_EMULATED_MULTIPROCESSORS": "3", "SEQKERNELS_CUDA_PLAN": "persistent_grid"}
    command = [sys.executable, "-c", ON_THREE_MULTIPROCESSORS]
    done = subprocess.run(command, env={**os.environ, **settings}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("cell", NORMALIZED_CELLS)
def test_gradients_of_norms_are_sums_of_parts(cell: str, library: Any) -> None:
    """Of so many rows that these are cut in two."""
    problem(cell, (128, 2, 3, 5, 1, False), torch.float32).check()


def later(tensor: Tensor) -> Tensor:
    """The same numbers, some elements behind the beginning of their memory."""
    memory = tensor.new_full((tensor.numel() + 5,), float("nan"))
    memory[5:] = tensor.reshape(-1)
    return memory[5:].view(tensor.shape)


@pytest.mark.parametrize("plan", ["stepwise", "persistent_grid"])
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("cell", CELLS)
def test_views(cell: str, packed: bool, plan: str, library: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every argument begins somewhere within its memory."""
    monkeypatch.setenv("SEQKERNELS_CUDA_PLAN", plan)
    views = problem(cell, (4, 5, 3, 17, 2, packed), torch.float32)
    views.x, views.states = later(views.x), [later(state) for state in views.states]
    views.weights = [later(weight) for weight in views.weights]
    views.grads = [later(grad) for grad in views.grads]
    expected = problem(cell, (4, 5, 3, 17, 2, packed), torch.float32).run()
    for name, tensor in views.run().items():
        torch.testing.assert_close(tensor, expected[name], msg=name)


@pytest.mark.parametrize("plan", ["stepwise", "persistent_cluster"])
@pytest.mark.parametrize("cell", CELLS)
def test_only_some_gradients(cell: str, plan: str, library: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEQKERNELS_CUDA_PLAN", plan)
    some = problem(cell, (3, 5, 4, 33, 2, True), torch.float32)
    forward = some.forward()
    every = some.backward(forward)
    for wanted in range(len(every)):
        found = some.backward(forward, [n == wanted for n in range(len(every))])
        assert [t.numel() for n, t in enumerate(found) if n != wanted] == [0] * (len(every) - 1)
        torch.testing.assert_close(found[wanted], every[wanted])


def test_steps_that_no_kernel_can_count(library: Any) -> None:
    many = problem("gru", (2, 1, 1, 1, 1, False), torch.float32)
    many.x = many.x[:1].expand(2**31, 1, 1)
    with pytest.raises(RuntimeError, match="x must have at most 2147483647 steps on CUDA, got 2147483648"):
        many.forward()
