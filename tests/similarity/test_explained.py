"""`explained`, the share of the target's difference from the base, agrees with its definition on merged tensors."""

import json

import pytest
import torch
from safetensors.torch import save_file
from step_by_step import block_of, merged_names

from optimizer.cli import main
from optimizer.errors import InputError
from optimizer.families import load_layout
from optimizer.similarity import build_metric, compare, measure_statistics, open_comparison

LAYOUT = load_layout("sd1")
BLOCKS = ("BASE", "IN04", "M00", "OUT05")
MIDDLE = "model.diffusion_model.middle_block."
TEXT = "cond_stage_model."


@pytest.fixture(scope="module")
def family(tmp_path_factory, write_sd1, sd1_tensors):
    """Return a base, two finetunes of it and a target, all float32: paths and tensors by name."""
    folder = tmp_path_factory.mktemp("explained")
    around = sd1_tensors(seed=0)
    tensors = {
        name: write_sd1(folder / f"{name}.safetensors", seed=seed, around=around, distance=0.2 if seed else 0.0)
        for seed, name in enumerate(("base", "x", "y", "target"))
    }
    return folder, tensors


def squared(first, second, block):
    """Return |first - second|^2 over the block's scored tensors, in float64."""
    names = [
        name for name in merged_names(first) if block_of(name) == block and not name.startswith("first_stage_model.")
    ]
    return sum(float((first[name].double() - second[name].double()).square().sum()) for name in names)


def candidates(groups, count=7, largest=1.5):
    """Return coefficients [count, groups, 3] with sum 1: the base, the target's neighbourhood and far ones."""
    random = torch.Generator().manual_seed(3)
    drawn = torch.rand(count, groups, 3, generator=random, dtype=torch.float64) * largest
    drawn[0] = torch.tensor([1.0, 0.0, 0.0])
    drawn[..., 0] = 1 - drawn[..., 1:].sum(dim=-1)
    return drawn


@pytest.mark.parametrize("based", [True, False])
def test_values_are_the_definition(family, based):
    """Values are 1 - |merged - target|^2 / |base - target|^2, per block and pooled.

    Without a base the first source is the base.
    """
    folder, tensors = family
    order = ("base", "x", "y") if based else ("x", "base", "y")
    paths = {name: folder / f"{name}.safetensors" for name in order}
    base = paths["base"] if based else None
    with open_comparison(LAYOUT, paths, folder / "target.safetensors", base=base) as opened:
        metric = build_metric("explained", opened, BLOCKS, measure_statistics(opened, BLOCKS))
        given = candidates(len(opened.groups))
        found, pooled, distance = metric.score(given), metric.pooled(given), metric.distance(given)
        rows = {group.block: row for row, group in enumerate(opened.groups)}

    origin, target = tensors[order[0]], tensors["target"]
    for number, coefficients in enumerate(given):
        left = {}
        for block in BLOCKS:
            shares = coefficients[rows[block]].tolist()
            merged = {
                name: sum(share * tensors[source][name].double() for share, source in zip(shares, order, strict=True))
                for name in merged_names(target)
            }
            left[block] = squared(merged, target, block)
        whole = {block: squared(origin, target, block) for block in BLOCKS}
        expected = [max(1 - left[block] / whole[block], -1) for block in BLOCKS]
        assert found[number].tolist() == pytest.approx(expected, abs=1e-9)
        total = sum(left.values()) / sum(whole.values())
        assert float(pooled[number]) == pytest.approx(max(1 - total, -1), abs=1e-9)
        assert float(distance[number]) == pytest.approx(total**0.5, abs=1e-9)


def test_length_of_the_difference_counts(family):
    """Half of the way to the target explains three quarters, twice the way nothing, and no way nothing."""
    folder, _ = family
    target = folder / "target.safetensors"
    sources = {"base": folder / "base.safetensors", "copy": target}
    with open_comparison(LAYOUT, sources, target, base=sources["base"]) as opened:
        metric = build_metric("explained", opened, ("M00",), measure_statistics(opened, ("M00",)))
        ways = torch.tensor([0.0, 0.5, 1.0, 2.0, 3.0], dtype=torch.float64)[:, None, None]
        along = ways * torch.tensor([-1.0, 1.0], dtype=torch.float64) + torch.tensor([1.0, 0.0], dtype=torch.float64)
        found = metric.score(along.expand(-1, len(opened.groups), -1))[:, 0]
    assert found.tolist() == pytest.approx([0, 0.75, 1, 0, -1], abs=1e-12)


def test_unchanged_blocks_are_not_scored(family, tmp_path):
    """A block that the target took from the base is not scored, and a merge that changes it costs distance."""
    folder, tensors = family
    mixed = {n: (tensors["base"][n] if n.startswith(MIDDLE) else v).clone() for n, v in tensors["target"].items()}
    save_file(mixed, tmp_path / "mixed.safetensors")
    paths = {name: folder / f"{name}.safetensors" for name in ("base", "x", "y")}
    with open_comparison(LAYOUT, paths, tmp_path / "mixed.safetensors", base=paths["base"]) as opened:
        statistics = measure_statistics(opened, BLOCKS)
        explained, delta = (build_metric(name, opened, BLOCKS, statistics) for name in ("explained", "delta"))
        given = candidates(len(opened.groups))[:2]
        moved = given.clone()
        middle = next(row for row, group in enumerate(opened.groups) if group.block == "M00")
        moved[:, middle] = torch.tensor([0.5, 0.5, 0.0])
        scores = explained.score(given), explained.score(moved)
        distances = explained.distance(given[:1]), explained.distance(moved[:1])
    for metric in (explained, delta):
        assert (metric.blocks, metric.unchanged) == (("BASE", "IN04", "OUT05"), ("M00",))
    assert torch.equal(*scores)
    assert float(distances[1]) > float(distances[0])


