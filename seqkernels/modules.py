"""The layers and cells of torch.nn, running on fused kernels.

Every class is a subclass of its torch.nn namesake and takes over its constructor, parameters and state_dict.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._fused import Given, _FusedCell, _FusedLayer
from ._options import CellStates, ForgetBias, LayerOptions, Norm, ResetAfter, Zoneout
from .cells import RNN_MODES
from .spec import NORMS

__all__ = ["FusedGRU", "FusedGRUCell", "FusedLSTM", "FusedLSTMCell", "FusedRNN", "FusedRNNCell"]


class FusedLSTM(ForgetBias, Norm, LayerOptions, CellStates, _FusedLayer, torch.nn.LSTM):
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
        recurrent_dropout: While training, the probability of zeroing a unit of h where it meets W_hh, with
            one mask for all steps of a sequence; the others are multiplied by 1 / (1 - p). Each layer,
            direction and sequence has its own. Gal, Ghahramani, "A theoretically grounded application of
            dropout in recurrent neural networks", 2016, https://arxiv.org/abs/1512.05287.
        zoneout: The probability with which a unit keeps the value that it had before a step, drawn for each
            step and unit while training; in evaluation, the mean of both values. One number for h and c, or a
            pair of them. Krueger et al., "Zoneout: Regularizing RNNs by randomly preserving hidden
            activations", 2017, https://arxiv.org/abs/1606.01305.
        weight_dropout: While training, the probability of zeroing an element of W_hh, drawn once a call; the
            others are multiplied by 1 / (1 - p). Merity, Keskar, Socher, "Regularizing and optimizing LSTM
            language models", 2018, https://arxiv.org/abs/1708.02182.
        recompute: Whether backward computes once more what forward would have saved for it, chunk after chunk
            of steps: less memory, for the time of almost one more forward pass. Results are the same, but in
            float16 and bfloat16 c and gradients are rounded between chunks.
        return_cell_states: Whether `forward` returns c of every step of the last layer, too.

    Options from `recurrent_dropout` on may be set at any time. Masks come from torch's generator of the
    device: a seed repeats them. ValueError for what is no probability, TypeError for what is no number.

    Args of forward beside input and state:
        reset_mask: Bool [T, B] ([B, T] with `batch_first`, [T] for unbatched input, the rows of a
            PackedSequence's data): sequences start anew. Where it is true, nothing passes from step t - 1 to
            step t, nor gradients back: step t starts from a state of zeros, step 0 from zeros instead of
            `hx`; the backward direction starts from zeros at step t - 1. TypeError if it is no bool tensor,
            ValueError if it has another shape.
        lengths: int64 or int32 [B], or a list, in any order, of padded input: how many steps of each sequence
            count, 0 to T. The state does not advance beyond them, the output (and cell states) there are
            zero, and what the input holds there is not read; h_n and c_n are those at the end of each
            sequence, for a length of 0 those of `hx`; the backward direction starts at that end. The same as
            packing and unpacking. TypeError for other dtypes, ValueError for another shape and for lengths
            that are negative or above T. Those that lie on a GPU are looked at only if the environment has
            SEQKERNELS_CHECK_LENGTHS=1, for that waits for it; else they count as 0 and T.

    It returns `(output, (h_n, c_n))`, or with `return_cell_states` `(output, (h_n, c_n), cell_states)`, of
    which the last one is [T, B, D*H], or a PackedSequence, as the output; with proj_size, too.

    Example:
        >>> lstm = seqkernels.FusedLSTM(8, 16, num_layers=2, bidirectional=True)
        >>> output, (h_n, c_n) = lstm(torch.randn(5, 3, 8))
        >>> output.shape, h_n.shape
        (torch.Size([5, 3, 32]), torch.Size([4, 3, 16]))
        >>> done = torch.rand(5, 3) < 0.1  # episodes of reinforcement learning that start at a step
        >>> output, (h_n, c_n) = lstm(torch.randn(5, 3, 8), reset_mask=done)
        >>> lengths = torch.tensor([5, 0, 2])
        >>> lstm = seqkernels.FusedLSTM(8, 16, zoneout=0.1, recurrent_dropout=0.2, return_cell_states=True)
        >>> output, (h_n, c_n), c = lstm(torch.randn(5, 3, 8), lengths=lengths)
        >>> bool((c[1, 2] == c_n[0, 2]).all()), int(output[2:, 2].count_nonzero())
        (True, 0)
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


class FusedGRU(Norm, ResetAfter, LayerOptions, _FusedLayer, torch.nn.GRU):
    """`torch.nn.GRU` on fused kernels: the same arguments, state_dict, inputs, outputs and errors.

    Args:
        *args, **kwargs: As for `torch.nn.GRU`.
        backend, recurrent_dropout, zoneout, weight_dropout, recompute: As for `FusedLSTM`, as are
            `reset_mask` and `lengths` of `forward`; zoneout is a number.
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


class FusedRNN(LayerOptions, _FusedLayer, torch.nn.RNN):
    """`torch.nn.RNN` on fused kernels: the same arguments, state_dict, inputs, outputs and errors.

    Args:
        *args, **kwargs: As for `torch.nn.RNN`.
        backend, recurrent_dropout, zoneout, weight_dropout, recompute: As for `FusedLSTM`, as are
            `reset_mask` and `lengths` of `forward`; zoneout is a number.

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
        backend, forget_bias, zoneout: As for `FusedLSTM`.

    `forward` takes one argument more, `reset_mask`, bool [B] (or [] for unbatched input): where it is true,
    the step starts from zeros instead of `hx`.

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
        backend, zoneout: As for `FusedLSTM`, as is `reset_mask` for `FusedLSTMCell`.
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
        backend, zoneout: As for `FusedLSTM`, as is `reset_mask` for `FusedLSTMCell`.

    Example:
        >>> seqkernels.FusedRNNCell(8, 16, nonlinearity="relu")(torch.randn(3, 8)).shape
        torch.Size([3, 16])
    """

    _like = torch.nn.RNNCell

    def forward(self, input: Tensor, hx: Tensor | None = None, reset_mask: Tensor | None = None) -> Any:
        return self._forward(f"rnn_{self.nonlinearity}", input, hx, reset_mask)
