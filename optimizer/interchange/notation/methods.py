"""Ways of merging by the names that merging tools give them: Weighted Sum @ 0.3, Add difference, and the like."""

import math
import re
from typing import NamedTuple

from optimizer.interchange.notation.tokens import NUMBER, percentage

__all__ = ["Method", "find_method", "is_another_method"]


class Method(NamedTuple):
    """A way of merging as the WebUI's merger names it, with its number if one stands there.

    The text from `start` to `end` says it; between the places `models` are its models, as in weighted_sum(A, B, 0.3).
    """

    mode: str
    number: float | None
    start: int
    end: int
    note: str | None = None
    models: tuple[int, int] | None = None


_METHODS = {
    # "Train difference" and the like are other methods.
    "weight_sum": r"weight(?:ed)?[ _-]?sum|add[ _-]sum|(?<![^\W\d_][ _-])sum(?=\s*@)",
    "add_difference": r"add[ _-]?diff(?:erence)?|(?<![^\W\d_][ _-])difference(?=\s*@)",
    "sigmoid": r"sigmoid",
    "inverse_sigmoid": r"inv(?:erse)?[ _-]?sigmoid",
    "triple_sum": r"triple[ _-]?sum",
    "sum_twice": r"sum[ _-]?twice|twice[ _-]?sum",
    "none": r"no[ _-]interpolation",
}
_METHOD = re.compile(
    r"(?<![\w])(?:"
    + "|".join(f"(?P<{mode}>{words})" for mode, words in sorted(_METHODS.items(), key=lambda item: -len(item[1])))
    + r")(?![\w])(?:\s*(?:@|=|:|,|at\b|\(|-)?\s*(?:m(?:ultiplier)?\s*[=:]\s*)?"
    + rf"(?P<number>{NUMBER})\s*(?P<percent>%)?(?![\w.]))?",
    re.IGNORECASE,
)
_LIST = re.compile(
    rf"\s*[:(]?\s*(?P<models>[^():=<>]*),\s*(?:(?:m|alpha|multiplier|ratio|weight)\s*[:=]?\s*)?@?"
    rf"(?P<number>{NUMBER})\s*(?P<percent>%)?\s*\)?(?![\w.])",
    re.IGNORECASE,
)
_LONGEST_LIST = 500  # characters of models and number
# Words beside a method that make it another one, none of which is a weighted sum.
_OTHERWISE = re.compile(
    r"train|smooth|cosine|tensor|rebasin|self|dare|ties|elemental|geometric|slerp|distribution", re.IGNORECASE
)


def is_another_method(text: str) -> bool:
    """Return whether words beside a method's name, as in "train difference", make it one that is no weighted sum."""
    return _OTHERWISE.search(text) is not None


def find_method(text: str) -> Method | None:
    """Return the first method that normalized `text` names; the WebUI's old sigmoid as the weighted sum that it was."""
    found = _METHOD.search(text)
    if found is None:
        return None
    mode = next(name for name in _METHODS if found[name])
    number = None
    if found["number"]:
        number = percentage(found["number"]) if found["percent"] else float(found["number"])
    if number is None:
        return _with_models(text, Method(mode, None, found.start(), found.end()))
    if "sigmoid" not in mode or not 0 <= number <= 1:
        return Method(mode, number, found.start(), found.end())
    # What the WebUI did with its slider before November 2022, https://github.com/AUTOMATIC1111/stable-diffusion-webui
    # /issues/2658: smoothstep, and its inverse.
    weight = _sigmoid(number) if mode == "sigmoid" else _inverse_sigmoid(number)
    note = f"the WebUI's old {mode.replace('_', ' ')} at {number:g} is a weighted sum at {weight:.6g}"
    return Method("weight_sum", weight, found.start(), found.end(), note)


def _with_models(text: str, method: Method) -> Method:
    """The method with its models and its number, if they follow in a list."""
    found = _LIST.match(text[: method.end + _LONGEST_LIST], method.end)
    if found is None:
        return method
    number = percentage(found["number"]) if found["percent"] else float(found["number"])
    return method._replace(number=number, end=found.end(), models=found.span("models"))


def _sigmoid(number: float) -> float:
    return number * number * (3 - 2 * number)


def _inverse_sigmoid(number: float) -> float:
    return 0.5 - math.sin(math.asin(1 - 2 * number) / 3)
