"""The next point of a search: first points that are known to be good, then points of the sampler."""

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
    """The proposer of the trials of a search; deterministic for the same earlier trials and the same seed.

    Attributes:
        search: The name of the search, part of the seed.
        sampler: The name of the sampler, one of `SAMPLERS`.
        seed: The study's seed.
        ranges: The range of each free alpha by name.
        blocks: The names of the free alphas that move each scored block, {block: names}.
        first: The points to try before the sampler's, (origin, {free alpha: value}).

    """

    search: str
    sampler: str
    seed: int
    ranges: Mapping[str, BaseDistribution]
    blocks: Mapping[str, Sequence[str]]
    first: Sequence[tuple[str, Mapping[str, float]]]

    def __call__(self, memory: optuna.Study) -> FrozenTrial:
        """Create a running trial in `memory`, an Optuna study of the trials so far, and return it."""
        trials = memory.get_trials(deepcopy=False)
        seed = trial_seed(self.seed, self.search, len(trials))
        others_run = any(not trial.state.is_finished() for trial in trials)
        memory.sampler = make_sampler(self.sampler, seed, self.blocks, others=others_run)
        tried = [trial.params for trial in trials]
        origin = self.sampler
        known = next(((label, point) for label, point in self.first if point not in tried), None)
        if known is not None:
            origin, point = known
            memory.enqueue_trial(dict(point))
        trial = memory.ask(dict(self.ranges))
        trial.set_user_attr(ORIGIN, origin)
        return memory.get_trials(deepcopy=False)[trial.number]
