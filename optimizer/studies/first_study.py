"""A first recipe and study out of a target and the checkpoints that it may have been made from."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optimizer.checkpoints import open_checkpoint, unfit
from optimizer.choices import FirstMode, words_of
from optimizer.errors import CheckpointError, InputError, attempt
from optimizer.families import Layout
from optimizer.files import dump_yaml, refuse_links, undo_unfinished, write_new_files
from optimizer.library import (
    HashCache,
    Library,
    Progress,
    check_folders,
    checkpoints_below,
    checkpoints_in,
    named_at,
    seen_from,
)
from optimizer.printable import printable
from optimizer.recipes import Alpha, Free, Model, Recipe, Step, recipe_as_data
from optimizer.similarity import DEFAULT_METRIC, METRICS
from optimizer.studies.stage import MOST_JOINT, MOST_SEARCHED

__all__ = ["FirstStudy", "first_study"]

_FIRST_MODES = words_of(FirstMode)

# What a base of any family may be called.
_BASE = re.compile(r"(^|[^a-z])base($|[^a-z])", re.IGNORECASE)
_LISTED = 3  # files that a note names
# Where the first trial is the exact optimum, and elsewhere.
_FEW_TRIALS, _MANY_TRIALS = 8, 60
# What an alpha may be. A model that a step of the target's subtracts is one that has a negative share in it.
_RANGES = {"add_difference": (-1, 1), "weight_sum": (0, 1)}


@dataclass(frozen=True)
class FirstStudy:
    """What was written: `recipe` and `study` in `folder`, over `models` ({name: file as the recipe has it}).

    `base` is the model that differences are taken from, `tied` whether the alphas of a step are one number for each
    kind of block, `closed` the blocks whose alphas are 0, since nothing could tell what they were. `needs_folders` is
    whether a file is named so that it is found in the folders alone. `notes` are sentences on what was chosen and what
    was left out.
    """

    folder: Path
    recipe: Path
    study: Path
    target: Path
    layout: str
    base: str
    models: dict[str, str]
    steps: int
    free_alphas: int
    tied: bool
    closed: tuple[str, ...]
    metric: str
    mode: str
    mapping: str
    needs_folders: bool
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, as JSON takes them."""
        paths = {name: str(getattr(self, name)) for name in ("folder", "recipe", "study", "target")}
        return {**vars(self), **paths, "closed": list(self.closed), "notes": list(self.notes)}


def first_study(
    target: Path,
    sources: Sequence[Path],
    folder: Path | None = None,
    *,
    base: Path | None = None,
    metric: str = DEFAULT_METRIC,
    mode: str = "add_difference",
    mapping: str | None = None,
    folders: Sequence[Path] = (),
    hashes: HashCache | None = None,
    progress: Progress | None = None,
) -> FirstStudy:
    """Write recipe.yaml and study.yaml into `folder` (default: named after the target, here), which a fit can run.

    `target`, `sources` and `base` are files, or names or hashes of some in `folders`. A folder among `sources` stands
    for the checkpoints in it but the target; those of another family are left out. Without `base` the source that is
    called like one is taken, else the first. The recipe begins with the base, and adds every other source by a step of
    `mode` (add_difference or weight_sum), each alpha free on every block that can be scored: BASE is closed if the
    target has no text encoder. `metric` is what the study scores by, and `mapping` one of the layout's, by default its
    first: supermerger, mecha or model-mixer.

    In both files, checkpoints are called as they were given: an absolute path stays one, and a name or hash that was
    found in `folders` stays that. A path relative to the current folder is written as seen from `folder`, unless it
    leads to the same file from there.

    Only the files' headers are read, and some bytes of each tensor, which tell that two files hold the same.

    Raises InputError, nothing written, for files that are missing, broken, of another family than the target, or the
    target itself, for too few or too many sources, for `folders` that are missing, for a metric that can score nothing
    of the target, and for a folder that has a recipe or a study already.
    """
    _check_options(metric, mode)
    check_folders(folders)
    reader = _Reader(Library.of(folders, hashes, progress))
    goal = reader.open(target, "target")
    mapping = mapping or goal.layout.default_mapping
    if mapping not in goal.layout.mappings:
        raise InputError(f"received {mapping!r}; must be one of {', '.join(goal.layout.mappings)}", field="mapping")
    folder = Path(_plain(goal.path.stem)) if folder is None else folder
    _check_place(folder)
    notes: list[str] = []
    parents = _parents(reader, goal, sources, base, mapping, notes)
    freedom = _freedom(goal, parents, mapping, metric, notes)
    names = _names(parents.base, parents.others)
    called = [_file(folder, model, folders) for model in (goal, parents.base, *parents.others)]
    target_file, *files = (file for file, _ in called)
    models = dict(zip(names, files, strict=True))
    recipe = Recipe(
        name=_plain(goal.path.stem),
        layout=goal.layout,
        models={name: Model(file) for name, file in models.items()},
        steps=tuple(_steps(names, mode, goal.layout, freedom, parents)),
        output=f"TEMP{len(parents.others)}",
        mapping=mapping,
    )
    written = FirstStudy(
        folder=folder,
        recipe=folder / "recipe.yaml",
        study=folder / "study.yaml",
        target=goal.path,
        layout=goal.layout.name,
        base=names[0],
        models=models,
        steps=len(parents.others),
        free_alphas=sum(1 if hole.tie else len(hole.blocks) for step in recipe.steps for hole in step.alpha.free),
        tied=freedom.tied,
        closed=freedom.closed,
        metric=metric,
        mode=mode,
        mapping=mapping,
        needs_folders=any(by_name for _, by_name in called),
        notes=tuple(notes),
    )
    _write(written, recipe, target_file, freedom.why_closed)
    return written


