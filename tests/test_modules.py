"""The modules in the place of torch.nn's: the same results, gradients, errors, files and habits.

What torch.nn computes in float64 is right; torch.nn itself in the dtype of the test is not always.
"""

from __future__ import annotations

import copy
import io
import itertools
import pickle
import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import seqkernels

from .conftest import LAYERS, STEPS, assert_close, case_name, flat, paired, random_state

I, H = 5, 6


def pair(name: str, *args: Any, **kwargs: Any) -> tuple[nn.Module, nn.Module]:
    """torch.nn's module and ours, with the same parameters."""
    theirs = getattr(nn, name)(*args, **kwargs)
    ours = fused(name)(*args, **kwargs)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def fused(name: str) -> type[nn.Module]:
    return getattr(seqkernels, f"Fused{name}")


def shown(value: Any) -> Any:
    """Types, dtypes, shapes and strides."""
    if isinstance(value, Tensor):
        return value.dtype, value.shape, value.stride() if value.numel() else None
    if isinstance(value, PackedSequence):
        indices = [i if i is None else i.tolist() for i in value[2:]]
        return PackedSequence, shown(value.data), value.batch_sizes.tolist(), indices
    return type(value), [shown(v) for v in value]


def trained(module: nn.Module, *inputs: Any) -> tuple[Any, list[Tensor | None]]:
    """What it returns, and the gradients of its floating-point inputs and its parameters."""
    torch.manual_seed(1)  # of dropout
    result = module(*inputs)
    leaves = [t for t in [*flat(inputs), *module.parameters()] if t.requires_grad]
    loss = sum((t.double() * (n + t.double().sin())).sum() for n, t in enumerate(flat_data(result), 1))
    return result, list(torch.autograd.grad(loss, leaves))


def flat_data(value: Any) -> list[Tensor]:
    """The floating-point tensors in nested results."""
    return [t for t in flat(value) if t.is_floating_point()]


def compare(theirs: nn.Module, ours: nn.Module, *inputs: Any) -> None:
    """The two agree in every respect; the right values are torch's in float64, on the CPU."""
    dtype = next(ours.parameters()).dtype
    result, grads = trained(ours, *inputs)
    random_state = torch.get_rng_state()
    with torch.no_grad():
        torch.manual_seed(1)
        assert shown(result) == shown(theirs(*inputs))
        assert torch.equal(random_state, torch.get_rng_state())
    right, right_grads = trained(copy.deepcopy(theirs).cpu().double(), *doubled(inputs))
    assert_close(flat_data(result), flat_data(right), dtype)
    assert_close(grads, right_grads, dtype)


def doubled(value: Any) -> Any:
    """In float64 on the CPU; a leaf where a gradient is wanted."""
    if isinstance(value, Tensor):
        value, needs_grad = value.detach().cpu(), value.requires_grad
        return value.double().requires_grad_(needs_grad) if value.is_floating_point() else value
    if isinstance(value, PackedSequence):
        return PackedSequence(*(doubled(part) for part in value))
    return None if value is None else tuple(doubled(v) for v in value)


# ---------------------------------------------------------------- results

OPTIONS = [
    {},
    {"bidirectional": True},
    {"num_layers": 3, "bias": False},
    {"num_layers": 2, "bidirectional": True, "batch_first": True},
    {"batch_first": True, "bias": False, "bidirectional": True},
    {"num_layers": 3, "dropout": 0.4, "bidirectional": True},
    {"num_layers": 2, "dropout": 1.0, "batch_first": True},
]
CONFIGURATIONS = [
    *((name, options) for name in LAYERS for options in OPTIONS),
    ("RNN", {"nonlinearity": "relu", "num_layers": 2, "bidirectional": True}),
    ("LSTM", {"proj_size": 3}),
    ("LSTM", {"proj_size": 3, "num_layers": 2, "bidirectional": True, "bias": False}),
    ("LSTM", {"proj_size": 2, "num_layers": 2, "dropout": 0.4, "batch_first": True}),
]
KINDS = ["padded", "unbatched", "sorted", "unsorted"]


