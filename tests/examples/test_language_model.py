"""N-grams against their equations, truncated back-propagation against the whole, one against the other."""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from examples.common import books, checkpoint, results
from examples.common.errors import InputError
from examples.common.layers import CELLS
from examples.common.text import Vocabulary
from examples.language_model import data, generator, report
from examples.language_model.__main__ import load, main, read_probes
from examples.language_model.model import (
    RecurrentLM,
    TruncatedBackpropagation,
    log_probabilities,
    perplexity,
    sample,
)
from examples.language_model.ngram import NGram
from tests.conftest import assert_close

SMALL = ["--sentences", "300", "--orders", "2", "3", "--hidden", "16", "--cells", "lstm", "--batch", "8"]
TRAINED = argparse.Namespace(out=Path("out/language_model"), device=torch.device("cpu"))
A, B, C = 0, 1, 2


# ---------------------------------------------------------------- n-grams


def test_kneser_ney_by_hand() -> None:
    """a b a c a b: bigrams ab 2, ba 1, ac 1, ca 1, so n1 = 3, n2 = 1 and D = 3/5. Below, a follows b and c, b
    follows a, c follows a: counts 2, 1, 1, n1 = 2, n2 = 1, D = 1/2, three different tokens of four in all."""
    model = NGram.count([A, B, A, C, A, B], order=2, vocabulary=3)
    below = {A: (2 - 0.5) / 4 + 0.5 * 3 / 4 / 3, B: (1 - 0.5) / 4 + 0.5 * 3 / 4 / 3}
    assert model.probability([], A) == pytest.approx(below[A])
    # after a: b twice, c once
    assert model.probability([A], B) == pytest.approx((2 - 0.6) / 3 + 0.6 * 2 / 3 * below[B])
    assert model.probability([A], A) == pytest.approx(0.6 * 2 / 3 * below[A])
    assert model.probability([C, A], B) == model.probability([A], B)  # more context than it has counts for


def test_unseen_context_backs_off() -> None:
    model = NGram.count([A, B, A, B, C], order=3, vocabulary=4)
    assert model.probability([C, C], A) == pytest.approx(model.probability([C], A))
    assert model.probability([3], A) == pytest.approx(model.probability([], A))


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_probabilities_sum_to_one(order: int) -> None:
    tokens = torch.randint(0, 6, (300,)).square().remainder(7).tolist()
    model = NGram.count(tokens, order, vocabulary=9)  # two tokens never occur
    for context in ([], [1], [4, 1], [1, 4, 2, 1], [8], [8, 1]):
        distribution = model.distribution(context)
        assert distribution.sum().item() == pytest.approx(1)
        assert (distribution > 0).all()
        single = [model.probability(context, token) for token in range(9)]
        assert_close(distribution, torch.tensor(single, dtype=torch.float64))


def test_ngram_survives_storage_and_counts_its_bytes() -> None:
    model = NGram.count([A, B, A, C, A, B], order=2, vocabulary=3)
    again = NGram.from_tensors(model.tensors(), vocabulary=3)
    assert again.tables == model.tables
    assert report.memory(model) == 4 * (3 * 2 + 4 * 3)  # 3 unigrams, 4 bigrams, each with its count


def test_perplexity_of_both_kinds_by_hand() -> None:
    ids = [A, B, B, C]
    model = NGram.count([A, B, A, C, A, B], order=2, vocabulary=3)
    p = model.probability([A], B) * model.probability([B], B) * model.probability([B], C)
    assert perplexity(log_probabilities(model, torch.tensor(ids))) == pytest.approx(p ** (-1 / 3))
    network = RecurrentLM(3, 8, "gru").eval()
    scores, _ = network(torch.tensor(ids[:-1])[:, None])
    expected = scores[range(3), 0, ids[1:]].mean().neg().exp().item()
    for length in (512, 2):
        log_p = log_probabilities(network, torch.tensor(ids), length)
        assert perplexity(log_p) == pytest.approx(expected, rel=1e-5)


