"""Turn the recurrent layers of an existing model into fused ones, and back."""

from __future__ import annotations

import warnings
from typing import Any, TypeVar

import torch
from torch.nn.utils import parametrize

from . import _fused, _tools, dispatch
from . import _torch_compat as compat
from ._options import check_bool
from .regularization import check_probability, zoneout_pair
from .subclasses import FUSED, fused_class, plain_class, why_not_fused

__all__ = ["FUSED", "fuse", "unfuse"]

# Of layers, those that leave results as many as they are.
OPTIONS = ("recurrent_dropout", "zoneout", "weight_dropout", "recompute")
Model = TypeVar("Model", bound=torch.nn.Module)


def fuse(model: Model, backend: str = "auto", **options: Any) -> Model:
    """Make every recurrent layer and cell of torch.nn in `model` a fused one, in place.

    The modules stay the same objects with the same parameters, buffers, hooks and parametrizations, so
    optimizers and other references to them stay valid; `model` itself may be one of them. A subclass of, say,
    `torch.nn.LSTM` that leaves the computation to `super().forward` stays a subclass of its own class, and
    becomes one of `FusedLSTM` too. One that computes by itself is left alone; a warning says which and why.

    Args:
        model: Any module.
        backend: As for `FusedLSTM`; also set on layers that are fused already.
        **options: Likewise `recurrent_dropout`, `zoneout`, `weight_dropout` or `recompute`; of these, Cells
            have zoneout alone, and layers without c the first one of a pair.

    Returns:
        `model`.

    Raises:
        ValueError: An unknown `backend`, or what is no probability; `model` is as it was then.
        TypeError: An option that there is not, or what is no number.

    Example:
        >>> model = seqkernels.fuse(torch.nn.Sequential(torch.nn.LSTM(8, 16)))
        >>> type(model[0]).__name__
        'FusedLSTM'
    """
    dispatch.check_backend(backend)
    for name, value in options.items():
        if name not in OPTIONS:
            raise TypeError(f"fuse takes {', '.join(OPTIONS)}, got {name}")
        if name == "zoneout":
            zoneout_pair(value, has_cell_state=True)
        elif name == "recompute":
            check_bool(name, value)
        else:
            check_probability(name, value)
    left_alone: dict[str, str] = {}
    for module in model.modules():
        kind = parametrize.type_before_parametrizations(module)
        is_recurrent = isinstance(module, (torch.nn.RNNBase, torch.nn.modules.rnn.RNNCellBase))
        if is_recurrent and not isinstance(module, _fused._Fused):
            if reason := why_not_fused(module):
                left_alone[kind.__name__] = reason
                continue
            _change_class(module, fused_class(kind))
            compat.forget_weights(module)
            if not module.__dict__.keys().isdisjoint(_fused.OVERRIDABLE):
                module.__dict__["_fastpath_supported"] = False
        if isinstance(module, _fused._Fused):
            module.__dict__.setdefault("_options", {})
            module.backend = backend
            for name, value in options.items():
                if hasattr(type(module), name):
                    is_pair = isinstance(value, (tuple, list)) and not module._has_cell_state
                    setattr(module, name, value[0] if is_pair else value)
    for name, reason in left_alone.items():
        warnings.warn(f"fuse leaves {name} alone: {reason}", stacklevel=2)
    return model


def unfuse(model: Model) -> Model:
    """Make every fused layer and cell in `model` one of torch.nn again, in place: undoes `fuse`.

    What torch.nn would compute otherwise, a GRU with `reset_after=False`, is left alone; a warning says so.

    Example:
        >>> model = seqkernels.unfuse(torch.nn.Sequential(seqkernels.FusedLSTM(8, 16)))
        >>> type(model[0]).__name__
        'LSTM'
    """
    for module in model.modules():
        kind = parametrize.type_before_parametrizations(module)
        plain = plain_class(kind)
        if plain is not None and (option := getattr(module, "_beyond_torch", "")):
            warnings.warn(f"unfuse leaves {kind.__name__} alone: torch.nn has no {option}", stacklevel=2)
        elif plain is not None:
            _change_class(module, plain)
            _tools.forget_options(module)
            if isinstance(module, torch.nn.RNNBase):
                compat.refresh_weights(module)
    return model


def _change_class(module: torch.nn.Module, cls: type[torch.nn.Module]) -> None:
    """Make `module` an instance of `cls`, with the properties of its parametrizations if it has some."""
    if parametrize.is_parametrized(module):
        # Parametrized modules have a class of their own (shared with their copies) that holds one property
        # for each parametrized tensor: make another one like it.
        own = {k: v for k, v in vars(type(module)).items() if k not in ("__dict__", "__weakref__", "__doc__")}
        cls = type(f"Parametrized{cls.__name__}", (cls,), own)
    module.__class__ = cls
