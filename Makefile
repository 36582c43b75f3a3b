# make demo, make compare-demo, make test and make check each set up what they need, in a virtual environment
# of their own; the demos and test also build the CPU kernels, after installing what that takes on Debian and
# Ubuntu; test also installs a browser for the reports.
#
#   PYTHON=python3.12   interpreter to build the environment with
#   VENV=.venv          where to build it
#   LOCKED=1            install the versions of requirements-dev.txt, by hash

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help demo compare-demo serve-demo text-demo test test-touched test-builds test-all night record test-long test-cuda test-gpu first-gpu cuda plugin wheels release try-release docs lock check format clean build-dependencies test-dependencies
CPP_SOURCES := $(shell find plugins examples/cpp -name "*.h" -o -name "*.cc" -o -name "*.cu" -o -name "*.cuh")
SHELL_SCRIPTS := .ci/run ci/gate.sh tools/check_aarch64.sh tools/debian-packages.sh tools/install-build-dependencies \
    tools/install-test-dependencies
# Installing the package and building the kernels use the same folder.
.NOTPARALLEL:

# What needs nvcc, but no GPU, is tested where nvcc is: with TensorRT-RTX and the lean runtimes of TensorRT.
comma := ,
# nvcc needs up to 2 GiB for a file.
JOBS ?= $(shell nproc)
# Each process imports torch and makes the packages that its tests share: a process is given tests
# that follow each other, and takes from the others what they have not begun when it is done.
TEST_JOBS ?= auto
PYTEST := $(BIN)/python -m pytest --numprocesses=$(TEST_JOBS) --maxprocesses=8 --dist=worksteal
WITH_NVCC := $(if $(shell command -v nvcc),$(comma)test-tensorrt)
TEST_EXTRAS := test$(WITH_NVCC)
ALL_EXTRAS := test-all$(WITH_NVCC)
CHECK_EXTRAS := dev

help:
	@echo "make demo    train a small model on real digits, export it, verify it, compare every image"
	@echo "make compare-demo  decide whether MoH is worth it for the digits, against dense, pruned and other rivals"
	@echo "make serve-demo  serve the package of make demo by Triton on the CPU, and compare every answer"
	@echo "make text-demo  train a small language model on Python's help, export it, lower it to 4 bits, let it write"
	@echo "make test    run the tests that every push runs"
	@echo "make test-touched   of these, the tests that reach the files changed since SINCE (default: HEAD)"
	@echo "make test-all   run all tests: every planted bug, every plan, sanitizers, other runtimes, random examples"
	@echo "make night   test-all that keeps results: a run that was cut off goes on (NIGHT_ARGS='--minutes 25 --shard 1/4')"
	@echo "make record  keep results of make night in tests/night.jsonl and docs/evidence.md"
	@echo "make test-long  fuzz the readers, and plant every fault in every model; takes hours"
	@echo "make cuda    compile the kernels for NVIDIA GPUs, those of ONNX Runtime into the package; needs nvcc, but no GPU"
	@echo "make plugin  compile the plugin libraries for TensorRT into the package; needs nvcc and TensorRT's headers, no GPU"
	@echo "make test-cuda  the tests of what runs on NVIDIA GPUs; need nvcc, but no GPU"
	@echo "make test-gpu   all that needs a GPU, in stages: correct, speed, deep; needs nvcc, torch and numpy"
	@echo "make first-gpu  build TensorRT engines, compare and time them within ten minutes; needs a GPU, TensorRT, and make plugin"
	@echo "make wheels  wheels with CPU kernels for x86-64 and aarch64, glibc 2.28 and newer, and the sources; into dist/"
	@echo "make release   make wheels, with a CycloneDX SBOM and SHA256SUMS beside them"
	@echo "make try-release  install the wheel of make release in six fresh environments, and use it there"
	@echo "make docs    build the site from README and docs, strictly; into build/site/"
	@echo "make lock    renew requirements-image.txt and requirements-dev.txt: versions and hashes of the image and of developers"
	@echo "make check   formatting, lint, types, import rules, limits of language"
	@echo "make format  rewrite the files in the project's format"
	@echo "make clean   remove what these commands made"

demo: build-dependencies $(VENV)/.installed-examples $(VENV)/.kernels
	$(BIN)/python examples/digits/demo.py

compare-demo: build-dependencies $(VENV)/.installed-examples $(VENV)/.kernels
	$(BIN)/python examples/digits/compare.py

# Triton's wheel asks for numpy 1, and has an environment of its own.
TRITON := build/triton-server
serve-demo: build-dependencies $(VENV)/.installed-examples $(VENV)/.kernels $(TRITON)/.installed
	@test -e build/digits/held-out.npz || $(MAKE) demo
	$(BIN)/python examples/serving/serve_demo.py --server $(TRITON)

