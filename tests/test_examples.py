"""What readers try first: the examples, the docstrings, and `python -m seqkernels`."""

from __future__ import annotations

import doctest
import runpy
from pathlib import Path
from types import ModuleType

import pytest
import torch

import seqkernels
from seqkernels import functional, fusion, init, keras, models, modules, plan


@pytest.mark.parametrize(
    "module", [seqkernels, functional, fusion, init, keras, models, modules, plan], ids=lambda m: m.__name__
)
def test_docstrings(module: ModuleType) -> None:
    names = {"torch": torch, "seqkernels": seqkernels, "model": torch.nn.Sequential(torch.nn.GRU(3, 4))}
    result = doctest.testmod(module, extraglobs=names)
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.filterwarnings("ignore:'seqkernels.__main__' found in sys.modules")
def test_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_module("seqkernels", run_name="__main__")
    printed = capsys.readouterr().out
    assert printed.startswith(f"seqkernels       {seqkernels.__version__}")
    assert "CPU kernels" in printed


@pytest.mark.slow
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_char_lm(cell: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rich")
    pytest.importorskip("matplotlib")
    from examples import char_lm

    monkeypatch.chdir(tmp_path)
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 200)
    arguments = ["--cell", cell, "--text", str(text), "--steps", "4"]
    arguments += ["--hidden", "8", "--batch", "2", "--length", "20"]
    assert char_lm.main(arguments) == 0
    assert (tmp_path / "out" / "char_lm.png").stat().st_size > 0
