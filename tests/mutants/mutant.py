"""What a mutant is, and where tests look for it."""

from __future__ import annotations

from dataclasses import dataclass

OPS = ("tests/test_ops.py", "-k", "test_results or handed_on")
THREADS = ("tests/test_threads.py", "-k", "test_number_of_threads")
PARTS_OF_A_ROW = ("tests/test_threads.py", "-k", "test_parts_of_a_row")
FASTPATH = ("tests/test_fastpath.py", "-k", "test_layers or test_cells")
GRADIENTS = ("tests/test_ops.py", "-k", "test_each_gradient_alone")
SINGLE_STEPS = ("tests/test_single_steps.py", "-k", "test_results")
RECURRENCE = ("tests/test_recurrence.py", "-k", "test_against or test_packed")
REVERSE = ("tests/test_recurrence.py", "-k", "test_reverse_is")
FROZEN = ("tests/test_frozen.py", "-k", "test_sizes")

VEC, CELLS = "cpu/vec-inl.h", "cells/"
FORWARD, FORWARD_CELL, GATES = "cpu/forward-inl.h", "cpu/forward_cell-inl.h", "cpu/gate_product-inl.h"
BACKWARD, BACKWARD_CELL, PRODUCTS = (
    "cpu/backward-inl.h",
    "cpu/backward_cell-inl.h",
    "cpu/backward_products-inl.h",
)
NORM, FORWARD_NORM, BACKWARD_NORM = "cpu/norm-inl.h", "cpu/forward_norm-inl.h", "cpu/backward_norm-inl.h"
TRANSITION, ENDS = "cpu/transition-inl.h", "cpu/backward_ends-inl.h"
SEQUENCE, FROZEN_LOOP, FROZEN_NORM = "cpu/sequence-inl.h", "cpu/frozen-inl.h", "cpu/frozen_norm-inl.h"
GEMM, REGISTERS, TILES = "cpu/gemm/gemm-inl.h", "cpu/gemm/register_kernel-inl.h", "cpu/gemm/amx_driver-inl.h"
GEMV, COLUMNS, FORMATS = "cpu/gemm/gemv-inl.h", "cpu/gemm/columns-inl.h", "cpu/gemm/formats-inl.h"


# Where tests look for a mutant: dtypes by the instruction sets of the build.
EVERYWHERE = {
    "baseline": ("float32", "float64", "float16", "bfloat16"),
    "avx512": ("float32", "float64", "float16", "bfloat16"),
    "emulated_avx512bf16": ("bfloat16",),
    "emulated_amx": ("bfloat16",),
}


@dataclass(frozen=True)
class Mutant:
    name: str
    file: str  # in csrc
    text: str  # stands there once, apart from the marks
    instead: str  # of what is between the marks
    breaks: str
    only: str = ""  # the dtypes and instruction sets that it concerns, where that is not all of them
    tests: tuple[str, ...] = OPS

    @property
    def where(self) -> set[tuple[str, str]]:
        """The dtypes and instruction sets with which it is to be found."""
        words = set(self.only.split())
        dtypes = {dtype for of_isa in EVERYWHERE.values() for dtype in of_isa}
        return {
            (dtype, isa)
            for isa, of_isa in EVERYWHERE.items()
            for dtype in of_isa
            if dtype in (words & dtypes or dtypes) and isa in (words - dtypes or EVERYWHERE)
        }
