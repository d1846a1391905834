"""Question duplicates: pairs and groups, the triplet loss, thresholds, one-shot use, and what the order is
worth."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from examples.common import distributed
from examples.common.errors import InputError
from examples.common.text import pad_batch
from examples.duplicates import data, oneshot
from examples.duplicates.__main__ import main
from examples.duplicates.data import Pair
from examples.duplicates.generator import PARTS, generate
from examples.duplicates.groups import Row, Rows, connected, same_question
from examples.duplicates.learn import (
    Task,
    accuracy,
    best_threshold,
    build,
    similarities,
    triplet_loss,
    vectors,
)
from examples.duplicates.loss import triplet_costs
from examples.duplicates.model import Encoder
from tests.conftest import assert_close

# ---------------------------------------------------------------- files


def test_quora_columns(tmp_path: Path) -> None:
    path = tmp_path / "train.tsv"
    path.write_text(
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
        '0\t1\t2\tWhat is "it"?\t"What\tis\n""that""?"\t1\n'
        "\n"
        "1\t3\t4\tWhy?\tHow?\t0\n"
    )
    expected = [Pair('What is "it"?', 'What\tis\n"that"?', True), Pair("Why?", "How?", False)]
    assert data.read(path) == expected


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("why ?\thow ?\t1\n", ":1: expected names of columns"),
        ("question1\tquestion2\tis_duplicate\n", "expected pairs of questions, found none"),
        ("question1\tquestion2\tis_duplicate\na\tb\t1\na\tb\n", ":3: expected 3 columns .*, found 2"),
        (
            "question1\tquestion2\tis_duplicate\na\tb\tyes\n",
            ":2: expected is_duplicate to be 0 or 1, found 'yes'",
        ),
        ("question1\tquestion2\tis_duplicate\na\t \t1\n", ":2: expected a question as question2, found ' '"),
        ('question1\tquestion2\tis_duplicate\na\tb\t1\n"a\tb\t1\nc\td\t0\n', ":3: expected a row of tab-"),
    ],
)
def test_broken_rows(rows: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "pairs.tsv"
    path.write_text(rows)
    with pytest.raises(InputError, match=message):
        data.read(path)


@pytest.mark.parametrize("part", PARTS)
def test_generated_pairs_are_read_back(part: str, tmp_path: Path) -> None:
    pairs = generate(400, seed=4, part=part)
    path = tmp_path / "pairs.tsv"
    path.write_text(data.write(pairs))
    assert data.read(path) == pairs
    assert sum(pair.duplicate for pair in pairs) == 200
    assert generate(400, seed=5, part=part) != pairs


def test_no_generated_question_is_in_two_parts() -> None:
    train, valid, test = ({q for pair in generate(3000, 0, part) for q in pair[:2]} for part in PARTS)
    assert not train & valid
    assert not train & test
    assert not valid & test


# ---------------------------------------------------------------- groups and batches

PAIRS = [
    Pair("a", "b", True),
    Pair("c", "b", True),
    Pair("d", "e", True),
    Pair("a", "e", False),
    Pair("f", "f", True),
    Pair("g", "h", True),
]


def test_questions_that_ask_the_same() -> None:
    assert connected([]) == {}
    group = same_question(PAIRS)
    assert group["a"] == group["b"] == group["c"]
    assert group["d"] == group["e"]
    assert len({group[q] for q in "adfg"}) == 4


def test_every_other_row_of_a_batch_is_a_negative() -> None:
    pairs = generate(600, seed=2)
    group = same_question(pairs)
    rows = Rows(pairs, 16, seed=1)
    batches = rows.rows(0)
    assert len(batches) == len(rows) > 3
    for batch in batches:
        assert len(batch) >= 16
        assert len({row.group for row in batch}) == len(batch)
        assert all(group[row.first] == group[row.second] == row.group for row in batch)
        assert all(row.first != row.second for row in batch)
    once = sorted(row.group for row in chain(*batches))
    assert once == sorted(rows.duplicates)
    assert Rows(pairs, 16, seed=1).rows(0) == batches
    assert rows.rows(1) != batches


def test_rivals_share_a_batch() -> None:
    """Of 40 questions, each with one rival, almost every row meets its rival; by chance it were one in
    five."""
    pairs = [Pair(f"{n}", f"{n}?", True) for n in range(40)]
    pairs += [Pair(f"{n}", f"{n + 1}", False) for n in range(0, 40, 2)]
    met = 0
    for batch in Rows(pairs, 8).rows(0):
        numbers = {int(row.first.strip("?")) for row in batch}
        met += sum(number ^ 1 in numbers for number in numbers)
    assert met >= 32


def test_batches_need_two_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="1 questions with a duplicate"):
        Rows(PAIRS[:2], 8)
    with pytest.raises(ValueError, match="batches of 1 from 3 questions"):
        Rows(PAIRS, 1)
    monkeypatch.setattr(distributed, "world_size", lambda: 4)
    with pytest.raises(ValueError, match="batches of 8 from 3 questions"):
        Rows(PAIRS, 8)


# ---------------------------------------------------------------- the loss


def test_triplet_costs_by_hand() -> None:
    """With α = 0.25:

    row 0: own 0.9, mean (0.5 + 0.1) / 2 = 0.3, closest 0.5: max(0, -0.35) + max(0, -0.15) = 0
    row 1: own 0.4, mean (0.3 + 0.7) / 2 = 0.5, closest 0.7: 0.35 + 0.55 = 0.9
    row 2: own 0.6, mean (-0.2 + 0.4) / 2 = 0.1, closest 0.4: 0 + 0.05 = 0.05
    """
    similarity = torch.tensor([[0.9, 0.5, 0.1], [0.3, 0.4, 0.7], [-0.2, 0.4, 0.6]], dtype=torch.float64)
    expected = torch.tensor([0.0, 0.9, 0.05], dtype=torch.float64)
    assert torch.allclose(triplet_costs(similarity, 0.25), expected, atol=1e-12)


def test_triplet_gradient_by_hand() -> None:
    """Of two questions, the single negative is the mean and the closest at once. Both hinges are open in row
    0, so its cost falls by 2 with its own similarity and grows by 2 with the negative; both are closed in row
    1."""
    similarity = torch.tensor([[0.5, 0.4], [-0.5, 0.9]], requires_grad=True)
    triplet_costs(similarity, 0.25).sum().backward()
    assert_close(similarity.grad, torch.tensor([[-2.0, 2.0], [0.0, 0.0]]))


def test_the_diagonal_is_no_negative() -> None:
    """However large a question's own similarity is, it is neither in the mean nor the closest."""
    similarity = torch.full((4, 4), -0.5).fill_diagonal_(1.0)
    assert_close(triplet_costs(similarity, 1.5), torch.zeros(4))
    assert_close(triplet_costs(similarity, 1.75), torch.full((4,), 0.5))


