"""What a merged file says about itself: the fields that other tools and model sites read from a safetensors header."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from optimizer.checkpoints import TensorSource, read_prediction
from optimizer.library import HASHES, NOT_VERIFIED, HashCache, known_models, legacy_hash, parsed, sha256
from optimizer.recipes import RECIPE_TYPE, Recipe, recipe_as_data

__all__ = ["merge_metadata"]

_UNKNOWN = "unknown"
_MOST_INHERITED = 1 << 20  # characters of one field of a source that are carried on; real ones have thousands


def merge_metadata(
    recipe: Recipe,
    output: str,
    sources: Mapping[str, TensorSource],
    *,
    channels: int,
    vae: TensorSource | None = None,
    date: str | None = None,
    embed_recipe: bool = True,
    digests: Mapping[str, str] | None = None,
    hashes: HashCache | None = None,
    hashing: Callable[[str, int, int], None] | None = None,
) -> dict[str, str]:
    """The metadata of the file that holds the step `output`, merged from `sources` (by model name).

    `channels` are those of the output's input convolution. Without `embed_recipe` there is nothing that tells of the
    recipe or the sources, and no file is hashed. `digests` are the sha256 of sources that were found to be those that
    the recipe notes, None if that was not looked at; then the metadata says so. Hashes that `hashes` lacks are
    computed, `hashing` told the file's name, the bytes done and their total. Raises CheckpointError for a source that
    cannot be read.

    There is no modelspec.hash_sha256: it is of all tensor data, which would have to be written before the header that
    stands in front of it, or hashed in a second pass. modelspec.prediction_type is what the model that `output` begins
    with says of itself, by its markers or its metadata; most say nothing, and so does the merge. So it is with zero
    terminal SNR.
    """
    spec, inpainting = recipe.layout.modelspec, recipe.layout.inpainting
    metadata = {"format": "pt"}
    if spec is not None:
        variant = inpainting.variants.get(channels) if inpainting is not None else None
        metadata["modelspec.sai_model_spec"] = "1.0.0"
        metadata["modelspec.architecture"] = spec.architecture + (f"-{variant}" if variant in spec.variants else "")
        prediction = read_prediction(sources[recipe.first_model(output)], recipe.layout)
        if prediction.states_kind:
            metadata["modelspec.prediction_type"] = prediction.kind
        if prediction.zero is not None:
            field, text = prediction.zero
            metadata[field] = text
    if any(recipe.models[name].sha256 and name not in (digests or {}) for name in sources):
        metadata[HASHES] = NOT_VERIFIED
    if not embed_recipe:
        return metadata

    def digest(source: TensorSource) -> str | None:
        told = None if hashing is None else lambda done, total: hashing(source.name, done, total)
        return None if source.path is None else sha256(source.path, hashes, progress=told)

    found = {name: (digests or {}).get(name) or digest(source) for name, source in sources.items()}
    # What was noted before may be of another file, or the first digits only.
    models = {
        name: replace(model, sha256=found[name]) if name in found and model.sha256 else model
        for name, model in recipe.models.items()
    }
    noted: dict[str, Any] = {
        "type": RECIPE_TYPE,
        "output": output,
        "recipe": recipe_as_data(replace(recipe, models=models)),
    }
    if vae is not None:
        noted["vae"] = {"name": vae.name, "sha256": digest(vae)}
    metadata["sd_merge_recipe"] = _as_json(noted)
    metadata["sd_merge_models"] = _as_json(_models([(found[name], source) for name, source in sources.items()]))
    if spec is not None:
        metadata["modelspec.implementation"] = spec.implementation
        metadata["modelspec.resolution"] = spec.resolution
        metadata["modelspec.title"] = recipe.name
        metadata["modelspec.merged_from"] = ", ".join(dict.fromkeys(map(_title, sources.values())))
        metadata["modelspec.license"] = _license(
            {name: recipe.models[name].license for name in sources} | ({} if vae is None else {vae.name: _UNKNOWN})
        )
        if date is not None:
            metadata["modelspec.date"] = date
    return metadata


def _title(source: TensorSource) -> str:
    return source.name if source.path is None else source.path.stem


def _models(sources: Sequence[tuple[str | None, TensorSource]]) -> dict[str, Any]:
    """Return the entries of sd_merge_models: the sources, by sha256, then the models that these were merged from.

    A source without a file has no sha256, hence no entry of its own.
    """
    told = [
        {name: text for name, text in source.metadata.items() if len(text) <= _MOST_INHERITED} for _, source in sources
    ]
    models: dict[str, Any] = {
        digest: {
            "name": source.name,
            "legacy_hash": legacy_hash(source.path),
            "sd_merge_recipe": _object(metadata.get("sd_merge_recipe")),
        }
        for (digest, source), metadata in zip(sources, told, strict=True)
        if digest is not None and source.path is not None
    }
    for metadata in told:
        models |= {digest: entry for digest, entry in known_models(metadata).items() if digest not in models}
    return models


def _object(text: str | None) -> Mapping[str, Any] | None:
    value = parsed(text)
    return value if isinstance(value, Mapping) else None


def _license(licenses: Mapping[str, str]) -> str:
    """One licence for the merge if there is one; nobody but the user can say what follows from several."""
    distinct = set(licenses.values())
    if distinct == {_UNKNOWN}:
        return f"{_UNKNOWN}: the licences of the merged models are not stated"
    if len(distinct) == 1:
        return distinct.pop()
    return "differs between the merged models: " + ", ".join(f"{name}: {text}" for name, text in licenses.items())


def _as_json(data: object) -> str:
    return json.dumps(data, ensure_ascii=False)
