"""Code that several backends share: the noise stream, autograd helpers, and operators for `torch.compile`."""
