# Two commands do all the set-up: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test check install clean

demo: $(VENV)/.installed ## the paper's comparison, offline, in minutes
	$(BIN)/femtune demo

test: $(VENV)/.installed-dev ## all tests
	$(BIN)/python -m pytest

check: $(VENV)/.installed-dev ## lint and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

install: $(VENV)/.installed

# torch first and alone: a later install that finds it wanting would pull its CUDA packages
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) --editable ".[dev]"
	@touch $@

clean:
	rm -rf $(VENV) runs build dist
