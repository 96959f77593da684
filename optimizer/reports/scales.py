"""Axes and colour scales that compare from fit to fit: they begin and end at a few fixed numbers, not at the data's."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from optimizer.reports.alphas import AlphaRow

__all__ = ["MOST_LEVELS", "Scale", "Span", "short_number"]

MOST_LEVELS = 20
"""The level of the largest alpha in a colour scale."""

# Where axes of similarity may begin, in per cent, and the distance of their ticks; all end at 100.
_BEGINNINGS = ((99.99, 0.002), (99.9, 0.02), (99.0, 0.2), (90.0, 2.0), (50.0, 10.0), (0.0, 20.0), (-100.0, 50.0))
# Room beyond the first and the last tick, as shares of the axis; labels of ceilings need the latter.
_BELOW, _ABOVE = 0.06, 0.13
# Where colour scales of alphas may end.
_ENDS = (1.0, 1.5, 2.0, 3.0, 5.0, 10.0)
# Similarities in per cent nearer than this differ by rounding alone.
_SAME = 1e-9


@dataclass(frozen=True)
class Span:
    """An axis of similarities in per cent.

    Attributes:
        low: Its lower end.
        high: Its upper end.
        ticks: Its ticks.
    """

    low: float
    high: float
    ticks: tuple[float, ...]

    @classmethod
    def of(cls, values: Iterable[float], metric: str = "") -> "Span":
        """Return the narrowest of the axes that shows all values.

        Args:
            values: Similarities in per cent.
            metric: Their metric. Shares explained always have the axis from 0 to 100; what is below is cut off.

        Returns:
            The axis.
        """
        finite = [value for value in values if math.isfinite(value)]
        least = 0.0 if metric == "explained" else min(finite, default=0.0)
        low, distance = next((pair for pair in _BEGINNINGS if pair[0] <= least + _SAME), _BEGINNINGS[-1])
        count = round((100 - low) / distance)
        return cls(
            low - _BELOW * (100 - low),
            100 + _ABOVE * (100 - low),
            tuple(round(low + number * distance, 6) for number in range(count + 1)),
        )

    @property
    def labels(self) -> tuple[str, ...]:
        """The ticks as texts with equally many decimals."""
        decimals = max(len(f"{tick:g}".partition(".")[2]) for tick in self.ticks)
        return tuple(f"{tick:.{decimals}f}" for tick in self.ticks)


@dataclass(frozen=True)
class Scale:
    """A colour scale for alphas: 20 levels of absolute value, from 0 (palest) to `largest`."""

    largest: float
    negative: bool

    @staticmethod
    def of(rows: Iterable[AlphaRow]) -> "Scale":
        """Return a scale that covers all searched alphas of the rows; it ends at 1 unless one of them is larger."""
        found = [number for row in rows for number in row.found]
        most = max([0.0, *map(abs, found)])
        ends = (end for end in _ENDS if most <= end)
        return Scale(next(ends, 10.0 ** math.ceil(math.log10(max(most, 1.0)))), min([0.0, *found]) < 0)

    def level(self, alpha: float) -> int:
        """Return the level of an alpha, from 0 to 20."""
        return round(MOST_LEVELS * min(abs(alpha) / self.largest, 1.0))

    def style(self, alpha: float, searched: bool = True) -> str:
        """Return the CSS class of a cell."""
        if not searched:
            return "unsearched"
        return f"{'n' if alpha < 0 else 'p'}{self.level(alpha)}"

    @property
    def steps(self) -> list[tuple[str, str]]:
        """Fields of the legend, (CSS class, number), in ascending order."""
        shares = [n / 5 for n in range(-5 if self.negative else 0, 6)]
        return [(self.style(share * self.largest), short_number(share * self.largest)) for share in shares]


def short_number(number: float) -> str:
    """Return an alpha with two decimals in the shortest form: `.42`, `-.05`, `0`, `1`."""
    text = f"{number:.2f}"
    if float(text) == 0:
        return "0"
    return text.removesuffix(".00").replace("0.", ".", 1) if abs(number) < 1 else text.removesuffix(".00")
