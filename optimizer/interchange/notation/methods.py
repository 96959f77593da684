"""Finds the names that merging tools give to methods: Weighted Sum @ 0.3, Add difference and others."""

import math
import re
from typing import NamedTuple

from optimizer.interchange.notation.wording import makes_it_another
from optimizer.recipes import WEIGHT, number_in

__all__ = ["Method", "find_method", "is_another_method"]


class Method(NamedTuple):
    """A method of merging found in a text, with its number if the text contains one.

    Attributes:
        mode: Mode of a step, or sigmoid, inverse_sigmoid or none.
        number: The method's weight; None if missing.
        start: Index of its first character in the text.
        end: Index after its last character.
        note: Interpretation of the number; None if it needs none.
        models: Start and end of its list of models, as in weighted_sum(A, B, 0.3); None without a list.
        unclear: Text of a number that cannot be read, for example 0.3~0.5; None otherwise.
    """

    mode: str
    number: float | None
    start: int
    end: int
    note: str | None = None
    models: tuple[int, int] | None = None
    unclear: str | None = None


_METHODS = {
    # Methods like "Train difference" are not included.
    "weight_sum": r"weight(?:ed)?[ _-]?sum|add[ _-]sum|(?<![^\W\d_][ _-])sum(?=\s*@)|WS(?=\W+[\d.])",
    "add_difference": r"add[ _-]?diff(?:erence)?|(?<![^\W\d_][ _-])difference(?=\s*@)|AD(?=\W+[\d.])",
    "sigmoid": r"sigmoid",
    "inverse_sigmoid": r"inv(?:erse)?[ _-]?sigmoid",
    "triple_sum": r"triple[ _-]?sum",
    "sum_twice": r"sum[ _-]?twice|twice[ _-]?sum",
    "none": r"no[ _-]interpolation",
}
_METHOD = re.compile(
    r"(?<![\w])(?:"
    + "|".join(f"(?P<{mode}>{words})" for mode, words in sorted(_METHODS.items(), key=lambda item: -len(item[1])))
    # A dash with a space on both sides is a separator. Otherwise it is the number's sign.
    + r")(?![\w])(?:\s*(?:@|=|:|,|at\b|\(|-(?=\s))?\s*(?:m(?:ultiplier)?\s*[=:]\s*)?"
    + rf"(?:(?P<number>{WEIGHT})|(?P<unclear>-?\.?\d[\w.,~/:%-]*(?:\s?[~/:-]\s?[\d.]+)*)))?",
    re.IGNORECASE,
)
_LIST = re.compile(
    rf"\s*[:(]?\s*(?P<models>[^():=<>]*?),\s*(?:(?:m|alpha|multiplier|ratio|weight)\s*[:=]?\s*)?@?"
    rf"(?P<number>{WEIGHT})\s*\)?(?![\w.])",
    re.IGNORECASE,
)
_LONGEST_LIST = 500  # characters, for models and number together


def is_another_method(text: str) -> bool:
    """Return whether words beside a method's name, as in "train difference", change the method."""
    return makes_it_another(text) is not None


def find_method(text: str) -> Method | None:
    """Return the first method named in a normalized text; None if it names none.

    The WebUI's old sigmoid is returned as the equivalent weighted sum.
    """
    found = _METHOD.search(text)
    if found is None:
        return None
    mode = next(name for name in _METHODS if found[name])
    start, end = found.span()
    if found["unclear"] or found["number"] is None:
        method = Method(mode, None, start, end, unclear=found["unclear"])
        return method if method.unclear else _with_models(text, method)
    try:
        number, note = number_in(found["number"])
    except ValueError as error:
        return Method(mode, None, start, end, unclear=str(error))
    if "sigmoid" not in mode or not 0 <= number <= 1:
        return Method(mode, number, start, end, note)
    # Before November 2022 the WebUI applied smoothstep, or its inverse, to the slider's value:
    # https://github.com/AUTOMATIC1111/stable-diffusion-webui/issues/2658.
    weight = _sigmoid(number) if mode == "sigmoid" else _inverse_sigmoid(number)
    note = f"the WebUI's old {mode.replace('_', ' ')} at {number:g} is a weighted sum at {weight:.6g}"
    return Method("weight_sum", weight, start, end, note)


def _with_models(text: str, method: Method) -> Method:
    """Return the method with its models and number, if a list of them follows; otherwise the method unchanged."""
    found = _LIST.match(text[: method.end + _LONGEST_LIST], method.end)
    if found is None:
        return method
    number, note = number_in(found["number"])
    return method._replace(number=number, note=note, end=found.end(), models=found.span("models"))


def _sigmoid(number: float) -> float:
    return number * number * (3 - 2 * number)


def _inverse_sigmoid(number: float) -> float:
    return 0.5 - math.sin(math.asin(1 - 2 * number) / 3)
