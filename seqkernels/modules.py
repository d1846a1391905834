"""The layers and cells of torch.nn, running on fused kernels.

Every class is a subclass of its torch.nn namesake and takes over its constructor, parameters and state_dict.
`forward` is written out here, on torch's own `check_input`, `check_forward_args` and `permute_hidden`. What
is wrong with an argument before these can be asked is for torch's own `forward` to say, in the words of the
installed torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, is_grad_enabled
from torch.nn.utils import parametrize
from torch.nn.utils.rnn import PackedSequence
from torch.overrides import is_tensor_like

from . import _C, _tools, dispatch, functional, resets
from ._options import ForgetBias, Norm, ResetAfter
from ._torch_compat import WeightsAsAttributes
from .cells import CELLS, RNN_MODES, WEIGHTS
from .dispatch import fastpath_allowed
from .spec import NORMS, LayerSpec

__all__ = ["FusedGRU", "FusedGRUCell", "FusedLSTM", "FusedLSTMCell", "FusedRNN", "FusedRNNCell"]

# The methods of torch.nn's layers that their forward calls; the fast path does by itself what they do.
OVERRIDABLE = (
    "check_input",
    "check_hidden_size",
    "check_forward_args",
    "get_expected_cell_size",
    "get_expected_hidden_size",
    "permute_hidden",
)


def _first_is_trained(parameters: dict[str, Any]) -> bool:
    """Whether a module's first parameter requires a gradient, as then, as a rule, all of them do."""
    for parameter in parameters.values():
        return type(parameter) is torch.nn.Parameter and parameter.requires_grad
    return False


class _Fused(torch.nn.Module):
    """The `backend` option that all the classes here have."""

    _like: type[torch.nn.Module]  # the class of torch.nn
    _fastpath_supported = True  # unless a subclass has changed part of what the fast path does by itself

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

    qconfig = _tools.QConfig()

    def __prepare_scriptable__(self) -> torch.nn.Module:  # what torch.jit.script asks for
        is_own = "_like" in vars(parametrize.type_before_parametrizations(self))
        return _tools.for_scripting(self, self._like) if is_own else self

    def _fastpath(self, cell: str, is_cell: bool, input: Any, hx: Any) -> Any:
        """The result, or None where the fast path does not understand what it gets, or finds it wrong."""
        own = self.__dict__  # nn.Module makes it slow to read an attribute
        if is_grad_enabled() and _first_is_trained(own["_parameters"]):
            return None
        if fastpath_allowed() and self._fastpath_supported and own.get("_backend") != "reference":
            return _C.fastpath(own, cell, is_cell, input, hx, is_grad_enabled())
        return None

    def _by_torch(self, input: Any, hx: Any, reset_mask: Tensor | None = None) -> Any:
        """What torch's own forward does with arguments that are not understood here: as a rule, an error."""
        given = {} if reset_mask is None else {"reset_mask": reset_mask}
        node = _tools.call_in_graph(self, input, hx, **given)
        if node is not None:
            return node
        result = self._like.forward(self, input, hx)
        if option := "a reset_mask" if reset_mask is not None else self._beyond_torch:
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
    _has_cell_state = False  # whether a state is a tuple of h and c
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

    def _spec(self, batch_sizes: Tensor | None = None, reset_mask: Tensor | None = None) -> LayerSpec:
        """What a call of this layer is, beside its input, state and weights."""
        return LayerSpec(
            self._cell,
            self.num_layers,
            self.bias,
            self.bidirectional,
            self.batch_first and batch_sizes is None,
            self.dropout,
            self.training,
            self.__dict__.get("_backend", "auto"),  # as `backend`, without the property
            batch_sizes,
            reset_mask,
            self.__dict__.get("norm_eps", 1e-5),
        )

    def _forward(self, input: Any, hx: Any, reset_mask: Tensor | None) -> Any:
        if reset_mask is None:
            result = self._fastpath(self._cell, False, input, hx)
            if result is not None:
                return result
        if self._cell not in CELLS or _tools.is_for_torch(self, input, hx):
            return self._by_torch(input, hx, reset_mask)
        if isinstance(input, PackedSequence):
            return self._forward_packed(input, hx, reset_mask)
        dim = input.dim()
        if dim not in (2, 3):
            return self._by_torch(input, hx, reset_mask)
        if reset_mask is not None:
            resets.check(reset_mask, input.shape[:-1])
        if hx is not None:
            if not self._is_state(hx, dim == 3):
                return self._by_torch(input, hx, reset_mask)
            for state in self._states(hx):
                if state.dim() != dim:
                    return self._by_torch(input, hx, reset_mask)
        if dim == 3:
            output, final = self._forward_batched(input, hx, reset_mask)
            return output, self.permute_hidden(final, None)

        batch_dim = 0 if self.batch_first else 1
        if hx is not None:
            hx = self._state([s.unsqueeze(1) for s in self._states(hx)])
        if reset_mask is not None:
            reset_mask = reset_mask.unsqueeze(batch_dim)
        output, final = self._forward_batched(input.unsqueeze(batch_dim), hx, reset_mask)
        final = self._state([s.squeeze(1) for s in self._states(final)])
        return output.squeeze(batch_dim), self.permute_hidden(final, None)

    def _forward_batched(self, input: Tensor, hx: Any, reset_mask: Tensor | None) -> tuple[Tensor, Any]:
        """In the order of torch, for a subclass may have its own `permute_hidden` and checks."""
        given = hx is not None
        if not given:
            hx = self._zeros(input, input.size(0 if self.batch_first else 1))
        elif not self._has_cell_state:
            hx = self.permute_hidden(hx, None)
        self.check_forward_args(input, hx, None)
        if given and self._has_cell_state:
            hx = self.permute_hidden(hx, None)
        output, *final = self._run(self._spec(None, reset_mask), input, hx)
        return output, self._state(final)

    def _forward_packed(self, input: PackedSequence, hx: Any, reset_mask: Tensor | None) -> Any:
        data, batch_sizes, sorted_indices, unsorted_indices = input
        batch = batch_sizes[0]
        if hx is None:
            hx = self._zeros(data, batch)
        elif self._is_state(hx, batched=True) and all(map(is_tensor_like, self._states(hx))):
            hx = self.permute_hidden(hx, sorted_indices)
        else:
            return self._by_torch(input, hx, reset_mask)
        # Of an LSTM, torch's forward leaves it to what runs it; resets would hide what is wrong.
        if reset_mask is not None or not self._has_cell_state:
            self.check_forward_args(data, hx, batch_sizes)
        output, *final = self._run(self._spec(batch_sizes, reset_mask), data, hx)
        packed = PackedSequence(output, batch_sizes, sorted_indices, unsorted_indices)
        return packed, self.permute_hidden(self._state(final), unsorted_indices)

    def _run(self, spec: LayerSpec, x: Tensor, hx: Any) -> tuple[Tensor, ...]:
        return functional.run(spec, x, self._states(hx), self.flat_weights())

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


