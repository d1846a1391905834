"""Recurrent modules for streaming: weights packed once, and as little as possible around a call.

With 64 hidden units the kernel takes some 2 µs for a step, and what `Frozen.forward` does is measured by
that, so that nearly all of it is done in C++ (csrc/python/frozen.cpp).
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import parametrize
from torch.nn.utils.rnn import PackedSequence

from . import _C, _dynamo
from . import _torch_compat as compat
from .cells import CELLS, PARAMETERS, WEIGHTS, Cell
from .plan import spec_of
from .subclasses import FUSED

__all__ = ["Frozen", "freeze"]

_CLASSES = {*FUSED, *FUSED.values()}


def freeze(module: torch.nn.Module, dtype: torch.dtype | None = None) -> Frozen:
    """A module for inference on the CPU that computes what `module` does now, with the least time for a call.

    The result has its own packed copy of the weights and keeps nothing of `module`: it is a snapshot, which
    later changes of `module` (training, load_state_dict) do not reach. It has neither parameters nor buffers,
    so its state_dict is empty; pickling and copying take the weights along. Inputs, states and results are
    float32, whatever the dtype of the weights. No gradients flow through it; dropout, and hooks of `module`,
    are left behind. It pays where few rows meet many weights, a single step above all: for long sequences and
    large batches the module itself is faster. Where the last microsecond counts, call `frozen.forward`.

    Args:
        module: `torch.nn.LSTM`, `GRU`, `RNN`, one of their Cells, or the Fused version of one, on the CPU, in
            float32, bfloat16 or float16.
        dtype: How weights are stored: `torch.float32`, the default, or `torch.bfloat16`, which rounds them
            and halves the memory to read: twice as fast where that takes the time (hidden sizes from 256 on).
            Biases, states and sums are float32 in any case.

    Returns:
        A module that is called as `module` is, and returns the same: with a layer's `x` [T, B, I], [B, T, I]
        (`batch_first`) or [T, I] (one sequence), or a Cell's [B, I] or [I], and optionally the state. Several
        threads may call it at once. torch.compile leaves it as it is; it cannot be traced, scripted or
        exported.

    Raises:
        TypeError: Not a recurrent module of these classes.
        ValueError: A `dtype`, weights or an option that it does not support, such as zoneout.

    Example:
        >>> frozen = seqkernels.freeze(torch.nn.LSTM(8, 16))
        >>> state = None
        >>> for x in torch.randn(5, 1, 1, 8):  # one step at a time
        ...     output, state = frozen(x, state)
        >>> output.shape
        torch.Size([1, 1, 16])
    """
    kind = parametrize.type_before_parametrizations(module)
    if kind not in _CLASSES:
        raise TypeError(
            f"freeze takes an LSTM, GRU or RNN of torch.nn or seqkernels, or one of their Cells,"
            f" got {type(module).__name__}"
        )
    if dtype not in (None, torch.float32, torch.bfloat16):
        raise ValueError(f"dtype must be torch.float32 or torch.bfloat16, got {dtype}")
    spec = spec_of(module)
    for name in ("zoneout", "return_cell_states"):
        if name in spec.beyond_torch:
            raise ValueError(f"freeze takes no module with {name}: a frozen one does not do that")
    options: dict[str, Any] = {n: getattr(module, n) for n in ("input_size", "hidden_size")}
    if isinstance(module, torch.nn.RNNBase):
        names = ("proj_size", "num_layers", "bidirectional", "batch_first")
        options |= {n: getattr(module, n) for n in names}
        directions = ("", "_reverse")[: 1 + module.bidirectional]
        suffixes = [f"_l{layer}{direction}" for layer in range(module.num_layers) for direction in directions]
    else:
        options["is_cell"], suffixes = True, [""]
    cell = spec.info
    if cell.is_normalized:
        options["norm_eps"] = module.norm_eps
    parameters = [
        _weight(module, f"{name}{suffix}") if module.bias or not name.startswith("bias") else None
        for suffix in suffixes
        for name in _names(cell)
    ]
    return Frozen(cell.name, parameters, dtype or torch.float32, **options)


def _names(cell: Cell) -> tuple[str, ...]:
    """Of a direction's parameters, in the order of `_C.Frozen`."""
    return *WEIGHTS, *(PARAMETERS[weight] for weight in cell.extra_weights)


