"""The fields of another tool's record, read one by one: every error names the field, what was received and why."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from optimizer.errors import RecipeError

__all__ = ["Fields", "is_empty", "json_text", "leaves", "number_in", "numbers_in", "received"]


@dataclass(frozen=True)
class Fields:
    """A record by field; messages begin with `where` and the field, as `merged.safetensors: sd_merge_recipe.mode`."""

    data: Mapping[str, Any]
    where: str

    def wrong(self, name: str, why: str) -> RecipeError:
        """Return the error that this field gives."""
        told = f"received {received(self.data[name])}" if name in self.data else "missing"
        return RecipeError(f"{self.where}{name}: {told}; {why}")

    def text(self, name: str) -> str:
        """Return the field's text. Raises RecipeError if it has none."""
        value = self.data.get(name)
        if not isinstance(value, str):
            raise self.wrong(name, "must be text")
        return value

    def flag(self, name: str) -> bool:
        """Return the field's truth value. Raises RecipeError if it is none."""
        value = self.data.get(name)
        if not isinstance(value, bool):
            raise self.wrong(name, "must be true or false")
        return value

    def number(self, name: str) -> float:
        """Return the field's number. Raises RecipeError if it is none."""
        number = number_in(self.data.get(name))
        if number is None:
            raise self.wrong(name, "must be a number")
        return number

    def entries(self, name: str, steps: int | None = None) -> list[Any]:
        """Return the field's list, of `steps` entries. Raises RecipeError if it is none."""
        value = self.data.get(name)
        if not isinstance(value, list) or steps not in (None, len(value)):
            raise self.wrong(name, "must be a list" + ("" if steps is None else f" of {steps}, one for each step"))
        return value

    def must_be_empty(self, name: str, why: str) -> None:
        """Raise RecipeError for a field that asks for more than a merge per block."""
        if not is_empty(self.data.get(name)):
            raise self.wrong(name, why)


def leaves(value: Any) -> list[Any]:
    """Return what is in a value: itself, or the innermost entries of lists and objects."""
    if isinstance(value, list | dict):
        return [leaf for inner in (value.values() if isinstance(value, dict) else value) for leaf in leaves(inner)]
    return [value]


def is_empty(value: Any) -> bool:
    """Return whether nothing is asked for: no entry, or texts of zeros, as "0,0,0"."""
    return not any(leaf.strip(", 0\n") if isinstance(leaf, str) else leaf for leaf in leaves(value))


def numbers_in(value: object) -> list[float] | None:
    """Return the numbers in a list, or in a text with commas; None if anything else is among them."""
    entries = value.strip(" []()").split(",") if isinstance(value, str) else value
    if not isinstance(entries, list):
        return None
    numbers = [number_in(entry) for entry in entries]
    known = [number for number in numbers if number is not None]
    return known if len(known) == len(numbers) else None


def number_in(value: object) -> float | None:
    """Return the finite number that a value is, or its text; None if it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def json_text(text: str) -> str:
    """Return the text that a JSON string in quotation marks stands for; what is between them if it is broken."""
    try:
        return str(json.loads(text))
    except ValueError:
        return text[1:-1]


def received(value: object) -> str:
    """Return a value for a message, as Python writes it, cut off beyond 80 characters."""
    try:
        text = repr(value)
    except ValueError:  # Python does not write whole numbers of more than 4300 digits
        text = "a number of thousands of digits"
    return text if len(text) <= 80 else f"{text[:77]}..."
