"""Initial weights for recurrent layers, next to those of `torch.nn.init`."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn
from torch.nn.utils import parametrize

from ._options import reset_norms

__all__ = ["identity_"]

Model = TypeVar("Model", bound=nn.Module)


@torch.no_grad()
def identity_(model: Model, *, gain: float = 1.0, generator: torch.Generator | None = None) -> Model:
    """Recurrent weights that neither shrink nor stretch the state, and zero biases, in place.

    A vanilla RNN gets `gain` times the identity as W_hh. With ReLU and without input it then keeps its state
    as it is, and gradients keep their length on the way back: the IRNN of Le, Jaitly, Hinton, "A simple way
    to initialize recurrent networks of rectified linear units", 2015, arXiv:1504.00941, who use gain 1 for
    tasks with long dependencies and 0.01 for others. For an LSTM or a GRU, each gate's block of W_hh becomes
    `gain` times a random orthogonal matrix of its own (Saxe, McClelland, Ganguli 2013, arXiv:1312.6120);
    `torch.nn.init.orthogonal_` on the whole W_hh [G*H, H] would leave every block to stretch some directions
    and shrink others.

    Input weights, and an LSTM's projection, are left as they are. Norms become those of `torch.nn.LayerNorm`
    again, 1 and 0; the gain then matters by its sign alone, for a norm takes it back.

    Args:
        model: A recurrent layer or cell, of seqkernels or torch.nn, or any module that contains some.
        gain: Factor of the identity and of the orthogonal matrices.
        generator: For the orthogonal matrices; by default torch's own.

    Returns:
        `model`.

    Raises:
        ValueError: There is no recurrent layer in `model`, or one's weights are parametrized, so that setting
            them would change nothing.

    Example:
        >>> rnn = seqkernels.init.identity_(seqkernels.FusedRNN(2, 3, nonlinearity="relu"))
        >>> rnn.weight_hh_l0
        Parameter containing:
        tensor([[1., 0., 0.],
                [0., 1., 0.],
                [0., 0., 1.]], requires_grad=True)
        >>> lstm = seqkernels.init.identity_(seqkernels.FusedLSTM(2, 3))
        >>> i, f, g, o = lstm.weight_hh_l0.detach().chunk(4)
        >>> torch.allclose(f @ f.t(), torch.eye(3), atol=1e-6)
        True
    """
    layers = [m for m in model.modules() if isinstance(m, (nn.RNNBase, nn.RNNCellBase))]
    if not layers:
        raise ValueError(f"there is no recurrent layer in this {type(model).__name__}")
    for layer in layers:
        if parametrize.is_parametrized(layer):
            raise ValueError(f"the weights of this {type(layer).__name__} are parametrized")
    for layer in layers:
        for name, parameter in layer.named_parameters():
            if name.startswith("bias"):
                parameter.zero_()
            elif name.startswith("weight_hh"):
                gates = parameter.chunk(len(parameter) // layer.hidden_size)
                for gate in gates:
                    gate.copy_(_square(gate, len(gates) == 1, gain, generator))
        reset_norms(layer)
    return model


def _square(
    gate: torch.Tensor, identity: bool, gain: float, generator: torch.Generator | None
) -> torch.Tensor:
    """New weights of one gate, [H, H] or with a projection [H, P]; QR wants float32 at least."""
    if identity:
        return gain * torch.eye(*gate.shape, dtype=gate.dtype, device=gate.device)
    wide = torch.promote_types(gate.dtype, torch.float32)
    return nn.init.orthogonal_(torch.empty_like(gate, dtype=wide), gain, generator=generator)
