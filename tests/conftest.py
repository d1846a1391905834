"""What all tests share: devices, instruction sets, plans, dtypes, tolerances, seeds, poisoned memory.

A test that runs kernels takes `target`: each instruction set of this CPU, then the GPU, with the plan that is
thought best and with each plan in turn. One that is about the Python around them takes `device`, which runs
the best of each. Both are a `torch.device`.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import signal
import time
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it in deterministic mode

import hypothesis
import pytest
import torch
from torch import Tensor

from benchmarks.gpu_output import PLANS
from benchmarks.implementations import set_tf32
from seqkernels import _C, fusion_report
from seqkernels._extension import BUILD_CONFIG
from tests import kernels

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() and BUILD_CONFIG["cuda_targets"] else [])
# Compute in bfloat16 as CPUs do that have instructions for it.
EMULATED = [f"cpu/{isa}" for isa in kernels.EMULATED]
# Instruction sets that have kernels of their own for bfloat16 alone; the others are those of another one.
FOR_BFLOAT16 = [*EMULATED, "cpu/avx512bf16", "cpu/amx"]
# What is best on each device, once for each instruction set.
BEST_TARGETS = [f"cpu/{isa}" for isa in _C.cpu_isas()] + EMULATED + DEVICES[1:]
TARGETS = BEST_TARGETS + [f"{gpu}/{plan}" for gpu in DEVICES[1:] for plan in PLANS]

# The largest error (`error_of`) a result may have; float64 says what is right for the same (rounded) inputs.
# In units of eps, the spacing of the dtype's numbers at 1:
#   float64, float32  Nothing is rounded but single operations. Sums of up to some hundred terms and a dozen
#                     time steps of gain below 1 add up to tens of eps for the worst of thousands of elements.
#   float16, bfloat16 h, the saved gates and their gradients are rounded once per time step, by up to eps / 2
#                     of elements that may be five times the root mean square; over a dozen steps a few such
#                     errors meet in one element. Sums and the cell state are float32 and add nothing.
#                     Of 75,000 results of random problems one was off by 10 eps, all others by 7.5 at most.
#   tf32              float32 where the GPU may multiply in TF32: factors are rounded to the 10 bits of
#                     mantissa that float16 has, once per time step as there; what is stored is float32, so
#                     half of what float16 is granted will do.
TOLERANCES: dict[torch.dtype | str, float] = {
    torch.float64: 128 * torch.finfo(torch.float64).eps,
    torch.float32: 128 * torch.finfo(torch.float32).eps,
    torch.float16: 12 * torch.finfo(torch.float16).eps,
    torch.bfloat16: 12 * torch.finfo(torch.bfloat16).eps,
    "tf32": 6 * 2**-10,
}

hypothesis.settings.register_profile(
    "seqkernels", max_examples=60, deadline=None, derandomize=True, database=None, print_blob=False
)
hypothesis.settings.load_profile("seqkernels")


def error_of(actual: Tensor, expected: Tensor) -> float:
    """The largest error of an element, relative to the root mean square of `expected`; inf where it is NaN.

    An element that is larger than the root mean square is measured by itself, for so is its rounding: in the
    outer product of two vectors, which is what one row makes of a weight's gradient, it may be 20 times that.
    """
    expected = expected.detach().double().cpu()
    errors = (actual.detach().double().cpu() - expected).abs()
    wrong = errors != 0
    if not wrong.any():
        return 0.0
    sizes = expected.abs().clamp(min=expected.square().mean().sqrt())
    return float((errors / sizes)[wrong].max().nan_to_num(nan=float("inf")))


def assert_close(actual: Any, expected: Any, dtype: torch.dtype | str | None = None, what: str = "") -> None:
    """Tensors, or dicts or sequences of them, have the same shapes and agree to the tolerance of `dtype`.

    The dtype is by default that of each actual tensor. Devices may differ.
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


# The classes of torch.nn that have a fused namesake; the names that kernels know are problems.CELLS.
LAYERS = ("LSTM", "GRU", "RNN")
STEPS = ("LSTMCell", "GRUCell", "RNNCell")


def random_state(name: str, *shape: int, **options: Any) -> Any:
    """A state for a class of one of these names: one tensor, or of an LSTM two."""
    h, c = (torch.randn(*shape, **options) for _ in range(2))
    return (h, c) if "LSTM" in name else h


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


