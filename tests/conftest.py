"""What all tests share: devices, instruction sets, dtypes, the table of tolerances, seeds, poisoned memory.

A test that runs kernels takes `target`: each instruction set of this CPU, then each kind of GPU. One that is
about the Python around them takes `device`, which runs the best of each. Both are a `torch.device`.
"""

from __future__ import annotations

import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it in deterministic mode

import hypothesis
import pytest
import torch
from torch import Tensor

from seqkernels import _C
from seqkernels._ops import BUILD_CONFIG

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() and BUILD_CONFIG["cuda_targets"] else [])
TARGETS = [f"cpu/{isa}" for isa in _C.cpu_isas()] + DEVICES[1:]

# The largest error a result may have, relative to the root mean square of the right result, which float64
# gives for the same (rounded) inputs. In units of eps, the spacing of the dtype's numbers at 1:
#   float64, float32  Nothing is rounded but single operations. Sums of up to some hundred terms and a dozen
#                     time steps of gain below 1 add up to tens of eps for the worst of thousands of elements.
#   float16, bfloat16 h, the saved gates and their gradients are rounded once per time step, by up to eps / 2
#                     of elements that may be five times the root mean square; over a dozen steps a few such
#                     errors meet in one element. Sums and the cell state are float32 and add nothing.
TOLERANCES = {
    torch.float64: 128 * torch.finfo(torch.float64).eps,
    torch.float32: 128 * torch.finfo(torch.float32).eps,
    torch.float16: 12 * torch.finfo(torch.float16).eps,
    torch.bfloat16: 12 * torch.finfo(torch.bfloat16).eps,
}
# float32 whose products with W_hh go through tensor cores as TF32: both operands are rounded to a mantissa of
# float16's size, once per time step. The rest is float32: nothing else of what float16 is granted adds up.
TF32_TOLERANCE = 6 * torch.finfo(torch.float16).eps

hypothesis.settings.register_profile(
    "seqkernels", max_examples=60, deadline=None, derandomize=True, database=None, print_blob=False
)
hypothesis.settings.load_profile("seqkernels")


def error_of(actual: Tensor, expected: Tensor) -> float:
    """The largest error of `actual`, relative to the root mean square of `expected`; inf where it is NaN."""
    if expected.numel() == 0:
        return 0.0
    expected = expected.detach().double().cpu()
    largest = (actual.detach().double().cpu() - expected).abs().max()
    if largest == 0:
        return 0.0
    return float((largest / expected.square().mean().sqrt()).nan_to_num(nan=float("inf")))


def assert_close(actual: Any, expected: Any, dtype: torch.dtype | None = None, what: str = "") -> None:
    """Tensors, or dicts or sequences of them, have the same shapes and agree to the tolerance of `dtype`.

    The dtype is by default that of each actual tensor.
    """
    if isinstance(expected, dict):
        assert actual.keys() == expected.keys(), what
        for key in expected:
            assert_close(actual[key], expected[key], dtype, f"{what}{key}")
    elif isinstance(expected, Tensor):
        assert actual.shape == expected.shape, f"{what}: {tuple(actual.shape)}, not {tuple(expected.shape)}"
        error, tolerance = error_of(actual, expected), TOLERANCES[dtype or actual.dtype]
        assert error <= tolerance, f"{what}: error {error:.2e} exceeds {tolerance:.2e}"
    elif expected is None:
        assert actual is None, what
    else:
        assert len(actual) == len(expected), what
        for n, (a, e) in enumerate(zip(actual, expected, strict=True)):
            assert_close(a, e, dtype, f"{what}[{n}]")


def flat(value: Any) -> list[Tensor]:
    """The tensors in nested tuples, lists and PackedSequences, in order."""
    if isinstance(value, Tensor):
        return [value]
    return [tensor for item in value if item is not None for tensor in flat(item)]


def in_child(function: Callable[[], None], seconds: float = 30) -> None:
    """Run `function` in a forked process; fails where it raises, crashes, or is not done after `seconds`."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            function()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    deadline = time.monotonic() + seconds
    done, status = os.waitpid(child, os.WNOHANG)
    while not done:
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            pytest.fail(f"the child process was not done after {seconds} s")
        time.sleep(0.01)
        done, status = os.waitpid(child, os.WNOHANG)
    code = os.waitstatus_to_exitcode(status)
    assert code == 0, f"the child process ended with {code}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Which CUDA kernels were run on the emulator, by any process of the session."""
    reports = [report for reports in terminalreporter.stats.values() for report in reports]
    properties = {pair for report in reports for pair in getattr(report, "user_properties", ())}
    kernels = [value.split()[-1] for name, value in properties if name == "cuda_kernel"]
    if kernels:
        counts = ", ".join(f"{kernels.count(plan)} {plan}" for plan in sorted(set(kernels)))
        terminalreporter.write_line(f"{len(kernels)} CUDA kernels ran on the emulator: {counts}")


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    """Each kind of device that this build has kernels for."""
    return torch.device(request.param)


@pytest.fixture(params=TARGETS)
def target(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """Each device, the CPU once for each instruction set that it can run."""
    device, _, isa = request.param.partition("/")
    if not isa:
        yield torch.device(device)
        return
    before = _C.cpu_isa()
    _C.set_cpu_isa(isa)
    try:
        yield torch.device(device)
    finally:
        _C.set_cpu_isa(before)


@pytest.fixture(params=DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """Each dtype that the kernels take."""
    return request.param


@pytest.fixture(autouse=True)
def seed() -> None:
    """The same random numbers in every run, whichever tests run before."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small problems run best so; test_threads.py has the others."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def poison() -> Iterator[None]:
    """Memory that nobody has written to holds NaN, in results and in the kernels' scratch memory alike."""
    assert torch.utils.deterministic.fill_uninitialized_memory
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)
