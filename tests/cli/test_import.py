"""The command `import`: it reads texts and merged files, writes a recipe, and warns of lines that it did not read."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from optimizer.cli import main
from optimizer.recipes import load_recipe

ARTICLE = Path(__file__).parents[1] / "interchange" / "article.txt"
NUMBERS = ",".join(["0.25"] * 26)


def run(*arguments):
    """Run the command and return its exit code."""
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    return int(left.value.code or 0)


def test_the_article_is_imported(tmp_path, capsys):
    """The article becomes a recipe of 18 steps; guesses and lines not understood are warnings with their lines."""
    output = tmp_path / "recipe.yaml"

    assert run("import", ARTICLE, "-o", output) == 0

    printed = capsys.readouterr()
    assert printed.out == f"18 steps, 11 models, output BlessingMix V1 -> {output}\n"
    assert all(line.startswith(f"blockfit: warning: {ARTICLE}: ") for line in printed.err.splitlines())
    assert sum("not understood" in line for line in printed.err.splitlines()) == 2
    assert len(load_recipe(output).steps) == 18


def test_json_has_the_counts_and_the_warnings(tmp_path, capsys):
    """With --json, one value on stdout has the recipe's counts, its warnings and the lines not understood."""
    assert run("import", ARTICLE, "-o", tmp_path / "recipe.yaml", "--json") == 0

    imported = json.loads(capsys.readouterr().out)
    assert (imported["output"], len(imported["steps"]), len(imported["models"])) == ("BlessingMix V1", 18, 11)
    assert (len(imported["warnings"]), len(imported["not_understood"])) == (3, 2)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("nothing here", ["no formula was found"]),
        (
            "A x (1-alpha) + B x alpha = T\nalpha = (0.5, 0.5)",
            ["line 2: T.alpha: received 2 numbers; sd1 has 26 blocks"],
        ),
        ("A x 0.5 + B x 0.4 = T\nT x 0.5 + B x 0.5 = U", ["line 1: not understood: the factors add up to 0.9"]),
        ("T x 0.5 + B x 0.5 = U\nU x 0.5 + B x 0.5 = T", ["steps: cycle"]),
        (
            "A x 0.5 + B x 0.5 = T\nMIX = T x 0.7 + C x 0.2",
            ["in 'MIX = T x 0.7 + C x 0.2'; it continues from 'T', and the recipe would end a step too early: rewrite"],
        ),
        (
            "A x 0.5 + B x 0.5 = T\n| Method | A | B | C | Name |\n| Train Difference @ 1.0 | T | C | D | MIX |",
            ["line 3: not understood: the method 'Train Difference @ 1.0' must be weighted sum or add difference"],
        ),
        ("| A | B | 0.3 |", ["line 1: not understood: a row of a table that is not a table of steps", "no formula"]),
    ],
)
def test_texts_without_a_recipe_are_refused(tmp_path, capsys, text, parts):
    """A text that gives no recipe is bad input: one line per problem, with the file, and an old output untouched."""
    source, output = tmp_path / "text.txt", tmp_path / "recipe.yaml"
    source.write_text(text, encoding="utf-8")
    output.write_text("before", encoding="utf-8")

    assert run("import", source, "-o", output) == 2

    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(parts)
    for line, part in zip(lines, parts, strict=True):
        assert line.startswith(f"blockfit: {source}: ")
        assert part in line
    assert output.read_text(encoding="utf-8") == "before"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings_of_windows_are_read(tmp_path, encoding):
    """A text in the encodings and with the line ends of Windows' editor is read."""
    source, output = tmp_path / "text.txt", tmp_path / "recipe.yaml"
    source.write_bytes("“モデル A” x 0.9 + B x 0.1 = T\r\nT × 0.5 + B × 0.5 = U\r\n".encode(encoding))  # noqa: RUF001

    assert run("import", source, "-o", output) == 0

    assert [step.name for step in load_recipe(output).steps] == ["T", "U"]
    assert list(load_recipe(output).models) == ["モデル A", "B"]


def test_files_that_cannot_be_read_are_named(tmp_path, capsys):
    """A missing text, a binary file, missing presets and an unknown mapping are refused by name."""
    (tmp_path / "bytes.txt").write_bytes(b"A x 0.5 \xff\xfe")
    (tmp_path / "good.txt").write_text("A x 0.5 + B x 0.5 = T", encoding="utf-8")
    output = tmp_path / "recipe.yaml"

    assert run("import", tmp_path / "none.txt", "-o", output) == 2
    assert run("import", tmp_path / "bytes.txt", "-o", output) == 2
    assert run("import", tmp_path / "good.txt", "-o", output, "--presets", tmp_path / "none.tsv") == 2
    assert run("import", tmp_path / "good.txt", "-o", output, "--mapping", "forge") == 2

    missing, broken, presets, mapping = capsys.readouterr().err.splitlines()
    assert f"{tmp_path / 'none.txt'}: no such file" in missing
    assert "bytes.txt: not UTF-8 text" in broken
    assert presets.startswith(f"blockfit: {tmp_path / 'none.tsv'}: cannot be read")
    assert "mapping: received 'forge'; sd1 has supermerger, mecha, model-mixer" in mapping
    assert not output.exists()


