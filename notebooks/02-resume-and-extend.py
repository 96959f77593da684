# %% [markdown]
# # Stop, go on, and extend a study
#
# A study on full-size checkpoints may run for hours. This notebook stops one and goes on, gives it more trials, tries
# another metric, keeps several recipes, adds a source that was missing, and hands the result to other tools.
# It begins anew with the demo family; [notebook 1](01-fit-a-clone.ipynb) explains the first lines.

# %%
import textwrap
import warnings

import pandas as pd

from optimizer import (
    StudyError,
    alphas_frame,
    copy_family,
    export_recipe,
    fit,
    load_recipe,
    load_study,
    new_recipe,
    new_study,
    simplify_file,
    sources_frame,
    study_ceilings,
    study_status,
    trials_table,
)

copy_family("demo")
warnings.filterwarnings("ignore", message=".*outline.safetensors: no VAE")  # it has none, as it should be
target = "demo/target.safetensors"
free = {"search": [0, 1], "blocks": "OUT03-OUT11"}
recipe = new_recipe(
    {name: f"demo/models/{name}.safetensors" for name in ("base", "bold", "slanted")},
    steps=[{"name": "TEMP1", "mode": "add_difference", "a": "bold", "b": "slanted", "c": "base", "alpha": free}],
)

# %% [markdown]
# ## Stop and go on
#
# The study below has a budget of eight trials. `with_trials(3)` stands for a fit that was stopped after three: by the
# stop button of the notebook (the running trial is finished, and the best so far is written), a crash, or a power cut.

# %%
study = new_study(recipe, target, folder="outputs", trials=8)
result = fit(study.with_trials(3))
print(f"best of {len(result.searches[0].completed)} trials: {result.similarity:.3%}")

# %% [markdown]
# What is done and what is left. `study_status` needs no checkpoints: ask it from elsewhere while a fit runs.

# %%
(search,) = study_status(study).searches
print(f"{search.completed} of {search.budget} trials done")

# %% [markdown]
# Tomorrow, or after a restart, `load_study` finds everything in the folder, and `fit` goes on where it stopped.
#
# Look at the trial numbers: none is repeated, none is lost. With the same seed the result is the same as without a
# break. The first trial is the exact optimum (`origin`), so nothing better follows: the rest confirms it.

# %%
result = fit(load_study("outputs"))
trials_table(result)[["trial", "origin", "similarity"]].round(6)

# %% [markdown]
# More trials are the same call with a larger budget: `new_study(..., trials=20)` for the same folder, or
# `fit(study.with_trials(20))`.
#
# ## Another metric
#
# `attention` is the similarity that the merging community reports: it compares what self-attention makes of random
# inputs. Under the same folder the trials of each metric are kept apart; `best.yaml` is that of the last fit, so a
# folder of its own is tidier.
#
# `attention` has no exact optimum and several local maxima, so it gets more trials. The exact optimum of `explained` is
# always the first trial: look by how little the search gets above it.

# %%
by_attention = new_study(recipe, target, folder="outputs-attention", metric="attention", trials=16)
result_attention = fit(by_attention)
first = result_attention.searches[0].trials[0]
print(f"{first.origin}: {first.similarity:.4%}")
print(f"best of all: {result_attention.similarity:.4%}")

# %% [markdown]
# Which of the two fits is right? Each is best by its own metric, and by a hair. For the demo the true alphas are known,
# and they are much nearer to what `explained` found: look at `OUT09` to `OUT11`. A part of this target is in none of
# the sources, and then the best `attention` lies elsewhere than the truth. So look at all metrics, and at pictures,
# before you believe a number.

# %%
pd.DataFrame(
    {
        "by explained": alphas_frame(result.recipe)["TEMP1"],
        "by attention": alphas_frame(result_attention.recipe)["TEMP1"],
        "true": alphas_frame(load_recipe("demo/answer/recipe.yaml"))["TEMP2"],
    }
).loc["OUT03":].round(3)