@contextlib.contextmanager
def running_on(target: str) -> Iterator[torch.device]:
    """One of TARGETS: its device, with its instruction set or its plan chosen meanwhile."""
    device, _, choice = target.partition("/")
    if device == "cpu":
        before = _C.cpu_isa()
        _C.set_cpu_isa(choice)
        try:
            yield torch.device(device)
        finally:
            _C.set_cpu_isa(before)
        return
    with pytest.MonkeyPatch.context() as patch:
        if choice:
            patch.setenv("SEQKERNELS_CUDA_PLAN", choice)
        yield torch.device(device)


@pytest.fixture(params=TARGETS)
def target(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """Each device, the CPU once for each instruction set that it can run, the GPU also once for each plan."""
    with running_on(request.param) as device:
        yield device


def paired(names: str, *values: Iterable[Any], each: int = 2) -> pytest.MarkDecorator:
    """Parametrizes `names`, each by its values in every combination, and `dtype` by `each` dtypes of each.

    The dtypes take turns from one value to the next. So with four values of one name (CELLS are that many),
    every value of another meets every dtype.
    """
    places = itertools.product(*(enumerate(of_one) for of_one in values))
    cases = [
        (*(value for _, value in place), dtype)
        for place in places
        for dtype in DTYPES[sum(n for n, _ in place) % (len(DTYPES) // each) :: len(DTYPES) // each]
    ]
    return pytest.mark.parametrize((*names.split(), "dtype"), cases, ids=case_name)


def case_name(value: Any) -> str | None:
    """A parameter in the name of a test, where pytest has no good name for it."""
    if isinstance(value, tuple):
        return "-".join(case_name(v) or str(v) for v in value)
    if isinstance(value, dict):
        return "-".join(f"{key}={v}" for key, v in value.items())
    return str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What an instruction set has for bfloat16 alone is not run for other dtypes."""
    narrow = [item for item in items if any(isa in parameters(item) for isa in FOR_BFLOAT16)]
    repeated = {item for item in narrow if dtypes(item) - {torch.bfloat16}}
    config.hook.pytest_deselected(items=list(repeated))
    items[:] = [item for item in items if item not in repeated]


def parameters(item: pytest.Item) -> list[Any]:
    return (
        list(item.callspec.params.values())
        if isinstance(item, pytest.Function) and hasattr(item, "callspec")
        else []
    )


def dtypes(item: pytest.Item) -> set[torch.dtype]:
    return {value for value in parameters(item) if isinstance(value, torch.dtype)}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """A forced plan that cannot run what the test gives it says so; then there is nothing to test."""
    try:
        return (yield)
    except RuntimeError as error:
        refusal = re.search(r"SEQKERNELS_CUDA_PLAN asks for \w+, which cannot run this: .*", str(error))
        if refusal:
            pytest.skip(refusal[0])
        raise


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """After a bad access to memory the GPU is of no more use to a process, so pytest-xdist starts another."""
    failed = item.session.testsfailed
    result = yield
    if "PYTEST_XDIST_WORKER" in os.environ and item.session.testsfailed > failed and gpu_is_broken():
        os._exit(1)
    return result


def gpu_is_broken() -> bool:
    try:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


@pytest.fixture(params=DTYPES, ids=case_name)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """Each dtype that the kernels take."""
    return request.param


@pytest.fixture(autouse=True)
def seed() -> None:
    """The same random numbers in every run, whichever tests run before."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def nothing_said() -> None:
    """What fuse and unfuse log once in a process, they log in every test."""
    fusion_report._warned.clear()


@pytest.fixture(autouse=True)
def ieee() -> Iterator[None]:
    """float32 is float32, in torch.nn too, where a test does not say otherwise."""
    recurrent, others = torch._C._get_cudnn_allow_tf32(), torch.backends.cuda.matmul.allow_tf32
    set_tf32(False)
    yield
    set_tf32(recurrent)
    torch.backends.cuda.matmul.allow_tf32 = others


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
    _C.fill_scratch(True)
    yield
    _C.fill_scratch(False)
    torch.use_deterministic_algorithms(before)
