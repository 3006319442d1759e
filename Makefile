# `make` alone prints the targets. Everything is installed into .venv of this clone.
PYTHON ?= python3
# Processes that pytest starts.
WORKERS ?= 2
# Extra arguments for pytest: make test PYTEST_ARGS="-k shards"
PYTEST_ARGS ?=
# Extra arguments for pip, for example an index with CPU-only builds of torch.
PIP_ARGS ?=
VENV := .venv
STAMP := $(VENV)/.installed
export OMP_NUM_THREADS ?= 1
# compiled modules are kept: commands that tests start need not compile the program again
unexport PYTHONDONTWRITEBYTECODE
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
.DEFAULT_GOAL := help
# A worker that has nothing left takes tests from the other one, file by file as far as it goes: what a file's tests share
# is made once.
PYTEST := $(VENV)/bin/pytest -q -n $(WORKERS) --dist worksteal $(PYTEST_ARGS)
.PHONY: help install quickstart quickstart-long test test-fast test-slow lint format bench gpu-check

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(STAMP)  ## make .venv and install everything into it (once)

# The stamp is newer than both lists of packages: otherwise pip runs again. torch comes first, with its pin, so that no other
# package's bare "torch" can choose another build.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --disable-pip-version-check $(PIP_ARGS) -c constraints.txt torch==2.13.0
	$(VENV)/bin/python -m pip install --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e '.[demo,dev]'
	touch $@

quickstart: $(STAMP)  ## tokenize, train, evaluate, generate and report: about ten minutes on two cores
	EXPERIMENT=quickstart launch/quickstart.sh

quickstart-long: $(STAMP)  ## the same with six times the training: one to two hours on two cores
	EXPERIMENT=quickstart_long launch/quickstart.sh

test: lint  ## ruff, mypy and the tests
	$(PYTEST)

test-fast: $(STAMP)  ## the tests that take a moment each: under a minute
	$(PYTEST) -m "not slow and not long"

test-slow: $(STAMP)  ## the tests that `make test` leaves out: minutes each
	$(PYTEST) -m slow

lint: $(STAMP)  ## ruff and mypy
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: $(STAMP)  ## what `make lint` can fix
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

gpu-check: $(STAMP)  ## on a machine with a GPU: what a CPU cannot prove, in minutes; writes docs/gpu/
	$(VENV)/bin/python -m benchmarks.gpu_check

bench: $(STAMP)  ## time the parts that matter
	$(VENV)/bin/python -m benchmarks
