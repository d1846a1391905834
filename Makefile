# Every command sets up what it needs: a virtual environment in .venv with the pinned requirements, and the extension
# module built in place. Again with nothing to do, that takes about a second.
#
#   make test ARGS="tests/test_modules.py -k lstm"    arguments for pytest (and likewise for demo and bench)
#   make test WORKERS=0                               in one process, as a debugger wants it (default: one a core)
#   make test TORCH=2.10.0                            another torch in .venv: a version, or anything pip understands
#   make test INTEGRATIONS=1                          with the packages of seqkernels.integrations, against these, too
#   make test DOCS=1                                  with what builds the documentation, and tests of it
#   make test PYTHON=/opt/env/bin/python              use that environment, install nothing in it
#   make test PYTHON3=python3.12                      the interpreter that a new .venv is made from
#   make bench ISA=avx2                               us and torch.nn held to AVX2: docs/performance-cpu-avx2.md
#   make gpu QUICK=1 OUT=results                      with the Python that is there; fewer cases; results elsewhere

TORCH ?= 2.13.0
PYTHON ?=
PYTHON3 ?= python3
ARGS ?=
INTEGRATIONS ?=
DOCS ?=
WORKERS ?= auto
QUICK ?=
LOOK ?=
ISA ?=
NAME ?= $(if $(QUICK),quick,cpu)$(if $(ISA),-$(ISA))

