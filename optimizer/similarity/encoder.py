"""The encoder metric: cosine of a text encoder's last hidden states over a list of prompts.

Per prompt it is the mean over the tokens, those of begin and end included, of

    cosine(h_candidate[token], h_target[token])

where h are the hidden states that the UNet receives: the last layer's after the final normalization or, as for pictures
drawn with `clip skip` n, the n-th last layer's after that normalization. The similarity is the mean over the prompts.

transformers' CLIPTextModel computes them with the merged weights, which exist for one candidate at a time. Prompts are
not padded to the length that the UNet requires: the encoder's attention is causal, so tokens after the end of a prompt
do not change earlier ones. Prompts of similar length are computed together, and only those rows of the token table are
merged that the prompts use.
"""

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from pydantic import Field, PrivateAttr, StrictInt, StrictStr

from optimizer.checkpoints import TensorSource, pipeline_of, readable_encoder_of
from optimizer.errors import CheckpointError, InputError, attempt
from optimizer.families import Layout, load_tokenizer, stored_part
from optimizer.files import TEXT_SUFFIXES, missing_file, named_file, read_text, shown
from optimizer.printable import unprintable
from optimizer.recipes import FittedPrompts, FittedSearch, Part
from optimizer.similarity.comparison import Comparison
from optimizer.similarity.device import float32_products
from optimizer.similarity.lines import Line, find_line
from optimizer.similarity.loading import Loader
from optimizer.similarity.options import MetricOptions

__all__ = ["EncoderMetric", "EncoderOptions", "check_encoder", "prompts_sha256", "read_prompts", "shipped_prompts"]

# Cost of a batch beyond its tokens, in tokens: another read of the weights, and the calls.
_BATCH_COST = 24
# Most tokens of a batch, padding included, by device: more than some thousands are no faster.
_BATCH_TOKENS = {"cpu": 1 << 12, "cuda": 1 << 15}
# Types that a GPU keeps as stored; all others become float32.
_HALF = (torch.float16, torch.bfloat16)
# Name of the stage of the progress that users see.
_READING = "reading the text encoders"
# Most prompts, since more add no information about an encoder, and most bytes of a file (4 MiB).
_MOST_PROMPTS, _LONGEST_FILE = 10_000, 1 << 22


def read_prompts(path: Path) -> tuple[str, ...]:
    """Return the prompts of a UTF-8 text file, one a line, without empty lines.

    Args:
        path: The file, of at most 4 MiB.

    Returns:
        The prompts, stripped.

    Raises:
        InputError: The file cannot be read, is too large, contains no prompt or too many, or unprintable characters.
    """
    try:
        lines = read_text(path, InputError, most=_LONGEST_FILE).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not text in UTF-8 (byte {error.start}); save it as UTF-8") from error
    problems = [
        f"{path}: line {number}: contains the character {letter!r}; leave it out"
        for number, line in enumerate(lines, 1)
        if (letter := unprintable(line.replace("\t", " "))) is not None
    ]
    if problems:
        raise InputError(problems[:8])
    prompts = tuple(line.strip() for line in lines if line.strip())
    if not 0 < len(prompts) <= _MOST_PROMPTS:
        received = f"{len(prompts):,} prompts" if prompts else "no prompt"
        raise InputError(f"{path}: contains {received}; must contain 1 to {_MOST_PROMPTS:,} prompts, one a line")
    return prompts


def prompts_sha256(prompts: Iterable[str]) -> str:
    """Return the identity of prompts: the SHA-256 of a file that contains only them, one a line.

    Line ends and empty lines of the file that they were read from do not matter.

    Args:
        prompts: The prompts.

    Returns:
        64 hexadecimal digits.
    """
    return hashlib.sha256("".join(f"{prompt}\n" for prompt in prompts).encode("utf-8")).hexdigest()


def shipped_prompts(target: TensorSource, layout: Layout) -> tuple[str, ...]:
    """Return the prompts that come with the target's text encoder, or raise CheckpointError if it is unknown."""
    return read_prompts(pipeline_of(target, layout) / "prompts.txt")


