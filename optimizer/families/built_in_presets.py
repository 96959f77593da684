"""The presets of bbc-mc's merger, which SuperMerger and model-mixer adopted, as formulas.

They are published as numbers. https://github.com/bbc-mc/sdweb-merge-block-weighted-gui, csv/preset.tsv, has those of
the UNet's blocks. https://github.com/hako-mikan/sd-webui-supermerger, scripts/mbwpresets_master.txt, puts a number for
the text encoder before them: 1 in ALL_B, else 0. The formulas agree with every published number within 1e-9. `t` runs
from 0 at the UNet's first block to 1 at its last.
"""

import math
from collections.abc import Callable, Mapping
from functools import cache

__all__ = ["built_in_presets"]


def _smoothstep(t: float) -> float:
    return t * t * (3 - 2 * t)


def _folded(x: float) -> float:
    """Return the distance from `x` to the nearest even number, a triangle wave between 0 and 1."""
    return abs(x - 2 * round(x / 2))


def _cosine(t: float) -> float:
    return (1 + math.cos(math.pi * t)) / 2


def _true_cubic_hermite(t: float) -> float:
    # The published curve begins at 0, although its formula gives 1/24 there.
    return ((77 / 12 * t - 77 / 8) * t + 25 / 6) * t + 1 / 24 if t > 0 else 0.0


def _fake_cubic_hermite(t: float) -> float:
    return ((19 / 3 * t - 19 / 2) * t + 25 / 6) * t


def _rounded_ramp(t: float) -> float:
    # GRAD_V and GRAD_A are published with ten decimals.
    return round(abs(1 - 2 * t), 10)


_CURVES: dict[str, Callable[[float], float]] = {
    "GRAD_V": _rounded_ramp,
    "GRAD_A": lambda t: round(1 - abs(1 - 2 * t), 10),
    "FLAT_25": lambda t: 0.25,
    "FLAT_75": lambda t: 0.75,
    "SMOOTHSTEP": _smoothstep,
    "REVERSE-SMOOTHSTEP": lambda t: 1 - _smoothstep(t),
    "COSINE": _cosine,
    "REVERSE_COSINE": lambda t: 1 - _cosine(t),
    "TRUE_CUBIC_HERMITE": _true_cubic_hermite,
    "TRUE_REVERSE_CUBIC_HERMITE": lambda t: 1 - _true_cubic_hermite(t),
    "FAKE_CUBIC_HERMITE": _fake_cubic_hermite,
    "FAKE_REVERSE_CUBIC_HERMITE": lambda t: 1 - _fake_cubic_hermite(t),
    "ALL_A": lambda t: 0.0,
    "ALL_B": lambda t: 1.0,
}
# Runs of equal numbers, (count, number).
_STEPS: dict[str, tuple[tuple[int, float], ...]] = {
    "WRAP08": ((4, 1), (17, 0), (4, 1)),
    "WRAP12": ((6, 1), (13, 0), (6, 1)),
    "WRAP14": ((7, 1), (11, 0), (7, 1)),
    "WRAP16": ((8, 1), (9, 0), (8, 1)),
    "MID12_50": ((5, 0), (14, 0.5), (6, 0)),
    "OUT07": ((18, 0), (7, 1)),
    "OUT12": ((13, 0), (12, 1)),
    "OUT12_5": ((12, 0), (1, 0.5), (12, 1)),
    "RING08_SOFT": ((5, 0), (1, 0.5), (3, 1), (1, 0.5), (5, 0), (1, 0.5), (3, 1), (1, 0.5), (5, 0)),
    "RING08_5": ((6, 0), (4, 1), (5, 0), (4, 1), (6, 0)),
    "RING10_5": ((5, 0), (5, 1), (5, 0), (5, 1), (5, 0)),
    "RING10_3": ((6, 0), (5, 1), (3, 0), (5, 1), (6, 0)),
}


@cache
def built_in_presets() -> Mapping[str, tuple[float, ...]]:
    """Return the presets by name: a number in [0, 1] for the text encoder, then one for each block of the UNet."""
    (blocks,) = {sum(count for count, _ in runs) for runs in _STEPS.values()}
    places = [number / (blocks - 1) for number in range(blocks)]
    curves = {name: [curve(t) for t in places] for name, curve in _CURVES.items()}
    for n in (2, 3, 4):
        times = [_folded(n * _smoothstep(t)) for t in places]
        parts = [_smoothstep(_folded(n * t)) for t in places]
        for name, values in ((f"SMOOTHSTEP*{n}", times), (f"SMOOTHSTEP/{n}", parts)):
            curves |= {name: values, f"R_{name}": [1 - value for value in values]}
    curves |= {name: [float(value) for count, value in runs for _ in range(count)] for name, runs in _STEPS.items()}
    return {name: (1.0 if name == "ALL_B" else 0.0, *values) for name, values in curves.items()}
