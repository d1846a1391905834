"""Every private name of torch that this package uses, and what happens where a torch does without it.

All were checked on the versions in `CHECKED`. A name that another torch has moved is replaced by something
slower or by a graph break, never by another result, and a warning says so once. No other file of the package
may name something private of torch; tests/test_torch_compat.py takes each of these away in turn.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad, profiler
from torch.compiler import is_compiling

CHECKED = ("2.10", "2.13", "2.14")

_NOT_BATCHED = "torch.autograd.grad refuses is_grads_batched=True"
# What is private and looked up here, with what is lost without it.
LOSSES = {
    "_C._AutoDispatchBelowAutograd": "calls of the ops take longer",
    "_C._after_autograd_keyset": "calls of the ops that are traced take longer",
    "_C._any_requires_grad": "calls of the ops that are traced take longer",
    "_C._is_any_autocast_enabled": "calls take longer",
    "_C._is_tracing": "calls take longer",
    "_C._len_torch_dispatch_stack": "calls without gradients take longer, and no layer is handed to cuDNN",
    "_C._len_torch_function_stack": "calls without gradients take longer, and no layer is handed to cuDNN",
    "_C._are_functorch_transforms_active": "all runs as plain torch, and nothing frozen runs",
    "_C._functorch.get_interpreter_stack": "all runs as plain torch under torch.func's transforms",
    "autograd.forward_ad._current_level": "all runs as plain torch, and nothing frozen runs",
    "autograd.profiler._is_profiler_enabled": "calls without gradients take longer",
    "_C._dispatch_key_for_device": "ops that are called by themselves know no autocast; modules take longer",
    "_C._ExcludeDispatchKeyGuard": "ops that are called by themselves know no autocast; modules take longer",
    "_C._will_engine_execute_node": "gradients of some inputs alone take as long as those of all",
    "_C._vmapmode_increment_nesting": _NOT_BATCHED,
    "_C._vmapmode_decrement_nesting": _NOT_BATCHED,
    "_C._dispatch_keys": _NOT_BATCHED,
    "_C._parse_dispatch_key": _NOT_BATCHED,
    "_add_batch_dim": _NOT_BATCHED,
    "_remove_batch_dim": _NOT_BATCHED,
    "_cudnn_rnn": "no layer is handed to cuDNN",
    "_cudnn_rnn_flatten_weight": "no layer is handed to cuDNN",
    "_guards.CompileContext": "torch.compile breaks the graph at fused layers",
}


def _lost(path: str) -> None:
    warnings.warn(
        f"this torch, {torch.__version__}, has no torch.{path} (checked on {', '.join(CHECKED)}): "
        f"{LOSSES[path]}",
        stacklevel=3,
    )


def look_up(path: str, otherwise: Any) -> Any:
    try:
        return attrgetter(path)(torch)
    except AttributeError:
        _lost(path)
        return otherwise


# ---------------------------------------------------------------- who watches, derives, transforms

below_autograd = look_up("_C._AutoDispatchBelowAutograd", contextlib.nullcontext)
is_any_autocast_enabled: Callable[[], bool] = look_up(
    "_C._is_any_autocast_enabled",
    lambda: torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"),
)
is_tracing: Callable[[], bool] = look_up("_C._is_tracing", torch.jit.is_tracing)
_dispatch_modes: Callable[[], int] = look_up("_C._len_torch_dispatch_stack", lambda: 1)
_function_modes: Callable[[], int] = look_up("_C._len_torch_function_stack", lambda: 1)
_functorch_is_active: Callable[[], bool] = look_up("_C._are_functorch_transforms_active", lambda: True)
_functorch_interpreters: Callable[[], Any] = look_up("_C._functorch.get_interpreter_stack", lambda: None)
_FORWARD_AD = look_up("autograd.forward_ad._current_level", None) is not None
_CAN_TELL = look_up("autograd.profiler._is_profiler_enabled", None) is not None and _FORWARD_AD


def modes_active() -> int:
    """How many modes of `__torch_dispatch__` and `__torch_function__` see every op."""
    return _dispatch_modes() or _function_modes()


def transforms_active() -> bool:
    """Whether a torch.func transform or forward-mode differentiation is on."""
    return _functorch_is_active() or not _FORWARD_AD or forward_ad._current_level >= 0


def nobody_transforms() -> bool:
    """Whether tensors are what they seem: no transform, no tracing, no mode."""
    return not (is_tracing() or transforms_active() or modes_active())


def transforms_known(*known: str) -> bool:
    """Whether those that are on are all among these: "Vmap", and "Grad", which is reverse mode."""
    if not _FORWARD_AD or forward_ad._current_level >= 0:
        return False
    active = _functorch_interpreters()
    return bool(active) and all(transform.key().name in known for transform in active)


def nobody_watches(but_autocast: bool = False) -> bool:
    """Whether torch's dispatcher would do nothing with an op but pass it on, gradients apart."""
    return _CAN_TELL and not (
        is_tracing()
        or (not but_autocast and is_any_autocast_enabled())
        or _functorch_is_active()
        or forward_ad._current_level >= 0
        or _dispatch_modes()
        or _function_modes()
        or profiler._is_profiler_enabled
    )


