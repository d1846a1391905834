"""Tunes by rules and by models, and the program around them."""

from __future__ import annotations

import doctest
import importlib
import wave
from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from matplotlib import pyplot

from examples.common import checkpoint, plot, results
from examples.language_model.model import RecurrentLM
from examples.language_model.ngram import NGram
from examples.music import abc, data, generator, measure, report, score, sound, writer
from examples.music.__main__ import main

SMALL = ["--tunes", "40", "--hidden", "16", "--samples", "2", "--orders", "3", "--length", "64"]


@pytest.mark.parametrize("name", ["abc", "data", "generator", "keys", "measure"])
def test_docstrings(name: str) -> None:
    result = doctest.testmod(importlib.import_module(f"examples.music.{name}"))
    assert result.attempted > 0
    assert result.failed == 0


# ---------------------------------------------------------------- the generator


def test_generated_tunes_keep_all_rules() -> None:
    Path("book.abc").write_text(generator.book(150, seed=5))
    tunes, refused = abc.read_book(Path("book.abc"))
    assert (len(tunes), refused) == (150, [])
    made = measure.measure([data.text_of(tune) for tune in tunes])
    assert made["valid bars"] == made["ends on tonic"] == made["repeats close"] == 1
    assert made["bars again"] > 0.2
    assert {tune.fields["R"] for tune in tunes} == {"jig", "reel", "waltz"}
    for tune in tunes:
        parts = sum(bar.first for bar in tune.bars)
        assert parts == 2
        assert all(note.pitch is None or 60 < note.pitch <= 85 for note in score.notes(tune))


def test_one_valid_bar_less_is_seen() -> None:
    """The checker is no rubber stamp: a note more in any bar of a tune makes that bar invalid."""
    tune = abc.parse(generator.book(1, seed=0))
    for n, bar in enumerate(tune.bars):
        bar.events.append(score.Event(Fraction(1, 8), (60,)))
        assert [n] == [m for m, problem in enumerate(score.check(tune)) if problem is not None]
        bar.events.pop()


# ---------------------------------------------------------------- writing


def test_counts_and_network_draw_by_their_probabilities() -> None:
    """The share of each first token is its probability; the same seed gives the same."""
    torch.manual_seed(3)
    network = RecurrentLM(6, 8, "gru").eval()
    with torch.no_grad():
        scores = network(torch.tensor([[5], [2]]))[0][-1, 0].double()
    scores[:2] = -torch.inf
    counts = NGram.count([2, 3, 4, 2, 3, 3, 5, 2, 4, 4, 3, 2, 5] * 5, 2, 6)
    below = counts.distribution([2])
    below[:2] = 0
    for model, expected in ((network, scores.softmax(0)), (counts, below / below.sum())):
        drawn = writer.write(model, [5, 2], 3000, end=5, limit=1, seed=1)
        shares = torch.tensor([sum(own == [token] for own in drawn) for token in range(5)]) / 3000
        assert torch.allclose(shares.double(), expected[:5], atol=0.03)
        assert writer.write(model, [5, 2], 3, end=5, limit=9, seed=1) == writer.write(
            model, [5, 2], 3, end=5, limit=9, seed=1
        )
    for model in (network, NGram.count([2, 3, 3, 4, 5] * 9, 3, 6)):
        greedy = writer.write(model, [2], 2, end=5, limit=4, temperature=0)
        assert greedy[0] == greedy[1] == writer.write(model, [2], 1, end=5, limit=4, temperature=1e-300)[0]


def test_a_tune_ends_at_its_end() -> None:
    counts = NGram.count([2, 3, 4, 5] * 20, 3, 6)
    assert writer.write(counts, [5], 1, end=5, temperature=0) == [[2, 3, 4]]
    assert writer.write(counts, [5], 1, end=1, limit=7, temperature=0) == [[2, 3, 4, 5, 2, 3, 4]]


def test_streams_have_every_tune_once() -> None:
    tunes = [[n, n, 9] for n in range(5)]
    first, second = data.stream(tunes, "0 0").tolist(), data.stream(tunes, "0 1").tolist()
    assert first != second
    assert sorted(first) == sorted(second) == sorted([9, *(i for own in tunes for i in own)])
    assert all(b in (a, 9) for a, b in pairwise(first) if a != 9)


# ---------------------------------------------------------------- the program


