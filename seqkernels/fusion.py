"""Turn the recurrent layers of an existing model into fused ones, and back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Literal, TypeVar, overload

import torch
from torch.nn.utils import parametrize

from . import _fused, _tools, dispatch
from . import _torch_compat as compat
from ._options import check_bool
from .frozen import Frozen
from .fusion_report import Change, FusionReport, LeftAlone, told
from .out_of_reach import kind_of, outermost
from .regularization import check_probability, zoneout_pair
from .subclasses import FUSED, fused_class, plain_class, why_not_fused

__all__ = ["FUSED", "FusionReport", "fuse", "unfuse"]

# Of layers, those that leave results as many as they are.
OPTIONS = ("recurrent_dropout", "zoneout", "weight_dropout", "recompute")
RECURRENT = (torch.nn.RNNBase, torch.nn.modules.rnn.RNNCellBase)
Model = TypeVar("Model", bound=torch.nn.Module)
Done = tuple[
    FusionReport, list[tuple[type, LeftAlone]]
]  # the report; of what was left alone, the classes too


@overload
def fuse(model: Model, backend: str = "auto", *, report: Literal[False] = False, **options: Any) -> Model: ...
@overload
def fuse(
    model: torch.nn.Module, backend: str = "auto", *, report: Literal[True], **options: Any
) -> FusionReport: ...
@overload
def fuse(model: Model, backend: str = "auto", *, report: bool, **options: Any) -> Model | FusionReport: ...
def fuse(model: Any, backend: str = "auto", *, report: bool = False, **options: Any) -> Any:
    """Make every recurrent layer and cell of torch.nn in `model` a fused one, in place.

    The modules stay the same objects with the same parameters, buffers, hooks and parametrizations, so
    optimizers and other references to them stay valid; `model` itself may be one of them. A subclass of, say,
    `torch.nn.LSTM` that leaves the computation to `super().forward` stays a subclass of its own class, and
    becomes one of `FusedLSTM` too. Layers inside of DataParallel, DistributedDataParallel and what
    `torch.compile` returns are fused as well. A function that torch.compile has met with torch.nn's layer
    inside it compiles no more, until `torch.compiler.reset()`: fuse before the first call.

    What is left alone: a subclass that computes by itself, and what torch.jit, torch.export or
    torch.ao.quantization have made of a layer. The logger "seqkernels" names it at level WARNING, for each
    class and reason once in a process, and at level INFO what was fused.

    Args:
        model: Any module.
        backend: As for `FusedLSTM`; also set on layers that are fused already.
        report: Whether to return what was done, instead of `model`.
        **options: Likewise `recurrent_dropout`, `zoneout`, `weight_dropout` or `recompute`; of these, Cells
            have zoneout alone, and layers without c the first one of a pair.

    Returns:
        `model`; with `report=True` a `FusionReport`: what was fused, what was so already, and what was left
        alone for which reason, by paths in the model.

    Raises:
        ValueError: An unknown `backend`, or what is no probability; `model` is as it was then.
        TypeError: A `model` that is no module, an option that there is not, or what is no number.

    Example:
        >>> model = seqkernels.fuse(torch.nn.Sequential(torch.nn.LSTM(8, 16)))
        >>> type(model[0]).__name__
        'FusedLSTM'
        >>> print(seqkernels.fuse(torch.nn.Sequential(model[0], torch.nn.GRUCell(16, 16)), report=True))
        fused 1 of 2 recurrent layers, 1 was already
          1: GRUCell -> FusedGRUCell
        fused already
          0: FusedLSTM
    """
    _check(model, "fuse", report)
    done, left_alone = fuse_modules(model.named_modules(), backend, **options)
    done.notes.extend(_notes(model, done))
    told(done, left_alone)
    return done if report else model


def fuse_modules(named: Iterable[tuple[str, torch.nn.Module]], backend: str, **options: Any) -> Done:
    """`fuse`, of modules by their names and without those inside of them.

    Returns:
        The report, and of what was left alone the classes.
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
    report = FusionReport("fuse")
    classes: list[tuple[type, LeftAlone]] = []
    for path, module, reason in outermost(named):
        kind = parametrize.type_before_parametrizations(module)
        if isinstance(module, Frozen):
            report.already[path] = kind.__name__
            continue
        if reason or (isinstance(module, RECURRENT) and not isinstance(module, _fused._Fused)):
            if reason := reason or why_not_fused(module):
                report.left_alone[path] = LeftAlone(kind_of(module), reason)
                classes.append((kind, report.left_alone[path]))
                continue
            _change_class(module, fused_class(kind))
            report.changed[path] = Change(kind.__name__, _name_of_class(module))
            compat.forget_weights(module)
            if not module.__dict__.keys().isdisjoint(_fused.OVERRIDABLE):
                module.__dict__["_fastpath_supported"] = False
        elif isinstance(module, _fused._Fused):
            report.already[path] = kind.__name__
        if isinstance(module, _fused._Fused):
            module.__dict__.setdefault("_options", {})
            module.backend = backend
            for name, value in options.items():
                if hasattr(type(module), name):
                    is_pair = isinstance(value, (tuple, list)) and not module._has_cell_state
                    setattr(module, name, value[0] if is_pair else value)
    return report, classes


