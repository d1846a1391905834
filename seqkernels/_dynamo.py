"""How Dynamo, which traces for torch.compile, is told of fused layers. What is private in it is named here.

`_torch_compat` has the versions of torch that this was checked on, and all else that is private in torch.
"""

from __future__ import annotations

import functools
import inspect
import sys
import warnings
from collections.abc import Callable
from types import CodeType
from typing import Any

import torch

from ._torch_compat import CHECKED, look_up

_traceable: list[type] = []
_skipped: list[CodeType] = []


def let_dynamo_trace(*classes: type) -> None:
    """Let Dynamo trace instances of `classes`, subclasses of torch.nn's layers, and leave other code alone.

    Dynamo refuses every instance of torch.nn.LSTM, GRU and RNN unless `allow_rnn` is set for the whole
    process. Fused layers are ops that it can trace, so they, and they alone, are let through, at the one
    place where Dynamo asks. `torch._dynamo` takes long to import, so this waits until it compiles something.
    """
    _traceable.extend(classes)


def let_dynamo_skip(function: Callable[..., Any], why: str) -> None:
    """What torch.compiler.disable does, but without a wrapper around every call."""
    function._torchdynamo_disable = True  # type: ignore[attr-defined]
    function._torchdynamo_disable_msg = why  # type: ignore[attr-defined]
    _skipped.append(function.__code__)


def let_dynamo_inline(function: Callable[..., Any]) -> None:
    """Leave calls of a function alone that Dynamo meets between two graphs, where it would compile each."""
    _skipped.append(function.__code__)
    if dynamo_is_imported():  # and may be prepared already
        _skip_code(function.__code__)


def dynamo_is_imported() -> bool:
    return "torch._dynamo" in sys.modules


def _before_first_compilation(action: Callable[[], None]) -> None:
    context = look_up("_guards.CompileContext", None)
    if context is None:
        return
    original = context.__init__

    @functools.wraps(original)
    def begin(self: Any, *args: Any, **kwargs: Any) -> None:
        if context.__init__ is begin:
            context.__init__ = original
            action()
        original(self, *args, **kwargs)

    context.__init__ = begin


def _skip_code(code: CodeType) -> None:
    from torch._dynamo import eval_frame

    # Without it Dynamo tries to compile the frame, and warns.
    getattr(eval_frame, "skip_code", lambda _: None)(code)


def _prepare_dynamo() -> None:
    from torch._dynamo.variables import builder

    for code in _skipped:
        _skip_code(code)
    _inline_properties()
    try:
        wrap_module = builder.VariableBuilder.wrap_module
        allow: Callable[[], Any] = functools.partial(builder.config.patch, allow_rnn=True)
    except AttributeError:
        warnings.warn(
            f"torch.compile of this torch, {torch.__version__}, works in another way than in "
            f"{', '.join(CHECKED)}: it breaks the graph at fused layers",
            stacklevel=2,
        )
        return

    @functools.wraps(wrap_module)
    def wrap(self: Any, value: Any) -> Any:
        if isinstance(value, tuple(_traceable)):
            with allow():
                return wrap_module(self, value)  # type: ignore[arg-type]
        return wrap_module(self, value)

    builder.VariableBuilder.wrap_module = wrap  # type: ignore[method-assign]


def _inline_properties() -> None:
    """Properties of NamedTuples, such as those of LayerSpec, which the Dynamo of torch 2.10 does not know."""
    from torch._dynamo import variables

    tuples: Any = getattr(variables, "NamedTupleVariable", None)
    look = getattr(tuples, "var_getattr", None)
    if look is None:
        return

    @functools.wraps(look)
    def var_getattr(self: Any, tx: Any, name: str) -> Any:
        try:
            return look(self, tx, name)
        except NotImplementedError:
            own = inspect.getattr_static(self.python_type(), name, None)
            if not isinstance(own, property) or own.fget is None:
                raise
            return variables.UserMethodVariable(own.fget, self).call_function(tx, [], {})

    tuples.var_getattr = var_getattr


_before_first_compilation(_prepare_dynamo)
