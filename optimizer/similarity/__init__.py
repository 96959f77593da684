"""How close a candidate is to the target: one metric a file behind one protocol, scored from coefficients.

May import torch, `optimizer.checkpoints` and `optimizer.recipes`; never Optuna or search.
"""

from optimizer.similarity.attention import AttentionMetric
from optimizer.similarity.comparing import Compared, compare, select_blocks
from optimizer.similarity.comparison import Comparison, open_comparison, open_recipe_comparison
from optimizer.similarity.device import chosen_device, select_device, unused_card
from optimizer.similarity.encoder import (
    EncoderMetric,
    check_encoder,
    prompts_sha256,
    read_prompts,
    shipped_prompts,
)
from optimizer.similarity.measured import (
    STATISTICS,
    FileMark,
    Measured,
    load_measured,
    measure_family,
    read_measured,
    save_measured,
)
from optimizer.similarity.metric import (
    DEFAULT_METRIC,
    EXACT_METRICS,
    METRICS,
    Combined,
    Metric,
    MetricKind,
    build_metric,
    score_step,
    score_steps,
    total_similarity,
)
from optimizer.similarity.quadratic import (
    DeltaMetric,
    ElementsMetric,
    ExplainedMetric,
    QuadraticMetric,
    WeightsMetric,
)
from optimizer.similarity.statistics import Statistics, gram_matrix, measure_statistics, warn_of_zeros
from optimizer.similarity.verifying import Verified, verify

__all__ = [
    "DEFAULT_METRIC",
    "EXACT_METRICS",
    "METRICS",
    "STATISTICS",
    "AttentionMetric",
    "Combined",
    "Compared",
    "Comparison",
    "DeltaMetric",
    "ElementsMetric",
    "EncoderMetric",
    "ExplainedMetric",
    "FileMark",
    "Measured",
    "Metric",
    "MetricKind",
    "QuadraticMetric",
    "Statistics",
    "Verified",
    "WeightsMetric",
    "build_metric",
    "check_encoder",
    "chosen_device",
    "compare",
    "gram_matrix",
    "load_measured",
    "measure_family",
    "measure_statistics",
    "open_comparison",
    "open_recipe_comparison",
    "prompts_sha256",
    "read_measured",
    "read_prompts",
    "save_measured",
    "score_step",
    "score_steps",
    "select_blocks",
    "select_device",
    "shipped_prompts",
    "total_similarity",
    "unused_card",
    "verify",
    "warn_of_zeros",
]
