"""Measure a trained model: likelihood, codes, labels."""
