"""Opening checkpoints as diffusers pipelines: each part with diffusers' own conversion, configured by this package.

Files are read by `open_checkpoint`, so that a .ckpt runs nothing and no name is looked up on the network; their tensors
go to diffusers' single-file loader, which gets the configuration that ships with blockfit.
"""
# ruff: noqa: PLC0415 -- diffusers and transformers take seconds to import: only drawing imports them.

import contextlib
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from optimizer.checkpoints import TensorSource, open_checkpoint, open_vae, pipeline_of, readable_encoder_of, unfit
from optimizer.errors import CheckpointError
from optimizer.families import Layout, ModelPart, load_tokenizer, stored_part

__all__ = ["PipelineFiles", "drawn_layout", "open_pipeline", "open_scheduler", "pipeline_files", "quietly"]


@dataclass(frozen=True)
class PipelineFiles:
    """What a checkpoint is drawn with: the folder of its pipeline configuration, and the file of each part."""

    configuration: Path
    unet: Path
    vae: Path
    text_encoder: Path


def pipeline_files(
    checkpoint: Path, *, vae_from: Path | None = None, encoder_from: Path | None = None
) -> PipelineFiles:
    """With which pipeline configuration and which files `open_pipeline` would open a checkpoint; reads no weights.

    Raises CheckpointError as `open_pipeline` does for all that shows without reading weights.
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
    """Open a checkpoint as a diffusers `StableDiffusionPipeline` on `device`, offline.

    `checkpoint` is of a family that has a pipeline configuration (its layout tells), and of the shapes that this has.
    If it has no VAE (a "NoVAE" file), that of the file `vae_from` is used, a checkpoint or a VAE alone; otherwise
    `vae_from` is ignored. With `encoder_from`, another checkpoint, the text encoder is that one's. `tokenizer` spares
    loading the configuration's once more.

    Weights are float32; on a GPU they are float16 but for those parts that the layout keeps in float32, such as VAEs
    that overflow and draw black pictures. All files are closed again.

    Raises CheckpointError if a file is missing or broken, is no such checkpoint, lacks tensors or has other shapes, if
    no text encoder or VAE is to be had, and if the text encoder is one that no pipeline configuration is known for.
    """
    with quietly():
        from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel

        gpu = torch.device(device).type != "cpu"
        with _opened(checkpoint, vae_from, encoder_from) as (folder, files), _NotRandom():
            layout = _layout_of(files["unet"])

            def dtype(part: ModelPart | None) -> torch.dtype:
                return torch.float16 if gpu and part is not None and part.float16 else torch.float32

            encoder = readable_encoder_of(layout)
            parts = {
                "text_encoder": _load_encoder(files["text_encoder"], folder, dtype(encoder)),
                "unet": _load(UNet2DConditionModel, "unet", files["unet"], folder, dtype(layout.network)),
                "vae": _load(AutoencoderKL, "vae", files["vae"], folder, dtype(layout.vae)),
            }
        pipeline = StableDiffusionPipeline(
            **parts,
            tokenizer=load_tokenizer(folder) if tokenizer is None else tokenizer,
            scheduler=open_scheduler(folder),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline.to(device)


def open_scheduler(configuration: Path) -> Any:
    """The sampler, diffusers' DDIM, of a pipeline configuration."""
    with quietly():
        from diffusers import DDIMScheduler

        return DDIMScheduler.from_pretrained(str(configuration), subfolder="scheduler", local_files_only=True)


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Keep the libraries' advice and progress bars off the console; what goes wrong is raised all the same."""
    with contextlib.ExitStack() as restored, warnings.catch_warnings(action="ignore"):
        # transformers first: the rest of it gives advice about torchvision while it is being imported.
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
    """Return the layout of a checkpoint that pictures are drawn with.

    Raises CheckpointError for a file that has no layout, or one that blockfit draws no pictures with.
    """
    with open_checkpoint(checkpoint) as opened:
        return _layout_of(opened)


def _layout_of(checkpoint: TensorSource) -> Layout:
    layout = checkpoint.layout
    if layout is None:
        raise CheckpointError(f"{checkpoint.label}: {unfit(checkpoint)}")
    if layout.readable_encoder is None or layout.vae is None:
        raise CheckpointError(
            f"{checkpoint.label}: is {layout.title}; blockfit draws no pictures with it, as its layout has no pipeline"
        )
    return layout


