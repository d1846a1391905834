"""The Siamese network: the triplet loss, the encoder, thresholds and one-shot use, against values by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from examples.common.errors import InputError
from examples.common.text import pad_batch
from examples.duplicates import oneshot
from examples.duplicates.data import Pair
from examples.duplicates.generator import generate
from examples.duplicates.groups import Row
from examples.duplicates.learn import (
    Encoded,
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

# ---------------------------------------------------------------- the loss


@pytest.mark.parametrize(
    ("negatives", "expected"),
    [("mean", [0.0, 0.35, 0.0]), ("closest", [0.0, 0.55, 0.05]), ("sum", [0.0, 0.9, 0.05])],
)
def test_triplet_costs_by_hand(negatives: str, expected: list[float]) -> None:
    """With α = 0.25:

    row 0: own 0.9, mean (0.5 + 0.1) / 2 = 0.3, closest 0.5: max(0, -0.35) and max(0, -0.15)
    row 1: own 0.4, mean (0.3 + 0.7) / 2 = 0.5, closest 0.7: 0.35 and 0.55
    row 2: own 0.6, mean (-0.2 + 0.4) / 2 = 0.1, closest 0.4: max(0, -0.25) and 0.05
    """
    similarity = torch.tensor([[0.9, 0.5, 0.1], [0.3, 0.4, 0.7], [-0.2, 0.4, 0.6]], dtype=torch.float64)
    costs = triplet_costs(similarity, 0.25, negatives=negatives)
    assert torch.allclose(costs, torch.tensor(expected, dtype=torch.float64), atol=1e-12)


def test_there_are_three_losses() -> None:
    with pytest.raises(ValueError, match="one of mean, closest, sum, not 'all'"):
        triplet_costs(torch.zeros(2, 2), 0.3, negatives="all")


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


@pytest.mark.parametrize(("negatives", "expected"), [("closest", 0.1), ("sum", 0.2)])
def test_loss_of_a_batch_by_hand(negatives: str, expected: float) -> None:
    """Similarities [[1, 0.6], [0, 0.8]] and α = 0.5: 0.1 from the first row for its mean negative, and again
    for its closest one; nothing from the second."""
    pairs = [Pair("one", "two", True), Pair("three", "four", True)]
    task = Task.of(pairs, min_count=1)
    assert task.vocabulary.tokens[2:] == ["four", "one", "three", "two"]
    model = Known([[0, 0], [0, 0], [0.6, 0.8], [1, 0], [0, 1], [1, 0]])
    rows = [Row(pair.first, pair.second, n) for n, pair in enumerate(pairs)]
    total, terms, tokens = triplet_loss(task, 0.5, negatives)(model, rows)
    assert total.item() == pytest.approx(expected)
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
    encoded = Encoded.of(task, model, pairs)
    assert list(encoded.place) == ["left", "up", "right"]
    assert_close(similarities(encoded, pairs), torch.tensor([0.6, 0.8, 1.0]))


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


def test_best_threshold_with_weights() -> None:
    """The lowest similarity is a duplicate, and counts more than the two others below the last one."""
    similarity, duplicate = torch.tensor([0.0, 0.25, 0.5, 0.75]), torch.tensor([True, False, False, True])
    assert best_threshold(similarity, duplicate) == 0.625
    assert best_threshold(similarity, duplicate, torch.tensor([3.0, 1.0, 1.0, 1.0])) == -0.5
    assert best_threshold(similarity, duplicate, torch.tensor([0.0, 1.0, 1.0, 1.0])) == 0.625


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
    assert one_shot(task, model, pairs) == {"classes": 2, "one-shot": 0}
    swapped = [Pair("up", "left", True), Pair("down", "right", True)]
    assert one_shot(task, model, swapped) == {"classes": 2, "one-shot": 0.5}
    assert one_shot(task, model, [Pair("left", "up", False)]) == {"classes": 0}


def one_shot(task: Task, model: nn.Module, pairs: list[Pair]) -> dict[str, float]:
    return oneshot.accuracy(Encoded.of(task, model, pairs), pairs)


QUESTIONS = {  # the classes a and c are known, by their first question; b is not
    "a1": [1.0, 0.0],
    "a2": [0.8, 0.6],  # 0.8 with a1
    "a3": [0.6, 0.8],  # 0.8 with c1, which is wrong
    "b1": [0.6, -0.8],  # 0.6 with a1
    "b2": [-0.352, 0.936],  # 0.936 with c1
    "c1": [0.0, 1.0],
    "c2": [0.28, 0.96],  # 0.96 with c1
}


@pytest.fixture
def queries() -> oneshot.Queries:
    encoded = Encoded({q: n for n, q in enumerate(QUESTIONS)}, torch.tensor([*QUESTIONS.values()]))
    links = ["a1 a2", "a3 a1", "b1 b2", "c1 c2"]
    made = oneshot.Queries.of(encoded, [Pair(*link.split(), True) for link in links])
    assert made is not None
    return made


@pytest.mark.parametrize(
    ("threshold", "recognised", "rejected"),
    [(0.5, 2 / 3, 0.0), (0.7, 2 / 3, 0.5), (0.9, 1 / 3, 0.5), (0.948, 1 / 3, 1.0), (0.97, 0.0, 1.0)],
)
def test_rejection_by_hand(
    threshold: float, recognised: float, rejected: float, queries: oneshot.Queries
) -> None:
    assert queries.scores(threshold) == {
        "threshold": threshold,
        "recognised": pytest.approx(recognised),
        "rejected": rejected,
        "balanced": pytest.approx((recognised + rejected) / 2),
    }


def test_one_shot_threshold_by_hand(queries: oneshot.Queries) -> None:
    """The balanced accuracies are 1/3, 7/12, 5/12, 2/3 and 1/2, as above. Were a3 right, 0.7 would be
    best."""
    assert queries.best_threshold() == pytest.approx(0.948)
    all_right = queries._replace(right=queries.known)
    assert all_right.best_threshold() == pytest.approx(0.7)


def test_rejection_needs_an_unknown_class() -> None:
    task, model = two_words()
    pairs = [Pair("left", "up", True), Pair("left", "right", False)]
    assert oneshot.Queries.of(Encoded.of(task, model, pairs), pairs) is None


def test_nearest_in_parts() -> None:
    queries, examples = torch.randn(7, 3), torch.randn(4, 3)
    whole, parts = oneshot.nearest(queries, examples), oneshot.nearest(queries, examples, batch=2)
    assert_close(parts[0], whole[0])
    assert parts[1].tolist() == (queries @ examples.T).argmax(1).tolist()