def configured(
    name: str, options: dict[str, Any], dtype: torch.dtype, device: torch.device
) -> tuple[nn.Module, nn.Module, tuple[int, int]]:
    theirs, ours = pair(name, I, H, dtype=dtype, device=device, **options)
    layers = options.get("num_layers", 1) * (2 if options.get("bidirectional") else 1)
    return theirs, ours, (layers, options.get("proj_size") or H)


def initial(name: str, layers: int, features: int, batch: tuple[int, ...], like: dict[str, Any]) -> Any:
    if name != "LSTM":
        return random_state(name, layers, *batch, features, **like, requires_grad=True)
    h, c = (torch.randn(layers, *batch, n, **like).requires_grad_() for n in (features, H))
    return h, c


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@paired("layer kind state", CONFIGURATIONS, KINDS, ["zeros", "hx"], each=1)
def test_layers(
    layer: tuple[str, dict[str, Any]], kind: str, state: str, dtype: torch.dtype, device: torch.device
) -> None:
    name, options = layer
    theirs, ours, (layers, features) = configured(name, options, dtype, device)
    like = {"dtype": dtype, "device": device}
    if kind in ("padded", "unbatched"):
        shape = (4, 3, I) if kind == "padded" else (4, I)
        x, batch = torch.randn(*shape, **like).requires_grad_(), shape[1:-1]
        if kind == "padded" and options.get("batch_first"):
            batch = shape[:1]
    else:
        lengths = [4, 2, 1] if kind == "sorted" else [2, 4, 1]
        sequences = [torch.randn(n, I, **like) for n in lengths]
        x, batch = pack_sequence(sequences, enforce_sorted=kind == "sorted"), (3,)
        x.data.requires_grad_()
    inputs = (x, initial(name, layers, features, batch, like)) if state == "hx" else (x,)
    if device.type == "cpu" or options.get("dropout", 0) in (0, 1):  # others draw from the device's generator
        compare(theirs, ours, *inputs)
    theirs.eval(), ours.eval()
    compare(theirs, ours, *inputs)


