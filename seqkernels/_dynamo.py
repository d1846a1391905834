"""Lets torch.compile trace the fused layers.

Dynamo refuses every instance of torch.nn.LSTM, GRU and RNN, subclasses included, unless `allow_rnn` is set
for the whole process. The fused layers are ops it can trace, so they, and they alone, are let through, at the
one place where Dynamo asks. `torch._dynamo` takes long to import, so the change is made when something else
imports it.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.util
import sys
from types import ModuleType
from typing import Any

_BUILDER = "torch._dynamo.variables.builder"


def admit(*classes: type) -> None:
    """Let Dynamo trace instances of `classes`, in this process, whenever it is or was imported."""
    builder = sys.modules.get(_BUILDER)
    if builder is not None:
        _admit(builder, classes)
    else:
        sys.meta_path.insert(0, _AfterImport(classes))


def _admit(builder: ModuleType, classes: tuple[type, ...]) -> None:
    try:
        wrap_module = builder.VariableBuilder.wrap_module
        allow = functools.partial(builder.config.patch, allow_rnn=True)
    except AttributeError:  # a torch that does this differently; there, the layers are a graph break
        return

    @functools.wraps(wrap_module)
    def wrap(self: Any, value: Any) -> Any:
        if isinstance(value, classes):
            with allow():
                return wrap_module(self, value)
        return wrap_module(self, value)

    builder.VariableBuilder.wrap_module = wrap


class _AfterImport(importlib.abc.MetaPathFinder):
    """Waits for the import of `_BUILDER`, lets it happen, admits the classes, and is gone."""

    def __init__(self, classes: tuple[type, ...]) -> None:
        self.classes = classes

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name != _BUILDER:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_admit(module: ModuleType) -> None:
            execute(module)
            _admit(module, self.classes)

        spec.loader.exec_module = execute_and_admit  # type: ignore[method-assign]
        return spec
