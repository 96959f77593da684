"""An unknown family, defined by one YAML file, works with every command."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from optimizer.cli import main
from optimizer.errors import RecipeError
from optimizer.families import layout_names, load_layout, register_layout
from optimizer.families.layout_files import forget_layout
from optimizer.interchange import EXPORTS, export_recipe
from optimizer.interchange.notation import read_notation, write_notation
from optimizer.recipes import Alpha, load_recipe, new_recipe, preset_alpha, preset_line, read_presets

SHAPES = {
    "dit.embed.weight": (16, 8),
    "dit.embed.bias": (16,),
    **{f"dit.double.{n}.attn.weight": (16, 16) for n in range(4)},
    **{f"dit.double.{n}.attn.bias": (16,) for n in range(4)},
    **{f"dit.double.{n}.norm.scale": (16,) for n in range(4)},
    **{f"dit.single.{n}.linear.weight": (16, 32) for n in range(3)},
    "dit.final.weight": (8, 16),
    "text.one.embed.weight": (32, 16),
    "text.one.layers.0.weight": (16, 16),
    "text.two.layers.0.weight": (24, 24),
    "text.two.layers.1.weight": (24, 24),
    "ae.encoder.weight": (8, 3, 3, 3),
    "ae.decoder.weight": (3, 8, 3, 3),
}
BLOCKS = ("CLIP", "T5", "IN", "D00", "D01", "D02", "D03", "S00", "S01", "S02", "END")
# The alphas of the target, one per block.
ONE = dict(zip(BLOCKS, (0.1, 0.9, 0.3, 0.0, 0.25, 0.5, 0.75, 0.6, -0.2, 0.45, 0.35), strict=True))
TWO = dict(zip(BLOCKS, (0.5, 0.2, 0.4, 0.8, 0.3, 0.1, 0.0, 0.55, 0.7, 0.15, 0.65), strict=True))


def block_at(name):
    """Return the block of a tensor by the family's definition, without its file; None for the VAE."""
    first, second, third, *_ = name.split(".")
    if first == "text":
        return {"one": "CLIP", "two": "T5"}[second]
    if first == "ae":
        return None
    return {"embed": "IN", "final": "END"}.get(second) or f"{second[0].upper()}{int(third):02}"


def merged(tensors, one=ONE, two=TWO, stays=()):
    """Return base + (one - base) x number + (two - base) x number of each block, computed in float64."""
    base = tensors["toy-v1"]
    found = {}
    for name, value in base.items():
        block = None if name.endswith(tuple(stays)) and stays else block_at(name)
        total = value.double()
        if block is not None:
            for numbers, model in ((one, "fine1"), (two, "fine2")):
                total = total + numbers[block] * (tensors[model][name].double() - value.double())
        found[name] = total.float()
    return found


@pytest.fixture(autouse=True, scope="module")
def toy(request):
    """The layout, registered while this file is tested."""
    layout = register_layout(request.path.parent / "toy.yaml")
    yield layout
    forget_layout(layout.name)


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    """A folder with toy-v1, two finetunes and a target merged from them, and the tensors of each file."""
    folder = tmp_path_factory.mktemp("toys")
    random = torch.Generator().manual_seed(5)
    base = {name: torch.randn(shape, generator=random) for name, shape in SHAPES.items()}
    tensors = {"toy-v1": base}
    for name in ("fine1", "fine2"):
        tensors[name] = {key: one + 0.2 * torch.randn(one.shape, generator=random) for key, one in base.items()}
    tensors["target"] = merged(tensors)
    for name, contents in tensors.items():
        save_file({**contents, "dit.steps": torch.tensor([7])}, folder / f"{name}.safetensors")
    return folder, tensors


@pytest.fixture(scope="module")
def study(family, tmp_path_factory):
    """The folder of a study that `init` wrote and `fit` has run."""
    folder = tmp_path_factory.mktemp("studies") / "study"
    files = [str(family[0] / f"{name}.safetensors") for name in ("target", "fine1", "fine2", "toy-v1")]
    assert code("init", *files, "-o", str(folder), "--quiet") == 0
    assert code("fit", str(folder), "--quiet") == 0
    return folder


