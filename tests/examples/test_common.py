"""The parts that all programs are made of."""

from __future__ import annotations

import doctest
import random
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from examples.common import checkpoint, cli, data, distributed, errors, layers, text, train
from examples.common.errors import InputError
from examples.common.train import Diverged, History, Loss, Recipe
from tests.conftest import assert_close

Rows = list[list[int]]
CONFIG = {"hidden": 8}
RECIPE = Recipe(epochs=4, rate=3e-2, seed=5)


class Tagger(nn.Module):
    """A small model with all that matters here: an embedding, a recurrent layer, dropout."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.embedding = nn.Embedding(7, 8)
        self.recurrent = layers.recurrent("gru", 8, 8, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(8, 7)

    def forward(self, ids: Tensor) -> Tensor:
        """[B, T] -> [B, T, 7]"""
        return self.head(self.dropout(self.recurrent(self.embedding(ids))[0]))


def rows(count: int = 37) -> Rows:
    """Sequences of very different lengths; the id to tell at each step is the one before."""
    generator = random.Random(2)
    return [[generator.randint(1, 6) for _ in range(generator.randint(2, 9))] for _ in range(count)]


def loss(model: nn.Module, batch: Rows) -> Loss:
    """Cross entropy of the previous id at every real token but the first."""
    ids, _ = text.pad_batch(batch)
    targets = torch.where(ids[:, 1:] > 0, ids[:, :-1], 0)
    total = nn.functional.cross_entropy(
        model(ids)[:, 1:].transpose(1, 2), targets, ignore_index=0, reduction="sum"
    )
    terms = int((targets > 0).sum())
    return Loss(total, terms, terms)


def fit(recipe: Recipe = RECIPE, dropout: float = 0.0, **kwargs: object) -> tuple[Tagger, History]:
    model = Tagger(dropout)
    batches = data.Batches(rows(), 8, length=len, seed=3)
    return model, train.fit(model, loss, batches, recipe, config=CONFIG, **kwargs)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "module", [checkpoint, data, errors, layers, text], ids=lambda m: m.__name__.split(".")[-1]
)
def test_docstrings(module: ModuleType) -> None:
    assert doctest.testmod(module).failed == 0


# ---------------------------------------------------------------- text and data


def test_vocabulary_limits_and_order() -> None:
    words = ["b", "b", "b", "a", "a", "a", "c", "c", "d", "<PAD>"]
    assert text.Vocabulary.build([words]).tokens == ["<PAD>", "<UNK>", "a", "b", "c", "d"]
    assert text.Vocabulary.build([words], min_count=2, max_size=2).tokens[2:] == ["a", "b"]
    vocabulary = text.Vocabulary.from_json(text.Vocabulary.build([words]).to_json())
    assert vocabulary.ids(["a", "never"]) == [2, 1]
    with pytest.raises(ValueError, match="'a'"):
        text.Vocabulary(["a", "a"])


@pytest.mark.parametrize("batch", [[], [[1], []]])
def test_pad_batch_refuses_what_has_no_length(batch: Rows) -> None:
    with pytest.raises(ValueError, match="at least one"):
        text.pad_batch(batch)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"", "empty"),
        (b"\n \n", "empty"),
        (b"good\nb\xe4d\n", r":2: expected UTF-8 text, found byte 0xe4"),
    ],
)
def test_read_lines_names_file_and_line(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        data.read_lines(path)
    assert str(caught.value).startswith(str(path))


def test_read_lines_knows_windows(tmp_path: Path) -> None:
    (tmp_path / "file.txt").write_bytes("\ufeffa\r\n\r\nb\r\n".encode())
    assert data.read_lines(tmp_path / "file.txt") == ["a", "", "b"]


def test_split_keeps_everything_once() -> None:
    kept, held_out = data.split(range(50), 0.2, seed=1)
    assert len(held_out) == 10
    assert sorted(kept + held_out) == list(range(50))
    assert data.split(range(50), 0.2, seed=2)[1] != held_out


def test_batches_are_permutations_that_save_padding() -> None:
    items = rows(200)
    batches = data.Batches(items, 9, length=len, seed=1)
    order = list(chain(*batches.indices(0)))
    assert sorted(order) == list(range(200))
    assert batches.indices(0) == data.Batches(items, 9, length=len, seed=1).indices(0)
    assert order != list(chain(*batches.indices(1)))
    assert {len(batch) for batch in batches(0)} <= {8, 9}

    def padded(made: list[Rows]) -> int:
        return sum(len(batch) * max(map(len, batch)) for batch in made)

    assert padded(batches(0)) < 0.8 * padded(data.Batches(items, 9, seed=1)(0))


def test_batches_need_a_row_for_every_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    with pytest.raises(ValueError, match="3 processes"):
        data.Batches([1, 2], 8)
    assert all(len(batch) >= 3 for batch in data.Batches(range(10), 4).indices(0))


# ---------------------------------------------------------------- training


def test_same_seed_same_training() -> None:
    (model, history), (again, repeated) = fit(dropout=0.5), fit(dropout=0.5)
    assert history.losses == repeated.losses
    assert history.losses[-1] < 0.8 * history.losses[0]
    for p, q in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(p, q)
    assert fit(replace(RECIPE, seed=6), dropout=0.5)[1].losses != history.losses


def test_resume_equals_uninterrupted(tmp_path: Path) -> None:
    _, history = fit(dropout=0.5, path=tmp_path / "whole")
    fit(replace(RECIPE, epochs=2), dropout=0.5, path=tmp_path / "part")
    _, resumed = fit(dropout=0.5, path=tmp_path / "part", resume=True)
    assert resumed.losses == history.losses
    whole, part = (checkpoint.load(tmp_path / name)[0] for name in ("whole", "part"))
    for group in ("model", "optimizer"):
        assert whole[group].keys() == part[group].keys() != set()
        assert all(torch.equal(whole[group][name], part[group][name]) for name in whole[group])


def test_resume_refuses_another_model(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    checkpoint.save(path, {"model": {}}, {"config": {"hidden": 9}})
    with pytest.raises(InputError, match="expected a training with hidden = 8, found one with 9"):
        fit(path=path, resume=True)


@pytest.mark.parametrize("content", [None, b"no checkpoint"])
def test_load_refuses_other_files(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "file").write_bytes(content)
    with pytest.raises(InputError, match="checkpoint"):
        checkpoint.load(tmp_path / "file")


def test_loss_is_the_mean_over_real_tokens() -> None:
    model, batch = Tagger(), rows(2)
    _, history = fit(replace(RECIPE, epochs=1))
    parts = [loss(model, [row]) for row in batch]
    whole = loss(model, batch)
    assert_close(whole.sum, torch.stack([part.sum for part in parts]).sum())
    assert whole.terms == sum(len(row) - 1 for row in batch)
    first = data.Batches(rows(), 8, length=len, seed=3)(0)[0]
    expected = loss(model, first)
    assert history.losses[0] == pytest.approx(expected.sum.item() / expected.terms, rel=1e-6)


def test_clipping_limits_the_step() -> None:
    """One step of a quadratic whose gradient is (30, 40): its norm is 50 before clipping, and 5 with it."""
    parameter = nn.Parameter(torch.zeros(2))
    model = nn.ParameterList([parameter])
    slope = torch.tensor([30.0, 40.0])
    recipe = Recipe(epochs=1, rate=0.1, clip=5.0)
    history = train.fit(model, lambda m, _: Loss(m[0] @ slope, 1, 1), lambda epoch: [None], recipe)
    assert history.norms == pytest.approx([50.0])
    assert_close(parameter.grad, torch.tensor([3.0, 4.0]), torch.float32)


def test_divergence_is_an_error() -> None:
    model = nn.Linear(1, 1)
    with pytest.raises(Diverged, match="step 1"):
        train.fit(
            model,
            lambda m, _: Loss(m(torch.ones(1)).sum() * float("inf"), 1, 1),
            lambda epoch: [None],
            RECIPE,
        )


def test_two_processes_train_like_one(
    two_processes: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same losses and weights, though each process has other rows with another number of tokens."""

    def main(arguments: list[str]) -> int:
        with distributed.session(torch.device("cpu")):
            fit(path=tmp_path / arguments[0])
        return 0

    main(["one"])
    two_processes(main, ["two"])
    (one, history), (two, shared) = (checkpoint.load(tmp_path / name) for name in ("one", "two"))
    assert shared["history"]["losses"] == pytest.approx(history["history"]["losses"], rel=1e-5)
    for name in one["model"]:
        assert torch.allclose(one["model"][name], two["model"][name], atol=1e-5), name