text-demo: build-dependencies $(VENV)/.installed-export,text $(VENV)/.kernels
	$(BIN)/python examples/text/text_demo.py

$(TRITON)/.installed: examples/serving/server-requirements.txt | $(VENV)/.created
	$(BIN)/python -m venv $(TRITON)
	$(TRITON)/bin/python -m pip install --quiet -r $<
	@touch $@

test: test-builds test-dependencies
	$(PYTEST) $(PYTEST_ARGS)

# For developers: what reaches the files that changed since a commit (SINCE=main).
SINCE ?= HEAD
test-touched: test-builds
	$(PYTEST) $(PYTEST_ARGS) $$($(BIN)/python tools/touched_tests.py $(SINCE))

# What is there already from the same sources is not built again.
test-builds: build-dependencies $(VENV)/.installed-$(TEST_EXTRAS) $(VENV)/.kernels
	$(BIN)/python -m tests.native_builds

test-all: build-dependencies test-dependencies $(VENV)/.installed-$(ALL_EXTRAS) $(VENV)/.kernels
	$(BIN)/python -m tests.native_builds --nightly
	$(PYTEST) --nightly $(PYTEST_ARGS)

# 5 is pytest's code where no test is left.
night: build-dependencies test-dependencies $(VENV)/.installed-$(ALL_EXTRAS) $(VENV)/.kernels
	$(BIN)/python -m tests.native_builds --nightly
	PYTHONPATH=tools $(PYTEST) -p night --nightly $(NIGHT_ARGS) $(PYTEST_ARGS) || test $$? -eq 5
	$(BIN)/python tools/night.py

record:
	$(BIN)/python tools/night.py --record

test-cuda: build-dependencies $(VENV)/.installed-test,test-tensorrt $(VENV)/.kernels
	$(BIN)/python -m tests.native_builds --nightly
	$(PYTEST) tests/cuda --nightly $(PYTEST_ARGS)

# What takes too long even for every night's test-all: hours of planted faults, and fuzzing in minutes.
FUZZ_MINUTES ?= 30
test-long: build-dependencies $(VENV)/.installed-test $(VENV)/.kernels
	$(BIN)/python -m tests.fuzz --minutes $(FUZZ_MINUTES)
	$(BIN)/python -m tests.validate.mutations --cache build/mutations --jobs $(JOBS)

# Any Python with torch and numpy will do: make test-gpu GPU_PYTHON=python3
GPU_PYTHON ?= $(firstword $(wildcard $(BIN)/python) python3)
test-gpu:
	$(if $(wildcard $(BIN)/python),$(BIN)/python -m tests.gpu.prepare)
	$(GPU_PYTHON) -m tests.gpu $(GPU_ARGS)

# Installs nothing, as on a rented machine: make first-gpu GPU_PYTHON=python3
first-gpu:
	$(GPU_PYTHON) tools/first_gpu_run.py $(GPU_ARGS)

# Kernels for Hopper and Blackwell are compiled where Triton (the compiler, 3.4 or newer) is installed: pip install 'moh-deploy[build-cuda]'
TRITON_PYTHON ?= $(shell $(BIN)/python -c 'from triton import knobs' 2>/dev/null && echo $(abspath $(BIN)/python))
# TensorRT's headers and nvcc are taken from where `moh-deploy doctor` finds them; TENSORRT_INCLUDE_DIR=DIR names the headers.
PLUGIN_PYTHON ?= $(firstword $(wildcard $(BIN)/python) python3)
plugin:
	@found=$$(PYTHONPATH=. $(PLUGIN_PYTHON) -m moh_deploy.machine.tools) && set -x && \
	    cmake -S plugins -B build/cuda -DMOH_CPU=OFF -DMOH_CUDA=ON -DMOH_TRITON_PYTHON=$(TRITON_PYTHON) $$found
	cmake --build build/cuda --target moh_plugin_registered --parallel $(JOBS)
	cp build/cuda/libmoh_plugin.so build/cuda/libmoh_plugin_registered.so moh_deploy/native/

cuda:
	cmake -S plugins -B build/cuda -DMOH_CPU=OFF -DMOH_CUDA=ON -DMOH_TRITON_PYTHON=$(TRITON_PYTHON)
	cmake --build build/cuda --parallel $(JOBS)
	test ! -f build/cuda/libmoh_ort_cuda.so || cp build/cuda/libmoh_ort_cuda.so moh_deploy/native/

