# %% [markdown]
# # Read the ceiling
#
# A fit ends at 97 %. Is that good? Would more trials help, another recipe, another source? Every merge that these tools
# make is one weighted sum of the sources in each block, so the best sum of all can be computed, without any search.
# That is the **ceiling**: no recipe over these sources comes closer. This notebook reads it.
# It begins with the study of [notebook 1](01-fit-a-clone.ipynb), fitted. One trial is enough for the share explained:
# the first is its exact optimum.

# %%
import pandas as pd

from optimizer import (
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
# ## What can be reached
#
# Four figures for each block, as a rule each at least as high as the one before:
#
# - `recipe`: the fitted recipe
# - `best`: the best that its free alphas can do
# - `ceiling_bounded`: the best linear merge whose coefficients, but the base's, are from 0 to 1
# - `ceiling`: the best linear merge at all
#
# Look for gaps. Between `recipe` and `best`: more trials help. Between `best` and `ceiling`: another form of recipe
# helps, with other steps or bounds. Here all are nearly equal, so neither does. What is left to 100 %,
# `not_in_sources`, is in none of these files, and no trial will ever find it.

# %%
(reach,) = study_ceilings(study, "explained")
table = 100 * ceiling_frame(reach)[["recipe", "best", "ceiling_bounded", "ceiling", "not_in_sources"]]
table.loc[["BASE", "IN05", "M00", "OUT03", "OUT06", "OUT09", "OUT11", "total"]].round(3)

# %% [markdown]
# ## What is missing
#
# Shares are of squares: 96.6 % explained means that 3.4 % of the target's squared difference from the base is in none
# of the sources, which is 18 % of its *length*. Cosines hide it: the same merge has a `delta` of 98.3 %, and one of
# `weights` of 99.97 %.

# %%
ceiling = reach.total["ceiling"]
print(f"ceiling {ceiling:.2%}, length that is in no source: {(1 - ceiling) ** 0.5:.0%}")

# %% [markdown]
# Where is it missing? A gap of the same size everywhere speaks for a finetune that is missing in the whole merge. A gap
# in BASE alone would speak for another text encoder, one in single blocks for a step on these.

# %%
missing = 100 * ceiling_frame(reach)["not_in_sources"].drop("total")
axes = missing.plot.bar(figsize=(9, 2.6), color="#0072B2", ylabel="not in the sources (%)")

# %% [markdown]
# ## Who is in it
#
# `coefficient` is a source's share by plain least squares. For `weighed`, each tensor counts by how well the sources
# explain it, which is nearer to what was merged when a part of the target is unknown. `loss` is what the ceiling
# loses without the source: `bold` carries this merge, `inverted` does nothing.
#
# In truth `bold` went in with 1 and `slanted` with 0.554, the mean over the blocks. Both come out too high, and by more
# than their errors say: the errors are those of chance. The next section tells where the rest comes from.

# %%
sources_frame(reach).round(4)

# %% [markdown]
# ## An unknown part that resembles a source
#
# The target's third finetune is `amber`, which nobody published. How much does it resemble those that you have? If it
# were at a right angle to all of them (0), the coefficients would come out as they went in. It is not, and as far as
# `amber` resembles a source, the fit takes it for that source. From the files alone no method can tell the two apart.
# So a fitted 0.63 is not "0.63": what is not in the sources also says how far the coefficients can be trusted.

# %%
alike = {}
for name in ("bold", "inverted", "slanted"):
    alike[name] = total_similarity(compare(amber, files[name], metric="delta", base=files["base"]))
pd.Series(alike).to_frame("resemblance of amber").round(3)

# %% [markdown]
# The control: a target of known sources only, `bold` and `slanted` with the same alphas. Now nothing is unknown; the
# ceiling is 100 %, and the coefficients are exact but for the rounding of the file to fp16. So what was off above came
# from the unknown part, not from the method.

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
# Real recipes often use a source twice. Then different alphas make the same merge, and no fit can know which the author
# wrote. The ceiling counts: here 18 free alphas move the coefficients in only 9 directions, and all of them trade off.

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
# So compare **coefficients**, what each source contributes to a block, and not alphas. The two recipes below have
# nothing in common in their alphas, and their coefficients, and hence their files, are the same.

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
# base scores as well as one that goes all the way, though its pictures differ. Watch the second column stay, and the
# others move. That is why `explained` is what a fit goes by unless it is told otherwise.

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
# A fit by `delta` does not fade all the same: among alphas of equal similarity it takes those with the smallest
# distance to the target. How long the merge came out tells `recipe_scale`, by what its difference would have to be
# multiplied to come nearest to the target: near 1 is right.

# %%
ceiling_frame(reach)[["recipe", "recipe_scale"]].drop("total").iloc[::5].round(3)

# %% [markdown]
# ## In short
#
# - Compare the fit with the ceiling, not with 100 %.
# - Gap between recipe and ceiling: more trials, other steps. Gap between ceiling and 100 %: another source.
# - A source that loses nothing when it is left out can be left out.
# - Believe coefficients as far as their errors and the unknown part allow, and alphas only where they do not trade off.
# - Fit all steps at once, as `new_study` does unless told otherwise. One step after the other
#   (`strategy="stepwise"`), the first soaks up what later ones should explain, even with nothing unknown.
# - The figures are for `explained`, `delta` and `weights`; they are no bounds for `attention`, which compares no
#   weights.