def test_presets_and_mapping_of_the_command_are_used(tmp_path):
    """Presets come from the file of --presets, and the mapping from --mapping."""
    (tmp_path / "text.txt").write_text("A x (1-alpha) + B x alpha = T\nalpha = MINE", encoding="utf-8")
    (tmp_path / "presets.tsv").write_text(f"preset_name\tpreset_weights\nMINE\t{NUMBERS}\n", encoding="utf-8")
    output = tmp_path / "recipe.yaml"

    assert run("import", tmp_path / "text.txt", "-o", output, "--presets", tmp_path / "presets.tsv",
               "--mapping", "mecha") == 0  # fmt: skip

    recipe = load_recipe(output)
    assert (recipe.mapping, set(recipe.steps[0].alpha.values.values())) == ("mecha", {0.25})


def test_merged_files_give_back_their_recipe(tmp_path, write_sd1, sd1_tensors, capsys):
    """A merged file gives back the recipe it was merged by; a file without a recipe is bad input."""
    around = sd1_tensors()
    for seed, name in enumerate("ab"):
        write_sd1(tmp_path / f"{name}.safetensors", seed=seed, around=around)
    recipe, merged, output = (tmp_path / name for name in ("r.yaml", "merged.safetensors", "again.yaml"))
    recipe.write_text(
        "mapping: model-mixer\nmodels: {a: {file: a}, b: {file: b, license: mit}}\n"
        "steps:\n  - {name: T, mode: weight_sum, a: a, b: b, alpha: {OUT03-OUT05: 0.5}}\n",
        encoding="utf-8",
    )
    assert run("merge", recipe, "-o", merged) == 0

    assert run("import", merged, "-o", output) == 0
    assert load_recipe(output) == load_recipe(recipe)

    save_file(around, tmp_path / "plain.safetensors")
    assert run("import", tmp_path / "plain.safetensors", "-o", output) == 2
    assert "no recipe in its metadata" in capsys.readouterr().err


