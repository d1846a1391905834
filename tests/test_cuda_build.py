"""What nvcc made of the kernels: each for every target, persistent ones in registers alone. Needs no GPU."""

from __future__ import annotations

import itertools

import pytest

from benchmarks.cuda_tables import FIGURES, Kernel, kernels
from seqkernels._extension import BUILD_CONFIG

TARGETS = [t for t in BUILD_CONFIG["cuda_targets"].split(",") if t.startswith("sm_")]
PERSISTENT = ("LSTM", "LSTM projected", "GRU", "GRU reset before", "RNN tanh", "RNN relu")
NORMALIZED = ("LSTM layer norm", "LSTM layer norm joint", "GRU layer norm")

pytestmark = pytest.mark.skipif(not TARGETS, reason="built without CUDA")


@pytest.fixture(scope="module")
def found() -> dict[tuple[str, ...], Kernel]:
    """By what it is and its target."""
    report = kernels()
    if not report:
        pytest.skip("no build folder: seqkernels was built elsewhere")
    return {(*kernel.row, kernel.target): kernel for kernel in report}


@pytest.mark.parametrize("target", TARGETS)
def test_every_kernel_is_there(target: str, found: dict[tuple[str, ...], Kernel]) -> None:
    for cell, direction in itertools.product((*PERSISTENT, *NORMALIZED), ("forward", "backward")):
        for dtype in ("fp64", "fp32", "bf16", "fp16"):
            assert ("stepwise", direction, cell, dtype, target) in found
            if cell in NORMALIZED:
                assert ("norm_gradients_kernel", "", cell, dtype, target) in found
    for cell, direction in itertools.product(PERSISTENT, ("forward", "backward")):
        for dtype in ("fp32", "tf32", "bf16", "fp16"):
            for form in ("cluster, one tile", "grid, one tile", "grid, several"):
                assert (f"persistent {form}", direction, cell, dtype, target) in found


def test_persistent_kernels_live_in_registers(found: dict[tuple[str, ...], Kernel]) -> None:
    persistent = {key: kernel for key, kernel in found.items() if key[0].startswith("persistent")}
    assert persistent
    for kernel in persistent.values():
        assert kernel.stack == kernel.spill_stores == kernel.spill_loads == 0, kernel
        assert kernel.registers <= 255, kernel


def test_the_document_lists_every_kernel(found: dict[tuple[str, ...], Kernel]) -> None:
    text = FIGURES.read_text(encoding="utf-8")
    for kernel in found.values():
        assert f"| {' | '.join(kernel.row)} |" in text
