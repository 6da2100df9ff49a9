# lowbit: `make help` lists the targets.
#
#   PYTHON=python3.12   another interpreter (3.11 to 3.13); it gets an environment of its own, .venv-3.12
#   VENV=/some/folder   put the environment elsewhere
#   CONFIG=name         the config that `make demo` runs: experiments/configs/<name>.py
#   TESTS="tests/core"  what `make pytest` runs; PYTEST_FLAGS="-k lsq -x" how; MARK= with the slow ones
#   FAULTS="clip"       those that `make test-faults` plants, by a word of their names or files

PYTHON ?= python3
CONFIG ?= demo
TESTS ?=
PYTEST_FLAGS ?=
MARK ?= not slow
FAULTS ?=
# Test processes: XLA compiles on one core, so one process a core, four at most (each takes 1 to 2 GB).
JOBS ?= $(shell n=$$(nproc 2>/dev/null || echo 2); [ $$n -gt 4 ] && n=4; echo $$n)

PYTAG := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
ifeq ($(PYTHON),python3)
VENV ?= .venv
else
VENV ?= .venv-$(PYTAG)
endif

PIN := constraints/py$(subst .,,$(PYTAG)).txt
BIN := $(VENV)/bin
PY := $(BIN)/python
PIP := $(PY) -m pip --disable-pip-version-check --no-input --quiet
EXTRAS := experiments,export,sweep,ray,grain,dev

# Two stamps: the environment follows the dependency files, the kernels follow their C++ sources.
DEPS := $(VENV)/.lowbit-deps-$(PYTAG)
BUILT := $(VENV)/.lowbit-kernels-$(PYTAG)
DEP_FILES := pyproject.toml kernels/pyproject.toml $(PIN) constraints/data.txt
CPP_FILES := kernels/pyproject.toml $(wildcard kernels/CMakeLists.txt) \
  $(shell find kernels -name tests -prune -o -type f \( -name '*.cc' -o -name '*.cpp' -o -name '*.h' -o -name '*.cmake' \) -print 2>/dev/null)

# Without a compiler the kernels install as pure Python; here, where g++ is asked for, that is an error.
NATIVE := $(PY) -c 'import lowbit_kernels as k, sys; s = k.status(); print("== kernels:", s.path and ", ".join(s.isas)); sys.exit(s.path is None and s.reason)'

.DEFAULT_GOAL := help
.PHONY: help env demo test test-slow test-times test-faults fuzz fuzz-files fuzz-runs test-edge test-models lint format types imports pytest kernels-test kernels-sanitize test-jax12 test-aot test-aot-tpu test-aot-cuda bench pins clean distclean

help:  ## list the targets
	@sed -n 's/^\([a-z0-9-]*\):.*  ## \(.*\)$$/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 16
	@sed -n 's/^#   /  /p' $(firstword $(MAKEFILE_LIST))

# ---- environment ------------------------------------------------------------------------------------------------
ifneq ($(filter-out help clean distclean,$(or $(MAKECMDGOALS),help)),)
ifeq ($(filter $(PYTAG),3.11 3.12 3.13),)
$(error lowbit needs Python 3.11 to 3.13 and $(PYTHON) is $(or $(PYTAG),not there); name another: make $(MAKECMDGOALS) PYTHON=python3.12)
endif
endif

env: $(BUILT)  ## set up the environment and build the kernels

# A folder made by another minor version is made anew; `--without-pip` is for systems that split ensurepip off.
$(DEPS): $(DEP_FILES)
	@echo "== environment: $(VENV), Python $(PYTAG), $(PIN)"
	@if [ "$$($(PY) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)" != "$(PYTAG)" ]; then \
	  $(PYTHON) -m venv --clear $(VENV) 2>/dev/null \
	  || { $(PYTHON) -m venv --clear --without-pip $(VENV) && $(PYTHON) -m pip --python $(PY) --quiet install pip; } \
	  || { echo "lowbit: $(PYTHON) cannot make an environment; install its venv module (Debian: python3-venv)" >&2; exit 2; }; \
	fi
	$(PIP) install -c $(PIN) --upgrade pip
	$(PIP) install -c $(PIN) --group build
	$(PIP) install -c $(PIN) --no-build-isolation -e ./kernels -e '.[$(EXTRAS)]'
	$(PIP) install --no-deps -r constraints/data.txt
	@$(NATIVE)
	@touch $@ $(BUILT)

# Right after the rule above there is nothing to rebuild.
$(BUILT): $(CPP_FILES) | $(DEPS)
	@if [ ! -e $@ ] || [ -n "$$(find $^ -newer $@)" ]; then \
	  echo "== kernels: native code"; \
	  $(PIP) install --no-build-isolation --no-deps --force-reinstall -e ./kernels && $(NATIVE); \
	fi
	@touch $@

# ---- the main job -----------------------------------------------------------------------------------------------
demo: env  ## set up, then run the main job on real data (CONFIG=name for another)
	$(BIN)/lowbit run experiments/configs/$(CONFIG).py

bench: env  ## measure the kernels beside float32 (peers too, where kernels[bench] is installed)
	$(PY) -m lowbit_kernels.bench

