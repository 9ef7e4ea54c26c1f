# Targets for people and for CI. Everything runs from .venv, which any target builds when it must.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
JOBS ?= 2
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
# What runs once more in Flax's tree mode: whatever builds or wraps a module.
TREE_MODE_TESTS = $(wildcard tests/test_adapt*.py tests/test_probe*.py tests/test_cotangents.py tests/models \
  tests/engine/test_fleet.py tests/engine/test_measurements.py tests/engine/test_run.py tests/engine/test_step*.py)

.DEFAULT_GOAL := help
.PHONY: help install demo demo-sgd test slow tree-mode check format bench convergence spikes clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z -]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' Makefile

install: $(STAMP)  ## build .venv with the pinned versions

$(STAMP): pyproject.toml constraints.txt
	@command -v "$(PYTHON)" >/dev/null || \
	  { echo "$(PYTHON) is not there: wanted Python 3.11 or newer; make PYTHON=/path/to/python" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is $$("$(PYTHON)" -V 2>&1): wanted 3.11 or newer; make PYTHON=python3.11" >&2; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "$(PYTHON) has no venv module: install it (on Debian and Ubuntu: python3-venv)" >&2; exit 1; }
	@echo "Building .venv: some 400 MB to download, a minute or two."
	@"$(PYTHON)" -m venv .venv
	@$(PIP) --editable '.[demo,test]'
	@touch $(STAMP)

demo: $(STAMP)  ## the movie-review experiment: three norms, eight learning rates, three seeds
	$(BIN)/ici run experiments/movie_mlp.py

demo-sgd: $(STAMP)  ## the same with plain mini-batch SGD
	$(BIN)/ici run experiments/movie_mlp.py --optimizer sgd --name movie_mlp_sgd

test: $(STAMP)  ## the fast tests
	$(BIN)/python -m pytest -m "not slow" -n $(JOBS) --dist worksteal -q

# pytest's status 5 says that there was nothing to run.
slow: $(STAMP)  ## the slow tests
	@$(BIN)/python -m pytest -m slow -n $(JOBS) --dist worksteal -q; status=$$?; \
	  if [ $$status -eq 5 ]; then echo "There are no slow tests."; else exit $$status; fi

tree-mode: $(STAMP)  ## the fast tests of models, adapters and engine in Flax's tree mode
	$(if $(TREE_MODE_TESTS),,$(error no tests of models, adapters or engine found under tests/))
	NNX_GRAPH_MODE=false NNX_GRAPH_UPDATES=false \
	  $(BIN)/python -m pytest -m "not slow" -n $(JOBS) --dist worksteal -q $(TREE_MODE_TESTS)

check: $(STAMP)  ## lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(STAMP)  ## rewrite the sources in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

convergence spikes: $(STAMP)  ## how fast norms converge, where losses spike: ten minutes each at most
	$(BIN)/python -m benchmarks.$@

bench: $(STAMP)  ## the benchmark table (compares PyTorch where it is installed: .venv/bin/pip install torch)
	$(BIN)/python -m benchmarks

clean:  ## remove .venv, caches and build products; records in runs/ stay
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis build dist
	find ici tests benchmarks experiments -name __pycache__ -type d -prune -exec rm -rf {} +
