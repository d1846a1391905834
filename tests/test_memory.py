"""Memory: nothing that a Python program does makes a kernel read or write outside of what it was given.

`make sanitize` runs these tests, and others, with kernels that check every access.
"""

from __future__ import annotations

import copy
import io
import pickle
import random
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import seqkernels
from seqkernels.frozen import Frozen

from .conftest import LAYERS, STEPS, flat

T, B, I, H = 5, 3, 6, 8
FREED = r"storage of at least \d+ bytes, got \d+ \(it was freed, or made smaller\)"


def layer(name: str, **options: Any) -> tuple[nn.Module, Tensor, tuple[Tensor, ...]]:
    """A fused layer, its input and its state."""
    module = getattr(seqkernels, f"Fused{name}")(I, H, **options)
    states = tuple(torch.randn(1, B, H) for _ in range(2 if name == "LSTM" else 1))
    return module, torch.randn(T, B, I), states


def as_hx(states: tuple[Tensor, ...]) -> Any:
    return states if len(states) > 1 else states[0]


def a_view_with_an_offset(tensor: Tensor) -> Tensor:
    return torch.cat([torch.randn(3, *tensor.shape[1:]), tensor])[3:]


# ---------------------------------------------------------------- storages that were freed or made smaller


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("left", [0, 8, -4], ids=["freed", "8 bytes left", "4 bytes less"])
@pytest.mark.parametrize("what", ["x", "a view of x", "h0", "weight_ih_l0", "weight_hh_l0", "bias_hh_l0"])
@pytest.mark.parametrize("name", LAYERS)
def test_a_layers_storages(name: str, what: str, left: int, gradients: bool) -> None:
    module, x, states = layer(name)
    if "view" in what:
        x = a_view_with_an_offset(x)
    tensor = x if "x" in what else states[0] if what == "h0" else getattr(module, what)
    storage = tensor.untyped_storage()
    storage.resize_(left if left >= 0 else storage.nbytes() + left)
    with torch.set_grad_enabled(gradients), pytest.raises(RuntimeError, match=FREED):
        module(x, as_hx(states))


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("left", [0, 8], ids=["freed", "8 bytes left"])
@pytest.mark.parametrize("what", ["x", "h", "weight_hh"])
@pytest.mark.parametrize("name", STEPS)
def test_a_cells_storages(name: str, what: str, left: int, gradients: bool) -> None:
    module = getattr(seqkernels, f"Fused{name}")(I, H)
    x, h = torch.randn(B, I), torch.randn(B, H)
    {"x": x, "h": h, "weight_hh": module.weight_hh}[what].untyped_storage().resize_(left)
    torchs_own = "out of bounds for storage"  # where a view is made first
    with torch.set_grad_enabled(gradients), pytest.raises(RuntimeError, match=f"{FREED}|{torchs_own}"):
        module(x, (h, torch.randn(B, H)) if name == "LSTMCell" else h)


@pytest.mark.parametrize("what", ["x", "h0", "weight_hh_l0", "gradient"])
@pytest.mark.parametrize("name", LAYERS)
def test_freed_before_backward(name: str, what: str) -> None:
    module, x, states = layer(name)
    output, _ = module(x, as_hx(states))
    gradient = torch.ones_like(output)
    freed = {"x": x, "h0": states[0], "gradient": gradient}.get(what)
    (module.weight_hh_l0 if freed is None else freed).untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match=FREED):
        output.backward(gradient)


def test_freed_batch_sizes() -> None:
    x, sizes = torch.randn(6, I), torch.tensor([3, 2, 1])
    weights = [torch.randn(3 * H, I), torch.randn(3 * H, H)]
    sizes.untyped_storage().resize_(8)
    with pytest.raises(RuntimeError, match="batch_sizes must have a " + FREED):
        torch.ops.seqkernels.gru(x, torch.zeros(1, 3, H), weights, sizes)


