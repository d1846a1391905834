"""The layers and cells of torch.nn, running on fused kernels.

Every class is a subclass of its torch.nn namesake and takes over its constructor, parameters and state_dict.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._fused import Given, _FusedCell, _FusedLayer
from ._options import CellStates, ForgetBias, Norm, Regularization, ResetAfter, Zoneout
from .cells import RNN_MODES
from .spec import NORMS

__all__ = ["FusedGRU", "FusedGRUCell", "FusedLSTM", "FusedLSTMCell", "FusedRNN", "FusedRNNCell"]


class FusedLSTM(ForgetBias, Norm, Regularization, CellStates, _FusedLayer, torch.nn.LSTM):
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

    def forward(
        self,
        input: Any,
        hx: Any = None,
        reset_mask: Tensor | None = None,
        lengths: Tensor | None = None,
    ) -> Any:
        return self._forward(input, hx, Given.of(reset_mask, lengths))


class FusedGRU(Norm, ResetAfter, Regularization, _FusedLayer, torch.nn.GRU):
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

    def forward(
        self,
        input: Any,
        hx: Any = None,
        reset_mask: Tensor | None = None,
        lengths: Tensor | None = None,
    ) -> Any:
        return self._forward(input, hx, Given.of(reset_mask, lengths))


class FusedRNN(Regularization, _FusedLayer, torch.nn.RNN):
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

    def forward(
        self,
        input: Any,
        hx: Any = None,
        reset_mask: Tensor | None = None,
        lengths: Tensor | None = None,
    ) -> Any:
        return self._forward(input, hx, Given.of(reset_mask, lengths))


class FusedLSTMCell(ForgetBias, Zoneout, _FusedCell, torch.nn.LSTMCell):
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
    _has_cell_state = True

    def forward(
        self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None, reset_mask: Tensor | None = None
    ) -> Any:
        return self._forward("lstm", input, hx, reset_mask)


class FusedGRUCell(ResetAfter, Zoneout, _FusedCell, torch.nn.GRUCell):
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

    def forward(self, input: Tensor, hx: Tensor | None = None, reset_mask: Tensor | None = None) -> Any:
        return self._forward(self._cell, input, hx, reset_mask)


class FusedRNNCell(Zoneout, _FusedCell, torch.nn.RNNCell):
    """`torch.nn.RNNCell` on fused kernels: the same arguments, state_dict, inputs, outputs and errors.

    Args:
        *args, **kwargs: As for `torch.nn.RNNCell`.
        backend: As for `FusedLSTM`.

    Example:
        >>> seqkernels.FusedRNNCell(8, 16, nonlinearity="relu")(torch.randn(3, 8)).shape
        torch.Size([3, 16])
    """

    _like = torch.nn.RNNCell

    def forward(self, input: Tensor, hx: Tensor | None = None, reset_mask: Tensor | None = None) -> Any:
        return self._forward(f"rnn_{self.nonlinearity}", input, hx, reset_mask)
