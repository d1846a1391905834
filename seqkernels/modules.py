"""The layers and cells of torch.nn, running on fused kernels.

Every class is a subclass of its torch.nn namesake and takes over its constructor, parameters, state_dict and
`forward`: the very code of the installed torch runs, checks, messages, packing and all, except that where it
calls torch's kernels (`_VF.lstm` and so on) it finds the functions of this package.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, is_grad_enabled
from torch.nn.modules import rnn as _torch_rnn

from . import _C, direct, functional, plan, resets

__all__ = ["FusedGRU", "FusedGRUCell", "FusedLSTM", "FusedLSTMCell", "FusedRNN", "FusedRNNCell"]


def _kernels(backend: str) -> types.SimpleNamespace:
    """What `forward` finds under the name `_VF`: torch's functions, by their names and arguments."""

    def layer(cell: str) -> Callable[..., tuple[Tensor, ...]]:
        def run(x: Tensor, *args: Any) -> tuple[Tensor, ...]:
            if isinstance(
                args[1], list
            ):  # (hx, weights, bias, layers, dropout, training, bidirectional, batch_first)
                hx, weights, bias, num_layers, dropout, training, bidirectional, batch_first = args
                batch_sizes = None
            else:  # (batch_sizes, hx, weights, bias, layers, dropout, training, bidirectional)
                batch_sizes, hx, weights, bias, num_layers, dropout, training, bidirectional = args
                batch_first = False
            state = (hx,) if isinstance(hx, Tensor) else tuple(hx)
            return functional._stack(
                cell,
                x,
                state,
                weights,
                batch_sizes,
                bias,
                num_layers,
                dropout,
                training,
                bidirectional,
                batch_first,
                backend,
            )

        return run

    def lstm_cell(x: Tensor, hx: Any, w_ih: Tensor, w_hh: Tensor, b_ih: Any, b_hh: Any) -> tuple[Tensor, ...]:
        return functional._cell("lstm", x, tuple(hx), w_ih, w_hh, b_ih, b_hh, backend)

    def cell(name: str) -> Callable[..., Tensor]:
        def run(x: Tensor, h: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Any, b_hh: Any) -> Tensor:
            return functional._cell(name, x, (h,), w_ih, w_hh, b_ih, b_hh, backend)[0]

        return run

    return types.SimpleNamespace(
        lstm=layer("lstm"),
        gru=layer("gru"),
        rnn_tanh=layer("tanh"),
        rnn_relu=layer("relu"),
        lstm_cell=lstm_cell,
        gru_cell=cell("gru"),
        rnn_tanh_cell=cell("tanh"),
        rnn_relu_cell=cell("relu"),
    )


def _forwards(cls: type[torch.nn.Module]) -> dict[str, Callable[..., Any]]:
    """For each backend, `cls.forward` of the installed torch with `_VF` replaced."""
    original: Any = cls.forward
    forwards: dict[str, Callable[..., Any]] = {}
    for backend in plan.BACKENDS:
        names = {**vars(_torch_rnn), "_VF": _kernels(backend)}
        del names["__name__"]  # with a name, torch.compile would look things up in the module of that name
        forward = types.FunctionType(
            original.__code__, names, "forward", original.__defaults__, original.__closure__
        )
        forward.__kwdefaults__ = original.__kwdefaults__
        forwards[backend] = forward
    return forwards


class _Fused(torch.nn.Module):
    """The `backend` option that all the classes here have, and what `forward` does."""

    _torch_forward: dict[str, Callable[..., Any]]  # by backend
    _cell: str  # of a single step; "" of a stack of layers
    _own_checks: bool  # whether a subclass has overridden part of what torch's forward does

    def __init__(self, *args: Any, backend: str = "auto", **kwargs: Any) -> None:
        plan.check_backend(backend)
        super().__init__(*args, **kwargs)
        self.backend = backend

    @property
    def backend(self) -> str:
        """ "auto", "native" or "reference"; see `seqkernels.functional.lstm`. May be set at any time."""
        return str(self.__dict__.get("_backend", "auto"))

    @backend.setter
    def backend(self, backend: str) -> None:
        self.__dict__["_backend"] = plan.check_backend(backend)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        others = [c for c in cls.__mro__ if c.__module__ not in (__name__, _torch_rnn.__name__)]
        cls._own_checks = any(name in vars(c) for c in others for name in _CHECKS)

    def _run(self, input: Any, hx: Any) -> Any:
        """The short way, and where that does not understand what it gets, or finds it wrong, torch's."""
        own, cls = self.__dict__, type(self)  # nn.Module makes it slow to read an attribute
        if direct.allowed() and not cls._own_checks and own.get("_backend") != "reference":
            result = _C.direct(own, cls._cell, input, hx, is_grad_enabled())
            if result is not None:
                return result
        return self._torch_forward[self.backend](self, input, hx)

    def extra_repr(self) -> str:
        shown = super().extra_repr()
        return shown if self.backend == "auto" else f"{shown}, backend={self.backend!r}"


