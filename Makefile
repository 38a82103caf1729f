# Everything runs from .venv, which the first call makes. PYTHON names the interpreter to make it with.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: help install test check format demo benchmarks clean

help:
	@echo "make demo        audit a pretrained network before and after it was made fair (offline)"
	@echo "make test        run the tests"
	@echo "make check       lint, types, order of imports"
	@echo "make format      format the code"
	@echo "make benchmarks  speed, memory and calibration (long)"

install: $(STAMP)

$(STAMP): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

test: $(STAMP)
	$(BIN)/python -m pytest

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

demo: $(STAMP)
	$(BIN)/evenslice demo --force

benchmarks: $(STAMP)
	$(BIN)/python benchmarks/audit_speed.py
	$(BIN)/python benchmarks/audit_memory.py
	$(BIN)/python benchmarks/calibration.py

clean:
	rm -rf .venv evenslice-demo .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
