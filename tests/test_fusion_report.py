"""What fuse and unfuse say of what they did; layers that fuse cannot reach, or reaches inside of others."""

from __future__ import annotations

import logging
import pickle
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import seqkernels
from seqkernels.fusion_report import NAMED_IN_A_LINE

from .conftest import assert_close

I, H = 5, 6


class Computes(nn.LSTM):
    def forward(self, input: Tensor) -> Tensor:
        return input.cumsum(0)


class Encoder(nn.GRU):
    def forward(self, input: Tensor, hx: Any = None) -> Any:
        return super().forward(input, hx)


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.LSTM(I, H)
        self.head = nn.Linear(H, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x)[0])


def mixed() -> nn.ModuleDict:
    layer = nn.LSTM(I, H)
    parts = {
        "encoder": Encoder(I, H),
        "fused": seqkernels.FusedRNN(I, H),
        "own": Computes(I, H),
        "one": layer,
    }
    return nn.ModuleDict({**parts, "again": layer, "linear": nn.Linear(I, H)})


def test_report() -> None:
    model = mixed()
    report = seqkernels.fuse(model, report=True)
    reason = "the forward of Computes computes by itself, without super().forward"
    assert report.changed == {"encoder": ("Encoder", "FusedEncoder"), "one": ("LSTM", "FusedLSTM")}
    assert report.already == {"fused": "FusedRNN"}
    assert report.left_alone == {"own": ("Computes", reason)}
    assert report.left_alone["own"].reason == reason
    assert str(report).splitlines() == [
        "fused 2 of 4 recurrent layers, 1 was already",
        "  encoder: Encoder -> FusedEncoder",
        "  one: LSTM -> FusedLSTM",
        "fused already",
        "  fused: FusedRNN",
        "left alone",
        f"  own: Computes, because {reason}",
    ]
    assert pickle.loads(pickle.dumps(report)) == report
    with pytest.raises(AttributeError):
        report.changed = {}  # type: ignore[misc]
    again = seqkernels.fuse(model, report=True)
    assert not again.changed
    assert list(again.already) == ["encoder", "fused", "one"]


def test_report_of_unfuse() -> None:
    class Own(seqkernels.FusedLSTM):
        pass

    plain = nn.GRU(I, H)
    layers = [seqkernels.FusedLSTM(I, H), plain, seqkernels.FusedGRU(I, H, reset_after=False), Own(I, H)]
    frozen = seqkernels.freeze(seqkernels.FusedGRU(I, H))
    report = seqkernels.unfuse(nn.ModuleList([*layers, frozen]), report=True)
    assert report.changed == {"0": ("FusedLSTM", "LSTM")}
    assert report.already == {"1": "GRU"}
    reasons = {path: left.reason for path, left in report.left_alone.items()}
    assert reasons.pop("2") == "torch.nn has no reset_after=False"
    assert "derives from FusedLSTM" in reasons.pop("3")
    assert "snapshots" in reasons.pop("4")
    assert not reasons
    assert str(report).startswith(
        "unfused 1 of 5 recurrent layers, 1 was torch.nn's already\n  0: FusedLSTM -> LSTM\n"
    )


def test_a_layer_and_nothing() -> None:
    assert "the model itself: LSTM -> FusedLSTM" in str(seqkernels.fuse(nn.LSTM(I, H), report=True))
    assert str(seqkernels.fuse(nn.Linear(I, H), report=True)) == "fused nothing: there is no recurrent layer"
    frozen = seqkernels.freeze(seqkernels.FusedGRU(I, H))
    assert seqkernels.fuse(frozen, report=True).already == {"": "Frozen"}


@pytest.mark.parametrize("function", [seqkernels.fuse, seqkernels.unfuse])
def test_wrong_arguments(function: Any) -> None:
    with pytest.raises(TypeError, match=f"{function.__name__} takes a torch.nn.Module as model, got list"):
        function([nn.LSTM(I, H)])
    with pytest.raises(TypeError, match="report must be True or False, got 'yes'"):
        function(nn.LSTM(I, H), report="yes")


def lines(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == level]


def test_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "seqkernels")
    model = mixed()
    seqkernels.fuse(model)
    assert lines(caplog, logging.INFO) == [
        "fused 2 of 4 recurrent layers, 1 was already: encoder (Encoder), one (LSTM)"
    ]
    assert {record.name for record in caplog.records} == {"seqkernels"}
    assert {record.filename for record in caplog.records} == {"test_fusion_report.py"}
    caplog.clear()
    seqkernels.unfuse(model)
    assert lines(caplog, logging.INFO) == [
        "unfused 3 of 4 recurrent layers, 1 was torch.nn's already: "
        "encoder (FusedEncoder), fused (FusedRNN), one (FusedLSTM)"
    ]


def test_the_line_of_a_large_model_is_short(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "seqkernels")
    total = NAMED_IN_A_LINE + 3
    report = seqkernels.fuse(nn.ModuleList([nn.GRUCell(1, 1) for _ in range(total)]), report=True)
    (line,) = lines(caplog, logging.INFO)
    assert line.startswith(f"fused {total} of {total} recurrent layers: 0 (GRUCell), 1 (GRUCell), ")
    assert line.endswith(f"{NAMED_IN_A_LINE - 1} (GRUCell) and 3 more")
    assert len(report.changed) == total


def test_each_class_and_reason_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    class Other(Computes):
        pass

    class Renamed(nn.GRU):
        _run = 1

    for cls in (Computes, Other, Computes, Renamed, Other):
        for _ in range(2):
            seqkernels.fuse(nn.ModuleList([cls(I, H), cls(I, H)]))
    told = lines(caplog, logging.WARNING)
    assert [line.split()[2] for line in told] == ["Computes", "Other", "Renamed"]


