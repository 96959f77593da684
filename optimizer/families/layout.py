"""Layouts: which block, and which part of a model, the tensors of one model family belong to."""

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
    r"""Another beginning of tensor names, and what takes its place; groups of `pattern` are \1 and so on in `to`.

    A tensor that a file holds under both names with different values is read under its own name if this one `yields`.
    """

    pattern: re.Pattern[str]
    to: str
    yields: bool = False


@dataclass(frozen=True)
class Layout:
    """The blocks and parts of one model family, and the rules that put tensors into them.

    `blocks` are in the order in which recipes write their alphas. `groups` are names for several blocks, `unet` the
    groups that an image passes one after another in a UNet (input, middle, output), None in other networks.
    `parts` is what a checkpoint consists of. `places` are beginnings of tensor names with the block of their tensors,
    in the order in which exports write them: each tensor that merges begins with one of them at least, and the longest
    decides. `mappings` says where a tool's blocks differ from these, None for tensors that it moves by no alpha, and
    `leaves` which other tensors a tool takes from the first input, by patterns for whole names.
    `merged_endings` are the last components of the names of tensors that merge. `attention` has the beginning of the
    names of the self-attention weights for each block, in the order in which similarities evaluate it, and
    `projections` what follows for queries, keys and values.
    `markers`, `schedule` and `others` are the names of tensors that tools leave beside the parts, `betas` the noise
    schedule of checkpoints that hold none. `base_names` match the names of files that are bases, the likeliest first.
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
    attention: Mapping[str, str] = field(default_factory=dict)
    projections: tuple[str, str, str] = ("to_q.weight", "to_k.weight", "to_v.weight")
    base_names: tuple[re.Pattern[str], ...] = ()
    modelspec: ModelSpec | None = None
    tools: Tools = field(default_factory=Tools)
    _tables: dict[str, tuple[tuple[str, str | None], ...]] = field(default_factory=dict, compare=False, repr=False)

    @property
    def network(self) -> ModelPart:
        """The UNet or DiT."""
        return next(part for part in self.parts if part.role == "network")

    @property
    def text_encoders(self) -> tuple[TextEncoder, ...]:
        """The text encoders, in the file's order."""
        return tuple(part for part in self.parts if isinstance(part, TextEncoder))

    @property
    def vae(self) -> ModelPart | None:
        """The VAE; None if checkpoints of this family have none."""
        return next((part for part in self.parts if part.role == "vae"), None)

    @property
    def readable_encoder(self) -> TextEncoder | None:
        """The text encoder that the encoder metric reads, and whose vocabulary tells the pipeline; None if none is."""
        return next((encoder for encoder in self.text_encoders if encoder.readable), None)

    @property
    def position_ids(self) -> Mapping[str, str]:
        """The position ids of all text encoders, each with the embedding whose rows they count."""
        found = (encoder.position_ids for encoder in self.text_encoders)
        return {ids.tensor: ids.embedding for ids in found if ids is not None}

    @property
    def default_mapping(self) -> str:
        """The mapping of a recipe that names none."""
        return next(iter(self.mappings))

    @property
    def example(self) -> str:
        """A list of blocks, as an example for messages: the layout's last group, else its last block."""
        return self.describe_blocks([*self.groups.values()][-1] if self.groups else self.blocks[-1:])

    def canonical(self, stored_name: str) -> str:
        """Return the one name that tensors stored under several spellings are known by."""
        rename, found = self._rename(stored_name)
        return stored_name if rename is None or found is None else found.expand(rename.to) + stored_name[found.end() :]

    def yields(self, stored_name: str) -> bool:
        """Whether a tensor of this stored name gives way to another one that has its canonical name in the file."""
        rename, _ = self._rename(stored_name)
        return rename is not None and rename.yields

    def shape_of(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the tensor with canonical `name`, stored in `shape`: four axes if it is a convolution."""
        pixel = 2 <= len(shape) < 4 and all(size == 1 for size in shape[2:])
        convolution = pixel and self.convolutions is not None and self.convolutions.fullmatch(name)
        return (*shape[:2], 1, 1) if convolution else shape

    def part_of(self, name: str) -> str | None:
        """Return the title of the part that a tensor of this canonical name belongs to; None if it belongs to none.

        A part's tensors merge. What belongs to none is not part of the model, whatever a tool left it there for.
        """
        return next((part.title for part in self.parts if part.holds(name)), None)

    def expects(self, name: str) -> bool:
        """Whether checkpoints of this layout may hold this canonical name: a part's, an EMA copy's, a tool's own."""
        if name in (*self.markers, *self.schedule, *self.others) or name.startswith(self.ema):
            return True
        return self.part_of(name) is not None

    def block_of(self, name: str, mapping: str | None = None) -> str | None:
        """Return the block of the tensor with canonical `name`: that of the longest place that the name begins with.

        None where this mapping (default: the layout's first) moves the tensor by no block's alpha, so that every step
        takes it from its first input; and for names that begin with no place.
        """
        mapping = mapping or self.default_mapping
        table = self._table(mapping)
        left = self.leaves.get(mapping)
        if left is not None and left.fullmatch(name):
            return None
        return next((block for prefix, block in table if name.startswith(prefix)), None)

    def place_of(self, block: str) -> str:
        """Return the place whose tensors belong to a block whatever the mapping."""
        fixed = (p for p in self.places if all(self.block_of(p, mapping) == block for mapping in self.mappings))
        return next(fixed, next(place for place, own in self.places.items() if own == block))

    def places_beside_blocks(self) -> tuple[str, ...]:
        """Return the places of the network that are no block's home, such as `time_embed` beside the blocks."""
        homes = {self.place_of(block) for block in self.blocks}
        return tuple(place for place in self.places if place not in homes and self.in_network(place))

    def in_network(self, place: str) -> bool:
        """Whether a place, or a tensor, is the network's by its name's beginning."""
        return part_at(self.parts, place) is self.network

    def merges(self, name: str) -> bool:
        """Whether a floating-point tensor of this canonical name takes part in a merge."""
        return name.rsplit(".", 1)[-1] in self.merged_endings and self.part_of(name) is not None

    def scores(self, name: str) -> bool:
        """Whether a tensor of this canonical name counts in the similarity of its block."""
        return self.merges(name) and next(part.scores for part in self.parts if part.holds(name))

    def missing(self, names: Collection[str]) -> str | None:
        """Return why tensors of these canonical names are no checkpoint of this layout; None if they are one."""
        for prefix in self.forbids:
            found = next((name for name in names if name.startswith(prefix)), None)
            if found is not None:
                return f"holds {found!r}, which is no part of {self.title}"
        for name in self.requires:
            if name not in names:
                return f"lacks {name!r}, which is part of {self.title}"
        return None

    def parse_blocks(self, text: str | Iterable[str]) -> tuple[str, ...]:
        """Return the blocks that `text` lists, in layout order.

        `text` is a block, a range such as `OUT06-OUT11`, `all`, a group of the layout, or a comma list of these; or an
        iterable of such texts. Spellings such as MI00 for M00 are understood, in upper or lower case.

        Raises RecipeError for an unknown block, a range that runs backwards, or a block listed twice.
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
        """Return the shortest block list that `parse_blocks` turns back into `blocks`, ranges written `OUT03-OUT11`."""
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
        """Return the first group that has this block; the block's own name if none has."""
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
        """The places with their blocks under a mapping, the longest first."""
        if mapping not in self._tables:
            if mapping not in self.mappings:
                raise RecipeError(f"unknown mapping {mapping!r}; {self.name} has {', '.join(self.mappings)}")
            rules: dict[str, str | None] = {**self.places, **self.mappings[mapping]}
            self._tables[mapping] = tuple(sorted(rules.items(), key=lambda rule: -len(rule[0])))
        return self._tables[mapping]


def part_at(parts: Iterable[ModelPart], name: str) -> ModelPart | None:
    """Return the part with the longest prefix that a name begins with; None if it begins with none."""
    fitting = [part for part in parts if name.startswith(part.prefix)]
    return max(fitting, key=lambda part: len(part.prefix), default=None)


def _shown(text: str | Iterable[str]) -> str:
    return repr(text) if isinstance(text, str) else repr(", ".join(text))
