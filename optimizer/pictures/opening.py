"""Open checkpoints as diffusers pipelines, each part converted by diffusers.

`open_checkpoint` reads the files, so a .ckpt runs no code and nothing is downloaded. Their tensors go to diffusers'
single-file loader with a configuration that ships with blockfit.
"""
# ruff: noqa: PLC0415 -- diffusers and transformers take seconds to import, so only drawing imports them.

import contextlib
import copy
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from optimizer.checkpoints import (
    Prediction,
    TensorSource,
    open_checkpoint,
    open_vae,
    pipeline_of,
    placed_parameters,
    read_prediction,
    readable_encoder_of,
    unfit,
)
from optimizer.errors import CheckpointError
from optimizer.families import Layout, ModelPart, TextEncoder, load_tokenizer, stored_part

__all__ = ["PipelineFiles", "drawn_layout", "open_pipeline", "open_scheduler", "pipeline_files", "quietly"]


@dataclass(frozen=True)
class PipelineFiles:
    """The files of a pipeline: the folder of its configuration, and the checkpoint of each part."""

    configuration: Path
    unet: Path
    vae: Path
    text_encoder: Path


def pipeline_files(
    checkpoint: Path, *, vae_from: Path | None = None, encoder_from: Path | None = None
) -> PipelineFiles:
    """Return the configuration and the files with which `open_pipeline` would open a checkpoint.

    Reads no weights. Raises the errors of `open_pipeline` that do not depend on them.

    Args:
        checkpoint: See `open_pipeline`.
        vae_from: See `open_pipeline`.
        encoder_from: See `open_pipeline`.

    Returns:
        The files.

    """
    with _opened(checkpoint, vae_from, encoder_from) as (configuration, parts):
        return PipelineFiles(configuration, **{part: Path(source.label) for part, source in parts.items()})


def open_pipeline(
    checkpoint: Path,
    *,
    vae_from: Path | None = None,
    encoder_from: Path | None = None,
    tokenizer: Any = None,
    device: str | torch.device = "cpu",
) -> Any:
    """Open a checkpoint as a diffusers pipeline on `device`, offline.

    The pipeline is a `StableDiffusionPipeline`, or a `StableDiffusionXLPipeline` for families with two text encoders.
    Its sampler predicts what the checkpoint states: noise, or velocity.

    Weights are float32. On a GPU they are float16, except for parts that the layout keeps in float32, for example VAEs
    that overflow in float16 and draw black pictures. All files are closed on return.

    A CheckpointError reports a file that is missing or broken, belongs to a family without pipeline configuration,
    lacks tensors or has other shapes, and a missing text encoder or VAE.

    Args:
        checkpoint: A checkpoint of a family with a pipeline configuration in its layout.
        vae_from: A checkpoint, or a VAE alone, whose VAE is used if `checkpoint` has none (a "NoVAE" file).
        encoder_from: A checkpoint whose text encoders replace those of `checkpoint`.
        tokenizer: The tokenizer of the configuration, if it is already loaded.
        device: The torch device of the pipeline.

    Returns:
        The pipeline.

    """
    with quietly():
        from diffusers import (
            AutoencoderKL,
            StableDiffusionPipeline,
            StableDiffusionXLPipeline,
            UNet2DConditionModel,
        )

        gpu = torch.device(device).type != "cpu"
        with _opened(checkpoint, vae_from, encoder_from) as (folder, files), _NotRandom():
            layout = _layout_of(files["unet"])

            def dtype(part: ModelPart | None) -> torch.dtype:
                return torch.float16 if gpu and part is not None and part.float16 else torch.float32

            parts = {
                "unet": _load(UNet2DConditionModel, "unet", files["unet"], folder, dtype(layout.network)),
                "vae": _load(AutoencoderKL, "vae", files["vae"], folder, dtype(layout.vae)),
                "tokenizer": load_tokenizer(folder) if tokenizer is None else tokenizer,
                "scheduler": open_scheduler(folder, read_prediction(files["unet"], layout)),
            }
            for part, encoder in _encoders(layout).items():
                parts[part] = _load_encoder(encoder, part, files["text_encoder"], folder, dtype(encoder))
        if len(layout.readable_encoders) == 1:
            pipeline = StableDiffusionPipeline(
                **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
            )
        else:
            pipeline = StableDiffusionXLPipeline(
                **parts, tokenizer_2=_padded_by_zero(parts["tokenizer"]), add_watermarker=False
            )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline.to(device)


