# Every target sets up what it needs in $(VENV) the first time, and only then.
#   make test ARGS="tests/models -k block"      PYTHON=python3.12 chooses the interpreter, which is
#                                               otherwise the newest one found

PYTHON ?= $(shell .ci/python)
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
LOCK := requirements-lock.txt
FOR_RUN := $(VENV)/.installed-requirements
FOR_DEV := $(VENV)/.installed-lock
TOOLS := .venv-tools
FOR_TOOLS := $(TOOLS)/.installed-tools
LOCKED := --require-hashes --no-build-isolation
BENCHMARKS := infer_cpu train_cpu detect_cpu segment_cpu memory replicas input_pipeline startup scaling guard imagenet_cost fit_photos

.DEFAULT_GOAL := help
COMPILE = $(TOOLS)/bin/uv pip compile --universal --python-version 3.11 --upgrade --generate-hashes \
    --no-annotate --custom-compile-command "make lock" --quiet
PYTEST = $(BIN)/python -m pytest -n logical --maxprocesses 8 --dist worksteal

.PHONY: help ablate account audit chaos paper bench check fast test test-all lint docs format lock setup-dev clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /make \1|/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "%-16s%s\n", $$1, $$2 }'

ablate: $(FOR_RUN)  ## train the paper's linear-bottleneck ablation on embedded data, and plot it
	$(BIN)/python main.py --config experiments/ablate_linear.py $(ARGS)

chaos: $(FOR_DEV)  ## kill 290 trainings, damage 500 checkpoints, compare the bits (an hour or two)
	$(BIN)/python -m tests.chaos --report results/chaos $(ARGS)

bench: $(FOR_DEV)  ## time this project beside its peers on this CPU; peers that are missing are left out
	@for name in $(BENCHMARKS); do $(BIN)/python -m benchmarks.$$name || exit 1; done

account: $(FOR_RUN)  ## parameters, multiply-adds and memory, layer by layer
	$(BIN)/python main.py account $(ARGS)

paper: $(FOR_RUN)  ## reproduce the paper's tables and figures, with the results of runs, in runs/paper
	$(BIN)/python main.py paper $(ARGS)

check: $(FOR_DEV)  ## lint, and the tests and doctests that are fast, side by side
	@$(MAKE) --no-print-directory --jobs=2 lint fast

fast: $(FOR_DEV)
	$(PYTEST) -m "not slow and not multiprocess and not nightly" $(ARGS)

test: $(FOR_DEV)  ## the tests and doctests that the gate runs (10 minutes on two fast cores, 18 on slow ones)
	$(PYTEST) -m "not nightly" $(ARGS)

test-all: $(FOR_DEV)  ## those that run at night as well (about an hour on two cores)
	$(PYTEST) $(ARGS)

lint: $(FOR_DEV)  ## style, format, import floors and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright --pythonpath $(BIN)/python

docs: $(FOR_DEV)  ## the site, in build/site; a broken link or docstring is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

format: $(FOR_DEV)  ## fix what ruff can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: $(FOR_TOOLS)  ## resolve both locks anew, with hashes, for every supported Python
	$(COMPILE) pyproject.toml --extra dev --output-file $(LOCK)
	$(COMPILE) .ci/tools.in --output-file .ci/tools.txt

audit: $(FOR_TOOLS)  ## look up the locked packages among known weaknesses; needs a network
	$(TOOLS)/bin/pip-audit --strict --disable-pip --require-hashes -r $(LOCK)
	$(TOOLS)/bin/pip-audit --strict --disable-pip --require-hashes -r .ci/tools.txt

setup-dev: $(FOR_DEV)  ## only the environment that test and lint use

clean:  ## remove the environment and what tools leave behind
	rm -rf $(VENV) $(TOOLS) build dist *.egg-info .pytest_cache .ruff_cache .import_linter_cache .hypothesis

# An environment that is already there is kept if its Python will do.
define venv
@py=$(PYTHON); test ! -x $(BIN)/python || py=$(BIN)/python; \
  $$py -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
    echo "mnv2_jax needs Python 3.11 or newer, but $$py is" \
      "`$$py --version 2>/dev/null || echo not there`; choose another with" \
      "'make PYTHON=python3.12 $(MAKECMDGOALS)'." >&2; exit 1; }
@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
@echo "Installing $< into $(VENV); this takes a minute or two, once."
endef

$(FOR_RUN): requirements.txt
	$(venv)
	@$(PIP) install --quiet -r $<
	@touch $@

# setuptools first: with it, packages that come as source alone are built without fetching it again,
# which pip would do without looking at hashes. Then uv, which installs in seconds what takes pip a
# minute and a half; where it finds no index, for pip's settings are not its own, pip installs.
$(FOR_DEV): $(LOCK)
	$(venv)
	@sed -n '/^setuptools==/,/[^\]$$/p' $< | $(PIP) install --quiet --require-hashes -r /dev/stdin
	@sed -n '/^uv==/,/[^\]$$/p' .ci/tools.txt | $(PIP) install --quiet --require-hashes -r /dev/stdin
	@$(BIN)/uv pip install --quiet --python $(BIN)/python $(LOCKED) -r $< || $(PIP) install --quiet $(LOCKED) -r $<
	@touch $@

$(FOR_TOOLS): .ci/tools.txt
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/python -m pip --disable-pip-version-check install --quiet --require-hashes -r $<
	@touch $@