@pytest.fixture
def unpainted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures take longer than all the rest; one test saves them."""
    monkeypatch.setattr(plot, "save", lambda figure, path: pyplot.close(figure))


def train(*options: str) -> int:
    return main(["train", *SMALL, "--batch", "4", "--epochs", "1", *options])


def trained(folder: str) -> tuple[checkpoint.Tensors, list[float]]:
    tensors, saved = checkpoint.load(Path(folder, "recurrent.safetensors"))
    return tensors, saved["history"]["losses"]


@pytest.mark.usefixtures("unpainted")
def test_resume_equals_uninterrupted() -> None:
    assert train("--epochs", "2", "--out", "whole") == 0
    assert train("--out", "part") == 0
    assert train("--epochs", "2", "--out", "part", "--resume") == 0
    (whole, losses), (part, resumed) = trained("whole"), trained("part")
    assert resumed == losses
    assert all(torch.equal(whole["model"][name], part["model"][name]) for name in whole["model"])


@pytest.mark.usefixtures("unpainted")
def test_backends_agree() -> None:
    assert train("--backend", "both") == 0
    ours, theirs = trained("out/music")[1], trained("out/music/torch")[1]
    assert ours == pytest.approx(theirs, rel=1e-4)


@pytest.mark.usefixtures("unpainted")
def test_two_processes_train_like_one(two_processes: Callable[..., None]) -> None:
    assert train("--out", "one") == 0
    two_processes(main, ["train", *SMALL, "--batch", "4", "--epochs", "1", "--out", "two"])
    assert trained("two")[1] == pytest.approx(trained("one")[1], rel=1e-4)


def test_train_evaluate_predict_play(capsys: pytest.CaptureFixture[str]) -> None:
    assert train() == 0
    printed = capsys.readouterr().out
    assert "generated data" in printed
    assert all(name in printed for name in ("3-gram", "LSTM", "the tunes"))
    assert Path("out/music/music.png").stat().st_size > 0
    assert main(["evaluate", "--data", "out/music/generated-train.abc", "--samples", "2"]) == 0
    assert "on 40 tunes of" in capsys.readouterr().out

    predict = ["predict", "--kind", "jig", "--key", "A major", "--begin", "|:A3 c2e|", "--seed", "4"]
    assert main(predict) == 0
    first = capsys.readouterr().out
    assert "R:jig\nM:6/8\nL:1/8\nK:A\n|:A3 c2e|" in first
    assert "bars are valid" in first
    text = Path("out/music/tune.abc").read_text()
    assert text in first
    tune = abc.parse(text)
    whole = max(note.onset + note.duration for note in score.notes(tune))
    with wave.open("out/music/tune.wav") as file:
        assert file.getnframes() == round(float(whole) * 60 / 110 * 8 / 3 * sound.RATE)
    assert main(predict) == 0
    assert capsys.readouterr().out == first
    assert main([*predict[:-1], "5"]) == 0
    assert capsys.readouterr().out != first

    Path("two.abc").write_text(generator.book(2, seed=1))
    assert main(["play", "two.abc", "--number", "2", "--tempo", "240", "--out", "played"]) == 0
    assert Path("played/tune.png").stat().st_size > 0
    bars = [bar.length for bar in abc.read_book(Path("two.abc"))[0][1].bars]
    assert f"{len(bars)} of {len(bars)} bars are valid" in capsys.readouterr().out


def test_pictures_of_any_tune() -> None:
    """A text without notes, with wrong bars, with flats: drawn all the same."""
    for text in ("", "K:C\n?|", "M:4/4\nL:1/8\nK:Gm\n|:B8|[Be]3|z8:|"):
        path = report.draw_tune(abc.parse(text), "test", Path("tune.png"))
        assert path.stat().st_size > 0


@pytest.mark.usefixtures("unpainted")
def test_own_tunes_that_cannot_be_read(capsys: pytest.CaptureFixture[str]) -> None:
    """They are skipped and counted, or refused with their line."""
    book = generator.book(12, seed=0)
    Path("book.abc").write_text(
        "A book\n\n" + book + "\nX:13\nT:odd\nM:4/4\nK:C\nABc$|\n\n", encoding="utf-8"
    )
    line = Path("book.abc").read_text().split("\n").index("ABc$|") + 1
    options = ["--data", "book.abc", "--batch", "2"]
    assert train(*options) == 0
    assert f"1 of 13 tunes skipped: book.abc:{line}: expected a symbol" in capsys.readouterr().out
    assert train(*options, "--strict") == 2
    assert f"error: book.abc:{line}: expected a symbol of ABC's subset, found '$'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "book.abc: expected a file that can be read"),
        ("", "book.abc: expected text"),
        ("some prose\nand more\n", "book.abc: expected tunes in ABC notation, each of which begins with X:"),
        ("X:1\nM:4/4\nK:C\n", "book.abc:1: expected a tune with notes, found a header alone"),
        ("X:1\nM:4/4\nK:C\nA8|\n", "book.abc: expected 10 tunes or more, found 1"),
        ("X:1\nT:x\nM:4/4\nK:C\nA;|\n", "book.abc:5: expected a symbol of ABC's subset, found ';'"),
    ],
)
def test_files_that_do_not_do(content: str | None, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    if content is not None:
        Path("book.abc").write_text(content)
    assert train("--data", "book.abc") == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1


@pytest.mark.usefixtures("unpainted")
def test_requests_that_cannot_be_met(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict"]) == 2
    assert "run `train` first" in capsys.readouterr().err
    assert train("--batch", "9999") == 2
    assert "a smaller --batch" in capsys.readouterr().err
    assert train() == 0
    assert train("--epochs", "2", "--resume", "--hidden", "8") == 2
    assert "expected a training with hidden = 8, found one with 16" in capsys.readouterr().err
    assert main(["predict", "--kind", "polka"]) == 2
    assert "expected one of jig, reel, waltz, found 'polka'" in capsys.readouterr().err
    assert main(["predict", "--begin", "&ß"]) == 2
    assert "characters that the training had, found '&ß'" in capsys.readouterr().err
    assert main(["play", "out/music/generated-train.abc", "--number", "99"]) == 2
    assert "expected a tune with X:99, found 40 others" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["predict", "--tempo", "-3"],
        ["predict", "--tempo", "0"],
        ["predict", "--temperature", "-1"],
        ["predict", "--temperature", "nan"],
        ["predict", "--key", "H"],
        ["predict", "--meter", "5/7"],
        ["train", "--samples", "0"],
        ["train", "--dropout", "1"],
        ["play"],
    ],
)
def test_nonsense_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert "error: " in capsys.readouterr().err


@pytest.mark.slow
def test_network_counts_what_ngrams_cannot() -> None:
    """With fewer tunes and half the training already, more of its bars add up than of the counts'."""
    assert main(["train", "--epochs", "4", "--tunes", "400", "--orders", "3", "--samples", "16"]) == 0
    _, rows = results.read(Path("out/music"), "train")
    assert rows["LSTM"]["valid bars"] > 2 * rows["3-gram"]["valid bars"]
    assert rows["LSTM"]["perplexity"] < 0.9 * rows["3-gram"]["perplexity"]
