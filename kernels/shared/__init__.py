"""What backends share: the noise stream, dtypes of sums, autograd functions, operators for `torch.compile`."""