class FusedLSTM(ForgetBias, Norm, _FusedLayer, torch.nn.LSTM):
    """`torch.nn.LSTM` on fused kernels: the same arguments, state_dict, inputs, outputs and errors.

    Args:
        *args, **kwargs: As for `torch.nn.LSTM`.
        backend: "auto" runs the kernels where they can run, else what torch.nn runs; "native" raises where
            they cannot; "reference" always runs plain torch, step by step. `seqkernels.explain` says which
            and why.
        forget_bias: Added to the forget gate's block of every `bias_ih` when parameters get their initial
            values, so that cells remember from the start: 1 is advised by Jozefowicz, Zaremba, Sutskever, "An
            empirical exploration of recurrent network architectures", ICML 2015, section 2.2. It is part of
            the parameter then; state_dict is torch.nn's. ValueError without a bias.
        norm: Layer normalisation inside the recurrence; torch.nn has none. With LN(v; w) = w (v - mean v) /
            sqrt(var v + norm_eps) over all of v, as `torch.nn.LayerNorm`:

            - "layer", of Ba, Kiros, Hinton, "Layer Normalization", 2016, https://arxiv.org/abs/1607.06450,
              equations 20 to 22, normalises both products, jointly over the gates, and c on its way to h:
              [i f g o] = LN(W_ih x; w_ih) + b_ih + LN(W_hh h; w_hh) + b_hh,
              c = sigmoid(f) c + sigmoid(i) tanh(g),  h = sigmoid(o) tanh(LN(c; w_c) + b_c).
            - "layer-joint", as torchaudio's RNN-T predictor has it (`seqkernels.models.RNNTPredictor`),
              normalises their sum, and c itself: [i f g o] = LN(W_ih x + W_hh h; w_hh) + b_ih + b_hh,
              c = LN(sigmoid(f) c + sigmoid(i) tanh(g); w_c) + b_c,  h = sigmoid(o) tanh(c).

            Biases come after norms, so they are the biases of these. Parameters beside torch.nn's are, for
            each layer and direction, w_ih `norm_ih_weight_l0` ("layer" alone), w_hh `norm_hh_weight_l0`
            [4H], w_c `norm_c_weight_l0` and b_c `norm_c_bias_l0` [H]. As those of `torch.nn.LayerNorm`,
            factors begin with 1 and all biases with 0. ValueError for another value, or with proj_size.
        norm_eps: Added to variances. ValueError if it is negative, TypeError if it is no number. With 0,
            the norm of numbers that are all the same is NaN, as that of a product with a state of zeros.

    `forward` takes one argument more: `reset_mask`, a bool tensor [T, B] ([B, T] with `batch_first`, [T] for
    unbatched input, the rows of a PackedSequence's data), makes sequences start anew. Where it is true,
    nothing passes from step t - 1 to step t, nor gradients back: step t starts from a state of zeros, step 0
    from zeros instead of `hx`; the backward direction starts from zeros at step t - 1. It is read on the CPU,
    so a mask on a GPU waits for the GPU, and torch.compile leaves the graph for such a call. The segments
    between resets run side by side, as one PackedSequence. A mask that is no bool tensor raises TypeError,
    one of another shape ValueError.

    Example:
        >>> lstm = seqkernels.FusedLSTM(8, 16, num_layers=2, bidirectional=True)
        >>> output, (h_n, c_n) = lstm(torch.randn(5, 3, 8))
        >>> output.shape, h_n.shape
        (torch.Size([5, 3, 32]), torch.Size([4, 3, 16]))
        >>> done = torch.rand(5, 3) < 0.1  # episodes of reinforcement learning that start at a step
        >>> output, (h_n, c_n) = lstm(torch.randn(5, 3, 8), reset_mask=done)
        >>> sorted(seqkernels.FusedLSTM(8, 16, norm="layer-joint").state_dict())[2:5]
        ['norm_c_bias_l0', 'norm_c_weight_l0', 'norm_hh_weight_l0']
    """

    _like = torch.nn.LSTM
    _kind = "lstm"
    _has_cell_state = True

    @property
    def _cell(self) -> str:  # type: ignore[override]
        return "lstm_projected" if self.proj_size > 0 else NORMS["lstm"][self._norm]

    def forward(self, input: Any, hx: Any = None, reset_mask: Tensor | None = None) -> Any:
        return self._forward(input, hx, reset_mask)


