"""Exported files are imported again: each source keeps its coefficient in each tensor, in every format."""

import json
from pathlib import Path

import pytest
from exporting import EVERY_MODE_CHAINED, NESTED, RISING, SOURCES, make_recipe, make_step, recipes
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from step_by_step import BLOCK_OF

from optimizer.errors import RecipeError
from optimizer.interchange import EXPORTS, export_recipe, import_text
from optimizer.interchange.embedded import recipe_from_metadata
from optimizer.recipes import recipe_as_data

UNET = "model.diffusion_model."
SUFFIXES = {"supermerger": "txt", "model-mixer": "json", "mecha": "mecha", "comfyui": "json", "mergekit": "yml"}
# A tensor of each block, of time_embed, `out` and the VAE.
TENSORS = (
    "cond_stage_model.transformer.text_model.final_layer_norm.weight",
    *(f"{UNET}input_blocks.{n}.0.weight" for n in range(12)),
    f"{UNET}middle_block.1.norm.weight",
    *(f"{UNET}output_blocks.{n}.0.weight" for n in range(12)),
    f"{UNET}time_embed.0.weight",
    f"{UNET}out.0.weight",
    "first_stage_model.encoder.conv_in.weight",
)
VAE = TENSORS[-1]


def coefficients(recipe):
    """Return the files' coefficients, {tensor: {file: number}}, computed step by step from the formulas."""
    found = {}
    for tensor in TENSORS:
        block = BLOCK_OF[recipe.mapping](tensor)
        known = {name: {model.file: 1.0} for name, model in recipe.models.items()}
        for step in recipe.ancestors():
            alpha = step.alpha.at(block) if block else 0.0
            beta = step.beta.at(block) if block and step.beta else 0.0
            factors = {
                "weight_sum": (1 - alpha, alpha, 0.0),
                "add_difference": (1.0, alpha, -alpha),
                "triple_sum": (1 - alpha - beta, alpha, beta),
                "sum_twice": ((1 - alpha) * (1 - beta), alpha * (1 - beta), beta),
            }[step.mode]
            row = {}
            for factor, name in zip(factors, (step.a, step.b, step.c), strict=True):
                for file, number in known[name].items() if name else ():
                    row[file] = row.get(file, 0.0) + factor * number
            known[step.name] = row
        found[tensor] = known[recipe.output]
    if recipe.vae is not None:
        found[VAE] = {recipe.models[recipe.vae].file: 1.0}
    return found


def assert_read_back(recipe, path):
    """Assert that a file imports to the same coefficients."""
    imported = import_text(path)

    assert imported.not_understood == ()
    expected, found = coefficients(recipe), coefficients(imported.recipe)
    for tensor in TENSORS:
        for file in {**expected[tensor], **found[tensor]}:
            off = abs(expected[tensor].get(file, 0.0) - found[tensor].get(file, 0.0))
            assert off < 1e-9, f"{tensor}: {file} is off by {off}"
    return imported


