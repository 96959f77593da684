"""Metadata of a merged file: the fields of a safetensors header that other tools and model sites read."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from optimizer.checkpoints import TensorSource, read_prediction
from optimizer.library import HASHES, NOT_VERIFIED, Library, known_models, legacy_hash, parsed
from optimizer.recipes import RECIPE_TYPE, Recipe, recipe_as_data

__all__ = ["merge_metadata"]

_UNKNOWN = "unknown"
_MOST_INHERITED = (
    1 << 20
)  # characters; longer fields of a source's metadata are not carried over (real ones have thousands)


def merge_metadata(
    recipe: Recipe,
    output: str,
    sources: Mapping[str, TensorSource],
    library: Library,
    *,
    channels: int,
    vae: TensorSource | None = None,
    date: str | None = None,
    embed_recipe: bool = True,
    digests: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Return the metadata of the file with the step `output`.

    The metadata has no modelspec.hash_sha256. This is the hash of all tensor data, which would have to be written
    before the header in front of it, or hashed in a second pass. modelspec.prediction_type is copied from the markers
    or the metadata of the model that `output` begins with; most models have none, and then the merge has none. The same
    holds for zero terminal SNR. A source that cannot be read is a CheckpointError.

    Args:
        recipe: The recipe.
        output: The step in the file.
        sources: The open sources, by model name.
        library: The library with the files' hashes; missing ones are computed.
        channels: The number of channels of the output's input convolution.
        vae: The checkpoint that all VAE tensors were taken from.
        date: The date of the merge, in ISO 8601.
        embed_recipe: Write the recipe and the sources. Without, no file is hashed.
        digests: The sha256 of the sources that have the hash noted in the recipe; None if this was not checked, which
            the metadata then notes.

    Returns:
        The metadata, texts by field.

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
        return None if source.path is None else library.sha256(source.path)

    found = {name: (digests or {}).get(name) or digest(source) for name, source in sources.items()}
    # The recipe's own hash may be that of another file, or only its first digits.
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
    """Return the name of a source for modelspec.merged_from."""
    return source.name if source.path is None else source.path.stem


def _models(sources: Sequence[tuple[str | None, TensorSource]]) -> dict[str, Any]:
    """Return the entries of sd_merge_models: the sources that are files, then their parents, by sha256."""
    carried = [
        {name: text for name, text in source.metadata.items() if len(text) <= _MOST_INHERITED} for _, source in sources
    ]
    models: dict[str, Any] = {
        digest: {
            "name": source.name,
            "legacy_hash": legacy_hash(source.path),
            "sd_merge_recipe": _object(metadata.get("sd_merge_recipe")),
        }
        for (digest, source), metadata in zip(sources, carried, strict=True)
        if digest is not None and source.path is not None
    }
    for metadata in carried:
        models |= {digest: entry for digest, entry in known_models(metadata).items() if digest not in models}
    return models


def _object(text: str | None) -> Mapping[str, Any] | None:
    """Return the JSON object in a text, None for anything else."""
    value = parsed(text)
    return value if isinstance(value, Mapping) else None


def _license(licenses: Mapping[str, str]) -> str:
    """Return the licence that all models share, or list the differing ones; only the user can judge several."""
    distinct = set(licenses.values())
    if distinct == {_UNKNOWN}:
        return f"{_UNKNOWN}: the licences of the merged models are not stated"
    if len(distinct) == 1:
        return distinct.pop()
    return "differs between the merged models: " + ", ".join(f"{name}: {text}" for name, text in licenses.items())


def _as_json(data: object) -> str:
    """Return data as JSON, with non-ASCII letters as they are."""
    return json.dumps(data, ensure_ascii=False)
