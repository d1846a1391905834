"""A package's model twice, as it is and fused: the same results, and how long both take.

What float64 computes is right. How much a model amplifies rounding is read from the package's own model on
torch.nn: the largest error of its float32 results over a few draws, in eps. Ours may have the table's error
of one layer, or `OTHER_ORDER` times the error that torch.nn's layers have in the same place, in eps of either
dtype: the sums are of the same numbers in another order, so of a few hundred terms their errors are of one
size, and the largest of thousands is at most a few times the largest of other thousands. In float64 all this
is ten orders below what a mistake would make of a result.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from pytest_benchmark.plugin import get_cpu_info
from torch import Tensor, nn

import seqkernels
from benchmarks.timing import OURS, InterleavedTiming, quantiles
from seqkernels import _C, _fused
from seqkernels.subclasses import FUSED, why_no_kernel
from tests.conftest import TOLERANCES, error_of, flat

OTHER_ORDER = 4
DRAWS = 3  # of weights and data: what cancels to nothing, as behind a softmax, is noise of any size in one
THEIRS = "torch.nn"
SECONDS, MIN_ROUNDS = 1.0, 5  # per kind of work
# Losses of a training in float64 agree to this: far above what rounding can become within a few steps, and a
# hundredth of what one operation in float32 would cost.
SAME_LOSS = 1e-9

Run = Callable[[Any, Any], tuple[Any, Tensor]]
Batch = dict[str, Any]
Row = dict[str, Any]


def on_kernels(module: Any) -> Any:
    """fuse, and an error where there is no kernel for a call."""
    return seqkernels.fuse(module, backend="native")


@dataclass(frozen=True)
class Model:
    """A package's model and how its users run it.

    Args:
        package: The distribution's name.
        title: What is built, as the page names it.
        build: Makes the model, in float32, in training mode; called under a seed.
        batch: Makes what it reads, floating-point tensors in float32; called under a seed.
        run: The outputs and the package's own loss of `(model, batch)`.
        infer: What `(model, batch)` computes without gradients, in evaluation.
        fused: How many layers and Cells of each kind fuse changes, all that the model has.
        fuse: What makes it run on kernels.
        left: Classes of recurrent modules that fuse does not change, and why.
    """

    package: str
    title: str
    build: Callable[[], nn.Module]
    batch: Callable[[], Batch]
    run: Run
    infer: Callable[[Any, Any], Any]
    fused: dict[str, int]
    fuse: Callable[[Any], Any] = on_kernels
    left: dict[type, str] = field(default_factory=dict)


def made(model: Model, fused: bool, seed: int = 0) -> Any:
    """The model, with the same parameters each time. fuse must not have anything to say."""
    module = seeded(model.build, seed)
    if fused:
        before = {name: p.clone() for name, p in module.state_dict().items()}
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model.fuse(module)
        said = [str(w.message) for w in caught if str(w.message).startswith("fuse leaves")]
        assert not said, said
        assert all(torch.equal(t, before[name]) for name, t in module.state_dict().items())
        kinds = [type(m).__name__ for m in module.modules() if isinstance(m, _fused._Fused)]
        assert Counter(kind.removeprefix("Fused") for kind in kinds) == model.fused
    return module


def seeded(function: Callable[[], Any], seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return function()


def cast(value: Any, dtype: torch.dtype) -> Any:
    """With all floating-point tensors inside in `dtype`."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, dict):
        return {key: cast(v, dtype) for key, v in value.items()}
    return type(value)(cast(v, dtype) for v in value) if isinstance(value, (list, tuple)) else value


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Of what packages make inside, such as states of zeros."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def results(model: Model, module: nn.Module, dtype: torch.dtype, seed: int = 0) -> dict[str, Tensor]:
    """Outputs, loss and gradients of `module` in that dtype, under a seed of its own."""
    batch = cast(seeded(model.batch, seed), dtype)
    with default_dtype(dtype):
        module.zero_grad()
        outputs, loss = seeded(lambda: model.run(module, batch))
        loss.backward()
    found = {f"output {n}": t.detach() for n, t in enumerate(flat(outputs))} | {"loss": loss.detach()}
    found |= {f"gradient of {n}": p.grad for n, p in module.named_parameters() if p.grad is not None}
    assert all(t.dtype == dtype for t in found.values() if t.is_floating_point())
    return found


def assert_same_results(model: Model) -> None:
    """Outputs, loss and gradients are right to rounding, in float32 and in float64."""
    right = results(model, made(model, False).double(), torch.float64)
    assert any("gradient" in name for name in right)
    amplified = dict.fromkeys(right, 0.0)
    for seed in range(DRAWS):
        exact = results(model, made(model, False, seed).double(), torch.float64, seed)
        theirs = results(model, made(model, False, seed), torch.float32, seed)
        for name, expected in exact.items():
            amplified[name] = max(amplified[name], error_of(theirs[name], expected))
    for dtype in (torch.float32, torch.float64):
        ours = results(model, made(model, True).to(dtype), dtype)
        assert ours.keys() == right.keys()
        for name, expected in right.items():
            assert ours[name].shape == expected.shape, name
            scale = torch.finfo(dtype).eps / torch.finfo(torch.float32).eps
            allowed = max(TOLERANCES[dtype], OTHER_ORDER * amplified[name] * scale)
            error = error_of(ours[name], expected)
            assert error <= allowed, f"{name}, {dtype}: error {error:.2e} exceeds {allowed:.2e}"


