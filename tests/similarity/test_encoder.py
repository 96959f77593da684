"""The encoder metric agrees with transformers' model run as users run it: padded, on merged files."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast
from watching import META, Watching

from optimizer.errors import CheckpointError, InputError
from optimizer.families import load_layout, pipeline_folder
from optimizer.merging import merge
from optimizer.recipes import Algebra, Alpha, Model, Recipe, Step
from optimizer.similarity import EncoderOptions, Options, build_metric, compare, encoder, open_comparison, read_prompts
from optimizer.similarity.encoder import EncoderMetric

DEMO = Path(__file__).parents[2] / "studies" / "demo"
LAYOUT = load_layout("sd1")
PREFIX = "cond_stage_model.transformer.text_model."
MODELS = {name: DEMO / "models" / f"{name}.safetensors" for name in ("base", "bold", "inverted", "slanted")}
PROMPTS = (
    "seven",
    "a bold three in outline style",
    "",
    "what is not in the vocabulary",
    " ".join(["a picture of the number nine"] * 5),
)


@pytest.fixture(scope="module")
def recipe():
    """Return a recipe with two steps, both of which move the text encoder."""
    steps = (
        Step("T1", "add_difference", "bold", "inverted", "base", Alpha({"BASE": 0.3})),
        Step("T2", "weight_sum", "T1", "slanted", None, Alpha({"BASE": 0.25})),
    )
    return Recipe("r", LAYOUT, {name: Model(str(path)) for name, path in MODELS.items()}, steps, "T2")


@pytest.fixture(scope="module")
def merged(recipe, tmp_path_factory):
    """Return the path of the recipe's float32 merge."""
    path = tmp_path_factory.mktemp("merged") / "merged.safetensors"
    merge(recipe, MODELS, path, dtype=torch.float32)
    return path


def by_definition(candidate, target, prompts, clip_skip):
    """Return the similarity of two files' text encoders, with prompts padded to 16 tokens and all layers computed."""
    folder = pipeline_folder("digits")
    tokens = PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer", local_files_only=True)(
        list(prompts), padding="max_length", truncation=True, max_length=16, return_tensors="pt"
    )
    states = []
    for file in (candidate, target):
        model = CLIPTextModel(CLIPTextConfig.from_pretrained(folder / "text_encoder", local_files_only=True)).eval()
        inner = getattr(model, "text_model", model)  # before transformers 5.6
        stored = {name[len(PREFIX) :]: tensor for name, tensor in load_file(file).items() if name.startswith(PREFIX)}
        inner.load_state_dict({name: stored[name].float() for name in inner.state_dict()})
        with torch.no_grad():
            layers = model(tokens["input_ids"], tokens["attention_mask"], output_hidden_states=True).hidden_states
            states.append(inner.final_layer_norm(layers[-clip_skip]).double())
    cosines = torch.nn.functional.cosine_similarity(*states, dim=-1)
    lengths = tokens["attention_mask"].sum(dim=1).tolist()
    return sum(float(row[:length].mean()) for row, length in zip(cosines, lengths, strict=True)) / len(lengths)


@pytest.fixture(scope="module")
def scored(recipe):
    """A function that scores the recipe's result, optionally prepared for the line through other recipes."""
    with open_comparison(LAYOUT, MODELS, DEMO / "target.safetensors") as opened:

        def score(prompts, clip_skip=1, *, along=None):
            comparison = replace(opened, options=Options((EncoderOptions(clip_skip=clip_skip).with_texts(prompts),)))
            metric = build_metric("encoder", comparison, ("BASE",))
            algebra = Algebra(recipe, comparison.groups, tuple(MODELS))
            rows = algebra.coefficients(algebra.starting_alphas())
            if along is not None:
                others = [Algebra(other, comparison.groups, tuple(MODELS)) for other in along]
                starts = [algebra.coefficients(algebra.starting_alphas()) for algebra in others]
                metric.prepare(torch.cat([rows, *starts]))
            assert metric.blocks == ("BASE",)
            return float(metric.score(rows)[0, 0])

        yield score


@pytest.mark.parametrize("clip_skip", [1, 2])
@pytest.mark.parametrize("prompts", [PROMPTS, PROMPTS[:1], None])
def test_encoder_is_its_definition(scored, merged, prompts, clip_skip):
    """The batched score with few tokens and layers equals that of the padded prompts on the merged file."""
    shipped = (pipeline_folder("digits") / "prompts.txt").read_text(encoding="utf-8").splitlines()

    found = scored(prompts, clip_skip)

    expected = by_definition(merged, DEMO / "target.safetensors", prompts or shipped, clip_skip)
    assert found == pytest.approx(expected, abs=1e-6)
    assert expected < 0.9999


