"""Densities, divergences and the aggregated posterior."""
