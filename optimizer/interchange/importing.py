"""A recipe out of a file, whatever tool or hand wrote it; what is none that blockfit reads is told by its kind."""

import codecs
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from optimizer.checkpoints import kind_of_folder, kind_of_other_file, open_checkpoint
from optimizer.errors import RecipeError, attempt
from optimizer.files import read_text
from optimizer.interchange.comfyui_workflow import is_workflow, read_workflow
from optimizer.interchange.embedded import recipe_from_metadata
from optimizer.interchange.mecha_text import is_mecha, read_mecha
from optimizer.interchange.mergekit_configuration import is_mergekit, read_mergekit
from optimizer.interchange.notation import Imported, read_notation
from optimizer.library import parsed
from optimizer.recipes import LARGEST_USUAL, Recipe, beyond_usual, read_presets

__all__ = ["import_merged", "import_text"]

_MOST_BYTES = 1 << 20  # of a text; the article has some 40,000, and a workflow with its pictures' settings 200,000
_LONGEST_HEADER = 100_000_000  # bytes, of a safetensors file
_MERGED = "sd_merge_recipe"
_WANTED = "a text with formulas, metadata, a .mecha text, mergekit's YAML or a ComfyUI workflow was expected"
# How files begin that hold tensors, or may; of what else is no text, the table beside the checkpoints' readers tells.
_TENSORS = {
    b"PK\x03\x04": "a zip archive (perhaps a checkpoint, whose name then ends in .ckpt or .pt)",
    b"\x80\x02": "a pickle, as old checkpoints are, whose name then ends in .ckpt or .pt",
}
_BY_NAME = ("text", "unfinished")  # kinds that the table knows by their names alone
_PAGE = re.compile(r"\s*<(?:!doctype html|html|\?xml)", re.IGNORECASE)
_RECIPE = re.compile(r"^steps\s*:", re.MULTILINE)
_MODELS = re.compile(r"^models\s*:", re.MULTILINE)
_STAGES = re.compile(r"^stages\s*:", re.MULTILINE)


def import_text(
    path: Path | str,
    *,
    mapping: str | None = None,
    presets: Path | str | None = None,
    with_parents: bool = False,
) -> Imported:
    """Return the recipe in the file at `path`, and what to know about it.

        import_text("article.txt").recipe

    A text is read by `read_notation`, with the presets in another file. So are SuperMerger's history and console. Read
    too: metadata of a merged file as JSON, as WebUIs show it (`with_parents` then puts in the steps of models that were
    merged themselves), sd-mecha's texts, mergekit's YAML and ComfyUI's workflows, as far as a recipe can say them.

    Raises RecipeError, naming the file; for a file of another kind with the kind that it is.
    """
    path = Path(path)
    text = _read(path)
    other = _other_tool(text, path, with_parents=with_parents)
    if other is not None:
        for option, value in (("mapping", mapping), ("presets", presets)):
            if value is not None:
                raise RecipeError(f"{path}: {option}: received {value}; the file tells that itself, or needs none")
        recipe, warnings = other()
        return Imported(recipe, (*warnings, *_beyond_usual(recipe)))
    if with_parents:
        raise RecipeError(f"{path}: with_parents: a text of formulas holds no recipes of its models; merged files do")
    known = None if presets is None else read_presets(_read(Path(presets)))
    return attempt(lambda: read_notation(text, name=path.stem, mapping=mapping, presets=known), path)


def import_merged(path: Path | str, *, with_parents: bool = False) -> Imported:
    """Return the recipe by which the checkpoint at `path` was merged, from its metadata, and what to know about it.

    Reads what blockfit, SuperMerger, model-mixer, A1111 and Forge, sd-mecha and ComfyUI leave there. `with_parents`
    puts the steps of models that were merged themselves in their place. Raises CheckpointError for a file that cannot
    be read, and RecipeError, naming it, for one that tells no recipe or is no checkpoint.
    """
    path = Path(path)
    with open_checkpoint(path) as checkpoint:
        metadata, kind = checkpoint.metadata, checkpoint.kind
    told = any(name in metadata for name in (_MERGED, "mecha_recipe")) or is_workflow(parsed(metadata.get("prompt")))
    if not told and kind is not None and not kind.whole:
        raise RecipeError(f"{path}: is {kind}; it holds no recipe")
    recipe, warnings = _of_metadata(metadata, path, with_parents=with_parents)
    return Imported(recipe, (*warnings, *_beyond_usual(recipe)))


def _beyond_usual(recipe: Recipe) -> list[str]:
    """What to say of alphas that a tool used and that are hardly meant; a text that a person wrote is refused."""
    return [
        f"{step.name}.{name}: the weight {found[1]:g} ({found[0]}) is beyond {LARGEST_USUAL:g}; is it per cent?"
        for step in recipe.steps
        for name, alpha in step.alphas.items()
        if (found := beyond_usual(alpha)) is not None
    ]


