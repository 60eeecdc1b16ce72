# Two commands are enough: `make demo` and `make test`. Both set up .venv when it is missing.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint test-slow bench clean

.venv/.ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

demo: .venv/.ready
	$(BIN)/latentia demo

lint: .venv/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

test: lint
	$(BIN)/pytest -n 2

test-slow: .venv/.ready
	$(BIN)/pytest -m slow

bench: .venv/.ready
	$(BIN)/python -m benchmarks

clean:
	rm -rf .venv runs .pytest_cache .mypy_cache .ruff_cache
