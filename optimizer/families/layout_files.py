"""Read layouts from YAML files: those that come with blockfit, and those that users register."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from importlib import resources
from itertools import count
from pathlib import Path

from pydantic import Field, StrictBool, StrictInt, StrictStr

from optimizer.errors import InputError, RecipeError
from optimizer.families.layout import Layout, Rename, part_at
from optimizer.families.parts import ModelPart, TextEncoder
from optimizer.families.records import (
    Activation,
    Betas,
    EncoderKind,
    EncoderStates,
    Inpainting,
    ModelSpec,
    Pipeline,
    PositionIds,
    Role,
    Tools,
)
from optimizer.files import UserFile, read_yaml, shown, validate

__all__ = [
    "DEFAULT_LAYOUT",
    "default_layout",
    "detect_layout",
    "forget_layout",
    "layout_names",
    "load_layout",
    "read_layout",
    "register_layout",
    "registered_layouts",
]

DEFAULT_LAYOUT = "sd1"
"""The layout of recipes, and of other tools' texts and files, that name none."""

_FOLDER = resources.files("optimizer.families") / "layouts"
# Registered files and their layouts, by the layout's name.
_REGISTERED: dict[str, tuple[Path, Layout]] = {}
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
_BLOCK = re.compile(r"[A-Z][A-Z0-9_]*")
_GROUP = re.compile(r"[a-z][a-z0-9_]*")
_NUMBERS = re.compile(r"\{(\d{1,3})-(\d{1,3})\}")
_RANGE = re.compile(r"([A-Z_]+)(\d+)-\1(\d+)")
_MOST_BLOCKS = 1000

_Blocks = StrictStr | list[StrictStr]


class _Rename(UserFile):
    pattern: StrictStr
    to: StrictStr
    yields: StrictBool = False


class _Encoder(UserFile):
    kind: EncoderKind
    model: StrictStr
    layers: StrictInt | None = Field(default=None, ge=1)
    heads: StrictInt | None = Field(default=None, ge=1)
    activation: Activation | None = None
    states: EncoderStates | None = None
    tokens: StrictStr | None = None
    position_ids: PositionIds | None = None
    pipelines: dict[StrictInt, Pipeline] = Field(default_factory=dict)


class _Part(UserFile):
    title: StrictStr
    role: Role
    prefix: StrictStr
    holds: list[StrictStr] = Field(default_factory=list)
    needs: list[StrictStr] = Field(default_factory=list)
    scores: StrictBool = True
    unscored: list[StrictStr] = Field(default_factory=list)
    apart: StrictBool = False
    float16: StrictBool = True
    encoder: _Encoder | None = None


class _Mapping(UserFile):
    places: dict[StrictStr, StrictStr | None] = Field(default_factory=dict)
    leaves: list[StrictStr] = Field(default_factory=list)


class _Beside(UserFile):
    markers: list[StrictStr] = Field(default_factory=list)
    schedule: list[StrictStr] = Field(default_factory=list)
    betas: Betas | None = None
    others: list[StrictStr] = Field(default_factory=list)


class _Attention(UserFile):
    projections: tuple[StrictStr, StrictStr, StrictStr]
    # {0-9} stands for each number of the range.
    blocks: dict[StrictStr, StrictStr]


class _LayoutFile(UserFile):
    name: StrictStr
    title: StrictStr
    about: StrictStr = ""
    blocks: list[StrictStr]
    groups: dict[StrictStr, _Blocks] = Field(default_factory=dict)
    unet: tuple[StrictStr, StrictStr, StrictStr] | None = None
    aliases: dict[StrictStr, StrictStr] = Field(default_factory=dict)
    requires: list[StrictStr]
    forbids: list[StrictStr] = Field(default_factory=list)
    renames: list[_Rename] = Field(default_factory=list)
    convolutions: list[StrictStr] = Field(default_factory=list)
    parts: list[_Part]
    merges: list[StrictStr] = Field(default=["weight", "bias"])
    places: dict[StrictStr, StrictStr]
    mappings: dict[StrictStr, _Mapping]
    ema: list[StrictStr] = Field(default_factory=list)
    beside: _Beside = Field(default_factory=_Beside)
    inpainting: Inpainting | None = None
    attention: _Attention | None = None
    base_names: list[StrictStr] = Field(default_factory=list)
    modelspec: ModelSpec | None = None
    tools: Tools = Field(default_factory=Tools)


