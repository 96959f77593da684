"""Drawing with a pipeline: pictures and final latents from prompts and seeds, and how far apart two of them are."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from optimizer.errors import InputError, attempt
from optimizer.extras import require
from optimizer.families import layout_names, load_layout
from optimizer.pictures.opening import open_pipeline, pipeline_files, quietly

__all__ = ["Drawn", "check_steps", "default_guidance", "draw", "generate", "latent_distance", "pixel_distance"]

# Numbers of a channel of latents, in all pictures that are drawn at once: one picture of 512 x 512, as many small ones
# as a processor gains from. One at a time needs the least memory, and no picture depends on what else is drawn.
_BATCH = 64 * 64
_SHARED = 32  # the side of latents from which on cores gain from sharing the work


@dataclass(frozen=True, eq=False)
class Drawn:
    """A picture (RGB), what it was drawn from, and its final latents, float32 [channels, height, width] on the CPU.

    Latents are as the sampler leaves them, not yet divided by the VAE's scaling factor.
    """

    prompt: str
    seed: int
    picture: Image.Image
    latents: torch.Tensor


def default_guidance(configuration: Path) -> float:
    """Return how strongly pictures follow their prompt unless the user says otherwise, by pipeline configuration."""
    layouts = (load_layout(name) for name in layout_names())
    encoders = (encoder for layout in layouts for encoder in layout.text_encoders)
    pipelines = (pipeline for encoder in encoders for pipeline in (encoder.pipelines or {}).values())
    return next(pipeline.guidance for pipeline in pipelines if pipeline.name == configuration.name)


def check_steps(scheduler: Any, steps: int) -> None:
    """Raise InputError unless `steps`, 1 to 1000, begin where all is noise.

    The noise that pictures begin with is as strong as at the last of the 1000 levels that the model was trained on.
    Samplers with `leading` time steps divide 1000 by the number of steps and drop
    what is left: 200 steps begin at level 996, 201 at level 801, where the model expects a fifth of a picture below the
    noise, and 1000 beyond the last. What begins more than a tenth of all levels below an even division is refused.
    """
    levels = scheduler.config.num_train_timesteps
    if not 1 <= steps <= levels:
        raise InputError(f"received {steps}; must be from 1 to {levels}")
    if not _begins_in_noise(scheduler, steps):
        nearest = (
            next((count for count in counts if _begins_in_noise(scheduler, count)), None)
            for counts in (range(steps - 1, 0, -1), range(steps + 1, levels + 1))
        )
        raise InputError(
            f"received {steps}; in so many, the sampler would not begin where all is noise; "
            f"{' or '.join(str(count) for count in nearest if count is not None)} will do"
        )


def _begins_in_noise(scheduler: Any, steps: int) -> bool:
    levels: int = scheduler.config.num_train_timesteps
    scheduler.set_timesteps(steps)
    left = levels - 1 - int(scheduler.timesteps[0])
    return 0 <= left <= int(levels / steps + levels / 10)


def draw(
    pipeline: Any,
    *,
    prompts: Sequence[str],
    seeds: Sequence[int],
    steps: int,
    guidance: float,
    negative: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> list[Drawn]:
    """Draw one picture for every prompt and seed: all seeds of the first prompt, then all of the second, ...

    A picture's noise depends on its seed alone (0 to 2**64 - 1), not on device, prompt or checkpoint, so what different
    checkpoints draw from the same prompt and seed can be compared. `steps` are DDIM's, those that `check_steps` allows;
    `guidance` is how strongly pictures follow their prompt and keep off the `negative` one, 1 being the model's plain
    prediction. Prompts are taken as they are: "(word:1.2)" weighs nothing; what exceeds the text encoder's limit is cut
    off.
    `progress` is told the steps done and their total.

    Raises InputError for other `steps`.
    """
    attempt(lambda: check_steps(pipeline.scheduler, steps), "steps")
    side = pipeline.unet.config.sample_size
    shape = (1, pipeline.unet.config.in_channels, side, side)
    noise = {seed: torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed)) for seed in seeds}
    pairs = [(prompt, seed) for prompt in prompts for seed in seeds]
    at_once = max(1, _BATCH // side**2)
    done, total = 0, steps * len(pairs)
    drawn: list[Drawn] = []
    for first in range(0, len(pairs), at_once):
        batch = pairs[first : first + at_once]

        def count(_pipeline: Any, _step: int, _time: Any, tensors: dict[str, Any], now: int = len(batch)) -> Any:
            nonlocal done
            done += now
            if progress is not None:
                progress(done, total)
            return tensors

        with quietly(), _threads(side):
            latents = pipeline(
                prompt=[prompt for prompt, _ in batch],
                negative_prompt=[negative] * len(batch),
                latents=torch.cat([noise[seed] for _, seed in batch]).to(pipeline.device, pipeline.unet.dtype),
                num_inference_steps=steps,
                guidance_scale=guidance,
                output_type="latent",
                callback_on_step_end=count,
            ).images
            pictures = _decoded(pipeline, latents)
        drawn += [
            Drawn(prompt, seed, picture, one.float().cpu())
            for (prompt, seed), picture, one in zip(batch, pictures, latents, strict=True)
        ]
    return drawn


def generate(
    checkpoint: Path | str,
    *,
    prompts: Sequence[str],
    seeds: Sequence[int],
    steps: int = 20,
    guidance: float | None = None,
    device: str | torch.device = "cpu",
    vae_from: Path | None = None,
) -> list[Image.Image]:
    """Draw one RGB picture with a checkpoint for every prompt and seed, in the order of `draw`.

    `guidance` is by default that of the checkpoint's pipeline; `checkpoint`, `vae_from` and `device` are as in
    `open_pipeline`, the rest as in `draw`. Raises what these raise.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, received {steps}")
    require("pictures", "drawing")
    checkpoint = Path(checkpoint)
    if guidance is None:
        guidance = default_guidance(pipeline_files(checkpoint, vae_from=vae_from).configuration)
    pipeline = open_pipeline(checkpoint, vae_from=vae_from, device=device)
    drawn = draw(pipeline, prompts=prompts, seeds=seeds, steps=steps, guidance=guidance)
    return [one.picture for one in drawn]


def latent_distance(one: Drawn, other: Drawn) -> float:
    """The root mean square of the difference of two pictures' final latents; at least 0, 1.4 for unrelated noise."""
    return float((one.latents.double() - other.latents.double()).square().mean().sqrt())


def pixel_distance(one: Drawn, other: Drawn) -> float:
    """The root mean square of the difference of two pictures as shown, RGB in [0, 1]: from 0 to 1 (black to white)."""
    first, second = (np.asarray(drawn.picture, np.float64) / 255 for drawn in (one, other))
    return float(np.sqrt(np.square(first - second).mean()))


@torch.inference_mode()
def _decoded(pipeline: Any, latents: torch.Tensor) -> list[Image.Image]:
    vae = pipeline.vae
    pixels = vae.decode(latents.to(vae.dtype) / vae.config.scaling_factor).sample
    pictures: list[Image.Image] = pipeline.image_processor.postprocess(pixels, output_type="pil")
    return pictures


@contextmanager
def _threads(side: int) -> Iterator[None]:
    """Draw small pictures in one thread.

    Others have next to nothing to do in such layers; and where another program has their cores, waiting for them after
    each layer takes several times as long as the drawing.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(before if side >= _SHARED else 1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
