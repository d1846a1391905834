"""What the classes of modules.py have in common: the forward of layers and of Cells, around torch.nn's own.

`forward` is written out here, on torch's own `check_input`, `check_forward_args` and `permute_hidden`. What
is wrong with an argument before these can be asked is for torch's own `forward` to say, in the words of the
installed torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, is_grad_enabled
from torch.nn.utils import parametrize
from torch.nn.utils.rnn import PackedSequence
from torch.overrides import is_tensor_like

from . import _C, _onnx, _tools, dispatch, resets, rows, stack
from ._torch_compat import WeightsAsAttributes
from .cells import CELLS, WEIGHTS
from .dispatch import fastpath_allowed
from .spec import LayerSpec

# The methods of torch.nn's layers that their forward calls; the fast path does by itself what they do.
OVERRIDABLE = (
    "check_input",
    "check_hidden_size",
    "check_forward_args",
    "get_expected_cell_size",
    "get_expected_hidden_size",
    "permute_hidden",
)


class Given(NamedTuple):
    """What a call gives beside its input and state."""

    reset_mask: Tensor | None = None
    lengths: Tensor | None = None

    @classmethod
    def of(cls, reset_mask: Tensor | None, lengths: Tensor | None = None) -> Given:
        return NOTHING if reset_mask is None and lengths is None else cls(reset_mask, lengths)

    @property
    def is_something(self) -> bool:
        return self.reset_mask is not None or self.lengths is not None

    @property
    def named(self) -> dict[str, Any]:
        """Those that are there."""
        return {name: value for name, value in self._asdict().items() if value is not None}


NOTHING = Given()


def _first_is_trained(parameters: dict[str, Any]) -> bool:
    """Whether a module's first parameter requires a gradient, as then, as a rule, all of them do."""
    for parameter in parameters.values():
        return type(parameter) is torch.nn.Parameter and parameter.requires_grad
    return False


class _Fused(torch.nn.Module):
    """The `backend` option that all the classes here have."""

    _like: type[torch.nn.Module]  # the class of torch.nn
    _fastpath_supported = True  # unless a subclass has changed part of what the fast path does by itself
    _has_cell_state = False  # whether a state is a tuple of h and c

    def __init__(self, *args: Any, backend: str = "auto", **kwargs: Any) -> None:
        dispatch.check_backend(backend)
        super().__init__(*args, **kwargs)
        self.backend = backend

    @property
    def backend(self) -> str:
        """ "auto", "native" or "reference"; see `seqkernels.functional.lstm`. May be set at any time."""
        return str(self.__dict__.get("_backend", "auto"))

    @backend.setter
    def backend(self, backend: str) -> None:
        self.__dict__["_backend"] = dispatch.check_backend(backend)

    @property
    def _beyond_torch(self) -> str:
        """The option, if one is set, with which torch.nn's class would compute something else."""
        return ""

    @property
    def _recurrence(self) -> dict[str, Any]:
        """Fields of a `LayerSpec` that options of this module set (`_options.py`)."""
        return {}

    def _draws_nothing(self) -> bool:
        """Whether no option wants random numbers in a call, so that the fast path knows them all."""
        options = self.__dict__.get("_options")
        return not options or not self.training or options.keys() <= {"recompute", "return_cell_states"}

    qconfig = _tools.QConfig()

    def __prepare_scriptable__(self) -> torch.nn.Module:  # what torch.jit.script asks for
        is_own = "_like" in vars(parametrize.type_before_parametrizations(self))
        return _tools.for_scripting(self, self._like) if is_own else self

    def _fastpath(self, cell: str, is_cell: bool, input: Any, hx: Any, reset_mask: Any = None) -> Any:
        """The result, or None where the fast path does not understand what it gets, or finds it wrong."""
        own = self.__dict__  # nn.Module makes it slow to read an attribute
        if is_grad_enabled() and _first_is_trained(own["_parameters"]):
            return None
        if fastpath_allowed() and self._fastpath_supported and own.get("_backend") != "reference":
            return _C.fastpath(own, cell, is_cell, input, hx, is_grad_enabled(), reset_mask)
        return None

    def _by_torch(self, input: Any, hx: Any, given: Given = NOTHING) -> Any:
        """What torch's own forward does with arguments that are not understood here: as a rule, an error."""
        node = _tools.call_in_graph(self, input, hx, **given.named)
        if node is not None:
            return node
        result = self._like.forward(self, input, hx)
        if option := " and ".join(given.named) or self._beyond_torch:
            raise RuntimeError(f"{type(self).__name__} does not take these arguments with {option}")
        return result

    def extra_repr(self) -> str:
        shown = super().extra_repr()
        return shown if self.backend == "auto" else f"{shown}, backend={self.backend!r}"


