"""GRUs whose reset gate comes before the product: `reset_after=False`."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils._per_sample_grad import call_for_per_sample_grads
from torch.nn.utils.rnn import pack_sequence

import seqkernels
from seqkernels import functional

from .conftest import assert_close, flat

I, H = 5, 7
OPTIONS: list[dict[str, Any]] = [
    {},
    {"bias": False, "bidirectional": True},
    {"num_layers": 3, "batch_first": True},
    {"num_layers": 2, "bidirectional": True},
]


def gru(**options: Any) -> seqkernels.FusedGRU:
    return seqkernels.FusedGRU(I, H, reset_after=False, **options)


def step(x: Tensor, h: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor) -> Tensor:
    """The equations, gate by gate."""
    (w_ir, w_iz, w_in), (w_hr, w_hz, w_hn) = w_ih.chunk(3), w_hh.chunk(3)
    (b_ir, b_iz, b_in), (b_hr, b_hz, b_hn) = b_ih.chunk(3), b_hh.chunk(3)
    r = torch.sigmoid(x @ w_ir.t() + b_ir + h @ w_hr.t() + b_hr)
    z = torch.sigmoid(x @ w_iz.t() + b_iz + h @ w_hz.t() + b_hz)
    n = torch.tanh(x @ w_in.t() + b_in + (r * h) @ w_hn.t() + b_hn)
    return (1 - z) * n + z * h


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_equations(backend: str) -> None:
    layer = gru(backend=backend).double()
    x, h = torch.randn(4, 3, I, dtype=torch.float64), torch.randn(1, 3, H, dtype=torch.float64)
    output, h_n = layer(x, h)
    expected, state = [], h[0]
    for row in x:
        state = step(row, state, *layer.parameters())
        expected.append(state)
    assert_close(output, torch.stack(expected))
    assert_close(h_n, state.unsqueeze(0))
    cell = seqkernels.FusedGRUCell(I, H, reset_after=False, backend=backend).double()
    assert_close(cell(x[0], h[0]), step(x[0], h[0], *cell.parameters()))
    assert_close(cell(x[0, 0]), step(x[0, 0], torch.zeros(H, dtype=torch.float64), *cell.parameters()))


@pytest.mark.parametrize("kind", ["padded", "unbatched", "packed", "reset"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_layers(options: dict[str, Any], kind: str, target: torch.device) -> None:
    layer = gru(**options, backend="native").to(target)
    plain = copy.deepcopy(layer).cpu()
    plain.backend = "reference"
    x: Any = torch.randn(4, I) if kind == "unbatched" else torch.randn(4, 3, I)
    given: dict[str, Any] = {}
    if kind == "packed":
        x = pack_sequence([torch.randn(n, I) for n in (1, 4, 2)], enforce_sorted=False)
    if kind == "reset":
        given = {"reset_mask": torch.rand(4, 3) < 0.4}
    found = []
    for module, device in ((layer, target), (plain, torch.device("cpu"))):
        on_device = {name: t.to(device) for name, t in given.items()}
        results = [t.cpu() for t in flat(module(x.to(device), **on_device)) if t.is_floating_point()]
        loss = sum(t.sin().sum() for t in results)
        found.append([*results, *(g.cpu() for g in torch.autograd.grad(loss, list(module.parameters())))])
    assert_close(found[0], found[1])


def test_functions() -> None:
    layer, cell = gru(num_layers=2), seqkernels.FusedGRUCell(I, H, reset_after=False)
    x, h = torch.randn(4, 3, I), torch.randn(2, 3, H)
    weights = list(layer.parameters())
    assert_close(functional.gru(x, h, weights, num_layers=2, reset_after=False), layer(x, h))
    assert_close(
        functional.gru_cell(x[0], h[0], *cell.parameters(), reset_after=False, backend="native"),
        cell(x[0], h[0]),
    )


def test_dropout_between_layers() -> None:
    layer = gru(num_layers=3, dropout=0.5)
    x = torch.randn(4, 3, I)
    found = []
    for backend in ("native", "reference"):
        torch.manual_seed(0)
        layer.backend = backend
        found.append(layer(x)[0])
    assert_close(found[0], found[1])
    assert not torch.allclose(layer(x)[0], found[0])


def test_the_option_may_be_set_at_any_time() -> None:
    theirs, x = nn.GRU(I, H), torch.randn(4, 3, I)
    ours = gru()
    ours.load_state_dict(theirs.state_dict())
    assert not torch.allclose(ours(x)[0], theirs(x)[0])
    ours.reset_after = True
    assert_close(ours(x)[0], theirs(x)[0])
    ours.reset_after = False
    before = ours(x)[0]
    with torch.no_grad():
        assert_close(ours(x)[0], before)
    assert theirs.state_dict().keys() == ours.state_dict().keys()


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
@pytest.mark.parametrize("make", [gru, lambda: seqkernels.FusedGRUCell(I, H, reset_after=False)])
def test_copies(make: Callable[[], Any], duplicate: Callable[[Any], Any]) -> None:
    module = make()
    again = duplicate(module)
    assert not again.reset_after
    assert repr(again) == repr(module)
    x = torch.randn(3, I)
    assert all(torch.equal(a, b) for a, b in zip(flat(again(x)), flat(module(x)), strict=True))


def test_modules_that_were_made_before_the_option() -> None:
    layer = seqkernels.FusedGRU(I, H)
    assert "_cell" not in layer.__dict__
    assert layer.reset_after
    assert "reset_after" not in repr(layer)


@pytest.mark.parametrize("value", [None, 0, "False", torch.tensor(False)])
def test_what_is_no_bool(value: Any) -> None:
    with pytest.raises(TypeError, match="reset_after must be True or False, got"):
        seqkernels.FusedGRU(I, H, reset_after=value)


def test_explained() -> None:
    x = torch.randn(4, 3, I)
    explained = seqkernels.explain(gru(), x)
    assert explained.backend == "native"
    assert explained.kernel.endswith(" gru_reset_before")
    half = seqkernels.explain(gru(dtype=torch.complex64), x.to(torch.complex64))
    assert (half.backend, len(half.reasons)) == ("reference", 1)


@pytest.mark.parametrize(
    "call",
    [
        lambda m: m(torch.zeros(4, 3, I + 1)),
        lambda m: m(torch.zeros(4)),
        lambda m: m(torch.zeros(4, 3, I), torch.zeros(2, 3, H)),
        lambda m: m(torch.zeros(4, 3, I), torch.zeros(3, H)),
        lambda m: m(None),
    ],
)
def test_mistakes_end_as_with_torch(call: Callable[[nn.Module], Any]) -> None:
    messages = []
    for module in (gru(), nn.GRU(I, H)):
        with pytest.raises(Exception) as caught:  # noqa: PT011
            call(module)
        messages.append((caught.type, str(caught.value).replace("FusedGRU", "GRU")))
    assert messages[0] == messages[1]


def test_torchs_forward_is_never_taken_for_it() -> None:
    """Weights that give each sample a gradient of its own are for torch, which has another formula."""
    layer = gru()
    with pytest.raises(RuntimeError, match="FusedGRU does not take these arguments with reset_after=False"):
        call_for_per_sample_grads(layer, batch_first=False)(torch.randn(4, 3, I))
    with pytest.raises(RuntimeError, match="FusedGRU cannot be scripted with reset_after=False"):
        torch.jit.script(layer)
    with pytest.raises(RuntimeError, match="FusedGRUCell cannot be scripted with reset_after=False"):
        torch.jit.script(seqkernels.FusedGRUCell(I, H, reset_after=False))


def test_unfuse_leaves_it(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Sequential(gru(), seqkernels.FusedGRU(I, H))
    seqkernels.unfuse(model)
    assert "unfuse leaves FusedGRU alone: torch.nn has no reset_after=False" in caplog.text
    assert [type(m) for m in model] == [seqkernels.FusedGRU, nn.GRU]
    assert not seqkernels.fuse(model)[0].reset_after


def test_subclasses() -> None:
    class Own(seqkernels.FusedGRU):
        def forward(self, input: Any, hx: Any = None) -> Any:
            output, _ = super().forward(input, hx)
            return output

    own, x = Own(I, H, reset_after=False), torch.randn(4, 3, I)
    plain = gru()
    plain.load_state_dict(own.state_dict())
    assert_close(own(x), plain(x)[0])


@pytest.mark.parametrize("make", [gru, lambda: seqkernels.FusedGRUCell(I, H, reset_after=False)])
def test_compiled_traced_and_exported(make: Callable[[], Any]) -> None:
    module, x = make(), torch.randn(3, I)
    expected = flat(module(x))
    assert_close(flat(torch.compile(module, backend="eager", fullgraph=True)(x)), expected)
    assert_close(flat(torch.jit.trace(module, (x,))(x)), expected)
    assert_close(flat(torch.export.export(module, (x,)).module()(x)), expected)


@pytest.mark.parametrize("wide", [False, True])
def test_autocast_as_of_the_other_form(wide: bool) -> None:
    """A result has the dtype that torch.nn's GRU gives it."""
    theirs, ours = nn.GRU(I, H), gru()
    x = torch.randn(4, 3, I)
    h = torch.randn(1, 3, H) if wide else torch.randn(1, 3, H).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = flat(ours(x, h)), flat(theirs(x, h))
    assert [t.dtype for t in found] == [t.dtype for t in expected]
    with torch.no_grad():
        assert_close(found[0].float(), ours(x, h.float())[0], torch.bfloat16)
