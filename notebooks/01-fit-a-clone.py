# %% [markdown]
# # Fit a clone
#
# Somebody published a merged checkpoint without its recipe. You have that file (the **target**), and a guess at the
# checkpoints it was made from (the **sources**). This notebook finds the alpha of every block for the merge of the
# sources that is closest to the target, writes that merge, and looks at the result.
#
# The checkpoints here are the demo family: small models that draw digits, with the same 26 blocks as Stable Diffusion
# 1.5. Everything takes seconds. With your own checkpoints, change the file names; it then takes minutes.
#
# The first cell imports the names used below, and copies the demo's files into a folder `demo` beside this notebook.

# %%
import warnings

import pandas as pd

from blockfit import (
    alphas_frame,
    coefficients_frame,
    compare,
    copy_family,
    figures,
    fit,
    inspect_checkpoint,
    load_recipe,
    merge,
    new_recipe,
    new_study,
    preview,
    study_ceilings,
    total_similarity,
)

copy_family("demo")
target = "demo/target.safetensors"
names = ("base", "bold", "inverted", "outline", "slanted", "small")
files = {name: f"demo/models/{name}.safetensors" for name in names}

# %% [markdown]
# ## 1. Look at the files
#
# `inspect_checkpoint` reads a file once and describes its contents. All files should have the same layout. Read the
# column `unusual`: NaN, a missing text encoder or odd position ids explain a bad fit better than any alpha.
#
# blockfit warns of unusual inputs wherever they matter. The missing VAE of `outline` is intended, so the last but one
# line turns its warning off.

# %%
rows = {}
for name, file in {**files, "target": target}.items():
    found = inspect_checkpoint(file)
    rows[name] = {
        "layout": found.layout,
        "MB": round(found.size / 1e6, 1),
        "tensors": found.tensors,
        "dtypes": ", ".join(found.dtypes),
        "unusual": " ".join(found.unusual),
    }
warnings.filterwarnings("ignore", message=".*outline.safetensors: no VAE")
pd.DataFrame(rows).T

# %% [markdown]
# ## 2. Which sources?
#
# Every finetune differs from the base model in its own direction. The `delta` similarity of two checkpoints is the
# cosine of these differences, block by block: 1 means the same direction, 0 means nothing in common.
#
# The order matters more than the numbers. `bold` and `slanted` stand out. The others are further away, but not at 0:
# finetunes of one base always have something in common, so a small similarity does not prove that a source was used.
# Section 3 has a better test.

# %%
near = {}
for name in ("bold", "inverted", "outline", "slanted", "small"):
    blocks = compare(files[name], target, metric="delta", base=files["base"])  # {"BASE": 0.95, "IN00": ...}
    near[name] = total_similarity(blocks)  # the mean over the blocks
pd.Series(near).sort_values(ascending=False).to_frame("delta similarity").round(3)

# %% [markdown]
# ## 3. A recipe with free alphas, and its ceiling
#
# A recipe has the same steps that you would use in SuperMerger, but the alphas that you do not know are free:
# `{"search": [0, 1]}` stands for one unknown number per block. This recipe is `bold`, plus the difference of `inverted`
# from the base, plus the difference of `slanted` from the base. Is `inverted` in the target? The fit will show.
#
# A study consists of such a recipe, a target, and a folder for all files of the fit. A recipe, a study and the results
# below show themselves as the last line of a cell.

# %%
free = {"search": [0, 1]}
recipe = new_recipe(
    {name: files[name] for name in ("base", "bold", "inverted", "slanted")},
    steps=[
        {"name": "TEMP1", "mode": "add_difference", "a": "bold", "b": "inverted", "c": "base", "alpha": free},
        {"name": "TEMP2", "mode": "add_difference", "a": "TEMP1", "b": "slanted", "c": "base", "alpha": free},
    ],
)
study = new_study(recipe, target, folder="my-clone", trials=6)
study

# %% [markdown]
# How good can *any* linear merge of these sources be? This is the **ceiling**, and it needs no search. If it is low, no
# alpha will help: a source is missing. The measure is the share **explained**: how much of the squared difference
# between target and base the merge accounts for. 0 % is the base itself, 100 % the target.
#
# First comes the verdict in words. In the table, compare the best free alphas with any merge: they are nearly the same
# here, so the recipe has the right form. Both are below 100 %, so a part of the target is not in these sources.
#
# How much of each source is in the target? The coefficient is its share by least squares. A source with a coefficient
# near 0, without which the ceiling loses almost nothing, like `inverted` here, can be removed.
# [Notebook 3](03-read-the-ceiling.ipynb) explains these figures in depth.

# %%
study_ceilings(study, "explained")

