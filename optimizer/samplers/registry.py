"""The samplers that a study can name; a new one is a function, a line in `_SAMPLERS`, and a word of `SamplerName`.

A sampler is made anew for each trial, from a seed that follows from the study's seed and the trial's number. What it
needs to know of earlier trials it reads from the study, so a resumed study proposes what an uninterrupted one would,
and repeats nothing.
"""

import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, RandomSampler, TPESampler

from optimizer.choices import SamplerName
from optimizer.samplers.blockwise import BlockwiseSampler

__all__ = ["DEFAULT_SAMPLER", "SAMPLERS", "make_sampler", "trial_seed"]

DEFAULT_SAMPLER: SamplerName = "blockwise"

# Which parameters each block's score depends on, {block: parameters}; None if every parameter is a block of its own.
_Blocks = Mapping[str, Sequence[str]] | None


def _blockwise(seed: int, blocks: _Blocks, others: bool) -> BaseSampler:
    return BlockwiseSampler(seed=seed, blocks=blocks)


def _tpe(seed: int, blocks: _Blocks, others: bool) -> BaseSampler:
    return TPESampler(seed=seed, constant_liar=others)


def _cmaes(seed: int, blocks: _Blocks, others: bool) -> BaseSampler:
    return CmaEsSampler(seed=seed, warn_independent_sampling=False)


def _gp(seed: int, blocks: _Blocks, others: bool) -> BaseSampler:
    return GPSampler(seed=seed, deterministic_objective=True, warn_independent_sampling=False)


def _random(seed: int, blocks: _Blocks, others: bool) -> BaseSampler:
    return RandomSampler(seed=seed)


_SAMPLERS: dict[SamplerName, Callable[[int, _Blocks, bool], BaseSampler]] = {
    "blockwise": _blockwise,
    "cmaes": _cmaes,
    "gp": _gp,
    "random": _random,
    "tpe": _tpe,
}
SAMPLERS: Mapping[str, Callable[[int, _Blocks, bool], BaseSampler]] = dict(_SAMPLERS.items())


def make_sampler(name: str, seed: int, blocks: _Blocks = None, *, others: bool = False) -> BaseSampler:
    """The sampler of this name, drawing from `seed`. Raises KeyError for an unknown name.

    `blocks`, {block: names of the parameters that its score depends on}, is for samplers that know of blocks. `others`
    says that other workers' trials are running, for samplers that would propose the same again if not told.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return SAMPLERS[name](seed, blocks, others)


def trial_seed(seed: int, study_name: str, number: int) -> int:
    """The seed, in 0 .. 2^32 - 1, of trial `number` of the Optuna study `study_name`."""
    entropy = np.random.SeedSequence([seed, zlib.crc32(study_name.encode()), number])
    return int(entropy.generate_state(1)[0])
