"""What would run a call, and why nothing faster: `seqkernels.explain`."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.utils import parametrize
from torch.nn.utils.rnn import PackedSequence

from . import _C, _cudnn, _fused, dispatch, resets, rows
from . import _torch_compat as compat
from ._extension import BUILD_CONFIG
from ._ops import cast, tf32_allowed
from .cells import CELLS, RNN_MODES, WEIGHTS
from .dispatch import name_of
from .spec import LayerSpec
from .subclasses import why_no_kernel, why_not_fused

if TYPE_CHECKING:
    State = Tensor | tuple[Tensor, Tensor] | None

__all__ = ["Explanation", "ModelExplanation", "explain"]

Recurrent = (torch.nn.RNNBase, torch.nn.modules.rnn.RNNCellBase)


@dataclass(frozen=True)
class Explanation:
    """What runs for a module and its input; `print` it.

    Attributes:
        backend: "native", "torch" (what torch.nn runs), "reference", "frozen", or "none": the call raises.
        kernel: The kernel, such as "cpu/avx512 lstm".
        reasons: Why nothing faster runs; empty where this is the fastest there is.
    """

    backend: str
    kernel: str
    reasons: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{self.backend}: {self.kernel}"]
        if self.reasons:
            title = "because of" if self.backend == "none" else "not faster because of"
            lines += [title, *(f"  - {reason}" for reason in self.reasons)]
        return "\n".join(lines)


@dataclass(frozen=True)
class ModelExplanation:
    """What runs for the recurrent layers of a model; `print` it.

    Attributes:
        layers: Of each by its path in the model, the explanations of its calls, equal ones once; none where
            the model has not called it.
    """

    layers: dict[str, list[Explanation]]

    def __str__(self) -> str:
        blocks = [f"{name}: {e}" for name, found in self.layers.items() for e in found]
        blocks += [f"{name}: not called" for name, found in self.layers.items() if not found]
        return "\n".join(blocks)


def explain(module: torch.nn.Module, x: Any, hx: Any = None, **kwargs: Any) -> Any:
    """Say which kernel `module(x, hx)` runs, and every reason why a faster one does not.

    Args:
        module: A fused layer or cell, or a frozen one; for one of torch.nn's own, the answer is what it would
            run once fused. Or a model that has some: it is run once, on a copy that shares its parameters, to
            see what it hands to each.
        x: Its input. For a layer or cell nothing is computed; only dtype and device matter.
        hx: Its initial state, as given to the module; None for the zeros it then uses. Of a model, its second
            argument, if it is not None.
        **kwargs: What else its forward takes.

    Returns:
        An `Explanation`, or of a model a `ModelExplanation`, which has those of its layers.

    Raises:
        TypeError: `module` is not a recurrent layer or cell, and has none.
        ValueError: It is one with a nonlinearity that torch does not know.
        Exception: What a model raises when it is run.

    Example:
        >>> lstm = seqkernels.FusedLSTM(8, 16)
        >>> plan = seqkernels.explain(lstm, torch.randn(5, 3, 8))
        >>> plan.backend
        'native'
        >>> print(seqkernels.explain(lstm, torch.randn(0, 3, 8)))
        none: the call raises
        because of
          - no steps
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 8), lstm)
        >>> plan = seqkernels.explain(model, torch.randn(5, 3, 8))
        >>> [(name, found[0].backend) for name, found in plan.layers.items()]
        [('1', 'native')]
    """
    from .frozen import Frozen  # which imports this module

    if isinstance(module, Frozen):
        return _explain_frozen(module, x, hx)
    if isinstance(module, Recurrent):
        return _explain_layer(module, x, hx, **kwargs)
    return _explain_model(module, (*Recurrent, Frozen), (x,) if hx is None else (x, hx), kwargs)


def _explain_model(
    model: torch.nn.Module, kinds: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> ModelExplanation:
    model = copy.deepcopy(model, {id(p): p for p in model.parameters()})
    named = {name: m for name, m in model.named_modules() if isinstance(m, kinds)}
    if not named:
        raise TypeError(
            f"explain takes a recurrent layer or cell, or a model that has some, got {type(model).__name__}"
        )
    layers: dict[str, list[Explanation]] = {name: [] for name in named}

    def record(name: str, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x, hx, given = arguments(args, kwargs)
        explained = explain(module, x, hx, **given)
        if explained not in layers[name]:
            layers[name].append(explained)

    for name, layer in named.items():
        layer.register_forward_pre_hook(partial(record, name), with_kwargs=True)
    devices = {p.get_device() for p in model.parameters() if p.is_cuda}
    with torch.random.fork_rng(list(devices)):
        model(*args, **kwargs)
    return ModelExplanation(layers)


def arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any, dict[str, Any]]:
    """Of a call of a layer or cell: its input, its state or None, and what else `explain` is to know."""
    x, hx, *_ = *args, *(kwargs[k] for k in ("input", "x", "hx") if k in kwargs), None
    return x, hx, {k: kwargs[k] for k in ("reset_mask", "lengths") if kwargs.get(k) is not None}


def _explain_frozen(module: Any, x: Any, hx: Any) -> Explanation:
    try:
        module._admit(x, hx)
    except (TypeError, ValueError, RuntimeError) as error:
        return _raises([str(error)])
    kind = _kind(module.cell)
    return Explanation("frozen", f"cpu/{_C.cpu_isa()} {kind}, frozen", _slower_isa(module.dtype))


def _raises(reasons: list[str]) -> Explanation:
    return Explanation("none", "the call raises", reasons)


def _explain_layer(
    module: torch.nn.Module,
    x: Tensor | PackedSequence,
    hx: State,
    reset_mask: Tensor | None = None,
    lengths: Tensor | None = None,
) -> Explanation:
    cls = parametrize.type_before_parametrizations(module)
    reason = why_no_kernel(cls) if isinstance(module, _fused._Fused) else why_not_fused(module)
    if reason:
        return Explanation("torch", f"the forward of {cls.__name__}", [reason])
    dims = (2, 3) if isinstance(module, torch.nn.RNNBase) else (1, 2)
    if not isinstance(x, PackedSequence):
        dim = x.dim()
        if dim not in dims:
            return _raises([f"x with {dim} dimensions (it takes {dims[0]} or {dims[1]})"])
        if dims[1] == 3 and x.size(1 if dim == 3 and module.batch_first else 0) == 0:
            return _raises(["no steps"])
    call = _call(module, x, hx)
    try:
        call.spec = _with_rows(call, module, x, reset_mask, lengths)
    except (TypeError, ValueError) as error:
        return _raises([str(error)])
    segments = resets.are_segments(call.spec, call.x, call.state)
    if segments:
        call.spec = call.spec._replace(reset_mask=None)
    if any(w is None for w in (call.weights if dims[1] == 3 else call.weights[:2])):
        return _raises(["weights that are None"])
    spec, data, device_type = call.spec, call.x, call.x.device.type
    kind = _kind(spec.cell) + (", segments between resets side by side" if segments else "")
    reasons = dispatch.not_supported_reasons(spec, data, call.state, call.weights)
    if spec.backend == "reference":
        reasons.insert(0, "backend='reference' (asked for)")
    if reasons and spec.backend == "native":
        return _raises(reasons)
    if reasons:
        runs = spec.backend == "auto" and dispatch.torch_runs(spec, data, call.state, call.weights)
        name = "torch" if runs else "reference"
        return Explanation(name, f"{device_type}/{name} {kind}", reasons)
    if device_type == "cuda":
        return _explain_cuda(call, kind)
    if device_type != "cpu":
        return Explanation("native", f"{device_type} {kind}")
    return Explanation("native", f"cpu/{_C.cpu_isa()} {kind}", _slower_isa(data.dtype) + _slower_threads())


def _with_rows(call: _Call, module: Any, x: Any, reset_mask: Any, lengths: Any) -> LayerSpec:
    """The call's spec with what it says of rows, turned as its x is."""
    is_layer = isinstance(module, torch.nn.RNNBase)
    if isinstance(reset_mask, Tensor) and not isinstance(x, PackedSequence):
        rows.check_reset_mask(reset_mask, x.shape[:-1])
        if is_layer and x.dim() == 2:
            reset_mask = reset_mask.unsqueeze(1)
        elif is_layer and module.batch_first:
            reset_mask = reset_mask.t()
        elif not is_layer:
            reset_mask = reset_mask.reshape(1, -1)
    if isinstance(lengths, Tensor) and lengths.dim() == 0:
        lengths = lengths.reshape(1)
    return rows.check(call.spec._replace(reset_mask=reset_mask, lengths=lengths), call.x)


