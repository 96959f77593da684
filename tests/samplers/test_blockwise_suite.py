"""The block-wise sampler passes Optuna's public test suite for samplers."""

import pytest
from optuna.testing.pytest_samplers import BasicSamplerTestCase, RelativeSamplerTestCase, SingleOnlySamplerTestCase

from optimizer.samplers import BlockwiseSampler


class TestBlockwiseSampler(BasicSamplerTestCase, RelativeSamplerTestCase, SingleOnlySamplerTestCase):
    """Tests of numbers, categories, conditions, changing ranges and a single objective."""

    @pytest.fixture
    def sampler(self):
        """The class of the sampler; each instance draws its own seed."""
        return BlockwiseSampler
