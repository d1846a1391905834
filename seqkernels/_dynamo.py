"""Lets torch.compile trace the fused layers, and leave other code alone.

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
from collections.abc import Callable
from types import CodeType, ModuleType
from typing import Any

_BUILDER = "torch._dynamo.variables.builder"
_EVAL_FRAME = "torch._dynamo.eval_frame"


def admit(*classes: type) -> None:
    """Let Dynamo trace instances of `classes`, in this process, whenever it is or was imported."""
    _once_imported(_BUILDER, lambda builder: _admit(builder, classes))


def leave(code: CodeType) -> None:
    """Let Dynamo run frames of `code` as they are, without a try that ends in a warning."""
    # Where a torch does this differently, the try is made.
    _once_imported(_EVAL_FRAME, lambda module: getattr(module, "skip_code", lambda _: None)(code))


def _once_imported(name: str, action: Callable[[ModuleType], None]) -> None:
    module = sys.modules.get(name)
    if module is not None:
        action(module)
    else:
        sys.meta_path.insert(0, _AfterImport(name, action))


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
    """Waits for the import of a module, lets it happen, acts, and is gone."""

    def __init__(self, name: str, action: Callable[[ModuleType], None]) -> None:
        self.name, self.action = name, action

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name != self.name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_act(module: ModuleType) -> None:
            execute(module)
            self.action(module)

        spec.loader.exec_module = execute_and_act  # type: ignore[method-assign]
        return spec