def open_scheduler(configuration: Path, prediction: Prediction | None = None) -> Any:
    """Return the sampler of a pipeline configuration, diffusers' DDIM.

    Args:
        configuration: The folder of the configuration.
        prediction: What a checkpoint predicts. Default: noise.

    Returns:
        The sampler.

    """
    changes: dict[str, Any] = {}
    if prediction is not None and prediction.kind == "v":
        changes["prediction_type"] = "v_prediction"
        if prediction.ends_in_noise:
            # The last level has no image left, so the first step must begin there.
            changes |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    with quietly():
        from diffusers import DDIMScheduler

        return DDIMScheduler.from_pretrained(
            str(configuration), subfolder="scheduler", local_files_only=True, **changes
        )


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Keep advice and progress bars of diffusers and transformers off the console; errors are still raised."""
    with contextlib.ExitStack() as restored, warnings.catch_warnings(action="ignore"):
        # Silence transformers first: while the rest of it is imported, it gives advice about torchvision.
        from transformers.utils import logging as transformers_logging

        restored.callback(transformers_logging.set_verbosity, transformers_logging.get_verbosity())
        transformers_logging.set_verbosity_error()
        from diffusers.utils import logging as diffusers_logging

        restored.callback(diffusers_logging.set_verbosity, diffusers_logging.get_verbosity())
        diffusers_logging.set_verbosity_error()
        if diffusers_logging.is_progress_bar_enabled():
            restored.callback(diffusers_logging.enable_progress_bar)
            diffusers_logging.disable_progress_bar()
        yield


def drawn_layout(checkpoint: Path) -> Layout:
    """Return the layout of a checkpoint that can draw pictures, or raise CheckpointError if it cannot."""
    with open_checkpoint(checkpoint) as opened:
        return _layout_of(opened)


def _layout_of(checkpoint: TensorSource) -> Layout:
    """Return the layout of an open checkpoint that can draw pictures, or raise CheckpointError."""
    layout = checkpoint.layout
    if layout is None:
        raise CheckpointError(f"{checkpoint.label}: {unfit(checkpoint)}")
    if not layout.draws:
        raise CheckpointError(
            f"{checkpoint.label}: is {layout.title}; blockfit draws no pictures with it, as its layout has no pipeline"
        )
    return layout


@contextlib.contextmanager
def _opened(
    checkpoint: Path, vae_from: Path | None, encoder_from: Path | None
) -> Iterator[tuple[Path, dict[str, TensorSource]]]:
    """Yield the folder of the pipeline configuration, and the open file of each part."""
    with ExitStack() as stack:
        whole = stack.enter_context(open_checkpoint(checkpoint))
        layout = _layout_of(whole)
        inpainting, read = layout.inpainting, readable_encoder_of(layout)
        if inpainting and whole.tensors[inpainting.tensor].shape[1:2] != (inpainting.channels,):
            raise CheckpointError(
                f"{checkpoint}: is {whole.kind}; only models with {inpainting.channels} input channels draw "
                "from a prompt alone"
            )
        prediction = read_prediction(whole, layout)
        if any(marker.startswith("edm_") for marker in prediction.markers):
            raise CheckpointError(f"{checkpoint}: {prediction.describe()}; blockfit draws no pictures with such models")
        encoder = whole
        if encoder_from is not None and encoder_from != checkpoint:
            encoder = stack.enter_context(open_checkpoint(encoder_from, layout=layout))
        for each in layout.readable_encoders if encoder_from is None else ():
            if each.tokens not in whole.tensors:
                raise CheckpointError(
                    f"{checkpoint}: has no {each.title} ({each.model}*); `encoder_from=FILE` takes that of another file"
                )
        folder = pipeline_of(encoder, layout)
        if read.tokens in whole.tensors and (needed := pipeline_of(whole, layout)) != folder:
            raise CheckpointError(
                f"{checkpoint}: needs the pipeline {needed.name}, the text encoder of {encoder_from} needs "
                f"{folder.name}; take it from a file of the same family"
            )
        vae = whole
        if not _count(whole, "vae"):
            if vae_from is None:
                raise CheckpointError(
                    f"{checkpoint}: has no VAE ({_prefix(whole, 'vae')}*); `vae_from=FILE` takes that of another file"
                )
            vae = stack.enter_context(open_vae(vae_from, layout, ()))
        yield folder, {"unet": whole, "vae": vae, "text_encoder": encoder}


class _NotRandom(TorchFunctionMode):
    """A context in which new layers start as NaN instead of at random.

    Random numbers for a whole model take longer than reading it, and NaN reveals weights that no tensor of the file has
    overwritten.
    """

    def __torch_function__(
        self, function: Any, _types: Any, arguments: tuple[Any, ...] = (), named: dict[str, Any] | None = None
    ) -> Any:
        """Fill a tensor with NaN if torch would fill it at random; pass every other call through."""
        named = named or {}
        if function.__name__ in ("uniform_", "normal_", "kaiming_uniform_", "xavier_uniform_", "trunc_normal_"):
            tensor: torch.Tensor = arguments[0] if arguments else named["tensor"]
            with torch.no_grad():
                return tensor.fill_(torch.nan)
        return function(*arguments, **named)


def _load(model_class: Any, part: str, file: TensorSource, folder: Path, dtype: torch.dtype) -> Any:
    """Return a part of the pipeline, loaded by diffusers from an open file."""
    from diffusers.loaders.single_file_utils import SingleFileComponentError

    try:
        # The tensors are mapped, so that memory holds the weights only once, in the model.
        model = model_class.from_single_file(
            _tensors(file, part), config=str(folder), subfolder=part, local_files_only=True, torch_dtype=dtype,
            low_cpu_mem_usage=False,
        )  # fmt: skip
    except (RuntimeError, ValueError, KeyError, SingleFileComponentError) as error:
        raise _unfit(file, folder, error) from error
    # The loader leaves weights unchanged that it does not find in the file.
    _check_count(file, part, _prefix(file, part), _count(file, part), len(model.state_dict()))
    return _checked(model, part, file)


def _check_count(file: TensorSource, part: str, prefix: str, found: int, needed: int) -> None:
    """Raise CheckpointError if fewer tensors of a part are found than it needs."""
    if found < needed:
        raise CheckpointError(f"{file.label}: has {found} {prefix}* tensors, but the {part} needs {needed}")


def _encoders(layout: Layout) -> dict[str, TextEncoder]:
    """Return the text encoders by diffusers' names of the parts."""
    return {
        f"text_encoder_{number}" if number > 1 else "text_encoder": encoder
        for number, encoder in enumerate(layout.readable_encoders, 1)
    }


