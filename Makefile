# Everything runs from a virtual environment, which the first call makes: VENV names it, PYTHON the interpreter to make it
# with. `make PYTHON=python3.13 VENV=.venv-3.13 test-fast` tests another version of Python beside the first.
PYTHON ?= python3
VENV ?= .venv
# Which runs the short tests as well before a release.
OTHER_PYTHON ?= python3.13
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# One process for each core, with one thread each: several threads in several processes would wait for each other.
# A process takes a whole file: the examples on a page or in a module follow one another.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 8 --dist loadfile
EXAMPLES := src README.md docs

# Some machines tell Python to keep no bytecode: each of the many processes that tests start would compile all it imports.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help install test test-fast test-all test-examples attack check format docs demo benchmarks fuzz results sweep size clean

help:
	@echo "make demo        audit a pretrained network before and after it was made fair (offline)"
	@echo "make test        run the tests, without attacks and the documentation site (eight minutes on two cores)"
	@echo "make test-fast   the short ones: no training, no browser, no commands (a minute)"
	@echo "make test-all    everything, before a release: attacks, damaged files, the site, the demonstration, another Python"
	@echo "make test-examples  the examples in docstrings, the README and the documentation"
	@echo "make attack      the tests of hostile files, names and moments (under ten minutes)"
	@echo "make check       lint, types, order of imports"
	@echo "make format      format the code"
	@echo "make docs        the documentation site, in docs/_build/html; its tutorials are run"
	@echo "make benchmarks  speed, memory, calibration and sanity checks (long)"
	@echo "make fuzz        open damaged volumes of every kind by the thousand (long)"
	@echo "make results     the tables of pages, from what the studies found, and of src/README.md, from docstrings"
	@echo "make size        the weight of the project beside its budget"
	@echo "make sweep       neutralize every network of every library; goes on where it was (hours)"

install: $(STAMP)

# Python compiles what tests import by itself, which takes a minute less than if pip compiled all 34,000 modules.
# The pip that comes with Python 3.11 knows no dependency groups.
$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --no-compile --editable '.[all]' --group dev
	@touch $@

# Attacks and the documentation site are left out by default (pyproject.toml).
test: $(STAMP)
	$(PYTEST) tests $(EXAMPLES)

test-fast: $(STAMP)
	$(PYTEST) -m "not slow and not browser and not attack and not site" tests

test-examples: $(STAMP)
	$(PYTEST) $(EXAMPLES)

# Before a release, and at the end of a piece of work.
test-all: check test attack fuzz demo
	$(PYTEST) -m site tests
	$(MAKE) PYTHON=$(OTHER_PYTHON) VENV=.venv-other test-fast

attack: $(STAMP)
	$(PYTEST) -m attack tests

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The pages of the API are made anew, for those of names that are gone would stay.
docs: $(STAMP)
	rm -rf docs/_build docs/reference/api
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -b html -E -W --keep-going -j auto docs docs/_build/html

demo: $(STAMP)
	$(BIN)/evenslice demo --force

benchmarks: $(STAMP)
	for cost in segment engines labels symmetrize training workers memory verdict; do $(BIN)/python benchmarks/costs.py $$cost; done
	$(BIN)/python benchmarks/calibration.py --censuses runs/censuses
	$(BIN)/python benchmarks/sanity.py --scratch runs/trained

fuzz: $(STAMP)
	EVENSLICE_FUZZ=2000 $(PYTEST) --timeout 0 -m "attack or not attack" -k damaged tests/volumes/test_fuzz_volumes.py

results: $(STAMP)
	PYTHONPATH=benchmarks $(BIN)/python studies/fill_pages.py

size: $(STAMP)
	$(BIN)/python studies/size.py

sweep: $(STAMP)
	$(BIN)/python studies/sweep.py $(SWEEP)

clean:
	rm -rf .venv .venv-* evenslice-demo docs/_build docs/reference/api .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
