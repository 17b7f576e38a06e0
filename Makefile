# The front door. `make` alone lists the targets; every target creates or refreshes .venv first.
# Make turns each failure into its own exit code 2; the scripts' codes are 0 done, 1 failed gate or regression, 2 bad input, 130 stopped.
#
# RECIPE, RUN, ROWS, ADAPTER and REFERENCE are single values: they may hold spaces and quotes and are quoted here. RUNS, DATA and SET are
# lists that the shell splits, so quote inside them: RUNS="'runs/a b' runs/c", SET="lora.targets=[a,b] data.rows='my file.jsonl'".

PYTHON ?= python3
UV ?= uv
RECIPE ?= recipes/smollm2-135m.yaml
VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
WORKERS ?= 2
TORCH_PIN = $(shell sed -n 's/^\(torch==[^ ;]*\).*/\1/p' requirements.lock)
# Installs the packages of an extra of pyproject.toml, but not nomoat again: another run may be using it.
extra = $(PY) -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["$(1)"], sep="\n")' \
	| $(PY) -m pip install --quiet --constraint requirements.lock --requirement /dev/stdin
need = $(if $($(1)),$($(1)),$(error $@ needs $(1), for example: make $@ $(1)=$(2)))
# The variable named $(1), or else $(2), as one shell word: in single quotes, except a leading ~/, which the shell expands.
quoted = $(subst <start>,,$(subst <start>'~/,~/',<start>'$(subst ','\'',$(or $(value $(1)),$(2)))'))

# A file in a script's folder that is named like a library (say data/json.py) must not be imported instead of it.
export PYTHONSAFEPATH := 1
# A prompt may hold quotes, dollars and newlines, so it is passed in the environment, where neither make nor the shell parses it.
export NOMOAT_PROMPT := $(value PROMPT)
unexport PROMPT RECIPE RUN ROWS ADAPTER REFERENCE  # exporting a variable expands it: a dollar in a path would be lost

.DEFAULT_GOAL := help

.PHONY: help  ## Show this list
help:
	@awk -F '  ## ' '/^\.PHONY: [a-z-]+  ## / {printf "  make %-10s %s\n", substr($$1, 9), $$2}' $(firstword $(MAKEFILE_LIST))

.PHONY: setup  ## Create or refresh .venv; TORCH_INDEX=https://download.pytorch.org/whl/cpu installs that build of torch
setup: $(READY)

.PHONY: train  ## Fine-tune RECIPE, score it and write the report; SET="train.epochs=1 lora.rank=8" overrides keys
train: $(READY)
	$(PY) train/sft.py $(call quoted,RECIPE) $(SET)

.PHONY: eval  ## Check the report of RUN (default: latest) by scoring it again; or with ROWS=mine.jsonl, ADAPTER=folder, SET="eval.arms=[...]"
eval: $(READY)
	$(PY) eval/score.py $(call quoted,RUN,latest) $(if $(value ROWS),--rows $(call quoted,ROWS)) \
		$(if $(value ADAPTER),--adapter $(call quoted,ADAPTER)) $(SET)

.PHONY: compare  ## Compare all runs, or RUNS="runs/a runs/b"; REFERENCE=runs/a (default: the first), FORCE=1, FAIL_ON_REGRESSION=1
compare: $(READY)
	$(PY) eval/compare.py $(RUNS) $(if $(value REFERENCE),--reference $(call quoted,REFERENCE)) $(if $(FORCE),--force) \
		$(if $(FAIL_ON_REGRESSION),--fail-on-regression) $(SET)

.PHONY: memo  ## Judge the memo's claims from the published reports; MISSING=1 (or MISSING=lora,full) first makes the missing runs (hours)
memo: $(READY)
	$(PY) eval/memo.py $(if $(MISSING),--missing) $(if $(filter-out 1,$(MISSING)),--roles $(call quoted,MISSING)) $(SET)

.PHONY: reference  ## Regenerate the tables in README.md, docs/ and recipes/ from the published reports
reference: $(READY)
	$(PY) eval/reference.py

.PHONY: try  ## Ask the base and the adapter of RUN (default: latest) the same question; PROMPT="...", or type prompts
try: $(READY)
	$(PY) eval/try.py $(call quoted,RUN,latest) $(if $(NOMOAT_PROMPT),--prompt="$$NOMOAT_PROMPT")

.PHONY: bench  ## Time a training step against Trainer and TRL (installs TRL); with RUN=runs/..., time its scoring against generate
bench: $(if $(value RUN),$(READY),$(VENV)/.bench)
	$(PY) $(if $(value RUN),eval/speed.py $(call quoted,RUN),train/bench.py $(call quoted,RECIPE)) $(SET)

.PHONY: plan  ## Estimate memory, time and money of RECIPE without downloading its weights; MEASURE=1 loads them and times a step
plan: $(READY)
	$(PY) train/plan.py $(call quoted,RECIPE) $(SET) $(if $(MEASURE),--measure)

.PHONY: harness  ## Install lm-evaluation-harness, for recipes with eval.harness
harness: $(VENV)/.harness

$(VENV)/.harness: $(READY)
	$(call extra,harness)
	@touch $@

$(VENV)/.bench: $(READY)
	$(call extra,bench)
	@touch $@

.PHONY: pin  ## Replace `revision: unpinned` in RECIPE by the current commit on the hub
pin: $(READY)
	$(PY) train/pin.py $(call quoted,RECIPE)

.PHONY: audit  ## Check for train/test contamination; DATA="recipe.yaml", DATA="train.jsonl heldout.jsonl" or a shipped set
audit: $(READY)
	$(PY) data/leaks.py $(call need,DATA,recipes/smollm2-135m.yaml)

.PHONY: check  ## Lint, formatting, types, import contract, and the shipped rows (reproducible, not contaminated)
check: $(READY)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(VENV)/bin/lint-imports
	$(PY) data/prepare.py --set desk --check
	$(PY) data/leaks.py desk

.PHONY: test  ## The quick tests, in WORKERS=2 processes of one thread each
test: $(READY)
	$(PY) -m pytest -q --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

.PHONY: test-slow  ## The tests that take minutes each, except those that need a GPU
test-slow: $(READY)
	$(PY) -m pytest -q --numprocesses $(WORKERS) --dist load -m "slow and not gpu"

.PHONY: test-all  ## All tests except those that need a GPU
test-all: test test-slow

.PHONY: lock  ## Resolve requirements.lock again with uv, keeping its versions; UPGRADE=1 takes newer ones
lock:
	$(UV) pip compile pyproject.toml --quiet --default-index https://pypi.org/simple --output-file requirements.lock $(if $(UPGRADE),--upgrade)

.PHONY: clean  ## Remove .venv and caches, but not runs/
clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache .import_linter_cache dist build
	find data eval src tests train -name __pycache__ -type d -prune -exec rm -rf {} +

# `make setup TORCH_INDEX=...` replaces the installed build of torch even if everything else is up to date.
.PHONY: again
$(READY): pyproject.toml requirements.lock $(PY) $(if $(TORCH_INDEX),$(if $(filter setup,$(MAKECMDGOALS)),again))
	$(if $(TORCH_INDEX),$(PY) -m pip install --force-reinstall --no-deps --index-url $(TORCH_INDEX) $(TORCH_PIN))
	$(PY) -m pip install --requirement requirements.lock
	$(PY) -m pip install --quiet --no-deps --editable .
	@touch $@

$(PY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: $(PYTHON) is Python %d.%d, nomoat needs 3.11 or newer: name one, as in make setup PYTHON=python3.12" % sys.version_info[:2])'
	$(PYTHON) -m venv --clear $(VENV)
