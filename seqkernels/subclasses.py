"""Subclasses of torch.nn's recurrent layers and cells, made ones of the fused classes.

A subclass that leaves the computation to torch.nn, by `super().forward` or by having no forward at all, can
leave it to a fused layer as well: a class `(Theirs, FusedLSTM)` has FusedLSTM where Theirs finds torch.nn's
LSTM. What a subclass does is read from the names that its functions use; where that leaves a doubt, it is not
touched.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Iterator
from typing import Any

import torch
from torch.nn.utils import parametrize

from . import _torch_compat as compat
from . import modules

__all__ = ["FUSED", "fused_class", "namesake", "plain_class", "why_no_kernel", "why_not_fused"]

Class = type[torch.nn.Module]

FUSED: dict[Class, Class] = {
    torch.nn.LSTM: modules.FusedLSTM,
    torch.nn.GRU: modules.FusedGRU,
    torch.nn.RNN: modules.FusedRNN,
    torch.nn.LSTMCell: modules.FusedLSTMCell,
    torch.nn.GRUCell: modules.FusedGRUCell,
    torch.nn.RNNCell: modules.FusedRNNCell,
}
_PLAIN = {fused: plain for plain, fused in FUSED.items()}
# Names of functions that compute layers and cells, through which a forward may go around its super().
_COMPUTE = {f"{cell}{suffix}" for cell in ("lstm", "gru", "rnn_tanh", "rnn_relu") for suffix in ("", "_cell")}


def namesake(cls: type) -> Class | None:
    """The class of torch.nn that `cls` is or derives from, of those that have a fused version."""
    return next((kind for kind in cls.__mro__ if kind in FUSED), None)


def why_no_kernel(cls: type) -> str:
    """Why a `forward` of this class never reaches that of torch.nn or of a fused class; empty if it does."""
    if namesake(cls) is None:
        return "it is derived from none of the classes that have a fused version"
    for base in cls.__mro__:
        if base in FUSED or base in _PLAIN:
            return ""
        own = vars(base).get("forward")
        if own is None:
            continue
        names = set(_names(own))
        if not {"super", "forward"} <= names or names & _COMPUTE:
            return f"the forward of {base.__name__} computes by itself, without super().forward"
    return ""


def why_not_fused(module: torch.nn.Module) -> str:
    """Why a layer or cell that is not fused cannot become so; empty if it can."""
    cls = parametrize.type_before_parametrizations(module)
    reason = why_no_kernel(cls)
    if not reason:
        plain: Any = namesake(cls)
        fused: Any = FUSED[plain]
        tensors = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        attributes = {*vars(module), *(name for name, _ in (*tensors, *module.named_children()))}
        for base in cls.__mro__[: cls.__mro__.index(plain)]:
            attributes.update(vars(base))
        if taken := attributes & _names_of_fused(fused):
            reason = f"{cls.__name__} has a {min(taken)} of its own, and so has the fused class"
    for base in cls.__mro__:
        if reason or base in FUSED:
            break
        for name, value in vars(base).items():
            if name in ("__reduce__", "__reduce_ex__") or (name == "__slots__" and value):
                reason = f"{base.__name__} has a {name} of its own"
            used = {name, *_names(value)} & compat.LIST_OF_WEIGHTS
            if used:
                reason = f"{base.__name__}.{name} uses {min(used)}, torch.nn's own list of weights"
    if not reason:
        try:
            fused_class(cls)
        except TypeError as error:
            reason = f"no class can derive from it and a fused class: {error}"
    return reason


@functools.cache
def _names_of_fused(fused: Any) -> set[str]:
    """What a fused class has that its namesake has not."""
    theirs: Any = _PLAIN[fused]
    own = {name for base in fused.__mro__ for name in vars(base) if base not in theirs.__mro__}
    return {name for name in own - compat.LIST_OF_WEIGHTS if not hasattr(theirs, name)} - vars(type).keys()


def fused_class(cls: type) -> Class:
    """The class that instances of `cls` become: torch.nn's namesake, or one of `why_not_fused`."""
    return FUSED.get(cls) or _derived(cls)


def plain_class(cls: type) -> Class | None:
    """The class whose instances became ones of `cls`; None where nothing did."""
    return _PLAIN.get(cls) or vars(cls).get("_theirs")


@functools.cache
def _derived(theirs: type) -> Class:
    base: Any = FUSED[namesake(theirs)]  # type: ignore[index]  # which it has: `why_not_fused`

    def reduce_ex(self: Any, protocol: Any) -> Any:
        """The class is nowhere to be imported from, so it is made again."""
        _, (_, *args), *state = super(cls, self).__reduce_ex__(max(protocol, 2))
        return _new, (theirs, *args), *state

    own = {"_theirs": theirs, "__reduce_ex__": reduce_ex, "__module__": theirs.__module__}
    cls: Class = types.new_class(f"Fused{theirs.__name__}", (theirs, base), {}, lambda body: body.update(own))
    return cls


def _new(theirs: type, *args: Any) -> torch.nn.Module:
    cls: Any = _derived(theirs)
    return cls.__new__(cls, *args)


def _names(value: Any) -> Iterator[str]:
    """What the code of a function, method or property names, inner functions included."""
    if isinstance(value, property):
        for part in (value.fget, value.fset, value.fdel):
            yield from _names(part)
        return
    function = inspect.unwrap(getattr(value, "__func__", value)) if callable(value) else value
    codes = [code for code in [getattr(function, "__code__", None)] if code is not None]
    while codes:
        code = codes.pop()
        yield from code.co_names
        codes += [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
