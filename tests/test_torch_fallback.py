"""What no kernel takes is run by what torch.nn runs, to the bit."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

import seqkernels
from seqkernels import reference

from .conftest import assert_close, flat
from .test_modules import pair

pytestmark = pytest.mark.filterwarnings("ignore:Complex modules are a new feature")
I, H = 5, 6
COMPLEX = torch.complex64  # which torch.nn's layers take, and no kernel
OPTIONS: list[dict[str, Any]] = [
    {},
    {"num_layers": 2, "bidirectional": True},
    {"bias": False, "batch_first": True},
    {"num_layers": 3},
]


def numbers(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=COMPLEX)


def parts(results: Any) -> list[Tensor]:
    """Real and imaginary parts."""
    return [part for t in flat(results) for part in torch.view_as_real(t).unbind(-1)]


@pytest.fixture
def no_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "layer", None)


@pytest.mark.usefixtures("no_reference")
@pytest.mark.parametrize("kind", ["padded", "unbatched", "packed"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_complex_numbers(options: dict[str, Any], kind: str) -> None:
    theirs, ours = pair("LSTM", I, H, dtype=COMPLEX, **options)
    x: Any = numbers(4, 3, I) if kind == "padded" else numbers(4, I)
    if kind == "packed":
        x = pack_sequence([numbers(n, I) for n in (4, 2, 1)])
    results = []
    for module in (ours, theirs):
        torch.manual_seed(1)
        found = flat(module(x))
        loss = sum(t.abs().sum() for t in found if t.is_complex())
        results.append([*found, *torch.autograd.grad(loss, list(module.parameters()))])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_a_fused_model_takes_no_longer_way() -> None:
    """The profiler sees the same ops as with torch.nn."""
    theirs, ours = pair("LSTM", I, H, dtype=COMPLEX)
    x, seen = numbers(4, 3, I), []
    for module in (ours, theirs):
        with torch.no_grad(), torch.profiler.profile() as profile:
            module(x)
        seen.append(sorted(event.key for event in profile.key_averages() if "::" in event.key))
    assert seen[0] == seen[1]


def test_compiled_traced_and_exported() -> None:
    theirs, ours = pair("LSTM", I, H, dtype=COMPLEX)
    x = numbers(4, 3, I)
    expected = parts(theirs(x))
    assert_close(parts(torch.compile(ours, backend="eager", fullgraph=True)(x)), expected)
    traced = torch.jit.trace(ours, (x,))
    assert_close(parts(traced(x)), expected)
    assert "aten::lstm" in str(traced.graph)
    assert_close(parts(torch.export.export(ours, (x,)).module()(x)), expected)


def test_the_reference_is_there_where_torch_gives_up() -> None:
    _, ours = pair("LSTM", I, H, dtype=COMPLEX)
    x = numbers(3, 4, I)
    rows = torch.vmap(lambda row: ours(row.unsqueeze(1))[0].squeeze(1))(x)
    assert_close(parts(rows), parts(ours(x.transpose(0, 1))[0].transpose(0, 1)))
    by_reference = copy.deepcopy(ours)
    by_reference.backend = "reference"
    assert_close(parts(by_reference(x)[0]), parts(ours(x)[0]))


def test_mixed_dtypes_end_as_with_torch() -> None:
    cell, theirs = seqkernels.FusedGRUCell(I, H), nn.GRUCell(I, H)

    def message(module: nn.Module, x: Tensor) -> str:
        with pytest.raises(RuntimeError) as caught:
            module(x)
        return str(caught.value)

    x = torch.zeros(3, I, dtype=torch.bfloat16)
    assert message(cell, x) == message(theirs, x)


@pytest.mark.parametrize("proj_size", [0, 2])
def test_nothing_is_flattened(proj_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of weights that cuDNN would read."""
    flattened = []
    monkeypatch.setattr(nn.RNNBase, "flatten_parameters", flattened.append)
    seqkernels.FusedLSTM(I, H, proj_size=proj_size).to(torch.float64).flatten_parameters()
    assert not flattened
