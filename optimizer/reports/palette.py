"""The one palette of plots and report: each colour has a role, the same in every fit."""

from collections.abc import Mapping

__all__ = ["DARK", "LIGHT", "number_colour", "ramp_share"]

LIGHT: Mapping[str, str] = {
    "page": "#fbfbfa", "card": "#fff", "ink": "#1b1f24", "quiet": "#5a6370", "rule": "#dcdfe3", "grid": "#e8eaed",
    "link": "#0b5cad", "ramp": "0 68 136", "other": "170 60 0",
    "best": "#0072b2", "worse": "#c24a00", "good": "#007d5b", "trial": "#7b8694", "paper": "#eef0f2",
    "hatch": "#d3d7dc", "shade": "#0003", "alarm": "#8f2d00", "alarm-back": "#fff4ec", "alarm-rule": "#e2a27f",
    "code": "#f3f4f6",
}  # fmt: skip
"""The colours by role, on a light page; `ramp` and `other` are the red, green and blue of alphas above and below 0.

`best` is the curve and the best so far, `worse` the chosen point and what fell, `good` an exact optimum, `trial` a
trial, `ink` a ceiling. They can be told apart by colour-blind readers.
"""

DARK: Mapping[str, str] = {
    "page": "#14171b", "card": "#1a1e23", "ink": "#e6e8eb", "quiet": "#a0a9b5", "rule": "#343a42", "grid": "#2a3037",
    "link": "#7ab8f5", "ramp": "122 184 245", "other": "245 150 80",
    "best": "#58aee6", "worse": "#f0884a", "good": "#3fc49a", "trial": "#8d98a6", "paper": "#23282e",
    "hatch": "#3a4149", "shade": "#000a", "alarm": "#ffb38a", "alarm-back": "#2b1d15", "alarm-rule": "#7d4a2c",
    "code": "#20252b",
}  # fmt: skip
"""The same on a dark page."""


def ramp_share(level: int) -> float:
    """Return the opacity, in [0, 1], of `ramp` or `other` for a level of absolute value from 0 to 20."""
    return 0.04 + level * 0.048


def number_colour(level: int, *, negative: bool = False, dark: bool = False) -> str:
    """Return the colour of a number on `ramp` or `other`, with a contrast of at least 4.5 to 1.

    Args:
        level: The level of the alpha's absolute value, 0 to 20.
        negative: Whether the alpha is below 0.
        dark: Whether the page is dark.

    Returns:
        Black or white.
    """
    if dark:
        return "#000" if level >= (13 if negative else 12) else "#fff"
    return "#fff" if level >= (17 if negative else 14) else "#000"
