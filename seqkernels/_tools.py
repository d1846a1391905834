"""What other tools of torch meet in a layer or Cell.

Objects that stand for tensors, gradients of each sample, torch.fx, torch.jit.script, torch.ao.quantization.
"""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn.utils import parametrize
from torch.nn.utils.rnn import PackedSequence

from . import _torch_compat as compat


def is_for_torch(module: torch.nn.Module, input: Any, hx: Any) -> bool:
    """Whether only torch's own forward knows what to do with these arguments, or with the weights.

    That are objects with a `__torch_function__` which are no tensors, what torch.fx traces with, and weights
    that give each sample a gradient of its own. Tensors of a subclass are for the kernels.
    """
    if type(input) is not Tensor and not isinstance(input, (Tensor, PackedSequence)):
        return True
    for state in hx if isinstance(hx, (tuple, list)) else (hx,):
        if type(state) is not Tensor and state is not None and not isinstance(state, Tensor):
            return True
    for weight in vars(module)["_parameters"].values():
        if type(weight) is not Parameter and compat.is_expanded_weight(weight):
            return True
    return False


def call_in_graph(module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
    """While torch.fx traces: a call of the whole module, as torch's own layers are traced; else None."""
    values = [v for a in (*args, *kwargs.values()) for v in (a if isinstance(a, (tuple, list)) else (a,))]
    proxy = next((value for value in values if isinstance(value, torch.fx.Proxy)), None)
    if proxy is None:
        return None
    tracer: Any = proxy.tracer
    return tracer.create_proxy("call_module", tracer.path_of_module(module), args, kwargs)


def forget_options(module: torch.nn.Module) -> None:
    """Takes from a module that was fused what it has beyond torch.nn's."""
    for name in ("_backend", "_fastpath_supported", "_forget_bias", "_options"):
        module.__dict__.pop(name, None)


def for_scripting(module: torch.nn.Module, like: type[torch.nn.Module]) -> torch.nn.Module:
    """What torch.jit.script compiles in place of a fused module: torch.nn's own, with the same parameters.

    torch puts it into the model that it is called with, where nothing says afterwards that it is done.
    """
    kind: Any = type(module)
    if option := module._beyond_torch:
        raise RuntimeError(
            f"{kind.__name__} cannot be scripted with {option}: torch.jit.script compiles "
            f"torch.nn.{like.__name__} in its place, which does not know it"
        )
    if parametrize.is_parametrized(module):
        raise RuntimeError(
            f"{kind.__name__} cannot be scripted: torch.jit.script knows no parametrizations, which "
            "torch.nn.utils.parametrize.remove_parametrizations takes off"
        )
    warnings.warn(
        f"torch.jit.script compiles torch.nn.{like.__name__} in place of {kind.__name__}, and leaves it "
        "in the model that it was part of: seqkernels.fuse(model) makes it fused again",
        stacklevel=3,
    )
    plain = copy.copy(module)
    plain.__class__ = like
    forget_options(plain)
    if isinstance(plain, torch.nn.RNNBase):
        compat.refresh_weights(plain)
    return plain


class QConfig:
    """The attribute that torch.ao.quantization sets, in vain: what it then replaces is torch.nn's own."""

    def __get__(self, module: torch.nn.Module | None, owner: type) -> Any:
        if module is None:
            return self
        if "qconfig" in vars(module):
            return vars(module)["qconfig"]
        raise AttributeError(f"{owner.__name__!r} object has no attribute 'qconfig'")

    def __set__(self, module: torch.nn.Module, value: Any) -> None:
        warnings.warn(
            f"torch.ao.quantization leaves {type(module).__name__} as it is: call seqkernels.unfuse(model) "
            "before, if it is to be quantized",
            stacklevel=3,
        )
        vars(module)["qconfig"] = value

    def __delete__(self, module: torch.nn.Module) -> None:
        del vars(module)["qconfig"]