def write(recipe, name, folder):
    """Write an export and return its path; None if the format cannot express the recipe."""
    path = folder / f"exported.{SUFFIXES[name]}"
    try:
        path.write_text(export_recipe(recipe, name), encoding="utf-8")
    except RecipeError:
        return None
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder for exported files."""
    return tmp_path_factory.mktemp("read-back")


def test_every_format_is_read_back():
    """The table of suffixes has all export formats."""
    assert list(SUFFIXES) == list(EXPORTS)


@pytest.mark.parametrize("name", EXPORTS)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_recipe(name, folder, data):
    """Any recipe that a format can express reads back with the same coefficients, with every mapping."""
    low, high = (0.0, 1.0) if name == "comfyui" else (-0.5, 1.5)
    mappings = ("model-mixer",) if name == "model-mixer" else tuple(BLOCK_OF)
    recipe = data.draw(recipes(low=low, high=high, mappings=mappings, vaes=(None, *SOURCES)))
    path = write(recipe, name, folder)
    assume(path is not None)

    assert_read_back(recipe, path)


@pytest.mark.parametrize("mapping", BLOCK_OF)
@pytest.mark.parametrize("name", ["supermerger", "mecha", "mergekit"])
@pytest.mark.parametrize("steps", [EVERY_MODE_CHAINED, NESTED])
def test_chains(steps, name, mapping, tmp_path):
    """Chains of all modes read back with the same coefficients and the same name of the output."""
    recipe = make_recipe(*steps, mapping=mapping)
    path = write(recipe, name, tmp_path)
    if path is None:
        assert name == "supermerger"
        return

    imported = assert_read_back(recipe, path)
    assert imported.recipe.output == recipe.output


def test_chain_for_model_mixer(tmp_path):
    """model-mixer's JSON reads back as a chain of steps with its own mapping."""
    steps = (
        make_step("T1", "weight_sum", "base", "x", alpha=RISING),
        make_step("T2", "add_difference", "T1", "y", "x", alpha=RISING),
    )
    recipe = make_recipe(*steps, mapping="model-mixer")

    imported = assert_read_back(recipe, write(recipe, "model-mixer", tmp_path))
    assert (imported.recipe.mapping, len(imported.recipe.steps)) == ("model-mixer", 2)


def test_chain_for_comfyui(tmp_path):
    """A pair of nodes, one for the UNet and one for the text encoder, reads back as a step."""
    inside = {block: min(1.0, number) for block, number in RISING.items()} | {"BASE": 0.0}
    steps = (
        make_step("T1", "weight_sum", "base", "x", alpha=inside),
        make_step("T2", "add_difference", "T1", "y", "x", alpha=inside),
        make_step("T3", "sum_twice", "T2", "x", "y", alpha=inside, beta=inside),
    )
    recipe = make_recipe(*steps)

    imported = assert_read_back(recipe, write(recipe, "comfyui", tmp_path))
    assert imported.recipe.output == "T3"
    assert len(imported.recipe.steps) == 4


@settings(max_examples=40, deadline=None)
@given(recipe=recipes(vaes=(None, *SOURCES)))
def test_metadata_of_blockfit(recipe):
    """The recipe in the metadata of a file merged by blockfit reads back unchanged."""
    noted = {"type": "blockfit", "output": recipe.output, "recipe": recipe_as_data(recipe)}

    found, warnings = recipe_from_metadata({"sd_merge_recipe": json.dumps(noted)}, Path("merged.safetensors"))

    assert (found, warnings) == (recipe, ())


MECHA = """version 0.1.0
# made by hand
model "base.safetensors" model_config="sd1-ldm" merge_space="weight"
model "x.safetensors"
dict BASE=0.1 {blocks}
literal &2 model_config="sd1-supermerger_blocks" merge_space="param"
merge "convert_sd1_blocks_to_ldm" &3
merge "weighted_sum" &0 &1 alpha=&4
model "y.safetensors"
merge "subtract" &6 &1
merge "add_difference" &5 &7 0.25
"""