# %% [markdown]
# ## 4. Fit
#
# The fit finds values for the free alphas. Each trial proposes all 52 alphas at once and is scored from a few
# coefficients; nothing is merged. For the share explained, the first trial is the exact optimum, so six trials suffice.
# While a fit runs, its cell shows the trials, the best similarity so far and the time left. The stop button ends it
# with the best so far.
#
# The result begins with the verdict again. Its table shows every step by every metric, before the step (its input A)
# and after it. The fit maximised only `explained`. `delta` is the cosine of differences from section 2: it does not see
# how far a merge goes. `weights` compares whole weights: it is always near 100 %, so it distinguishes little.
# (`similarity_frame(result)` has these figures for every block.)

# %%
result = fit(study)
result

# %% [markdown]
# The next plot shows the fitted alphas. `TEMP1` adds almost nothing of `inverted`, as the ceiling predicted. `TEMP2`
# adds `slanted`.

# %%
plots = dict(figures(result))
plots["alphas"]

# %% [markdown]
# The last plot shows each block before the step (white) and after it (blue). A long line means that the step matters in
# that block.

# %%
plots["similarity-per-block"]

# %% [markdown]
# People choose round numbers, so a fit also writes `best.simple.yaml`: the recipe with its alphas on the coarsest grid
# on which no block loses more than a twentieth of its unexplained part.

# %%
print(f"{result.simple.distinct[0]} numbers became {result.simple.distinct[1]}")
alphas_frame(result.simple.recipe).iloc[::5]

# %% [markdown]
# ## 5. Is it right?
#
# With your own target you will never know. For the demo the answer is available: the target was merged from `bold`,
# `slanted` and a sixth finetune, `amber`, that nobody published.
#
# Compare **coefficients** (the share of each source in a block), not alphas: different alphas can mean the same merge.
# The error of `slanted` is small but not zero. `amber` slightly resembles the other sources, and the part of it that
# resembles a source is counted as that source. No method can separate the two from the files.

# %%
found = coefficients_frame(result.recipe)
true = coefficients_frame(load_recipe("demo/answer/recipe.yaml"))
pd.DataFrame(
    {
        "slanted, found": found["slanted"],
        "slanted, true": true["slanted"],
        "inverted, found": found["inverted"],
        "amber, true": true["amber"],
    }
).iloc[::3].round(3)

# %% [markdown]
# ## 6. Merge and compare
#
# `result.merge` computes the checkpoint in float32 from the sources themselves, and rounds it once, for any number of
# steps. By default it merges the round numbers of `best.simple.yaml`; `simple=False` asks for the exact ones. `merge`
# does the same for any recipe. Here it merges a first try without a fit: half `bold`, half `slanted`.

# %%
result.merge("clone.safetensors", simple=False)
half = new_recipe(files, steps=[{"name": "HALF", "mode": "weight_sum", "a": "bold", "b": "slanted", "alpha": 0.5}])
merge(half, files, "half.safetensors")

# %% [markdown]
# The table compares both files with the target by four metrics, as means over the blocks that each metric sees.
# `attention` is the similarity that the merging community reports; it sees only blocks with self-attention. The fit did
# not use it, but the clone is ahead by all four metrics.

# %%
table = pd.DataFrame()
for name in ("clone", "half"):
    for metric in ("explained", "delta", "attention", "weights"):
        scores = compare(f"{name}.safetensors", target, metric=metric, base=files["base"])
        table.loc[name, metric] = 100 * total_similarity(scores)
table.round(2)

# %% [markdown]
# ## 7. Look at pictures
#
# Numbers are not pictures. `preview` draws from the same noise with each checkpoint and writes a contact sheet. The
# clone's digits should look like the target's, stroke by stroke. The numbers below each picture are its distances from
# the target's picture.

# %%
sheet = preview(
    target,
    ["clone.safetensors", "half.safetensors"],
    "sheet.png",
    prompts=["a digit three", "a digit eight"],
    seeds=[7],
    with_sources=False,
)
sheet.sheet()

# %% [markdown]
# ## What you have now
#
# The folder `my-clone` has all results. `best.yaml` is the recipe with its numbers, the similarities and the hashes of
# all files. `study.db` has every trial. `study.yaml` and `recipe.yaml` define the search, so `fit("my-clone")`
# continues it tomorrow, and so does the command line (`blockfit status my-clone`, `blockfit fit my-clone`).
# `result.report()` writes one page with everything, `result.export("supermerger")` returns the recipe for another tool.
#
# - [Stop, continue and extend a study](02-resume-and-extend.ipynb)
# - [Read the ceiling](03-read-the-ceiling.ipynb)
