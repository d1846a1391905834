"""Networks built from recurrent layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from .modules import FusedLSTM

__all__ = ["RNNTPredictor", "StackedRNN"]

SKIPS = (None, "residual", "concat")


class StackedRNN(nn.Module):
    """A deep stack of recurrent layers, optionally with connections that skip layers.

    With `f_l` the l-th layer of L, D its directions, and `x_0` the input::

        skip=None        x_{l+1} = f_l(x_l)                the stack that torch.nn makes of num_layers
        skip="residual"  x_{l+1} = x_l + f_l(x_l)          He et al. 2015, arXiv:1512.03385; for deep LSTMs,
                                                           Wu et al. 2016, arXiv:1609.08144
        skip="concat"    x_{l+1} = [x_l ; f_l(x_l)]        Graves 2013, arXiv:1308.0850; with all earlier
                                                           layers, Huang et al. 2016, arXiv:1608.06993

    Both skips give gradients a way back that passes through no recurrent layer. A sum needs equal widths, so
    the first layer of a residual stack has its skip only where `input_size` is D*H. While training, dropout
    is applied to `f_l(x_l)` for every layer but the last, before it is added or appended.

    Args:
        layer: What a layer is made of, `seqkernels.FusedLSTM`, `FusedGRU`, `FusedRNN`, a torch.nn class, or
            anything that takes the same arguments; it is called with `bidirectional`, `batch_first` and
            `**kwargs`.
        input_size: Features of the input, I.
        hidden_size: Features of each layer's state, H.
        num_layers: The number of layers, L.
        skip: None, "residual" or "concat".
        dropout: Probability of zeroing an element.
        bidirectional: D = 2 instead of 1.
        batch_first: Tensors are [B, T, ...] instead of [T, B, ...]; a PackedSequence and the states are not
            changed.
        **kwargs: For every layer, such as `bias`, `nonlinearity`, `backend`, `device`, `dtype`.

    Shapes:
        input: [T, B, I], [T, I] or a PackedSequence, as for torch.nn's layers.
        hx: None for zeros, or h0 [L*D, B, H], for an LSTM (h0, c0).
        **kwargs: For every layer's forward, such as the `reset_mask` of `FusedLSTM`.
        returns: `(output, h_n)`, for an LSTM `(output, (h_n, c_n))`; output is [T, B, output_size], where
            output_size is D*H or, with "concat", I + L*D*H, and a PackedSequence where the input is one;
            h_n is like h0.

    Raises:
        ValueError: An unknown `skip`, fewer layers than one, a `dropout` that is no probability.
        RuntimeError: From `forward`, where `hx` has another number of layers.

    Example:
        >>> stack = seqkernels.models.StackedRNN(seqkernels.FusedLSTM, 8, 16, num_layers=3, skip="concat")
        >>> output, (h_n, c_n) = stack(torch.randn(5, 2, 8))
        >>> output.shape, h_n.shape
        (torch.Size([5, 2, 56]), torch.Size([3, 2, 16]))
    """

    def __init__(
        self,
        layer: Callable[..., nn.Module],
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        skip: str | None = None,
        dropout: float = 0.0,
        bidirectional: bool = False,
        batch_first: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        if skip not in SKIPS:
            raise ValueError(f"skip must be one of {', '.join(map(repr, SKIPS))}, not {skip!r}")
        if num_layers < 1:
            raise ValueError(f"num_layers must be at least 1, not {num_layers}")
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.skip, self.bidirectional = skip, bidirectional
        self.directions = 2 if bidirectional else 1
        self.dropout = nn.Dropout(dropout)
        width = self.directions * (kwargs.get("proj_size") or hidden_size)
        sizes = [input_size]
        for _ in range(num_layers):
            sizes.append(sizes[-1] + width if skip == "concat" else width)
        self.output_size = sizes.pop()
        self.layers = nn.ModuleList(
            layer(size, hidden_size, bidirectional=bidirectional, batch_first=batch_first, **kwargs)
            for size in sizes
        )

    def forward(self, input: Any, hx: Any = None, **kwargs: Any) -> tuple[Any, Any]:
        states = self._split(hx)
        finals = []
        for n, (layer, state) in enumerate(zip(self.layers, states, strict=True)):
            output, final = layer(input, state, **kwargs)
            input = _on_data(self._join, n == self.num_layers - 1, input, output)
            finals.append(final)
        return input, self._gather(finals)

    def _join(self, last: bool, x: Tensor, output: Tensor) -> Tensor:
        """What goes on to the next layer: features are the last dimension of both."""
        if not last:
            output = self.dropout(output)
        if self.skip == "concat":
            return torch.cat([x, output], dim=-1)
        if self.skip == "residual" and x.size(-1) == output.size(-1):
            return x + output
        return output

    def _split(self, hx: Any) -> Sequence[Any]:
        """The initial state of each layer."""
        if hx is None:
            return [None] * self.num_layers
        parts = []
        for state in (hx,) if isinstance(hx, Tensor) else hx:
            if state.size(0) != self.num_layers * self.directions:
                expected = f"{self.num_layers} layers * {self.directions} directions"
                raise RuntimeError(f"hx has size {state.size(0)} in dimension 0, expected {expected}")
            parts.append(state.split(self.directions))
        return parts[0] if isinstance(hx, Tensor) else list(zip(*parts, strict=True))

    @staticmethod
    def _gather(finals: Sequence[Any]) -> Any:
        """The final states of all layers, in torch's layout."""
        if isinstance(finals[0], Tensor):
            return torch.cat(list(finals))
        return tuple(torch.cat(states) for states in zip(*finals, strict=True))

    def extra_repr(self) -> str:
        skip = f", skip={self.skip!r}" if self.skip else ""
        return f"{self.input_size}, {self.hidden_size}, num_layers={self.num_layers}{skip}"


