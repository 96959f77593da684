"""The next point of a search: one that is known to be good as long as such are left, then the sampler's."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial

from optimizer.samplers import make_sampler, trial_seed
from optimizer.search.trials.attributes import ORIGIN

__all__ = ["Proposer"]


@dataclass(frozen=True)
class Proposer:
    """Proposes the trials of `search`; the same trials so far and the same `seed` give the same proposal.

    Attributes:
        search: The name of the search, part of the seed.
        sampler: The name of a sampler, one of `SAMPLERS`.
        seed: The study's seed.
        ranges: The values that each alpha may take.
        blocks: Which alphas move each scored block.
        first: Points that are tried before any that the sampler proposes, (origin, {alpha: value}).

    """

    search: str
    sampler: str
    seed: int
    ranges: Mapping[str, BaseDistribution]
    blocks: Mapping[str, Sequence[str]]
    first: Sequence[tuple[str, Mapping[str, float]]]

    def __call__(self, memory: optuna.Study) -> FrozenTrial:
        """Return a running trial, which is made in `memory`, an Optuna study of the trials so far."""
        trials = memory.get_trials(deepcopy=False)
        seed = trial_seed(self.seed, self.search, len(trials))
        others = any(not trial.state.is_finished() for trial in trials)
        memory.sampler = make_sampler(self.sampler, seed, self.blocks, others=others)
        tried = [trial.params for trial in trials]
        origin = self.sampler
        known = next(((label, point) for label, point in self.first if point not in tried), None)
        if known is not None:
            origin, point = known
            memory.enqueue_trial(dict(point))
        trial = memory.ask(dict(self.ranges))
        trial.set_user_attr(ORIGIN, origin)
        return memory.get_trials(deepcopy=False)[trial.number]
