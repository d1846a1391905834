"""Tokens as ids, and lists of ids as padded batches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

__all__ = ["PAD", "UNK", "Vocabulary", "pad_batch"]

PAD, UNK = "<PAD>", "<UNK>"


class Vocabulary:
    """Tokens and their ids, both ways: `<PAD>` is 0, `<UNK>` is 1, the others follow in the order given.

    Args:
        tokens: The other tokens, without repetition.

    Example:
        >>> vocabulary = Vocabulary.build([["to", "be", "or", "not", "to", "be"]], min_count=2)
        >>> vocabulary.tokens
        ['<PAD>', '<UNK>', 'be', 'to']
        >>> vocabulary.ids(["not", "to", "be"]), vocabulary.words([3, 2])
        ([1, 3, 2], ['to', 'be'])
    """

    def __init__(self, tokens: Iterable[str]) -> None:
        self.tokens = [PAD, UNK, *tokens]
        self.index = {token: i for i, token in enumerate(self.tokens)}
        if len(self.index) < len(self.tokens):
            repeated = [token for token, count in Counter(self.tokens).items() if count > 1]
            raise ValueError(f"a vocabulary has every token once, not {', '.join(map(repr, repeated))} twice")

    @classmethod
    def build(
        cls, sequences: Iterable[Iterable[str]], *, min_count: int = 1, max_size: int | None = None
    ) -> Vocabulary:
        """The tokens that occur at least `min_count` times; of these the `max_size` most frequent (the two
        special ones not counted), ties in alphabetical order."""
        counts = Counter(token for sequence in sequences for token in sequence)
        frequent = sorted(
            (token for token, count in counts.items() if count >= min_count and token not in (PAD, UNK)),
            key=lambda token: (-counts[token], token),
        )
        return cls(frequent[:max_size])

    @classmethod
    def from_json(cls, tokens: list[str]) -> Vocabulary:
        """What `to_json` gave."""
        return cls(tokens[2:])

    def to_json(self) -> list[str]:
        """All tokens in the order of their ids, to be kept in a checkpoint."""
        return list(self.tokens)

    def __len__(self) -> int:
        return len(self.tokens)

    def __contains__(self, token: str) -> bool:
        return token in self.index

    def ids(self, tokens: Iterable[str]) -> list[int]:
        """The id of each token, that of `<UNK>` for those that are not here."""
        return [self.index.get(token, 1) for token in tokens]

    def words(self, ids: Iterable[int]) -> list[str]:
        """The token of each id."""
        return [self.tokens[i] for i in ids]


def pad_batch(
    sequences: Sequence[Sequence[int]], *, fill: int = 0, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Sequences of different lengths side by side.

    Args:
        sequences: B lists of ids, none of them empty.
        fill: What goes after the end of the shorter ones.

    Returns:
        ids, int64 [B, T] on `device`, T the longest length; and lengths, int64 [B], on the CPU, where
        `torch.nn.utils.rnn.pack_padded_sequence` wants them.

    Example:
        >>> pad_batch([[5, 6, 7], [8]])
        (tensor([[5, 6, 7],
                [8, 0, 0]]), tensor([3, 1]))
    """
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    if not sequences or not lengths.all():
        raise ValueError("a batch needs at least one sequence, and every sequence at least one id")
    ids = torch.full((len(sequences), int(lengths.max())), fill)
    for row, sequence in zip(ids, sequences, strict=True):
        row[: len(sequence)] = torch.as_tensor(sequence)
    return ids.to(device), lengths
