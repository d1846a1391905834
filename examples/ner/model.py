"""A tag for every token, from an LSTM in one direction or both; and the baseline that it has to beat."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from examples.common.layers import recurrent

from .data import Sentence
from .spans import Score, score


class Tagger(nn.Module):
    """Embedding, recurrent layer, dense layer, log softmax over the tags of each token.

        h_t = [→h_t ; ←h_t],    log p_t = log softmax(W h_t + b)

    →h_t has read the tokens up to t, ←h_t those from the sentence's end back to t (Graves, Schmidhuber 2005);
    a tagger of one direction has →h_t alone, and decides before it has read on.

    Args:
        vocabulary, tags: How many tokens and tags there are.
        embedding, hidden: Sizes of the embedding's rows and of the state of each direction.
        bidirectional: Whether it reads both ways.
        length: How many tokens of every sentence it reads, shorter ones being padded to as many; None reads
            all, and pads to the longest sentence of a batch.
        cell: One of `layers.CELLS`.
        backend: "fused" or, where it has the cell, "torch".
    """

    def __init__(
        self,
        vocabulary: int,
        tags: int,
        *,
        embedding: int = 32,
        hidden: int = 32,
        bidirectional: bool = True,
        length: int | None = None,
        cell: str = "lstm",
        backend: str = "fused",
    ) -> None:
        super().__init__()
        self.length = length
        self.embedding = nn.Embedding(vocabulary, embedding, padding_idx=0)
        self.recurrent = recurrent(
            cell, embedding, hidden, backend=backend, batch_first=True, bidirectional=bidirectional
        )
        self.head = nn.Linear(hidden * (2 if bidirectional else 1), tags)

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Token ids [B, T], padded with 0, and lengths [B] -> log probabilities [B, T, tags].

        Packing keeps the backward direction from reading padding first, and both from computing with it; what
        stands at padding has no meaning, and the loss leaves it out.
        """
        packed = pack_padded_sequence(self.embedding(ids), lengths, batch_first=True, enforce_sorted=False)
        output, _ = pad_packed_sequence(self.recurrent(packed)[0], batch_first=True, total_length=ids.size(1))
        return self.head(output).log_softmax(-1)


class Memory:
    """The baseline: every word gets the tag that it most often had in training, whatever stands around it.

    Args:
        tags: The tag of each word.
        unknown: The tag of all other words.
    """

    def __init__(self, tags: dict[str, str], unknown: str) -> None:
        self.tags, self.unknown = tags, unknown

    @classmethod
    def of(cls, sentences: Iterable[Sentence]) -> Memory:
        """What training sentences say. A word not among them gets the most frequent tag of words seen once,
        which are what unknown words will be like; ties go to the first in the alphabet."""
        counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for sentence in sentences:
            for token, tag in zip(*sentence, strict=True):
                counts[token][tag] += 1
        once = Counter(tag for own in counts.values() if own.total() == 1 for tag in own)
        return cls({token: _most_frequent(own) for token, own in counts.items()}, _most_frequent(once))

    def scores(self, sentences: Sequence[Sentence]) -> dict[str, Score]:
        """The scores, by type, of what it finds in sentences whose entities are known."""
        return score([self(s.tokens) for s in sentences], [s.tags for s in sentences])

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> Memory:
        """What `to_json` gave."""
        return cls(saved["tags"], saved["unknown"])

    def to_json(self) -> dict[str, Any]:
        return {"tags": self.tags, "unknown": self.unknown}

    def __call__(self, tokens: Sequence[str]) -> list[str]:
        """A tag for each token.

        Example:
            >>> Memory({"Paris": "B-LOC"}, unknown="O")(["in", "Paris"])
            ['O', 'B-LOC']
        """
        return [self.tags.get(token, self.unknown) for token in tokens]


def _most_frequent(counts: Counter[str]) -> str:
    return min(counts, key=lambda tag: (-counts[tag], tag), default="O")