VENV := .venv
PY := $(or $(PYTHON),$(VENV)/bin/python)
TORCH_SPEC := $(if $(filter 1.% 2.% 3.%,$(TORCH)),torch==$(TORCH),$(TORCH))
# Packages with models of their own, which want old versions of what others use: on top of $(VENV), and nowhere in it.
MODELS := $(VENV)/models
MODELS_PY := $(or $(PYTHON),$(MODELS)/bin/python)
READY := $(VENV)/.ready-$(shell printf '%s' '$(TORCH_SPEC)' | tr -c 'A-Za-z0-9.=' _)
CXX_FILES = $(shell find csrc tests \( -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' \) 2>/dev/null)
# Something, where nvcc has to be brought: on Linux, without a toolkit.
NO_NVCC := $(if $(or $(filter 0,$(SEQKERNELS_WITH_CUDA)),$(wildcard $(CUDA_HOME)/bin/nvcc),$(shell command -v nvcc)),,$(filter Linux,$(shell uname -s)))
CLANG_FORMAT := $(PY) -c 'import clang_format; clang_format.clang_format()'
PROGRAMS := $(notdir $(patsubst %/__main__.py,%,$(wildcard examples/*/__main__.py)))
RESULT := benchmarks/results/$(NAME)
# What holds ours, torch, oneDNN and MKL to an instruction set.
HOLD_avx2 := env SEQKERNELS_CPU_ISA=avx2 ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2
HOLD = $(if $(ISA),$(or $(HOLD_$(ISA)),$(error ISA=$(ISA): avx2 is what there is)))
BUILT := build/.built-$(shell printf '%s' '$(PY) $(TORCH_SPEC) $(CXX) $(CXXFLAGS) $(SEQKERNELS_CPU_TARGETS) $(SEQKERNELS_TEST_KERNELS) $(SEQKERNELS_WITH_CUDA) $(SEQKERNELS_CUDA_TARGETS)' | tr -c 'A-Za-z0-9.=' _)

.DEFAULT_GOAL := help
.PHONY: help build demo example examples test integration docs sanitize mutants bench gpu gpu-report lint format wheels clean env bench-env \
	integrations-env docs-env wheels-env models-env
.SILENT: help env build

help:  ## this list
	sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16
	sed -nE 's/^#   (make .*)/  \1/p' $(MAKEFILE_LIST)

build: env $(BUILT)  ## compile seqkernels._C in place

# Newer than everything the extension is made of, so that a build with nothing to do does not even import torch.
$(BUILT): setup.py seqkernels/__init__.py $(shell find csrc tests/kernels -name '*.so' -prune -o -name __pycache__ -prune -o -type f -print 2>/dev/null) $(if $(PYTHON),,$(READY))
	$(call need,setuptools ninja pybind11 torch)
	$(PY) setup.py -q build_ext --inplace
	$(if $(PYTHON),,@$(installed) || $(install))
	@rm -f build/.built-* && touch $@

demo: build  ## train a character language model with torch.nn and with seqkernels, side by side
	@$(call need,numpy matplotlib rich safetensors)
	@$(PY) -m examples.char_lm $(ARGS)

example: build  ## run a program of examples/: NAME=language_model ARGS='train --book'
	@test -e examples/$(NAME)/__main__.py -o -e examples/$(NAME).py || { echo "NAME=: one of" $(PROGRAMS); exit 1; }
	@$(call need,numpy matplotlib rich safetensors)
	@$(PY) -m examples.$(NAME) $(ARGS)

examples: build integrations-env  ## train all programs from five seeds, a page of results in out/gallery (ARGS=ner: one; ARGS=--renew)
	@$(call need,numpy matplotlib rich safetensors sb3_contrib)
	$(PY) -m examples.gallery $(ARGS)

test: build $(if $(INTEGRATIONS),integrations-env) $(if $(DOCS),docs-env)  ## run the tests
	@$(call need,numpy pytest xdist pytest_benchmark hypothesis expecttest)
	$(PY) -m pytest -n $(WORKERS) $(ARGS)

integration: build models-env  ## fuse models of other packages, compare results, measure (ARGS=--renew: docs/guide)
	@$(subst $(PY),$(MODELS_PY),$(call need,numpy pytest pytest_benchmark hypothesis))
	$(MODELS_PY) -m pytest tests/integration $(ARGS)

docs: build docs-env  ## build the documentation into out/docs/html, and stop at a warning
	@$(call need,sphinx furo myst_parser sphinx_copybutton)
	$(PY) -m sphinx -q -W --keep-going -b html -c docs -d out/docs/doctrees . out/docs/html
	@echo out/docs/html/index.html

sanitize: env  ## run tests with CPU kernels that check every access, then for data races (ARGS: for pytest)
	@$(call need,setuptools ninja pybind11 torch numpy pytest hypothesis)
	$(PY) -m tests.sanitizers address $(ARGS)
	$(PY) -m tests.sanitizers thread $(ARGS)

mutants: env  ## which tests find mistakes in the CPU kernels, by dtype and instruction set (ARGS: names of some)
	@$(call need,setuptools ninja pybind11 torch numpy pytest hypothesis)
	$(PY) -m tests.mutate $(ARGS)

bench: build bench-env  ## measure against torch.nn and ONNX Runtime, write tables and a plot (QUICK=1: 3 minutes; NAME=)
	@$(call need,numpy pytest pytest_benchmark matplotlib)
	mkdir -p $(dir $(RESULT))
	$(HOLD) $(PY) -m pytest benchmarks $(if $(QUICK),--quick) --benchmark-json=$(RESULT).json \
		--benchmark-columns=median,iqr,rounds --benchmark-sort=fullname $(ARGS)
	$(PY) -m benchmarks.report $(RESULT).json $(if $(filter cpu cpu-$(ISA),$(NAME)),--output docs/performance-$(NAME).md)

gpu:  ## build, measure against cuDNN and test on this machine's NVIDIA GPU, offline (LOOK=second; QUICK=1; OUT=)
	@$(or $(PYTHON),python3) -m benchmarks.gpu $(if $(QUICK),--quick) $(if $(LOOK),--look $(LOOK)) $(if $(OUT),--out '$(OUT)') $(ARGS)

gpu-report: env  ## table, plot and the constants of plan.cpp from a GPU's results (RESULT=benchmarks/results/GPU.json)
	@$(call need,numpy matplotlib)
	$(PY) -m benchmarks.report $(RESULT)
	$(PY) -m benchmarks.calibrate $(RESULT:.json=-sweep.csv)

lint: env  ## check style and types
	@$(call need,ruff mypy clang_format)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(if $(CXX_FILES),$(CLANG_FORMAT) --dry-run -Werror $(CXX_FILES),@echo "no C++ sources to check")

format: env  ## rewrite the sources in the project's style
	@$(call need,ruff clang_format)
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .
	$(if $(CXX_FILES),$(CLANG_FORMAT) -i $(CXX_FILES),@echo "no C++ sources to format")

wheels: env wheels-env  ## a wheel for all Pythons here and the source archive, into dist/, tried in fresh environments
	@$(call need,setuptools ninja pybind11 torch auditwheel build check_wheel_contents twine)
	$(PY) -m tests.wheels $(ARGS)

clean:  ## remove everything made here except .venv
	rm -rf build dist out *.egg-info seqkernels/*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# $(call need,module ...) stops with one clear line where the Python in use lacks a module.
need = $(PY) -c 'import importlib.util, sys; lacks = [m for m in "$(1)".split() if not importlib.util.find_spec(m)]; \
	lacks and sys.exit(f"{sys.executable} lacks {chr(44).join(lacks)}; see requirements*.txt")'

# Into .venv, so that scripts anywhere find seqkernels; what is compiled already is taken as it is.
installed = $(PY) -c 'from importlib.metadata import distribution; distribution("seqkernels")' 2>/dev/null
install = $(PY) -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --editable .

old_python = import sys; sys.version_info < (3, 10) and sys.exit( \
	f"seqkernels needs Python 3.10 or newer; {sys.executable} is {sys.version.split()[0]} (choose one with PYTHON3=)")

ifdef PYTHON
env bench-env integrations-env docs-env wheels-env models-env:
	command -v "$(PYTHON)" >/dev/null || { echo "PYTHON=$(PYTHON): no such program" >&2; exit 1; }
	$(PYTHON) -c '$(old_python)'
else
env: $(READY)
bench-env: $(READY)-bench
integrations-env: $(READY)-integrations
docs-env: $(READY)-docs
wheels-env: $(READY)-wheels
models-env: $(MODELS)/.ready

$(READY): requirements.txt
	@command -v $(PYTHON3) >/dev/null || { echo "no '$(PYTHON3)' found: seqkernels needs Python 3.10 or newer" >&2; exit 1; }
	@$(PYTHON3) -c '$(old_python)'
	@echo "setting up $(VENV) with $(TORCH_SPEC)"
	@$(VENV)/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON3) -m venv $(VENV)
	@rm -f $(VENV)/.ready-*
	$(VENV)/bin/python -m pip install --disable-pip-version-check -r requirements.txt '$(TORCH_SPEC)'
	$(if $(NO_NVCC),$(VENV)/bin/python -m pip install --disable-pip-version-check -r requirements-cuda.txt \
		|| echo "no CUDA compiler could be installed: the build will be for the CPU alone")
	@touch $@

$(READY)-%: requirements-%.txt $(READY)
	$(VENV)/bin/python -m pip install --disable-pip-version-check -r $< '$(TORCH_SPEC)'
	@touch $@

# Without dependencies: what is imported is listed, and what $(VENV) has, torch above all, stays as it is.
$(MODELS)/.ready: requirements-models.txt $(READY)-integrations
	$(VENV)/bin/python -m venv --without-pip --clear $(MODELS)
	site='import sysconfig; print(sysconfig.get_path("purelib"))'; \
		echo "import site; site.addsitedir('$$($(VENV)/bin/python -c "$$site")')" \
		> "$$($(MODELS)/bin/python -c "$$site")/base.pth"
	$(VENV)/bin/python -m pip --python $(MODELS)/bin/python install --disable-pip-version-check --no-deps \
		--no-build-isolation -r requirements-models.txt
	@touch $@
endif
