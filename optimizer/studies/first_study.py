"""Write a first recipe and study from a target and the checkpoints that it may have been made from."""

import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from optimizer.checkpoints import open_checkpoint, unfit
from optimizer.choices import FirstMode, words_of
from optimizer.errors import CheckpointError, InputError, attempt
from optimizer.families import Layout
from optimizer.files import dump_yaml, refuse_links, undo_unfinished, write_new_files
from optimizer.library import (
    Library,
    check_folders,
    checkpoints_below,
    named_at,
    seen_from,
)
from optimizer.printable import printable
from optimizer.recipes import Alpha, Free, Model, Recipe, Step, recipe_as_data
from optimizer.similarity import DEFAULT_METRIC, METRICS
from optimizer.studies.first_vae import MERGED, FirstVae, chosen_vae
from optimizer.studies.stage import MOST_JOINT, MOST_SEARCHED

__all__ = ["FirstStudy", "first_study"]

_FIRST_MODES = words_of(FirstMode)

# Matches the file names of bases of any family.
_BASE = re.compile(r"(^|[^a-z])base($|[^a-z])", re.IGNORECASE)
_LISTED = 3  # files that a note lists
# Models among which a base can be told by its numbers, and the numbers that are read of each.
_LEAST_MODELS = 3
_SAMPLED_TENSORS, _SAMPLED_NUMBERS = 32, 4096
# The mean cosine from the base is below this share of that from any other model; 0 is expected.
_UNRELATED = 0.5
# Bounds of alphas by mode. A model that a step subtracts has a negative share in the target.
_RANGES = {"add_difference": (-1, 1), "weight_sum": (0, 1)}


