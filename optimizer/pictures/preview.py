"""A contact sheet of a target, candidates and their sources: the same noise for all, distances below the pictures."""

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple, TypeVar

import torch
from PIL import Image

from optimizer.checkpoints import open_checkpoint, open_vae, pipeline_of, readable_encoder_of
from optimizer.choices import PictureRole
from optimizer.errors import CheckpointError, InputError, RecipeError, attempt
from optimizer.extras import require
from optimizer.families import load_tokenizer
from optimizer.files import atomic_path, check_output, temporary_folder
from optimizer.library import HashCache, locate_given, locate_models
from optimizer.merging import check_noted_hashes, merge
from optimizer.pictures.drawing import Drawn, check_steps, default_guidance, draw, latent_distance, pixel_distance
from optimizer.pictures.opening import (
    PipelineFiles,
    drawn_layout,
    open_pipeline,
    open_scheduler,
    pipeline_files,
    quietly,
)
from optimizer.pictures.sheets import contact_sheet
from optimizer.recipes import Recipe, folders_of, load_recipe

__all__ = ["Preview", "PreviewColumn", "PreviewRequest", "preview", "write_preview"]

_SMALLEST = 128  # pixels, how wide pictures are at least shown

Progress = Callable[[str, int, int], None]
_Built = TypeVar("_Built")


@dataclass(frozen=True)
class PreviewColumn:
    """What one file draws: `role` is "target", "candidate" or "source", `file` the checkpoint or recipe.

    `vae_from` is the file that its VAE was taken from, None if it has its own. `drawn` is one picture for every prompt
    and seed, all seeds of the first prompt first.
    """

    name: str
    role: PictureRole
    file: Path
    vae_from: Path | None
    drawn: tuple[Drawn, ...]