def test_first_source_stands_for_tensors_that_the_base_lacks(family, tmp_path, write_sd1):
    """If the base has no text encoder, the first source that has one stands for it."""
    folder, tensors = family
    bare = {name: value for name, value in tensors["base"].items() if not name.startswith(TEXT)}
    save_file(bare, tmp_path / "bare.safetensors")
    paths = {"bare": tmp_path / "bare.safetensors", "x": folder / "x.safetensors", "y": folder / "y.safetensors"}
    with open_comparison(LAYOUT, paths, folder / "target.safetensors", base=paths["bare"]) as opened:
        metric = build_metric("explained", opened, ("BASE",), measure_statistics(opened, ("BASE",)))
        group = next(row for row, group in enumerate(opened.groups) if group.holders == (1, 2))
        given = torch.zeros(3, len(opened.groups), 3, dtype=torch.float64)
        given[:, group] = torch.tensor([[0, 1, 0], [0, 0.5, 0.5], [0, 0, 1]], dtype=torch.float64)
        found = metric.score(given)[:, 0].tolist()
    x, y, target = tensors["x"], tensors["y"], tensors["target"]
    names = [name for name in merged_names(target) if name.startswith(TEXT)]

    def left(share):
        return sum(float((share * x[n].double() + (1 - share) * y[n].double() - target[n].double()).square().sum())
                   for n in names)  # fmt: skip

    assert found == pytest.approx([0.0, 1 - left(0.5) / left(1.0), 1 - left(0.0) / left(1.0)], abs=1e-9)


def test_compare_returns_the_share_explained(family, tmp_path, capsys):
    """With a base `compare` returns the share explained, null for unchanged blocks.

    Without one it returns the article's table.
    """
    folder, tensors = family
    mixed = {n: (tensors["base"][n] if n.startswith(MIDDLE) else v).clone() for n, v in tensors["target"].items()}
    save_file(mixed, tmp_path / "mixed.safetensors")
    given = ["compare", str(folder / "x.safetensors"), "--target", str(tmp_path / "mixed.safetensors"), "--json"]

    def run(*options):
        with pytest.raises(SystemExit) as left:
            main([*given, *options])
        assert not left.value.code
        return json.loads(capsys.readouterr().out)[0]

    found = run("--base", str(folder / "base.safetensors"), "--blocks", ",".join(BLOCKS))
    left, whole = (
        {block: squared(tensors[name], mixed, block) for block in BLOCKS if block != "M00"} for name in ("x", "base")
    )
    expected = {block: max(1 - left[block] / whole[block], -1) for block in left}
    assert found["metric"] == "explained"
    assert list(found["blocks"]) == list(BLOCKS)
    assert found["blocks"].pop("M00", "missing") is None
    assert found["blocks"] == pytest.approx(expected, abs=1e-9)
    assert found["total"] == pytest.approx(sum(expected.values()) / 3, abs=1e-9)
    assert found["pooled"] == pytest.approx(max(1 - sum(left.values()) / sum(whole.values()), -1), abs=1e-9)
    assert run()["metric"] == "attention"
    same = run("--base", str(folder / "base.safetensors"), "--blocks", "M00")
    assert (same["blocks"], same["total"], "pooled" in same) == ({"M00": None}, None, False)


def test_missing_base_is_refused(family):
    """The metric requires a base: a difference from the candidate itself explains nothing."""
    folder, _ = family
    with pytest.raises(InputError, match=r"^base: missing; the metric 'explained'"):
        compare(folder / "x.safetensors", folder / "target.safetensors", metric="explained")


def test_rounding_is_not_a_change(family, tmp_path, sd1_tensors, write_sd1):
    """A float16 target equal to a float32 base is unchanged, and a float16 source equal to the base is idle."""
    folder, tensors = family
    mixed = {n: (tensors["base"][n] if n.startswith(MIDDLE) else v) for n, v in tensors["target"].items()}
    halved = {n: (v.half() if v.is_floating_point() else v).contiguous() for n, v in mixed.items()}
    source = {n: (tensors["base"][n] if n.startswith(MIDDLE) else v) for n, v in tensors["x"].items()}
    for name, made in (
        ("target", halved),
        ("x", {n: v.half() if v.is_floating_point() else v for n, v in source.items()}),
    ):
        save_file({n: v.contiguous() for n, v in made.items()}, tmp_path / f"{name}.safetensors")
    near = {**halved, f"{MIDDLE}0.in_layers.0.bias": halved[f"{MIDDLE}0.in_layers.0.bias"] + 1e-2}
    save_file(near, tmp_path / "near.safetensors")
    paths = {"base": folder / "base.safetensors", "x": tmp_path / "x.safetensors"}
    found = {}
    for name in ("target", "near"):
        with open_comparison(LAYOUT, paths, tmp_path / f"{name}.safetensors", base=paths["base"]) as opened:
            statistics = measure_statistics(opened, BLOCKS)
            found[name] = build_metric("explained", opened, BLOCKS, statistics).unchanged
            middle = [row for row, block in enumerate(statistics.blocks) if block == "M00"]
            assert not statistics.gram[middle, 2].any()
    assert found == {"target": ("M00",), "near": ()}