@dataclass(frozen=True)
class _Opened:
    """A checkpoint that was looked into, as it was `given` and where it was found.

    `digest` is the fingerprint of its tensors, `scored` the names of those that count in similarities.
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
    """The checkpoints that a target may have been made from: the base, and the others.

    `misfits` are the blocks that each of the others cannot be merged in, {path: {block: reason}}.
    """

    base: _Opened
    others: tuple[_Opened, ...]
    misfits: Mapping[Path, Mapping[str, str]]


@dataclass(frozen=True)
class _Freedom:
    """The blocks that are `opened` to the search and those that are `closed`, with the reason, "" if none is.

    `tied` says whether the alphas of a step are one number for each kind of block.
    """

    opened: tuple[str, ...]
    closed: tuple[str, ...]
    why_closed: str
    tied: bool


class _Reader:
    """Finds checkpoints and looks into them."""

    def __init__(self, library: Library) -> None:
        self._library = library

    def open(self, given: Path, field: str) -> _Opened:
        """What a user names; raises CheckpointError for what is missing, broken or of no family that is known."""
        path = attempt(lambda: self._library.find_given(given), field=field)
        with attempt(lambda: open_checkpoint(path), field=field) as checkpoint:
            if checkpoint.layout is None:
                raise CheckpointError(f"{path}: {unfit(checkpoint)}", field=field)
            layout = checkpoint.layout
            infos = {name: one for name, one in checkpoint.tensors.items() if layout.merges(name)}
            shapes = {name: one.shape for name, one in infos.items() if one.dtype.is_floating_point}
            return _Opened(given, path, layout, self._library.fingerprint(checkpoint), shapes)

    def alike(self, given: Path, goal: _Opened, field: str) -> _Opened:
        """The same of one that has to go with the target, and may not be it."""
        found = self.open(given, field)
        if found.layout.name != goal.layout.name:
            raise CheckpointError(
                f"{found.path}: is {found.layout.title}, but the target {goal.path} is {goal.layout.title}", field=field
            )
        if found.digest == goal.digest:
            raise CheckpointError(
                f"{found.path}: is the target itself; the sources are what it was made from", field=field
            )
        return found

    def sources(self, given: Sequence[Path], goal: _Opened, notes: list[str]) -> list[_Opened]:
        """All sources, each once; of a folder what goes with the target, the rest in `notes`."""
        found: dict[str, _Opened] = {}
        problems: list[str] = []
        left_out: dict[str, list[Path]] = {}
        for source in given:
            listed = checkpoints_in(source) if os.path.isdir(source) else None
            below = None if listed is None else _below(source, [goal.path, *given])
            if listed == []:
                problems.append(f"{source}: no checkpoint in this folder{f'; {below}' if below else ''}")
            elif below:
                notes.append(f"left out: {source}: {below}")
            for number, path in enumerate([source] if listed is None else listed):
                if listed is not None:
                    self._library.events.progress(f"looking into {source.name}", number + 1, len(listed))
                try:
                    opened = self.alike(path, goal, "sources")
                except InputError as error:
                    if listed is None:
                        problems += error.problems
                    elif path.resolve() != goal.path.resolve():
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


def _below(folder: Path, named: Sequence[Path]) -> str | None:
    """What to say of checkpoints in the folders below `folder`, if any but those that are `named` themselves."""
    known = {path.resolve() for path in (folder, *named)}
    missed = [path for path in checkpoints_below(folder) if not known & {path.resolve(), path.parent.resolve()}]
    if not missed:
        return None
    several = f"{len(missed)} checkpoints" if len(missed) > 1 else "a checkpoint"
    return f"{several} in folders below it, such as {missed[0].relative_to(folder).as_posix()}; name those folders, too"


def _check_options(metric: str, mode: str) -> None:
    if metric not in METRICS:
        raise InputError(f"received {metric!r}; must be one of {', '.join(METRICS)}", field="metric")
    if mode not in _FIRST_MODES:
        raise InputError(f"received {mode!r}; must be one of {', '.join(_FIRST_MODES)}", field="mode")


def _check_place(folder: Path) -> None:
    """Raise InputError if a recipe or a study is in the folder, or a link that writing them would follow."""
    to_write = (folder / "recipe.yaml", folder / "study.yaml")
    refuse_links(folder, replaced=to_write)
    undo_unfinished(folder)
    if taken := [path for path in to_write if os.path.exists(path)]:
        raise InputError(f"{path}: is there already; name another folder (`folder`)" for path in taken)


def _parents(
    reader: _Reader, goal: _Opened, sources: Sequence[Path], base: Path | None, mapping: str, notes: list[str]
) -> _Parents:
    """Return the base and the other checkpoints that can be merged; `notes` tell of those that are left out."""
    found = reader.sources(sources, goal, notes)
    if not found:
        raise InputError(["`sources`: no checkpoint is left of what was named", *notes])
    origin = _base_among(found, None if base is None else reader.alike(base, goal, "base"), notes)
    others = [source for source in found if source.digest != origin.digest]
    misfits = {source.path: _misfits(source, origin, goal, mapping) for source in others}
    useless = {path: blocks for path, blocks in misfits.items() if len(blocks) == len(goal.layout.blocks)}
    notes += [
        f"left out: {path}: no block of it can be merged: {next(iter(blocks.values()))}"
        for path, blocks in useless.items()
    ]
    others = [source for source in others if source.path not in useless]
    left_out = tuple(note for note in notes if note.startswith("left out: "))
    if not others:
        raise InputError(
            [f"`sources`: nothing but the base, {origin.path}; name the checkpoints that were merged, too", *left_out]
        )
    if len(others) > MOST_SEARCHED:
        raise InputError(
            f"{len(others)} checkpoints; a recipe to start with has at most {MOST_SEARCHED}; leave some out",
            field="sources",
        )
    return _Parents(origin, tuple(others), misfits)


def _freedom(goal: _Opened, parents: _Parents, mapping: str, metric: str, notes: list[str]) -> _Freedom:
    """Return which blocks can be searched, and whether all of them at once; `notes` tell of those that cannot."""
    layout, others = goal.layout, parents.others
    opened = _open_blocks(goal, (parents.base, *others), mapping)
    closed = tuple(block for block in layout.blocks if block not in opened)
    why_closed = _why_closed(goal, closed, mapping) if closed else ""
    attempt(lambda: METRICS[metric].check_offered(layout), field="metric")
    if not set(METRICS[metric].sees(layout)) & set(opened):
        seen = layout.describe_blocks(METRICS[metric].sees(layout))
        raise InputError(f"received {metric!r}, which sees {seen} alone; {why_closed}", field="metric")
    if closed:
        notes.append(why_closed)
    tied = len(others) * len(opened) > MOST_JOINT
    if tied:
        notes.append(
            f"{len(others)} sources on {len(opened)} blocks are more numbers than are searched at once "
            f"({MOST_JOINT}): each step has one for each kind of block (`tie: true`)"
        )
    notes += [
        f"{source.path.name}: no alpha on {layout.describe_blocks(blocks)}: {next(iter(blocks.values()))}"
        for source in others
        if (blocks := parents.misfits[source.path])
    ]
    return _Freedom(opened, closed, why_closed, tied)


def _base_among(found: Sequence[_Opened], given: _Opened | None, notes: list[str]) -> _Opened:
    """The model that differences are taken from: the one given, the likeliest by its name, or the first."""
    if given is not None:
        return given
    for pattern in (*found[0].layout.base_names, _BASE):
        for source in found:
            if pattern.search(source.path.stem):
                notes.append(f"base: {source.path.name}, by its name; `base` names another")
                return source
    notes.append(f"base: {found[0].path.name}, the first, for no name looks like a base model's; `base` names another")
    return found[0]


def _file(folder: Path, model: _Opened, folders: Sequence[Path]) -> tuple[str, bool]:
    """How the files in `folder` call a checkpoint, and whether it is to be found in `folders` by that.

    As it was given, if that leads to it from there. A relative path is given from the current folder, and what leads
    elsewhere from `folder`, or nowhere, is written as seen from it; as an absolute path, where that is another drive.
    """
    text = model.given.as_posix()
    if model.given.is_absolute():
        return text, False
    there = named_at(text, folder)
    if there is not None and there.samefile(model.path):
        return text, False
    if there is None and not os.path.isfile(model.given):
        return text, True
    # Links on the way to the file stay in its path; `..` leads upwards from where the folder really is.
    return seen_from(folder.resolve(), model.path), False


def _open_blocks(goal: _Opened, sources: Sequence[_Opened], mapping: str) -> tuple[str, ...]:
    """The blocks that a merge can be scored on: of which the target and a source hold tensors of the same names."""
    common = goal.scored & frozenset().union(*(source.scored for source in sources))
    held = {goal.layout.block_of(name, mapping) for name in common}
    return tuple(block for block in goal.layout.blocks if block in held)


def _why_closed(goal: _Opened, closed: Sequence[str], mapping: str) -> str:
    held = {goal.layout.block_of(name, mapping) for name in goal.scored}
    missing = [one.title for one in goal.layout.text_encoders if one.block in closed and one.block not in held]
    reason = "the target and the sources have no tensors of it in common"
    if missing:
        reason = f"the target has no {' and no '.join(missing)}"
    shown = goal.layout.describe_blocks(closed)
    return f"{shown} is closed (alpha 0): {reason}, so nothing tells what was merged there"


def _names(origin: _Opened, others: Iterable[_Opened]) -> list[str]:
    """What the recipe calls its models: base, and the others by their files' names, each different."""
    names = ["base"]
    for source in others:
        stem = _plain(source.path.stem)
        taken = {name.casefold() for name in names}
        if stem.casefold() in taken or re.fullmatch(r"TEMP\d+", stem):
            stem = next(f"{stem}-{n}" for n in range(2, len(names) + 3) if f"{stem}-{n}".casefold() not in taken)
        names.append(stem)
    return names


