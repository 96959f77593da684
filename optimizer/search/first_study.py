"""A first recipe and study out of a target and the checkpoints that it may have been made from."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optimizer.checkpoints import HashCache, atomic_path, fingerprint, open_checkpoint, refuse_links
from optimizer.checkpoints.layout import Layout
from optimizer.checkpoints.presence import is_folder, is_there
from optimizer.errors import CheckpointError, InputError, attempt
from optimizer.printable import printable
from optimizer.recipes import (
    Alpha,
    Free,
    Model,
    Recipe,
    Step,
    checkpoints_below,
    checkpoints_in,
    locate,
    locate_given,
    recipe_as_data,
    seen_from,
)
from optimizer.recipes.yaml_files import dump_yaml
from optimizer.search.study import MOST_JOINT, MOST_SEARCHED
from optimizer.similarity import METRICS

__all__ = ["FIRST_MODES", "FirstStudy", "first_study"]

Progress = Callable[[str, int, int], None]

FIRST_MODES = ("add_difference", "weight_sum")

# What bases of Stable Diffusion 1.x are called, the likeliest first.
_BASES = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"v1[-_.]?5[-_.]pruned",
        r"(^|[^a-z])(sd|stable[-_ ]?diffusion)[-_ ]?v?1[-_.]?5($|[^0-9])",
        r"(^|[^a-z0-9])v1[-_.]5($|[^0-9])",
        r"(^|[^a-z])(sd|stable[-_ ]?diffusion)[-_ ]?v?1[-_.]?[1-4]($|[^0-9])",
        r"(^|[^a-z])base($|[^a-z])",
    )
)
# Where the first trial is the exact optimum, and elsewhere.
_FEW_TRIALS, _MANY_TRIALS = 8, 60


@dataclass(frozen=True)
class FirstStudy:
    """What was written: `recipe` and `study` in `folder`, over `models` ({name: file as the recipe has it}).

    `base` is the model that differences are taken from, `tied` whether the alphas of a step are one number for each
    kind of block. `notes` are sentences on what was chosen and what was left out.
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
    metric: str
    mode: str
    mapping: str
    needs_folders: bool
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, as JSON takes them."""
        paths = {name: str(getattr(self, name)) for name in ("folder", "recipe", "study", "target")}
        return {**vars(self), **paths, "notes": list(self.notes)}


def first_study(
    target: Path,
    sources: Sequence[Path],
    folder: Path | None = None,
    *,
    base: Path | None = None,
    metric: str = "delta",
    mode: str = "add_difference",
    mapping: str = "supermerger",
    folders: Sequence[Path] = (),
    hashes: HashCache | None = None,
    progress: Progress | None = None,
) -> FirstStudy:
    """Write recipe.yaml and study.yaml into `folder` (default: named after the target, here), which a fit can run.

    `target`, `sources` and `base` are files, or names or hashes of some in `folders`. A folder among `sources` stands
    for the checkpoints in it but the target; those of another family are left out. Without `base` the source that is
    called like one is taken, else the first. The recipe begins with the base, and adds every other source by a step of
    `mode` (add_difference or weight_sum), each alpha free on every block; `metric` is what the study scores by, and
    `mapping` tells where `time_embed` and the VAE count: supermerger, mecha or model-mixer.

    Only the files' headers are read, and some bytes of each tensor, which tell that two files hold the same.

    Raises InputError, nothing written, for files that are missing, broken, of another family than the target, or the
    target itself, for too few or too many sources, and for a folder that has a recipe or a study already.
    """
    _check_options(metric, mode)
    reader = _Reader(folders, hashes, progress)
    goal = reader.open(target, "TARGET")
    if mapping not in goal.layout.mappings:
        raise InputError(f"--mapping: received {mapping!r}; there are {', '.join(goal.layout.mappings)}")
    folder = Path(_plain(goal.path.stem)) if folder is None else folder
    to_write = (folder / "recipe.yaml", folder / "study.yaml")
    refuse_links(folder, replaced=to_write)
    taken = [path for path in to_write if is_there(path)]
    if taken:
        raise InputError(f"{path}: is there already; name another folder (-o)" for path in taken)
    notes: list[str] = []
    found = reader.sources(sources, goal, notes)
    left_out = tuple(notes)
    if not found:
        raise InputError(["SOURCE: no checkpoint is left of what was named", *left_out])
    origin = _base_among(found, None if base is None else reader.alike(base, goal, "--base"), notes)
    others = [source for source in found if source.digest != origin.digest]
    if not others:
        raise InputError(
            [f"SOURCE: nothing but the base, {origin.path}; name the checkpoints that were merged, too", *left_out]
        )
    if len(others) > MOST_SEARCHED:
        raise InputError(
            f"SOURCE: {len(others)} checkpoints; a recipe to start with has at most {MOST_SEARCHED}; leave some out"
        )
    tied = len(others) * len(goal.layout.blocks) > MOST_JOINT
    if tied:
        notes.append(
            f"{len(others)} sources on {len(goal.layout.blocks)} blocks are more numbers than are searched at once "
            f"({MOST_JOINT}): each step has one for each kind of block (`tie: true`)"
        )
    names = _names(origin, others)
    called = [_file(folder, model.path, folders) for model in (goal, origin, *others)]
    target_file, *files = (file for file, _ in called)
    recipe = Recipe(
        name=_plain(goal.path.stem),
        layout=goal.layout,
        models={name: Model(file) for name, file in zip(names, files, strict=True)},
        steps=tuple(_steps(names, mode, goal.layout, tied=tied)),
        output=f"TEMP{len(others)}",
        mapping=mapping,
    )
    written = FirstStudy(
        folder=folder,
        recipe=folder / "recipe.yaml",
        study=folder / "study.yaml",
        target=goal.path,
        layout=goal.layout.name,
        base=names[0],
        models=dict(zip(names, files, strict=True)),
        steps=len(others),
        free_alphas=sum(1 if hole.tie else len(hole.blocks) for step in recipe.steps for hole in step.alpha.free),
        tied=tied,
        metric=metric,
        mode=mode,
        mapping=mapping,
        needs_folders=any(by_name for _, by_name in called),
        notes=tuple(notes),
    )
    _write(written, recipe, target_file)
    return written


@dataclass(frozen=True)
class _Opened:
    """A checkpoint that was looked into: `digest` is the fingerprint of its tensors."""

    path: Path
    layout: Layout
    digest: str


class _Reader:
    """Finds checkpoints and looks into them."""

    def __init__(self, folders: Sequence[Path], hashes: HashCache | None, progress: Progress | None) -> None:
        self._folders = folders
        self._hashes = hashes
        self._progress = progress

    def open(self, given: Path, place: str) -> _Opened:
        """What a user names; raises CheckpointError for what is missing, broken or of no family that is known."""
        hashes, progress = self._hashes, self._progress
        path = attempt(lambda: locate_given(given, self._folders, hashes=hashes, progress=progress), place)
        with attempt(lambda: open_checkpoint(path), place) as checkpoint:
            if checkpoint.layout is None:
                raise CheckpointError(f"{place}: {path}: of no known family (blockfit inspect FILE tells more)")
            return _Opened(path, checkpoint.layout, fingerprint(checkpoint, hashes))

    def alike(self, given: Path, goal: _Opened, place: str) -> _Opened:
        """The same of one that has to go with the target, and may not be it."""
        found = self.open(given, place)
        if found.layout.name != goal.layout.name:
            raise CheckpointError(
                f"{place}: {found.path}: is {found.layout.title}, but the target {goal.path} is {goal.layout.title}"
            )
        if found.digest == goal.digest:
            raise CheckpointError(f"{place}: {found.path}: is the target itself; the sources are what it was made from")
        return found

    def sources(self, given: Sequence[Path], goal: _Opened, notes: list[str]) -> list[_Opened]:
        """All sources, each once; of a folder what goes with the target, the rest in `notes`."""
        found: dict[str, _Opened] = {}
        problems: list[str] = []
        for source in given:
            listed = checkpoints_in(source) if is_folder(source) else None
            below = None if listed is None else _below(source, [goal.path, *given])
            if listed == []:
                problems.append(f"SOURCE: {source}: no checkpoint in this folder{f'; {below}' if below else ''}")
            elif below:
                notes.append(f"left out: {source}: {below}")
            for number, path in enumerate([source] if listed is None else listed):
                if self._progress is not None and listed is not None:
                    self._progress(f"looking into {source.name}", number + 1, len(listed))
                try:
                    opened = self.alike(path, goal, "SOURCE")
                except InputError as error:
                    if listed is None:
                        problems += error.problems
                    elif path.resolve() != goal.path.resolve():
                        notes += [f"left out: {problem.removeprefix('SOURCE: ')}" for problem in error.problems]
                    continue
                if opened.digest in found:
                    notes.append(f"left out: {path}: holds the same as {found[opened.digest].path}")
                found.setdefault(opened.digest, opened)
        if problems:
            raise InputError(problems)
        return list(found.values())


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
        raise InputError(f"--metric: received {metric!r}; there are {', '.join(METRICS)}")
    if mode not in FIRST_MODES:
        raise InputError(f"--mode: received {mode!r}; there are {', '.join(FIRST_MODES)}")


def _base_among(found: Sequence[_Opened], given: _Opened | None, notes: list[str]) -> _Opened:
    """The model that differences are taken from: the one given, the likeliest by its name, or the first."""
    if given is not None:
        return given
    for pattern in _BASES:
        for source in found:
            if pattern.search(source.path.stem):
                notes.append(f"base: {source.path.name}, by its name; --base names another")
                return source
    notes.append(f"base: {found[0].path.name}, the first, for no name looks like a base model's; --base names another")
    return found[0]


def _file(folder: Path, path: Path, folders: Sequence[Path]) -> tuple[str, bool]:
    """How a file is called from `folder`, and whether it is by a name to be found in `folders`.

    That is how it is called on another drive, if the name finds it; all else is relative to `folder`.
    """
    file = seen_from(folder.resolve(), path.resolve())
    if Path(file).is_absolute():
        with suppress(CheckpointError):  # several of this name
            named = locate(path.name, folder, folders)
            if named is not None and named.resolve() == path.resolve():
                return path.name, True
    return file, False


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


def _steps(names: Sequence[str], mode: str, layout: Layout, *, tied: bool) -> Iterator[Step]:
    base, *others = names
    before = base
    for number, name in enumerate(others, 1):
        alpha = Alpha(free=_kinds(layout)) if tied else Alpha(free=(Free(0, 1, layout.blocks),))
        yield Step(f"TEMP{number}", mode, before, name, base if mode == "add_difference" else None, alpha)
        before = f"TEMP{number}"


def _kinds(layout: Layout) -> tuple[Free, ...]:
    """A number each for the text encoder, the input blocks, the middle and the output blocks."""
    groups = [layout.parse_blocks(text) for text in ("input", "middle", "output")]
    rest = tuple(block for block in layout.blocks if not any(block in group for group in groups))
    return tuple(Free(0, 1, blocks, tie=len(blocks) > 1) for blocks in (rest, *groups) if blocks)


def _write(first: FirstStudy, recipe: Recipe, target_file: str) -> None:
    texts = {first.recipe: _recipe_text(first, recipe), first.study: _study_text(first, recipe.layout, target_file)}
    try:
        first.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{first.folder}: cannot be made: {error.strerror or error}") from error
    for path, text in texts.items():
        with atomic_path(path) as temporary:
            temporary.write_text(text, encoding="utf-8", newline="\n")


def _recipe_text(first: FirstStudy, recipe: Recipe) -> str:
    data = recipe_as_data(recipe)
    sums = {
        "add_difference": "A step adds what makes a model different from the base, times its alpha",
        "weight_sum": "A step goes from what is there so far towards the next model, as far as its alpha says",
    }
    freedom = (
        ["One alpha for each kind of block (tie), as there are many models; for one a block: alpha: {search: [0, 1]}."]
        if first.tied
        else ["Every block has an alpha of its own, between 0 and 1; for a single one: {search: [0, 1], tie: true}."]
    )
    return "".join(
        (
            _comment(
                f"A first guess at how {first.target.name[:200]} was made: {first.steps} models on top of a base."
            ),
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
                *freedom,
                "What you know, write down: a number, 26 of them, or {OUT03-OUT11: {search: [0, 1]}, M00: 0.5}.",
            ),
            dump_yaml({"steps": data["steps"]}),
            dump_yaml({"output": data["output"]}),
        )
    )


def _study_text(first: FirstStudy, layout: Layout, target_file: str) -> str:
    seen = METRICS[first.metric].sees(layout)
    exact = first.metric in ("delta", "weights")
    stage: dict[str, Any] = {"name": "all", "metric": first.metric}
    said = [
        "All alphas at once (joint), the way that finds recipes again. By hand, and in the article, it is one step",
        "after the other (strategy: stepwise), which gives the first steps what belongs to later ones.",
    ]
    if exact:
        said += ["The first trial is the exact optimum of this metric; more of them make sure."]
    if set(seen) != set(layout.blocks):
        stage["elsewhere"] = "delta"
        said += [f"{first.metric} sees {layout.describe_blocks(seen)}; `elsewhere` scores the other blocks."]
    if first.metric == "delta":
        said += ["To go by what the layers do, as the article did: metric: attention, elsewhere: delta, trials: 60."]
    stage |= {"strategy": "joint", "trials": _FEW_TRIALS if exact else _MANY_TRIALS}
    return "".join(
        (
            _comment("What recipe.yaml is fitted to, and how: blockfit fit FOLDER"),
            dump_yaml({"recipe": first.recipe.name, "target": {"file": target_file}}),
            "\n",
            _comment("The model that the others were trained from; delta is about the differences from it."),
            dump_yaml({"base": first.base}),
            "\n",
            _comment(*said),
            dump_yaml({"stages": [stage]}),
        )
    )


def _comment(*lines: str) -> str:
    return "".join(f"# {printable(line)}\n" for line in lines)
