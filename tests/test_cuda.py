"""What there is on a GPU alone: plans, TF32, streams, graphs, devices, and a host that never waits."""

from __future__ import annotations

import concurrent.futures
import contextlib
import copy
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import seqkernels
from benchmarks.gpu_timing import captured

from .conftest import BEST_TARGETS, PLANS, TOLERANCES, assert_close, error_of, flat, set_tf32
from .problems import CELLS, Problem, lengths_of

pytestmark = pytest.mark.skipif("cuda" not in BEST_TARGETS, reason="no GPU, or a build without CUDA kernels")

CUDA = torch.device("cuda")
NARROW = (torch.float16, torch.bfloat16)
NAMES = ("LSTM", "GRU", "RNN")
# Some that run in every plan, some only in the larger ones; units and sequences with and without remainders.
# T, B, I, H, directions, packed
SHAPES = [
    (5, 1, 16, 64, 1, False),
    (4, 9, 24, 100, 2, True),
    (4, 16, 32, 128, 1, False),
    (5, 20, 8, 130, 2, False),
    (3, 8, 40, 192, 1, True),
    (4, 16, 16, 256, 2, False),
    (4, 33, 16, 512, 1, False),
    (3, 8, 16, 768, 1, False),
    (3, 16, 16, 1000, 1, True),
    (3, 4, 16, 2048, 1, False),
]


def make(cell: str, shape: tuple, kind: type[Problem] = Problem, **options: Any) -> Problem:
    seq_len, batch, input_size, hidden_size, directions, packed = shape
    lengths = lengths_of(seq_len, batch) if packed else None
    options = {"dtype": torch.float16, "device": CUDA, **options}
    return kind(cell, seq_len, batch, input_size, hidden_size, directions, lengths=lengths, **options)


@dataclass
class ForcedProblem(Problem):
    """One pass is run by a plan, the other by whatever is best: not every plan that has one can run both."""

    plan: str = ""
    forced: str = "forward"

    @contextlib.contextmanager
    def _forcing(self, which: str) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            if which == self.forced:
                patch.setenv("SEQKERNELS_CUDA_PLAN", self.plan)
            yield

    def forward(self, save_for_backward: bool | None = None) -> tuple[Tensor, ...]:
        with self._forcing("forward"):
            return super().forward(save_for_backward)

    def backward(self, forward: Sequence[Tensor], needs_grad: Sequence[bool] | None = None) -> list[Tensor]:
        with self._forcing("backward"):
            return super().backward(forward, needs_grad)


