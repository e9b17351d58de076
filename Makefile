# Two commands: `make demo` and `make test`. Both make .venv and install into it first; the installation is
# repeated only when pyproject.toml or constraints.txt change. `make wheel` and `make compat` are for
# whoever moves a version.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
RESULTS := results
MODELS := tiny-jamba tiny-recurrentgemma
# What the demo makes, the longest first; of the zoo a corner, which is compared with the stored table that it shows.
PARTS := $(foreach part,rankings study,$(addsuffix -$(part),$(MODELS))) corner-zoo \
	$(foreach part,crossover patch states circuits,$(addsuffix -$(part),$(MODELS)))
CORNER := tiny-qwen3.5 tiny-deltanet --parts crossover --jobs 1
JOBS := $(shell nproc 2>/dev/null || sysctl -n hw.ncpu 2>/dev/null || echo 2)
TORCH := $(shell sed -n 's/^torch==/torch==/p' constraints.txt)
# The first Python of at least 3.11 on the path; constraints.txt was tried with 3.11.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	if command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; \
	then echo $$p; break; fi; done)

# Where numbers are computed and compared: the operators and every family against other implementations, states, edits,
# patching and its gradients, and what is read from weights.
NUMERICS := tests/test_contract.py::test_read_is_true tests/test_niah_run.py::test_needle_mass_is_read_from_the_pattern \
	$(foreach family,recurrentgemma jamba qwen3_next,\
	tests/test_patching.py::test_random_targets_equal_the_plain_loop[noise-$(family)]) \
	$(foreach name,state scan scan_kernels weights entropy direct linear_paths circuit_eigen,tests/test_$(name).py)
# Instruction sets other than the machine's own, which the plain run uses: torch's kernels, and with them those of the
# libraries that multiply its matrices. The first runs everywhere, and in `make test`; `make numerics-avx2` by hand.
SET_default := ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_CBWR=COMPATIBLE
SET_avx2 := ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_CBWR=AVX2
SETS := default

.PHONY: help demo $(PARTS) test lint types unit numerics numerics-default numerics-avx2 notebooks notebook-pages docs wheel repository compat cluster-test families-table stored-results seeds midway longer

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
	@echo "make demo   the paper's experiments, head circuits, patching, crossover and states of two tiny hybrids, into $(RESULTS)/"
	@echo "make test   lint, types, tests, the numerical ones under other instruction sets too, docs, and notebooks"
	@echo "make docs   README and docs as a site with search and a reference, into build/site/"
	@echo "make notebooks  executes all notebooks, and makes pages of them with their figures, into build/notebooks/"
	@echo "make families-table  what works for each family, into hybridlens/supported.json"
	@echo "make stored-results  the numbers that texts state, from the results of make demo into docs/results/"
	@echo "make seeds  more seeds trained, measured and stored: OF=pure or hybrids, SEED=1 unless you say"
	@echo "make midway longer   attention added midway, and Mamba-2 alone with twice the steps, likewise"
	@echo "make cluster-test  experiments shared among jobs of a real Slurm, which are killed: some minutes, as root"
	@echo "make wheel  the source distribution and the wheel into dist/, and whether they hold what they should"
	@echo "make repository  workflows and citation, against their schemas"
	@echo "make compat the oldest and newest torch and transformers, every Python, and the wheel alone in each: minutes each,"
	@echo "            gigabytes fetched; ROWS=\"--python 3.12 --which wheel\" for some of them"

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

# Parts run side by side, a thread each: a second thread hardly helps models this small. Each prints when it is done.
demo: $(VENV)/.installed
	@echo "$(words $(PARTS)) parts, $(JOBS) at a time; each is shown when it is done"
	@mkdir -p $(RESULTS)
	@OMP_NUM_THREADS=1 $(MAKE) --no-print-directory --jobs $(JOBS) $(PARTS)
	@echo
	@$(BIN)/hybridlens report $(RESULTS)
	@echo "Open in a browser: $(CURDIR)/$(RESULTS)/index.html"