def code(*arguments):
    """Run a command and return its exit code."""
    with pytest.raises(SystemExit) as left:
        main(list(arguments))
    return left.value.code or 0


def printed(capsys, *arguments):
    """Run a command with --json and return the parsed output."""
    assert code(*arguments, "--json") == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys, *arguments):
    """Run a command that fails and return its lines on stderr."""
    assert code(*arguments) == 2
    return capsys.readouterr().err.splitlines()


def test_inspect_names_the_layout(family, capsys):
    """`inspect` names the layout, counts tensors by block, and finds nothing unusual except the integer."""
    (found,) = printed(capsys, "inspect", str(family[0] / "target.safetensors"))

    assert (found["layout"], list(found["blocks"])) == ("toy", list(BLOCKS))
    counted = {block: sum(block_at(name) == block for name in SHAPES) for block in BLOCKS}
    assert {block: one["tensors"] for block, one in found["blocks"].items()} == counted
    assert found["unusual"] == [
        "'dit.steps': not floating-point; copied, never merged",
        "'dit.steps': no part of Toy Transformer",
    ]


def test_other_spellings_give_the_same_tensors(family, tmp_path, capsys):
    """A file with another spelling of names gives the same tensors."""
    path = tmp_path / "renamed.safetensors"
    named = {name.replace("dit.", "model.dit."): value for name, value in family[1]["target"].items()}
    save_file(named, path)
    files = [
        str(path),
        "--target",
        str(family[0] / "target.safetensors"),
        "--base",
        str(family[0] / "toy-v1.safetensors"),
    ]

    (found,) = printed(capsys, "compare", *files)

    assert found["blocks"] == {block: pytest.approx(1, abs=1e-6) for block in BLOCKS}


def test_similarities_equal_their_definition(family, capsys):
    """Similarities equal their definition, block by block; a group of the layout is a list of blocks."""
    folder, tensors = family
    files = [str(folder / "fine1.safetensors"), "--target", str(folder / "target.safetensors")]
    base = ["--base", str(folder / "toy-v1.safetensors"), "--metric", "delta"]

    (found,) = printed(capsys, "compare", *files, *base)
    (double,) = printed(capsys, "compare", *files, *base, "--blocks", "double")

    def difference(name, block):
        names = [key for key in SHAPES if block_at(key) == block]
        return torch.cat([(tensors[name][key].double() - tensors["toy-v1"][key].double()).flatten() for key in names])

    expected = {
        block: pytest.approx(
            float(torch.cosine_similarity(difference("fine1", block), difference("target", block), 0)), abs=1e-6
        )
        for block in BLOCKS
    }
    assert found["blocks"] == expected
    assert list(double["blocks"]) == ["D00", "D01", "D02", "D03"]


def test_init_takes_the_base_by_its_name(study):
    """The base is the file named like a base of the family, although it was given last."""
    recipe = load_recipe(study / "recipe.yaml")

    assert (recipe.layout.name, recipe.mapping) == ("toy", "plain")
    assert recipe.models["base"].file.endswith("toy-v1.safetensors")


def test_fit_finds_the_numbers(study):
    """The fit recovers the planted alphas of every block, both text encoders included."""
    found = load_recipe(study / "best.yaml")
    alphas = [step.alpha for step in found.steps]

    for alpha, planted in zip(alphas, (ONE, TWO), strict=True):
        assert {block: alpha.at(block) for block in BLOCKS} == pytest.approx(planted, abs=1e-4)


def test_the_ceiling_is_reached(study, capsys):
    """The ceiling of these sources is reached, in every block."""
    found = printed(capsys, "ceiling", str(study))

    assert {block: one["ceiling"] for block, one in found["blocks"].items()} == pytest.approx(dict.fromkeys(BLOCKS, 1))


