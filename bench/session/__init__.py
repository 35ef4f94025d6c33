"""Sessions of benchmarks: read, compared, judged and drawn."""
