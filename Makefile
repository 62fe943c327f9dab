# Every tool runs from .venv, at the versions that requirements/ pins. `make` alone lists the targets.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo demo-detection demo-segmentation test lint format lock clean

# Bytecode is kept even where an image says otherwise: every process would compile thousands of modules anew.
unexport PYTHONDONTWRITEBYTECODE

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
LOCK := $(BIN)/uv pip compile --quiet --universal --python-version 3.10 --no-python-downloads --generate-hashes --no-header --no-annotate $(UPGRADE)

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 30

setup: $(READY) ## Build .venv; PYTHON=python3.12 chooses the interpreter

# Kernels that were compiled from older sources are not used, so they are compiled again.
$(READY): tools/setup.sh pyproject.toml setup.py requirements/uv.txt requirements/test.txt $(wildcard src/localmix/kernels/csrc/*)
	tools/setup.sh "$(PYTHON)" .venv
	touch $@

demo: $(READY) ## Train the mixers on the images that the package ships and compare them: runs/demo
	$(BIN)/localmix compare --output runs/demo

demo-detection: $(READY) ## Train a detector on scenes that the package composes, and show it: runs/demo-detection
	$(BIN)/localmix scenes runs/scenes-plain-3000 --num-train 3000 --num-val 100 --size 96 128 --max-objects 6 --plain
	$(BIN)/localmix fit --config recipes/scenes/detection_dwnet_nano.yaml --data.root runs/scenes-plain-3000 --output runs/demo-detection
	$(BIN)/localmix validate runs/demo-detection --output runs/demo-detection/validation

demo-segmentation: $(READY) ## Train a segmenter on scenes that the package composes, and show it: runs/demo-segmentation
	$(BIN)/localmix scenes runs/scenes-plain-96x144 --num-train 3000 --num-val 100 --size 96 144 --max-objects 12 --plain
	$(BIN)/localmix fit --config recipes/scenes/segmentation_dwnet_nano.yaml --data.root runs/scenes-plain-96x144 --output runs/demo-segmentation
	$(BIN)/localmix validate runs/demo-segmentation --output runs/demo-segmentation/validation

lint: $(READY) ## Check style, types and the import arrows
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/ty check
	$(BIN)/lint-imports --no-logo

# Two workers of one thread each fill two cores; more threads would only take turns.
test: lint ## Lint, then run every test
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/pytest -n 2

format: $(READY) ## Format the code and fix what can be fixed
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

lock: $(READY) ## Pin the dependencies again; UPGRADE=--upgrade takes the newest
	$(LOCK) pyproject.toml --all-extras --output-file requirements/test.txt
	echo uv | $(LOCK) - --output-file requirements/uv.txt

clean: ## Remove build products and caches, not .venv and not runs
	rm -rf build dist src/*.egg-info .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find src tests tools -name __pycache__ -type d -prune -exec rm -rf {} +