def _other_tool(
    text: str, path: Path, *, with_parents: bool
) -> "Callable[[], tuple[Recipe, tuple[str, ...] | list[str]]] | None":
    """What reads a text that is no notation; None if it is. Raises RecipeError for what is neither."""
    data = _json_in(text)
    if data is not None:
        metadata = _metadata_in(data)
        if metadata is not None:
            return lambda: _of_metadata(metadata, path, with_parents=with_parents)
        if is_workflow(data):
            return lambda: _of_workflow(data, path)
        raise RecipeError(f"{path}: is {_kind_of_json(data)}; {_WANTED}")
    if is_mecha(text):
        return lambda: _of_mecha(text, path)
    if is_mergekit(text):
        return lambda: attempt(lambda: read_mergekit(text, path.stem), f"{path}: a mergekit configuration")
    if _RECIPE.search(text) and _MODELS.search(text):
        raise RecipeError(f"{path}: is a recipe of blockfit's already; use it as it is")
    if _STAGES.search(text) and re.search(r"^recipe\s*:", text, re.MULTILINE):
        raise RecipeError(f"{path}: is a study of blockfit's; its recipe is the file that it names")
    if _PAGE.match(text):
        raise RecipeError(f"{path}: is a web page; copy its text into a file")
    return None


def _of_metadata(
    metadata: Mapping[str, Any], path: Path, *, with_parents: bool
) -> tuple[Recipe, tuple[str, ...] | list[str]]:
    """The recipe in a merged file's metadata: WebUIs' first, then what sd-mecha and ComfyUI leave there."""
    mecha, prompt = metadata.get("mecha_recipe"), parsed(metadata.get("prompt"))
    if _MERGED not in metadata and isinstance(mecha, str) and is_mecha(mecha):
        return _of_mecha(mecha, path)
    if _MERGED not in metadata and is_workflow(prompt):
        return _of_workflow(prompt, path)
    return recipe_from_metadata(metadata, path, with_parents=with_parents)


def _of_workflow(data: Any, path: Path) -> tuple[Recipe, list[str]]:
    return attempt(lambda: read_workflow(data, path.stem), f"{path}: a ComfyUI workflow")


def _of_mecha(text: str, path: Path) -> tuple[Recipe, list[str]]:
    return attempt(lambda: read_mecha(text, path.stem), f"{path}: an sd-mecha recipe")


def _json_in(text: str) -> Any:
    """The object or list that a text is, perhaps with words before it that name it; None if it is none."""
    data = parsed(text)
    if not isinstance(data, str):
        return data
    # `sd_merge_recipe: {...}`, as it is copied from a page.
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
    """The metadata of a merged file that data are: the whole header, what it says of itself, or the recipe alone."""
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
    if not isinstance(data, Mapping):
        return f"a JSON list of {len(data)}"
    if "_class_name" in data:
        return f"a diffusers configuration ({str(data['_class_name'])[:60]})"
    if any(str(key).startswith("ss_") for key in data):
        return "the metadata of a LoRA"
    listed = ", ".join(repr(str(key)[:40]) for key in list(data)[:6])
    return f"a JSON object with {listed or 'nothing in it'}{', ...' if len(data) > 6 else ''}"


def _kind_of_bytes(path: Path) -> str | None:
    """What a file is that is no text, by how it begins; None if it may be one, or cannot be read."""
    if os.path.isdir(path):
        return str(kind_of_folder(path))
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except (OSError, ValueError):  # told by who reads it as a text
        return None
    if start[8:9] == b"{" and 0 < int.from_bytes(start[:8], "little") < _LONGEST_HEADER:
        return "a safetensors file; its name must end in .safetensors"
    for magic, kind in _TENSORS.items():
        if start.startswith(magic):
            return kind
    other = kind_of_other_file(path, start) if start else None
    if other is None or other.name in _BY_NAME or (_is_text(start) and other.name != "git-lfs-pointer"):
        return None
    return str(other)


def _is_text(start: bytes) -> bool:
    """Whether this may be the start of a text in UTF-8: a name such as bzhMix begins as an archive does."""
    try:
        return "\0" not in codecs.getincrementaldecoder("utf-8")().decode(start)
    except UnicodeDecodeError:
        return False


def _read(path: Path) -> str:
    kind = _kind_of_bytes(path)
    if kind is not None:
        raise RecipeError(f"{path}: is {kind}; {_WANTED}")
    data = read_text(path, RecipeError, most=_MOST_BYTES)
    try:
        # What Windows' editor writes begins with a mark that tells the encoding; without one it is UTF-8.
        utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        return data.decode("utf-16" if utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecipeError(
            f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8 and try again"
        ) from None
