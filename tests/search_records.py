"""Studies and trials made of records alone, without files, storages and checkpoints."""

from pathlib import Path

from optimizer.recipes import Recipe, new_recipe, parameters_of
from optimizer.search import Trial, TrialState
from optimizer.search.results import SearchResult
from optimizer.studies import Stage, Study

BLOCKS = ("M00", "OUT03")
NUMBERS = {"base": "base.safetensors", "x": "x.safetensors", "y": "y.safetensors"}


def recipe(low: float = 0.0, high: float = 1.0) -> Recipe:
    """Return a recipe in which T1 adds x's difference from the base and T2 mixes in y, both free on M00 and OUT03."""
    free = {"search": [low, high], "blocks": list(BLOCKS)}
    steps = [
        {"name": "T1", "mode": "add_difference", "a": "base", "b": "x", "c": "base", "alpha": free},
        {"name": "T2", "mode": "weight_sum", "a": "T1", "b": "y", "alpha": free},
    ]
    return new_recipe(NUMBERS, steps)


def stage(
    name: str = "s",
    *,
    steps: tuple[str, ...] = ("T1", "T2"),
    blocks: tuple[str, ...] = BLOCKS,
    metric: str = "delta",
    strategy: str = "stepwise",
    of: Recipe | None = None,
    **fields: int,
) -> Stage:
    """Return a stage that searches the free alphas of `steps` on `blocks`."""
    parameters = tuple(
        parameter for parameter in parameters_of(of or recipe(), steps) if set(parameter.blocks) <= set(blocks)
    )
    return Stage(name, steps, ((metric, blocks),), strategy, 5, "random", parameters, **fields)


def study(*stages: Stage, of: Recipe | None = None) -> Study:
    """Return a study of these stages in a folder that does not exist."""
    folder = Path("nowhere")
    return Study(
        folder, of or recipe(), folder / "recipe.yaml", {}, folder / "target.safetensors", "target.safetensors",
        "base", 0, stages or (stage(),), name="nowhere",
    )  # fmt: skip


def trial(number: int, similarity: float | None, **alphas: float) -> Trial:
    """Return a trial at T1.M00 = 0.5 and so on; complete with a similarity, failed without one."""
    point = {name.replace("_", "."): value for name, value in alphas.items()}
    state = TrialState.FAILED if similarity is None else TrialState.COMPLETE
    return Trial(number, state, point, similarity=similarity, block_scores=dict.fromkeys(BLOCKS, similarity or 0.0))


def result(of: Stage, step: str, *trials: Trial, number: int = 1) -> SearchResult:
    """Return the result of the search of one step of a stage in pass `number`."""
    ending = "" if number == 1 else f"/pass {number}"
    parameters = tuple(parameter for parameter in of.parameters if parameter.step == step)
    return SearchResult(f"{of.name}/{step}{ending}", of, of.steps[-1], parameters, trials, {}, number)
