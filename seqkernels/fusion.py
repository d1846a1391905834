"""Turn the recurrent layers of an existing model into fused ones, and back."""

from __future__ import annotations

import logging
from typing import TypeVar

import torch
from torch.nn.utils import parametrize

from . import _torch_compat as compat
from . import dispatch, modules

__all__ = ["fuse", "unfuse"]

Model = TypeVar("Model", bound=torch.nn.Module)

FUSED: dict[type[torch.nn.Module], type[torch.nn.Module]] = {
    torch.nn.LSTM: modules.FusedLSTM,
    torch.nn.GRU: modules.FusedGRU,
    torch.nn.RNN: modules.FusedRNN,
    torch.nn.LSTMCell: modules.FusedLSTMCell,
    torch.nn.GRUCell: modules.FusedGRUCell,
    torch.nn.RNNCell: modules.FusedRNNCell,
}
_PLAIN = {fused: plain for plain, fused in FUSED.items()}

_log = logging.getLogger(__name__)


def fuse(model: Model, backend: str = "auto") -> Model:
    """Make every recurrent layer and cell of torch.nn in `model` a fused one, in place.

    The modules stay the same objects with the same parameters, buffers, hooks and parametrizations, so
    optimizers and other references to them stay valid; `model` itself may be one of them. A subclass of, say,
    `torch.nn.LSTM` is left alone, since its `forward` may be its own; what is left alone is logged at level
    INFO.

    Args:
        model: Any module.
        backend: As for `FusedLSTM`; also set on layers that are fused already.

    Returns:
        `model`.

    Raises:
        ValueError: An unknown `backend`.

    Example:
        >>> model = seqkernels.fuse(torch.nn.Sequential(torch.nn.LSTM(8, 16)))
        >>> type(model[0]).__name__
        'FusedLSTM'
    """
    dispatch.check_backend(backend)
    for name, module in model.named_modules():
        kind = parametrize.type_before_parametrizations(module)
        if kind in FUSED:
            _change_class(module, FUSED[kind])
            compat.forget_weights(module)
        if isinstance(module, modules._Fused):
            module.backend = backend
        elif isinstance(module, (torch.nn.RNNBase, torch.nn.modules.rnn.RNNCellBase)):
            _log.info(
                "%s is left alone: %s is not a class of torch.nn itself", name or "the model", kind.__name__
            )
    return model


def unfuse(model: Model) -> Model:
    """Make every fused layer and cell in `model` one of torch.nn again, in place: undoes `fuse`.

    Example:
        >>> model = seqkernels.unfuse(torch.nn.Sequential(seqkernels.FusedLSTM(8, 16)))
        >>> type(model[0]).__name__
        'LSTM'
    """
    for module in model.modules():
        kind = parametrize.type_before_parametrizations(module)
        if kind in _PLAIN:
            _change_class(module, _PLAIN[kind])
            module.__dict__.pop("_backend", None)
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
