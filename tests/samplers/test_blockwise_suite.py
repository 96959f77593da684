"""The block-wise sampler keeps what Optuna asks of every sampler: its own public test suite."""

import pytest
from optuna.testing.pytest_samplers import BasicSamplerTestCase, RelativeSamplerTestCase, SingleOnlySamplerTestCase

from optimizer.samplers import BlockwiseSampler


class TestBlockwiseSampler(BasicSamplerTestCase, RelativeSamplerTestCase, SingleOnlySamplerTestCase):
    """Numbers, categories, conditions, ranges that change, one objective only."""

    @pytest.fixture
    def sampler(self):
        """Makes the sampler, with a seed of its own each time."""
        return BlockwiseSampler
