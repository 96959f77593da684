"""Import a recipe from a text or a merged file; the error for any other file names its kind."""

import codecs
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from optimizer.checkpoints import kind_of_folder, kind_of_other_file, open_checkpoint
from optimizer.errors import RecipeError, attempt
from optimizer.families import Layout, load_layout
from optimizer.files import read_text
from optimizer.interchange.comfyui_workflow import is_workflow, read_workflow
from optimizer.interchange.embedded import recipe_from_metadata
from optimizer.interchange.mecha_text import is_mecha, read_mecha
from optimizer.interchange.mergekit_configuration import is_mergekit, read_mergekit
from optimizer.interchange.notation import Imported, read_notation
from optimizer.library import parsed
from optimizer.recipes import LARGEST_USUAL, Recipe, beyond_usual, read_presets

__all__ = ["import_merged", "import_text"]

_MOST_BYTES = 1 << 20  # of a text; an article has about 40,000, a workflow with picture settings 200,000
_LONGEST_HEADER = 100_000_000  # bytes, of a safetensors file
_MERGED = "sd_merge_recipe"
_EXPECTED = "must be a text with formulas, metadata, a .mecha text, mergekit's YAML or a ComfyUI workflow"
# First bytes of files that hold tensors, or may. `kind_of_other_file` knows the other kinds that are no text.
_TENSORS = {
    b"PK\x03\x04": "a zip archive (perhaps a checkpoint, whose name then ends in .ckpt or .pt)",
    b"\x80\x02": "a pickle, as old checkpoints are, whose name then ends in .ckpt or .pt",
}
_BY_NAME = ("text", "unfinished")  # kinds recognised by the file name alone
_PAGE = re.compile(r"\s*<(?:!doctype html|html|\?xml)", re.IGNORECASE)
_RECIPE = re.compile(r"^steps\s*:", re.MULTILINE)
_MODELS = re.compile(r"^models\s*:", re.MULTILINE)
_STAGES = re.compile(r"^stages\s*:", re.MULTILINE)


def import_text(
    path: Path | str,
    *,
    layout: str | None = None,
    mapping: str | None = None,
    presets: Path | str | None = None,
    with_parents: bool = False,
) -> Imported:
    """Return the recipe in the text file at `path`, and notes about it.

        import_text("article.txt").recipe

    `read_notation` reads texts with formulas, and SuperMerger's history and console. The file may also hold the
    metadata of a merged file as JSON, as WebUIs show it, an sd-mecha text, mergekit's YAML or a ComfyUI workflow.

    Args:
        path: The file, at most 1 MiB.
        layout: The layout of a text that names none, or the one that it names. Default: the one for which the text's
            lists of numbers have the right length, else sd1.
        mapping: The mapping of a text with formulas. Default: the one that the text declares.
        presets: A file with the presets of a text with formulas.
        with_parents: For metadata, replace models that were themselves merged with the steps that made them.

    Returns:
        The recipe and its warnings.

    Raises:
        RecipeError: If the file cannot be read, is of another kind, which the error names, or describes a merge that a
            recipe cannot express; also for an option that the kind of file does not take.

    """
    path = Path(path)
    text = _read(path)
    given = None if layout is None else attempt(lambda: load_layout(layout), field="layout")
    read = _other_tool(text, path, given, with_parents=with_parents)
    if read is not None:
        for option, value in (("mapping", mapping), ("presets", presets)):
            if value is not None:
                raise RecipeError(f"{path}: {option}: received {value}; the file contains its own, or needs none")
        recipe, warnings = read()
        _check_layout(recipe, given, path)
        return Imported(recipe, (*warnings, *_beyond_usual(recipe)))
    if with_parents:
        raise RecipeError(f"{path}: with_parents: a text of formulas holds no recipes of its models; merged files do")
    known = None if presets is None else read_presets(_read(Path(presets)))
    found = attempt(lambda: read_notation(text, name=path.stem, layout=given, mapping=mapping, presets=known), path)
    _check_layout(found.recipe, given, path)
    return found


