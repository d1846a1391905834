"""LSTMModule and GRUModule of TorchRL on fused kernels, rows of several trajectories without padding.

In recurrent mode TorchRL splits a row [T] in which trajectories start into one padded row for each of them,
with all keys of the module, and puts the results together again. Here nothing is padded. Where resetting
states to zeros is all that a start means, the rows run as they are with a `reset_mask`. Otherwise the
trajectories run as the sequences of one PackedSequence, of which only the inputs are moved. That is so where

- a state that is not zero, or that needs a gradient, is stored at the step where a trajectory starts: TorchRL
  goes on from it, as its value estimators want it of the "next" entries;
- states at the end of trajectories inside a row are asked for (`states="ends"`) and no output: of an LSTM,
  the cell state; of stacked layers, the states of all but the last; of two directions, the backward one.

    >>> from torchrl.modules import LSTMModule                                                # doctest: +SKIP
    >>> module = LSTMModule(8, 16, in_key="observation", out_key="features")                  # doctest: +SKIP
    >>> seqkernels.integrations.torchrl.fuse(module)                                          # doctest: +SKIP
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, overload

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from .. import fusion
from .._options import check_bool
from ..fusion_report import FusionReport, told
from ..modules import FusedGRU, FusedLSTM
from ..subclasses import why_not_fused
from . import _package

__all__ = ["NEWEST", "OLDEST", "fuse", "unfuse"]

Model = TypeVar("Model", bound=torch.nn.Module)

PACKAGE = "torchrl"
# The series of versions whose modules this adapter is tested with.
OLDEST, NEWEST = (0, 13), (0, 14)
STATES = ("ends", "last")


@dataclass(frozen=True)
class _Kind:
    """How TorchRL names what belongs to a kind of module."""

    module: str  # its class
    layer: str  # its attribute that is an RNN
    method: str  # what runs rows with starts inside, if recurrent_backend is "scan"
    parameters: tuple[str, ...]  # of that method
    like: type[torch.nn.RNNBase]
    fused: type[torch.nn.Module]


KINDS = (
    _Kind(
        "LSTMModule",
        "lstm",
        "_lstm_scan_with_resets",
        ("self", "input", "hidden0_in", "hidden1_in", "initial_hidden", "is_init"),
        torch.nn.LSTM,
        FusedLSTM,
    ),
    _Kind(
        "GRUModule",
        "gru",
        "_gru_scan_with_resets",
        ("self", "input", "hidden_in", "initial_hidden", "is_init"),
        torch.nn.GRU,
        FusedGRU,
    ),
)


@overload
def fuse(
    model: Model, backend: str = "auto", states: str = "ends", *, report: Literal[False] = False
) -> Model: ...
@overload
def fuse(
    model: torch.nn.Module, backend: str = "auto", states: str = "ends", *, report: Literal[True]
) -> FusionReport: ...
@overload
def fuse(
    model: Model, backend: str = "auto", states: str = "ends", *, report: bool
) -> Model | FusionReport: ...
def fuse(model: Any, backend: str = "auto", states: str = "ends", *, report: bool = False) -> Any:
    """Make every LSTMModule and GRUModule of TorchRL in `model` run on fused kernels, in place.

    Single steps and whole rows compute what they did with TorchRL's `recurrent_backend="pad"`, to rounding:
    outputs, states and gradients, with layers of any number, dropout, projections and two directions.
    Parameters stay the objects that they are, `state_dict` keeps its keys. Meanwhile the modules' attribute
    `recurrent_backend` is "scan", through which TorchRL hands over rows with starts inside. With
    `recurrent_recompute="full"` their layers become ones with `recompute=True`.

    With `shape = [..., T]` of the tensordict, L layers and D directions, a module reads in recurrent mode the
    input [..., T, I], `is_init` [..., T, 1] and the stored states [..., T, L*D, H]. It writes the output
    [..., T, D*H] and next states [..., T, L*D, H], which are zeros but at the last step of each trajectory.

    Args:
        model: An `LSTMModule`, a `GRUModule`, or any module with some inside.
        backend: As for `seqkernels.FusedLSTM`.
        states: Which next states are written. "ends": at the last step of each trajectory, as TorchRL does;
            "last": at the last step of each row alone, zeros elsewhere. Then the rows of LSTMs and of stacked
            layers, too, run with a `reset_mask`. TorchRL's value estimators read none of the others.
        report: Whether to return what was done, as `seqkernels.fuse` does, which also logs it.

    Returns:
        `model`; with `report=True` a `seqkernels.FusionReport`. Modules that are fused already take over
        `backend` and `states`.

    Raises:
        ImportError: TorchRL is not installed.
        RuntimeError: Its version is one that this adapter does not know, or the methods that it replaces are
            others; nothing has changed then.
        TypeError: `model` has no such module inside, or `report` is no bool.
        ValueError: An unknown `backend` or `states`; a module that cannot be fused, for it is `python_based`,
            its layer returns cell states, or its class or layer computes in its own way.

    Example:
        >>> from tensordict import TensorDict
        >>> from torchrl.modules import LSTMModule, set_recurrent_mode
        >>> from seqkernels.integrations import torchrl
        >>> module = torchrl.fuse(LSTMModule(8, 16, in_key="observation", out_key="features"))
        >>> x, is_init = torch.randn(3, 5, 8), torch.rand(3, 5, 1) < 0.3
        >>> rows = TensorDict({"observation": x, "is_init": is_init}, [3, 5])
        >>> with set_recurrent_mode(True):
        ...     module(rows)["features"].shape
        torch.Size([3, 5, 16])
    """
    check_bool("report", report)
    if states not in STATES:
        raise ValueError(f"states must be one of {', '.join(map(repr, STATES))}, got {states!r}")
    found = _modules_of(model)
    if not found:
        raise TypeError(
            "model must be an LSTMModule or a GRUModule of TorchRL, or a module with some inside; "
            f"got {type(model).__name__} without any"
        )
    _package.check_version(PACKAGE, OLDEST, NEWEST)
    for _, module, kind in found:
        _check(module, kind)
    parts = []
    for path, module, kind in found:
        recomputes = getattr(module, "recurrent_recompute", "none") != "none"
        options = {"recompute": True} if recomputes else {}
        parts.append(fusion.fuse_modules(_named_layer(path, module, kind), backend, **options))
        own = module.__dict__.get(kind.method)
        before = own.recurrent_backend if isinstance(own, _Rows) else module.recurrent_backend
        module.__dict__[kind.method] = _Rows(module, kind.layer, states, before)
        module.recurrent_backend = "scan"
    done, left_alone = fusion.merged("fuse", parts)
    told(done, left_alone, __name__)
    return done if report else model


@overload
def unfuse(model: Model, *, report: Literal[False] = False) -> Model: ...
@overload
def unfuse(model: torch.nn.Module, *, report: Literal[True]) -> FusionReport: ...
@overload
def unfuse(model: Model, *, report: bool) -> Model | FusionReport: ...
def unfuse(model: Any, *, report: bool = False) -> Any:
    """Make the modules of TorchRL in `model` run as TorchRL has them, on torch.nn's layers: undoes `fuse`.

    Modules that are not fused stay as they are. What was done is logged, and returned with `report=True`, as
    by `seqkernels.unfuse`.

    Raises:
        ImportError: TorchRL is not installed.
        TypeError: `report` is no bool.

    Example:
        >>> from torchrl.modules import GRUModule
        >>> from seqkernels.integrations import torchrl
        >>> module = torchrl.fuse(GRUModule(8, 16, in_key="observation", out_key="features"))
        >>> type(torchrl.unfuse(module).gru).__name__, module.recurrent_backend
        ('GRU', 'pad')
    """
    check_bool("report", report)
    parts = []
    for path, module, kind in _modules_of(model):
        own = module.__dict__.pop(kind.method, None)
        if isinstance(own, _Rows):
            module.recurrent_backend = own.recurrent_backend
            parts.append(fusion.unfuse_modules(_named_layer(path, module, kind)))
    done, left_alone = fusion.merged("unfuse", parts)
    told(done, left_alone, __name__)
    return done if report else model


def _modules_of(model: torch.nn.Module) -> list[tuple[str, Any, _Kind]]:
    """Those inside, with their paths and kinds."""
    theirs = _package.load("torchrl.modules", PACKAGE)
    named = model.named_modules() if isinstance(model, torch.nn.Module) else ()
    kinds = [(kind, getattr(theirs, kind.module)) for kind in KINDS]
    return [(path, m, kind) for path, m in named for kind, cls in kinds if isinstance(m, cls)]


def _named_layer(path: str, module: Any, kind: _Kind) -> Iterator[tuple[str, torch.nn.Module]]:
    """The layer of a module, and what is inside of it, by their paths in the model."""
    layer: torch.nn.Module = getattr(module, kind.layer)
    return layer.named_modules(prefix=f"{path}.{kind.layer}" if path else kind.layer)


def _check(module: Any, kind: _Kind) -> None:
    """An error unless the module can be fused."""
    theirs = getattr(_package.load("torchrl.modules", PACKAGE), kind.module)
    if not hasattr(theirs, kind.method):
        raise RuntimeError(
            f"{kind.module} of this version of {PACKAGE} has no {kind.method}; nothing has changed"
        )
    _package.check_signature(getattr(theirs, kind.method), kind.parameters, PACKAGE)
    name = type(module).__name__
    for method in ("forward", f"_{kind.layer}", kind.method):
        if getattr(type(module), method) is not getattr(theirs, method):
            raise ValueError(f"{name} has a {method} of its own, which may not do what fuse relies on")
    layer = getattr(module, kind.layer)
    if not isinstance(layer, kind.like):
        raise ValueError(
            f"{name} must run a layer of torch.nn (`make_cudnn_based`), not {type(layer).__name__}"
        )
    if not isinstance(layer, kind.fused) and (reason := why_not_fused(layer)):
        raise ValueError(f"the {kind.layer} of {name} cannot be fused: {reason}")
    if getattr(layer, "return_cell_states", False):
        raise ValueError(f"the {kind.layer} of {name} has return_cell_states=True, for which there is no key")


class _Rows:
    """What runs the rows [B, T] of a module in recurrent mode, in place of TorchRL's scan.

    Args:
        module: Whose layer runs.
        layer: Its attribute that is the layer.
        states: As for `fuse`.
        recurrent_backend: The module's own, for `unfuse`.
    """

    def __init__(self, module: Any, layer: str, states: str, recurrent_backend: str) -> None:
        self.module, self.layer, self.states = module, layer, states
        self.recurrent_backend = recurrent_backend

    def __call__(self, input: Tensor, *args: Any) -> tuple[Tensor, ...]:
        """What TorchRL calls: `(input, *stored states, initial state, is_init)`.

        Args:
            input: [B, T, I].
            args: The states that are stored for every step, each [B, T, L*D, H]; that before the first step,
                each [L*D, B, H]; and where trajectories start, [B, T].

        Returns:
            The output [B, T, D*H], and the next states, each [B, T, L*D, H].
        """
        *stored, initial, is_init = args
        layer: Any = getattr(self.module, self.layer)
        initial = initial if isinstance(initial, (tuple, list)) else (initial,)
        starts = is_init.clone()
        starts[:, 0] = False  # TorchRL takes the state that is stored there, as that before any first step
        if not starts.any():
            output, *finals = _call(layer, input, initial)
            return output, *(_at_end(final, input.size(1)) for final in finals)
        if self._is_reset(layer, stored, starts):
            output, *finals = _call(layer, input, initial, reset_mask=starts)
            if self.states == "last":
                return output, *(_at_end(final, input.size(1)) for final in finals)
            ends = torch.cat([starts[:, 1:], torch.ones_like(starts[:, :1])], 1)
            return output, torch.where(ends[..., None], output, 0).unsqueeze(2)
        output, *states = _run_packed(layer, input, stored, starts)
        if self.states == "last":
            states = [_at_end(s[:, -1].transpose(0, 1), input.size(1)) for s in states]
        return output, *states

    def _is_reset(self, layer: Any, stored: list[Tensor], starts: Tensor) -> bool:
        """Whether a start means a state of zeros, and what is to be written does not need others."""
        if not isinstance(layer, (FusedLSTM, FusedGRU)):  # no longer: seqkernels.unfuse knows nothing of this
            return False
        if self.states == "ends" and not _output_is_state(layer):
            return False
        if torch.is_grad_enabled() and any(s.requires_grad for s in stored):
            return False
        return not any(s[starts].any() for s in stored)


def _output_is_state(layer: Any) -> bool:
    return isinstance(layer, torch.nn.GRU) and layer.num_layers == 1 and not layer.bidirectional


def _call(layer: Any, input: Any, states: Any, **options: Any) -> tuple[Any, ...]:
    """`(output, *final states)` of a layer whose state is a pair or a tensor."""
    output, final = layer(input, tuple(states) if len(states) > 1 else states[0], **options)
    return output, *(final if isinstance(final, tuple) else (final,))


def _at_end(final: Tensor, steps: int) -> Tensor:
    """Final states [L*D, B, H] as the last of `steps`, [B, T, L*D, H], the others zeros."""
    return torch.nn.functional.pad(final.transpose(0, 1).unsqueeze(1), (0, 0, 0, 0, steps - 1, 0))


def _run_packed(
    layer: Any,
    input: Tensor,  # [B, T, I]
    stored: list[Tensor],  # each [B, T, L*D, H]
    starts: Tensor,  # [B, T]
) -> tuple[Tensor, ...]:
    """Run each of N trajectories as a sequence of its own, from the state that is stored where it starts."""
    rows = starts.numel()
    begins = starts.clone()
    begins[:, 0] = True
    first = begins.flatten().nonzero().squeeze(1)  # [N], the row of [B * T] that a trajectory begins with
    lengths = torch.diff(first, append=first.new_tensor([rows]))
    longest = torch.argsort(lengths, descending=True, stable=True)
    first, lengths = first[longest], lengths[longest]

    # As in a PackedSequence, step after step: the rows of all trajectories that have it, the longest first.
    step = torch.arange(int(lengths[0]), device=first.device).unsqueeze(1)
    order = (first + step)[step < lengths]
    packed = PackedSequence(input.flatten(0, 1)[order], (step < lengths).sum(1).cpu())
    initial = [s.flatten(0, 1)[first].transpose(0, 1).contiguous() for s in stored]
    output, *finals = _call(layer, packed, initial)
    place = functools.partial(_place, shape=starts.shape)
    return place(order, output.data), *(place(first + lengths - 1, f.transpose(0, 1)) for f in finals)


def _place(rows: Tensor, values: Tensor, shape: torch.Size) -> Tensor:
    """Values [n, ...] at these rows of a tensor [B * T, ...], zeros elsewhere; as [B, T, ...]."""
    zeros = values.new_zeros(shape.numel(), *values.shape[1:])
    return zeros.index_copy(0, rows, values).unflatten(0, shape)
