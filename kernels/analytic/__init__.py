"""Backend `analytic`: plain PyTorch with gradients derived by hand, the default on a CPU."""