def test_mecha_by_hand(tmp_path):
    """A text without names of steps and mapping is read with sd-mecha's mapping; alphas may be numbers."""
    blocks = [f"IN{n:02}" for n in range(12)] + ["M00"] + [f"OUT{n:02}" for n in range(12)]
    numbers = {block: round(0.02 * n, 2) for n, block in enumerate(blocks)}
    path = tmp_path / "hand.mecha"
    path.write_text(MECHA.format(blocks=" ".join(f"{k}={v}" for k, v in numbers.items())), encoding="utf-8")

    inner = make_step("T1", "weight_sum", "base", "x", alpha={"BASE": 0.1, **numbers})
    added = make_step("T2", "add_difference", "T1", "y", "x", alpha=0.25)
    imported = assert_read_back(make_recipe(inner, added, mapping="mecha"), path)
    assert imported.recipe.mapping == "mecha"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("version 0.2.0\n", ["line 1", "0.2.0", "0.1.0"]),
        ('version 0.1.0\nmodel "a.safetensors"\nmodel "b.safetensors"\nmerge "slerp" &0 &1\n', ["line 4", "'slerp'"]),
        ('version 0.1.0\nmodel "a.safetensors"\n', ["must be a merge"]),
        ('version 0.1.0\nmodel "a.safetensors" model_config="flux-flux"\n', ["line 2", "'flux-flux'", "sd1-ldm"]),
        ('version 0.1.0\nmodel "a\n', ["line 2", "quotation mark"]),
        ('version 0.1.0\nmerge "weighted_sum" &0 &1\n', ["line 2", "'&0'", "0 instructions"]),
        ('version 0.1.0\nmodel "a"\nmodel "b"\nmerge "weighted_sum" &0 &1 nan\n', ["line 4", "nan"]),
        ('version 0.1.0\n# "\\x", mapping mecha\nmodel "a"\n', ["must be a merge"]),
    ],
)
def test_refused_mecha_texts(text, words, tmp_path):
    """An unsupported or broken sd-mecha recipe is refused with its line."""
    path = tmp_path / "hand.mecha"
    path.write_text(text, encoding="utf-8")

    assert_refused(path, ["an sd-mecha recipe", *words])


def assert_refused(path, words):
    """Assert that the import is refused in one line with the file and these words."""
    with pytest.raises(RecipeError) as caught:
        import_text(path)
    (line,) = caught.value.problems
    assert line.startswith(f"{path}: ")
    assert all(word in line for word in words), line


HALF = make_step("T", "triple_sum", "base", "x", "y", alpha=0.3, beta=0.2)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"merge_method": "linear", "models": [("base", 0.5), ("x", 0.3), ("y", 0.2)]}, HALF),
        ({"merge_method": "linear", "models": [("base", 5), ("x", 3), ("y", 2)]}, HALF),
        (
            {
                "merge_method": "task_arithmetic",
                "base_model": "base.safetensors",
                "models": [("x", 0.3), ("y", 0.2)],
            },
            HALF,
        ),
        (
            {
                "merge_method": "task_arithmetic",
                "base_model": "base.safetensors",
                "models": [("x", 1), ("y", [{"filter": "output_blocks.3.", "value": 0.5}, {"value": 0}])],
            },
            make_step("T", "triple_sum", "base", "x", "y", alpha=1.0, beta={"OUT03": 0.5}),
        ),
        (
            {
                "merge_method": "linear",
                "models": [
                    ("base", [{"filter": "model.diffusion_model", "value": 0.25}, {"value": 1.0}]),
                    ("x", [{"filter": "model.diffusion_model", "value": 0.75}, {"value": 0.0}]),
                ],
            },
            make_step("T", "weight_sum", "base", "x", alpha=dict.fromkeys(list(RISING)[1:], 0.75)),
        ),
    ],
)
def test_mergekit_by_hand(data, expected, tmp_path):
    """Weights are normalized by default; task arithmetic adds the differences from its base model."""
    models = [{"model": f"{name}.safetensors", "parameters": {"weight": weight}} for name, weight in data["models"]]
    path = tmp_path / "hand.yaml"
    lines = [f"{key}: {json.dumps(value)}" for key, value in {**data, "models": models}.items()]
    path.write_text("\n".join(lines), encoding="utf-8")

    assert_read_back(make_recipe(expected), path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("merge_method: slerp\nmodels: []", ["merge_method", "'slerp'", "linear or task_arithmetic"]),
        ("merge_method: linear\nslices: [1]", ["slices"]),
        ("merge_method: linear\nmodels: [{model: some/llama}]", ["models, entry 1", "'some/llama'", ".safetensors"]),
        ("merge_method: linear\nmodels: [{model: a.safetensors}]", ["models.a.weight", "None"]),
        ("merge_method: linear\nmodels: 3", ["models", "3", "list"]),
        ("merge_method: linear\nmodels: [", ["not readable as YAML"]),
        (
            "merge_method: linear\nmodels:\n- {model: a.ckpt, parameters: {weight: [{filter: attn1, value: 1}, 0.5]}}",
            ["filter 'attn1'", "some tensors of"],
        ),
        (
            "merge_method: linear\nparameters: {normalize: false}\nmodels: [{model: a.pt, parameters: {weight: 0.5}}]",
            ["sum to 0.5"],
        ),
    ],
)
def test_refused_mergekit_configurations(text, words, tmp_path):
    """An unsupported or broken mergekit configuration is refused with its field."""
    path = tmp_path / "hand.yml"
    path.write_text(text, encoding="utf-8")

    assert_refused(path, ["a mergekit configuration", *words])


