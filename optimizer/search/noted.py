"""Similarities as recipes note them."""

from collections.abc import Mapping, Sequence
from typing import Any

from optimizer.similarity import total_similarity

__all__ = ["noted_scores"]


def noted_scores(
    scores: Mapping[str, float],
    *,
    unchanged: Sequence[str] = (),
    pooled: float | None = None,
    order: Sequence[str] = (),
) -> dict[str, Any]:
    """Similarities {block: value} as recipes hold them, with their total; `unchanged` blocks without a value.

    If there are such, the blocks are in the given `order`.
    """
    rounded: dict[str, float | None] = {block: round(value, 9) for block, value in scores.items()}
    if unchanged:
        rounded |= dict.fromkeys(unchanged)
        rounded = {block: rounded[block] for block in (*order, *rounded) if block in rounded}
    return {
        "total": round(total_similarity(scores), 9) if scores else None,
        **({} if pooled is None else {"pooled": round(pooled, 9)}),
        "blocks": rounded,
    }
