"""The sections of docs/compression-results.md; see `compression_page.py`."""
