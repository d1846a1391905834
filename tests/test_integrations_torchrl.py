"""LSTMModule and GRUModule of TorchRL, the real ones, fused and as they are."""

from __future__ import annotations

import copy
import doctest
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import seqkernels
from seqkernels.integrations import _package, torchrl
from tests.conftest import assert_close, case_name

theirs = pytest.importorskip("torchrl.modules")
tensordict = pytest.importorskip("tensordict")

from tensordict import TensorDict  # noqa: E402
from tensordict.nn import TensorDictModule, TensorDictSequential  # noqa: E402
from torchrl.modules import set_recurrent_mode  # noqa: E402
from torchrl.objectives.value import GAE  # noqa: E402

I, H = 3, 4
KINDS = {"LSTM": ("lstm", ["h", "c"]), "GRU": ("gru", ["h"])}
# Where the states that rows start from come from.
STORED = ("none", "zeros at starts", "anything", "zeros with a gradient")


def make(name: str, **options: Any) -> Any:
    """A module with keys x, h and c, and y, ("next", "h") and ("next", "c"), in float64."""
    _, states = KINDS[name]
    out_keys = ["y", *(("next", s) for s in states)]
    module = getattr(theirs, f"{name}Module")(I, H, in_keys=["x", *states], out_keys=out_keys, **options)
    return module.double()


def layer_of(module: Any) -> Any:
    return getattr(module, "lstm" if hasattr(module, "lstm") else "gru")


def data_for(module: Any, is_init: Tensor, stored: str = "zeros at starts") -> TensorDict:
    """Random rows; is_init [*, T]."""
    layer = layer_of(module)
    shape, states = is_init.shape, layer.num_layers * (2 if layer.bidirectional else 1)
    kind = {"dtype": torch.float64, "requires_grad": True}
    data = TensorDict({"x": torch.randn(*shape, I, **kind), "is_init": is_init.unsqueeze(-1)}, shape)
    for n, key in enumerate(module.in_keys[1:-1] if stored != "none" else []):
        width = (getattr(layer, "proj_size", 0) or H) if n == 0 else H
        state = torch.randn(*shape, states, width, dtype=torch.float64)
        if stored.startswith("zeros"):
            # The state of the first step is what a row goes on from, whatever is_init says there.
            later = is_init.clone()
            later[..., 0] = False
            state = torch.where(later[..., None, None], 0, state)
        data[key] = state.requires_grad_("gradient" in stored)
    return data


def run(module: Any, data: TensorDict) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """All outputs in recurrent mode, and the gradients of a loss of all of them."""
    with set_recurrent_mode(True):
        result = module(data.copy())
    outputs = {str(key): result[key] for key in module.out_keys}
    generator = torch.Generator().manual_seed(1)
    loss = sum((t * torch.randn(t.shape, dtype=t.dtype, generator=generator)).sum() for t in outputs.values())
    inputs = {str(k): data[k] for k in module.in_keys[:-1] if k in data and data[k].requires_grad}
    inputs |= dict(module.named_parameters())
    found = torch.autograd.grad(loss, list(inputs.values()), allow_unused=True)
    grads = {
        n: torch.zeros_like(t) if g is None else g for (n, t), g in zip(inputs.items(), found, strict=True)
    }
    return outputs, grads