def api(*nodes):
    """Return a workflow in the form of ComfyUI's API; nodes 1 to 3 load base, x and y."""
    loaders = [("CheckpointLoaderSimple", {"ckpt_name": f"{name}.safetensors"}) for name in ("base", "x", "y")]
    return {
        str(number): {"class_type": kind, "inputs": inputs}
        for number, (kind, inputs) in enumerate([*loaders, *nodes], 1)
    }


def saved(model, clip, vae="1"):
    """Return the node that saves a checkpoint."""
    return (
        "CheckpointSave",
        {"model": [model, 0], "clip": clip, "vae": [vae, 2], "filename_prefix": "checkpoints/MIX"},
    )


UNET_ONLY = dict.fromkeys(list(RISING)[1:], 0.25)
WORKFLOWS = {
    "simple": (
        api(("ModelMergeSimple", {"model1": ["1", 0], "model2": ["2", 0], "ratio": 0.75}), saved("4", ["1", 1])),
        make_step("T", "weight_sum", "base", "x", alpha=UNET_ONLY),
    ),
    "the text encoder too": (
        api(
            ("ModelMergeSimple", {"model1": ["1", 0], "model2": ["2", 0], "ratio": 0.75}),
            ("CLIPMergeSimple", {"clip1": ["1", 1], "clip2": ["2", 1], "ratio": 0.5}),
            saved("4", ["5", 0]),
        ),
        make_step("T", "weight_sum", "base", "x", alpha={**UNET_ONLY, "BASE": 0.5}),
    ),
    "in the other order": (
        api(("ModelMergeSimple", {"model1": ["2", 0], "model2": ["1", 0], "ratio": 0.25}), saved("4", ["1", 1])),
        make_step("T", "weight_sum", "base", "x", alpha=UNET_ONLY),
    ),
    "three parts of the UNet": (
        api(
            ("ModelMergeBlocks", {"model1": ["1", 0], "model2": ["2", 0], "input": 1.0, "middle": 0.5, "out": 0.25}),
            saved("4", ["1", 1]),
        ),
        make_step(
            "T", "weight_sum", "base", "x", alpha={"M00": 0.5, **{f"OUT{n:02}": 0.75 for n in range(12)}}
        ),
    ),
    "a difference": (
        api(
            ("ModelMergeSubtract", {"model1": ["2", 0], "model2": ["3", 0], "multiplier": 0.25}),
            ("ModelMergeAdd", {"model1": ["1", 0], "model2": ["4", 0]}),
            saved("5", ["1", 1]),
        ),
        make_step("T", "add_difference", "base", "x", "y", alpha=UNET_ONLY),
    ),
    "through other nodes": (
        api(
            ("Reroute", {"": ["2", 0]}),
            ("ModelMergeSimple", {"model1": ["1", 0], "model2": ["4", 0], "ratio": 0.75}),
            saved("5", ["1", 1]),
        ),
        make_step("T", "weight_sum", "base", "x", alpha=UNET_ONLY),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", WORKFLOWS)
def test_comfyui_by_hand(kind, tmp_path):
    """Workflows of core nodes are read, with a ratio of 1 for the first model."""
    workflow, expected = WORKFLOWS[kind]
    path = tmp_path / "workflow.json"
    path.write_text(json.dumps(workflow), encoding="utf-8")

    imported = import_text(path)

    expected_rows, found = coefficients(make_recipe(expected)), coefficients(imported.recipe)
    expected_rows[VAE] = {"base.safetensors": 1.0}  # ComfyUI does not merge the VAE
    for tensor in TENSORS:
        for file in {**expected_rows[tensor], **found[tensor]}:
            assert expected_rows[tensor].get(file, 0.0) == pytest.approx(found[tensor].get(file, 0.0)), (tensor, file)


def test_comfyui_from_the_browser(tmp_path):
    """The browser's form, with links and values without names, gives the same recipe."""
    browser = {
        "nodes": [
            {"id": 1, "type": "CheckpointLoaderSimple", "widgets_values": ["base.safetensors"]},
            {"id": 2, "type": "CheckpointLoaderSimple", "widgets_values": ["x.safetensors"]},
            {
                "id": 3,
                "type": "ModelMergeSimple",
                "widgets_values": [0.75],
                "inputs": [{"name": "model1", "link": 1}, {"name": "model2", "link": 2}],
            },
            {
                "id": 4,
                "type": "CLIPMergeSimple",
                "widgets_values": [0.75],
                "inputs": [{"name": "clip1", "link": 3}, {"name": "clip2", "link": 4}],
            },
            {
                "id": 5,
                "type": "CheckpointSave",
                "widgets_values": ["checkpoints/MIX"],
                "inputs": [{"name": "model", "link": 5}, {"name": "clip", "link": 6}, {"name": "vae", "link": 7}],
            },
            {"id": 6, "type": "Note", "widgets_values": ["a note"]},
        ],
        "links": [
            [1, 1, 0, 3, 0, "MODEL"],
            [2, 2, 0, 3, 1, "MODEL"],
            [3, 1, 1, 4, 0, "CLIP"],
            [4, 2, 1, 4, 1, "CLIP"],
            [5, 3, 0, 5, 0, "MODEL"],
            [6, 4, 0, 5, 1, "CLIP"],
            [7, 1, 2, 5, 2, "VAE"],
        ],
    }
    path = tmp_path / "workflow.json"
    path.write_text(json.dumps(browser), encoding="utf-8")

    imported = import_text(path)

    found, expected = (
        coefficients(imported.recipe),
        coefficients(make_recipe(make_step("T", "weight_sum", "base", "x", alpha=0.25))),
    )
    assert {tensor: found[tensor] for tensor in TENSORS[:-1]} == {
        tensor: pytest.approx(expected[tensor]) for tensor in TENSORS[:-1]
    }
    assert [step.mode for step in imported.recipe.steps] == ["weight_sum"]


@pytest.mark.parametrize(
    ("workflow", "words"),
    [
        (api(("KSampler", {"model": ["1", 0]})), ["merges no model"]),
        (api(("ModelMergeSDXL", {"model1": ["1", 0], "model2": ["2", 0]}), saved("4", ["1", 1])), ["node 4"]),
        (
            api(
                ("LoraLoader", {"model": ["2", 0], "clip": ["2", 1]}),
                ("ModelMergeSimple", {"model1": ["1", 0], "model2": ["4", 0], "ratio": 0.5}),
                saved("5", ["1", 1]),
            ),
            ["LoraLoader"],
        ),
        (
            api(("ModelMergeSimple", {"model1": ["1", 0], "model2": ["2", 0], "ratio": "much"}), saved("4", ["1", 1])),
            ["ratio", "'much'"],
        ),
        (
            api(("ModelMergeSimple", {"model1": ["1", 0], "ratio": 0.5}), saved("4", ["1", 1])),
            ["model2", "must be linked"],
        ),
        (
            api(("ModelMergeSimple", {"model1": ["4", 0], "model2": ["1", 0], "ratio": 0.5}), saved("4", ["1", 1])),
            ["takes its own result"],
        ),
    ],
)  # fmt: skip
def test_refused_comfyui_workflows(workflow, words, tmp_path):
    """An unsupported or broken ComfyUI workflow is refused with its node."""
    path = tmp_path / "workflow.json"
    path.write_text(json.dumps(workflow), encoding="utf-8")

    assert_refused(path, ["a ComfyUI workflow", *words])