@pytest.mark.parametrize("given", [False, True], ids=["zeros", "hx"])
@pytest.mark.parametrize("batch", [(3,), ()], ids=["batched", "unbatched"])
@pytest.mark.parametrize(
    ("name", "options"),
    [(name, {"bias": bias}) for name in STEPS for bias in (True, False)]
    + [("RNNCell", {"nonlinearity": "relu"})],
    ids=case_name,
)
def test_cells(
    name: str,
    options: dict[str, Any],
    batch: tuple[int, ...],
    given: bool,
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    like = {"dtype": dtype, "device": device}
    theirs, ours = pair(name, I, H, **options, **like)
    x = torch.randn(*batch, I, **like).requires_grad_()
    compare(
        theirs, ours, *((x, random_state(name, *batch, H, **like, requires_grad=True)) if given else (x,))
    )


@pytest.mark.parametrize("backend", ["auto", "native", "reference"])
@pytest.mark.parametrize("name", LAYERS + STEPS)
def test_backends_agree(name: str, backend: str, dtype: torch.dtype, device: torch.device) -> None:
    theirs, ours = pair(name, I, H, dtype=dtype, device=device)
    ours.backend = backend
    x = torch.randn(4, 3, I) if name in LAYERS else torch.randn(3, I)
    compare(theirs, ours, x.to(device, dtype).requires_grad_())


@pytest.mark.parametrize("name", LAYERS)
def test_a_hundred_thousand_steps(name: str) -> None:
    """As in pieces, with the state handed on; and what the last steps read gets the same gradient."""
    module, x, last = fused(name)(I, H), torch.randn(100_000, 1, I, requires_grad=True), 300
    output, _ = module(x)
    hx, pieces = None, []
    with torch.no_grad():
        for piece in x.split(9_973):
            result, hx = module(piece, hx)
            pieces.append(result)
        _, hx = module(x[:-last])
    assert_close(output.detach(), torch.cat(pieces))
    (grad,) = torch.autograd.grad(output[-1].sum(), x)
    ending = x[-last:].detach().requires_grad_()
    (right,) = torch.autograd.grad(module(ending, hx)[0][-1].sum(), ending)
    assert_close(grad[-last:], right)
    assert grad.isfinite().all()


@pytest.mark.parametrize("name", LAYERS)
def test_training_ends_where_it_does_with_torch(name: str, device: torch.device) -> None:
    theirs, ours = pair(name, I, H, 2, bidirectional=True, dtype=torch.float64, device=device)
    x = torch.randn(6, 3, I, dtype=torch.float64, device=device)
    for module in (theirs, ours):
        optimizer = torch.optim.Adam(module.parameters(), lr=0.05)
        for _ in range(10):
            optimizer.zero_grad()
            module(x)[0].square().mean().backward()
            optimizer.step()
    for (_, ours_p), (_, theirs_p) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        torch.testing.assert_close(ours_p, theirs_p, rtol=1e-9, atol=1e-9)


try:
    from torch.testing._internal.common_modules import module_db
except ImportError:  # it needs the package expecttest
    module_db = []
RNN_MODULES = [m for m in module_db if m.module_cls.__name__ in LAYERS + STEPS]


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("info", RNN_MODULES, ids=lambda info: info.name)
def test_inputs_of_torchs_own_tests(info: Any, training: bool, device: torch.device) -> None:
    dtype = torch.float64
    for packed in ({}, {"with_packed_sequence": True}) if info.module_cls.__name__ in LAYERS else ({},):
        samples = info.module_inputs_func(
            info, device=device, dtype=dtype, requires_grad=True, training=training, **packed
        )
        for sample in samples:
            constructor = sample.constructor_input
            theirs, ours = pair(
                info.module_cls.__name__,
                *constructor.args,
                **{**constructor.kwargs, "dtype": dtype, "device": device},
            )
            theirs.train(training), ours.train(training)
            given = sample.forward_input
            torch.manual_seed(2)
            expected = theirs(*given.args, **given.kwargs)
            torch.manual_seed(2)
            actual = ours(*given.args, **given.kwargs)
            assert shown(actual) == shown(expected)
            assert_close(flat_data(actual), flat_data(expected))


@pytest.mark.parametrize("info", RNN_MODULES, ids=lambda info: info.name)
def test_errors_of_torchs_own_tests(info: Any, device: torch.device) -> None:
    if info.module_error_inputs_func is None:
        pytest.skip("torch has none")
    cls = fused(info.module_cls.__name__)
    for error in info.module_error_inputs_func(
        info, device=device, dtype=torch.float32, requires_grad=False, training=True
    ):
        given = error.module_error_input
        with pytest.raises(error.error_type, match=error.error_regex):  # noqa: PT012
            module = cls(*given.constructor_input.args, **given.constructor_input.kwargs)
            module(*given.forward_input.args, **given.forward_input.kwargs)


# ---------------------------------------------------------------- errors


def outcome(run: Callable[[], Any]) -> Any:
    """The error's type and message, without where they are raised from; or the kind of result."""
    try:
        return shown(run())
    except Exception as error:
        return type(error), str(error).split("\n")[0]


def h_of(name: str, *shape: int, c: dict[str, Any] | None = None, **options: Any) -> Any:
    h = torch.zeros(*shape, **options)
    return (h, torch.zeros(*shape, **{**options, **(c or {})})) if name.startswith("LSTM") else h


LAYER_MISTAKES: dict[str, Callable[[nn.Module, str], Any]] = {
    "x features": lambda m, n: m(torch.zeros(4, 3, I + 1)),
    "x 1-D": lambda m, n: m(torch.zeros(I)),
    "x 4-D": lambda m, n: m(torch.zeros(1, 4, 3, I)),
    "x double": lambda m, n: m(torch.zeros(4, 3, I, dtype=torch.float64)),
    "x integer": lambda m, n: m(torch.zeros(4, 3, I, dtype=torch.int64)),
    "x None": lambda m, n: m(None),
    "x absent": lambda m, n: m(),
    "no steps": lambda m, n: m(torch.zeros(0, 3, I)),
    "no sequences": lambda m, n: m(torch.zeros(4, 0, I)),
    "hx batch": lambda m, n: m(torch.zeros(4, 3, I), h_of(n, 1, 2, H)),
    "hx features": lambda m, n: m(torch.zeros(4, 3, I), h_of(n, 1, 3, H + 1)),
    "hx layers": lambda m, n: m(torch.zeros(4, 3, I), h_of(n, 2, 3, H)),
    "hx 2-D": lambda m, n: m(torch.zeros(4, 3, I), h_of(n, 3, H)),
    "hx 3-D, x unbatched": lambda m, n: m(torch.zeros(4, I), h_of(n, 1, 1, H)),
    "hx of the other kind": lambda m, n: m(
        torch.zeros(4, 3, I), h_of("GRU" if n == "LSTM" else "LSTM", 1, 3, H)
    ),
    "packed, double": lambda m, n: m(pack_sequence([torch.zeros(2, I, dtype=torch.float64)])),
    "parameters on meta": lambda m, n: m.to("meta")(torch.zeros(4, 3, I)),
    "x on meta": lambda m, n: m(torch.zeros(4, 3, I, device="meta")),
}
CONSTRUCTIONS: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "hidden_size 0": ((I, 0), {}),
    "hidden_size float": ((I, 2.5), {}),
    "no arguments": ((), {}),
    "num_layers 0": ((I, H, 0), {}),
    "dropout 2": ((I, H, 2), {"dropout": 2}),
    "dropout str": ((I, H, 2), {"dropout": "a lot"}),
    "proj_size negative": ((I, H), {"proj_size": -1}),
    "proj_size too large": ((I, H), {"proj_size": H}),
    "nonlinearity": ((I, H), {"nonlinearity": "gelu"}),
    "unknown": ((I, H), {"colour": "red"}),
    "dtype": ((I, H), {"dtype": torch.int64}),
}


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
@pytest.mark.parametrize("mistake", LAYER_MISTAKES)
@pytest.mark.parametrize("name", LAYERS)
def test_mistakes_with_layers(name: str, mistake: str, grad: bool) -> None:
    theirs, ours = pair(name, I, H)
    with torch.set_grad_enabled(grad):
        expected = outcome(lambda: LAYER_MISTAKES[mistake](theirs, name))
        actual = outcome(lambda: LAYER_MISTAKES[mistake](ours, name))
    if isinstance(expected[1], str):
        expected = expected[0], expected[1].replace(f"{name}.forward", f"Fused{name}.forward")
    assert actual == expected


