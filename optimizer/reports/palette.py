"""The one palette of plots and report: each colour has a role, the same in every fit."""

from collections.abc import Mapping

__all__ = ["DARK", "LIGHT", "STRONG", "STRONG_IN_THE_DARK", "ramp_share"]

LIGHT: Mapping[str, str] = {
    "page": "#fbfbfa", "card": "#fff", "ink": "#1b1f24", "quiet": "#5a6370", "rule": "#dcdfe3", "grid": "#e8eaed",
    "link": "#0b5cad", "ramp": "0 68 136", "other": "170 60 0", "on-ramp": "#fff",
    "best": "#0072b2", "worse": "#c24a00", "good": "#007d5b", "trial": "#7b8694", "paper": "#eef0f2",
    "hatch": "#d3d7dc", "alarm": "#8f2d00", "alarm-back": "#fff4ec", "alarm-rule": "#e2a27f", "code": "#f3f4f6",
}  # fmt: skip
"""The colours by role, on a light page; `ramp` and `other` are the red, green and blue of alphas above and below 0.

`best` is the curve and the best so far, `worse` the chosen point and what fell, `good` an exact optimum, `trial` a
trial, `ink` a ceiling. They can be told apart by colour-blind readers.
"""

DARK: Mapping[str, str] = {
    "page": "#14171b", "card": "#1a1e23", "ink": "#e6e8eb", "quiet": "#a0a9b5", "rule": "#343a42", "grid": "#2a3037",
    "link": "#7ab8f5", "ramp": "122 184 245", "other": "245 150 80", "on-ramp": "#0d1013",
    "best": "#58aee6", "worse": "#f0884a", "good": "#3fc49a", "trial": "#8d98a6", "paper": "#23282e",
    "hatch": "#3a4149", "alarm": "#ffb38a", "alarm-back": "#2b1d15", "alarm-rule": "#7d4a2c", "code": "#20252b",
}  # fmt: skip
"""The same on a dark page."""

STRONG = 14
"""The level of an alpha, of 20, from which its number is written in `on-ramp`."""

STRONG_IN_THE_DARK = 11
"""The same on a dark page."""


def ramp_share(level: int) -> float:
    """Return the opacity, in [0, 1], of `ramp` or `other` for a level of absolute value from 0 to 20."""
    return 0.04 + level * 0.048
