# Every target makes what it needs in .venv and can be repeated.
#
# torch goes in first, alone and at its pin, so that nothing else decides which one is installed. It comes from the index
# that pip is set up for; where that one offers builds of several gigabytes for a GPU this machine does not have, set pip
# to an index of CPU builds (PIP_INDEX_URL or PIP_EXTRA_INDEX_URL) before the first `make`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed.stamp
TESTS := not slow and not gpu and not browser
BROWSER ?= yes
EXTRAS := cpu,train,export,trt-rtx,serve,test,dev

.DEFAULT_GOAL := help
.PHONY: help demo serve studio test test-slow bench lint format

help:
	@echo "make demo       draw with the embedded model and a concept"
	@echo "make serve      draw over HTTP with the embedded model, for programs of this machine"
	@echo "make studio     the same, with its page opened in the browser"
	@echo "make test       linters, types, and every test that is neither slow nor needs a GPU"
	@echo "make test-slow  the slow tests"
	@echo "make bench      measure this machine; records go to benchmarks/records/"
	@echo "make lint       linters, format and types alone"
	@echo "make format     sort the imports and lay the code out"

# A .venv without the stamp (made by hand, or left by a failed install) is completed, not thrown away.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[$(EXTRAS)]"
	touch $@

demo: $(STAMP)
	$(BIN)/python examples/demo.py

serve: $(STAMP)
	$(BIN)/perfusion-serve

studio: $(STAMP)
	$(BIN)/perfusion-studio

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --select I --fix .
	$(BIN)/ruff format .

# The page's tests have a process of their own: what drives the browser keeps an event loop running.
test: lint
	$(BIN)/python -m pytest -m "$(TESTS)"
	$(if $(BROWSER),$(BIN)/python -m pytest -m browser tests/perfusion/serving/studio)

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m "slow and not gpu"

bench: $(STAMP)
	set -e; for script in benchmarks/*.py; do $(BIN)/python "$$script"; done
