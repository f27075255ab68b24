"""What `benchmarks/engine.py` measures, one module per subject."""
