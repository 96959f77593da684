"""Pipeline configurations and tokenizers."""

import hashlib
import json
from importlib import resources
from pathlib import Path

import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from optimizer.families import Pipeline, load_layout, load_tokenizer, pipeline_folder, prompts_file

# Tokens by text, without those of beginning and end, from OpenAI's tokenizer (openai/CLIP, simple_tokenizer.py). The
# texts are the packaged prompts, their words in other orders, emphasis, signs and letters of many scripts.
TOKENS = json.loads((Path(__file__).parent / "clip_tokens.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def clip():
    """Stable Diffusion 1.x's tokenizer as blockfit loads it."""
    return load_tokenizer(pipeline_folder("sd1"))


def test_the_vocabulary_is_openais():
    """The packaged file is the one that openai/CLIP publishes, with its licence beside it."""
    folder = resources.files("optimizer.families") / "vocabularies"

    packed = (folder / "bpe_simple_vocab_16e6.txt.gz").read_bytes()
    assert hashlib.sha256(packed).hexdigest() == "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a"
    assert "Copyright (c) 2021 OpenAI" in (folder / "LICENSE-CLIP.txt").read_text(encoding="utf-8")


def test_texts_are_tokenized_as_by_clip(clip):
    """Every text has the tokens of OpenAI's tokenizer, between those of beginning and end."""
    found = clip(list(TOKENS))["input_ids"]

    assert len(TOKENS) > 300
    assert dict(zip(TOKENS, found, strict=True)) == {text: [49406, *tokens, 49407] for text, tokens in TOKENS.items()}


def test_prompts_fit_the_encoder(clip):
    """The 64 packaged prompts are among these texts, short and long, and all fit the encoder."""
    prompts = prompts_file(pipeline_folder("sd1")).read_text(encoding="utf-8").splitlines()

    assert len(prompts) == len(set(prompts) & set(TOKENS)) == 64
    lengths = [len(TOKENS[prompt]) + 2 for prompt in prompts]
    assert min(lengths) < 6
    assert 60 < max(lengths) <= 77


def test_long_prompts_are_cut(clip):
    """A prompt that is too long for the encoder is cut to 77 tokens, the end token included."""
    (whole,) = clip(["a very long prompt " * 40])["input_ids"]

    (found,) = clip(["a very long prompt " * 40], truncation=True)["input_ids"]

    assert len(whole) == 40 * 4 + 2
    assert found == [*whole[:76], 49407]


@pytest.mark.parametrize(("layout", "name"), [("sd1", "sd1"), ("sd1", "digits"), ("sdxl", "sdxl")])
def test_tokenizer_goes_with_the_encoder(layout, name):
    """A pipeline's tokenizer has as many tokens as its encoder, and the layout selects it by their number."""
    folder = pipeline_folder(name)
    config = CLIPTextConfig.from_pretrained(folder / "text_encoder", local_files_only=True)
    tokenizer = load_tokenizer(folder)

    assert len(tokenizer) == config.vocab_size
    assert load_layout(layout).readable_encoder.pipelines[config.vocab_size].name == name
    assert (tokenizer.eos_token_id, tokenizer.model_max_length) == (config.eos_token_id, config.max_position_embeddings)


@pytest.mark.parametrize(("layout", "name"), [("sd1", "sd1"), ("sd1", "digits"), ("sdxl", "sdxl")])
def test_layouts_have_the_numbers_of_the_configurations(layout, name):
    """A layout's layers, heads and activation of each encoder are those with which diffusers draws."""
    for number, encoder in enumerate(load_layout(layout).readable_encoders, 1):
        folder = pipeline_folder(name) / ("text_encoder" if number == 1 else f"text_encoder_{number}")
        config = CLIPTextConfig.from_pretrained(folder, local_files_only=True)
        pipelines = (encoder.pipelines or {}).values()
        own = next((each for each in pipelines if each.name == name), Pipeline(name=name))

        assert (own.layers or encoder.layers, own.heads or encoder.heads, encoder.activation) == (
            config.num_hidden_layers, config.num_attention_heads, config.hidden_act,
        )  # fmt: skip


def test_sdxl_has_its_sizes():
    """The configurations of SDXL's parts have its 3,468.8 million parameters."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    folder = str(pipeline_folder("sdxl"))
    with torch.device("meta"):
        models = [
            UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(folder, subfolder="unet")),
            AutoencoderKL.from_config(AutoencoderKL.load_config(folder, subfolder="vae")),
            CLIPTextModel(CLIPTextConfig.from_pretrained(f"{folder}/text_encoder")),
            CLIPTextModelWithProjection(CLIPTextConfig.from_pretrained(f"{folder}/text_encoder_2")),
        ]

    millions = [sum(parameter.numel() for parameter in model.parameters()) / 1e6 for model in models]
    assert millions == pytest.approx([2567.46, 83.65, 123.06, 694.66], abs=0.01)


def test_sd1_encoder_is_clip_vit_l():
    """The configuration has the 123 million parameters of Stable Diffusion 1.x's text encoder."""
    with torch.device("meta"):
        model = CLIPTextModel(CLIPTextConfig.from_pretrained(pipeline_folder("sd1") / "text_encoder"))

    assert sum(parameter.numel() for parameter in model.parameters()) == 123_060_480
