"""Latency, accuracy and its certificate, memory, size: measured on programs, never on training graphs."""
