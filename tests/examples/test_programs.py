"""What every program that classifies text must do alike, on small files of generated data."""

from __future__ import annotations

import doctest
import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from matplotlib import pyplot

from examples.common import checkpoint, plot
from examples.duplicates import __main__ as duplicates
from examples.ner import __main__ as ner
from examples.sentiment import __main__ as sentiment


class Program(NamedTuple):
    """A program's main, its data as the text of a file, and the names of the models that it trains."""

    main: Callable[[list[str]], int]
    text: str
    models: tuple[str, ...]


PROGRAMS = {
    "sentiment": Program(
        sentiment.main, sentiment.data.write(sentiment.generate(100, seed=3)), ("bayes", "mean", "recurrent")
    ),
    "ner": Program(ner.main, ner.data.write(ner.generate(60, seed=3)), ("one-way", "two-way")),
    "duplicates": Program(
        duplicates.main, duplicates.data.write(duplicates.generate(200, seed=3)), ("mean", "recurrent")
    ),
}
MODULES = {
    "sentiment": ("bayes", "data", "generator", "learn", "tokenizer"),
    "ner": ("data", "generator", "learn", "lengths", "model", "spans"),
    "duplicates": ("data", "generator", "groups", "learn", "loss"),
}


@pytest.fixture(params=PROGRAMS)
def program(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Program:
    """Each program, its data in the file `data`; it saves no picture, which takes longer than all the
    rest."""
    monkeypatch.setattr(plot, "save", lambda figure, path: pyplot.close(figure))
    made = PROGRAMS[request.param]
    Path("data").write_text(made.text, encoding="utf-8")
    return made


def train(program: Program, out: str, *options: str) -> None:
    assert program.main(["train", "--data", "data", "--out", out, "--batch", "16", *options]) == 0


def trained(out: str, name: str) -> tuple[checkpoint.Tensors, list[float]]:
    """The tensors in a checkpoint, and the losses that led to them."""
    tensors, data = checkpoint.load(Path(out) / f"{name}.safetensors")
    return tensors, data["history"]["losses"]


@pytest.mark.parametrize("name", [f"{name}.{module}" for name, own in MODULES.items() for module in own])
def test_docstrings(name: str) -> None:
    module = importlib.import_module(f"examples.{name}")
    globs = {**vars(module), "torch": torch}
    assert doctest.testmod(module, globs=globs).failed == 0


def test_resume_equals_uninterrupted(program: Program) -> None:
    train(program, "whole", "--epochs", "2")
    train(program, "part", "--epochs", "1")
    train(program, "part", "--epochs", "2", "--resume")
    for name in program.models:
        (whole, losses), (part, resumed) = trained("whole", name), trained("part", name)
        assert resumed == losses
        assert whole["model"].keys() == part["model"].keys()
        assert all(torch.equal(whole["model"][key], part["model"][key]) for key in whole["model"])


def test_backends_train_alike(program: Program) -> None:
    train(program, "out", "--epochs", "1", "--backend", "both")
    for name in program.models:
        losses, theirs = trained("out", name)[1], trained("out/torch", name)[1]
        assert losses == pytest.approx(theirs, rel=1e-4)


def test_reset_before(program: Program, capsys: pytest.CaptureFixture[str]) -> None:
    """All programs have the GRU whose reset gate comes before the product, and none takes another for it."""
    train(program, "out", "--epochs", "1", "--cell", "gru-before")
    _, data = checkpoint.load(Path("out", f"{program.models[-1]}.safetensors"))
    assert data["config"]["cell"] == "gru-before"
    assert program.main(["evaluate", "--data", "data", "--out", "out"]) == 0
    capsys.readouterr()
    options = ["train", "--data", "data", "--out", "out", "--batch", "16", "--epochs", "2"]
    assert program.main([*options, "--resume", "--cell", "gru"]) == 2
    assert "found one with gru-before" in capsys.readouterr().err
    assert program.main([*options, "--cell", "gru-before", "--backend", "torch"]) == 2
    assert "expected fused for gru-before, which torch.nn does not have" in capsys.readouterr().err


def test_two_processes_train_like_one(
    program: Program, two_processes: Callable[[Callable[[list[str]], int], list[str]], None]
) -> None:
    """The same losses, though each process has only its part of each batch."""
    options = ["train", "--data", "data", "--batch", "16", "--epochs", "1", "--out"]
    assert program.main([*options, "one"]) == 0
    two_processes(program.main, [*options, "two"])
    for name in program.models:
        (one, losses), (two, shared) = trained("one", name), trained("two", name)
        assert shared == pytest.approx(losses, rel=1e-4)
        assert all(torch.allclose(one["model"][key], two["model"][key], atol=1e-4) for key in one["model"])


@pytest.mark.parametrize("program", ["sentiment", "ner"], indirect=True)
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--data", "few"], "error: few: expected data for every process, found batches of"),
        (["--data", "data", "--batch", "1"], "error: --batch: expected 2 or more, one for each process"),
    ],
    ids=["data", "batch"],
)
def test_too_little_for_two_processes(
    options: list[str],
    expected: str,
    program: Program,
    two_processes: Callable[[Callable[[list[str]], int], list[str]], None],
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Each process says so in one line, and none of them waits for the other."""
    separator = "\n\n" if "\n\n" in program.text else "\n"
    Path("few").write_text(separator.join(program.text.split(separator)[:2]) + "\n", encoding="utf-8")
    two_processes(lambda arguments: int(program.main(arguments) != 2), ["train", *options])
    errors = capfd.readouterr().err
    assert (errors.count(expected), errors.count("\n")) == (2, 2)


@pytest.mark.parametrize(
    ("program", "draw"),
    [("sentiment", sentiment.picture.draw), ("ner", ner.picture.draw)],
    indirect=["program"],
)
def test_picture_of_several_seeds(
    program: Program, draw: Callable[[dict[int, Path], Path], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every trained model has a band with the curves of all seeds, each by its epochs."""
    folders = {seed: Path(f"out-{seed}") for seed in (4, 5)}
    for seed, folder in folders.items():
        train(program, str(folder), "--epochs", "2", "--seed", str(seed))
    bands: dict[str, list[list[float]]] = {}
    original = plot.band

    def band(
        axes: object, x: Sequence[float], curves: list[list[float]], *, label: str, **style: Any
    ) -> None:
        assert all(len(curve) == len(x) for curve in curves)
        bands[label] = curves
        original(axes, x, curves, label=label, **style)

    monkeypatch.setattr(plot, "band", band)
    draw(folders, Path("both"))
    for name in program.models:
        saved = [checkpoint.load(folder / f"{name}.safetensors")[1] for folder in folders.values()]
        measured = [
            [epoch.get("accuracy", epoch.get("F1")) for epoch in own["history"]["epochs"]] for own in saved
        ]
        assert bands[name] == [curve if len(curve) > 1 else curve * 2 for curve in measured]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "nowhere: expected a file that can be read"),
        (b"", "expected text"),
        (b"ok\n\xff", ":2: expected UTF-8"),
    ],
)
def test_unreadable_data_is_one_line(
    content: bytes | None, expected: str, program: Program, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        Path("nowhere").write_bytes(content)
    assert program.main(["train", "--data", "nowhere"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: nowhere")
    assert expected in error
    assert error.count("\n") == 1


def test_nothing_runs_before_a_training(program: Program, capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["evaluate", "--data", "data"]) == 2
    assert "run `train` first" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("program", "other"), [("sentiment", "duplicates"), ("duplicates", "sentiment")], indirect=["program"]
)
def test_checkpoints_of_another_program(
    program: Program, other: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The two name their models alike, and so the files."""
    train(program, "out", "--epochs", "1")
    assert PROGRAMS[other].main(["evaluate", "--out", "out"]) == 2
    assert "expected a checkpoint of this program, found one of another" in capsys.readouterr().err


def test_generated_data_is_announced(program: Program, capsys: pytest.CaptureFixture[str]) -> None:
    train(program, "out", "--epochs", "1")
    capsys.readouterr()
    assert program.main(["evaluate", "--out", "out"]) == 0
    assert "generated data" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["train", "evaluate", "predict"])
def test_help(command: str, program: Program, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        program.main([command, "--help"])
    assert "--out" in capsys.readouterr().out