$(PARTS): COMMAND = $(lastword $(subst -, ,$@))
$(PARTS): $(VENV)/.installed
	@log=$(RESULTS)/$@.log; $(BIN)/hybridlens $(if $(filter study,$(COMMAND)),reproduce all,$(COMMAND)) \
		$(if $(filter corner-zoo,$@),$(CORNER),--model $(@:-$(COMMAND)=)) $(if $(filter rankings,$(COMMAND)),--prompts 30) \
		--out $(RESULTS)/$@ > $$log 2>&1 && cat $$log || { cat $$log >&2; exit 1; }

# The types beside the tests: one core's work, for a minute, beside that of all. The site is last: it shows the notebooks
# that were executed, and executes none again.
test: lint
	@$(MAKE) --no-print-directory --jobs 2 types unit
	@$(MAKE) --no-print-directory numerics
	@$(MAKE) --no-print-directory notebooks
	@$(MAKE) --no-print-directory docs

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .

types: $(VENV)/.installed-dev
	$(BIN)/pyright

unit: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -q --numprocesses auto --dist worksteal

# Other vector widths add in another order, and so round otherwise: a bound that holds under one set alone is wrong.
# tests/conftest.py refuses to run where torch does not use the set that is asked for.
numerics: $(addprefix numerics-,$(SETS))

numerics-default numerics-avx2: numerics-%: $(VENV)/.installed-dev
	$(SET_$*) $(BIN)/python -m pytest -q --numprocesses auto --dist worksteal $(NUMERICS)

# What `hybridlens families` shows, made by the checks that the tests run; the tests fail where it says something else.
# FAMILY="a b" makes these rows anew and leaves the others.
families-table: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python tests/families_table.py $(FAMILY)

# The tables in docs/results that README, docs and notebooks state numbers of, from the demo's results, and from those of
# `hybridlens zoo` where they are there; the tests fail where a text says another number than is stored. Stored rankings are
# of 480 prompts, where the demo has 30: `hybridlens rankings --model NAME`, then `python -m tests.stored_results FOLDER`.
stored-results: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.stored_results $(foreach part,study crossover,$(addprefix \
		$(RESULTS)/,$(addsuffix -$(part),$(MODELS)))) $(wildcard $(RESULTS)/zoo)

# What three seeds are measured of, and trainings that are not shipped: `make --jobs 2 seeds OF=pure SEED=1`, a model an
# hour of one core or less; the same command goes on where it was stopped. A training keeps twenty checkpoints in
# .training/NAME-SEED, its model goes to .training/models/NAME-SEED, and what was measured to docs/results. Attention is
# added midway to the recurrence alone, and recurrent layers to attention alone, with documents that neither has seen;
# seeds but the first have the former alone.
SEED := 1
OF := pure
OF_pure := tiny-deltanet tiny-mamba2 tiny-qwen3
OF_hybrids := tiny-qwen3.5 tiny-granite
SEEDED := $(OF_$(OF):%=%-$(SEED))
MIDWAY := midway-deltanet-$(SEED) $(if $(filter 0,$(SEED)),midway-attention-$(SEED))
TRAIN := OMP_NUM_THREADS=1 $(BIN)/python -m hybridlens.tiny.train

