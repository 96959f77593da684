"""A small family of checkpoints, some of which lack tensors, for the tests of similarity."""

from types import SimpleNamespace

import pytest


@pytest.fixture(scope="session")
def kin(tmp_path_factory, write_sd1, sd1_tensors):
    """Return base, x, y (y lacks one attention weight, x has an extra one) and a target, as paths and tensors."""
    folder = tmp_path_factory.mktemp("kin")
    base = sd1_tensors(seed=0, width=16)
    lost = "model.diffusion_model.output_blocks.7.1.transformer_blocks.0.attn1.to_k.weight"
    more = "model.diffusion_model.output_blocks.0.extra.weight"
    around = {"width": 16, "around": base}
    extra = base["model.diffusion_model.time_embed.0.weight"]
    tensors = {
        "base": write_sd1(folder / "base.safetensors", **around, distance=0.0),
        "x": write_sd1(folder / "x.safetensors", **around, seed=1, distance=0.2, overrides={more: extra + 0.3}),
        "y": write_sd1(folder / "y.safetensors", **around, seed=2, distance=0.3, drop=[lost]),
        "target": write_sd1(folder / "target.safetensors", **around, seed=3, overrides={more: extra - 0.3}),
    }
    paths = {name: folder / f"{name}.safetensors" for name in tensors}
    return SimpleNamespace(folder=folder, paths=paths, tensors=tensors, lost=lost, more=more)
