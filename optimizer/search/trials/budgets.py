"""The number of completed trials that a study's searches aim at.

Every fit notes its budgets, by stage, in the Optuna studies that it opens, for other workers and for commands that look
at them. The largest budget of the living workers counts. Where none lives it is that of study.yaml, which the next fit
runs, or a larger one that the last fit was asked for.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import optuna

from optimizer.search.trials.workers import Workers
from optimizer.studies import Stage, Study

__all__ = ["Budgets", "budget_of", "most_of"]

_NOTED = "blockfit:budgets"


@dataclass(frozen=True)
class Budgets:
    """The budgets {stage: completed trials of each of its Optuna studies} of a fit, which is one of `workers`.

    `asked` is whether its user gave the number instead of what study.yaml says; `most` how many trials one search can
    use at all, None if as many as it gets.
    """

    by_stage: Mapping[str, int]
    asked: bool
    workers: Workers
    most: int | None = None

    @classmethod
    def of(cls, study: Study, workers: Workers, most: int | None = None) -> "Budgets":
        """Return those of a fit of `study`."""
        return cls({stage.name: stage.trials for stage in study.stages}, study.asked_trials is not None, workers, most)

    def note(self, study: optuna.Study) -> None:
        """Note them in an Optuna study, and drop those of workers that have ended."""
        own = self.workers.own
        living = {worker.name for worker in self.workers.living()}
        kept = {name: budgets for name, budgets in _workers(study.user_attrs).items() if name in living}
        ours = {} if own is None else {own.name: dict(self.by_stage)}
        last = dict(self.by_stage) if self.asked else {}
        study.set_user_attr(_NOTED, {"last": last, "workers": {**kept, **ours}, "most": self.most})


def budget_of(stage: Stage, noted: Iterable[Mapping[str, Any]], living: Iterable[str], most: int | None = None) -> int:
    """Return the budget of each Optuna study of a stage: the largest of the living workers', or what is still to do.

    `noted` are the user attributes of the Optuna studies that fits opened, the latest last; `living` the names of the
    workers; `most` what the search can use at all, see `most_of`. Where no worker lives, the larger of what study.yaml
    says and what the last fit was asked for counts.
    """
    attributes, names = list(noted), set(living)
    living_budgets = [
        budgets[stage.name]
        for one in attributes
        for name, budgets in _workers(one).items()
        if name in names and stage.name in budgets
    ]
    last = _numbers(_mapping(attributes[-1].get(_NOTED)).get("last")) if attributes else {}
    budget = max(living_budgets) if living_budgets else max(last.get(stage.name, 0), stage.trials)
    return budget if most is None else min(budget, most)


def most_of(attributes: Mapping[str, Any]) -> int | None:
    """Return how many trials the search can use whose Optuna study has these user attributes; None if any number."""
    return _numbers({"": _mapping(attributes.get(_NOTED)).get("most")}).get("")


def _workers(attributes: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    noted = _mapping(_mapping(attributes.get(_NOTED)).get("workers"))
    return {str(name): _numbers(budgets) for name, budgets in noted.items()}


def _numbers(budgets: Any) -> dict[str, int]:
    # A stranger's study may say anything.
    return {
        str(stage): number for stage, number in _mapping(budgets).items() if type(number) is int and 0 < number < 2**63
    }


def _mapping(value: Any) -> Mapping[Any, Any]:
    return value if isinstance(value, Mapping) else {}
