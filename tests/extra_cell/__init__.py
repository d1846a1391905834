"""A tree with one cell more than the project has: the minimal gated unit, as mgu.diff adds it."""

from __future__ import annotations

from pathlib import Path

from tests.tree import Tree

DIFF = Path(__file__).with_name("mgu.diff")
TREE = Tree("extra_cell")


def build() -> None:
    """The tree, with its extension for baseline CPUs compiled in place."""
    with TREE.locked():
        TREE.update(DIFF)
        options = {"SEQKERNELS_WITH_CUDA": "0", "SEQKERNELS_TEST_KERNELS": "0"}
        options |= {"SEQKERNELS_CPU_TARGETS": "baseline", "CXXFLAGS": "-O0"}
        TREE.run("setup.py", "-q", "build_ext", "--inplace", **options)
