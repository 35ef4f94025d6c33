"""Command lines, sweeps, tracking, and scripts for the claims of the theory."""