def test_the_merge_is_the_target(study, family, tmp_path):
    """The merge of the best recipe is the target; no position ids are added, and the integer stays."""
    output = tmp_path / "clone.safetensors"

    assert code("merge", str(study / "best.yaml"), "-o", str(output), "--dtype", "fp32", "--quiet") == 0

    found, target = load_file(output), load_file(family[0] / "target.safetensors")
    assert found.keys() == target.keys()
    for name in target:
        torch.testing.assert_close(found[name], target[name], atol=1e-5, rtol=0)


@pytest.mark.parametrize("mapping", ["plain", "scaleless"])
def test_a_mapping_leaves_tensors(family, tmp_path, mapping):
    """A mapping that leaves tensors takes them from the first input; another mapping merges them."""
    folder, tensors = family
    path, output = tmp_path / "recipe.yaml", tmp_path / "merged.safetensors"
    models = "".join(f"  {name}: '{(folder / name).as_posix()}.safetensors'\n" for name in ("toy-v1", "fine1", "fine2"))
    models = re.sub(r": ('.*')", r": {file: \1}", models)
    numbers = [str([alphas[block] for block in BLOCKS]) for alphas in (ONE, TWO)]
    steps = "".join(
        f"  - {{name: {name}, mode: add_difference, a: {a}, b: {b}, c: toy-v1, alpha: {alpha}}}\n"
        for name, a, b, alpha in (("first", "toy-v1", "fine1", numbers[0]), ("second", "first", "fine2", numbers[1]))
    )
    path.write_text(f"layout: toy\nmapping: {mapping}\nmodels:\n{models}steps:\n{steps}", encoding="utf-8")

    assert code("merge", str(path), "-o", str(output), "--dtype", "fp32", "--quiet") == 0

    found = load_file(output)
    for name, value in merged(tensors, stays=(".scale",) if mapping == "scaleless" else ()).items():
        torch.testing.assert_close(found[name], value, atol=1e-6, rtol=0)


def test_the_report_shows_the_family(study, tmp_path):
    """The report shows each block of the family with its number, and nothing of another family."""
    output = tmp_path / "report.html"

    assert code("report", str(study), "-o", str(output), "--quiet") == 0

    page = output.read_text(encoding="utf-8")
    drawn = re.findall(r'<text class="on [\w ]*block"[^>]*>([^<]+)</text>', page)
    assert drawn[: len(BLOCKS)] == list(BLOCKS)
    assert "OUT11" not in page
    assert "BASE" not in page


def test_numbers_are_written_and_read_again():
    """A recipe of the family survives a round through the notation, and an alpha a round through a preset's line."""
    recipe = new_recipe(
        {"A": "A.safetensors", "B": "B.safetensors"},
        [{"name": "MIX", "mode": "weight_sum", "a": "A", "b": "B", "alpha": [ONE[block] for block in BLOCKS]}],
        layout="toy",
    )

    again = read_notation(write_notation(recipe)).recipe
    line = preset_line("mine", ONE, BLOCKS)
    alpha = preset_alpha(read_presets(line)["mine"], recipe.layout)

    assert (again.layout.name, again.mapping) == ("toy", "plain")
    assert [again.step("MIX").alpha.at(block) for block in BLOCKS] == list(ONE.values())
    assert alpha == Alpha(dict(ONE))


def test_numbers_by_block_are_read():
    """Numbers below a formula may have the names of the family's blocks."""
    text = "\n".join(
        [
            'layout: "toy"',
            "A x (1-alpha) + B x alpha = MIX",
            *("CLIP: 0.1, T5: 0.2", "IN: 0.3", "D00-D03: 0.4", "S00-S02: 0.5, 0.6, 0.7", "END: 0.8"),
        ]
    )

    alpha = read_notation(text).recipe.step("MIX").alpha

    assert [alpha.at(block) for block in BLOCKS] == [0.1, 0.2, 0.3, 0.4, 0.4, 0.4, 0.4, 0.5, 0.6, 0.7, 0.8]


