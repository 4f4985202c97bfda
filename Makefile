# Everything a fresh machine with Python >= 3.11 and make needs. `make leaderboard` and `make test`
# set up .venv themselves; the installed versions are those of constraints.txt.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
WORKERS ?= $(shell $(PYTHON) -c "import os; print(os.cpu_count() or 1)")

.PHONY: setup leaderboard readme readme-check test test-plain lint types format docs board speed speed-page speed-guard clean

setup: $(VENV)/.dev # for developers: all that the checks need

leaderboard: $(VENV)/.bench
	$(BIN)/llmqueue-bench run quick
	$(BIN)/llmqueue-bench report

# A suite's page is docs/leaderboards/SUITE.md; README.md shows the quick one too.
PAGE = docs/leaderboards/$$(basename $$results .json.gz).md
ROUTERS = docs/leaderboards/production-routers.md

readme: $(VENV)/.bench
	$(BIN)/llmqueue-bench run quick
	$(BIN)/llmqueue-bench export results/quick benchmarks/results/quick.json.gz
	for results in benchmarks/results/*.json.gz; do \
	  $(BIN)/llmqueue-bench report $$results --readme $(PAGE) >/dev/null || exit 1; done
	for suite in queueing deployment; do \
	  $(BIN)/llmqueue-bench report benchmarks/results/$$suite.json.gz --readme $(ROUTERS) >/dev/null || exit 1; done
	$(BIN)/llmqueue-bench report benchmarks/results/quick.json.gz --readme README.md >/dev/null

readme-check: $(VENV)/.bench
	for results in benchmarks/results/*.json.gz; do \
	  $(BIN)/llmqueue-bench report $$results --readme $(PAGE) --check || exit 1; done
	for suite in queueing deployment; do \
	  $(BIN)/llmqueue-bench report benchmarks/results/$$suite.json.gz --readme $(ROUTERS) --check || exit 1; done
	$(BIN)/llmqueue-bench report benchmarks/results/quick.json.gz --readme README.md --check

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

test-plain: $(VENV)/.dev
	NUMBA_DISABLE_JIT=1 $(BIN)/python -m pytest -n $(WORKERS) tests/*/test_*golden.py

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

board: $(VENV)/.dev # after the docs, which empty their folder; REPOSITORY=https://HOST/OWNER/NAME
	$(BIN)/llmqueue-bench board --out site/board $(if $(REPOSITORY),--repository $(REPOSITORY))

speed: $(VENV)/.dev
	$(BIN)/python -m benchmarks.measure.speed

speed-page: $(VENV)/.dev # on a quiet machine: what docs/speed.md and the guard compare with
	$(BIN)/python -m benchmarks.measure.speed --write-baseline benchmarks/measure/speed_baseline.json
	$(BIN)/python -m benchmarks.measure.speed --before --page docs/speed.md

speed-guard: $(VENV)/.dev
	$(BIN)/python -m benchmarks.measure.speed --guard benchmarks/measure/speed_baseline.json

clean:
	rm -rf $(VENV) build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(BIN)/python:
	$(PYTHON) -c "import sys; assert sys.version_info >= (3, 11), 'llmqueue_gym needs Python 3.11 or newer: make PYTHON=python3.12 ...'"
	$(PYTHON) -m venv $(VENV)

$(VENV)/.bench: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -e ".[bench,data]"
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -e ".[dev]"
	touch $@