def in_onnx_export() -> bool:
    """`torch.onnx.is_in_onnx_export`, of which Dynamo thinks that it is always false."""
    return torch.onnx.is_in_onnx_export()


def has_autocast(device_type: str) -> bool:
    """`torch.amp.is_autocast_available`, which the Dynamo of torch 2.10 does not trace."""
    return torch.amp.is_autocast_available(device_type)


def evaluated_by_dynamo(function: Callable[..., Any]) -> None:
    """Have a function of constants called while Dynamo traces, in place of what code it calls."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]


# Dynamo enters and leaves transforms as the program does, and guards on them.
for _constant in (transforms_active, transforms_known, in_onnx_export, has_autocast):
    evaluated_by_dynamo(_constant)


# ---------------------------------------------------------------- ops

any_requires_grad: Callable[..., bool] = look_up(
    "_C._any_requires_grad", lambda *args: any(t.requires_grad for t in _tensors(args))
)
_after_autograd = look_up("_C._after_autograd_keyset", None)
_dispatch_key_for_device = look_up("_C._dispatch_key_for_device", None)
_exclude_dispatch_key = look_up("_C._ExcludeDispatchKeyGuard", None)


_will_engine_execute_node = look_up("_C._will_engine_execute_node", None)


def wanted_by_engine(ctx: Any, needed: Sequence[bool]) -> list[bool]:
    """Of a node's last inputs, those that need a gradient and get one in the backward pass that is running.

    `autograd.grad(output, x)` wants that of x alone, whatever weights require. Where the engine knows of
    none, as that of torch.distributed.autograd does, it is all that need one.
    """
    if _will_engine_execute_node is None or is_compiling():
        return list(needed)
    nodes = ctx.next_functions[-len(needed) :]
    wanted = [need and _is_wanted(node) for need, (node, _) in zip(needed, nodes, strict=True)]
    return wanted if any(wanted) else list(needed)


def _is_wanted(node: Any) -> bool:
    try:
        return bool(_will_engine_execute_node(node))
    except RuntimeError:  # a leaf that autograd.grad was asked for
        return True


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [t for v in value for t in _tensors(v)] if isinstance(value, (list, tuple)) else []


def below_autograd_of(op: Any, keyset: Any) -> Callable[..., Any]:
    """`op` as its kernel under the dispatcher's Autograd key, called with `keyset`, passes a call on."""
    if _after_autograd is not None:
        return functools.partial(op.redispatch, keyset & _after_autograd)

    def call(*args: Any) -> Any:
        with below_autograd():
            return op(*args)

    return call


def op_name(op: Any) -> str:
    """`lstm` of `torch.ops.seqkernels.lstm.default`."""
    return str(op.name().split("::")[1].split(".")[0])


def argument_names(op: Any) -> list[str]:
    """Of its schema, in order."""
    return [str(argument.name) for argument in op._schema.arguments]


def argument_defaults(op: Any) -> tuple[Any, ...]:
    """Of its schema, in order; None also for an argument that has none."""
    return tuple(argument.default_value for argument in op._schema.arguments)