# ---- checks -------------------------------------------------------------------------------------------------------
test: lint types pytest kernels-test  ## static checks and all tests but those marked slow

test-slow: MARK := slow
test-slow: pytest  ## the tests marked slow: larger models, more plans of them; CI runs these too

lint: env  ## format, lint, import direction
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-cache

types: env  ## pyright, standard mode
	$(BIN)/basedpyright --pythonpath $(PY)

format: env  ## rewrite the sources as `make lint` wants them
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

# What each test cost, a file for each kind of run; compiled programs are kept in ~/.cache/lowbit (tests/compiled.py).
SPACE := $(subst ,, )
TIMES = build/times/py$(PYTAG)-$(if $(TESTS)$(PYTEST_FLAGS),some,$(or $(subst $(SPACE),-,$(strip $(MARK))),all)).jsonl

pytest: env  ## tests, doctests and documents
	LOWBIT_TIMES=$(TIMES) $(PY) -m pytest -q -n $(JOBS) --dist worksteal --durations=10 --durations-min=5 -m "$(MARK)" $(PYTEST_FLAGS) $(TESTS)

test-times: env  ## minutes of processor per test file, of the last runs
	$(PY) -m tests.times build/times/*.jsonl

test-faults: env  ## plant small faults in copies of the tree: each must be found by a test (half an hour)
	$(PY) -m tests.faults --jobs $(JOBS) $(FAULTS)

# The Python tests of the kernels are in tests/kernels; these are the algorithms without XLA or Python.
kernels-test: env  ## C++ unit tests of the kernels
	PATH="$(abspath $(BIN)):$$PATH" cmake -S kernels -B build/cpp -G Ninja -DLOWBIT_BIND=OFF -DLOWBIT_TESTS=ON >/dev/null
	$(BIN)/cmake --build build/cpp
	$(BIN)/ctest --test-dir build/cpp --output-on-failure --no-tests=error

# aarch64 needs the Debian packages g++-aarch64-linux-gnu and qemu-user.
kernels-sanitize: env  ## the same under address, undefined and thread sanitizers, and on aarch64 under qemu
	PATH="$(abspath $(BIN)):$$PATH" sh kernels/cpp/tests/run.sh address thread aarch64

# `make test` takes 25 random networks, this 500: about half an hour on 2 cores.
fuzz: env  ## export 500 random networks and compare every target
	LOWBIT_FUZZ=100 $(PY) -m pytest -q -n $(JOBS) tests/export/test_fuzz.py

fuzz-files: env  ## damage bundles, manifests and checkpoints, and kill writers, 50 times as often as `make test` does
	LOWBIT_FUZZ_FILES=50 $(PY) -m pytest -q -n $(JOBS) tests/core/test_atomic.py tests/export/test_untrusted*.py tests/packed/test_resigned.py

fuzz-runs: env  ## kill runs and whole sweeps at random, fifty times each: twenty minutes
	LOWBIT_KILLS=50 $(PY) -m pytest -q -n 0 tests/run/test_kills.py

# Converters and runtimes are wheels, in an environment of their own; emulators and cross compilers are Debian packages,
# installed here where this is root. IREE's programs for 64-bit Arm are in a wheel of that machine, which is only unpacked:
# lowbit finds them in $LOWBIT_TOOLS.
EDGE_VENV := .venv-edge-$(PYTAG)
EDGE_PROGRAMS := aarch64-linux-gnu-gcc qemu-aarch64 arm-none-eabi-gcc qemu-system-arm
EDGE_DEBIAN := gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user gcc-arm-none-eabi libnewlib-arm-none-eabi qemu-system-arm
EDGE_IREE = $(shell sed -n 's/^iree-base-runtime==//p' $(PIN))
EDGE_TOOLS := $(or $(LOWBIT_TOOLS),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/lowbit/tools)
test-edge:  ## install converters, emulators and cross compilers, and run every export target
	@[ "$$(command -v $(EDGE_PROGRAMS) | wc -l)" = "$(words $(EDGE_PROGRAMS))" ] || \
	  { [ "$$(id -u)" = 0 ] && apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -qy $(EDGE_DEBIAN); } || \
	  { echo "test-edge: needs $(EDGE_PROGRAMS); as root: apt-get install $(EDGE_DEBIAN)" >&2; exit 2; }
	$(MAKE) --no-print-directory env VENV=$(EDGE_VENV)
	$(EDGE_VENV)/bin/python -m pip --disable-pip-version-check --no-input --quiet install -r constraints/edge.txt
	[ -d "$(EDGE_TOOLS)"/iree-aarch64/iree_base_runtime-$(EDGE_IREE).dist-info ] || $(EDGE_VENV)/bin/python -m pip \
	  --disable-pip-version-check --no-input --quiet install --no-deps --only-binary=:all: --upgrade \
	  --platform manylinux_2_28_aarch64 --target "$(EDGE_TOOLS)/iree-aarch64" iree-base-runtime==$(EDGE_IREE)
	$(EDGE_VENV)/bin/python -m pytest -q -n $(JOBS) $(PYTEST_FLAGS) tests/edge

MODELS_VENV := .venv-models
test-models:  ## public architectures (transformers, equinox, haiku, keras, nnx) from bind to gradients; half an hour
	$(MAKE) --no-print-directory env VENV=$(MODELS_VENV)
	$(MODELS_VENV)/bin/python -m pip --disable-pip-version-check --no-input --quiet install -r constraints/models.txt
	$(MODELS_VENV)/bin/python -m tests.models

# jax 0.12 exists for Python 3.12 and newer only, so the second jax line needs a second interpreter. It repeats what depends
# on jax: reading, rewriting and running programs, arithmetic that XLA compiles, kernels, and the StableHLO that is written.
JAX_TESTS := tests/contract tests/core tests/formats tests/interpret tests/kernels tests/packed tests/rewrites \
  $(addprefix tests/export/test_,bundle.py fuzz.py integer_export.py quantized.py universal.py verify.py) \
  tests/learn/test_training.py tests/project/test_public_api.py lowbit
test-jax12:  ## what depends on jax once more, on the newest interpreter found (jax 0.12)
	@if [ "$(PYTAG)" != 3.11 ]; then echo "test-jax12: left out, $(PYTHON) runs on jax 0.12 already"; exit 0; fi; \
	for python in $(PYTHON12) python3.13 python3.12 $$(ls -d "$$(pyenv root 2>/dev/null)"/versions/3.1[23].*/bin/python3 2>/dev/null); do \
	  if "$$python" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info[:2] not in [(3, 12), (3, 13)])' 2>/dev/null; then \
	    echo "== test-jax12: $$python"; \
	    exec env LOWBIT_FUZZ=2 $(MAKE) --no-print-directory pytest "PYTHON=$$python" "TESTS=$(or $(TESTS),$(JAX_TESTS))" \
	      $(if $(filter command,$(origin VENV)),VENV=$(VENV)-jax12); \
	  fi; \
	done; \
	echo "test-jax12: left out, no Python 3.12 or 3.13 found (name one: make test-jax12 PYTHON12=...)"