def _kind(cell: str) -> str:
    """A cell as explanations name it: with any nonlinearity, "rnn"."""
    return "rnn" if cell in RNN_MODES.values() else cell


@dataclass
class _Call:
    """What a module's forward hands to `stack.run`; of a state that is not given, the sizes alone."""

    spec: LayerSpec
    x: Tensor
    state: Sequence[Tensor]
    weights: Sequence[Tensor]  # None where the module has none


def _call(module: torch.nn.Module, x: Tensor | PackedSequence, hx: State) -> _Call:
    spec = spec_of(module)
    weights: list[Any] = [getattr(module, name, None) for name in _weight_names(module)]
    if weights[2:] == [None, None]:
        del weights[2:]
    state: Any = () if hx is None else (hx[0], hx[1]) if spec.info.has_cell_state else (hx,)
    data = x.data if isinstance(x, PackedSequence) else x
    device_type = data.device.type
    if torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type):
        dtype = torch.get_autocast_dtype(device_type)
        data, state, weights = cast((data, state, weights), device_type, dtype)

    is_layer = isinstance(module, torch.nn.RNNBase)
    if isinstance(x, PackedSequence):
        spec, batch = spec._replace(batch_first=False, batch_sizes=x.batch_sizes), int(x.batch_sizes[0])
    else:
        if data.dim() == (2 if is_layer else 1):  # a single sequence, or a single row
            data, state = data.unsqueeze(1 if is_layer else 0), [s.unsqueeze(-2) for s in state]
        elif spec.batch_first:
            data = data.transpose(0, 1)
        if not is_layer:
            data, state = data.unsqueeze(0), [s.unsqueeze(0) for s in state]
        spec, batch = spec._replace(batch_first=False), data.size(1)
    if not state:
        sizes: Any = [getattr(module, "proj_size", 0) or module.hidden_size, module.hidden_size]
        layers = spec.num_layers * spec.directions
        state = [data.new_empty(layers, batch, size) for size in sizes[: spec.info.states]]
    return _Call(spec, data, state, weights)


