"""RNNTPredictor against the equations of torchaudio's predictor, written out in torch's modules."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import seqkernels
from seqkernels.models import RNNTPredictor
from tests.conftest import assert_close, flat

SYMBOLS, OUT, E, L, H = 11, 6, 8, 3, 12
B, U = 3, 7
EPS = 0.1  # seen in every result; a smaller one makes norms of so few units an ill-conditioned problem
ARGUMENTS = (SYMBOLS, OUT, E, L, H)
each_norm = pytest.mark.parametrize("norm", [False, True], ids=["plain", "layer norm"])

State = list[list[Tensor]]


class TheirLSTM(nn.Module):
    """[i f g o] = LN(W_x x + W_p h), c = LN(sigmoid(f) c + sigmoid(i) tanh(g)), h = sigmoid(o) tanh(c).

    Without norms, the input side has a bias.
    """

    def __init__(self, inputs: int, hidden: int, norm: bool) -> None:
        super().__init__()
        self.x2g = nn.Linear(inputs, 4 * hidden, bias=not norm)
        self.p2g = nn.Linear(hidden, 4 * hidden, bias=False)
        self.g_norm: nn.Module = nn.LayerNorm(4 * hidden, EPS) if norm else nn.Identity()
        self.c_norm: nn.Module = nn.LayerNorm(hidden, EPS) if norm else nn.Identity()

    def forward(self, x: Tensor, state: list[Tensor] | None) -> tuple[Tensor, list[Tensor]]:
        h, c = state or [x.new_zeros(x.size(1), self.p2g.in_features) for _ in range(2)]
        outputs = []
        for x_t in x:
            i, f, g, o = self.g_norm(self.x2g(x_t) + self.p2g(h)).chunk(4, dim=-1)
            c = self.c_norm(f.sigmoid() * c + i.sigmoid() * g.tanh())
            h = o.sigmoid() * c.tanh()
            outputs.append(h)
        return torch.stack(outputs), [h, c]


class Theirs(nn.Module):
    """The whole predictor, with torchaudio's names."""

    def __init__(self, norm: bool, dropout: float = 0.0) -> None:
        super().__init__()
        self.embedding = nn.Embedding(SYMBOLS, E)
        self.input_layer_norm = nn.LayerNorm(E)
        self.lstm_layers = nn.ModuleList(TheirLSTM(H if n else E, H, norm) for n in range(L))
        self.linear = nn.Linear(H, OUT)
        self.output_layer_norm = nn.LayerNorm(OUT)
        self.dropout = nn.Dropout(dropout)
        for parameter in self.parameters():  # or factors were 1 and biases 0
            nn.init.normal_(parameter, mean=1.0 if parameter.dim() == 1 else 0.0, std=0.3)

    def forward(
        self, symbols: Tensor, lengths: Tensor, state: State | None = None
    ) -> tuple[Tensor, Tensor, State]:
        x, finals = self.input_layer_norm(self.embedding(symbols.t())), []
        for lstm, hc in zip(self.lstm_layers, state or [None] * L, strict=True):
            x, final = lstm(x, hc)
            x = self.dropout(x)
            finals.append(final)
        return self.output_layer_norm(self.linear(x)).transpose(0, 1), lengths, finals


OWN_NAMES = {
    "x2g.weight": "weight_ih_l0",
    "x2g.bias": "bias_ih_l0",
    "p2g.weight": "weight_hh_l0",
    "g_norm.weight": "norm_hh_weight_l0",
    "g_norm.bias": "bias_ih_l0",
    "c_norm.weight": "norm_c_weight_l0",
    "c_norm.bias": "norm_c_bias_l0",
}


def own_name(name: str) -> str:
    *path, module, parameter = name.split(".")
    own = OWN_NAMES.get(f"{module}.{parameter}")
    return ".".join([*path, own]) if own else name


def both(norm: bool, dropout: float = 0.0, **options: Any) -> tuple[Theirs, RNNTPredictor]:
    """The two with the same weights."""
    theirs, ours = Theirs(norm, dropout), RNNTPredictor(*ARGUMENTS, norm, EPS, dropout)
    theirs.to(**options)
    ours.to(**options).load_state_dict(theirs.state_dict())
    return theirs, ours


