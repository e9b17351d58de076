# Two commands: `make demo` and `make test`. Both make .venv and install into it first; the installation is
# repeated only when pyproject.toml or constraints.txt change.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help demo test lint types unit notebooks

VENV := .venv
BIN := $(VENV)/bin
RESULTS := results
MODELS := tiny-recurrentgemma tiny-jamba
TORCH := $(shell sed -n 's/^torch==/torch==/p' constraints.txt)
# The first Python of at least 3.11 on the path; constraints.txt was tried with 3.11.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	if command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; \
	then echo $$p; break; fi; done)

# Tests and notebooks may use no network; nothing may report home.
export HF_HUB_OFFLINE := 1
export TRANSFORMERS_OFFLINE := 1
export HF_DATASETS_OFFLINE := 1
export HF_HUB_DISABLE_TELEMETRY := 1
export WANDB_MODE := disabled
export TOKENIZERS_PARALLELISM := false
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Threads that spin while they wait lose most of a core to any other busy process.
export OMP_WAIT_POLICY := PASSIVE

help:
	@echo "make demo   the paper's experiments, head circuits, patching and crossover of two tiny hybrids, into $(RESULTS)/"
	@echo "make test   lint, types, tests and notebooks"

$(VENV)/pyvenv.cfg:
	@if [ -z "$(PYTHON)" ]; then \
		echo "no Python of at least 3.11 on the path; install one, or name it: make PYTHON=/path/to/python" >&2; exit 1; fi
	$(PYTHON) -m venv $(VENV)

# torch comes first and pinned, so that what is installed later cannot pull another build of it.
$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/pyvenv.cfg
	$(BIN)/python -m pip install --quiet --constraint constraints.txt $(TORCH)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[benchmarks]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(VENV)/.installed
	@for model in $(MODELS); do \
		$(BIN)/hybridlens reproduce all --model $$model --out $(RESULTS)/$$model-study; \
		$(BIN)/hybridlens circuits --model $$model --out $(RESULTS)/$$model-circuits; \
		$(BIN)/hybridlens rankings --model $$model --out $(RESULTS)/$$model-rankings; \
		$(BIN)/hybridlens patch --model $$model --out $(RESULTS)/$$model-patch; \
		$(BIN)/hybridlens crossover --model $$model --out $(RESULTS)/$$model-crossover; done
	@echo
	@echo "Open in a browser:"
	@for model in $(MODELS); do for part in study circuits rankings patch crossover; do \
		echo "  $(CURDIR)/$(RESULTS)/$$model-$$part/report.html"; done; done

test: lint types unit notebooks

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .

types: $(VENV)/.installed-dev
	$(BIN)/pyright

unit: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -q --numprocesses auto --dist worksteal

# The reviewed sources are percent-format .py files; they are converted and run from top to bottom.
notebooks: $(VENV)/.installed-dev
	@mkdir -p build/notebooks
	@rm -f build/notebooks/*.ipynb
	@for source in notebooks/*.py; do \
		$(BIN)/jupytext --quiet --to ipynb --output build/notebooks/$$(basename $$source .py).ipynb $$source; done
	$(BIN)/python -m pytest -q --numprocesses auto --nbmake --nbmake-timeout=300 build/notebooks
