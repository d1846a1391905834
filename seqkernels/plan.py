"""Which implementation runs for given input, and every reason why a faster one does not.

`takes` is asked before every call and is kept short; `obstacles` says in words what `takes` decides.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.utils.rnn import PackedSequence

from . import _C, _cudnn
from ._ops import BUILD_CONFIG, cast, tf32_allowed

if TYPE_CHECKING:
    State = Tensor | tuple[Tensor, Tensor] | None

__all__ = ["Explanation", "explain"]

BACKENDS = ("auto", "native", "reference")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
DEVICES = ("cpu", "meta", "cuda") if BUILD_CONFIG["cuda_targets"] else ("cpu", "meta")


def transforms_active() -> bool:
    """Whether a torch.func transform or forward-mode differentiation is on; the kernels know neither."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


# Evaluated while Dynamo traces, which enters and leaves transforms as the program does, and guards on them.
transforms_active._dynamo_marked_constant = True  # type: ignore[attr-defined]


def takes(x: Tensor, state: Sequence[Tensor], weights: Sequence[Tensor], projection: bool = False) -> bool:
    """Whether the native op runs this. True exactly where `obstacles` finds none."""
    dtype, device = x.dtype, x.device
    if dtype not in DTYPES or device.type not in DEVICES or projection or transforms_active():
        return False
    if x.layout is not torch.strided:
        return False
    for t in state:
        if t.dtype is not dtype or t.device != device:
            return False
    for t in weights:  # noqa: SIM110, a generator costs more
        if t.dtype is not dtype or t.device != device:
            return False
    return True


def obstacles(
    x: Tensor, state: Sequence[Tensor], weights: Sequence[Tensor], projection: bool = False
) -> list[str]:
    """Every reason why the native op does not run this; none if it does."""
    reasons = []
    if x.dtype not in DTYPES:
        reasons.append(f"dtype {_name(x.dtype)} (the kernels take {', '.join(map(_name, DTYPES))})")
    if x.device.type == "cuda" and "cuda" not in DEVICES:
        reasons.append("device cuda (this build of seqkernels has no CUDA kernels)")
    elif x.device.type not in DEVICES:
        reasons.append(f"device {x.device.type} (the kernels run on cpu and cuda)")
    if x.layout is not torch.strided:
        reasons.append(f"layout {x.layout} (the kernels take strided tensors)")
    if projection:
        reasons.append("proj_size > 0 (projections have no kernel yet)")
    for what, tensors in (("state", state), ("weights", weights)):
        dtypes = {t.dtype: None for t in tensors if t.dtype != x.dtype}
        if dtypes:
            reasons.append(f"{what} of dtype {', '.join(map(_name, dtypes))} with input of {_name(x.dtype)}")
        devices = {t.device: None for t in tensors if t.device != x.device}
        if devices:
            reasons.append(f"{what} on {', '.join(map(str, devices))} with input on {x.device}")
    if transforms_active():
        reasons.append("a torch.func transform or forward-mode differentiation is active")
    return reasons


def check_backend(backend: str) -> str:
    """`backend` itself, or a ValueError naming the choices."""
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(map(repr, BACKENDS))}, got {backend!r}")
    return backend


@dataclass(frozen=True)
class Explanation:
    """What runs for a module and its input; `print` it.

    Attributes:
        backend: "native" or "reference".
        kernel: The kernel, such as "cpu/avx512 lstm".
        reasons: Why nothing faster runs; empty where this is the fastest there is.
    """

    backend: str
    kernel: str
    reasons: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{self.backend}: {self.kernel}"]
        if self.reasons:
            lines += ["not faster because of", *(f"  - {reason}" for reason in self.reasons)]
        return "\n".join(lines)


def explain(module: torch.nn.Module, x: Tensor | PackedSequence, hx: State = None) -> Explanation:
    """Say which kernel `module(x, hx)` runs, and every reason why a faster one does not.

    Args:
        module: A fused layer or cell; for one of torch.nn's own, the answer is what it would run once fused.
        x: Its input, a tensor or a PackedSequence. Nothing is computed; only dtype and device matter.
        hx: Its initial state, as given to the module; None for the zeros it then uses.

    Raises:
        TypeError: `module` is not a recurrent layer or cell.

    Example:
        >>> lstm = seqkernels.FusedLSTM(8, 16)
        >>> plan = seqkernels.explain(lstm, torch.randn(5, 3, 8))
        >>> plan.backend
        'native'
    """
    cell = _cell(module)
    data = x.data if isinstance(x, PackedSequence) else x
    state = () if hx is None else hx if isinstance(hx, tuple) else (hx,)
    weights = _weights(module)
    device_type = data.device.type
    if torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type):
        dtype = torch.get_autocast_dtype(device_type)
        data, state, weights = cast((data, state, weights), device_type, dtype)
    reasons = obstacles(data, state, weights, getattr(module, "proj_size", 0) > 0)
    if getattr(module, "backend", "auto") == "reference":
        reasons.insert(0, "backend='reference' (asked for)")
    if reasons:
        return Explanation("reference", f"{data.device.type}/torch {cell}", reasons)
    if device_type == "cuda":
        return _explain_cuda(cell, module, x, data, state, weights)
    if device_type != "cpu":
        return Explanation("native", f"{device_type} {cell}")
    return Explanation("native", f"cpu/{_C.cpu_isa()} {cell}", _slower_isa(data.dtype))