class _FusedLayer(_Fused, WeightsAsAttributes):
    """A stack of layers; the other base of a subclass is its namesake in torch.nn, an RNNBase."""

    _cell: str  # its name in the registry
    num_layers: int
    bias: bool
    batch_first: bool
    dropout: float
    bidirectional: bool
    proj_size: int
    hidden_size: int
    check_forward_args: Callable[..., None]
    permute_hidden: Callable[..., Any]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._fastpath_supported = all(
            getattr(cls, name, None)
            in (getattr(cls._like, name, None), getattr(WeightsAsAttributes, name, None))
            for name in OVERRIDABLE
        )

    def __setattr__(self, name: str, value: Any) -> None:
        if name in OVERRIDABLE:  # of this instance alone
            self.__dict__["_fastpath_supported"] = False
        super().__setattr__(name, value)

    def _spec(self, batch_sizes: Tensor | None = None, given: Given = NOTHING) -> LayerSpec:
        """What a call of this layer is, beside its input, state and weights."""
        spec = LayerSpec(
            self._cell,
            self.num_layers,
            self.bias,
            self.bidirectional,
            self.batch_first and batch_sizes is None,
            self.dropout,
            self.training,
            self.__dict__.get("_backend", "auto"),  # as `backend`, without the property
            batch_sizes,
            given.lengths,
            given.reset_mask,
            norm_eps=self.__dict__.get("norm_eps", 1e-5),
        )
        return spec._replace(**self._recurrence) if self.__dict__.get("_options") else spec

    def _forward(self, input: Any, hx: Any, given: Given) -> Any:
        if given.lengths is None and self._draws_nothing() and not self._may_be_segments(given.reset_mask):
            result = self._fastpath(self._cell, False, input, hx, given.reset_mask)
            if result is not None:
                return result
        if self._cell not in CELLS or _tools.is_for_torch(self, input, hx):
            return self._by_torch(input, hx, given)
        if isinstance(input, PackedSequence):
            return self._forward_packed(input, hx, given)
        dim = input.dim()
        if dim not in (2, 3):
            return self._by_torch(input, hx, given)
        if given.is_something:
            if any(isinstance(value, torch.fx.Proxy) for value in given):
                return self._by_torch(input, hx, given)
            given = self._checked(input, given)
        if hx is not None:
            if not self._is_state(hx, dim == 3):
                return self._by_torch(input, hx, given)
            for state in self._states(hx):
                if state.dim() != dim:
                    return self._by_torch(input, hx, given)
        if dim == 3:
            output, final, *cell_states = self._forward_batched(input, hx, given)
            return output, self.permute_hidden(final, None), *cell_states

        batch_dim = 0 if self.batch_first else 1
        if hx is not None:
            hx = self._state([s.unsqueeze(1) for s in self._states(hx)])
        mask, lengths = given
        given = Given(None if mask is None else mask.unsqueeze(batch_dim), lengths)
        output, final, *cell_states = self._forward_batched(input.unsqueeze(batch_dim), hx, given)
        final = self._state([s.squeeze(1) for s in self._states(final)])
        rest = [c.squeeze(batch_dim) for c in cell_states]
        return output.squeeze(batch_dim), self.permute_hidden(final, None), *rest

    def _may_be_segments(self, mask: Any) -> bool:
        if mask is None or not isinstance(mask, Tensor) or mask.dim() != 2:
            return False
        steps, batch = mask.shape[::-1] if self.batch_first else mask.shape
        return resets.may_be_segments(steps, batch, self.hidden_size)

    def _checked(self, input: Tensor, given: Given) -> Given:
        """`given` for that input, before it is made one of batches."""
        mask, lengths = given
        if mask is not None:
            rows.check_reset_mask(mask, input.shape[:-1])
        if lengths is not None:
            time_dim = 1 if self.batch_first and input.dim() == 3 else 0
            batch = (*input.shape[:time_dim], *input.shape[time_dim + 1 : -1])
            lengths = rows.check_lengths(lengths, batch, input.size(time_dim)).reshape(-1)
        return Given(mask, lengths)

    def _forward_batched(self, input: Tensor, hx: Any, given: Given) -> tuple[Any, ...]:
        """In the order of torch, for a subclass may have its own `permute_hidden` and checks."""
        is_given = hx is not None
        if not is_given:
            hx = self._zeros(input, input.size(0 if self.batch_first else 1))
        elif not self._has_cell_state:
            hx = self.permute_hidden(hx, None)
        self.check_forward_args(input, hx, None)
        if is_given and self._has_cell_state:
            hx = self.permute_hidden(hx, None)
        return self._run(self._spec(None, given), input, hx)

    def _forward_packed(self, input: PackedSequence, hx: Any, given: Given) -> Any:
        if _onnx.is_capturing():
            _onnx.check(self._cell, packed=True)
        data, batch_sizes, sorted_indices, unsorted_indices = input
        batch = batch_sizes[0]
        if hx is None:
            hx = self._zeros(data, batch)
        elif self._is_state(hx, batched=True) and all(map(is_tensor_like, self._states(hx))):
            hx = self.permute_hidden(hx, sorted_indices)
        else:
            return self._by_torch(input, hx, given)
        # Of an LSTM, torch's forward leaves it to what runs it; resets would hide what is wrong.
        if given.reset_mask is not None or not self._has_cell_state:
            self.check_forward_args(data, hx, batch_sizes)
        output, final, *cell_states = self._run(self._spec(batch_sizes, given), data, hx)
        packed = (
            PackedSequence(data, batch_sizes, sorted_indices, unsorted_indices)
            for data in (output, *cell_states)
        )
        return next(packed), self.permute_hidden(final, unsorted_indices), *packed

    def _run(self, spec: LayerSpec, x: Tensor, hx: Any) -> tuple[Any, ...]:
        """The output, the final state as torch has it, and the cell states if they are asked for."""
        states = self._states(hx)
        output, *rest = stack.run(spec, x, states, self.flat_weights())
        return output, self._state(rest[: len(states)]), *rest[len(states) :]

    def _is_state(self, hx: Any, batched: bool) -> bool:
        """Of an LSTM: whether it is a pair, as what runs batches wants it; else it is only indexed."""
        if not self._has_cell_state:
            return True
        return isinstance(hx, (tuple, list)) and len(hx) == 2 if batched else not isinstance(hx, Tensor)

    def _states(self, hx: Any) -> tuple[Tensor, ...]:
        """The parts of a state as torch has it: one tensor, or of an LSTM h and c."""
        return (hx[0], hx[1]) if self._has_cell_state else (hx,)

    def _state(self, parts: Any) -> Any:
        return tuple(parts) if self._has_cell_state else parts[0]

    def _zeros(self, x: Tensor, batch: Any) -> Any:
        states = self.num_layers * (2 if self.bidirectional else 1)
        widths = [self.hidden_size]
        if self._has_cell_state:
            widths.insert(0, self.proj_size or self.hidden_size)
        return self._state(
            [torch.zeros(states, batch, width, dtype=x.dtype, device=x.device) for width in widths]
        )


