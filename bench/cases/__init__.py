"""Workloads that are timed: operations, training steps and data feeding, with the providers of each."""
