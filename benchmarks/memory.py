"""Peak memory of one training step, beyond that of the module and its inputs.

Every measurement has a process of its own, forked from a server that has imported everything and run
nothing: no pages, threads or caches of another implementation or case are in it, so that the order cannot
matter, and what a implementation keeps after a call counts as its own. There, in this order:

1. A tiny step of the same kind (cell, dtype, packed or not), for what libraries do once.
2. The module and its inputs are built, and free memory goes back to the system (malloc_trim): a step
   that gets pages which are resident already would seem to need none.
3. The peak of the resident size is reset (5 to /proc/self/clear_refs), one step runs, and the peak
   (VmHWM) less the size before it is the result.

So the result is what was in use at the same time, of the output, of what forward saves for backward, of
gradients, of scratch memory and of what is kept. Left out are memory that is asked for and never touched;
code of libraries, which is paged in from its file by whoever is the first to run it; and holes in
malloc's heap, for it gives every block of 32 KB or more its own pages here. Holes depend on what the
process did before: with them, the same step of torch.nn's RNN has taken 4 to 26 MB. The kernel counts to
within some hundred KB.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

from benchmarks.cases import Case
from benchmarks.implementations import TORCH, Problem
from benchmarks.timing import OURS, Call

FRESH = multiprocessing.get_context("forkserver")
# The second is what torch.autograd.grad imports on its first call, in half a second.
FRESH.set_forkserver_preload([__name__, "torch.fx.experimental.symbolic_shapes"])
CLEAR_REFS = Path("/proc/self/clear_refs")
M_MMAP_THRESHOLD = -3  # of malloc.h


def available() -> bool:
    """Whether this system can tell: Linux with glibc."""
    return os.access(CLEAR_REFS, os.W_OK) and hasattr(ctypes.CDLL(None), "malloc_trim")


def training_peaks(case: Case) -> dict[str, int]:
    """Bytes by implementation; empty where the system cannot tell."""
    names = (OURS, TORCH) if available() else ()
    return {name: fresh_peak(partial(training_step, name, case)) for name in names}


def fresh_peak(prepare: Callable[[], Call]) -> int:
    """`peak` in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=FRESH) as process:
        return process.submit(peak, prepare).result()


def peak(prepare: Callable[[], Call]) -> int:
    """Bytes that the prepared call needs at its peak, beyond what is there once it is prepared.

    The process is of no other use afterwards.
    """
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_THRESHOLD, 32 << 10)
    call = prepare()
    gc.collect()
    gc.disable()
    libc.malloc_trim(0)
    before = resident("VmRSS")
    CLEAR_REFS.write_text("5")
    call()
    return resident("VmHWM") - before


def resident(which: str) -> int:
    """Bytes of memory in use, now (VmRSS) or at the peak (VmHWM), without pages of files."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    fields = dict(line.split(":", 1) for line in status.splitlines())
    of_all, of_files = (int(fields[name].removesuffix("kB")) for name in (which, "RssFile"))
    return (of_all - of_files) * 1024


def training_step(name: str, case: Case) -> Call:
    """The case's step by a implementation who has already done a tiny one of the same kind."""

    def step(case: Case) -> Call:
        problem = Problem(case)
        return problem.run({OURS: problem.ours, TORCH: problem.theirs}[name])

    step(replace(case, seq_len=2, batch=2, hidden=16, inputs=0))()
    return step(case)
