"""The audit of a trained model, of whatever library: what it measures, what it finds, and its page."""
