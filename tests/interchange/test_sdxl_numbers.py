"""Lists of 20 and 26 numbers are read as SDXL's, as SuperMerger reads them."""

import warnings
from pathlib import Path

import pytest
from step_by_step import SDXL_BLOCKS

from optimizer.cli import main
from optimizer.errors import BlockfitWarning, RecipeError
from optimizer.families import load_layout
from optimizer.interchange import import_merged, import_text
from optimizer.interchange.embedded import recipe_from_metadata
from optimizer.interchange.notation import read_notation
from optimizer.recipes import load_recipe

NUMBERS = [round(0.04 * n, 2) for n in range(20)]
BY_BLOCK = dict(zip(SDXL_BLOCKS, NUMBERS, strict=True))
# IN09-IN11 and OUT09-OUT11 have 0.99.
LONGER = [*NUMBERS[:10], *[0.99] * 3, *NUMBERS[10:], *[0.99] * 3]
DROPPED = "26 numbers for sdxl: those of IN09-IN11, OUT09-OUT11 are dropped, as in SuperMerger"
FORMULA = "A x (1-alpha) + B x alpha = MIX\n"
SUPERMERGER = {
    "type": "sd-webui-supermerger",
    # SuperMerger leaves out BASE and adds a 0 for the VAE.
    "weights_alpha": [*NUMBERS[1:], 0],
    "weights_beta": "",
    "weights_alpha_orig": ",".join(map(str, NUMBERS)),
    "weights_beta_orig": "",
    "model_a": "a1" * 32,
    "model_b": "b2" * 32,
    "model_c": "a1" * 32,
    "base_alpha": NUMBERS[0],
    "base_beta": 0,
    "mode": "Weight sum",
    "mbw": True,
    "elemental_merge": "",
    "calcmode": "normal",
    "Off": [""],
}
MIXER = {
    "type": "sd-webui-model-mixer",
    "blocks": ",".join(SDXL_BLOCKS),
    "mbw": True,
    "weights_alpha": [NUMBERS],
    "alpha": [0.5],
    "model_a": "A.safetensors",
    "model_b": "B",
    "base_model": None,
    "mode": ["Sum"],
    "calcmode": ["Normal"],
    "elemental": [""],
    "use_elemental": [False],
    "adjust": "",
    "uses": [True],
    "use_mbws": [True],
}
WEBUI = {
    "type": "webui",
    "primary_model_hash": "a1" * 32,
    "secondary_model_hash": "b2" * 32,
    "tertiary_model_hash": None,
    "interp_method": "Weighted sum",
    "multiplier": 0.25,
}


def listed(numbers):
    """Return numbers as a text."""
    return ",".join(map(str, numbers))


def alpha(recipe):
    """Return the numbers of the only step."""
    (step,) = recipe.steps
    return {block: step.alpha.at(block) for block in recipe.layout.blocks}


@pytest.mark.parametrize("numbers", [NUMBERS, LONGER], ids=["20", "26"])
def test_lists_in_formulas(numbers):
    """A text of SDXL's layout takes 20 or 26 numbers; those of blocks that it lacks are dropped with a note."""
    read = read_notation(f'layout: "sdxl"\n{FORMULA}alpha = ({listed(numbers)})')

    assert alpha(read.recipe) == BY_BLOCK
    assert [DROPPED in warning for warning in read.warnings] == ([True] if len(numbers) == 26 else [])


def test_twenty_numbers_tell_sdxl():
    """A text with 20 numbers is SDXL's, one with 26 is Stable Diffusion 1.x's unless it is said to be SDXL's."""
    twenty = read_notation(f"{FORMULA}alpha = ({listed(NUMBERS)})")
    more = f"{FORMULA}alpha = ({listed(LONGER)})"

    assert (twenty.recipe.layout.name, alpha(twenty.recipe)) == ("sdxl", BY_BLOCK)
    assert read_notation(more).recipe.layout.name == "sd1"
    assert alpha(read_notation(more, layout=load_layout("sdxl")).recipe) == BY_BLOCK


