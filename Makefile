# Targets for people and for CI. Everything runs from .venv, which any target builds when it must.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
JOBS ?= 2

.DEFAULT_GOAL := help
.PHONY: help install demo demo-sgd test slow check format bench clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

install: $(STAMP)  ## build .venv with the pinned versions

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is older than Python 3.11: make PYTHON=python3.11 ..."; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  --constraint constraints.txt --editable '.[test]'
	@touch $(STAMP)

demo: $(STAMP)  ## the movie-review experiment: three norms, eight learning rates, three seeds
	$(BIN)/ici run experiments/movie_mlp.py

demo-sgd: $(STAMP)  ## the same with plain mini-batch SGD
	$(BIN)/ici run experiments/movie_mlp.py --optimizer sgd --name movie_mlp_sgd

test: $(STAMP)  ## the fast tests
	$(BIN)/python -m pytest -m "not slow" -n $(JOBS) -q

slow: $(STAMP)  ## the slow tests
	$(BIN)/python -m pytest -m slow -n $(JOBS) -q

check: $(STAMP)  ## lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(STAMP)  ## rewrite the sources in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)  ## the benchmark table (PyTorch is compared where it can be installed)
	@$(BIN)/python -c 'import torch' 2>/dev/null || \
	  $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[bench]' || \
	  echo "PyTorch could not be installed: its rows are skipped."
	$(BIN)/python -m benchmarks

clean:  ## remove .venv and caches; records in runs/ stay
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis
