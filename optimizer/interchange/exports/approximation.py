"""Records of what an export changes in a recipe because the other tool cannot express it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from optimizer.interchange.exports.placement import listed, moved_places
from optimizer.recipes import Recipe, Step

__all__ = ["Approximation", "Change", "clipped_changes", "moved_changes"]


@dataclass(frozen=True)
class Change:
    """One change of a recipe.

    Attributes:
        field: The field of the recipe: "steps.T1.alpha", "mapping" or "vae".
        blocks: The blocks that it concerns, as a block list, or the beginning of the tensor names; None for the VAE.
        before: The number, the block or the model in the recipe.
        after: The number, the block or the model in the export.
        reason: Why the tool cannot express what the recipe has.
    """

    field: str
    blocks: str | None
    before: str
    after: str
    reason: str

    def __str__(self) -> str:
        place = self.field if self.blocks is None else f"{self.field}, {self.blocks}"
        return f"{place}: {self.before} -> {self.after}; {self.reason}"

    def as_dict(self) -> dict[str, Any]:
        """Return the fields by name as JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Approximation:
    """A recipe that a tool can express exactly, and its differences from the recipe that it stands for.

    Attributes:
        recipe: The recipe for the tool.
        changes: The changes of the result.
        notes: Sentences on changes that do not change the result.
    """

    recipe: Recipe
    changes: tuple[Change, ...] = ()
    notes: tuple[str, ...] = ()


def clipped_changes(
    recipe: Recipe, field: str, moved: Mapping[str, tuple[float, float]], reason: str
) -> Iterable[Change]:
    """Yield a change for each pair of numbers, {block: (before, after)}, with all blocks that have this pair."""
    for before, after in dict.fromkeys(moved.values()):
        blocks = [block for block, pair in moved.items() if pair == (before, after)]
        yield Change(field, recipe.layout.describe_blocks(blocks), f"{before:.6g}", f"{after:.6g}", reason)


def moved_changes(recipe: Recipe, steps: Sequence[Step], mapping: str, tool: str) -> Iterable[Change]:
    """Yield a change for each place of the network and the text encoders that other numbers move under a mapping."""
    layout, vae = recipe.layout, recipe.layout.vae
    for place, alphas in moved_places(recipe, steps, mapping).items():
        if vae is not None and place.startswith(vae.prefix):
            continue
        ours, theirs = recipe.block_of(place), layout.block_of(place, mapping)
        numbers = listed([f"{here:.6g} -> {there:.6g} in {where}" for where, here, there in alphas])
        reason = f"{tool} has its own place for them ({numbers})"
        yield Change("mapping", f"{place}*", ours or "no block", theirs or "no block", reason)
