"""Pipeline configurations and tokenizers."""

import hashlib
import json
from importlib import resources
from pathlib import Path

import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel

from optimizer.families import load_layout, load_tokenizer, pipeline_folder, prompts_file

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


@pytest.mark.parametrize("name", ["sd1", "digits"])
def test_tokenizer_goes_with_the_encoder(name):
    """A pipeline's tokenizer has as many tokens as its encoder, and the layout selects it by their number."""
    folder = pipeline_folder(name)
    config = CLIPTextConfig.from_pretrained(folder / "text_encoder", local_files_only=True)
    tokenizer = load_tokenizer(folder)

    assert len(tokenizer) == config.vocab_size
    assert load_layout("sd1").readable_encoder.pipelines[config.vocab_size].name == name
    assert (tokenizer.eos_token_id, tokenizer.model_max_length) == (config.eos_token_id, config.max_position_embeddings)


def test_sd1_encoder_is_clip_vit_l():
    """The configuration has the 123 million parameters of Stable Diffusion 1.x's text encoder."""
    with torch.device("meta"):
        model = CLIPTextModel(CLIPTextConfig.from_pretrained(pipeline_folder("sd1") / "text_encoder"))

    assert sum(parameter.numel() for parameter in model.parameters()) == 123_060_480
