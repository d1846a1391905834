"""Tweets: tokens, the CSV of polarities, and the three models."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from examples.common.errors import InputError
from examples.common.text import pad_batch
from examples.sentiment import data, picture
from examples.sentiment.bayes import NaiveBayes
from examples.sentiment.data import NEGATIVE, NEUTRAL, POSITIVE, Tweet
from examples.sentiment.generator import generate
from examples.sentiment.learn import Example, Task, accuracy, build, loss, predict
from examples.sentiment.model import MeanClassifier, RecurrentClassifier
from examples.sentiment.tokenizer import tokenize
from tests.conftest import assert_close

# ---------------------------------------------------------------- tokens


@pytest.mark.parametrize(
    ("tweet", "tokens"),
    [
        ("@Ann_1 and me@home.org", ["<user>", "and", "me", "home", ".", "org"]),
        ("see http://t.co/Ab?c=d, www.x.org", ["see", "<url>", "<url>"]),
        ("Sooooo cooool, goood", ["soo", "cool", ",", "good"]),
        ("100000 or 1,000.50 at 10:30", ["100000", "or", "1,000.50", "at", "10:30"]),
        ("don't DON’T well-known 'tis", ["don't", "don't", "well-known", "tis"]),
        (":) ;-( =D :'( <3 ratio:dx", [":)", ";-(", "=d", ":'(", "<3", "ratio", "dx"]),
        ("👍🏽 ❤️ 👩‍👩‍👧 🇫🇷🇩🇪 😂😂", ["👍🏽", "❤️", "👩‍👩‍👧", "🇫🇷", "🇩🇪", "😂", "😂"]),
        ("wow!!!!! really?! hm...", ["wow", "!!", "really", "?", "!", "hm", ".."]),
        ("Tom &amp; Ann &lt;3 #Monday", ["tom", "ann", "<3", "monday"]),
        ("", []),
        ("%%% &", []),
    ],
)
def test_tokens(tweet: str, tokens: list[str]) -> None:
    assert tokenize(tweet) == tokens


# ---------------------------------------------------------------- files


def test_sentiment140_and_short_rows(tmp_path: Path) -> None:
    path = tmp_path / "tweets.csv"
    path.write_text(
        "polarity,text\n"
        '"0","146781","Mon Apr 06 22:19:45 PDT 2009","NO_QUERY","ann","a, ""bad"" day"\n'
        "\n"
        '4,"two\nlines"\n'
        "Neutral,fine\n"
    )
    expected = [Tweet('a, "bad" day', NEGATIVE), Tweet("two\nlines", POSITIVE), Tweet("fine", NEUTRAL)]
    assert data.read(path) == expected


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("4,fine\n4\n", ":2: expected polarity and text, separated by a comma, found a single column"),
        ('4,"two\nlines"\n5,fine\n', ":3: expected one of the polarities .*, found '5'"),
        (
            "4,fine\n2,so so\n",
            r":2: expected one of the polarities 0 \(negative\), 4 \(positive\), found '2'",
        ),
        ("4,%%%\n", ":1: expected a text with words in it, found '%%%'"),
        ('4,fine\n4,"open\n0,lost\n', ":2: expected a row of CSV"),
        ("polarity,text\n", "expected tweets, found none"),
    ],
)
def test_broken_rows(rows: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "tweets.csv"
    path.write_text(rows)
    with pytest.raises(InputError, match=message):
        data.read(path, [NEGATIVE, POSITIVE])


def test_generated_tweets_are_read_back(tmp_path: Path) -> None:
    tweets = generate(500, seed=4)
    path = tmp_path / "tweets.csv"
    path.write_text(data.write(tweets), encoding="utf-8")
    assert data.read(path) == tweets
    assert sum(tweet.feeling == POSITIVE for tweet in tweets) == 250
    assert generate(500, seed=5) != tweets


# ---------------------------------------------------------------- models and loss


def test_mean_classifier_by_hand() -> None:
    """E = [[0, 0], [0, 0], [1, 2], [3, -6]] and identity layers: the mean of words 2 and 3 is (2, -2), of
    which ReLU leaves (2, 0); log softmax takes log(e² + 1) from both."""
    model = MeanClassifier(4, 2, embedding=2, hidden=2)
    with torch.no_grad():
        model.embedding.weight.copy_(torch.tensor([[0, 0], [0, 0], [1, 2], [3, -6]]))
        for layer in (model.hidden, model.head):
            layer.weight.copy_(torch.eye(2))
            layer.bias.zero_()
    log_z = math.log(math.exp(2) + 1)
    padded = model(torch.tensor([[2, 3, 0, 0, 0]]), torch.tensor([2]))
    assert_close(padded, torch.tensor([[2 - log_z, -log_z]]), torch.float32)


def test_bayes_by_hand() -> None:
    """Words <UNK>, good and bad (1, 2, 3), so V is 3. One sour tweet, "bad bad good", and two glad ones,
    "good" twice. So P(sour) is 1/3 and P(glad) 2/3; P(w | sour) is 1/6, 2/6, 3/6, and P(w | glad) 1/5, 3/5,
    1/5.

    Of "good bad", P(sour) is to P(glad) as 1/3 · 2/6 · 3/6 = 1/18 to 2/3 · 3/5 · 1/5 = 2/25, or 25 to 36; of
    "bad <UNK> <UNK>" as 1/3 · 3/6 · 1/6 · 1/6 = 1/216 to 2/3 · 1/5 · 1/5 · 1/5 = 2/375, or 375 to 432.
    """
    model = NaiveBayes.count([[3, 3, 2], [2], [2]], [0, 1, 1], vocabulary=4, classes=2)
    p = model(*pad_batch([[2, 3], [3, 1, 1]])).exp()
    expected = torch.tensor([[25 / 61, 36 / 61], [375 / 807, 432 / 807]], dtype=torch.float64)
    assert_close(p, expected)


def test_bayes_of_a_feeling_never_seen() -> None:
    """It happens where all tweets of a feeling are held out: that feeling is never the answer."""
    model = NaiveBayes.count([[2]], [0], vocabulary=3, classes=2)
    assert model(*pad_batch([[2, 1]])).exp().tolist() == [[1, 0]]


def made(kind: str) -> nn.Module:
    """A model of nine tokens and three classes: counted from something, or as it is before training."""
    if kind == "bayes":
        return NaiveBayes.count([[2, 3, 3], [4, 5], [6, 7, 8, 4]], [0, 1, 2], vocabulary=9, classes=3)
    return MeanClassifier(9, 3) if kind == "mean" else RecurrentClassifier(9, 3, cell=kind)


@pytest.mark.parametrize("kind", ["bayes", "mean", "gru", "gru-before", "lstm", "rnn"])
def test_padding_changes_nothing(kind: str) -> None:
    model = made(kind)
    texts = [[2, 3, 4], [5], [6, 7, 8, 2, 3, 4]]
    together = model(*pad_batch(texts))
    alone = torch.cat([model(*pad_batch([text])) for text in texts])
    assert_close(together, alone)
    assert_close(together.exp().sum(1), torch.ones(3, dtype=together.dtype))


@pytest.mark.parametrize(("kind", "alike"), [("bayes", True), ("mean", True), ("gru", False)])
def test_who_sees_the_order(kind: str, alike: bool) -> None:
    there, back = made(kind)(*pad_batch([[2, 3, 4, 5], [5, 4, 3, 2]]))
    assert torch.allclose(there, back, atol=1e-6) == alike


def test_an_embedding_is_a_product() -> None:
    """One-hot rows times the matrix, and the rows of the matrix: the same numbers, and the same gradient,
    which a word that stands in the text twice gets twice."""
    ids = torch.tensor([[2, 3, 3], [5, 2, 0]])
    weights = torch.randn(2, 3, 4)
    embeddings, gradients = [], []
    for embed in (lambda E: nn.functional.one_hot(ids, 6).float() @ E, lambda E: E[ids]):
        E = torch.randn(6, 4, generator=torch.Generator().manual_seed(1), requires_grad=True)
        embeddings.append(embed(E))
        gradients += torch.autograd.grad((embeddings[-1] * weights).sum(), E)
    assert torch.equal(*embeddings)
    assert_close(*gradients)
    assert torch.equal(gradients[1].abs().sum(1) > 0, torch.tensor([True, False, True, True, False, True]))


def test_a_dense_layer_is_inner_products() -> None:
    """Each output is the inner product of the input with a row of weights, plus a bias; so are gradients."""
    layer, x, weights = nn.Linear(4, 3), torch.randn(4, requires_grad=True), torch.randn(3)
    leaves = (x, layer.weight, layer.bias)
    products = [sum(x[i] * layer.weight[n, i] for i in range(4)) + layer.bias[n] for n in range(3)]
    one_by_one = torch.stack(products)  # type: ignore[arg-type]
    assert_close(layer(x), one_by_one)
    whole, own = (torch.autograd.grad((y * weights).sum(), leaves) for y in (layer(x), one_by_one))
    assert_close(whole, own)


def test_word_by_word_is_tweet_by_tweet() -> None:
    task = Task.of(generate(50, seed=1), [NEGATIVE, POSITIVE])
    model = build(task.config("recurrent", "gru"))
    read = picture.word_by_word(task, model, ["the", "film", "was"])
    assert_close(read[1:2].log(), predict(model, [task.vocabulary.ids(["the", "film"])]), torch.float32)
    assert_close(read.sum(1), torch.ones(3))


class Fixed(nn.Module):
    """Probabilities 1/2 and 1/4 of the right answers 0 and 1, whatever is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.log_p = nn.Parameter(torch.tensor([[0.5, 0.5], [0.75, 0.25]]).log())

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        return self.log_p


def test_loss_and_accuracy_by_hand() -> None:
    """-log 1/2 - log 1/4 = 3 log 2, of two tweets with five tokens; class 0 is right, class 1 is not
    found."""
    batch = [Example([2, 3, 4], 0), Example([5, 6], 1)]
    total, terms, tokens = loss(Fixed(), batch)
    assert total.item() == pytest.approx(3 * math.log(2))
    assert (terms, tokens) == (2, 5)
    assert accuracy(Fixed(), batch) == {"accuracy": 0.5}


def test_rare_words_are_unknown() -> None:
    tweets = [Tweet("good good once", POSITIVE), Tweet("good other other", NEGATIVE)]
    task = Task.of(tweets, [POSITIVE, NEGATIVE])
    assert task.vocabulary.tokens[2:] == ["good", "other"]
    assert task.encode(tweets) == [Example([2, 2, 1], 1), Example([2, 3, 3], 0)]