def import_merged(path: Path | str, *, with_parents: bool = False) -> Imported:
    """Return the recipe by which the checkpoint at `path` was merged, from its metadata, and notes about it.

    Reads metadata of blockfit, SuperMerger, model-mixer, A1111, Forge, sd-mecha and ComfyUI. A file that cannot be read
    is a CheckpointError.

    Args:
        path: The merged file.
        with_parents: Replace models that were themselves merged with the steps that made them.

    Returns:
        The recipe and its warnings.

    Raises:
        RecipeError: If the file is no checkpoint, or its metadata holds no recipe that blockfit can express.

    """
    path = Path(path)
    with open_checkpoint(path) as checkpoint:
        metadata, kind, layout = checkpoint.metadata, checkpoint.kind, checkpoint.layout
    known = any(name in metadata for name in (_MERGED, "mecha_recipe")) or is_workflow(parsed(metadata.get("prompt")))
    if not known and kind is not None and not kind.whole:
        raise RecipeError(f"{path}: is {kind}; it holds no recipe")
    recipe, warnings = _of_metadata(metadata, path, layout, with_parents=with_parents)
    return Imported(recipe, (*warnings, *_beyond_usual(recipe)))


def _check_layout(recipe: Recipe, given: Layout | None, path: Path) -> None:
    """Raise RecipeError if a text names another layout than the one that was given."""
    if given is not None and recipe.layout.name != given.name:
        raise RecipeError(f"{path}: is of layout {recipe.layout.name}; received {given.name}", field="layout")


def _beyond_usual(recipe: Recipe) -> list[str]:
    """Return a warning for each step with an implausible alpha; in a text with formulas such an alpha is an error."""
    return [
        f"{step.name}.{name}: the weight {found[1]:g} ({found[0]}) is beyond {LARGEST_USUAL:g}; is it per cent?"
        for step in recipe.steps
        for name, alpha in step.alphas.items()
        if (found := beyond_usual(alpha)) is not None
    ]


def _other_tool(
    text: str, path: Path, layout: Layout | None, *, with_parents: bool
) -> "Callable[[], tuple[Recipe, tuple[str, ...] | list[str]]] | None":
    """Return a reader for another tool's text, None for a text with formulas; raise RecipeError for any other kind."""
    data = _json_in(text)
    if data is not None:
        metadata = _metadata_in(data)
        if metadata is not None:
            return lambda: _of_metadata(metadata, path, layout, with_parents=with_parents)
        if is_workflow(data):
            return lambda: _of_workflow(data, path, layout)
        raise RecipeError(f"{path}: is {_kind_of_json(data)}; {_EXPECTED}")
    if is_mecha(text):
        return lambda: _of_mecha(text, path)
    if is_mergekit(text):
        return lambda: attempt(lambda: read_mergekit(text, path.stem, layout), f"{path}: a mergekit configuration")
    if _RECIPE.search(text) and _MODELS.search(text):
        raise RecipeError(f"{path}: is already a recipe of blockfit; use it as it is")
    if _STAGES.search(text) and re.search(r"^recipe\s*:", text, re.MULTILINE):
        raise RecipeError(f"{path}: is a study of blockfit; import the recipe that it names instead")
    if _PAGE.match(text):
        raise RecipeError(f"{path}: is a web page; copy its text into a file")
    return None


def _of_metadata(
    metadata: Mapping[str, Any], path: Path, layout: Layout | None, *, with_parents: bool
) -> tuple[Recipe, tuple[str, ...] | list[str]]:
    """Return the recipe in a merged file's metadata; the fields of WebUIs come before sd-mecha's and ComfyUI's."""
    mecha, prompt = metadata.get("mecha_recipe"), parsed(metadata.get("prompt"))
    if _MERGED not in metadata and isinstance(mecha, str) and is_mecha(mecha):
        return _of_mecha(mecha, path)
    if _MERGED not in metadata and is_workflow(prompt):
        return _of_workflow(prompt, path, layout)
    return recipe_from_metadata(metadata, path, layout=layout, with_parents=with_parents)