def test_rows_that_are_one() -> None:
    """An expanded tensor needs no more memory than it has."""
    module, x, states = layer("GRU")
    with torch.no_grad():
        output, _ = module(x[:1, :1].expand(T, B, I), states[0][:, :1].expand(1, B, H))
        assert torch.equal(output[:, 0], output[:, 1])


# ---------------------------------------------------------------- the output, before backward


@pytest.mark.parametrize("change", ["mul_", "relu_", "zero_data", "set_item", "free"])
@pytest.mark.parametrize("form", ["padded", "packed", "2 layers", "unbatched"])
@pytest.mark.parametrize("name", LAYERS)
def test_the_output_is_the_callers_own(name: str, form: str, change: str, device: torch.device) -> None:
    """Gradients are right whatever becomes of it."""
    if device.type != "cpu":
        pytest.skip("as in cuDNN, backward reads the output")
    module, x, _ = layer(name, num_layers=2 if form == "2 layers" else 1)
    if form == "unbatched":
        x = x[:, 0]
    results = []
    for changed in (False, True):
        module.zero_grad()
        leaf = x.clone().requires_grad_()
        given: Any = nn.utils.rnn.pack_padded_sequence(leaf, [5, 4, 2]) if form == "packed" else leaf
        output, final = module(given)
        output = output.data if form == "packed" else output
        loss = output.square().sum() + flat(final)[0].sum()
        if changed:
            other = output.clone()
            with torch.no_grad():
                if change == "free":
                    output.untyped_storage().resize_(0)
                elif change == "set_item":
                    output[0] = 0
                elif change == "zero_data":
                    output.data.zero_()
                else:
                    getattr(output, change)(*[2] * (change == "mul_"))
            loss = other.square().sum() + flat(final)[0].sum()
        loss.backward()
        results.append([leaf.grad, *(p.grad for p in module.parameters())])
    for plain, after in zip(*results, strict=True):
        assert torch.equal(plain, after)


INPLACE = ["x", "h0", "bias_ih_l0", "bias_hh_l0", "weight_ih_l0"]


@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen weights"])
@pytest.mark.parametrize("what", INPLACE)
@pytest.mark.parametrize("name", ["GRU", "RNN"])
def test_inputs_changed_before_backward(name: str, what: str, frozen: bool) -> None:
    """Where torch.nn computes gradients, these are ours; where it refuses, we do."""
    outcomes: list[list[Any]] = []
    errors: list[str] = []
    for module in (getattr(nn, name)(I, H), layer(name)[0]):
        for n, parameter in enumerate(module.parameters()):
            torch.manual_seed(n)
            nn.init.normal_(parameter, std=0.3).requires_grad_(not frozen)
        torch.manual_seed(9)
        leaves = [torch.randn(T, B, I, requires_grad=True), torch.randn(1, B, H, requires_grad=True)]
        x, h0 = (leaf * 1 for leaf in leaves)
        output, _ = module(x, h0)
        with torch.no_grad():
            (x if what == "x" else h0 if what == "h0" else getattr(module, what)).mul_(2)
        try:
            output.sin().sum().backward()
            outcomes.append([t.grad for t in (*leaves, *module.parameters()) if t.grad is not None])
        except RuntimeError as error:
            errors.append(str(error))
            outcomes.append([])
    assert all("inplace operation" in error or "is a view" in error for error in errors)
    plain, fused = outcomes
    assert len(plain) == len(fused)
    for expected, actual in zip(plain, fused, strict=True):
        torch.testing.assert_close(actual, expected)


def test_inputs_changed_before_a_double_backward() -> None:
    """The derivative of backward reads what backward itself does not."""
    module, x, (h0,) = layer("GRU")
    x.requires_grad_()
    output, _ = module(x, h0)
    with torch.no_grad():
        module.bias_ih_l0.mul_(2)
    with pytest.raises(RuntimeError, match=r"modified by an inplace operation.*expected version"):
        torch.autograd.grad(output.sum(), x, create_graph=True)
    (grad,) = torch.autograd.grad(output.sum(), x)
    assert grad.isfinite().all()


