"""Options of layers and Cells that act on states between steps, against a loop over single sequences.

The loop shares nothing with the package: gates are written out from torch.nn's documentation, one sequence,
one step, one direction at a time, in float64. What is drawn at random is watched, and given to the loop.
"""

from __future__ import annotations

import copy
import io
import math
import pickle
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import seqkernels
from seqkernels import dispatch, recompute, regularization, stack
from seqkernels.spec import LayerSpec

from .conftest import DTYPES, LAYERS, assert_close, flat

I, H = 5, 6
Draws = list[tuple[LayerSpec, Sequence[Tensor]]]


@pytest.fixture
def draws(monkeypatch: pytest.MonkeyPatch) -> Draws:
    """What is drawn for each layer, in their order: its masks, and its weights with dropped ones."""
    found: Draws = []
    original = regularization.draw

    def draw(*args: Any) -> Any:
        found.append(original(*args))
        return found[-1]

    monkeypatch.setattr(regularization, "draw", draw)
    return found


@dataclass
class Case:
    """A layer with options, and its input."""

    name: str
    layers: int = 1
    directions: int = 1
    layout: str = "padded"  # or lengths, packed
    batch_first: bool = False
    resets: bool = False
    given_state: bool = True
    training: bool = True
    dtype: torch.dtype = torch.float64
    options: dict[str, Any] = field(default_factory=dict)
    seq_len: int = 7
    batch: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        torch.manual_seed(self.seed)
        options = dict(self.options)
        if self.name != "LSTM":
            options.pop("return_cell_states", None)
            if isinstance(options.get("zoneout"), tuple):
                options["zoneout"] = options["zoneout"][0]
        self.module = getattr(seqkernels, f"Fused{self.name}")(
            *(I, H, self.layers),
            bidirectional=self.directions == 2,
            batch_first=self.batch_first,
            dtype=self.dtype,
            **options,
        ).train(self.training)
        shape = (self.seq_len, self.batch)
        self.x = torch.randn(*shape, I, dtype=self.dtype)
        states = self.layers * self.directions
        self.state = [torch.randn(states, self.batch, H, dtype=self.dtype) for _ in range(1 + self.has_c)]
        if not self.given_state:
            self.state = [torch.zeros_like(s) for s in self.state]
        self.mask = torch.rand(shape) < 0.3 if self.resets else torch.zeros(shape, dtype=torch.bool)
        least = 0 if self.layout == "lengths" else 1
        self.lengths = torch.randint(least, self.seq_len + 1, (self.batch,))
        if self.layout == "padded":
            self.lengths.fill_(self.seq_len)
        elif self.layout == "packed":
            self.lengths = self.lengths.sort(descending=True).values
            self.lengths[0] = self.seq_len

    @property
    def has_c(self) -> bool:
        return self.name == "LSTM"

    @property
    def zoneout(self) -> tuple[float, ...]:
        value = self.module.zoneout
        return value if isinstance(value, tuple) else (value, value)

    def run(self) -> list[Tensor]:
        """The output, padded, the final states, the cell states, padded."""
        hx = (tuple(self.state) if self.has_c else self.state[0]) if self.given_state else None
        kwargs: dict[str, Any] = {}
        x: Any = self.x.transpose(0, 1) if self.batch_first else self.x
        mask = self.mask.t() if self.batch_first else self.mask
        if self.layout == "packed":
            x = pack_padded_sequence(x, self.lengths, batch_first=self.batch_first)
            own = pack_padded_sequence(mask.unsqueeze(-1), self.lengths, batch_first=self.batch_first)
            mask = own.data.squeeze(-1)
        if self.layout == "lengths":
            kwargs["lengths"] = self.lengths
        if self.resets:
            kwargs["reset_mask"] = mask
        output, final, *cells = self.module(x, hx, **kwargs)
        rows = [self._padded(r) for r in (output, *cells)]
        return [rows[0], *flat(final), *rows[1:]]

    def _padded(self, rows: Any) -> Tensor:
        if isinstance(rows, PackedSequence):
            rows = pad_packed_sequence(rows, total_length=self.seq_len)[0]
        elif self.batch_first:
            rows = rows.transpose(0, 1)
        return rows

    def expected(self, draws: Draws) -> list[Tensor]:
        x, cells = self.x.double(), torch.empty(0)
        finals: list[list[Tensor]] = [[] for _ in self.state]
        for n in range(self.layers):
            outputs, all_cells = [], []
            for d in range(self.directions):
                spec, weights = draws[n] if draws else (None, None)
                suffix = f"_l{n}" + "_reverse" * d
                w = [getattr(self.module, f"{kind}{suffix}").double() for kind in NAMES]
                if weights is not None:
                    w = [t.double() for t in weights[4 * d : 4 * d + 4]]
                masks = spec.masks if spec else (None, None, None)
                done = [self._sequence(x, w, masks, n, d, b) for b in range(self.batch)]
                outputs.append(torch.stack([output for output, _, _ in done], 1))
                all_cells.append(torch.stack([c for _, c, _ in done], 1))
                for i, kept in enumerate(finals):
                    kept.append(torch.stack([state[i] for _, _, state in done]))
            x, cells = torch.cat(outputs, -1), torch.cat(all_cells, -1)
        results = [x, *(torch.stack(f) for f in finals)]
        if self.has_c and self.module.return_cell_states:
            results.append(cells)
        return results

    def _sequence(
        self, x: Tensor, w: list[Tensor], masks: Any, layer: int, d: int, b: int
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """One sequence of one layer and direction: output and c of every step [T, H], the final state."""
        recurrent, flags = masks[0], masks[1:]
        length = int(self.lengths[b])
        state = [s[layer * self.directions + d, b].double() for s in self.state]
        output, cells = torch.zeros(self.seq_len, H).double(), torch.zeros(self.seq_len, H).double()
        for t in range(length) if d == 0 else reversed(range(length)):
            later = t + d  # the row that says whether anything passes between the step before and this one
            if later < length and self.mask[later, b]:
                state = [torch.zeros_like(s) for s in state]
            factors = 1.0 if recurrent is None else recurrent[d, b].double()
            new = STEPS[self.name](x[t, b], state, factors, w)
            for i, (old, made) in enumerate(zip(state, new, strict=True)):
                if flags[i] is not None:
                    row = self._row(flags[i], t, b)[d * H : (d + 1) * H]
                    new[i] = torch.where(row, old, made)
                elif not self.training:
                    p = self.zoneout[i]
                    new[i] = p * old + (1 - p) * made
            state = new
            if self.dtype in (torch.float16, torch.bfloat16):
                state[0] = state[0].to(self.dtype).double()
            output[t], cells[t] = state[0], state[-1]
        return output, cells, state

    def _row(self, rows: Tensor, t: int, b: int) -> Tensor:
        """Of what is drawn for every row, padded or packed."""
        if self.layout != "packed":
            return rows[t, b]
        sizes = [int((self.lengths > s).sum()) for s in range(self.seq_len)]
        return rows[sum(sizes[:t]) + b]


NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def lstm(x: Tensor, state: list[Tensor], mask: Any, w: list[Tensor]) -> list[Tensor]:
    i, f, g, o = (w[0] @ x + w[2] + w[1] @ (state[0] * mask) + w[3]).view(4, H)
    c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
    return [o.sigmoid() * c.tanh(), c]


def gru(x: Tensor, state: list[Tensor], mask: Any, w: list[Tensor]) -> list[Tensor]:
    of_x, of_h = (w[0] @ x + w[2]).view(3, H), (w[1] @ (state[0] * mask) + w[3]).view(3, H)
    r, z = (of_x[0] + of_h[0]).sigmoid(), (of_x[1] + of_h[1]).sigmoid()
    return [(1 - z) * (of_x[2] + r * of_h[2]).tanh() + z * state[0]]


def rnn(x: Tensor, state: list[Tensor], mask: Any, w: list[Tensor]) -> list[Tensor]:
    return [(w[0] @ x + w[2] + w[1] @ (state[0] * mask) + w[3]).tanh()]


STEPS: dict[str, Callable[..., list[Tensor]]] = {"LSTM": lstm, "GRU": gru, "RNN": rnn}
RANDOM = {"recurrent_dropout": 0.4, "zoneout": (0.3, 0.2), "weight_dropout": 0.3}


@st.composite
def cases(draw: st.DrawFn) -> Case:
    options: dict[str, Any] = {name: p for name, p in RANDOM.items() if draw(st.booleans())}
    options |= {name: True for name in ("return_cell_states", "recompute") if draw(st.booleans())}
    name = draw(st.sampled_from(LAYERS))
    if name != "LSTM":
        options.pop("return_cell_states", None)
    return Case(
        name,
        *(draw(st.integers(1, 2)) for _ in range(2)),
        draw(st.sampled_from(["padded", "lengths", "packed"])),
        *(draw(st.booleans()) for _ in range(4)),
        dtype=draw(st.sampled_from(DTYPES)),
        options=options,
        seed=draw(st.integers(0, 99)),
    )


@settings(max_examples=120)
@given(case=cases())
def test_any_combination(case: Case) -> None:
    with pytest.MonkeyPatch.context() as patch:
        found: Draws = []
        original = regularization.draw
        patch.setattr(regularization, "draw", lambda *args: found.append(original(*args)) or found[-1])
        patch.setattr(recompute, "FEWEST_ROWS", 8)  # so that there are several chunks
        results = case.run()
    assert bool(found) == (case.training and not case.options.keys().isdisjoint(RANDOM))
    for got, want in zip(results, case.expected(found), strict=True):
        assert got.dtype == case.dtype
        assert_close(got, want, case.dtype)


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("name", LAYERS)
def test_gradients(name: str, directions: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of first and second order, with all options, recomputed and not."""
    monkeypatch.setattr(recompute, "FEWEST_ROWS", 4)
    for again in (False, True):
        options = {**RANDOM, "recompute": again}
        layers = 3 - directions
        case = Case(name, layers, directions, "lengths", resets=True, options=options, seq_len=3, batch=3)

        def run(*tensors: Tensor, case: Case = case) -> list[Tensor]:
            torch.manual_seed(1)  # the same masks every time
            case.x, case.state = tensors[0], list(tensors[1:])
            return case.run()

        inputs = [t.detach().requires_grad_() for t in (case.x, *case.state)]
        assert torch.autograd.gradcheck(run, inputs)
        assert torch.autograd.gradgradcheck(run, inputs)


@pytest.mark.parametrize("layout", ["padded", "lengths", "packed"])
@pytest.mark.parametrize("name", LAYERS)
def test_recompute_gives_the_same(name: str, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same results and gradients, up to the order of sums, and nothing saved for steps but states."""
    monkeypatch.setattr(recompute, "FEWEST_ROWS", 8)
    case = Case(name, 2, 2, layout, resets=True, options=RANDOM)
    tensors = [case.x.requires_grad_(), *case.module.parameters()]
    found = []
    for again in (False, True):
        case.module.recompute = again
        torch.manual_seed(3)
        results = case.run()
        torch.manual_seed(4)
        loss = torch.stack([(t * torch.randn_like(t)).sum() for t in results]).sum()
        found.append([*results, *torch.autograd.grad(loss, tensors)])
    for plain, again_found in zip(*found, strict=True):
        assert_close(again_found, plain)


def test_recompute_saves_little() -> None:
    """Of what one layer keeps between the passes: a chunk of gates where there were those of all steps."""

    def kept(layer: nn.Module) -> int:
        sizes: dict[int, int] = {}

        def pack(t: Tensor) -> Tensor:
            sizes[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            layer(x)
        return sum(sizes.values())

    x = torch.randn(400, 64, 32)
    gates = 400 * 64 * 5 * 32 * 4  # 4 gates and c
    layer = seqkernels.FusedLSTM(32, 32)
    plain = kept(layer)
    layer.recompute = True
    saved = plain - kept(layer)
    assert plain > gates
    assert saved > gates * (1 - 1.5 / recompute.MOST_CHUNKS)


@pytest.mark.parametrize("name", LAYERS)
def test_lengths_are_packing(name: str) -> None:
    """Bitwise the results of a PackedSequence: the same rows, in the same order."""
    x, lengths = torch.randn(9, 6, I), torch.tensor([3, 9, 1, 9, 5, 2])
    layer = getattr(seqkernels, f"Fused{name}")(I, H, 2, bidirectional=True)
    output, final = layer(x, lengths=lengths)
    packed, expected = layer(pack_padded_sequence(x, lengths, enforce_sorted=False))
    assert torch.equal(output, pad_packed_sequence(packed)[0])
    for got, want in zip(flat(final), flat(expected), strict=True):
        assert torch.equal(got, want)
    assert torch.equal(layer(x, lengths=lengths.int())[0], output)
    assert torch.equal(layer(x, lengths=lengths.tolist())[0], output)


def test_lengths_of_unbatched_input() -> None:
    layer, x = seqkernels.FusedGRU(I, H, bidirectional=True), torch.randn(7, I)
    output, h_n = layer(x, lengths=torch.tensor(4))
    expected, expected_h = layer(x[:4])
    assert_close(output[:4], expected.double())
    assert (output[4:] == 0).all()
    assert_close(h_n, expected_h.double())


@pytest.mark.parametrize(
    ("lengths", "error", "message"),
    [
        (torch.tensor([3, 8, 1]), ValueError, "from 0 to 7, the steps of the input, got 8 for sequence 1"),
        (torch.tensor([-1, 3, 1]), ValueError, "from 0 to 7, the steps of the input, got -1 for sequence 0"),
        (torch.tensor([3, 1]), ValueError, r"one length for each sequence, \(3,\), got \(2,\)"),
        (torch.tensor([3.0, 1.0, 2.0]), TypeError, "int64 or int32, got torch.float32"),
        ("abc", TypeError, "int64 or int32, got str"),
    ],
)
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_wrong_lengths(
    lengths: Any, error: type[Exception], message: str, batch_first: bool, backend: str
) -> None:
    layer = seqkernels.FusedRNN(I, H, batch_first=batch_first, backend=backend)
    x = torch.randn(3, 7, I) if batch_first else torch.randn(7, 3, I)
    with pytest.raises(error, match=f"lengths must (be|have) {message}"):
        layer(x, lengths=lengths)


def test_lengths_of_a_packed_sequence_are_refused() -> None:
    packed = pack_padded_sequence(torch.randn(4, 2, I), torch.tensor([4, 3]))
    layer = seqkernels.FusedRNN(I, H)
    with pytest.raises(ValueError, match="lengths are those of padded input"):
        layer(packed, lengths=torch.tensor([4, 3]))


WRONG = [
    ("recurrent_dropout", 1.5, ValueError, "recurrent_dropout must be a probability, from 0 to 1, got 1.5"),
    ("recurrent_dropout", "a", TypeError, "recurrent_dropout must be a number, got str"),
    ("weight_dropout", True, TypeError, "weight_dropout must be a number, got bool"),
    ("zoneout", -0.1, ValueError, "zoneout must be a probability, from 0 to 1, got -0.1"),
    ("zoneout", (0.1, 0.2, 0.3), ValueError, "zoneout must be a number or a pair of h and c"),
    ("zoneout", (0.1, 2), ValueError, "zoneout must be a probability, from 0 to 1, got 2"),
    ("recompute", 1, TypeError, "recompute must be True or False, got 1"),
    ("return_cell_states", None, TypeError, "return_cell_states must be True or False, got None"),
]


@pytest.mark.parametrize(("name", "value", "error", "message"), WRONG)
def test_wrong_options(name: str, value: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        seqkernels.FusedLSTM(I, H, **{name: value})
    layer = seqkernels.FusedLSTM(I, H)
    with pytest.raises(error, match=message):
        setattr(layer, name, value)
    assert vars(layer).keys() == vars(seqkernels.FusedLSTM(I, H)).keys()


def test_zoneout_of_what_has_no_c() -> None:
    for make in (seqkernels.FusedGRU, seqkernels.FusedRNN, seqkernels.FusedGRUCell):
        with pytest.raises(ValueError, match="zoneout must be a number: there is no c"):
            make(I, H, zoneout=(0.1, 0.2))


def test_seeds_repeat_masks() -> None:
    """Bitwise, also under activation checkpointing, whose second run draws the same."""
    layer, x = seqkernels.FusedLSTM(I, H, 2, **RANDOM), torch.randn(5, 3, I, requires_grad=True)

    def again(x: Tensor) -> Any:
        return torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False)

    def run(call: Callable[[Tensor], Any]) -> list[Tensor]:
        torch.manual_seed(7)
        output = call(x)[0]
        return [output, *torch.autograd.grad(output.square().sum(), [x, *layer.parameters()])]

    first = run(layer)
    for other in (run(layer), run(again)):
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert not torch.equal(layer(x)[0], layer(x)[0])


def test_masks_are_those_of_their_papers(draws: Draws) -> None:
    """Scaled by 1 / (1 - p), of each sequence; of every step and unit; of W_hh alone. About so many."""
    layer = seqkernels.FusedLSTM(I, 200, bidirectional=True, **RANDOM)
    layer(torch.randn(50, 20, I))
    ((spec, weights),) = draws
    recurrent, zoneout_h, zoneout_c = spec.masks
    assert recurrent.shape == (2, 20, 200)
    assert recurrent.unique().tolist() == [0.0, pytest.approx(1 / 0.6)]
    assert (recurrent == 0).float().mean().item() == pytest.approx(0.4, abs=0.03)
    for flags, p in ((zoneout_h, 0.3), (zoneout_c, 0.2)):
        assert flags.shape == (50, 20, 400)
        assert flags.float().mean().item() == pytest.approx(p, abs=0.003)
        spread = math.sqrt(p * (1 - p) / 1000)  # of the means of each unit, were they independent
        assert flags.float().mean((0, 1)).std().item() == pytest.approx(spread, rel=0.2)
    dropped = [torch.equal(w, p) for w, p in zip(weights, layer.parameters(), strict=True)]
    assert dropped == [True, False, True, True] * 2
    assert (weights[1] == 0).float().mean().item() == pytest.approx(0.3, abs=0.01)
    assert_close(weights[1], torch.where(weights[1] != 0, layer.weight_hh_l0.double() / 0.7, 0))


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_certain_zoneout(p: float) -> None:
    x = torch.randn(5, 3, I)
    layer = seqkernels.FusedLSTM(I, H, zoneout=p)
    h0, c0 = torch.randn(1, 3, H), torch.randn(1, 3, H)
    for training in (True, False):
        output, (h_n, c_n) = layer.train(training)(x, (h0, c0))
        if p == 1:
            assert torch.equal(output, h0.expand_as(output))
            assert torch.equal(c_n, c0)
        else:
            assert torch.equal(output, seqkernels.FusedLSTM.forward(layer, x, (h0, c0))[0])
        assert torch.equal(output[-1:], h_n)


@pytest.mark.parametrize("name", ["LSTMCell", "GRUCell", "RNNCell"])
@pytest.mark.parametrize("training", [True, False])
def test_cells(name: str, training: bool) -> None:
    """Zoneout and resets of a single step, against the layer's; unbatched, too."""
    cell, layer = (
        getattr(seqkernels, f"Fused{kind}")(I, H, zoneout=0.4).double().train(training)
        for kind in (name, name.removesuffix("Cell"))
    )
    layer.load_state_dict({f"{key}_l0": value for key, value in cell.state_dict().items()})
    x, mask = torch.randn(4, I).double().requires_grad_(), torch.tensor([True, False, False, True])
    state = tuple(torch.randn(4, H).double().requires_grad_() for _ in range(2 if "LSTM" in name else 1))
    hx = state if "LSTM" in name else state[0]
    layers_hx = tuple(s.unsqueeze(0) for s in state) if "LSTM" in name else state[0].unsqueeze(0)
    torch.manual_seed(5)
    found = flat([cell(x, hx, reset_mask=mask)])
    torch.manual_seed(5)
    expected = flat([layer(x.unsqueeze(0), layers_hx, reset_mask=mask.unsqueeze(0))[1]])
    for got, want in zip(found, expected, strict=True):
        assert_close(got, want.squeeze(0))
    grads = torch.autograd.grad(found[0].sum(), [x, *state])
    wanted = torch.autograd.grad(expected[0].sum(), [x, *state])
    for got, want in zip(grads, wanted, strict=True):
        assert_close(got, want)
    cell.eval()
    one, first = ((tuple(s[at] for s in state)) for at in (0, slice(1)))
    single = cell(x[0], one if "LSTM" in name else one[0], reset_mask=mask[0])
    batched = cell(x[:1], first if "LSTM" in name else first[0], reset_mask=mask[:1])
    for got, want in zip(flat([single]), flat([batched]), strict=True):
        assert_close(got, want.squeeze(0))
    with pytest.raises(ValueError, match="reset_mask must have one value for each row"):
        cell(x, hx, reset_mask=mask[:2])


def test_fuse_sets_options(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.ModuleList([nn.LSTM(I, H), nn.GRU(I, H), nn.GRUCell(I, H)])
    seqkernels.fuse(model, zoneout=(0.1, 0.2), recurrent_dropout=0.3, recompute=True)
    assert [module.zoneout for module in model] == [(0.1, 0.2), 0.1, 0.1]
    assert [model[0].recurrent_dropout, model[1].recompute] == [0.3, True]
    for wrong in ({"zoneout": 2}, {"recompute": 1}, {"lengths": 3}):
        with pytest.raises((ValueError, TypeError)):
            seqkernels.fuse(nn.ModuleList([nn.LSTM(I, H)]), **wrong)
    seqkernels.unfuse(model[:1])
    assert "unfuse leaves FusedLSTM alone: torch.nn has no zoneout" in caplog.text
    layer = seqkernels.FusedLSTM(I, H, recompute=True)
    assert type(seqkernels.unfuse(layer)) is nn.LSTM
    assert "_options" not in vars(layer)


def test_options_in_copies_pickles_and_names() -> None:
    layer = seqkernels.FusedLSTM(I, H, return_cell_states=True, **RANDOM)
    assert "zoneout=(0.3, 0.2)" in repr(layer)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert repr(other) == repr(layer)
        assert len(other(torch.randn(4, 2, I))) == 3
    assert layer.state_dict().keys() == nn.LSTM(I, H).state_dict().keys()
    layer.zoneout = layer.recurrent_dropout = layer.weight_dropout = 0.0
    layer.return_cell_states = False
    assert repr(layer) == "FusedLSTM(5, 6)"


def test_modules_pickled_before_there_were_options() -> None:
    layer = seqkernels.FusedGRU(I, H)
    del layer.__dict__["_options"]
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    old = torch.load(buffer, weights_only=False)
    assert old.__dict__.keys().isdisjoint({"_options", "zoneout", "recompute"})
    assert (old.zoneout, old.recurrent_dropout, old.recompute) == (0.0, 0.0, False)


def test_explain_knows_options() -> None:
    x, mask, lengths = torch.randn(5, 3, I), torch.zeros(5, 3, dtype=torch.bool), torch.tensor([5, 2, 0])
    layer = seqkernels.FusedLSTM(I, H, **RANDOM)
    plan = seqkernels.explain(layer, x, reset_mask=mask, lengths=lengths)
    assert plan == seqkernels.explain(seqkernels.FusedLSTM(I, H), x)
    rnn = seqkernels.FusedRNN(I, H, zoneout=0.2).eval()
    plan = seqkernels.explain(rnn, x)
    assert plan.backend == "reference"
    assert "gradients of zoneout in evaluation" in plan.reasons[0]
    with torch.no_grad():
        assert seqkernels.explain(rnn, x).backend == "native"
    rnn.backend = "native"
    with pytest.raises(RuntimeError, match="gradients of zoneout in evaluation"):
        rnn(x)


def test_gradients_of_zoneout_in_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    """An RNN's are those of the reference: h alone does not say what it was before. The others' are not."""
    x, ran = torch.randn(5, 3, I, dtype=torch.float64, requires_grad=True), []
    for name, run in stack.LAYERS.items():
        monkeypatch.setitem(stack.LAYERS, name, lambda *a, n=name, run=run: ran.append(n) or run(*a))
    for name in LAYERS:
        ran.clear()
        layer = getattr(seqkernels, f"Fused{name}")(I, H, zoneout=0.3, dtype=torch.float64).eval()
        assert torch.autograd.gradcheck(lambda t, layer=layer: layer(t)[0], x)
        assert set(ran) == {"reference" if name == "RNN" else "native"}


@pytest.mark.parametrize("name", LAYERS)
def test_compiled_in_one_graph(name: str) -> None:
    """Masks, lengths and random options without a break; shapes that vary."""
    torch._dynamo.reset()
    torch.use_deterministic_algorithms(False)  # the fixture `poison` sets it back
    layer = getattr(seqkernels, f"Fused{name}")(I, H, 2, bidirectional=True)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    for seq_len, batch in ((5, 3), (6, 4), (7, 5)):
        x, mask = torch.randn(seq_len, batch, I), torch.rand(seq_len, batch) < 0.3
        lengths = torch.randint(0, seq_len + 1, (batch,))
        for got, want in zip(
            flat([compiled(x, reset_mask=mask, lengths=lengths)]),
            flat([layer(x, reset_mask=mask, lengths=lengths)]),
            strict=True,
        ):
            assert_close(got, want.double())
    torch._dynamo.reset()
    options = {"recurrent_dropout": 0.3, "zoneout": 0.2, "weight_dropout": 0.1}
    random = getattr(seqkernels, f"Fused{name}")(I, H, 2, **options)
    compiled = torch.compile(random, backend="aot_eager", fullgraph=True)
    x.requires_grad_()
    compiled(x)[0].sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("name", LAYERS)
def test_under_autocast(name: str) -> None:
    case = Case(name, 2, 2, "lengths", resets=True, options={"recurrent_dropout": 0.3}, dtype=torch.float32)
    torch.manual_seed(2)
    with torch.autocast("cpu", torch.bfloat16):
        found = case.run()
    narrow = copy.deepcopy(case)
    narrow.module = case.module.to(torch.bfloat16)
    narrow.x, narrow.state = case.x.bfloat16(), [s.bfloat16() for s in case.state]
    torch.manual_seed(2)
    for got, want in zip(found, narrow.run(), strict=True):
        assert_close(got.bfloat16(), want.double(), torch.bfloat16)


def test_vmap_and_per_sample_gradients() -> None:
    """Under torch.func, with masks and lengths of their own."""
    layer = seqkernels.FusedLSTM(I, H, dtype=torch.float64)
    x, mask = torch.randn(3, 5, 2, I, dtype=torch.float64), torch.rand(3, 5, 2) < 0.4
    lengths = torch.tensor([[5, 0], [2, 3], [4, 5]])

    def loss(x: Tensor, mask: Tensor, lengths: Tensor) -> Tensor:
        return layer(x, reset_mask=mask, lengths=lengths)[0].square().sum()

    found = torch.func.vmap(torch.func.grad(loss))(x, mask, lengths)
    for i in range(3):
        alone = x[i].clone().requires_grad_()
        (expected,) = torch.autograd.grad(loss(alone, mask[i], lengths[i]), alone)
        assert_close(found[i], expected)


def test_functional_has_the_options(draws: Draws) -> None:
    layer = seqkernels.FusedLSTM(I, H, 2, **RANDOM, return_cell_states=True, recompute=True)
    x, zeros, weights = torch.randn(5, 3, I), torch.zeros(2, 3, H), list(layer.parameters())
    options = {**RANDOM, "return_cell_states": True, "recompute": True, "training": True}
    torch.manual_seed(3)
    output, (h_n, c_n), cells = layer(x, lengths=[5, 2, 3])
    torch.manual_seed(3)
    found = seqkernels.functional.lstm(
        x, (zeros, zeros), weights, num_layers=2, lengths=torch.tensor([5, 2, 3]), **options
    )
    assert all(torch.equal(a, b) for a, b in zip(found, (output, h_n, c_n, cells), strict=True))
    for name in ("gru", "rnn"):
        run = getattr(seqkernels.functional, name)
        kind = getattr(seqkernels, f"Fused{name.upper()}")
        own = kind(I, H, zoneout=0.3, recurrent_dropout=0.2, weight_dropout=0.1)
        torch.manual_seed(3)
        expected = own(x)[0]
        torch.manual_seed(3)
        given = {"zoneout": 0.3, "recurrent_dropout": 0.2, "weight_dropout": 0.1, "training": True}
        assert torch.equal(run(x, zeros[:1], list(own.parameters()), **given)[0], expected)
        with pytest.raises(ValueError, match="zoneout must be a number: there is no c"):
            run(x, zeros[:1], list(own.parameters()), zoneout=(0.1, 0.2))


def test_onnx_has_no_such_operator() -> None:
    spec = LayerSpec("lstm", lengths=torch.tensor([1]))
    with pytest.raises(RuntimeError, match="lstm with lengths cannot be exported to ONNX"):
        dispatch._for_onnx(spec)
    assert dispatch._for_onnx(LayerSpec("lstm", recurrent_dropout=0.5)) == "torch"  # in evaluation


def test_a_stack_with_options() -> None:
    torch.manual_seed(0)
    stacked = seqkernels.models.StackedRNN(seqkernels.FusedGRU, I, H, 2, zoneout=0.2)
    output, _ = stacked.eval()(torch.randn(5, 3, I), lengths=torch.tensor([5, 0, 2]))
    assert (output[2:, 2] == 0).all()
    assert output[:2, 2].count_nonzero() > 0


# ---------------------------------------------------------------- what went wrong once


@pytest.mark.parametrize("name", ["FusedLSTM", "FusedGRUCell"])
def test_options_set_after_compiling(name: str) -> None:
    torch._dynamo.reset()
    module = getattr(seqkernels, name)(I, H).eval()
    x = torch.ones(2, I) if "Cell" in name else torch.ones(3, 2, I)
    compiled = torch.compile(module, backend="eager")
    for zoneout in (0.0, 1.0, 0.0, 0.5):
        module.zoneout = zoneout
        for got, want in zip(flat([compiled(x)]), flat([module(x)]), strict=True):
            assert torch.equal(got, want)
    if name == "FusedLSTM":
        module.return_cell_states = True
        assert len(compiled(x)) == 3


def test_a_mask_that_changes_before_recomputing() -> None:
    """As with any input that backward reads; a mask made in inference mode is refused likewise."""
    x = torch.randn(12, 2, I, requires_grad=True)
    layer, mask = seqkernels.FusedGRU(I, H, recompute=True), torch.rand(12, 2) < 0.4
    output, _ = layer(x, reset_mask=mask)
    mask.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()
    with torch.inference_mode():
        mask = torch.rand(12, 2) < 0.4
    with pytest.raises(RuntimeError, match="Inference tensors cannot be saved for backward"):
        layer(x, reset_mask=mask)


@pytest.mark.parametrize("name", ["FusedRNN", "FusedGRU"])
def test_zoneout_in_evaluation_under_transforms(name: str) -> None:
    """Where nobody says that a gradient is needed, and in a traced program."""
    torch.manual_seed(0)
    module = getattr(seqkernels, name)(I, H, zoneout=0.3, dtype=torch.float64).eval().requires_grad_(False)
    x = torch.randn(4, 3, I, dtype=torch.float64)

    def total(x: Tensor) -> Tensor:
        return torch.func.vmap(lambda v: module(v.unsqueeze(1))[0].sin().sum(), in_dims=1)(x).sum()

    expected = torch.autograd.grad(module(x.requires_grad_())[0].sin().sum(), x)[0]
    assert_close(torch.func.grad(total)(x.detach()), expected)
    traced = torch.jit.trace(module, (x.detach(),), check_trace=False)
    assert_close(torch.autograd.grad(traced(x)[0].sin().sum(), x)[0], expected)
    if name == "FusedRNN":
        op, h0 = torch.ops.seqkernels.rnn_tanh, torch.zeros(1, 3, H, dtype=torch.float64)
        with pytest.raises(RuntimeError, match="zoneout_h_rate must be 0 where gradients are needed"):
            op(x, h0, list(module.parameters()), zoneout_h_rate=0.3)[0].sum().backward()


def test_freeze_refuses_what_it_would_leave_out() -> None:
    both = seqkernels.FusedGRUCell(I, H, zoneout=0.5), seqkernels.FusedLSTM(I, H, zoneout=(0.0, 0.1))
    for module in both:
        with pytest.raises(ValueError, match="freeze takes no module with zoneout"):
            seqkernels.freeze(module)
    with pytest.raises(ValueError, match="freeze takes no module with return_cell_states"):
        seqkernels.freeze(seqkernels.FusedLSTM(I, H, return_cell_states=True))
    seqkernels.freeze(seqkernels.FusedLSTM(I, H, recurrent_dropout=0.5, weight_dropout=0.5, recompute=True))


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_recompute_inside_a_checkpoint(use_reentrant: bool) -> None:
    layer, x = seqkernels.FusedGRU(I, H, recompute=True), torch.randn(6, 3, I, requires_grad=True)
    (expected,) = torch.autograd.grad(layer(x)[0].sum(), x)
    torch.utils.checkpoint.checkpoint(lambda x: layer(x)[0], x, use_reentrant=use_reentrant).sum().backward()
    assert torch.equal(x.grad, expected)


def test_recompute_compiles_once_for_all_lengths() -> None:
    torch._dynamo.reset()
    torch.use_deterministic_algorithms(False)  # the fixture `poison` sets it back
    counter = torch._dynamo.testing.CompileCounter()
    layer = seqkernels.FusedGRU(I, H, bidirectional=True, recompute=True)
    compiled = torch.compile(layer, backend=counter, dynamic=True, fullgraph=True)
    for seq_len in range(2, 8):
        x = torch.randn(seq_len, 3, I)
        assert_close(compiled(x)[0], layer(x)[0].double())
    assert counter.frame_count == 1


def test_recompute_of_no_sequence() -> None:
    layer = seqkernels.FusedGRU(I, H, recompute=True)
    output, _ = layer(torch.randn(500, 0, I, requires_grad=True))
    assert output.shape == (500, 0, H)
    output.sum().backward()
    assert (layer.weight_hh_l0.grad == 0).all()


def test_long_masks_on_the_meta_device() -> None:
    mask = torch.zeros(300, 1, dtype=torch.bool)
    layer = seqkernels.FusedLSTM(8, 128, device="meta")
    assert layer(torch.randn(300, 1, 8, device="meta"), reset_mask=mask)[0].shape == (300, 1, 128)
    with torch._subclasses.FakeTensorMode() as mode:
        fake = seqkernels.FusedLSTM(8, 128)
        x, masks = torch.randn(300, 1, 8), mode.from_tensor(mask)
        assert fake(x, reset_mask=masks)[0].shape == (300, 1, 128)


def test_a_meta_tensor_among_others_is_refused() -> None:
    x, h, weights = torch.randn(5, 3, I), torch.zeros(1, 3, H), list(seqkernels.FusedRNN(I, H).parameters())
    op = torch.ops.seqkernels.rnn_tanh
    mask = torch.zeros(5, 3, dtype=torch.bool, device="meta")
    with pytest.raises(RuntimeError, match="reset_mask must have the device of x, cpu, got meta"):
        op(x, h, [w.detach() for w in weights], reset_mask=mask)
    with pytest.raises(RuntimeError, match=r"weights\[1\] must have the device of x, cpu, got meta"):
        op(x, h, [w.detach().to("meta") if i == 1 else w.detach() for i, w in enumerate(weights)])


def test_options_never_vanish_while_others_are_set() -> None:
    """Other threads may run a module while an option of it is set."""
    layer, seen, done = seqkernels.FusedGRU(I, H, zoneout=1.0).eval(), set(), threading.Event()

    def toggle() -> None:
        while not done.is_set():
            layer.recompute = not layer.recompute

    thread = threading.Thread(target=toggle)
    thread.start()
    for _ in range(20_000):
        seen.add(layer.zoneout)
    done.set()
    thread.join()
    assert seen == {1.0}


def test_zoneout_that_is_none(draws: Draws) -> None:
    assert repr(seqkernels.FusedLSTM(I, H, zoneout=(0.0, 0.0))) == "FusedLSTM(5, 6)"
    given = [0.1, 0.2]
    layer = seqkernels.FusedLSTM(I, H, zoneout=given)
    given[0] = 7
    assert layer.zoneout == (0.1, 0.2)
    layer.zoneout = 1e-9  # below what random words resolve
    assert layer(torch.randn(3, 2, I))[0].isfinite().all()
    assert not draws[0][0].masks.zoneout_h.any()


def test_explain_turns_masks_as_calls_do(monkeypatch: pytest.MonkeyPatch) -> None:
    for layer, x in (
        (seqkernels.FusedLSTM(8, 128), torch.randn(300, 8)),
        (seqkernels.FusedLSTM(8, 128, batch_first=True), torch.randn(1, 300, 8)),
    ):
        mask = torch.zeros(x.shape[:-1], dtype=torch.bool)
        assert "segments" not in seqkernels.explain(layer, x, reset_mask=mask).kernel
        mask[..., ::7] = True
        assert "segments" in seqkernels.explain(layer, x, reset_mask=mask).kernel
    wrong = {"reset_mask": mask.float()}, {"reset_mask": mask[:, 1:]}, {"lengths": torch.tensor([301])}
    for rows in wrong:
        plan = seqkernels.explain(layer, x, **rows)
        assert (plan.backend, len(plan.reasons)) == ("none", 1)
    cell = seqkernels.FusedGRUCell(I, H)
    assert seqkernels.explain(cell, torch.randn(I), reset_mask=torch.tensor(True)).backend == "native"


def test_empty_and_odd_lengths() -> None:
    layer = seqkernels.FusedGRU(I, H)
    assert layer(torch.randn(4, 0, I), lengths=[])[0].shape == (4, 0, H)
    for wrong, error in (([None, 1], TypeError), ([2**70, 1], ValueError), ([1.0, 2.0], TypeError)):
        with pytest.raises(error, match="lengths must be"):
            layer(torch.randn(4, 2, I), lengths=wrong)


def test_a_state_that_is_not_finite_behind_a_length_of_zero() -> None:
    for backend in ("native", "reference"):
        layer = seqkernels.FusedLSTM(I, H, backend=backend)
        hx = tuple(torch.tensor([[[1.0], [float("nan")]]]).expand(1, 2, H) for _ in range(2))
        layer(torch.randn(3, 2, I), hx, lengths=[3, 0])[0].sum().backward()
        assert all(p.grad.isfinite().all() for p in layer.parameters())


def test_symbolic_trace_of_a_mask_alone() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.cell = seqkernels.FusedGRU(I, H), seqkernels.FusedGRUCell(I, H)
            self.x = nn.Buffer(torch.randn(4, 2, I))

        def forward(self, mask: Tensor) -> Any:
            return self.layer(self.x, reset_mask=mask)[0], self.cell(self.x[0], reset_mask=mask[0])

    model, mask = Model(), torch.rand(4, 2) < 0.5
    for got, want in zip(torch.fx.symbolic_trace(model)(mask), model(mask), strict=True):
        assert torch.equal(got, want)
