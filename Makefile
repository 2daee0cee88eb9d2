# Everything happens in .venv, which is made on first use and kept. Nothing is installed again until pyproject.toml,
# constraints.txt or the installer change. Choose another Python with `make PYTHON=python3.12 ...`.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3
TEST_FLAGS ?= -q -n 2 --dist loadfile
export PYTHON

.PHONY: help demo test check format docs bench clean

help: ## show this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 14

demo: $(VENV)/run.stamp ## make a small Magpie data set with a local model, and a report on it
	$(BIN)/ojak run recipes/quickstart.yaml

test: $(VENV)/dev.stamp ## the whole test suite
	$(BIN)/python -m pytest $(TEST_FLAGS)

check: $(VENV)/dev.stamp ## format, lint, types, layers, public names, docs, sizes
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/python -m pytest -q tests/test_layers.py tests/test_public_api.py tests/test_docs.py tests/test_sizes.py
	$(BIN)/python -m tools.sizes

format: $(VENV)/dev.stamp ## write the code in the one format, and mend what lint can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/run.stamp ## write the generated parts of the docs again
	$(BIN)/python -m tools.docs

bench: $(VENV)/run.stamp ## measure against llama.cpp and transformers (half an hour, an idle machine)
	bash benchmarks/peers/setup.sh
	$(BIN)/python benchmarks/synthesis.py --all

clean: ## remove the environment; runs and the model cache stay
	rm -rf $(VENV)

$(VENV)/run.stamp: pyproject.toml constraints.txt tools/install.sh
	tools/install.sh $(VENV)
	@touch $@

$(VENV)/dev.stamp: $(VENV)/run.stamp
	tools/install.sh $(VENV) dev
	@touch $@