STRANGE_STATES: dict[str, Callable[[Tensor], Any]] = {
    "three": lambda h: (h, h, h),
    "one": lambda h: (h,),
    "none": lambda h: (),
    "list": lambda h: [h, h],
    "tensor": lambda h: torch.stack([h, h]),
    "tensor of another batch": lambda h: torch.cat([h, h], dim=-2),
    "dict": lambda h: {},
    "number": lambda h: 3,
}


@pytest.mark.parametrize("layout", ["batched", "unbatched", "packed"])
@pytest.mark.parametrize("strange", STRANGE_STATES)
def test_strange_states_of_an_lstm(strange: str, layout: str) -> None:
    theirs, ours = pair("LSTM", I, H)
    x = torch.zeros(4, I) if layout == "unbatched" else torch.zeros(4, 3, I)
    h = torch.zeros(1, H) if layout == "unbatched" else torch.zeros(1, 3, H)
    data = pack_sequence(list(x.unbind(1))) if layout == "packed" else x
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            assert outcome(lambda: ours(data, STRANGE_STATES[strange](h))) == outcome(
                lambda: theirs(data, STRANGE_STATES[strange](h))
            )


@pytest.mark.parametrize("mode", ["foo", "GRU", "rnn_relu", None])
@pytest.mark.parametrize("name", LAYERS)
def test_mode_is_asked_where_torch_asks(name: str, mode: Any) -> None:
    x, packed = torch.zeros(4, 3, I), pack_sequence([torch.zeros(4, I), torch.zeros(2, I)])
    theirs, ours = pair(name, I, H)
    theirs.mode = ours.mode = mode
    for data in (x, packed):
        for grad in (True, False):
            with torch.set_grad_enabled(grad):
                assert outcome(lambda data=data: ours(data)) == outcome(lambda data=data: theirs(data))


