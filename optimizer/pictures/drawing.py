"""Draw pictures and final latents with a pipeline from prompts and seeds, and measure their distances."""

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

# Numbers in a channel of latents, over all pictures of a batch: one picture of 512 x 512 pixels, or as many small ones
# as speed up a CPU. One picture at a time needs the least memory, and no picture depends on the rest of its batch.
_BATCH = 64 * 64
_SHARED = 32  # the smallest side of latents for which several threads are faster


@dataclass(frozen=True, eq=False)
class Drawn:
    """A picture with its prompt, seed and final latents.

    Attributes:
        prompt: The prompt.
        seed: The seed of the noise.
        picture: The picture, RGB.
        latents: The sampler's result, float32 [channels, height, width] on the CPU, not yet divided by the VAE's
            scaling factor.

    """

    prompt: str
    seed: int
    picture: Image.Image
    latents: torch.Tensor


def default_guidance(configuration: Path) -> float:
    """Return the default guidance of a pipeline configuration: how strongly pictures follow their prompt."""
    layouts = (load_layout(name) for name in layout_names())
    encoders = (encoder for layout in layouts for encoder in layout.text_encoders)
    pipelines = (pipeline for encoder in encoders for pipeline in (encoder.pipelines or {}).values())
    scales = (pipeline.guidance for pipeline in pipelines if pipeline.name == configuration.name)
    return next(scale for scale in scales if scale is not None)


def check_steps(scheduler: Any, steps: int) -> None:
    """Raise InputError for a number of steps with which the sampler would not begin in pure noise.

    A picture begins with noise as strong as at the last of the 1000 levels that the model was trained on. Samplers with
    `leading` time steps divide 1000 by the number of steps and drop the remainder. So 200 steps begin at level 996, but
    201 at level 801, where the model expects a fifth of a picture below the noise, and 1000 beyond the last level. A
    number of steps is refused if it begins more than a tenth of all levels below an even division.

    Args:
        scheduler: The sampler of a pipeline.
        steps: The number of steps, 1 to 1000.

    Raises:
        InputError: For such a number of steps, with the nearest numbers that work.

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
            f"received {steps}; the sampler would not begin in pure noise; must be "
            f"{' or '.join(str(count) for count in nearest if count is not None)}, for example"
        )


def _begins_in_noise(scheduler: Any, steps: int) -> bool:
    """Return whether the sampler begins at a level of pure noise."""
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
    """Draw one picture for every prompt and seed: all seeds of the first prompt, then all seeds of the second, ...

    A picture's noise depends only on its seed, not on device, prompt or checkpoint. So pictures of different
    checkpoints from the same prompt and seed can be compared. Steps that `check_steps` refuses are an InputError.

    Args:
        pipeline: A pipeline from `open_pipeline`.
        prompts: The prompts, taken literally: "(word:1.2)" has no weight. Text beyond the text encoder's limit is cut
            off.
        seeds: The seeds of the noise, 0 to 2**64 - 1.
        steps: The number of steps of DDIM.
        guidance: How strongly pictures follow their prompt and avoid the negative one; 1 is the model's plain
            prediction.
        negative: The negative prompt.
        progress: Called with the steps done and their total, over all pictures.

    Returns:
        The pictures in this order.

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
            Drawn(prompt, seed, picture, final.float().cpu())
            for (prompt, seed), picture, final in zip(batch, pictures, latents, strict=True)
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

    Raises the errors of `open_pipeline` and `draw` too.

    Args:
        checkpoint: See `open_pipeline`.
        prompts: See `draw`.
        seeds: See `draw`.
        steps: See `draw`.
        guidance: See `draw`. Default: the guidance of the checkpoint's pipeline.
        device: See `open_pipeline`.
        vae_from: See `open_pipeline`.

    Returns:
        The pictures.

    Raises:
        ValueError: If `steps` is less than 1.

    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, received {steps}")
    require("pictures", "drawing")
    checkpoint = Path(checkpoint)
    if guidance is None:
        guidance = default_guidance(pipeline_files(checkpoint, vae_from=vae_from).configuration)
    pipeline = open_pipeline(checkpoint, vae_from=vae_from, device=device)
    drawn = draw(pipeline, prompts=prompts, seeds=seeds, steps=steps, guidance=guidance)
    return [each.picture for each in drawn]


def latent_distance(first: Drawn, second: Drawn) -> float:
    """Return the root mean square difference of two pictures' final latents, at least 0; 1.4 for unrelated noise."""
    return float((first.latents.double() - second.latents.double()).square().mean().sqrt())


def pixel_distance(first: Drawn, second: Drawn) -> float:
    """Return the root mean square difference of two pictures, RGB in [0, 1]: from 0 to 1 (black to white)."""
    pixels, other_pixels = (np.asarray(drawn.picture, np.float64) / 255 for drawn in (first, second))
    return float(np.sqrt(np.square(pixels - other_pixels).mean()))


@torch.inference_mode()
def _decoded(pipeline: Any, latents: torch.Tensor) -> list[Image.Image]:
    """Return the pictures of latents [n, channels, height, width]."""
    vae = pipeline.vae
    pixels = vae.decode(latents.to(vae.dtype) / vae.config.scaling_factor).sample
    pictures: list[Image.Image] = pipeline.image_processor.postprocess(pixels, output_type="pil")
    return pictures


@contextmanager
def _threads(side: int) -> Iterator[None]:
    """Let torch use one thread for small pictures, within the context.

    In layers this small further threads have almost no work. If another program uses their cores, waiting for them
    after each layer takes several times as long as the drawing.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(before if side >= _SHARED else 1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
