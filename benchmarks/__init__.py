"""Benchmarks: speed, memory and accuracy of whole jobs, each a module that a user can run."""