def test_line_does_not_change_the_score(recipe, scored):
    """Preparation for the line of one alpha does not change the score."""
    first, _ = recipe.steps
    others = [
        Recipe("r", LAYOUT, recipe.models, (first, Step("T2", "weight_sum", "T1", "slanted", None, alpha)), "T2")
        for alpha in (Alpha({"BASE": 0.0}), Alpha({"BASE": 1.0}))
    ]

    assert scored(PROMPTS, along=others) == pytest.approx(scored(PROMPTS), abs=1e-6)


@settings(max_examples=15, deadline=None)
@given(
    prompts=st.lists(
        st.lists(st.sampled_from(["a", "bold", "slanted", "seven", "three", "picture"])), min_size=2, max_size=9
    )
)
def test_mean_over_prompts(scored, prompts):
    """The score over prompts is the mean of the scores over each, in any batches."""
    texts = [" ".join(words) for words in prompts]

    together = scored(tuple(texts))

    assert together == pytest.approx(sum(scored((text,)) for text in texts) / len(texts), abs=1e-6)


def test_transformers_before_5_6(scored, monkeypatch):
    """A CLIPTextModel with parameters named `text_model.*`, as in transformers 5.0 to 5.5, scores the same."""

    class Nested(nn.Module):
        def __init__(self, config):
            super().__init__()
            model = CLIPTextModel(config)
            self.text_model = getattr(model, "text_model", model)

        def forward(self, tokens):
            return self.text_model(tokens)

    expected = scored(PROMPTS)
    monkeypatch.setattr("transformers.CLIPTextModel", Nested)

    assert scored(PROMPTS) == expected


def test_same_encoder_scores_1(tmp_path):
    """A checkpoint with the target's text encoder scores 1, whatever its other tensors are."""
    tensors = load_file(DEMO / "target.safetensors")
    for name, tensor in load_file(MODELS["inverted"]).items():
        if not name.startswith(PREFIX):
            tensors[name] = tensor
    save_file(tensors, tmp_path / "candidate.safetensors")

    found = compare(tmp_path / "candidate.safetensors", DEMO / "target.safetensors", metric="encoder")

    assert found == {"BASE": pytest.approx(1, abs=1e-7)}


def test_unknown_encoder_is_refused(kin):
    """A text encoder with an unknown tokenizer is refused, with the file and the known tokenizers."""
    with pytest.raises(
        CheckpointError, match=r"target\.safetensors: the text encoder has \d+ tokens; sd1 has .*49,408"
    ):
        compare(kin.paths["base"], kin.paths["target"], metric="encoder")


def test_incomplete_encoder_is_refused(tmp_path):
    """A target that lacks a tensor of the text encoder is refused, with the tensor's name."""
    tensors = load_file(DEMO / "target.safetensors")
    del tensors[f"{PREFIX}final_layer_norm.bias"]
    save_file(tensors, tmp_path / "target.safetensors")

    with pytest.raises(CheckpointError, match=r"target\.safetensors: tensor '.*final_layer_norm\.bias' is missing"):
        compare(MODELS["base"], tmp_path / "target.safetensors", metric="encoder")


@pytest.mark.parametrize("lacking", ["candidate", "target"])
@pytest.mark.parametrize("blocks", ["all", "BASE"])
def test_file_without_an_encoder_is_named(tmp_path, lacking, blocks):
    """The one of two files without a text encoder is named."""
    tensors = {name: tensor for name, tensor in load_file(MODELS["bold"]).items() if not name.startswith(PREFIX)}
    save_file(tensors, tmp_path / "bare.safetensors")
    files = {"candidate": MODELS["base"], "target": DEMO / "target.safetensors"}
    files[lacking] = tmp_path / "bare.safetensors"

    with pytest.raises(CheckpointError) as caught:
        compare(files["candidate"], files["target"], metric="encoder", blocks=blocks)

    (problem,) = caught.value.problems
    assert problem.startswith(f"{tmp_path / 'bare.safetensors'}: has no text encoder: tensor ")


def test_candidate_that_lacks_a_tensor_is_named(tmp_path):
    """A candidate that lacks a tensor of the text encoder is named; the target that has it is not."""
    tensors = load_file(MODELS["bold"])
    del tensors[f"{PREFIX}final_layer_norm.bias"]
    save_file(tensors, tmp_path / "candidate.safetensors")

    with pytest.raises(
        CheckpointError, match=r"^[^:]*candidate\.safetensors: tensor '.*final_layer_norm\.bias' is missing[^\n]*$"
    ):
        compare(tmp_path / "candidate.safetensors", DEMO / "target.safetensors", metric="encoder")


@pytest.mark.parametrize("blocks", ["output", "input", "middle"])
def test_unseen_blocks_are_refused(blocks):
    """Blocks that the metric does not see are refused, with those that it sees."""
    with pytest.raises(InputError, match=f"^blocks: {blocks} contains no block that 'encoder' sees; it sees BASE$"):
        compare(MODELS["base"], DEMO / "target.safetensors", metric="encoder", blocks=blocks)


