"""Small sources that other tools can merge."""

import pytest
from exporting import SOURCES


@pytest.fixture(scope="session")
def family(tmp_path_factory, write_sd1, sd1_tensors):
    """Return a folder of float32 finetunes (base, x, y, each also as NAME-novae), and {file stem: tensors}."""
    folder = tmp_path_factory.mktemp("exports")
    common = sd1_tensors(seed=0)
    tensors = {}
    for seed, name in enumerate(SOURCES, 1):
        for stem, vae in ((name, True), (f"{name}-novae", False)):
            tensors[stem] = write_sd1(folder / f"{stem}.safetensors", seed=seed, around=common, vae=vae)
    return folder, tensors
