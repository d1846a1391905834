"""Layers with layer normalisation inside the recurrence: `norm="layer"` and `norm="layer-joint"`."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence

import seqkernels

from .conftest import assert_close, flat
from .problems import FLOAT64

I, H = 5, 7
EPS = 0.1  # few units with a smaller one would be an ill-conditioned problem
# The class, the norm, and the parameters of a direction beside torch.nn's.
OF_LSTM = ["norm_ih_weight", "norm_hh_weight", "norm_c_weight", "norm_c_bias"]
NORMS: dict[str, tuple[type[nn.RNNBase], str, list[str]]] = {
    "LSTM": (seqkernels.FusedLSTM, "layer", OF_LSTM),
    "joint": (seqkernels.FusedLSTM, "layer-joint", OF_LSTM[1:]),
    "GRU": (seqkernels.FusedGRU, "layer", OF_LSTM[:2]),
}
NAMES = tuple(NORMS)
OPTIONS: list[dict[str, Any]] = [
    {},
    {"bias": False, "bidirectional": True},
    {"num_layers": 2, "batch_first": True},
    {"num_layers": 2, "bidirectional": True},
]


def make(name: str, inputs: int = I, hidden: int = H, **options: Any) -> Any:
    """A layer whose parameters all differ from what they are at first."""
    cls, norm, _ = NORMS[name]
    layer = cls(inputs, hidden, norm=norm, **{"norm_eps": EPS, **options})
    with torch.no_grad():
        for key, parameter in layer.named_parameters():
            if "bias" in key or "norm" in key:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return layer


# ---------------------------------------------------------------- equations


def normalized(v: Tensor, weight: Tensor, bias: Tensor | float, eps: float) -> Tensor:
    distance = v - v.mean(-1, keepdim=True)
    return weight * distance / (distance.square().mean(-1, keepdim=True) + eps).sqrt() + bias


def step(name: str, eps: float, w: dict[str, Tensor], x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, ...]:
    """Ba, Kiros, Hinton 2016, equations 20 to 22 and the supplement's GRU; torchaudio's _CustomLSTM."""
    of_x, of_h = x @ w["weight_ih"].t(), h @ w["weight_hh"].t()
    b_ih, b_hh = (
        w.get(key, torch.zeros(len(w["weight_ih"]), dtype=x.dtype)) for key in ("bias_ih", "bias_hh")
    )
    if name == "GRU":
        rz, n = slice(2 * h.size(-1)), slice(2 * h.size(-1), None)
        x_rz, x_n = (normalized(of_x[..., s], w["norm_ih_weight"][s], b_ih[s], eps) for s in (rz, n))
        h_rz, h_n = (normalized(of_h[..., s], w["norm_hh_weight"][s], b_hh[s], eps) for s in (rz, n))
        r, z = torch.sigmoid(x_rz + h_rz).chunk(2, -1)
        return (1 - z) * torch.tanh(x_n + r * h_n) + z * h, c
    if name == "LSTM":
        gates = normalized(of_x, w["norm_ih_weight"], b_ih, eps)
        gates = gates + normalized(of_h, w["norm_hh_weight"], b_hh, eps)
    else:
        gates = normalized(of_x + of_h, w["norm_hh_weight"], b_ih + b_hh, eps)
    i, f, g, o = gates.chunk(4, -1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    of_c = normalized(c, w["norm_c_weight"], w["norm_c_bias"], eps)
    return torch.sigmoid(o) * torch.tanh(of_c), of_c if name == "joint" else c


def written_out(
    name: str, layer: Any, x: Tensor, hx: tuple[Tensor, ...], reset: Tensor | None = None
) -> tuple[Tensor, ...]:
    """Output and final states for x [T, B, I] and two states, in float64, by `step`."""
    weights = {key: p.double() for key, p in layer.named_parameters()}
    reset = torch.zeros(x.shape[:2], dtype=torch.bool) if reset is None else reset
    finals: list[tuple[Tensor, Tensor]] = []
    for n in range(layer.num_layers):
        outputs = []
        for d in range(1 + layer.bidirectional):
            suffix = f"_l{n}" + "_reverse" * d
            own = {key.removesuffix(suffix): p for key, p in weights.items() if key.endswith(suffix)}
            h, c = (s[len(finals)] for s in hx)
            rows: dict[int, Tensor] = {}
            for t in reversed(range(len(x))) if d else range(len(x)):
                after = t + d  # nothing passes between this step and the one before
                anew = reset[after].unsqueeze(1) if after < len(x) else torch.tensor(False)
                h, c = h.masked_fill(anew, 0), c.masked_fill(anew, 0)
                h, c = step(name, layer.norm_eps, own, x[t], h, c)
                rows[t] = h
            outputs.append(torch.stack([rows[t] for t in range(len(x))]))
            finals.append((h, c))
        x = torch.cat(outputs, -1)
    return x, *(torch.stack(s) for s in zip(*finals, strict=True))


def called(name: str, layer: Any, x: Any, hx: tuple[Tensor, ...] | None, **given: Any) -> list[Tensor]:
    """Output and final states, of a GRU with one."""
    output, finals = layer(x, hx if hx is None or name != "GRU" else hx[0], **given)
    return [output, *flat(finals)]


def states_of(layer: Any, batch: int, **options: Any) -> tuple[Tensor, ...]:
    shape = layer.num_layers * (1 + layer.bidirectional), batch, layer.hidden_size
    return tuple(torch.randn(shape, **options) for _ in range(2))


def gradients(results: list[Tensor], leaves: list[Tensor]) -> list[Tensor]:
    """With random weights, the same in every dtype: norms take back what is the same for all units."""
    generator = torch.Generator().manual_seed(1)
    grads = [torch.randn(t.shape, generator=generator).bfloat16().to(t) for t in results]
    return list(torch.autograd.grad(results, leaves, grads, materialize_grads=True))


@pytest.mark.parametrize("layout", ["padded", "no state", "unbatched", "packed", "reset"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_equations(name: str, options: dict[str, Any], layout: str, device: torch.device) -> None:
    layer = make(name, **options, **FLOAT64)
    x, hx = torch.randn(4, 3, I, **FLOAT64), states_of(layer, 3, **FLOAT64)
    reset, lengths = torch.rand(4, 3) < 0.4, [2, 4, 1]
    if layout == "no state":
        hx = tuple(torch.zeros_like(s) for s in hx)
    leaves = [x.requires_grad_(), *(s.requires_grad_() for s in hx), *layer.parameters()]
    n_states = 1 if name == "GRU" else 2

    # One sequence after another, for they may differ in length.
    alone = [
        written_out(
            name,
            layer,
            x[: lengths[b] if layout == "packed" else 4, b : b + 1],
            tuple(s[:, b : b + 1] for s in hx),
            reset[:, b : b + 1] if layout == "reset" else None,
        )
        for b in range(3)
    ]
    output = torch.cat([nn.functional.pad(o, (0, 0, 0, 0, 0, 4 - len(o))) for o, *_ in alone], 1)
    expected = [output, *(torch.cat([a[n] for a in alone], 1) for n in range(1, 1 + n_states))]
    right = gradients(expected, leaves)

    moved = copy.deepcopy(layer).to(device)
    moved.backend = "auto" if device.type == "cuda" else "native"
    on_device = [t.detach().to(device).requires_grad_() for t in leaves[:3]]
    leaves = [*on_device, *moved.parameters()]
    (x, *hx), first = on_device, layer.batch_first
    state = None if layout == "no state" else tuple(hx)
    if layout == "packed":
        found = called(name, moved, pack_sequence([x[:n, b] for b, n in enumerate(lengths)], False), state)
        found[:1], found[1:] = [pad_packed_sequence(found[0])[0]], found[-n_states:]
    elif layout == "unbatched":
        rows = [called(name, moved, x[:, b], tuple(s[:, b] for s in hx)) for b in range(3)]
        found = [torch.stack(parts, 1) for parts in zip(*rows, strict=True)]
    else:
        given = {"reset_mask": reset.t() if first else reset} if layout == "reset" else {}
        found = called(name, moved, x.transpose(0, 1) if first else x, state, **given)
        found[0] = found[0].transpose(0, 1) if first else found[0]
    assert_close(found, expected)
    if layout == "no state":
        right[1:3] = [torch.zeros_like(s) for s in hx]
    assert_close(gradients(found, leaves), right)


class CustomLSTM(nn.Module):
    """That of torchaudio's RNN-T models."""

    def __init__(self, inputs: int, hidden: int, eps: float) -> None:
        super().__init__()
        self.x2g, self.p2g = (nn.Linear(n, 4 * hidden, bias=False) for n in (inputs, hidden))
        self.g_norm, self.c_norm = nn.LayerNorm(4 * hidden, eps), nn.LayerNorm(hidden, eps)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        outputs = []
        for gates in self.x2g(x).unbind(0):
            i, f, g, o = self.g_norm(gates + self.p2g(h)).chunk(4, 1)
            c = self.c_norm(f.sigmoid() * c + i.sigmoid() * g.tanh())
            h = o.sigmoid() * c.tanh()
            outputs.append(h)
        return torch.stack(outputs), h, c


