"""`python -m hasten_bench`, the same as `hasten-bench`."""

from hasten_bench.cli import main

main()
