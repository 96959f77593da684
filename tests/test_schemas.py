"""The JSON schemas in the package are those of the models, and accept the same files as the readers."""

import json
from pathlib import Path

import jsonschema
import pytest
from ruamel.yaml import YAML

import optimizer
from optimizer.errors import InputError
from optimizer.files import schema_text, validate
from optimizer.recipes import load_recipe, recipe_schema
from optimizer.studies import study_schema
from optimizer.studies.study import StudyEntry

ROOT = Path(optimizer.__file__).parent.parent
SCHEMAS = {"recipes/recipe.schema.json": recipe_schema, "studies/study.schema.json": study_schema}
FILES = sorted(path for name in ("configs", "studies") for path in (ROOT / name).rglob("*.yaml"))
STEP = "{name: T, mode: weight_sum, a: x, b: y, alpha: ALPHA}"
RECIPE = "models: {x: {file: x}, y: {file: y}}\nsteps: [" + STEP + "]\n"


def read(text):
    """Return a YAML file's content as plain values."""
    return YAML(typ="safe").load(text)


def validator(schema):
    """Return jsonschema's validator, after a check of the schema itself."""
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize("name", SCHEMAS)
def test_shipped_schema_is_current(name):
    """The file in the package equals the schema of the models; `make schemas` updates it."""
    assert (Path(optimizer.__file__).parent / name).read_text(encoding="utf-8") == schema_text(SCHEMAS[name]())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_projects_own_files_are_valid(path):
    """Every recipe and study in the project is valid by its schema."""
    data = read(path.read_text(encoding="utf-8"))
    validator(study_schema() if "stages" in data else recipe_schema()).validate(data)


@pytest.mark.parametrize("schema", [recipe_schema, study_schema])
def test_every_field_is_described(schema):
    """Each field has a description for editors."""
    found = schema()
    for kind in (found, *found["$defs"].values()):
        assert kind["description"]
        for name, field in kind["properties"].items():
            assert field.get("description") or "$ref" in field, name


@pytest.mark.parametrize(
    ("alpha", "valid"),
    [
        ("0.5", True),
        ("1", True),
        (str([0.1] * 26), True),
        ("{OUT06-OUT11: 0.15}", True),
        ("{search: [0, 1]}", True),
        ("{search: [0, 1], blocks: OUT03-OUT04, tie: true, step: 0.01, start: 0.5}", True),
        ("{search: [0, 1], blocks: [OUT03, M00]}", True),
        ("{IN01: 0.3, OUT03-OUT11: {search: [0, 1], tie: true}}", True),
        ("{}", True),
        ("true", False),
        ("null", False),
        ("{search: [0]}", False),
        ("{search: [0, 1], tie: 3}", False),
        ("{search: [0, 1], bounds: 3}", False),
        ("{OUT03: {search: [0, 1], blocks: OUT03}}", False),
        ("{OUT03: high}", False),
        ("[0.5, high]", False),
    ],
)
def test_schema_and_reader_agree_on_alphas(tmp_path, alpha, valid):
    """The schema and the reader accept the same alphas."""
    text = RECIPE.replace("ALPHA", alpha)
    (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8")
    try:
        load_recipe(tmp_path / "recipe.yaml")
        accepted = True
    except InputError:
        accepted = False
    assert (validator(recipe_schema()).is_valid(read(text)), accepted) == (valid, valid)


@pytest.mark.parametrize(
    ("stage", "valid"),
    [
        ("{name: s}", True),
        ("{name: s, metric: attention, elsewhere: delta, seeds: [1, 2], tf32: true}", True),
        ("{name: s, metric: encoder, prompts: mine.txt, clip_skip: 2}", True),
        ("{name: s, steps: [T], blocks: [OUT03], strategy: stepwise, passes: 2, tolerance: 0, sampler: tpe}", True),
        ("{metric: delta}", False),
        ("{name: s, sampels: 3}", False),
        ("{name: s, trials: many}", False),
        ("{name: s, seeds: 3}", False),
    ],
)
def test_schema_and_reader_agree_on_stages(stage, valid):
    """The schema and the reader accept the same fields of a stage."""
    data = read(f"recipe: recipe.yaml\ntarget: {{file: t}}\nstages: [{stage}]\n")
    try:
        validate(StudyEntry, data, "study.yaml", InputError)
        accepted = True
    except InputError:
        accepted = False
    assert (validator(study_schema()).is_valid(data), accepted) == (valid, valid)


def test_schemas_are_json_files_of_the_package():
    """The schemas are plain JSON files, which editors can read."""
    for name in SCHEMAS:
        assert json.loads((Path(optimizer.__file__).parent / name).read_text(encoding="utf-8"))["$schema"]
