"""The commands and the functions of Python have one set of defaults."""

import inspect

import pytest
import torch
from typer.main import get_command

import optimizer
from optimizer.cli import app
from optimizer.merging import MergeOptions
from optimizer.pictures import PreviewRequest
from optimizer.search import fit as search

COMMANDS = get_command(app).commands
# What only a command has: its output, and files that a function returns or takes as values.
OF_THE_SHELL = {"as_json", "quiet", "output", "models", "log_file", "plots", "prompts", "presets"}
# Options by the parameter that means the opposite.
OPPOSITES = {"no_verify": "check_hashes", "no_recipe": "embed_recipe", "no_sources": "with_sources", "quick": "full"}
# Lists, of which the command has an empty one and the function its meaning.
LISTS = {("preview", "seeds"): (0,)}
WORDS = {"fp16": torch.float16}
PAIRS = {
    "ceiling": optimizer.study_ceilings,
    "compare": optimizer.compare,
    "fit": optimizer.fit,
    "import": optimizer.import_text,
    "inspect": optimizer.inspect_checkpoint,
    "merge": optimizer.merge,
    "preview": optimizer.preview,
    "simplify": optimizer.simplify_file,
    "verify": optimizer.verify,
}
# Options of the display alone.
SHOWN_ONLY = {("ceiling", "blocks")}


def defaults_of(function):
    """Return the defaults of a function's parameters."""
    found = inspect.signature(function).parameters.values()
    return {parameter.name: parameter.default for parameter in found if parameter.default is not parameter.empty}


def options_of(command):
    """Yield the name and the default of each option of a command that is not required."""
    for option in COMMANDS[command].params:
        if option.param_type_name == "option" and not option.required and option.name not in OF_THE_SHELL:
            yield option.name, option.default


@pytest.mark.parametrize("command", PAIRS)
def test_a_command_and_its_function_have_the_same_defaults(command):
    """Every option of a command is a parameter of its function, with the same default."""
    of_function, compared = defaults_of(PAIRS[command]), 0
    for name, default in options_of(command):
        if (command, name) in SHOWN_ONLY:
            continue
        if name in OPPOSITES:
            assert of_function[OPPOSITES[name]] is (not default), name
        elif (command, name) in LISTS:
            assert not default
            assert of_function[name] == LISTS[command, name]
        else:
            expected = WORDS.get(default, default) if isinstance(default, str) else default
            assert of_function[name] == expected, name
        compared += 1
    assert compared


def test_a_fit_has_the_defaults_of_the_search():
    """The function `fit` passes on the defaults of the search that it starts."""
    of_fit, of_search = defaults_of(optimizer.fit), defaults_of(search)

    assert of_search.items() <= of_fit.items()
    assert set(of_fit) - set(of_search) == {"trials", "folders", "progress"}


@pytest.mark.parametrize(("function", "record"), [(optimizer.merge, MergeOptions), (optimizer.preview, PreviewRequest)])
def test_keywords_have_the_defaults_of_the_options(function, record):
    """Functions with many keywords have the defaults of the record of their options."""
    of_record = defaults_of(record)

    assert of_record
    assert of_record.items() <= defaults_of(function).items()
