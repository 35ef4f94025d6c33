"""What a worker does: jobs, trials, the loop that takes one after another."""