def spec_of(module: torch.nn.Module) -> LayerSpec:
    """The options of a layer or cell, of torch.nn too."""
    backend = str(getattr(module, "backend", "auto"))
    for kinds, cell in (
        (
            (torch.nn.LSTM, torch.nn.LSTMCell),
            getattr(module, "_cell", "lstm_projected" if getattr(module, "proj_size", 0) else "lstm"),
        ),
        ((torch.nn.GRU, torch.nn.GRUCell), getattr(module, "_cell", "gru")),
        ((torch.nn.RNN,), RNN_MODES.get(getattr(module, "mode", ""), "")),
        ((torch.nn.RNNCell,), f"rnn_{getattr(module, 'nonlinearity', None)}"),
    ):
        if not isinstance(module, kinds):
            continue
        if cell not in CELLS:
            raise ValueError(f"this {type(module).__name__} has a nonlinearity that torch does not know")
        if not isinstance(module, torch.nn.RNNBase):
            fields = module._recurrence if isinstance(module, _fused._Fused) else {}
            step = LayerSpec(cell, bias=bool(module.bias), backend=backend, training=module.training)
            return step._replace(**fields)
        m = module
        if isinstance(m, _fused._FusedLayer):
            return m._spec()
        options = (m.num_layers, m.bias, m.bidirectional, m.batch_first, m.dropout, m.training)
        return LayerSpec(cell, *options, backend)
    raise TypeError(f"explain takes a recurrent layer or cell, got {type(module).__name__}")