def check_encoder(target: TensorSource, layout: Layout, clip_skips: Mapping[str, int]) -> None:
    """Raise InputError unless the target's text encoder can be read at each of the clip skips.

    No weights are read.

    Args:
        target: The target.
        layout: Its layout.
        clip_skips: Clip skips by the place where each was given; the place of the argument `clip_skip` is "".
    """
    pipeline = pipeline_of(target, layout)
    _configuration(pipeline, clip_skips)
    load_tokenizer(pipeline)


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
        description="The layer of the text encoder that the encoder metric reads: 1 is the last, 2 the one before.",
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
        encoder = layout.readable_encoder
        layers = 1 if encoder is None or encoder.layers is None else encoder.layers
        if not 1 <= self.clip_skip <= layers:
            received = shown(self.clip_skip)
            found.append(f"clip_skip: received {received}; must be 1, the last layer, or 2 to {layers}")
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
    """Mean over the prompts of the mean cosine of the text encoder's hidden states at `clip_skip`.

    `blocks` is the one block of the text encoder.
    """

    unchanged: tuple[str, ...] = ()

    def __init__(self, comparison: Comparison, blocks: tuple[str, ...]) -> None:
        """Read the encoders of all checkpoints.

        Raises InputError if the encoder has no layer of this `clip_skip`.

        Args:
            comparison: The open sources and target.
            blocks: The block of the text encoder.

        Raises:
            CheckpointError: A text encoder is unknown, or lacks tensors.
        """
        self.blocks = blocks
        self._comparison = comparison
        layout, device = comparison.layout, comparison.device
        pipeline = pipeline_of(comparison.target, layout)
        options = comparison.options.of(EncoderOptions).resolved(comparison.target, layout)
        files = (comparison.target, *comparison.sources.values())
        encoder = readable_encoder_of(layout)
        if not any(encoder.tokens in source.tensors for source in comparison.sources.values()):
            raise CheckpointError(
                f"{source.label}: has no {encoder.title}: tensor {encoder.tokens!r} is missing"
                for source in comparison.sources.values()
            )
        self._model, tokens, used = _model_and_tokens(pipeline, options.texts or (), options.clip_skip)
        self._batches = tuple(_batches(tokens, device))
        self._positions = torch.arange(self._model.config.max_position_embeddings, device=device)[None]
        scored = {part.name: part for part in comparison.scored_parts(blocks)}
        names = [name for name, _ in self._model.named_parameters()]
        parts: dict[str, Part] = {}
        for name in names:
            stored = encoder.model + name
            if stored not in scored:
                lacking = [file for file in files if stored not in file.tensors] or [comparison.target]
                raise CheckpointError(
                    f"{file.label}: tensor {stored!r} is missing, or not of floating point" for file in lacking
                )
            parts[name] = scored[stored]
        read = _read if device.type == "cpu" else _read_to_gpu
        self._weights, target = read(comparison, parts, {encoder.tokens_behind(): used})
        self._lines: dict[_Weights, _AlongLine] = {}
        with float32_products(tf32=False):
            self._target = [_normalized(states) for states in self._states(target)]
        comparison.check_intact()
        comparison.zeros.warn()

    def prepare(self, coefficients: torch.Tensor) -> None:
        """Add up the sources once for the line through these coefficients [n, groups, sources], n at least 3.

        Until the next call, candidates on the line take one addition instead of one for each source. The line takes the
        memory of two text encoders.
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
        bound = {**weights, "embeddings.position_ids": self._positions}
        for batch in self._batches:
            yield torch.func.functional_call(self._model, bound, (batch.tokens,)).last_hidden_state


@dataclass(frozen=True)
class _Batch:
    """Prompts that are computed together: `tokens` int64 [n, length], and a mask `real` bool [n, length]."""

    tokens: torch.Tensor
    real: torch.Tensor


@dataclass(frozen=True, eq=False)
class _Weights:
    """Parameters of the encoder that the same sources hold, with their `row` of coefficients.

    `shapes` are by name. `stored` [holders] are the tensors of the sources: on the CPU mapped tensors, one for each
    parameter; on a GPU all parameters in one tensor, so that a merge takes one operation for each source.
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
        """Return each parameter of such sums by name."""
        if len(tensors) < len(self.shapes):
            tensors = torch.split(tensors[0], [shape.numel() for shape in self.shapes.values()])
        return {name: tensor.view(shape) for (name, shape), tensor in zip(self.shapes.items(), tensors, strict=True)}


@dataclass(frozen=True)
class _AlongLine:
    """Parameters along a line of coefficients, start + a * direction, float32 in the form of `_Weights.combined`."""

    line: Line
    start: tuple[torch.Tensor, ...]
    direction: tuple[torch.Tensor, ...]

    def at(self, point: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the parameters at a `point` [1, holders] of the line."""
        place = float(self.line.positions(point)[0])
        return tuple(
            torch.add(start, direction, alpha=place)
            for start, direction in zip(self.start, self.direction, strict=True)
        )


def _read(
    comparison: Comparison, parts: Mapping[str, Part], rows: Mapping[str, torch.Tensor]
) -> tuple[tuple[_Weights, ...], dict[str, torch.Tensor]]:
    """Return the sources' parameters as mapped, and the target's in float32; of some only `rows`, int64.

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
    """Return the same on a GPU, where the parameters of each source form one tensor."""
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


def _model_and_tokens(
    pipeline: Path, prompts: Sequence[str], clip_skip: int
) -> tuple[Any, list[list[int]], torch.Tensor]:
    """Return the encoder without weights, with the layers and tokens it needs; the prompts' tokens; the used ones.

    The tokens of the prompts are positions in the third value, int64 [used tokens of the encoder].
    """
    from transformers import CLIPTextModel  # noqa: PLC0415  takes seconds

    config = _configuration(pipeline, {"": clip_skip})
    tokenizer = load_tokenizer(pipeline)
    found = tokenizer(list(prompts), truncation=True, max_length=config.max_position_embeddings)["input_ids"]
    used = sorted({token for prompt in found for token in prompt})
    numbers = {token: number for number, token in enumerate(used)}
    config.num_hidden_layers -= clip_skip - 1
    config.vocab_size = len(used)
    # These mark the token to pool at, which is not used here.
    config.bos_token_id = config.eos_token_id = config.pad_token_id = numbers[tokenizer.eos_token_id]
    with torch.device("meta"):
        model = stored_part(CLIPTextModel(config)).eval()
    return model, [[numbers[token] for token in prompt] for prompt in found], torch.tensor(used)


def _configuration(pipeline: Path, clip_skips: Mapping[str, int]) -> Any:
    """Return transformers' configuration of the text encoder, which must have a layer for each clip skip."""
    from transformers import CLIPTextConfig  # noqa: PLC0415  takes seconds

    config = CLIPTextConfig.from_pretrained(pipeline / "text_encoder", local_files_only=True)
    problems = {
        place: f"received {number}; must be from 1, the last layer, to {config.num_hidden_layers}"
        for place, number in clip_skips.items()
        if not 1 <= number <= config.num_hidden_layers
    }
    if "" in problems:
        raise InputError(problems[""], field="clip_skip")
    if problems:
        raise InputError(f"{place}: {problem}" for place, problem in problems.items())
    return config


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