@dataclass(frozen=True)
class FirstStudy:
    """A first study, as written to disk.

    Attributes:
        folder: The folder of both files.
        recipe: The path of recipe.yaml.
        study: The path of study.yaml.
        target: The path of the target.
        layout: The name of the model family.
        base: The name of the model that differences are taken from.
        base_is_known: Whether it is known to be the model that the others were trained from; else it is the first.
        models: The file of each model as the recipe names it, {name: file}.
        steps: The number of steps.
        free_alphas: The number of free alphas, each tied one counted once.
        tied: Whether each step has one alpha for each kind of block, instead of one for each block.
        closed: The blocks whose alphas are fixed at 0 because they cannot be scored.
        metric: The metric of the study.
        mode: The mode of the steps.
        mapping: The mapping of the recipe.
        vae: The model whose VAE the recipe copies; None if VAEs merge, or there is none.
        needs_folders: Whether a file is found only in the `folders` given.
        notes: Sentences on the choices made and the files left out.
    """

    folder: Path
    recipe: Path
    study: Path
    target: Path
    layout: str
    base: str
    base_is_known: bool
    models: dict[str, str]
    steps: int
    free_alphas: int
    tied: bool
    closed: tuple[str, ...]
    metric: str
    mode: str
    mapping: str
    vae: str | None
    needs_folders: bool
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the fields by name as JSON values."""
        paths = {name: str(getattr(self, name)) for name in ("folder", "recipe", "study", "target")}
        return {**vars(self), **paths, "closed": list(self.closed), "notes": list(self.notes)}


def first_study(
    target: Path,
    sources: Sequence[Path],
    folder: Path | None = None,
    *,
    base: Path | None = None,
    metric: str = DEFAULT_METRIC,
    mode: str | None = None,
    mapping: str | None = None,
    vae: str | None = None,
    library: Library | None = None,
) -> FirstStudy:
    """Write recipe.yaml and study.yaml, ready for a fit, from a target and its possible sources.

    The recipe begins with the base and adds every other source by one step. Each alpha is free on every block that can
    be scored. BASE is closed if the target has no text encoder.

    Both files name checkpoints as given. An absolute path stays absolute, and a name or hash found in the library stays
    a name or hash. A path relative to the current folder is rewritten relative to `folder`, unless it leads to the same
    file from there.

    The recipe copies the VAE of the first model that has the target's, else the first VAE.

    Only the headers of the files, a few bytes of each tensor and VAEs up to the first difference are read. The bytes
    identify files with equal tensors.

    Args:
        target: The checkpoint to imitate: a file, or a name or hash in the library.
        sources: The checkpoints it may be made from, given likewise. A folder stands for the checkpoints in it and
            in folders below it, without the target and without files of other families.
        folder: The folder to write into. Default: named after the target, in the current folder.
        base: The model that differences are taken from. Default: the source whose name looks like a base model's, else
            the one from which the others differ in unrelated directions, else the first source.
        metric: The metric of the study.
        mode: The mode of the steps: add_difference or weight_sum. Default: add_difference, or weight_sum if the base is
            not known.
        mapping: One of the layout's mappings, "supermerger" for example. Default: the layout's first.
        vae: The source whose VAE the recipe copies, given like the sources; "merge" merges VAEs by the mapping.
            Default: as above.
        library: The library to search for checkpoints. Default: one without folders.

    Returns:
        The files written and the choices made.

    Raises:
        InputError: A file is missing, broken, of another family than the target, or the target itself. Or the sources
            are too few or too many, a folder of the library is missing, the metric can score no block of the target, or
            `folder` already holds a recipe or a study. Nothing is written then.
    """
    _check_options(metric, mode)
    library = Library() if library is None else library
    check_folders(library.folders)
    reader = _Reader(library)
    opened = reader.open(target, "target")
    mapping = mapping or opened.layout.default_mapping
    if mapping not in opened.layout.mappings:
        raise InputError(f"received {mapping!r}; must be one of {', '.join(opened.layout.mappings)}", field="mapping")
    folder = Path(_plain(opened.path.stem)) if folder is None else folder
    _check_place(folder)
    notes: list[str] = []
    parents = _parents(reader, opened, sources, base, mapping, notes)
    if mode is None:
        mode = "add_difference" if parents.base_is_known else "weight_sum"
    freedom = _freedom(opened, parents, mapping, metric, notes)
    names = _names(parents.base, parents.others)
    files_of = dict(zip(names, (parents.base, *parents.others), strict=True))
    of_vae = _vae(reader, opened, files_of, vae)
    notes += [of_vae.note] if of_vae.note else []
    called = [_file(folder, model) for model in (opened, parents.base, *parents.others)]
    target_file, *files = (file for file, _ in called)
    models = dict(zip(names, files, strict=True))
    recipe = Recipe(
        name=_plain(opened.path.stem),
        layout=opened.layout,
        models={name: Model(file) for name, file in models.items()},
        steps=tuple(_steps(names, mode, opened.layout, freedom, parents)),
        output=f"TEMP{len(parents.others)}",
        mapping=mapping,
        vae=of_vae.model,
    )
    written = FirstStudy(
        folder=folder,
        recipe=folder / "recipe.yaml",
        study=folder / "study.yaml",
        target=opened.path,
        layout=opened.layout.name,
        base=names[0],
        base_is_known=parents.base_is_known,
        models=models,
        steps=len(parents.others),
        free_alphas=sum(1 if free.tie else len(free.blocks) for step in recipe.steps for free in step.alpha.free),
        tied=freedom.tied,
        closed=freedom.closed,
        metric=metric,
        mode=mode,
        mapping=mapping,
        vae=of_vae.model,
        needs_folders=any(by_name for _, by_name in called),
        notes=tuple(notes),
    )
    _write(written, recipe, target_file, freedom.why_closed, of_vae.comment)
    return written


@dataclass(frozen=True)
class _Opened:
    """A checkpoint whose header was read.

    `given` is the path, name or hash from the user, and `path` the file it stands for. `digest` is the fingerprint of
    the tensors. `shapes` are the shapes of the floating-point tensors that merge, by name.
    """

    given: Path
    path: Path
    layout: Layout
    digest: str
    shapes: Mapping[str, tuple[int, ...]]

    @property
    def scored(self) -> frozenset[str]:
        """The names of the tensors that count in similarities."""
        return frozenset(name for name in self.shapes if self.layout.scores(name))


@dataclass(frozen=True)
class _Parents:
    """The checkpoints that the target may have been made from: the base and the others.

    `misfits` lists the blocks in which a checkpoint cannot be merged, {path: {block: reason}}. `base_is_known` is false
    if the base is only the first source.
    """

    base: _Opened
    others: tuple[_Opened, ...]
    misfits: Mapping[Path, Mapping[str, str]]
    base_is_known: bool


@dataclass(frozen=True)
class _Freedom:
    """The blocks that are `opened` to the search and those that are `closed`.

    `why_closed` gives the reason, "" if no block is closed. `tied` is whether each step has one alpha for each kind of
    block, instead of one for each block.
    """

    opened: tuple[str, ...]
    closed: tuple[str, ...]
    why_closed: str
    tied: bool


class _Reader:
    """A reader of the headers of checkpoints in a library."""

    def __init__(self, library: Library) -> None:
        self._library = library

    def open(self, given: Path, field: str) -> _Opened:
        """Return the checkpoint that a user named.

        Raises:
            CheckpointError: The file is missing, broken or of an unknown family.
        """
        path = attempt(lambda: self._library.find_given(given), field=field)
        with attempt(lambda: open_checkpoint(path), field=field) as checkpoint:
            if checkpoint.layout is None:
                raise CheckpointError(f"{path}: {unfit(checkpoint)}", field=field)
            layout = checkpoint.layout
            infos = {name: info for name, info in checkpoint.tensors.items() if layout.merges(name)}
            shapes = {name: info.shape for name, info in infos.items() if info.dtype.is_floating_point}
            return _Opened(given, path, layout, self._library.fingerprint(checkpoint), shapes)

    def open_source(self, given: Path, target: _Opened, field: str) -> _Opened:
        """Return a checkpoint of the target's family that is not the target itself.

        Raises:
            CheckpointError: The file cannot be opened, is of another family, or is the target.
        """
        found = self.open(given, field)
        if found.layout.name != target.layout.name:
            raise CheckpointError(
                f"{found.path}: is {found.layout.title}, but the target {target.path} is {target.layout.title}",
                field=field,
            )
        if found.digest == target.digest:
            raise CheckpointError(
                f"{found.path}: is the target itself; the sources are what it was made from", field=field
            )
        return found

    def sources(self, given: Sequence[Path], target: _Opened, notes: list[str]) -> list[_Opened]:
        """Return all sources, each once; add the files left out to `notes`.

        Raises:
            InputError: A source given by itself cannot be used, or a folder has no checkpoint.
        """
        found: dict[str, _Opened] = {}
        problems: list[str] = []
        left_out: dict[str, list[Path]] = {}
        for source in given:
            listed = sorted(checkpoints_below(source)) if os.path.isdir(source) else None
            if listed == []:
                problems.append(f"{source}: no checkpoint in this folder, nor in folders below it")
            for number, path in enumerate([source] if listed is None else listed):
                if listed is not None:
                    self._library.events.progress(f"looking into {source.name}", number + 1, len(listed))
                try:
                    opened = self.open_source(path, target, "sources")
                except InputError as error:
                    if listed is None:
                        problems += error.problems
                    elif path.resolve() != target.path.resolve():
                        for problem in error.problems:
                            left_out.setdefault(problem.removeprefix(f"{path}: "), []).append(path)
                    continue
                if opened.digest in found:
                    notes.append(f"left out: {path}: holds the same as {found[opened.digest].path}")
                found.setdefault(opened.digest, opened)
        if problems:
            raise InputError(problems, field="sources")
        notes += [f"left out: {_some(paths)}: {reason}" for reason, paths in left_out.items()]
        return list(found.values())


def _some(paths: Sequence[Path]) -> str:
    more = [f"{len(paths) - _LISTED} more"] if len(paths) > _LISTED else []
    return ", ".join([*map(str, paths[:_LISTED]), *more])


def _check_options(metric: str, mode: str | None) -> None:
    if metric not in METRICS:
        raise InputError(f"received {metric!r}; must be one of {', '.join(METRICS)}", field="metric")
    if mode is not None and mode not in _FIRST_MODES:
        raise InputError(f"received {mode!r}; must be one of {', '.join(_FIRST_MODES)}", field="mode")


def _check_place(folder: Path) -> None:
    """Raise InputError if the folder holds a recipe, a study, or a link in the place of either."""
    to_write = (folder / "recipe.yaml", folder / "study.yaml")
    refuse_links(folder, replaced=to_write)
    undo_unfinished(folder)
    if taken := [path for path in to_write if os.path.exists(path)]:
        raise InputError(f"{path}: already exists; name another folder (`folder`)" for path in taken)


def _parents(
    reader: _Reader, target: _Opened, sources: Sequence[Path], base: Path | None, mapping: str, notes: list[str]
) -> _Parents:
    """Return the base and the other checkpoints that can be merged; add those left out to `notes`."""
    left_out: list[str] = []
    found = reader.sources(sources, target, left_out)
    if not found:
        raise InputError(["`sources`: none of the named checkpoints can be used", *left_out])
    notes += left_out
    given = None if base is None else reader.open_source(base, target, "base")
    origin, known = _base_among(found, given, notes)
    others = [source for source in found if source.digest != origin.digest]
    misfits = {source.path: _misfits(source, origin, target, mapping) for source in others}
    useless = {path: blocks for path, blocks in misfits.items() if len(blocks) == len(target.layout.blocks)}
    unmergeable = [
        f"left out: {path}: no block of it can be merged: {next(iter(blocks.values()))}"
        for path, blocks in useless.items()
    ]
    notes += unmergeable
    others = [source for source in others if source.path not in useless]
    if not others:
        raise InputError(
            [
                f"`sources`: only the base, {origin.path}; name the checkpoints that were merged, too",
                *left_out,
                *unmergeable,
            ]
        )
    if len(others) > MOST_SEARCHED:
        raise InputError(
            f"{len(others)} checkpoints; a first recipe has at most {MOST_SEARCHED}; leave some out",
            field="sources",
        )
    return _Parents(origin, tuple(others), misfits, known)


def _freedom(target: _Opened, parents: _Parents, mapping: str, metric: str, notes: list[str]) -> _Freedom:
    """Return the blocks that can be searched, and whether alphas are tied; add the reasons to `notes`."""
    layout, others = target.layout, parents.others
    opened = _open_blocks(target, (parents.base, *others), mapping)
    closed = tuple(block for block in layout.blocks if block not in opened)
    why_closed = _why_closed(target, closed, mapping) if closed else ""
    attempt(lambda: METRICS[metric].check_offered(layout), field="metric")
    if not set(METRICS[metric].sees(layout)) & set(opened):
        seen = layout.describe_blocks(METRICS[metric].sees(layout))
        raise InputError(f"received {metric!r}, which sees {seen} alone; {why_closed}", field="metric")
    if closed:
        notes.append(why_closed)
    tied = len(others) * len(opened) > MOST_JOINT
    if tied:
        notes.append(
            f"{len(others)} sources on {len(opened)} blocks need more free alphas than one stage searches "
            f"({MOST_JOINT}): each step has one for each kind of block (`tie: true`)"
        )
    notes += [
        f"{source.path.name}: no alpha on {layout.describe_blocks(blocks)}: {next(iter(blocks.values()))}"
        for source in others
        if (blocks := parents.misfits[source.path])
    ]
    return _Freedom(opened, closed, why_closed, tied)


def _base_among(found: Sequence[_Opened], given: _Opened | None, notes: list[str]) -> tuple[_Opened, bool]:
    """Return the model that differences are taken from, and whether it is known to be the others' base.

    It is the one given, the likeliest by its name, the likeliest by its numbers, or the first.
    """
    if given is not None:
        return given, True
    for pattern in (*found[0].layout.base_names, _BASE):
        for source in found:
            if pattern.search(source.path.stem):
                notes.append(f"base: {source.path.name}, by its name; `base` names another")
                return source, True
    position = _base_by_numbers([_sampled(source, found) for source in found])
    if position is not None:
        source = found[position]
        notes.append(
            f"base: {source.path.name}, by its numbers, from which the others differ in unrelated directions; "
            "`base` names another"
        )
        return source, True
    notes.append(
        f"base: {found[0].path.name}, the first: neither names nor numbers tell which model the others were trained "
        "from; name it with `base`; until then the steps are weight sums, for which none is needed"
    )
    return found[0], False


def _vae(reader: _Reader, target: _Opened, models: Mapping[str, _Opened], given: str | None) -> FirstVae:
    """Return the VAE of the recipe over `models`, by name; `given` is a name, a file or "merge"."""
    named = given
    if given is not None and given != MERGED:
        if target.layout.vae is None:
            raise InputError(f"received {given}; checkpoints of {target.layout.title} have no VAE", field="vae")
        digest = None if given in models else reader.open_source(Path(given), target, "vae").digest
        named = given if digest is None else next((name for name in models if models[name].digest == digest), None)
        if named is None:
            known = ", ".join(models)
            raise InputError(f"received {given}; must be one of the sources: {known}, or {MERGED}", field="vae")
    return chosen_vae(target.path, {name: model.path for name, model in models.items()}, target.layout, named)


def _sampled(source: _Opened, among: Sequence[_Opened]) -> torch.Tensor:
    """Return numbers of the matrices that all of `among` hold in one shape, from the same places, float64 [numbers]."""
    shapes = source.shapes
    common = [
        name
        for name in sorted(source.scored)
        if len(shapes[name]) == 2 and all(other.shapes.get(name) == shapes[name] for other in among)
    ]
    chosen = common[:: max(1, len(common) // _SAMPLED_TENSORS)]
    with open_checkpoint(source.path) as checkpoint:
        read = [checkpoint.read(name, 0, min(math.prod(shapes[name]), _SAMPLED_NUMBERS)).double() for name in chosen]
    return torch.cat(read) if read else torch.zeros(0, dtype=torch.float64)


def _base_by_numbers(sampled: Sequence[torch.Tensor]) -> int | None:
    """Return the position of the model that the others were trained from; None if it cannot be told.

    Finetunes differ from their base in unrelated directions, so the cosines of their differences are near 0. Seen from
    a finetune the others share its own difference: for equal distances these cosines are 0.5.
    """
    if len(sampled) < _LEAST_MODELS:
        return None
    means = []
    for origin in sampled:
        differences = torch.stack([other - origin for other in sampled if other is not origin])
        lengths = differences.norm(dim=1)
        if not len(origin) or not bool((lengths > 0).all()) or not bool(torch.isfinite(lengths).all()):
            return None
        cosines = (differences @ differences.T) / lengths[:, None] / lengths
        means.append(float(cosines[~torch.eye(len(cosines), dtype=torch.bool)].mean()))
    best, second = sorted(means)[:2]
    return means.index(best) if best < _UNRELATED * second else None


def _file(folder: Path, model: _Opened) -> tuple[str, bool]:
    """Return the name that files in `folder` use for a checkpoint, and whether only the library has that name.

    The name is the one given if it leads to the checkpoint from `folder`, or if only the library has it. Otherwise it
    is the path relative to `folder`, or the absolute path on another drive.
    """
    text = model.given.as_posix()
    if model.given.is_absolute():
        return text, False
    found = named_at(text, folder)
    if found is not None and found.samefile(model.path):
        return text, False
    if found is None and not os.path.isfile(model.given):
        return text, True
    # Links on the way to the file stay in its path; `..` leads upwards from where the folder really is.
    return seen_from(folder.resolve(), model.path), False


def _open_blocks(target: _Opened, sources: Sequence[_Opened], mapping: str) -> tuple[str, ...]:
    """Return the blocks that can be scored: the target and a source hold tensors of the same names there."""
    common = target.scored & frozenset().union(*(source.scored for source in sources))
    held = {target.layout.block_of(name, mapping) for name in common}
    return tuple(block for block in target.layout.blocks if block in held)


def _why_closed(target: _Opened, closed: Sequence[str], mapping: str) -> str:
    held = {target.layout.block_of(name, mapping) for name in target.scored}
    encoders = target.layout.text_encoders
    missing = [encoder.title for encoder in encoders if encoder.block in closed and encoder.block not in held]
    reason = "the target and the sources have no tensors of it in common"
    if missing:
        reason = f"the target has no {' and no '.join(missing)}"
    shown = target.layout.describe_blocks(closed)
    return f"{shown} is closed (alpha 0): {reason}, so its alphas cannot be fitted"


def _names(origin: _Opened, others: Iterable[_Opened]) -> list[str]:
    """Return the names of the recipe's models: "base", and a distinct name from the file of each other model."""
    names = ["base"]
    for source in others:
        stem = _plain(source.path.stem)
        taken = {name.casefold() for name in names}
        if stem.casefold() in taken or re.fullmatch(r"TEMP\d+", stem):
            stem = next(f"{stem}-{n}" for n in range(2, len(names) + 3) if f"{stem}-{n}".casefold() not in taken)
        names.append(stem)
    return names