def test_torchaudios_lstm() -> None:
    layer = make("joint", **FLOAT64)
    theirs = CustomLSTM(I, H, EPS).double()
    with torch.no_grad():
        layer.bias_hh_l0.zero_()
    own = layer.state_dict()
    keys = ["weight_ih", "weight_hh", "norm_hh_weight", "bias_ih", "norm_c_weight", "norm_c_bias"]
    theirs.load_state_dict(dict(zip(theirs.state_dict(), [own[f"{key}_l0"] for key in keys], strict=True)))
    x, (h, c) = torch.randn(6, 3, I, **FLOAT64), states_of(layer, 3, **FLOAT64)
    output, h_n, c_n = theirs(x, h[0], c[0])
    assert_close(called("joint", layer, x, (h, c)), [output, h_n.unsqueeze(0), c_n.unsqueeze(0)])


@pytest.mark.parametrize("name", NAMES)
def test_dtypes(name: str, dtype: torch.dtype, target: torch.device) -> None:
    layer = make(name, 9, 37, bidirectional=True, dtype=dtype)
    plain = copy.deepcopy(layer).double()
    x, hx = torch.randn(6, 5, 9).to(dtype), states_of(layer, 5, dtype=dtype)
    leaves = [t.detach().to(target).requires_grad_() for t in (x, *hx)]
    exact = [t.detach().double().requires_grad_() for t in (x, *hx)]
    layer = layer.to(target)
    found = called(name, layer, leaves[0], tuple(leaves[1:]))
    expected = list(written_out(name, plain, exact[0], tuple(exact[1:])))[: len(found)]
    assert all(t.dtype is dtype for t in found)
    assert_close(found, expected)
    assert_close(
        gradients(found, [*leaves, *layer.parameters()]),
        gradients(expected, [*exact, *plain.parameters()]),
        dtype,
    )


