"""Recurrent layers that are of no class which `fuse` could change, and why.

torch.jit, torch.export and torch.ao.quantization replace a layer by something else, which has no forward of
Python to be replaced, or no weights of floats. Such a layer is known by the names of its parameters, which
stay those of torch.nn, or by where its class comes from.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

__all__ = ["kind_of", "outermost", "why_out_of_reach"]

# The parameters that every layer or every Cell of torch.nn has.
_WEIGHTS = ({"weight_ih_l0", "weight_hh_l0"}, {"weight_ih", "weight_hh"})
_NAMES = {"LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell"}


def why_out_of_reach(module: torch.nn.Module) -> str:
    """Why a recurrent layer that is of no class of torch.nn, or of none that runs, cannot be fused.

    Empty for everything else, what is not recurrent included.
    """
    for cls in type(module).__mro__:
        if cls.__name__ in _NAMES and cls.__module__.startswith("torch.ao.nn."):
            package = ".".join(cls.__module__.split(".")[:4])
            return f"it is one of {package}, for quantization, and fused layers compute in floats"
    if isinstance(module, torch.jit.ScriptModule):
        if _has_weights(module):
            return "torch.jit has compiled it, and runs torch.nn's code (torch.compile takes fused layers)"
    elif type(module) is torch.nn.Module or isinstance(module, torch.fx.GraphModule):
        if _has_weights(module):
            return "torch.export or torch.fx made a graph of its forward: fuse the model before that"
    elif type(module) is torch.nn.RNNBase:
        return "it is an RNNBase, which has no forward"
    return ""


def _has_weights(module: torch.nn.Module) -> bool:
    names = {name for name, _ in module.named_parameters(recurse=False)}
    return any(names >= weights for weights in _WEIGHTS)


def outermost(
    named: Iterable[tuple[str, torch.nn.Module]],
) -> Iterator[tuple[str, torch.nn.Module, str]]:
    """Modules by their paths, each with why it is out of reach, or nothing.

    What is inside of a layer out of reach is left out: some are made of others.
    """
    inside: list[str] = []
    for path, module in named:
        if any(path.startswith(outer) for outer in inside):
            continue
        reason = why_out_of_reach(module)
        if reason:
            inside.append(f"{path}." if path else "")
        yield path, module, reason


def kind_of(module: torch.nn.Module) -> str:
    """The name of the class that a module is of, or was before torch.jit compiled it."""
    return str(getattr(module, "original_name", "") or type(module).__name__)
