"""Whether a call may go around torch's dispatcher.

A step of a small layer takes the kernel a few microseconds, and torch's way to it many more. `_C.direct`
reads plain tensors where they lie and makes plain tensors, which is all the same as long as nobody derives,
traces, transforms or watches the call.
"""

from __future__ import annotations

from torch._C import (
    _is_any_autocast_enabled,
    _is_tracing,
    _len_torch_dispatch_stack,
    _len_torch_function_stack,
)
from torch.autograd import profiler
from torch.compiler import is_compiling

from . import plan

__all__ = ["allowed"]


def allowed() -> bool:
    """True where torch's dispatcher would do nothing with a call but pass it on, gradients apart."""
    return not (
        is_compiling()
        or _is_tracing()
        or _is_any_autocast_enabled()
        or plan.transforms_active()
        or _len_torch_dispatch_stack()
        or _len_torch_function_stack()
        or profiler._is_profiler_enabled
    )
