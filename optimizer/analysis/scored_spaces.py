"""Which free alphas count for which blocks of a study: a block is scored on one step, and what leads to it counts."""

from collections.abc import Sequence

from optimizer.recipes import Algebra, Recipe, Space, parameters_of
from optimizer.similarity import Measured
from optimizer.studies import Stage

__all__ = ["scored_spaces"]


def scored_spaces(
    recipe: Recipe, stages: Sequence[Stage], measured: Measured
) -> dict[str, tuple[Space, tuple[str, ...]]]:
    """Return {step: (space, blocks)}: the blocks that are scored on a step, and the free alphas that move one of them.

    A block is scored on the result of the last step of its stage, of the last such stage if there are several. All free
    alphas of the steps that lead to it count at once.
    """
    step_of = {block: stage.steps[-1] for stage in stages for block in stage.blocks}
    found = {}
    for step in dict.fromkeys(step_of.values()):
        blocks = tuple(block for block in measured.layout.blocks if step_of.get(block) == step)
        algebra = Algebra(recipe, measured.groups, tuple(measured.sources), step)
        free = parameters_of(recipe, [inner.name for inner in recipe.ancestors(step)])
        found[step] = Space(algebra, [one for one in free if set(one.blocks) & set(blocks)]), blocks
    return found
