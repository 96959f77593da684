"""Optuna samplers: blockwise, its surrogates, and the registry of the samplers that a study can name.

Nothing here depends on checkpoints and recipes.
"""

from optimizer.samplers.blockwise import BLOCK_SCORES, BlockwiseSampler
from optimizer.samplers.components import connected
from optimizer.samplers.registry import DEFAULT_SAMPLER, SAMPLERS, make_sampler, trial_seed

__all__ = ["BLOCK_SCORES", "DEFAULT_SAMPLER", "SAMPLERS", "BlockwiseSampler", "connected", "make_sampler", "trial_seed"]