def test_frozen_weights_and_a_double_backward() -> None:
    module, x, (h0,) = layer("LSTM", bias=False)[0].requires_grad_(False), *layer("GRU")[1:]
    x = x.double().requires_grad_()
    h0 = h0.double()
    assert torch.autograd.gradgradcheck(lambda x: module.double()(x, (h0, h0))[0], (x,))


# ---------------------------------------------------------------- threads


@pytest.mark.parametrize("gradients", [False, True])
def test_weights_exchanged_during_a_call(gradients: bool) -> None:
    """By another thread: each call computes with weights that were there at some time."""
    module = seqkernels.FusedLSTM(64, 128)
    x = torch.randn(20, 16, 64)
    stop = threading.Event()

    def exchange() -> None:
        while not stop.is_set():
            for parameter in module.parameters():
                parameter.data = torch.rand_like(parameter) * 0.1

    thread = threading.Thread(target=exchange)
    thread.start()
    try:
        with torch.set_grad_enabled(gradients):
            for _ in range(100):
                output, _ = module(x)
                assert output.abs().max() <= 1
    finally:
        stop.set()
        thread.join()


# ---------------------------------------------------------------- frozen modules


@pytest.mark.parametrize(
    ("parameter", "shape"),
    [
        ("weight_ih_l0", (4, 4)),
        ("weight_hh_l0", (4 * H, H + 1)),
        ("bias_ih_l0", (4,)),
        ("bias_hh_l0", (4 * H, 1)),
    ],
)
def test_freeze_checks_what_it_packs(parameter: str, shape: tuple[int, ...]) -> None:
    module, _, _ = layer("LSTM")
    setattr(module, parameter, nn.Parameter(torch.randn(shape)))
    size = r"\[32\]" if "bias" in parameter else r"\[32, [68]\]"
    with pytest.raises(
        ValueError, match=rf"{parameter} must be a plain tensor of size {size}.*got a Tensor of size"
    ):
        seqkernels.freeze(module)


def test_freeze_finds_freed_weights() -> None:
    module, _, _ = layer("LSTM", num_layers=2, bidirectional=True)
    module.weight_hh_l1_reverse.untyped_storage().resize_(16)
    with pytest.raises(ValueError, match="weight_hh_l1_reverse must be a plain tensor"):
        seqkernels.freeze(module)


SIZES_OF_A_FROZEN = (
    "cell",
    "dtype",
    "input_size",
    "hidden_size",
    "num_layers",
    "bidirectional",
    "batch_first",
)


@pytest.mark.parametrize("attribute", SIZES_OF_A_FROZEN)
def test_sizes_of_a_frozen_module_are_read_only(attribute: str) -> None:
    frozen = seqkernels.freeze(layer("LSTM")[0])
    with pytest.raises(AttributeError):
        setattr(frozen, attribute, 1)
    copy.deepcopy(frozen)


