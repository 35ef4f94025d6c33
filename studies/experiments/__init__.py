"""One script for each claim of the theory."""
