"""Attention on SDXL: one random input for each transformer block, and a block's similarity is the mean over them."""

import pytest
import torch
from comparing_attention import open_attention
from step_by_step import SDXL_ATTENTION, attention_by_definition

from optimizer.similarity import AttentionMetric
from optimizer.similarity.attention import attention_by_seed

SOURCES = ("base", "x", "y")
SELECTIONS = [
    tuple(SDXL_ATTENTION),
    ("IN05", "M00", "OUT02", "OUT05"),
    ("OUT04",),
]


@pytest.fixture(scope="module")
def family(tmp_path_factory, write_sdxl, sdxl_tensors):
    """Return the paths and the tensors of base, x, y and a target; M00's attention is narrower than the others'."""
    folder = tmp_path_factory.mktemp("sdxl-attention")
    base = sdxl_tensors(width=12)
    narrow = [name for name in base if "middle_block.1.transformer_blocks" in name and ".attn1." in name]
    tensors = {}
    for seed, name in enumerate((*SOURCES, "target")):
        made = sdxl_tensors(width=12, seed=seed, around=base, distance=0.3)
        cut = {each: made[each][:8, :8].contiguous() for each in narrow}
        tensors[name] = write_sdxl(folder / f"{name}.safetensors", around=made, distance=0.0, width=12, overrides=cut)
    return {name: folder / f"{name}.safetensors" for name in tensors}, tensors


def random_coefficients(groups, count):
    """Return coefficients [count, groups, sources] with sum 1, different in every group."""
    drawn = torch.rand(count, groups, 3, generator=torch.Generator().manual_seed(count), dtype=torch.float64) + 0.1
    return drawn / drawn.sum(dim=-1, keepdim=True)


def by_definition(comparison, tensors, coefficients, blocks, seed):
    """Return the similarities of merged tensors by block, in float64."""
    merged = {}
    for part in comparison.scored_parts(blocks):
        if ".attn1." in part.name:
            weights = coefficients[comparison.group_of(part)].tolist()
            held = zip(weights, SOURCES, strict=True)
            merged[part.name] = sum(weight * tensors[name][part.name].double() for weight, name in held)
    return attention_by_definition(merged, tensors["target"], blocks, seed, torch.float64, SDXL_ATTENTION)


@pytest.mark.parametrize("blocks", SELECTIONS, ids=["all", "some", "one"])
@pytest.mark.parametrize("batched", [False, True], ids=["cpu", "batched"])
def test_attention_is_its_definition(family, blocks, batched):
    """Both ways of scoring give the mean over the seeds of the definition in float64, to 1e-6."""
    paths, tensors = family
    with open_attention(paths, (114514, 7), layout="sdxl") as comparison:
        metric = AttentionMetric(comparison, blocks, batched=batched)
        coefficients = random_coefficients(len(comparison.groups), 3)
        found = metric.score(coefficients)
        each = [[by_definition(comparison, tensors, row, blocks, seed) for row in coefficients] for seed in (114514, 7)]

    expected = torch.tensor([[list(row.values()) for row in of_seed] for of_seed in each], dtype=torch.float64)
    assert list(each[0][0]) == list(metric.blocks) == list(blocks)
    torch.testing.assert_close(found, expected.mean(dim=0), rtol=0, atol=1e-6)
    assert float(expected.max()) < 0.999


@pytest.mark.parametrize("blocks", SELECTIONS[:2], ids=["all", "some"])
def test_other_seeds_are_the_definition(family, blocks):
    """The similarities by seed, one seed after another, are those of the definition, to 1e-6."""
    paths, tensors = family
    with open_attention(paths, (1,), layout="sdxl") as comparison:
        coefficients = random_coefficients(len(comparison.groups), 1)[0]
        found = attention_by_seed(comparison, blocks, coefficients, (3, 114514))
        rows = [by_definition(comparison, tensors, coefficients, blocks, seed) for seed in (3, 114514)]

    expected = torch.tensor([list(row.values()) for row in rows], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_transformer_blocks_have_their_own_inputs(family, tmp_path, write_sdxl):
    """A candidate that differs in the last of a block's ten transformer blocks alone loses a tenth of that one's."""
    paths, tensors = family
    last = f"model.diffusion_model.{SDXL_ATTENTION['IN07'][9]}.attn1."
    other = {name: tensors["x"][name] for name in tensors["x"] if name.startswith(last)}
    changed = {name: value for name, value in tensors["target"].items() if name.startswith("model.")} | other
    write_sdxl(tmp_path / "other.safetensors", width=12, overrides=changed)

    with open_attention({**paths, "base": tmp_path / "other.safetensors"}, (5,), layout="sdxl") as comparison:
        coefficients = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64).repeat(1, len(comparison.groups), 1)
        found = float(AttentionMetric(comparison, ("IN07",)).score(coefficients))

    torch.manual_seed(5)
    inputs = [torch.randn(12, 12) for _ in range(10)][9].double()
    outputs = []
    for of_file in (changed, tensors["target"]):
        query, key, value = (inputs @ of_file[f"{last}to_{which}.weight"].double().T for which in "qkv")
        outputs.append(torch.softmax(query @ key.T, dim=-1) * value.sum(dim=0))
    moved = float(torch.cosine_similarity(*outputs, dim=-1).mean())
    assert found == pytest.approx((9 + moved) / 10, abs=1e-6)
    assert moved < 0.999
