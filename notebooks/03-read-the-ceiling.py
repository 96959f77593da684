# %% [markdown]
# # Read the ceiling
#
# A fit ends at 97 %. Is that good? Would more trials help, or another recipe, or another source? Every merge by these
# tools is a weighted sum of the sources in each block, so the best of all sums can be computed without a search. This
# is the **ceiling**: no recipe over these sources comes closer. This notebook explains how to read it. It begins with
# the fitted study of [notebook 1](01-fit-a-clone.ipynb). One trial is enough, because the first trial is the exact
# optimum of the share explained.

# %%
import pandas as pd

from blockfit import (
    ceiling_frame,
    coefficients_frame,
    compare,
    copy_family,
    fit,
    load_recipe,
    merge,
    new_recipe,
    new_study,
    sources_frame,
    study_ceilings,
    total_similarity,
)

copy_family("demo")
target, amber = "demo/target.safetensors", "demo/answer/amber.safetensors"
files = {name: f"demo/models/{name}.safetensors" for name in ("base", "bold", "inverted", "slanted")}
free = {"search": [0, 1]}
first = {"name": "TEMP1", "mode": "add_difference", "a": "bold", "b": "inverted", "c": "base", "alpha": free}
second = {"name": "TEMP2", "mode": "add_difference", "a": "TEMP1", "b": "slanted", "c": "base", "alpha": free}
recipe = new_recipe(files, steps=[first, second])
study = new_study(recipe, target, folder="ceiling", trials=1)
result = fit(study)

# %% [markdown]
# ## Four figures for each block
#
# As a rule, each of them is at least as high as the one before:
#
# - `recipe`: the fitted recipe
# - `best`: the best values of the recipe's free alphas
# - `ceiling_bounded`: the best linear merge with coefficients from 0 to 1, except the base's
# - `ceiling`: the best linear merge
#
# Look for gaps. If `recipe` is below `best`, more trials help. If `best` is below `ceiling`, another form of recipe
# helps, with other steps or bounds. Here all are nearly equal, so neither helps. The rest up to 100 %,
# `not_in_sources`, is in none of these files, and no trial will ever find it.

# %%
(reach,) = study_ceilings(study, "explained")
table = 100 * ceiling_frame(reach)[["recipe", "best", "ceiling_bounded", "ceiling", "not_in_sources"]]
table.loc[["BASE", "IN05", "M00", "OUT03", "OUT06", "OUT09", "OUT11", "total"]].round(3)

# %% [markdown]
# ## The missing part
#
# Shares refer to squares: a ceiling of 96.7 % means that 3.3 % of the target's squared difference from the base is in
# none of the sources, which is 18 % of its *length*. Cosines hide this: the fitted merge has a `delta` of 98.3 %, and
# `weights` of 99.97 %.

# %%
ceiling = reach.total["ceiling"]
print(f"ceiling {ceiling:.2%}, length that is in no source: {(1 - ceiling) ** 0.5:.0%}")

# %% [markdown]
# Where is it missing? A gap of the same size in all blocks suggests that a finetune is missing from the whole merge. A
# gap in BASE alone would suggest another text encoder, and a gap in single blocks a step on these blocks.

# %%
missing = 100 * ceiling_frame(reach)["not_in_sources"].drop("total")
axes = missing.plot.bar(figsize=(9, 2.6), color="#0072B2", ylabel="not in the sources (%)")

# %% [markdown]
# ## The share of each source
#
# `coefficient` is a source's share by plain least squares. `weighed` weights each tensor by how well the sources
# explain it, which is nearer to the truth if a part of the target is unknown. `loss` is the fall of the ceiling without
# the source: `bold` dominates this merge, `inverted` contributes nothing.
#
# The true shares are 1 for `bold` and 0.554 for `slanted`, as means over the blocks. Both estimates are too high, by
# more than their errors: these cover only chance. The next section explains the rest.

# %%
sources_frame(reach).round(4)

# %% [markdown]
# ## An unknown part that resembles a source
#
# The target's third finetune is `amber`, which nobody published. How much does it resemble the sources that you have?
# If it were orthogonal to all of them (0), the coefficients would be exact. It is not, and the fit takes the part of
# `amber` that resembles a source for that source. From the files alone no method can separate the two. So a fitted 0.63
# is not exactly 0.63: the size of the missing part also shows how far you can trust the coefficients.

# %%
alike = {}
for name in ("bold", "inverted", "slanted"):
    alike[name] = total_similarity(compare(amber, files[name], metric="delta", base=files["base"]))
