# `make demo` fits the demo. `make test` runs every test that needs no GPU and no full-size checkpoints and is not slow
# (make test-slow). Both make .venv on first use. PYTHON may name another interpreter, at least 3.11.

PYTHON ?= python3
VENV := .venv
MERGEKIT := .venv-mergekit
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
DEPENDENCIES := pyproject.toml constraints.txt

.PHONY: demo schemas test test-slow lint docs test-cuda gpu gpu-wheels test-mergekit notebooks fuzz full-size clean

demo: $(VENV)/.installed
	$(BIN)/blockfit demo studies/demo

# One process per core and one thread per process: threads that wait for each other take a third of the time. Compiled
# modules are kept: the tests start many processes.
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist worksteal
test: $(VENV)/.installed-test
	$(PYTEST) -m "not slow and not cuda and not full_size and not mergekit"

# Runs longer tests: benchmarks on small families, more kills and storages, other tools on whole families.
test-slow: $(VENV)/.installed-test $(VENV)/.installed-docs
	$(PYTEST) -m "slow and not cuda and not full_size and not mergekit"

# Needs an NVIDIA GPU and a torch that can use it.
test-cuda: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m cuda

# Runs everything that needs a GPU, in eight minutes at most, and writes the figures to RESULTS. The machine needs torch
# and an NVIDIA GPU, but no network. WHEELS is a folder of wheels (make gpu-wheels). They are installed into a separate
# folder and not into an environment, because an environment on top of another one would not see that one's torch. GPU
# has further options, such as --part attention.
WHEELS ?=
GPU ?=
GPU_SITE := .gpu-site
RESULTS ?= studies/benchmarks/results/gpu.json
gpu:
	$(if $(WHEELS),$(PYTHON) -m pip install --quiet --no-index --no-deps --no-compile --disable-pip-version-check \
		--upgrade --target $(GPU_SITE) $(WHEELS)/*.whl)
	PYTHONPATH="$${PYTHONPATH:+$$PYTHONPATH:}$(if $(WHEELS),$(CURDIR)/$(GPU_SITE))" \
		$(PYTHON) studies/benchmarks/gpu.py --json $(RESULTS) $(GPU)

# Fetches the wheels for that machine, for Linux on x86-64, into GPU_WHEELS. PRESENT has the distributions that the
# machine has besides torch: names, or a file that `pip list --format=freeze` wrote there.
GPU_WHEELS ?= .wheels
PYTHON_VERSION ?= 3.12
PRESENT ?=
gpu-wheels: $(VENV)/.installed-test
	$(BIN)/python studies/benchmarks/gpu_wheels.py $(GPU_WHEELS) --python-version $(PYTHON_VERSION) --present $(PRESENT)

# Runs mergekit on exported recipes.
test-mergekit: $(VENV)/.installed-test $(MERGEKIT)/.installed
	$(BIN)/python -m pytest -m mergekit

# Writes the JSON schemas of recipe.yaml and study.yaml, which come with the package, from the models of these files.
schemas: $(VENV)/.installed
	$(BIN)/python -c "from pathlib import Path; from optimizer.files import schema_text; \
	from optimizer.recipes import recipe_schema; from optimizer.studies import study_schema; \
	[Path('optimizer', name).write_text(schema_text(schema()), encoding='utf-8', newline='\n') for name, schema in \
	(('recipes/recipe.schema.json', recipe_schema), ('studies/study.schema.json', study_schema))]"

# Runs the notebooks, whose sources are notebooks/*.py, and stores their outputs in notebooks/*.ipynb.
notebooks: $(VENV)/.installed-test
	$(BIN)/python notebooks/execute.py

# Runs four fuzzers on valid files, for SECONDS each. An input that is neither read nor refused stops its fuzzer and
# stays here as crash-..., timeout-... or oom-....
SECONDS ?= 600
fuzz: $(VENV)/.installed-test
	$(INSTALL) atheris
	$(BIN)/python tests/fuzzing/safetensors_header.py --seconds $(SECONDS)
	$(BIN)/python tests/fuzzing/recipe_yaml.py --seconds $(SECONDS)
	$(BIN)/python tests/fuzzing/notation.py --seconds $(SECONDS)
	$(BIN)/python tests/fuzzing/torch_pickle.py --seconds $(SECONDS)

# Writes full-size checkpoints below FOLDER (19 GB, and 9 GB more for a while), measures for an hour or two, and keeps
# the checkpoints.
FOLDER ?= /tmp/blockfit-full-size
full-size: $(VENV)/.installed-test
	$(BIN)/python studies/benchmarks/make_checkpoints.py $(FOLDER) --sources 8
	$(BIN)/python studies/benchmarks/full_size.py $(FOLDER)
	$(BIN)/python studies/benchmarks/merging_speed.py $(FOLDER)
	$(BIN)/python studies/benchmarks/agreement.py $(FOLDER)
	$(BIN)/python studies/benchmarks/statistics_speed.py $(FOLDER)
	$(BIN)/python studies/benchmarks/attention_speed.py $(FOLDER)
	$(BIN)/python studies/benchmarks/encoder_speed.py $(FOLDER)
	$(BIN)/python studies/benchmarks/samplers.py $(FOLDER) --plot $(FOLDER)/samplers.png
	$(BIN)/python studies/benchmarks/methods.py $(FOLDER) --plot $(FOLDER)/methods.png

lint: $(VENV)/.installed-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Builds the documentation into site/, without a network; `python -m http.server --directory site` serves it.
docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict

# torch is installed first and pinned: a plain `torch` would install gigabytes of CUDA libraries.
$(VENV)/.installed: $(DEPENDENCIES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) "$$(grep '^torch==' constraints.txt)"
	$(INSTALL) --editable ".[all]"
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(INSTALL) --editable ".[test]"
	touch $@

$(VENV)/.installed-lint: $(VENV)/.installed
	$(INSTALL) --editable ".[lint]"
	touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(INSTALL) --editable ".[docs]"
	touch $@

# mergekit fails to import under the pydantic that blockfit is tested with.
$(MERGEKIT)/.installed: constraints.txt
	test -x $(MERGEKIT)/bin/python || $(PYTHON) -m venv $(MERGEKIT)
	$(MERGEKIT)/bin/python -m pip install --quiet --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	$(MERGEKIT)/bin/python -m pip install --quiet --disable-pip-version-check mergekit==0.1.5 "pydantic~=2.10.6"
	touch $@

clean:
	rm -rf $(VENV) $(MERGEKIT) $(GPU_SITE) site
