# Two commands are all it takes on a fresh machine: `make demo` and `make test`.
# Both build their own environment in .venv from nothing but Python (3.10 or newer) and the package index.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

PYTHON ?= python3
VENV ?= .venv
DEMO ?= runs/demo

BIN := $(VENV)/bin
EDGETUNE := $(BIN)/edgetune
# A stamp is named after what it stands for: another pyproject.toml, another stamp.
HASH := $(shell cat pyproject.toml edgetune/__about__.py | cksum | cut -d' ' -f1)
INSTALLED := $(VENV)/.installed-torch-$(HASH)
INSTALLED_DEV := $(VENV)/.installed-dev-$(HASH)

# What an image is built on, by JetPack. 6 and 7 bring CUDA and a torch for it. The Pythons of 4 and 5 are too old: theirs
# is a plain Python image, and torch comes from the index for the CPU. (Bullseye: JetPack 4's Docker lets no newer C library
# start threads.) Any other: BASE_IMAGE=...
JETPACK ?= 6
ENGINE ?= onnx
JETPACK_4 := python:3.11-slim-bullseye
JETPACK_5 := python:3.11-slim-bullseye
JETPACK_6 := dustynv/l4t-pytorch:r36.4.0
JETPACK_7 := nvcr.io/nvidia/pytorch:25.08-py3
BASE_IMAGE ?= $(JETPACK_$(JETPACK))
WITH_TORCH := --build-arg 'EXTRAS=[torch]' --build-arg 'PIP_OPTIONS=--constraint /source/requirements/cpu-aarch64.txt'
VERSION := $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' edgetune/__about__.py)
BUILDX := docker buildx build --platform linux/arm64 --build-arg VERSION=$(VERSION) --load

.PHONY: help demo test lint format build image-jetson image-pi test-arm64 test-images test-dist clean
help: ## list the targets
	@grep -E '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

# An environment that was left half-made is made again: `venv` mends what is there, `--clear` what it can't mend.
define install
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "edgetune needs Python 3.10 or newer; name one with 'make $(MAKECMDGOALS) PYTHON=python3.11'." >&2; exit 2; }
	@$(PYTHON) -m venv $(VENV) && $(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[$(1)]"
	@rm -f $(VENV)/.installed-$(1)-* && touch $@
endef

# The development set holds everything the demo needs, so whoever has it installs nothing twice.
$(INSTALLED):
	$(if $(wildcard $(INSTALLED_DEV)),@touch $@,$(call install,torch))

$(INSTALLED_DEV):
	$(call install,dev)

demo: $(INSTALLED) ## profile, plan, fine-tune and evaluate on bundled data: the whole loop, under a minute once installed
	@bash scripts/demo.sh $(EDGETUNE) $(DEMO)

test: lint ## everything CI runs: lint, types, tests
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest

lint: $(INSTALLED_DEV) ## ruff and mypy
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(INSTALLED_DEV) ## let ruff format and mend
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

build: $(INSTALLED_DEV) ## an sdist and a wheel in dist/
	$(BIN)/uv build --python $(BIN)/python

image-jetson: ## an image for JetPack 4, 5, 6 or 7 (JETPACK=6), with docker buildx on any machine
	@test -n "$(BASE_IMAGE)" || { echo "JETPACK=$(JETPACK) is not 4, 5, 6 or 7; for another base give BASE_IMAGE=..." >&2; exit 2; }
	$(BUILDX) --build-arg BASE_IMAGE=$(BASE_IMAGE) $(if $(filter 4 5,$(JETPACK)),$(WITH_TORCH)) -f Dockerfile.jetson -t edgetune:jetpack$(JETPACK) .

image-pi: ## an image for a Raspberry Pi: onnxruntime and no torch, or ENGINE=torch
	$(BUILDX) --build-arg ENGINE=$(ENGINE) -f Dockerfile.pi -t edgetune:pi-$(ENGINE) .

test-dist: build ## wheel and sdist in clean environments of this machine
	@UV=$(BIN)/uv bash scripts/test_dist.sh

test-arm64: build ## the wheel in an arm64 Debian on an emulated Raspberry Pi 4; as root, under ten minutes
	@UV=$(BIN)/uv bash scripts/test_arm64.sh

test-images: build ## build the container files for arm64 without Docker and use what came out; as root
	@UV=$(BIN)/uv bash scripts/test_images.sh

clean: ## remove the environment, caches and demo runs
	rm -rf $(VENV) $(DEMO) dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find edgetune tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +
