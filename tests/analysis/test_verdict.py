"""Verdicts on planted targets of each kind: what is in them, what is missing, and what is only rounding."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from optimizer.analysis import study_ceilings
from optimizer.analysis.evidence import rounding_error
from optimizer.analysis.verdict import percentage
from optimizer.search import fit, study_status
from optimizer.studies import first_study, load_study

WIDTH = 24
BASE = "v1-5-pruned-emaonly"


@pytest.fixture(scope="module")
def family(tmp_path_factory, sd1_tensors):
    """A folder with a base and its finetunes a to d, in float32, and their tensors."""
    folder = tmp_path_factory.mktemp("family")
    tensors = {BASE: sd1_tensors(seed=0, width=WIDTH)}
    for seed, name in enumerate("abcd", start=1):
        tensors[name] = sd1_tensors(seed=seed, width=WIDTH, around=tensors[BASE], distance=0.05)
    for name, values in tensors.items():
        save_file(values, folder / f"{name}.safetensors")
    return folder, tensors


def floats(tensors):
    """Return the floating-point tensors."""
    return {name: value for name, value in tensors.items() if value.is_floating_point()}


def mix(tensors, **coefficients):
    """Return the base plus differences from it, in float64."""
    base = floats(tensors[BASE])
    return {
        name: value.double() + sum(c * (tensors[k][name].double() - value.double()) for k, c in coefficients.items())
        for name, value in base.items()
    }


def noisy(values, size, chosen=lambda name, value: True):
    """Return tensors with normal noise added to the chosen ones."""
    random = torch.Generator().manual_seed(5)
    return {
        name: value + size * torch.randn(value.shape, generator=random, dtype=torch.float64)
        if chosen(name, value)
        else value
        for name, value in values.items()
    }


@pytest.fixture
def verdict_on(family, tmp_path):
    """A function that returns the verdict on a target with these tensors and sources."""
    folder, _ = family

    def judged(target, sources, *, dtype=torch.float16, base=BASE):
        path = tmp_path / "target.safetensors"
        save_file({name: value.to(dtype).contiguous() for name, value in target.items()}, path)
        files = [folder / f"{name}.safetensors" for name in (base, *sources)]
        output = tmp_path / f"study {len(list(tmp_path.iterdir()))}"
        first_study(path, files, output, base=files[0])
        return study_ceilings(load_study(output), "explained")[0].verdict

    return judged


def inside(verdict):
    """Return the names of the sources that are in the target."""
    return {name for name, found in verdict.sources.items() if found.inside}


def test_a_complete_recipe_leaves_only_rounding(family, verdict_on):
    """If all sources are there, only the rounding of the target is left, and the coefficients are the planted ones."""
    verdict = verdict_on(mix(family[1], a=0.6, b=0.3), "ab")

    assert verdict.complete
    assert inside(verdict) == {"a", "b"}
    assert verdict.sources["a"].coefficient == pytest.approx(0.6, abs=1e-3)
    assert 1 - verdict.reachable == pytest.approx(verdict.floor, rel=0.2)
    assert "no more than rounding" in verdict.text
    assert "a (0.60) and b (0.30) are in it." in verdict.text


def test_a_missing_source_is_noticed(family, verdict_on):
    """Without one of three sources its share is from elsewhere, and the others are in the target."""
    tensors = family[1]
    planted = mix(tensors, a=0.6, b=0.3, c=0.4)
    missing = sum(float((0.4 * (tensors["c"][name] - tensors[BASE][name])).square().sum()) for name in planted)
    whole = sum(float((value - tensors[BASE][name]).square().sum()) for name, value in planted.items())

    verdict = verdict_on(planted, "ab")

    assert not verdict.complete
    assert inside(verdict) == {"a", "b"}
    assert 1 - verdict.reachable == pytest.approx(missing / whole, abs=0.02)
    assert (
        f"{percentage(1 - verdict.reachable)} is from elsewhere: a model or a LoRA is probably missing" in verdict.text
    )


def test_a_source_too_many_is_left_out(family, verdict_on):
    """A source that is not in the target is named, with its coefficient and error."""
    verdict = verdict_on(mix(family[1], a=0.6, b=0.3), "abc")

    assert verdict.complete
    assert inside(verdict) == {"a", "b"}
    assert abs(verdict.sources["c"].coefficient) < 4 * verdict.sources["c"].error
    assert " is not: leave it out." in verdict.text


def test_a_source_too_many_beside_a_missing_one_is_left_out(family, verdict_on):
    """Least squares gives a useless source a small coefficient; tensors that were not fitted on see through it."""
    verdict = verdict_on(mix(family[1], a=0.6, c=0.4), "ab")

    assert not verdict.complete
    assert inside(verdict) == {"a"}


def test_one_of_two_equal_sources_remains(family, verdict_on):
    """Of a source and its copy one is in the target."""
    folder, tensors = family
    copied = noisy({name: value.double() for name, value in floats(tensors["a"]).items()}, 1e-4)
    save_file({name: value.float() for name, value in copied.items()}, folder / "copy.safetensors")

    assert inside(verdict_on(mix(tensors, a=0.6, b=0.3), ["copy", "a", "b"])) == {"a", "b"}


def test_a_rounded_chain_is_complete(family, verdict_on):
    """A target whose every step was stored in float16 is complete."""
    tensors = family[1]
    values = {name: value.half() for name, value in floats(tensors[BASE]).items()}
    for source, alpha in {"a": 0.6, "b": 0.3, "c": 0.1}.items():
        values = {
            name: (value.float() + alpha * (tensors[source][name] - tensors[BASE][name])).half()
            for name, value in values.items()
        }

    verdict = verdict_on(values, "abc")

    assert verdict.complete
    assert inside(verdict) == {"a", "b", "c"}


def test_rounding_to_a_narrower_dtype_on_the_way_is_named(family, verdict_on):
    """A target in float16 that was bfloat16 once has the rounding of bfloat16."""
    rounded = {name: value.bfloat16().float() for name, value in mix(family[1], a=0.6, b=0.3).items()}

    verdict = verdict_on(rounded, "ab")

    assert not verdict.complete
    assert "rounding to bfloat16" in verdict.text


def test_a_source_below_the_rounding_is_left_out(family, verdict_on):
    """A source too weak for the target's dtype is left out in float16, and is found in float32."""
    planted = mix(family[1], a=0.6, b=0.0005)

    coarse, fine = (verdict_on(planted, "ab", dtype=dtype) for dtype in (torch.float16, torch.float32))

    assert inside(coarse) == {"a"}
    assert "below the rounding of the target" in coarse.text
    assert inside(fine) == {"a", "b"}