def _plain(stem: str) -> str:
    """Return a name that needs no quotes in YAML or on a command line, 100 characters at most."""
    return re.sub(r"[^\w.+-]+", "-", stem)[:100].strip("-.") or "model"


def _misfits(source: _Opened, base: _Opened, target: _Opened, mapping: str) -> dict[str, str]:
    """Return the blocks in which `source` cannot be merged, {block: the tensor of another shape}."""
    layout = target.layout
    found: dict[str, str] = {}
    for name, shape in base.shapes.items():
        for checkpoint in (source, target) if layout.scores(name) else (source,):
            block = layout.block_of(name, mapping)
            held = checkpoint.shapes.get(name, shape)
            # Of an inpainting base only the channels that all models have are merged.
            inpainting = layout.inpainting is not None and name == layout.inpainting.tensor
            wider = inpainting and shape[1:2] > held[1:2]
            if held != shape and not wider and block is not None:
                difference = f"has shape {list(held)}, but {list(shape)} in the base"
                found.setdefault(block, f"tensor {name!r} of {checkpoint.path.name} {difference}")
    return found


def _steps(
    names: Sequence[str],
    mode: str,
    layout: Layout,
    freedom: _Freedom,
    parents: _Parents,
) -> Iterator[Step]:
    """Yield a step for each model except the base, free on the opened blocks in which the model fits."""
    base, *others = names
    before = base
    for number, (name, source) in enumerate(zip(others, parents.others, strict=True), 1):
        blocks = tuple(block for block in freedom.opened if block not in parents.misfits[source.path])
        alpha = Alpha(
            dict.fromkeys(freedom.closed, 0.0), _free_alphas(layout, blocks, _RANGES[mode], tied=freedom.tied)
        )
        yield Step(f"TEMP{number}", mode, before, name, base if mode == "add_difference" else None, alpha)
        before = f"TEMP{number}"


