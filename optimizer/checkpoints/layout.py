"""Which block a tensor belongs to: layouts are package data, one YAML file per model family."""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources

from ruamel.yaml import YAML

from optimizer.errors import RecipeError

__all__ = ["Layout", "detect_layout", "layout_names", "load_layout"]

_BLOCK_GROUPS = ("all", "input", "middle", "output")


@dataclass(frozen=True)
class Layout:
    """The blocks of one model family, and the rules that put tensors into them.

    `blocks` are in the order in which recipes write their alphas; `attention` maps a block with self-attention to the
    prefix of its `to_q`, `to_k`, `to_v` weights, in the order in which similarities evaluate them. `encoder` is the
    prefix of the text encoder's tensors; `pipelines` are the pipeline configurations by the number of its tokens.
    """

    name: str
    title: str
    blocks: tuple[str, ...]
    aliases: Mapping[str, str]
    requires: tuple[str, ...]
    forbids: tuple[str, ...]
    renames: tuple[tuple[str, str], ...]
    unmerged: tuple[str, ...]
    unscored: tuple[str, ...]
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
        for prefix, replacement in self.renames:
            if stored_name.startswith(prefix):
                return replacement + stored_name[len(prefix) :]
        return stored_name

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
        return name.rsplit(".", 1)[-1] in ("weight", "bias") and not name.startswith(self.unmerged)

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
            rules: dict[str, str | None] = {}
            for pattern, block in self.prefixes.items():
                if "{n}" in pattern:
                    numbers = range(sum(_kind(name) == _kind(block.format(n=0)) for name in self.blocks))
                    rules |= {pattern.format(n=n): block.format(n=n) for n in numbers}
                else:
                    rules[pattern] = block
            rules |= self.mappings[mapping]
            self._tables[mapping] = tuple(sorted(rules.items(), key=lambda rule: -len(rule[0])))
        return self._tables[mapping]


def layout_names() -> tuple[str, ...]:
    """The names of the layouts that come with blockfit, sorted."""
    folder = resources.files("optimizer.checkpoints") / "layouts"
    return tuple(sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml")))


@cache
def load_layout(name: str) -> Layout:
    """The layout of this name. Raises RecipeError if there is none."""
    if name not in layout_names():
        raise RecipeError(f"unknown layout {name!r}; there are {', '.join(layout_names())}")
    text = (resources.files("optimizer.checkpoints") / "layouts" / f"{name}.yaml").read_text(encoding="utf-8")
    data = YAML(typ="safe").load(text)
    return Layout(
        name=data["name"],
        title=data["title"],
        blocks=tuple(data["blocks"]),
        aliases=data["aliases"],
        requires=tuple(data["requires"]),
        forbids=tuple(data["forbids"]),
        renames=tuple((rule["prefix"], rule["to"]) for rule in data["renames"]),
        unmerged=tuple(data["unmerged"]),
        unscored=tuple(data["unscored"]),
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


def _kind(block: str) -> str:
    letters = re.match(r"[A-Z]+", block)
    return {"IN": "input", "M": "middle", "OUT": "output"}.get(letters.group() if letters else "", block)


def _shown(text: str | Iterable[str]) -> str:
    return repr(text) if isinstance(text, str) else repr(", ".join(text))
