# %% [markdown]
# # Stop, continue and extend a study
#
# A study on full-size checkpoints may run for hours. This notebook stops a study and continues it, gives it more
# trials, tries another metric, keeps several recipes, adds a missing source, and exports the result to other tools. It
# starts again with the demo family; [notebook 1](01-fit-a-clone.ipynb) explains the first lines.

# %%
import textwrap
import warnings

import pandas as pd

from blockfit import (
    StudyError,
    alphas_frame,
    copy_family,
    export_recipe,
    fit,
    load_recipe,
    new_recipe,
    new_study,
    simplify_file,
    sources_frame,
    study_ceilings,
    study_status,
    trials_table,
)

copy_family("demo")
warnings.filterwarnings("ignore", message=".*outline.safetensors: no VAE")  # the missing VAE is intended
target = "demo/target.safetensors"
free = {"search": [0, 1], "blocks": "OUT03-OUT11"}
recipe = new_recipe(
    {name: f"demo/models/{name}.safetensors" for name in ("base", "bold", "slanted")},
    steps=[{"name": "TEMP1", "mode": "add_difference", "a": "bold", "b": "slanted", "c": "base", "alpha": free}],
)

# %% [markdown]
# ## Stop and continue
#
# The study below has a budget of eight trials. `with_trials(3)` stands for a fit that stopped after three trials: by
# the notebook's stop button (which finishes the running trial and writes the best recipe so far), by a crash, or by a
# power cut.

# %%
study = new_study(recipe, target, folder="outputs", trials=8)
result = fit(study.with_trials(3))
print(f"best of {len(result.searches[0].completed)} trials: {result.similarity:.3%}")

# %% [markdown]
# `study_status` returns the progress. It needs no checkpoints, so you can call it from another process while a fit
# runs.

# %%
(search,) = study_status(study).searches
print(f"{search.completed} of {search.budget} trials done")

# %% [markdown]
# Tomorrow, or after a restart, `fit` takes the folder, finds everything there, and continues where it stopped.
#
# Look at the trial numbers: no trial is repeated or lost. With the same seed the result is the same as without a break.
# The first trial is the exact optimum (`origin`), so no later trial is better: the others confirm it.

# %%
result = fit("outputs")
trials_table(result)[["trial", "origin", "similarity"]].round(6)

# %% [markdown]
# For more trials, make the same call with a larger budget: `new_study(..., trials=20)` for the same folder, or
# `fit(study.with_trials(20))`.
#
# ## Another metric
#
# `attention` is the similarity that the merging community reports: it compares outputs of self-attention on random
# inputs. A folder may hold the trials of several metrics, but `best.yaml` is that of the last fit, so a separate folder
# is tidier.
#
# `attention` has no exact optimum and several local maxima, so it gets more trials. The first trial is always the exact
# optimum of `explained`: see how little the search improves on it.

# %%
by_attention = new_study(recipe, target, folder="outputs-attention", metric="attention", trials=16)
result_attention = fit(by_attention)
first = result_attention.searches[0].trials[0]
print(f"{first.origin}: {first.similarity:.4%}")
print(f"best of all: {result_attention.similarity:.4%}")

# %% [markdown]
# Which of the two fits is right? Each is slightly better by its own metric. For the demo the true alphas are known, and
# the result of `explained` is much nearer to them: look at `OUT09` to `OUT11`. A part of this target is in none of the
# sources, and that moves the optimum of `attention` away from the truth. So look at all metrics, and at pictures,
# before you trust a number.

# %%
pd.DataFrame(
    {
        "by explained": alphas_frame(result.recipe)["TEMP1"],
        "by attention": alphas_frame(result_attention.recipe)["TEMP1"],
        "true": alphas_frame(load_recipe("demo/answer/recipe.yaml"))["TEMP2"],
    }
).loc["OUT03":].round(3)

# %% [markdown]
# A score on random inputs also depends on luck: the fit chose the best alphas for *these* inputs. `spread` scores the
# same recipe on four other sets of inputs. Slightly lower scores are normal. If they were much lower, the fit would
# have overfitted its inputs; fitting on several sets (`seeds=[114514, 1, 2, 3]`) would help.

# %%
(spread,) = result_attention.spread
print(f"fitted on: {spread.fitted:.3%}")
print("others:   ", ", ".join(f"{similarity:.3%}" for similarity in spread.totals))

