"""The recurrent layers in plain, differentiable torch: the ground truth of every kernel.

Each cell is one function of one time step that reads like its equations; `_layer` runs it over time, forwards
and backwards, for padded and for packed input. The shapes are those of the native ops:

    x        [T, B, I] padded, or [rows, I] packed with `batch_sizes` [T]
    h0, c0   [D, B, H]            D = 1 or 2 directions, the reverse one second
    weights  w_ih [G*H, I], w_hh [G*H, H] and, with a bias, b_ih [G*H], b_hh [G*H]; the directions
    concatenated output   [T, B, D*H] or [rows, D*H]
    h_n, c_n [D, B, H]

Everything here runs on any device, is differentiable any number of times, and works under `torch.func`. With
float16 and bfloat16, sums and the cell state are float32 and only `h` is rounded, at every step, as in the
kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import linear

from .cells import CELLS

Step = Callable[..., tuple[Tensor, ...]]

_NARROW = (torch.float16, torch.bfloat16)


def lstm_step(
    input_gates: Tensor,  # [B, 4H], x W_ihᵀ + b_ih
    h: Tensor,  # [B, H], or [B, P] with a projection
    c: Tensor,  # [B, H]
    w_hh: Tensor,  # [4H, H], or [4H, P]
    b_hh: Tensor | None = None,  # [4H]
    w_hr: Tensor | None = None,  # [P, H]
) -> tuple[Tensor, Tensor]:
    """One step of the LSTM: Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000.

    The optional projection `w_hr` is that of Sak et al. 2014, https://arxiv.org/abs/1402.1128.
    """
    i, f, g, o = (input_gates + linear(h, w_hh, b_hh)).chunk(4, dim=-1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    h = o.sigmoid() * c.tanh()
    if w_hr is not None:
        h = linear(h, w_hr)
    return h, c


def gru_step(
    input_gates: Tensor,  # [B, 3H], x W_ihᵀ + b_ih
    h: Tensor,  # [B, H]
    w_hh: Tensor,  # [3H, H]
    b_hh: Tensor | None = None,  # [3H]
) -> tuple[Tensor]:
    """One step of the GRU of cuDNN: Cho et al. 2014, https://arxiv.org/abs/1406.1078, version 1.

    The reset gate comes after the product.
    """
    x_r, x_z, x_n = input_gates.chunk(3, dim=-1)
    h_r, h_z, h_n = linear(h, w_hh, b_hh).chunk(3, dim=-1)
    r = (x_r + h_r).sigmoid()
    z = (x_z + h_z).sigmoid()
    n = (x_n + r * h_n).tanh()
    return ((1 - z) * n + z * h,)


def gru_reset_before_step(
    input_gates: Tensor,  # [B, 3H], x W_ihᵀ + b_ih
    h: Tensor,  # [B, H]
    w_hh: Tensor,  # [3H, H]
    b_hh: Tensor | None = None,  # [3H]
) -> tuple[Tensor]:
    """One step of the GRU whose reset gate comes before the product: the same paper, version 3."""
    hidden = h.size(-1)
    x_rz, x_n = input_gates.split((2 * hidden, hidden), dim=-1)
    w_rz, w_n = w_hh.split((2 * hidden, hidden))
    b_rz, b_n = (None, None) if b_hh is None else b_hh.split((2 * hidden, hidden))
    r, z = (x_rz + linear(h, w_rz, b_rz)).sigmoid().chunk(2, dim=-1)
    n = (x_n + linear(r * h, w_n, b_n)).tanh()
    return ((1 - z) * n + z * h,)


def lstm_layer_norm_step(
    input_gates: Tensor,  # [B, 4H], LN(x W_ihᵀ) + b_ih
    h: Tensor,  # [B, H]
    c: Tensor,  # [B, H]
    w_hh: Tensor,  # [4H, H]
    b_hh: Tensor | None,  # [4H]
    norm_hh: Tensor,  # [4H]
    norm_c: Tensor,  # [H]
    norm_c_bias: Tensor,  # [H]
    *,
    norm_eps: float,
) -> tuple[Tensor, Tensor]:
    """One step of the layer-normalised LSTM: Ba, Kiros, Hinton 2016, https://arxiv.org/abs/1607.06450."""
    hidden_gates = _normalized(linear(h, w_hh), norm_hh, b_hh, norm_eps)
    i, f, g, o = (input_gates + hidden_gates).chunk(4, dim=-1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * _normalized(c, norm_c, norm_c_bias, norm_eps).tanh(), c


def lstm_layer_norm_joint_step(
    input_gates: Tensor,  # [B, 4H], x W_ihᵀ
    h: Tensor,  # [B, H]
    c: Tensor,  # [B, H]
    w_hh: Tensor,  # [4H, H]
    bias: Tensor | None,  # [4H], b_ih + b_hh
    norm_hh: Tensor,  # [4H]
    norm_c: Tensor,  # [H]
    norm_c_bias: Tensor,  # [H]
    *,
    norm_eps: float,
) -> tuple[Tensor, Tensor]:
    """One step of the LSTM of torchaudio's RNN-T predictor: the sum of both sides is normalised, and c."""
    gates = _normalized(input_gates + linear(h, w_hh), norm_hh, bias, norm_eps)
    i, f, g, o = gates.chunk(4, dim=-1)
    c = _normalized(f.sigmoid() * c + i.sigmoid() * g.tanh(), norm_c, norm_c_bias, norm_eps)
    return o.sigmoid() * c.tanh(), c


def gru_layer_norm_step(
    input_gates: Tensor,  # [B, 3H], LN(x W_ihᵀ) + b_ih, of r and z together and of n
    h: Tensor,  # [B, H]
    w_hh: Tensor,  # [3H, H]
    b_hh: Tensor | None,  # [3H]
    norm_hh: Tensor,  # [3H]
    *,
    norm_eps: float,
) -> tuple[Tensor]:
    """One step of the layer-normalised GRU, from the supplement of the same paper."""
    hidden_gates = _normalized_gru_gates(linear(h, w_hh), norm_hh, b_hh, norm_eps)
    x_r, x_z, x_n = input_gates.chunk(3, dim=-1)
    h_r, h_z, h_n = hidden_gates.chunk(3, dim=-1)
    r = (x_r + h_r).sigmoid()
    z = (x_z + h_z).sigmoid()
    n = (x_n + r * h_n).tanh()
    return ((1 - z) * n + z * h,)


def _normalized(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """torch.nn.functional.layer_norm of the last dimension, whose third derivative torch has wrong."""
    for t in (weight,) if bias is None else (weight, bias):
        if t.shape != x.shape[-1:]:  # which would be broadcast
            raise RuntimeError(f"weights of a norm must have size {list(x.shape[-1:])}, got {list(t.shape)}")
    distance = x - x.mean(-1, keepdim=True)
    result = distance * (distance.square().mean(-1, keepdim=True) + eps).rsqrt() * weight
    return result if bias is None else result + bias


def _normalized_gru_gates(gates: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """r and z together, and n."""
    n = gates.size(-1) // 3 * 2  # where its part begins
    of_rz, of_n = (None, None) if bias is None else (bias[:n], bias[n:])
    rz = _normalized(gates[..., :n], weight[:n], of_rz, eps)
    return torch.cat([rz, _normalized(gates[..., n:], weight[n:], of_n, eps)], dim=-1)


def rnn_step(
    input_gates: Tensor,  # [B, H], x W_ihᵀ + b_ih
    h: Tensor,  # [B, H]
    w_hh: Tensor,  # [H, H]
    b_hh: Tensor | None = None,  # [H]
    *,
    activation: Callable[[Tensor], Tensor] = torch.tanh,
) -> tuple[Tensor]:
    """One step of the Elman network: Elman 1990, doi:10.1207/s15516709cog1402_1."""
    return (activation(input_gates + linear(h, w_hh, b_hh)),)


# The step of every cell, by its name.
STEPS: dict[str, Step] = {
    "lstm": lstm_step,
    "lstm_projected": lstm_step,
    "lstm_layer_norm": lstm_layer_norm_step,
    "lstm_layer_norm_joint": lstm_layer_norm_joint_step,
    "gru": gru_step,
    "gru_reset_before": gru_reset_before_step,
    "gru_layer_norm": gru_layer_norm_step,
    "rnn_tanh": partial(rnn_step, activation=torch.tanh),
    "rnn_relu": partial(rnn_step, activation=torch.relu),
}
# How the cells that normalise x W_ihᵀ do so.
INPUT_NORMS = {"lstm_layer_norm": _normalized, "gru_layer_norm": _normalized_gru_gates}


def layer(
    cell: str,
    x: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None = None,
    norm_eps: float = 1e-5,
) -> tuple[Tensor, ...]:
    """One layer of a cell, all its directions: `(output, *final_states)`.

    Of an LSTM, a projection is recognised by its fifth (without biases: third) weight per direction, `w_hr`
    [P, H]; `h0`, `h_n` and each direction of `output` then have P features instead of H. Normalised cells
    have `norm_ih` and `norm_hh` [G*H] there (of "lstm_layer_norm_joint" `norm_hh` alone), LSTMs then `norm_c`
    and `norm_c_bias` [H].

    Example:
        >>> x, h0 = torch.randn(5, 3, 8), torch.zeros(1, 3, 16)
        >>> weights = [torch.randn(16, 8), torch.randn(16, 16)]
        >>> output, h_n = seqkernels.reference.layer("rnn_tanh", x, [h0], weights)
        >>> output.shape
        torch.Size([5, 3, 16])
    """
    output, finals = _layer(cell, x, tuple(states), weights, batch_sizes, norm_eps)
    return output, *finals


def _layer(
    cell: str,
    x: Tensor,
    state0: tuple[Tensor, ...],  # each [D, B, H]
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    norm_eps: float = 1e-5,
    step: Step | None = None,  # instead of the cell's
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Run the steps of the sequence in every direction; the output and the final state."""
    info, dtype = CELLS[cell], x.dtype
    step = step or STEPS[cell]
    if info.is_normalized:
        step = partial(step, norm_eps=norm_eps)
    if dtype in _NARROW:
        x, *rest = _widen(x, *state0, *weights)
        state0, weights = tuple(rest[: len(state0)]), rest[len(state0) :]

    directions = state0[0].size(0)
    per_direction = len(weights) // directions
    has_biases = per_direction == info.weights(True)
    steps = None if batch_sizes is None else batch_sizes.tolist()
    outputs, finals = [], []
    for d in range(directions):
        w_ih, w_hh, *extra = weights[d * per_direction : (d + 1) * per_direction]
        b_ih: Tensor | None = None
        b_hh: Tensor | None = None
        if has_biases:
            b_ih, b_hh, *extra = extra
        if cell in INPUT_NORMS:
            norm_ih, *extra = extra
            input_gates = INPUT_NORMS[cell](linear(x, w_ih), norm_ih, b_ih, norm_eps)
        elif cell == "lstm_layer_norm_joint":  # whose biases come after the norm of the sum
            input_gates = linear(x, w_ih)
            b_hh = b_hh if b_ih is None or b_hh is None else b_ih + b_hh
        else:
            input_gates = linear(x, w_ih, b_ih)
        inputs = input_gates.unbind(0) if steps is None else input_gates.split(steps)
        output, final = _scan(
            partial(_step_with, step, (w_hh, b_hh, *extra)),
            inputs,
            tuple(s[d] for s in state0),
            dtype,
            reverse=d == 1,
        )
        outputs.append(output)
        finals.append(final)

    # The rows of all steps are one after another; a padded sequence gets its time dimension back.
    output = outputs[0] if directions == 1 else torch.cat(outputs, dim=-1)
    if steps is None:
        output = output.view(x.size(0), state0[0].size(1), output.size(-1))
    return _to(output, dtype), tuple(_to(torch.stack(f), dtype) for f in zip(*finals, strict=True))


def _step_with(step: Step, weights: Sequence[Tensor | None], *given: Tensor) -> tuple[Tensor, ...]:
    return step(*given, *weights)


def _scan(
    step: Step,
    inputs: Sequence[Tensor],  # per step [B_t, G*H]; B_t never grows over time
    state: tuple[Tensor, ...],  # each [B, H]
    dtype: torch.dtype,
    reverse: bool,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The time loop: `h` of every step, [rows, H], and the final state."""
    outputs = []
    for gates in reversed(inputs) if reverse else inputs:
        rows = gates.size(0)  # the sequences that have this step come first, the others keep their state
        h, *c = step(gates, *(s[:rows] for s in state))
        if dtype in _NARROW:
            h = h.to(dtype).to(h.dtype)
        outputs.append(h)
        if rows == state[0].size(0):
            state = (h, *c)
        else:
            state = tuple(torch.cat((new, old[rows:])) for new, old in zip((h, *c), state, strict=True))
    if reverse:
        outputs.reverse()
    return torch.cat(outputs) if outputs else state[0][:0], state


def _widen(*tensors: Tensor) -> tuple[Tensor, ...]:
    """16-bit tensors as float32; here a mixture of dtypes would pass unseen, so it is refused first."""
    dtypes = {t.dtype: None for t in tensors}
    if len(dtypes) > 1:
        raise RuntimeError(f"expected one dtype throughout, but got {' and '.join(map(str, dtypes))}")
    return tuple(t.float() for t in tensors)


def _to(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Back to a 16-bit dtype; any other result already has the dtype its operands gave it."""
    return tensor.to(dtype) if dtype in _NARROW else tensor