# Compiled by zig, whatever this machine is. The same sources and time give the same bytes.
wheels: build-dependencies $(VENV)/.build-frontend
	SOURCE_DATE_EPOCH=$${SOURCE_DATE_EPOCH:-$$(git log -1 --format=%ct)} && export SOURCE_DATE_EPOCH && \
	    $(BIN)/python -m build --sdist && $(BIN)/python tools/reproducible_sdist.py dist/*.tar.gz && \
	    $(BIN)/python -m build --wheel -C target=x86_64 && $(BIN)/python -m build --wheel -C target=aarch64

# The bill of materials lists dependencies at the versions of requirements-image.txt, and the code in the kernel library. An
# empty dist/ first: hashes of an earlier release would be listed, too.
release: | $(VENV)/.created
	rm -rf dist
	$(MAKE) wheels
	$(BIN)/python -m pip install --quiet 'cyclonedx-bom>=7.0,<8'
	$(BIN)/cyclonedx-py requirements requirements-image.txt --pyproject pyproject.toml --output-reproducible \
	    --output-file dist/moh-deploy.cdx.json
	$(BIN)/python tools/complete_sbom.py dist/moh-deploy.cdx.json
	cd dist && sha256sum *.whl *.tar.gz *.cdx.json >SHA256SUMS

# In fresh environments of Python 3.11, 3.12 and 3.13, where uv finds them; takes minutes and, with PyPI's PyTorch for
# CUDA, gigabytes. Another build: TRY_ARGS="--find-links FOLDER --constraint 'torch==2.13.0+cpu'"
try-release: | $(VENV)/.created
	$(BIN)/python -m pip install --quiet 'uv>=0.9,<1' packaging
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python tools/try_release.py dist --report build/try-release.md $(TRY_ARGS)

# zig and the other tools come into environments that it makes itself: neither torch nor a compiler is needed.
$(VENV)/.build-frontend: | $(VENV)/.created
	$(BIN)/python -m pip install --quiet 'build>=1.2'
	@touch $@

# Read it by: python3 -m http.server --directory build/site
docs: $(VENV)/.installed-docs
	$(BIN)/python tools/site_pages.py build/pages
	$(BIN)/mkdocs build --strict --quiet

# The newest versions on PyPI within pyproject.toml's bounds: for the Python of the TensorRT image, and for developers on
# every Python. PyTorch and its CUDA libraries are in neither.
IMAGE_PYTHON := 3.12
lock: | $(VENV)/.created
	$(BIN)/python -m pip install --quiet 'uv>=0.9,<1' packaging
	$(BIN)/python tools/locked_requirements.py polygraphy serve otel | $(COMPILE_LOCK) \
	    --python-version $(IMAGE_PYTHON) --python-platform x86_64-unknown-linux-gnu --output-file requirements-image.txt
	$(BIN)/python tools/locked_requirements.py dev | $(COMPILE_LOCK) \
	    --python-version 3.11 --universal --output-file requirements-dev.txt
COMPILE_LOCK = $(BIN)/uv pip compile - --quiet --upgrade --generate-hashes --no-annotate --custom-compile-command 'make lock'

check: $(VENV)/.installed-$(CHECK_EXTRAS)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/clang-format --dry-run --Werror $(CPP_SOURCES)
	PYTHONPATH=. $(BIN)/python tools/generate_from_ops.py --check
	$(BIN)/python tools/check_language.py
	$(BIN)/python tools/night.py --check
	$(BIN)/shellcheck $(SHELL_SCRIPTS)
	$(BIN)/zizmor --quiet --offline --no-progress --min-severity medium action.yml .github/workflows

format: $(VENV)/.installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/clang-format -i $(CPP_SOURCES)

clean:
	rm -rf moh_deploy/native/*.so moh_deploy/native/build.*
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

# A stamp for each set of extras: installed once, and again when the requirements change. LOCKED=1 takes the versions of
# requirements-dev.txt, by hash; PyTorch, and what only other extras name, is the newest.
$(VENV)/.installed-%: pyproject.toml setup.py | $(VENV)/.created
	$(if $(LOCKED),$(BIN)/python -m pip install --quiet --require-hashes --no-deps --requirement requirements-dev.txt)
	$(BIN)/python -m pip install --quiet --editable '.[$*]'
	@touch $@

build-dependencies:
	@tools/install-build-dependencies

test-dependencies:
	@tools/install-test-dependencies

# Without the library this is tried again the next time.
KERNEL_SOURCES := $(shell find plugins -type f) tools/build_kernels.py moh_deploy/__init__.py
$(VENV)/.kernels: $(KERNEL_SOURCES) | $(VENV)/.created
	$(BIN)/python tools/build_kernels.py
	@if test -e moh_deploy/native/libmoh_ort_cpu.so; then touch $@; fi

$(VENV)/.created:
	@command -v $(PYTHON) >/dev/null || { \
	    echo "'$(PYTHON)' was not found. Install Python 3.11 or newer, or name one: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "$(PYTHON) is $$($(PYTHON) --version 2>&1); 3.11 or newer is needed: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	    echo "$(PYTHON) cannot make virtual environments. On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

# Keep the stamps, although a pattern rule made them.
.PRECIOUS: $(VENV)/.installed-%