def test_nan_is_refused(tmp_path):
    """NaN in a text encoder is refused, with the file and the tensor."""
    tensors = load_file(MODELS["base"])
    tensors[f"{PREFIX}final_layer_norm.bias"][3] = float("nan")
    save_file(tensors, tmp_path / "broken.safetensors")

    with pytest.raises(
        CheckpointError, match=r"broken\.safetensors: tensor '.*final_layer_norm\.bias' holds NaN or Inf"
    ):
        compare(tmp_path / "broken.safetensors", DEMO / "target.safetensors", metric="encoder")


def test_missing_layer_is_refused():
    """The third from the last layer of the demo's encoder, which has two, is refused."""
    with pytest.raises(InputError, match=r"^clip_skip: received 3; must be from 1, the last layer, to 2"):
        compare(MODELS["base"], DEMO / "target.safetensors", metric="encoder", clip_skip=3)


def test_prompts_are_read_line_by_line(tmp_path):
    """A file of prompts has one a line; a byte order mark, Windows line ends and empty lines do not matter."""
    (tmp_path / "a.txt").write_bytes("\ufeffone, two\r\n\r\n  drei: größer\r\n".encode())

    assert read_prompts(tmp_path / "a.txt") == ("one, two", "drei: größer")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\n \n", "contains no prompt; must contain 1 to 10,000 prompts"),
        (b"a\n" * 10_001, "contains 10,001 prompts"),
        ("größer".encode("latin-1"), "is not text in UTF-8"),
        (b"one\ntw\x1b[31mo\n", "line 2: contains the character '\\x1b'; leave it out"),
        (b"a" * (1 << 23), "more than 4,194,304 bytes"),
        (None, "cannot be read: No such file"),
    ],
)
def test_file_without_prompts_is_refused(tmp_path, content, reason):
    """A file that is not a list of prompts is refused in one line with the reason."""
    if content is not None:
        (tmp_path / "p.txt").write_bytes(content)

    with pytest.raises(InputError) as caught:
        read_prompts(tmp_path / "p.txt")

    assert reason in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "p.txt"))


def test_gpu_form_scores_the_same(recipe, scored, monkeypatch):
    """One tensor for all parameters of a source gives the same score, on a line and off it."""
    others = [Recipe("r", LAYOUT, recipe.models, recipe.steps[:1], "T1")]
    whole = replace(recipe.steps[1], alpha=Alpha({"BASE": 1.0}))
    lines = [None, [*others, replace(recipe, steps=(recipe.steps[0], whole))]]
    expected = [scored(PROMPTS, along=along) for along in lines]
    monkeypatch.setattr(encoder, "_read", encoder._read_to_gpu)

    assert [scored(PROMPTS, along=along) for along in lines] == pytest.approx(expected, abs=1e-9)


def test_gpu_form_refuses_nan(tmp_path, monkeypatch):
    """The GPU's form names file and tensor of NaN, though all are checked at the end."""
    tensors = load_file(MODELS["base"])
    tensors[f"{PREFIX}final_layer_norm.bias"][3] = float("inf")
    save_file(tensors, tmp_path / "broken.safetensors")
    monkeypatch.setattr(encoder, "_read", encoder._read_to_gpu)

    with pytest.raises(
        CheckpointError, match=r"broken\.safetensors: tensor '.*final_layer_norm\.bias' holds NaN or Inf"
    ):
        compare(tmp_path / "broken.safetensors", DEMO / "target.safetensors", metric="encoder")


def test_gpu_takes_few_operations():
    """Merging takes one operation per source, and the scores of several candidates come back in one copy."""
    with open_comparison(LAYOUT, MODELS, DEMO / "target.safetensors") as comparison:
        with Watching() as gpu:
            metric = EncoderMetric(replace(comparison, device=META), ("BASE",))
        assert gpu.to_host == 1
        rows = torch.full((2, len(comparison.groups), len(MODELS)), 0.25, dtype=torch.float64)
        with Watching() as gpu:
            metric.score(rows)

    assert (gpu.to_gpu, gpu.to_host) == (0, 1)
    assert gpu.operations["zeros"] == 0
    assert 2 * len(MODELS) <= gpu.operations["add_"] <= 2 * (len(MODELS) + len(metric._batches))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch can use no NVIDIA GPU here")
def test_gpu_agrees_with_the_cpu(recipe):
    """A GPU gives the scores of the CPU."""
    scores = []
    for device in ("cpu", "cuda"):
        with open_comparison(LAYOUT, MODELS, DEMO / "target.safetensors", device=torch.device(device)) as comparison:
            metric = build_metric("encoder", comparison, ("BASE",))
            algebra = Algebra(recipe, comparison.groups, tuple(MODELS))
            scores.append(float(metric.score(algebra.coefficients(algebra.starting_alphas()))[0, 0]))
    assert scores[1] == pytest.approx(scores[0], abs=1e-5)
