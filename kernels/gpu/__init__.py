"""Backend `triton`: for each operation its kernels, and the file that launches and differentiates them."""
