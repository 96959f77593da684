"""The registry of metrics by name. A new metric takes one file, and one line in `METRICS`."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch

from optimizer.choices import MetricName
from optimizer.errors import InputError, StudyError, attempt
from optimizer.extras import require
from optimizer.families import Layout
from optimizer.recipes import Group
from optimizer.similarity.attention import AttentionMetric, AttentionOptions, attention_by_seed
from optimizer.similarity.comparison import Comparison
from optimizer.similarity.encoder import EncoderMetric, EncoderOptions
from optimizer.similarity.memory import MovableMetric
from optimizer.similarity.metric import Metric
from optimizer.similarity.options import MetricOptions
from optimizer.similarity.quadratic import DeltaMetric, ElementsMetric, ExplainedMetric, WeightsMetric
from optimizer.similarity.scorable import Scorable
from optimizer.similarity.statistics import Statistics

__all__ = [
    "DEFAULT_METRIC",
    "EXACT_METRICS",
    "METRICS",
    "OPTIONS",
    "MetricKind",
    "build_metric",
    "check_installed",
    "register_metric",
]


@dataclass(frozen=True)
class MetricKind:
    """Kind of metric: the blocks of a layout that it can see, and the function that builds it.

    Attributes:
        name: Name in study.yaml and commands.
        title: One phrase for reports.
        sees: Function from a layout to the blocks that the metric can score.
        build: Function that builds the metric.
        reads_statistics: Whether it is computed from Gram matrices, which several metrics share.
        needs_base: Whether it is defined only relative to a base.
        scale_free: Whether it depends only on the direction of a candidate from the base, not on the distance.
        exact: Whether it is a `QuadraticMetric`, whose best alphas are found without a trial.
        needs_prompts: Whether it reads prompts.
        options: Model of its options, which are fields of a stage in study.yaml; None if it has none.
        extra: Name of the installation's extra with the libraries it uses; None if it needs none.
        by_seed: Function that scores one candidate, coefficients [groups, sources], under several seeds: float64
            [seeds, blocks]; None for a metric without random inputs.
        absent: Reason why a layout may offer it for no block.
    """

    name: MetricName
    title: str
    sees: Callable[[Layout], tuple[str, ...]]
    build: Callable[[Scorable, Statistics | None, tuple[str, ...]], Metric]
    reads_statistics: bool = True
    needs_base: bool = False
    scale_free: bool = False
    exact: bool = False
    needs_prompts: bool = False
    options: type[MetricOptions] | None = None
    extra: str | None = None
    by_seed: Callable[[Comparison, tuple[str, ...], torch.Tensor, Sequence[int]], torch.Tensor] | None = None
    absent: str = ""

    def check_offered(self, layout: Layout) -> None:
        """Raise InputError with the reason if a layout offers this metric for none of its blocks."""
        if not self.sees(layout):
            raise InputError(f"{self.name!r} is not offered for {layout.title}: {self.absent}")

    @property
    def needs_seed(self) -> bool:
        """Whether the metric draws random inputs."""
        return self.by_seed is not None


def _everything(layout: Layout) -> tuple[str, ...]:
    return layout.blocks


def _with_attention(layout: Layout) -> tuple[str, ...]:
    return tuple(layout.attention)


def _text_encoder(layout: Layout) -> tuple[str, ...]:
    return () if layout.readable_encoder is None else (layout.readable_encoder.block,)


def _from_statistics(kind: Callable[[Statistics, Sequence[Group], tuple[str, ...]], Metric]) -> Callable[..., Metric]:
    def build(scorable: Scorable, statistics: Statistics | None, blocks: tuple[str, ...]) -> Metric:
        assert statistics is not None
        return kind(statistics, scorable.groups, blocks)

    return build


def _from_tensors(kind: type[AttentionMetric] | type[EncoderMetric], what: str) -> Callable[..., Metric]:
    def build(scorable: Scorable, statistics: Statistics | None, blocks: tuple[str, ...]) -> Metric:
        opened = scorable.opened(what)
        if opened.device.type == "cpu":
            return kind(opened, blocks)
        return MovableMetric(lambda device: kind(replace(opened, device=device), blocks), opened.device, what)

    return build


METRICS: dict[str, MetricKind] = {
    kind.name: kind
    for kind in (
        MetricKind(
            "explained",
            "share of the target's squared difference from the base that the merge explains",
            _everything,
            _from_statistics(ExplainedMetric),
            exact=True,
        ),
        MetricKind(
            "delta",
            "cosine of the differences from the base",
            _everything,
            _from_statistics(DeltaMetric),
            needs_base=True,
            scale_free=True,
            exact=True,
        ),
        MetricKind("weights", "cosine of the weights", _everything, _from_statistics(WeightsMetric), exact=True),
        MetricKind("elements", "mean cosine per tensor", _everything, _from_statistics(ElementsMetric)),
        MetricKind(
            "attention",
            "cosine of self-attention outputs on random inputs",
            _with_attention,
            _from_tensors(AttentionMetric, "the attention metric"),
            reads_statistics=False,
            options=AttentionOptions,
            by_seed=attention_by_seed,
            absent="it is defined for UNets whose layout lists their self-attention",
        ),
        MetricKind(
            "encoder",
            "cosine of the text encoder's hidden states over prompts",
            _text_encoder,
            _from_tensors(EncoderMetric, "the encoder metric"),
            reads_statistics=False,
            options=EncoderOptions,
            needs_prompts=True,
            absent="its layout has no text encoder that blockfit can compute",
            extra="encoder",
        ),
    )
}
"""The metrics by name; `register_metric` adds one."""

OPTIONS = tuple(kind.options for kind in METRICS.values() if kind.options is not None)
"""The models of the metrics' options."""

