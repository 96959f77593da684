"""Draw contact sheets of a target, candidates and their sources, all from the same noise, with their distances."""

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

import torch
from PIL import Image

from optimizer.checkpoints import open_checkpoint, open_vae, pipeline_of, readable_encoder_of
from optimizer.choices import PictureRole
from optimizer.errors import CheckpointError, InputError, RecipeError, attempt
from optimizer.events import CallbackEvents, Events, ProgressOption
from optimizer.extras import require
from optimizer.families import load_tokenizer
from optimizer.files import atomic_path, check_output, temporary_folder
from optimizer.library import HashCache, Library
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
from optimizer.similarity import chosen_device

__all__ = ["Preview", "PreviewColumn", "PreviewRequest", "draw_preview", "preview", "write_preview"]

_SMALLEST = 128  # pixels, the least width at which pictures are shown

_Built = TypeVar("_Built")


@dataclass(frozen=True)
class PreviewColumn:
    """The pictures of one file.

    Attributes:
        name: The column's title.
        role: "target", "candidate" or "source".
        file: The checkpoint or recipe.
        vae_from: The file that the VAE was taken from; None if the file has one.
        drawn: One picture for every prompt and seed, all seeds of the first prompt first.

    """

    name: str
    role: PictureRole
    file: Path
    vae_from: Path | None
    drawn: tuple[Drawn, ...]


