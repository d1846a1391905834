"""Networks built from recurrent layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

__all__ = ["StackedRNN"]

SKIPS = (None, "residual", "concat")


class StackedRNN(nn.Module):
    """A deep stack of recurrent layers, optionally with connections that skip layers.

    With f_l the l-th layer of L, D its directions, and x_0 the input:

        skip=None        x_{l+1} = f_l(x_l)                the stack that torch.nn makes of num_layers
        skip="residual"  x_{l+1} = x_l + f_l(x_l)          He et al. 2015, arXiv:1512.03385; for deep LSTMs,
                                                           Wu et al. 2016, arXiv:1609.08144
        skip="concat"    x_{l+1} = [x_l ; f_l(x_l)]        Graves 2013, arXiv:1308.0850; with all earlier
                                                           layers, Huang et al. 2016, arXiv:1608.06993

    Both skips give gradients a way back that passes through no recurrent layer. A sum needs equal widths, so
    the first layer of a residual stack has its skip only where `input_size` is D*H. While training, dropout
    is applied to f_l(x_l) for every layer but the last, before it is added or appended.

    Args:
        layer: What a layer is made of, `seqkernels.FusedLSTM`, `FusedGRU`, `FusedRNN`, a torch.nn class, or
            anything that takes the same arguments; it is called with `bidirectional`, `batch_first` and
            `**kwargs`.
        input_size: Features of the input, I.
        hidden_size: Features of each layer's state, H.
        num_layers: L.
        skip: None, "residual" or "concat".
        dropout: Probability of zeroing an element.
        bidirectional: D = 2 instead of 1.
        batch_first: Tensors are [B, T, ...] instead of [T, B, ...]; a PackedSequence and the states are not
        changed. **kwargs: For every layer, such as `bias`, `nonlinearity`, `backend`, `device`, `dtype`.

    Shapes, as for torch.nn's layers:
        input: [T, B, I], [T, I] or a PackedSequence.
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
