"""The triplet loss over a batch of duplicates, from the matrix of their similarities."""

from __future__ import annotations

import torch
from torch import Tensor


def triplet_costs(similarity: Tensor, margin: float, first: int = 0) -> Tensor:
    """The cost of each row, by its mean negative and its closest negative.

    With s_ij the cosine similarity of question i with the duplicate of question j, of B questions that are
    all different, s_ii is that of a question with its own duplicate and every s_ij, j ≠ i, that with a
    negative:

        mean negative      m_i = (1 / (B - 1)) Σ_{j ≠ i} s_ij
        closest negative   n_i = max_{j ≠ i} s_ij
        cost               c_i = max(0, α - s_ii + m_i) + max(0, α - s_ii + n_i)

    and the loss is Σ_i c_i. It is zero where a question is closer to its duplicate, by the margin α, than to
    any other question. The mean moves all the negatives a little and learns fast at first; the closest one
    costs more, and is what is left to learn from when the mean is far away already (Schroff, Kalenichenko,
    Philbin 2015, arXiv:1503.03832).

    Args:
        similarity: [b, B], rows `first` to `first + b - 1` of the whole matrix [B, B]; b < B where processes
            share it.
        margin: α.

    Returns:
        c [b].

    Raises:
        ValueError: There is no negative (B < 2), or the diagonal does not meet all rows.

    Example:
        >>> triplet_costs(torch.tensor([[0.9, 0.8], [0.1, 0.5]]), margin=0.25)
        tensor([0.3000, 0.0000])
    """
    rows, columns = similarity.shape
    if columns < 2 or first < 0 or first + rows > columns:
        raise ValueError(
            f"rows {first} to {first + rows - 1} of {columns} questions: no diagonal or no negatives"
        )
    own = similarity.diagonal(first)
    is_own = torch.eye(rows, columns, dtype=torch.bool, device=similarity.device).roll(first, dims=1)
    mean = similarity.masked_fill(is_own, 0.0).sum(1) / (columns - 1)
    closest = similarity.masked_fill(is_own, -torch.inf).amax(1)
    return (margin - own + mean).relu() + (margin - own + closest).relu()