def test_gather_and_its_gradient(two_processes: Callable[..., None]) -> None:
    """Two rows here, one there: a loss between all pairs is the same as in one process, its gradient too."""
    everything = torch.arange(6.0, dtype=torch.float64).view(3, 2).cos()

    def main(arguments: list[str]) -> int:
        with distributed.session(torch.device("cpu")):
            weight = torch.ones(2, dtype=torch.float64, requires_grad=True)
            mine = torch.tensor([[2], [0, 1]][distributed.rank()] if arguments else [0, 1, 2])
            order = [2, 0, 1] if arguments else [0, 1, 2]
            rows = distributed.gather(everything[mine] * weight)
            assert_close(rows, everything[order])
            (rows @ rows.t()).exp().sum().backward()
            assert weight.grad is not None
            gradient = distributed.total(weight.grad) / distributed.world_size()
            expected = torch.ones(2, dtype=torch.float64, requires_grad=True)
            ((everything * expected) @ (everything * expected).t()).exp().sum().backward()
            assert_close(gradient, expected.grad)
        return 0

    assert main([]) == 0
    two_processes(main, ["sharded"])


# ---------------------------------------------------------------- command line


def untrained(options: object) -> History:
    """Train."""
    return History()


def program(train_function: Callable[..., History]) -> Callable[[list[str]], int]:
    line = cli.CommandLine("demo", "A program.")
    line.training(train_function, epochs=3, batch=4, rate=1e-2)
    return line.run