def test_a_merged_file_is_found_without_extension(tmp_path, write_sd1, monkeypatch):
    """A merged file in the working directory is found without its extension and without --models."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BLOCKFIT_MODELS", raising=False)
    for seed, name in enumerate(("a", "b")):
        write_sd1(tmp_path / f"{name}.safetensors", seed=seed)
    (tmp_path / "text.txt").write_text("a x 0.5 + b x 0.5 = T", encoding="utf-8")
    assert run("import", "text.txt", "-o", "recipe.yaml") == 0
    assert run("merge", "recipe.yaml", "-o", "c.safetensors") == 0

    assert run("import", "c", "-o", "again.yaml") == 0
    assert load_recipe(tmp_path / "again.yaml").step("T").alpha.at("M00") == 0.5


def test_lines_not_understood_are_warnings(tmp_path, capsys):
    """Lines that look like steps and are not needed are warnings with number and text; the recipe is written."""
    source, output = tmp_path / "text.txt", tmp_path / "recipe.yaml"
    source.write_text("A x 0.5 + B x 0.5 = T\nT 0.7 C 0.3\nM = A x 0.5 + B x 0.3\nProse on T.\n", encoding="utf-8")

    assert run("import", source, "-o", output) == 0

    printed = capsys.readouterr()
    assert printed.out == f"1 step, 2 models, output T -> {output}\n"
    second, third = printed.err.splitlines()
    reason = "not a step, although it contains 'T', in 'T 0.7 C 0.3'"
    assert second == f"blockfit: warning: {source}: line 2: not understood: {reason}"
    assert third.startswith(f"blockfit: warning: {source}: line 3: not understood: the factors add up to 0.8")


def test_files_of_other_tools_are_imported(tmp_path, capsys):
    """A file of another tool becomes a recipe; a file that no reader accepts is refused in one line, with its kind."""
    output = tmp_path / "recipe.yaml"
    metadata = {"type": "webui", "interp_method": "No interpolation", "primary_model_hash": "a1" * 32}
    texts = {
        "w.json": json.dumps(metadata),
        "m.mecha": 'version 0.1.0\nmodel "a.safetensors"\nmodel "b.safetensors"\nmerge "weighted_sum" &0 &1 0.3\n',
        "k.yml": "merge_method: linear\nmodels:\n  - {model: a.safetensors, parameters: {weight: 1}}\n"
        "  - {model: b.safetensors, parameters: {weight: 3}}\n",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
        assert run("import", tmp_path / name, "-o", output, "--json") == 0
        assert len(json.loads(capsys.readouterr().out)["steps"]) == 1
        output.unlink()

    per_cent = metadata | {"interp_method": "Weighted sum", "multiplier": 30, "secondary_model_hash": "b2" * 32}
    (tmp_path / "w.json").write_text(json.dumps(per_cent), encoding="utf-8")
    assert run("import", tmp_path / "w.json", "-o", output, "--json") == 0
    warnings = json.loads(capsys.readouterr().out)["warnings"]
    assert warnings[-1] == "merged.alpha: the weight 30 (BASE) is beyond 3; is it per cent?"
    output.unlink()

    (tmp_path / "p.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "c.json").write_text(json.dumps({"1": {"class_type": "KSampler", "inputs": {}}}), encoding="utf-8")
    for name, kind in (("p.png", "is a PNG image"), ("c.json", "a ComfyUI workflow: saves no checkpoint")):
        assert run("import", tmp_path / name, "-o", output) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"blockfit: {tmp_path / name}: {kind}")
    assert not output.exists()


def test_parents_of_a_merge_become_steps(tmp_path, write_sd1, sd1_tensors, capsys):
    """With --with-parents a merge of a merge becomes a recipe of all steps, which merges the same tensors."""
    around = sd1_tensors()
    for seed, name in enumerate("abc"):
        write_sd1(tmp_path / f"{name}.safetensors", seed=seed, around=around)
    made = {}
    for name, text in (("one", "a x 0.5 + b x 0.5 = T"), ("two", "one + (c - a) x 0.3 = U")):
        (tmp_path / f"{name}.txt").write_text(text, encoding="utf-8")
        assert run("import", tmp_path / f"{name}.txt", "-o", tmp_path / f"{name}.yaml") == 0
        assert run("merge", tmp_path / f"{name}.yaml", "-o", tmp_path / f"{name}.safetensors", "--dtype", "fp32") == 0
        made[name] = load_file(tmp_path / f"{name}.safetensors")
    capsys.readouterr()
    output = tmp_path / "again.yaml"

    assert run("import", tmp_path / "two.safetensors", "-o", output) == 0
    assert "'one': merged too; import with --with-parents" in capsys.readouterr().err
    assert [step.name for step in load_recipe(output).steps] == ["U"]

    assert run("import", tmp_path / "two.safetensors", "-o", output, "--with-parents") == 0
    recipe = load_recipe(output)
    assert ([step.name for step in recipe.steps], list(recipe.models)) == (["one", "U"], ["c", "a", "b"])
    (tmp_path / "one.safetensors").unlink()
    assert run("merge", output, "-o", tmp_path / "again.safetensors", "--dtype", "fp32") == 0
    again = load_file(tmp_path / "again.safetensors")
    for name, value in made["two"].items():
        torch.testing.assert_close(again[name], value, rtol=0, atol=1e-5)


def test_metadata_with_hashes_alone_become_a_recipe(tmp_path, write_sd1, capsys):
    """Metadata with hashes and no names become a recipe, which finds its files by hash and can be merged."""
    digests = {}
    for seed, name in enumerate(("renamed", "other name")):
        write_sd1(tmp_path / f"{name}.safetensors", seed=seed)
        digests[name] = hashlib.sha256((tmp_path / f"{name}.safetensors").read_bytes()).hexdigest()
    first, second = digests.values()
    noted = {"type": "webui", "interp_method": "Weighted sum", "multiplier": 0.25,
             "primary_model_hash": first, "secondary_model_hash": second}  # fmt: skip
    (tmp_path / "m.json").write_text(json.dumps({"sd_merge_recipe": json.dumps(noted)}), encoding="utf-8")

    assert run("import", tmp_path / "m.json", "-o", tmp_path / "recipe.yaml") == 0
    assert [model.file for model in load_recipe(tmp_path / "recipe.yaml").models.values()] == [first[:10], second[:10]]
    assert capsys.readouterr().err.count("found by its hash") == 2

    assert run("merge", tmp_path / "recipe.yaml", "-o", tmp_path / "out.safetensors", "--dtype", "fp32") == 0
    name = "model.diffusion_model.out.2.weight"
    a, b, merged = (load_file(tmp_path / f"{file}.safetensors")[name].double() for file in (*digests, "out"))
    torch.testing.assert_close(merged, a * 0.75 + b * 0.25, rtol=0, atol=1e-6)


def test_the_imported_file_is_not_overwritten(tmp_path, capsys):
    """An output that is the imported text itself is refused."""
    source = tmp_path / "text.txt"
    source.write_text("A x 0.5 + B x 0.5 = T", encoding="utf-8")

    assert run("import", source, "-o", source) == 2

    assert "is the imported file itself" in capsys.readouterr().err
    assert source.read_text(encoding="utf-8") == "A x 0.5 + B x 0.5 = T"


def test_the_option_mapping_is_for_texts_only(tmp_path, write_sd1, capsys):
    """--mapping overrides the mapping that a text declares; it is refused for a merged file, which has its own."""
    source, output = tmp_path / "text.txt", tmp_path / "recipe.yaml"
    source.write_text('mapping: "mecha"\nA x 0.5 + B x 0.5 = T', encoding="utf-8")
    assert run("import", source, "-o", output) == 0
    assert load_recipe(output).mapping == "mecha"
    assert run("import", source, "-o", output, "--mapping", "model-mixer") == 0
    assert load_recipe(output).mapping == "model-mixer"

    write_sd1(tmp_path / "merged.safetensors")
    assert run("import", tmp_path / "merged.safetensors", "-o", output, "--mapping", "mecha") == 2
    assert "--mapping: received mecha" in capsys.readouterr().err
