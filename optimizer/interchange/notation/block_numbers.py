"""Numbers by block below a formula: `BASE: 0.2`, `IN: 12 numbers`, `M00 0.3`, `OUT03-OUT05: 0.5`.

Families that are not UNets use the names of their layout: `D00-D18: 0.5`.
"""

import re
from collections.abc import Iterator, Sequence
from functools import cache
from typing import NamedTuple

from optimizer.errors import RecipeError
from optimizer.families import Layout
from optimizer.interchange.notation.tokens import normalized, value_of
from optimizer.interchange.notation.wording import without_bullet
from optimizer.recipes import NUMBER, number_in

__all__ = ["BlockNumbers", "block_numbers_at"]

_LONGEST = 1000  # characters in one line
# People abbreviate the groups of a UNet's blocks; the blocks of other networks have only their full names.
_UNET_REFERENCE = (
    r"base|(?:in|out)(?:put)?s?(?:[ _-]?blocks?)?|m(?:id(?:dle)?)?(?:[ _-]?blocks?)?"
    r"|(?:in|out|mid|mi|m)[ _]?\d{1,2}(?:\s?[-~]\s?(?:in|out|mid|mi|m)?[ _]?\d{1,2})?"
)
_VALUE = rf"-?{NUMBER}(?:\s?%)?(?![\w.])"
_KEY = re.compile(r"(?P<symbol>alpha|beta|weights?|mbw|block weights?)\s?[:=]\s?[{(\[]?", re.IGNORECASE)
_UNET_SURE = re.compile(r"(?:in|out|mi|m)[ _]?\d|base", re.IGNORECASE)


class BlockNumbers(NamedTuple):
    """Numbers by block: their texts by field, and the number of lines they take.

    The fields are alpha, beta, base_alpha and base_beta. `why` is the reason for refusing the numbers; None if they are
    valid.
    """

    given: dict[str, str]
    lines: int
    why: str | None = None


def block_numbers_at(lines: Sequence[str], start: int, layout: Layout) -> BlockNumbers | None:
    """Return the numbers by block in the lines from `start` on; None if these lines contain none.

    A single number for a group of blocks applies to each block of the group. The first block's number may be missing,
    since it can stand elsewhere in the text.

    Args:
        lines: All lines of the text.
        start: Index of the first line to read, from 0.
        layout: Layout that defines the blocks.

    Returns:
        The numbers, or the reason for refusing them; None if the lines contain no numbers by block.
    """
    entries: list[tuple[str, list[str]]] = []
    symbol, count, keyed = "alpha", 0, False
    for line in lines[start:]:
        text = without_bullet(normalized(line[: _LONGEST + 1])).strip(" {}")
        if len(text) > _LONGEST:
            break
        key = _KEY.match(text) if not count else None
        if key is not None:
            symbol = "beta" if key["symbol"].lower() == "beta" else "alpha"
            text = text[key.end() :].strip()
            keyed = bool(text)
        found = list(_entries(text, layout)) if text else []
        if not found and not (key is not None and not text):
            break
        entries += found
        count += 1
    if not entries:
        return None
    references = [reference for reference, _ in entries]
    sure = layout.unet is not None and _UNET_SURE.match(references[0])
    if len(entries) < 2 and not sure and not references[0].isupper():
        return None
    if references in (["M"], ["m"]):
        return None  # the multiplier of the WebUI
    names = ("base", layout.blocks[0].lower()) if layout.unet is not None else (layout.blocks[0].lower(),)
    if len(references) == 1 and references[0].lower() in names and len(entries[0][1]) == 1:
        if not 0 <= number_in(entries[0][1][0]).value <= 1:
            return None  # the version of a base model, for example 1.5
        return BlockNumbers({f"base_{symbol}": entries[0][1][0]}, count)
    if len(entries) == 1 and len(entries[0][1]) >= len(layout.blocks) - 1:
        return None  # a preset with that name
    try:
        numbers = _by_block(entries, layout)
    except ValueError as error:
        return BlockNumbers({}, count, str(error))
    except RecipeError as error:
        return BlockNumbers({}, count, error.problems[0])
    first = layout.blocks[0]
    missing = [block for block in layout.blocks if block not in numbers and block != first]
    if missing and keyed and count == 1:
        return None  # a mapping, alpha = {OUT03: 0.5}: other blocks are 0
    if missing:
        return BlockNumbers({}, count, f"no number for {layout.describe_blocks(missing)}")
    rest = ",".join(value_of(numbers[block]) for block in layout.blocks if block != first)
    return BlockNumbers({symbol: f"({value_of(numbers[first])},{rest})" if first in numbers else f"({rest})"}, count)


@cache
def _entry(unet: bool, names: tuple[str, ...]) -> re.Pattern[str]:
    """Return the pattern of one or more blocks with their numbers, for a UNet or for these names of blocks."""
    block = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
    reference = _UNET_REFERENCE if unet else rf"(?:{block})(?:\s?[-~]\s?(?:{block}))?"
    return re.compile(
        rf"(?P<reference>{reference})(?:\s?[:=]\s?|\s)[(\[]?\s?"
        rf"(?P<values>{_VALUE}(?:[,;]?\s?(?={_VALUE}){_VALUE})*+)\s?[)\]]?\s?[,;/|]?\s?",
        re.IGNORECASE,
    )


def _entries(text: str, layout: Layout) -> Iterator[tuple[str, list[str]]]:
    """Yield each reference to blocks with its numbers, if the line contains nothing else."""
    pattern = _entry(layout.unet is not None, () if layout.unet is not None else (*layout.blocks, *layout.groups))
    found: list[tuple[str, list[str]]] = []
    position = 0
    while position < len(text):
        entry = pattern.match(text, position)
        if entry is None:
            return
        found.append((entry["reference"], re.findall(_VALUE, entry["values"])))
        position = entry.end()
    yield from found


def _by_block(entries: Sequence[tuple[str, list[str]]], layout: Layout) -> dict[str, float]:
    numbers: dict[str, float] = {}
    for reference, texts in entries:
        blocks = _blocks(reference, layout)
        if len(texts) not in (1, len(blocks)):
            raise ValueError(f"{reference} has {len(blocks)} blocks in {layout.name}, received {len(texts)} numbers")
        values = [number_in(text).value for text in texts]
        if twice := [block for block in blocks if block in numbers]:
            raise ValueError(f"{twice[0]} has two numbers")
        numbers |= dict(zip(blocks, values if len(values) > 1 else values * len(blocks), strict=True))
    return numbers


def _blocks(reference: str, layout: Layout) -> tuple[str, ...]:
    """Return the blocks that a word stands for; raise RecipeError if the layout does not have them."""
    if layout.unet is None:
        return layout.parse_blocks(re.sub(r"\s?[-~]\s?", "-", reference))
    word = re.sub(r"[ _-]?blocks?$", "", reference.lower())
    if word == "base":
        return layout.blocks[:1]
    kind = layout.unet["imo".index(word[0])]
    if not re.search(r"\d", word):
        return layout.parse_blocks(kind)
    prefix = re.sub(r"\d+$", "", layout.groups[kind][0])
    return layout.parse_blocks("-".join(f"{prefix}{int(number):02}" for number in re.findall(r"\d+", word)))