class FusedGRU(Norm, ResetAfter, _FusedLayer, torch.nn.GRU):
    """`torch.nn.GRU` on fused kernels: the same arguments, state_dict, inputs, outputs and errors.

    Args:
        *args, **kwargs: As for `torch.nn.GRU`.
        backend: As for `FusedLSTM`, as is `reset_mask` of `forward`.
        reset_after: True computes n = tanh(W_in x + b_in + r * (W_hn h + b_hn)), as torch.nn and cuDNN do:
            Cho et al. 2014, https://arxiv.org/abs/1406.1078, version 1. False applies the reset gate before
            the product, n = tanh(W_in x + b_in + W_hn (r * h) + b_hn): version 3 of the same paper, and what
            Keras (`seqkernels.keras`) and ONNX know by that name and as linear_before_reset=0. Parameters
            and state_dict are the same. May be set at any time. TypeError if it is no bool.
        norm: None, or "layer": both products of each gate are normalised, r and z together and n by itself,
            by equations in the supplement of Ba, Kiros, Hinton 2016, https://arxiv.org/abs/1607.06450:
            [r z] = sigmoid(LN(W_i[rz] x; w_ih) + b_i[rz] + LN(W_h[rz] h; w_hh) + b_h[rz]),
            n = tanh(LN(W_in x; w_ih) + b_in + r (LN(W_hn h; w_hh) + b_hn)). Parameters beside torch.nn's are
            `norm_ih_weight_l0` and `norm_hh_weight_l0` [3H]. See `FusedLSTM`. Not with reset_after=False.
        norm_eps: As for `FusedLSTM`.

    Example:
        >>> output, h_n = seqkernels.FusedGRU(8, 16)(torch.randn(5, 3, 8))
        >>> output.shape
        torch.Size([5, 3, 16])
        >>> seqkernels.FusedGRU(8, 16, reset_after=False)
        FusedGRU(8, 16, reset_after=False)
    """

    _like = torch.nn.GRU
    _kind = "gru"

    def forward(self, input: Any, hx: Any = None, reset_mask: Tensor | None = None) -> Any:
        return self._forward(input, hx, reset_mask)


