"""What SuperMerger notes of a merge, in metadata, on its console and in its history: the mode, and its numbers.

Fields are named as in its metadata (`sd_merge_recipe`). Read from https://github.com/hako-mikan/sd-webui-supermerger,
commit 0b1c491, scripts/mergers/mergers.py: `smerge`, `excluder`.
"""

from typing import NamedTuple

from optimizer.errors import attempt
from optimizer.families import Layout
from optimizer.interchange.notation.fields import Fields, leaves, numbers_in, received
from optimizer.recipes import MODES, Alpha, numbered_alpha

__all__ = ["SuperMerge", "read_supermerge"]

# The words by which SuperMerger itself tells its modes.
_WORDS = {"Weight": "weight_sum", "Add": "add_difference", "Triple": "triple_sum", "Twice": "sum_twice"}
# Among the blocks to leave out there are the VAE, the six tensors that "Adjust" may change after a merge, and "print",
# which tells on the console what is left out and does nothing else.
_VAE, _ADJUST = "VAE", "Adjust"
_PRINTS = "print"


class SuperMerge(NamedTuple):
    """A merge by SuperMerger: the mode, its alphas by name, and what to know about them, in sentences."""

    mode: str
    alphas: dict[str, Alpha]
    notes: tuple[str, ...] = ()


def read_supermerge(fields: Fields, layout: Layout) -> SuperMerge:
    """Return the mode and the alphas of a merge.

    Raises RecipeError, naming the field, for what a recipe cannot say: another calculation than the plain one,
    elemental merges, and blocks left out in part.
    """
    method = fields.text("mode")
    modes = [mode for word, mode in _WORDS.items() if word.lower() in method.lower()]
    if len(modes) != 1:
        raise fields.wrong("mode", "must be Weight sum, Add difference, Triple sum or sum Twice")
    calculation = leaves(fields.data.get("calcmode", "normal"))
    if any(not isinstance(word, str) or word.lower() not in ("normal", "") for word in calculation):
        raise fields.wrong("calcmode", "only normal is a weighted sum, which recipes are made of")
    fields.must_be_empty("elemental_merge", "elemental merges cannot be said per block")
    notes: list[str] = []
    alphas = {name: _alpha(fields, layout, name, notes) for name in MODES[modes[0]].alphas}
    return SuperMerge(modes[0], alphas, tuple(dict.fromkeys(notes)))


def _alpha(fields: Fields, layout: Layout, name: str, notes: list[str]) -> Alpha:
    listed = {kind: _listed(fields, kind) for kind in ("Include", "Exclude")}
    alpha = _numbers(fields, layout, name, before_excluding=any(listed.values()))
    for kind, entries in listed.items():
        if entries:
            alpha = _without_excluded(fields, layout, kind, entries, alpha, notes)
    return alpha


def _listed(fields: Fields, kind: str) -> list[str]:
    return [str(entry) for entry in leaves(fields.data.get(kind)) if entry and entry != _PRINTS]


def _numbers(fields: Fields, layout: Layout, name: str, *, before_excluding: bool) -> Alpha:
    """The alpha or beta: one for all; or all as text; or, where that is a preset's name, all but the first, and that.

    The text has 0 for blocks that were left out, and for the first block where no more than the VAE was.
    """
    if not fields.flag("mbw"):
        return Alpha(dict.fromkeys(layout.blocks, fields.number(f"base_{name}")))
    whole = numbers_in(fields.data.get(f"weights_{name}_orig"))
    numbers = numbers_in(fields.data.get(f"weights_{name}"))
    if whole is not None and len(whole) == len(layout.blocks) and not (before_excluding and numbers):
        return attempt(lambda: numbered_alpha(layout, whole), f"{fields.where}weights_{name}_orig")
    if numbers is None:
        raise fields.wrong(f"weights_{name}", "must be a list of numbers")
    base = fields.number(f"base_{name}") if len(numbers) == len(layout.blocks) - 1 else None
    return attempt(lambda: numbered_alpha(layout, numbers, base), f"{fields.where}weights_{name}")


def _without_excluded(
    fields: Fields, layout: Layout, kind: str, entries: list[str], alpha: Alpha, notes: list[str]
) -> Alpha:
    """The alpha without the blocks that are left out, or alone merged: A passes through the others, as with 0."""
    if unknown := [entry for entry in entries if entry not in (*layout.blocks, _VAE, _ADJUST)]:
        raise fields.wrong(kind, f"{received(unknown[0])} is no block; elements cannot be said per block")
    base = layout.blocks[0]
    blocks = () if layout.tools.supermerger is None else layout.tools.supermerger.adjusted
    if _ADJUST in entries and any(block not in entries and alpha.at(block) for block in blocks):
        raise fields.wrong(
            kind, f"{_ADJUST!r} is six tensors of {' and '.join(blocks)}; parts of blocks cannot be said"
        )
    if _VAE in entries and base not in entries and alpha.at(base):
        if kind == "Include":
            raise fields.wrong(kind, f"{_VAE!r} without {base} cannot be said; a recipe merges the VAE with {base}")
        notes.append(f"{kind}: the VAE was left out and is model A's: merge with `vae=...` and the file of model A")
    return Alpha({block: n if (block in entries) == (kind == "Include") else 0.0 for block, n in alpha.values.items()})