def test_parts_of_the_matrix_cost_the_same() -> None:
    similarity = torch.randn(7, 7)
    parts = [
        triplet_costs(similarity[start:end], 0.3, first=start) for start, end in ((0, 3), (3, 4), (4, 7))
    ]
    assert_close(torch.cat(parts), triplet_costs(similarity, 0.3))


@pytest.mark.parametrize(("rows", "columns", "first"), [(1, 1, 0), (3, 2, 0), (2, 3, 2), (1, 3, -1)])
def test_costs_need_a_diagonal_and_negatives(rows: int, columns: int, first: int) -> None:
    with pytest.raises(ValueError, match="no diagonal or no negatives"):
        triplet_costs(torch.zeros(rows, columns), 0.3, first)


class Known(nn.Module):
    """The vector of the word with id n is row n of a table."""

    def __init__(self, table: list[list[float]]) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.tensor(table))

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        return self.table[ids[:, 0]]


def test_loss_of_a_batch_by_hand() -> None:
    """Similarities [[1, 0.6], [0, 0.8]] and α = 0.5: 0.1 + 0.1 from the first row, nothing from the
    second."""
    pairs = [Pair("one", "two", True), Pair("three", "four", True)]
    task = Task.of(pairs, min_count=1)
    assert task.vocabulary.tokens[2:] == ["four", "one", "three", "two"]
    model = Known([[0, 0], [0, 0], [0.6, 0.8], [1, 0], [0, 1], [1, 0]])
    rows = [Row(pair.first, pair.second, n) for n, pair in enumerate(pairs)]
    total, terms, tokens = triplet_loss(task, 0.5)(model, rows)
    assert total.item() == pytest.approx(0.2)
    assert (terms, tokens) == (2, 4)