@dataclass(frozen=True)
class Preview:
    """The pictures of a target and of what is compared with it, and what they were drawn with.

    `pipeline` is the pipeline configuration's name; `encoder_from` the file whose text encoder all columns have, None
    if each has its own.
    """

    target: PreviewColumn
    others: tuple[PreviewColumn, ...]
    pipeline: str
    steps: int
    guidance: float
    negative: str
    encoder_from: Path | None

    def latent_distances(self, column: PreviewColumn) -> tuple[float, ...]:
        """For each picture the root mean square difference of its final latents to those of the target's picture."""
        return tuple(map(latent_distance, column.drawn, self.target.drawn))

    def pixel_distances(self, column: PreviewColumn) -> tuple[float, ...]:
        """For each picture the root mean square difference to the target's, RGB in [0, 1]; from 0 to 1."""
        return tuple(map(pixel_distance, column.drawn, self.target.drawn))

    @property
    def notes(self) -> tuple[str, ...]:
        """What was not drawn as the files are by themselves: text encoder and VAEs that are other files'."""
        notes = []
        if self.encoder_from is not None:
            notes.append(f"text encoder of all columns: {self.encoder_from.name}")
        borrowed = [column for column in (self.target, *self.others) if column.vae_from is not None]
        notes += [f"{one.name} has no VAE: drawn with that of {one.vae_from.name}" for one in borrowed if one.vae_from]
        return tuple(notes)

    def sheet(self) -> Image.Image:
        """The contact sheet: target, candidates, sources in columns, prompts and seeds in rows; distances below."""
        columns = (self.target, *self.others)
        distances = [
            [("", "")] * len(self.target.drawn),
            *(
                [
                    (f"latent {latent:#.3g}", f"pixel {pixel:#.3g}")
                    for latent, pixel in zip(self.latent_distances(one), self.pixel_distances(one), strict=True)
                ]
                for one in self.others
            ),
        ]
        rows, captions = {}, {}
        for position, drawn in enumerate(self.target.drawn):
            label = f"{drawn.prompt.strip() or '(empty prompt)'}\nseed {drawn.seed}"
            while label in rows:  # prompts that differ in spaces alone
                label += " "
            rows[label] = [column.drawn[position].picture for column in columns]
            captions[label] = ["\n".join(of_column[position]).strip() for of_column in distances]
        settings = f"{self.steps} DDIM step{'s' if self.steps > 1 else ''}, guidance {self.guidance:g}"
        if self.negative:
            settings += f", negative prompt: {self.negative}"
        definition = "below: root mean square difference to the target, of final latents and of pixels in [0, 1]"
        width = self.target.drawn[0].picture.width
        return contact_sheet(
            rows,
            [f"{column.role}\n{column.name}" for column in columns],
            scale=-(-_SMALLEST // width),
            captions=captions,
            title="\n".join((settings, *self.notes, definition)),
        )

    def as_dict(self) -> dict[str, Any]:
        """The same without pictures, for JSON: settings, and each column's distances to the target, mean and single."""
        columns = []
        for column in self.others:
            latent, pixel = self.latent_distances(column), self.pixel_distances(column)
            pictures = [
                {"prompt": drawn.prompt, "seed": drawn.seed, "latent": of_latents, "pixel": of_pixels}
                for drawn, of_latents, of_pixels in zip(column.drawn, latent, pixel, strict=True)
            ]
            columns.append(
                {
                    **_described(column),
                    "role": column.role,
                    "latent": fmean(latent),
                    "pixel": fmean(pixel),
                    "pictures": pictures,
                }
            )
        return {
            "target": _described(self.target),
            "pipeline": self.pipeline,
            "steps": self.steps,
            "guidance": self.guidance,
            "negative": self.negative,
            "encoder_from": None if self.encoder_from is None else str(self.encoder_from),
            "columns": columns,
        }


@dataclass(frozen=True)
class PreviewRequest:
    """Request for a contact sheet: what is drawn, and how.

    Attributes:
        target: The checkpoint that the others are compared with.
        candidates: Checkpoints, or recipes (.yaml) without free alphas.
        prompts: Prompts, a row each for each seed; as `seeds`, the same counts once.
        seeds: Seeds of the noise.
        steps: Steps of DDIM.
        guidance: Guidance, at least 1. Default: the pipeline's own.
        negative: The negative prompt.
        encoder_from: A checkpoint whose text encoder all columns are drawn with: what is left to see is the difference
            of the UNets.
        vae_from: A file whose VAE stands in where a file has none. Default: the target's.
        with_sources: Whether the models of recipes follow the candidates, each once.
        check_hashes: Whether the models of recipes must have the sha256 that these note.

    """

    target: Path
    candidates: tuple[Path, ...]
    prompts: tuple[str, ...]
    seeds: tuple[int, ...] = (0,)
    steps: int = 20
    guidance: float | None = None
    negative: str = ""
    encoder_from: Path | None = None
    vae_from: Path | None = None
    with_sources: bool = True
    check_hashes: bool = True


def preview(
    target: Path | str,
    candidates: Sequence[Path | str],
    output: Path | str,
    *,
    prompts: Sequence[str],
    seeds: Sequence[int] = (0,),
    steps: int = 20,
    guidance: float | None = None,
    negative: str = "",
    encoder_from: Path | str | None = None,
    vae_from: Path | str | None = None,
    with_sources: bool = True,
    folders: Sequence[Path] = (),
    check_hashes: bool = True,
    hashes: HashCache | None = None,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
    warn: Callable[[str], None] | None = None,
) -> Preview:
    """Draw a target, candidates and their sources from the same noise, and write the contact sheet `output`, a .png.

        preview("closed.safetensors", ["my-study/best.yaml"], "sheet.png", prompts=["a cat"], seeds=[1, 2]).sheet()

    The keywords are those of `PreviewRequest`, and of `write_preview`, which does the work.
    """
    request = PreviewRequest(
        Path(target), tuple(map(Path, candidates)), tuple(prompts), tuple(seeds), steps, guidance, negative,
        None if encoder_from is None else Path(encoder_from), None if vae_from is None else Path(vae_from),
        with_sources, check_hashes,
    )  # fmt: skip
    return write_preview(request, output, folders=folders, hashes=hashes, device=device, progress=progress, warn=warn)


def write_preview(
    request: PreviewRequest,
    output: Path | str,
    *,
    folders: Sequence[Path] = (),
    hashes: HashCache | None = None,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
    warn: Callable[[str], None] | None = None,
) -> Preview:
    """Draw what is requested from the same noise, and write the contact sheet `output`, a .png.

    Recipes are each merged in float16 into a temporary file beside `output` that takes as much disk as a checkpoint and
    is removed once it is drawn. Files are looked for where they say, then in `folders`, as a recipe's models are, those
    named by their hash with the help of `hashes`. Checkpoints are opened one after another. `progress` is told what is
    done, the steps done and their total; `warn` gets a line for each prompt that is longer than the text encoder takes.

    Raises InputError if the libraries that draw pictures are not installed, before anything is read, and with one line
    for each problem that shows before anything is drawn, for files that are missing,
    broken, cannot be drawn or go with different pipelines, for recipes with free alphas, for steps that `check_steps`
    refuses, for an output that cannot be written, and for pictures that are not finite numbers. In every case an
    existing `output` stays as it was.
    """
    require("pictures", "a preview")
    output = Path(output)
    if output.suffix.lower() != ".png":
        raise InputError(f"{output}: a sheet is written as .png; give the output this extension")
    for recipe in filter(_is_recipe, request.candidates):
        check_output(output, beside=recipe)
    with atomic_path(output) as temporary:
        try:
            temporary.touch()  # better known before the drawing than after it
        except OSError as error:
            raise InputError(f"{output}: the folder cannot be written to ({error.strerror})") from error
        plan = _plan(request, _Places(folders, hashes, progress, request.check_hashes))
        settings = _settings(request, plan, device, warn)
        found = _draw_all(plan, settings, temporary.parent, progress)
        found.sheet().save(temporary, format="png")
    return found


@dataclass(frozen=True)
class _Settings:
    """How pictures are drawn, the same for all columns."""

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    steps: int
    guidance: float
    negative: str
    device: str | torch.device
    tokenizer: Any


def _settings(
    request: PreviewRequest, plan: "_Plan", device: str | torch.device, warn: Callable[[str], None] | None
) -> _Settings:
    """Return how all columns are drawn. Raises InputError for steps that the sampler does not draw in."""
    attempt(lambda: check_steps(open_scheduler(plan.configuration), request.steps), field="steps")
    with quietly():
        tokenizer = load_tokenizer(plan.configuration)
    settings = _Settings(
        prompts=tuple(dict.fromkeys(request.prompts)),
        seeds=tuple(dict.fromkeys(request.seeds)),
        steps=request.steps,
        guidance=default_guidance(plan.configuration) if request.guidance is None else request.guidance,
        negative=request.negative,
        device=device,
        tokenizer=tokenizer,
    )
    for prompt in (*settings.prompts, settings.negative):
        if warn is not None and (cut := _cut(prompt, tokenizer)):
            warn(cut)
    return settings


def _draw_all(plan: "_Plan", settings: _Settings, scratch: Path, progress: Progress | None) -> Preview:
    # Recipes first: whether there is disk enough for them shows before hours of drawing, not after.
    ordered = sorted(plan.entries, key=lambda entry: entry.recipe is None)
    columns = {entry: _column(entry, plan, settings, scratch, progress) for entry in ordered}
    of_target, *others = (columns[entry] for entry in plan.entries)
    return Preview(
        of_target,
        tuple(others),
        plan.configuration.name,
        settings.steps,
        settings.guidance,
        settings.negative,
        plan.encoder,
    )


@dataclass(frozen=True, eq=False)
class _Entry:
    """A column to be: the checkpoint at `path`, or what the recipe there makes of `models`."""

    name: str
    role: PictureRole
    path: Path
    recipe: Recipe | None = None
    models: Mapping[str, Path] = field(default_factory=dict)

    @contextmanager
    def checkpoint(self, scratch: Path, progress: Progress | None) -> Iterator[Path]:
        """The checkpoint; of a recipe a temporary file below `scratch`."""
        recipe = self.recipe
        if recipe is None:
            yield self.path
            return
        told = None if progress is None else partial(progress, f"merging {self.name}")
        with temporary_folder(scratch) as folder:
            merged = folder / "merged.safetensors"
            attempt(
                # Hashes were compared before anything was drawn.
                lambda: merge(recipe, self.models, merged, embed_recipe=False, check_hashes=False, progress=told),
                f"{self.path}: merging it into a temporary file",
            )
            yield merged

    def attempt(self, build: Callable[[], _Built]) -> _Built:
        """What `build` gives; before the problems of a merged file stands the recipe that the user knows."""
        return build() if self.recipe is None else attempt(build, f"{self.path}: drawing its merge")


@dataclass(frozen=True)
class _Plan:
    """The columns to be, the target's first, and what all are drawn with."""

    entries: tuple[_Entry, ...]
    configuration: Path
    vae: Path
    encoder: Path | None


def _column(entry: _Entry, plan: _Plan, settings: _Settings, scratch: Path, progress: Progress | None) -> PreviewColumn:
    with entry.checkpoint(scratch, progress) as checkpoint:
        files = entry.attempt(lambda: pipeline_files(checkpoint, vae_from=plan.vae, encoder_from=plan.encoder))
        told = None if progress is None else partial(progress, f"drawing {entry.name}")
        drawn = entry.attempt(lambda: _drawn(files, plan.encoder, settings, told))
    _free_memory()
    return PreviewColumn(entry.name, entry.role, entry.path, None if files.vae == checkpoint else files.vae, drawn)


def _drawn(
    files: PipelineFiles, encoder: Path | None, settings: _Settings, progress: Callable[[int, int], None] | None
) -> tuple[Drawn, ...]:
    pipeline = open_pipeline(
        files.unet, vae_from=files.vae, encoder_from=encoder, tokenizer=settings.tokenizer, device=settings.device
    )
    drawn = draw(
        pipeline, prompts=settings.prompts, seeds=settings.seeds, steps=settings.steps, guidance=settings.guidance,
        negative=settings.negative, progress=progress,
    )  # fmt: skip
    if not all(one.latents.isfinite().all() for one in drawn):
        raise CheckpointError(
            f"{files.unet}: draws NaN or Inf: its numbers grow too large, as float16's may on a card (`device='cpu'` "
            "draws in float32)"
        )
    return tuple(drawn)


def _free_memory() -> None:
    # Pipelines refer to themselves in circles; the next one is to find their memory free.
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class _Problems:
    """Problems of several files, told together."""

    def __init__(self) -> None:
        self._found: list[str] = []

    @contextmanager
    def collected(self, end: str = "") -> Iterator[None]:
        """Keep what an InputError says, `end` after each line of it, and go on."""
        try:
            yield
        except InputError as error:
            place = "" if error.field is None else f"`{error.field}`: "
            self._found.extend(f"{place}{problem}{end}" for problem in error.problems)

    def raise_any(self) -> None:
        """Raise an InputError if there are problems."""
        if self._found:
            raise InputError(dict.fromkeys(self._found))


@dataclass(frozen=True)
class _Shared:
    """The files that all columns have to go with."""

    target: Path
    configuration: Path
    vae: Path
    encoder: Path | None


def _plan(request: PreviewRequest, places: "_Places") -> _Plan:
    """Find all files and look into them; raises InputError with all problems that show without reading weights."""
    shared = _shared(request, places)
    problems = _Problems()
    entries, sources = _candidates(request, shared, places, problems)
    shown = {shared.target.resolve(), *(entry.path.resolve() for entry in entries)}
    wanted = [source for path, source in sources.items() if path not in shown] if request.with_sources else []
    names = [name for name, _ in wanted]
    for name, path in wanted:
        with problems.collected(" (`with_sources=False` leaves sources out)"):
            _check(path, shared)
            entries.append(_Entry(name if names.count(name) == 1 else f"{name} ({path.name})", "source", path))
    problems.raise_any()
    target = _Entry(_short_names([shared.target, *request.candidates])[0], "target", shared.target)
    return _Plan((target, *entries), shared.configuration, shared.vae, shared.encoder)


def _shared(request: PreviewRequest, places: "_Places") -> _Shared:
    problems = _Problems()
    target, encoder, vae = request.target, request.encoder_from, request.vae_from
    with problems.collected():
        encoder = None if encoder is None else _located(encoder, places, "encoder_from")
    with problems.collected():
        vae = None if vae is None else _located(vae, places, "vae_from")
    with problems.collected():
        if _is_recipe(target):
            raise RecipeError(f"{target} is a recipe; merge it first (`merge(RECIPE, output=FILE)`)", field="target")
        target = _located(target, places, "target")
        if vae is not None:
            open_vae(vae, drawn_layout(target), ()).close()
    problems.raise_any()
    configuration = pipeline_files(target, vae_from=vae, encoder_from=encoder).configuration
    return _Shared(target, configuration, target if vae is None else vae, encoder)


def _candidates(
    request: PreviewRequest, shared: _Shared, places: "_Places", problems: _Problems
) -> tuple[list[_Entry], dict[Path, tuple[str, Path]]]:
    """Return the columns of the candidates, and the models of those that are recipes, {file: (name, file as named)}."""
    entries, sources = list[_Entry](), dict[Path, tuple[str, Path]]()
    names = _short_names([shared.target, *request.candidates])[1:]
    for name, given in zip(names, request.candidates, strict=True):
        with problems.collected():
            path = _located(given, places)
            if any(path.resolve() == entry.path.resolve() for entry in entries):
                continue
            if not _is_recipe(path):
                _check(path, shared)
                entries.append(_Entry(name, "candidate", path))
                continue
            recipe, models = _finished_recipe(path, places)
            for model in models.values():
                _check_family(model, shared.target, shared.configuration)
            entries.append(_Entry(name, "candidate", path, recipe, models))
            for model_name, model in models.items():
                sources.setdefault(model.resolve(), (model_name, model))
    return entries, sources


class _Places(NamedTuple):
    """Where files are looked for, what is known of their hashes, and whether those of recipes' models must fit."""

    folders: Sequence[Path]
    hashes: HashCache | None
    progress: Progress | None
    check_hashes: bool


def _located(given: Path, places: _Places, field: str | None = None) -> Path:
    folders, hashes, progress, _ = places
    found = attempt(lambda: locate_given(given, folders, hashes=hashes, progress=progress), field=field)
    if found.is_dir():
        raise InputError(f"{given}: is a folder; name a file in it, such as its best.yaml", field=field)
    return found


def _is_recipe(path: Path) -> bool:
    return path.suffix.lower() in (".yaml", ".yml")


def _finished_recipe(path: Path, places: _Places) -> tuple[Recipe, dict[str, Path]]:
    """The recipe and the paths of the models that its output needs. Raises RecipeError if there are free alphas."""
    recipe = load_recipe(path)
    attempt(lambda: recipe.check_finished("drawn"), path)
    beside, *others = folders_of(recipe, path, places.folders)
    files = {name: recipe.models[name].file for name in recipe.sources()}
    hashes, progress = places.hashes, places.progress
    models = locate_models(files, beside, others, named_in=path, hashes=hashes, progress=progress)
    if places.check_hashes:
        check_noted_hashes(recipe.models, models, named_in=path, hashes=hashes, progress=progress)
    return recipe, models


def _check(path: Path, shared: _Shared) -> None:
    """Raise CheckpointError unless a checkpoint can be drawn as the target is, as far as shows without its weights."""
    found = pipeline_files(path, vae_from=shared.vae, encoder_from=shared.encoder).configuration
    if found != shared.configuration:
        raise CheckpointError(
            f"{path}: goes with the pipeline {found.name}, but {shared.target} with {shared.configuration.name}; all "
            "of a sheet must go with the same"
        )


def _check_family(path: Path, target: Path, configuration: Path) -> None:
    """Raise CheckpointError unless a model to be merged goes with the target's pipeline, or has no text encoder."""
    layout = drawn_layout(target)
    with open_checkpoint(path, layout=layout) as checkpoint:
        tokens = readable_encoder_of(layout).tokens
        if tokens in checkpoint.tensors and (found := pipeline_of(checkpoint, layout)) != configuration:
            raise CheckpointError(
                f"{path}: goes with the pipeline {found.name}, but {target} with {configuration.name}; all of a sheet "
                "must go with the same"
            )


def _short_names(paths: Sequence[Path]) -> list[str]:
    """The file names, with as many folders before them as tell different files of one name apart."""
    names = []
    for path in paths:
        others = [other.parts for other in paths if other != path]
        length = next(
            (n for n in range(1, len(path.parts)) if all(other[-n:] != path.parts[-n:] for other in others)),
            len(path.parts),
        )
        names.append(Path(*path.parts[-length:]).as_posix())
    return names


def _cut(prompt: str, tokenizer: Any) -> str | None:
    """What to tell a user whose prompt is longer than the text encoder takes."""
    with quietly():
        tokens = tokenizer(prompt, truncation=False).input_ids
        limit = tokenizer.model_max_length
        if len(tokens) <= limit:
            return None
        kept = tokenizer.decode(tokens[1 : limit - 1], skip_special_tokens=True).strip()
    # Each begins and ends with a token of its own.
    return (
        f"the prompt {_shortened(prompt)!r} has {len(tokens) - 2} tokens, the text encoder takes {limit - 2}: what "
        f"follows {kept[-40:]!r} is cut off"
    )


def _shortened(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:59]}…"


def _described(column: PreviewColumn) -> dict[str, Any]:
    vae_from = None if column.vae_from is None else str(column.vae_from)
    return {"name": column.name, "file": str(column.file), "vae_from": vae_from}
