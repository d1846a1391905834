"""Which implementation runs a call. This is the one place that decides; `seqkernels.explain` asks it.

A call of a module is tried in this order:

    "onnx"          while torch captures a model for ONNX (`_onnx.py`)
    "torch"         while torch traces one for ONNX, which knows its functions
    fast path       around torch's dispatcher: no gradient, nobody watches (`fastpath_allowed`)
    "cudnn"         inference that cuDNN runs faster (`_cudnn.py`)
    "native"        the ops of this package (`supports`)
    "torch"         the functions that torch.nn runs, such as `torch.lstm` (`torch_runs`)
    "reference"     plain torch, step by step (`reference.py`)

`backend="native"` leaves out cuDNN and raises in place of the last two; `backend="reference"` is the last
one alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.compiler import is_compiling
from torch.jit import is_tracing

from . import _cudnn, _onnx
from . import _torch_compat as compat
from ._extension import BUILD_CONFIG
from ._ops import tf32_allowed
from .spec import LayerSpec

__all__ = ["get_fastpath_enabled", "set_fastpath_enabled"]

BACKENDS = ("auto", "native", "reference")
# The cells that torch has, by the names of its functions.
TORCH_CELLS = {"lstm_projected": "lstm"} | {name: name for name in ("lstm", "gru", "rnn_tanh", "rnn_relu")}
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
DEVICES = ("cpu", "meta", "cuda") if BUILD_CONFIG["cuda_targets"] else ("cpu", "meta")

_fastpath_enabled = True


def get_fastpath_enabled() -> bool:
    """Whether modules may go around torch's dispatcher where nothing needs it; see `set_fastpath_enabled`.

    Example:
        >>> seqkernels.get_fastpath_enabled()
        True
    """
    return _fastpath_enabled


def set_fastpath_enabled(value: bool) -> None:
    """Allow or forbid modules to go around torch's dispatcher, in this process.

    The fast path is for calls on the CPU that need no gradient, and that nobody derives, traces, transforms
    or watches. Results are the same to the bit; without it a call takes some 20 to 60 µs more. It is on by
    default, as torch's own for attention is (`torch.backends.mha.set_fastpath_enabled`).

    Example:
        >>> seqkernels.set_fastpath_enabled(False)  # so that a debugger sees every call
        >>> seqkernels.set_fastpath_enabled(True)
    """
    global _fastpath_enabled
    _fastpath_enabled = bool(value)


def fastpath_allowed(but_autocast: bool = False) -> bool:
    """True where torch's dispatcher would do nothing with a call but pass it on, gradients apart."""
    return _fastpath_enabled and not is_compiling() and compat.nobody_watches(but_autocast)


def choose(spec: LayerSpec, x: Tensor, state: Sequence[Tensor], weights: Sequence[Tensor]) -> str:
    """The name of an implementation, for arguments as the ops take them; x [T, B, I] or packed [R, I].

    Raises:
        ValueError: An unknown backend.
        RuntimeError: With `backend="native"`, every reason why the kernels cannot run this. While torch
            exports to ONNX, a call that no operator says.
    """
    backend = spec.backend
    if backend not in BACKENDS:
        check_backend(backend)
    if backend != "reference":
        if _onnx.is_capturing():
            _onnx.check_call(spec, x, state, weights)
            return "onnx"
        if is_tracing() and torch.onnx.is_in_onnx_export():
            return _for_onnx(spec)
    if backend != "reference" and supports(spec, x, state, weights):
        if backend == "auto" and x.is_cuda and not is_compiling():
            if cudnn_is_faster(spec, x, state, weights):
                return "cudnn"
            _cudnn.refuse()
        return "native"
    if backend == "native":
        reasons = not_supported_reasons(spec, x, state, weights)
        raise RuntimeError("backend='native' cannot run this because of\n  - " + "\n  - ".join(reasons))
    return "torch" if backend == "auto" and torch_runs(spec, x, state, weights) else "reference"


def _for_onnx(spec: LayerSpec) -> str:
    """What torch exports by tracing (`dynamo=False`): what it has a function of."""
    if spec.cell in TORCH_CELLS and not spec.beyond_torch:
        return "torch"
    what = " with ".join([spec.cell, *spec.beyond_torch[:1]])
    otherwise = (
        ", and seqkernels.onnx.export makes one operator of it"
        if spec.cell in _onnx.OPERATORS and spec.beyond_torch in ([], ["lengths"])
        else ""
    )
    raise RuntimeError(
        f"{what} cannot be exported to ONNX as one operator by tracing; with backend='reference' it becomes "
        f"the operators of as many steps as the example has{otherwise}"
    )


