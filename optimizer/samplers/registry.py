"""The samplers that a study can name; a new one is a function, a line in `_SAMPLERS`, and a word of `SamplerName`.

Each trial gets a new sampler, whose seed follows from the study's seed and the trial's number. A sampler reads earlier
trials from the study alone, so a resumed study proposes the same points as an uninterrupted one, without repetitions.
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

# {block: parameters that its score depends on}; None if every parameter is a block by itself.
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
    """Return a new sampler of this name; an unknown name raises KeyError.

    Args:
        name: A key of `SAMPLERS`.
        seed: The seed of its random numbers.
        blocks: {block: names of the parameters that its score depends on}, for samplers that use blocks; None if every
            parameter is a block by itself.
        others: Whether trials of other workers are running; some samplers would otherwise propose the same points.

    Returns:
        The sampler.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return SAMPLERS[name](seed, blocks, others)


def trial_seed(seed: int, study_name: str, number: int) -> int:
    """Return the seed, in 0 .. 2^32 - 1, of trial `number` of the Optuna study `study_name`."""
    entropy = np.random.SeedSequence([seed, zlib.crc32(study_name.encode()), number])
    return int(entropy.generate_state(1)[0])
