"""Pictures of a study's target and clone from the same noise, which previews leave in its folder for the report."""

import base64
import hashlib
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import pydantic
import torch

from optimizer.errors import InputError
from optimizer.events import CallbackEvents, ProgressOption
from optimizer.files import read_text, replace_text, temporary_folder
from optimizer.interchange import write_notation
from optimizer.library import HashCache, Library
from optimizer.printable import printable
from optimizer.recipes import Recipe, load_recipe
from optimizer.studies import Study, StudyFolder, load_study

if TYPE_CHECKING:
    from PIL.Image import Image

    from optimizer.pictures import Preview
    from optimizer.pictures.preview import PreviewColumn

__all__ = ["DrawnPair", "DrawnPairs", "draw_pairs", "keep_pairs", "load_pairs"]

MOST_PAIRS = 6
# Pictures of at most this width are stored without loss; the demo's digits are 28 pixels wide.
_SMALL = 128
_WIDEST = 768
_QUALITY = 90
_LARGEST = 40 << 20  # bytes of a file that is read

_Encoded = Annotated[str, pydantic.StringConstraints(pattern=r"^[A-Za-z0-9+/]+={0,2}$")]


class DrawnPair(pydantic.BaseModel, frozen=True, extra="forbid"):
    """A prompt drawn by the target and by the clone, from the same noise.

    Attributes:
        prompt: The prompt.
        seed: The seed of the noise.
        distance: Root mean square difference of the pixels, RGB in [0, 1].
        width: Width of the pictures in pixels.
        target: The target's picture, WebP in base64.
        clone: The clone's picture, likewise.

    """

    prompt: Annotated[str, pydantic.StringConstraints(max_length=10_000)]
    seed: int
    distance: Annotated[float, pydantic.Field(ge=0, le=1)]
    width: Annotated[int, pydantic.Field(ge=1, le=_WIDEST)]
    target: _Encoded
    clone: _Encoded


class DrawnPairs(pydantic.BaseModel, frozen=True, extra="forbid"):
    """The pictures of a study's target and clone.

    Attributes:
        version: The version of the file's form.
        recipe: SHA-256 of the clone's recipe in SuperMerger's notation.
        settings: The settings of the pictures in words.
        pairs: The pictures, at most `MOST_PAIRS`.

    """

    version: Literal[1] = 1
    recipe: str
    settings: str
    pairs: Annotated[tuple[DrawnPair, ...], pydantic.Field(min_length=1, max_length=MOST_PAIRS)]

    def are_of(self, *recipes: Recipe) -> bool:
        """Return whether the clone was drawn with one of these recipes."""
        return self.recipe in map(_mark, recipes)


def keep_pairs(preview: "Preview") -> list[Path]:
    """Store the pictures of a preview in the folders of the studies whose best recipes were drawn.

    A candidate counts if it is the best.yaml or best.simple.yaml of a study, and the preview's target has the name of
    the study's.

    Args:
        preview: The pictures.

    Returns:
        The written files, one for each study.

    """
    written = []
    for column in preview.others:
        folder = StudyFolder(column.file.parent)
        if column.file.name not in (folder.best.name, folder.simple.name) or folder.pictures in written:
            continue
        try:
            study = load_study(column.file.parent, with_files=False)
        except InputError:  # a best.yaml away from its study
            continue
        if Path(study.target_file.replace("\\", "/")).stem != preview.target.file.stem:
            continue
        _keep(preview, column, folder)
        written.append(folder.pictures)
    return written


def draw_pairs(
    study: Study,
    prompts: Sequence[str],
    seeds: Sequence[int] = (0,),
    *,
    folders: Sequence[Path | str] = (),
    hashes: HashCache | None = None,
    device: str | torch.device = "auto",
    progress: ProgressOption = None,
    warn: Callable[[str], None] | None = None,
) -> None:
    """Draw a study's target and its best recipe from the same noise, and store the pictures in its folder.

    The errors of `draw_preview` pass through.

    Args:
        study: The study.
        prompts: The prompts.
        seeds: The seeds of the noise.
        folders: Further folders in which to look for checkpoints.
        hashes: A cache of the files' hashes.
        device: The torch device for drawing.
        progress: Called with a title, the steps done and their total.
        warn: Called with a line for each prompt that is longer than the text encoder's limit.

    Raises:
        InputError: If the study has no best.yaml, or its target is not found.

    """
    from optimizer.pictures import PreviewRequest, draw_preview  # noqa: PLC0415  needs an extra

    outputs = study.outputs
    if not outputs.best.is_file():
        raise InputError(f"{outputs.best}: not there yet, so there is no clone to draw; fit the study first")
    places = tuple(map(Path, folders))
    library = Library(places, hashes, CallbackEvents.of(progress, warn))
    target = library.find(study.target_file, study.folder)
    if target is None:
        raise InputError(f"target: {library.not_found(study.target_file, study.folder)}")
    request = PreviewRequest(target, (outputs.best,), tuple(prompts), tuple(seeds), with_sources=False)
    with temporary_folder(outputs.path) as scratch:
        found = draw_preview(
            request, scratch, folders=places, hashes=hashes, device=device, progress=progress, warn=warn
        )
    _keep(found, found.others[0], outputs)


def load_pairs(folder: StudyFolder) -> DrawnPairs | None:
    """Return the pictures that the last preview of a study left in its folder; None if there are none.

    Raises:
        InputError: If the file is not what a preview writes.

    """
    path = folder.pictures
    if not path.is_file():
        return None
    try:
        return DrawnPairs.model_validate_json(read_text(path, InputError, most=_LARGEST))
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise InputError(
            f"{path}: {place}: {printable(first['msg'])}; a preview writes this file; delete it and draw again"
        ) from None


def _keep(preview: "Preview", column: "PreviewColumn", folder: StudyFolder) -> None:
    """Store the pictures of a preview's column in a study's folder."""
    replace_text(folder.pictures, _pairs_of(preview, column, load_recipe(column.file)).model_dump_json(indent=1))


def _pairs_of(preview: "Preview", column: "PreviewColumn", recipe: Recipe) -> DrawnPairs:
    distances = preview.pixel_distances(column)
    settings = f"{preview.steps} DDIM steps, guidance {preview.guidance:g}"
    if preview.negative:
        settings += f", negative prompt: {printable(preview.negative)}"
    if preview.encoder_from is not None:
        settings += f", text encoder of {printable(preview.encoder_from.name)}"
    pairs = [
        DrawnPair(
            prompt=target.prompt,
            seed=target.seed,
            distance=min(distance, 1.0),
            width=min(target.picture.width, _WIDEST),
            target=_encoded(target.picture),
            clone=_encoded(clone.picture),
        )
        for target, clone, distance in zip(preview.target.drawn, column.drawn, distances, strict=True)
    ]
    return DrawnPairs(recipe=_mark(recipe), settings=settings, pairs=tuple(pairs[:MOST_PAIRS]))


def _encoded(picture: "Image") -> str:
    """Return a picture as WebP in base64."""
    if picture.width > _WIDEST:
        picture = picture.resize((_WIDEST, round(picture.height * _WIDEST / picture.width)))
    stream = io.BytesIO()
    picture.save(stream, format="webp", lossless=picture.width <= _SMALL, quality=_QUALITY)
    return base64.b64encode(stream.getvalue()).decode("ascii")


def _mark(recipe: Recipe) -> str:
    return hashlib.sha256(write_notation(recipe.trimmed()).encode("utf-8")).hexdigest()