@pytest.mark.parametrize("count", [26, 25, 9])
def test_numbers_of_another_family_are_refused(count):
    """Numbers in the count of another family are refused with the number of blocks."""
    text = f'layout: "toy"\nA x (1-alpha) + B x alpha = MIX\nalpha = ({",".join(["0.5"] * count)})'

    with pytest.raises(RecipeError, match=rf"received {count} numbers; toy has 11 blocks, CLIP first, END last"):
        read_notation(text)


@pytest.mark.parametrize("name", EXPORTS)
def test_tools_without_the_family_are_refused(study, name):
    """A format of a tool that has no convention for the family is refused in one line."""
    with pytest.raises(RecipeError) as error:
        export_recipe(load_recipe(study / "best.yaml"), name)

    able = ", ".join(other for other in layout_names() if load_layout(other).tools.knows(name))
    assert error.value.problems == (f"layout: received 'toy'; the {name} export takes {able}",)


def test_presets_of_another_family_are_refused(toy):
    """A preset that comes with SuperMerger is refused with the reason."""
    with pytest.raises(RecipeError, match="preset 'GRAD_V': SuperMerger has it for other families; toy has no such"):
        read_notation('layout: "toy"\nA x (1-alpha) + B x alpha = MIX\nalpha = GRAD_V')
    assert toy is load_layout("toy")


def test_unsupported_metrics_are_refused(family, tmp_path, capsys):
    """Metrics that the layout does not support are refused in one line with the reason, before any work."""
    folder = family[0]
    target, base, fine = (str(folder / f"{name}.safetensors") for name in ("target", "toy-v1", "fine1"))
    attention = "'attention' is not offered for Toy Transformer: its layout does not list its self-attention"
    encoder = "'encoder' is not offered for Toy Transformer: its layout has no text encoder that blockfit can compute"

    assert refused(capsys, "compare", fine, "--target", target) == [
        f"blockfit: --base: missing; without one attention is measured, but {attention}"
    ]
    assert refused(capsys, "compare", fine, "--target", target, "--metric", "encoder") == [
        f"blockfit: --metric: {encoder}"
    ]
    assert refused(capsys, "init", target, base, fine, "-o", str(tmp_path / "new"), "--metric", "attention") == [
        f"blockfit: --metric: {attention}"
    ]
    assert not (tmp_path / "new").exists()


def test_a_stage_with_an_unsupported_metric_is_refused(study, tmp_path, capsys):
    """A study with such a metric is refused with the field, the metric and the reason."""
    text = (study / "study.yaml").read_text(encoding="utf-8")
    (tmp_path / "recipe.yaml").write_bytes((study / "recipe.yaml").read_bytes())
    (tmp_path / "study.yaml").write_text(re.sub("metric: explained", "metric: attention", text), encoding="utf-8")

    (line,) = refused(capsys, "fit", str(tmp_path))

    assert line.endswith(
        "metric: 'attention' is not offered for Toy Transformer: its layout does not list its self-attention"
    )


def test_preview_is_refused(family, tmp_path, capsys):
    """`preview` is refused in one line, since the family has no pipeline."""
    target, fine = (str(family[0] / f"{name}.safetensors") for name in ("target", "fine1"))

    sheet = ["-o", str(tmp_path / "sheet.png"), "--prompt", "a toy"]
    assert refused(capsys, "preview", fine, "--target", target, *sheet) == [
        f"blockfit: {target}: is Toy Transformer; blockfit draws no pictures with it, as its layout has no pipeline"
    ]


@pytest.mark.slow
def test_workers_have_the_registered_layouts(study, tmp_path):
    """The processes of `fit --workers` have the layouts registered in the first process."""
    (tmp_path / "recipe.yaml").write_bytes((study / "recipe.yaml").read_bytes())
    text = (study / "study.yaml").read_text(encoding="utf-8")
    text = re.sub(r"metric: explained", "metric: elements", text)
    (tmp_path / "study.yaml").write_text(text, encoding="utf-8")

    assert code("fit", str(tmp_path), "--workers", "2", "--quiet") == 0

    assert load_recipe(tmp_path / "best.yaml").layout.name == "toy"