DEFAULT_METRIC: MetricName = "explained"
"""The metric of a study without one."""

EXACT_METRICS = tuple(name for name, kind in METRICS.items() if kind.exact)
"""The metrics whose best alphas are found without a trial, the most informative first."""


def register_metric(kind: MetricKind) -> None:
    """Add a metric, which studies, `compare` and `fit` of this process then take by its name.

        register_metric(MetricKind("nearness", "nearness to the target", ...))

    Args:
        kind: The metric.

    Raises:
        StudyError: The name is taken or cannot be written in a study, or the metric has options of its own.
    """
    if kind.name in METRICS:
        raise StudyError(f"received {kind.name!r}, which is a metric already; choose another name", field="name")
    if not kind.name.isidentifier():
        raise StudyError(f"received {kind.name!r}; must consist of letters, digits and _", field="name")
    if kind.options is not None and kind.options not in OPTIONS:
        raise StudyError(f"received {kind.options.__name__}; must be options of a metric that exists", field="options")
    METRICS[kind.name] = kind


def check_installed(metrics: Iterable[str]) -> None:
    """Raise InputError unless the libraries of these metrics are installed.

    Call this before any file is read. Unknown names are ignored here; other functions report them.

    Args:
        metrics: Names of metrics.
    """
    for kind in dict.fromkeys(METRICS[name] for name in metrics if name in METRICS):
        if kind.extra is not None:
            require(kind.extra, f"the metric `{kind.name}`")


def build_metric(name: str, scorable: Scorable, blocks: Sequence[str], statistics: Statistics | None = None) -> Metric:
    """Return the metric of this name over some blocks.

    Args:
        name: Name of the metric.
        scorable: The sources and the target. Metrics that read statistics need no open files.
        blocks: Names of the blocks.
        statistics: Statistics that cover the blocks, for metrics that read them.

    Returns:
        The metric; its blocks are in layout order, for attention in the order of evaluation.

    Raises:
        StudyError: The name is unknown, the metric cannot see a block, or the base is missing.
    """
    if name not in METRICS:
        raise StudyError(f"metric: received {name!r}; must be one of {', '.join(METRICS)}")
    kind = METRICS[name]
    attempt(lambda: kind.check_offered(scorable.layout), "metric")
    visible = kind.sees(scorable.layout)
    unseen = [block for block in blocks if block not in visible]
    if unseen:
        raise StudyError(
            f"{scorable.layout.describe_blocks(unseen)} cannot be measured by {name!r}; it sees "
            f"{scorable.layout.describe_blocks(visible)}"
        )
    if kind.needs_base and scorable.base is None:
        raise StudyError(f"metric {name!r} needs a base, the model that differences are taken from")
    return kind.build(scorable, statistics, tuple(block for block in visible if block in blocks))