def test_without_configuration_warnings_reach_stderr() -> None:
    """By logging's last resort, and nothing else does."""
    code = (
        "import torch, seqkernels\n"
        "class Own(torch.nn.GRU):\n"
        "    def forward(self, x): return x\n"
        "seqkernels.fuse(torch.nn.ModuleList([Own(2, 3), torch.nn.GRU(2, 3)]))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == ""
    (line,) = run.stderr.splitlines()
    assert line.startswith("seqkernels.fuse leaves Own alone: the forward of Own computes by itself")


# ---------------------------------------------------------------- what fuse cannot reach

JIT = pytest.mark.filterwarnings("ignore:`torch.jit", "ignore:Converting a tensor to a Python")
QUANTIZED = pytest.mark.filterwarnings("ignore:torch.ao.quantization", "ignore:torch.quantize")


def out_of_reach(model: nn.Module, path: str, kind: str, reason: str, caplog: Any) -> None:
    report = seqkernels.fuse(model, report=True)
    assert not report.changed
    ((where, left),) = report.left_alone.items()
    assert (where, left.kind) == (path, kind)
    assert reason in left.reason
    assert lines(caplog, logging.WARNING) == [f"seqkernels.fuse leaves {kind} alone: {left.reason}"]


@JIT
@pytest.mark.parametrize("compiled", ["scripted", "traced", "layer", "cell", "traced layer"])
def test_torch_jit(compiled: str, caplog: pytest.LogCaptureFixture) -> None:
    x = torch.randn(3, 2, I)
    model, path, kind = {
        "scripted": lambda: (torch.jit.script(Tagger()), "encoder", "LSTM"),
        "traced": lambda: (torch.jit.trace(Tagger(), x), "encoder", "LSTM"),
        "layer": lambda: (nn.Sequential(torch.jit.script(nn.GRU(I, H))), "0", "GRU"),
        "cell": lambda: (torch.jit.script(nn.RNNCell(I, H)), "", "RNNCell"),
        "traced layer": lambda: (torch.jit.trace(Encoder(I, H), x), "", "Encoder"),
    }[compiled]()
    out_of_reach(model, path, kind, "torch.jit has compiled it", caplog)


@QUANTIZED
def test_quantized(caplog: pytest.LogCaptureFixture) -> None:
    model = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.GRU(I, H)), {nn.GRU})
    out_of_reach(model, "0", "GRU", "it is one of torch.ao.nn.quantized, for quantization", caplog)
    caplog.clear()
    cell = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.LSTMCell(I, H)), {nn.LSTMCell})
    out_of_reach(cell, "0", "LSTMCell", "it is one of torch.ao.nn.quantized", caplog)
    caplog.clear()
    prepared = torch.ao.nn.quantizable.LSTM(I, H)  # made of Cells, which are not named beside it
    out_of_reach(prepared, "", "LSTM", "it is one of torch.ao.nn.quantizable", caplog)


@pytest.mark.filterwarnings("ignore:The tensor attributes")
def test_exported(caplog: pytest.LogCaptureFixture) -> None:
    exported = torch.export.export(Tagger(), (torch.randn(3, 2, I),)).module()
    out_of_reach(exported, "encoder", "Module", "fuse the model before that", caplog)


def test_a_base_without_forward(caplog: pytest.LogCaptureFixture) -> None:
    out_of_reach(nn.RNNBase("GRU", I, H), "", "RNNBase", "which has no forward", caplog)


# ---------------------------------------------------------------- what is inside of others


@pytest.mark.parametrize("in_place", [False, True])
def test_compiled(in_place: bool, caplog: pytest.LogCaptureFixture) -> None:
    """What torch.compile has skipped for torch.nn's layer, it compiles after a reset, as the note says."""
    caplog.set_level(logging.INFO, "seqkernels")
    graphs: list[str] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph.code)
        return graph

    torch.compiler.reset()
    model: Any = Tagger()
    if in_place:
        model.compile(backend=backend)
    else:
        model = torch.compile(model, backend=backend)
    x, start = torch.randn(3, 2, I), "" if in_place else "_orig_mod."
    expected = model(x)
    report = seqkernels.fuse(model, report=True)
    assert report.changed == {f"{start}encoder": ("LSTM", "FusedLSTM")}
    (note,) = report.notes
    assert note.startswith("the model itself is compiled")
    assert note in str(report)
    assert note in lines(caplog, logging.INFO)
    assert_close(model(x), expected)
    graphs.clear()
    torch.compiler.reset()
    assert_close(model(x), expected)
    (code,) = graphs
    assert "seqkernels" in code
    assert "linear" in code
    assert not seqkernels.fuse(model, report=True).notes
    assert_close(seqkernels.unfuse(model)(x), expected)


def test_data_parallel() -> None:
    plain, x = Tagger(), torch.randn(3, 2, I)
    model = nn.DataParallel(plain)
    expected = model(x)
    assert list(seqkernels.fuse(model, report=True).changed) == ["module.encoder"]
    assert_close(model(x), expected)


def test_distributed_data_parallel() -> None:
    """Which was made before: gradients are reduced as ever, for the parameters are the same objects."""
    distributed = torch.distributed
    if not distributed.is_available():
        pytest.skip("this torch has no torch.distributed")
    x = torch.randn(3, 2, I)
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        model = nn.parallel.DistributedDataParallel(Tagger())
        found = []
        for _ in range(2):
            model(x).square().mean().backward()
            found.append({name: p.grad.clone() for name, p in model.named_parameters()})
            model.zero_grad()
            seqkernels.fuse(model, backend="native")
        assert type(model.module.encoder) is seqkernels.FusedLSTM
        assert_close(found[1], found[0])
    finally:
        distributed.destroy_process_group()
