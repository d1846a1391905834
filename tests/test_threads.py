"""Threads: any number of them, from anywhere, gives the same; and the process is left as it was."""

from __future__ import annotations

import concurrent.futures
import os
import subprocess
import sys
import threading

import pytest
import torch

import seqkernels
from seqkernels import _C

from .conftest import assert_close, in_child, paired
from .problems import CELLS, NORMALIZED_CELLS, OPTIONS, Problem, lengths_of

# Enough work for several threads, once split by sequences (many) and once by hidden units (few sequences).
SHAPES = {"by sequences": (6, 70, 24, 40), "by units": (40, 2, 24, 100), "one sequence": (40, 1, 8, 130)}
THREADS = (1, 2, 5)  # the last more than many machines have cores


def large(cell: str, shape: str, **options: object) -> Problem:
    return Problem(cell, *SHAPES[shape], **options)


@paired("cell shape packed", CELLS, SHAPES, [False, True], each=1)
def test_number_of_threads(
    cell: str, shape: str, packed: bool, dtype: torch.dtype, target: torch.device
) -> None:
    seq_len, batch = SHAPES[shape][:2]
    lengths = lengths_of(seq_len, batch) if packed else None
    problem = large(cell, shape, directions=2, lengths=lengths, dtype=dtype, device=target)
    results = []
    for count in THREADS:
        torch.set_num_threads(count)
        results.append(problem.run())
    expected = problem.expected(kinks=results[0]["output"])
    if cell != "rnn_relu":  # whose derivative jumps where another order of summation changes a sign
        for result in results:
            assert_close(result, expected)
    assert_close(results[0], expected)


@paired("cell shape count", CELLS, SHAPES, [2, 5], each=1)
def test_threads_with_options(
    cell: str, shape: str, count: int, dtype: torch.dtype, target: torch.device
) -> None:
    """Members that share units and sequences, directions side by side, and all that happens between steps."""
    torch.set_num_threads(count)
    large(cell, shape, directions=2, dtype=dtype, device=target, asked=OPTIONS).check()


@paired("cell shape count", CELLS, SHAPES, THREADS, each=1)
def test_same_bits_in_every_run(
    cell: str, shape: str, count: int, dtype: torch.dtype, target: torch.device
) -> None:
    """With the same number of threads, however late some of them come."""
    torch.set_num_threads(count)
    problem = large(cell, shape, directions=2, dtype=dtype, device=target)
    first = problem.run()
    for _ in range(5):
        again = problem.run()
        assert [name for name in first if not torch.equal(first[name], again[name])] == []


@pytest.mark.parametrize("cell", NORMALIZED_CELLS)
def test_parts_of_a_row_have_means_of_their_own(cell: str, dtype: torch.dtype, target: torch.device) -> None:
    """Of a row's gates, that one thread makes the first units of and another one the last."""
    torch.set_num_threads(2)
    problem = Problem(cell, 6, 1, 24, 260, dtype=dtype, device=target)
    problem.states[0].abs_()
    gates = problem.weights[1].unflatten(0, (-1, problem.hidden_size))
    gates[:, problem.hidden_size // 2 :] += 0.1
    problem.check()


@pytest.mark.parametrize("cell", CELLS)
def test_several_python_threads_at_once(cell: str, dtype: torch.dtype, device: torch.device) -> None:
    torch.set_num_threads(2)
    problems = [large(cell, shape, seed=n, dtype=dtype, device=device) for n in range(2) for shape in SHAPES]
    expected = [problem.run() for problem in problems]
    begin = threading.Barrier(len(problems))

    def work(problem: Problem) -> list[dict[str, torch.Tensor]]:
        torch.set_num_threads(2)
        begin.wait(timeout=60)
        return [problem.run() for _ in range(3)]

    with concurrent.futures.ThreadPoolExecutor(len(problems)) as pool:
        for results, right in zip(pool.map(work, problems), expected, strict=True):
            for result in results:
                assert_close(result, right)


def test_inside_autograds_threads(device: torch.device) -> None:
    """Backward of several graphs at once, each in a thread of its own."""
    torch.set_num_threads(2)
    module = seqkernels.FusedLSTM(24, 40, device=device)
    x = torch.randn(6, 70, 24, device=device)

    def work(_: int) -> torch.Tensor:
        leaf = x.clone().requires_grad_()
        return torch.autograd.grad(module(leaf)[0].square().sum(), leaf)[0]

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        results = list(pool.map(work, range(8)))
    assert_close(results, [work(0)] * 8)


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_inside_a_parallel_region(device: torch.device) -> None:
    """A graph of torch.jit runs its branches on torch's inter-op threads."""
    torch.set_num_threads(2)
    problem = large("gru", "by sequences", device=device)
    output = problem.forward(False)[0]

    def branches(x: torch.Tensor) -> list[torch.Tensor]:
        futures = [
            torch.jit.fork(torch.ops.seqkernels.gru, x, *problem.states, problem.weights, None, False)
            for _ in range(4)
        ]
        return [torch.jit.wait(future)[0] for future in futures]

    assert_close(branches(problem.x), [output] * 4)


@pytest.mark.parametrize("cell", CELLS)
def test_after_fork(cell: str) -> None:
    """A child of a process that has run the kernels on several threads runs them too."""
    torch.set_num_threads(2)
    problem = large(cell, "by units")
    expected = problem.run()
    # Where there is a GPU, torch's autograd has threads for it, and refuses to run in a child.
    has_autograd = not torch.cuda.is_available()

    def run() -> None:
        torch.use_deterministic_algorithms(False)  # would fill memory on several threads: torch hangs here
        actual = problem.run()
        if has_autograd:
            problem.x.requires_grad_()
            problem.forward()[0].sum().backward()
            assert problem.x.grad is not None
        torch.set_num_threads(1)
        assert_close(actual, expected)

    in_child(run)
    assert_close(problem.run(), expected)


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="needs a list of the process's threads")
def test_long_calls_after_fork_have_threads() -> None:
    """Started by the child itself, for its parent has kept torch's."""
    torch.set_num_threads(2)
    module, x = seqkernels.FusedLSTM(256, 256).requires_grad_(False), torch.randn(50, 64, 256)
    expected = module(x)
    assert not _C.process_was_forked()

    def run() -> None:
        torch.use_deterministic_algorithms(False)  # would fill memory on several threads: torch hangs here
        assert _C.process_was_forked()
        assert any("was forked" in reason for reason in seqkernels.explain(module, x).reasons)
        counts: list[int] = []
        done = threading.Event()

        def count() -> None:
            while not done.wait(1e-3):
                counts.append(len(os.listdir("/proc/self/task")))

        counter = threading.Thread(target=count)
        counter.start()
        while max(counts, default=0) < 3:  # this one, the counter's, and another one of the team
            actual = module(x)
        done.set()
        counter.join()
        torch.set_num_threads(1)
        assert_close(actual, expected)

    in_child(run)


