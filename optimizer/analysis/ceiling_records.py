"""The records of the best similarity that a study can reach, and how they show themselves."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from optimizer.analysis.ranges import NarrowRange
from optimizer.analysis.verdict import Verdict
from optimizer.html import html_paragraphs, html_table
from optimizer.similarity import total_similarity

__all__ = ["BlockCeiling", "Ceiling", "Ceilings", "Coefficient", "Identified", "SourceShare"]

# Sources in a table for notebooks.
_MOST_SHOWN = 15
_TOTALS = {
    "recipe": "best recipe",
    "best": "best free alphas",
    "ceiling_bounded": "any merge with coefficients in 0..1",
    "ceiling": "any merge",
}


@dataclass(frozen=True)
class BlockCeiling:
    """The similarities of one block, in [-1, 1]: as fitted and at best.

    `recipe` is that of the study's best recipe, None without one; `best` that of the best free alphas; `ceiling` that
    of the best linear merge; `ceiling_bounded` that of the best linear merge whose coefficients, except the base's, are
    in 0 to 1.

    The scales are the factors on the merged difference (for `weights`: on the merged weights) that bring it nearest to
    the target's. A cosine does not depend on them.
    """

    recipe: float | None
    best: float
    ceiling: float
    ceiling_bounded: float
    recipe_scale: float | None
    best_scale: float

    @property
    def not_in_sources(self) -> float:
        """Similarity that no linear merge of the sources reaches: 1 less the ceiling."""
        return 1.0 - self.ceiling


@dataclass(frozen=True)
class Coefficient:
    """The coefficient of a source in the target, with the jackknife's error, None for fewer than two tensors.

    `coefficient` minimises |merged - target|. For `weighed`, tensors are weighted by how well the sources explain them;
    if part of the target is in no source, that estimate is much closer to the true coefficient.
    """

    coefficient: float
    error: float | None
    weighed: float
    weighed_error: float | None

    def as_dict(self) -> dict[str, Any]:
        """Return the fields for JSON."""
        return {
            "coefficient": self.coefficient,
            "error": self.error,
            "weighed": self.weighed,
            "weighed_error": self.weighed_error,
        }


@dataclass(frozen=True)
class SourceShare(Coefficient):
    """The coefficient of a source over all blocks and in each of `blocks`.

    `loss` is the decrease of the total ceiling without the source.
    """

    loss: float
    blocks: Mapping[str, Coefficient]

    def as_dict(self) -> dict[str, Any]:
        """Return the fields for JSON."""
        blocks = {block: coefficient.as_dict() for block, coefficient in self.blocks.items()}
        return {**super().as_dict(), "loss": self.loss, "blocks": blocks}


@dataclass(frozen=True)
class Identified:
    """Number of independent directions in which the free alphas move the coefficients (`rank`), out of `alphas`.

    `trade_off` are the free alphas that can change together without moving the coefficients; `idle` those without any
    effect.
    """

    rank: int
    alphas: int
    trade_off: tuple[str, ...]
    idle: tuple[str, ...] = ()


@dataclass(frozen=True, repr=False)
class Ceiling:
    """The ceilings of all blocks under one metric; `note` lists caveats and is empty if there are none.

    `unchanged` are the blocks in which the target equals the base, so that the metric has nothing to score. `narrow`
    are the ranges of free alphas that exclude the best ones, computed for `explained` only. `verdict` is the same for
    all metrics.
    """

    metric: str
    blocks: Mapping[str, BlockCeiling]
    sources: Mapping[str, SourceShare]
    identified: Identified
    note: str
    unchanged: tuple[str, ...] = ()
    narrow: tuple[NarrowRange, ...] = ()
    verdict: Verdict | None = None

    @property
    def total(self) -> dict[str, float | None]:
        """Means over the blocks, by the names `recipe`, `best`, `ceiling` and `ceiling_bounded`."""
        totals: dict[str, float | None] = {}
        for name in ("recipe", "best", "ceiling", "ceiling_bounded"):
            values = {block: getattr(ceiling, name) for block, ceiling in self.blocks.items()}
            totals[name] = None if None in values.values() or not values else total_similarity(values)
        return totals

    def __repr__(self) -> str:
        """Return the verdict and the totals."""
        return repr(Ceilings((self,)))

    def _repr_html_(self) -> str:
        """Return the verdict, the totals and a table of the sources, for notebooks."""
        return Ceilings((self,))._repr_html_()

    def as_dict(self) -> dict[str, Any]:
        """Return the fields for JSON."""
        return {
            "verdict": None if self.verdict is None else self.verdict.as_dict(),
            "metric": self.metric,
            "blocks": {
                block: {
                    "recipe": ceiling.recipe,
                    "best": ceiling.best,
                    "ceiling": ceiling.ceiling,
                    "ceiling_bounded": ceiling.ceiling_bounded,
                    "not_in_sources": ceiling.not_in_sources,
                    "recipe_scale": ceiling.recipe_scale,
                    "best_scale": ceiling.best_scale,
                }
                for block, ceiling in self.blocks.items()
            }
            | dict.fromkeys(self.unchanged),
            "total": self.total,
            "sources": {name: share.as_dict() for name, share in self.sources.items()},
            "rank": self.identified.rank,
            "alphas": self.identified.alphas,
            "trade_off": list(self.identified.trade_off),
            "idle": list(self.identified.idle),
            "narrow_ranges": [narrow.as_dict() for narrow in self.narrow],
            "note": self.note,
        }


class Ceilings(tuple[Ceiling, ...]):
    """The ceilings of a study by one or several metrics, with one verdict."""

    __slots__ = ()

    def __repr__(self) -> str:
        """Return the verdict and a line with the totals by each metric."""
        lines = [] if not self or self[0].verdict is None else [repr(self[0].verdict)]
        for ceiling in self:
            totals = [
                f"{text} {value:.4%}" for name, text in _TOTALS.items() if (value := ceiling.total[name]) is not None
            ]
            lines.append(f"{ceiling.metric} over {len(ceiling.blocks)} blocks: {', '.join(totals)}")
        return "\n".join(lines) or "no ceilings"

    def _repr_html_(self) -> str:
        """Return the verdict, a table of the totals, and one of the sources, for notebooks."""
        if not self:
            return html_paragraphs(["no ceilings"])
        first = self[0]
        shown = "" if first.verdict is None else first.verdict._repr_html_()
        # Before the first fit no recipe is known.
        totals = {name: text for name, text in _TOTALS.items() if any(each.total[name] is not None for each in self)}
        rows = [
            (
                f"{ceiling.metric}, mean of {len(ceiling.blocks)} blocks",
                *("-" if (value := ceiling.total[name]) is None else f"{value:.4%}" for name in totals),
            )
            for ceiling in self
        ]
        sources = [
            (name, f"{share.weighed:.4f}", f"{share.loss:.4%}")
            for name, share in list(first.sources.items())[:_MOST_SHOWN]
        ]
        left = len(first.sources) - len(sources)
        more = [f"... and {left} more sources"] if left else []
        return (
            shown
            + html_table(("similarity", *totals.values()), rows)
            + html_table(("source", "coefficient", f"{first.metric} loses without it"), sources)
            + html_paragraphs(more)
        )
