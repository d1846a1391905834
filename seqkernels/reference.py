"""The recurrent layers in plain, differentiable torch: the ground truth of every kernel.

Each cell is one function of one time step that reads like its equations; `_scan` runs it over time, and with
what happens to states between steps beside it (`_Transition`), for padded and for packed input. The shapes
are those of the native ops::

    x        [T, B, I] padded, or [rows, I] packed with `batch_sizes` [T]
    h0, c0   [D, B, H]            D = 1 or 2 directions, the reverse one second
    weights  w_ih [G*H, I], w_hh [G*H, H] and, with a bias, b_ih [G*H], b_hh [G*H]; the directions one after
             the other
    output   [T, B, D*H] or [rows, D*H]
    h_n, c_n [D, B, H]

Everything here runs on any device, is differentiable any number of times, and works under `torch.func`. With
float16 and bfloat16, sums and the cell state are float32 and only `h` is rounded, at every step, as in the
kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

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
    *,
    mask: Tensor | None = None,  # as h, its factors where it meets w_hh; likewise below
) -> tuple[Tensor, Tensor]:
    """One step of the LSTM: Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000.

    The optional projection `w_hr` is that of Sak et al. 2014, https://arxiv.org/abs/1402.1128.
    """
    i, f, g, o = (input_gates + linear(_masked(h, mask), w_hh, b_hh)).chunk(4, dim=-1)
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
    *,
    mask: Tensor | None = None,
) -> tuple[Tensor]:
    """One step of the GRU of cuDNN: Cho et al. 2014, https://arxiv.org/abs/1406.1078, version 1.

    The reset gate comes after the product.
    """
    x_r, x_z, x_n = input_gates.chunk(3, dim=-1)
    h_r, h_z, h_n = linear(_masked(h, mask), w_hh, b_hh).chunk(3, dim=-1)
    r = (x_r + h_r).sigmoid()
    z = (x_z + h_z).sigmoid()
    n = (x_n + r * h_n).tanh()
    return ((1 - z) * n + z * h,)


def gru_reset_before_step(
    input_gates: Tensor,  # [B, 3H], x W_ihᵀ + b_ih
    h: Tensor,  # [B, H]
    w_hh: Tensor,  # [3H, H]
    b_hh: Tensor | None = None,  # [3H]
    *,
    mask: Tensor | None = None,
) -> tuple[Tensor]:
    """One step of the GRU whose reset gate comes before the product: the same paper, version 3."""
    hidden = h.size(-1)
    x_rz, x_n = input_gates.split((2 * hidden, hidden), dim=-1)
    w_rz, w_n = w_hh.split((2 * hidden, hidden))
    b_rz, b_n = (None, None) if b_hh is None else b_hh.split((2 * hidden, hidden))
    r, z = (x_rz + linear(_masked(h, mask), w_rz, b_rz)).sigmoid().chunk(2, dim=-1)
    n = (x_n + linear(_masked(r * h, mask), w_n, b_n)).tanh()
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
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One step of the layer-normalised LSTM: Ba, Kiros, Hinton 2016, https://arxiv.org/abs/1607.06450."""
    hidden_gates = _normalized(linear(_masked(h, mask), w_hh), norm_hh, b_hh, norm_eps)
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
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One step of the LSTM of torchaudio's RNN-T predictor: the sum of both sides is normalised, and c."""
    gates = _normalized(input_gates + linear(_masked(h, mask), w_hh), norm_hh, bias, norm_eps)
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
    mask: Tensor | None = None,
) -> tuple[Tensor]:
    """One step of the layer-normalised GRU, from the supplement of the same paper."""
    hidden_gates = _normalized_gru_gates(linear(_masked(h, mask), w_hh), norm_hh, b_hh, norm_eps)
    x_r, x_z, x_n = input_gates.chunk(3, dim=-1)
    h_r, h_z, h_n = hidden_gates.chunk(3, dim=-1)
    r = (x_r + h_r).sigmoid()
    z = (x_z + h_z).sigmoid()
    n = (x_n + r * h_n).tanh()
    return ((1 - z) * n + z * h,)


