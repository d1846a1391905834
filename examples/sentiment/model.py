"""Two readers of a tweet: one that sees a bag of words, one that reads them in order."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from examples.common.layers import recurrent


class MeanClassifier(nn.Module):
    """Embedding, the mean of it over a tweet's tokens, a ReLU layer, log softmax.

        m = (1 / L) Σ_{t ≤ L} E[w_t],    log p = log softmax(W₂ relu(W₁ m + b₁) + b₂)

    L is the tweet's own length: padding does not enter the mean. Neither does the order of words.

    Args:
        vocabulary, classes: How many tokens and classes there are.
        embedding, hidden: Sizes of E's rows and of the ReLU layer.
    """

    def __init__(self, vocabulary: int, classes: int, *, embedding: int = 32, hidden: int = 32) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, embedding, padding_idx=0)
        self.hidden = nn.Linear(embedding, hidden)
        self.head = nn.Linear(hidden, classes)

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Token ids [B, T], padded with 0, and lengths [B] -> log probabilities [B, classes]."""
        total = self.embedding(ids).sum(1)  # the padding's row is zero, and stays so
        mean = total / lengths.to(total.device)[:, None]
        return self.head(self.hidden(mean).relu()).log_softmax(-1)


class RecurrentClassifier(nn.Module):
    """Embedding, a GRU (or another cell), log softmax of its state after a tweet's last token.

        h_t = GRU(E[w_t], h_{t-1}),    log p = log softmax(W h_L + b)

    Cho et al. 2014, arXiv:1406.1078.

    Args:
        vocabulary, classes: How many tokens and classes there are.
        embedding, hidden: Sizes of E's rows and of the state.
        cell: One of `layers.CELLS`.
        backend: "fused" or, where it has the cell, "torch".
    """

    def __init__(
        self,
        vocabulary: int,
        classes: int,
        *,
        embedding: int = 32,
        hidden: int = 32,
        cell: str = "gru",
        backend: str = "fused",
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, embedding, padding_idx=0)
        self.recurrent = recurrent(cell, embedding, hidden, backend=backend, batch_first=True)
        self.head = nn.Linear(hidden, classes)

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Token ids [B, T], padded with 0, and lengths [B] -> log probabilities [B, classes]."""
        packed = pack_padded_sequence(self.embedding(ids), lengths, batch_first=True, enforce_sorted=False)
        _, state = self.recurrent(packed)
        h = state[0] if isinstance(state, tuple) else state  # an LSTM's state is (h, c)
        return self.head(h[-1]).log_softmax(-1)
