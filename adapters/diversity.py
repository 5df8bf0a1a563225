"""Re-ranking for variety: maximal marginal relevance over the best candidates of n users."""

from __future__ import annotations

import torch
from torch import Tensor


def diversify(
    scores: Tensor, rows: Tensor, vectors: Tensor, k: int, diversity: float
) -> tuple[Tensor, Tensor]:
    """Choose k of C candidates [n, C], best first, so that the list repeats itself less.

    Each place goes to the candidate with the largest (1 - diversity) relevance - diversity
    likeness, where relevance is the score scaled to [0, 1] over the user's candidates and likeness
    the largest product of its unit vector (`vectors` [N, T]) with one above. Places that must not
    be ranked (scores below -1e29) stay last. Returns scores and rows [n, k]; the first stays.
    """
    valid = scores > -1e29
    low = torch.where(valid, scores, torch.inf).amin(1, keepdim=True)
    high = scores[:, :1]
    relevance = (scores - low) / (high - low).clamp(min=1e-6)
    value = torch.where(valid, (1 / diversity - 1) * relevance, -1e29)
    flat = rows.clamp(max=len(vectors) - 1).flatten()
    chosen = vectors.index_select(0, flat).view(*rows.shape, vectors.shape[1])  # [n, C, T]
    order = _greedy(value, torch.bmm(chosen, chosen.transpose(1, 2)), k)
    return scores.gather(1, order), rows.gather(1, order)


def _greedy(value: Tensor, alike: Tensor, k: int) -> Tensor:
    """Places [n, k] chosen one after the other; value [n, C], alike [n, C, C]."""
    n, width = value.shape
    first = torch.arange(n, device=value.device) * width
    penalty, value, left = torch.zeros_like(value), value.clone(), torch.empty_like(value)
    order: list[Tensor] = []
    for _ in range(k):
        best = torch.sub(value, penalty, out=left).argmax(1)
        value.scatter_(1, best[:, None], -torch.inf)
        above = alike.view(n * width, width).index_select(0, first + best)
        torch.maximum(penalty, above, out=penalty)
        order.append(best)
    return torch.stack(order, 1)
