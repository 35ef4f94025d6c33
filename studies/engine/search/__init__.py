"""Where trials come from: queue, samplers, pruners, the journal."""