def use_in_a_process(_: int, frozen: nn.Module, x: Tensor, expected: Tensor) -> None:
    assert torch.equal(frozen(x)[0], expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_frozen_module_is_given_to_a_process(dtype: torch.dtype) -> None:
    frozen, x = seqkernels.freeze(nn.GRU(I, H, num_layers=2), dtype), torch.randn(T, B, I)
    torch.multiprocessing.spawn(use_in_a_process, args=(frozen, x, frozen(x)[0]))


def without_memory() -> Tensor:
    x = torch.randn(T, B, I)
    x.untyped_storage().resize_(4)
    return x


@pytest.mark.parametrize(
    "made",
    [
        lambda: torch._efficientzerotensor(T, B, I),
        lambda: torch._to_functional_tensor(torch.randn(T, B, I)),
        without_memory,
    ],
    ids=["zero tensor", "functional tensor", "freed"],
)
def test_a_frozen_module_and_tensors_without_memory(made: Callable[[], Tensor]) -> None:
    with pytest.raises(RuntimeError, match="memory"):
        seqkernels.freeze(layer("GRU")[0])(made())


def mutated(value: Any, random: random.Random) -> Any:
    """A part of a pickle, as somebody may have made it who wants us to crash."""
    if isinstance(value, dict) and value:
        key = random.choice(list(value))
        return value | {key: mutated(value[key], random)}
    if isinstance(value, (list, tuple)) and value:
        items = list(value)
        kind = random.randrange(4)
        i = random.randrange(len(items))
        if kind == 0:
            del items[i]
        elif kind == 1:
            items.append(items[i])
        else:
            items[i] = mutated(items[i], random)
        return type(value)(items)
    if isinstance(value, bool):
        return random.choice([not value, 2, None])
    if isinstance(value, int):
        return random.choice([0, -1, value + 1, value - 1, 1 << 31, 1 << 62, -(1 << 63), 1 << 64, 1.5, None])
    if isinstance(value, str):
        return random.choice(["gru", "lstm", "rnn_relu", "", "x" * 99, None])
    if isinstance(value, Tensor):
        kind = random.randrange(6)
        freed = value.clone()
        freed.untyped_storage().resize_(random.choice([0, 4]))
        return [value[:-1], value.double(), value.t(), value[:1].expand_as(value), freed, None][kind]
    return None


def test_pickles_of_frozen_modules() -> None:
    """A pickle that was tampered with is refused, or makes a module that runs."""
    refused = 0
    for seed in range(300):
        rng = random.Random(seed)
        name = rng.choice([*LAYERS, *STEPS])
        options = {} if name in STEPS else {"num_layers": 2, "bidirectional": True}
        frozen = seqkernels.freeze(getattr(nn, name)(I, H, **options), rng.choice([None, torch.bfloat16]))
        state = frozen.__getstate__()
        options, weights = state["_packed"]
        packed = options, torch.load(io.BytesIO(weights))
        for _ in range(rng.randrange(1, 4)):
            packed = mutated(packed, rng)
        if packed is not None and len(packed) == 2:
            file = io.BytesIO()
            torch.save(packed[1], file)
            packed = packed[0], file.getvalue()
        state["_packed"] = packed
        other = Frozen.__new__(Frozen)
        try:
            other.__setstate__(state)
        except (TypeError, ValueError, RuntimeError, pickle.UnpicklingError):
            refused += 1
            continue
        x = torch.randn(*(B, other.input_size) if name in STEPS else (T, B, other.input_size))
        for result in flat(other(x)):
            assert result.shape[-1] % other.hidden_size == 0
        pickle.loads(pickle.dumps(other))
    assert 200 < refused < 300


# ---------------------------------------------------------------- the fast path


def test_modules_whose_attributes_lie() -> None:
    """Sizes that do not fit the weights are an error, never an access beyond them."""
    wrong = [
        0,
        -1,
        1,
        2,
        7,
        1 << 31,
        1 << 62,
        (1 << 63) - 1,
        1 << 64,
        True,
        None,
        "8",
        [],
        ["weight_ih_l0"] * 4,
    ]
    refused = 0
    for seed in range(300):
        rng = random.Random(seed)
        name = rng.choice([*LAYERS, *STEPS])
        module = getattr(seqkernels, f"Fused{name}")(I, H)
        attributes = ["input_size", "hidden_size"]
        if name in LAYERS:
            attributes += ["num_layers", "bidirectional", "proj_size", "_flat_weights_names"]
        for attribute in rng.sample(attributes, rng.randrange(1, 3)):
            module.__dict__[attribute] = rng.choice(wrong)
        if rng.random() < 0.3:
            key = rng.choice(list(module._parameters))
            shorter = nn.Parameter(module._parameters[key][:-1].detach())
            module._parameters[key] = rng.choice([None, nn.Parameter(torch.randn(3)), shorter])
        x = torch.randn(*(B, I) if name in STEPS else (T, B, I))
        state = torch.randn(*(B, H) if name in STEPS else (1, B, H))
        hx = rng.choice([None, (state, state) if "LSTM" in name else state])
        try:
            with torch.no_grad():
                results = flat(module(x, hx))
        except Exception:
            refused += 1
        else:
            assert all(result.isfinite().all() for result in results)
    assert 0 < refused < 300
