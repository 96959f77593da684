"""The findings of a running fit: an immutable record, replaced after every step."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from optimizer.recipes import Recipe, filled_alphas
from optimizer.search.candidates import Choice
from optimizer.search.results import SearchResult, SeedSpread
from optimizer.studies import StepScores

__all__ = ["Findings"]


@dataclass(frozen=True)
class Findings:
    """The state of a fit between two steps.

    Attributes:
        recipe: The study's recipe, with the free alphas of finished searches filled in.
        results: The searches that have started; the latest is the last item.
        scores: The scores of the finished stages.
        spread: Their scores on random inputs that were not fitted on.
        choices: The next best trials, each with the scores of its stage under its alphas.

    """

    recipe: Recipe
    results: tuple[SearchResult, ...] = ()
    scores: tuple[StepScores, ...] = ()
    spread: tuple[SeedSpread, ...] = ()
    choices: tuple[tuple[Choice, tuple[StepScores, ...]], ...] = ()

    @property
    def has_best(self) -> bool:
        """Whether any search has a completed trial."""
        return any(result.best for result in self.results)

    def with_result(self, result: SearchResult) -> "Findings":
        """Return the findings with the result of a search, which replaces an earlier result of the same search."""
        kept = tuple(earlier for earlier in self.results if earlier.name != result.name)
        return replace(self, results=(*kept, result))

    def filled(self) -> "Findings":
        """Return the findings with the best alphas of the latest search in the recipe; later steps build on it.

        Returns:
            The findings; the same for a search without a completed trial. Repeated calls change nothing.

        """
        if not self.results or (best := self.results[-1].best) is None:
            return self
        return replace(self, recipe=self.recipe.with_alphas(filled_alphas(self.results[-1].parameters, best.alphas)))

    def with_scores(self, scores: Iterable[StepScores]) -> "Findings":
        """Return the findings with the scores of one more stage."""
        return replace(self, scores=(*self.scores, *scores))

    def with_spread(self, spread: SeedSpread) -> "Findings":
        """Return the findings with scores on other random inputs."""
        return replace(self, spread=(*self.spread, spread))

    def with_choice(self, choice: Choice, scores: Iterable[StepScores]) -> "Findings":
        """Return the findings with one more of the next best trials, and the scores of its stage under its alphas."""
        return replace(self, choices=(*self.choices, (choice, tuple(scores))))
