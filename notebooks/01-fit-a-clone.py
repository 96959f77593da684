# %% [markdown]
# # Fit a clone
#
# Somebody published a merged checkpoint without saying how it was merged. You have that file (the **target**), and
# you have a guess at the checkpoints it was made from (the **sources**). This notebook finds the alpha of every block
# that brings a merge of the sources as close to the target as it gets, merges it, and looks at the result.
#
# The checkpoints here are the demo family: small models that draw digits, with the same 26 blocks as Stable Diffusion
# 1.5. Everything takes seconds. With your own checkpoints you change the file names, and it takes minutes.
#
# First the names that are used below, and the demo's files, copied into a folder `demo` beside this notebook.

# %%
import warnings

import pandas as pd

from optimizer import (
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
    similarity_frame,
    sources_frame,
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
# `inspect_checkpoint` reads a file once and tells what is in it. All should have the same layout. Read what is
# `unusual`: a file with NaN in it, without a text encoder or with odd position ids explains a bad fit better than any
# alpha does.
#
# What is odd about an input is warned of wherever that matters. That `outline` has no VAE is as it should be, so the
# last line has Python tell no more of it.

# %%
rows = {}
for name, file in {**files, "target": target}.items():
    one = inspect_checkpoint(file)
    rows[name] = {
        "layout": one.layout,
        "MB": round(one.size / 1e6, 1),
        "tensors": one.tensors,
        "dtypes": ", ".join(one.dtypes),
        "unusual": " ".join(one.unusual),
    }
warnings.filterwarnings("ignore", message=".*outline.safetensors: no VAE")
pd.DataFrame(rows).T

# %% [markdown]
# ## 2. Which sources?
#
# Every finetune differs from the base model in its own direction. The `delta` similarity of two checkpoints is the
# cosine of these differences, block by block: 1 means the same direction, 0 means nothing in common.
#
# Look at the order more than at the numbers. `bold` and `slanted` stand out. The others are further away, but not at 0:
# finetunes of one base have something in common anyway, so a small similarity is no proof that a source was used.
# Section 3 asks that better.

# %%
near = {}
for name in ("bold", "inverted", "outline", "slanted", "small"):
    blocks = compare(files[name], target, metric="delta", base=files["base"])  # {"BASE": 0.95, "IN00": ...}
    near[name] = total_similarity(blocks)  # the mean over the blocks
pd.Series(near).sort_values(ascending=False).to_frame("delta similarity").round(3)

# %% [markdown]
# ## 3. A recipe with holes, and what it can reach
#
# A recipe is what you would write for SuperMerger, with the numbers that you do not know left open:
# `{"search": [0, 1]}` instead of an alpha, one number for each block. Here: `bold`, plus the difference of `inverted`
# from the base, plus the difference of `slanted` from the base. Is `inverted` in the target? The fit will tell.
#
# A study is such a recipe, a target, and a folder that everything is kept in.

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

# %% [markdown]
# Before any search: what is the best that *any* linear merge of these sources can do? That is the **ceiling**. If it is
# low, no alpha will help: a source is missing. Its measure is the share **explained**: of what makes the target
# different from the base, in squares, how much the merge accounts for. 0 % is the base itself, 100 % the target.
#
# `best` is what your recipe's alphas can reach, `ceiling` what any merge can. Here they are nearly the same, so the
# recipe has the right form, and both are below 100 %, so something of the target is not in these sources.

# %%
(reach,) = study_ceilings(study, "explained")
for name in ("best", "ceiling"):
    print(f"{name}: {reach.total[name]:.2%}")

# %% [markdown]
# And how much of each source is in the target? `coefficient` is its share by least squares, `error` how far off by
# chance, and `loss` what the ceiling loses without the source. A source with a coefficient near 0 and next to no loss,
# as `inverted` here, can go. [Notebook 3](03-read-the-ceiling.ipynb) reads this in depth.

# %%
sources_frame(reach)[["coefficient", "error", "loss"]].round(4)

# %% [markdown]
# ## 4. Fit
#
# This fills the holes. Each trial proposes all 52 alphas at once and is scored from a handful of coefficients; nothing
# is merged. For the share explained the exact optimum is computed and is the first trial, so six trials are plenty.

# %%
result = fit(study)
print(f"explained: {result.similarity:.2%}")

# %% [markdown]
# Every step by every metric, before it (of its input A) and after it. Only `explained` was searched for; the others are
# shown beside it. `delta` is the cosine of differences from above: it does not see how far a merge goes. `weights`
# compares whole weights: it is always near 100 %, which is why it says little.

# %%
percent = 100 * similarity_frame(result)
percent[["total", "BASE", "IN05", "M00", "OUT03", "OUT11"]].round(2)

# %% [markdown]
# The alphas that were found. `TEMP1` adds `inverted`: nearly nothing, as the ceiling said. `TEMP2` adds `slanted`.

# %%
plots = dict(figures(result))
plots["alphas"]

# %% [markdown]
# Block by block: white is before the step, blue after it. Long lines are blocks where the step matters.

# %%
plots["similarity-per-block"]

# %% [markdown]
# People choose round numbers, and a fit ends with some: `best.simple.yaml` is the recipe with its alphas on the
# coarsest grid on which no block loses more than a twentieth of what is unexplained of it.

# %%
print(f"{result.simple.distinct[0]} numbers became {result.simple.distinct[1]}")
alphas_frame(result.simple.recipe).iloc[::5]

# %% [markdown]
# ## 5. Is it right?
#
# With your own target you will never know. For the demo the answer is at hand: it was merged from `bold`, `slanted`
# and a sixth finetune, `amber`, that nobody published.
#
# Compare **coefficients** (what each source contributes to a block), not alphas: different alphas can mean the same
# merge. The error of `slanted` is small but not zero. The part of the target that is `amber` resembles the other
# sources a little, and as far as it does, it is counted as theirs. No method can tell these apart from the files.

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
# `merge` writes the checkpoint: in float32 from the sources themselves, rounded once, however many steps there are.
# Beside it, what one would try without a fit: half `bold`, half `slanted`.

# %%
merge(result.recipe, study.sources, "clone.safetensors")
half = new_recipe(files, steps=[{"name": "HALF", "mode": "weight_sum", "a": "bold", "b": "slanted", "alpha": 0.5}])
merge(half, files, "half.safetensors")

# %% [markdown]
# The files compared with the target, by four metrics, as means over the blocks that each sees. `attention` is the
# similarity that the merging community reports; it sees only blocks with self-attention. It was not fitted here, and
# still the clone is ahead by all four.

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
# Numbers are not pictures. `preview` draws with each checkpoint from the same noise and writes a sheet. The clone's
# digits should look like the target's, stroke by stroke; the numbers below each picture are distances to the target's
# (smaller is nearer).

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
# The folder `my-clone` holds it all: `best.yaml` is the recipe with its numbers, the similarities and the hashes of all
# files; `study.db` holds every trial; `study.yaml` and `recipe.yaml` say what was searched, so that the command line
# can go on (`blockfit status my-clone`, `blockfit fit my-clone`).
#
# - [Stop, go on, and extend a study](02-resume-and-extend.ipynb)
# - [Read the ceiling](03-read-the-ceiling.ipynb)
