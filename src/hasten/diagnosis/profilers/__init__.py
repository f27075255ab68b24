"""One file per runtime whose own profiler can be read; the file is named like the target."""