pd.Series(alike).to_frame("resemblance of amber").round(3)

# %% [markdown]
# As a control, the next target has only known sources, `bold` and `slanted` with the same alphas. Nothing is unknown,
# so the ceiling is 100 %, and the coefficients are exact except for the rounding of the file to fp16. The errors above
# therefore come from the unknown part, not from the method.

# %%
known_alphas = load_recipe("demo/answer/recipe.yaml").step("TEMP2").alpha
known = new_recipe(files, steps=[{**second, "a": "bold", "alpha": known_alphas}])
merge(known, files, "known.safetensors")
unknown_alphas = new_recipe(files, steps=[{**second, "a": "bold"}])
found = fit(new_study(unknown_alphas, "known.safetensors", folder="control", trials=1))
error = coefficients_frame(found.recipe)["slanted"] - coefficients_frame(known)["slanted"]
print(f"explained {found.similarity:.5%}, largest error of slanted {error.abs().max():.5f}")

# %% [markdown]
# ## Alphas that trade off
#
# Real recipes often use a source twice. Then different alphas give the same merge, and no fit can find those of the
# author. The ceiling counts them: here 18 free alphas move the coefficients in only 9 directions, and all of them trade
# off.

# %%
outputs = {"search": [0, 1], "blocks": "OUT03-OUT11"}
twice = new_recipe(
    files,
    steps=[
        {**second, "name": "ONCE", "a": "bold", "alpha": outputs},
        {**second, "name": "TWICE", "a": "ONCE", "alpha": outputs},
    ],
)
study_twice = new_study(twice, target, folder="twice", trials=1)
(reach_twice,) = study_ceilings(study_twice, "explained")
identified = reach_twice.identified
print(f"{identified.alphas} alphas, {identified.rank} directions; trading off: {len(identified.trade_off)}")

# %% [markdown]
# So compare **coefficients**, the share of each source in a block, and not alphas. The two recipes below have different
# alphas, but the same coefficients and therefore the same files.

# %%
slanted = {"mode": "add_difference", "b": "slanted", "c": "base"}
one_way = new_recipe(files, steps=[{**slanted, "name": "A", "a": "bold", "alpha": 0.6}])
other_way = new_recipe(
    files,
    steps=[{**slanted, "name": "A", "a": "bold", "alpha": 0.1}, {**slanted, "name": "B", "a": "A", "alpha": 0.5}],
)
pd.DataFrame(
    {"alpha 0.6": coefficients_frame(one_way).loc["OUT03"], "0.1, then 0.5": coefficients_frame(other_way).loc["OUT03"]}
)

# %% [markdown]
# ## Cosines are blind to scale
#
# `delta` is a cosine of differences: it sees their direction, not their length. A merge that goes half the way from the
# base scores as well as one that goes all the way, although its pictures differ. In the table the second column stays
# the same, and the others change. That is why `explained` is the default metric of a fit.

# %%
table = pd.DataFrame()
for alpha in (0.0, 0.4, 0.8):
    faded = new_recipe(files, steps=[{"name": "FADE", "mode": "weight_sum", "a": "bold", "b": "base", "alpha": alpha}])
    merge(faded, files, "faded.safetensors")
    for metric in ("explained", "delta", "weights", "attention"):
        scores = compare("faded.safetensors", target, metric=metric, base=files["base"])
        table.loc[f"bold, {alpha:.0%} faded to base", metric] = 100 * total_similarity(scores)
table.round(2)

# %% [markdown]
# A fit by `delta` does not fade nevertheless: among alphas of equal similarity it takes those with the smallest
# distance from the target. `recipe_scale` is the factor by which the merge's difference from the base would have to be
# multiplied to come nearest to the target. A value near 1 is right.

# %%
ceiling_frame(reach)[["recipe", "recipe_scale"]].drop("total").iloc[::5].round(3)

# %% [markdown]
# ## In short
#
# - Compare the fit with the ceiling, not with 100 %.
# - A gap between recipe and ceiling calls for more trials or other steps, a gap between ceiling and 100 % for another
#   source.
# - If the ceiling does not fall without a source, leave the source out.
# - Trust coefficients within their errors and the unknown part, and alphas only if they do not trade off.
# - Fit all steps jointly, the default of `new_study`. In a stepwise fit (`strategy="stepwise"`) the first step absorbs
#   what later steps should explain, even if nothing is unknown.
# - The ceilings apply to `explained`, `delta` and `weights`. They do not bound `attention`, which does not compare
#   weights.
