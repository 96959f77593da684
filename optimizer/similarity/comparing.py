"""Similarities of whole checkpoints to a target, as in the article's tables."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from optimizer.checkpoints import TensorSource, as_source, unfit
from optimizer.errors import CheckpointError, InputError, attempt
from optimizer.events import CallbackEvents, ProgressOption
from optimizer.families import Layout
from optimizer.recipes import warn_of_compared
from optimizer.similarity.attention import AttentionOptions
from optimizer.similarity.comparison import Comparison, open_comparison
from optimizer.similarity.encoder import EncoderOptions, check_encoder
from optimizer.similarity.metric import total_similarity
from optimizer.similarity.options import Options
from optimizer.similarity.quadratic import ExplainedMetric
from optimizer.similarity.registry import DEFAULT_METRIC, METRICS, build_metric, check_installed
from optimizer.similarity.statistics import measure_statistics

__all__ = ["Compared", "compare", "select_blocks"]

# The default without a base: the article's metric.
_WITHOUT_BASE = "attention"


class Compared(dict[str, float | None]):
    """Similarities of a checkpoint, {block: value in [-1, 1]}, in the order of evaluation.

    A block that the target took over from the base has the value None: `metric` cannot compare it. It does not count in
    `total`.

    Attributes:
        metric: Name of the metric.
        pooled: Share explained of all blocks together, in [-1, 1]; None for metrics other than `explained`.
        length: Length of the checkpoint's difference from the base, in units of the length at which it would be nearest
            to the target; None for other metrics, and where the difference points away from the target's.
        at_best_length: Share that the checkpoint would explain of all blocks together at that length, in [0, 1].
    """

    def __init__(
        self,
        scores: Mapping[str, float | None],
        metric: str,
        pooled: float | None = None,
        length: float | None = None,
        at_best_length: float = 0.0,
    ) -> None:
        super().__init__(scores)
        self.metric = metric
        self.pooled = pooled
        self.length = length
        self.at_best_length = at_best_length

    @property
    def unchanged(self) -> tuple[str, ...]:
        """Blocks that the target took over from the base."""
        return tuple(block for block, value in self.items() if value is None)

    @property
    def total(self) -> float:
        """Mean over the scored blocks; NaN if none is scored."""
        return total_similarity(self)


def compare(
    candidate: Path | str | TensorSource,
    target: Path | str | TensorSource,
    *,
    metric: str | None = None,
    blocks: str = "all",
    base: Path | str | TensorSource | None = None,
    seed: int = 114514,
    prompts: tuple[str, ...] | None = None,
    clip_skip: int | None = None,
    device: torch.device | str = "auto",
    progress: ProgressOption = None,
) -> Compared:
    """Return the similarities of one checkpoint to a target, block by block.

        compare("clone.safetensors", "closed.safetensors", blocks="output")    # {"OUT03": 0.974805, ...}

    An open source may stand for the file of a checkpoint, and stays open. Gives a BlockfitWarning for oddities of the
    files.

    Args:
        candidate: The checkpoint to compare.
        target: The checkpoint to compare it with.
        metric: Name of the metric. Default: explained, or attention without `base`.
        blocks: `all`, `input`, `middle`, `output` (those that the metric sees and both files hold), or a block list.
        base: The checkpoint that explained and delta take differences from.
        seed: Seed of attention's random inputs.
        prompts: Prompts of the encoder metric. Default: those that come with the target's layout.
        clip_skip: Layer of the text encoders that the encoder metric reads: 1 (default) is the one whose states the
            layout's network receives, 2 the one before.
        device: Device of the metric, or its name: auto (a GPU if one is available), cpu or cuda.
        progress: Called as progress(stage, done, total).

    Returns:
        Similarities {block: value in [-1, 1]}, in the order of evaluation; None for an unchanged block.

    Raises:
        InputError: Files, blocks, metric and options do not fit each other, or the metric's libraries are not
            installed.
    """
    events = CallbackEvents.of(progress)
    unnamed = metric is None
    if metric is None:
        metric = _WITHOUT_BASE if base is None else DEFAULT_METRIC
    check_installed([metric])
    layout = _layout_of(target)
    if unnamed:
        why = f"missing; without one {metric} is measured,"
        attempt(lambda: METRICS[metric].check_offered(layout), why, " but ", field="base")
    chosen = select_blocks(layout, metric, blocks)
    # Without a base the candidate itself would be the reference, whose difference from itself explains nothing.
    if (METRICS[metric].needs_base or metric == "explained") and base is None:
        raise InputError(f"missing; the metric {metric!r} compares differences from a base model", field="base")
    reads = METRICS[metric].needs_prompts
    given = {"prompts": prompts, "clip_skip": clip_skip}
    if unread := [name for name, value in given.items() if value is not None and not reads]:
        refusal = _only_for_encoder(unread)
        raise refusal
    with open_comparison(
        layout,
        {"candidate": candidate},
        target,
        base=base,
        device=device,
        options=Options((AttentionOptions(seeds=[seed]),)),
        events=events,
    ) as opened:
        read = EncoderOptions(clip_skip=1 if clip_skip is None else clip_skip).with_texts(prompts)
        comparison = replace(opened, options=opened.options.having(read))
        if reads:
            check_encoder(comparison.target, layout, {"": read.clip_skip})
        if blocks in ("all", *layout.groups):
            # If no block is left, the metric reports which file lacks which tensor.
            chosen = tuple(block for block in chosen if _held(comparison, block)) or chosen
        statistics = measure_statistics(comparison, chosen) if METRICS[metric].reads_statistics else None
        scorer = build_metric(metric, comparison, chosen, statistics)
        among = (opened.target, *opened.sources.values(), *(() if opened.base is None else (opened.base,)))
        warn_of_compared(layout, among)
        coefficients = torch.ones(1, len(comparison.groups), 1, dtype=torch.float64)
        scores = dict(zip(scorer.blocks, scorer.score(coefficients)[0].tolist(), strict=True))
        pooled, length, at_best_length = None, None, 0.0
        if isinstance(scorer, ExplainedMetric) and scores:
            pooled = float(scorer.pooled(coefficients)[0])
            linear, quadratic = (float(moments.sum()) for moments in scorer.moments(coefficients))
            if linear > 0:
                length = quadratic / linear
                at_best_length = linear**2 / (quadratic * float(scorer.difference.sum()))
        order = chosen if scorer.unchanged else scorer.blocks
        return Compared({block: scores.get(block) for block in order}, metric, pooled, length, at_best_length)


def select_blocks(layout: Layout, metric: str, text: str) -> tuple[str, ...]:
    """Return the blocks that `text` selects under `metric`.

    Blocks of a group that the metric does not see are left out. Under `attention` the group of a UNet's input blocks
    contains the middle block too, as in the article's input table.

    Args:
        layout: Layout of the checkpoints.
        metric: Name of the metric.
        text: A name of a group of blocks, or a block list.

    Returns:
        Names of the blocks, in layout order.

    Raises:
        InputError: The metric or a block is unknown, or the metric cannot see the blocks.
    """
    if metric not in METRICS:
        raise InputError(f"received {metric!r}; must be one of {', '.join(METRICS)}", field="metric")
    attempt(lambda: METRICS[metric].check_offered(layout), field="metric")
    visible = METRICS[metric].sees(layout)
    if text in ("all", *layout.groups):
        # In a UNet, attention of the input blocks is shown with that of the middle, as in the article's input table.
        with_middle = layout.unet is not None and metric == "attention" and text == layout.unet[0]
        selected = layout.parse_blocks(",".join(layout.unet[:2]) if layout.unet and with_middle else text)
        if seen := tuple(block for block in selected if block in visible):
            return seen
        raise InputError(
            f"{text} contains no block that {metric!r} sees; it sees {layout.describe_blocks(visible)}",
            field="blocks",
        )
    selected = layout.parse_blocks(text)
    if unseen := [block for block in selected if block not in visible]:
        raise InputError(
            f"{layout.describe_blocks(unseen)} cannot be measured by {metric!r}; it sees "
            f"{layout.describe_blocks(visible)}",
            field="blocks",
        )
    return selected


def _only_for_encoder(fields: Sequence[str]) -> InputError:
    reason = "only the metric `encoder` reads prompts; leave it out, or write `metric='encoder'`"
    if len(fields) == 1:
        return InputError(reason, field=fields[0])
    return InputError(f"`{field}`: {reason}" for field in fields)


def _layout_of(given: Path | str | TensorSource) -> Layout:
    with as_source(given) as source:
        if source.layout is None:
            raise CheckpointError(f"{source.label}: {unfit(source)}")
        return source.layout


def _held(comparison: Comparison, block: str) -> bool:
    parts = [part for part in comparison.parts if part.scored and part.block == block]
    return any(part.held_by(comparison.target) for part in parts)
