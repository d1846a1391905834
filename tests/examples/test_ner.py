"""Named entities: tags and spans, CoNLL columns, the masked loss, and what reading both ways is worth."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from examples.common import checkpoint
from examples.common.errors import InputError
from examples.common.text import pad_batch
from examples.ner import data
from examples.ner.__main__ import main
from examples.ner.data import Sentence
from examples.ner.generator import generate
from examples.ner.learn import NO_TAG, Example, Task, build, loss, masked_nll, predict
from examples.ner.model import Memory, Tagger
from examples.ner.spans import Score, Span, score, spans, split_tag, to_iob2
from tests.conftest import assert_close

# ---------------------------------------------------------------- spans


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        ("", []),
        ("O O", []),
        ("B-A I-A O B-A", [(0, 2, "A"), (3, 4, "A")]),
        ("B-A B-A I-A", [(0, 1, "A"), (1, 3, "A")]),
        ("B-A I-B", [(0, 1, "A"), (1, 2, "B")]),  # cannot continue another type, so it begins
        ("I-A I-A B-A I-B", [(0, 2, "A"), (2, 3, "A"), (3, 4, "B")]),  # IOB1
        ("S-A B-A I-A E-A S-B O", [(0, 1, "A"), (1, 4, "A"), (4, 5, "B")]),  # BIOES
        ("U-A B-A L-A I-A", [(0, 1, "A"), (1, 3, "A"), (3, 4, "A")]),  # BILOU, then one that begins with I
        ("E-A E-A", [(0, 1, "A"), (1, 2, "A")]),
        ("B-A-B", [(0, 1, "A-B")]),
    ],
)
def test_spans(tags: str, found: list[tuple[int, int, str]]) -> None:
    assert spans(tags.split()) == [Span(*span) for span in found]
    assert spans(to_iob2(tags.split())) == [Span(*span) for span in found]


@pytest.mark.parametrize("tag", ["", "B", "B-", "X-A", "o", "-A", "PER"])
def test_no_tag(tag: str) -> None:
    with pytest.raises(ValueError, match=r"is not O and not B-"):
        split_tag(tag)


def test_scores_by_hand() -> None:
    """Of 3 entities there, 2 are found rightly; a third is found too short, a fourth where there is none."""
    actual = [["B-A", "I-A", "O", "B-B"], ["B-B", "O"]]
    predicted = [["B-A", "O", "O", "B-B"], ["B-B", "B-A"]]
    scores = score(predicted, actual)
    assert scores == {"A": Score(2, 1, 0), "B": Score(2, 2, 2), "all": Score(4, 3, 2)}
    assert scores["all"].precision == pytest.approx(1 / 2)
    assert scores["all"].recall == pytest.approx(2 / 3)
    assert scores["all"].f1 == pytest.approx(4 / 7)
    assert (scores["A"].precision, scores["A"].f1) == (0, 0)
    assert score([["O"]], [["O"]])["all"].f1 == 0  # nothing to find: no division by zero


def test_scores_need_as_many_tags() -> None:
    with pytest.raises(ValueError, match="1 predicted tags for 2 tokens"):
        score([["O"]], [["O", "O"]])


# ---------------------------------------------------------------- files


def test_conll_columns(tmp_path: Path) -> None:
    path = tmp_path / "eng.train"
    first = "-DOCSTART- -X- -X- O\n\nEU NNP I-NP I-ORG\nrejects VBZ I-VP O\n\n\n"
    path.write_text(first + "Peter NNP I-NP I-PER\nB. NNP I-NP I-PER")
    expected = [Sentence(("EU", "rejects"), ("B-ORG", "O")), Sentence(("Peter", "B."), ("B-PER", "I-PER"))]
    assert data.read(path) == expected
    path.write_text("New York\tB-LOC\nis\tO\n")
    assert data.read(path) == [Sentence(("New York", "is"), ("B-LOC", "O"))]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("EU B-ORG\nrejects\n", ":2: expected a token and its tag, found 'rejects'"),
        ("EU NNP B-ORG\n\nrejects VBZ\n", ":3: expected 3 columns, as in the lines before, found 2"),
        ("EU B-ORG\nrejects 0\n", ":2: expected a tag: .*, found '0'"),
        ("EU B-ORG\nParis B-LOC\n", ":2: expected one of the trained types ORG, PER, found 'LOC'"),
        ("-DOCSTART- O\n\n", "expected sentences, found none"),
    ],
)
def test_broken_lines(lines: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "file.conll"
    path.write_text(lines)
    with pytest.raises(InputError, match=message):
        data.read(path, {"PER", "ORG"})


def test_generated_sentences_are_read_back(tmp_path: Path) -> None:
    sentences = generate(300, seed=4)
    path = tmp_path / "file.conll"
    path.write_text(data.write(sentences))
    assert data.read(path) == sentences
    assert generate(300, seed=5) != sentences
    types = {tag[2:] for sentence in sentences for tag in sentence.tags}
    assert types == {"", "PER", "LOC", "ORG"}


# ---------------------------------------------------------------- models and loss


def test_masked_loss_by_hand() -> None:
    """-log 1/2 - log 1/4 - log 1/8 = 6 log 2 over three real tokens; the padding's would be infinite."""
    p = torch.tensor([[[0.5, 0.5], [0.25, 0.75]], [[0.875, 0.125], [0.0, 1.0]]])
    tags = torch.tensor([[0, 0], [1, NO_TAG]])
    assert float(masked_nll(p.log(), tags)) == pytest.approx(6 * math.log(2))


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_padding_never_counts(cell: str, bidirectional: bool) -> None:
    """The loss of a batch, and its gradient, are those of its sentences one by one."""
    model = Tagger(9, 3, cell=cell, bidirectional=bidirectional)
    batch = [
        Example([2, 3, 4], [0, 1, 2]),
        Example([5], [1]),
        Example([6, 7, 8, 2, 3, 4], [2, 0, 0, 1, 1, 0]),
    ]
    together = loss(model, batch)
    together.sum.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    alone = [loss(model, [example]) for example in batch]
    total = torch.stack([part.sum for part in alone]).sum()
    total.backward()
    assert together[1:] == (10, 10)
    assert_close(together.sum, total)
    assert_close(gradients, {name: p.grad for name, p in model.named_parameters()}, torch.float32)
    assert gradients["embedding.weight"][0].abs().sum() == 0