def assert_undone(model: Model, unfuse: Callable[[Any], Any] = seqkernels.unfuse) -> None:
    """A model that was fused for a while computes what it did before, bit by bit."""
    expected = results(model, made(model, False), torch.float32)
    found = results(model, unfuse(made(model, True)), torch.float32)
    assert all(torch.equal(found[name], t) for name, t in expected.items())


def assert_left_alone(model: Model, fused: nn.Module) -> None:
    """Recurrent modules that stay are those of `left`, and none that fuse could have changed."""
    kinds = {type(m) for m in fused.modules() if not isinstance(m, _fused._Fused)}
    assert not [kind for kind in kinds if kind in FUSED]
    for kind in model.left:
        assert kind in kinds, f"{kind.__name__} is no longer in the model"
        assert why_no_kernel(kind), f"fuse would change {kind.__name__}"


def changed(fused: nn.Module) -> list[str]:
    """What fuse has made, in words: "LSTM 8→16, 2 layers"."""
    found: Counter[str] = Counter()
    for module in fused.modules():
        if isinstance(module, _fused._Fused):
            words = [
                f"{type(module).__name__.removeprefix('Fused')} {module.input_size}→{module.hidden_size}"
            ]
            if getattr(module, "num_layers", 1) > 1:
                words.append(f"{module.num_layers} layers")
            if getattr(module, "bidirectional", False):
                words.append("both directions")
            if getattr(module, "proj_size", 0):
                words.append(f"projected to {module.proj_size}")
            found[", ".join(words)] += 1
    return [text if n == 1 else f"{n} × {text}" for text, n in found.items()]


def assert_unchanged(module: nn.Module, kind: type) -> None:
    """fuse finds nothing in a module that has some of `kind`, which computes by itself."""
    kinds = [type(m) for m in module.modules()]
    assert kind in kinds
    seqkernels.fuse(module)
    assert [type(m) for m in module.modules()] == kinds


def title(name: str, **arguments: Any) -> str:
    """A call in Markdown."""
    return f"`{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})`"


def speedups(model: Model) -> dict[str, dict[str, float]]:
    """torch.nn's time over ours, interleaved: quantiles of a training step without the optimizer, and of
    inference."""
    batch = seeded(model.batch)
    modules = {THEIRS: made(model, False), OURS: made(model, True)}

    def train(module: nn.Module) -> None:
        module.zero_grad()
        model.run(module, batch)[1].backward()

    def infer(module: nn.Module) -> None:
        with torch.no_grad():
            model.infer(module, batch)

    found = {}
    with as_users_run():
        for name, work in (("training", train), ("inference", infer)):
            for module in modules.values():
                module.train(name == "training")
            calls = {n: functools.partial(work, module) for n, module in modules.items()}
            timing = InterleavedTiming(calls, SECONDS, MIN_ROUNDS)
            for _ in range(timing.rounds):
                timing.round()
            found[name] = quantiles(timing.ratio(THEIRS))
    return found


@contextlib.contextmanager
def as_users_run() -> Iterator[None]:
    """Without the poison that tests put into fresh memory, whose writing takes time."""
    torch.use_deterministic_algorithms(False)
    _C.fill_scratch(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(True)
        _C.fill_scratch(True)


def assert_same_losses(train: Callable[[bool], Sequence[float]], rel: float = SAME_LOSS) -> None:
    """`train(fused)` gives the losses of a training by the package's own means, fused or not."""
    expected, found = seeded(lambda: list(train(False))), seeded(lambda: list(train(True)))
    assert len(set(expected)) > 1, "nothing was trained"
    assert found == pytest.approx(expected, rel=rel)


def machine() -> str:
    """Where the numbers come from."""
    processor = get_cpu_info().get("brand_raw", "unknown processor")
    return (
        f"{processor}, {torch.get_num_threads()} thread, {_C.cpu_isa()} kernels; torch {torch.__version__}."
    )


def row(model: Model) -> Row:
    """What the page shows of a model, after a check of what fuse leaves alone."""
    fused = made(model, True)
    assert_left_alone(model, fused)
    words = changed(fused)
    assert words, "fuse changed nothing"
    return {
        "package": model.package,
        "version": importlib.metadata.version(model.package),
        "model": model.title,
        "fused": words,
        "left": {kind.__name__: why for kind, why in model.left.items()},
        "machine": machine(),
        **speedups(model),
    }
