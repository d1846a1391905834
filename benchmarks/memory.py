"""The most memory that a call needs, beyond what its process has before."""

from __future__ import annotations

import ctypes
import gc
import re
import threading
from collections.abc import Callable
from pathlib import Path

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_bytes(call: Callable[[], object]) -> int | None:
    """How far the resident memory rises during the call; None where the system (Linux does) does not say.

    The call runs in a thread of its own, which has kept nothing from earlier calls, after the allocator has
    given back what it can.
    """

    def resident(peak: bool) -> int:
        kilobytes = re.search(rf"Vm{'HWM' if peak else 'RSS'}:\s+(\d+) kB", _STATUS.read_text())
        return int(kilobytes[1]) * 1024 if kilobytes else 0

    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
        _RESET.write_text("5")
        before = resident(peak=False)
    except (OSError, AttributeError):
        return None
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    return max(0, resident(peak=True) - before)