# Of single steps, made once: there is nothing more to say of them.
_SPECS_OF_CELLS = {
    (cell, backend): LayerSpec(cell, backend=backend) for cell in CELLS for backend in dispatch.BACKENDS
}


class _FusedCell(_Fused):
    """A single step; the other base of a subclass is its namesake in torch.nn, an RNNCellBase."""

    hidden_size: int
    weight_ih: Tensor
    weight_hh: Tensor
    bias_ih: Any
    bias_hh: Any

    def _forward(self, cell: str, input: Tensor, hx: Any, reset_mask: Any = None) -> Any:
        given = Given.of(reset_mask)
        if self._draws_nothing():
            result = self._fastpath(cell, True, input, hx, reset_mask)
            if result is not None:
                return result
        if _tools.is_for_torch(self, input, hx) or input.dim() not in (1, 2) or cell not in CELLS:
            return self._by_torch(input, hx, given)
        has_cell_state = CELLS[cell].has_cell_state
        states = None if hx is None else tuple(hx) if has_cell_state else (hx,)
        for state in states or ():
            if state.dim() not in (1, 2):
                return self._by_torch(input, hx, given)
        if reset_mask is not None:
            if isinstance(reset_mask, torch.fx.Proxy):
                return self._by_torch(input, hx, given)
            rows.check_reset_mask(reset_mask, input.shape[:-1])

        batched = input.dim() == 2
        x = input if batched else input.unsqueeze(0)
        if states is None:
            zeros = torch.zeros(x.size(0), self.hidden_size, dtype=x.dtype, device=x.device)
            states = (zeros,) * CELLS[cell].states
        elif not batched:
            parts = (hx[0], hx[1]) if has_cell_state else (hx,)
            states = tuple([s.unsqueeze(0) for s in parts])
        elif has_cell_state and (not isinstance(hx, (tuple, list)) or len(hx) != 2):
            return self._by_torch(input, hx, given)
        # Read first: `getattr` of a parameter comes to the same, but slowly.
        own = self.__dict__["_parameters"]
        weights: Any = [own[name] if name in own else getattr(self, name) for name in WEIGHTS]
        spec = _SPECS_OF_CELLS.get((cell, self.backend)) or LayerSpec(cell, backend=self.backend)
        if given.is_something or self.__dict__.get("_options"):
            mask = None if reset_mask is None else reset_mask.reshape(-1)
            spec = spec._replace(training=self.training, reset_mask=mask, **self._recurrence)
        final = stack.run_cell(spec, x, states, *weights)
        if not batched:
            final = tuple([s.squeeze(0) for s in final])
        return final if has_cell_state else final[0]