def _masked(h: Tensor, mask: Tensor | None) -> Tensor:
    return h if mask is None else h * mask


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
    mask: Tensor | None = None,
) -> tuple[Tensor]:
    """One step of the Elman network: Elman 1990, doi:10.1207/s15516709cog1402_1."""
    return (activation(input_gates + linear(_masked(h, mask), w_hh, b_hh)),)


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
    *,
    step: Step | None = None,
    **options: Any,
) -> tuple[Tensor, ...]:
    """One layer of a cell, all its directions: `(output, *final_states)`.

    Of an LSTM, a projection is recognised by its fifth (without biases: third) weight per direction, `w_hr`
    [P, H]; `h0`, `h_n` and each direction of `output` then have P features instead of H. Normalised cells
    have `norm_ih` and `norm_hh` [G*H] there (of "lstm_layer_norm_joint" `norm_hh` alone), LSTMs then `norm_c`
    and `norm_c_bias` [H].

    Args:
        cell: Its name.
        x, states, weights: As above.
        batch_sizes: Of a packed sequence.
        norm_eps: Added to the variances of a normalised cell.
        step: What runs in place of the cell's step.
        **options: The other fields of `Options`, which the ops have by the same names. With
            `return_cell_states`, c of every step is the last result, [T, B, D*H] or [rows, D*H].

    Example:
        >>> x, h0 = torch.randn(5, 3, 8), torch.zeros(1, 3, 16)
        >>> weights = [torch.randn(16, 8), torch.randn(16, 16)]
        >>> output, h_n = seqkernels.reference.layer("rnn_tanh", x, [h0], weights)
        >>> output.shape
        torch.Size([5, 3, 16])
    """
    given = Options(batch_sizes, norm_eps=norm_eps, **options)
    return _layer(cell, x, tuple(states), weights, given, step or STEPS[cell])


@dataclass(frozen=True)
class Options:
    """What a layer does beside its cell; csrc/layer.h has the same for the kernels."""

    batch_sizes: Tensor | None = None  # [T] of a packed sequence
    reverse: bool = False  # the only direction goes from the last step to the first
    lengths: Tensor | None = None  # [B] of padded sequences
    reset_mask: Tensor | None = None  # bool, one a row: the state before it is zero
    recurrent_mask: Tensor | None = None  # [D, B, P] factors of h where it meets w_hh
    zoneout_h: Tensor | None = None  # bool, like output: units that keep the value before the step
    zoneout_h_rate: float = 0.0  # without: so much of that value is kept
    zoneout_c: Tensor | None = None  # the same of c
    zoneout_c_rate: float = 0.0
    return_cell_states: bool = False
    norm_eps: float = 1e-5


def _layer(
    cell: str,
    x: Tensor,
    state0: tuple[Tensor, ...],  # each [D, B, H]
    weights: Sequence[Tensor],
    options: Options,
    step: Step,
) -> tuple[Tensor, ...]:
    """Run the steps of the sequence in every direction: `(output, *final_states)`, and c of every step."""
    info, dtype, norm_eps = CELLS[cell], x.dtype, options.norm_eps
    if info.is_normalized:
        step = partial(step, norm_eps=norm_eps)
    if options.lengths is not None:  # so that no gradient of padding is there, whatever it holds
        x = torch.where(_is_inside(options.lengths, x), x, 0)
    if dtype in _NARROW:
        x, *rest = _widen(x, *state0, *weights)
        state0, weights = tuple(rest[: len(state0)]), rest[len(state0) :]

    directions = state0[0].size(0)
    per_direction = len(weights) // directions
    has_biases = per_direction == info.weights(True)
    sizes = None if options.batch_sizes is None else options.batch_sizes.tolist()
    results, finals = [], []
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
        result, final = _scan(
            partial(_step_with, step, (w_hh, b_hh, *extra)),
            _by_step(input_gates, sizes),
            tuple(s[d] for s in state0),
            dtype,
            _Transition(options, d, directions, sizes),
        )
        results.append(result)
        finals.append(final)

    rows = []
    for parts in list(zip(*results, strict=True))[: 1 + options.return_cell_states]:
        # The rows of all steps are one after another; a padded sequence gets its time dimension back.
        whole = parts[0] if directions == 1 else torch.cat(parts, dim=-1)
        if sizes is None:
            whole = whole.view(x.size(0), state0[0].size(1), whole.size(-1))
        rows.append(_to(whole, dtype))
    last = tuple(_to(torch.stack(f), dtype) for f in zip(*finals, strict=True))
    return rows[0], *last, *rows[1:]