def inputs(device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """The same in every call."""
    symbols = torch.arange(B * U, device=device).view(B, U)
    return symbols.square() % SYMBOLS, torch.tensor([U, 2, 5], device=device)


def results(module: nn.Module, state: State | None = None) -> list[Tensor]:
    output, _, finals = module(*inputs(), state)
    return [output, *flat(finals)]


def random_states(device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> State:
    return [[torch.randn(B, H, device=device, dtype=dtype) for _ in "hc"] for _ in range(L)]


@each_norm
@pytest.mark.parametrize("given", [False, True], ids=["zeros", "given"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_equations(norm: bool, given: bool, dtype: torch.dtype, device: torch.device) -> None:
    """Output, states, and the gradients of every weight and of the states that were given."""
    theirs, ours = both(norm, device=device, dtype=dtype)
    symbols, lengths = inputs(device)
    state = random_states(device, dtype) if given else None
    wanted = [s.requires_grad_() for s in flat(state or [])]
    grads = [torch.randn(B, U, OUT, device=device), *flat(random_states(device))]
    found = []
    for module, kind in ((theirs.double(), torch.float64), (ours, dtype)):
        own = state and [[s.to(kind) for s in hc] for hc in state]
        output, same, finals = module(symbols, lengths, own)
        assert same is lengths
        assert [type(hc) for hc in finals] == [list] * L
        named = {own_name(n): p for n, p in module.named_parameters() if p.requires_grad}
        outputs = [output, *flat(finals)]
        gradients = torch.autograd.grad(outputs, [*named.values(), *wanted], [g.to(kind) for g in grads])
        of_weights = dict(zip(named, gradients, strict=False))
        found.append([*outputs, of_weights, *gradients[len(named) :]])
    assert_close(found[1], found[0], dtype)


@each_norm
def test_a_symbol_at_a_time_is_the_whole_sequence(norm: bool) -> None:
    _, ours = both(norm)
    symbols, lengths = inputs()
    whole, _, final = ours(symbols, lengths, start := random_states())
    outputs, state = [], start
    for symbol in symbols.split(1, dim=1):
        output, _, state = ours(symbol, lengths, state)
        outputs.append(output)
    assert_close([torch.cat(outputs, dim=1), *flat(state)], [whole, *flat(final)])


@each_norm
def test_torchaudios_weights_inside_another_module(norm: bool) -> None:
    theirs, ours = both(norm)
    outer = nn.ModuleDict({"head": nn.Linear(2, 2), "predictor": RNNTPredictor(*ARGUMENTS, norm, EPS)})
    saved = {f"predictor.{name}": value for name, value in theirs.state_dict().items()}
    saved |= {f"head.{name}": value for name, value in outer["head"].state_dict().items()}
    names = list(saved)
    outer.load_state_dict(saved, strict=True)
    assert list(saved) == names  # the caller's own is left as it was
    assert_close(results(outer["predictor"]), results(ours))
    broken = saved | {"predictor.lstm_layers.7.x2g.weight": torch.zeros(1), "predictor.lstm_layers.odd": 0}
    del broken["predictor.lstm_layers.1.p2g.weight"]
    with pytest.raises(RuntimeError, match="Error") as error:
        outer.load_state_dict(broken)
    for line in (
        r"Missing key.*\.1\.weight_hh_l0",
        r"Unexpected key.*lstm_layers\.7\.",
        r"Unexpected key.*odd",
    ):
        assert error.match(f"(?s).*{line}")


@pytest.mark.parametrize("norm", [False, True], ids=["to plain", "to layer norm"])
def test_weights_of_the_other_kind_are_refused(norm: bool) -> None:
    with pytest.raises(RuntimeError, match="norm_hh_weight_l0"):
        RNNTPredictor(*ARGUMENTS, norm).load_state_dict(Theirs(not norm).state_dict())


@each_norm
def test_its_own_state_dict(norm: bool) -> None:
    _, ours = both(norm)
    file = io.BytesIO()
    torch.save(ours.state_dict(), file)
    file.seek(0)
    other = RNNTPredictor(*ARGUMENTS, norm, EPS)
    other.load_state_dict(torch.load(file, weights_only=True), strict=True)
    assert other.state_dict().keys() == ours.state_dict().keys()
    assert_close(results(other), results(ours))


@each_norm
def test_a_second_bias_is_there_but_not_trained(norm: bool) -> None:
    _, ours = both(norm)
    optimizer = torch.optim.AdamW(ours.parameters(), lr=0.1, weight_decay=0.1)
    before = copy.deepcopy(ours.state_dict())
    for _ in range(2):
        optimizer.zero_grad()
        ours(*inputs())[0].sin().sum().backward()
        optimizer.step()
    for name, value in ours.state_dict().items():
        if "bias_hh" in name:
            assert not value.any()
        else:
            assert not torch.equal(value, before[name]), name
    assert sum("bias_hh" in name for name in before) == L


@each_norm
def test_initial_values(norm: bool) -> None:
    """Products as in torch.nn.Linear, norms as in torch.nn.LayerNorm."""
    ours = RNNTPredictor(SYMBOLS, OUT, 16, 2, 64, norm)
    for lstm, width in zip(ours.lstm_layers, (16, 64), strict=True):
        largest = {name: float(p.detach().abs().max()) for name, p in lstm.named_parameters()}
        bounds = {"weight_ih_l0": width**-0.5, "weight_hh_l0": 64**-0.5, "bias_hh_l0": 0}
        bounds |= {"bias_ih_l0": 0 if norm else width**-0.5}
        bounds |= {"norm_hh_weight_l0": 1, "norm_c_weight_l0": 1, "norm_c_bias_l0": 0} if norm else {}
        assert largest.keys() == bounds.keys()
        for name, bound in bounds.items():
            assert 0.95 * bound <= largest[name] <= bound, name


@each_norm
def test_dropout_after_every_layer_while_training(norm: bool) -> None:
    theirs, ours = both(norm, 0.5)
    torch.manual_seed(7)
    expected = results(theirs)
    torch.manual_seed(7)
    assert_close(results(ours), expected)  # the same draws, in the same order
    assert_close(results(ours.eval()), results(theirs.eval()))
    nothing = RNNTPredictor(*ARGUMENTS, norm, lstm_dropout=1.0)
    received: list[Tensor] = []
    nothing.linear.register_forward_pre_hook(lambda module, args: received.append(args[0]))
    results(nothing)
    results(nothing.eval())
    assert [bool(x.any()) for x in received] == [False, True]


@pytest.mark.parametrize("count", [0, L - 1, L + 1])
def test_a_wrong_number_of_states(count: int) -> None:
    state = [[torch.zeros(B, H)] * 2] * count
    with pytest.raises(RuntimeError, match=rf"state must have {L} pairs \(h, c\), got {count}"):
        RNNTPredictor(*ARGUMENTS)(*inputs(), state)


@pytest.mark.parametrize("shape", [(U,), (B, U, 1)], ids=str)
def test_symbols_that_are_no_batch(shape: tuple[int, ...]) -> None:
    with pytest.raises(RuntimeError, match="dim"):
        RNNTPredictor(*ARGUMENTS)(torch.zeros(shape, dtype=torch.long), torch.tensor([U]))


@each_norm
def test_frozen_layers(norm: bool) -> None:
    """A predictor for inference: its layers frozen, one by one, where they are."""
    (_, ours), state = both(norm), random_states()
    frozen = copy.deepcopy(ours)
    for n, lstm in enumerate(ours.lstm_layers):
        frozen.lstm_layers[n] = seqkernels.freeze(lstm)
    with torch.no_grad():
        assert_close(results(frozen, state), results(ours, state))


@each_norm
@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"]
)
def test_copies(norm: bool, copied: Callable[[Any], Any]) -> None:
    """They compute the same, and take torchaudio's weights too."""
    theirs, ours = both(norm)
    other = copied(ours)
    assert_close(results(other), results(ours))
    assert not any(lstm.bias_hh_l0.requires_grad for lstm in other.lstm_layers)
    new = Theirs(norm)
    other.load_state_dict(new.state_dict())
    assert_close(results(other), results(new))
    assert_close(results(ours), results(theirs))  # which the copy has left as it was
