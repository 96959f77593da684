"""Similarities as recipes note them."""

from collections.abc import Mapping, Sequence
from typing import Any

from optimizer.similarity import total_similarity

__all__ = ["noted_scores"]


def noted_scores(
    scores: Mapping[str, float], *, unchanged: Sequence[str] = (), pooled: float | None = None
) -> dict[str, Any]:
    """Similarities {block: value} as recipes hold them, with their total; the unchanged blocks without a value."""
    rounded = {block: round(value, 9) for block, value in scores.items()}
    return {
        "total": round(total_similarity(scores), 9) if scores else None,
        **({} if pooled is None else {"pooled": round(pooled, 9)}),
        "blocks": {**rounded, **dict.fromkeys(unchanged)},
    }
