"""Writing tunes: many side by side with a network, one after the other with counts."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

from ..language_model.model import sampling_weights
from ..language_model.ngram import NGram

__all__ = ["Model", "write"]

Model = NGram | nn.Module  # counts, or a RecurrentLM


@torch.inference_mode()
def write(
    model: Model,
    prompt: list[int],
    count: int,
    *,
    end: int,
    limit: int = 1000,
    temperature: float = 1.0,
    never: tuple[int, ...] = (0, 1),
    seed: int = 0,
) -> list[list[int]]:
    """`count` tunes that go on from the prompt, each token drawn from p^(1/temperature), normalised.

    Args:
        prompt: At least one token.
        end: The token that ends a tune; it is not part of the result.
        limit: Tokens after which a tune ends in any case.
        temperature: 0: always the likeliest token.
        never: Tokens that are not drawn: by default padding and the unknown.
        seed: The same seed draws the same tunes.
    """
    generator = torch.Generator().manual_seed(seed)
    if isinstance(model, NGram):
        counts = _Counts(model, temperature, never)
        return [_draw(counts, prompt, end, limit, generator) for _ in range(count)]
    device = next(model.parameters()).device
    scores, state = model(torch.tensor(prompt, device=device)[:, None].repeat(1, count))
    drawn: list[Tensor] = []
    alive = torch.ones(count, dtype=torch.bool)
    for _ in range(limit):
        new = torch.multinomial(
            sampling_weights(scores[-1].cpu(), temperature, never), 1, generator=generator
        )[:, 0]
        drawn.append(new)
        alive &= new != end
        if not alive.any():
            break
        scores, state = model(new[None].to(device), state)
    rows = torch.stack(drawn, 1).tolist()
    return [row[: row.index(end)] if end in row else row for row in rows]


class _Counts:
    """Cumulative distributions of an n-gram model; few contexts make most of a text, so they are kept."""

    def __init__(self, model: NGram, temperature: float, never: tuple[int, ...]) -> None:
        self.reach = model.order - 1

        @cache
        def after(context: tuple[int, ...]) -> Tensor:
            return sampling_weights(model.distribution(context).log(), temperature, never).cumsum(0)

        self.after = after


def _draw(counts: _Counts, prompt: list[int], end: int, limit: int, generator: torch.Generator) -> list[int]:
    written = list(prompt)
    uniform = torch.rand(limit, dtype=torch.float64, generator=generator)
    for u in uniform:
        context = tuple(written[len(written) - counts.reach :]) if counts.reach else ()
        cumulative = counts.after(context)
        token = int(torch.searchsorted(cumulative, u * cumulative[-1], right=True))
        if token == end:
            break
        written.append(token)
    return written[len(prompt) :]