def same(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    """To the bit."""
    assert actual.keys() == expected.keys()
    return all(torch.equal(actual[name], expected[name]) for name in expected)


@pytest.fixture(params=PLANS)
def plan(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each plan, forced; a test is skipped where it cannot run."""
    monkeypatch.setenv("SEQKERNELS_CUDA_PLAN", request.param)
    return request.param


# ---------------------------------------------------------------- results of each plan


@pytest.mark.parametrize("which", ["forward", "backward"])
@pytest.mark.parametrize("chosen", PLANS)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "-".join(str(int(v)) for v in s))
@pytest.mark.parametrize("dtype", [*NARROW, torch.float32], ids=["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("cell", CELLS)
def test_plans_at_their_sizes(cell: str, dtype: torch.dtype, shape: tuple, chosen: str, which: str) -> None:
    make(cell, shape, ForcedProblem, dtype=dtype, plan=chosen, forced=which).check()


@pytest.mark.parametrize("which", ["forward", "backward"])
@pytest.mark.parametrize("chosen", PLANS)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "-".join(str(int(v)) for v in s))
@pytest.mark.parametrize("cell", CELLS)
def test_plans_in_tf32(cell: str, shape: tuple, chosen: str, which: str) -> None:
    # Of the recurrent kernels alone: cuBLAS rounds both factors of the other products, to what it likes.
    torch._C._set_cudnn_allow_tf32(True)
    make(cell, shape, ForcedProblem, dtype=torch.float32, plan=chosen, forced=which).check("tf32")


@pytest.mark.parametrize("shape", SHAPES[-4:], ids=lambda s: "-".join(str(int(v)) for v in s))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("cell", CELLS)
def test_full_precision_at_large_sizes(cell: str, dtype: torch.dtype, shape: tuple) -> None:
    make(cell, shape, dtype=dtype).check()


@pytest.mark.parametrize("cell", CELLS)
def test_tf32_setting_is_followed(cell: str, plan: str) -> None:
    """IEEE results are too good to be TF32's; allowing it and forbidding it again leaves no trace."""
    problem = make(cell, (4, 16, 32, 128, 1, False), dtype=torch.float32)
    expected = problem.run()
    right = problem.expected(kinks=expected["output"])
    set_tf32(True)
    allowed = problem.run()
    set_tf32(False)
    assert_close(expected, right)
    assert error_of(allowed["output"], right["output"]) <= TOLERANCES["tf32"]
    assert same(problem.run(), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=["float16", "float32"])
@pytest.mark.parametrize("cell", ["lstm", "lstm_projected", "gru", "gru_reset_before"])
def test_many_steps(cell: str, dtype: torch.dtype, plan: str) -> None:
    """Long enough to notice a step that overtakes another: each run gives the same bits."""
    problem = make(cell, (1500, 24, 16, 256, 1, False), seed=1, dtype=dtype)
    first = problem.run()
    assert all(tensor.isfinite().all() for tensor in first.values())
    for _ in range(3):
        assert same(problem.run(), first)
    short = make(cell, (1500, 24, 16, 256, 1, False), seed=1, dtype=dtype)
    short.x, short.grads[0] = short.x[:12], short.grads[0][:12]
    assert_close(first["output"][:12], short.expected()["output"])


@pytest.mark.parametrize("cell", CELLS)
def test_long_packed_sequences(cell: str, plan: str) -> None:
    """Against the same sequences one by one; so many steps have their offsets sent in parts."""
    problem = Problem(cell, 1100, 3, 8, 64, lengths=[1100, 700, 20], dtype=torch.float16, device=CUDA)
    output = problem.run()["output"].split(problem.batch_sizes.tolist())
    rows = problem.x.split(problem.batch_sizes.tolist())
    for n, length in enumerate(problem.lengths):
        alone = Problem(cell, length, 1, 8, 64, dtype=torch.float16, device=CUDA)
        alone.x = torch.stack([row[n : n + 1] for row in rows[:length]])
        alone.states = [state[:, n : n + 1] for state in problem.states]
        alone.weights = problem.weights
        assert_close(torch.stack([row[n] for row in output[:length]]), alone.forward()[0][:, 0])


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("cell", CELLS)
def test_same_bits_in_every_run(cell: str, packed: bool, dtype: torch.dtype, plan: str) -> None:
    problem = make(cell, (30, 20, 24, 130, 2, packed), dtype=dtype)
    first = problem.run()
    for _ in range(10):
        assert same(problem.run(), first)


# ---------------------------------------------------------------- choosing a plan


def explained(module: nn.Module, x: Tensor) -> tuple[str, str]:
    """The plans of forward and backward."""
    kernel = seqkernels.explain(module, x).kernel
    found = re.fullmatch(r"cuda \w+: (\w+) forward, (\w+) backward", kernel)
    assert found is not None, kernel
    return found[1], found[2]


@pytest.mark.parametrize("name", NAMES)
def test_explained_plan_runs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What explain names can be forced, and gives the same bits."""
    module = getattr(seqkernels, f"Fused{name}")(32, 128, device=CUDA, dtype=torch.float16)
    x = torch.randn(5, 16, 32, device=CUDA, dtype=torch.float16)
    forward, _ = explained(module, x)
    assert forward in PLANS
    with torch.no_grad():
        expected = module(x)[0]
        monkeypatch.setenv("SEQKERNELS_CUDA_PLAN", forward)
        assert torch.equal(module(x)[0], expected)


@pytest.mark.parametrize("name", NAMES)
def test_explain_float64_and_the_forced_plan(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = getattr(seqkernels, f"Fused{name}")(32, 64, device=CUDA, dtype=torch.float64)
    x = torch.randn(5, 3, 32, device=CUDA, dtype=torch.float64)
    assert explained(module, x) == ("stepwise", "stepwise")
    assert any("float64" in reason for reason in seqkernels.explain(module, x).reasons)
    for dtype in (torch.float16, torch.float32):
        monkeypatch.setenv("SEQKERNELS_CUDA_PLAN", "stepwise")
        assert explained(module.to(dtype), x.to(dtype)) == ("stepwise", "stepwise")


@pytest.mark.parametrize("name", NAMES)
def test_explain_float32(name: str) -> None:
    """Persistent either way; IEEE arithmetic is a reason why it is not faster."""
    module = getattr(seqkernels, f"Fused{name}")(32, 128, device=CUDA)
    x = torch.randn(5, 16, 32, device=CUDA)
    for tf32 in (False, True):
        set_tf32(tf32)
        assert all(plan.startswith("persistent") for plan in explained(module, x))
        assert any("fp32_precision" in r for r in seqkernels.explain(module, x).reasons) == (not tf32)


@pytest.mark.parametrize(("name", "norm"), [("LSTM", "layer"), ("LSTM", "layer-joint"), ("GRU", "layer")])
def test_explain_normalised_layers(name: str, norm: str) -> None:
    module = getattr(seqkernels, f"Fused{name}")(32, 64, norm=norm, device=CUDA)
    x = torch.randn(5, 3, 32, device=CUDA)
    assert explained(module, x) == ("stepwise", "stepwise")
    assert any("normalised rows" in reason for reason in seqkernels.explain(module, x).reasons)


def test_plan_that_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = make("lstm", SHAPES[0], dtype=torch.float64)
    monkeypatch.setenv("SEQKERNELS_CUDA_PLAN", "persistent_grid")
    with pytest.raises(
        RuntimeError, match=r"SEQKERNELS_CUDA_PLAN asks for persistent_grid, which cannot .*float64"
    ):
        problem.forward()


def test_unknown_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEQKERNELS_CUDA_PLAN", "magic")
    with pytest.raises(RuntimeError, match=r"must be one of stepwise, .*persistent_grid; got 'magic'"):
        make("gru", SHAPES[0]).forward()


def test_empty_choice_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = make("gru", SHAPES[0])
    expected = problem.run()
    monkeypatch.setenv("SEQKERNELS_CUDA_PLAN", "")
    assert same(problem.run(), expected)


# ---------------------------------------------------------------- streams, graphs, threads, devices


@pytest.fixture
def unpoisoned() -> None:
    """torch's filling of new memory is work of its own; the fixture `poison` sets it back."""
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("unpoisoned")
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("cell", CELLS)
def test_host_does_not_wait(cell: str, packed: bool, plan: str) -> None:
    problem = make(cell, (40, 9, 16, 64, 2, packed))  # few enough launches for the GPU's queue
    expected = problem.run()
    actual = without_waiting(problem.run)
    assert same(actual, expected)


@pytest.mark.usefixtures("unpoisoned")
@pytest.mark.parametrize("name", NAMES)
def test_host_does_not_wait_in_training(name: str) -> None:
    module = getattr(seqkernels, f"Fused{name}")(16, 64, 2, bidirectional=True, device=CUDA)
    x = torch.randn(20, 9, 16, device=CUDA)

    def train() -> tuple[Tensor, ...]:
        return torch.autograd.grad(module(x)[0].square().sum(), list(module.parameters()))

    expected = train()
    assert_close(without_waiting(train), expected)


def without_waiting(run: Callable[[], Any]) -> Any:
    """What `run` returns; an error where the host waits for the GPU, seen by torch or by the clock."""
    torch.cuda.synchronize()
    ended = torch.cuda.Event()
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.cuda._sleep(1_000_000_000)  # cycles, about half a second
        result = run()
        ended.record()
        assert not ended.query()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    return result


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("cell", CELLS)
def test_graph_of_forward_and_backward(cell: str, packed: bool, plan: str) -> None:
    """Replayed with other numbers in the same memory, several times."""
    shape = (20, 9, 16, 64, 2, packed)
    problem = make(cell, shape)
    graph, results = captured(problem.run)
    for seed in (1, 0, 2):
        other = make(cell, shape, seed=seed)
        expected = other.run()
        for to, value in zip([*problem.inputs, *problem.grads], [*other.inputs, *other.grads], strict=True):
            to.copy_(value)
        for _ in range(2):
            graph.replay()
            assert same(results, expected)


@pytest.mark.parametrize("name", NAMES)
def test_graph_of_a_training_step(name: str) -> None:
    module = getattr(seqkernels, f"Fused{name}")(16, 64, 2, device=CUDA)
    x = torch.randn(12, 8, 16, device=CUDA)

    def train() -> list[Tensor]:
        output = module(x)[0]
        return [output, *torch.autograd.grad(output.square().sum(), list(module.parameters()))]

    graph, results = captured(train)
    for seed in (1, 2):
        torch.manual_seed(seed)
        x.copy_(torch.randn(12, 8, 16))
        with torch.no_grad():
            module.weight_hh_l0.mul_(0.5)
        graph.replay()
        torch.cuda.synchronize()
        found = [t.clone() for t in results]
        assert_close(found, train())


@pytest.mark.usefixtures("unpoisoned")
@pytest.mark.parametrize("cell", CELLS)
def test_current_stream_is_used(cell: str, plan: str) -> None:
    """What is written late on a stream is read by the ops that come after it there."""
    problem = make(cell, (20, 9, 16, 64, 2, False))
    expected = problem.run()
    right, problem.x = problem.x, torch.full_like(problem.x, torch.nan)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        problem.x.copy_(right)
        actual = problem.run()
    stream.synchronize()
    assert same(actual, expected)


@pytest.mark.parametrize("cell", CELLS)
def test_threads_with_streams_of_their_own(cell: str, dtype: torch.dtype, plan: str) -> None:
    """Several persistent kernels at once neither mix their exchanges nor wait for one another for ever."""
    shapes = [(40, 20, 16, 130, 2, False), (30, 9, 24, 64, 1, True), (50, 1, 8, 256, 1, False)]
    problems = [make(cell, shape, seed=n, dtype=dtype) for n in range(2) for shape in shapes]
    expected = [problem.run() for problem in problems]
    torch.cuda.synchronize()
    begin = threading.Barrier(len(problems))

    def work(problem: Problem) -> list[dict[str, Tensor]]:
        stream = torch.cuda.Stream()
        begin.wait(timeout=60)
        with torch.cuda.stream(stream):
            results = [problem.run() for _ in range(5)]
        stream.synchronize()
        return results

    with concurrent.futures.ThreadPoolExecutor(len(problems)) as pool:
        for results, right in zip(pool.map(work, problems), expected, strict=True):
            assert all(same(result, right) for result in results)


def test_current_device_stays() -> None:
    before = torch.cuda.current_device()
    make("lstm", SHAPES[0]).run()
    assert torch.cuda.current_device() == before


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("cell", CELLS)
def test_other_device(cell: str) -> None:
    """A tensor's own device is used, whichever is current."""
    problem = Problem(cell, 5, 3, 7, 64, directions=2, device="cuda:1")
    assert torch.cuda.current_device() == 0
    problem.check()
    assert torch.cuda.current_device() == 0


@pytest.mark.parametrize("name", NAMES)
def test_moves_between_devices(name: str) -> None:
    module = getattr(seqkernels, f"Fused{name}")(5, 6, 2, bidirectional=True)
    x = torch.randn(4, 3, 5)
    expected = flat(module(x))
    assert_close(flat(module.cuda()(x.cuda())), expected)
    assert_close(flat(copy.deepcopy(module)(x.cuda())), expected)
    assert_close(flat(module.cpu()(x)), expected)
    with pytest.raises(RuntimeError, match="not at the same device"):
        module(x.cuda())


# ---------------------------------------------------------------- size


@pytest.mark.slow
def test_more_elements_than_32_bits_count() -> None:
    """The later half of a long sequence, begun from the middle's state, gives what it gives in the whole."""
    batch, hidden, half = 64, 1024, 4104
    assert 2 * half * batch * 4 * hidden > 2**31
    needed = 2 * half * batch * 2 * hidden * 40
    if torch.cuda.mem_get_info()[0] < needed:
        pytest.skip(f"needs {needed / 2**30:.0f} GiB of free GPU memory")
    torch.manual_seed(0)
    module = seqkernels.FusedGRU(16, hidden, device=CUDA, dtype=torch.float16)
    x = torch.randn(2 * half, batch, 16, device=CUDA, dtype=torch.float16, requires_grad=True)
    grad_output = torch.randn(2 * half, batch, hidden, device=CUDA, dtype=torch.float16)

    output = module(x)[0]
    (grad_x,) = torch.autograd.grad(output, x, grad_output)
    later = x.detach()[half:].clone().requires_grad_()
    middle = output.detach()[half - 1 : half].clone()
    again = module(later, middle)[0]
    (grad_later,) = torch.autograd.grad(again, later, grad_output[half:])
    assert (output[half:] - again).abs().max() <= TOLERANCES[torch.float16] * again.square().mean().sqrt()
    assert (grad_x[half:] - grad_later).abs().max() <= TOLERANCES[
        torch.float16
    ] * grad_later.square().mean().sqrt()


# ---------------------------------------------------------------- torch's other features


@pytest.mark.parametrize("dtype", NARROW, ids=["float16", "bfloat16"])
@pytest.mark.parametrize("name", NAMES)
def test_autocast_runs_the_narrow_kernels(name: str, dtype: torch.dtype) -> None:
    module = getattr(seqkernels, f"Fused{name}")(16, 64, backend="native", device=CUDA)
    narrow = copy.deepcopy(module).to(dtype)
    x = torch.randn(5, 8, 16, device=CUDA)
    with torch.autocast("cuda", dtype=dtype):
        actual = module(x)[0]
        assert explained(module, x) == explained(narrow, x.to(dtype))
    assert actual.dtype == dtype
    assert torch.equal(actual, narrow(x.to(dtype))[0])
    grads = torch.autograd.grad(actual.float().sum(), list(module.parameters()))
    assert all(grad.dtype == torch.float32 for grad in grads)


@pytest.mark.slow
@pytest.mark.usefixtures("unpoisoned")
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
@pytest.mark.parametrize("name", NAMES)
def test_compile(name: str, mode: str) -> None:
    """inductor's code around the op, and in CUDA graphs of its own."""
    torch._dynamo.reset()
    module = nn.Sequential(nn.Linear(8, 16), getattr(seqkernels, f"Fused{name}")(16, 64)).to(CUDA)

    def run(x: Tensor) -> Tensor:
        return module(x)[0].relu().square().mean()

    compiled = torch.compile(run, fullgraph=True, mode=mode)
    for _ in range(4):  # graphs are recorded after the first runs
        x = torch.randn(12, 8, 8, device=CUDA)
        loss, expected = compiled(x), run(x)
        parameters = list(module.parameters())
        assert_close(loss.clone(), expected)
        grads = [g.clone() for g in torch.autograd.grad(loss, parameters)]
        assert_close(grads, torch.autograd.grad(expected, parameters))