@dataclass(frozen=True)
class Preview:
    """The pictures of a target and of the files compared with it, and their settings.

    Attributes:
        target: The target's column.
        others: The columns of candidates, then of sources.
        pipeline: The name of the pipeline configuration.
        steps: The number of steps of DDIM.
        guidance: The guidance.
        negative: The negative prompt.
        encoder_from: The file whose text encoder all columns have; None if each column has its own.

    """

    target: PreviewColumn
    others: tuple[PreviewColumn, ...]
    pipeline: str
    steps: int
    guidance: float
    negative: str
    encoder_from: Path | None

    def latent_distances(self, column: PreviewColumn) -> tuple[float, ...]:
        """Return the root mean square difference to the target's final latents, for each picture of a column."""
        return tuple(map(latent_distance, column.drawn, self.target.drawn))

    def pixel_distances(self, column: PreviewColumn) -> tuple[float, ...]:
        """Return the root mean square difference to the target's pixels, RGB in [0, 1], for each picture."""
        return tuple(map(pixel_distance, column.drawn, self.target.drawn))

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes on text encoders and VAEs that were taken from other files."""
        notes = []
        if self.encoder_from is not None:
            notes.append(f"text encoder of all columns: {self.encoder_from.name}")
        borrowed = [column for column in (self.target, *self.others) if column.vae_from is not None]
        notes += [
            f"{column.name} has no VAE: drawn with that of {column.vae_from.name}"
            for column in borrowed
            if column.vae_from
        ]
        return tuple(notes)

    def sheet(self) -> Image.Image:
        """Return the contact sheet: files in columns, prompts and seeds in rows, distances below the pictures."""
        columns = (self.target, *self.others)
        distances = [
            [("", "")] * len(self.target.drawn),
            *(
                [
                    (f"latent {latent:#.3g}", f"pixel {pixel:#.3g}")
                    for latent, pixel in zip(self.latent_distances(column), self.pixel_distances(column), strict=True)
                ]
                for column in self.others
            ),
        ]
        rows, captions = {}, {}
        for position, drawn in enumerate(self.target.drawn):
            label = f"{drawn.prompt.strip() or '(empty prompt)'}\nseed {drawn.seed}"
            while label in rows:  # prompts may differ only in spaces
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
        """Return the settings and each column's distances to the target, mean and by picture, for JSON."""
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
    """Request for a contact sheet: its files and settings.

    Attributes:
        target: The checkpoint that the others are compared with.
        candidates: Checkpoints, or recipes (.yaml) without free alphas.
        prompts: The prompts; each has a row for each seed. Duplicates among prompts and seeds are dropped.
        seeds: The seeds of the noise.
        steps: The number of steps of DDIM.
        guidance: The guidance, at least 1. Default: the guidance of the pipeline.
        negative: The negative prompt.
        encoder_from: A checkpoint whose text encoder all columns use, so that only differences of the UNets show.
        vae_from: A file whose VAE is used for files without one. Default: the target.
        with_sources: Draw the models of recipes after the candidates, each once.
        check_hashes: Require the sha256 that recipes note for their models.

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
    seeds: Sequence[int] = PreviewRequest.seeds,
    steps: int = PreviewRequest.steps,
    guidance: float | None = PreviewRequest.guidance,
    negative: str = PreviewRequest.negative,
    encoder_from: Path | str | None = PreviewRequest.encoder_from,
    vae_from: Path | str | None = PreviewRequest.vae_from,
    with_sources: bool = PreviewRequest.with_sources,
    folders: Sequence[Path] = (),
    check_hashes: bool = PreviewRequest.check_hashes,
    hashes: HashCache | None = None,
    device: str | torch.device = "auto",
    progress: ProgressOption = None,
    warn: Callable[[str], None] | None = None,
) -> Preview:
    """Draw a target, candidates and their sources from the same noise, and write the contact sheet `output`, a .png.

        preview("closed.safetensors", ["my-study/best.yaml"], "sheet.png", prompts=["a cat"], seeds=[1, 2]).sheet()

    Raises the errors of `write_preview`.

    Args:
        target: See `PreviewRequest`.
        candidates: See `PreviewRequest`.
        output: The .png to write.
        prompts: See `PreviewRequest`.
        seeds: See `PreviewRequest`.
        steps: See `PreviewRequest`.
        guidance: See `PreviewRequest`.
        negative: See `PreviewRequest`.
        encoder_from: See `PreviewRequest`.
        vae_from: See `PreviewRequest`.
        with_sources: See `PreviewRequest`.
        folders: See `write_preview`.
        check_hashes: See `PreviewRequest`.
        hashes: See `write_preview`.
        device: See `write_preview`.
        progress: See `write_preview`.
        warn: See `write_preview`.

    Returns:
        The pictures and their distances.

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
    device: str | torch.device = "auto",
    progress: ProgressOption = None,
    warn: Callable[[str], None] | None = None,
) -> Preview:
    """Draw the requested files from the same noise, and write the contact sheet `output`, a .png.

    Each recipe is merged in float16 into a temporary file beside `output`. The file takes as much disk as a checkpoint
    and is removed after drawing. Checkpoints are opened one after another. After an error an existing `output` stays as
    it was.

    Args:
        request: Files and settings.
        output: The .png to write.
        folders: Further folders in which to look for files and for the models of recipes.
        hashes: A cache of the files' hashes, for files that are named by hash.
        device: The torch device for drawing, or its name: auto (a GPU if one is available), cpu, cuda.
        progress: Called with a title, the steps done and their total.
        warn: Called with a line for each prompt that is longer than the text encoder's limit.

    Returns:
        The pictures and their distances.

    Raises:
        InputError: If the libraries for drawing are not installed; before drawing, with a line for each problem: files
            that are missing, broken, cannot be drawn or need different pipelines, recipes with free alphas, steps that
            `check_steps` refuses, an output that cannot be written; and for pictures with NaN or Inf.

    """
    require("pictures", "a preview")
    output = Path(output)
    if output.suffix.lower() != ".png":
        raise InputError(f"{output}: a sheet is written as .png; give the output this extension")
    for recipe in filter(_is_recipe, request.candidates):
        check_output(output, beside=recipe)
    with atomic_path(output) as temporary:
        try:
            temporary.touch()  # fail before the drawing, not after it
        except OSError as error:
            raise InputError(f"{output}: the folder cannot be written to ({error.strerror})") from error
        found = draw_preview(
            request, temporary.parent, folders=folders, hashes=hashes, device=device, progress=progress, warn=warn
        )
        found.sheet().save(temporary, format="png")
    return found