def test_options_reach_the_training_and_backends_are_compared(capsys: pytest.CaptureFixture[str]) -> None:
    seen = []

    def run(options: object) -> History:
        """Train."""
        seen.append((options.backend, options.out))  # type: ignore[attr-defined]
        assert cli.recipe(options) == Recipe(3, 1e-2, 0.5, 7)  # type: ignore[arg-type]
        return History(epochs=[{"loss": 0.125}])

    assert program(run)(["train", "--clip", "0.5", "--seed", "7", "--backend", "both", "--out", "there"]) == 0
    assert seen == [("torch", Path("there/torch")), ("fused", Path("there"))]
    assert capsys.readouterr().out.count("0.125") == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "0"], "'0' is not a positive whole number"),
        (["--rate", "-1"], "'-1' is not a number from 0 on"),
        (["--clip", "nan"], "'nan' is not a number from 0 on"),
        (["--device", "abacus"], "abacus"),
        (["--cell", "cnn"], "invalid choice"),
    ],
)
def test_wrong_options(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        program(untrained)(["train", *arguments])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("backend", ["torch", "both"])
def test_what_torch_does_not_have_is_refused(backend: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Before anything is trained, and in one line."""

    def run(options: object) -> History:
        """Train."""
        raise AssertionError("it was trained")

    assert program(run)(["train", "--cell", "gru-before", "--backend", backend]) == 2
    expected = (
        f"error: --backend: expected fused for gru-before, which torch.nn does not have, found {backend}\n"
    )
    assert capsys.readouterr().err == expected
    with pytest.raises(InputError, match="gru-before"):
        layers.recurrent("gru-before", 3, 4, backend="torch")


def test_a_reset_gate_before_the_product() -> None:
    """One step: n = tanh(W_in x + b_in + W_hn (r * h) + b_hn), where "gru" has r * (W_hn h + b_hn)."""
    gru, before = (layers.recurrent(cell, 3, 4).double() for cell in ("gru", "gru-before"))
    before.load_state_dict(gru.state_dict())
    x, h = torch.randn(1, 3, dtype=torch.float64), torch.randn(1, 4, dtype=torch.float64)
    x_r, x_z, x_n = (x @ gru.weight_ih_l0.t() + gru.bias_ih_l0).chunk(3, 1)
    w_r, w_z, w_n = gru.weight_hh_l0.chunk(3)
    b_r, b_z, b_n = gru.bias_hh_l0.chunk(3)
    r, z = (x_r + h @ w_r.t() + b_r).sigmoid(), (x_z + h @ w_z.t() + b_z).sigmoid()
    for layer, product in ((gru, r * (h @ w_n.t() + b_n)), (before, (r * h) @ w_n.t() + b_n)):
        assert_close(layer(x, h)[0], (1 - z) * (x_n + product).tanh() + z * h)


@pytest.mark.parametrize("error", [InputError("a.csv", 3, "a tweet", "nothing"), Diverged("loss nan")])
def test_one_line_instead_of_a_traceback(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    def run(options: object) -> History:
        """Train."""
        raise error

    assert program(run)(["train"]) == 2
    assert capsys.readouterr().err == f"error: {error}\n"