def _weight_names(module: torch.nn.Module) -> Sequence[str]:
    if isinstance(module, torch.nn.RNNBase):
        return compat.weight_names(module)
    return WEIGHTS


def _explain_cuda(call: _Call, kind: str) -> Explanation:
    """The plans for the two passes of a layer on the device of its input; or cuDNN, if it gets that."""
    spec, x = call.spec, call.x
    batch, outputs, hidden = *call.state[0].shape[1:], call.state[-1].size(2)
    index: int = x.get_device()
    seq_len = x.size(0) if spec.batch_sizes is None else spec.batch_sizes.numel()
    passes = {}
    reasons = []
    for name, backward in (("forward", False), ("backward", True)):
        plans = cuda_plans(
            *(spec.cell, x.dtype, backward, batch, hidden, spec.directions, tf32_allowed(), index),
            *(outputs, seq_len, spec.has_transition),
        )
        passes[name] = plans[0]["name"]
        reasons += [
            f"{plan['name']} {name}: {plan['obstacle'] or 'slower here, by the model of plan.cpp'}"
            for plan in plans[1:]
            if plan["name"] != "stepwise"
        ]
    if x.dtype == torch.float32 and not tf32_allowed():
        reasons.append(
            "IEEE float32 (torch.backends.cudnn.rnn.fp32_precision = 'tf32' would allow tensor cores)"
        )
    if spec.backend == "auto" and dispatch.cudnn_is_faster(spec, x, call.state, call.weights):
        reason = f"{passes['forward']}: cuDNN is faster here (backend='native' runs the kernel nevertheless)"
        return Explanation("native", f"cuda {kind}: {_cudnn.NAME} forward", [reason])
    kernel = ", ".join(f"{plan} {name}" for name, plan in passes.items())
    return Explanation("native", f"cuda {kind}: {kernel}", reasons)


def cuda_plans(
    cell: str,
    dtype: torch.dtype,
    backward: bool,
    batch: int,
    hidden: int,
    directions: int,
    tf32: bool,
    device: int | tuple[int, int, int],
    outputs: int = 0,
    seq_len: int = 256,
    has_transition: bool = False,
) -> list[dict[str, Any]]:
    """Every kind of CUDA plan for a layer, what runs first, what cannot run last.

    Args:
        cell: The name of a cell in `seqkernels.cells.CELLS`.
        tf32: Whether float32 may be multiplied as TF32.
        device: The index of one that is there: what would run on it. Or the limits of one that need not be:
            compute capability (90 is 9.0), multiprocessors, bytes of shared memory that a block can have.
        outputs: Units of a projection; 0 without one.
        seq_len: T, of which the power of two that is not above it counts.
        has_transition: Whether something happens to states between steps, as `LayerSpec` has it.

    Returns:
        For each its `name`, `obstacle` (empty if it can run), the `cycles` that the model says a step takes,
        and how it is cut (csrc/cuda/problem.h).
    """
    layer = (cell, name_of(dtype), backward, batch, hidden, directions)
    plans = _C.cuda_plans(*layer, tf32, device, outputs, seq_len, has_transition)
    wanted = os.environ.get("SEQKERNELS_CUDA_PLAN")
    return sorted(plans, key=lambda p: (p["name"] != wanted, p["obstacle"] != "", p["cycles"]))


def _slower_threads() -> list[str]:
    if not _C.process_was_forked():
        return []
    return ["threads: this process was forked, so that long calls start their own, and others have one"]


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