# What torch's forward calls of the module's own, and subclasses may change.
_CHECKS = (
    "check_input",
    "check_hidden_size",
    "check_forward_args",
    "get_expected_hidden_size",
    "permute_hidden",
)


class _Checked:
    """The part of a layer that `RNNBase.check_input` reads."""

    def __init__(self, input_size: int, first_weight: Tensor) -> None:
        self.input_size = input_size
        self._flat_weights = (first_weight,)


class _FusedLayer(_Fused):
    """Weights as ordinary attributes, read afresh by every forward.

    torch.nn keeps a list of its weights beside its parameters (for cuDNN), which parametrizations, pruning or
    `functional_call` can leave behind. Here the list is made when asked for, and there is nothing to flatten.
    """

    _flat_weights_names: list[str]
    _cell = ""
    input_size: int

    @property
    def _flat_weights(self) -> list[Tensor | None]:
        own = self._parameters  # read first: `getattr` of a parameter comes to the same, but slowly
        return [own[name] if name in own else getattr(self, name, None) for name in self._flat_weights_names]

    @_flat_weights.setter
    def _flat_weights(self, weights: list[Tensor | None]) -> None:
        pass

    def _init_flat_weights(self) -> None:
        self._flat_weight_refs: list[Any] = []

    def _update_flat_weights(self) -> None:
        pass

    def flatten_parameters(self) -> None:
        """Nothing to do: the kernels read the parameters as they are."""

    def _run_layer(self, input: Any, hx: Any, reset_mask: Tensor | None) -> Any:
        if reset_mask is None:
            return self._run(input, hx)
        return resets.run(self, self._run, input, hx, reset_mask)

    def check_input(self, input: Tensor, batch_sizes: Tensor | None) -> None:
        # torch's own check, on just what it reads: no weight is computed for it, so that a forward computes
        # each once.
        seen: Any = _Checked(self.input_size, self._first_weight())
        torch.nn.RNNBase.check_input(seen, input, batch_sizes)

    def _first_weight(self) -> Tensor:
        """A tensor with the dtype of the first weight."""
        name = self._flat_weights_names[0]
        if name in self._parameters:
            return self._parameters[name]  # type: ignore[return-value]
        if hasattr(type(self), name):  # parametrized, which keeps the dtype unless told that it is unsafe
            origin: Any = self.parametrizations[name]  # type: ignore[index]
            if not origin.unsafe:
                return origin.original if origin.is_tensor else origin.original0
        return getattr(self, name)


class FusedLSTM(_FusedLayer, torch.nn.LSTM):
    """`torch.nn.LSTM` on fused kernels: the same arguments, state_dict, inputs, outputs and errors.

    Args:
        *args, **kwargs: As for `torch.nn.LSTM`.
        backend: "auto" runs the kernels where they can run, else plain torch; "native" raises where they
            cannot; "reference" always runs plain torch. `seqkernels.explain` says which and why.

    `forward` takes one argument more: `reset_mask`, a bool tensor [T, B] ([B, T] with `batch_first`, [T] for
    unbatched input, the rows of a PackedSequence's data), makes sequences start anew. Where it is true,
    nothing passes from step t - 1 to step t, nor gradients back: step t starts from a state of zeros, step 0
    from zeros instead of `hx`; the backward direction starts from zeros at step t - 1. It is read on the CPU,
    so a mask on a GPU waits for the GPU, and torch.compile leaves the graph for such a call. The segments
    between resets run side by side, as one PackedSequence. A mask that is no bool tensor raises TypeError,
    one of another shape ValueError.

    Example:
        >>> lstm = seqkernels.FusedLSTM(8, 16, num_layers=2, bidirectional=True)
        >>> output, (h_n, c_n) = lstm(torch.randn(5, 3, 8))
        >>> output.shape, h_n.shape
        (torch.Size([5, 3, 32]), torch.Size([4, 3, 16]))
        >>> done = torch.rand(5, 3) < 0.1  # episodes of reinforcement learning that start at a step
        >>> output, (h_n, c_n) = lstm(torch.randn(5, 3, 8), reset_mask=done)
    """

    _torch_forward = _forwards(torch.nn.LSTM)

    def forward(self, input: Any, hx: Any = None, *, reset_mask: Tensor | None = None) -> Any:
        return self._run_layer(input, hx, reset_mask)


