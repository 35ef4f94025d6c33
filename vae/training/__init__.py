"""Train one model: steps, epochs, the state between them, checkpoints."""
