"""Which block a tensor belongs to: layouts are package data, one YAML file per model family."""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any

from ruamel.yaml import YAML

from optimizer.choices import BlockGroup, words_of
from optimizer.errors import RecipeError

__all__ = ["Layout", "Rename", "detect_layout", "layout_names", "load_layout"]

_BLOCK_GROUPS = words_of(BlockGroup)


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
    """The blocks of one model family, and the rules that put tensors into them.

    `blocks` are in the order in which recipes write their alphas; `attention` maps a block with self-attention to the
    prefix of its `to_q`, `to_k`, `to_v` weights, in the order in which similarities evaluate them. `encoder` is the
    prefix of the text encoder's tensors; `pipelines` are the pipeline configurations by the number of its tokens.
    `parts` are what a checkpoint consists of, by title, each with a pattern for the beginnings of its tensors' names;
    `markers`, `schedule` and `others` are the names of what tools leave beside them, `betas` the noise schedule of
    checkpoints that hold none: steps, and the first and last beta.
    """

    name: str
    title: str
    blocks: tuple[str, ...]
    aliases: Mapping[str, str]
    requires: tuple[str, ...]
    forbids: tuple[str, ...]
    renames: tuple[Rename, ...]
    convolutions: re.Pattern[str]
    parts: Mapping[str, re.Pattern[str]]
    ema: tuple[str, ...]
    unscored: tuple[str, ...]
    markers: tuple[str, ...]
    schedule: tuple[str, ...]
    betas: tuple[int, float, float]
    others: tuple[str, ...]
    inpainting_tensor: str
    inpainting_channels: int
    position_ids: str
    position_embedding: str
    encoder: str
    pipelines: Mapping[int, str]
    prefixes: Mapping[str, str]
    mappings: Mapping[str, Mapping[str, str | None]]
    attention: Mapping[str, str]
    _tables: dict[str, tuple[tuple[str, str | None], ...]] = field(default_factory=dict, compare=False, repr=False)

    @property
    def token_embedding(self) -> str:
        """The tensor whose rows are the tokens that the text encoder knows."""
        return f"{self.encoder}embeddings.token_embedding.weight"

    def canonical(self, stored_name: str) -> str:
        """The one name that tensors stored under several spellings are known by."""
        rename, found = self._rename(stored_name)
        return stored_name if rename is None or found is None else found.expand(rename.to) + stored_name[found.end() :]

    def yields(self, stored_name: str) -> bool:
        """Whether a tensor of this stored name gives way to another one that has its canonical name in the file."""
        rename, _ = self._rename(stored_name)
        return rename is not None and rename.yields

    def shape_of(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the tensor with canonical `name`, stored in `shape`: that of a convolution where it is one."""
        pixel = 2 <= len(shape) < 4 and all(size == 1 for size in shape[2:])
        return (*shape[:2], 1, 1) if pixel and self.convolutions.fullmatch(name) else shape

    def part_of(self, name: str) -> str | None:
        """The title of the part that a tensor of this canonical name belongs to: UNet, text encoder, VAE; None if none.

        A part's tensors merge; what belongs to none is no part of the model, whatever a tool left it there for.
        """
        return next((title for title, pattern in self.parts.items() if pattern.match(name)), None)

    def expects(self, name: str) -> bool:
        """Whether checkpoints of this layout may hold this canonical name: a part's, an EMA copy's, a tool's own."""
        if name in (*self.markers, *self.schedule, *self.others) or name.startswith(self.ema):
            return True
        return self.part_of(name) is not None

    def block_of(self, name: str, mapping: str = "supermerger") -> str | None:
        """The block of the tensor with canonical `name`; the longest matching prefix decides, else the first block.

        None where this mapping moves the tensor by no block's alpha: every step takes it from its first input.
        """
        for prefix, block in self._table(mapping):
            if name.startswith(prefix):
                return block
        return self.blocks[0]

    def merges(self, name: str) -> bool:
        """Whether a floating-point tensor of this canonical name takes part in a merge."""
        return name.rsplit(".", 1)[-1] in ("weight", "bias") and self.part_of(name) is not None

    def scores(self, name: str) -> bool:
        """Whether a tensor of this canonical name counts in the similarity of its block."""
        return self.merges(name) and not name.startswith(self.unscored)

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
        """The blocks that `text` lists, in layout order.

        `text` is a block, a range `OUT06-OUT11`, `all`, `input`, `middle`, `output`, or a comma list of these; or an
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
        """The shortest block list that `parse_blocks` turns back into `blocks`, ranges written `OUT03-OUT11`."""
        positions = sorted(self.blocks.index(block) for block in blocks)
        runs: list[list[int]] = []
        for position in positions:
            if (
                runs
                and position == runs[-1][-1] + 1
                and _kind(self.blocks[position]) == _kind(self.blocks[runs[-1][0]])
            ):
                runs[-1].append(position)
            else:
                runs.append([position])
        return ",".join(
            self.blocks[run[0]] if len(run) == 1 else f"{self.blocks[run[0]]}-{self.blocks[run[-1]]}" for run in runs
        )

    def _rename(self, stored_name: str) -> tuple[Rename, re.Match[str]] | tuple[None, None]:
        for rename in self.renames:
            if found := rename.pattern.match(stored_name):
                return rename, found
        return None, None

    def _expand(self, part: str) -> tuple[str, ...]:
        if part.lower() in _BLOCK_GROUPS:
            return tuple(block for block in self.blocks if part.lower() in ("all", _kind(block)))
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
        if mapping not in self._tables:
            if mapping not in self.mappings:
                raise RecipeError(f"unknown mapping {mapping!r}; {self.name} has {', '.join(self.mappings)}")
            rules: dict[str, str | None] = {**_numbered(self.prefixes, self.blocks), **self.mappings[mapping]}
            self._tables[mapping] = tuple(sorted(rules.items(), key=lambda rule: -len(rule[0])))
        return self._tables[mapping]


def layout_names() -> tuple[str, ...]:
    """The names of the layouts that come with blockfit, sorted."""
    folder = resources.files("optimizer.families") / "layouts"
    return tuple(sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml")))


@cache
def load_layout(name: str) -> Layout:
    """The layout of this name. Raises RecipeError if there is none."""
    if name not in layout_names():
        raise RecipeError(f"unknown layout {name!r}; must be one of {', '.join(layout_names())}")
    text = (resources.files("optimizer.families") / "layouts" / f"{name}.yaml").read_text(encoding="utf-8")
    data = YAML(typ="safe").load(text)
    return Layout(
        name=data["name"],
        title=data["title"],
        blocks=tuple(data["blocks"]),
        aliases=data["aliases"],
        requires=tuple(data["requires"]),
        forbids=tuple(data["forbids"]),
        renames=tuple(
            Rename(re.compile(rule["pattern"]), rule["to"], rule.get("yields", False)) for rule in data["renames"]
        ),
        convolutions=_any_of(data["convolutions"]),
        parts={
            "UNet": _beginning(_unet_prefixes(data)),
            "text encoder": _beginning(data["text_encoder"]),
            "VAE": _beginning(data["vae"]),
        },
        ema=tuple(data["ema"]),
        unscored=tuple(data["unscored"]),
        markers=tuple(data["beside"]["markers"]),
        schedule=tuple(data["beside"]["schedule"]),
        betas=tuple(data["beside"]["betas"][name] for name in ("steps", "from", "to")),
        others=tuple(data["beside"]["others"]),
        inpainting_tensor=data["inpainting"]["tensor"],
        inpainting_channels=data["inpainting"]["channels"],
        position_ids=data["position_ids"]["tensor"],
        position_embedding=data["position_ids"]["embedding"],
        encoder=data["encoder"]["prefix"],
        pipelines=data["encoder"]["pipelines"],
        prefixes=data["prefixes"],
        mappings=data["mappings"],
        attention=data["attention"],
    )


def detect_layout(stored_names: Iterable[str]) -> Layout | None:
    """The layout that a file with these stored tensor names has, or None."""
    names = list(stored_names)
    for candidate in (load_layout(name) for name in layout_names()):
        if candidate.missing({candidate.canonical(name) for name in names}) is None:
            return candidate
    return None


def _numbered(prefixes: Mapping[str, str], blocks: Iterable[str]) -> dict[str, str]:
    """The prefixes with their blocks, `{n}` in both replaced by every number that a block of this kind has."""
    kinds = [_kind(block) for block in blocks]
    found: dict[str, str] = {}
    for pattern, block in prefixes.items():
        numbers = range(kinds.count(_kind(block.format(n=0)))) if "{n}" in pattern else range(1)
        found |= {pattern.format(n=n): block.format(n=n) for n in numbers}
    return found


def _unet_prefixes(data: Mapping[str, Any]) -> list[str]:
    """What the UNet's names begin with: every prefix that some mapping has a block for, but for the VAE's."""
    mapped = (prefix for rules in data["mappings"].values() for prefix in rules)
    known = (*_numbered(data["prefixes"], data["blocks"]), *mapped)
    return [prefix for prefix in known if not prefix.startswith(tuple(data["unscored"]))]


def _beginning(prefixes: Iterable[str]) -> re.Pattern[str]:
    return _any_of(re.escape(prefix) for prefix in sorted(prefixes))


def _any_of(patterns: Iterable[str]) -> re.Pattern[str]:
    return re.compile("|".join(patterns))


def _kind(block: str) -> str:
    letters = re.match(r"[A-Z]+", block)
    return {"IN": "input", "M": "middle", "OUT": "output"}.get(letters.group() if letters else "", block)


def _shown(text: str | Iterable[str]) -> str:
    return repr(text) if isinstance(text, str) else repr(", ".join(text))