def test_a_base_beside_the_list():
    """A list of 19 numbers with a number for BASE beside it is SDXL's; so is one of 25 that is said to be SDXL's."""
    shorter = f"{FORMULA}alpha = ({listed(NUMBERS[1:])})\nbase_alpha = {NUMBERS[0]}"
    longer = f'layout: "sdxl"\n{FORMULA}alpha = ({listed(LONGER[1:])})\nbase_alpha = {NUMBERS[0]}'

    assert alpha(read_notation(shorter).recipe) == BY_BLOCK
    assert alpha(read_notation(longer).recipe) == BY_BLOCK


def test_the_console_tells_sdxl():
    """SuperMerger's console prints the number of BASE apart, and a 0 for the VAE at the end of the list."""
    printed = {
        "model A": "photo",
        "model B": "comic",
        "model C": "None",
        "alpha,beta": "(0.0, 0.25)",
        "weights_alpha": listed([*NUMBERS[1:], 0]),
        "weights_beta": "",
        "mode": "Weight sum:A*(1-alpha)+B*alpha",
        "MBW": "True",
        "CalcMode": "normal",
        "Elemental": "",
        "Off": "([], '')",
        "Adjust": "",
    }
    text = "merging...\n" + "\n".join(f"  {key}: {value}" for key, value in printed.items())

    recipe = read_notation(text).recipe

    assert (recipe.layout.name, alpha(recipe)) == ("sdxl", BY_BLOCK)


def test_presets_are_found_for_sdxl():
    """SuperMerger's own presets, and lines of its file, have 26 numbers for SDXL, too."""
    presets = "MINE\t" + listed(LONGER)
    read = read_notation(f'layout: "sdxl"\n{presets}\n{FORMULA}alpha = MINE')
    own = read_notation(f'layout: "sdxl"\n{FORMULA}alpha = OUT07')

    assert alpha(read.recipe) == BY_BLOCK
    assert any(DROPPED in warning for warning in read.warnings)
    # SuperMerger's OUT07 is 0 up to OUT04 and 1 from OUT05 on.
    assert alpha(own.recipe) == {block: float(block in ("OUT05", "OUT06", "OUT07", "OUT08")) for block in SDXL_BLOCKS}


def test_lists_in_a_recipe(tmp_path):
    """A recipe of SDXL takes 26 numbers with a warning."""
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "layout: sdxl\nmodels: {a: {file: a}, b: {file: b}}\n"
        f"steps: [{{name: T, mode: weight_sum, a: a, b: b, alpha: {LONGER}}}]\n",
        encoding="utf-8",
    )

    with pytest.warns(BlockfitWarning, match=DROPPED):
        recipe = load_recipe(path)

    assert alpha(recipe) == BY_BLOCK


def test_other_counts_are_refused():
    """A list of another length is refused with both counts."""
    with pytest.raises(RecipeError, match=r"sdxl has 20 blocks.*SuperMerger takes 26, too"):
        read_notation(f'layout: "sdxl"\n{FORMULA}alpha = ({listed(NUMBERS[:12])})')


@pytest.mark.parametrize(
    ("data", "mapping"),
    [
        (SUPERMERGER, "supermerger"),
        (SUPERMERGER | {"weights_alpha_orig": listed(LONGER)}, "supermerger"),
        (SUPERMERGER | {"weights_alpha_orig": "MINE"}, "supermerger"),
        (MIXER, "model-mixer"),
        (MIXER | {"blocks": "BASE"}, "model-mixer"),
    ],
    ids=["supermerger", "supermerger-26", "supermerger-preset", "model-mixer", "model-mixer-numbers"],
)
def test_metadata_tell_sdxl(data, mapping):
    """The lengths of the lists in metadata tell SDXL, also where the file is not at hand."""
    recipe, _ = recipe_from_metadata({"sd_merge_recipe": data}, Path("merged.safetensors"))

    assert (recipe.layout.name, recipe.mapping) == ("sdxl", mapping)
    assert alpha(recipe) == BY_BLOCK


