"""Metrics of how close a candidate is to the target, scored from coefficients behind one protocol.

Each metric has a file of its own; the registry lists them by name. Nothing here depends on Optuna.
"""

from optimizer.similarity.attention import AttentionMetric, AttentionOptions
from optimizer.similarity.comparing import Compared, compare
from optimizer.similarity.comparison import Comparison, open_comparison, open_recipe_comparison
from optimizer.similarity.device import chosen_device, float32_products, select_device, unused_gpu
from optimizer.similarity.encoder import EncoderOptions, check_encoder
from optimizer.similarity.measured import (
    FileMark,
    Measured,
    measure_family,
    read_measured,
    save_measured,
)
from optimizer.similarity.memory import MovableMetric
from optimizer.similarity.metric import Combined, Metric, score_step, score_steps, total_similarity
from optimizer.similarity.options import MetricOptions, Options
from optimizer.similarity.prompts import prompts_sha256, read_prompts
from optimizer.similarity.quadratic import ExplainedMetric, QuadraticMetric
from optimizer.similarity.registry import (
    DEFAULT_METRIC,
    EXACT_METRICS,
    METRICS,
    OPTIONS,
    MetricKind,
    build_metric,
    check_installed,
    register_metric,
)
from optimizer.similarity.scorable import Scorable
from optimizer.similarity.statistics import Statistics, measure_grams, measure_statistics, warn_of_zeros
from optimizer.similarity.statistics_on_gpu import grams_on_gpu

__all__ = [
    "DEFAULT_METRIC",
    "EXACT_METRICS",
    "METRICS",
    "OPTIONS",
    "AttentionMetric",
    "AttentionOptions",
    "Combined",
    "Compared",
    "Comparison",
    "EncoderOptions",
    "ExplainedMetric",
    "FileMark",
    "Measured",
    "Metric",
    "MetricKind",
    "MetricOptions",
    "MovableMetric",
    "Options",
    "QuadraticMetric",
    "Scorable",
    "Statistics",
    "build_metric",
    "check_encoder",
    "check_installed",
    "chosen_device",
    "compare",
    "float32_products",
    "grams_on_gpu",
    "measure_family",
    "measure_grams",
    "measure_statistics",
    "open_comparison",
    "open_recipe_comparison",
    "prompts_sha256",
    "read_measured",
    "read_prompts",
    "register_metric",
    "save_measured",
    "score_step",
    "score_steps",
    "select_device",
    "total_similarity",
    "unused_gpu",
    "warn_of_zeros",
]
