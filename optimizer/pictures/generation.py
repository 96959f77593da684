"""Pictures from small latent-diffusion checkpoints, and labelled sheets that show them side by side.

A checkpoint is one safetensors file with Stable Diffusion 1.x (LDM) key names. diffusers' own single-file loader opens
it with a pipeline configuration that ships with this package, so nothing is looked up on the network.
"""
# ruff: noqa: PLC0415 -- diffusers and transformers take seconds to import: only drawing imports them.

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import torch
from PIL import Image, ImageDraw, ImageFont
from safetensors import SafetensorError, safe_open

from optimizer.checkpoints import pipeline_folder
from optimizer.errors import CheckpointError

__all__ = ["CONFIGURATION", "contact_sheet", "generate", "open_pipeline"]

CONFIGURATION = pipeline_folder("digits")
"""The diffusers pipeline configuration, without weights, of the checkpoints in studies/demo."""

_PREFIXES = {
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "text_encoder": "cond_stage_model.transformer.text_model.",
}
_BATCH = 64  # pictures drawn at once; more are no faster on a processor
_FONT_SIZE, _GAP = 16, 8  # of a sheet, in pixels: the height of its letters, and the space around its parts


def open_pipeline(checkpoint: Path, *, vae_from: Path | None = None, device: str | torch.device = "cpu") -> Any:
    """Open a checkpoint as a diffusers `StableDiffusionPipeline`, in float32 on `device`, offline.

    `checkpoint` is a safetensors file with LDM key names and the shapes of `CONFIGURATION`. If it has no VAE (a
    "NoVAE" file), that of the file `vae_from` is used; otherwise `vae_from` is ignored.

    Raises CheckpointError if a file is missing or broken, if `checkpoint` lacks tensors or has other shapes, and if
    neither file has a VAE.
    """
    keys = _keys(checkpoint)
    vae_file = checkpoint if vae_from is None or _count(keys, "vae") else vae_from
    if not _count(keys if vae_file == checkpoint else _keys(vae_file), "vae"):
        advice = "name a file that has one as vae_from" if vae_from is None else f"nor has {str(vae_from)!r}"
        raise CheckpointError(f"{str(checkpoint)!r} has no VAE ({_PREFIXES['vae']}*): {advice}")

    with _quietly():
        from diffusers import AutoencoderKL, StableDiffusionPipeline
        from diffusers.loaders.single_file_utils import SingleFileComponentError

        options = {
            "config": str(CONFIGURATION),
            "local_files_only": True,
            "torch_dtype": torch.float32,
            # A memory map would keep the file open, and Windows would not let it be replaced meanwhile.
            "disable_mmap": True,
        }
        parts = {}
        try:
            if vae_file != checkpoint:
                parts["vae"] = AutoencoderKL.from_single_file(str(vae_file), subfolder="vae", **options)
            pipeline = StableDiffusionPipeline.from_single_file(str(checkpoint), **options, **parts)
        except (RuntimeError, ValueError, SingleFileComponentError) as error:
            reason = " ".join(str(error).split())
            message = f"{str(checkpoint)!r} does not fit the pipeline configuration {CONFIGURATION.name!r}: {reason}"
            raise CheckpointError(message) from error

    # The loader leaves tensors that it does not find at their random start.
    for part in _PREFIXES.keys() - parts.keys():
        found, needed = _count(keys, part), len(getattr(pipeline, part).state_dict())
        if found < needed:
            raise CheckpointError(f"{str(checkpoint)!r} has {found} {_PREFIXES[part]}* tensors, {part} needs {needed}")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def generate(
    checkpoint: Path,
    *,
    prompts: Sequence[str],
    seeds: Sequence[int],
    steps: int = 20,
    guidance: float = 2.5,
    device: str | torch.device = "cpu",
    vae_from: Path | None = None,
) -> list[Image.Image]:
    """Draw one RGB picture for every prompt and seed: all seeds of the first prompt, then all of the second, ...

    A picture's noise depends on its seed alone (not on device, prompt or checkpoint), so what different checkpoints
    draw from the same prompt and seed can be compared. `steps` are DDIM's, at least 1; `guidance` is how strongly
    pictures follow their prompt, 1 being the model's plain prediction. `checkpoint`, `vae_from` and `device` are as in
    `open_pipeline`.

    Raises what `open_pipeline` raises, and ValueError if `steps` is less than 1.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, received {steps}")

    pipeline = open_pipeline(checkpoint, vae_from=vae_from, device=device)
    side = pipeline.unet.config.sample_size
    shape = (1, pipeline.unet.config.in_channels, side, side)
    noise = {seed: torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed)) for seed in seeds}
    pairs = [(prompt, seed) for prompt in prompts for seed in seeds]
    pictures: list[Image.Image] = []
    for first in range(0, len(pairs), _BATCH):
        batch = pairs[first : first + _BATCH]
        with _quietly():
            drawn = pipeline(
                prompt=[prompt for prompt, _ in batch],
                latents=torch.cat([noise[seed] for _, seed in batch]).to(device),
                num_inference_steps=steps,
                guidance_scale=guidance,
            )
        pictures.extend(drawn.images)
    return pictures


def contact_sheet(rows: Mapping[str, Sequence[Image.Image]], columns: Sequence[str], scale: int) -> Image.Image:
    """Lay pictures out as a labelled table, RGB, black on white.

    `rows` gives each row's label, shown at its left, and its pictures, one per column; all are of one size. `columns`
    are shown at the top, broken between words where they are wider than the pictures; a column is as wide as its
    pictures, or as the widest word above any of them. `scale` is how many times wider and higher pictures are shown.

    Raises ValueError if `scale` is less than 1, if there is no picture, if a row has not one picture per column, and if
    the pictures differ in size.
    """
    if scale < 1:
        raise ValueError(f"scale must be at least 1, received {scale}")
    for label, pictures in rows.items():
        if len(pictures) != len(columns):
            raise ValueError(f"row {label!r} has {len(pictures)} pictures for {len(columns)} columns")
    sizes = {picture.size for pictures in rows.values() for picture in pictures}
    if len(sizes) != 1:
        raise ValueError(f"all pictures must have one size, received {sorted(sizes) or 'no picture'}")

    # matplotlib brings this font along, so a sheet looks the same on every machine.
    font_file = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    font = ImageFont.truetype(font_file, _FONT_SIZE, layout_engine=ImageFont.Layout.BASIC)
    line = _FONT_SIZE * 5 // 4
    width, height = (side * scale for side in sizes.pop())
    words = [word for column in columns for word in column.split()]
    cell = max([width, *(math.ceil(font.getlength(word)) for word in words)])
    headings = [_wrapped(column, cell, font.getlength) for column in columns]
    top = max(len(heading) for heading in headings) * line + 2 * _GAP
    left = max(math.ceil(font.getlength(label)) for label in rows) + 2 * _GAP
    row_height = max(height, line)

    size = (left + len(columns) * (cell + _GAP), top + len(rows) * (row_height + _GAP))
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for column, heading in enumerate(headings):
        middle = left + column * (cell + _GAP) + cell // 2
        for lines_below, text in enumerate(reversed(heading)):
            bottom = top - _GAP - lines_below * line
            draw.text((middle, bottom), text, fill="black", font=font, anchor="md")
    for row, (label, pictures) in enumerate(rows.items()):
        upper = top + row * (row_height + _GAP)
        draw.text((left - _GAP, upper + row_height // 2), label, fill="black", font=font, anchor="rm")
        for column, picture in enumerate(pictures):
            enlarged = picture.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
            sheet.paste(enlarged, (left + column * (cell + _GAP) + (cell - width) // 2, upper))
    return sheet


def _wrapped(text: str, width: int, length: Callable[[str], float]) -> list[str]:
    """Break text between words into lines that are at most `width` pixels long, where its words are."""
    lines: list[str] = []
    for word in text.split():
        if lines and length(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def _keys(checkpoint: Path) -> list[str]:
    """The names of the tensors in a safetensors file. Raises CheckpointError if it cannot be read."""
    try:
        with safe_open(checkpoint, "pt") as opened:
            return list(opened.keys())
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{str(checkpoint)!r} cannot be read as a safetensors file: {error}") from error


def _count(keys: Sequence[str], part: str) -> int:
    """How many tensors of a part of the pipeline there are; position_ids are no weights and do not count."""
    return sum(key.startswith(_PREFIXES[part]) and not key.endswith(".position_ids") for key in keys)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
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