def test_the_merged_file_tells_its_family(tmp_path, write_sdxl):
    """Metadata without lists are of the family of the file that holds them."""
    import json

    path = tmp_path / "merged.safetensors"
    write_sdxl(path, metadata={"sd_merge_recipe": json.dumps(WEBUI)})

    recipe = import_merged(path).recipe

    assert alpha(recipe) == dict.fromkeys(SDXL_BLOCKS, 0.25)


def test_the_command_takes_a_layout(tmp_path, capsys):
    """`import --layout` names the family of a text that does not; an unknown one is refused."""
    text = tmp_path / "text.txt"
    text.write_text(f"{FORMULA}alpha = ({listed(LONGER)})\n", encoding="utf-8")
    output = tmp_path / "recipe.yaml"

    with pytest.raises(SystemExit) as left:
        main(["import", str(text), "-o", str(output), "--layout", "sdxl"])
    assert not left.value.code
    assert DROPPED in capsys.readouterr().err
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert alpha(load_recipe(output)) == BY_BLOCK

    with pytest.raises(SystemExit) as left:
        main(["import", str(text), "-o", str(tmp_path / "other.yaml"), "--layout", "sd9"])
    assert left.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("blockfit: --layout: unknown layout 'sd9'; must be one of ")
    assert not (tmp_path / "other.yaml").exists()


@pytest.mark.parametrize(
    "text",
    [f'layout: "sdxl"\n{FORMULA}alpha = 0.5', 'version 0.1.0\nmodel "a.safetensors" model_config="sdxl-sgm"'],
    ids=["formulas", "mecha"],
)
def test_a_text_of_another_layout_is_refused(tmp_path, text):
    """A text that names its layout cannot be read as another's."""
    path = tmp_path / "text.txt"
    if text.startswith("version"):
        text += (
            ' merge_space="weight"\nmodel "b.safetensors" model_config="sdxl-sgm" merge_space="weight"\n'
            'merge "weighted_sum" &0 &1 0.5'
        )
    path.write_text(text, encoding="utf-8")

    with pytest.raises(RecipeError) as caught:
        import_text(path, layout="sd1")

    assert (caught.value.problems, caught.value.field) == ((f"{path}: is of layout sdxl; received sd1",), "layout")
    assert import_text(path, layout="sdxl").recipe.layout.name == "sdxl"


def test_workflows_of_one_ratio_take_a_layout(tmp_path):
    """A ComfyUI workflow without a node of one family is of the layout that is named."""
    import json

    nodes = {
        "1": ("CheckpointLoaderSimple", {"ckpt_name": "a.safetensors"}),
        "2": ("CheckpointLoaderSimple", {"ckpt_name": "b.safetensors"}),
        "3": ("ModelMergeSimple", {"model1": ["1", 0], "model2": ["2", 0], "ratio": 0.75}),
        "4": ("CLIPMergeSimple", {"clip1": ["1", 1], "clip2": ["2", 1], "ratio": 0.75}),
        "5": ("CheckpointSave", {"model": ["3", 0], "clip": ["4", 0], "vae": ["1", 2], "filename_prefix": "m"}),
    }
    path = tmp_path / "workflow.json"
    data = {number: {"class_type": kind, "inputs": inputs} for number, (kind, inputs) in nodes.items()}
    path.write_text(json.dumps(data), encoding="utf-8")

    found = import_text(path, layout="sdxl").recipe

    assert (found.layout.name, found.mapping) == ("sdxl", "comfyui")
    assert alpha(found) == dict.fromkeys(SDXL_BLOCKS, 0.25)
    assert import_text(path).recipe.layout.name == "sd1"