@contextlib.contextmanager
def _opened(
    checkpoint: Path, vae_from: Path | None, encoder_from: Path | None
) -> Iterator[tuple[Path, dict[str, TensorSource]]]:
    """The folder of the pipeline configuration, and for each part the opened file that it comes from."""
    with ExitStack() as stack:
        whole = stack.enter_context(open_checkpoint(checkpoint))
        layout = _layout_of(whole)
        inpainting, read = layout.inpainting, readable_encoder_of(layout)
        if inpainting and whole.tensors[inpainting.tensor].shape[1:2] != (inpainting.channels,):
            raise CheckpointError(
                f"{checkpoint}: is {whole.kind}; only models with {inpainting.channels} input channels draw "
                "from a prompt alone"
            )
        encoder = whole
        if encoder_from is not None and encoder_from != checkpoint:
            encoder = stack.enter_context(open_checkpoint(encoder_from, layout=layout))
        if encoder_from is None and read.tokens not in whole.tensors:
            raise CheckpointError(
                f"{checkpoint}: has no text encoder ({read.model}*); `encoder_from=FILE` takes another file's"
            )
        folder = pipeline_of(encoder, layout)
        if read.tokens in whole.tensors and (other := pipeline_of(whole, layout)) != folder:
            raise CheckpointError(
                f"{checkpoint}: goes with the pipeline {other.name}, the text encoder of {encoder_from} with "
                f"{folder.name}; take it from a file of the same family"
            )
        vae = whole
        if not _count(whole, "vae"):
            if vae_from is None:
                raise CheckpointError(
                    f"{checkpoint}: has no VAE ({_prefix(whole, 'vae')}*); `vae_from=FILE` takes another file's"
                )
            vae = stack.enter_context(open_vae(vae_from, layout, ()))
        yield folder, {"unet": whole, "vae": vae, "text_encoder": encoder}


class _NotRandom(TorchFunctionMode):
    """New layers start as NaN and not at random, while the context lasts.

    Random numbers for a whole model take longer than reading it; and what no tensor of the file has overwritten shows.
    """

    def __torch_function__(
        self, function: Any, _types: Any, arguments: tuple[Any, ...] = (), named: dict[str, Any] | None = None
    ) -> Any:
        named = named or {}
        if function.__name__ in ("uniform_", "normal_", "kaiming_uniform_", "xavier_uniform_", "trunc_normal_"):
            tensor: torch.Tensor = arguments[0] if arguments else named["tensor"]
            with torch.no_grad():
                return tensor.fill_(torch.nan)
        return function(*arguments, **named)


def _load(model_class: Any, part: str, file: TensorSource, folder: Path, dtype: torch.dtype) -> Any:
    from diffusers.loaders.single_file_utils import SingleFileComponentError

    try:
        # Mapped tensors: what is loaded is in memory once, as the model's own weights.
        model = model_class.from_single_file(
            _tensors(file, part), config=str(folder), subfolder=part, local_files_only=True, torch_dtype=dtype,
            low_cpu_mem_usage=False,
        )  # fmt: skip
    except (RuntimeError, ValueError, KeyError, SingleFileComponentError) as error:
        raise _unfit(file, folder, error) from error
    return _checked(model, part, file)


def _load_encoder(file: TensorSource, folder: Path, dtype: torch.dtype) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    model = CLIPTextModel(CLIPTextConfig.from_pretrained(str(folder / "text_encoder"), local_files_only=True))
    prefix = _prefix(file, "text_encoder")
    try:
        stored_part(model).load_state_dict(
            {name.removeprefix(prefix): tensor for name, tensor in _tensors(file, "text_encoder").items()}, strict=False
        )
    except RuntimeError as error:
        raise _unfit(file, folder, error) from error
    return _checked(model.to(dtype).eval(), "text_encoder", file)


def _checked(model: Any, part: str, file: TensorSource) -> Any:
    # The loaders leave tensors that they do not find as they were.
    found, needed = _count(file, part), len(model.state_dict())
    if found < needed:
        beginning = _prefix(file, part)
        raise CheckpointError(f"{file.label}: has {found} {beginning}* tensors, but the {part} needs {needed}")
    for name, tensor in model.state_dict().items():
        # NaN is the smallest and the largest of all numbers here; looking at each takes several times as long.
        if tensor.is_floating_point() and not torch.stack(tensor.aminmax()).isfinite().all():
            raise CheckpointError(
                f"{file.label}: the {part}'s {name} is missing, or holds NaN, Inf or numbers too large for "
                f"{str(tensor.dtype).removeprefix('torch.')}; blockfit inspect tells more"
            )
    return model


def _unfit(file: TensorSource, folder: Path, error: Exception) -> CheckpointError:
    reason = " ".join(str(error).split())
    return CheckpointError(f"{file.label}: does not fit the pipeline configuration {folder.name!r}: {reason}")


def _tensors(file: TensorSource, part: str) -> dict[str, torch.Tensor]:
    return {name: file.tensor(name) for name in _weights(file, part)}


def _count(file: TensorSource, part: str) -> int:
    return len(_weights(file, part))


def _weights(file: TensorSource, part: str) -> list[str]:
    """The names of a part's weights in a file; position ids are none."""
    layout, prefix = _layout_of(file), _prefix(file, part)
    return [name for name in file.tensors if name.startswith(prefix) and name not in layout.position_ids]


def _prefix(file: TensorSource, part: str) -> str:
    """The beginning of the names of a part's weights; `part` is diffusers' name of it."""
    layout = _layout_of(file)
    if part == "text_encoder":
        return readable_encoder_of(layout).model
    named = layout.network if part == "unet" else layout.vae
    assert named is not None
    return named.prefix