@pytest.mark.parametrize("name", NAMES)
def test_second_derivatives(name: str, device: torch.device) -> None:
    """A gradient penalty, against that of the equations."""
    layer, x = make(name, num_layers=2, bidirectional=True, **FLOAT64), torch.randn(3, 2, I, **FLOAT64)
    plain, hx, penalties = copy.deepcopy(layer), states_of(layer, 2, **FLOAT64), []
    for run, module, at in ((called, layer.to(device), device), (written_out, plain, torch.device("cpu"))):
        leaves = [t.to(at).requires_grad_() for t in (x, *(s.detach() for s in hx))]
        results = run(name, module, leaves[0], tuple(leaves[1:]))  # type: ignore[operator]
        first = torch.autograd.grad(
            results[0].square().sum(), leaves, create_graph=True, materialize_grads=True
        )
        penalties.append(gradients(list(first), [*leaves, *module.parameters()]))
    assert_close(*penalties)


@pytest.mark.parametrize("hidden", [1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_few_units(name: str, hidden: int) -> None:
    """The variance of one unit is zero, and so is the gradient of what it is of: large terms that cancel."""
    layer = make(name, 3, hidden, **FLOAT64)
    x, hx = torch.randn(1, 1, 3, **FLOAT64), states_of(layer, 1, **FLOAT64)
    found = called(name, layer, x, hx)
    expected = list(written_out(name, layer, x, hx))[: len(found)]
    assert_close(found, expected)
    parameters = list(layer.parameters())
    native, reference = (gradients(results, parameters) for results in (found, expected))
    assert_close(torch.cat([g.flatten() for g in native]), torch.cat([g.flatten() for g in reference]))


# ---------------------------------------------------------------- numbers at the limits


def both(layer: Any, run: Callable[[Any], Any]) -> list[list[Tensor]]:
    """What the kernels find, and the reference."""
    found = []
    for backend in ("native", "reference"):
        layer.backend = backend
        torch.manual_seed(0)
        results = flat(run(layer))
        found.append([*results, *gradients(results, list(layer.parameters()))])
    return found


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_finite(name: str, value: float) -> None:
    """A sequence that has such an input is lost from there on, and no other."""
    layer, x = make(name), torch.randn(4, 3, I)
    x[1, 1, 2] = value
    native, reference = both(layer, lambda m: m(x))
    assert [t.isnan().tolist() for t in native] == [t.isnan().tolist() for t in reference]
    assert native[0][:, 0].isfinite().all()
    assert native[0][:1].isfinite().all()
    assert native[0][1:, 1].isnan().all()


@pytest.mark.parametrize("name", NAMES)
def test_rows_that_are_constant(name: str) -> None:
    """Of a product with weights of zero; without an eps there is no scale for them, as in torch."""
    layer, x = make(name), torch.randn(4, 3, I)
    with torch.no_grad():
        layer.weight_ih_l0.zero_()
    assert_close(*both(layer, lambda m: m(x)))
    layer.norm_eps = 0.0
    native, reference = both(layer, lambda m: m(x))
    assert native[0].isnan().tolist() == reference[0].isnan().tolist()
    assert native[0].isnan().all()


@pytest.mark.parametrize("name", NAMES)
def test_norm_eps(name: str) -> None:
    layer, x = make(name, norm_eps=0, **FLOAT64), torch.randn(4, 3, I, **FLOAT64)
    hx = states_of(layer, 3, **FLOAT64)  # for a state of zeros is constant
    assert_close(*both(layer, lambda m: called(name, m, x, hx)))
    before = called(name, layer, x, hx)[0]
    layer.norm_eps = 1e3  # may be set at any time
    assert_close(*both(layer, lambda m: called(name, m, x, hx)))
    with torch.no_grad():
        alone = called(name, layer, x, hx)[0]
    assert not torch.allclose(before, alone, atol=0.01)
    assert_close(called(name, layer, x, hx)[0], alone)


@pytest.mark.parametrize("name", NAMES)
def test_large_numbers_in_float16(name: str) -> None:
    """Gates are float32 until they are normalised."""
    layer, x = make(name, dtype=torch.float16), torch.randn(4, 3, I).clamp(-2, 2).half() * 3e4
    plain = copy.deepcopy(layer).double()
    found = flat(layer(x))
    expected = flat(plain(x.double()))
    assert_close(found, expected, torch.float16)
    assert_close(
        gradients(found, list(layer.parameters())),
        gradients(expected, list(plain.parameters())),
        torch.float16,
    )


@pytest.mark.parametrize("name", NAMES)
def test_no_sequences(name: str) -> None:
    layer = make(name, bidirectional=True)
    output, *finals = results = flat(layer(torch.randn(4, 0, I)))
    assert output.shape == (4, 0, 2 * H)
    assert all(s.shape == (2, 0, H) for s in finals)
    assert not any(g.any() for g in gradients(results, list(layer.parameters())))
    with pytest.raises(RuntimeError, match="sequence length to be larger than 0"):
        layer(torch.randn(0, 3, I))


@pytest.mark.parametrize("name", NAMES)
def test_threads(name: str) -> None:
    layer, x, found = make(name, 16, 90), torch.randn(30, 20, 16), []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        results = flat(layer(x))
        found.append([*results, *gradients(results, list(layer.parameters()))])
    assert_close(*found)


# ---------------------------------------------------------------- autograd


@pytest.mark.parametrize("key", ["bias_ih_l0", "bias_hh_l0", "norm_hh_weight_l0", "weight_hh_l0"])
@pytest.mark.parametrize("name", NAMES)
def test_changes_in_place_are_noticed(name: str, key: str) -> None:
    """Biases too: backward makes gates once more."""
    layer = make(name)
    loss = layer(torch.randn(4, 3, I))[0].sum()
    with torch.no_grad():
        getattr(layer, key).add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("name", NAMES)
def test_dropout_between_layers(name: str) -> None:
    layer, x = make(name, num_layers=3, dropout=0.5), torch.randn(4, 3, I)
    native, reference = both(layer, lambda m: m(x))
    assert_close(native, reference)
    assert not torch.allclose(layer.eval()(x)[0], native[0])


@pytest.mark.parametrize("name", NAMES)
def test_transforms(name: str) -> None:
    """Gradients of each sample, and of an ensemble's member, as one by one."""
    layer, x = make(name, **FLOAT64), torch.randn(2, 4, 1, I, **FLOAT64)
    parameters = {key: p.detach() for key, p in layer.named_parameters()}

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(layer, parameters, (x,))[0].sin().sum()

    found = torch.vmap(torch.func.grad(loss), (None, 0))(parameters, x)
    for n, sample in enumerate(x):
        expected = torch.autograd.grad(layer(sample)[0].sin().sum(), list(layer.parameters()))
        assert_close([found[key][n] for key in parameters], list(expected))
    ensemble = {key: torch.stack([p, 2 * p]) for key, p in parameters.items()}
    twice = {key: 2 * p for key, p in parameters.items()}
    assert_close(torch.vmap(loss)(ensemble, x), torch.stack([loss(parameters, x[0]), loss(twice, x[1])]))