def layout_names() -> tuple[str, ...]:
    """Return the names of all layouts: the default, the others that come with blockfit, sorted, the registered ones."""
    return (*_shipped(), *_REGISTERED)


def load_layout(name: str) -> Layout:
    """Return the layout of this name; raise RecipeError without one."""
    if name in _REGISTERED:
        return _REGISTERED[name][1]
    if name not in _shipped():
        raise RecipeError(f"unknown layout {name!r}; must be one of {', '.join(layout_names())}")
    return _load_shipped(name)


def default_layout() -> Layout:
    """Return the layout of recipes, and of other tools' texts and files, that name none."""
    return load_layout(DEFAULT_LAYOUT)


def detect_layout(stored_names: Iterable[str]) -> Layout | None:
    """Return the layout of a file with these stored tensor names; None without one."""
    names = list(stored_names)
    for candidate in (load_layout(name) for name in layout_names()):
        if candidate.missing({candidate.canonical(name) for name in names}) is None:
            return candidate
    return None


def register_layout(path: Path | str) -> Layout:
    """Register the layout in a YAML file for this process.

    From then on checkpoints are recognised by it, and recipes may name it. A study's worker processes on this machine
    register the same files. Registering a file again reads it anew.

    Args:
        path: The YAML file.

    Returns:
        The layout.

    Raises:
        InputError: One line for each mistake in the file, or another layout has the name.
    """
    path = Path(path).absolute()
    layout = read_layout(path)
    owner = "blockfit's own" if layout.name in _shipped() else None
    if layout.name in _REGISTERED and _REGISTERED[layout.name][0] != path:
        owner = f"that of {_REGISTERED[layout.name][0]}"
    if owner is not None:
        raise InputError(f"{path}: name: received {layout.name!r}; another layout has this name, {owner}")
    _REGISTERED[layout.name] = (path, layout)
    return layout


def forget_layout(name: str) -> None:
    """Undo `register_layout`; do nothing for a name that was not registered."""
    _REGISTERED.pop(name, None)


def registered_layouts() -> tuple[Path, ...]:
    """Return the registered files, for worker processes that must have the same layouts."""
    return tuple(path for path, _ in _REGISTERED.values())


def read_layout(path: Path) -> Layout:
    """Return the layout in a YAML file; raise InputError with a line for each mistake."""
    entry = validate(_LayoutFile, read_yaml(path, InputError), path, InputError)
    problems = [f"{path}: {problem}" for problem in _mistakes_of_words(entry)]
    if not problems:
        layout = _built(entry)
        problems = [f"{path}: {problem}" for problem in _mistakes_of_places(entry, layout)]
    if problems:
        raise InputError(problems)
    return layout


@cache
def _shipped() -> tuple[str, ...]:
    names = (each.name.removesuffix(".yaml") for each in _FOLDER.iterdir() if each.name.endswith(".yaml"))
    return tuple(sorted(names, key=lambda name: (name != DEFAULT_LAYOUT, name)))


@cache
def _load_shipped(name: str) -> Layout:
    with resources.as_file(_FOLDER / f"{name}.yaml") as path:
        return read_layout(path)


def _built(entry: _LayoutFile) -> Layout:
    """Return the layout of a file that `_mistakes_of_words` has passed."""
    blocks = tuple(_expanded(entry.blocks))
    places = _numbered(entry.places, blocks)
    parts = _parts(entry, blocks, places)
    patterns = {name: rules.leaves for name, rules in entry.mappings.items() if rules.leaves}
    beside, attention = entry.beside, entry.attention
    return Layout(
        name=entry.name,
        title=entry.title,
        about=entry.about,
        blocks=blocks,
        groups={name: _listed(text, blocks) for name, text in entry.groups.items()},
        aliases=entry.aliases,
        requires=tuple(entry.requires),
        forbids=tuple(entry.forbids),
        parts=parts,
        places=places,
        mappings={name: rules.places for name, rules in entry.mappings.items()},
        leaves={name: _any_of(listed) for name, listed in patterns.items()},
        merged_endings=tuple(entry.merges),
        unet=entry.unet,
        renames=tuple(Rename(re.compile(rule.pattern), rule.to, rule.yields) for rule in entry.renames),
        convolutions=_any_of(entry.convolutions) if entry.convolutions else None,
        ema=tuple(entry.ema),
        markers=tuple(beside.markers),
        schedule=tuple(beside.schedule),
        betas=beside.betas,
        others=tuple(beside.others),
        inpainting=entry.inpainting,
        attention={} if attention is None else {block: _ranged(text) for block, text in attention.blocks.items()},
        projections=Layout.projections if attention is None else attention.projections,
        base_names=tuple(re.compile(pattern, re.IGNORECASE) for pattern in entry.base_names),
        modelspec=entry.modelspec,
        tools=entry.tools,
    )


