"""Locks between processes, and calls in the background."""