.training/models/tiny-%/model.safetensors: | $(VENV)/.installed
	name=tiny-$* && $(TRAIN) $${name%-*} --seed $${name##*-} --keep-every 100 --out $(@D)

.training/models/midway-deltanet-%/model.safetensors: .training/models/tiny-deltanet-%/model.safetensors
	$(TRAIN) tiny-qwen3.5 --seed 1$* --steps 1000 --keep-every 50 --from $(<D) --work .training/midway-deltanet-$* --out $(@D)

.training/models/midway-attention-%/model.safetensors: .training/models/tiny-gated-attention-%/model.safetensors
	$(TRAIN) tiny-qwen3.5 --seed 2$* --steps 1000 --keep-every 50 --from $(<D) --work .training/midway-attention-$* --out $(@D)

# The same recipe with twice the steps, to tell slow from unable.
.training/models/longer-mamba2-%/model.safetensors: | $(VENV)/.installed
	$(TRAIN) tiny-mamba2 --seed $* --steps 4000 --keep-every 200 --work .training/longer-mamba2-$* --out $(@D)

.SECONDARY:

seeds: $(SEEDED:%=.training/models/%/model.safetensors) $(VENV)/.installed-dev
	$(BIN)/hybridlens zoo $(addprefix .training/models/,$(SEEDED)) --out $(RESULTS)/zoo-$(OF)-$(SEED)
	$(BIN)/hybridlens curves $(addprefix .training/,$(SEEDED)) --out $(RESULTS)/curves-$(OF)-$(SEED)
	$(BIN)/python -m tests.stored_results $(addsuffix -$(OF)-$(SEED),$(RESULTS)/zoo $(RESULTS)/curves)

midway: $(MIDWAY:%=.training/models/%/model.safetensors) $(VENV)/.installed-dev
	$(BIN)/hybridlens curves $(addprefix .training/,$(MIDWAY)) --out $(RESULTS)/curves-midway-$(SEED)
	$(BIN)/python -m tests.stored_results $(RESULTS)/curves-midway-$(SEED)

longer: .training/models/longer-mamba2-0/model.safetensors $(VENV)/.installed-dev
	$(BIN)/hybridlens curves .training/longer-mamba2-0 --out $(RESULTS)/curves-longer
	$(BIN)/python -m tests.stored_results $(RESULTS)/curves-longer

# Built in an environment of its own under build/, the wheel from the source distribution.
wheel: $(VENV)/pyvenv.cfg
	$(BIN)/python .ci/packaged.py

# Tools in an environment of their own under build/.
repository: $(VENV)/pyvenv.cfg
	$(BIN)/python .ci/repository.py

# Throw-away environments under build/compat, one after the other, and a table of what passed in which.
compat: wheel
	$(BIN)/python .ci/compat.py $(ROWS)

# On a real Slurm of one node, begun for it: needs Debian's slurm-wlm and munge, and to be root; a quarter of an hour.
# What was done to which job, and a table of what came out, stand in build/cluster/trial.log. COMMANDS="patch niah" tries
# some alone.
cluster-test: $(VENV)/.installed-dev
	@for need in slurmctld slurmd sbatch munged; do command -v $$need >/dev/null || { \
		echo "make cluster-test: $$need is missing; as root: apt-get install slurm-wlm munge" >&2; exit 1; }; done
	@[ "$$(id -u)" = 0 ] || { echo "make cluster-test: has to be root, which begins Slurm's daemons" >&2; exit 1; }
	@mkdir -p build
	@slurm=$$(mktemp -d) && eval "$$(tests/cluster/slurm $$slurm)" && trap "$$slurm/stop" EXIT && \
		OMP_NUM_THREADS=1 PYTHONPATH=.:tests $(BIN)/python -m cluster.trial $(COMMANDS)

# The reviewed sources are percent-format .py files; they are converted and run from top to bottom, all of them anew, and
# what they showed becomes pages of the site: build/notebooks/NAME.md.
notebooks: $(VENV)/.installed-dev
	$(BIN)/python docs/make/notebook_pages.py

# Only what has no page, or one older than its source: what `make notebooks` left is not executed again.
notebook-pages: $(VENV)/.installed-dev
	@$(BIN)/python docs/make/notebook_pages.py --missing

# Without a network; a warning (a link or an anchor that leads nowhere, a page that no menu has) is an error. Notebooks
# that were not executed yet are, which takes minutes.
docs: $(VENV)/.installed-dev notebook-pages
	@NO_MKDOCS_2_WARNING=1 PYTHONPATH=. $(BIN)/mkdocs build --strict
	@echo "Open in a browser: $(CURDIR)/build/site/index.html"
