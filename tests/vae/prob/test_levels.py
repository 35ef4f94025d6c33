"""Levels of discrete data: the cells that they are dequantised to, and the cell that a value is quantised to."""

import torch

from vaebench.vae.prob.levels import dequantise, quantise


def test_values_are_quantised_to_the_cell_that_holds_them_and_beyond_the_ends_to_the_outer_ones():
    """Three levels 0, 1/2 and 1 have the cells [0, 1/3), [1/3, 2/3) and [2/3, 1]."""
    y = torch.tensor([-3.0, 0.0, 0.32, 0.34, 0.66, 0.67, 0.99, 1.0, 9.0])
    assert quantise(y, 3).tolist() == [0, 0, 0, 0.5, 0.5, 1, 1, 1, 1]


def test_every_level_fills_its_cell():
    levels = torch.arange(5) / 4
    low, high = (dequantise(levels, 5, u) for u in (0.0, 0.999))
    torch.testing.assert_close(low, torch.arange(5) / 5)
    torch.testing.assert_close(high, torch.arange(5) / 5 + 0.1998)