def test_known_words_and_all() -> None:
    """Two tokens of five are unknown; the places where they are to be told do not count among the known."""
    lines = [["a", "?", "b", "!", "a", "b"]]
    config = {"vocabulary": ["<PAD>", "<UNK>", "a", "b"], "level": "word"}
    ids = [2, 1, 3, 1, 2, 3]
    models = {"2-gram": NGram.count(ids, 2, 4), "GRU": RecurrentLM(4, 8, "gru").eval()}
    rows = report.compare(models, lines, [], config)
    for name, model in models.items():
        log_p = log_probabilities(model, torch.tensor(ids)).tolist()
        assert rows[name]["perplexity"] == pytest.approx(math.exp(-sum(log_p) / 5))
        assert rows[name]["known words"] == pytest.approx(math.exp(-(log_p[1] + log_p[3] + log_p[4]) / 3))
    all_known = report.compare(models, [["a", "b"]], [], config)
    assert all("known words" not in row for row in all_known.values())


def test_what_training_takes() -> None:
    """More gates keep more for the backward pass; of parameters nothing counts, twice the rows keep twice."""

    def kept(cell: str, batch: int) -> float:
        part = data.parts(torch.arange(48 * batch + 1) % 5, batch, 48)[0]
        model = RecurrentLM(5, 64, cell).train()
        found = report.costs(model, part, [{"tokens/s": 3.0}, {"tokens/s": 5.0}])
        assert found["tokens/s"] == 4.0
        assert not model.training
        return found["kB for backward"]

    rnn, gru, lstm = (kept(cell, 4) for cell in ("rnn", "gru", "lstm"))
    assert rnn < gru < lstm
    assert kept("lstm", 8) == pytest.approx(2 * lstm, rel=0.02)
    assert rnn * 1000 > 4 * 48 * 4 * 64 * 2  # at least embedded tokens and states


# ---------------------------------------------------------------- text


def test_every_paragraph_of_the_book_is_there_once() -> None:
    text = books.language_reference()
    paragraphs = text.strip("\n").split("\n\n")
    assert len(set(paragraphs)) == len(paragraphs) > 1000
    assert len(text.split()) > 30_000