def register_autocast(
    library: torch.library.Library, op: Any, device_type: str, cast: Callable[[Any, str, torch.dtype], Any]
) -> None:
    """As `torch.library.register_autocast`, but with the dtype that is in force when the op is called."""
    if _dispatch_key_for_device is None or _exclude_dispatch_key is None:
        return
    key_name = "Autocast" + _dispatch_key_for_device(device_type)
    key = getattr(torch._C.DispatchKey, key_name)

    def kernel(*args: Any) -> Any:
        with _exclude_dispatch_key(_autocast_keys(device_type)):
            return op(*cast(args, device_type, torch.get_autocast_dtype(device_type)))

    op.py_impl(key)(kernel)  # for tracing, which dispatches in Python
    library.impl(op_name(op), lambda _, *args: kernel(*args), key_name, with_keyset=True)


@functools.cache
def _autocast_keys(device_type: str) -> Any:
    name = "Autocast" + _dispatch_key_for_device(device_type)
    return torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, name))


def without_autocast(device_type: str) -> Any:
    """A context in which ops are not cast; one that costs less than torch.autocast where that is possible."""
    if _dispatch_key_for_device is None or _exclude_dispatch_key is None or is_compiling():
        return torch.autocast(device_type, enabled=False)
    return _exclude_dispatch_key(_autocast_keys(device_type))


def version_of(tensor: Tensor) -> int:
    """How often a tensor was changed in place."""
    return tensor._version


def check_version(tensor: Tensor, version: int) -> None:
    """Torch's error where a tensor that a derivative reads was changed in place meanwhile."""
    if tensor._version != version:
        raise RuntimeError(
            "one of the variables needed for gradient computation has been modified by an inplace operation: "
            f"[{tensor.type()} {list(tensor.shape)}] is at version {tensor._version}; expected version "
            f"{version} instead"
        )


_begin_batching = look_up("_C._vmapmode_increment_nesting", None)
_end_batching = look_up("_C._vmapmode_decrement_nesting", None)
_keys_of = look_up("_C._dispatch_keys", None)
_parse_dispatch_key = look_up("_C._parse_dispatch_key", None)
_add_batch_dim = look_up("_add_batch_dim", None)
_remove_batch_dim = look_up("_remove_batch_dim", None)


def register_batched_gradients(
    library: torch.library.Library, op: Any, rule: Callable[[int, Sequence[Any], Sequence[Any]], Any]
) -> None:
    """A vmap rule for `torch.autograd.grad(..., is_grads_batched=True)`, whose vmap is not torch.func's.

    `rule` gets the size of the vmapped dimension, where each argument has it, and the arguments; it returns
    the results and, in the same structure, where they have it.
    """
    private = _begin_batching, _end_batching, _keys_of, _parse_dispatch_key, _add_batch_dim, _remove_batch_dim
    if None in private:
        return
    key = _parse_dispatch_key("Batched")

    def kernel(*args: Any) -> Any:
        level = _begin_batching() - 1  # the only way to ask for it
        _end_batching()
        sizes = []

        def exposed(value: Any) -> Any:
            if not isinstance(value, Tensor) or not _keys_of(value).has(key):
                return value
            value = _remove_batch_dim(value, level, 0, 0)
            sizes.append(value.size(0))
            return value

        values = map_nested(exposed, args)
        in_dims = map_nested(lambda value, given: None if value is given else 0, values, args)
        results, out_dims = rule(sizes[0], in_dims, values)
        return map_nested(
            lambda t, dim: t if dim is None else _add_batch_dim(t, dim, level), results, out_dims
        )

    library.impl(op_name(op), kernel, "Batched")


def map_nested(function: Callable[..., Any], *nested: Any) -> Any:
    """`function` of what stands in the same place of lists and tuples."""
    if isinstance(nested[0], (list, tuple)):
        return type(nested[0])([map_nested(function, *values) for values in zip(*nested, strict=True)])
    return function(*nested)


cudnn_rnn = look_up("_cudnn_rnn", None)
cudnn_rnn_flatten_weight = look_up("_cudnn_rnn_flatten_weight", None)


# ---------------------------------------------------------------- modules


def weight_names(module: torch.nn.RNNBase) -> Sequence[str]:
    """Of every layer and direction w_ih, w_hh and, where it has them, b_ih, b_hh, w_hr, norms."""
    return module._flat_weights_names


