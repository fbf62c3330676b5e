# The project's tasks. Everything is installed into $(VENV) and built under build/; nothing else is touched, except
# that `make test` run as root installs GoogleTest with apt-get where it is missing.
#
# Needed beforehand: Python 3.10 or later with venv, a C++20 compiler, make. CMake and Ninja come from PyPI.

PYTHON ?= python3
VENV ?= .venv
JOBS ?= $(shell nproc 2>/dev/null || echo 2)

# Tests compare with PyTorch. On Linux the package of this name brings CUDA libraries of several gigabytes; where only
# the CPU build is wanted, say TORCH="torch==2.13.0 --index-url <PyTorch's index of CPU wheels>".
TORCH ?= torch==2.13.0

# Handed to CMake and to pytest as they are, e.g. CMAKE_ARGS=-DONEREC_CUDA=OFF, PYTEST_ARGS="-k beam".
CMAKE_ARGS ?=
PYTEST_ARGS ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
STAMPS := $(VENV)/stamps

cxx_files := $(shell find csrc tests profiling -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')
cmake_files := CMakeLists.txt pyproject.toml $(wildcard cmake/*.cmake) csrc/core/build_info.h.in
package_files := $(shell find python csrc -type f -not -name '*.pyc') $(cmake_files)
python_dirs := $(wildcard python tests examples profiling)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test build lint format stubs cpp-tests sanitize wheel wheel-cuda clean

help:  ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1	/p' $(MAKEFILE_LIST) | expand -t 12

demo: $(STAMPS)/package $(STAMPS)/cli  ## Install the package and recommend with the small model that it carries
	$(BIN)/onerec-engine demo

# Lint and both C++ builds come first so that the last line is pytest's.
test: build lint cpp-tests sanitize $(STAMPS)/test $(STAMPS)/cli $(STAMPS)/profile  ## Build, lint, and run every test, also under sanitizers
	$(BIN)/python -m pytest -q $(PYTEST_ARGS)

build: $(STAMPS)/package  ## Compile the extension and install the package into the virtual environment

lint: $(STAMPS)/dev $(STAMPS)/test $(STAMPS)/package  ## Check style, formatting and types
	$(BIN)/ruff check $(python_dirs)
	$(BIN)/ruff format --check $(python_dirs)
	$(BIN)/mypy
	@printf '%s\n' $(cxx_files) | xargs $(BIN)/clang-format --dry-run -Werror

format: $(STAMPS)/dev  ## Rewrite the sources in the project's format
	$(BIN)/ruff check --fix-only --quiet $(python_dirs)
	$(BIN)/ruff format $(python_dirs)
	@printf '%s\n' $(cxx_files) | xargs $(BIN)/clang-format -i

# The stub in the package is written by hand, more precisely typed than this; tests/test_stub.py compares the names.
stubs: $(STAMPS)/dev $(STAMPS)/package  ## Write the compiled module's own signatures to build/stubs
	$(BIN)/pybind11-stubgen onerec_engine._C --output-dir build/stubs

cpp-tests: build/cpp-tests/build.ninja  ## Build the C++ tests
	$(BIN)/cmake --build build/cpp-tests -j $(JOBS)

sanitize: build/sanitize/build.ninja  ## Build the C++ tests with AddressSanitizer and UndefinedBehaviorSanitizer
	$(BIN)/cmake --build build/sanitize -j $(JOBS)

wheel: $(STAMPS)/tools  ## Build a wheel into dist/
	$(PIP) wheel . --no-deps --no-build-isolation --wheel-dir dist

# Needs nvcc, no GPU. The build number tells the file from the one above.
wheel-cuda: $(STAMPS)/tools  ## Build a wheel with the CUDA backend into dist/
	PATH="$(abspath $(BIN)):$$PATH" CMAKE_BUILD_PARALLEL_LEVEL=$(JOBS) CMAKE_ARGS="-DONEREC_CUDA=ON $(CMAKE_ARGS)" \
	  $(PIP) wheel . --no-deps --no-build-isolation --wheel-dir dist --config-settings=wheel.build-tag=1cuda \
	  --config-settings=build-dir=build/wheel-cuda

clean:  ## Remove everything that was built, the virtual environment included
	rm -rf build dist $(VENV)

# --- the virtual environment, in steps; a stamp per step keeps repeated calls short ---

$(STAMPS)/venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "Python 3.10 or later is needed; name one with PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@mkdir -p $(STAMPS) && touch $@

# What pyproject.toml requires for building. Installed here and not by pip's isolation, so that the second build is
# incremental and the C++ tests use the same libraries.
$(STAMPS)/tools: pyproject.toml | $(STAMPS)/venv
	@sed -n '/^requires = \[/,/^\]/ s/^ *"\(.*\)",$$/\1/p' pyproject.toml > $(VENV)/build-requires.txt
	$(PIP) install -r $(VENV)/build-requires.txt 'cmake>=3.24' ninja
	@touch $@

$(STAMPS)/package: $(package_files) | $(STAMPS)/tools
	PATH="$(abspath $(BIN)):$$PATH" CMAKE_BUILD_PARALLEL_LEVEL=$(JOBS) CMAKE_ARGS="$(CMAKE_ARGS)" \
	  $(PIP) install --no-build-isolation --config-settings=build-dir=build/package .
	@touch $@

$(STAMPS)/torch: | $(STAMPS)/venv
	$(PIP) install $(TORCH)
	@touch $@

# The extras, read from pyproject.toml so that formatting needs no compiled package. Torch comes first: the extras ask
# for any recent version, and are then content with the one that is there.
$(STAMPS)/test $(STAMPS)/profile: $(STAMPS)/torch
$(STAMPS)/test $(STAMPS)/dev $(STAMPS)/cli $(STAMPS)/profile: pyproject.toml | $(STAMPS)/venv
	@sed -n 's/^$(@F) = \["\(.*\)"\]$$/\1/p' pyproject.toml | sed 's/", "/\n/g' > $(VENV)/$(@F)-requires.txt
	$(PIP) install -r $(VENV)/$(@F)-requires.txt
	@touch $@

# --- the C++ tests ---

build/cpp-tests/build.ninja build/sanitize/build.ninja: build/%/build.ninja: $(STAMPS)/tools $(STAMPS)/googletest
	PATH="$(abspath $(BIN)):$$PATH" cmake -S . -B build/$* -G Ninja -DPython_EXECUTABLE=$(abspath $(BIN))/python \
	  -DONEREC_BUILD_BINDINGS=OFF -DONEREC_BUILD_TESTS=ON $(cmake_flags) $(CMAKE_ARGS)
	@touch $@

build/sanitize/build.ninja: cmake_flags := -DONEREC_SANITIZE=ON -DCMAKE_BUILD_TYPE=Debug

# Debian and Ubuntu have GoogleTest as a package; elsewhere CMake downloads its sources.
$(STAMPS)/googletest: | $(STAMPS)/venv
	@if ! echo '#include <gtest/gtest.h>' | $(CXX) -x c++ -E - >/dev/null 2>&1 \
	    && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  apt-get install -y libgtest-dev || { apt-get update && apt-get install -y libgtest-dev; } || true; \
	fi
	@touch $@
