"""What layers and cells have beyond torch.nn, as bases of the classes in modules.py."""

from __future__ import annotations

from typing import Any

import torch

from . import _torch_compat as compat
from .cells import CELLS, PARAMETERS
from .regularization import check_probability, zoneout_pair
from .spec import cell_of, check_norm_eps


@torch.no_grad()
def reset_norms(layer: torch.nn.Module) -> None:
    """Give norms the initial values of `torch.nn.LayerNorm`, factors of 1 and biases of 0."""
    for name, parameter in layer.named_parameters():
        if name.startswith("norm"):
            parameter.fill_(0 if "bias" in name else 1)


class ForgetBias(torch.nn.Module):
    """The `forget_bias` option of LSTMs; the other bases are a fused class and its namesake in torch.nn."""

    bias: bool
    _forget_bias = 0.0

    def __init__(self, *args: Any, forget_bias: float = 0.0, **kwargs: Any) -> None:
        self.__dict__["_forget_bias"] = float(forget_bias)  # before torch's constructor makes the parameters
        super().__init__(*args, **kwargs)
        if forget_bias and not self.bias:
            raise ValueError(f"forget_bias={forget_bias} needs bias=True: there is no bias to add it to")

    def reset_parameters(self) -> None:
        super().reset_parameters()  # type: ignore[misc]  # of torch.nn's class
        if self._forget_bias:
            with torch.no_grad():
                for name, parameter in self.named_parameters():
                    if name.startswith("bias_ih"):
                        parameter.chunk(4)[1].add_(self._forget_bias)

    def extra_repr(self) -> str:
        shown = super().extra_repr()
        return f"{shown}, forget_bias={self._forget_bias}" if self._forget_bias else shown


