"""One length for all sentences: padding that is masked, tokens that are cut, and what both cost."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from matplotlib import pyplot
from torch import Tensor

from examples.common import plot, results
from examples.common.data import Batches
from examples.common.text import Vocabulary
from examples.ner import data, lengths
from examples.ner.__main__ import main
from examples.ner.generator import generate
from examples.ner.learn import Example, Task, loss, masked_nll, pad, predict
from examples.ner.model import Tagger
from tests.conftest import assert_close, error_of


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("length", [6, 11])
def test_fixed_length_changes_no_loss(length: int, cell: str, bidirectional: bool) -> None:
    """From the longest sentence on, one length for all gives the loss of a batch and its gradients, because
    the padding is masked. If it counted as O, both would be others."""
    model = Tagger(9, 3, cell=cell, bidirectional=bidirectional)
    batch = [Example([2, 3, 4], [0, 1, 2]), Example([6, 7, 8, 2, 3, 4], [2, 0, 0, 1, 1, 0])]

    def gradients(total: Tensor) -> dict[str, Tensor]:
        model.zero_grad()
        total.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    own = loss(model, batch)
    without = gradients(own.sum)
    model.length = length
    fixed = loss(model, batch)
    assert fixed[1:] == own[1:] == (9, 9)
    assert_close(fixed.sum, own.sum)
    assert_close(gradients(fixed.sum), without, torch.float32)

    log_p = model(*pad([example.ids for example in batch], length))
    assert log_p.shape == (2, length, 3)
    unmasked, _ = pad([example.tags for example in batch], length, fill=0)
    total = masked_nll(log_p, unmasked)
    assert total.item() / unmasked.numel() != pytest.approx(own.sum.item() / own.terms, rel=1e-3)
    assert total.item() > own.sum.item() + 0.1
    assert error_of(gradients(total)["head.bias"], without["head.bias"]) > 1e-3


def test_what_is_cut_is_not_read() -> None:
    """A length of 2 gives the loss of the first two tokens, and O for all others, whatever the model says."""
    model = Tagger(9, 3)
    whole = [Example([2, 3, 4], [0, 1, 2]), Example([5], [1])]
    cut = [Example([2, 3], [0, 1]), Example([5], [1])]
    expected = loss(model, cut)
    model.length = 2
    found = loss(model, whole)
    assert found[1:] == (3, 3)
    assert_close(found.sum, expected.sum)

    with torch.no_grad():
        model.head.bias.copy_(torch.tensor([0.0, 100.0, 0.0]))
    task = Task(Vocabulary(["a"]), ["O", "B-X", "I-X"])
    assert predict(model, task, [["a"] * n for n in (4, 1)]) == [["B-X", "B-X", "O", "O"], ["B-X"]]


def test_lengths_to_compare() -> None:
    examples = [Example([2] * n, [0] * n) for n in (7, 2, 3)]
    chosen = {"none": None, "longest": 7, "twice-longest": 14, "half-longest": 3}
    assert lengths.choices(examples) == chosen
    assert lengths.shares(Batches(examples, 3), 3) == {"padding": 1 - 8 / 9, "cut": 1 - 8 / 12}
    assert lengths.shares(Batches(examples, 1), None) == {"padding": 0, "cut": 0}


def test_speeds_are_of_real_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that goes on by a second whenever it is looked at."""
    monkeypatch.setattr(lengths, "time", SimpleNamespace(perf_counter=itertools.count().__next__))
    batches = [[Example([2] * 3, [0] * 3), Example([5], [1])], [Example([3] * 5, [2] * 5)]]
    models = {f"{length}": Tagger(9, 3, length=length) for length in (None, 8, 2)}
    assert lengths.speeds(models, batches, rounds=2) == {"None": 9, "8": 9, "2": 5}


@pytest.fixture
def sentences(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The options that train on a small file; no picture is saved, which would take longer than all else."""
    monkeypatch.setattr(plot, "save", lambda figure, path: pyplot.close(figure))
    Path("file.conll").write_text(data.write(generate(60, seed=3)))
    return ["--data", "file.conll", "--batch", "16", "--epochs", "1"]


def test_length_is_kept(sentences: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *sentences, "--length", "4"]) == 0
    assert main(["evaluate", "--data", "file.conll"]) == 0
    capsys.readouterr()
    assert main(["predict", "The club left Paris on Monday ."]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line.endswith("O  (not read)") for line in printed[:7]] == [False] * 4 + [True] * 3
    assert printed[7] == "trained with --length 4: the last 3 tokens were not read"
    assert main(["predict", "The club left Paris"]) == 0
    assert "not read" not in capsys.readouterr().out
    assert main(["train", *sentences, "--length", "5", "--resume"]) == 2
    error = capsys.readouterr().err
    assert error.endswith("expected a training with length = 5, found one with 4\n")
    assert error.count("\n") == 1


def test_lengths_are_compared(sentences: list[str]) -> None:
    assert main(["lengths", *sentences]) == 0
    title, rows = results.read(Path("out/ner"), "lengths")
    assert title == "two-way, sentences cut or padded to N tokens"
    assert list(rows) == ["none", "longest", "twice-longest", "half-longest"]
    assert list(rows["longest"]) == ["tokens/s", "padding", "cut", "loss", "F1", "N"]
    assert rows["longest"]["loss"] == pytest.approx(rows["none"]["loss"], rel=1e-4)
    assert rows["twice-longest"]["loss"] == pytest.approx(rows["none"]["loss"], rel=1e-4)
    assert rows["half-longest"]["loss"] != pytest.approx(rows["none"]["loss"], rel=1e-4)
    assert rows["none"]["padding"] < rows["longest"]["padding"] < rows["twice-longest"]["padding"]
    assert rows["none"]["cut"] == rows["twice-longest"]["cut"] == 0 < rows["half-longest"]["cut"]