@overload
def unfuse(model: Model, *, report: Literal[False] = False) -> Model: ...
@overload
def unfuse(model: torch.nn.Module, *, report: Literal[True]) -> FusionReport: ...
@overload
def unfuse(model: Model, *, report: bool) -> Model | FusionReport: ...
def unfuse(model: Any, *, report: bool = False) -> Any:
    """Make every fused layer and cell in `model` one of torch.nn again, in place: undoes `fuse`.

    What torch.nn would compute otherwise, such as a GRU with `reset_after=False`, is left alone, and so are
    classes that were derived from fused ones. The logger "seqkernels" names them at level WARNING, for each
    class and reason once in a process, and at level INFO what became one of torch.nn.

    Args:
        model: Any module.
        report: Whether to return what was done, instead of `model`.

    Returns:
        `model`; with `report=True` a `FusionReport`.

    Raises:
        TypeError: A `model` that is no module, or a `report` that is no bool.

    Example:
        >>> model = seqkernels.unfuse(torch.nn.Sequential(seqkernels.FusedLSTM(8, 16)))
        >>> type(model[0]).__name__
        'LSTM'
    """
    _check(model, "unfuse", report)
    done, left_alone = unfuse_modules(model.named_modules())
    told(done, left_alone)
    return done if report else model


def unfuse_modules(
    named: Iterable[tuple[str, torch.nn.Module]],
) -> Done:
    """`unfuse`, as `fuse_modules` is `fuse`."""
    report = FusionReport("unfuse")
    classes: list[tuple[type, LeftAlone]] = []
    for path, module in named:
        kind = parametrize.type_before_parametrizations(module)
        plain, reason = plain_class(kind), ""
        if isinstance(module, Frozen):
            reason = "torch.nn has no snapshots with packed weights"
        elif not isinstance(module, _fused._Fused):
            if isinstance(module, RECURRENT):
                report.already[path] = kind.__name__
            continue
        elif plain is None:
            reason = f"its class derives from {_fused_base(kind).__name__}, and was never one of torch.nn's"
        elif option := module._beyond_torch:
            reason = f"torch.nn has no {option}"
        if reason:
            report.left_alone[path] = LeftAlone(kind.__name__, reason)
            classes.append((kind, report.left_alone[path]))
        elif plain is not None:
            _change_class(module, plain)
            report.changed[path] = Change(kind.__name__, plain.__name__)
            _tools.forget_options(module)
            if isinstance(module, torch.nn.RNNBase):
                compat.refresh_weights(module)
    return report, classes


def merged(action: str, parts: Iterable[Done]) -> Done:
    """What `fuse_modules` or `unfuse_modules` returned for several parts of a model, as one."""
    whole, classes = FusionReport(action), []
    for part, left_alone in parts:
        whole.changed.update(part.changed)
        whole.already.update(part.already)
        whole.left_alone.update(part.left_alone)
        classes += left_alone
    return whole, classes


def _notes(model: torch.nn.Module, done: FusionReport) -> Iterator[str]:
    for path, module in model.named_modules():
        inside = f"{path}." if path else ""
        if compat.is_compiled(module) and any(p == path or p.startswith(inside) for p in done.changed):
            yield (
                f"{path or 'the model itself'} is compiled; if it was called before, torch.compile leaves "
                "what is around its layers uncompiled until torch.compiler.reset()"
            )


def _check(model: Any, function: str, report: Any) -> None:
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"{function} takes a torch.nn.Module as model, got {type(model).__name__}")
    check_bool("report", report)


def _name_of_class(module: torch.nn.Module) -> str:
    return parametrize.type_before_parametrizations(module).__name__


def _fused_base(cls: type) -> type:
    """The class of seqkernels that `cls` derives from."""
    return next(base for base in cls.__mro__ if base in FUSED.values())


def _change_class(module: torch.nn.Module, cls: type[torch.nn.Module]) -> None:
    """Make `module` an instance of `cls`, with the properties of its parametrizations if it has some."""
    if parametrize.is_parametrized(module):
        # Parametrized modules have a class of their own (shared with their copies) that holds one property
        # for each parametrized tensor: make another one like it.
        own = {k: v for k, v in vars(type(module)).items() if k not in ("__dict__", "__weakref__", "__doc__")}
        cls = type(f"Parametrized{cls.__name__}", (cls,), own)
    module.__class__ = cls
