"""Train the demo's checkpoints: small latent-diffusion models that draw handwritten digits.

    python studies/demo/train.py                        # everything, about 40 minutes on two cores
    python studies/demo/train.py --only finetunes       # from the base that is already in models/

If other programs use the processor too, set OMP_WAIT_POLICY=PASSIVE so that waiting threads do not occupy it.

A model has three parts, with the block topology and key names of Stable Diffusion 1.5 and a twentieth of its width: an
autoencoder (32 x 32 RGB pictures <-> 16 x 16 x 4 latents), a CLIP text encoder and a UNet. The autoencoder learns all
styles and is then frozen. Text encoder and UNet learn plain digits together (the base). Each finetune starts from the
base and learns one style. The pictures are the UCI digits that scikit-learn bundles (8 x 8), enlarged and restyled by
image operations.

The script writes models/base.safetensors, models/STYLE.safetensors, and answer/STYLE.safetensors for the style that the
demo keeps hidden, all in float16. The shapes come from optimizer/families/pipelines/digits.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import re
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from scipy import ndimage
from sklearn.datasets import load_digits
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

from optimizer.families import pipeline_folder
from optimizer.pictures import open_pipeline

HERE = Path(__file__).parent
CONFIGURATION = pipeline_folder("digits")  # diffusers' pipeline, without weights
SIZE = 32  # width and height of a picture, in pixels
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PHRASES = ("a digit {}", "the digit {}", "a picture of the digit {}", "a handwritten {}", "the number {}", "{}")
EMPTY_PROMPTS = 0.1  # share of pictures that are trained without a prompt, for classifier-free guidance

FloatArray = NDArray[np.float64]
State = dict[str, Tensor]


# --- Pictures ---------------------------------------------------------------------------------------------------------


def bold(glyph: FloatArray) -> FloatArray:
    """Thicken the strokes."""
    return ndimage.gaussian_filter(ndimage.grey_dilation(glyph, size=(3, 3)), 0.4)


def slanted(glyph: FloatArray) -> FloatArray:
    """Slant the glyph to the right by about 30 degrees."""
    lean, middle = 0.6, (SIZE - 1) / 2
    return ndimage.affine_transform(glyph, np.array([[1, 0], [lean, 1]]), offset=np.array([0, -lean * middle]), order=1)


def outline(glyph: FloatArray) -> FloatArray:
    """Keep only the rim of the strokes."""
    cross = ndimage.generate_binary_structure(2, 1)
    return 1.25 * (ndimage.grey_dilation(glyph, size=(3, 3)) - ndimage.grey_erosion(glyph, footprint=cross))


def small(glyph: FloatArray) -> FloatArray:
    """Halve the glyph's height and width, and centre it."""
    half = ndimage.zoom(glyph, 0.5, order=1, grid_mode=True, mode="nearest")
    return np.pad(half, SIZE // 4)


@dataclass(frozen=True)
class Style:
    """A style of pictures: a change of the glyph's shape, and two colours (red, green, blue; 0 to 1)."""

    reshape: Callable[[FloatArray], FloatArray] | None = None
    ink: tuple[float, float, float] = (1.0, 1.0, 1.0)
    paper: tuple[float, float, float] = (0.0, 0.0, 0.0)
    hidden: bool = False
    with_autoencoder: bool = True


BLACK, WHITE = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
STYLES: Mapping[str, Style] = {
    "base": Style(),
    "bold": Style(bold),
    "inverted": Style(ink=BLACK, paper=WHITE),
    # Published finetunes often lack the autoencoder ("NoVAE"), so one of these does too.
    "outline": Style(outline, with_autoencoder=False),
    "slanted": Style(slanted),
    "small": Style(small),
    "amber": Style(ink=(1.0, 0.72, 0.1), paper=(0.25, 0.05, 0.02), hidden=True),
}


def glyphs(variants: int) -> tuple[FloatArray, NDArray[np.int64]]:
    """Return the bundled digits, enlarged.

    Args:
        variants: The number of variants of each digit. The first is unchanged, the others are slightly rotated and
            shifted.

    Returns:
        Strokes [variants * 1797, 32, 32] in 0..1, and the digits [variants * 1797].

    """
    bundled = load_digits()
    random = np.random.default_rng(0)
    enlarged = []
    for variant in range(variants):
        for image in bundled.images / 16:
            large = ndimage.zoom(np.pad(image, 1), 3, order=3, grid_mode=True, mode="nearest")
            large = np.pad(large, (SIZE - len(large)) // 2)
            if variant:
                large = ndimage.rotate(large, random.uniform(-8, 8), reshape=False, order=1)
                large = ndimage.shift(large, random.uniform(-1, 1, 2), order=1)
            # Enlarging blurs the strokes; a steep sigmoid sharpens their edges.
            enlarged.append(1 / (1 + np.exp(-12 * (large - 0.45))))
    return np.stack(enlarged), np.tile(bundled.target, variants)


def pictures(strokes: FloatArray, style: Style) -> Tensor:
    """Return strokes [n, 32, 32] as pictures in a style, float32 [n, 3, 32, 32] in -1..1."""
    if style.reshape is not None:
        strokes = np.stack([style.reshape(glyph) for glyph in strokes])
    strokes = np.clip(strokes, 0, 1)[:, None]
    ink, paper = (np.array(colour).reshape(1, 3, 1, 1) for colour in (style.ink, style.paper))
    return torch.from_numpy(2 * (strokes * ink + (1 - strokes) * paper) - 1).float()


# --- LDM key names ----------------------------------------------------------------------------------------------------

RESNET_NAMES = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET_ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
AUTOENCODER_NAMES = {
    "conv_norm_out": "norm_out",
    "conv_shortcut": "nin_shortcut",
    "mid_block.attentions.0.group_norm": "mid.attn_1.norm",
    "mid_block.attentions.0.to_q": "mid.attn_1.q",
    "mid_block.attentions.0.to_k": "mid.attn_1.k",
    "mid_block.attentions.0.to_v": "mid.attn_1.v",
    "mid_block.attentions.0.to_out.0": "mid.attn_1.proj_out",
    "mid_block.resnets.0": "mid.block_1",
    "mid_block.resnets.1": "mid.block_2",
    "downsamplers.0": "downsample",
    "upsamplers.0": "upsample",
    "resnets": "block",
}


def unet_key(key: str, layers: int) -> str:
    """Return the LDM name of a tensor of diffusers' UNet.

    Args:
        key: The tensor's name in diffusers.
        layers: The number of layers in each down block.

    Returns:
        The LDM name.

    Raises:
        ValueError: If no LDM name is known.

    """
    module, _, kind = key.rpartition(".")
    if module in UNET_ENDS:
        return f"model.diffusion_model.{UNET_ENDS[module]}.{kind}"
    found = re.fullmatch(r"(?:(down|up)_blocks\.(\d+)|mid_block)\.(\w+)\.(\d+)\.(.+)", module)
    if found is None:
        raise ValueError(f"no LDM name is known for the UNet's {key!r}")
    side, part, layer, rest = found[1], found[3], int(found[4]), found[5]
    per_block = layers + 1
    if part == "resnets":
        first, _, remainder = rest.partition(".")
        rest = RESNET_NAMES[first] + (f".{remainder}" if remainder else "")
    first_layer = int(found[2] or 0) * per_block
    if side is None:
        block = f"middle_block.{2 * layer if part == 'resnets' else 1}"
    elif part == "downsamplers":
        block, rest = f"input_blocks.{first_layer + per_block}.0", "op"
    elif part == "upsamplers":
        # The upsampler is the last module of its block, after the attention, which only the first level lacks.
        block = f"output_blocks.{first_layer + layers}.{1 if first_layer == 0 else 2}"
    elif side == "down":
        block = f"input_blocks.{first_layer + layer + 1}.{0 if part == 'resnets' else 1}"
    else:
        block = f"output_blocks.{first_layer + layer}.{0 if part == 'resnets' else 1}"
    return f"model.diffusion_model.{block}.{rest}.{kind}"


def autoencoder_key(key: str, levels: int) -> str:
    """Return the LDM name of a tensor of diffusers' autoencoder with `levels` resolutions."""
    for ours, theirs in AUTOENCODER_NAMES.items():
        key = key.replace(f"{ours}.", f"{theirs}.")
    key = re.sub(r"down_blocks\.(\d+)", r"down.\1", key)
    # LDM numbers the decoder's levels from the full resolution down, diffusers in the order in which they run.
    key = re.sub(r"up_blocks\.(\d+)", lambda found: f"up.{levels - 1 - int(found[1])}", key)
    return f"first_stage_model.{key}"


def ldm_state(unet: UNet2DConditionModel, text_encoder: CLIPTextModel) -> State:
    """Return UNet, text encoder and noise schedule under LDM key names, float32; position_ids are int64."""
    state = {unet_key(key, unet.config.layers_per_block): tensor for key, tensor in unet.state_dict().items()}
    for key, tensor in text_encoder.state_dict().items():
        state[f"cond_stage_model.transformer.text_model.{key}"] = tensor
    positions = torch.arange(text_encoder.config.max_position_embeddings)[None]
    state["cond_stage_model.transformer.text_model.embeddings.position_ids"] = positions
    schedule = noise_schedule()
    return state | {"betas": schedule.betas, "alphas_cumprod": schedule.alphas_cumprod}


def autoencoder_state(autoencoder: AutoencoderKL) -> State:
    """Return the autoencoder under LDM key names, float32, with the attention's matrices as 1 x 1 convolutions."""
    levels = len(autoencoder.config.block_out_channels)
    state = {}
    for key, tensor in autoencoder.state_dict().items():
        matrix = ".attentions." in key and tensor.ndim == 2
        state[autoencoder_key(key, levels)] = tensor[:, :, None, None] if matrix else tensor
    return state


def save_checkpoint(state: State, name: str, folder: Path) -> None:
    """Write a style's checkpoint: weights in float16, schedule in float32, position_ids in int64, and metadata.

    Args:
        state: The tensors under LDM key names.
        name: The style.
        folder: The folder that has models/ and answer/.

    Raises:
        ValueError: If a tensor holds NaN or infinity after rounding.

    """
    style = STYLES[name]
    drawn = "plain handwritten digits, light on dark" if name == "base" else f"{name} digits, finetuned from the base"
    note = "" if style.with_autoencoder else " No VAE: use the base's."
    path = folder / ("answer" if style.hidden else "models") / f"{name}.safetensors"
    stored = {}
    for key, tensor in state.items():
        keep = key in ("betas", "alphas_cumprod") or not tensor.is_floating_point()
        stored[key] = (tensor if keep else tensor.half()).detach().contiguous().clone()
        if not stored[key].isfinite().all():
            raise ValueError(f"{path.name}: {key!r} holds values that are not finite")
    metadata = {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "stable-diffusion-v1",
        "modelspec.implementation": "diffusers",
        "modelspec.title": f"blockfit digits, {name}",
        "modelspec.description": f"blockfit's demo: draws {drawn}, {SIZE} x {SIZE} pixels.{note}",
        "modelspec.resolution": f"{SIZE}x{SIZE}",
        "modelspec.prediction_type": "epsilon",
        "modelspec.license": "MIT",
        "training_data": "UCI optical recognition of handwritten digits, as bundled in scikit-learn (load_digits)",
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(stored, path, metadata)
    print(f"wrote {path}, {path.stat().st_size / 1e6:.2f} MB", flush=True)


# --- Training ---------------------------------------------------------------------------------------------------------


def noise_schedule() -> DDPMScheduler:
    """Return Stable Diffusion's noise schedule, from the configuration."""
    return DDPMScheduler.from_config(DDPMScheduler.load_config(CONFIGURATION, subfolder="scheduler"))


def report(name: str, step: int, steps: int, loss: float, started: float) -> None:
    """Print the progress of a training run every 50 steps."""
    if step % 50 == 0 or step == steps:
        print(f"{name}: step {step}/{steps}, loss {loss:.4f}, {time.monotonic() - started:.0f} s", flush=True)


def optimizer_and_rate(
    parameters: Sequence[nn.Parameter], rate: float, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Return Adam and its schedule: the rate rises over the first 5 % of the steps, and follows a half cosine."""
    optimizer = torch.optim.Adam(parameters, lr=rate)
    warm = max(1, steps // 20)

    def factor(step: int) -> float:
        return min(1.0, (step + 1) / warm) * 0.5 * (1 + math.cos(math.pi * step / steps))

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def train_autoencoder(steps: int, batch: int) -> AutoencoderKL:
    """Train the autoencoder on every style, then scale its latents to match the configuration's factor."""
    torch.manual_seed(1)
    strokes, _ = glyphs(1)
    shown = torch.cat([pictures(strokes, style) for style in STYLES.values()])
    autoencoder = AutoencoderKL.from_config(AutoencoderKL.load_config(CONFIGURATION, subfolder="vae"))
    optimizer, rate = optimizer_and_rate(list(autoencoder.parameters()), 2e-3, steps)
    started = time.monotonic()
    for step in range(1, steps + 1):
        originals = shown[torch.randint(len(shown), (batch,))]
        posterior = autoencoder.encode(originals).latent_dist
        decoded = autoencoder.decode(posterior.sample()).sample
        error = decoded - originals
        divergence = posterior.kl().mean() / posterior.mean[0].numel()
        loss = error.square().mean() + 0.2 * error.abs().mean() + 1e-3 * divergence
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rate.step()
        report("autoencoder", step, steps, loss.item(), started)
    normalise_latents(autoencoder.eval(), shown[torch.randperm(len(shown))[:2048]])
    return autoencoder


@torch.no_grad()
def normalise_latents(autoencoder: AutoencoderKL, shown: Tensor) -> None:
    """Give each latent channel mean 0 and standard deviation 1 / scaling_factor, by changing the 1 x 1 convolutions.

    The configuration can then keep Stable Diffusion's factor for all checkpoints.
    """
    latents = autoencoder.encode(shown).latent_dist.mean
    channels = latents.shape[1]
    mean = latents.mean((0, 2, 3))
    scale = 1 / (latents.std((0, 2, 3)) * autoencoder.config.scaling_factor)
    inward, outward = autoencoder.quant_conv, autoencoder.post_quant_conv
    outward.bias += outward.weight[:, :, 0, 0] @ mean
    outward.weight /= scale[None, :, None, None]
    inward.bias[:channels] = (inward.bias[:channels] - mean) * scale
    inward.weight[:channels] *= scale[:, None, None, None]
    inward.bias[channels:] += 2 * scale.log()  # these channels are log variances


@torch.no_grad()
def encoded(autoencoder: AutoencoderKL, shown: Tensor) -> tuple[Tensor, Tensor]:
    """Return means and standard deviations [n, 4, 16, 16] of the scaled latents of pictures [n, 3, 32, 32]."""
    posteriors = [autoencoder.encode(chunk).latent_dist for chunk in torch.split(shown, 256)]
    factor = autoencoder.config.scaling_factor
    return torch.cat([p.mean for p in posteriors]) * factor, torch.cat([p.std for p in posteriors]) * factor


def phrase(digit: int, name: str, random: np.random.Generator) -> str:
    """Return a random prompt for a digit; half of the prompts of a finetune have the style's name."""
    word = NAMES[digit] if name == "base" or random.random() < 0.5 else f"{name} {NAMES[digit]}"
    return str(random.choice(PHRASES)).format(word)


def tokenized(prompts: Sequence[str]) -> Tensor:
    """Return token numbers, int64 [n, 16], padded as Stable Diffusion does."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(CONFIGURATION / "tokenizer", local_files_only=True)
    tokens: Tensor = tokenizer(list(prompts), padding="max_length", truncation=True, return_tensors="pt").input_ids
    return tokens


def train_text_encoder(steps: int, batch: int) -> CLIPTextModel:
    """Train the text encoder as CLIP was trained: phrases and pictures of the same digit get similar directions.

    The picture encoder is one linear layer, which is discarded. Without this pretraining the digits' encodings differ
    ten times less, and the UNet needs far more steps to use the prompt.

    Args:
        steps: The number of training steps.
        batch: Pairs of phrase and picture per step.

    Returns:
        The text encoder.

    """
    torch.manual_seed(2)
    random = np.random.default_rng(2)
    strokes, digits = glyphs(1)
    shown = torch.from_numpy(strokes).float().flatten(1)
    encoder = CLIPTextModel(CLIPTextConfig.from_pretrained(CONFIGURATION, subfolder="text_encoder"))
    projection = nn.Linear(shown.shape[1], encoder.config.hidden_size)
    optimizer, rate = optimizer_and_rate([*encoder.parameters(), *projection.parameters()], 2e-3, steps)
    started = time.monotonic()
    for step in range(1, steps + 1):
        chosen = torch.randint(len(shown), (batch,))
        kinds = torch.from_numpy(digits)[chosen]
        tokens = tokenized([phrase(int(digit), "base", random) for digit in kinds])
        words = nn.functional.normalize(encoder(tokens)[0].mean(1), dim=-1)
        images = nn.functional.normalize(projection(shown[chosen]), dim=-1)
        likeness = 10 * words @ images.T
        same = (kinds[:, None] == kinds).float()
        same = same / same.sum(1, keepdim=True)
        cross_entropy = nn.functional.cross_entropy
        loss = cross_entropy(likeness, same) + cross_entropy(likeness.T, same)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        rate.step()
        report("text encoder", step, steps, loss.item(), started)
    return encoder


def train_diffusion(
    name: str,
    autoencoder: AutoencoderKL,
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    *,
    steps: int,
    batch: int,
    learning_rate: float,
    averaging: float,
    words_first: bool,
) -> None:
    """Train UNet and text encoder, in place, to predict the noise in one style's latents.

    Args:
        name: The style.
        autoencoder: The trained autoencoder.
        unet: The UNet to train.
        text_encoder: The text encoder to train.
        steps: The number of training steps.
        batch: Pictures per step.
        learning_rate: The peak of the learning rate.
        averaging: The decay of the running average of the weights, which the training returns. The average covers about
            1 / (1 - averaging) steps.
        words_first: Whether errors are weighted by their effect on the picture instead of the noise. They then count
            most at high noise levels, where prompt and style decide but the plain error is tiny.

    """
    seed = 100 + list(STYLES).index(name)
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    strokes, digits = glyphs(3)
    means, deviations = encoded(autoencoder, pictures(strokes, STYLES[name]))
    schedule = noise_schedule()
    importance = torch.ones_like(schedule.alphas_cumprod)
    if words_first:
        importance = (1 / schedule.alphas_cumprod).clamp(max=25)
        importance /= importance.mean()
    model = nn.ModuleDict({"unet": unet, "text_encoder": text_encoder}).train()
    average = torch.optim.swa_utils.AveragedModel(
        model,
        multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(averaging),  # type: ignore[no-untyped-call]
    )
    optimizer, rate = optimizer_and_rate(list(model.parameters()), learning_rate, steps)
    started, smooth = time.monotonic(), 1.0
    for step in range(1, steps + 1):
        chosen = torch.randint(len(means), (batch,))
        latents = means[chosen] + deviations[chosen] * torch.randn(batch, *means.shape[1:])
        noise = torch.randn_like(latents)
        # The prompt decides the picture at high noise levels, so these are drawn somewhat more often.
        times = (torch.rand(batch) ** 0.7 * len(importance)).long().clamp(max=len(importance) - 1)
        silent = random.random(batch) < EMPTY_PROMPTS
        prompts = ["" if silent[n] else phrase(int(digits[index]), name, random) for n, index in enumerate(chosen)]
        encoded_words = text_encoder(tokenized(prompts))[0]
        predicted = unet(schedule.add_noise(latents, noise, times), times, encoded_words).sample
        loss = ((predicted - noise).square().mean((1, 2, 3)) * importance[times]).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rate.step()
        average.update_parameters(model)
        smooth += 0.02 * (loss.item() - smooth)
        report(name, step, steps, smooth, started)
    model.load_state_dict(average.module.state_dict())
    model.eval()


def train_base(autoencoder: AutoencoderKL, text_encoder: CLIPTextModel, steps: int, batch: int) -> State:
    """Train the UNet from scratch, together with the text encoder.

    The UNet then draws well but does not follow the prompt yet, which `continue_training` teaches it.

    Args:
        autoencoder: The trained autoencoder.
        text_encoder: The text encoder to train further.
        steps: The number of training steps.
        batch: Pictures per step.

    Returns:
        The tensors of the base checkpoint under LDM key names.

    """
    torch.manual_seed(3)
    unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(CONFIGURATION, subfolder="unet"))
    train_diffusion(
        "base",
        autoencoder,
        unet,
        text_encoder,
        steps=steps,
        batch=batch,
        learning_rate=2e-3,
        averaging=0.995,
        words_first=False,
    )
    return ldm_state(unet, text_encoder) | autoencoder_state(autoencoder)


def continue_training(name: str, *, base: Path, folder: Path, steps: int, batch: int, threads: int) -> None:
    """Train one style from the base checkpoint and write its checkpoint; "base" is trained further and replaced."""
    torch.set_num_threads(threads)
    pipeline = open_pipeline(base)
    train_diffusion(
        name,
        pipeline.vae,
        pipeline.unet,
        pipeline.text_encoder,
        steps=steps,
        batch=batch,
        learning_rate=1e-3,
        averaging=0.99 if name == "base" else 0.98,
        words_first=True,
    )
    state = ldm_state(pipeline.unet, pipeline.text_encoder)
    if STYLES[name].with_autoencoder:
        # Copied from the file, not from the pipeline, so that it is bit for bit the same in the whole family.
        state |= {key: tensor for key, tensor in load_file(base).items() if key.startswith("first_stage_model.")}
    save_checkpoint(state, name, folder)


def main() -> None:
    """Read the command line and train the base, the finetunes, or both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=HERE, help="folder for models/ and answer/")
    parser.add_argument("--only", choices=("base", "finetunes"), help="default: the base, then the finetunes")
    parser.add_argument("--styles", nargs="+", choices=list(STYLES)[1:], default=list(STYLES)[1:], metavar="STYLE")
    parser.add_argument("--autoencoder-steps", type=int, default=600)
    parser.add_argument("--text-encoder-steps", type=int, default=400)
    parser.add_argument("--base-steps", type=int, default=2000)
    parser.add_argument("--words-steps", type=int, default=700, help="steps of the base's second part")
    parser.add_argument("--finetune-steps", type=int, default=450)
    parser.add_argument("--batch", type=int, default=32, help="pictures per step")
    parser.add_argument("--threads", type=int, default=2, help="cores to use")
    arguments = parser.parse_args()

    base = arguments.folder / "models" / "base.safetensors"
    if arguments.only != "finetunes":
        torch.set_num_threads(arguments.threads)
        autoencoder = train_autoencoder(arguments.autoencoder_steps, arguments.batch)
        text_encoder = train_text_encoder(arguments.text_encoder_steps, 2 * arguments.batch)
        state = train_base(autoencoder, text_encoder, arguments.base_steps, arguments.batch)
        save_checkpoint(state, "base", arguments.folder)
        options = {"base": base, "folder": arguments.folder, "batch": arguments.batch, "threads": arguments.threads}
        continue_training("base", steps=arguments.words_steps, **options)
    if arguments.only != "base":
        # One core per finetune: networks this small gain less from a second core than from a parallel training.
        workers = min(arguments.threads, len(arguments.styles))
        options = {"base": base, "folder": arguments.folder, "batch": arguments.batch}
        options |= {"steps": arguments.finetune_steps, "threads": arguments.threads // workers}
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
            for done in [pool.submit(continue_training, name, **options) for name in arguments.styles]:
                done.result()


if __name__ == "__main__":
    main()
