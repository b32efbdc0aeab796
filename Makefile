# Everything runs in .venv; the first target that needs it makes it.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
STAMP := .venv/.installed
PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help

.PHONY: help demo test test-slow check bench wheel clean

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-9s %s\n", $$1, $$2}'

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[all,bench,dev]'
	@touch $@

demo: $(STAMP) ## the whole experiment in miniature: runs, table, runs/report/index.html (5 minutes)
	$(BIN)/pausebench reproduce result=demo

test: $(STAMP) ## the quick tests: 6 minutes on two cores
	$(PYTEST) -m "not slow"

test-slow: $(STAMP) ## the other tests: 7 minutes on two cores
	$(PYTEST) -m slow

check: $(STAMP) ## lint, format, types, import layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP) ## speed and memory beside transformers and litgpt, an hour; ARGS="--work pretrain" measures less
	$(BIN)/python -m tests.benchmarks.compare $(ARGS)

wheel: $(STAMP) ## dist/*.whl, conf/ inside
	$(BIN)/python -m build --wheel

clean: ## remove the environment and caches, keep runs/
	rm -rf .venv dist build *.egg-info .mypy_cache .ruff_cache .import_linter_cache