class FusedGRU(_FusedLayer, torch.nn.GRU):
    """`torch.nn.GRU` on fused kernels: the same arguments, state_dict, inputs, outputs and errors.

    Args:
        *args, **kwargs: As for `torch.nn.GRU`.
        backend: As for `FusedLSTM`, as is `reset_mask` of `forward`.

    Example:
        >>> output, h_n = seqkernels.FusedGRU(8, 16)(torch.randn(5, 3, 8))
        >>> output.shape
        torch.Size([5, 3, 16])
    """

    _torch_forward = _forwards(torch.nn.GRU)

    def forward(self, input: Any, hx: Any = None, *, reset_mask: Tensor | None = None) -> Any:
        return self._run_layer(input, hx, reset_mask)


class FusedRNN(_FusedLayer, torch.nn.RNN):
    """`torch.nn.RNN` on fused kernels: the same arguments, state_dict, inputs, outputs and errors.

    Args:
        *args, **kwargs: As for `torch.nn.RNN`.
        backend: As for `FusedLSTM`, as is `reset_mask` of `forward`.

    Example:
        >>> output, h_n = seqkernels.FusedRNN(8, 16, nonlinearity="relu")(torch.randn(5, 3, 8))
        >>> output.shape
        torch.Size([5, 3, 16])
    """

    _torch_forward = _forwards(torch.nn.RNN)

    def forward(self, input: Any, hx: Any = None, *, reset_mask: Tensor | None = None) -> Any:
        return self._run_layer(input, hx, reset_mask)


class FusedLSTMCell(_Fused, torch.nn.LSTMCell):
    """`torch.nn.LSTMCell` on fused kernels: the same arguments, state_dict, inputs, outputs and errors.

    Args:
        *args, **kwargs: As for `torch.nn.LSTMCell`.
        backend: As for `FusedLSTM`.

    Example:
        >>> h, c = seqkernels.FusedLSTMCell(8, 16)(torch.randn(3, 8))
        >>> h.shape
        torch.Size([3, 16])
    """

    _torch_forward = _forwards(torch.nn.LSTMCell)
    _cell = "lstm"

    def forward(self, input: Tensor, hx: Any = None) -> Any:
        return self._run(input, hx)


class FusedGRUCell(_Fused, torch.nn.GRUCell):
    """`torch.nn.GRUCell` on fused kernels: the same arguments, state_dict, inputs, outputs and errors.

    Args:
        *args, **kwargs: As for `torch.nn.GRUCell`.
        backend: As for `FusedLSTM`.

    Example:
        >>> seqkernels.FusedGRUCell(8, 16)(torch.randn(3, 8)).shape
        torch.Size([3, 16])
    """

    _torch_forward = _forwards(torch.nn.GRUCell)
    _cell = "gru"

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Any:
        return self._run(input, hx)


class FusedRNNCell(_Fused, torch.nn.RNNCell):
    """`torch.nn.RNNCell` on fused kernels: the same arguments, state_dict, inputs, outputs and errors.

    Args:
        *args, **kwargs: As for `torch.nn.RNNCell`.
        backend: As for `FusedLSTM`.

    Example:
        >>> seqkernels.FusedRNNCell(8, 16, nonlinearity="relu")(torch.randn(3, 8)).shape
        torch.Size([3, 16])
    """

    _torch_forward = _forwards(torch.nn.RNNCell)

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Any:
        return self._run(input, hx)

    _cell = "rnn"