# ---------------------------------------------------------------- the encoder


@pytest.mark.parametrize("cell", ["none", "lstm", "gru", "rnn"])
def test_padding_changes_nothing(cell: str) -> None:
    model = Encoder(9, cell=cell)
    texts = [[2, 3, 4], [5], [6, 7, 8, 2, 3, 4]]
    together = model(*pad_batch(texts))
    assert_close(together, torch.cat([model(*pad_batch([text])) for text in texts]))
    assert_close(together.norm(dim=1), torch.ones(3))


def test_encoder_is_the_normalised_mean_of_the_states() -> None:
    model = Encoder(9, embedding=4, hidden=3)
    ids, lengths = pad_batch([[2, 3, 4, 5]])
    lstm = nn.LSTM(4, 3, batch_first=True)
    lstm.load_state_dict(model.states.state_dict())
    mean = lstm(model.embedding(ids))[0].mean(1)
    assert_close(model(ids, lengths), mean / mean.square().sum().sqrt(), torch.float32)


@pytest.mark.parametrize(("cell", "same"), [("none", True), ("lstm", False)])
def test_only_the_recurrent_encoder_sees_the_order(cell: str, same: bool) -> None:
    model = Encoder(9, cell=cell)
    one, other = (model(*pad_batch([text])) for text in ([2, 3, 4, 5], [5, 4, 3, 2]))
    assert torch.allclose(one, other, atol=1e-6) == same


def test_vectors_do_not_depend_on_the_batch() -> None:
    pairs = generate(20, seed=1)
    task = Task.of(pairs)
    model = build(task.config("lstm"))
    questions = [pair.first for pair in pairs]
    assert_close(vectors(task, model, questions, batch=3), vectors(task, model, questions))


def test_similarities_of_pairs_that_share_questions() -> None:
    task, model = two_words()
    pairs = [Pair("left", "up", True), Pair("up", "right", False), Pair("left", "left", True)]
    assert_close(similarities(task, model, pairs), torch.tensor([0.6, 0.8, 1.0]))


# ---------------------------------------------------------------- thresholds


@pytest.mark.parametrize(
    ("similarity", "duplicate", "threshold"),
    [
        ([0.75, 0.25, 0.5, 0.0], [1, 0, 1, 0], 0.375),
        ([0.0, 0.25, 0.5, 0.75, 1.0], [0, 1, 0, 1, 1], 0.125),  # one wrong, as with 0.625: the first is taken
        ([0.5, 0.5, 0.5, 0.0], [1, 1, 0, 0], 0.25),  # nothing can part what is equal
        ([0.25, 0.5], [1, 1], -0.25),  # below all of them
        ([0.25, 0.5], [0, 0], 1.0),  # above all of them
    ],
)
def test_best_threshold(similarity: list[float], duplicate: list[int], threshold: float) -> None:
    assert best_threshold(torch.tensor(similarity), torch.tensor(duplicate, dtype=torch.bool)) == threshold


def test_no_threshold_is_better() -> None:
    similarity = torch.randn(50)
    duplicate = similarity + torch.randn(50) > 0
    best = accuracy(similarity, duplicate, best_threshold(similarity, duplicate))
    assert best == max(accuracy(similarity, duplicate, t) for t in [-9.0, *similarity.tolist()])


# ---------------------------------------------------------------- one-shot


def two_words() -> tuple[Task, Known]:
    """A task of which "left" and "right" are at a right angle, and "up" is between, nearer to "right"."""
    task = Task.of([Pair("left", "right", True), Pair("up", "up", True)], min_count=1)
    assert task.vocabulary.tokens[2:] == ["up", "left", "right"]
    return task, Known([[0, 0], [0, -1], [0.6, 0.8], [1, 0], [0, 1]])


