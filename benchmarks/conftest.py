"""Options of the benchmarks, and what their JSON file says of the machine."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

import seqkernels
from benchmarks.implementations import BFLOAT16_WEIGHTS, HELD_BACK, HELD_BY, HOLDS
from benchmarks.report import progress_line
from seqkernels import _C

STARTED, LOAD = pytest.StashKey[float](), pytest.StashKey[float]()
QUICK_SECONDS = 140.0  # of a quick run; what has not been measured by then is skipped, and said so


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="fewer cases and rounds: three minutes at most")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[STARTED] = time.monotonic()
    config.stash[LOAD] = os.getloadavg()[0]
    if HELD_BY:
        check_held(HELD_BY)


def check_held(held_by: dict[str, str]) -> None:
    """That everybody is held to the same instruction set, and that ours and torch have obeyed."""
    runs = {_C.cpu_isa(), torch.backends.cpu.get_cpu_capability().lower()}
    if len(held_by) < len(HOLDS) or {value.lower() for value in held_by.values()} != runs:
        raise pytest.UsageError(
            f"{', '.join(HOLDS)} must hold everybody to one instruction set; there is {held_by}, and"
            f" ours and torch run {sorted(runs)}: use `make bench ISA=avx2`"
        )


def pytest_report_header(config: pytest.Config) -> list[str]:
    """A warning where others use the machine: ratios hold roughly then, times and rates do not."""
    load = config.stash[LOAD]
    return [f"WARNING: the load average is {load:.1f}; measure on an idle machine"] if load > 0.5 else []


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Only the quick cases in a quick run. Where all are held to an instruction set, only what is float32
    throughout, without scaling and neighbours: some eight minutes."""
    left_out = [item for item in items if not is_wanted(item, config.getoption("--quick"))]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


def is_wanted(item: Any, quick: bool) -> bool:
    if not hasattr(item, "callspec"):
        return True
    case = item.callspec.params["case"]
    float32 = case.dtype == "float32" and case.variant != BFLOAT16_WEIGHTS
    beside = item.originalname == "bench_neighbours" or case.variant.startswith("more")
    return (case.quick or not quick) and (not HELD_BY or (float32 and not beside))


@pytest.fixture
def timing_options(request: pytest.FixtureRequest) -> dict[str, Any]:
    """How long a case is measured: seconds to spend, and rounds to run in any event."""
    if not request.config.getoption("--quick"):
        return {"seconds": 2.0, "min_rounds": 5}
    if time.monotonic() - request.config.stash[STARTED] > QUICK_SECONDS:
        pytest.skip("the quick run's time is over")
    return {"seconds": 1.0, "min_rounds": 3}


@pytest.fixture
def announce(capsys: pytest.CaptureFixture[str]) -> Callable[[dict[str, Any]], None]:
    """Prints one line per case as it is measured."""

    def line(info: dict[str, Any]) -> None:
        with capsys.disabled():
            print(f"\n{progress_line(info)}", end="")

    return line


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """What decides the numbers, and not the machine's name."""
    machine_info.pop("node", None)
    machine_info |= settings(config.stash[LOAD], config.getoption("--quick"))


def settings(load_average: float, quick: bool) -> dict[str, Any]:
    """Versions, threads and the like, which decide the numbers too."""
    found = {
        "torch": torch.__version__,
        "torch_threads": torch.get_num_threads(),
        "seqkernels": seqkernels.__version__,
        "cpu_isa": _C.cpu_isa(),
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        **({"held_by": HELD_BY} if HELD_BY else {}),
        "load_average": load_average,
        "quick": quick,
    }
    if HELD_BACK:
        return found  # ONNX Runtime takes no part
    try:
        import onnxruntime

        found["onnxruntime"] = onnxruntime.__version__
    except ImportError:
        pass
    return found


def pytest_benchmark_update_json(config: pytest.Config, benchmarks: Any, output_json: dict[str, Any]) -> None:
    """The quantiles say it; single rounds are left out of the file."""
    for benchmark in output_json["benchmarks"]:
        benchmark["stats"].pop("data", None)
        benchmark.pop("params", None)
