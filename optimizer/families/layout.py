"""Layouts: the assignment of a model family's tensors to blocks and to parts of the model."""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from optimizer.errors import RecipeError
from optimizer.families.parts import ModelPart, TextEncoder
from optimizer.families.records import Betas, Inpainting, ModelSpec, Tools

__all__ = ["Layout", "Rename"]

_ALL = "all"


@dataclass(frozen=True)
class Rename:
    r"""A rule that replaces the beginning of tensor names.

    Attributes:
        pattern: The beginning to replace.
        to: The replacement, with \1 and so on for the groups of `pattern`.
        yields: Whether, in a file that holds both names with different values, the tensor under the canonical name is
            read. Otherwise the file is refused.
    """

    pattern: re.Pattern[str]
    to: str
    yields: bool = False


@dataclass(frozen=True)
class Layout:
    """The blocks and parts of one model family, and the rules that assign tensors to them.

    Attributes:
        name: The name.
        title: The title for messages.
        blocks: The blocks, in the order in which recipes write their alphas.
        groups: Names for several blocks, in lower case.
        aliases: Other spellings of blocks, in upper case.
        requires: Canonical names of tensors that every checkpoint of this layout holds.
        forbids: Beginnings of names that no checkpoint of this layout holds.
        parts: The parts of a checkpoint.
        places: Beginnings of tensor names with the block of their tensors, in the order in which exports write them.
            The longest that fits a name decides.
        mappings: For each tool, the places with another block; None for tensors to which no alpha applies.
        leaves: For each tool, a pattern of whole names of further tensors that it takes from a step's first input.
        merged_endings: The last components of the names of tensors that merge.
        unet: The groups that an image passes in a UNet, (input, middle, output); None in other networks.
        renames: The rules that turn stored names into canonical names.
        convolutions: A pattern of the names of convolutions of one pixel.
        ema: Beginnings of the names of EMA copies.
        markers: The names of tensors that mark how a model is sampled.
        schedule: The names of the tensors of a noise schedule.
        betas: The noise schedule of checkpoints that hold none.
        others: The names of other tensors that tools leave beside the parts.
        inpainting: The input convolution, if models of the family differ in its input channels.
        attention: For each block, the beginning of the names of its self-attention weights, in the order in which
            similarities evaluate them.
        projections: The endings of these names for queries, keys and values.
        base_names: Patterns of the file names of base models, the likeliest first.
        modelspec: The family in the Stability model spec.
        tools: The conventions of other tools for the family.
        about: Sentences for the documentation: which models have the layout, and whose names its blocks have.
    """

    name: str
    title: str
    blocks: tuple[str, ...]
    groups: Mapping[str, tuple[str, ...]]
    aliases: Mapping[str, str]
    requires: tuple[str, ...]
    forbids: tuple[str, ...]
    parts: tuple[ModelPart, ...]
    places: Mapping[str, str]
    mappings: Mapping[str, Mapping[str, str | None]]
    leaves: Mapping[str, re.Pattern[str]] = field(default_factory=dict)
    merged_endings: tuple[str, ...] = ("weight", "bias")
    unet: tuple[str, str, str] | None = None
    renames: tuple[Rename, ...] = ()
    convolutions: re.Pattern[str] | None = None
    ema: tuple[str, ...] = ()
    markers: tuple[str, ...] = ()
    schedule: tuple[str, ...] = ()
    betas: Betas | None = None
    others: tuple[str, ...] = ()
    inpainting: Inpainting | None = None
    attention: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    projections: tuple[str, str, str] = ("to_q.weight", "to_k.weight", "to_v.weight")
    base_names: tuple[re.Pattern[str], ...] = ()
    modelspec: ModelSpec | None = None
    tools: Tools = field(default_factory=Tools)
    about: str = ""
    _tables: dict[str, tuple[tuple[str, str | None], ...]] = field(default_factory=dict, compare=False, repr=False)

    @property
    def network(self) -> ModelPart:
        """The UNet or DiT."""
        return next(part for part in self.parts if part.role == "network")

    @property
    def text_encoders(self) -> tuple[TextEncoder, ...]:
        """The text encoders, in the order of the layout's file."""
        return tuple(part for part in self.parts if isinstance(part, TextEncoder))

    @property
    def vae(self) -> ModelPart | None:
        """The VAE; None if checkpoints of this family have none."""
        return next((part for part in self.parts if part.role == "vae"), None)

    @property
    def readable_encoders(self) -> tuple[TextEncoder, ...]:
        """The text encoders whose states the network receives side by side; none if there is no tokenizer for them."""
        found = tuple(encoder for encoder in self.text_encoders if encoder.states is not None)
        return found if any(encoder.pipelines for encoder in found) else ()

    @property
    def readable_encoder(self) -> TextEncoder | None:
        """The one of `readable_encoders` whose vocabulary selects the pipeline, if any."""
        return next((encoder for encoder in self.readable_encoders if encoder.pipelines), None)

    @property
    def draws(self) -> bool:
        """Whether checkpoints of this family draw pictures, with a pipeline configuration of each part."""
        encoder = self.readable_encoder
        pipelines = [] if encoder is None or self.vae is None else (encoder.pipelines or {}).values()
        return any(pipeline.guidance is not None for pipeline in pipelines)

    @property
    def position_ids(self) -> Mapping[str, str]:
        """The position ids of all text encoders, {tensor: the embedding whose rows they count}."""
        found = (encoder.position_ids for encoder in self.text_encoders)
        return {ids.tensor: ids.embedding for ids in found if ids is not None}

    @property
    def default_mapping(self) -> str:
        """The mapping of recipes that name none."""
        return next(iter(self.mappings))

    @property
    def example(self) -> str:
        """An example of a block list for messages: the layout's last group, else its last block."""
        return self.describe_blocks([*self.groups.values()][-1] if self.groups else self.blocks[-1:])

    def canonical(self, stored_name: str) -> str:
        """Return the canonical name of a tensor, which is the same for all spellings."""
        rename, found = self._rename(stored_name)
        return stored_name if rename is None or found is None else found.expand(rename.to) + stored_name[found.end() :]

    def yields(self, stored_name: str) -> bool:
        """Return whether a tensor of this stored name yields to one stored under the canonical name."""
        rename, _ = self._rename(stored_name)
        return rename is not None and rename.yields

    def shape_of(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of a tensor, with four axes if it is a convolution that is stored with fewer."""
        pixel = 2 <= len(shape) < 4 and all(size == 1 for size in shape[2:])
        convolution = pixel and self.convolutions is not None and self.convolutions.fullmatch(name)
        return (*shape[:2], 1, 1) if convolution else shape

    def part_of(self, name: str) -> str | None:
        """Return the title of the part that a tensor belongs to.

        Args:
            name: The canonical name of the tensor.

        Returns:
            The title; None for tensors that tools leave beside the model.
        """
        return next((part.title for part in self.parts if part.holds(name)), None)

    def expects(self, name: str) -> bool:
        """Return whether checkpoints of this layout may hold a canonical name: a part's, an EMA copy's or a tool's."""
        if name in (*self.markers, *self.schedule, *self.others) or name.startswith(self.ema):
            return True
        return self.part_of(name) is not None

    def block_of(self, name: str, mapping: str | None = None) -> str | None:
        """Return the block of a tensor: that of the longest place that its name begins with.

        Args:
            name: The canonical name of the tensor.
            mapping: The mapping. Default: the layout's first.

        Returns:
            The block. None if the mapping applies no alpha to the tensor, so that every step takes it from its first
            input, or if the name begins with no place.
        """
        mapping = mapping or self.default_mapping
        table = self._table(mapping)
        left = self.leaves.get(mapping)
        if left is not None and left.fullmatch(name):
            return None
        return next((block for prefix, block in table if name.startswith(prefix)), None)

    def place_of(self, block: str) -> str:
        """Return a place whose tensors belong to a block under every mapping, else one of the block's places."""
        fixed = (p for p in self.places if all(self.block_of(p, mapping) == block for mapping in self.mappings))
        return next(fixed, next(place for place, home in self.places.items() if home == block))

    def places_beside_blocks(self) -> tuple[str, ...]:
        """Return the places of the network besides one per block, `time_embed` for example."""
        homes = {self.place_of(block) for block in self.blocks}
        return tuple(place for place in self.places if place not in homes and self.in_network(place))

    def in_network(self, place: str) -> bool:
        """Return whether the name of a place or tensor begins with the network's prefix."""
        return part_at(self.parts, place) is self.network

    def merges(self, name: str) -> bool:
        """Return whether a floating-point tensor of this canonical name merges."""
        return name.rsplit(".", 1)[-1] in self.merged_endings and self.part_of(name) is not None

    def scores(self, name: str) -> bool:
        """Return whether a tensor of this canonical name counts in the similarity of its block."""
        if not self.merges(name):
            return False
        part = next(part for part in self.parts if part.holds(name))
        return part.scores and not name.startswith(part.unscored)

    def missing(self, names: Collection[str]) -> str | None:
        """Return why tensors of these canonical names form no checkpoint of this layout; None if they do."""
        for prefix in self.forbids:
            found = next((name for name in names if name.startswith(prefix)), None)
            if found is not None:
                return f"contains {found!r}, which is not part of {self.title}"
        for name in self.requires:
            if name not in names:
                return f"lacks {name!r}, which is part of {self.title}"
        return None

    def parse_blocks(self, text: str | Iterable[str]) -> tuple[str, ...]:
        """Return the blocks in a block list.

        Args:
            text: Blocks, ranges like `OUT06-OUT11`, groups of the layout or `all`, separated by commas; or several such
                texts. Aliases like MI00 for M00 are accepted, in upper or lower case.

        Returns:
            The blocks in layout order.

        Raises:
            RecipeError: A block is unknown or listed twice, or a range runs backwards.
        """
        parts = text.split(",") if isinstance(text, str) else [part for item in text for part in item.split(",")]
        chosen: list[str] = []
        for part in (part.strip() for part in parts):
            for block in self._expand(part):
                if block in chosen:
                    raise RecipeError(f"block {block} is listed twice in {_shown(text)}")
                chosen.append(block)
        return tuple(block for block in self.blocks if block in chosen)

    def describe_blocks(self, blocks: Iterable[str]) -> str:
        """Return the shortest block list of `blocks`, with ranges like `OUT03-OUT11`; the inverse of `parse_blocks`."""
        positions = sorted(self.blocks.index(block) for block in blocks)
        runs: list[list[int]] = []
        for position in positions:
            if (
                runs
                and position == runs[-1][-1] + 1
                and self.group_of(self.blocks[position]) == self.group_of(self.blocks[runs[-1][0]])
            ):
                runs[-1].append(position)
            else:
                runs.append([position])
        return ",".join(
            self.blocks[run[0]] if len(run) == 1 else f"{self.blocks[run[0]]}-{self.blocks[run[-1]]}" for run in runs
        )

    def group_of(self, block: str) -> str:
        """Return the first group that contains a block; the block's name without one."""
        return next((name for name, blocks in self.groups.items() if block in blocks), block)

    def _rename(self, stored_name: str) -> tuple[Rename, re.Match[str]] | tuple[None, None]:
        for rename in self.renames:
            if found := rename.pattern.match(stored_name):
                return rename, found
        return None, None

    def _expand(self, part: str) -> tuple[str, ...]:
        if part.lower() == _ALL:
            return self.blocks
        if part.lower() in self.groups:
            return self.groups[part.lower()]
        if "-" in part:
            first, last = (self._block(end.strip()) for end in part.split("-", 1))
            start, stop = self.blocks.index(first), self.blocks.index(last)
            if start > stop:
                raise RecipeError(f"the block range {part!r} runs backwards; write {last}-{first}")
            return self.blocks[start : stop + 1]
        return (self._block(part),)

    def _block(self, text: str) -> str:
        block = self.aliases.get(text.upper(), text.upper())
        if block not in self.blocks:
            raise RecipeError(f"unknown block {text!r}; {self.name} has {self.describe_blocks(self.blocks)}")
        return block

    def _table(self, mapping: str) -> tuple[tuple[str, str | None], ...]:
        """Return the places with their blocks under a mapping, the longest first."""
        if mapping not in self._tables:
            if mapping not in self.mappings:
                raise RecipeError(f"unknown mapping {mapping!r}; {self.name} has {', '.join(self.mappings)}")
            rules: dict[str, str | None] = {**self.places, **self.mappings[mapping]}
            self._tables[mapping] = tuple(sorted(rules.items(), key=lambda rule: -len(rule[0])))
        return self._tables[mapping]


def part_at(parts: Iterable[ModelPart], name: str) -> ModelPart | None:
    """Return the part with the longest prefix that a name begins with; None without one."""
    fitting = [part for part in parts if name.startswith(part.prefix)]
    return max(fitting, key=lambda part: len(part.prefix), default=None)


def _shown(text: str | Iterable[str]) -> str:
    return repr(text) if isinstance(text, str) else repr(", ".join(text))
