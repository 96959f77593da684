# `make demo` fits the demo; `make test` runs every test that needs no card and no full-size checkpoints.
# Both make .venv on first use. PYTHON may name another interpreter, at least 3.11.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
DEPENDENCIES := pyproject.toml constraints.txt

.PHONY: demo test lint test-cuda full-size clean

demo: $(VENV)/.installed
	$(BIN)/blockfit demo studies/demo

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m "not cuda and not full_size"

# Needs an NVIDIA card and a torch that can use it.
test-cuda: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m cuda

# Writes full-size checkpoints (2.13 GB each) below FOLDER, measures, and leaves them there.
FOLDER ?= /tmp/blockfit-full-size
full-size: $(VENV)/.installed
	$(BIN)/python studies/benchmarks/make_checkpoints.py $(FOLDER) --sources 6
	$(BIN)/python studies/benchmarks/full_size.py $(FOLDER)

lint: $(VENV)/.installed-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# torch goes first and pinned: a plain `torch` would pull in gigabytes of CUDA where none is wanted.
$(VENV)/.installed: $(DEPENDENCIES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) "$$(grep '^torch==' constraints.txt)"
	$(INSTALL) --editable .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(INSTALL) --editable ".[test]"
	touch $@

$(VENV)/.installed-lint: $(VENV)/.installed
	$(INSTALL) --editable ".[lint]"
	touch $@

clean:
	rm -rf $(VENV)
