"""Backend `triton`: for each operation, a file with its kernels and a file that launches and differentiates them."""