def test_nonlinearity_of_a_cell_is_exact() -> None:
    theirs, ours = pair("RNNCell", I, H)
    theirs.nonlinearity = ours.nonlinearity = "RELU"
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            assert outcome(lambda: ours(torch.zeros(3, I))) == outcome(lambda: theirs(torch.zeros(3, I)))


@pytest.mark.parametrize("name", LAYERS)
def test_own_permute_hidden_sees_what_torch_shows_it(name: str) -> None:
    calls: list[list[Any]] = [[], []]
    for base, seen in zip((getattr(nn, name), fused(name)), calls, strict=True):

        class Own(base):  # type: ignore[misc, valid-type]
            seen: Any

            def check_forward_args(self, *args: Any) -> None:
                self.seen.append("check")
                super().check_forward_args(*args)

            def permute_hidden(self, hx: Any, permutation: Tensor | None) -> Any:
                self.seen.append([t.shape for t in flat(hx)])
                return super().permute_hidden(hx, permutation)

        layer = Own(I, H)
        layer.seen = seen
        for x, batch in ((torch.zeros(4, 3, I), (3,)), (torch.zeros(4, I), ())):
            layer(x)
            layer(x, random_state(name, 1, *batch, H))
        layer(pack_sequence([torch.zeros(4, I), torch.zeros(2, I)]), random_state(name, 1, 2, H))
    assert calls[0] == calls[1]


@pytest.mark.parametrize("name", LAYERS)
def test_mistakes_in_packed_sequences(name: str) -> None:
    """Which torch.nn.LSTM computes something for; that much is not copied."""
    module = fused(name)(I, H)
    with pytest.raises(RuntimeError, match=rf"{I}\b"):
        module(pack_sequence([torch.zeros(2, I + 1)]))
    with pytest.raises(RuntimeError, match=r"batch|hidden"):
        module(pack_sequence([torch.zeros(2, I)]), h_of(name, 1, 2, H))


@pytest.mark.filterwarnings("ignore:dropout option adds dropout")
@pytest.mark.parametrize("mistake", CONSTRUCTIONS)
@pytest.mark.parametrize("name", LAYERS)
def test_mistakes_in_constructing_layers(name: str, mistake: str) -> None:
    args, kwargs = CONSTRUCTIONS[mistake]

    def built(cls: type[nn.Module]) -> list[Tensor]:
        return list(cls(*args, **kwargs).parameters())

    actual, expected = (outcome(lambda c=c: built(c)) for c in (fused(name), getattr(nn, name)))
    assert actual == expected


CELL_MISTAKES: dict[str, Callable[[nn.Module, str], Any]] = {
    "x features": lambda m, n: m(torch.zeros(3, I + 1)),
    "x 3-D": lambda m, n: m(torch.zeros(4, 3, I)),
    "x 0-D": lambda m, n: m(torch.tensor(1.0)),
    "hx batch": lambda m, n: m(torch.zeros(3, I), h_of(n, 2, H)),
    "hx batch 1": lambda m, n: m(torch.zeros(3, I), h_of(n, 1, H)),
    "hx features": lambda m, n: m(torch.zeros(3, I), h_of(n, 3, H + 1)),
    "hx 3-D": lambda m, n: m(torch.zeros(3, I), h_of(n, 1, 3, H)),
}


@pytest.mark.parametrize("mistake", CELL_MISTAKES)
@pytest.mark.parametrize("name", STEPS)
def test_mistakes_with_cells(name: str, mistake: str) -> None:
    theirs, ours = pair(name, I, H)
    expected = outcome(lambda: CELL_MISTAKES[mistake](theirs, name))
    actual = outcome(lambda: CELL_MISTAKES[mistake](ours, name))
    if isinstance(expected[1], str):
        expected = expected[0], re.sub(rf"^{name}\b", f"Fused{name}", expected[1])
        actual = actual[0], re.sub(rf"^{name}\b", f"Fused{name}", actual[1])
    assert actual == expected


