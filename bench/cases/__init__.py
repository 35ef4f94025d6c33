"""What is timed: operations, training steps, feeding, and who computes them."""
