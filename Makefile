# The front door. `make` alone lists what it can do; every target makes or refreshes .venv by itself.
# Make turns each failure into its own exit code 2; the scripts' codes are 0 done, 1 failed gate or regression, 2 bad input, 130 stopped.

PYTHON ?= python3
UV ?= uv
RECIPE ?= recipes/smollm2-135m.yaml
VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
WORKERS ?= 2
TORCH_PIN = $(shell sed -n 's/^\(torch==[^ ;]*\).*/\1/p' requirements.lock)
# What an extra of pyproject.toml names, and not nomoat itself again: it may be in use by another run meanwhile.
extra = $(PY) -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["$(1)"], sep="\n")' \
	| $(PY) -m pip install --quiet --constraint requirements.lock --requirement /dev/stdin
need = $(if $($(1)),$($(1)),$(error $@ needs $(1), for example: make $@ $(1)=$(2)))

# A file beside a script that is named like a library (data/json.py, say) must not be imported in its place.
export PYTHONSAFEPATH := 1
# A prompt may hold quotes, dollars and newlines, so it travels in the environment and is never seen by the shell's parser.
export NOMOAT_PROMPT := $(value PROMPT)
unexport PROMPT

.DEFAULT_GOAL := help

.PHONY: help  ## Show this list
help:
	@awk -F '  ## ' '/^\.PHONY: [a-z-]+  ## / {printf "  make %-10s %s\n", substr($$1, 9), $$2}' $(firstword $(MAKEFILE_LIST))

.PHONY: setup  ## Make or refresh .venv; TORCH_INDEX=https://download.pytorch.org/whl/cpu takes torch from there
setup: $(READY)

.PHONY: train  ## Fine-tune RECIPE, score it, write the report; SET="train.epochs=1 lora.rank=8" overrides
train: $(READY)
	$(PY) train/sft.py $(RECIPE) $(SET)

.PHONY: eval  ## Answer the rows of RUN again and check its report; or score it on ROWS=mine.jsonl, with ADAPTER=folder, SET="eval.arms=[...]"
eval: $(READY)
	$(PY) eval/score.py $(call need,RUN,runs/smoke-1a2b3c4d) $(if $(ROWS),--rows $(ROWS)) $(if $(ADAPTER),--adapter $(ADAPTER)) $(SET)

.PHONY: compare  ## Compare all runs, or RUNS="runs/a runs/b", with REFERENCE=runs/a or the first; FORCE=1, FAIL_ON_REGRESSION=1
compare: $(READY)
	$(PY) eval/compare.py $(RUNS) $(if $(REFERENCE),--reference $(REFERENCE)) $(if $(FORCE),--force) \
		$(if $(FAIL_ON_REGRESSION),--fail-on-regression) $(SET)

.PHONY: memo  ## Judge the memo's claims from the published reports; MISSING=1 (or MISSING=lora,full) first makes runs that they lack (hours)
memo: $(READY)
	$(PY) eval/memo.py $(if $(MISSING),--missing) $(if $(filter-out 1,$(MISSING)),--roles $(MISSING)) $(SET)

.PHONY: reference  ## Write the tables of the READMEs from the reports in recipes/reference/
reference: $(READY)
	$(PY) eval/reference.py

.PHONY: try  ## Ask the base and the adapter of RUN side by side; PROMPT="..." or it asks
try: $(READY)
	$(PY) eval/try.py $(call need,RUN,runs/smoke-1a2b3c4d) $(if $(NOMOAT_PROMPT),--prompt="$$NOMOAT_PROMPT")

.PHONY: bench  ## Time a training step beside Trainer and TRL (installs TRL); with RUN=runs/..., its scoring beside generate
bench: $(if $(RUN),$(READY),$(VENV)/.bench)
	$(PY) $(if $(RUN),eval/speed.py $(RUN),train/bench.py $(RECIPE)) $(SET)

.PHONY: plan  ## What RECIPE will cost before its base is downloaded: memory, time, money; MEASURE=1 loads it and tries
plan: $(READY)
	$(PY) train/plan.py $(RECIPE) $(SET) $(if $(MEASURE),--measure)

.PHONY: harness  ## Install lm-evaluation-harness, for recipes with eval.harness
harness: $(VENV)/.harness

$(VENV)/.harness: $(READY)
	$(call extra,harness)
	@touch $@

$(VENV)/.bench: $(READY)
	$(call extra,bench)
	@touch $@

.PHONY: pin  ## Look up what `revision: unpinned` in RECIPE stands for today, and write it there
pin: $(READY)
	$(PY) train/pin.py $(RECIPE)

.PHONY: audit  ## Do held-out rows stand in training rows? DATA="recipe.yaml" or "train.jsonl heldout.jsonl" or a shipped set
audit: $(READY)
	$(PY) data/leaks.py $(call need,DATA,recipes/smollm2-135m.yaml)

.PHONY: check  ## Lint, format, types, and the shipped rows: reproducible and free of leaks
check: $(READY)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(VENV)/bin/lint-imports
	$(PY) data/prepare.py --set desk --check
	$(PY) data/leaks.py desk

.PHONY: test  ## The tests of every day, without the slow ones, in WORKERS=2 processes of one thread each
test: $(READY)
	$(PY) -m pytest -q --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

.PHONY: test-all  ## All tests but those that need a GPU
test-all: $(READY)
	$(PY) -m pytest -q --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder -m "not gpu"

.PHONY: lock  ## Resolve requirements.lock again with uv, keeping its versions; UPGRADE=1 takes newer ones
lock:
	$(UV) pip compile pyproject.toml --quiet --default-index https://pypi.org/simple --output-file requirements.lock $(if $(UPGRADE),--upgrade)

.PHONY: clean  ## Remove .venv and caches; runs/ stays
clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache dist build
	find data eval src tests train -name __pycache__ -type d -prune -exec rm -rf {} +

# `make setup TORCH_INDEX=...` swaps the installed build of torch even where everything else is up to date.
.PHONY: again
$(READY): pyproject.toml requirements.lock $(PY) $(if $(TORCH_INDEX),$(if $(filter setup,$(MAKECMDGOALS)),again))
	$(if $(TORCH_INDEX),$(PY) -m pip install --force-reinstall --no-deps --index-url $(TORCH_INDEX) $(TORCH_PIN))
	$(PY) -m pip install --requirement requirements.lock
	$(PY) -m pip install --quiet --no-deps --editable .
	@touch $@

$(PY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: $(PYTHON) is Python %d.%d, nomoat needs 3.11 or newer: name one, as in make setup PYTHON=python3.12" % sys.version_info[:2])'
	$(PYTHON) -m venv --clear $(VENV)