# Compilers of accelerators are wheels of 700 MB: each has an environment of its own, made here and nowhere else.
test-aot: test-aot-tpu test-aot-cuda  ## compile the accelerator kernels, and networks, without a device, compare with the golden reports

test-aot-tpu: AOT := .venv-aot-tpu-$(PYTAG)
test-aot-tpu:
	@[ -x $(AOT)/bin/python ] || $(PYTHON) -m venv $(AOT)
	$(AOT)/bin/python -m pip --disable-pip-version-check --no-input --quiet install -r constraints/aot-tpu.txt
	PYTHONPATH="$(abspath kernels)" $(AOT)/bin/python -m lowbit_kernels.aot tpu --jobs $(JOBS)
	PYTHONPATH="$(abspath kernels):$(CURDIR)" $(AOT)/bin/python -m experiments.aot tpu --jobs $(JOBS)

# Mosaic GPU needs jax 0.11, so Python 3.12; without one this fails.
test-aot-cuda:
	@for python in $(PYTHON) $(PYTHON12) python3.13 python3.12 $$(ls -d "$$(pyenv root 2>/dev/null)"/versions/3.1[23].*/bin/python3 2>/dev/null); do \
	  if "$$python" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info[:2] not in [(3, 12), (3, 13)])' 2>/dev/null; then \
	    [ -x .venv-aot-cuda/bin/python ] || "$$python" -m venv .venv-aot-cuda || exit 1; \
	    .venv-aot-cuda/bin/python -m pip --disable-pip-version-check --no-input --quiet install -r constraints/aot-cuda.txt || exit 1; \
	    PYTHONPATH="$(abspath kernels)" .venv-aot-cuda/bin/python -m lowbit_kernels.aot cuda --jobs $(JOBS) || exit 1; \
	    PYTHONPATH="$(abspath kernels):$(CURDIR)" exec .venv-aot-cuda/bin/python -m experiments.aot cuda --jobs $(JOBS); \
	  fi; \
	done; \
	echo "test-aot-cuda: needs Python 3.12 or 3.13, none found (name one: make test-aot PYTHON12=...)" >&2; exit 2

# ---- upkeep -------------------------------------------------------------------------------------------------------
pins:  ## resolve the newest versions for $(PYTHON) and write its constraints file
	rm -rf build/pins && $(PYTHON) -m venv build/pins
	build/pins/bin/pip install --quiet --upgrade pip
	build/pins/bin/pip install --quiet --group build
	build/pins/bin/pip install --quiet --no-build-isolation ./kernels '.[$(EXTRAS)]'
	{ echo "# Python $(PYTAG): every version that the tests run on. Written by: make pins PYTHON=python$(PYTAG)"; \
	  build/pins/bin/pip freeze --all | sed -n '/==/p' | grep -v '^setuptools==' ; } > $(PIN)
	rm -rf build/pins

clean:  ## remove build products and caches, keep the environment and runs/
	rm -rf build dist kernels/build kernels/dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -path './.venv*' -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean  ## also remove the environments
	rm -rf .venv .venv-3.*