def test_further_training_is_from_elsewhere(family, verdict_on):
    """A merge that was trained further has an unexplained part in every block, and its sources."""
    verdict = verdict_on(noisy(mix(family[1], a=0.6, b=0.3), 0.02), "ab")

    assert not verdict.complete
    assert inside(verdict) == {"a", "b"}
    assert "or it was trained further" in verdict.text


def test_the_place_of_the_rest_is_named(family, verdict_on):
    """A part that is unknown in one block alone is placed there."""
    planted = noisy(mix(family[1], a=0.6, b=0.3), 0.02, lambda name, _: "output_blocks.4" in name)

    assert "nearly all of it in OUT04" in verdict_on(planted, "ab").text


def test_blocks_that_the_base_lacks_do_not_move_the_place(family, verdict_on):
    """The place is right if the base lacks a block before it."""
    folder, tensors = family
    lacking = {name: value for name, value in floats(tensors[BASE]).items() if ".input_blocks.1." not in name}
    save_file(lacking, folder / "lacking.safetensors")
    planted = noisy(mix(tensors, a=0.6, b=0.3), 0.02, lambda name, _: "output_blocks.4" in name)
    planted |= {name: tensors["a"][name].double() for name in planted if name not in lacking}

    assert "nearly all of it in OUT04" in verdict_on(planted, "ab", base="lacking").text


def test_a_lora_is_told_from_a_model(family, verdict_on):
    """An unknown part of matrices alone, such as a LoRA, is told from one of all tensors."""
    planted = noisy(mix(family[1], a=0.6, b=0.3), 0.02, lambda name, value: "attn" in name and value.dim() == 2)

    assert "only in matrices: a LoRA is probably missing" in verdict_on(planted, "ab").text