@pytest.mark.parametrize("name", LAYERS + STEPS)
def test_mixed_dtypes_raise(name: str) -> None:
    """At least where the kernels are asked for; torch computes something for some."""
    x = torch.zeros(4, 3, I) if name in LAYERS else torch.zeros(3, I)
    shape = (1, 3, H) if name in LAYERS else (3, H)
    module = fused(name)(I, H, backend="native")
    with pytest.raises(RuntimeError, match="state of dtype bfloat16 with input of float32"):
        module(x, h_of(name, *shape, dtype=torch.bfloat16))


@pytest.mark.parametrize("backend", ["cuda", "", None, 3])
def test_unknown_backend(backend: Any) -> None:
    message = "backend must be one of 'auto', 'native', 'reference', got"
    module = seqkernels.FusedLSTM(I, H)
    with pytest.raises(ValueError, match=message):
        seqkernels.FusedGRU(I, H, backend=backend)
    with pytest.raises(ValueError, match=message):
        module.backend = backend
    with pytest.raises(ValueError, match=message):
        seqkernels.fuse(module, backend)
    with pytest.raises(ValueError, match=message):
        seqkernels.functional.gru(
            torch.zeros(4, 3, I), torch.zeros(1, 3, H), list(nn.GRU(I, H).parameters()), backend=backend
        )
    assert module.backend == "auto"


def test_backend_is_keyword_only() -> None:
    positional = (I, H, 1, True, False, 0.0, False, 0, None, None)
    seqkernels.FusedLSTM(*positional)
    with pytest.raises(TypeError):
        seqkernels.FusedLSTM(*positional, "auto")


# ---------------------------------------------------------------- being a module


@pytest.mark.parametrize("name", LAYERS + STEPS)
def test_is_its_namesake(name: str) -> None:
    options = {"num_layers": 2, "dropout": 0.5, "bidirectional": True} if name in LAYERS else {"bias": False}
    theirs, ours = pair(name, I, H, **options)
    assert isinstance(ours, getattr(nn, name))
    assert repr(ours) == f"Fused{theirs!r}"
    ours.backend = "reference"
    assert repr(ours) == f"Fused{theirs!r}"[:-1] + ", backend='reference')"
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert [p.shape for p in ours.parameters()] == [p.shape for p in theirs.parameters()]
    theirs.load_state_dict(ours.state_dict())
    torch.manual_seed(3)
    first = getattr(nn, name)(I, H).state_dict()
    torch.manual_seed(3)
    assert all(torch.equal(t, first[key]) for key, t in fused(name)(I, H).state_dict().items())
    if name in LAYERS:
        assert [[p.shape for p in layer] for layer in ours.all_weights] == [
            [p.shape for p in layer] for layer in theirs.all_weights
        ]


def saved_and_loaded(module: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    "copied",
    [copy.copy, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), saved_and_loaded],
    ids=["copy", "deepcopy", "pickle", "torch.save"],
)
@pytest.mark.parametrize("name", LAYERS + STEPS)
def test_copies(name: str, copied: Callable[[nn.Module], nn.Module]) -> None:
    module = fused(name)(I, H, backend="native")
    again = copied(module)
    assert type(again) is type(module)
    assert again.backend == "native"
    x = torch.randn(4, I)
    assert all(torch.equal(a, b) for a, b in zip(flat(again(x)), flat(module(x)), strict=True))
    if copied is not copy.copy:
        before = flat(module(x))[0].clone()
        for p in again.parameters():
            p.data.zero_()
        assert torch.equal(flat(module(x))[0], before)
        assert not flat(again(x))[0].any()


