"""The classifier that counts: naive Bayes, the baseline that trained models have to beat."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class NaiveBayes(nn.Module):
    """Multinomial naive Bayes with Laplace smoothing.

        P(c) = N_c / N,    P(w | c) = (n_cw + 1) / (Σ_v n_cv + V)
        log p = log softmax_c (log P(c) + Σ_{t ≤ L} log P(w_t | c))

    Of N tweets, N_c are of class c, and word w stands n_cw times in them; V is the number of different words,
    <UNK> among them and <PAD> not. It is naive to take the words of a tweet for independent of each other
    once its class is known: then their order cannot matter, nor which of them stand together. The 1 keeps a
    word that a class never had from ruling that class out.

    Manning, Raghavan, Schütze 2008, Introduction to Information Retrieval, chapter 13.

    Args:
        vocabulary, classes: How many tokens, the special ones included, and classes there are.
    """

    def __init__(self, vocabulary: int, classes: int) -> None:
        super().__init__()
        # Counts are parameters that no gradient changes, so that checkpoints and devices take them along.
        zeros = torch.zeros(classes, vocabulary, dtype=torch.float64)
        self.tweets = nn.Parameter(zeros[:, 0].clone(), requires_grad=False)  # N_c, [classes]
        self.words = nn.Parameter(zeros, requires_grad=False)  # n_cw, [classes, vocabulary]

    @classmethod
    def count(
        cls, texts: Sequence[Sequence[int]], labels: Sequence[int], vocabulary: int, classes: int
    ) -> NaiveBayes:
        """The model of some texts, each of them ids, and of their classes.

        Example:
            >>> NaiveBayes.count([[2, 2, 3], [3]], [0, 1], vocabulary=4, classes=2).words.tolist()
            [[0.0, 0.0, 2.0, 1.0], [0.0, 0.0, 0.0, 1.0]]
        """
        made = cls(vocabulary, classes)
        for ids, label in zip(texts, labels, strict=True):
            made.tweets[label] += 1
            made.words[label] += torch.bincount(torch.tensor(ids), minlength=vocabulary)
        return made

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Token ids [B, T], padded with 0, and lengths [B] -> log probabilities [B, classes], in float64."""
        different = self.words.size(1) - 1
        log_p = ((self.words + 1) / (self.words.sum(1, keepdim=True) + different)).log()
        log_p[:, 0] = 0  # so that padding adds nothing
        prior = (self.tweets / self.tweets.sum()).log()
        return (prior + log_p.T[ids].sum(1)).log_softmax(-1)