def torch_runs(spec: LayerSpec, x: Tensor, state: Sequence[Tensor], weights: Sequence[Tensor]) -> bool:
    """Whether what torch.nn runs is asked for what the kernels do not take.

    It knows no transforms, and on CUDA no derivative outside of training.
    """
    if spec.cell not in TORCH_CELLS or spec.beyond_torch or compat.transforms_active():
        return False
    if x.device.type != "cuda" or spec.training or not torch.is_grad_enabled():
        return True
    return not any(t is not None and t.requires_grad for t in (x, *state, *weights))


def cudnn_is_faster(spec: LayerSpec, x: Tensor, state: Sequence[Tensor], weights: Sequence[Tensor]) -> bool:
    """Whether this is handed to cuDNN, of what the kernels take."""
    if spec.batch_sizes is not None or spec.num_layers != 1 or spec.beyond_torch:
        return False
    if compat.transforms_active():
        return False
    if not _cudnn.supports(spec, x, state, weights):
        return False
    sizes = x.size(0), x.size(1), state[0].size(2)
    return _cudnn.is_faster(spec.cell, x.dtype, tf32_allowed(), *sizes, spec.directions)


def supports(spec: LayerSpec, x: Tensor, state: Sequence[Tensor], weights: Sequence[Tensor]) -> bool:
    """Whether the native op runs this. True exactly where `not_supported_reasons` finds none."""
    dtype, device = x.dtype, x.device
    if dtype not in DTYPES or device.type not in DEVICES:
        return False
    if compat.transforms_active() and not transforms_supported():
        return False
    if x.layout is not torch.strided or _missing_options(spec, x, state, weights):
        return False
    for t in state:
        if t.dtype is not dtype or t.device != device or t.layout is not torch.strided:
            return False
    for t in weights:  # noqa: SIM110, a generator costs more
        if t is None or t.dtype is not dtype or t.device != device:
            return False
    return True


def not_supported_reasons(
    spec: LayerSpec, x: Tensor, state: Sequence[Tensor], weights: Sequence[Tensor]
) -> list[str]:
    """Every reason why the native op does not run this; none if it does."""
    reasons = []
    if x.dtype not in DTYPES:
        reasons.append(f"dtype {name_of(x.dtype)} (the kernels take {', '.join(map(name_of, DTYPES))})")
    if x.device.type == "cuda" and "cuda" not in DEVICES:
        reasons.append("device cuda (this build of seqkernels has no CUDA kernels)")
    elif x.device.type not in DEVICES:
        reasons.append(f"device {x.device.type} (the kernels run on cpu and cuda)")
    layouts = {t.layout: None for t in (x, *state) if t.layout is not torch.strided}
    reasons += [f"layout {layout} (the kernels take strided tensors)" for layout in layouts]
    if any(t is None for t in weights):
        reasons.append("weights that are None")
        weights = [t for t in weights if t is not None]
    for what, tensors in (("state", state), ("weights", weights)):
        dtypes = {t.dtype: None for t in tensors if t.dtype != x.dtype}
        if dtypes:
            others = ", ".join(map(name_of, dtypes))
            reasons.append(f"{what} of dtype {others} with input of {name_of(x.dtype)}")
        devices = {t.device: None for t in tensors if t.device != x.device}
        if devices:
            reasons.append(f"{what} on {', '.join(map(str, devices))} with input on {x.device}")
    reasons += _missing_options(spec, x, state, weights)
    if compat.transforms_active() and not transforms_supported():
        reasons.append(
            "a derivative by torch.func inside torch.compile"
            if is_compiling()
            else "forward-mode differentiation, or a transform of torch.func beside vmap and reverse mode"
        )
    return reasons


def _missing_options(
    spec: LayerSpec, x: Tensor, state: Sequence[Tensor], weights: Sequence[Tensor]
) -> list[str]:
    """What is asked for that the kernels do not do."""
    # In proportion, h says no more what it was before zoneout.
    loses_h = spec.zoneout_h > 0 and not spec.training and not spec.info.saved and torch.is_grad_enabled()
    tensors = (t for t in (x, *state, *weights) if t is not None)
    if loses_h and (is_tracing() or compat.transforms_active() or any(t.requires_grad for t in tensors)):
        return ["gradients of zoneout in evaluation, of a cell that saves nothing for them"]
    return []


def transforms_supported() -> bool:
    """Whether the kernels run under the torch.func transforms that are active."""
    return compat.transforms_known("Vmap") or (not is_compiling() and compat.transforms_known("Vmap", "Grad"))


def check_backend(backend: str) -> str:
    """`backend` itself, or a ValueError naming the choices."""
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(map(repr, BACKENDS))}, got {backend!r}")
    return backend


def name_of(dtype: torch.dtype) -> str:
    """ "float32" of torch.float32."""
    return str(dtype).removeprefix("torch.")
