# %% [markdown]
# # Fit a clone
# A closed model (`target.safetensors` of the demo) and the checkpoints that it was probably made from. Which alphas?
# Open this file as a notebook (VS Code, Jupyter with jupytext), or run it: `python notebooks/fit_a_clone.py FOLDER`.

# %%
import sys
import tempfile
from pathlib import Path

from optimizer.demo import copy_family
from optimizer.recipes import locate_models, merge
from optimizer.search import fit, load_study
from optimizer.similarity import compare

folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
copy_family(folder)

# %% [markdown]
# A study names a recipe with holes, the target, and what is scored. Fitting it fills the holes.

# %%
study = load_study(folder).with_trials(5)
result = fit(study)
best = result.searches[0].best
print(f"delta similarity {best.values[0]:.4%}, in trial {best.number}, proposed by {best.user_attrs['origin']}")

# %% [markdown]
# `result.recipe` is the same recipe with numbers in the holes; `best.yaml` holds it too. Merge it and compare the file.

# %%
paths = locate_models({name: model.file for name, model in result.recipe.models.items()}, folder)
merge(result.recipe, paths, folder / "clone.safetensors")
scores = compare(folder / "clone.safetensors", folder / "target.safetensors", metric="attention", blocks="output")
for block, score in scores.items():
    print(f"{block} {score:.4%}")
