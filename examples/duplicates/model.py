"""One encoder for both questions: from a question to a vector of length one."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from examples.common.layers import recurrent


class Encoder(nn.Module):
    """Embedding, recurrent layer, mean over time, L2 normalisation.

        h_t = LSTM(E[w_t], h_{t-1}),    m = (1 / L) Σ_{t ≤ L} h_t,    v = m / ‖m‖

    Two questions are compared by the cosine of their vectors, v·v', which is why one encoder with one set of
    weights has to make both: a Siamese network (Bromley et al. 1993; with LSTMs, Mueller, Thyagarajan 2016).

    Args:
        vocabulary: How many tokens there are.
        embedding, hidden: Sizes of E's rows and of the vectors.
        cell: One of `layers.CELLS`; or "none" for a ReLU layer in its place, h_t = relu(W E[w_t] + b), which
            makes the vector that of a bag of words.
        backend: "fused" or, where it has the cell, "torch".
    """

    def __init__(
        self,
        vocabulary: int,
        *,
        embedding: int = 64,
        hidden: int = 128,
        cell: str = "lstm",
        backend: str = "fused",
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, embedding, padding_idx=0)
        self.states: nn.Module
        if cell == "none":
            self.states = nn.Sequential(nn.Linear(embedding, hidden), nn.ReLU())
        else:
            self.states = recurrent(cell, embedding, hidden, backend=backend, batch_first=True)

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Token ids [B, T], padded with 0, and lengths [B] -> vectors [B, hidden] of length 1."""
        packed = pack_padded_sequence(self.embedding(ids), lengths, batch_first=True, enforce_sorted=False)
        if isinstance(self.states, nn.RNNBase):
            packed = self.states(packed)[0]
        else:
            packed = packed._replace(data=self.states(packed.data))
        output, _ = pad_packed_sequence(
            packed, batch_first=True
        )  # zero at padding, which adds nothing to the sum
        mean = output.sum(1) / lengths.to(output.device)[:, None]
        return nn.functional.normalize(mean, dim=-1)