def starts_in(*shape: int, p: float = 0.3) -> Tensor:
    starts = torch.rand(*shape) < p
    starts.view(-1, shape[-1])[0, shape[-1] // 2] = True  # inside at least one row
    return starts


# ---------------------------------------------------------------- results


OPTIONS: list[dict[str, Any]] = [
    {},
    {"num_layers": 2},
    {"bidirectional": True},
    {"num_layers": 2, "bidirectional": True, "bias": False},
]


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize(
    ("name", "options"),
    [(name, options) for name in KINDS for options in OPTIONS] + [("LSTM", {"proj_size": 2})],
    ids=case_name,
)
def test_outputs_states_and_gradients(name: str, options: dict[str, Any], stored: str) -> None:
    module = make(name, **options)
    data = data_for(module, starts_in(3, 7), stored)
    expected, grads = run(module, data)
    fused = torchrl.fuse(copy.deepcopy(module), "native")
    assert_close(run(fused, data), (expected, grads))
    assert expected["('next', 'h')"].any()


@given(
    name=st.sampled_from(sorted(KINDS)),
    shape=st.sampled_from([(1,), (5,), (1, 1), (3, 4), (2, 2, 3), (1, 2, 1, 4)]),
    stored=st.sampled_from(STORED),
    states=st.sampled_from(torchrl.STATES),
    data=st.data(),
)
def test_any_starts(name: str, shape: tuple[int, ...], stored: str, states: str, data: st.DataObject) -> None:
    """Of tensordicts [T], [B, T] and more; no start, starts at first and at last steps, one after another."""
    count = torch.Size(shape).numel()
    flags = data.draw(st.lists(st.booleans(), min_size=count, max_size=count))
    module = make(name)
    rows = data_for(module, torch.tensor(flags).view(shape), stored)
    with set_recurrent_mode(True):
        expected = module(rows.copy())
        found = torchrl.fuse(module, states=states)(rows.copy())
    if states == "last":
        for key in module.out_keys[1:]:
            expected[key][..., :-1, :, :] = 0
    keys = expected.keys(True, True)
    assert set(found.keys(True, True)) == set(keys)
    assert found.shape == expected.shape
    assert_close(
        {str(k): found[k] for k in keys}, {str(k): expected[k].double() for k in keys}, torch.float64
    )


@pytest.mark.parametrize("name", KINDS)
def test_last_states_alone(name: str) -> None:
    """Outputs and last states as ever, with their gradients; zeros instead of the other states."""
    module = make(name, num_layers=2)
    data = data_for(module, starts_in(3, 7))
    expected, _ = run(module, data)
    found, _ = run(torchrl.fuse(module, states="last"), data)
    for key in expected:
        last = (slice(None), -1) if key != "y" else ...
        assert_close(found[key][last], expected[key][last], what=key)
        if key != "y":
            assert expected[key][:, :-1].any()
            assert not found[key][:, :-1].any()


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_single_steps(name: str, shape: tuple[int, ...]) -> None:
    """What a collector runs: is_init makes states zeros."""
    module = make(name)
    for is_init in (torch.zeros(shape, dtype=torch.bool), torch.rand(shape) < 0.5, torch.ones(shape) > 0):
        data = data_for(module, is_init.unsqueeze(-1), "anything")[..., 0].detach()
        expected = module(data.copy())
        found = torchrl.fuse(module, "native")(data.copy())
        torchrl.unfuse(module)
        for key in module.out_keys:
            assert_close(found[key], expected[key])


# ---------------------------------------------------------------- which way


@pytest.mark.parametrize(
    ("name", "options", "stored", "states", "masked"),
    [
        ("GRU", {}, "zeros at starts", "ends", True),
        ("GRU", {}, "none", "ends", True),
        ("GRU", {"num_layers": 2}, "zeros at starts", "ends", False),
        ("GRU", {"bidirectional": True}, "zeros at starts", "ends", False),
        ("GRU", {}, "anything", "ends", False),
        ("GRU", {}, "zeros with a gradient", "last", False),
        ("LSTM", {}, "zeros at starts", "ends", False),
        ("LSTM", {}, "zeros at starts", "last", True),
        ("LSTM", {"num_layers": 2, "bidirectional": True}, "none", "last", True),
        ("LSTM", {}, "anything", "last", False),
    ],
)
def test_where_a_reset_mask_will_do(
    name: str, options: Any, stored: str, states: str, masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nowhere is anything padded, and nothing is moved where zeros are all that is needed."""

    def forbidden(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("rows were split and padded")

    masks = []

    def spy(module: Any, args: Any, kwargs: Any) -> None:
        masks.append(kwargs.get("reset_mask"))

    rnn = torchrl._package.load("torchrl.modules.tensordict_module.rnn", "torchrl")
    monkeypatch.setattr(rnn, "_split_and_pad_for_reset", forbidden)
    module = torchrl.fuse(make(name, **options), states=states)
    data = data_for(module, starts_in(3, 7), stored)
    layer_of(module).register_forward_pre_hook(spy, with_kwargs=True)
    with set_recurrent_mode(True):
        module(data.copy())
    assert len(masks) == 1
    assert (masks[0] is not None) is masked
    if masked:
        starts = data["is_init"].squeeze(-1).clone()
        starts[:, 0] = False
        assert torch.equal(masks[0], starts)


def test_rows_without_starts_are_one_call() -> None:
    module = torchrl.fuse(make("LSTM"))
    calls: list[Any] = []
    module.lstm.register_forward_pre_hook(lambda m, args: calls.append(args[0]))
    is_init = torch.zeros(2, 5, dtype=torch.bool)
    is_init[:, 0] = True
    with set_recurrent_mode(True):
        module(data_for(module, is_init, "anything"))
    assert [tuple(x.shape) for x in calls] == [(2, 5, I)]


# ---------------------------------------------------------------- models


def make_model() -> Any:
    """An LSTM, a GRU in a sequence of its own, and a head."""
    lstm = theirs.LSTMModule(I, H, in_keys=["x", "h", "c"], out_keys=["f", ("next", "h"), ("next", "c")])
    gru = theirs.GRUModule(H, H, in_keys=["f", "g"], out_keys=["y", ("next", "g")], recurrent_backend="auto")
    head = TensorDictModule(nn.Linear(H, 1), in_keys=["y"], out_keys=["state_value"])
    return TensorDictSequential(lstm, TensorDictSequential(gru, head)).double()


def test_modules_inside_a_model() -> None:
    model = make_model()
    data = TensorDict({"x": torch.randn(3, 6, I).double(), "is_init": starts_in(3, 6).unsqueeze(-1)}, [3, 6])
    attributes = {m: dict(vars(m)) for m in model.modules()}
    parameters, keys = list(model.parameters()), list(model.state_dict())
    with set_recurrent_mode(True):
        expected = model(data.copy())
        assert torchrl.fuse(torchrl.fuse(model)) is model
        found = model(data.copy())
    assert [type(m) for m in model.modules()].count(seqkernels.FusedLSTM) == 1
    assert [type(m) for m in model.modules()].count(seqkernels.FusedGRU) == 1
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert list(model.state_dict()) == keys
    results = [("next", "h"), ("next", "c"), ("next", "g"), "f", "y", "state_value"]
    for key in results:
        assert_close(found[key], expected[key])

    assert torchrl.unfuse(torchrl.unfuse(model)) is model
    assert [m.recurrent_backend for m in model.modules() if hasattr(m, "recurrent_backend")] == [
        "pad",
        "auto",
    ]
    for module, before in attributes.items():
        assert vars(module).keys() == before.keys()
        assert not isinstance(module, (seqkernels.FusedLSTM, seqkernels.FusedGRU))
    with set_recurrent_mode(True):
        again = model(data.copy())
    for key in results:
        assert torch.equal(again[key], expected[key])


@pytest.mark.parametrize("states", torchrl.STATES)
def test_advantages(states: str) -> None:
    """TorchRL's own estimator goes on from stored states that are not zeros at what it marks as starts."""
    model = make_model()
    is_init = starts_in(3, 6)
    done = torch.cat([is_init[:, 1:], torch.ones(3, 1, dtype=torch.bool)], 1).unsqueeze(-1)
    data = TensorDict({"x": torch.randn(3, 6, I).double(), "is_init": is_init.unsqueeze(-1)}, [3, 6])
    data["next"] = TensorDict(
        {"x": torch.randn(3, 6, I).double(), "is_init": torch.zeros_like(done), "done": done}, [3, 6]
    )
    data["next", "terminated"], data["next", "reward"] = done, torch.randn(3, 6, 1).double()
    for part in (data, data["next"]):
        for key in ("h", "c", "g"):
            part[key] = torch.randn(3, 6, 1, H).double()
    results = []
    for network in (model, torchrl.fuse(copy.deepcopy(model), states=states)):
        estimator = GAE(gamma=0.9, lmbda=0.8, value_network=network, deactivate_vmap=True)
        results.append(estimator(data.copy())["advantage"])
    assert_close(results[1], results[0])


def test_parameters_put_in_from_outside() -> None:
    """As losses of TorchRL run their networks."""
    module, other = torchrl.fuse(make("LSTM")), make("LSTM")
    data = data_for(module, starts_in(3, 7))
    expected, _ = run(other, data)
    parameters = TensorDict.from_module(other)
    with parameters.to_module(module):
        found, _ = run(module, data)
    assert_close(found, expected)
    assert not torch.equal(run(module, data)[0]["y"], found["y"])


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
@pytest.mark.parametrize("name", KINDS)
def test_copies_are_fused(name: str, clone: Callable[[Any], Any]) -> None:
    """And run their own layer."""
    module = torchrl.fuse(make(name), "native")
    data = data_for(module, starts_in(3, 7))
    expected, _ = run(module, data)
    other = clone(module)
    with torch.no_grad():
        for p in module.parameters():
            p.zero_()
    found, _ = run(other, data)
    assert all(torch.equal(found[key], expected[key]) for key in found)
    torchrl.unfuse(other)
    assert layer_of(other).__class__ is getattr(nn, name)
    assert layer_of(module).__class__ is getattr(seqkernels, f"Fused{name}")


def test_unfused_by_seqkernels_still_runs() -> None:
    for name in KINDS:
        module = make(name)
        data = data_for(module, starts_in(3, 7))
        expected, _ = run(module, data)
        seqkernels.unfuse(torchrl.fuse(module))
        assert_close(run(module, data)[0], expected)
        seqkernels.unfuse(torchrl.fuse(module, states="last"))
        assert_close(run(module, data)[0]["y"], expected["y"])


def test_options_of_a_second_fuse() -> None:
    module = torchrl.fuse(make("LSTM"), "reference", "last")
    assert module.lstm.backend == "reference"
    torchrl.fuse(module)
    assert module.lstm.backend == "auto"
    data = data_for(module, starts_in(3, 7))
    assert run(module, data)[0]["('next', 'h')"][:, :-1].any()
    assert torchrl.unfuse(module).recurrent_backend == "pad"


@pytest.mark.parametrize("name", KINDS)
def test_recomputation(name: str) -> None:
    module = make(name)
    data = data_for(module, starts_in(3, 7), "anything")
    expected = run(module, data)
    recomputing = make(name, recurrent_backend="scan", recurrent_recompute="full")
    recomputing.load_state_dict(module.state_dict())
    torchrl.fuse(recomputing, "native")
    assert layer_of(recomputing).recompute
    assert_close(run(recomputing, data), expected)
    torchrl.unfuse(recomputing)
    assert recomputing.recurrent_recompute == "full"
    assert recomputing.recurrent_backend == "scan"


@pytest.mark.parametrize("states", torchrl.STATES)
@pytest.mark.parametrize("name", KINDS)
def test_compiled(name: str, states: str) -> None:
    """Graphs break where starts are looked at; results are the same."""
    torch._dynamo.reset()
    module = torchrl.fuse(make(name), "native", states)
    data = data_for(module, starts_in(3, 7))
    compiled = torch.compile(module, backend="aot_eager")
    with set_recurrent_mode(True):
        expected, found = module(data.copy()), compiled(data.copy())
    for key in module.out_keys:
        assert_close(found[key], expected[key])
    single = TensorDict({"x": torch.randn(3, I, dtype=torch.float64), "is_init": torch.rand(3, 1) < 0.5}, [3])
    assert_close(compiled(single.copy())["y"], module(single.copy())["y"])


def test_dropout() -> None:
    """Drawn in training alone, between layers."""
    module = torchrl.fuse(make("LSTM", num_layers=2, dropout=0.5))
    data = data_for(module, starts_in(3, 7))
    first, second = run(module, data)[0]["y"], run(module, data)[0]["y"]
    assert not torch.equal(first, second)
    module.eval()
    expected, _ = run(torchrl.unfuse(copy.deepcopy(module)), data)
    assert_close(run(module, data)[0], expected)


# ---------------------------------------------------------------- errors


def unchanged(module: Any) -> bool:
    return type(layer_of(module)) in (nn.LSTM, nn.GRU) and module.recurrent_backend == "pad"


@pytest.mark.parametrize("model", [None, nn.LSTM(1, 1), nn.Sequential()], ids=["None", "LSTM", "Sequential"])
def test_no_such_module(model: Any) -> None:
    with pytest.raises(
        TypeError, match=f"must be an LSTMModule or a GRUModule.*; got {type(model).__name__}"
    ):
        torchrl.fuse(model)


@pytest.mark.parametrize(
    ("options", "error"), [({"backend": "fast"}, "backend must be"), ({"states": "all"}, "states must be")]
)
def test_unknown_options(options: Any, error: str) -> None:
    module = make("LSTM")
    with pytest.raises(ValueError, match=error):
        torchrl.fuse(module, **options)
    assert unchanged(module)


def test_unknown_version(monkeypatch: pytest.MonkeyPatch) -> None:
    module = make("GRU")
    monkeypatch.setattr(_package.metadata, "version", lambda distribution: "9.1")
    with pytest.raises(RuntimeError, match=r"torchrl, and knows those of 0.13 to 0.14; 9.1 is installed"):
        torchrl.fuse(module)
    assert unchanged(module)


def test_installed_version_is_known() -> None:
    _package.check_version("torchrl", torchrl.OLDEST, torchrl.NEWEST)


@pytest.mark.parametrize("name", KINDS)
def test_unknown_method(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = make(name)
    kind = next(kind for kind in torchrl.KINDS if kind.module == f"{name}Module")
    cls = getattr(theirs, kind.module)
    monkeypatch.setattr(cls, kind.method, lambda self, input, is_init: None)
    with pytest.raises(RuntimeError, match=r"takes \(self, input, is_init\), where this adapter knows"):
        torchrl.fuse(module)
    monkeypatch.delattr(cls, kind.method)
    with pytest.raises(RuntimeError, match=f"has no {kind.method}"):
        torchrl.fuse(module)
    assert unchanged(module)


class OwnForward(theirs.LSTMModule):  # type: ignore[misc, name-defined]
    def forward(self, tensordict: Any) -> Any:
        return super().forward(tensordict)


class OwnLayer(nn.LSTM):
    def forward(self, input: Any, hx: Any = None) -> Any:
        return torch.lstm(input, hx, list(self.parameters()), True, 1, 0.0, False, False, True)


@pytest.mark.parametrize(
    ("make_module", "error"),
    [
        (lambda: OwnForward(I, H, in_key="x", out_key="y"), "OwnForward has a forward of its own"),
        (lambda: make("LSTM", python_based=True), "must run a layer of torch.nn .*, not LSTM"),
        (lambda: make("GRU", python_based=True), "must run a layer of torch.nn .*, not GRU"),
        (
            lambda: theirs.LSTMModule(lstm=OwnLayer(I, H, batch_first=True), in_key="x", out_key="y"),
            "the lstm of LSTMModule cannot be fused: the forward of OwnLayer computes by itself",
        ),
        (
            lambda: theirs.LSTMModule(
                lstm=seqkernels.FusedLSTM(I, H, batch_first=True, return_cell_states=True),
                in_key="x",
                out_key="y",
            ),
            "the lstm of LSTMModule has return_cell_states=True, for which there is no key",
        ),
    ],
    ids=["own forward", "python-based LSTM", "python-based GRU", "own layer", "cell states"],
)
def test_modules_that_cannot_be_fused(make_module: Callable[[], Any], error: str) -> None:
    """Nor is any other in the same model then."""
    module, other = make_module(), make("GRU")
    with pytest.raises(ValueError, match=error):
        torchrl.fuse(nn.ModuleList([other, module]))
    assert unchanged(other)
    assert module.recurrent_backend == "pad"


def test_docstrings() -> None:
    result = doctest.testmod(torchrl, extraglobs={"torch": torch, "seqkernels": seqkernels})
    assert result.attempted > 0
    assert result.failed == 0


def test_report(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "seqkernels")
    model = nn.ModuleList([make("LSTM"), nn.Sequential(make("GRU"))])
    paths = {"0.lstm": ("LSTM", "FusedLSTM"), "1.0.gru": ("GRU", "FusedGRU")}
    assert torchrl.fuse(model, report=True).changed == paths
    assert list(torchrl.fuse(model, report=True).already) == list(paths)
    assert list(torchrl.unfuse(model, report=True).changed) == list(paths)
    assert caplog.records[0].getMessage() == "fused 2 of 2 recurrent layers: 0.lstm (LSTM), 1.0.gru (GRU)"
    assert torchrl.fuse(make("GRU"), report=True).changed == {"gru": ("GRU", "FusedGRU")}
    for function in (torchrl.fuse, torchrl.unfuse):
        with pytest.raises(TypeError, match="report must be True or False"):
            function(model, report=1)
