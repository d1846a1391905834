"""Results that are kept, and trainings from several seeds."""

from __future__ import annotations

import doctest
import json
from pathlib import Path

import pytest

from examples.common import cli, plot, repeat, results
from examples.common.errors import InputError
from examples.common.results import Spread
from examples.sentiment import __main__ as sentiment


@pytest.mark.parametrize("module", [results, repeat, plot], ids=lambda m: m.__name__)
def test_docstrings(module: object) -> None:
    assert doctest.testmod(module).failed == 0  # type: ignore[arg-type]


def test_a_table_is_kept_beside_others() -> None:
    results.keep(Path("out"), "train", "first", {"gru": {"loss": 0.5}})
    results.keep(Path("out"), "evaluate", "second", {"gru": {"accuracy": 1.0}})
    results.keep(Path("out"), "train", "again", {"gru": {"loss": 0.25}})
    assert results.names(Path("out")) == ["train", "evaluate"]
    assert results.read(Path("out"), "train") == ("again", {"gru": {"loss": 0.25}})
    with pytest.raises(InputError, match="expected the results of predict, found train, evaluate"):
        results.read(Path("out"), "predict")
    Path("out", results.FILE).write_text("[", encoding="utf-8")
    with pytest.raises(InputError, match="found a file of another kind"):
        results.names(Path("out"))


def test_a_band_goes_as_far_as_all_curves() -> None:
    """Texts of different seeds are not of the same length, and so neither are their trainings."""
    _, axes = plot.new()
    plot.band(axes, range(1, 5), [[1.0, 2, 3, 4], [3.0, 4, 5]], color="red", label="GRU")
    assert [list(data) for data in axes.lines[0].get_data()] == [[1, 2, 3], [2, 3, 4]]
    assert axes.collections[0].get_paths()[0].vertices[:, 1].max() == 5


def test_powers_of_ten_are_shown_as_such() -> None:
    """On a logarithmic axis: their labels are formulas, which have to be read as ones."""
    figure, axes = plot.new()
    axes.semilogy([1, 2], [1.0, 1e6])
    figure.canvas.draw()
    labels = axes.get_yticklabels()
    assert "$" in labels[0].get_text()
    assert all(label.get_parse_math() for label in labels)


def test_several_seeds_are_summed_up() -> None:
    """By row and column; what one of them lacks is left out."""
    folders = {seed: Path(f"out-{seed}") for seed in range(3)}
    for seed, folder in folders.items():
        rows = {"gru": {"loss": (0.5, 0.25, 1.0)[seed]}, "rnn": {"loss": 1.0} | ({"x": 1} if seed else {})}
        results.keep(folder, "train", "title", rows | ({"lstm": {"loss": 0.0}} if seed else {}))
    found = results.sum_up(folders, "train").spreads()
    assert found == {"gru": {"loss": Spread(0.5, 0.25, 1.0)}, "rnn": {"loss": Spread(1.0, 1.0, 1.0)}}


@pytest.fixture
def tweets() -> str:
    text = sentiment.data.write(sentiment.generate(60, seed=3))
    Path("tweets.csv").write_text(text, encoding="utf-8")
    return "tweets.csv"


def test_seeds_train_as_each_would_alone(tweets: str, capsys: pytest.CaptureFixture[str]) -> None:
    """In processes of their own; the first where a single one would be, so that `evaluate` finds it."""
    options = ["train", "--data", tweets, "--epochs", "1", "--batch", "16"]
    assert sentiment.main([*options, "--seed", "4", "--seeds", "2", "--out", "both"]) == 0
    printed = capsys.readouterr().out
    assert "median of 2 seeds (lowest–highest)" in printed
    for seed, folder in {4: "both", 5: "both/seed-5"}.items():
        assert sentiment.main([*options, "--seed", str(seed), "--out", f"one-{seed}"]) == 0
        (_, one), (_, own) = (results.read(Path(place), "train") for place in (f"one-{seed}", folder))
        assert own["recurrent"]["loss"] == one["recurrent"]["loss"]
    kept = json.loads(Path("both/seeds.json").read_text(encoding="utf-8"))
    assert kept["seeds"] == [4, 5]
    losses = kept["tables"]["train"]["rows"]["recurrent"]["loss"]
    assert len(set(losses)) == 2
    assert sentiment.main(["evaluate", "--data", tweets, "--out", "both"]) == 0
    assert sentiment.main(["evaluate", "--data", tweets, "--out", "both", "--all-seeds"]) == 0
    kept = json.loads(Path("both/seeds.json").read_text(encoding="utf-8"))
    assert len(kept["tables"]["evaluate"]["rows"]["recurrent"]["accuracy"]) == 2


def test_a_seed_that_fails_says_why(tweets: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path(tweets).write_text("5,what is this?\n", encoding="utf-8")
    assert sentiment.main(["train", "--data", tweets, "--seeds", "2", "--out", "out"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(
        "error: out/train.log: expected a training that ends, found tweets.csv:1: expected"
    )
    assert error.count("\n") == 1


def test_seeds_are_not_for_torchrun(
    tweets: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert sentiment.main(["train", "--data", tweets, "--seeds", "2"]) == 2
    assert capsys.readouterr().err == "error: --seeds: expected 1 under torchrun, found 2\n"


def test_all_seeds_of_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert sentiment.main(["evaluate", "--all-seeds"]) == 2
    assert "run `train --seeds 5` first" in capsys.readouterr().err


def test_resume_with_another_seed(tweets: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It would split, shuffle and start otherwise: the seed is what is named, not what follows from it."""
    options = ["train", "--data", tweets, "--batch", "16", "--epochs"]
    assert sentiment.main([*options, "1"]) == 0
    assert sentiment.main([*options, "2", "--resume", "--seed", "3"]) == 2
    assert "expected a training with seed = 3, found one with 0" in capsys.readouterr().err


def test_what_both_backends_trained_is_found(tweets: str) -> None:
    options = ["train", "--data", tweets, "--batch", "16", "--epochs", "1"]
    assert sentiment.main([*options, "--backend", "both"]) == 0
    assert sentiment.main(["evaluate", "--data", tweets]) == 0
    assert Path("out/sentiment/torch/mean.safetensors").exists()


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_out_is_a_folder(command: str, tweets: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        sentiment.main([command, "--data", tweets, "--out", tweets])
    assert "'tweets.csv' is a file, not a folder" in capsys.readouterr().err


def test_out_cannot_be_made(tweets: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert sentiment.main(["train", "--data", tweets, "--out", f"{tweets}/within"]) == 2
    assert capsys.readouterr().err.startswith(f"error: {tweets}/within: ")


@pytest.mark.parametrize(
    ("convert", "text"),
    [(cli.cosine, "7"), (cli.cosine, "nan"), (cli.above_zero, "0"), (cli.above_zero, "-1")],
)
def test_numbers_that_make_no_sense(convert: object, text: str) -> None:
    with pytest.raises(cli.argparse.ArgumentTypeError):
        convert(text)  # type: ignore[operator]
