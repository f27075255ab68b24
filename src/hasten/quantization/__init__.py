"""Machinery of quantization: where Q/DQ stands, how ranges are observed, how numbers are rounded. Techniques use it."""