@pytest.mark.parametrize("name", LAYERS)
def test_moves_between_dtypes_and_devices(name: str) -> None:
    theirs, ours = pair(name, I, H)
    x = torch.randn(4, 3, I)
    for dtype in (torch.float64, torch.bfloat16, torch.float32):
        assert ours.to(dtype)(x.to(dtype))[0].dtype == dtype
    shapes = [t.shape for t in flat(ours.to("meta")(x.to("meta")))]
    ours.to_empty(device="cpu").load_state_dict(theirs.state_dict())
    assert [t.shape for t in flat(ours(x))] == shapes
    ours.share_memory()
    ours.flatten_parameters()
    compare(theirs, ours, x)


@pytest.mark.parametrize("name", LAYERS + STEPS)
def test_no_warnings(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module = fused(name)(I, H)
        sum(t.sum() for t in flat(module(torch.randn(4, I)))).backward()
        module.eval()(torch.randn(4, I))
        copy.deepcopy(module)(torch.randn(4, I))


class Doubled(nn.Module):
    """A parametrization that counts how often it is computed."""

    calls = 0

    def forward(self, weight: Tensor) -> Tensor:
        Doubled.calls += 1
        return 2 * weight


def with_own_weights(module: nn.Module) -> nn.Module:
    """torch.nn's namesake, with the weights that `module` has at the moment."""
    name = next(cls.__name__ for cls in type(module).__mro__ if cls.__module__ == "torch.nn.modules.rnn")
    plain = getattr(nn, name)(I, H)
    plain.load_state_dict({key: getattr(module, key).detach() for key in plain.state_dict()})
    return plain


def agrees(module: nn.Module) -> None:
    """It computes with the weights that it shows."""
    x = torch.randn(4, I)
    assert_close(flat(module(x)), flat(with_own_weights(module)(x)))


@pytest.mark.parametrize("name", LAYERS)
def test_parametrized(name: str) -> None:
    module = fused(name)(I, H)
    parametrize.register_parametrization(module, "weight_hh_l0", Doubled())
    agrees(module)
    Doubled.calls = 0
    module(torch.randn(4, 3, I))[0].sum().backward()
    assert Doubled.calls == 1
    assert module.parametrizations.weight_hh_l0.original.grad.any()
    agrees(copy.deepcopy(module))
    wide = torch.zeros(4, 3, I, dtype=torch.float64)
    with pytest.raises(ValueError, match="type") as theirs:
        getattr(nn, name)(I, H)(wide)
    with pytest.raises(ValueError, match=re.escape(str(theirs.value))):
        module(wide)
    parametrize.remove_parametrizations(module, "weight_hh_l0")
    assert type(module) is fused(name)
    agrees(module)


@pytest.mark.parametrize(
    "apply",
    [
        parametrizations.weight_norm,
        parametrizations.spectral_norm,
        parametrizations.orthogonal,
        nn.utils.weight_norm,
        lambda m, n: prune.l1_unstructured(m, n, 0.5),
    ],
    ids=["weight_norm", "spectral_norm", "orthogonal", "old weight_norm", "prune"],
)
@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
@pytest.mark.parametrize("name", LAYERS)
def test_reparametrized(name: str, apply: Callable[[nn.Module, str], None]) -> None:
    module = fused(name)(I, H)
    apply(module, "weight_hh_l0")
    module.eval()  # spectral_norm iterates in training
    agrees(module)
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    module(torch.randn(4, 3, I))[0].sum().backward()
    before = module.weight_hh_l0.detach().clone()
    optimizer.step()
    module(torch.randn(4, 3, I))
    assert not torch.equal(module.weight_hh_l0, before)
    agrees(module)


@pytest.mark.parametrize("name", LAYERS)
def test_parameters_exchanged(name: str) -> None:
    theirs, ours = getattr(nn, name)(I, H), fused(name)(I, H)
    x = torch.randn(4, 3, I)
    parameters = dict(theirs.named_parameters())
    assert_close(flat(torch.func.functional_call(ours, parameters, (x,))), flat(theirs(x)))
    for key, value in parameters.items():
        setattr(ours, key, nn.Parameter(value.detach().clone()))
        agrees(ours)
    ours._parameters["weight_hh_l0"] = nn.Parameter(torch.zeros_like(theirs.weight_hh_l0))
    agrees(ours)
    weight = ours.weight_ih_l0
    del ours.weight_ih_l0
    ours.raw = nn.Parameter(weight.detach())
    ours.weight_ih_l0 = ours.raw * 0.5  # the idiom of weight drop
    ours(x)[0].sum().backward()
    assert ours.raw.grad.any()
    agrees(ours)


def test_hooks_run() -> None:
    module, calls = seqkernels.FusedLSTM(I, H), []
    module.register_forward_pre_hook(lambda *_: calls.append("before"))
    module.register_forward_hook(lambda *_: calls.append("after"))
    module.register_full_backward_hook(lambda *_: calls.append("backward"))
    module(torch.randn(4, 3, I, requires_grad=True))[0].sum().backward()
    assert calls == ["before", "after", "backward"]


@pytest.mark.parametrize("name", LAYERS)
def test_functional_transforms(name: str) -> None:
    """vmap and grad run on the kernels, jvp on the reference; they give what separate calls give."""
    theirs, ours = pair(name, I, H, dtype=torch.float64)
    x = torch.randn(4, 3, I, dtype=torch.float64)

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(ours, parameters, (x.unsqueeze(1),))[0].square().sum()

    detached = {key: p.detach() for key, p in ours.named_parameters()}
    per_sequence = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 1))(detached, x)
    for n in range(3):
        expected = torch.autograd.grad(theirs(x[:, n : n + 1])[0].square().sum(), list(theirs.parameters()))
        assert_close([g[n] for g in per_sequence.values()], expected)
    output, tangent = torch.func.jvp(lambda x: ours(x)[0], (x,), (torch.ones_like(x),))
    step = 1e-6
    assert_close(output, theirs(x)[0])
    torch.testing.assert_close(
        tangent, (theirs(x + step)[0] - theirs(x - step)[0]) / (2 * step), rtol=1e-6, atol=1e-8
    )
    ours.backend = "native"
    with pytest.raises(RuntimeError, match="forward-mode differentiation"):
        torch.func.jvp(lambda x: ours(x)[0], (x,), (x,))


