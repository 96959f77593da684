"""The samplers that a study can name; a new one is one function and one line in `SAMPLERS`.

A sampler is made anew for each trial, from a seed that follows from the study's seed and the trial's number. What it
needs to know of earlier trials it reads from the study, so a resumed study proposes what an uninterrupted one would,
and repeats nothing.
"""

import warnings
import zlib
from collections.abc import Callable

import numpy as np
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, RandomSampler, TPESampler

__all__ = ["SAMPLERS", "make_sampler", "trial_seed"]


def _tpe(seed: int) -> BaseSampler:
    return TPESampler(seed=seed)


def _cmaes(seed: int) -> BaseSampler:
    return CmaEsSampler(seed=seed, warn_independent_sampling=False)


def _gp(seed: int) -> BaseSampler:
    return GPSampler(seed=seed, deterministic_objective=True, warn_independent_sampling=False)


def _random(seed: int) -> BaseSampler:
    return RandomSampler(seed=seed)


SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {"cmaes": _cmaes, "gp": _gp, "random": _random, "tpe": _tpe}


def make_sampler(name: str, seed: int) -> BaseSampler:
    """The sampler of this name, drawing from `seed`. Raises KeyError for an unknown name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return SAMPLERS[name](seed)


def trial_seed(seed: int, study_name: str, number: int) -> int:
    """The seed, in 0 .. 2^32 - 1, of trial `number` of the Optuna study `study_name`."""
    entropy = np.random.SeedSequence([seed, zlib.crc32(study_name.encode()), number])
    return int(entropy.generate_state(1)[0])
