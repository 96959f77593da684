"""The encoder metric: cosine of the text encoders' hidden states over a list of prompts.

Per prompt it is the mean over the tokens, those of begin and end included, of

    cosine(h_candidate[token], h_target[token])

where h are the hidden states that the network receives. The layout says of which layer they are, and whether after the
final normalization; with `clip skip` n they are those of n - 1 layers before. The states of several encoders stand side
by side: h of SDXL has 768 + 1280 numbers a token. The similarity is the mean over the prompts. Tensors that the states
do not depend on, as those of later layers, do not count.

transformers' CLIPTextModel computes the states with the merged weights, which exist for one candidate at a time.
Prompts are not padded to the length that the network requires: the encoders' attention is causal, so tokens after the
end of a prompt do not change earlier ones. Prompts of similar length are computed together, and only those rows of the
token tables are merged that the prompts use.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from pydantic import Field, PrivateAttr, StrictInt, StrictStr

from optimizer.checkpoints import TensorSource, encoders_of, pipeline_of
from optimizer.errors import CheckpointError, InputError, attempt
from optimizer.families import Layout, TextEncoder, load_tokenizer
from optimizer.files import TEXT_SUFFIXES, missing_file, named_file, shown
from optimizer.recipes import FittedPrompts, FittedSearch, Part
from optimizer.similarity.comparison import Comparison
from optimizer.similarity.device import float32_products
from optimizer.similarity.lines import Line, find_line
from optimizer.similarity.loading import Loader
from optimizer.similarity.options import MetricOptions
from optimizer.similarity.prompts import prompts_sha256, read_prompts, shipped_prompts
from optimizer.similarity.text_models import TextModel

__all__ = ["EncoderMetric", "EncoderOptions", "check_encoder"]

# Cost of a batch beyond its tokens, in tokens: another read of the weights, and the calls.
_BATCH_COST = 24
# Most tokens of a batch, padding included, by device: more than some thousands are no faster.
_BATCH_TOKENS = {"cpu": 1 << 12, "cuda": 1 << 15}
# Types that a GPU keeps as stored; all others become float32.
_HALF = (torch.float16, torch.bfloat16)
# Name of the stage of the progress that users see.
_READING = "reading the text encoders"


def check_encoder(target: TensorSource, layout: Layout, clip_skips: Mapping[str, int]) -> None:
    """Raise InputError unless the target's text encoders can be read at each of the clip skips.

    No weights are read.

    Args:
        target: The target.
        layout: Its layout.
        clip_skips: Clip skips by the place where each was given; the place of the argument `clip_skip` is "".
    """
    _check_clip_skips(encoders_of(target, layout), clip_skips)
    load_tokenizer(pipeline_of(target, layout))


class EncoderOptions(MetricOptions):
    """Options of the encoder metric.

    `prompts` is the file of the prompts, `texts` the prompts themselves once they are read.
    """

    prompts: StrictStr | None = Field(
        default=None,
        description="A file of prompts, one a line, that the encoder metric reads.",
        examples=["prompts.txt"],
    )
    clip_skip: StrictInt = Field(
        default=1,
        description=(
            "The layer of the text encoders that the encoder metric reads: 1 is the one whose states the layout's "
            "network receives, 2 the one before."
        ),
    )
    _texts: tuple[str, ...] | None = PrivateAttr(None)
    _sha256: str | None = PrivateAttr(None)

    @property
    def texts(self) -> tuple[str, ...] | None:
        """Prompts that were read; None for those that come with the target's text encoder, and before reading."""
        return self._texts

    @property
    def sha256(self) -> str | None:
        """Identity of the prompts by `prompts_sha256`; None if unknown."""
        return self._sha256 if self._texts is None else prompts_sha256(self._texts)

    def with_texts(self, texts: tuple[str, ...] | None, *, sha256: str | None = None) -> Self:
        """Return a copy with these prompts, or with the `sha256` of prompts that are not read yet."""
        found = self.model_copy()
        found._texts, found._sha256 = texts, sha256
        return found

    def problems(self, given: Collection[str], layout: Layout, *, used: bool) -> list[str]:
        """Return a line for each field given without the metric, and for a layer that does not exist."""
        found = [
            f"{name}: only the metric `encoder` reads prompts; leave it out, or write metric: encoder"
            for name in type(self).model_fields
            if not used and name in given
        ]
        encoders = layout.readable_encoders
        most = _most_clip_skip(encoders)
        if not 1 <= self.clip_skip <= most:
            received = shown(self.clip_skip)
            found.append(f"clip_skip: received {received}; must be 1, {_first_layer(encoders)}, or 2 to {most}")
        return found

    def loaded(self, folder: Path) -> Self:
        """Return the options with the prompts of their file, or raise InputError."""
        if self.prompts is None:
            return self
        file = self.prompts
        if (named := named_file(folder, file)) is None:
            raise InputError(f"prompts: {folder / file}: {missing_file(folder / file, TEXT_SUFFIXES)}")
        return self.with_texts(attempt(lambda: read_prompts(named), "prompts"))

    def resolved(self, target: TensorSource, layout: Layout) -> Self:
        """Return the options with prompts; by default those that come with the target's text encoder."""
        return self if self.texts else self.with_texts(shipped_prompts(target, layout))

    def bound(self, *, used: bool) -> dict[str, Any]:
        """Return the hash of the prompts, and the layer, if the metric is used."""
        return {"prompts": prompts_sha256(self.texts or ()), "clip_skip": self.clip_skip} if used else {}

    def noted(self) -> dict[str, Any]:
        """Return the file and hash of the prompts, or the prompts if no file is known; and the layer."""
        found: dict[str, Any] = {}
        if self.texts is not None:
            file = self.prompts
            found["prompts"] = self.texts if file is None else FittedPrompts(file=file, sha256=self.sha256)
        return found if self.clip_skip == 1 else {**found, "clip_skip": self.clip_skip}

    def described(self, *, used: bool) -> list[str]:
        """Return the number and the origin of the prompts, and the layer, if the metric is used."""
        if not used:
            return []
        shipped = "the prompts that come with the layout"
        prompts = shipped if self.texts is None else f"{len(self.texts)} prompts of the study's own"
        return [prompts, f"clip skip {self.clip_skip}"]

    @classmethod
    def of_noted(cls, search: FittedSearch) -> Self:
        """Return options with a recipe's layer and prompts: file and hash or, in early recipes, the prompts."""
        found = cls(clip_skip=search.clip_skip or 1)
        if isinstance(search.prompts, FittedPrompts):
            read = cls(prompts=search.prompts.file, clip_skip=found.clip_skip)
            return read.with_texts(None, sha256=search.prompts.sha256)
        return found.with_texts(search.prompts)