def _on_data(join: Callable[[bool, Tensor, Tensor], Tensor], last: bool, x: Any, output: Any) -> Any:
    """`join` on tensors, or on the data of packed sequences."""
    if isinstance(output, PackedSequence):
        return output._replace(data=join(last, x.data, output.data))
    return join(last, x, output)


class RNNTPredictor(nn.Module):
    """The prediction network of an RNN transducer, as torchaudio's RNN-T models have it: the same arguments,
    initial values, inputs and outputs as `torchaudio.models.rnnt._Predictor`, on fused kernels.

    Symbols are embedded and normalised, go through LSTM layers one after another, each followed by dropout,
    and are projected and normalised again (Graves 2012, arXiv:1211.3711, with the layer-normalised LSTM of
    `FusedLSTM(norm="layer-joint")`). With `lstm_layer_norm=False` the layers are plain LSTMs without a second
    bias.

    Args:
        num_symbols: Symbols, blank included.
        output_dim: Features of the output.
        symbol_embedding_dim: Features of an embedded symbol.
        num_lstm_layers: The number of layers, L.
        lstm_hidden_dim: Features of each layer's state, H.
        lstm_layer_norm: Whether gates and cell states are normalised.
        lstm_layer_norm_epsilon: What is added to their variances.
        lstm_dropout: Probability of zeroing an element of a layer's output, while training.

    Shapes:
        input: Symbols [B, U], integers below `num_symbols`.
        lengths: [B], returned as it is.
        state: None for zeros, or for each layer [h, c], each [B, H]: what another call has returned.
        returns: `(output, lengths, state)`, the output [B, U, output_dim].

    `load_state_dict` takes torchaudio's weights: its names `lstm_layers.0.x2g.weight`, `p2g`, `g_norm` and
    `c_norm` become those of `FusedLSTM`. What torchaudio calls the bias of `g_norm` (or of `x2g`) is
    `bias_ih_l0` here; `bias_hh_l0` is zero and not trained.

    Raises:
        RuntimeError: From `forward`, a `state` that has not one pair for each layer.

    Example:
        >>> predictor = seqkernels.models.RNNTPredictor(30, 32, 16, 2, 24, lstm_layer_norm=True)
        >>> symbols, lengths = torch.randint(30, (4, 7)), torch.full((4,), 7)
        >>> output, lengths, state = predictor(symbols, lengths)
        >>> output.shape, state[0][0].shape
        (torch.Size([4, 7, 32]), torch.Size([4, 24]))
    """

    def __init__(
        self,
        num_symbols: int,
        output_dim: int,
        symbol_embedding_dim: int,
        num_lstm_layers: int,
        lstm_hidden_dim: int,
        lstm_layer_norm: bool = False,
        lstm_layer_norm_epsilon: float = 1e-5,
        lstm_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_symbols, symbol_embedding_dim)
        self.input_layer_norm = nn.LayerNorm(symbol_embedding_dim)
        norm: dict[str, Any] = {"norm": "layer-joint", "norm_eps": lstm_layer_norm_epsilon}
        self.lstm_layers = nn.ModuleList(
            FusedLSTM(
                lstm_hidden_dim if layer else symbol_embedding_dim,
                lstm_hidden_dim,
                **(norm if lstm_layer_norm else {}),
            )
            for layer in range(num_lstm_layers)
        )
        for lstm in self.lstm_layers:
            _begin_as_torchaudio(lstm)
        self.dropout = nn.Dropout(p=lstm_dropout)
        self.linear = nn.Linear(lstm_hidden_dim, output_dim)
        self.output_layer_norm = nn.LayerNorm(output_dim)
        self.lstm_dropout = lstm_dropout
        self.register_load_state_dict_pre_hook(_from_torchaudio)

    def forward(
        self, input: Tensor, lengths: Tensor, state: Sequence[Sequence[Tensor]] | None = None
    ) -> tuple[Tensor, Tensor, list[list[Tensor]]]:
        if state is not None and len(state) != len(self.lstm_layers):
            raise RuntimeError(f"state must have {len(self.lstm_layers)} pairs (h, c), got {len(state)}")
        x = self.input_layer_norm(self.embedding(input.permute(1, 0)))
        finals = []
        for n, lstm in enumerate(self.lstm_layers):
            hx = None if state is None else tuple(s.unsqueeze(0) for s in state[n])
            x, final = lstm(x, hx)
            x = self.dropout(x)
            finals.append([s.squeeze(0) for s in final])
        return self.output_layer_norm(self.linear(x)).transpose(0, 1), lengths, finals


