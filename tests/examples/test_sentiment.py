"""Tweets: tokens, the CSV of polarities, both models, and what each of them can learn."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from examples.common import checkpoint
from examples.common.errors import InputError
from examples.common.text import pad_batch
from examples.sentiment import data, picture
from examples.sentiment.__main__ import main
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


@pytest.mark.parametrize("cell", ["mean", "gru", "gru-before", "lstm", "rnn"])
def test_padding_changes_nothing(cell: str) -> None:
    model = MeanClassifier(9, 3) if cell == "mean" else RecurrentClassifier(9, 3, cell=cell)
    texts = [[2, 3, 4], [5], [6, 7, 8, 2, 3, 4]]
    together = model(*pad_batch(texts))
    alone = torch.cat([model(*pad_batch([text])) for text in texts])
    assert_close(together, alone)
    assert_close(together.exp().sum(1), torch.ones(3))


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


# ---------------------------------------------------------------- the program


def test_one_feeling_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    Path("glad.csv").write_text(data.write([Tweet("good", POSITIVE)] * 9))
    assert main(["train", "--data", "glad.csv"]) == 2
    expected = "error: glad.csv: expected tweets of two feelings at least, found only positive ones\n"
    assert capsys.readouterr().err == expected


@pytest.mark.slow
def test_order_is_learned(capsys: pytest.CaptureFixture[str]) -> None:
    """On tweets never seen, the recurrent model is right 19 times in 20, the bag of words 4 times in 5 at
    best."""
    assert main(["train", "--epochs", "6"]) == 0
    assert "generated data" in capsys.readouterr().out
    assert Path("out/sentiment/sentiment.png").stat().st_size > 10_000
    last = {
        kind: checkpoint.load(Path(f"out/sentiment/{kind}.safetensors"))[1]["history"]["epochs"][-1][
            "accuracy"
        ]
        for kind in ("mean", "recurrent")
    }
    assert last["recurrent"] > 0.93
    assert last["mean"] < 0.8

    assert main(["evaluate"]) == 0
    capsys.readouterr()
    for tweet, feeling in (("the film was awful", NEGATIVE), ("the film was not awful at all", POSITIVE)):
        assert main(["predict", tweet]) == 0
        assert capsys.readouterr().out.splitlines()[-1].split()[1] == feeling
    assert main(["predict", "%%%"]) == 2
    assert "expected a tweet with words in it" in capsys.readouterr().err