def test_one_way_does_not_see_what_follows() -> None:
    ids, lengths = pad_batch([[2, 3, 4, 5]])
    changed = torch.tensor([[2, 3, 4, 6]])
    one, two = Tagger(9, 3, bidirectional=False), Tagger(9, 3, bidirectional=True)
    assert torch.equal(one(ids, lengths)[:, :3], one(changed, lengths)[:, :3])
    assert not torch.equal(two(ids, lengths)[:, 0], two(changed, lengths)[:, 0])


def test_predicted_tags_fit_the_sentences() -> None:
    task = Task.of(generate(50, seed=1), {"PER", "LOC", "ORG"})
    assert task.tags == ["O", "B-LOC", "I-LOC", "B-ORG", "I-ORG", "B-PER", "I-PER"]
    found = predict(build(task.config(True, "lstm")), task, [["a"] * n for n in (3, 1, 5)], batch=2)
    assert [len(tags) for tags in found] == [3, 1, 5]
    assert {tag for tags in found for tag in tags} <= set(task.tags)


def test_memory_of_words() -> None:
    memory = Memory.of([Sentence(("a", "b", "c"), ("O", "B-X", "B-X")), Sentence(("a", "a"), ("O", "B-X"))])
    assert memory(["a", "b", "new"]) == ["O", "B-X", "B-X"]
    assert Memory.from_json(memory.to_json())(["a", "new"]) == ["O", "B-X"]


# ---------------------------------------------------------------- the program


def test_no_entities_at_all() -> None:
    Path("file.conll").write_text("a O\nb O\n\nb O\n")
    assert main(["train", "--data", "file.conll", "--epochs", "1"]) == 0
    assert main(["evaluate", "--data", "file.conll"]) == 0


@pytest.mark.slow
def test_context_is_learned(capsys: pytest.CaptureFixture[str]) -> None:
    """On sentences never seen, whole entities: F1 above 0.93 for reading both ways, and for one way or for a
    memory of each word's tag far below."""
    assert main(["train", "--epochs", "5"]) == 0
    assert "generated data" in capsys.readouterr().out
    assert Path("out/ner/ner.png").stat().st_size > 10_000
    saved = {name: checkpoint.load(Path(f"out/ner/{name}.safetensors"))[1] for name in ("one-way", "two-way")}
    f1 = {name: own["history"]["epochs"][-1]["F1"] for name, own in saved.items()}
    memory = Memory.from_json(saved["two-way"]["config"]["memory"])
    assert f1["two-way"] > 0.93
    assert f1["two-way"] > f1["one-way"] + 0.15
    assert f1["one-way"] > memory.scores(generate(200, seed=9))["all"].f1 + 0.15

    assert main(["evaluate"]) == 0
    capsys.readouterr()
    assert main(["predict", "Jordan, the striker, left the port of Paris."]) == 0
    assert capsys.readouterr().out.endswith("entities: Jordan (PER), Paris (LOC)\n")
    assert main(["predict", " "]) == 2
    assert "expected a text with words in it" in capsys.readouterr().err
    Path("other").write_text("Java B-LANGUAGE\n")
    assert main(["evaluate", "--data", "other"]) == 2
    assert "other:1: expected one of the trained types LOC, ORG, PER" in capsys.readouterr().err
