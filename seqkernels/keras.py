"""Weights of Keras's recurrent layers, for modules of seqkernels and torch.nn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ._options import Norm

__all__ = ["load"]

Recurrent = TypeVar("Recurrent", bound=nn.Module)

# Where Keras has each gate of torch.nn. Of an LSTM, i, f, g, o are its i, f, c, o; of a GRU, which it has as
# z, r, h, torch.nn has r, z, n.
GATES: dict[tuple[type[nn.Module], ...], tuple[int, ...]] = {
    (nn.LSTM, nn.LSTMCell): (0, 1, 2, 3),
    (nn.GRU, nn.GRUCell): (1, 0, 2),
    (nn.RNN, nn.RNNCell): (0,),
}
NAMES = ("kernel", "recurrent_kernel", "bias")


@torch.no_grad()
def load(
    module: Recurrent, weights: Sequence[Any], reverse_weights: Sequence[Any] | None = None
) -> Recurrent:
    """Set the weights of a recurrent layer or cell to those of a Keras layer, in place.

    Keras has matrices transposed, the gates of a GRU in another order, and one bias where torch.nn has two.
    With the gates in torch.nn's order::

        weight_ih = kernelᵀ,  weight_hh = recurrent_kernelᵀ
        bias_ih, bias_hh = bias, 0              LSTM, SimpleRNN, GRU with reset_after=False
        bias_ih, bias_hh = bias[0], bias[1]     GRU with reset_after=True, the default of Keras 3

    The module then computes what the Keras layer does, if these agree, of which weights say nothing:

    - `reset_after` of a GRU must be that of the module; one without such an option, as torch.nn's, has True.
      The shape of the bias tells which one Keras had. Without biases nothing does, and it is not checked.
    - `activation` must be "tanh" (of a SimpleRNN "relu", where the module has `nonlinearity="relu"`) and
      `recurrent_activation` "sigmoid", the defaults of Keras 3. Old models may have "hard_sigmoid".
    - Inputs of Keras are [B, T, I], as those of a module with `batch_first=True`.
    - `Bidirectional` must have `merge_mode="concat"`, its default.
    - `return_sequences`, `go_backwards`, `stateful`, masks and dropout are no weights: they are left to you.

    Args:
        module: A `FusedLSTM`, `FusedGRU` or `FusedRNN` with one layer, one of the Cells, or one of torch.nn's
            classes of that name. Its dtype and device are kept.
        weights: What `get_weights()` of the Keras layer returns, a list of numpy arrays; tensors and nested
            lists of numbers will do. Of a `Bidirectional`, those of its `forward_layer`.
        reverse_weights: For a bidirectional module, those of the `backward_layer`. `get_weights()` of the
            `Bidirectional` itself returns both lists as one, this one last.

    Shapes:
        weights: [kernel [I, G*H], recurrent_kernel [H, G*H], bias [G*H]], with H units and G gates, 4 of an
            LSTM, 3 of a GRU, 1 of an RNN; the bias is [2, 3H] for a GRU with
            reset_after=True, and absent for a module with `bias=False`.
        reverse_weights: The same.

    Returns:
        `module`.

    Raises:
        TypeError: `module` is none of these, or the weights are no list.
        ValueError: The weights do not fit the module in number or shape; its `reset_after` is not theirs; it
            has several layers, a projection, a norm or parametrized weights. Nothing has changed then.

    Source: the layouts are those of https://keras.io/api/layers/recurrent_layers/gru/ and its neighbours.

    Example:
        >>> kernel, recurrent_kernel, bias = torch.randn(8, 48), torch.randn(16, 48), torch.randn(2, 48)
        >>> gru = seqkernels.FusedGRU(8, 16, batch_first=True)
        >>> gru = seqkernels.keras.load(gru, [kernel, recurrent_kernel, bias])  # keras_layer.get_weights()
        >>> torch.equal(gru.weight_ih_l0[:16], kernel[:, 16:32].t())  # the reset gate
        True
    """
    kind = type(module).__name__
    gates = next((order for classes, order in GATES.items() if isinstance(module, classes)), None)
    if gates is None:
        raise TypeError(f"module must be an LSTM, GRU or RNN, or the Cell of one, not {kind}")
    if (layers := getattr(module, "num_layers", 1)) != 1:
        raise ValueError(f"module must have num_layers=1, as a layer of Keras has, but it has {layers}")
    if proj_size := getattr(module, "proj_size", 0):
        raise ValueError(f"module must have no projection, as no layer of Keras has, but has {proj_size=}")
    if isinstance(module, Norm) and module._norm:
        raise ValueError(f"module must have norm=None, as no layer of Keras has one, not {module._norm!r}")
    bidirectional = getattr(module, "bidirectional", False)
    if bidirectional and reverse_weights is None:
        raise ValueError(f"reverse_weights must be given for this {kind}: it is bidirectional")
    if reverse_weights is not None and not bidirectional:
        raise ValueError(f"reverse_weights must be None for this {kind}: it is not bidirectional")

    suffix = "_l0" if isinstance(module, nn.RNNBase) else ""
    new = _converted(module, gates, "weights", weights, suffix)
    if reverse_weights is not None:
        new |= _converted(module, gates, "reverse_weights", reverse_weights, f"{suffix}_reverse")
    parameters = dict(module.named_parameters(recurse=False))
    if strange := new.keys() - parameters.keys():
        raise ValueError(f"{min(strange)} is no parameter of this {kind}: is it parametrized or pruned?")
    for name, value in new.items():
        parameters[name].copy_(value)
    return module


def _converted(
    module: Any, gates: Sequence[int], argument: str, weights: Sequence[Any], suffix: str
) -> dict[str, Tensor]:
    """What the parameters of one direction become, by their names."""
    if not isinstance(weights, (list, tuple)):
        raise TypeError(f"{argument} must be a list, as get_weights() returns, not {type(weights).__name__}")
    names = NAMES if module.bias else NAMES[:2]
    if len(weights) != len(names):
        layout = f"[{', '.join(names)}] for a module with bias={bool(module.bias)}"
        raise ValueError(f"{argument} must be {layout}, got {len(weights)} arrays")

    columns = len(gates) * module.hidden_size
    reset_after = isinstance(module, (nn.GRU, nn.GRUCell)) and getattr(module, "reset_after", True)
    # The shape of a bias, by reset_after.
    biases = {True: [2, columns], False: [columns]}
    shapes = [[module.input_size, columns], [module.hidden_size, columns], biases[reset_after]]
    tensors = []
    for n, (name, array, expected) in enumerate(zip(names, weights, shapes, strict=False)):
        what = f"{argument}[{n}], the {name},"
        tensor = _tensor(what, array)
        shape = list(tensor.shape)
        if name == "bias" and len(gates) == 3 and shape == biases[not reset_after]:
            raise ValueError(
                f"{what} is {shape}, that of a GRU with reset_after={not reset_after}; this "
                f"{type(module).__name__} has reset_after={reset_after}, for which it must be {expected}: "
                f"make a FusedGRU or FusedGRUCell with reset_after={not reset_after} to load it"
            )
        if shape != expected:
            raise ValueError(f"{what} must be {expected} for this {type(module).__name__}, got {shape}")
        tensors.append(tensor)

    kernel, recurrent_kernel, *bias = tensors
    new = {"weight_ih": kernel.t(), "weight_hh": recurrent_kernel.t()}
    if bias:
        new["bias_ih"], new["bias_hh"] = bias[0] if reset_after else (bias[0], torch.zeros_like(bias[0]))
    blocks = {f"{name}{suffix}": rows.chunk(len(gates)) for name, rows in new.items()}
    return {name: torch.cat([block[gate] for gate in gates]) for name, block in blocks.items()}


def _tensor(what: str, array: Any) -> Tensor:
    try:
        if hasattr(array, "astype"):  # Torch does not know all dtypes, byte orders and strides of numpy.
            array = array.astype("float64")
        return torch.as_tensor(array, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{what} must be an array of numbers, not this {type(array).__name__}") from error
