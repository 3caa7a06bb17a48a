# One place for every command that people and CI run. `make help` lists them.

PYTHON ?=
VENV := .venv
PY := $(VENV)/bin/python
RUN ?= runs/quick
JOBS ?= 2

# the first python that is new enough, or the one that PYTHON names
FIND_PYTHON = for p in $(or $(PYTHON),python3 python3.13 python3.12 python3.11); do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$$p"; break; }; done

# learn2learn 0.2.0 builds on Python 3.11+ only when its stale C files are generated anew, which needs these tools and flags
LEARN2LEARN_TOOLS := "cython<3.1" "setuptools<81" wheel
LEARN2LEARN := --no-build-isolation --no-deps --config-settings="--global-option=build_ext" learn2learn==0.2.0
LEARN2LEARN_NEEDS := gym cloudpickle requests tqdm scipy

.DEFAULT_GOAL := help
.PHONY: help setup train rules test lint contract types unit verify slow laws throughput wheel nightly clean
.SUFFIXES:

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' Makefile

setup: $(VENV)/.stamp  ## make .venv with everything in it (once; about 3 minutes and 6 GB)

# .incomplete marks a set-up that was interrupted: the next one starts from an empty environment
$(VENV)/.stamp: pyproject.toml
	@python=$$($(FIND_PYTHON)); \
	[ -n "$$python" ] || { echo "no Python 3.11 or newer found: install one, or name it: make setup PYTHON=..." >&2; exit 2; }; \
	if [ -e $(VENV)/.incomplete ] || ! $(PY) -m pip --version >/dev/null 2>&1; then \
		echo "making $(VENV) with $$python"; "$$python" -m venv --clear $(VENV); fi
	@touch $(VENV)/.incomplete
	$(PY) -m pip install --quiet --upgrade "pip>=25"
	$(PY) -m pip install --quiet $(LEARN2LEARN_TOOLS)
	$(PY) -m pip install --quiet torch torchvision
	$(PY) -m pip install -qq --editable ".[dev]"
	@$(PY) -c "import pathlib, sysconfig; pathlib.Path(sysconfig.get_path('purelib'), 'checkout.pth').write_text('$(CURDIR)\n')"
	$(PY) -m pip install --quiet $(LEARN2LEARN_NEEDS)
	$(PY) -m pip install --quiet $(LEARN2LEARN)
	@rm -f $(VENV)/.incomplete
	@touch $@

# one thread: the matrices are small, and threads that wait for each other on a busy machine cost far more than they save
train: export OMP_NUM_THREADS ?= 1
train: setup  ## meta-train with the quick default into runs/quick (or the next free name), then evaluate
	@run=$(RUN); n=1; while [ -e "$$run" ]; do n=$$((n + 1)); run=$(RUN)-$$n; done; set -x; \
	$(PY) -m meta_teleport train --out "$$run" && $(PY) -m meta_teleport evaluate "$$run"

# interrupted runs go on; the copies that are shipped hold the rule and its config, nothing else of the run
rules: export OMP_NUM_THREADS ?= 1
rules: setup  ## train the rules that come with the package, and put them there (about 20 minutes)
	for name in factors classification; do \
	  if [ -e runs/$$name ]; then resume=--resume; else resume=; fi; \
	  $(PY) -m meta_teleport train --config experiments/$$name.yaml --out runs/$$name --download $$resume || exit; \
	  $(PY) -c "import meta_teleport as mt; mt.save(mt.load('runs/$$name'), 'meta_teleport/learned/$$name.safetensors')" || exit; \
	done

test: lint contract types unit  ## lint, import contract, types, and the tests

lint: setup
	$(PY) -m ruff check
	$(PY) -m ruff format --check

contract: setup
	$(VENV)/bin/lint-imports --no-logo

types: setup
	$(PY) -m mypy

unit: setup
	OMP_NUM_THREADS=1 $(PY) -m pytest -m "not slow" -n $(JOBS)

verify: slow laws throughput wheel  ## what is slow but must hold: long runs, laws on other processors, throughput, the wheel

slow: setup
	OMP_NUM_THREADS=1 $(PY) -m pytest -m "slow and not nightly" -n $(JOBS)

laws: setup  ## the law tests with the kernels of older processors, with one and two threads (about 5 minutes)
	.ci/laws $(PY) $(JOBS)

throughput: setup
	$(PY) -m experiments.cost.throughput --quick

wheel: setup  ## build the wheel and start the program from it, away from the sources
	.ci/wheel $(PY)

nightly: setup  ## 10,000 random programs; a fault at every file operation; and change the code on purpose: each change must make its tests fail
	OMP_NUM_THREADS=1 $(PY) -m pytest -m nightly -n $(JOBS)
	$(PY) tests/mutations.py -j $(JOBS)

clean:  ## remove what the tools left behind (not .venv, not runs)
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .hypothesis
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