def _plain(stem: str) -> str:
    """A name without what would have to be quoted in YAML and on command lines."""
    return re.sub(r"[^\w.+-]+", "-", stem)[:100].strip("-.") or "model"


def _misfits(source: _Opened, base: _Opened, goal: _Opened, mapping: str) -> dict[str, str]:
    """The blocks that `source` cannot be merged in, each with a tensor that it or the target has in another shape."""
    layout = goal.layout
    found: dict[str, str] = {}
    for name, shape in base.shapes.items():
        for other in (source, goal) if layout.scores(name) else (source,):
            block = layout.block_of(name, mapping)
            held = other.shapes.get(name, shape)
            # A base that is an inpainting model merges the channels that all models have.
            inpainting = layout.inpainting is not None and name == layout.inpainting.tensor
            wider = inpainting and shape[1:2] > held[1:2]
            if held != shape and not wider and block is not None:
                told = f"tensor {name!r} of {other.path.name} has shape {list(held)}, but {list(shape)} in the base"
                found.setdefault(block, told)
    return found


def _steps(
    names: Sequence[str],
    mode: str,
    layout: Layout,
    freedom: _Freedom,
    parents: _Parents,
) -> Iterator[Step]:
    """Yield a step for each model but the base, free on the opened blocks but for its misfits."""
    base, *others = names
    before = base
    for number, (name, source) in enumerate(zip(others, parents.others, strict=True), 1):
        blocks = tuple(block for block in freedom.opened if block not in parents.misfits[source.path])
        alpha = Alpha(dict.fromkeys(freedom.closed, 0.0), _holes(layout, blocks, _RANGES[mode], tied=freedom.tied))
        yield Step(f"TEMP{number}", mode, before, name, base if mode == "add_difference" else None, alpha)
        before = f"TEMP{number}"


