"""The fast path around torch's dispatcher: the same results, and taken only where nobody can tell."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import seqkernels
from seqkernels import _C, dispatch

from .conftest import DTYPES, LAYERS, STEPS, assert_close, flat, random_state

FUSED_LAYERS = tuple(f"Fused{name}" for name in LAYERS)
FUSED_STEPS = tuple(f"Fused{name}" for name in STEPS)
I, H = 5, 18
OPTIONS: list[dict[str, Any]] = [
    {},
    {"bias": False, "bidirectional": True},
    {"num_layers": 3, "batch_first": True},
    {"num_layers": 2, "bidirectional": True, "batch_first": True, "dropout": 0.5},
]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """One entry for each try of the fast path: whether it went through."""
    tries: list[bool] = []
    original = _C.fastpath

    def run_and_tell(*args: Any) -> Any:
        result = original(*args)
        tries.append(result is not None)
        return result

    monkeypatch.setattr(_C, "fastpath", run_and_tell)
    return tries


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def both(module: nn.Module, *inputs: Any, **given: Any) -> tuple[list[Tensor], list[Tensor]]:
    """The results of the fast path and of the long one."""
    short = module(*inputs, **given)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatch, "_fastpath_enabled", False)
        long = module(*inputs, **given)
    assert type(short) is type(long)
    return flat(short), flat(long)


def check(calls: list[bool], module: nn.Module, *inputs: Any) -> None:
    short, long = both(module, *inputs)
    assert calls == [True]
    calls.clear()
    assert [t.shape for t in short] == [t.shape for t in long]
    assert [t.is_contiguous() for t in short] == [t.is_contiguous() for t in long]
    assert all(torch.equal(a, b) for a, b in zip(short, long, strict=True))
    storages = {t.untyped_storage().data_ptr() for t in (*short, *flat(inputs))}
    assert len(storages) >= len(short) + (len(flat(inputs)) > 0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("given", [False, True], ids=["zeros", "hx"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name", FUSED_LAYERS)
def test_layers(
    name: str,
    options: dict[str, Any],
    given: bool,
    dtype: torch.dtype,
    target: torch.device,
    calls: list[bool],
) -> None:
    if target.type != "cpu":
        pytest.skip("the fast path is for the CPU")
    module = getattr(seqkernels, name)(I, H, **options).to(dtype).eval()
    states = module.num_layers * (1 + module.bidirectional)
    for shape in ((1, 1), (4, 1), (1, 3), (4, 3), (9, 30), (4,)):
        x = torch.randn(*shape, I).to(dtype)
        batch = shape[:1] if module.batch_first and len(shape) > 1 else shape[1:]
        hx = [random_state(name, states, *batch, H, dtype=dtype)] if given else []
        check(calls, module, x, *hx)
        if len(shape) > 1:
            check(calls, module, x.transpose(0, 1).contiguous().transpose(0, 1), *hx)
            check(calls, module, torch.randn(*shape, 2 * I).to(dtype)[..., I:], *hx)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("given", [False, True], ids=["zeros", "hx"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", FUSED_STEPS)
def test_cells(name: str, bias: bool, given: bool, dtype: torch.dtype, calls: list[bool]) -> None:
    module = getattr(seqkernels, name)(I, H, bias=bias).to(dtype)
    for batch in ((1,), (3,), (40,), ()):
        hx = [random_state(name, *batch, H, dtype=dtype)] if given else []
        check(calls, module, torch.randn(*batch, I).to(dtype), *hx)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_cells_of_several_stages(
    options: dict[str, Any], dtype: torch.dtype, target: torch.device, calls: list[bool]
) -> None:
    if target.type != "cpu":
        pytest.skip("the fast path is for the CPU")
    projected = seqkernels.FusedLSTM(I, H, proj_size=3, **options).to(dtype).eval()
    before = seqkernels.FusedGRU(I, H, reset_after=False, **options).to(dtype).eval()
    layer, joint = (
        seqkernels.FusedLSTM(I, H, norm=norm, **options).to(dtype).eval() for norm in ("layer", "layer-joint")
    )
    gru = seqkernels.FusedGRU(I, H, norm="layer", norm_eps=0.1, **options).to(dtype).eval()
    states = before.num_layers * (1 + before.bidirectional)
    for shape in ((1, 1), (4, 3), (9, 30), (4,)):
        batch = shape[:1] if before.batch_first and len(shape) > 1 else shape[1:]
        h, p = (torch.randn(states, *batch, size).to(dtype) for size in (H, 3))
        for module, hx in ((projected, (p, h)), (before, h), (layer, (h, h)), (joint, (h, h)), (gru, h)):
            check(calls, module, torch.randn(*shape, I).to(dtype))
            check(calls, module, torch.randn(*shape, I).to(dtype), hx)


def test_relu(calls: list[bool]) -> None:
    check(calls, seqkernels.FusedRNN(I, H, nonlinearity="relu"), torch.randn(4, 3, I))
    check(calls, seqkernels.FusedRNNCell(I, H, nonlinearity="relu"), torch.randn(3, I))


def test_nothing_requires_a_gradient(calls: list[bool]) -> None:
    """Then it need not be said that none is wanted."""
    module = seqkernels.FusedLSTM(I, H).requires_grad_(False)
    with torch.enable_grad():
        check(calls, module, torch.randn(4, 3, I))


@pytest.mark.parametrize("which", ["x", "h", "c", "weight_ih_l0", "bias_hh_l0"])
def test_something_requires_a_gradient(which: str, calls: list[bool]) -> None:
    module = seqkernels.FusedLSTM(I, H).requires_grad_(False)
    x, (h, c) = torch.randn(4, 3, I), random_state("LSTM", 1, 3, H)
    named = {"x": x, "h": h, "c": c} | dict(module.named_parameters())
    named[which].requires_grad_()
    with torch.enable_grad():
        output, _ = module(x, (h, c))
        (grad,) = torch.autograd.grad(output.sum(), named[which])
    assert calls == ([] if which == "weight_ih_l0" else [False])  # the first weight is looked at before
    assert grad.abs().sum() > 0


def test_inference_mode(calls: list[bool]) -> None:
    module, x = seqkernels.FusedGRU(I, H), torch.randn(4, 3, I)
    with torch.inference_mode():
        assert all(t.is_inference() for t in flat(module(x)))
    assert calls == [True]
    assert not any(t.is_inference() for t in flat(module(x)))


class Functions(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class Dispatches(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.ops: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.ops.append(str(func))
        return func(*args, **(kwargs or {}))


OBSERVERS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "function mode": Functions,
    "dispatch mode": Dispatches,
    "default device": lambda: torch.device("cpu"),
    "profiler": lambda: torch.profiler.profile(),
    "forward mode": torch.autograd.forward_ad.dual_level,
}


@pytest.mark.parametrize("observer", OBSERVERS)
def test_observers_see_the_op(observer: str, calls: list[bool]) -> None:
    module, x = seqkernels.FusedLSTM(I, H), torch.randn(4, 3, I)
    with OBSERVERS[observer]() as seen:
        output, _ = module(x)
    assert calls == []
    assert output.dtype == (torch.bfloat16 if observer == "autocast" else torch.float32)
    if observer == "dispatch mode":
        assert "seqkernels.lstm.default" in seen.ops
    if observer == "profiler":
        assert "seqkernels::lstm" in {event.key for event in seen.key_averages()}


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize("how", ["vmap", "compile", "trace", "export"])
def test_traced_and_transformed(how: str, calls: list[bool]) -> None:
    module, x = seqkernels.FusedGRU(I, H), torch.randn(4, 3, I)
    expected, _ = module(x)
    calls.clear()
    if how == "vmap":
        actual = torch.vmap(lambda row: module(row)[0], in_dims=1, out_dims=1)(x)
    elif how == "compile":
        actual = torch.compile(module, fullgraph=True, backend="aot_eager")(x)[0]
    elif how == "trace":
        actual = torch.jit.trace(module, (x,), check_trace=False)(x)[0]
    else:
        actual = torch.export.export(module, (x,)).module()(x)[0]
    assert calls == []
    assert torch.allclose(actual, expected, atol=1e-6)


class Labelled(Tensor):
    pass


def negated(tensor: Tensor) -> Tensor:
    """A view that says that its memory is to be read with the other sign."""
    view = torch.complex(torch.zeros_like(tensor), -tensor).conj().imag
    assert view.is_neg()
    return view


def with_weight(module: nn.Module, weight: Tensor) -> nn.Module:
    module.weight_hh_l0 = nn.Parameter(weight, requires_grad=False)
    return module


LSTM = seqkernels.FusedLSTM
NOT_PLAIN: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "packed": lambda m, x: m(nn.utils.rnn.pack_sequence([x[:, 0], x[:2, 1]])),
    "subclass": lambda m, x: m(x.as_subclass(Labelled)),
    "negated x": lambda m, x: m(negated(x)),
    "negated state": lambda m, x: m(x, (negated(torch.ones(1, 3, H)), torch.ones(1, 3, H))),
    "negated weight": lambda m, x: with_weight(m, negated(m.weight_hh_l0.detach().clone()))(x),
    "columns of x": lambda m, x: m(torch.stack([x, x], -1)[..., 0]),
    "transposed weight": lambda m, x: with_weight(m, m.weight_hh_l0.detach().t().contiguous().t())(x),
    "expanded state": lambda m, x: m(x, (torch.ones(1, 1, H).expand(1, 3, H), torch.ones(1, 3, H))),
    "parametrized": lambda m, x: parametrizations.weight_norm(m, "weight_hh_l0")(x),
    "dropout": lambda m, x: LSTM(I, H, 2, dropout=0.5).train()(x),
    "reference": lambda m, x: LSTM(I, H, backend="reference")(x),
    "meta": lambda m, x: m.to("meta")(x.to("meta")),
    "no batch": lambda m, x: m(x[:, :0]),
}


@pytest.mark.parametrize("what", NOT_PLAIN)
def test_long_way(what: str, calls: list[bool]) -> None:
    """What is not plain takes the long way, and comes out as it would without the fast one."""
    results = []
    for allowed in (True, False):
        torch.manual_seed(0)
        module, x = LSTM(I, H), torch.randn(4, 3, I)
        with pytest.MonkeyPatch.context() as patch:
            if not allowed:
                patch.setattr(dispatch, "_fastpath_enabled", False)
            results.append([t for t in flat(NOT_PLAIN[what](module, x)) if t.is_floating_point()])
    assert not any(calls)
    short, long = results
    assert [t.shape for t in short] == [t.shape for t in long]
    assert what == "meta" or all(torch.equal(a, b) for a, b in zip(short, long, strict=True))


def test_cells_that_the_long_way_refuses() -> None:
    with pytest.raises(RuntimeError):
        seqkernels.FusedGRUCell(I, 0)(torch.randn(3, I))


def test_checks_of_a_subclass_are_asked() -> None:
    class Picky(seqkernels.FusedLSTM):
        def check_forward_args(self, *args: Any) -> None:
            raise ValueError("picky")

    class Own(seqkernels.FusedLSTM):
        pass

    x = torch.randn(4, 3, I)
    with pytest.raises(ValueError, match="picky"):
        Picky(I, H)(x)
    assert Own._fastpath_supported


def test_switch(calls: list[bool]) -> None:
    module, x = seqkernels.FusedLSTM(I, H), torch.randn(4, 3, I)
    assert seqkernels.get_fastpath_enabled()
    seqkernels.set_fastpath_enabled(False)
    try:
        long = module(x)
        assert not seqkernels.get_fastpath_enabled()
    finally:
        seqkernels.set_fastpath_enabled(True)
    assert calls == []
    assert all(torch.equal(a, b) for a, b in zip(flat(long), flat(module(x)), strict=True))
    assert calls == [True]


def test_state_as_a_list(calls: list[bool]) -> None:
    """torch.nn takes the two states of an LSTM in any sequence."""
    module, x, hx = seqkernels.FusedLSTM(I, H), torch.randn(4, 3, I), random_state("LSTM", 1, 3, H)
    for given in (hx, list(hx)):
        short, long = both(module, x, given)
        assert all(torch.equal(a, b) for a, b in zip(short, long, strict=True))


@pytest.mark.parametrize("name", [*FUSED_LAYERS, *FUSED_STEPS])
def test_parameters_are_read_afresh(name: str) -> None:
    module, x = getattr(seqkernels, name)(I, H), torch.randn(3, 2, I)
    x = x[0] if name.endswith("Cell") else x
    before = flat(module(x))[0]
    next(module.parameters()).data *= 2
    assert not torch.equal(flat(module(x))[0], before)
    module.load_state_dict({n: torch.zeros_like(p) for n, p in module.state_dict().items()})
    assert flat(module(x))[0].abs().max() == 0


def masks(*shape: int) -> list[Tensor]:
    """Of resets, as they may lie in memory: whole, turned, spread out, the same for all."""
    mask = torch.rand(shape) < 0.4
    backwards = tuple(reversed(range(mask.dim())))
    turned = mask.permute(backwards).contiguous().permute(backwards)
    every_second = tuple(slice(None, None, 2) for _ in shape)
    spread = torch.zeros([2 * n for n in shape], dtype=torch.bool)[every_second]
    spread.copy_(mask)
    return [mask, turned, spread, torch.tensor(True).expand(shape)]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name", FUSED_LAYERS)
def test_resets_of_layers(name: str, options: dict[str, Any], calls: list[bool]) -> None:
    layer = getattr(seqkernels, name)(I, H, **options).eval()
    for shape in ((7, 3), (7,), (1, 4), (4, 1)):
        x = torch.randn(*shape, I)
        for mask in masks(*shape):
            short, long = both(layer, x, reset_mask=mask)
            assert all(torch.equal(a, b) for a, b in zip(short, long, strict=True))
    assert all(calls)
    assert calls


@pytest.mark.parametrize("name", FUSED_STEPS)
def test_resets_of_cells(name: str, calls: list[bool]) -> None:
    cell = getattr(seqkernels, name)(I, H)
    for shape in ((3,), ()):
        x, hx = torch.randn(*shape, I), random_state(name, *shape, H)
        for mask in masks(*shape):
            short, long = both(cell, x, hx, reset_mask=mask)
            assert all(torch.equal(a, b) for a, b in zip(short, long, strict=True))
            zeros = tuple(torch.where(mask[..., None], 0, s) for s in flat(hx))
            expected = flat(cell(x, zeros if len(zeros) > 1 else zeros[0]))
            assert all(torch.equal(a, b) for a, b in zip(short, expected, strict=True))
    assert all(calls)
    assert calls


def test_wrong_masks_take_the_long_way(calls: list[bool]) -> None:
    """Which says what is wrong with them."""
    layer, x = seqkernels.FusedGRU(I, H), torch.randn(7, 3, I)
    freed = torch.zeros(7, 3, dtype=torch.bool)
    freed.untyped_storage().resize_(20)
    for mask in (torch.zeros(7, 3), torch.zeros(3, 7, dtype=torch.bool), freed, [True]):
        with pytest.raises((TypeError, ValueError, RuntimeError), match="reset_mask must"):
            layer(x, reset_mask=mask)
    assert not any(calls)


def test_options_and_the_fast_path(calls: list[bool]) -> None:
    """It is for what it computes alone: not for masks that are drawn, nor for lengths."""
    x = torch.randn(7, 3, I)
    for options, training, is_taken in (
        ({"recurrent_dropout": 0.5}, True, False),
        ({"recurrent_dropout": 0.5, "weight_dropout": 0.5, "recompute": True}, False, True),
        ({"recompute": True}, True, True),
        ({"zoneout": 0.5}, True, False),
        ({"zoneout": (0.5, 0.25), "return_cell_states": True}, False, True),
        ({"return_cell_states": True}, True, True),
    ):
        calls.clear()
        layer = seqkernels.FusedLSTM(I, H, **options).train(training)
        layer(x)
        assert calls == [True] * is_taken, options
        layer(x, lengths=torch.tensor([7, 2, 0]))
        assert calls == [True] * is_taken


@pytest.mark.parametrize("layout", ["padded", "batch first", "one step", "one sequence", "unbatched"])
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("LSTM", {"zoneout": (0.5, 0.25), "return_cell_states": True}),
        ("LSTM", {"zoneout": (0.0, 1.0)}),
        ("LSTM", {"return_cell_states": True, "proj_size": 3, "zoneout": 0.1}),
        ("LSTM", {"return_cell_states": True, "norm": "layer"}),
        ("GRU", {"zoneout": 0.3}),
        ("RNN", {"zoneout": 0.3}),
    ],
)
def test_options_on_the_fast_path(
    name: str, options: dict[str, Any], layers: int, layout: str, calls: list[bool]
) -> None:
    """The same results, of the same strides, as on the long way."""
    options = {**options, "bidirectional": layers > 1, "batch_first": layout == "batch first"}
    layer = getattr(seqkernels, f"Fused{name}")(I, H, layers, **options).eval()
    sizes = {"one step": (1, 4), "one sequence": (7, 1), "batch first": (4, 7), "unbatched": (7,)}
    x = torch.randn(*sizes.get(layout, (7, 4)), I)
    for given in ({}, {"reset_mask": torch.rand(x.shape[:-1]) < 0.2}):
        calls.clear()
        short, long = both(layer, x, **given)
        assert calls == [True]
        assert_close(short, long)
        assert [t.stride() for t in short] == [t.stride() for t in long]


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_zoneout_of_a_cell_on_the_fast_path(name: str, calls: list[bool]) -> None:
    cell = getattr(seqkernels, f"Fused{name}Cell")(I, H, zoneout=0.3).eval()
    h = torch.randn(3, H)
    short, long = both(cell, torch.randn(3, I), (h, torch.randn(3, H)) if name == "LSTM" else h)
    assert calls == [True]
    assert_close(short, long)
