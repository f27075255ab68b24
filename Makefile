# Needs python3 (3.11 or newer) with pip and make; everything else is installed into .venv by these targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
RUN := runs/demo
TOOLS := .venv-tools
QUICK := not slow and not stack
BENCH = PYTHONPATH=benchmarks $(BIN)/python -m hasten_bench

.PHONY: demo test test-all check format docs release clean bench bench-quick bench-report bench-gpu lock audit sbom coverage

demo: $(INSTALLED)  ## find the fastest certified version of a pretrained network on real photographs
	rm -rf $(RUN)
	$(BIN)/hasten run examples/solar.py --max-drop 1% --minutes 6 --out $(RUN)

test: check  ## everything CI runs
	$(BIN)/python -m pytest -m "$(QUICK)" -n 2 --dist worksteal

test-all: check  ## the slow suites too, and those of the stacks that are installed
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
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[openvino,batch,serve,examples,dev]"
	touch $@

bench: $(INSTALLED)  ## hasten beside every peer on all work, and how its cost grows; hours
	$(BENCH)
	$(BENCH) growth
	$(BENCH) render

bench-quick: $(INSTALLED)  ## two networks, under 15 minutes on two idle cores once the peers are installed
	$(BENCH) --quick
	$(BENCH) render

bench-report: $(INSTALLED)  ## docs/benchmarks.md and README's headline from benchmarks/results/
	$(BENCH) render

docs: $(VENV)/.docs  ## the documentation site in build/site; warnings are errors
	$(BIN)/python docs/draw_architecture.py --check
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "open build/site/index.html"

$(VENV)/.docs: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[docs]"
	touch $@

bench-gpu: $(INSTALLED)  ## hasten beside torch.compile and torchao on this machine's NVIDIA GPU; about an hour
	$(BIN)/python benchmarks/gpu.py

release:  ## wheel and sdist in dist/, tried from a clean environment
	.ci/release

lock: $(TOOLS)/.installed  ## requirements-test.txt: constraints.txt with the SHA-256 of every file on PyPI
	$(TOOLS)/bin/uv pip compile constraints.txt --no-config --no-deps --generate-hashes --no-annotate --quiet \
		--python-version 3.11.7 --custom-compile-command "make lock" --output-file requirements-test.txt

audit: $(TOOLS)/.installed  ## known security holes in what constraints.txt pins, from osv.dev; fails if it cannot ask
	$(TOOLS)/bin/pip-audit --strict --vulnerability-service osv --no-deps --disable-pip --requirement constraints.txt

sbom: $(INSTALLED) $(TOOLS)/.installed  ## build/sbom.json (CycloneDX) and build/licences.md, of what is installed in .venv
	mkdir -p build
	$(TOOLS)/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible \
		--output-file build/sbom.json $(BIN)/python
	$(TOOLS)/bin/pip-licenses --python $(BIN)/python --format markdown --with-urls \
		--output-file build/licences.md

coverage: $(INSTALLED)  ## lines that the fast tests run, by file
	$(BIN)/python -m pytest -m "$(QUICK)" --cov hasten --cov-report term:skip-covered

# Tools of their own environment: nothing of hasten depends on them.
$(TOOLS)/.installed: .ci/tools.txt
	test -d $(TOOLS) || $(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/python -m pip install --quiet --disable-pip-version-check --requirement .ci/tools.txt
	touch $@

clean:
	rm -rf $(VENV) $(TOOLS) runs build .mypy_cache .ruff_cache .pytest_cache