def _parts(entry: _LayoutFile, blocks: Sequence[str], places: Mapping[str, str]) -> tuple[ModelPart, ...]:
    found: list[ModelPart] = []
    plain = [_part(part, []) for part in entry.parts]
    mapped = (place for rules in entry.mappings.values() for place in rules.places)
    known = list(dict.fromkeys([*places, *mapped]))
    for given, bare in zip(entry.parts, plain, strict=True):
        part = _part(given, [place for place in known if part_at(plain, place) is bare])
        if given.role == "text_encoder":
            encoder = given.encoder or _Encoder(kind="other", model=given.prefix)
            block = next((block for place, block in places.items() if given.prefix.startswith(place)), None)
            found.append(
                TextEncoder(
                    **vars(part),
                    block=block or next((places[place] for place in places if part.holds(place)), blocks[0]),
                    **{field: getattr(encoder, field) for field in _Encoder.model_fields},
                )
            )
        else:
            found.append(part)
    return tuple(found)


def _part(given: _Part, places: Sequence[str]) -> ModelPart:
    """Return a part; its tensors are those that it lists or, if it lists none, those of `places`."""
    beginnings = [given.prefix + name for name in given.holds] or places or [given.prefix]
    sections = dict.fromkeys(f"{name.split('.')[0]}." for name in given.holds) or {"": None}
    return ModelPart(
        title=given.title,
        role=given.role,
        prefix=given.prefix,
        names=_any_of(re.escape(name) for name in sorted(beginnings)),
        sections=tuple(sections),
        needs=tuple(given.needs),
        scores=given.scores,
        unscored=tuple(given.prefix + name for name in given.unscored),
        apart=given.apart,
        float16=given.float16,
    )


def _mistakes_of_words(entry: _LayoutFile) -> Iterator[str]:
    """Yield a line for each mistake that prevents building the layout: in names, ranges, patterns and parts."""
    if not _NAME.fullmatch(entry.name):
        yield f"name: received {shown(entry.name)}; must be lower-case letters, digits, '.', '_' and '-'"
    try:
        blocks = list(_expanded(entry.blocks))
    except InputError as error:
        yield from error.problems
        return
    if len(set(blocks)) < len(blocks) or not blocks:
        yield f"blocks: received {shown(entry.blocks)}; must be at least one, each once"
    for field, listed in entry.groups.items():
        try:
            _listed(listed, blocks)
        except InputError as error:
            yield from (f"groups.{field}: {problem}" for problem in error.problems)
        if not _GROUP.fullmatch(field) or field == "all" or field.upper() in blocks:
            yield f"groups.{field}: must be a word in lower-case letters, not 'all', and not the name of a block"
    for name in entry.unet or ():
        if name not in entry.groups:
            yield f"unet: received {shown(name)}; must be one of the groups: {', '.join(entry.groups) or 'none'}"
    yield from (
        f"aliases.{alias}: {problem}" for alias, block in entry.aliases.items() for problem in _unknown(block, blocks)
    )
    if not entry.requires:
        yield "requires: empty; must be names of tensors that identify files of this layout"
    if not entry.mappings:
        yield "mappings: empty; must have at least one, the first for recipes that name none"
    yield from _mistakes_of_patterns(entry)
    roles = [part.role for part in entry.parts]
    if roles.count("network") != 1 or roles.count("vae") > 1:
        yield (
            f"parts: received {roles.count('network')} of role network and {roles.count('vae')} of role vae; must be "
            "one network and at most one vae"
        )
    titles = [part.title for part in entry.parts]
    for title in {title for title in titles if titles.count(title) > 1}:
        yield f"parts: two parts have the title {title!r}; each must have another"
    for part in entry.parts:
        if part.encoder is not None and part.role != "text_encoder":
            yield f"parts.{part.title}.encoder: only parts of role text_encoder have one"
        elif part.encoder is not None:
            yield from (f"parts.{part.title}.encoder.{problem}" for problem in _mistakes_of_encoder(part.encoder))
    for place, block in entry.places.items():
        if "{" in place:
            if not _formatted(place) or not _formatted(block) or not _numbered({place: block}, blocks):
                yield (
                    f"places.{place}: received {shown(block)}; must be the name of a block for every {{n}}, counted "
                    "from 0"
                )
        else:
            yield from (f"places.{place}: {problem}" for problem in _unknown(block, blocks))