class FusedRNN(_FusedLayer, torch.nn.RNN):
    """`torch.nn.RNN` on fused kernels: the same arguments, state_dict, inputs, outputs and errors.

    Args:
        *args, **kwargs: As for `torch.nn.RNN`.
        backend: As for `FusedLSTM`, as is `reset_mask` of `forward`.

    Example:
        >>> output, h_n = seqkernels.FusedRNN(8, 16, nonlinearity="relu")(torch.randn(5, 3, 8))
        >>> output.shape
        torch.Size([5, 3, 16])
    """

    _like = torch.nn.RNN

    @property
    def _cell(self) -> str:  # type: ignore[override]
        return RNN_MODES.get(self.mode, "")

    def forward(self, input: Any, hx: Any = None, reset_mask: Tensor | None = None) -> Any:
        return self._forward(input, hx, reset_mask)


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

    def _forward(self, cell: str, input: Tensor, hx: Any) -> Any:
        result = self._fastpath(cell, True, input, hx)
        if result is not None:
            return result
        if _tools.is_for_torch(self, input, hx) or input.dim() not in (1, 2) or cell not in CELLS:
            return self._by_torch(input, hx)
        has_cell_state = CELLS[cell].has_cell_state
        states = None if hx is None else tuple(hx) if has_cell_state else (hx,)
        for state in states or ():
            if state.dim() not in (1, 2):
                return self._by_torch(input, hx)

        batched = input.dim() == 2
        x = input if batched else input.unsqueeze(0)
        if states is None:
            zeros = torch.zeros(x.size(0), self.hidden_size, dtype=x.dtype, device=x.device)
            states = (zeros,) * CELLS[cell].states
        elif not batched:
            parts = (hx[0], hx[1]) if has_cell_state else (hx,)
            states = tuple([s.unsqueeze(0) for s in parts])
        elif has_cell_state and (not isinstance(hx, (tuple, list)) or len(hx) != 2):
            return self._by_torch(input, hx)
        # Read first: `getattr` of a parameter comes to the same, but slowly.
        own = self.__dict__["_parameters"]
        weights: Any = [own[name] if name in own else getattr(self, name) for name in WEIGHTS]
        spec = _SPECS_OF_CELLS.get((cell, self.backend)) or LayerSpec(cell, backend=self.backend)
        final = functional.run_cell(spec, x, states, *weights)
        if not batched:
            final = tuple([s.squeeze(0) for s in final])
        return final if has_cell_state else final[0]


class FusedLSTMCell(ForgetBias, _FusedCell, torch.nn.LSTMCell):
    """`torch.nn.LSTMCell` on fused kernels: the same arguments, state_dict, inputs, outputs and errors.

    Args:
        *args, **kwargs: As for `torch.nn.LSTMCell`.
        backend, forget_bias: As for `FusedLSTM`.

    Example:
        >>> h, c = seqkernels.FusedLSTMCell(8, 16)(torch.randn(3, 8))
        >>> h.shape
        torch.Size([3, 16])
    """

    _like = torch.nn.LSTMCell

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> Any:
        return self._forward("lstm", input, hx)


class FusedGRUCell(ResetAfter, _FusedCell, torch.nn.GRUCell):
    """`torch.nn.GRUCell` on fused kernels: the same arguments, state_dict, inputs, outputs and errors.

    Args:
        *args, **kwargs: As for `torch.nn.GRUCell`.
        backend: As for `FusedLSTM`.
        reset_after: As for `FusedGRU`.

    Example:
        >>> seqkernels.FusedGRUCell(8, 16)(torch.randn(3, 8)).shape
        torch.Size([3, 16])
    """

    _like = torch.nn.GRUCell

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Any:
        return self._forward(self._cell, input, hx)


class FusedRNNCell(_FusedCell, torch.nn.RNNCell):
    """`torch.nn.RNNCell` on fused kernels: the same arguments, state_dict, inputs, outputs and errors.

    Args:
        *args, **kwargs: As for `torch.nn.RNNCell`.
        backend: As for `FusedLSTM`.

    Example:
        >>> seqkernels.FusedRNNCell(8, 16, nonlinearity="relu")(torch.randn(3, 8)).shape
        torch.Size([3, 16])
    """

    _like = torch.nn.RNNCell

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Any:
        return self._forward(f"rnn_{self.nonlinearity}", input, hx)
