"""Fuzz `import_text` with notation and other tools' files; the recipe must survive writing and reading."""

import json
from collections.abc import Iterator
from pathlib import Path

import atheris
from fuzzing import fuzz

with atheris.instrument_imports(include=["optimizer.interchange"]):
    from optimizer.interchange import import_text, read_notation, write_notation

ROOT = Path(__file__).resolve().parents[2]
NUMBERS = ",".join(["0.5"] * 26)
TEXTS = [
    "A x 0.9 + B x 0.1 = TEMP1\nTEMP1 x 0.5 + C x 0.5 = T",
    f"A + (B - C) x alpha = T\nalpha = ({NUMBERS})",
    f"T = A * (1-alpha-beta) + B * alpha + C * beta, alpha = 0.1, beta = ({NUMBERS})",
    "(A x (1-alpha) + B x alpha) x (1-beta) + C x beta = T\nbase_alpha = 0.3\nalpha = 50%\nbeta: 0.1",
    'recipe: "r"\nlayout: "sd1"\nmodel a: "x.ckpt", license "mit", sha256 "00"\noutput: "T"\n"a b" x 0.5 + a x 0.5 = T',
    "A + (B - C) x alpha = T\nalpha = {IN01: 0.3, OUT03-OUT11: {search: [0, 1]}}",
    f"PRESET\t{NUMBERS}\nA x (1-alpha) + B x alpha = T\nalpha = PRESET",
    "A x 0.5 + B x 0.5 -> T\nCosine similarity of OUT03 (delta, seed 3): 97%\n| OUT03 |\n| 97.1% |\nTotal: 97%",
    "A + ((B x 0.5 + C x 0.5) - (D + (E - F) x 0.2)) x 0.3 = T\n* **bold** `code` [deadbeef]",
    "0.7(A) + 0.3(B v2 [6ce0161689])\nA + B = C\nC + D @0,3 → E\n① E 60% + F 40%\n② = ① x 1/3 + 0.5G + C x 1/6",
    "MIX = A x (1-alpha) + B x alpha\nweights: GRAD_V\nbase_alpha: 0.2\n(Weighted Sum @ 0.3) MIX + C = LAST",
    "MIX = A + B\nBASE: 0.2\nIN: 0.5\nM: 0.8\nOUT00-OUT11: 30%\nT1 + C (0.3) = T1 # the best\nMIX + T1 = LAST\n7:3",
    "Model A: A\nModel B: B\nMultiplier (M): 0,3\nCustom Name: MIX\nLAST:\n- MIX 70%\n- C: 0.3",
    "E: 40% A, 30% B, 20% C, 10% D; F = E + [A - B] x 1/2",
    f"7,2023.04.05 12.34.56,A x 0.7 + B x 0.3,\"{NUMBERS}\",,6ce0161689,0123456789,,0.3,0.25,Weight sum,True,MIX,[],[]",
    "  model A  \t: A\n  model B  \t: B\n  alpha,beta\t: (0.3, 0.25)\n  MBW \t\t: False\n  Include \t: (['VAE'], '')",
    json.dumps({"sd_merge_recipe": json.dumps({"type": "webui", "interp_method": "No interpolation",
                "primary_model_hash": "A"})}),
    'version 0.1.0\nmodel "a.safetensors"\nmodel "b.safetensors"\nmerge "weighted_sum" &0 &1 0.3',
    "merge_method: linear\nmodels:\n- {model: a.ckpt, parameters: {weight: [{filter: output_blocks.3., value: 3}, 1]}}",
    json.dumps({"1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "a"}},
                "2": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "b"}},
                "3": {"class_type": "ModelMergeSimple",
                      "inputs": {"model1": ["1", 0], "model2": ["2", 0], "ratio": 0.5}}}),
]  # fmt: skip
WORDS = [
    *("alpha", "beta", "base_alpha", "x", "×", " + ", " - ", " = ", "->", "(1-alpha)", "100%", "1e999", "1e-999", "%"),  # noqa: RUF001
    *("recipe: ", "model ", "output: ", "layout: ", "license", "similarity of ", "Total: ", "| IN00 |", "block-level"),
    *("IN00", "OUT03-OUT11", "M00", "{search: [0, 1]}", "(", ")", "[", "]", "{", "}", '"', "\\", "#", "//", "&a", "*a"),
    *(" is ", " @0.3", "0,3", "1/3", "0.3B", "①", "②", "→", "←", "=>", "<-", ":=", "(Weighted Sum 0.3)", "Step 1: "),
    *("| Add Difference @ 1.0 | ", "N/A", "weights: ", "GRAD_V", "\tOUT07\t", "model A  : ", "Adjust : ", "_Temp1"),
    *("Model recipe: ", "alpha_1", "dare_weights(", '{"type": "webui", ', "merge_method: ", "version 0.1.0\n", "&0"),
    *("“", "”", "「", "—", "\u03b1", "\u200b", "\t", "\r", "\n- ", "> ", "1. ", "•"),
]


def seeds() -> Iterator[bytes]:
    """Yield texts in every supported notation, the case files and parts of the article."""
    yield from (text.encode() for text in TEXTS)
    yield from (path.read_bytes() for path in sorted((ROOT / "tests" / "interchange" / "cases").iterdir()))
    yield "﻿".encode("utf-16") + TEXTS[0].encode("utf-16-le")
    lines = (ROOT / "tests" / "interchange" / "article.txt").read_text(encoding="utf-8").splitlines()
    yield from ("\n".join(lines[start : start + 30]).encode() for start in range(0, len(lines), 30))


def read(path: Path) -> None:
    """Import the text, and check that the written notation is read as the same recipe."""
    recipe = import_text(path).recipe
    again = read_notation(write_notation(recipe))
    assert again.recipe == recipe
    assert again.not_understood == ()


if __name__ == "__main__":
    fuzz(read, seeds(), WORDS, suffix=".txt", longest=4096)
