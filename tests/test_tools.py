"""Other tools of torch meet fused layers as they do torch.nn's: side by side."""

from __future__ import annotations

import io
import warnings
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils._per_sample_grad import call_for_per_sample_grads
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils.flop_counter import FlopCounterMode

import seqkernels

from .conftest import LAYERS, STEPS, assert_close, flat, random_state

I, H = 3, 4


def pair(name: str, *sizes: int, **options: Any) -> tuple[nn.Module, nn.Module]:
    """torch.nn's and ours, with the same parameters."""
    theirs = getattr(nn, name)(*sizes, **options)
    ours = getattr(seqkernels, f"Fused{name}")(*sizes, **options)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


# ---------------------------------------------------------------- gradients of each sample


@pytest.fixture
def no_onednn() -> Any:
    """torch has no such gradients for oneDNN's LSTM."""
    with torch.backends.mkldnn.flags(enabled=False):
        yield


CALLS: dict[str, dict[str, Any]] = {
    "plain": {},
    "batch_first": {"batch_first": True},
    "stacked": {"num_layers": 2, "bidirectional": True},
    "no bias": {"bias": False},
}


@pytest.mark.parametrize("given", [False, True], ids=["zeros", "state"])
@pytest.mark.parametrize("options", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("name", LAYERS)
def test_per_sample_gradients(name: str, options: dict[str, Any], given: bool, no_onednn: None) -> None:
    first = "batch_first" in options
    x = torch.randn(2, 5, I, requires_grad=True) if first else torch.randn(5, 2, I, requires_grad=True)
    layers = 4 if "num_layers" in options else 1
    hx = random_state(name, layers, 2, H) if given else None
    found = []
    for module in pair(name, I, H, **options):
        output, _ = call_for_per_sample_grads(module, batch_size=2, batch_first=first)(x, hx)
        (grad,) = torch.autograd.grad(output.sin().sum(), x, retain_graph=True)
        output.sin().sum().backward()
        found.append([output, grad, *(p.grad_sample for p in module.parameters())])
    assert_close(*found)


@pytest.mark.parametrize("name", LAYERS)
def test_per_sample_gradients_of_packed_input(name: str, no_onednn: None) -> None:
    x = pack_sequence([torch.randn(5, I), torch.randn(3, I)])
    found = []
    for module in pair(name, I, H):
        output, _ = call_for_per_sample_grads(module, batch_size=2)(x)
        output.data.sin().sum().backward()
        found.append([p.grad_sample for p in module.parameters()])
    assert_close(*found)


@pytest.mark.parametrize("name", LAYERS + STEPS)
def test_refused_per_sample_gradients(name: str) -> None:
    """Of a Cell, of an LSTM of oneDNN, and of unbatched input of some: the same error, or none."""
    x = torch.randn(5, I)
    said = []
    for module in pair(name, I, H):
        try:
            call_for_per_sample_grads(module, batch_size=5)(x)
            said.append("")
        except RuntimeError as error:
            said.append(str(error))
    assert said[0] == said[1]


# ---------------------------------------------------------------- what is no tensor


class Wrapper:
    """What stands for a tensor without being one."""

    used: ClassVar[set[Any]] = set()

    def __init__(self, data: Tensor) -> None:
        self._data = data

    def __getattr__(self, name: str) -> Any:
        return wrapped(getattr(self._data, name))

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        cls.used.add(func)
        return wrapped(func(*unwrapped(args), **{k: unwrapped(v) for k, v in (kwargs or {}).items()}))


def wrapped(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return type(value)(wrapped(v) for v in value)
    return Wrapper(value) if isinstance(value, Tensor) else value


def unwrapped(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return type(value)(unwrapped(v) for v in value)
    return value._data if isinstance(value, Wrapper) else value


@pytest.mark.parametrize("what", ["input", "state", "both"])
@pytest.mark.parametrize("name", LAYERS)
def test_like_a_tensor(name: str, what: str) -> None:
    x, hx = torch.randn(1, 5, 10), random_state(name, 2, 5, 20)
    results = []
    for module in pair(name, 10, 20, 2):
        Wrapper.used = set()
        given = (wrapped(x) if what != "state" else x, wrapped(hx) if what != "input" else hx)
        results.append([flat(unwrapped(module(*given))), {str(f) for f in Wrapper.used}])
    assert_close(results[0][0], results[1][0])
    assert any(name.lower() in function for function in results[1][1])


def test_subclasses_stay_on_the_kernels() -> None:
    class Labelled(Tensor):
        @classmethod
        def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return super().__torch_function__(func, types, args, kwargs or {})

    module = seqkernels.FusedGRU(I, H, backend="native")
    output, _ = module(torch.randn(5, 2, I).as_subclass(Labelled))
    names, nodes = [], [output.grad_fn]
    for node in nodes:  # which grows
        names.append(type(node).__name__)
        nodes += [n for n, _ in node.next_functions if n is not None]
    assert any("gru" in name for name in names)


# ---------------------------------------------------------------- torch.fx


class Model(nn.Module):
    """A layer or Cell in the middle of a model, which takes a state where `hx` is a name of one."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.before, self.inner = nn.Linear(I, I), inner

    def forward(self, x: Any, h: Any, c: Any) -> Any:
        hx = (h, c) if "LSTM" in type(self.inner).__name__ else h
        found = self.inner(self.before(x), hx)
        return found[0] if isinstance(self.inner, nn.RNNBase) else found


class OnlyState(nn.Module):
    """The input is the model's own, the state is what it is given."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.register_buffer("x", torch.randn(5, 2, I))

    def forward(self, h: Any) -> Any:
        return self.inner(self.x, h)[1]


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("name", LAYERS + STEPS)
def test_symbolic_trace(name: str, batch_first: bool) -> None:
    is_layer = name in LAYERS
    options = {"batch_first": batch_first} if is_layer else {}
    x = torch.randn(5, 2, I) if is_layer else torch.randn(2, I)
    states = [torch.randn(*[1] * is_layer, 5 if is_layer and batch_first else 2, H) for _ in range(2)]
    theirs, ours = map(Model, pair(name, I, H, **options))
    ours.load_state_dict(theirs.state_dict())
    traced = torch.fx.symbolic_trace(ours)
    nodes = [[(n.op, n.target) for n in torch.fx.symbolic_trace(m).graph.nodes] for m in (theirs, ours)]
    assert nodes[0] == nodes[1]
    assert type(traced.inner) is type(ours.inner)
    assert_close(flat(traced(x, *states)), flat(ours(x, *states)))
    assert_close(flat(traced(x, *states)), flat(theirs(x, *states)))


def test_symbolic_trace_of_a_state_alone_and_of_resets() -> None:
    model = OnlyState(seqkernels.FusedGRU(I, H))
    h = torch.randn(1, 2, H)
    assert_close(torch.fx.symbolic_trace(model)(h), model(h))

    class Resets(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = seqkernels.FusedGRU(I, H)

        def forward(self, x: Any, starts: Any) -> Any:
            return self.inner(x, reset_mask=starts)[0]

    resets, x, starts = Resets(), torch.randn(5, 2, I), torch.rand(5, 2) < 0.3
    assert_close(torch.fx.symbolic_trace(resets)(x, starts), resets(x, starts))


# ---------------------------------------------------------------- torch.jit.script


SCRIPTED = pytest.mark.filterwarnings("ignore:`torch.jit")


class Typed(nn.Module):
    """A model that TorchScript can compile, with a layer of its own and a Cell inside another part."""

    def __init__(self, layer: nn.Module, cell: nn.Module) -> None:
        super().__init__()
        self.layer, self.part = layer, nn.Sequential(cell, nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        return self.part(self.layer(x)[0][-1])


@SCRIPTED
@pytest.mark.parametrize("name", LAYERS)
def test_script_of_a_model(name: str) -> None:
    model = Typed(getattr(seqkernels, f"Fused{name}")(I, H, 2), seqkernels.FusedGRUCell(H, 5)).eval()
    x = torch.randn(5, 2, I)
    expected = model(x)
    with pytest.warns(UserWarning, match="torch.jit.script") as said:
        scripted = torch.jit.script(model)
    texts = [str(w.message) for w in said if w.category is UserWarning]
    for kind, text in zip((name, "GRUCell"), texts, strict=True):
        assert f"in place of Fused{kind}," in text
        assert "seqkernels.fuse(model) makes it fused again" in text
    assert_close(scripted(x), expected)
    assert set(scripted.state_dict()) == set(model.state_dict())
    seqkernels.fuse(model)
    assert type(model.layer).__name__ == f"Fused{name}"
    assert_close(model(x), expected)
    with torch.no_grad():  # the parameters are the same ones
        model.layer.weight_hh_l0.mul_(0.5)
    assert_close(scripted(x), model(x))


@SCRIPTED
@pytest.mark.parametrize("name", LAYERS + STEPS)
def test_script_of_one_alone(name: str) -> None:
    """It stays as it is; of a layer, torch makes a module without `forward`, of its own too."""
    theirs, ours = pair(name, I, H)
    with pytest.warns(UserWarning, match=f"in place of Fused{name}, "):
        scripted = torch.jit.script(ours)
    assert hasattr(scripted, "forward") == hasattr(torch.jit.script(theirs), "forward")
    assert type(ours).__name__ == f"Fused{name}"
    assert_close(scripted.state_dict(), ours.state_dict())
    if name in STEPS:
        x = torch.randn(2, I)
        assert_close(flat(scripted(x)), flat(ours(x)))


@SCRIPTED
def test_what_cannot_be_scripted() -> None:
    module = nn.utils.parametrizations.weight_norm(seqkernels.FusedGRU(I, H), "weight_hh_l0")
    with pytest.raises(RuntimeError, match="remove_parametrizations takes off"):
        torch.jit.script(nn.Sequential(module))
    with pytest.raises(RuntimeError, match="take the module that it was made from"):
        torch.jit.script(seqkernels.freeze(seqkernels.FusedGRU(I, H)))

    class Own(seqkernels.FusedGRU):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            return x + 1

    assert Own(I, H).__prepare_scriptable__().__class__ is Own


# ---------------------------------------------------------------- quantization


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
@pytest.mark.parametrize("name", LAYERS + STEPS)
def test_quantization_says_what_it_leaves(name: str) -> None:
    model = nn.Sequential(nn.Linear(I, I), getattr(seqkernels, f"Fused{name}")(I, H))
    with pytest.warns(UserWarning, match=rf"leaves Fused{name} as it is: call seqkernels.unfuse\(model\)"):
        quantized = torch.ao.quantization.quantize_dynamic(model)
    x = torch.randn(5, 2, I) if name in LAYERS else torch.randn(2, I)
    assert_close(flat(quantized[1](x)), flat(model[1](x)))
    assert not hasattr(model[1], "qconfig")
    if name != "RNN":  # of which torch has none that is quantized
        found = torch.ao.quantization.quantize_dynamic(seqkernels.unfuse(model))
        assert "quantized" in type(found[1]).__module__


# ---------------------------------------------------------------- flops


def flops(module: nn.Module, *args: Any) -> tuple[int, int]:
    """What is counted forward and backward."""
    with FlopCounterMode(display=False) as forward:
        output = flat(module(*args))[0]
    with FlopCounterMode(display=False) as backward:
        output.sum().backward()
    return forward.get_total_flops(), backward.get_total_flops()


@pytest.mark.parametrize("needs", ["everything", "weights", "x", "x and w_ih"])
@pytest.mark.parametrize("options", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("name", LAYERS)
def test_flops_of_layers(name: str, options: dict[str, Any], needs: str, no_onednn: None) -> None:
    x = torch.randn(5, 2, I, requires_grad=needs != "weights")
    layers, batch = 4 if "num_layers" in options else 1, 5 if "batch_first" in options else 2
    hx = random_state(name, layers, batch, H, requires_grad=True) if needs == "everything" else None
    theirs, ours = pair(name, I, H, **options)
    for module in (theirs, ours):
        for key, p in module.named_parameters():
            p.requires_grad_(needs not in ("x", "x and w_ih") or (needs != "x" and key == "weight_ih_l0"))
    assert flops(ours, x, hx) == flops(theirs, x, hx)


@pytest.mark.parametrize("name", STEPS)
def test_flops_of_cells(name: str) -> None:
    for x in (torch.randn(2, I), torch.randn(2, I, requires_grad=True)):
        theirs, ours = pair(name, I, H)
        assert flops(ours, x) == flops(theirs, x)
        hx = random_state(name, 2, H, requires_grad=True)
        assert flops(ours, x, hx) == flops(theirs, x, hx)


@pytest.mark.parametrize("name", LAYERS)
def test_flops_of_packed_input(name: str, no_onednn: None) -> None:
    packed = pack_sequence([torch.randn(5, I, requires_grad=True), torch.randn(3, I)])
    theirs, ours = pair(name, I, H)
    packed = PackedSequence(packed.data.detach(), packed.batch_sizes)
    assert flops(ours, packed) == flops(theirs, packed)
    assert flops(ours, packed)[0] == 2 * 8 * sum(p.numel() for p in ours.parameters() if p.dim() == 2)


# ---------------------------------------------------------------- torch.onnx


def exported(module: nn.Module, *inputs: Tensor) -> Any:
    """A session of ONNX Runtime with what torch exports."""
    onnxruntime = pytest.importorskip("onnxruntime")
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that exporter is the old one, and the one without another package
        torch.onnx.export(module.eval(), inputs, file, dynamo=False)
    return onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_onnx(name: str) -> None:
    """An operator of ONNX for each layer, as of torch.nn's own."""
    pytest.importorskip("onnx")
    module = getattr(seqkernels, f"Fused{name}")(I, H, num_layers=2, bidirectional=True)
    x = torch.randn(5, 2, I)
    session = exported(module, x)
    (given,) = session.get_inputs()
    results = session.run(None, {given.name: x.numpy()})
    assert_close([torch.from_numpy(r) for r in results], flat(module(x)))


def test_what_has_no_operator_in_onnx() -> None:
    pytest.importorskip("onnx")
    x = torch.randn(5, 2, I)
    for module in (seqkernels.FusedGRU(I, H, reset_after=False), seqkernels.FusedLSTM(I, H, norm="layer")):
        with pytest.raises(RuntimeError, match=r"cannot be exported to ONNX .* backend='reference'"):
            exported(module, x)
        module.backend = "reference"
        session = exported(module, x)
        results = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        assert_close([torch.from_numpy(r) for r in results], flat(module(x)))
