"""Recurrent modules for streaming: weights packed once, and as little as possible around a call.

With 64 hidden units the kernel takes some 2 µs for a step, and what `Frozen.forward` does is measured by
that: to read an attribute of a tensor takes 0.1 µs, to make a tensor 1 µs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.utils import parametrize
from torch.nn.utils.rnn import PackedSequence

from . import _C, _dynamo, modules

__all__ = ["Frozen", "freeze"]

_CELLS = {
    getattr(where, prefix + cell + kind): cell.lower()
    for where, prefix in ((torch.nn, ""), (modules, "Fused"))
    for cell in ("LSTM", "GRU", "RNN")
    for kind in ("", "Cell")
}
_GATES = {"lstm": 4, "gru": 3, "tanh": 1, "relu": 1}

float32, empty_like = torch.float32, torch.empty_like


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
            float32, bfloat16 or float16, without projections (`proj_size`).
        dtype: How weights are stored: `torch.float32`, the default, or `torch.bfloat16`, which rounds them
            and halves the memory to read: twice as fast where that takes the time (hidden sizes from 256 on).
            Biases, states and sums are float32 in any case.

    Returns:
        A module that is called as `module` is, and returns the same: with a layer's `x` [T, B, I], [B, T, I]
        (`batch_first`) or [T, I] (one sequence), or a Cell's [B, I] or [I], and optionally the state. Several
        threads may call it at once. torch.compile leaves it as it is; it cannot be traced or exported.

    Raises:
        TypeError: Not a recurrent module of these classes.
        ValueError: A `dtype`, weights or an option that it does not support.

    Example:
        >>> frozen = seqkernels.freeze(torch.nn.LSTM(8, 16))
        >>> state = None
        >>> for x in torch.randn(5, 1, 1, 8):  # one step at a time
        ...     output, state = frozen(x, state)
        >>> output.shape
        torch.Size([1, 1, 16])
    """
    cell = _CELLS.get(parametrize.type_before_parametrizations(module))
    if cell is None:
        raise TypeError(
            f"freeze takes an LSTM, GRU or RNN of torch.nn or seqkernels, or one of their Cells,"
            f" got {type(module).__name__}"
        )
    if dtype not in (None, torch.float32, torch.bfloat16):
        raise ValueError(f"dtype must be torch.float32 or torch.bfloat16, got {dtype}")
    if getattr(module, "proj_size", 0) > 0:
        raise ValueError(
            f"freeze does not support projections, and this module has proj_size={module.proj_size}"
        )
    if cell == "rnn":
        cell = str(module.nonlinearity)
    options: dict[str, Any] = {"input_size": module.input_size, "hidden_size": module.hidden_size}
    if isinstance(module, torch.nn.RNNBase):
        options |= {n: getattr(module, n) for n in ("num_layers", "bidirectional", "batch_first")}
        directions = ("", "_reverse")[: 1 + module.bidirectional]
        suffixes = [f"_l{layer}{direction}" for layer in range(module.num_layers) for direction in directions]
    else:
        options["is_cell"], suffixes = True, [""]
    parameters = [
        _weight(module, f"{name}{suffix}") if module.bias or "bias" not in name else None
        for suffix in suffixes
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    ]
    return Frozen(cell, parameters, dtype or float32, **options)


def _weight(module: torch.nn.Module, name: str) -> Tensor:
    weight: Tensor = getattr(module, name).detach()
    if weight.device.type != "cpu":
        raise ValueError(f"freeze needs weights on the CPU, and {name} is on {weight.device}")
    if weight.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(
            f"freeze needs weights in float32, bfloat16 or float16, and {name} is {weight.dtype}"
        )
    return weight