class ResetAfter(torch.nn.Module):
    """The `reset_after` option of GRUs; the other bases are a fused class and its namesake in torch.nn."""

    _cell = "gru"  # or, in an instance's own dictionary, another one

    def __init__(self, *args: Any, reset_after: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.reset_after = reset_after

    @property
    def reset_after(self) -> bool:
        """Whether the reset gate acts on the product with W_hh, as in torch.nn, or on the state before it."""
        return self._cell != "gru_reset_before"

    @reset_after.setter
    def reset_after(self, reset_after: bool) -> None:
        if not isinstance(reset_after, bool):
            raise TypeError(f"reset_after must be True or False, got {reset_after!r}")
        cell = cell_of("gru", getattr(self, "_norm", None), reset_after)
        if cell == "gru":
            self.__dict__.pop("_cell", None)
        else:
            self.__dict__["_cell"] = cell

    @property
    def _beyond_torch(self) -> str:
        return str(super()._beyond_torch) if self.reset_after else "reset_after=False"  # type: ignore[misc]

    def extra_repr(self) -> str:
        shown = super().extra_repr()
        return shown if self.reset_after else f"{shown}, reset_after=False"


class Norm(torch.nn.Module):
    """The `norm` option of layers; the other bases are a fused class and its namesake in torch.nn."""

    _kind: str  # of the cell, in `NORMS`
    hidden_size: int
    norm_eps: float  # of a module with a norm
    _norm: str | None = None  # under this name, for subclasses have a norm of their own

    def __init__(self, *args: Any, norm: str | None = None, norm_eps: float = 1e-5, **kwargs: Any) -> None:
        cell, norm_eps = cell_of(self._kind, norm), check_norm_eps(norm_eps)
        if norm is not None:  # before torch's constructor sets initial values
            self.__dict__ |= {"_norm": norm, "norm_eps": norm_eps}
        super().__init__(*args, **kwargs)
        if norm is None:
            return
        if getattr(self, "proj_size", 0):
            raise ValueError(f"norm={norm!r} needs proj_size=0, got {self.proj_size}")
        gate_rows = CELLS[cell].gates * self.hidden_size
        names = [PARAMETERS[weight] for weight in CELLS[cell].extra_weights]
        compat.add_weights(
            self, {name: self.hidden_size if name.startswith("norm_c") else gate_rows for name in names}
        )
        reset_norms(self)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """As torch.nn; norms, and with them all biases, as those of `torch.nn.LayerNorm`."""
        super().reset_parameters()  # type: ignore[misc]  # of torch.nn's class
        if self._norm is None:
            return
        for name, parameter in self.named_parameters():
            if name.startswith("bias"):
                parameter.zero_()
        reset_norms(self)

    @property
    def _beyond_torch(self) -> str:
        return f"norm={self._norm!r}" if self._norm else str(super()._beyond_torch)  # type: ignore[misc]

    def extra_repr(self) -> str:
        shown = super().extra_repr()
        if self._norm is None:
            return shown
        eps = "" if self.norm_eps == 1e-5 else f", norm_eps={self.norm_eps}"
        return f"{shown}, norm={self._norm!r}{eps}"


def _option(name: str, default: Any, checked: Any, doc: str) -> Any:
    """A property for an option of the recurrence; `_options` has those that are not at their default.

    It is always there, and never changed but replaced: other threads may run the module, and torch.compile
    looks whether it is the one that it has seen.
    """

    def get(self: torch.nn.Module) -> Any:
        return self.__dict__.get("_options", {}).get(name, default)

    def set(self: torch.nn.Module, value: Any) -> None:
        options = {**self.__dict__.get("_options", {}), name: checked(self, value)}
        if options[name] == default:
            del options[name]
        self.__dict__["_options"] = options

    return property(get, set, doc=doc)


def check_bool(name: str, value: Any) -> bool:
    """`value` itself, or an error where it is no bool."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return value


def checked_zoneout(value: Any, has_cell_state: bool) -> Any:
    """The probabilities of `zoneout` as they are kept: one number where one was given, or none is set."""
    pair = zoneout_pair(value, has_cell_state)
    return pair if isinstance(value, (tuple, list)) and any(pair) else pair[0]


class _Recurrence(torch.nn.Module):
    """What options of the recurrence have in common."""

    _has_cell_state: bool

    @property
    def _recurrence(self) -> dict[str, Any]:
        fields = dict(self.__dict__.get("_options", {}))
        if zoneout := fields.pop("zoneout", 0.0):
            fields["zoneout_h"], fields["zoneout_c"] = zoneout_pair(zoneout, self._has_cell_state)
        return fields

    @property
    def _beyond_torch(self) -> str:
        for name, value in self.__dict__.get("_options", {}).items():
            if name != "recompute":  # which computes the same
                return f"{name}={value!r}"
        return str(super()._beyond_torch)  # type: ignore[misc]

    def extra_repr(self) -> str:
        options = self.__dict__.get("_options", {})
        return ", ".join([super().extra_repr(), *(f"{name}={value!r}" for name, value in options.items())])


class Zoneout(_Recurrence):
    """The `zoneout` option; the other bases are a fused class and its namesake in torch.nn."""

    def __init__(self, *args: Any, zoneout: float | tuple[float, float] = 0.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.zoneout = zoneout

    zoneout = _option(
        "zoneout",
        0.0,
        lambda self, value: checked_zoneout(value, self._has_cell_state),
        "Probability with which a unit keeps the value it had before a step: of h and c, or a pair.",
    )


class LayerOptions(Zoneout):
    """The options of training layers; the other bases are as those of `Zoneout`."""

    def __init__(
        self,
        *args: Any,
        recurrent_dropout: float = 0.0,
        weight_dropout: float = 0.0,
        recompute: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.recurrent_dropout = recurrent_dropout
        self.weight_dropout = weight_dropout
        self.recompute = recompute

    recurrent_dropout = _option(
        "recurrent_dropout",
        0.0,
        lambda self, value: check_probability("recurrent_dropout", value),
        "Probability of zeroing a unit of h where it meets W_hh, in all steps of a sequence.",
    )
    weight_dropout = _option(
        "weight_dropout",
        0.0,
        lambda self, value: check_probability("weight_dropout", value),
        "Probability of zeroing an element of W_hh in a call.",
    )
    recompute = _option(
        "recompute",
        False,
        lambda _, value: check_bool("recompute", value),
        "Whether backward computes once more what forward would have saved for it.",
    )


class CellStates(_Recurrence):
    """The `return_cell_states` option of LSTMs; the other bases are as those of `Zoneout`."""

    def __init__(self, *args: Any, return_cell_states: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.return_cell_states = return_cell_states

    return_cell_states = _option(
        "return_cell_states",
        False,
        lambda _, value: check_bool("return_cell_states", value),
        "Whether forward returns c of every step of the last layer, too.",
    )