def draw_preview(
    request: PreviewRequest,
    scratch: Path,
    *,
    folders: Sequence[Path] = (),
    hashes: HashCache | None = None,
    device: str | torch.device = "auto",
    progress: ProgressOption = None,
    warn: Callable[[str], None] | None = None,
) -> Preview:
    """Draw the requested files from the same noise, without a contact sheet.

    Raises the errors of `write_preview`.

    Args:
        request: Files and settings.
        scratch: The folder for the merges of recipes, which are removed after drawing.
        folders: See `write_preview`.
        hashes: See `write_preview`.
        device: See `write_preview`.
        progress: See `write_preview`.
        warn: See `write_preview`.

    Returns:
        The pictures and their distances.

    """
    require("pictures", "a preview")
    library = Library(tuple(map(Path, folders)), hashes, CallbackEvents.of(progress, warn))
    plan = _plan(request, library)
    return _draw_all(plan, _settings(request, plan, chosen_device(device), library.events), scratch, library.events)


@dataclass(frozen=True)
class _Settings:
    """Settings with which the pictures of all columns are drawn."""

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    steps: int
    guidance: float
    negative: str
    device: torch.device
    tokenizer: Any


def _settings(request: PreviewRequest, plan: "_Plan", device: torch.device, events: Events) -> _Settings:
    """Return the settings of all columns, or raise InputError for a number of steps that `check_steps` refuses."""
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
        if cut := _cut(prompt, tokenizer):
            events.warn(cut)
    return settings


def _draw_all(plan: "_Plan", settings: _Settings, scratch: Path, events: Events) -> Preview:
    """Draw all columns, recipes first."""
    # A disk too small for the merged recipes then shows before hours of drawing, not after.
    ordered = sorted(plan.entries, key=lambda entry: entry.recipe is None)
    columns = {entry: _column(entry, plan, settings, scratch, events) for entry in ordered}
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
    """A planned column: the checkpoint at `path`, or the merge of `models` by the recipe there."""

    name: str
    role: PictureRole
    path: Path
    recipe: Recipe | None = None
    models: Mapping[str, Path] = field(default_factory=dict)

    @contextmanager
    def checkpoint(self, scratch: Path, events: Events) -> Iterator[Path]:
        """Yield the checkpoint; for a recipe, its merge in a temporary file below `scratch`."""
        recipe = self.recipe
        if recipe is None:
            yield self.path
            return

        def merging(_: str, done: int, total: int) -> None:
            events.progress(f"merging {self.name}", done, total)

        with temporary_folder(scratch) as folder:
            merged = folder / "merged.safetensors"
            attempt(
                # The hashes were checked before drawing began.
                lambda: merge(recipe, self.models, merged, embed_recipe=False, check_hashes=False, progress=merging),
                f"{self.path}: merging it into a temporary file",
            )
            yield merged

    def attempt(self, build: Callable[[], _Built]) -> _Built:
        """Return the result of `build`; errors about a merged file name the recipe, which the user knows."""
        return build() if self.recipe is None else attempt(build, f"{self.path}: drawing its merge")


@dataclass(frozen=True)
class _Plan:
    """The planned columns, the target's first, and the files that all of them use."""

    entries: tuple[_Entry, ...]
    configuration: Path
    vae: Path
    encoder: Path | None


def _column(entry: _Entry, plan: _Plan, settings: _Settings, scratch: Path, events: Events) -> PreviewColumn:
    """Draw a planned column."""
    with entry.checkpoint(scratch, events) as checkpoint:
        files = entry.attempt(lambda: pipeline_files(checkpoint, vae_from=plan.vae, encoder_from=plan.encoder))
        drawing = partial(events.progress, f"drawing {entry.name}")
        drawn = entry.attempt(lambda: _drawn(files, plan.encoder, settings, drawing))
    _free_memory()
    return PreviewColumn(entry.name, entry.role, entry.path, None if files.vae == checkpoint else files.vae, drawn)