def _of_workflow(data: Any, path: Path, layout: Layout | None) -> tuple[Recipe, list[str]]:
    """Return the recipe of a ComfyUI workflow; errors name the file."""
    return attempt(lambda: read_workflow(data, path.stem, layout), f"{path}: a ComfyUI workflow")


def _of_mecha(text: str, path: Path) -> tuple[Recipe, list[str]]:
    """Return the recipe of an sd-mecha text; errors name the file."""
    return attempt(lambda: read_mecha(text, path.stem), f"{path}: an sd-mecha recipe")


def _json_in(text: str) -> Any:
    """Return the JSON object or list in a text, also after the name of a metadata field; None if it holds none."""
    data = parsed(text)
    if not isinstance(data, str):
        return data
    # `sd_merge_recipe: {...}`, copied from a WebUI's page.
    found = {}
    for name in (_MERGED, "sd_merge_models"):
        place = re.search(rf"{name}[\"'\s]*[:=]\s*(?=[{{\"])", text)
        if place is not None:
            try:
                found[name], _ = json.JSONDecoder().raw_decode(text, place.end())
            except (ValueError, RecursionError):
                continue
    return found if _MERGED in found else None


def _metadata_in(data: Any) -> Mapping[str, Any] | None:
    """Return the metadata in parsed JSON: a whole header, its `__metadata__` or a recipe alone; None if it has none."""
    if not isinstance(data, Mapping):
        return None
    inner = data.get("__metadata__")
    for known in (data, inner if isinstance(inner, Mapping) else {}):
        if _MERGED in known or "mecha_recipe" in known:
            return known
    if isinstance(data.get("type"), str) and ("mode" in data or "interp_method" in data or "recipe" in data):
        return {_MERGED: data, "sd_merge_models": data.get("sd_merge_models", {})}
    return None


def _kind_of_json(data: Any) -> str:
    """Return the kind of JSON that holds no recipe, for a message."""
    if not isinstance(data, Mapping):
        return f"a JSON list of {len(data)}"
    if "_class_name" in data:
        return f"a diffusers configuration ({str(data['_class_name'])[:60]})"
    if any(str(key).startswith("ss_") for key in data):
        return "the metadata of a LoRA"
    listed = ", ".join(repr(str(key)[:40]) for key in list(data)[:6])
    return f"a JSON object with {listed or 'nothing in it'}{', ...' if len(data) > 6 else ''}"


def _kind_of_bytes(path: Path) -> str | None:
    """Return the kind of a file that is no text, by its first bytes; None if it may be a text or cannot be read."""
    if os.path.isdir(path):
        return str(kind_of_folder(path))
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except (OSError, ValueError):  # reading it as a text raises the error
        return None
    if start[8:9] == b"{" and 0 < int.from_bytes(start[:8], "little") < _LONGEST_HEADER:
        return "a safetensors file; its name must end in .safetensors"
    for magic, kind in _TENSORS.items():
        if start.startswith(magic):
            return kind
    found = kind_of_other_file(path, start) if start else None
    if found is None or found.name in _BY_NAME or (_is_text(start) and found.name != "git-lfs-pointer"):
        return None
    return str(found)


def _is_text(start: bytes) -> bool:
    """Return whether bytes can begin a UTF-8 text, which may start like an archive: `bzhMix`."""
    try:
        return "\0" not in codecs.getincrementaldecoder("utf-8")().decode(start)
    except UnicodeDecodeError:
        return False


def _read(path: Path) -> str:
    """Return the text of a file in UTF-8 or UTF-16, or raise RecipeError."""
    kind = _kind_of_bytes(path)
    if kind is not None:
        raise RecipeError(f"{path}: is {kind}; {_EXPECTED}")
    data = read_text(path, RecipeError, most=_MOST_BYTES)
    try:
        # Windows' editor begins a UTF-16 text with a byte order mark. A text without one is UTF-8.
        utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        return data.decode("utf-16" if utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecipeError(
            f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8 and try again"
        ) from None
