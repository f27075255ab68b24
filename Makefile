PYTHON ?= python
BENCH = PYTHONPATH=src:benchmarks$(if $(PYTHONPATH),:$(PYTHONPATH)) $(PYTHON) -m hasten_bench

.PHONY: bench bench-quick bench-growth bench-report

bench:  ## hasten beside every peer on all work, and the growth curves
	$(BENCH)
	$(BENCH) growth
	$(BENCH) render

bench-quick:  ## two networks, under 15 minutes on two idle cores
	$(BENCH) --quick
	$(BENCH) render

bench-growth:
	$(BENCH) growth
	$(BENCH) render

bench-report:  ## docs/benchmarks.md and README's headline from benchmarks/results/
	$(BENCH) render
