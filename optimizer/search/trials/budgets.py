"""The budgets of a study's searches: numbers of completed trials to reach.

Every fit records its budgets by stage in the Optuna studies that it opens, for other workers and for commands. The
largest budget of the living workers counts. Without a living worker the larger of two counts: the budget of study.yaml,
which the next fit runs, and the budget that the user gave to the last fit.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import optuna

from optimizer.search.trials.workers import Workers
from optimizer.studies import Stage, Study

__all__ = ["Budgets", "budget_of", "most_of"]

_RECORDED = "blockfit:budgets"


@dataclass(frozen=True)
class Budgets:
    """The budgets of a fit.

    Attributes:
        by_stage: The number of completed trials of each search in a stage, {stage: number}.
        asked: Whether the user gave the number, in place of study.yaml.
        workers: The workers, of which the fit is one.
        most: The largest number of trials that the search can use; None if unlimited.

    """

    by_stage: Mapping[str, int]
    asked: bool
    workers: Workers
    most: int | None = None

    @classmethod
    def of(cls, study: Study, workers: Workers, most: int | None = None) -> "Budgets":
        """Return the budgets of a fit of `study`; see the class for `workers` and `most`."""
        return cls({stage.name: stage.trials for stage in study.stages}, study.asked_trials is not None, workers, most)

    def record(self, study: optuna.Study) -> None:
        """Record the budgets in an Optuna study, and drop those of workers that have ended."""
        mine = self.workers.mine
        living = {worker.name for worker in self.workers.living()}
        kept = {name: budgets for name, budgets in _workers(study.user_attrs).items() if name in living}
        ours = {} if mine is None else {mine.name: dict(self.by_stage)}
        last = dict(self.by_stage) if self.asked else {}
        study.set_user_attr(_RECORDED, {"last": last, "workers": {**kept, **ours}, "most": self.most})


def budget_of(stage: Stage, noted: Iterable[Mapping[str, Any]], living: Iterable[str], most: int | None = None) -> int:
    """Return the budget of each search of a stage.

    Args:
        stage: The stage, with the budget of study.yaml.
        noted: The user attributes of the Optuna studies that fits opened, the latest last.
        living: The names of the living workers.
        most: The largest number of trials that the search can use, from `most_of`; None if unlimited.

    Returns:
        The largest budget of the living workers. Without a living worker, the larger of the budget in study.yaml and
        the budget that the user gave to the last fit.

    """
    attributes, names = list(noted), set(living)
    living_budgets = [
        budgets[stage.name]
        for of_study in attributes
        for name, budgets in _workers(of_study).items()
        if name in names and stage.name in budgets
    ]
    last = _numbers(_mapping(attributes[-1].get(_RECORDED)).get("last")) if attributes else {}
    budget = max(living_budgets) if living_budgets else max(last.get(stage.name, 0), stage.trials)
    return budget if most is None else min(budget, most)


def most_of(attributes: Mapping[str, Any]) -> int | None:
    """Return the largest number of trials that a search can use, from its user attributes; None if unlimited."""
    return _numbers({"": _mapping(attributes.get(_RECORDED)).get("most")}).get("")


def _workers(attributes: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    recorded = _mapping(_mapping(attributes.get(_RECORDED)).get("workers"))
    return {str(name): _numbers(budgets) for name, budgets in recorded.items()}


def _numbers(budgets: Any) -> dict[str, int]:
    # A study from elsewhere may hold any value.
    return {
        str(stage): number for stage, number in _mapping(budgets).items() if type(number) is int and 0 < number < 2**63
    }


def _mapping(value: Any) -> Mapping[Any, Any]:
    return value if isinstance(value, Mapping) else {}
