"""What readers try first: the examples, the docstrings, and `python -m seqkernels`."""

from __future__ import annotations

import doctest
import importlib
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
def test_command_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["seqkernels"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("seqkernels", run_name="__main__")
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"seqkernels       {seqkernels.__version__}")
    assert "CPU kernels" in printed


@pytest.fixture
def char_lm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The demo, and a text for it."""
    for package in ("rich", "matplotlib", "safetensors"):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 200)
    return importlib.import_module("examples.char_lm")


SMALL = ["--text", "text.txt", "--hidden", "8", "--batch", "2", "--length", "20"]


@pytest.mark.slow
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_char_lm(cell: str, char_lm: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert char_lm.main(["--cell", cell, "--steps", "4", "--seconds", "1.5", *SMALL]) == 0
    printed = capsys.readouterr().out
    assert "losses agree to 4 digits in the first 4 steps" in printed
    assert "learns on" in printed
    assert Path("out/char_lm.png").stat().st_size > 0


def test_char_lm_is_not_cut_off(char_lm: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    """On a machine too slow for all steps side by side, fewer are compared, and that is said."""
    assert char_lm.main(["--steps", "1000000", "--seconds", "0.2", *SMALL]) == 0
    printed = capsys.readouterr().out
    assert "steps are compared: so many take half of --seconds here" in printed
    assert "losses agree" in printed


def test_char_lm_compares_neighbours(char_lm: ModuleType) -> None:
    """The speed is that of pairs of steps, so a machine that becomes slower for both changes nothing; where
    steps differ much, it says so."""
    model = char_lm.CharModel(torch.nn.GRU, 3, 4, 1)
    slow, fast = (char_lm.Run(name, model) for name in ("slow", "fast"))
    fast.seconds = [1.0, 1.0, 1.0, 3.0, 3.0, 3.0, 9.0]
    slow.seconds = [2 * own for own in fast.seconds]
    assert char_lm.speedup([slow, fast], 7) == (2.0, 2.0, 2.0)
    assert char_lm.disturbed([slow, fast], 7) == pytest.approx(1 / 3)
    assert char_lm.disturbed([slow, fast], 3) == 0
    slow.losses, fast.losses = [1.0, 0.5, 0.25], [1.0, 0.5001, 0.25]
    assert char_lm.disagreements([slow, fast]) == [1]


def test_char_lm_says_when_the_machine_is_busy(char_lm: ModuleType) -> None:
    assert char_lm.disturbances(0.05, False, 3.0) == ""
    assert char_lm.disturbances(0.05, True, 1.25) == "other programs keep 1.2 cores busy"
    assert "differ from the median time by 40% or more" in char_lm.disturbances(0.4, False, 0.0)


def test_other_programs_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the cores that are left for so many threads; this process is not among the others."""
    from examples.common import machine

    seconds = iter([(100.0, 10.0, 50.0), *[(115.0, 15.0, 60.0)] * 3])  # all, own, clock: 1 core in 10 seconds
    with monkeypatch.context() as patched:
        patched.setattr(machine, "_seconds", lambda: next(seconds))
        patched.setattr(machine.os, "cpu_count", lambda: 2)
        others = machine.Others()
        assert others.cores() == 1.0
        assert others.in_the_way(2)
        assert not others.in_the_way(1)
    busy, own, clock = machine._seconds() or (1.0, 0.0, 1.0)  # as on a system that does not tell
    assert busy > own >= 0 < clock
    monkeypatch.setattr(machine, "STAT", tmp_path / "nowhere")
    assert machine.Others().cores() == 0.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seconds", "-1"], "'-1' is not"),
        (["--seconds", "0"], "'0' is not above 0"),
        (["--steps", "0"], "'0' is not a positive whole number"),
        (["--batch", "1000"], "the text has 9,000 characters"),
        (["--text", "nowhere"], "--text nowhere"),
        (["--out", "."], "--out .: a folder"),
        (["--device", "abacus"], "abacus"),
    ],
)
def test_char_lm_refuses(
    arguments: list[str], message: str, char_lm: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        char_lm.main([*SMALL, *arguments])
    assert message in capsys.readouterr().err