def _free_alphas(layout: Layout, blocks: tuple[str, ...], bounds: tuple[int, int], *, tied: bool) -> tuple[Free, ...]:
    """Return one free alpha per block; if tied, one per group of blocks and one for the blocks without a group."""
    if not tied:
        return (Free(*bounds, blocks),) if blocks else ()
    groups = [tuple(block for block in blocks if layout.group_of(block) == name) for name in layout.groups]
    rest = tuple(block for block in blocks if not any(block in group for group in groups))
    return tuple(Free(*bounds, group, tie=len(group) > 1) for group in (rest, *groups) if group)


def _write(first: FirstStudy, recipe: Recipe, target_file: str, closed: str, vae: str) -> None:
    texts = {
        first.recipe.name: _recipe_text(first, recipe, closed, vae),
        first.study.name: _study_text(first, recipe.layout, target_file),
    }
    write_new_files(first.folder, texts)


def _recipe_text(first: FirstStudy, recipe: Recipe, closed: str, vae: str) -> str:
    """Return the text of recipe.yaml.

    `closed` names the blocks that are not free and the reason, "" without any; `vae` is a comment on the VAE.
    """
    data = recipe_as_data(recipe)
    sums = {
        "add_difference": "A step adds the difference between a model and the base, times its alpha",
        "weight_sum": "A step moves the result so far towards the next model, by the share in its alpha",
    }
    added = "1 model" if first.steps == 1 else f"{first.steps} models"
    origin = "a base" if first.base_is_known else "the first one"
    blocks = "Every other block" if closed else "Every block"
    low, high = _RANGES[first.mode]
    bounds = f"[{low}, {high}]"
    alphas = (
        f"One alpha for each kind of block (tie), because the models are many; for one a block: {{search: {bounds}}}."
        if first.tied
        else f"{blocks} has an alpha of its own, in {low}..{high}; for a single one: {{search: {bounds}, tie: true}}."
    )
    freedom = [alphas]
    if low < 0:
        freedom.append(
            "Below 0 a model is subtracted, as C is in A + (B - C) x alpha; to exclude that, write search: [0, 1]."
        )
    return "".join(
        (
            _comment(f"A first guess at how {first.target.name[:200]} was made: {added} on top of {origin}."),
            dump_yaml({name: data[name] for name in ("name", "layout", "mapping")}),
            "\n",
            _comment(
                "Remove models that are surely not in it; `blockfit ceiling` shows the share of each.",
                "Fill in the licences.",
            ),
            dump_yaml({"models": data["models"]}),
            "\n",
            *((_comment(vae), dump_yaml({"vae": data["vae"]}), "\n") if "vae" in data else ()),
            _comment(
                f"The order is a guess. {sums[first.mode]}.",
                *([f"{closed}."] if closed else []),
                *freedom,
                f"Write down the alphas that you know: one number, {len(recipe.layout.blocks)} numbers, or "
                f"{{{recipe.layout.example}: {{search: {bounds}}}, {recipe.layout.blocks[0]}: 0.5}}.",
            ),
            dump_yaml({"steps": data["steps"]}),
            dump_yaml({"output": data["output"]}),
        )
    )


