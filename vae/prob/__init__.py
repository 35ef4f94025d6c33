"""Functions of tensors: densities, draws, divergences, the aggregated posterior, levels, proposals."""