class EncoderMetric:
    """Mean over the prompts of the mean cosine of the text encoders' hidden states at `clip_skip`.

    `blocks` is the one block of the text encoders.
    """

    unchanged: tuple[str, ...] = ()

    def __init__(self, comparison: Comparison, blocks: tuple[str, ...]) -> None:
        """Read the encoders of all checkpoints.

        Raises InputError if an encoder has no layer of this `clip_skip`, and CheckpointError if a text encoder is
        unknown or lacks tensors.

        Args:
            comparison: The open sources and target.
            blocks: The block of the text encoders.
        """
        self.blocks = blocks
        self._comparison = comparison
        layout, target, device = comparison.layout, comparison.target, comparison.device
        encoders = encoders_of(target, layout)
        options = comparison.options.of(EncoderOptions).resolved(target, layout)
        _check_clip_skips(encoders, {"": options.clip_skip})
        tokenizer = load_tokenizer(pipeline_of(target, layout))
        self._models = tuple(TextModel(each, target, options.clip_skip, len(tokenizer)) for each in encoders)
        parts = _parts(comparison, encoders, self._models, blocks)
        longest = min(model.positions for model in self._models)
        tokens, used = _tokens(tokenizer, options.texts or (), longest)
        self._batches = tuple(_batches(tokens, device))
        self._positions = torch.arange(longest, device=device)[None]
        read = _read if device.type == "cpu" else _read_to_gpu
        rows = {encoder.tokens: used for encoder in encoders if encoder.tokens is not None}
        self._weights, weights = read(comparison, parts, rows)
        self._lines: dict[_Weights, _AlongLine] = {}
        with float32_products(tf32=False):
            self._target = [_normalized(states) for states in self._states(weights)]
        comparison.check_intact()
        comparison.zeros.warn()

    def prepare(self, coefficients: torch.Tensor) -> None:
        """Add up the sources once for the line through these coefficients [n, groups, sources], n at least 3.

        Until the next call, candidates on the line take one addition instead of one for each source. The line takes
        twice the memory of the text encoders in float32.
        """
        self._lines = {}
        for weights in self._weights:
            line = find_line(weights.points(coefficients))
            if line is not None:
                self._lines[weights] = _AlongLine(line, weights.combined(line.start), weights.combined(line.direction))

    def score(self, coefficients: torch.Tensor) -> torch.Tensor:
        """Return similarities, float64 [n, 1], of coefficients float64 [n, groups, sources]."""
        # The host waits for the GPU once, after the last candidate.
        scores = [self._score(candidate) for candidate in coefficients]
        found = torch.stack(scores).cpu() if scores else torch.empty(0, dtype=torch.float64)
        # Candidates off the line read the sources again.
        self._comparison.check_intact()
        return found.reshape(len(scores), 1)

    def _score(self, coefficients: torch.Tensor) -> torch.Tensor:
        """Return the similarity of coefficients [groups, sources], float64 []."""
        merged: dict[str, torch.Tensor] = {}
        for weights in self._weights:
            point = weights.points(coefficients[None])
            along = self._lines.get(weights)
            on_line = along is not None and bool(along.line.holds(point)[0])
            merged |= weights.named(along.at(point) if along is not None and on_line else weights.combined(point[0]))
        total = torch.zeros((), dtype=torch.float64, device=self._positions.device)
        with float32_products(tf32=False):
            for batch, states, target in zip(self._batches, self._states(merged), self._target, strict=True):
                cosines = (_normalized(states) * target).sum(dim=-1, dtype=torch.float64).clamp(-1, 1)
                means = (cosines * batch.real).sum(dim=1) / batch.real.sum(dim=1)
                total += means.sum()
        return total / sum(len(batch.tokens) for batch in self._batches)

    @torch.no_grad()
    def _states(self, weights: Mapping[str, torch.Tensor]) -> Iterator[torch.Tensor]:
        """Yield the hidden states of each batch, float32 [prompts, tokens, width]."""
        bound = [(model, model.parameters(weights)) for model in self._models]
        for batch in self._batches:
            yield torch.cat([model.states(each, batch.tokens, self._positions) for model, each in bound], dim=-1)