def test_a_wrong_base_is_noticed(family, verdict_on, sd1_tensors):
    """Sources of another base differ from the named one in the same direction."""
    folder, tensors = family
    other = sd1_tensors(seed=77, width=WIDTH, around=tensors[BASE], distance=0.08)
    save_file(other, folder / "other-base.safetensors")
    planted = mix(tensors, a=0.6, b=0.3)

    assert verdict_on(planted, "ab").warnings == ()
    (warning,) = verdict_on(planted, "ab", base="other-base").warnings
    assert "differ from other-base in the same direction" in warning


def test_another_family_is_noticed(family, verdict_on, sd1_tensors):
    """A target, or a source, that was trained from other weights is of another family."""
    folder, tensors = family
    stranger = floats(sd1_tensors(seed=99, width=WIDTH))
    save_file(stranger, folder / "stranger.safetensors")

    target, source = (verdict_on(stranger, "ab"), verdict_on(mix(tensors, a=0.6), ["a", "stranger"]))

    assert "target is of another family" in target.warnings[0]
    assert target.sentences == ()
    assert "stranger is of another family" in source.warnings[0]
    assert inside(source) == {"a"}


def test_a_source_itself_is_recognised(family, verdict_on):
    """A target that is one of the sources is named as such."""
    assert verdict_on(mix(family[1], a=1.0), "ab").text.startswith("target is a itself")


def test_a_target_equal_to_the_base_leaves_nothing(family, verdict_on):
    """A target equal to the base leaves nothing to explain."""
    verdict = verdict_on(mix(family[1]), "ab")

    assert "nothing is left to explain" in verdict.text
    assert math.isnan(verdict.reachable)
    assert verdict.as_dict()["reachable"] is None


def test_a_fit_reports_its_recipe_and_its_length(family, tmp_path):
    """A fit by a cosine of wrong length is told so; the verdict stands in best.yaml, and `status` shows it."""
    folder, tensors = family
    target = tmp_path / "target.safetensors"
    save_file({name: value.half() for name, value in mix(tensors, a=0.5).items()}, target)
    (tmp_path / "recipe.yaml").write_text(
        f"models:\n  base: {{file: '{folder / BASE}.safetensors'}}\n  a: {{file: '{folder}/a.safetensors'}}\n"
        "steps:\n  - {name: T, mode: weight_sum, a: base, b: a, alpha: {search: [0.9, 1], blocks: OUT03-OUT05}}\n",
        encoding="utf-8",
    )
    stages = "  - {name: s, metric: delta, trials: 2}\n"
    (tmp_path / "study.yaml").write_text(
        f"recipe: recipe.yaml\ntarget: {{file: '{target}'}}\nbase: base\nstages:\n{stages}", encoding="utf-8"
    )
    study = load_study(tmp_path)

    found = fit(study)

    # |1.8 d|^2 / (1.8 d . d) = 1.8: the difference is 0.9 / 0.5 times as long as the target's.
    assert found.verdict.length == pytest.approx(found.recipe.step("T").alpha.at("OUT03") / 0.5, rel=0.05)
    assert "The length is off" in found.verdict.warnings[0]
    assert study_status(study).verdict == found.verdict.text == found.recipe.noted.verdict

    (tmp_path / "study.yaml").write_text(
        (tmp_path / "study.yaml").read_text(encoding="utf-8").replace("metric: delta", "metric: explained"), "utf-8"
    )
    seeing = fit(load_study(tmp_path), fresh=True)

    assert seeing.verdict.length == pytest.approx(found.verdict.length, rel=0.2)
    assert seeing.verdict.warnings == ()


@given(st.integers(0, 10**6), st.floats(-12, 4), st.sampled_from([torch.float16, torch.bfloat16, torch.float8_e4m3fn]))
def test_the_rounding_error_is_that_of_rounded_numbers(seed, scale, dtype):
    """The expected error is within a factor of two of that of normal numbers of any scale, subnormal ones included."""
    values = 2.0**scale * torch.randn(20_000, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = float((values.to(dtype).double() - values).square().sum())

    expected = rounding_error(np.array([float(values.square().sum())]), np.array([20_000.0]), dtype)[0]

    assert 0.5 < found / expected < 2


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0.8234, "82 %"),
        (0.98312, "98.3 %"),
        (0.999963, "99.9963 %"),
        (0.0037, "0.37 %"),
        (1.0, "100 %"),
        (0.0, "0 %"),
        (-0.12, "-12 %"),
    ],
)
def test_a_percentage_has_two_digits_of_the_smaller_part(share, text):
    """A share near 0 or 1 has more digits."""
    assert percentage(share) == text
