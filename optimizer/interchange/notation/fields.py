"""Reads the fields of another tool's record; every error contains the field, the received value and the reason."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from optimizer.errors import RecipeError

__all__ = ["Fields", "is_empty", "json_text", "leaves", "number_in", "numbers_in", "received"]


@dataclass(frozen=True)
class Fields:
    """A record of values by field. Messages begin with `where` and the field: `x.safetensors: sd_merge_recipe.mode`."""

    data: Mapping[str, Any]
    where: str

    def wrong(self, name: str, why: str) -> RecipeError:
        """Return the error for a field, with its value and the reason."""
        value = f"received {received(self.data[name])}" if name in self.data else "missing"
        return RecipeError(f"{self.where}{name}: {value}; {why}")

    def text(self, name: str) -> str:
        """Return the field's text; raise RecipeError if it is not text."""
        value = self.data.get(name)
        if not isinstance(value, str):
            raise self.wrong(name, "must be text")
        return value

    def flag(self, name: str) -> bool:
        """Return the field's truth value; raise RecipeError if it is neither true nor false."""
        value = self.data.get(name)
        if not isinstance(value, bool):
            raise self.wrong(name, "must be true or false")
        return value

    def number(self, name: str) -> float:
        """Return the field's number; raise RecipeError if it is not a finite number."""
        number = number_in(self.data.get(name))
        if number is None:
            raise self.wrong(name, "must be a number")
        return number

    def entries(self, name: str, steps: int | None = None) -> list[Any]:
        """Return the field's list; raise RecipeError if it is not a list of `steps` entries (None: of any length)."""
        value = self.data.get(name)
        if not isinstance(value, list) or steps not in (None, len(value)):
            raise self.wrong(name, "must be a list" + ("" if steps is None else f" of {steps}, one for each step"))
        return value

    def must_be_empty(self, name: str, why: str) -> None:
        """Raise RecipeError with the reason `why` unless the field is empty."""
        if not is_empty(self.data.get(name)):
            raise self.wrong(name, why)


def leaves(value: Any) -> list[Any]:
    """Return the innermost entries of nested lists and objects; for any other value, the value alone."""
    if isinstance(value, list | dict):
        return [leaf for inner in (value.values() if isinstance(value, dict) else value) for leaf in leaves(inner)]
    return [value]


def is_empty(value: Any) -> bool:
    """Return whether a value requests nothing: it has no entries, or only zeros, for example "0,0,0"."""
    return not any(leaf.strip(", 0\n") if isinstance(leaf, str) else leaf for leaf in leaves(value))


def numbers_in(value: object) -> list[float] | None:
    """Return the numbers of a list, or of a text with commas; None if any entry is not a finite number."""
    entries = value.strip(" []()").split(",") if isinstance(value, str) else value
    if not isinstance(entries, list):
        return None
    numbers = [number_in(entry) for entry in entries]
    known = [number for number in numbers if number is not None]
    return known if len(known) == len(numbers) else None


def number_in(value: object) -> float | None:
    """Return a value, or the text of one, as a finite number; None if it is not one."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def json_text(text: str) -> str:
    """Return the text of a JSON string in quotation marks; the characters between the marks if it is malformed."""
    try:
        return str(json.loads(text))
    except ValueError:
        return text[1:-1]


def received(value: object) -> str:
    """Return the `repr` of a value for a message, truncated to 80 characters."""
    try:
        text = repr(value)
    except ValueError:  # Python refuses to print integers of more than 4300 digits
        text = "a number of thousands of digits"
    return text if len(text) <= 80 else f"{text[:77]}..."
