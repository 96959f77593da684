"""Reads the line with which sd-webui-model-mixer describes a merge, in file names and pictures.

    Model recipe: (A * (1 - alpha_0) + B * alpha_0) + (C - sd15) * alpha_1(numbers),(numbers)

In pictures, spaces replace its commas. The format follows https://github.com/wkpark/sd-webui-model-mixer, commit
8d55c1d, scripts/model_mixer.py: `make_recipe` and the code after it.
"""

import re

from optimizer.interchange.notation.formula_texts import LONGEST_FORMULA
from optimizer.interchange.notation.statements import NamedFormula, Refused, symbols_in

__all__ = ["mixer_line"]

_LABEL = re.compile(r"model recipe\s*:\s*", re.IGNORECASE)
_NUMBERS = r"\(\s*[-\d.eE,\s]+\)"
_LINE = re.compile(
    rf"(?P<formula>.*?alpha_\d+\s*\)?)\s*(?P<numbers>{_NUMBERS}(?:[\s,]*{_NUMBERS})*)\s*(?P<adjust>@.*)?"
)
_LONGEST = 4 * LONGEST_FORMULA  # room for the formula and 15 digits per block for five models


def mixer_line(text: str) -> NamedFormula | Refused | None:
    """Return the merge in a normalized line of model-mixer's, or the reason why a recipe cannot express it.

    Returns:
        The formula with its numbers, or the refusal; None if model-mixer did not write the line.
    """
    label = _LABEL.search(text)
    line = text[label.end() if label else 0 :].strip().strip('"')
    if len(line) > _LONGEST or not re.search(r"alpha_\d|\b(?:dare|ties)_weights\(", line):
        return None
    if re.search(r"\b(?:dare|ties)_weights\(", line):
        return Refused("model-mixer's DARE and TIES; a recipe contains only weighted sums")
    found = _LINE.fullmatch(line)
    if found is None:
        return Refused("model-mixer's line is a formula with alpha_0, alpha_1, ... and their numbers in parentheses")
    if found["adjust"] and found["adjust"].strip("@,0 "):
        return Refused(f"the adjustment {found['adjust'][:40]!r} after the merge cannot be expressed as a merge")
    symbols = symbols_in(found["formula"])
    lists = re.findall(_NUMBERS, found["numbers"])
    if len(lists) != len(symbols):
        return Refused(f"{len(lists)} lists of numbers for {len(symbols)} alphas")
    numbers = [re.sub(r"[\s,]+", ",", listed.strip("() ")) for listed in lists]
    given = {symbol: f"({text})" if "," in text else text for symbol, text in zip(symbols, numbers, strict=True)}
    return NamedFormula(None, found["formula"], given)