# %% [markdown]
# A score on random inputs is also a matter of luck: the fit chose what is best on *these* inputs. `spread` scores the
# same recipe on four others. A little lower is as it should be. Were they much lower, the fit would have learned its
# inputs by heart, and fitting on several (`seeds=[114514, 1, 2, 3]`) would be the remedy.

# %%
(spread,) = result_attention.spread
print(f"fitted on: {spread.fitted:.3%}")
print("others:   ", ", ".join(f"{similarity:.3%}" for similarity in spread.totals))

# %% [markdown]
# ## Several candidates
#
# Often several recipes are nearly as good. `candidates=3` writes the best one and the two next that truly differ (some
# source's share in some block by 0.05 or more) as `candidate-2.yaml`, `candidate-3.yaml`. Nothing is searched again.
#
# `loss` is what each scores less than the best. A loss of some millionths for a share that differs by 0.06 says: this
# number is not known to two digits, however many the best recipe shows.

# %%
result_attention = fit(by_attention, candidates=3)
pd.DataFrame(
    [{"candidate": one.number, "loss": one.loss, "differs by": one.distance} for one in result_attention.candidates]
).round(6)

# %% [markdown]
# ## What is refused
#
# Trials that were scored on other files are never mixed with new ones. Here somebody points the same folder to
# another target. The message says what changed and what to do, and all trials are still there. (What the command line
# calls `--fresh` is `fit(study, fresh=True)`.)

# %%
other = new_study(recipe, "demo/models/outline.safetensors", folder="outputs", trials=8)
try:
    fit(other)
except StudyError as problem:
    print(textwrap.fill(str(problem), 110))

# %% [markdown]
# `new_study` with the old target makes the folder what it was.

# %%
study = new_study(recipe, target, folder="outputs", trials=8)

# %% [markdown]
# ## Add a source
#
# Something is missing. Is `outline` in the target? A larger recipe is the old one's sources and steps, and one more of
# each. It searches something else, so it gets a folder of its own.

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
# A source more never makes a fit worse, so a small gain proves nothing. How much of it is in the target tells more:
# hardly anything, and without it next to nothing is lost. That it is not exactly 0, and even several times its `error`,
# is no proof either: the error tells how well the number is determined, and what is measured here is what `outline` has
# in common with the part that is missing.

# %%
(reach,) = study_ceilings(with_outline, "explained")
sources_frame(reach)[["coefficient", "error", "loss"]].round(4)

# %% [markdown]
# Now suppose that the missing finetune, `amber`, turns up. The similarity jumps to practically 100 %: that is what
# finding a true source looks like.

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
# People choose round alphas, and every fit ends with some: `best.simple.yaml` has them on the coarsest grid (0.05,
# 0.01, 0.005), and fewer steps and sources, as long as no block loses more than a twentieth of what is unexplained of
# it. Here the fitted 0.649997 becomes 0.65, and all of them are what the target was made with. `simplify_file` does the
# same for any finished recipe, and with another `share`.

# %%
simple = simplify_file("with-amber/best.yaml", "with-amber/coarser.yaml", share=0.1)
assert simple.recipe.steps[0].alpha == result_amber.simple.recipe.steps[0].alpha
both = {"fitted": alphas_frame(result_amber.recipe), "simplified": alphas_frame(simple.recipe)}
pd.concat(both, axis=1).loc["OUT03":].round(6)

# %% [markdown]
# ## Export
#
# The same recipe for other tools: `supermerger` (formulas and presets), `model-mixer`, `mecha`, `comfyui` (a workflow)
# and `mergekit`. Each gives the text of a file. Here the presets at the end of SuperMerger's, 26 numbers for each step.

# %%
text = export_recipe(simple.recipe, "supermerger")
print(text[text.index("preset_name") :])

# %% [markdown]
# What a tool cannot express is refused with the reason: model-mixer counts the time embedding to another block than
# SuperMerger does, and where the alphas of these two blocks differ it would make another merge.

# %%
try:
    export_recipe(simple.recipe, "model-mixer")
except ValueError as problem:
    print(textwrap.fill(str(problem), 110))
