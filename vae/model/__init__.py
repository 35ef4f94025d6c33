"""Models: networks, likelihoods, the VAE, the flow as a model of its own."""