def add_weights(module: Any, sizes: dict[str, int]) -> None:
    """Give each direction of a layer vectors of these sizes as parameters, in torch's order after its own."""
    like = getattr(module, module._flat_weights_names[0])
    for own in module._all_weights:
        suffix = own[0].removeprefix("weight_ih")
        for name, size in sizes.items():
            own.append(name + suffix)
            values = torch.empty(size, dtype=like.dtype, device=like.device)
            module.register_parameter(own[-1], torch.nn.Parameter(values))
    module._flat_weights_names = [name for own in module._all_weights for name in own]
    for name in module._flat_weights_names:
        module._parameters[name] = module._parameters.pop(name)


def refresh_weights(module: torch.nn.RNNBase) -> None:
    """Make the list that torch.nn's layers keep of their weights anew."""
    module._init_flat_weights()


def forget_weights(module: torch.nn.Module) -> None:
    """Drop that list, of a module that has become one that keeps none."""
    module.__dict__.pop("_flat_weights", None)


def is_expanded_weight(weight: Any) -> bool:
    """Whether this is one of `torch.nn.utils._per_sample_grad`, which few functions of torch take."""
    return type(weight).__name__ == "ExpandedWeight"


def uncompiled(module: torch.nn.Module) -> torch.nn.Module:
    """The module that torch.compile was called with, or `module` itself."""
    return getattr(module, "_orig_mod", module)


def is_compiled(module: torch.nn.Module) -> bool:
    """Whether this is what `torch.compile` returned, or what `module.compile()` was called of."""
    return "_orig_mod" in module._modules or getattr(module, "_compiled_call_impl", None) is not None


# What a subclass of these layers names that works on that list.
LIST_OF_WEIGHTS = {"_flat_weights", "_init_flat_weights", "_update_flat_weights", "_flat_weight_refs"}


class _Checked:
    """The part of a layer that `RNNBase.check_input` reads."""

    def __init__(self, input_size: int, first_weight: Tensor) -> None:
        self.input_size = input_size
        self._flat_weights = (first_weight,)


class WeightsAsAttributes(torch.nn.Module):
    """For a subclass of RNNBase: weights are ordinary attributes, read afresh by every forward.

    torch.nn keeps a list of its weights beside its parameters (for cuDNN), which parametrizations, pruning or
    `functional_call` can leave behind. Here the list is made when asked for, and there is nothing to flatten.
    """

    _flat_weights_names: list[str]
    input_size: int

    @property
    def _flat_weights(self) -> list[Tensor | None]:
        own = self._parameters  # read first: `getattr` of a parameter comes to the same, but slowly
        return [own[name] if name in own else getattr(self, name, None) for name in self._flat_weights_names]

    @_flat_weights.setter
    def _flat_weights(self, weights: list[Tensor | None]) -> None:
        pass

    def _init_flat_weights(self) -> None:
        self._flat_weight_refs: list[Any] = []
        self.flatten_parameters()

    def _update_flat_weights(self) -> None:
        pass

    def flatten_parameters(self) -> None:
        """Nothing: the kernels read parameters as they are."""

    def check_input(self, input: Tensor, batch_sizes: Tensor | None) -> None:
        # torch's own check, on just what it reads: no weight is computed for it, so that a forward computes
        # each once.
        seen: Any = _Checked(self.input_size, self._first_weight())
        torch.nn.RNNBase.check_input(seen, input, batch_sizes)

    def _first_weight(self) -> Tensor:
        """A tensor with the dtype of the first weight."""
        name = self._flat_weights_names[0]
        if name in self._parameters:
            return self._parameters[name]  # type: ignore[return-value]
        if hasattr(type(self), name):  # parametrized, which keeps the dtype unless told that it is unsafe
            origin: Any = self.parametrizations[name]  # type: ignore[index]
            if not origin.unsafe:
                return origin.original if origin.is_tensor else origin.original0
        return getattr(self, name)

    def flat_weights(self) -> list[Tensor]:
        """All weights, in the order of `weight_names`."""
        return self._flat_weights  # type: ignore[return-value]


class NotTraceable(torch.nn.Module):
    """A module that torch.jit and what is built on it refuse, with the message `why_not_traceable`."""

    why_not_traceable: str

    def _slow_forward(self, *args: Any, **kwargs: Any) -> Any:  # what torch.jit.trace calls
        raise RuntimeError(self.why_not_traceable)

    def __prepare_scriptable__(self) -> torch.nn.Module:  # what torch.jit.script calls
        raise RuntimeError(self.why_not_traceable)