def test_data_loader_workers() -> None:
    """The usual way to fork: a Dataset that runs a module."""
    torch.set_num_threads(2)
    module = seqkernels.FusedGRU(24, 40).requires_grad_(False)
    items = [torch.randn(70, 24) for _ in range(4)]
    expected = [module(item)[0] for item in items]
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(torch.stack(items)),
        collate_fn=lambda batch: module(batch[0][0])[0],
        num_workers=2,
        multiprocessing_context="fork",
        timeout=60,
    )
    assert_close(list(loader), expected)


# ---------------------------------------------------------------- the state of the process


def denormals_count() -> bool:
    """Whether a denormal result is kept in this thread."""
    tiny = torch.tensor([torch.finfo(torch.float32).tiny])
    return bool((tiny * 0.5 > 0).all())


@pytest.mark.skipif(not torch.set_flush_denormal(False), reason="this CPU cannot flush denormals")
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("flush", [False, True])
@pytest.mark.parametrize("cell", ["lstm", "gru_layer_norm"])  # the loop does it, whatever the cell
def test_denormal_mode_is_restored(cell: str, flush: bool, count: int, target: torch.device) -> None:
    torch.set_num_threads(count)
    tiny = torch.full((1_000_000,), torch.finfo(torch.float32).tiny)
    assert (tiny * 0.5 > 0).all()  # by all threads, which begin in the mode of the one that first needs them
    torch.set_flush_denormal(flush)
    try:
        for shape in SHAPES:
            large(cell, shape, device=target).run()
        assert denormals_count() != flush
        assert bool((tiny * 0.5 > 0).all()) != flush or count > 1  # other threads have a mode of their own
        if not flush:
            assert (tiny * 0.5 > 0).all()
    finally:
        torch.set_flush_denormal(False)


@pytest.mark.parametrize("cell", CELLS)
def test_denormal_mode_is_restored_after_an_error(cell: str) -> None:
    problem = large(cell, "by units")
    problem.weights[1] = problem.weights[1][1:]
    with pytest.raises(RuntimeError):
        problem.forward()
    assert denormals_count()


def test_random_numbers_and_threads_are_left_alone(device: torch.device) -> None:
    torch.set_num_threads(2)
    before = torch.get_rng_state()
    large("lstm", "by units", device=device).run()
    assert torch.equal(before, torch.get_rng_state())
    assert torch.get_num_threads() == 2


# ---------------------------------------------------------------- instruction sets


def test_isas_of_this_build() -> None:
    assert _C.cpu_isas()[0] == "baseline"
    assert set(_C.cpu_isas()) <= set(_C.build_config()["cpu_targets"])
    assert _C.cpu_isa() in _C.cpu_isas()


def test_unknown_isa_leaves_the_choice_alone() -> None:
    before = _C.cpu_isa()
    with pytest.raises(ValueError, match=r"expected one of baseline.*got 'mmx'"):
        _C.set_cpu_isa("mmx")
    assert _C.cpu_isa() == before


def in_new_process(isa: str) -> subprocess.CompletedProcess:
    code = "import seqkernels; print(seqkernels._C.cpu_isa())"
    environment = {**os.environ, "SEQKERNELS_CPU_ISA": isa, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.slow
def test_environment_chooses_the_isa() -> None:
    result = in_new_process("baseline")
    assert result.stdout.strip() == "baseline", result.stderr


@pytest.mark.slow
def test_unknown_isa_in_the_environment() -> None:
    result = in_new_process("mmx")
    assert result.returncode != 0
    assert "SEQKERNELS_CPU_ISA: expected one of baseline" in result.stderr
    assert "got 'mmx'" in result.stderr