def test_classes_are_added_and_recognised(tmp_path: Path) -> None:
    task, model = two_words()
    path = tmp_path / "classes.json"
    classes = oneshot.Classes(path)
    with pytest.raises(InputError, match="run `add` first"):
        classes.recognise(task, model, "up", 0.5)
    classes.add("west", "left")
    assert classes.recognise(task, model, "up", 0.5) == ("west", pytest.approx(0.6))
    assert classes.recognise(task, model, "up", 0.7) == (None, pytest.approx(0.6))
    classes.add("east", "right")
    classes.add("east", "right")
    again = oneshot.Classes(path)
    assert again.examples == {"west": ["left"], "east": ["right"]}
    assert again.recognise(task, model, "up", 0.7) == ("east", pytest.approx(0.8))


@pytest.mark.parametrize("content", ["[1]", "{", '{"a": "text"', '{"a": [1]}', '{"a": 1}'])
def test_broken_classes(content: str, tmp_path: Path) -> None:
    path = tmp_path / "classes.json"
    path.write_text(content)
    with pytest.raises(InputError, match=r"classes\.json: expected a JSON object"):
        oneshot.Classes(path)


def test_one_shot_accuracy_by_hand() -> None:
    """Classes {left, up} and {right, down}: from the examples left and right, "up" is taken for "right", and
    "down", an unknown word, is as unlike "right" as can be, and less unlike "left"; nothing is right. With
    the examples in the other order, "left" is nearer to "up" than to "down"."""
    task, model = two_words()
    pairs = [Pair("left", "up", True), Pair("right", "down", True)]
    assert oneshot.accuracy(task, model, pairs) == {"classes": 2, "one-shot": 0}
    swapped = [Pair("up", "left", True), Pair("down", "right", True)]
    assert oneshot.accuracy(task, model, swapped) == {"classes": 2, "one-shot": 0.5}
    assert oneshot.accuracy(task, model, [Pair("left", "up", False)]) == {"classes": 0}


# ---------------------------------------------------------------- the program


def test_too_few_questions(capsys: pytest.CaptureFixture[str]) -> None:
    Path("few").write_text(data.write([Pair("why ?", "how so ?", True)] * 3))
    assert main(["train", "--data", "few"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: few: expected batches of different questions, found 1 questions")


@pytest.mark.slow
def test_paraphrases_are_learned(capsys: pytest.CaptureFixture[str]) -> None:
    """On questions never seen, at the threshold of other ones: right 19 times in 20, the bag of words 4 in 5
    at best."""
    assert main(["train", "--epochs", "14"]) == 0
    assert "generated data" in capsys.readouterr().out
    assert Path("out/duplicates/duplicates.png").stat().st_size > 10_000
    Path("test.tsv").write_text(data.write(generate(1000, seed=8, part="test")))
    assert main(["evaluate", "--data", "test.tsv"]) == 0
    mean, recurrent = (
        [float(cell) for cell in line.replace("│", " ").split()[1:]]
        for line in capsys.readouterr().out.splitlines()
        if line.startswith(("│ mean", "│ recurrent"))
    )
    assert recurrent[0] > 0.95
    assert mean[0] < 0.8
    assert recurrent[3] > mean[3] + 0.3

    question, other, reverse = (
        "how do i turn clay into glass ?",
        "how is glass made from clay ?",
        "how do i turn glass into clay ?",
    )
    assert main(["predict", question, other]) == 0
    assert "recurrent: duplicates" in capsys.readouterr().out
    assert main(["predict", question, reverse]) == 0
    assert "recurrent: different questions" in capsys.readouterr().out
    assert main(["add", "glass", question]) == main(["add", "clay", reverse]) == 0
    assert json.loads(Path("out/duplicates/classes.json").read_text()) == {
        "glass": [question],
        "clay": [reverse],
    }
    capsys.readouterr()
    for asked, name in (
        (other, "glass"),
        ("how can glass be changed to clay ?", "clay"),
        ("why ?", "none of the classes"),
    ):
        assert main(["recognise", asked]) == 0
        assert capsys.readouterr().out.startswith(name)
    assert main(["add", "nothing", ""]) == 2
    assert "EXAMPLE: expected a question, found ''" in capsys.readouterr().err