def _drawn(
    files: PipelineFiles, encoder: Path | None, settings: _Settings, progress: Callable[[int, int], None]
) -> tuple[Drawn, ...]:
    """Return a checkpoint's pictures, or raise CheckpointError for NaN or Inf."""
    pipeline = open_pipeline(
        files.unet, vae_from=files.vae, encoder_from=encoder, tokenizer=settings.tokenizer, device=settings.device
    )
    drawn = draw(
        pipeline, prompts=settings.prompts, seeds=settings.seeds, steps=settings.steps, guidance=settings.guidance,
        negative=settings.negative, progress=progress,
    )  # fmt: skip
    if not all(picture.latents.isfinite().all() for picture in drawn):
        raise CheckpointError(
            f"{files.unet}: draws NaN or Inf: its numbers exceed the range of their dtype, float16 on a GPU "
            "(`device='cpu'` draws in float32)"
        )
    return tuple(drawn)


def _free_memory() -> None:
    """Free the memory of closed pipelines for the next one."""
    # Pipelines contain reference cycles, which only the collector frees.
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class _Problems:
    """Problems of several files, raised together."""

    def __init__(self) -> None:
        self._found: list[str] = []

    @contextmanager
    def collected(self, end: str = "") -> Iterator[None]:
        """Keep the lines of an InputError, each with `end` appended, instead of raising it."""
        try:
            yield
        except InputError as error:
            place = "" if error.field is None else f"`{error.field}`: "
            self._found.extend(f"{place}{problem}{end}" for problem in error.problems)

    def raise_any(self) -> None:
        """Raise InputError if there are problems."""
        if self._found:
            raise InputError(dict.fromkeys(self._found))


@dataclass(frozen=True)
class _Shared:
    """The target, and the files that all columns share with it."""

    target: Path
    configuration: Path
    vae: Path
    encoder: Path | None


def _plan(request: PreviewRequest, library: Library) -> _Plan:
    """Find and check all files, or raise InputError with all problems that show without reading weights."""
    shared = _shared(request, library)
    problems = _Problems()
    entries, sources = _candidates(request, shared, library, problems)
    shown = {shared.target.resolve(), *(entry.path.resolve() for entry in entries)}
    added = [source for path, source in sources.items() if path not in shown] if request.with_sources else []
    names = [name for name, _ in added]
    for name, path in added:
        with problems.collected(" (`with_sources=False` leaves sources out)"):
            _check(path, shared)
            entries.append(_Entry(name if names.count(name) == 1 else f"{name} ({path.name})", "source", path))
    problems.raise_any()
    target = _Entry(_short_names([shared.target, *request.candidates])[0], "target", shared.target)
    return _Plan((target, *entries), shared.configuration, shared.vae, shared.encoder)


def _shared(request: PreviewRequest, library: Library) -> _Shared:
    """Find and check the target and the files that all columns share, or raise InputError."""
    problems = _Problems()
    target, encoder, vae = request.target, request.encoder_from, request.vae_from
    with problems.collected():
        encoder = None if encoder is None else _located(encoder, library, "encoder_from")
    with problems.collected():
        vae = None if vae is None else _located(vae, library, "vae_from")
    with problems.collected():
        if _is_recipe(target):
            raise RecipeError(f"{target} is a recipe; merge it first (`merge(RECIPE, output=FILE)`)", field="target")
        target = _located(target, library, "target")
        if vae is not None:
            open_vae(vae, drawn_layout(target), ()).close()
    problems.raise_any()
    configuration = pipeline_files(target, vae_from=vae, encoder_from=encoder).configuration
    return _Shared(target, configuration, target if vae is None else vae, encoder)


def _candidates(
    request: PreviewRequest, shared: _Shared, library: Library, problems: _Problems
) -> tuple[list[_Entry], dict[Path, tuple[str, Path]]]:
    """Return the columns of the candidates, and the models of recipes, {file: (name, file as named)}."""
    entries, sources = list[_Entry](), dict[Path, tuple[str, Path]]()
    names = _short_names([shared.target, *request.candidates])[1:]
    for name, given in zip(names, request.candidates, strict=True):
        with problems.collected():
            path = _located(given, library)
            if any(path.resolve() == entry.path.resolve() for entry in entries):
                continue
            if not _is_recipe(path):
                _check(path, shared)
                entries.append(_Entry(name, "candidate", path))
                continue
            recipe, models = _finished_recipe(path, library, check_hashes=request.check_hashes)
            for model in models.values():
                _check_family(model, shared.target, shared.configuration)
            entries.append(_Entry(name, "candidate", path, recipe, models))
            for model_name, model in models.items():
                sources.setdefault(model.resolve(), (model_name, model))
    return entries, sources


