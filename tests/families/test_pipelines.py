"""Pipeline configurations and tokenizers."""

import importlib.util
from importlib import metadata

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import CLIPTextConfig, CLIPTextModel

from optimizer.families import load_layout, load_tokenizer, pipeline_folder


@pytest.fixture(scope="module")
def original():
    """OpenAI's own tokenizer; the rest of its package needs torchvision."""
    path = metadata.distribution("openai-clip").locate_file("clip/simple_tokenizer.py")
    spec = importlib.util.spec_from_file_location("simple_tokenizer", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.SimpleTokenizer()


@pytest.fixture(scope="module")
def clip():
    """Stable Diffusion 1.x's tokenizer as blockfit loads it."""
    return load_tokenizer(pipeline_folder("sd1"))


def test_prompts_are_tokenized_as_by_clip(original, clip):
    """The 64 prompts that ship have the tokens that OpenAI's tokenizer gives them, all within the encoder's length."""
    prompts = (pipeline_folder("sd1") / "prompts.txt").read_text(encoding="utf-8").splitlines()

    found = clip(prompts)["input_ids"]

    assert len(prompts) == len(set(prompts)) == 64
    assert found == [[49406, *original.encode(prompt), 49407] for prompt in prompts]
    assert min(map(len, found)) < 6
    assert 60 < max(map(len, found)) <= 77


@given(st.text("abcdefgXYZ 0123456789,.:;()<>_-'!&é漢😀", max_size=80))
def test_any_text_is_tokenized_as_by_clip(original, clip, text):
    """So is other text, emphasis, names and signs in it."""
    assert clip([text])["input_ids"][0] == [49406, *original.encode(text), 49407]


def test_long_prompts_are_cut(original, clip):
    """A prompt that is too long for the encoder is cut to 77 tokens, its end among them."""
    text = "a very long prompt " * 40

    (found,) = clip([text], truncation=True)["input_ids"]

    assert found == [49406, *original.encode(text)[:75], 49407]


@pytest.mark.parametrize("name", ["sd1", "digits"])
def test_tokenizer_goes_with_the_encoder(name):
    """A pipeline's tokenizer knows as many tokens as its encoder, and the layout knows it by their number."""
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
