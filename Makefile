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

.PHONY: help demo test lint format build clean
help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 18

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

demo: $(INSTALLED) ## profile, plan, fine-tune and evaluate on bundled data: the whole loop in three minutes
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

clean: ## remove the environment, caches and demo runs
	rm -rf $(VENV) $(DEMO) dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find edgetune tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +
