"""Weights that are cast once for a region of autocast, as torch casts them for its own ops.

torch keeps the casts of float32 leaves that require gradients until the outermost autocast of a thread ends
or `torch.clear_autocast_cache` is called. What it keeps cannot be read from Python, so casts are kept here
too, by the same rule and for as long. How long that is, torch's own cache tells: it is made to keep the cast
of one number, to which a token is tied, and drops that when it drops all.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling

from . import _torch_compat as compat
from ._ops import cast

__all__ = ["cast_weights"]

SMALL = 1 << 14  # numbers that are cast sooner than it is found out how long their cast may be kept


def cast_weights(weights: Sequence[Tensor], device_type: str, dtype: torch.dtype) -> list[Tensor]:
    """The weights in the dtype of autocast; large ones are cast once for a region and an optimizer step."""
    if is_compiling() or not torch.is_autocast_cache_enabled() or not compat.nobody_transforms():
        return [cast(weight, device_type, dtype) for weight in weights]
    casts = _region.casts_of(device_type)
    if casts is None:
        large = [w for w in weights if _is_kept(w, device_type) and w.numel() >= SMALL]
        casts = _region.begin(large[0].device) if large else {}
    mode = dtype, torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    return [_cast(weight, device_type, mode, casts) for weight in weights]


def _cast(weight: Any, device_type: str, mode: tuple[Any, ...], casts: dict[Any, Any]) -> Any:
    key = id(weight), mode
    found = casts.get(key)
    if found is not None and found[0]() is weight and found[1] == _state(weight):
        return found[2]
    result = cast(weight, device_type, mode[0])
    if _is_kept(weight, device_type):
        casts[key] = weakref.ref(weight), _state(weight), result
    return result


def _state(weight: Tensor) -> tuple[int, int]:
    """Which changes with the weight."""
    return weight._version, weight.data_ptr()


def _is_kept(weight: Any, device_type: str) -> bool:
    """torch's rule, of parameters."""
    return (
        type(weight) is torch.nn.Parameter
        and weight.dtype is torch.float32
        and weight.requires_grad
        and weight.is_leaf
        and weight.device.type == device_type
        and not weight.is_inference()
    )


class _Region(threading.local):
    """By type of device, the casts of a thread, and a token that lives as long as they are good."""

    def __init__(self) -> None:
        self.of_device: dict[str, tuple[weakref.ref[Any], dict[Any, Any]]] = {}

    def casts_of(self, device_type: str) -> dict[Any, Any] | None:
        token, casts = self.of_device.get(device_type, (None, None))
        return casts if token is not None and token() is not None else None

    def begin(self, device: torch.device) -> dict[Any, Any]:
        casts: dict[Any, Any] = {}
        token = _Token()
        self.of_device[device.type] = weakref.ref(token, lambda _: casts.clear()), casts
        with torch.inference_mode(False), torch.enable_grad():
            number = torch.ones(1, 1, device=device, requires_grad=True)
            # Autocast casts the number, and keeps the cast with its history.
            product: Any = torch.mm(number, number)
            node = product.grad_fn.next_functions[0][0]
            if node is not None:
                node.register_hook(token)
        return casts


class _Token:
    """The hook of a node of autograd; it changes no gradient."""

    def __call__(self, *grads: Any) -> None:
        return None


_region = _Region()