def test_a_python_without_its_reference(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    assert main(["train", "--book"]) == 2
    assert "--book: expected a Python with the module pydoc_data" in capsys.readouterr().err


def test_unknown_words_are_expected() -> None:
    """By default a word that training has once is unknown, so that what is new later has been seen, too."""
    Path("text.txt").write_text("the dog barks\n" * 20 + "the cat sleeps\n" + "the dog sings\n" * 3)
    assert main(["train", "--data", "text.txt", *SMALL, "--epochs", "1", "--batch", "2"]) == 0
    vocabulary = checkpoint.load(TRAINED.out / "ngram.safetensors")[1]["config"]["vocabulary"]
    assert set(vocabulary) == {"<PAD>", "<UNK>", "the", "dog", "barks", "\n"}
    rows = results.read(TRAINED.out, "train")[1]
    assert all(row["known words"] != row["perplexity"] for row in rows.values())


def test_tokens_and_back() -> None:
    tokens = data.tokenize("Don't stop (ever), Anna!", "word")
    assert tokens == ["don't", "stop", "(", "ever", ")", ",", "anna", "!"]
    assert data.join([*tokens, "\n", "yes"], "word") == "don't stop (ever), anna!\nyes"
    assert data.join(data.tokenize("a b", "char"), "char") == "a b"


def test_parts_follow_each_other() -> None:
    parts = data.parts(torch.arange(32), batch=3, length=4)
    assert [part.inputs.size(0) for part in parts] == [4, 4, 2]
    assert [part.first for part in parts] == [True, False, False]
    whole = torch.cat([part.inputs for part in parts])
    assert torch.equal(whole, torch.stack([torch.arange(10) + 10 * n for n in range(3)], 1))
    assert all(torch.equal(part.targets, part.inputs + 1) for part in parts)
    with pytest.raises(ValueError, match="3 tokens"):
        data.parts(torch.arange(3), batch=3, length=4)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("the dog\tbarks\tbark", ":2: expected beginning, right word"),
        ("the dog\tbarks\t\t1", ":2: expected beginning"),
        ("the dog\tbarks\tbark\tfar", ":2: expected a distance .* found 'far'"),
    ],
)
def test_broken_probes(line: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "probes.tsv"
    path.write_text(f"the cats\tsleep\tsleeps\t1\n{line}\n")
    with pytest.raises(InputError, match=message):
        data.read_probes(path)


def test_probes_are_read_as_written(tmp_path: Path) -> None:
    made = generator.probes(5, seed=3)
    (tmp_path / "probes.tsv").write_text(data.write_probes(made))
    assert data.read_probes(tmp_path / "probes.tsv") == made
    for probe in made:
        words = probe.prefix.split()
        assert words[-probe.distance].endswith("s") == (not probe.right.endswith("s"))  # the noun that tells


# ---------------------------------------------------------------- networks


@pytest.mark.parametrize("cell", CELLS)
def test_truncated_backpropagation(cell: str) -> None:
    """In parts the loss is that of the whole text; its gradient is not, unless there is one part only."""
    ids = torch.randint(0, 7, (25,))
    model = RecurrentLM(7, 8, cell, depth=2)

    def run(length: int) -> tuple[torch.Tensor, torch.Tensor]:
        loss = TruncatedBackpropagation()
        total = torch.stack([loss(model, part).sum for part in data.parts(ids, 2, length)]).sum()
        return total, torch.autograd.grad(total, model.recurrent.weight_hh_l0)[0]

    scores, _ = model(ids[:24].view(2, 12).t())
    targets = ids[1:].view(2, 12).t()
    whole = -scores.gather(2, targets[..., None]).sum()
    expected = torch.autograd.grad(whole, model.recurrent.weight_hh_l0)[0]
    total, gradient = run(12)
    assert_close([total, gradient], [whole, expected])
    total, gradient = run(3)
    assert_close(total, whole)
    assert (gradient - expected).norm() > 1e-3 * expected.norm()


def test_new_epoch_begins_without_state() -> None:
    model, loss = RecurrentLM(7, 8, "gru"), TruncatedBackpropagation()
    first, *_, last = data.parts(torch.randint(0, 7, (40,)), 2, 5)
    start = loss(model, first).sum.item()
    assert loss(model, last).sum.item() != TruncatedBackpropagation()(model, last).sum.item()
    assert loss(model, first).sum.item() == start


def test_sampling() -> None:
    torch.manual_seed(3)
    model = RecurrentLM(9, 16, "lstm").eval()
    greedy = sample(model, [2, 3], 12, temperature=0, never=())
    ids = [2, 3]
    for token in greedy:  # reading all of it anew each time
        assert model(torch.tensor(ids)[:, None])[0][-1, 0].argmax() == token
        ids.append(token)

    def draw(temperature: float, seed: int, count: int = 400) -> list[int]:
        return sample(
            model, [2], count, temperature=temperature, generator=torch.Generator().manual_seed(seed)
        )

    assert draw(1.0, 1) == draw(1.0, 1) != draw(1.0, 2)
    assert {0, 1}.isdisjoint(draw(1.0, 1))
    assert draw(1e-4, 1, 30) == sample(model, [2], 30, temperature=0)
    assert len(set(draw(0.02, 1))) < len(set(draw(5.0, 1)))


# ---------------------------------------------------------------- the program


@pytest.mark.slow
def test_network_sees_what_ngrams_cannot(capsys: pytest.CaptureFixture[str]) -> None:
    """Far agreement: at least 95% by a GRU, at most 65% (chance is 50%) by any n-gram, though it needs more
    memory; its perplexity, too, is the better one."""
    assert main(["train", "--cells", "gru", "--orders", "2", "3", "5", "--epochs", "3"]) == 0
    assert "generated data" in capsys.readouterr().out
    assert Path("out/language_model/language_model.png").stat().st_size > 0
    config, models = load(TRAINED)
    _, lines = data.split_lines(data.read_text(Path(config["data"]), "word"))
    rows = report.compare(models, lines, read_probes(config), config)
    far = {name: own["agree 17+"] for name, own in rows.items()}
    assert far["GRU"] >= 0.95
    assert max(far[f"{n}-gram"] for n in (2, 3, 5)) <= 0.65
    assert rows["GRU"]["perplexity"] < 0.9 * min(rows[f"{n}-gram"]["perplexity"] for n in (2, 3, 5))
    assert rows["GRU"]["kB"] < rows["5-gram"]["kB"]


def test_resume_equals_uninterrupted() -> None:
    for arguments in (["--epochs", "2", "--out", "whole"], ["--epochs", "1"], ["--epochs", "2", "--resume"]):
        assert main(["train", *SMALL, "--dropout", "0.2", *arguments]) == 0
    (whole, _), (part, _) = (
        checkpoint.load(Path(f, "lstm.safetensors")) for f in ("whole", "out/language_model")
    )
    assert all(torch.equal(whole["model"][name], part["model"][name]) for name in whole["model"])


def test_resume_after_an_interruption_between_models(capsys: pytest.CaptureFixture[str]) -> None:
    """What has a checkpoint goes on from there, and the next starts; without any, it is an error."""
    arguments = ["train", *SMALL, "--epochs", "1", "--resume"]
    assert main(arguments) == 2
    assert "to go on from" in capsys.readouterr().err
    assert main(["train", *SMALL, "--epochs", "1"]) == 0
    assert main([*arguments, "--cells", "lstm", "gru"]) == 0
    assert len(list(Path("out/language_model").glob("*.safetensors"))) == 3


def losses(folder: str) -> list[float]:
    history: dict[str, Any] = checkpoint.load(Path(folder, "lstm.safetensors"))[1]["history"]
    return history["losses"]


def test_two_processes_train_like_one(two_processes: Callable[..., None]) -> None:
    arguments = ["train", *SMALL, "--epochs", "1"]
    assert main([*arguments, "--out", "one"]) == 0
    two_processes(main, [*arguments, "--out", "two"])
    assert losses("two") == pytest.approx(losses("one"), rel=1e-4)


@pytest.mark.slow
def test_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same, started as users start it."""
    root = Path(__file__).parents[2]
    monkeypatch.setenv("PYTHONPATH", str(root))
    arguments = ["train", *SMALL, "--epochs", "1"]
    assert main([*arguments, "--out", "one"]) == 0
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    subprocess.run(
        [*run, "-m", "examples.language_model", *arguments, "--out", "two"], check=True, timeout=120
    )
    assert losses("two") == pytest.approx(losses("one"), rel=1e-4)


def test_backends_agree(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *SMALL, "--epochs", "1", "--backend", "both"]) == 0
    assert losses("out/language_model/torch") == pytest.approx(losses("out/language_model"), rel=1e-4)
    assert "last epoch, by backend" in capsys.readouterr().out


def test_reset_before(capsys: pytest.CaptureFixture[str]) -> None:
    """A network of its own beside the GRU's, from the same start; what it wrote down is what goes on."""
    arguments = ["train", *SMALL, "--cells", "gru", "gru-before"]
    for own in (["--epochs", "2", "--out", "whole"], ["--epochs", "1"], ["--epochs", "2", "--resume"]):
        assert main([*arguments, *own]) == 0
    first = checkpoint.load(Path("whole", "gru-before.safetensors"))[1]
    second = checkpoint.load(TRAINED.out / "gru-before.safetensors")[1]
    assert first["config"]["cell"] == second["config"]["cell"] == "gru-before"
    learned = first["history"]["losses"]
    assert learned == second["history"]["losses"]
    assert learned[-1] < 0.9 * learned[0]
    other = checkpoint.load(TRAINED.out / "gru.safetensors")[1]["history"]["losses"]
    assert learned[0] == pytest.approx(other[0], rel=0.02)
    assert learned != other

    _, models = load(TRAINED)
    assert not models["GRU-BEFORE"].recurrent.reset_after  # type: ignore[union-attr]
    assert models["GRU"].recurrent.reset_after  # type: ignore[union-attr]
    capsys.readouterr()
    assert main(["predict", "the singers", "--count", "3"]) == 0
    names = [line.split("  the singers")[0].strip() for line in capsys.readouterr().out.splitlines()]
    assert names == ["2-gram", "3-gram", "GRU", "GRU-BEFORE"]


def test_resume_with_another_reset_gate(capsys: pytest.CaptureFixture[str]) -> None:
    """The parameters have the same names and shapes, so only the configuration can tell."""
    assert main(["train", *SMALL, "--cells", "gru", "--epochs", "1"]) == 0
    (TRAINED.out / "gru.safetensors").rename(TRAINED.out / "gru-before.safetensors")
    capsys.readouterr()
    assert main(["train", *SMALL, "--cells", "gru-before", "--epochs", "2", "--resume"]) == 2
    assert "expected a training with cell = gru-before, found one with gru" in capsys.readouterr().err


@pytest.mark.parametrize("backend", ["torch", "both"])
def test_reset_before_is_not_in_torch(backend: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["train", *SMALL, "--cells", "gru", "gru-before", "--backend", backend]
    assert main(arguments) == 2
    error = (
        f"error: --backend: expected fused for gru-before, which torch.nn does not have, found {backend}\n"
    )
    assert capsys.readouterr().err == error
    assert not TRAINED.out.exists()


def test_own_text_by_characters(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("".join(f"line {n}: tick tock\n" for n in range(60)))
    arguments = ["--data", str(path), "--level", "char", "--cells", "rnn", "--orders", "3", "--hidden", "8"]
    assert main(["train", *arguments, "--batch", "4", "--epochs", "1"]) == 0
    assert read_probes(load(TRAINED)[0]) == []
    assert main(["predict", "line 7", "--temperature", "0"]) == 0


def test_probes_by_characters() -> None:
    """Both forms are compared with the space after them, or the shorter would always win."""
    text = "the cats sleep \nthe cat sleeps \n" * 20
    vocabulary = Vocabulary.build([text])
    model = NGram.count(vocabulary.ids(text), 12, len(vocabulary))
    probes = [data.Probe("the cats", "sleep", "sleeps", 1), data.Probe("the cat", "sleeps", "sleep", 1)]
    assert report.agreement(model, probes, vocabulary, "char", vocabulary.ids("\n")) == {"1–4": 1.0}


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        ("one line\n", [], "ten lines"),
        ("a b\n" * 12, ["--batch", "64"], "smaller --batch"),
        ("", [], "an empty file"),
    ],
)
def test_texts_too_short(
    content: str, arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.txt").write_text(content)
    assert main(["train", "--data", str(tmp_path / "text.txt"), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_nothing_to_go_on_from(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "so"]) == 2
    assert "run `train` first" in capsys.readouterr().err
    assert main(["train", *SMALL, "--epochs", "1"]) == 0
    assert main(["predict", " "]) == 2
    assert "a beginning to go on from" in capsys.readouterr().err


def test_the_book_is_learned(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--book", *SMALL[2:], "--epochs", "1", "--batch", "64"]) == 0
    assert "Python's own language reference" in capsys.readouterr().out
    rows = results.read(TRAINED.out, "train")[1]
    assert 1 < rows["3-gram"]["known words"] < rows["3-gram"]["perplexity"] < 100


def test_evaluate_and_predict(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *SMALL, "--epochs", "1"]) == 0
    trained = results.read(TRAINED.out, "train")[1]
    assert main(["evaluate"]) == 0
    found = results.read(TRAINED.out, "evaluate")[1]
    costs = {"tokens/s", "kB for backward"}  # of training
    assert found == {
        name: {column: value for column, value in row.items() if column not in costs}
        for name, row in trained.items()
    }
    capsys.readouterr()
    assert main(["predict", "the singers near the tower", "--count", "5"]) == 0
    assert "the singers near the tower" in capsys.readouterr().out
