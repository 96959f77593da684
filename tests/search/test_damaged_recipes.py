"""Damaged records in best.yaml are read, ignored, or refused with one line."""

import copy
import datetime
import io
import math
import shutil
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from optimizer.analysis import simplify_file, study_ceilings
from optimizer.errors import InputError, RecipeError
from optimizer.merging import merge
from optimizer.recipes import load_recipe
from optimizer.reports.page.contents import contents
from optimizer.reports.page.writing import report_page
from optimizer.search import found_result
from optimizer.studies import load_study, noted_searches

DEEP = "x"
for _ in range(30):
    DEEP = [DEEP]
VALUES = {
    "nothing": None,
    "a number": 7,
    "negative": -1,
    "a share": 0.5,
    "true": True,
    "a text": "text",
    "an empty text": "",
    "a long text": "x" * 5000,
    "a text that acts": "\x1b[2J\nblockfit: done",
    "a text with a NUL": "a\0b",
    "a path": "../../../etc/passwd",
    "a list": [],
    "a list of lists": [[]],
    "a list of mappings": [{"a": 1}],
    "a list of texts": ["a"],
    "a mapping": {"a": 1},
    "an empty mapping": {},
    "deep": DEEP,
    "huge": 10**400,
    "not a number": math.nan,
    "infinite": -math.inf,
    "a day": datetime.date(2026, 11, 27),
    "a time": datetime.datetime(2026, 11, 27, 12),
    "a mapping of numbers": {"a": {1: 2}},
    "a block": "OUT03",
    "a metric": "delta+attention",
    "a step": "A",
}
# Values that a recipe must not record anywhere, because JSON cannot express them.
NEVER = ("not a number", "infinite", "a day", "a time", "a mapping of numbers")
PLACES = (
    ("fitted",),
    *(("fitted", name) for name in ("by", "version", "recipe", "target", "base", "complete", "searches", "more")),
    *(("fitted", "target", name) for name in ("file", "sha256")),
    ("fitted", "other_random_inputs"),
    ("fitted", "simplified"),
    ("fitted", "searches", 0),
    *(
        ("fitted", "searches", 0, name)
        for name in ("name", "step", "metric", "strategy", "blocks", "seeds", "trials", "best_trial", "similarity",
                     "before", "prompts", "clip_skip")
    ),
    ("steps", 0, "similarity"),
    ("steps", 0, "similarity", "delta"),
    *(("steps", 0, "similarity", "delta", name) for name in ("total", "blocks", "before")),
    ("steps", 0, "similarity", "delta", "blocks", "OUT03"),
)  # fmt: skip
# The cases that always run; all others are marked slow because they are many.
ALWAYS = {
    ("fitted", "searches"): "nothing",
    ("fitted", "target"): "deep",
    ("fitted", "base"): "a list",
    ("fitted", "version"): "a text that acts",
    ("fitted", "more"): "a time",
    ("fitted", "searches", 0, "seeds"): "a mapping",
    ("steps", 0, "similarity", "delta", "blocks", "OUT03"): "huge",
}


@pytest.fixture(scope="module")
def study(finished_study, tmp_path_factory):
    """A fitted study without its checkpoints, its ceilings, and the data of its best.yaml."""
    folder = shutil.copytree(finished_study, tmp_path_factory.mktemp("recipes") / "study")
    loaded = load_study(folder, with_files=False)
    noted = YAML(typ="safe").load((folder / "best.yaml").read_text(encoding="utf-8"))
    return loaded, study_ceilings(loaded.without_files()), noted


def write_damaged(path, noted, place, value):
    """Write a recipe with this value at this place."""
    data = copy.deepcopy(noted)
    inner = data
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = copy.deepcopy(value)
    text = io.StringIO()
    YAML(typ="safe").dump(data, text)
    path.write_text(text.getvalue(), encoding="utf-8")


def result_or_problems(call):
    """Return the result of a call, or the problems of its InputError; other errors pass through."""
    try:
        return call()
    except InputError as error:
        return error.problems


CASES = [
    pytest.param(
        place,
        name,
        id=f"{'.'.join(map(str, place))}: {name}",
        marks=() if ALWAYS.get(place) == name else pytest.mark.slow,
    )
    for place in PLACES
    for name in VALUES
]


@pytest.mark.parametrize(("place", "name"), CASES)
def test_damage_is_read_or_reported(study, place, name):
    """The report, the ceilings and `simplify` read damage or report it in a line; similarities stay in [-1, 1]."""
    loaded, ceilings, noted = study
    path = loaded.folder / "best.yaml"
    write_damaged(path, noted, place, VALUES[name])

    def page():
        found = found_result(loaded)
        assert all(-1 <= score <= 1 for scored in found.result.scores for score in scored.after.values())
        return report_page(contents(found, ceilings, (), named="study", storage=None, date="2026-11-27"))

    calls = (page, lambda: study_ceilings(loaded.without_files()), lambda: noted_searches(load_recipe(path)))
    found = [result_or_problems(call) for call in calls]

    lines = [line for given in found if isinstance(given, tuple) for line in given if isinstance(line, str)]
    assert all(line.isprintable() for line in lines)
    if name in NEVER:
        assert all(isinstance(problems, tuple) and "received" in problems[0] for problems in found)
    assert "\x1b" not in str(found[0])


@pytest.mark.parametrize("name", NEVER)
def test_values_that_json_lacks_are_refused(study, name):
    """A value that JSON cannot express is refused on reading, with its place."""
    loaded, _, noted = study
    path = loaded.folder / "best.yaml"
    write_damaged(path, noted, ("fitted", "searches", 0, "trials"), VALUES[name])

    with pytest.raises(RecipeError, match=r"best\.yaml: fitted\.searches\[0\]\.trials.*: received "):
        load_recipe(path)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("fitted", "base"), [1]),
        (("fitted", "base"), {"a": 1}),
        (("fitted", "recipe"), "x" * 100_000),
        (("fitted", "recipe"), "a\0b"),
        (("fitted", "recipe"), [1]),
        (("fitted", "target"), [1]),
        (("fitted", "more"), DEEP),
    ],
)
def test_damage_does_not_stop_simplify_and_merge(study, tmp_path, place, value):
    """`simplify` and `merge` ignore damaged records; `simplify` refuses a damaged target."""
    loaded, _, noted = study
    path = loaded.folder / "best.yaml"
    write_damaged(path, noted, place, value)
    models = {name: Path(model["file"]) for name, model in noted["models"].items()}

    result_or_problems(lambda: simplify_file(path, tmp_path / "simple.yaml", tolerance=1e-3))
    result_or_problems(lambda: merge(load_recipe(path), models, tmp_path / "merged.safetensors"))

    assert (tmp_path / "merged.safetensors").exists()
    assert place[1] == "target" or load_recipe(tmp_path / "simple.yaml").steps
