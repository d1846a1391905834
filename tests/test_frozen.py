"""freeze: what the module computes, from weights packed once."""

from __future__ import annotations

import concurrent.futures
import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

import seqkernels
from seqkernels import _C

from .conftest import LAYERS, STEPS, assert_close, flat, in_child

DTYPES = (torch.float32, torch.bfloat16)
OPTIONS = [
    {},
    {"bias": False, "bidirectional": True},
    {"num_layers": 3, "batch_first": True},
    {"num_layers": 2, "bidirectional": True, "batch_first": True, "dropout": 0.5},
]
# Depths that are odd, hidden sizes around those of vectors, one of several panels.
SIZES = [(5, 6), (1, 1), (16, 16), (7, 33), (64, 130)]
I, H = SIZES[0]


# Cells of several stages, by how they are made.
STAGED: dict[str, Callable[..., nn.Module]] = {
    "LSTM projected": lambda i, h, **options: nn.LSTM(i, h, proj_size=h // 2, **options),
    "GRU reset before": lambda i, h, **options: seqkernels.FusedGRU(
        i, h, reset_after=False, backend="reference", **options
    ),
    "GRUCell reset before": lambda i, h, **options: seqkernels.FusedGRUCell(
        i, h, reset_after=False, backend="reference", **options
    ),
    **{
        f"{name} {norm}": lambda i, h, name=name, norm=norm, **options: getattr(seqkernels, f"Fused{name}")(
            i, h, norm=norm, norm_eps=0.1, backend="reference", **options
        )
        for name, norm in (("LSTM", "layer"), ("LSTM", "layer-joint"), ("GRU", "layer"))
    },
}
STAGED_LAYERS = tuple(name for name in STAGED if "Cell" not in name)


def make(name: str, *sizes: int, **options: Any) -> nn.Module:
    """torch.nn's module of that name, or one that torch.nn does not have."""
    return STAGED.get(name, getattr(nn, name, None))(*sizes, **options)  # type: ignore[misc]


@pytest.fixture(autouse=True)
def _on_the_cpu(request: pytest.FixtureRequest) -> None:
    if "target" in request.fixturenames and request.getfixturevalue("target").type != "cpu":
        pytest.skip("frozen modules run on the CPU")


def hx_of(name: str, *shape: int) -> Any:
    *rows, hidden = shape
    h = torch.randn(*rows, hidden // 2 if name == "LSTM projected" else hidden)
    return (h, torch.randn(shape)) if name.startswith("LSTM") else h


def doubled(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.double()
    return None if value is None else tuple(doubled(v) for v in value)


def check(module: nn.Module, dtype: torch.dtype, *inputs: Any) -> None:
    """The frozen module's results are those of torch.nn in float64 with the weights that it stores."""
    actual = seqkernels.freeze(module, dtype)(*inputs)
    exact = copy.deepcopy(module).double().eval()
    for name, parameter in exact.named_parameters():
        if name.startswith("weight"):
            parameter.data = parameter.data.to(dtype).double()
    with torch.no_grad():
        expected = exact(*doubled(inputs))
    assert [type(v) for v in (actual, *actual)] == [type(v) for v in (expected, *expected)]
    assert all(t.dtype is torch.float32 for t in flat(actual))
    assert [t.is_contiguous() for t in flat(actual)] == [t.is_contiguous() for t in flat(expected)]
    assert_close(flat(actual), flat(expected), torch.float32)
    storages = [t.untyped_storage().data_ptr() for t in flat(actual) if t.numel()]
    assert len(set(storages)) == len(storages)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("given", [False, True], ids=["zeros", "hx"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name", LAYERS + STAGED_LAYERS)
def test_layers(
    name: str, options: dict[str, Any], given: bool, dtype: torch.dtype, target: torch.device
) -> None:
    module = make(name, I, H, **options)
    states = module.num_layers * (1 + module.bidirectional)
    for shape in ((4, 1), (1, 1), (4, 3), (3, 9), (2, 0), (4,)):
        x = torch.randn(*shape, I)
        batch = shape[1:] if not module.batch_first or len(shape) == 1 else shape[:1]
        if 0 not in shape or not module.batch_first:
            check(module, dtype, x, *([hx_of(name, states, *batch, H)] if given else []))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("given", [False, True], ids=["zeros", "hx"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", [*STEPS, "GRUCell reset before"])
def test_cells(name: str, bias: bool, given: bool, dtype: torch.dtype, target: torch.device) -> None:
    module = make(name, I, H, bias=bias)
    for batch in ((1,), (3,), (), (0,)):
        check(module, dtype, torch.randn(*batch, I), *([hx_of(name, *batch, H)] if given else []))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("name", ["LSTM", "GRU", "tanh", "relu", *STAGED_LAYERS])
def test_sizes(name: str, sizes: tuple[int, int], dtype: torch.dtype, target: torch.device) -> None:
    if name == "LSTM projected" and sizes[1] == 1:
        pytest.skip("no smaller size to project to")
    relu = {"nonlinearity": name} if name in ("tanh", "relu") else {}
    module = make("RNN" if relu else name, *sizes, **relu)
    for batch in (1, 2, 3, 4, 5, 6):
        check(module, dtype, torch.randn(3, batch, sizes[0]), hx_of(name, 1, batch, sizes[1]))


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", LAYERS + STAGED_LAYERS)
def test_enough_work_for_several_threads(
    name: str, dtype: torch.dtype, threads: int, target: torch.device
) -> None:
    torch.set_num_threads(threads)
    module = make(name, 40, 70, num_layers=2, bidirectional=True)
    check(module, dtype, torch.randn(30, 2, 40), hx_of(name, 4, 2, 70))


@pytest.mark.parametrize("name", LAYERS + STEPS)
def test_fused_modules(name: str) -> None:
    module = getattr(seqkernels, f"Fused{name}")(I, H)
    x = torch.randn(4, I) if name in STEPS else torch.randn(4, 3, I)
    assert_close(flat(seqkernels.freeze(module)(x)), flat(module(x)))
    for dtype in (torch.bfloat16, torch.float16):
        frozen = seqkernels.freeze(copy.deepcopy(module).to(dtype))
        assert_close(flat(frozen(x)), flat(copy.deepcopy(module).to(dtype).float()(x)))


def test_steps_make_a_sequence() -> None:
    module = nn.LSTM(I, H)
    frozen, x, state, outputs = seqkernels.freeze(module), torch.randn(7, 1, I), None, []
    for step in x.split(1):
        output, state = frozen(step, state)
        outputs.append(output)
    assert_close((torch.cat(outputs), state), module(x))


@pytest.mark.parametrize("name", LAYERS + STEPS)
def test_a_snapshot(name: str) -> None:
    module = getattr(nn, name)(I, H)
    frozen, x = seqkernels.freeze(module), torch.randn(4, I)
    before = flat(frozen(x))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(float("nan"))
    assert all(torch.equal(a, b) for a, b in zip(before, flat(frozen(x)), strict=True))
    assert not frozen.training
    assert frozen.eval() is frozen
    assert not frozen.state_dict()
    assert not list(frozen.parameters()) + list(frozen.buffers())


def test_inputs_are_left_alone_and_results_are_new() -> None:
    frozen = seqkernels.freeze(nn.LSTM(I, I))
    x, state = torch.randn(1, 1, I), hx_of("LSTM", 1, 1, I)
    before, first = [t.clone() for t in (x, *state)], flat(frozen(x, state))
    kept = [t.clone() for t in first]
    frozen(x * 2, state)
    assert all(torch.equal(a, b) for a, b in zip((x, *state), before, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(first, kept, strict=True))


def test_inputs_of_every_layout() -> None:
    module = nn.LSTM(I, H)
    frozen = seqkernels.freeze(module)
    h = torch.randn(H, 3, 1).permute(2, 1, 0)
    x = torch.randn(3, 4, 2 * I).transpose(0, 1)[..., ::2]
    assert not x.is_contiguous()
    assert_close(frozen(x, (h, h)), module(x, (h, h)))
    parameter = nn.Parameter(x, requires_grad=False)
    assert_close(frozen(parameter, [h, h]), module(x, (h, h)))
    with torch.no_grad():
        assert_close(frozen(x.clone().requires_grad_()), module(x))


def test_defaults_do_not_matter() -> None:
    frozen, x = seqkernels.freeze(nn.GRU(I, H)), torch.randn(1, 1, I)
    expected = frozen(x)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            actual = copy.deepcopy(frozen)(x)
    finally:
        torch.set_default_dtype(torch.float32)
    assert_close(actual, expected)


def test_parametrized_weights() -> None:
    module = nn.utils.parametrizations.weight_norm(nn.LSTM(I, H), "weight_hh_l0")
    x = torch.randn(4, 3, I)
    assert_close(flat(seqkernels.freeze(module)(x)), flat(module(x)))


# ---------------------------------------------------------------- copies, threads, processes


def through_pickle(module: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(module))


def through_save(module: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, through_pickle, through_save])
@pytest.mark.parametrize("name", [*LAYERS, *STEPS, *STAGED])
def test_copies(name: str, duplicate: Callable[[nn.Module], nn.Module], dtype: torch.dtype) -> None:
    options = {"bias": False} if "Cell" in name else {"num_layers": 2, "bidirectional": True}
    frozen = seqkernels.freeze(make(name, I, H, **options), dtype)
    x = torch.randn(3, I)
    again = duplicate(frozen)
    assert all(torch.equal(a, b) for a, b in zip(flat(frozen(x)), flat(again(x)), strict=True))
    assert repr(again) == repr(frozen)


def test_a_pickle_of_an_earlier_version() -> None:
    """It says nothing of projections."""
    frozen, x = seqkernels.freeze(nn.LSTM(I, H)), torch.randn(3, I)
    state = frozen.__getstate__()
    del state["_packed"][0]["proj_size"]
    again = type(frozen).__new__(type(frozen))
    again.__setstate__(state)
    assert torch.equal(again(x)[0], frozen(x)[0])


def test_a_copy_for_another_instruction_set(target: torch.device) -> None:
    """A frozen module stays with the kernels it was packed for; a copy gets those of the day."""
    before = _C.cpu_isa()
    frozen = seqkernels.freeze(nn.LSTM(I, 33, 2, bidirectional=True), torch.bfloat16)
    x = torch.randn(4, 3, I)
    expected = frozen(x)
    for isa in _C.cpu_isas():
        _C.set_cpu_isa(isa)
        assert_close(copy.deepcopy(frozen)(x), expected)
        assert torch.equal(frozen(x)[0], expected[0])
    _C.set_cpu_isa(before)


@pytest.mark.parametrize("hidden", [8, 150])
def test_several_threads_call_one_module(hidden: int) -> None:
    torch.set_num_threads(2)
    module = nn.LSTM(I, hidden, 2)
    frozen = seqkernels.freeze(module)
    inputs = [torch.randn(1 + n % 3, 1 + n % 4, I) for n in range(24)]
    expected = [module(x) for x in inputs]

    def work(_: int) -> list[Any]:
        return [frozen(x) for x in inputs * 3]

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for results in pool.map(work, range(4)):
            assert_close(results, expected * 3)


def test_after_fork() -> None:
    torch.set_num_threads(2)
    frozen, x = seqkernels.freeze(nn.LSTM(64, 130)), torch.randn(10, 2, 64)
    expected = frozen(x)

    def run() -> None:
        torch.use_deterministic_algorithms(False)  # would fill memory on several threads: torch hangs here
        actual = frozen(x)
        torch.set_num_threads(1)
        assert_close(actual, expected)

    in_child(run)


# ---------------------------------------------------------------- errors

Mistake = tuple[type[Exception], str, Callable[[nn.Module], Any]]
MISTAKES: dict[str, Mistake] = {
    "x features": (RuntimeError, "x must have 5 features", lambda m: m(torch.zeros(4, 3, 6))),
    "x 1-D": (RuntimeError, "x must have 2 or 3 dimensions, got 1", lambda m: m(torch.zeros(5))),
    "no steps": (RuntimeError, "at least one step", lambda m: m(torch.zeros(0, 3, I))),
    "x None": (TypeError, "x must be a tensor, got NoneType", lambda m: m(None)),
    "x double": (ValueError, "x must be torch.float32", lambda m: m(torch.zeros(4, I).double())),
    "x on meta": (ValueError, "on the CPU, got .* on meta", lambda m: m(torch.zeros(4, I, device="meta"))),
    "x sparse": (ValueError, "strided tensor", lambda m: m(torch.eye(I).to_sparse())),
    "packed": (TypeError, "does not take packed sequences", lambda m: m(pack_sequence([torch.zeros(2, I)]))),
    "h shape": (
        RuntimeError,
        r"h must have shape \[1, 3, 6\], got \[1, 2, 6\]",
        lambda m: m(torch.zeros(4, 3, I), (torch.zeros(1, 2, H), torch.zeros(1, 3, H))),
    ),
    "c shape": (
        RuntimeError,
        r"c must have shape \[1, 6\], got \[1, 7\]",
        lambda m: m(torch.zeros(4, I), (torch.zeros(1, H), torch.zeros(1, 7))),
    ),
    "c half": (
        ValueError,
        r"c must be torch.float32, got torch.float16",
        lambda m: m(torch.zeros(4, I), (torch.zeros(1, H), torch.zeros(1, H).half())),
    ),
    "h of c's size": (
        RuntimeError,
        r"h must have shape \[1, 3\], got \[1, 6\]",
        lambda _: seqkernels.freeze(nn.LSTM(I, H, proj_size=3))(torch.zeros(4, I), (torch.zeros(1, H),) * 2),
    ),
    "h alone": (
        RuntimeError,
        r"hx must be a tuple \(h, c\)",
        lambda m: m(torch.zeros(4, 1, I), torch.zeros(1, 1, H)),
    ),
    "three states": (RuntimeError, "hx must be a tuple", lambda m: m(torch.zeros(1, I), torch.zeros(3, H))),
    "gradient of x": (
        RuntimeError,
        "x requires a gradient",
        lambda m: m(torch.zeros(4, I, requires_grad=True)),
    ),
    "gradient of c": (
        RuntimeError,
        "c requires a gradient",
        lambda m: m(torch.zeros(4, I), (torch.zeros(1, H), torch.zeros(1, H, requires_grad=True))),
    ),
    "train": (RuntimeError, "cannot be trained", lambda m: m.train()),
    "trace": (RuntimeError, "cannot be traced", lambda m: torch.jit.trace(m, torch.zeros(4, I))),
    "script": (RuntimeError, "cannot be traced, scripted", torch.jit.script),
    "export": (TypeError, "cannot be traced or", lambda m: torch.export.export(m, (torch.zeros(4, I),))),
    "vmap": (RuntimeError, "torch.func", lambda m: torch.vmap(lambda x: m(x)[0])(torch.zeros(2, 4, I))),
    "jvp": (
        RuntimeError,
        "forward-mode differentiation",
        lambda m: torch.func.jvp(lambda x: m(x)[0], (torch.zeros(4, I),), (torch.zeros(4, I),)),
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(mistake: str) -> None:
    error, message, call = MISTAKES[mistake]
    frozen = seqkernels.freeze(nn.LSTM(I, H))
    x = torch.randn(4, 3, I)
    expected = frozen(x)
    with pytest.raises(error, match=message):
        call(frozen)
    assert_close(frozen(x), expected)


def test_a_tuple_for_a_gru() -> None:
    h = torch.zeros(1, H)
    with pytest.raises(TypeError, match="h must be a tensor, got tuple"):
        seqkernels.freeze(nn.GRU(I, H))(torch.zeros(4, I), (h, h))


class Custom(nn.LSTM):
    """A subclass, whose forward may be its own."""


@pytest.mark.parametrize(
    ("error", "message", "make", "dtype"),
    [
        (TypeError, "got Linear", lambda: nn.Linear(2, 3), None),
        (TypeError, "got Custom", lambda: Custom(2, 3), None),
        (ValueError, "got torch.float16", lambda: nn.LSTM(2, 3), torch.float16),
        (ValueError, "weight_ih_l0 is torch.float64", lambda: nn.LSTM(2, 3).double(), None),
        (ValueError, "weight_ih is on meta", lambda: nn.GRUCell(2, 3, device="meta"), None),
    ],
)
def test_what_cannot_be_frozen(
    error: type[Exception], message: str, make: Callable[[], nn.Module], dtype: torch.dtype | None
) -> None:
    with pytest.raises(error, match=message):
        seqkernels.freeze(make(), dtype)


def test_compile_leaves_it_as_it_is() -> None:
    torch.use_deterministic_algorithms(False)  # the fixture `poison` sets it back
    torch._dynamo.reset()
    frozen = seqkernels.freeze(nn.LSTM(I, H))

    def run(x: Tensor, hx: Any = None) -> Any:
        output, state = frozen(2 * x, hx)
        return output + 1, state

    compiled = torch.compile(run, backend="aot_eager")
    for shape in ((3, 2), (5, 2), (1, 1)):
        x = torch.randn(*shape, I)
        expected = run(x)
        assert_close(compiled(x), expected)
        assert_close(compiled(x, expected[1]), run(x, expected[1]))
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match="frozen module"):
        torch.compile(run, backend="aot_eager", fullgraph=True)(x)


def test_repr() -> None:
    frozen = seqkernels.freeze(nn.GRU(2, 3, 2, batch_first=True), torch.bfloat16)
    assert repr(frozen) == "Frozen(gru, 2, 3, num_layers=2, batch_first=True, dtype=torch.bfloat16)"