def _holes(layout: Layout, blocks: tuple[str, ...], bounds: tuple[int, int], *, tied: bool) -> tuple[Free, ...]:
    """An alpha for each of `blocks`; tied, one for each group of blocks, and one for those of no group."""
    if not tied:
        return (Free(*bounds, blocks),) if blocks else ()
    groups = [tuple(block for block in blocks if layout.group_of(block) == name) for name in layout.groups]
    rest = tuple(block for block in blocks if not any(block in group for group in groups))
    return tuple(Free(*bounds, group, tie=len(group) > 1) for group in (rest, *groups) if group)


def _write(first: FirstStudy, recipe: Recipe, target_file: str, closed: str) -> None:
    texts = {
        first.recipe.name: _recipe_text(first, recipe, closed),
        first.study.name: _study_text(first, recipe.layout, target_file),
    }
    write_new_files(first.folder, texts)


def _recipe_text(first: FirstStudy, recipe: Recipe, closed: str) -> str:
    """The text of recipe.yaml; `closed` tells which blocks are not free, and why, "" if all are."""
    data = recipe_as_data(recipe)
    sums = {
        "add_difference": "A step adds what makes a model different from the base, times its alpha",
        "weight_sum": "A step goes from what is there so far towards the next model, as far as its alpha says",
    }
    added = "1 model" if first.steps == 1 else f"{first.steps} models"
    every = "Every other block" if closed else "Every block"
    low, high = _RANGES[first.mode]
    bounds = f"[{low}, {high}]"
    one_each = (
        f"One alpha for each kind of block (tie), as there are many models; for one a block: {{search: {bounds}}}."
        if first.tied
        else f"{every} has an alpha of its own, in {low}..{high}; for a single one: {{search: {bounds}, tie: true}}."
    )
    freedom = [one_each]
    if low < 0:
        freedom.append(
            "Below 0 a model is taken away, as C is in A + (B - C) x alpha; if nothing was, write search: [0, 1]."
        )
    return "".join(
        (
            _comment(f"A first guess at how {first.target.name[:200]} was made: {added} on top of a base."),
            dump_yaml({name: data[name] for name in ("name", "layout", "mapping")}),
            "\n",
            _comment(
                "Leave out what is surely not in it; `blockfit ceiling` tells how much of each there is.",
                "The licences are yours to fill in.",
            ),
            dump_yaml({"models": data["models"]}),
            "\n",
            _comment(
                f"The order is a guess. {sums[first.mode]}.",
                *([f"{closed}."] if closed else []),
                *freedom,
                f"What you know, write down: a number, {len(recipe.layout.blocks)} of them, or "
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
    said = [
        "All alphas at once (joint), the way that finds recipes again. By hand, and in the article, it is one step",
        "after the other (strategy: stepwise), which gives the first steps what belongs to later ones.",
    ]
    if exact:
        said += ["The first trial is the exact optimum of this metric; more of them make sure."]
    if set(seen) != set(layout.blocks):
        stage["elsewhere"] = DEFAULT_METRIC
        said += [f"{first.metric} sees {layout.describe_blocks(seen)}; `elsewhere` scores the other blocks."]
    if first.metric == DEFAULT_METRIC:
        other = f"metric: attention, elsewhere: {DEFAULT_METRIC}, trials: {_MANY_TRIALS}"
        said += [f"To go by what the layers do, as the article did: {other}."]
    stage |= {"strategy": "joint", "trials": _FEW_TRIALS if exact else _MANY_TRIALS}
    return "".join(
        (
            _comment("What recipe.yaml is fitted to, and how: blockfit fit FOLDER"),
            dump_yaml({"recipe": first.recipe.name, "target": {"file": target_file}}),
            "\n",
            _comment("The model that the others were trained from: what counts is what differs from it."),
            dump_yaml({"base": first.base}),
            "\n",
            _comment(*said),
            dump_yaml({"stages": [stage]}),
        )
    )


def _comment(*lines: str) -> str:
    return "".join(f"# {printable(line)}\n" for line in lines)
