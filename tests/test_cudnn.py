"""Which inference is handed to cuDNN, and that what is handed over is the same; the rest needs no GPU."""

from __future__ import annotations

import copy

import pytest
import torch

import seqkernels
from seqkernels import _cudnn
from seqkernels.spec import LayerSpec

from .conftest import BEST_TARGETS, assert_close

needs_gpu = pytest.mark.skipif("cuda" not in BEST_TARGETS, reason="no GPU, or a build without CUDA kernels")


def is_faster(
    cell: str, dtype: torch.dtype, hidden: int, batch: int, tf32: bool = False, seq_len: int = 500
) -> bool:
    return _cudnn.is_faster(cell, dtype, tf32, seq_len, batch, hidden, 1)


def test_regions_are_where_cudnn_was_measured_to_be_faster() -> None:
    assert is_faster("gru", torch.float32, 128, 16, tf32=True)
    assert not is_faster("gru", torch.float32, 128, 16)
    assert not is_faster("gru", torch.float32, 129, 16, tf32=True)
    assert is_faster("lstm", torch.float32, 1024, 128, tf32=True)
    assert not is_faster("lstm", torch.float32, 1024, 129, tf32=True)
    assert not is_faster("lstm", torch.float16, 512, 16)


def test_two_directions_are_ours() -> None:
    assert not _cudnn.is_faster("gru", torch.float32, True, 500, 16, 128, 2)


def test_a_call_must_earn_what_handing_over_costs() -> None:
    assert is_faster("gru", torch.float32, 128, 16, tf32=True, seq_len=450)
    assert not is_faster("gru", torch.float32, 128, 16, tf32=True, seq_len=400)


def test_the_order_of_a_buffer() -> None:
    assert _cudnn.in_order([(6, 2), (0, 4), (4, 2)], 8) == (1, 2, 0)
    assert _cudnn.in_order([(5, 2), (1, 3)], 10) == (-1, 1, -1, 0, -3)


def test_a_forced_plan_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEQKERNELS_CUDA_PLAN", "persistent_grid")
    assert not is_faster("gru", torch.float32, 128, 16, tf32=True)
    monkeypatch.setenv("SEQKERNELS_CUDA_PLAN", "cudnn")
    assert is_faster("lstm", torch.bfloat16, 5, 1)
    with pytest.raises(RuntimeError, match="asks for cudnn, which cannot run this"):
        _cudnn.refuse()


def test_nothing_on_a_cpu_is_handed_over() -> None:
    x = torch.randn(3, 2, 4)
    assert not _cudnn.supports(LayerSpec("gru"), x, (x,), (x,))


@needs_gpu
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=["float16", "float32"])
@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_the_same_by_cudnn(
    name: str, dtype: torch.dtype, batch_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after a weight has changed, however that was done."""
    module = getattr(seqkernels, f"Fused{name}")(16, 64, batch_first=batch_first, device="cuda", dtype=dtype)
    native = copy.deepcopy(module)
    native.backend = "native"
    x = torch.randn(7, 5, 16, device="cuda", dtype=dtype)
    for _ in range(2):
        with torch.no_grad():
            expected = native(x)
            monkeypatch.setenv("SEQKERNELS_CUDA_PLAN", "cudnn")
            assert seqkernels.explain(module, x).kernel.endswith("cudnn forward")
            assert_close(module(x)[0], expected[0])
            monkeypatch.delenv("SEQKERNELS_CUDA_PLAN")
            for each in (module, native):
                each.weight_hh_l0.data.mul_(0.5)


@needs_gpu
def test_training_and_recording_are_not_handed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEQKERNELS_CUDA_PLAN", "cudnn")
    module = seqkernels.FusedLSTM(16, 64, device="cuda", dtype=torch.float16)
    x = torch.randn(7, 5, 16, device="cuda", dtype=torch.float16)
    with pytest.raises(RuntimeError, match="asks for cudnn, which cannot run this"):
        module(x)
    two = seqkernels.FusedLSTM(16, 64, 2, dropout=0.5, device="cuda", dtype=torch.float16)
    with torch.no_grad(), pytest.raises(RuntimeError, match="asks for cudnn, which cannot run this"):
        two(x)
    refusal = pytest.raises(RuntimeError, match="asks for cudnn, which cannot run this")
    with torch.no_grad(), refusal:
        module(torch.nn.utils.rnn.pack_sequence(list(x.unbind(1))))
