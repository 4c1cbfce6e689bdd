# The commands of the project. `make demo` and `make test` set up what they need.
.PHONY: help setup demo test test-slow test-peers test-cluster test-matrix test-wheel sanitize peers lint check format ui benchmark lock clean

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

help:
	@echo "make demo       set up, train the arms on the adding problem, draw the figures"
	@echo "make ui         open the MLflow UI"
	@echo "make test       set up, run the tests"
	@echo "make test-slow  the long tests"
	@echo "make test-peers what needs PyTorch, JAX, a notebook's kernel or a plugin of Hydra's, which it installs"
	@echo "make test-cluster  what needs Ray, submitit, Optuna or PostgreSQL, which it installs but for the last"
	@echo "make test-matrix  every Python with its oldest and newest NumPy; PYTHONS=\"3.12\" TESTS=\"tests/test_replay.py\" for less"
	@echo "make test-wheel the sdist and the wheels, built and used outside the checkout; PYTHONS=\"3.12\" for less"
	@echo "make sanitize   the compiled loop under the sanitizers of addresses and undefined behaviour; SECONDS=60 of its fuzzer"
	@echo "make benchmark  our step against PyTorch and JAX: experiments/performance"
	@echo "make check      formatting, lint, types and tests"
	@echo "make setup      the environment in $(VENV), with the command $(BIN)/gradpath in it"

setup: $(READY)

$(READY): requirements.lock pyproject.toml hatch_build.py src/gradpath/engine/_replay.c
	@sh scripts/setup.sh $(VENV)
	@touch $@

demo: setup
	$(BIN)/gradpath run -m +experiment=demo
	$(BIN)/gradpath report study=demo
	@echo
	@echo "Figures: $(CURDIR)/reports/figures/demo/*.png"
	@echo "Curves in the MLflow UI: make ui"

ui: setup
	$(BIN)/gradpath ui

benchmark: peers
	$(BIN)/python experiments/performance/benchmark.py
	$(BIN)/python experiments/performance/scale.py

test: setup
	$(BIN)/python -m pytest

test-slow: setup
	$(BIN)/python -m pytest -m slow --hypothesis-profile=new

# The tests that need PyTorch, JAX, a notebook's kernel or a plugin of Hydra, on top of the pinned environment.
test-peers: peers
	$(BIN)/python -c 'import torch, jax, nbclient, ipykernel, hydra_plugins.hydra_joblib_launcher' # else the tests of what is missing would be skipped
	$(BIN)/python -m pytest -m peers

# The tests that need Ray, submitit, Optuna or PostgreSQL; of PostgreSQL the programs, as docs/server.md installs them.
test-cluster: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation -e '.[ray,submitit,optuna,server]'
	$(BIN)/python -m pytest -n 1 -m cluster

# Creates environments of its own.
test-matrix:
	@PYTHONS='$(PYTHONS)' TESTS='$(TESTS)' sh scripts/test_matrix.sh

test-wheel:
	@sh scripts/test_wheel.sh $(PYTHONS)

sanitize: setup
	@sh scripts/sanitize.sh $(VENV) $(or $(SECONDS),60) $(or $(SEED),0)

peers: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation -e '.[peers,joblib,notebook]'

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint test

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Pinned versions with hashes for every platform; names no package index.
lock:
	uv pip compile --universal --generate-hashes --no-header --no-annotate --python-version 3.11 \
		pyproject.toml --group dev -o requirements.lock

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