def _located(given: Path, library: Library, field: str | None = None) -> Path:
    """Return the path of a file that the user named, or raise InputError with its field."""
    found = attempt(lambda: library.find_given(given), field=field)
    if found.is_dir():
        raise InputError(f"{given}: is a folder; name a file in it, for example its best.yaml", field=field)
    return found


def _is_recipe(path: Path) -> bool:
    """Return whether a file is a recipe, by its extension."""
    return path.suffix.lower() in (".yaml", ".yml")


def _finished_recipe(path: Path, library: Library, *, check_hashes: bool) -> tuple[Recipe, dict[str, Path]]:
    """Return a recipe and the files of the models that its output needs, or raise RecipeError for free alphas."""
    recipe = load_recipe(path)
    attempt(lambda: recipe.check_finished("drawn"), path)
    beside, *others = folders_of(recipe, path, library.folders)
    files = {name: recipe.models[name].file for name in recipe.sources()}
    models = library.within(others).all_models(files, beside, named_in=path)
    if check_hashes:
        check_noted_hashes(recipe.models, models, library, named_in=path)
    return recipe, models


def _check(path: Path, shared: _Shared) -> None:
    """Raise CheckpointError unless a checkpoint needs the target's pipeline; reads no weights."""
    found = pipeline_files(path, vae_from=shared.vae, encoder_from=shared.encoder).configuration
    if found != shared.configuration:
        raise CheckpointError(
            f"{path}: needs the pipeline {found.name}, but {shared.target} needs {shared.configuration.name}; all "
            "files of a sheet must need the same"
        )


def _check_family(path: Path, target: Path, configuration: Path) -> None:
    """Raise CheckpointError if a model to be merged has a text encoder for another pipeline than the target's."""
    layout = drawn_layout(target)
    with open_checkpoint(path, layout=layout) as checkpoint:
        tokens = readable_encoder_of(layout).tokens
        if tokens in checkpoint.tensors and (found := pipeline_of(checkpoint, layout)) != configuration:
            raise CheckpointError(
                f"{path}: needs the pipeline {found.name}, but {target} needs {configuration.name}; all files of a "
                "sheet must need the same"
            )


def _short_names(paths: Sequence[Path]) -> list[str]:
    """Return the file names, preceded by as many folders as distinguish different files of the same name."""
    names = []
    for path in paths:
        others = [candidate.parts for candidate in paths if candidate != path]
        length = next(
            (n for n in range(1, len(path.parts)) if all(parts[-n:] != path.parts[-n:] for parts in others)),
            len(path.parts),
        )
        names.append(Path(*path.parts[-length:]).as_posix())
    return names


def _cut(prompt: str, tokenizer: Any) -> str | None:
    """Return a warning for a prompt that is longer than the text encoder's limit, else None."""
    with quietly():
        tokens = tokenizer(prompt, truncation=False).input_ids
        limit = tokenizer.model_max_length
        if len(tokens) <= limit:
            return None
        kept = tokenizer.decode(tokens[1 : limit - 1], skip_special_tokens=True).strip()
    # A text begins and ends with a special token, which the user's count leaves out.
    return (
        f"the prompt {_shortened(prompt)!r} has {len(tokens) - 2} tokens, the text encoder takes {limit - 2}: "
        f"everything after {kept[-40:]!r} is cut off"
    )


def _shortened(text: str) -> str:
    """Return the text, shortened to 60 characters."""
    return text if len(text) <= 60 else f"{text[:59]}…"


def _described(column: PreviewColumn) -> dict[str, Any]:
    """Return a column's name and files for JSON."""
    vae_from = None if column.vae_from is None else str(column.vae_from)
    return {"name": column.name, "file": str(column.file), "vae_from": vae_from}
