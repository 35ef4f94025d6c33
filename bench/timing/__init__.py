"""Timing in turns, with a noise floor, on a machine that is described."""