def _explain_cuda(
    cell: str,
    module: torch.nn.Module,
    x: Tensor | PackedSequence,
    data: Tensor,
    state: Sequence[Tensor],
    weights: Sequence[Tensor],
) -> Explanation:
    """The plans for the two passes of a layer on the device of its input; or cuDNN, if it gets that."""
    layer = cell if cell != "rnn" else str(module.nonlinearity)
    if isinstance(x, PackedSequence):
        batch = int(x.batch_sizes[0])
    elif isinstance(module, torch.nn.RNNBase):
        batch = 1 if x.dim() == 2 else x.size(0 if module.batch_first else 1)
    else:
        batch = 1 if x.dim() == 1 else x.size(0)
    directions = 2 if getattr(module, "bidirectional", False) else 1
    hidden: Any = module.hidden_size
    index: int = data.get_device()
    passes = {}
    reasons = []
    for name, backward in (("forward", False), ("backward", True)):
        plans = cuda_plans(layer, data.dtype, backward, batch, hidden, directions, tf32_allowed(), index)
        passes[name] = plans[0]["name"]
        reasons += [
            f"{plan['name']} {name}: {plan['obstacle'] or 'slower here, by the model of plan.cpp'}"
            for plan in plans[1:]
            if plan["name"] != "stepwise"
        ]
    if data.dtype == torch.float32 and not tf32_allowed():
        reasons.append(
            "IEEE float32 (torch.backends.cudnn.rnn.fp32_precision = 'tf32' would allow tensor cores)"
        )
    if (
        isinstance(module, torch.nn.RNNBase)
        and module.num_layers == 1
        and not isinstance(x, PackedSequence)
        and getattr(module, "backend", "auto") == "auto"
        and _cudnn_gets(layer, module, data, state, weights)
    ):
        reason = f"{passes['forward']}: cuDNN is faster here (backend='native' runs the kernel nevertheless)"
        return Explanation("native", f"cuda {cell}: {_cudnn.NAME} forward", [reason])
    kernel = ", ".join(f"{plan} {name}" for name, plan in passes.items())
    return Explanation("native", f"cuda {cell}: {kernel}", reasons)


def _cudnn_gets(
    layer: str, module: torch.nn.RNNBase, x: Tensor, state: Sequence[Tensor], weights: Sequence[Tensor]
) -> bool:
    """Whether `functional._stack` hands one layer to cuDNN."""
    if x.dim() == 2:
        x, state = x.unsqueeze(1), [s.unsqueeze(1) for s in state]
    elif module.batch_first:
        x = x.transpose(0, 1)
    directions = 2 if module.bidirectional else 1
    zeros = x.new_empty(directions, x.size(1), module.hidden_size)  # of which only the sizes are asked
    sizes = x.size(0), x.size(1), module.hidden_size
    return _cudnn.takes(layer, x, state or (zeros,), weights) and _cudnn.is_faster(
        layer, x.dtype, tf32_allowed(), *sizes, directions
    )


def cuda_plans(
    cell: str,
    dtype: torch.dtype,
    backward: bool,
    batch: int,
    hidden: int,
    directions: int,
    tf32: bool,
    device: int | tuple[int, int, int],
) -> list[dict[str, Any]]:
    """Every kind of CUDA plan for a layer, what runs first, what cannot run last.

    Args:
        cell: "lstm", "gru", "tanh" or "relu".
        tf32: Whether float32 may be multiplied as TF32.
        device: The index of one that is there: what would run on it. Or the limits of one that need not be:
            compute capability (90 is 9.0), multiprocessors, bytes of shared memory that a block can have.

    Returns:
        For each its `name`, `obstacle` (empty if it can run), the `cycles` that the model says a step takes,
        and how it is cut (csrc/cuda/problem.h).
    """
    plans = _C.cuda_plans(cell, _name(dtype), backward, batch, hidden, directions, tf32, device)
    wanted = os.environ.get("SEQKERNELS_CUDA_PLAN")
    return sorted(plans, key=lambda p: (p["name"] != wanted, p["obstacle"] != "", p["cycles"]))


def _slower_isa(dtype: torch.dtype) -> list[str]:
    """Why the CPU kernels do not use the best instruction set that exists for them and this dtype."""
    in_use, runnable, built = _C.cpu_isa(), _C.cpu_isas(), BUILD_CONFIG["cpu_targets"]
    reasons = []
    for isa in ("amx", "avx512bf16", "avx512", "avx2"):
        if isa == in_use:
            break
        if isa in ("amx", "avx512bf16") and dtype != torch.bfloat16:
            continue
        if isa in runnable:
            reasons.append(f"{isa}: SEQKERNELS_CPU_ISA={in_use} is set")
        elif isa in built:
            reasons.append(f"{isa}: this machine does not offer it")
        elif "avx2" in built:
            reasons.append(f"{isa}: not compiled into this build")
    return reasons


def _cell(module: torch.nn.Module) -> str:
    for cell, classes in (
        ("lstm", (torch.nn.LSTM, torch.nn.LSTMCell)),
        ("gru", (torch.nn.GRU, torch.nn.GRUCell)),
        ("rnn", (torch.nn.RNN, torch.nn.RNNCell)),
    ):
        if isinstance(module, classes):
            return cell
    raise TypeError(f"explain takes a recurrent layer or cell, got {type(module).__name__}")


def _weights(module: torch.nn.Module) -> list[Tensor]:
    if isinstance(module, torch.nn.RNNBase):
        names = module._flat_weights_names
    else:
        names = ["weight_ih", "weight_hh", "bias_ih", "bias_hh"]
    return [w for w in (getattr(module, name) for name in names) if w is not None]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
