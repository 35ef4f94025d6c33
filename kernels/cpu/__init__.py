"""Backend `numba`: for each operation, a file with its kernels and the function that calls and differentiates them."""
