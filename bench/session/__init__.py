"""What a session of benchmarks says: read, compared, judged, drawn."""