# ---------------------------------------------------------------- autocast


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("wide", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("name", LAYERS + STEPS)
def test_autocast(name: str, wide: torch.dtype, backend: str, device: torch.device) -> None:
    """The dtypes are torch's wherever torch itself runs, but for its layers on CUDA, which give float16 even
    where bfloat16 was asked for; the values are right."""
    theirs, ours = pair(name, I, H, device=device)
    ours.backend = backend
    # torch's LSTM is oneDNN's on a CPU, and fails or gives other dtypes where the CPU lacks the instructions.
    onednn = name == "LSTM" and device.type == "cpu"
    comparable = not onednn or (wide == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())
    x_shape, h_shape = ((4, 3, I), (1, 3, H)) if name in LAYERS else ((3, I), (3, H))
    for x_dtype, h_dtype in itertools.product((torch.float32, wide), (None, torch.float32, wide)):
        x = torch.randn(*x_shape, device=device).to(x_dtype)
        inputs = (
            (x,)
            if h_dtype is None
            else (x, random_state(name, *h_shape, device=device, dtype=h_dtype, requires_grad=True))
        )
        with torch.autocast(device.type, dtype=wide):
            actual = flat(ours(*inputs))
            try:
                expected = flat(theirs(*inputs))
            except RuntimeError:  # torch has no float16 kernel for some
                expected = None
        right = flat(copy.deepcopy(theirs).cpu().double()(*doubled(inputs)))
        assert_close(actual, right, wide)
        if expected is not None and comparable:
            by_cudnn = device.type == "cuda" and name in LAYERS
            assert [t.dtype for t in actual] == [wide if by_cudnn else t.dtype for t in expected]
        grads = torch.autograd.grad(sum(t.float().sum() for t in actual), list(ours.parameters()))
        assert all(g.dtype == torch.float32 for g in grads)