def _begin_as_torchaudio(lstm: Any) -> None:
    """Its input side is a torch.nn.Linear, with a bias where nothing normalises; it has no `bias_hh`."""
    bound = lstm.input_size**-0.5
    nn.init.uniform_(lstm.weight_ih_l0, -bound, bound)
    if lstm._norm is None:
        nn.init.uniform_(lstm.bias_ih_l0, -bound, bound)
    nn.init.zeros_(lstm.bias_hh_l0.requires_grad_(False))


# What torchaudio calls the weights of a layer.
_OF_TORCHAUDIO = {
    "x2g.weight": "weight_ih_l0",
    "x2g.bias": "bias_ih_l0",
    "p2g.weight": "weight_hh_l0",
    "g_norm.weight": "norm_hh_weight_l0",
    "g_norm.bias": "bias_ih_l0",
    "c_norm.weight": "norm_c_weight_l0",
    "c_norm.bias": "norm_c_bias_l0",
}


def _from_torchaudio(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Gives weights that torchaudio has saved the names that they have here."""
    layers = f"{prefix}lstm_layers."
    for name in [name for name in state_dict if name.startswith(layers)]:
        layer, theirs = name.removeprefix(layers).partition(".")[::2]
        own = _OF_TORCHAUDIO.get(theirs)
        if own is None:
            continue
        weight = state_dict.pop(name)
        state_dict[f"{layers}{layer}.{own}"] = weight
        if own == "bias_ih_l0":
            state_dict[f"{layers}{layer}.bias_hh_l0"] = torch.zeros_like(weight)