def _load_encoder(encoder: TextEncoder, part: str, file: TensorSource, folder: Path, dtype: torch.dtype) -> Any:
    """Return a text encoder of an open file."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig.from_pretrained(str(folder / part), local_files_only=True)
    projects = "CLIPTextModelWithProjection" in (config.architectures or ())
    model = CLIPTextModelWithProjection(config) if projects else CLIPTextModel(config)
    within = stored_part(model)
    places = {name: encoder.place_of(name) for name in within.state_dict()}
    needed = dict.fromkeys(stored for stored, _ in places.values())
    # OpenCLIP multiplies by the projection from the right.
    projection = encoder.projection
    if projects:
        needed[projection] = None
    _check_count(file, part, encoder.model, sum(name in file.tensors for name in needed), len(needed))
    tensors = {name: file.tensor(name) for name in needed}
    try:
        within.load_state_dict(placed_parameters(places, tensors))
        if projects:
            model.text_projection.load_state_dict({"weight": tensors[projection].T})
    except RuntimeError as error:
        raise _unfit(file, folder, error) from error
    return _checked(model.to(dtype).eval(), part, file)


def _padded_by_zero(tokenizer: Any) -> Any:
    """Return a tokenizer that pads with its token 0, as OpenCLIP does."""
    found = copy.deepcopy(tokenizer)
    found.pad_token = found.convert_ids_to_tokens(0)
    return found


def _checked(model: Any, part: str, file: TensorSource) -> Any:
    """Return a loaded part, or raise CheckpointError if weights are missing or not finite."""
    for name, tensor in model.state_dict().items():
        # aminmax returns NaN if any number is NaN, and is several times as fast as testing each.
        if tensor.is_floating_point() and not torch.stack(tensor.aminmax()).isfinite().all():
            raise CheckpointError(
                f"{file.label}: the {part}'s {name} is missing, or holds NaN, Inf or numbers too large for "
                f"{str(tensor.dtype).removeprefix('torch.')}; blockfit inspect shows more"
            )
    return model


def _unfit(file: TensorSource, folder: Path, error: Exception) -> CheckpointError:
    """Return the error for a file that a loader refused."""
    reason = " ".join(str(error).split())
    return CheckpointError(f"{file.label}: does not fit the pipeline configuration {folder.name!r}: {reason}")


def _tensors(file: TensorSource, part: str) -> dict[str, torch.Tensor]:
    """Return the weights of a part in a file, by name."""
    return {name: file.tensor(name) for name in _weights(file, part)}


def _count(file: TensorSource, part: str) -> int:
    """Return the number of a part's weights in a file."""
    return len(_weights(file, part))


def _weights(file: TensorSource, part: str) -> list[str]:
    """Return the names of a part's weights in a file."""
    prefix = _prefix(file, part)
    return [name for name in file.tensors if name.startswith(prefix)]


def _prefix(file: TensorSource, part: str) -> str:
    """Return the prefix of the names of a part's weights; `part` is diffusers' name, unet or vae."""
    layout = _layout_of(file)
    model_part = layout.network if part == "unet" else layout.vae
    assert model_part is not None
    return model_part.prefix