def _mistakes_of_encoder(encoder: _Encoder) -> Iterator[str]:
    if encoder.states is None:
        if encoder.pipelines:
            yield "pipelines: only encoders with `states` have pipelines; leave it out"
        return
    if encoder.kind not in ("clip", "openclip"):
        yield f"states: only the kinds clip and openclip can be computed, received {encoder.kind}; leave it out"
    for field in ("layers", "heads", "activation", "tokens"):
        if getattr(encoder, field) is None:
            yield f"{field}: missing; the states are computed with it"
    if encoder.layers is not None and encoder.states.layer > encoder.layers:
        yield f"states.layer: received {encoder.states.layer}; must be 1, the last layer, to {encoder.layers}"


def _mistakes_of_patterns(entry: _LayoutFile) -> Iterator[str]:
    patterns = [
        *((f"renames.{number}.pattern", rule.pattern) for number, rule in enumerate(entry.renames)),
        *((f"convolutions.{number}", pattern) for number, pattern in enumerate(entry.convolutions)),
        *((f"base_names.{number}", pattern) for number, pattern in enumerate(entry.base_names)),
        *((f"mappings.{name}.leaves", pattern) for name, rules in entry.mappings.items() for pattern in rules.leaves),
    ]
    for field, pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            yield f"{field}: received {shown(pattern)}; not a regular expression: {error}"
    for number, rule in enumerate(entry.renames):
        groups = [int(found) for found in re.findall(r"\\(\d)", rule.to)]
        try:
            most = re.compile(rule.pattern).groups
        except re.error:
            continue
        if any(group > most for group in groups) or re.search(r"\\(?!\d)", rule.to):
            yield f"renames.{number}.to: received {shown(rule.to)}; the pattern has {most} groups, \\1 and so on"


def _mistakes_of_places(entry: _LayoutFile, layout: Layout) -> Iterator[str]:
    """Yield a line for each mistake in a file's places, blocks and tensors."""
    blocks, places = layout.blocks, layout.places
    for place in places:
        if part_at(layout.parts, place) is None:
            yield f"places.{place}: must begin with the prefix of a part"
    for part, given in zip(layout.parts, entry.parts, strict=True):
        begun = [part.prefix + name for name in given.holds or [""]]
        uncovered = [name for name in begun if not name.startswith(tuple(places))]
        below = [place for place in places if part_at(layout.parts, place) is part]
        if uncovered and (given.holds or not below):
            yield f"parts.{part.title}: {uncovered[0]!r} begins with no place, so it has no block"
    if empty := [block for block in blocks if block not in places.values()]:
        yield f"blocks: no place assigns tensors to {', '.join(empty)}"
    for name, rules in layout.mappings.items():
        for place, block in rules.items():
            if part_at(layout.parts, place) is None:
                yield f"mappings.{name}.places.{place}: must begin with the prefix of a part"
            if block is not None:
                yield from (f"mappings.{name}.places.{place}: {problem}" for problem in _unknown(block, blocks))
    for encoder in layout.text_encoders:
        found = {layout.block_of(place, name) for name in layout.mappings for place in places if encoder.holds(place)}
        if len(found - {None}) > 1:
            yield f"parts.{encoder.title}: its places belong to several blocks, {', '.join(sorted(map(str, found)))}"
    if len(homes := list(dict.fromkeys(encoder.block for encoder in layout.readable_encoders))) > 1:
        yield f"parts: the encoders with `states` belong to several blocks, {', '.join(homes)}; must be one"
    for block, prefixes in layout.attention.items():
        yield from (f"attention.blocks.{block}: {problem}" for problem in _unknown(block, blocks))
        if not prefixes or "{" in prefixes[0]:
            assert entry.attention is not None
            yield (
                f"attention.blocks.{block}: received {shown(entry.attention.blocks[block])}; must be the beginning of "
                "the names of one self-attention, or of several with one range of their numbers, {0-9} for example"
            )
    if layout.inpainting is not None and not layout.in_network(layout.inpainting.tensor):
        yield f"inpainting.tensor: received {shown(layout.inpainting.tensor)}; must be a tensor of the network"
    yield from _mistakes_of_tools(layout)


