"""The listing of `inspect`."""

import io
import json

import pytest
from rich.console import Console

from optimizer.library import inspect_checkpoint
from optimizer.reports import inspection_table

RECIPE = {"type": "sd-webui-supermerger", "mode": "Add difference", "mbw": True, "model_a": "A", "model_b": "B\x1b[2J"}


@pytest.fixture
def shown(tmp_path, write_sd1):
    """Write a checkpoint with this metadata and return the lines of its listing."""

    def shown(metadata):
        write_sd1(tmp_path / "a.safetensors", metadata=metadata)
        stream = io.StringIO()
        Console(file=stream, width=100).print(inspection_table(inspect_checkpoint(tmp_path / "a.safetensors")))
        return [line.strip() for line in stream.getvalue().splitlines()]

    return shown


def test_merge_is_listed_in_rows(shown):
    """A recognised recipe is listed in rows, without its JSON; other fields are listed unchanged."""
    lines = shown({"sd_merge_recipe": json.dumps(RECIPE), "author": "somebody"})

    start = next(n for n, line in enumerate(lines) if line.startswith("merged by"))
    assert [" ".join(line.split()) for line in lines[start : start + 5]] == [
        "merged by SuperMerger, alphas per block",
        "method Add difference",
        "from A",
        "B\N{REPLACEMENT CHARACTER}[2J",
        "metadata author somebody",
    ]
    assert not any("sd_merge_recipe" in line for line in lines)


@pytest.mark.parametrize("text", ["{", '["webui"]', '{"type": 3}', "null"])
def test_broken_recipe_is_shown_as_it_is(shown, text):
    """An unrecognised recipe is listed like other metadata."""
    lines = shown({"sd_merge_recipe": text})

    assert not any(line.startswith("merged by") for line in lines)
    assert any(line.startswith("metadata sd_merge_recipe") for line in lines)


def test_strange_metadata_are_shown_harmlessly(shown):
    """Markup, control characters and long texts are shown harmlessly."""
    lines = shown({"[/bold]": "\x1b[2Jred", "[red]": "x" * 1000})

    text = "\n".join(lines)
    assert "metadata [/bold]" in text
    assert "metadata [red]" in text
    assert "\x1b" not in text
    assert 290 < text.count("x") < 310
