"""The calls of recurrent layers while a program runs, and the table of them.

Global hooks of torch.nn see every call of a module. Nothing of the modules changes, so copies and checkpoints
that the program makes are what they would be. What is not seen: code that torch.compile or torch.jit has
compiled, other processes, and a `forward` that is called by itself.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.nn.utils import parametrize
from torch.nn.utils.rnn import PackedSequence

from . import _dynamo, _fused
from . import _torch_compat as compat
from .frozen import Frozen
from .out_of_reach import kind_of, outermost, why_out_of_reach
from .plan import Explanation, Recurrent, arguments, explain

__all__ = ["Calls", "Enough", "Layer", "Row"]


class Enough(BaseException):
    """Ends a program after as many calls as were asked for; no `except Exception` of its keeps it."""


@dataclass(eq=False)
class Layer:
    """A recurrent layer by its place: of models of one class, those in the same place are one.

    Attributes:
        root: The name of the class of the outermost module that was called.
        path: Its path in that; empty where the layer itself was called.
        shown: Its class and sizes.
        inside: What it is inside of, that hides its calls: "torch.compile", "torch.jit" or nothing.
        calls: How many were seen.
    """

    root: str
    path: str
    shown: str
    inside: str = ""
    calls: int = 0


@dataclass(eq=False)
class Row:
    """The calls of a layer that are explained alike.

    Attributes:
        layer: Which.
        ran: "torch.nn", where it is not fused; "itself", where it computes by itself; else "".
        explanation: What runs; for a layer that is not fused, what would run if it were.
        dtype, device: Of the input.
        packed: Whether the input is a PackedSequence.
        calls, seconds: How many, and for how long they ran forward.
        least, most: The sizes of the inputs, dimension by dimension; empty where not all have as many.
    """

    layer: Layer
    ran: str
    explanation: Explanation
    dtype: torch.dtype
    device: torch.device
    packed: bool
    calls: int = 0
    seconds: float = 0.0
    least: tuple[int, ...] | None = None
    most: tuple[int, ...] = ()

    @property
    def fuse_helps(self) -> bool:
        """Whether `seqkernels.fuse` would have a kernel run it."""
        return self.ran == "torch.nn" and self.explanation.backend == "native"

    def add(self, sizes: tuple[int, ...], seconds: float) -> None:
        """Count a call."""
        self.calls += 1
        self.layer.calls += 1
        self.seconds += seconds
        if self.least is None or len(sizes) != len(self.least):
            self.least = self.most = sizes if self.least is None else ()
        self.least = tuple(map(min, self.least, sizes))
        self.most = tuple(map(max, self.most, sizes))


@dataclass
class _PerThread(threading.local):
    """The modules whose forward is running, outermost first, with the times at which layers began."""

    running: list[tuple[torch.nn.Module, float]] = field(default_factory=list)


class Calls:
    """Records every call of a recurrent layer inside of `with calls.recorded():`.

    Args:
        limit: After so many calls, `Enough` is raised; never if None.

    Attributes:
        rows: What was called, in the order of first calls.
        layers: Those of the models that were called, whether they were called themselves or not.
        total: How many calls were seen.
        traced: The names of the classes of layers that torch.compile has made part of a graph.
        forks: How many processes were forked, whose calls are not seen.
        seconds: How long all of it took, this recording left out.
    """

    def __init__(self, limit: int | None = None) -> None:
        self.limit = limit
        self.rows: list[Row] = []
        self.layers: dict[tuple[str, str, str], Layer] = {}
        self.total = 0
        self.traced: list[str] = []
        self.forks = 0
        self.seconds = 0.0
        self._own_seconds = 0.0
        self._main_knows = False
        self._lock = threading.RLock()
        self._thread = _PerThread()
        self._reasons: weakref.WeakKeyDictionary[torch.nn.Module, str | None] = weakref.WeakKeyDictionary()
        self._layer_of: weakref.WeakKeyDictionary[torch.nn.Module, Layer] = weakref.WeakKeyDictionary()
        self._rows_of: weakref.WeakKeyDictionary[torch.nn.Module, dict[Any, Row]] = (
            weakref.WeakKeyDictionary()
        )
        self._roots: weakref.WeakSet[torch.nn.Module] = weakref.WeakSet()

    @contextlib.contextmanager
    def recorded(self) -> Iterator[None]:
        """While this is open, calls are recorded; in a forked process they are not."""
        handles = self._register()
        here = os.getpid()

        def stop() -> None:
            for handle in handles:
                handle.remove()

        def count_fork() -> None:
            self.forks += bool(handles)

        os.register_at_fork(after_in_parent=count_fork, after_in_child=stop)
        of_threads = threading.excepthook
        threading.excepthook = lambda args: None if args.exc_type is Enough else of_threads(args)
        start = time.perf_counter()
        try:
            yield
        finally:
            if os.getpid() == here:
                self.seconds = time.perf_counter() - start - self._own_seconds
                stop()
            handles.clear()
            threading.excepthook = of_threads

    def _register(self) -> list[Any]:
        def note(name: str) -> None:
            self.traced.append(name)

        begin, end = _unseen_by_dynamo(self._begin), _unseen_by_dynamo(self._end)

        # Dynamo traces both as part of the module that is called, and finds nothing in them for a graph.
        def before(module: torch.nn.Module, args: Any) -> None:
            if is_compiling():
                if isinstance(module, Recurrent):
                    note(type(module).__name__)
                return
            begin(module)

        def after(module: torch.nn.Module, args: Any, kwargs: Any, result: Any) -> None:
            if not is_compiling():
                end(module, args, kwargs)

        compat.evaluated_by_dynamo(note)
        _dynamo.let_dynamo_inline(before)
        _dynamo.let_dynamo_inline(after)
        return [
            register_module_forward_pre_hook(before),
            register_module_forward_hook(after, with_kwargs=True),
        ]

    def _begin(self, module: torch.nn.Module) -> None:
        running = self._thread.running
        start = 0.0
        if not running and module not in self._roots:
            with self._lock:
                self._add_layers(module)
        if self._why_recurrent(module) is not None:
            self._check_limit()
            _wait_for(module)
            start = time.perf_counter()
        running.append((module, start))

    def _end(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        now = time.perf_counter()
        running = self._thread.running
        place = next((n for n in range(len(running) - 1, -1, -1) if running[n][0] is module), None)
        if place is None:
            return
        if running[place][1]:
            if _wait_for(module):
                now = time.perf_counter()
            with self._lock:
                self._add_call(module, args, kwargs, now - running[place][1])
                self._own_seconds += time.perf_counter() - now
        del running[place:]  # and with it what is above, where a forward has raised
        self._check_limit()

    def _check_limit(self) -> None:
        if self.limit is None or self.total < self.limit:
            return
        with self._lock:
            tell_main, self._main_knows = not self._main_knows, True
        if tell_main and threading.current_thread() is not threading.main_thread():
            os.kill(os.getpid(), signal.SIGINT)  # which Python handles in the main thread
        raise Enough

    def _why_recurrent(self, module: torch.nn.Module) -> str | None:
        """None where a module is not recurrent; else why it is out of reach for `fuse`, or nothing."""
        try:
            return self._reasons[module]
        except KeyError:
            reason = why_out_of_reach(module)
            is_recurrent = bool(reason) or isinstance(module, (*Recurrent, Frozen))
            return self._reasons.setdefault(module, reason if is_recurrent else None)

    def _add_layers(self, root: torch.nn.Module) -> None:
        """All recurrent layers of a module that is called for the first time."""
        self._roots.add(root)
        hidden: dict[str, str] = {}
        for path, module, _ in outermost(root.named_modules()):
            inside = next((what for prefix, what in hidden.items() if path.startswith(prefix)), "")
            if not inside and (compat.is_compiled(module) or isinstance(module, torch.jit.ScriptModule)):
                what = "torch.compile" if compat.is_compiled(module) else "torch.jit"
                hidden[f"{path}." if path else ""] = inside = what
            if self._why_recurrent(module) is not None:
                key = type(root).__name__, path, _shown(module)
                self._layer_of[module] = self.layers.setdefault(key, Layer(*key, inside))

    def _layer(self, module: torch.nn.Module) -> Layer:
        """That of a module, which may have become part of a model after this was first called."""
        if module not in self._layer_of:
            for root, _ in self._thread.running:
                path = next((name for name, m in root.named_modules() if m is module), None)
                if path is not None:
                    key = type(root).__name__, path, _shown(module)
                    self._layer_of[module] = self.layers.setdefault(key, Layer(*key))
                    break
        return self._layer_of[module]

    def _add_call(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], seconds: float) -> None:
        x, hx, given = arguments(args, kwargs)
        data = x.data if isinstance(x, PackedSequence) else x
        if not isinstance(data, Tensor) or torch.jit.is_tracing():
            return
        self.total += 1
        rows = self._rows_of.setdefault(module, {})
        signature = _signature(module, x, hx)
        row = None if given else rows.get(signature)
        if row is None:
            row = rows[signature] = self._row(module, x, data, hx, given)
        row.add(tuple(data.shape), seconds)

    def _row(self, module: Any, x: Any, data: Tensor, hx: Any, given: dict[str, Any]) -> Row:
        ran, reason = "", self._why_recurrent(module)
        if reason:
            ran, found = "itself", Explanation("torch", f"the forward of {kind_of(module)}", [reason])
        else:
            if not isinstance(module, (Frozen, _fused._Fused)):
                ran = "torch.nn"
            try:
                found = explain(module, x, hx, **given)
            except Exception as error:  # what is only looked at must not fail
                found = Explanation("none", "not explained", [f"{type(error).__name__}: {error}"])
            if found.backend == "torch" and found.kernel.startswith("the forward of "):
                ran = "itself"
        layer = self._layer(module)
        packed = isinstance(x, PackedSequence)
        new = Row(layer, ran, found, data.dtype, data.device, packed)
        for row in self.rows:
            if all(getattr(row, name) == getattr(new, name) for name in _ALIKE):
                return row
        self.rows.append(new)
        return new


def _unseen_by_dynamo(function: Callable[..., Any]) -> Callable[..., Any]:
    """`torch.compiler.disable` of a function, which is itself until something has imported Dynamo."""
    disabled: Any = None

    def call(*args: Any) -> Any:
        nonlocal disabled
        if disabled is None and _dynamo.dynamo_is_imported():
            disabled = torch.compiler.disable(function)
        return (disabled or function)(*args)

    _dynamo.let_dynamo_inline(call)
    return call


_ALIKE = ("layer", "ran", "explanation", "dtype", "device", "packed")


def _signature(module: Any, x: Any, hx: Any) -> Any:
    """All that an explanation depends on, but what `explain` is told beside x and hx."""
    data, sizes = x, None
    if isinstance(x, PackedSequence):
        data, sizes = x.data, (len(x.batch_sizes), int(x.batch_sizes[0]))
    states = hx if isinstance(hx, (tuple, list)) else () if hx is None else (hx,)
    weight = next(iter(vars(module)["_parameters"].values()), None)
    autocast = None
    if compat.is_any_autocast_enabled():
        autocast = [(torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in ("cpu", "cuda")]
    return (
        *(type(module), module.training, vars(module).get("_backend"), str(vars(module).get("_options"))),
        *(torch.is_grad_enabled(), str(autocast), compat.transforms_active()),
        *(data.shape, sizes, data.dtype, data.device, data.layout),
        *((s.dtype, s.device, s.layout) for s in states if isinstance(s, Tensor)),
        *(() if weight is None else (weight.dtype, weight.device)),
    )


def _shown(module: torch.nn.Module) -> str:
    if isinstance(module, torch.jit.ScriptModule):
        return kind_of(module)
    name = parametrize.type_before_parametrizations(module).__name__
    if why_out_of_reach(module):  # classes of torch.ao are named as torch.nn's, but their own repr
        name = repr(module).partition("(")[0]
    shown = module.extra_repr()
    return f"{name}({shown})" if shown else name


def _wait_for(module: torch.nn.Module) -> bool:
    """Wait for the GPU that a module is on, so that times are those of its work."""
    weight = next(module.parameters(recurse=False), None)
    if weight is None or not weight.is_cuda or torch.cuda.is_current_stream_capturing():
        return False
    torch.cuda.synchronize(weight.device)
    return True
