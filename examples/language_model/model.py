"""The recurrent language model, how it is trained on parts of a long text, and how it writes."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..common import layers
from ..common.train import Loss
from .data import Part
from .ngram import NGram

__all__ = ["RecurrentLM", "TruncatedBackpropagation", "log_probabilities", "perplexity", "sample"]


class RecurrentLM(nn.Module):
    """Embedding, recurrent layers, log softmax over the next token.

    With x_t the embedding of token t and s_t the state, which is all that is kept of the text so far:

        s_t = cell(x_t, s_{t-1})        p(token t+1 | tokens 1..t) = softmax(W h_t + b)

    Args:
        vocabulary: Number of different tokens.
        hidden: Features of embedding and layers.
        cell: One of `layers.CELLS`.
        depth: Number of layers.
        dropout: After the embedding, between the layers and before W.
        backend: "fused" or, where it has the cell, "torch".
    """

    def __init__(
        self,
        vocabulary: int,
        hidden: int,
        cell: str,
        depth: int = 1,
        dropout: float = 0.0,
        backend: str = "fused",
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, hidden)
        between = dropout if depth > 1 else 0.0
        self.recurrent = layers.recurrent(
            cell, hidden, hidden, backend=backend, num_layers=depth, dropout=between
        )
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(hidden, vocabulary)

    def forward(self, ids: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Tokens [T, B] and the state before them -> log p [T, B, vocabulary] and the state after."""
        output, state = self.recurrent(self.dropout(self.embedding(ids)), state)
        return self.head(self.dropout(output)).log_softmax(-1), state


def build(config: dict[str, Any], backend: str = "fused") -> RecurrentLM:
    """The network that a configuration describes."""
    size = len(config["vocabulary"])
    return RecurrentLM(size, config["hidden"], config["cell"], config["depth"], config["dropout"], backend)


class TruncatedBackpropagation:
    """The loss of a text in parts: each part starts from the state that the one before ended with, but
    gradients stop there.

    So the state may hold what happened any time ago, while one step costs no more than a part (Williams, Peng
    1990).
    """

    def __init__(self) -> None:
        self.state: Any = None

    def __call__(self, model: nn.Module, part: Part) -> Loss:
        device = next(model.parameters()).device
        state = None if part.first else self.state
        scores, state = model(part.inputs.to(device), state)
        self.state = state.detach() if isinstance(state, Tensor) else tuple(s.detach() for s in state)
        targets = part.targets.to(device)
        loss = nn.functional.nll_loss(scores.flatten(0, 1), targets.flatten(), reduction="sum")
        return Loss(loss, targets.numel(), targets.numel())


@torch.inference_mode()
def log_probabilities(model: NGram | nn.Module, ids: Tensor, length: int = 512) -> Tensor:
    """log p of each of N tokens but the first, given all those before it.

    Args:
        ids: The tokens, [N].
        length: How many a network reads at a time, its state carried on.

    Returns:
        float64 [N - 1], on the CPU.
    """
    if isinstance(model, NGram):
        return model.log_probabilities(ids.tolist())
    device = next(model.parameters()).device
    pieces, state = [], None
    for start in range(0, len(ids) - 1, length):
        piece = ids[start : start + length + 1].to(device)
        scores, state = model(piece[:-1, None], state)
        pieces.append(scores[:, 0].gather(1, piece[1:, None])[:, 0].double().cpu())
    return torch.cat(pieces)


def perplexity(log_p: Tensor) -> float:
    """exp of the mean of -log p; NaN of no tokens."""
    try:
        return math.exp(-log_p.mean())
    except OverflowError:  # of a model that has diverged
        return math.inf


def sampling_weights(scores: Tensor, temperature: float, never: tuple[int, ...]) -> Tensor:
    """What to draw tokens by, p^(1/temperature) in proportion: log p [..., V] -> float64 [..., V].

    Args:
        temperature: 0: the likeliest token, or those that are equally likely, alone.
        never: Tokens that get 0.
    """
    scores = scores.double()
    scores[..., list(never)] = -math.inf
    scores = scores - scores.amax(-1, keepdim=True)  # so that a tiny temperature has no infinity to divide
    return (scores / temperature).softmax(-1) if temperature > 0 else (scores == 0).double()


@torch.inference_mode()
def sample(
    model: NGram | nn.Module,
    prompt: list[int],
    count: int,
    *,
    temperature: float = 1.0,
    never: tuple[int, ...] = (0, 1),
    generator: torch.Generator | None = None,
) -> list[int]:
    """Tokens that go on from the prompt, each drawn from p^(1/temperature) of all before it.

    A temperature below 1 prefers likely tokens, down to 0, where it is always the likeliest; above 1 it evens
    them out. A network reads every token once and carries its state on; n-grams look at the last few again.

    Args:
        prompt: At least one token.
        count: How many to draw.
        never: Tokens that are not drawn: by default padding and the unknown.
        generator: Of torch, on the CPU.
    """
    written, state = list(prompt), None
    new = written
    for _ in range(count):
        if isinstance(model, NGram):
            scores = model.distribution(written).log()
        else:
            ids = torch.tensor(new, device=next(model.parameters()).device)
            read, state = model(ids[:, None], state)
            scores = read[-1, 0].cpu()
        weights = sampling_weights(scores, temperature, never)
        new = [int(torch.multinomial(weights, 1, generator=generator))]
        written += new
    return written[len(prompt) :]
