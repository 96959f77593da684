"""The free alphas that count for each block: those of the step that the block is scored on, and of the steps before."""

from collections.abc import Sequence

from optimizer.recipes import Algebra, Recipe, Space, parameters_of
from optimizer.similarity import Measured
from optimizer.studies import Stage, scoring_steps

__all__ = ["scored_spaces"]


def scored_spaces(
    recipe: Recipe, stages: Sequence[Stage], measured: Measured
) -> dict[str, tuple[Space, tuple[str, ...]]]:
    """Return the scored blocks and the free alphas that move one of them, by step.

    A block is scored on the result of the last step of its stage; if several stages score it, the last of them counts.
    All free alphas of the steps that lead to that result count at once.

    Args:
        recipe: The recipe with its free alphas.
        stages: The stages of the study.
        measured: The statistics of the checkpoints.

    Returns:
        {step: (space of the free alphas, blocks)}.
    """
    step_of = scoring_steps(stages)
    spaces = {}
    for step in dict.fromkeys(step_of.values()):
        blocks = tuple(block for block in measured.layout.blocks if step_of.get(block) == step)
        algebra = Algebra(recipe, measured.groups, tuple(measured.sources), step)
        free = parameters_of(recipe, [inner.name for inner in recipe.ancestors(step)])
        spaces[step] = Space(algebra, [alpha for alpha in free if set(alpha.blocks) & set(blocks)]), blocks
    return spaces
