"""The triplet loss over a batch of duplicates, from the matrix of their similarities."""

from __future__ import annotations

import torch
from torch import Tensor

NEGATIVES = ("mean", "closest", "sum")


def triplet_costs(similarity: Tensor, margin: float, first: int = 0, negatives: str = "sum") -> Tensor:
    """The cost of each row, by its mean negative, by its closest negative, or by both.

    With s_ij the cosine similarity of question i with the duplicate of question j, of B questions that are
    all different, s_ii is that of a question with its own duplicate and every s_ij, j ≠ i, that with a
    negative:

        mean negative      m_i = (1 / (B - 1)) Σ_{j ≠ i} s_ij
        closest negative   n_i = max_{j ≠ i} s_ij

        "mean"             c_i = max(0, α - s_ii + m_i)
        "closest"          c_i = max(0, α - s_ii + n_i)
        "sum"              c_i = max(0, α - s_ii + m_i) + max(0, α - s_ii + n_i)

    and the loss is Σ_i c_i. As n_i ≥ m_i, "closest" never costs less than "mean", and it is zero only where
    a question is closer to its duplicate, by the margin α, than to any other question; "mean" is zero as soon
    as that holds on average (Schroff, Kalenichenko, Philbin 2015, arXiv:1503.03832).

    Args:
        similarity: [b, B], rows `first` to `first + b - 1` of the whole matrix [B, B]; b < B where processes
            share it.
        margin: α.
        negatives: One of NEGATIVES.

    Returns:
        c [b].

    Raises:
        ValueError: There is no negative (B < 2), the diagonal does not meet all rows, or `negatives` is none
            of NEGATIVES.

    Example:
        >>> similarity = torch.tensor([[0.9, 0.8, 0.1], [0.1, 0.5, 0.0], [0.1, 0.1, 0.5]])
        >>> triplet_costs(similarity, margin=0.25, negatives="mean")
        tensor([0., 0., 0.])
        >>> triplet_costs(similarity, margin=0.25, negatives="closest")
        tensor([0.1500, 0.0000, 0.0000])
    """
    rows, columns = similarity.shape
    if columns < 2 or first < 0 or first + rows > columns:
        raise ValueError(
            f"rows {first} to {first + rows - 1} of {columns} questions: no diagonal or no negatives"
        )
    if negatives not in NEGATIVES:
        raise ValueError(f"negatives are one of {', '.join(NEGATIVES)}, not {negatives!r}")
    own = similarity.diagonal(first)
    is_own = torch.eye(rows, columns, dtype=torch.bool, device=similarity.device).roll(first, dims=1)
    mean = similarity.masked_fill(is_own, 0.0).sum(1) / (columns - 1)
    closest = similarity.masked_fill(is_own, -torch.inf).amax(1)
    compared = {"mean": [mean], "closest": [closest], "sum": [mean, closest]}[negatives]
    return (margin - own + torch.stack(compared)).relu().sum(0)