def _weight(module: torch.nn.Module, name: str) -> Tensor:
    weight: Tensor = getattr(module, name).detach()
    if weight.device.type != "cpu":
        raise ValueError(f"freeze needs weights on the CPU, and {name} is on {weight.device}")
    if weight.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(
            f"freeze needs weights in float32, bfloat16 or float16, and {name} is {weight.dtype}"
        )
    return weight


def _stored(weight: Tensor, as_bfloat16: bool) -> Tensor:
    return weight.to(torch.bfloat16 if as_bfloat16 else torch.float32).resolve_neg().contiguous()


# What `_C.Frozen` takes beside the weights, and tells again.
_OPTIONS = (
    "cell", "is_cell", "input_size", "hidden_size", "proj_size", "num_layers", "bidirectional", "batch_first",
    "bfloat16", "norm_eps",
)  # fmt: skip


class Frozen(compat.NotTraceable):
    """What `freeze` makes of a layer or a Cell; called as that is."""

    why_not_traceable = (
        "a frozen module cannot be traced, scripted or exported: take the module that it was made from"
    )
    _packed: Any  # _C.Frozen, which knows all sizes and checks what it is given

    def __init__(
        self,
        cell: str,
        parameters: Sequence[Tensor | None],
        dtype: torch.dtype,
        input_size: int,
        hidden_size: int,
        proj_size: int = 0,
        num_layers: int = 1,
        bidirectional: bool = False,
        batch_first: bool = False,
        is_cell: bool = False,
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.training = False
        bfloat16 = dtype == torch.bfloat16
        names = _names(CELLS[cell]) * (len(parameters) // len(_names(CELLS[cell])))
        weights = [
            p if p is None else _stored(p, bfloat16 and name.startswith("weight"))
            for name, p in zip(names, parameters, strict=True)
        ]
        sizes = (input_size, hidden_size, proj_size, num_layers)
        self._packed = _C.Frozen(
            cell, is_cell, *sizes, bidirectional, batch_first, bfloat16, norm_eps, weights
        )

    cell = property(lambda self: self._packed.cell)
    dtype = property(lambda self: torch.bfloat16 if self._packed.bfloat16 else torch.float32)
    input_size = property(lambda self: self._packed.input_size)
    hidden_size = property(lambda self: self._packed.hidden_size)
    proj_size = property(lambda self: self._packed.proj_size)
    num_layers = property(lambda self: self._packed.num_layers)
    bidirectional = property(lambda self: self._packed.bidirectional)
    batch_first = property(lambda self: self._packed.batch_first)

    def forward(self, x: Tensor, hx: Any = None) -> Any:
        if not compat.transforms_active():
            result = self._packed.run(x, hx, torch.is_grad_enabled())
            if result is not None:
                return result
        result = self._packed.run(*self._admit(x, hx), False)
        if result is None:
            raise RuntimeError("x and hx must be tensors with memory of their own, and at least one is not")
        return result

    def _admit(self, x: Any, hx: Any) -> tuple[Tensor, Any]:
        """x and hx as the kernels read them, or an error that says what is wrong with them."""
        names = ("h", "c")[: CELLS[self.cell].states]
        states = () if hx is None else hx if len(names) > 1 else (hx,)
        if hx is not None and (not isinstance(states, (tuple, list)) or len(states) != len(names)):
            raise RuntimeError(f"hx must be {'a tuple (h, c)' if len(names) > 1 else 'one tensor'}")
        if compat.transforms_active():
            raise RuntimeError(
                "a frozen module supports neither torch.func transforms nor forward-mode differentiation"
            )
        tensors = [self._plain(name, t) for name, t in zip(("x", *names), (x, *states), strict=False)]
        x, *states = tensors
        rows = self._state_rows(x)
        for name, state in zip(names, states, strict=False):
            shape = (*rows, self.proj_size or self.hidden_size if name == "h" else self.hidden_size)
            if state.shape != shape:
                raise RuntimeError(f"{name} must have shape {list(shape)}, got {list(state.shape)}")
        return x, None if hx is None else tuple(states) if len(names) > 1 else states[0]

    @staticmethod
    def _plain(name: str, t: Any) -> Tensor:
        if isinstance(t, PackedSequence):
            raise TypeError(f"{name} must be a tensor: a frozen module does not take packed sequences")
        if not isinstance(t, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(t).__name__}")
        if type(t) not in (Tensor, torch.nn.Parameter):
            raise TypeError(
                f"{name} must be a plain tensor, got {type(t).__name__}: a frozen module cannot be"
                " traced or exported"
            )
        if t.requires_grad and torch.is_grad_enabled():
            raise RuntimeError(
                f"{name} requires a gradient, which a frozen module does not give: call it under"
                " torch.no_grad(), or use the module that it was made from"
            )
        if t.device.type != "cpu" or t.layout is not torch.strided:
            raise ValueError(f"{name} must be a strided tensor on the CPU, got {t.layout} on {t.device}")
        if t.dtype is not torch.float32:
            raise ValueError(f"{name} must be torch.float32, got {t.dtype}")
        last = t.storage_offset() + sum(
            (n - 1) * stride for n, stride in zip(t.shape, t.stride(), strict=True)
        )
        if t.numel() and (last + 1) * t.element_size() > t.untyped_storage().nbytes():
            raise RuntimeError(
                f"{name} has no memory, or less than its sizes say: it was freed or made smaller"
            )
        return t.detach().resolve_neg().contiguous()

    def _state_rows(self, x: Tensor) -> tuple[int, ...]:
        """The shape of h and c that go with this x, without their last dimension."""
        dims = (1, 2) if self._packed.is_cell else (2, 3)
        if x.dim() not in dims:
            raise RuntimeError(f"x must have {dims[0]} or {dims[1]} dimensions, got {x.dim()}")
        *rows, features = x.shape
        if features != self.input_size:
            raise RuntimeError(
                f"x must have {self.input_size} features in its last dimension, got {features}"
            )
        if self._packed.is_cell:
            return tuple(rows)
        batch = rows[0 if self.batch_first else 1 :][:1] if x.dim() == dims[1] else []
        if rows[1 if self.batch_first and batch else 0] == 0:
            raise RuntimeError("x must have at least one step, got none")
        return self.num_layers * (1 + self.bidirectional), *batch

    def __getstate__(self) -> dict[str, Any]:
        """What nn.Module keeps, and what `_C.Frozen` is made from: the options and the weights, unpacked."""
        packed, dtype = self._packed, self.dtype
        options = {name: getattr(packed, name) for name in _OPTIONS}
        cell, hidden, directions = CELLS[packed.cell], packed.hidden_size, 1 + packed.bidirectional
        outputs, rows = packed.proj_size or hidden, cell.gates * hidden
        weights = []
        for n in range(packed.num_layers * directions):
            inputs = packed.input_size if n < directions else directions * outputs
            shapes: list[tuple[int, ...]] = [(rows, inputs), (rows, outputs), (rows,), (rows,)]
            extra = {"w_hr": (outputs, hidden), "norm_c": (hidden,), "norm_c_bias": (hidden,)}
            for shape in (*shapes, *(extra.get(weight, (rows,)) for weight in cell.extra_weights)):
                kind = dtype if len(shape) == 2 else torch.float32
                weights.append(torch.empty(shape, dtype=kind, device="cpu"))
        packed.unpack(weights)
        # As bytes: to another process torch would send tensors in shared memory, which these do not outlive.
        file = io.BytesIO()
        torch.save(weights, file)
        return self.__dict__ | {"_packed": (options, file.getvalue())}

    def __setstate__(self, state: dict[str, Any]) -> None:
        options, weights = state["_packed"]
        parameters = torch.load(io.BytesIO(weights), weights_only=True, map_location="cpu")
        # Pickles of earlier versions say nothing of projections and norms.
        packed = _C.Frozen(**{"proj_size": 0, "norm_eps": 1e-5} | options, parameters=list(parameters))
        super().__setstate__(state | {"_packed": packed})

    def train(self, mode: bool = True) -> Any:
        """Refuses, except for `train(False)`, which changes nothing."""
        if mode:
            raise RuntimeError("a frozen module cannot be trained: train the module that it was made from")
        return self

    def extra_repr(self) -> str:
        defaults: dict[str, Any] = {"proj_size": 0, "num_layers": 1, "bidirectional": False}
        defaults |= {"batch_first": False, "dtype": torch.float32}
        options = [
            f"{n}={getattr(self, n)}" for n, default in defaults.items() if getattr(self, n) != default
        ]
        return ", ".join([self.cell, str(self.input_size), str(self.hidden_size), *options])


_dynamo.let_dynamo_skip(Frozen.forward, "it is a frozen module")