@dataclass(frozen=True)
class _Batch:
    """Prompts that are computed together: `tokens` int64 [n, length], and a mask `real` bool [n, length]."""

    tokens: torch.Tensor
    real: torch.Tensor


@dataclass(frozen=True, eq=False)
class _Weights:
    """Tensors of the encoders that the same sources hold, with their `row` of coefficients.

    `shapes` are by name. `stored` [holders] are the tensors of the sources: on the CPU mapped tensors, one for each
    name; on a GPU all in one tensor, so that a merge takes one operation for each source.
    """

    row: int
    holders: tuple[int, ...]
    shapes: Mapping[str, torch.Size]
    stored: tuple[tuple[torch.Tensor, ...], ...]

    def points(self, coefficients: torch.Tensor) -> torch.Tensor:
        """Return the holders' coefficients, float64 [n, holders], of all coefficients [n, groups, sources]."""
        return coefficients[:, self.row, list(self.holders)]

    def combined(self, point: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the sums of the sources weighted by `point` [holders], float32, in the form of `stored`."""
        totals = tuple(torch.zeros(tensor.shape, device=tensor.device) for tensor in self.stored[0])
        for number, tensors in zip(point.tolist(), self.stored, strict=True):
            for total, tensor in zip(totals, tensors, strict=True) if number else ():
                total.add_(tensor, alpha=number)
        return totals

    def named(self, tensors: tuple[torch.Tensor, ...]) -> dict[str, torch.Tensor]:
        """Return each tensor of such sums by name."""
        if len(tensors) < len(self.shapes):
            tensors = torch.split(tensors[0], [shape.numel() for shape in self.shapes.values()])
        return {name: tensor.view(shape) for (name, shape), tensor in zip(self.shapes.items(), tensors, strict=True)}


@dataclass(frozen=True)
class _AlongLine:
    """Tensors along a line of coefficients, start + a * direction, float32 in the form of `_Weights.combined`."""

    line: Line
    start: tuple[torch.Tensor, ...]
    direction: tuple[torch.Tensor, ...]

    def at(self, point: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the tensors at a `point` [1, holders] of the line."""
        place = float(self.line.positions(point)[0])
        return tuple(
            torch.add(start, direction, alpha=place)
            for start, direction in zip(self.start, self.direction, strict=True)
        )


def _read(
    comparison: Comparison, parts: Mapping[str, Part], rows: Mapping[str, torch.Tensor]
) -> tuple[tuple[_Weights, ...], dict[str, torch.Tensor]]:
    """Return the sources' tensors as mapped, and the target's in float32; of some only `rows`, int64.

    Raises CheckpointError, naming file and tensor, for NaN or Inf.
    """
    sources = list(comparison.sources.values())
    target: dict[str, torch.Tensor] = {}
    for done, (name, part) in enumerate(parts.items()):
        for position in part.holders:
            comparison.read(part, sources[position])
        target[name] = _taken(comparison.read(part, comparison.target), rows.get(name))
        comparison.events.progress(_READING, done + 1, len(parts))
    weights = []
    for (row, holders), alike in _alike(comparison, parts).items():
        stored = tuple(
            tuple(_taken(part.read(sources[position]), rows.get(name)) for name, part in alike.items())
            for position in holders
        )
        weights.append(_Weights(row, holders, {name: target[name].shape for name in alike}, stored))
    return tuple(weights), target


def _read_to_gpu(
    comparison: Comparison, parts: Mapping[str, Part], rows: Mapping[str, torch.Tensor]
) -> tuple[tuple[_Weights, ...], dict[str, torch.Tensor]]:
    """Return the same on a GPU, where the tensors of each source form one."""
    sources, device = list(comparison.sources.values()), comparison.device
    loader, done = Loader(device, comparison.zeros), 0
    chosen = {name: used.to(device) for name, used in rows.items()}
    target: dict[str, torch.Tensor] = {}
    weights = []
    for (row, holders), alike in _alike(comparison, parts).items():
        stored: list[list[torch.Tensor]] = [[] for _ in holders]
        for name, part in alike.items():
            target[name] = _taken(loader.load(part, [comparison.target])[0], chosen.get(name))
            for tensors, position in zip(stored, holders, strict=True):
                dtype = sources[position].tensors[part.name].dtype
                loaded = _taken(loader.load(part, [sources[position]])[0], chosen.get(name)).flatten()
                tensors.append(loaded.to(dtype) if dtype in _HALF else loaded)
            done += 1
            comparison.events.progress(_READING, done, len(parts))
        shapes = {name: target[name].shape for name in alike}
        weights.append(_Weights(row, holders, shapes, tuple((torch.cat(tensors),) for tensors in stored)))
    loader.check()
    return tuple(weights), target


def _alike(comparison: Comparison, parts: Mapping[str, Part]) -> dict[tuple[int, tuple[int, ...]], dict[str, Part]]:
    """Return the parts by their row of coefficients and the sources that hold them."""
    found: dict[tuple[int, tuple[int, ...]], dict[str, Part]] = {}
    for name, part in parts.items():
        found.setdefault((comparison.group_of(part), part.holders), {})[name] = part
    return found


def _parts(
    comparison: Comparison, encoders: Sequence[TextEncoder], models: Sequence[TextModel], blocks: Sequence[str]
) -> dict[str, Part]:
    """Return the parts that the models need, by name, or raise CheckpointError for those that files lack."""
    layout, sources = comparison.layout, comparison.sources.values()
    for encoder in encoders:
        if not any(encoder.tokens in source.tensors for source in sources):
            raise CheckpointError(
                f"{source.label}: has no {encoder.title}: tensor {encoder.tokens!r} is missing" for source in sources
            )
    # A mapping may leave tensors of an encoder to a step's first input.
    fixed = (part for part in comparison.parts if part.block is None and layout.scores(part.name))
    scored = {part.name: part for part in (*fixed, *comparison.scored_parts(blocks))}
    found: dict[str, Part] = {}
    for name, shape in ((name, shape) for model in models for name, shape in model.shapes.items()):
        part = scored.get(name)
        if part is None or name not in comparison.target.tensors:
            lacking = [file for file in (comparison.target, *sources) if name not in file.tensors]
            labels = dict.fromkeys(file.label for file in lacking or [comparison.target])
            raise CheckpointError(f"{label}: tensor {name!r} is missing, or not of floating point" for label in labels)
        for file in (comparison.target, [*sources][part.holders[0]]):
            if (stored := file.tensors[name].shape) != shape:
                raise CheckpointError(
                    f"{file.label}: tensor {name!r} has shape {list(stored)}; must be {list(shape)} with the other "
                    f"tensors of {comparison.target.label}"
                )
        found[name] = part
    return found


def _tokens(tokenizer: Any, prompts: Sequence[str], longest: int) -> tuple[list[list[int]], torch.Tensor]:
    """Return the prompts' tokens as positions among the used ones, and the used ones, int64 [used]."""
    found = tokenizer(list(prompts), truncation=True, max_length=longest)["input_ids"]
    used = sorted({token for prompt in found for token in prompt})
    numbers = {token: number for number, token in enumerate(used)}
    return [[numbers[token] for token in prompt] for prompt in found], torch.tensor(used)


def _check_clip_skips(encoders: Sequence[TextEncoder], clip_skips: Mapping[str, int]) -> None:
    """Raise InputError for clip skips, by the places where they were given, for which an encoder has no layer."""
    most = _most_clip_skip(encoders)
    problems = {
        place: f"received {number}; must be from 1, {_first_layer(encoders)}, to {most}"
        for place, number in clip_skips.items()
        if not 1 <= number <= most
    }
    if "" in problems:
        raise InputError(problems[""], field="clip_skip")
    if problems:
        raise InputError(f"{place}: {problem}" for place, problem in problems.items())


def _most_clip_skip(encoders: Sequence[TextEncoder]) -> int:
    return min((encoder.most_clip_skip for encoder in encoders), default=1)


def _first_layer(encoders: Sequence[TextEncoder]) -> str:
    """Return what clip skip 1 reads, for messages."""
    layers = {encoder.states.layer for encoder in encoders if encoder.states is not None}
    known = {1: "the last layer", 2: "the last layer but one"}
    return known.get(layers.pop() if len(layers) == 1 else 0, "the layer that the network receives")


def _batches(tokens: Sequence[Sequence[int]], device: torch.device) -> Iterator[_Batch]:
    """Yield the prompts in batches of similar length with the least cost of padding and batches together."""
    ordered = sorted(tokens, key=len)
    most = _BATCH_TOKENS["cpu" if device.type == "cpu" else "cuda"]
    # Element n is for the first n prompts: their least cost, and the start of their last batch.
    best: list[tuple[int, int]] = [(0, 0)]
    for end in range(1, len(ordered) + 1):
        length = len(ordered[end - 1])
        first = max(0, end - max(1, most // length))
        best.append(min((best[begin][0] + (end - begin) * length + _BATCH_COST, begin) for begin in range(first, end)))
    end = len(ordered)
    while end > 0:
        begin = best[end][1]
        batch, length = ordered[begin:end], len(ordered[end - 1])
        padded = torch.zeros(len(batch), length, dtype=torch.long)
        real = torch.zeros(len(batch), length, dtype=torch.bool)
        for row, prompt in enumerate(batch):
            padded[row, : len(prompt)] = torch.tensor(prompt)
            real[row, : len(prompt)] = True
        yield _Batch(padded.to(device), real.to(device))
        end = begin


def _taken(tensor: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
    return tensor if rows is None else tensor[rows]


def _normalized(states: torch.Tensor) -> torch.Tensor:
    norms: torch.Tensor = states.norm(dim=-1, keepdim=True)
    return states / norms.clamp_min(torch.finfo(states.dtype).tiny)