def _study_text(first: FirstStudy, layout: Layout, target_file: str) -> str:
    seen = METRICS[first.metric].sees(layout)
    exact = METRICS[first.metric].exact
    stage: dict[str, Any] = {"name": "all", "metric": first.metric}
    comment = [
        "All alphas are searched at once (joint), which recovers recipes. By hand, and in the article, one step was",
        "fitted after the other (strategy: stepwise), which credits the first steps with the share of later ones.",
    ]
    if exact:
        comment += [
            "The search begins with the exact optimum of this metric; the other trials confirm it."
            if first.tied
            else "The exact optimum of this metric is the whole search: no other alphas are better."
        ]
    if set(seen) != set(layout.blocks):
        stage["elsewhere"] = DEFAULT_METRIC
        comment += [f"{first.metric} sees {layout.describe_blocks(seen)}; `elsewhere` scores the other blocks."]
    if first.metric == DEFAULT_METRIC:
        attention = f"metric: attention, elsewhere: {DEFAULT_METRIC}"
        comment += [f"To compare what the layers compute, as the article did: {attention}."]
    stage["strategy"] = "joint"
    return "".join(
        (
            _comment("The target of recipe.yaml, and how it is fitted; run it with: blockfit fit FOLDER"),
            dump_yaml({"recipe": first.recipe.name, "target": {"file": target_file}}),
            "\n",
            _comment(
                "The model that the others were trained from: similarities compare the differences from it."
                if first.base_is_known
                else "Similarities compare the differences from this model. Better is the one that the others were "
                "trained from.",
            ),
            dump_yaml({"base": first.base}),
            "\n",
            _comment(*comment),
            dump_yaml({"stages": [stage]}),
        )
    )


def _comment(*lines: str) -> str:
    return "".join(f"# {printable(line)}\n" for line in lines)
