# Needs python3 (3.11 or newer) with pip and make; everything else is installed into .venv by these targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
RUN := runs/demo

.PHONY: demo test test-all check format clean

demo: $(INSTALLED)  ## find the fastest certified version of a pretrained network on real photographs
	rm -rf $(RUN)
	$(BIN)/hasten run examples/solar.py --max-drop 1% --out $(RUN)

test: check  ## everything CI runs
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile

test-all: check  ## the slow suites too
	$(BIN)/python -m pytest

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# One install serves demo and tests; constraints.txt pins what they were verified with.
$(INSTALLED): pyproject.toml constraints.txt
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[openvino,examples,dev]"
	touch $@

clean:
	rm -rf $(VENV) runs build .mypy_cache .ruff_cache .pytest_cache