class Frozen(torch.nn.Module):
    """What `freeze` makes of a layer or a Cell; called as that is."""

    # What forward needs, and sizes of the last call, which most often are those of the next one: shape of x,
    # whether there is c, whether it is a Cell, batch_first, the kernel, T, B, shape of h,
    # tensors like output and h.
    _plan: tuple[Any, ...]

    def __init__(
        self,
        cell: str,
        parameters: Sequence[Tensor | None],
        dtype: torch.dtype,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bidirectional: bool = False,
        batch_first: bool = False,
        is_cell: bool = False,
    ) -> None:
        super().__init__()
        self.training = False
        self.cell, self.dtype = cell, dtype
        self.input_size, self.hidden_size = input_size, hidden_size
        self.num_layers, self.bidirectional, self.batch_first = num_layers, bidirectional, batch_first
        self._is_cell, self._has_c = is_cell, cell == "lstm"
        self._pack(parameters)

    def forward(self, x: Tensor, hx: Any = None) -> Any:
        # All in one: nn.Module makes it slow to read an attribute.
        shape, has_c, is_cell, batch_first, run, seq_len, batch, state_shape, like_output, like_h = self._plan
        states: Sequence[Tensor] = () if hx is None else hx if has_c else (hx,)
        for t in (x, *states):
            if (
                type(t) is not Tensor
                or t.dtype is not float32
                or t.requires_grad
                or not t.is_cpu
                or not t.is_contiguous()
            ):
                x, *states = self._admit(x, *states)
                break
        if x.shape != shape or forward_ad._current_level >= 0:
            *_, seq_len, batch, state_shape, like_output, like_h = self._sizes(x)
        if hx is None:
            h0 = c0 = 0
        else:
            if len(states) != 1 + has_c:
                self._reject(states, state_shape)
            for state in states:
                if state.shape != state_shape:
                    self._reject(states, state_shape)
            h0, c0 = states[0].data_ptr(), states[-1].data_ptr()
        h_n = empty_like(like_h)
        output = h_n if is_cell else empty_like(like_output)
        final: Any = h_n
        c_address = 0
        if has_c:
            c_n = empty_like(like_h)
            final = (h_n, c_n)
            c_address = c_n.data_ptr()
        run(seq_len, batch, batch_first, x.data_ptr(), h0, c0, output.data_ptr(), h_n.data_ptr(), c_address)
        return final if is_cell else (output, final)

    def _admit(self, *tensors: Any) -> list[Tensor]:
        """x and states as the kernels want them, where that takes more than a look."""
        admitted = []
        for name, t in zip(("x", "h", "c"), tensors, strict=False):
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
            if t.dtype is not float32:
                raise ValueError(f"{name} must be torch.float32, got {t.dtype}")
            admitted.append(t.detach().resolve_neg().contiguous())
        return admitted

    def _sizes(self, x: Tensor) -> tuple[Any, ...]:
        """The plan for an x of this shape, which is kept for the next call.

        `empty_like` is faster than `torch.empty`, and no default dtype or device applies to it.
        """
        if forward_ad._current_level >= 0:
            raise RuntimeError("a frozen module does not support forward-mode differentiation")
        dims = (1, 2) if self._is_cell else (2, 3)
        if x.dim() not in dims:
            raise RuntimeError(f"x must have {dims[0]} or {dims[1]} dimensions, got {x.dim()}")
        *rows, features = x.shape
        if features != self.input_size:
            raise RuntimeError(
                f"x must have {self.input_size} features in its last dimension, got {features}"
            )
        batched = x.dim() == dims[1]
        if self._is_cell:
            seq_len, batch = 1, rows[0] if batched else 1
            state_shape = output_shape = (*rows, self.hidden_size)
        else:
            directions = 1 + self.bidirectional
            seq_len, batch = (rows[::-1] if self.batch_first else rows) if batched else (rows[0], 1)
            state_shape = (self.num_layers * directions, *([batch] if batched else []), self.hidden_size)
            output_shape = (*rows, directions * self.hidden_size)
        if seq_len == 0:
            raise RuntimeError("x must have at least one step, got none")
        like_h = torch.zeros(state_shape, dtype=float32, device="cpu")
        one = torch.zeros((), dtype=float32, device="cpu")
        like_output = like_h if output_shape == state_shape else one.expand(output_shape)
        self._plan = (x.shape, *self._plan[1:5], seq_len, batch, like_h.shape, like_output, like_h)
        return self._plan

    def _reject(self, states: Sequence[Tensor], shape: torch.Size) -> NoReturn:
        """Say what is wrong with a state: not as many tensors as it should have, or not of this shape."""
        names = ("h", "c") if self._has_c else ("h",)
        if len(states) != len(names):
            raise RuntimeError(f"hx must be {'a tuple (h, c)' if self._has_c else 'one tensor'}")
        wrong = next(n for n, state in enumerate(states) if state.shape != shape)
        raise RuntimeError(f"{names[wrong]} must have shape {list(shape)}, got {list(states[wrong].shape)}")

    def _pack(self, parameters: Sequence[Tensor | None]) -> None:
        """From w_ih, w_hh, b_ih, b_hh of each layer and direction; None for a bias that is not there."""
        dtypes = (self.dtype, self.dtype, float32, float32)
        kept = [p if p is None else p.to(dtypes[n % 4]).contiguous() for n, p in enumerate(parameters)]
        self._packed = _C.Frozen(
            self.cell,
            self.dtype is torch.bfloat16,
            self.input_size,
            self.hidden_size,
            self.num_layers,
            1 + self.bidirectional,
            [0 if p is None else p.data_ptr() for p in kept],
        )
        self._plan = (None, self._has_c, self._is_cell, self.batch_first, self._packed.run, *[None] * 5)

    def _unpack(self) -> list[Tensor]:
        """What `_pack` takes, with zeros for biases that were not there."""
        directions, rows = 1 + self.bidirectional, _GATES[self.cell] * self.hidden_size
        parameters = []
        for n in range(self.num_layers * directions):
            inputs = self.input_size if n < directions else directions * self.hidden_size
            for k in (inputs, self.hidden_size):
                parameters.append(torch.empty(rows, k, dtype=self.dtype, device="cpu"))
            parameters += [torch.empty(rows, dtype=float32, device="cpu") for _ in range(2)]
        self._packed.unpack([p.data_ptr() for p in parameters])
        return parameters

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__ | {"_packed": self._unpack()}
        del state["_plan"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        parameters = state.pop("_packed")
        super().__setstate__(state)
        self._pack(parameters)

    def train(self, mode: bool = True) -> Any:
        """Refuses, except for `train(False)`, which changes nothing."""
        if mode:
            raise RuntimeError("a frozen module cannot be trained: train the module that it was made from")
        return self

    def _slow_forward(self, *args: Any, **kwargs: Any) -> Any:  # what torch.jit.trace calls
        raise RuntimeError(
            "a frozen module cannot be traced or exported: take the module that it was made from"
        )

    def extra_repr(self) -> str:
        defaults = {"num_layers": 1, "bidirectional": False, "batch_first": False, "dtype": float32}
        options = [
            f"{n}={getattr(self, n)}" for n, default in defaults.items() if getattr(self, n) != default
        ]
        return ", ".join([self.cell, str(self.input_size), str(self.hidden_size), *options])


# What torch.compiler.disable does, but without a wrapper around every call.
Frozen.forward._torchdynamo_disable = True  # type: ignore[attr-defined]
Frozen.forward._torchdynamo_disable_msg = "it is a frozen module"  # type: ignore[attr-defined]
_dynamo.leave(Frozen.forward.__code__)