def _mistakes_of_tools(layout: Layout) -> Iterator[str]:
    tools = layout.tools
    named: list[tuple[str, Iterable[str | None]]] = []
    if tools.supermerger is not None:
        for block in tools.supermerger.adjusted:
            yield from (f"tools.supermerger.adjusted: {problem}" for problem in _unknown(block, layout.blocks))
        longest = tools.supermerger.longer or layout.blocks
        if tools.supermerger.presets not in (0, len(longest) - 1):
            yield (
                f"tools.supermerger.presets: received {tools.supermerger.presets}; must be 0, or "
                f"{len(longest) - 1}, a number for each block but the first"
            )
        if tools.supermerger.longer and tuple(name for name in longest if name in layout.blocks) != layout.blocks:
            yield "tools.supermerger.longer: must have all blocks of the layout, in its order, and others between them"
    if tools.mecha is not None:
        named += [("mecha.components", tools.mecha.components.values()), ("mecha.tensors", tools.mecha.tensors)]
        named.append(("mecha.others", tools.mecha.others.values()))
        if tools.mecha.mapping not in layout.mappings:
            yield f"tools.mecha.mapping: received {shown(tools.mecha.mapping)}; must be one of the mappings"
    if tools.comfyui is not None:
        named.append(("comfyui.inputs", tools.comfyui.inputs))
    if tools.mergekit is not None:
        named.append(("mergekit.inside", tools.mergekit.inside))
    for field, given in named:
        for place in given:
            if place is not None and place not in layout.places:
                yield f"tools.{field}: received {shown(place)}; must be one of the places"
    for tool, mapping in (("supermerger", "supermerger"), ("model-mixer", "model-mixer")):
        if tools.knows(tool) and mapping not in layout.mappings:
            yield f"tools.{tool}: needs a mapping of this name, with the blocks to which the tool assigns tensors"


def _expanded(texts: Sequence[str]) -> Iterator[str]:
    """Yield the blocks in a file, with ranges like IN00-IN11 expanded; raise InputError for mistakes."""
    total = 0
    for text in texts:
        found = _RANGE.fullmatch(text)
        if found is None:
            if not _BLOCK.fullmatch(text):
                raise InputError(
                    f"blocks: received {shown(text)}; must be upper-case letters, digits and '_', or a range of "
                    "numbered blocks, B00-B11 for example"
                )
            names: Iterable[str] = [text]
        else:
            letters, first, last = found.groups()
            names = (f"{letters}{number:0{len(first)}}" for number in range(int(first), int(last) + 1))
            if int(last) < int(first):
                raise InputError(f"blocks: received {shown(text)}; the range runs backwards")
            total += int(last) - int(first)
        total += 1
        if total > _MOST_BLOCKS:
            raise InputError(f"blocks: more than {_MOST_BLOCKS:,}")
        yield from names


def _listed(text: str | Sequence[str], blocks: Sequence[str]) -> tuple[str, ...]:
    """Return the blocks of a group in the layout's order; raise InputError for an unknown one."""
    listed = list(_expanded([text] if isinstance(text, str) else text))
    if unknown := [block for block in listed if block not in blocks]:
        raise InputError(_unknown(unknown[0], blocks))
    return tuple(block for block in blocks if block in listed)


def _unknown(block: str, blocks: Sequence[str]) -> list[str]:
    known = ", ".join(blocks[:3]) + (f", ... {blocks[-1]}" if len(blocks) > 3 else "")
    return [] if block in blocks else [f"received {shown(block)}; must be one of the blocks, {known}"]


def _numbered(places: Mapping[str, str], blocks: Sequence[str]) -> dict[str, str]:
    """Return the places with their blocks, with `{n}` in both replaced by the number of every block."""
    found: dict[str, str] = {}
    for place, block in places.items():
        if "{" not in place:
            found[place] = block
            continue
        for number in count():
            if (name := block.format(n=number)) not in blocks or place.format(n=number) in found:
                break
            found[place.format(n=number)] = name
    return found


def _ranged(text: str) -> tuple[str, ...]:
    """Return the texts that a text with a range in braces stands for: x.0 and x.1 for x.{0-1}."""
    found = _NUMBERS.search(text)
    if found is None:
        return (text,)
    before, after = text[: found.start()], text[found.end() :]
    return tuple(f"{before}{number}{after}" for number in range(int(found[1]), int(found[2]) + 1))


def _formatted(text: str) -> bool:
    """Return whether a text contains {n} or {n:02}, and no other braces."""
    return re.fullmatch(r"[^{}]*(\{n(:\d+)?\}[^{}]*)+", text) is not None


def _any_of(patterns: Iterable[str]) -> re.Pattern[str]:
    return re.compile("|".join(patterns))