class _Transition:
    """What happens to the states of one direction between steps."""

    def __init__(self, options: Options, direction: int, directions: int, sizes: list[int] | None) -> None:
        def own(mask: Tensor | None) -> Sequence[Tensor] | None:  # [.., D*H] of every step, [B_t, H]
            return None if mask is None else _by_step(mask.chunk(directions, dim=-1)[direction], sizes)

        self.reverse = direction == 1 or options.reverse
        self.lengths = options.lengths
        self.resets = None if options.reset_mask is None else _by_step(options.reset_mask, sizes)
        self.mask = None if options.recurrent_mask is None else options.recurrent_mask[direction]
        self.zoneout = (
            (own(options.zoneout_h), options.zoneout_h_rate),
            (own(options.zoneout_c), options.zoneout_c_rate),
        )

    def before(self, t: int, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The state that step t starts from: zeros after a reset, which a later row in time speaks of."""
        later = t + 1 if self.reverse else t
        if self.resets is None or later == len(self.resets):
            return state
        reset = self.resets[later]
        if self.lengths is not None:  # what padding holds says nothing
            reset = reset & (later < self.lengths)
        if len(reset) < len(state[0]):  # sequences that start here backwards
            reset = torch.cat([reset, reset.new_zeros(len(state[0]) - len(reset))])
        return tuple(torch.where(reset.unsqueeze(1), 0, s) for s in state)

    def after(self, t: int, before: tuple[Tensor, ...], made: tuple[Tensor, ...]) -> list[Tensor]:
        """The state after step t: some units keep the value that they had before."""
        state = []
        for kept, new, (flags, rate) in zip(before, made, self.zoneout, strict=False):
            if flags is not None:
                new = torch.where(flags[t], kept, new)
            elif rate > 0:
                new = rate * kept + (1 - rate) * new
            state.append(new)
        return state


def _by_step(rows: Tensor, sizes: list[int] | None) -> Sequence[Tensor]:
    return rows.unbind(0) if sizes is None else rows.split(sizes)


def _is_inside(lengths: Tensor, x: Tensor) -> Tensor:
    """Which rows of x belong to a sequence, [T, B, 1]."""
    return (torch.arange(x.size(0), device=x.device).unsqueeze(1) < lengths).unsqueeze(2)


def _step_with(
    step: Step, weights: Sequence[Tensor | None], *given: Tensor, **kwargs: Tensor
) -> tuple[Tensor, ...]:
    return step(*given, *weights, **kwargs)


def _scan(
    step: Step,
    inputs: Sequence[Tensor],  # per step [B_t, G*H]; B_t never grows over time
    state: tuple[Tensor, ...],  # each [B, H]
    dtype: torch.dtype,
    transition: _Transition,
) -> tuple[list[Tensor], tuple[Tensor, ...]]:
    """The time loop: `h`, and `c`, of every step, each [rows, H], and the final state."""
    steps = list(range(len(inputs)))
    made: list[tuple[Tensor, ...]] = []
    for t in reversed(steps) if transition.reverse else steps:
        rows = len(inputs[t])  # the sequences that have this step come first, the others keep their state
        kept = tuple(s[:rows] for s in state)
        before = transition.before(t, kept)
        if transition.lengths is not None:  # what is no step is computed, too, and is to leave no trace
            inside = (t < transition.lengths).unsqueeze(1)
            before = tuple(torch.where(inside, s, 0) for s in before)
        mask = {} if transition.mask is None else {"mask": transition.mask[:rows]}
        h, *c = transition.after(t, before, step(inputs[t], *before, **mask))
        if dtype in _NARROW:
            h = h.to(dtype).to(h.dtype)
        new = (h, *c)
        made.append(new)
        if transition.lengths is not None:
            made[-1] = tuple(torch.where(inside, s, 0) for s in new)
            new = tuple(torch.where(inside, s, k) for s, k in zip(new, kept, strict=True))
        if rows == len(state[0]):
            state = new
        else:
            state = tuple(torch.cat((n, old[rows:])) for n, old in zip(new, state, strict=True))
    if transition.reverse:
        made.reverse()
    return [torch.cat(s) if s else state[i][:0] for i, s in enumerate(_columns(made, len(state)))], state


def _columns(rows: Sequence[tuple[Tensor, ...]], count: int) -> list[list[Tensor]]:
    return [[row[i] for row in rows] for i in range(count)]


def _widen(*tensors: Tensor) -> tuple[Tensor, ...]:
    """16-bit tensors as float32; here a mixture of dtypes would pass unseen, so it is refused first."""
    dtypes = {t.dtype: None for t in tensors}
    if len(dtypes) > 1:
        raise RuntimeError(f"expected one dtype throughout, but got {' and '.join(map(str, dtypes))}")
    return tuple(t.float() for t in tensors)


def _to(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Back to a 16-bit dtype; any other result already has the dtype its operands gave it."""
    return tensor.to(dtype) if dtype in _NARROW else tensor