# %% [markdown]
# ## Several candidates
#
# Often several recipes are nearly as good. With `candidates=3` the fit also writes the two next best recipes that
# really differ, as `candidate-2.yaml` and `candidate-3.yaml`: the share of a source in a block differs by 0.05 or more.
# Nothing is searched again.
#
# `loss` is the similarity lost against the best recipe. Candidate 2 differs by nearly 0.09 and loses 0.00003: this
# share is not known to two digits, even if the best recipe shows more.

# %%
result_attention = fit(by_attention, candidates=3)
pd.DataFrame(
    [{"candidate": each.number, "loss": each.loss, "differs by": each.distance} for each in result_attention.candidates]
).round(6)

# %% [markdown]
# ## A changed study is refused
#
# Trials that were scored on other files are never mixed with new ones. Here the same folder gets another target. The
# message names the change and the ways out: `fit(other, fresh=True)`, or another folder. All trials are still there.

# %%
other = new_study(recipe, "demo/models/outline.safetensors", folder="outputs", trials=8)
try:
    fit(other)
except StudyError as problem:
    print(textwrap.fill(str(problem), 110))

# %% [markdown]
# `new_study` with the old target restores the folder.

# %%
study = new_study(recipe, target, folder="outputs", trials=8)

# %% [markdown]
# ## Add a source
#
# A part of the target is missing. Is `outline` in it? The larger recipe has one more source and one more step. It
# searches other alphas, so it gets a separate folder.

# %%
outline = new_recipe(
    {**study.sources, "outline": "demo/models/outline.safetensors"},
    steps=[
        *recipe.steps,
        {"name": "TEMP2", "mode": "add_difference", "a": "TEMP1", "b": "outline", "c": "base", "alpha": free},
    ],
)
with_outline = new_study(outline, target, folder="with-outline", trials=4)
result_outline = fit(with_outline)
print(f"without outline {result.similarity:.3%}, with it {result_outline.similarity:.3%}")

# %% [markdown]
# An additional source never makes a fit worse, so a small gain proves nothing. The source's coefficient is better
# evidence: it is almost 0, and without the source almost nothing is lost. The coefficient is not exactly 0, and even
# several times its `error`, but that is no proof either. The error is only that of chance, and the coefficient measures
# what `outline` has in common with the missing part.

# %%
(reach,) = study_ceilings(with_outline, "explained")
sources_frame(reach)[["coefficient", "error", "loss"]].round(4)

# %% [markdown]
# Now suppose that you find the missing finetune, `amber`. The similarity jumps to practically 100 %, which is typical
# of a true source.

# %%
amber = new_recipe(
    {**study.sources, "amber": "demo/answer/amber.safetensors"},
    steps=[
        *recipe.steps,
        {"name": "TEMP2", "mode": "add_difference", "a": "TEMP1", "b": "amber", "c": "base", "alpha": free},
    ],
)
with_amber = new_study(amber, target, folder="with-amber", trials=4)
result_amber = fit(with_amber)
print(f"with amber {result_amber.similarity:.4%}")

# %% [markdown]
# ## Simpler numbers
#
# People choose round alphas, so every fit also writes `best.simple.yaml`, with alphas on the coarsest grid (0.05, 0.01,
# 0.005) and fewer steps and sources. No block loses more than a twentieth of its unexplained part. Here the fitted
# 0.649997 becomes 0.65, and all alphas equal those of the target's recipe. `simplify_file` does the same for any
# finished recipe, also with another `share`.

# %%
simple = simplify_file("with-amber/best.yaml", "with-amber/coarser.yaml", share=0.1)
assert simple.recipe.steps[0].alpha == result_amber.simple.recipe.steps[0].alpha
both = {"fitted": alphas_frame(result_amber.recipe), "simplified": alphas_frame(simple.recipe)}
pd.concat(both, axis=1).loc["OUT03":].round(6)

# %% [markdown]
# ## Export
#
# `result.export` returns the rounded recipe as a file's text for other tools: `supermerger` (formulas and presets),
# `model-mixer`, `mecha`, `comfyui` (a workflow) and `mergekit`. `export_recipe` does it for any recipe. The output
# below is the end of SuperMerger's text: the presets, with 26 numbers for each step.

# %%
text = result_amber.export("supermerger")
print(text[text.index("preset_name") :])

# %% [markdown]
# If a tool cannot express a recipe, the export is refused, with the reason. model-mixer assigns the time embedding to
# another block than SuperMerger does. If the alphas of these two blocks differ, it would make a different merge.

# %%
try:
    export_recipe(simple.recipe, "model-mixer")
except ValueError as problem:
    print(textwrap.fill(str(problem), 110))
