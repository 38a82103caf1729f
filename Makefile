# Everything runs from .venv, which the first call makes. PYTHON names the interpreter to make it with.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: help install test check format demo benchmarks fuzz results sweep coverage clean

help:
	@echo "make demo        audit a pretrained network before and after it was made fair (offline)"
	@echo "make test        run the tests"
	@echo "make check       lint, types, order of imports"
	@echo "make format      format the code"
	@echo "make benchmarks  speed, memory and calibration (long)"
	@echo "make fuzz        open damaged volumes of every format by the thousand (long)"
	@echo "make results     docs/results.md, from what the studies found"
	@echo "make sweep       neutralize every network of every library; goes on where it was (hours)"
	@echo "make coverage    docs/coverage.md, from what the sweep found"

install: $(STAMP)

# The pip that comes with Python 3.11 cannot resolve what moto and s3fs ask of botocore.
$(STAMP): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
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

fuzz: $(STAMP)
	$(BIN)/python tests/helpers/fuzz_volumes.py --count 2000

results: $(STAMP)
	$(BIN)/python studies/write_results.py

sweep: $(STAMP)
	$(BIN)/python studies/sweep.py $(SWEEP)
	$(BIN)/python studies/write_coverage.py

coverage: $(STAMP)
	$(BIN)/python studies/write_coverage.py

clean:
	rm -rf .venv evenslice-demo .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
