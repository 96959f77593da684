"""Reads the mode and the numbers of a merge from SuperMerger's metadata, console or history.

Fields have the names of its metadata (`sd_merge_recipe`). The format follows
https://github.com/hako-mikan/sd-webui-supermerger, commit 0b1c491, scripts/mergers/mergers.py: `smerge`, `excluder`.
"""

from typing import NamedTuple

from optimizer.errors import attempt
from optimizer.families import Layout
from optimizer.interchange.notation.fields import Fields, leaves, numbers_in, received
from optimizer.recipes import MODES, Alpha, dropped_note, lacks_first, layout_of_counts, numbered_alpha

__all__ = ["SuperMerge", "layout_of_supermerge", "read_supermerge"]

# SuperMerger recognises its modes by these words.
_WORDS = {"Weight": "weight_sum", "Add": "add_difference", "Triple": "triple_sum", "Twice": "sum_twice"}
# The excluded blocks can include the VAE, and the six tensors that "Adjust" changes after a merge. They can also
# include "print", which only prints the excluded blocks on the console.
_VAE, _ADJUST = "VAE", "Adjust"
_PRINTS = "print"


class SuperMerge(NamedTuple):
    """A merge by SuperMerger: its mode, its alphas by name, and notes in sentences."""

    mode: str
    alphas: dict[str, Alpha]
    notes: tuple[str, ...] = ()


def read_supermerge(fields: Fields, layout: Layout) -> SuperMerge:
    """Return the mode and the alphas of a merge; raise RecipeError for a merge that a recipe cannot express.

    A recipe cannot express calculations other than normal, elemental merges, or partly excluded blocks.

    Args:
        fields: The record, with the field names of SuperMerger's metadata.
        layout: Layout that defines the blocks.

    Returns:
        The merge, with notes about excluded blocks.
    """
    method = fields.text("mode")
    modes = [mode for word, mode in _WORDS.items() if word.lower() in method.lower()]
    if len(modes) != 1:
        raise fields.wrong("mode", "must be Weight sum, Add difference, Triple sum or sum Twice")
    calculation = leaves(fields.data.get("calcmode", "normal"))
    if any(not isinstance(word, str) or word.lower() not in ("normal", "") for word in calculation):
        raise fields.wrong("calcmode", "must be normal; other calculations are not weighted sums")
    fields.must_be_empty("elemental_merge", "elemental merges cannot be expressed per block")
    notes: list[str] = []
    alphas = {name: _alpha(fields, layout, name, notes) for name in MODES[modes[0]].alphas}
    return SuperMerge(modes[0], alphas, tuple(dict.fromkeys(notes)))


def layout_of_supermerge(fields: Fields) -> Layout:
    """Return the layout of a merge by the length of its lists of numbers; the default layout without lists."""
    counts: list[int] = []
    for name in ("alpha", "beta"):
        numbers, whole = (numbers_in(fields.data.get(field)) for field in (f"weights_{name}", f"weights_{name}_orig"))
        # `weights_*_orig` keeps the length in which a list was given, longer perhaps than the model has blocks.
        found = whole if numbers is None else numbers
        counts += [] if found is None else [len(found)]
    return layout_of_counts(counts)


def _alpha(fields: Fields, layout: Layout, name: str, notes: list[str]) -> Alpha:
    listed = {kind: _listed(fields, kind) for kind in ("Include", "Exclude")}
    alpha = _numbers(fields, layout, name, notes, before_excluding=any(listed.values()))
    for kind, entries in listed.items():
        if entries:
            alpha = _without_excluded(fields, layout, kind, entries, alpha, notes)
    return alpha


def _listed(fields: Fields, kind: str) -> list[str]:
    return [str(entry) for entry in leaves(fields.data.get(kind)) if entry and entry != _PRINTS]


def _numbers(fields: Fields, layout: Layout, name: str, notes: list[str], *, before_excluding: bool) -> Alpha:
    """Return the alpha or beta: one number for all blocks, or numbers by block.

    `weights_*_orig` contains the numbers of all blocks, or a preset's name. Otherwise `weights_*` contains all numbers
    but the first, which is `base_*`. The original has 0 for excluded blocks, and 0 for the first block if only the VAE
    is excluded.
    """
    if not fields.flag("mbw"):
        return Alpha(dict.fromkeys(layout.blocks, fields.number(f"base_{name}")))
    whole = numbers_in(fields.data.get(f"weights_{name}_orig"))
    numbers = numbers_in(fields.data.get(f"weights_{name}"))
    complete = whole is not None and (len(whole) == len(layout.blocks) or dropped_note(layout, len(whole)))
    if whole is not None and complete and not lacks_first(layout, len(whole)) and not (before_excluding and numbers):
        notes += [note for note in [dropped_note(layout, len(whole))] if note is not None]
        return attempt(lambda: numbered_alpha(layout, whole), f"{fields.where}weights_{name}_orig")
    if numbers is None:
        raise fields.wrong(f"weights_{name}", "must be a list of numbers")
    tool = layout.tools.supermerger
    if tool is not None and tool.vae_last and len(numbers) == len(layout.blocks):
        if numbers[-1] != 0:
            raise fields.wrong(f"weights_{name}", f"must be {len(numbers) - 1} numbers and a 0 for the VAE")
        numbers = numbers[:-1]
    base = fields.number(f"base_{name}") if lacks_first(layout, len(numbers)) else None
    notes += [note for note in [dropped_note(layout, len(numbers))] if note is not None]
    return attempt(lambda: numbered_alpha(layout, numbers, base), f"{fields.where}weights_{name}")


def _without_excluded(
    fields: Fields, layout: Layout, kind: str, entries: list[str], alpha: Alpha, notes: list[str]
) -> Alpha:
    """Return the alpha with 0 for the blocks that are not merged, where model A remains unchanged."""
    if unknown := [entry for entry in entries if entry not in (*layout.blocks, _VAE, _ADJUST)]:
        raise fields.wrong(kind, f"{received(unknown[0])} is not a block; elements cannot be expressed per block")
    base = layout.blocks[0]
    blocks = () if layout.tools.supermerger is None else layout.tools.supermerger.adjusted
    if _ADJUST in entries and any(block not in entries and alpha.at(block) for block in blocks):
        raise fields.wrong(
            kind, f"{_ADJUST!r} is six tensors of {' and '.join(blocks)}; parts of blocks cannot be expressed"
        )
    if _VAE in entries and base not in entries and alpha.at(base):
        if kind == "Include":
            raise fields.wrong(
                kind, f"{_VAE!r} without {base} cannot be expressed; a recipe merges the VAE with {base}"
            )
        notes.append(
            f"{kind}: the VAE was excluded and remains model A's: merge with `vae=...` and the file of model A"
        )
    return Alpha({block: n if (block in entries) == (kind == "Include") else 0.0 for block, n in alpha.values.items()})
