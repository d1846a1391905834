"""What the programs refuse: one line, exit status 2, and nothing that was there before is lost."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import torch
from torch import nn

from examples.common import checkpoint, repeat, results, terminal, train
from examples.common.errors import InputError, told
from examples.language_model.__main__ import main as language_model
from examples.memory_task.__main__ import main as memory_task
from examples.music.__main__ import main as music
from examples.ner.__main__ import main as ner

SMALL = ["train", "--epochs", "1", "--sentences", "300", "--cells", "rnn", "--orders", "2"]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--seed", "99999999999999999999"),
        ("--seed", "-1"),
        ("--seeds", "1000000000"),
        ("--threads", "99999999999"),
        ("--rate", "1e300"),
        ("--device", "meta"),
        ("--out", ""),
        ("--out", "a" * 300),
        ("--data", "a\udc80"),
        ("--resu", "x"),
    ],
)
def test_nonsense_in_an_option_is_refused(
    option: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        ner(["train", option, value])
    assert ended.value.code == 2
    assert "error: " in capsys.readouterr().err.splitlines()[-1]


def test_orders_that_take_for_ever_are_refused() -> None:
    for main in (language_model, music):
        with pytest.raises(SystemExit):
            main(["train", "--orders", "500"])


def test_sizes_that_no_memory_holds_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert language_model([*SMALL, "--hidden", "1000000000000"]) == 2
    assert capsys.readouterr().err.startswith("error: expected sizes that fit into memory")


def test_an_error_without_a_file_is_told() -> None:
    assert told(OSError(28, "No space left on device")) == "no space left on device"
    assert told(RuntimeError("a mistake of the program")) is None


@pytest.mark.parametrize("change", [["--seed", "3"], ["--sentences", "200"], ["--max-size", "20"]])
def test_a_refused_resumption_leaves_the_folder_as_it_was(change: list[str]) -> None:
    assert language_model([*SMALL, "--out", "here"]) == 0
    before = {path: path.read_bytes() for path in Path("here").iterdir()}
    assert language_model([*SMALL, "--out", "here", "--resume", *change]) == 2
    assert {path: path.read_bytes() for path in Path("here").iterdir()} == before


def test_another_programs_counts_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint.save(Path("here/ngram.safetensors"), {}, {"config": {"orders": [], "vocabulary": []}})
    assert language_model(["evaluate", "--out", "here"]) == 2
    assert "expected a checkpoint of this program" in capsys.readouterr().err


def test_a_checkpoint_that_cannot_be_written_is_an_input_error() -> None:
    Path("model.safetensors.unfinished").mkdir()
    with pytest.raises(InputError, match="can be written"):
        checkpoint.save(Path("model.safetensors"), {"model": {"x": torch.zeros(1)}}, {})


@pytest.mark.parametrize("text", ["[]", "3", '{"a": 3}', '{"a": {"title": 3, "rows": 4}}', '{"a": []}'])
def test_results_of_another_kind_are_refused(text: str) -> None:
    Path("results.json").write_text(text)
    with pytest.raises(InputError, match="results of this program"):
        results.names(Path())


@pytest.mark.parametrize("seeds", [[], 3, None, [0, 5], ["a"]])
def test_seeds_of_another_kind_are_refused(seeds: object) -> None:
    Path("seeds.json").write_text(json.dumps({"seeds": seeds}))
    with pytest.raises(InputError, match="results of several seeds"):
        repeat.trained(Path())


def test_a_new_checkpoint_ends_the_medians_of_several_seeds() -> None:
    Path("seeds.json").write_text('{"seeds": [0, 1]}')
    checkpoint.save(Path("model.safetensors"), {"model": {"x": torch.zeros(1)}}, {})
    assert not Path("seeds.json").exists()


def test_parameters_that_are_no_numbers_are_not_saved() -> None:
    def loss(model: nn.Module, batch: torch.Tensor) -> train.Loss:
        return train.Loss((model(batch).sum() - torch.sqrt(model(batch) * 0).sum()), 1, 1)

    with pytest.raises(train.Diverged, match="after step 1"):
        train.fit(nn.Linear(1, 1), loss, lambda epoch: [torch.ones(1)], train.Recipe(1), path=Path("m"))
    assert not Path("m").exists()


def test_text_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.console().print("[/b] [red]x :cat:")
    terminal.console().print(terminal.table("[/b] :cat:", {"[red]": {"[/i]": 1.0}}))
    said = capsys.readouterr().out
    assert all(text in said for text in ("[/b] [red]x :cat:", "[/b] :cat:", "[/i]"))


def test_a_tune_without_end_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    Path("long.abc").write_text("X:1\nM:4/4\nK:G\n" + "A8|" * 9 + "\n")
    assert music(["play", "long.abc", "--tempo", "1"]) == 2
    assert "expected a tune of at most" in capsys.readouterr().err


def test_a_title_is_not_taken_for_mathematics() -> None:
    Path("title.abc").write_text("X:1\nT:[/b]$x_{$\nM:4/4\nK:G\nA8|\n")
    assert music(["play", "title.abc"]) == 0


def test_batches_of_one_step_are_refused() -> None:
    pytest.importorskip("sb3_contrib")
    assert memory_task(["train", "--envs", "2", "--steps", "8", "--batch", "5"]) == 2


def test_an_interruption_ends_all_trainings(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = []

    class Child:
        returncode = 1

        def __init__(self, *_: object, **__: object) -> None: ...

        def wait(self) -> None:
            raise KeyboardInterrupt

        def terminate(self) -> None:
            ended.append(self)

    monkeypatch.setattr(subprocess, "Popen", Child)
    assert ner(["train", "--seeds", "2", "--jobs", "1"]) == 130
    assert ended
